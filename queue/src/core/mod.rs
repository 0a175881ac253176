//! What a partition decides: pure state, without clock, lock, store or task.

pub(crate) mod codec;
mod index;
mod producers;
mod state;

pub(crate) use producers::{Admission, Fence};
pub(crate) use state::{Limits, Staged, State};

#[cfg(test)]
mod tests;
