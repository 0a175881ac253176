#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod clock;
mod core;
mod error;
mod header;
mod keyed;
mod limiter;
mod quota;
mod shared;
mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(feature = "tower")]
pub mod tower;

#[cfg(target_os = "linux")]
pub use clock::Coarse;
pub use clock::{Clock, Monotonic, TokioClock};
pub use core::Standing;
pub use error::{ConfigError, Rejected, WaitError};
pub use header::{policy_field, standing_field};
pub use keyed::{Keyed, KeyedConfig, KeyedStats, WhenFull};
pub use limiter::{Admitted, Limiter, LimiterConfig};
pub use quota::{Algorithm, MAX_LOG_UNITS, MAX_TIERS, Quota};
pub use shared::{
    Counter, Leased, LeasedConfig, LeasedStats, OnOutage, OutageConfig, Outcome, Pass, SharedError,
    Source, StoreError, Strict, Take, Taken,
};
#[cfg(feature = "redis")]
pub use shared::{RedisCounter, RedisStats, WhenLost};
