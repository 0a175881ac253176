//! Limits that several processes share, through a store that counts.

mod counter;
mod guard;
mod leased;
#[cfg(feature = "redis")]
mod redis;
mod strict;
#[cfg(test)]
mod tests;

#[cfg(feature = "redis")]
pub use self::redis::{RedisCounter, RedisStats, WhenLost};
pub use counter::{Counter, Outcome, StoreError, Take, Taken};
pub use guard::{OnOutage, OutageConfig, Pass, SharedError, Source};
pub use leased::{Leased, LeasedConfig, LeasedStats};
pub use strict::Strict;
