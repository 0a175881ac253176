//! Where sets of endpoints come from: sources, and a task that keeps a balancer up to date.
//!
//! A resolution that fails or gives no endpoint changes nothing: the balancer keeps its last set.
//! When all endpoints of a set fail, the source is asked again at once, in case the set is stale.

mod dns;
mod file;
#[cfg(feature = "hickory")]
mod records;
#[cfg(feature = "hickory")]
mod service;
mod source;
mod task;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use dns::DnsSource;
pub use file::{FileSource, parse_endpoints};
#[cfg(feature = "hickory")]
pub use records::{AddressRecords, DnsClient, Family, ServiceRecords};
pub use source::{StaticSource, StreamSource};
pub use task::{Discovery, DiscoveryConfig, DiscoveryStats};

use crate::config::EndpointConfig;

/// Finds the endpoints of a service.
#[async_trait]
pub trait Source: Send + Sync {
    /// Asks for the whole set. A source that watches a stream begins a new one, so that a stream
    /// that fell silent is left.
    ///
    /// # Errors
    /// Why there is no answer. The balancer keeps its last set, and the source is asked again.
    ///
    /// # Cancel safety
    /// Dropped at its time-out and when the discovery ends: must leave nothing behind.
    async fn resolve(&self) -> Result<Resolved, DiscoveryError>;

    /// Waits for a set that the source sends by itself. Never returns for a source that does not;
    /// that is the default.
    ///
    /// # Errors
    /// Why no more will come; the source is then asked again by `resolve`.
    ///
    /// # Cancel safety
    /// Dropped whenever something else wakes the discovery: must lose no set.
    async fn changed(&self) -> Result<Resolved, DiscoveryError> {
        std::future::pending().await
    }
}

#[async_trait]
impl<S: Source + ?Sized> Source for Arc<S> {
    async fn resolve(&self) -> Result<Resolved, DiscoveryError> {
        S::resolve(self).await
    }

    async fn changed(&self) -> Result<Resolved, DiscoveryError> {
        S::changed(self).await
    }
}

/// A whole set of endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resolved {
    /// The endpoints.
    pub endpoints: Vec<EndpointConfig>,
    /// How long the answer is valid. It is asked for again then, or at the discovery's `interval`,
    /// whichever comes first.
    pub ttl: Option<Duration>,
}

impl Resolved {
    /// A set that is valid until another one comes.
    pub fn new(endpoints: impl IntoIterator<Item = EndpointConfig>) -> Self {
        Self { endpoints: endpoints.into_iter().collect(), ttl: None }
    }

    /// Sets how long the answer is valid.
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }
}

/// A source gave no set. The balancer keeps its last one, and the source is asked again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoveryError {
    /// The resolver, the file or the connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The source has an error in it.
    #[error("line {line}, column {column}: {reason}")]
    Malformed {
        /// From 1.
        line: usize,
        /// From 1, in bytes.
        column: usize,
        /// What is wrong.
        reason: String,
    },
    /// The stream of sets ended.
    #[error("the stream of sets ended")]
    Ended,
    /// Another failure.
    #[error("{reason}")]
    Failed {
        /// What failed.
        reason: String,
    },
}
