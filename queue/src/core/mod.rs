//! What a partition and a queue decide: pure state, without clock, lock, store or task.

pub(crate) mod codec;
pub(crate) mod entry;
pub(crate) mod group;
mod index;
mod producers;
mod state;
pub(crate) mod table;

pub(crate) use producers::{Admission, Fence};
pub(crate) use state::{Limits, Staged, State};

#[cfg(test)]
mod tests;
