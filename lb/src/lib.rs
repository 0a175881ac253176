#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod balancer;
mod clock;
mod config;
mod context;
mod core;
mod endpoint;
mod error;
#[cfg(feature = "l4")]
#[cfg_attr(docsrs, doc(cfg(feature = "l4")))]
pub mod l4;
mod random;
pub mod strategy;
mod sync;

pub use balancer::{Availability, Balance, Balancer, BalancerStats, EndpointStats, MAX_ENDPOINTS};
pub use clock::{Clock, Monotonic};
pub use config::{
    CheckConfig, Config, EndpointConfig, LatencyOutliers, OnPanic, OutlierConfig, PriorityConfig,
    SlowStartConfig, SuccessRateOutliers, ZoneConfig,
};
pub use context::Context;
pub use endpoint::{Endpoint, Outcome, Pick};
pub use error::{ConfigError, UpdateError};
pub use random::Random;
