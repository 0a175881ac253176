#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod clock;
mod core;
mod error;
mod keyed;
mod limiter;
mod quota;
mod shared;
mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

#[cfg(all(target_os = "linux", feature = "coarse-clock"))]
pub use clock::Coarse;
pub use clock::{Clock, Monotonic, TokioClock};
pub use core::Standing;
pub use error::{ConfigError, Denied, WaitError};
pub use keyed::{Keyed, KeyedConfig, KeyedStats, WhenFull};
pub use limiter::{Admitted, Limiter, LimiterConfig};
pub use quota::{Algorithm, LOG_UNITS_MAX, Quota, TIERS_MAX};
pub use shared::{
    Counter, Leased, LeasedConfig, LeasedStats, OnOutage, Outcome, OutageConfig, Pass, SharedError,
    Source, StoreError, Strict, Take, Taken,
};
#[cfg(feature = "redis")]
pub use shared::{AfterRestart, RedisCounter};
