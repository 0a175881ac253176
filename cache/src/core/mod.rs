//! The decisions, without clock, lock or future: how long an entry is fresh, and what the readers
//! of one key do while it is being loaded.

pub(crate) mod backlog;
pub(crate) mod flight;
pub(crate) mod freshness;
pub(crate) mod peers;
pub(crate) mod random;
