//! Pools whose backends are found by DNS.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Deserialize;
use voussoir_lb::discovery::{DnsClient, Family, Source};

/// Where the backends of a pool are looked up, whenever the TTL of the last answer is over.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// `HOST:PORT`: the addresses of the host.
    pub addresses: Option<String>,
    /// The name of SRV records, such as `_http._tcp.example.com`.
    pub services: Option<String>,
    /// The name servers, `IP:PORT`. Without them, those of the system.
    #[serde(default)]
    pub servers: Vec<SocketAddr>,
    /// Which addresses count.
    #[serde(default)]
    pub family: FamilyName,
}

/// Which addresses of a name count.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum FamilyName {
    /// IPv4 and IPv6.
    #[default]
    Both,
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Dns {
    /// What is asked for the backends.
    ///
    /// # Errors
    /// What is no name, and a configuration of the system that cannot be read.
    pub fn source(&self) -> Result<Arc<dyn Source>, String> {
        let client = if self.servers.is_empty() {
            DnsClient::from_system()
        } else {
            DnsClient::with_name_servers(self.servers.iter().copied())
        };
        let family = match self.family {
            FamilyName::Both => Family::Both,
            FamilyName::V4 => Family::V4,
            FamilyName::V6 => Family::V6,
        };
        let client = client.map_err(|error| error.to_string())?.with_family(family);
        match (&self.addresses, &self.services) {
            (Some(address), None) => {
                let (host, port) = address
                    .rsplit_once(':')
                    .and_then(|(host, port)| Some((host, port.parse().ok().filter(|p| *p > 0)?)))
                    .ok_or_else(|| format!("`{address}` must be `HOST:PORT`"))?;
                let source = client.addresses(host, port);
                source.map(|source| Arc::new(source) as _).map_err(|error| error.to_string())
            }
            (None, Some(name)) => {
                let source = client.services(name);
                source.map(|source| Arc::new(source) as _).map_err(|error| error.to_string())
            }
            _ => Err("`dns` needs either `addresses` or `services`".to_owned()),
        }
    }
}
