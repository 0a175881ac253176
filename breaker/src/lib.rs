#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod breaker;
mod clock;
mod config;
mod core;
mod error;
mod sync;

pub use breaker::{
    Breaker, BreakerSnapshot, BreakerStats, Cause, Permit, State, Transition, Verdict, WindowPart,
};
#[cfg(all(target_os = "linux", feature = "coarse-clock"))]
pub use clock::Coarse;
pub use clock::{Clock, Monotonic, TokioClock, default_clock};
pub use config::{BUCKET_MIN, BUCKETS_MAX, BreakerConfig, WINDOW_CALLS_MAX, Window};
pub use core::Counts;
pub use error::{
    BreakerError, ConfigError, GateError, Outcome, RegistryFull, Rejected, RestoreError,
    TimeoutError,
};
