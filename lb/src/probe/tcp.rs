//! A probe that connects.

use async_trait::async_trait;
use tokio::net::TcpStream;

use super::{Probe, ProbeError, address};
use crate::endpoint::Endpoint;

/// Passes if a TCP connection can be made. The name of the endpoint is its address.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct TcpProbe {
    /// Port to probe. `None` (the default) is the endpoint's own.
    pub port: Option<u16>,
}

#[async_trait]
impl Probe for TcpProbe {
    async fn probe(&self, endpoint: &Endpoint) -> Result<(), ProbeError> {
        TcpStream::connect(address(endpoint.name(), self.port)).await?;
        Ok(())
    }
}
