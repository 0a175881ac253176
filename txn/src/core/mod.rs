//! The saga as a state machine: no task, clock, file or randomness but a seeded one.

mod event;
mod graph;
mod progress;
mod retry;
mod run;

pub use event::Direction;
pub(crate) use event::{Cause, Event};
pub(crate) use graph::{Graph, Kind, MAX_STEPS, Node, StepId};
pub(crate) use run::{Call, End, Failure, Input, Output, Resolution, Run};

#[cfg(test)]
mod tests;
