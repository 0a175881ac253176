//! What a partition and a queue decide: pure state, without clock, lock, store or task.

pub(crate) mod clean;
pub(crate) mod codec;
#[cfg_attr(
    not(feature = "journal"),
    expect(dead_code, reason = "topics and groups need a journal")
)]
pub(crate) mod entry;
#[cfg_attr(
    not(feature = "journal"),
    expect(dead_code, reason = "topics and groups need a journal")
)]
pub(crate) mod group;
mod index;
mod producers;
mod state;
#[cfg_attr(
    not(feature = "journal"),
    expect(dead_code, reason = "topics and groups need a journal")
)]
mod stored_groups;
#[cfg_attr(
    not(feature = "journal"),
    expect(dead_code, reason = "topics and groups need a journal")
)]
pub(crate) mod table;

pub(crate) use producers::{Admission, Fence};
pub(crate) use state::{Limits, Staged, State};

#[cfg(test)]
mod tests;
