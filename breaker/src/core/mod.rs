//! The breaker as a pure decision: atomics and the time that the caller passes in.
//!
//! Nothing here reads a clock, starts a task or knows a runtime.

mod adaptive;
mod latency;
mod machine;
mod padded;
mod probes;
mod queue;
mod rng;
mod rules;
mod tagged;
mod window;

pub use adaptive::{
    Aimd, AimdConfig, Gradient2, Gradient2Config, LimitAlgorithm, LimitSample, Vegas, VegasConfig,
};
pub(crate) use latency::LatencyWindow;
pub(crate) use machine::{Denied, Machine, Memory, Phase, Shift, ShiftCause, Ticket};
pub(crate) use padded::Padded;
pub use queue::QueueOrder;
pub(crate) use queue::{Patience, WaitQueue};
pub(crate) use rng::SplitMix;
pub(crate) use rules::{Rules, Trip, millionths};
pub use window::Counts;
pub(crate) use window::{Sample, Shape};

#[cfg(test)]
mod model_tests;
