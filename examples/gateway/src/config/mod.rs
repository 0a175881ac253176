//! The configuration file: its shape, and the place of every mistake.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

mod check;
mod dns;
mod pool;
mod route;

pub(crate) use check::{checker, http};

pub use dns::{Dns, FamilyName};
pub use pool::{
    Breaker, EndpointEntry, Health, HealthKind, Outliers, Pool, PoolTls, Retry, StrategyName,
};
pub use route::{Limit, LimitBy, RouteEntry, Target, build_route};

/// A file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {what}")]
pub struct ConfigError {
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    /// What is wrong, and what is allowed.
    pub what: String,
}

impl ConfigError {
    /// A mistake at a byte of `text`.
    pub fn at(text: &str, offset: usize, what: impl Into<String>) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            what: what.into(),
        }
    }
}

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Properties of the gateway that a reload cannot change.
    #[serde(default)]
    pub server: Server,
    /// Where clients connect to.
    pub listeners: Vec<Spanned<Listener>>,
    /// Tried in their order.
    pub routes: Vec<Spanned<RouteEntry>>,
    /// Groups of backends by name.
    pub pools: BTreeMap<String, Spanned<Pool>>,
}

/// Properties of the gateway that a reload cannot change.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Address of `/metrics`, `/health`, `/ready` and `/status`. Without it there are none.
    pub admin: Option<SocketAddr>,
    /// Open client connections, 1 to 1,000,000.
    pub max_connections: usize,
    /// Bytes of the head of a request, 1,024 to 1,048,576.
    pub max_header_bytes: usize,
    /// Time in which the head of a request must arrive, 10 to 3,600,000 ms.
    pub header_timeout_ms: u64,
    /// Time without a byte of a body, 10 to 3,600,000 ms.
    pub body_timeout_ms: u64,
    /// Proxies in front of this one whose `X-Forwarded-For` is believed, such as `10.0.0.0/8`.
    pub trusted_proxies: Vec<String>,
    /// Time for which requests under way may go on after SIGTERM, 0 to 3,600,000 ms.
    pub drain_timeout_ms: u64,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            admin: None,
            max_connections: 10_000,
            max_header_bytes: 32 << 10,
            header_timeout_ms: 30_000,
            body_timeout_ms: 30_000,
            trusted_proxies: Vec::new(),
            drain_timeout_ms: 30_000,
        }
    }
}

/// An address that is listened on.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Address and port.
    pub address: SocketAddr,
    /// With it, HTTPS.
    pub tls: Option<Tls>,
}

/// Files of a certificate, as PEM. They are read again at each reload.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate and those that signed it.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Reads and checks a file.
///
/// # Errors
/// The first mistake, with its place.
pub fn parse(text: &str) -> Result<Config, ConfigError> {
    let config: Config = toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        ConfigError::at(text, offset, error.message())
    })?;
    check::check(text, &config)?;
    Ok(config)
}
