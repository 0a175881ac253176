//! The breaker as a pure decision: atomics and the time that the caller passes in.
//!
//! Nothing here reads a clock, starts a task or knows a runtime.

mod machine;
mod padded;
mod probes;
mod rng;
mod rules;
mod tagged;
mod window;

pub(crate) use machine::{Denied, Machine, Memory, Phase, Shift, ShiftCause, Ticket};
pub(crate) use padded::Padded;
pub(crate) use rng::SplitMix;
pub(crate) use rules::{Rules, Trip, millionths};
pub use window::Counts;
pub(crate) use window::{Sample, Shape};

#[cfg(test)]
mod model_tests;
