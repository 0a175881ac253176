#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod adaptive;
mod breaker;
mod bulkhead;
mod clock;
mod config;
mod core;
mod deadline;
mod error;
mod gate;
mod hedge;
#[cfg(feature = "metrics")]
pub mod metrics;
mod policy;
mod registry;
mod retry;
mod shed;
mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod timeout;
#[cfg(feature = "tower")]
pub mod tower;

pub use adaptive::{AdaptiveLimit, AdaptivePermit};
pub use breaker::{
    Breaker, BreakerSnapshot, BreakerStats, Cause, Permit, State, Transition, Verdict, WindowPart,
};
pub use bulkhead::{Bulkhead, BulkheadPermit, QueueConfig};
pub use clock::{Clock, Coarse, Monotonic, TokioClock, default_clock};
pub use config::{BreakerConfig, MAX_BUCKETS, MAX_WINDOW_CALLS, MIN_BUCKET, Window};
pub use core::{
    Aimd, AimdConfig, Counts, Gradient2, Gradient2Config, LimitAlgorithm, LimitSample, QueueOrder,
    Vegas, VegasConfig,
};
pub use deadline::Deadline;
pub use error::{
    BreakerError, ConfigError, GateError, Outcome, RegistryFull, Rejected, RestoreError,
    TimeoutError,
};
pub use gate::GateStats;
pub use hedge::{Hedge, HedgeConfig, HedgeStats};
pub use policy::{
    Attempt, ByResult, CallOptions, Classify, Idempotent, Policy, PolicyBuilder, PolicyError,
    PolicyErrorKind,
};
pub use registry::Registry;
pub use retry::{
    Backoff, BudgetedCall, ExtraAttempt, Growth, Jitter, Retry, RetryAdvice, RetryBudget,
    RetryBudgetConfig, RetryBudgetStats, RetryConfig, RetryError, RetryRejected, Stop, Waits,
    retry_after_secs,
};
pub use shed::{LoadSource, Priority, ShedConfig, Shedder};
pub use timeout::Timeout;
