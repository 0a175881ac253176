//! The saga as a state machine, without task, clock or file. Its only randomness is a seeded
//! generator, for the jitter of delays.
//!
//! - `graph` has the steps, `event` what is recorded, `progress` the state that the records give.
//! - `run` takes inputs and gives outputs; `retry` has the delays.

mod event;
mod graph;
mod progress;
mod retry;
mod run;

pub use event::Direction;
pub(crate) use event::{Cause, Event};
pub(crate) use graph::{Graph, Kind, MAX_STEPS, Node, StepId};
pub(crate) use retry::delay as retry_delay;
pub(crate) use run::{Call, End, Failure, Input, Output, Resolution, Run};

#[cfg(test)]
mod tests;
