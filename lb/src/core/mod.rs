//! Pure decisions: no clock, thread, socket or lock. Time is passed in as nanoseconds.

mod check;
mod decay;
mod flight;
mod outlier;
mod shares;
mod slow_start;

pub(crate) use check::{CheckState, CheckThresholds};
pub(crate) use decay::Decaying;
pub(crate) use flight::{Flight, MAX_IN_FLIGHT};
pub(crate) use outlier::{
    EjectionState, WindowSample, ejection_allowed, latency_outliers, success_rate_outliers,
};
pub(crate) use shares::{LevelHealth, PrioritySplit, split_priorities, split_zone};
pub(crate) use slow_start::{FULL, ramp_step};
