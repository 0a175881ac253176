//! The breaker as a pure decision: atomics and the time that the caller passes in.
//!
//! Nothing here reads a clock, starts a task or knows a runtime.

mod adaptive;
mod latency;
mod machine;
mod probes;
mod queue;
mod rules;
mod striped;
mod tagged;
mod window;

pub use adaptive::{
    Aimd, AimdConfig, Gradient2, Gradient2Config, LimitAlgorithm, LimitSample, Vegas, VegasConfig,
};
pub(crate) use latency::LatencyWindow;
pub(crate) use machine::{Machine, Memory, Phase, Rejection, Shift, ShiftCause, Ticket};
pub use queue::QueueOrder;
pub(crate) use queue::{Patience, WaitQueue};
pub(crate) use rules::{Thresholds, Trip, millionths};
pub(crate) use tagged::MAX_COUNT;
pub use window::Counts;
pub(crate) use window::{Sample, WindowKind};

#[cfg(test)]
mod model_tests;
