#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod balancer;
mod budget;
mod clock;
mod config;
mod context;
mod core;
#[cfg(feature = "discovery")]
#[cfg_attr(docsrs, doc(cfg(feature = "discovery")))]
pub mod discovery;
mod endpoint;
mod error;
#[cfg(feature = "l4")]
#[cfg_attr(docsrs, doc(cfg(feature = "l4")))]
pub mod l4;
#[cfg(feature = "l7")]
#[cfg_attr(docsrs, doc(cfg(feature = "l7")))]
pub mod l7;
#[cfg(feature = "probes")]
#[cfg_attr(docsrs, doc(cfg(feature = "probes")))]
pub mod probe;
mod random;
pub mod strategy;
mod sync;
#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub mod tower;

pub use balancer::{Availability, Balance, Balancer, BalancerStats, EndpointStats, MAX_ENDPOINTS};
pub use budget::{BudgetHold, RetryBudget};
pub use clock::{Clock, Monotonic};
pub use config::{
    CheckConfig, Config, EndpointConfig, LatencyOutliers, OnPanic, OutlierConfig, PriorityConfig,
    SlowStartConfig, SuccessRateOutliers, ZoneConfig,
};
pub use context::Context;
pub use endpoint::{Endpoint, Outcome, Pick};
pub use error::{ConfigError, UpdateError};
pub use random::Random;
