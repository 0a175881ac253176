//! Addresses from the system's resolver.

use async_trait::async_trait;

use super::{DiscoveryError, Resolved, Source};
use crate::config::EndpointConfig;
use crate::error::ConfigError;

/// The addresses of a host, IPv4 and IPv6, from the system's resolver. It tells no TTL, so the
/// discovery asks again at its `interval`.
#[derive(Clone, Debug)]
pub struct DnsSource {
    host: String,
    port: u16,
}

impl DnsSource {
    /// The addresses of `host`, each with `port`.
    ///
    /// # Errors
    /// A host that is empty or longer than 253 bytes.
    pub fn new(host: impl Into<String>, port: u16) -> Result<Self, ConfigError> {
        let host = host.into();
        if host.is_empty() || host.len() > 253 {
            return Err(ConfigError::new("host", "must have 1 to 253 bytes"));
        }
        Ok(Self { host, port })
    }
}

#[async_trait]
impl Source for DnsSource {
    async fn resolve(&self) -> Result<Resolved, DiscoveryError> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await?;
        // Resolvers rotate their answers; the order of a set is the order of round robin.
        let mut addresses: Vec<_> = found.collect();
        addresses.sort_unstable();
        addresses.dedup();
        Ok(Resolved::new(addresses.into_iter().map(|at| EndpointConfig::new(at.to_string()))))
    }
}
