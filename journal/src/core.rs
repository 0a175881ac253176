//! The decisions, without threads, files or clocks: what a change does to the bounds of a log,
//! which commits are accepted and go into the next group, and where the records of a log are.
//!
//! What is held here of the engine (segments, handles of logs, whom to tell) is passed on and never
//! called.

pub(crate) mod bounds;
pub(crate) mod queue;
pub(crate) mod reserve;
pub(crate) mod view;
