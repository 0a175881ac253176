//! Active checks: probes, and a task that runs them for the endpoints of a balancer.
//!
//! A [`Checker`] probes every endpoint of the set and records the results with
//! [`Balancer::record_check`](crate::Balancer::record_check). An endpoint that joins is probed at
//! once; it gets no traffic before its first probe has passed.

mod checker;
#[cfg(feature = "grpc")]
mod grpc;
mod http;
mod tcp;

use std::io;
use std::sync::Arc;

use async_trait::async_trait;

pub use checker::{Checker, CheckerConfig, CheckerStats, LastFailure};
#[cfg(feature = "grpc")]
#[cfg_attr(docsrs, doc(cfg(feature = "grpc")))]
pub use grpc::GrpcProbe;
pub use http::HttpProbe;
pub use tcp::TcpProbe;

use crate::endpoint::Endpoint;

/// Finds out whether an endpoint serves.
#[async_trait]
pub trait Probe: Send + Sync {
    /// Probes the endpoint once. A checker gives it `timeout` and counts a panic as a failure.
    ///
    /// # Errors
    /// Why the endpoint does not serve.
    ///
    /// # Cancel safety
    /// Dropped when the time is over, the endpoint leaves the set, or the checker ends: must leave
    /// nothing behind.
    async fn probe(&self, endpoint: &Endpoint) -> Result<(), ProbeError>;
}

#[async_trait]
impl<P: Probe + ?Sized> Probe for Arc<P> {
    async fn probe(&self, endpoint: &Endpoint) -> Result<(), ProbeError> {
        P::probe(self, endpoint).await
    }
}

/// Why a probe failed. The endpoint was not changed; the checker probes again at its interval.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// No connection could be made, or it broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The endpoint answered that it does not serve, or with something that is no answer.
    #[error("{reason}")]
    Unhealthy {
        /// What it answered.
        reason: String,
    },
}

impl ProbeError {
    /// An endpoint that does not serve.
    pub fn unhealthy(reason: impl Into<String>) -> Self {
        Self::Unhealthy { reason: reason.into() }
    }
}

/// The address to probe: the endpoint's name, with another port if one is given.
fn address(name: &str, port: Option<u16>) -> String {
    let host = name.rsplit_once(':').map_or(name, |(host, _)| host);
    port.map_or_else(|| name.to_owned(), |port| format!("{host}:{port}"))
}
