//! Pools: groups of backends, and how one of them is chosen.

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use super::Dns;
use hyper::header::HeaderName;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use voussoir_breaker::{BreakerConfig, Window};
use voussoir_lb::l7::{KeySource, Protocol, UpstreamConfig};
use voussoir_lb::strategy::{self, Strategy};
use voussoir_lb::{CheckConfig, Config, EndpointConfig, OutlierConfig, SlowStartConfig};

/// A group of backends.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// The backends. At least one, unless they are found by `dns`.
    #[serde(default)]
    pub endpoints: Vec<EndpointEntry>,
    /// Where the backends are looked up, instead of `endpoints`.
    pub dns: Option<Dns>,
    /// How one is chosen.
    #[serde(default)]
    pub strategy: StrategyName,
    /// What `key-hash` and `consistent-hash` choose by: `path`, `header:NAME` or `cookie:NAME`.
    pub hash_by: Option<String>,
    /// Talk HTTP/2 to the backends.
    #[serde(default)]
    pub http2: bool,
    /// Talk TLS to the backends.
    pub tls: Option<PoolTls>,
    /// Active checks. A backend gets no request before its first check has passed.
    pub health: Option<Health>,
    /// Ejection of backends whose requests fail.
    #[serde(default)]
    pub outliers: Outliers,
    /// When a request is sent again.
    #[serde(default)]
    pub retry: Retry,
    /// Answers 503 at once while most requests fail. Without it there is none.
    pub breaker: Option<Breaker>,
    /// Requests that one backend may have under way, 1 to 16,777,215.
    pub max_in_flight: Option<u32>,
    /// Time in which a backend that joins or returns comes to its whole share, 20 to 86,400,000 ms.
    pub slow_start_ms: Option<u64>,
    /// Time in which a connection must be made, 1 to 60,000 ms.
    #[serde(default = "default_connect")]
    pub connect_timeout_ms: u64,
    /// Time to the head of a response, for each attempt.
    #[serde(default = "default_try")]
    pub try_timeout_ms: u64,
    /// The same for all attempts together.
    #[serde(default = "default_total")]
    pub total_timeout_ms: u64,
    /// A cookie that binds a client to its backend.
    pub session_cookie: Option<String>,
}

fn default_connect() -> u64 {
    2_000
}

fn default_try() -> u64 {
    15_000
}

fn default_total() -> u64 {
    30_000
}

/// A backend: its address, or a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointEntry {
    /// `127.0.0.1:9001`, or `host:80`.
    pub address: String,
    /// Relative share of the requests, 1 to 65,535.
    pub weight: u32,
    /// 0 is used first.
    pub priority: u8,
    /// Gets no new requests, apart from sessions bound to it.
    pub draining: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndpointTable {
    address: String,
    #[serde(default = "one")]
    weight: u32,
    #[serde(default)]
    priority: u8,
    #[serde(default)]
    draining: bool,
}

fn one() -> u32 {
    1
}

impl<'de> Deserialize<'de> for EndpointEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entry;
        impl<'de> Visitor<'de> for Entry {
            type Value = EndpointEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address such as \"10.0.0.1:80\", or a table with `address`")
            }

            fn visit_str<E>(self, address: &str) -> Result<EndpointEntry, E> {
                let address = address.to_owned();
                Ok(EndpointEntry { address, weight: 1, priority: 0, draining: false })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<EndpointEntry, A::Error> {
                let table = EndpointTable::deserialize(MapAccessDeserializer::new(map))?;
                let EndpointTable { address, weight, priority, draining } = table;
                Ok(EndpointEntry { address, weight, priority, draining })
            }
        }
        deserializer.deserialize_any(Entry)
    }
}

impl EndpointEntry {
    /// What the balancer needs.
    pub fn endpoint(&self) -> EndpointConfig {
        let mut config = EndpointConfig::new(&self.address)
            .with_weight(self.weight)
            .with_priority(self.priority);
        config.draining = self.draining;
        config
    }
}

/// How a backend is chosen.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum StrategyName {
    /// Smooth weighted round robin.
    RoundRobin,
    /// At random by weight.
    Random,
    /// The fewest requests under way.
    LeastConnections,
    /// The fewest requests under way for its weight, the new one counted.
    LeastRequest,
    /// The less loaded of two.
    PowerOfTwo,
    /// The lower latency times load of two.
    #[default]
    PeakEwma,
    /// By the client's address, as nginx does.
    IpHash,
    /// By the key of `hash_by`.
    KeyHash,
    /// By the key of `hash_by`; a change of the set moves few keys.
    ConsistentHash,
}

/// TLS towards backends.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct PoolTls {
    /// Certificates of the authorities that may have signed a backend's, as PEM.
    pub authorities: PathBuf,
    /// The name that a backend's certificate must be for.
    pub name: String,
}

/// Active checks.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// What a check does.
    #[serde(default)]
    pub kind: HealthKind,
    /// The path that an `http` check asks for.
    #[serde(default = "default_path")]
    pub path: String,
    /// Time between two checks, 1 to 86,400,000 ms.
    #[serde(default = "default_interval")]
    pub interval_ms: u64,
    /// Time for one check, 1 to 3,600,000 ms.
    #[serde(default = "default_check_timeout")]
    pub timeout_ms: u64,
    /// Passed checks that make an unhealthy backend healthy.
    #[serde(default = "default_rise")]
    pub rise: u32,
    /// Failed checks that make a healthy backend unhealthy.
    #[serde(default = "default_fall")]
    pub fall: u32,
}

/// What a check does.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum HealthKind {
    /// `GET path` over plain HTTP/1.1 must be answered with 2xx.
    #[default]
    Http,
    /// A connection must be accepted.
    Tcp,
}

fn default_path() -> String {
    "/health".to_owned()
}

fn default_interval() -> u64 {
    5_000
}

fn default_check_timeout() -> u64 {
    2_000
}

fn default_rise() -> u32 {
    2
}

fn default_fall() -> u32 {
    3
}

/// Ejection of backends whose requests fail.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Outliers {
    /// False switches it off.
    pub enabled: bool,
    /// Failures in a row that eject, 1 or more.
    pub consecutive_failures: u32,
    /// Length of the first ejection, 1 to 86,400,000 ms; the second is twice as long, and so on.
    pub ejection_ms: u64,
    /// The longest ejection.
    pub max_ejection_ms: u64,
    /// Share of the backends that may be ejected at a time, 0 to 100. One always stays.
    pub max_ejected_percent: u8,
}

impl Default for Outliers {
    fn default() -> Self {
        Self {
            enabled: true,
            consecutive_failures: 5,
            ejection_ms: 30_000,
            max_ejection_ms: 300_000,
            max_ejected_percent: 50,
        }
    }
}

/// When a request is sent again: if nothing of it was written, or if its method is idempotent.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Backends that one request may try, 1 to 100.
    pub max_attempts: u32,
    /// Retries under way, as a share of the requests under way, 0 to 100.
    pub budget_percent: u8,
    /// Retries under way that are always allowed.
    pub min_budget: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Self { max_attempts: 3, budget_percent: 20, min_budget: 3 }
    }
}

/// Answers 503 at once while most requests fail.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Breaker {
    /// Share of failures in the last 10 s that opens it, 1 to 100.
    #[serde(default = "default_failure")]
    pub failure_percent: u8,
    /// Requests that the last 10 s must hold.
    #[serde(default = "default_requests")]
    pub min_requests: NonZeroU32,
    /// For how long it stays open, 1 to 60,000 ms. Then a few requests try whether it may close.
    #[serde(default = "default_open")]
    pub open_ms: u64,
}

fn default_failure() -> u8 {
    50
}

fn default_requests() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(19)
}

fn default_open() -> u64 {
    5_000
}

impl Breaker {
    /// The configuration of the breaker.
    pub fn config(&self) -> BreakerConfig {
        let mut config = BreakerConfig::default();
        config.window = Window::Time { span: Duration::from_secs(10), buckets: 10 };
        config.failure_rate = Some(f64::from(self.failure_percent) / 100.0);
        config.min_calls = self.min_requests.get();
        config.open_for = Duration::from_millis(self.open_ms);
        config
    }
}

impl Pool {
    /// The configuration of the connections to the backends. The text says what is wrong with
    /// `hash_by`.
    pub fn upstream(&self) -> Result<UpstreamConfig, String> {
        let mut config = UpstreamConfig::default();
        config.protocol = if self.http2 { Protocol::Http2 } else { Protocol::Http1 };
        config.connect_timeout = Duration::from_millis(self.connect_timeout_ms);
        config.try_timeout = Duration::from_millis(self.try_timeout_ms);
        config.total_timeout = Duration::from_millis(self.total_timeout_ms);
        config.retry.max_attempts = self.retry.max_attempts;
        config.retry.budget_share = f64::from(self.retry.budget_percent) / 100.0;
        config.retry.min_budget = self.retry.min_budget;
        config.session_cookie.clone_from(&self.session_cookie);
        config.key = self.hash_by.as_deref().map(key_source).transpose()?;
        Ok(config)
    }

    /// The configuration of the balancer.
    pub fn balancer(&self) -> Config {
        let mut config = Config::default();
        config.max_in_flight = self.max_in_flight;
        config.checks = self.health.as_ref().map(|health| {
            let mut checks = CheckConfig::default();
            (checks.rise, checks.fall) = (health.rise, health.fall);
            checks
        });
        config.outliers = self.outliers.enabled.then(|| {
            let mut outliers = OutlierConfig::default();
            outliers.consecutive_failures = Some(self.outliers.consecutive_failures);
            outliers.base_ejection = Duration::from_millis(self.outliers.ejection_ms);
            outliers.max_ejection = Duration::from_millis(self.outliers.max_ejection_ms);
            outliers.max_ejected_share = f64::from(self.outliers.max_ejected_percent) / 100.0;
            outliers
        });
        config.slow_start = self.slow_start_ms.map(|window| {
            let mut slow = SlowStartConfig::default();
            slow.window = Duration::from_millis(window);
            slow
        });
        config
    }

    /// The strategy.
    pub fn strategy(&self) -> Box<dyn Strategy> {
        match self.strategy {
            StrategyName::RoundRobin => Box::new(strategy::RoundRobin::from_random_start()),
            StrategyName::Random => Box::new(strategy::RandomChoice::default()),
            StrategyName::LeastConnections => Box::new(strategy::LeastConnections::default()),
            StrategyName::LeastRequest => Box::new(strategy::LeastRequest::default()),
            StrategyName::PowerOfTwo => Box::new(strategy::PowerOfTwo::default()),
            StrategyName::PeakEwma => Box::new(strategy::PeakEwma::default()),
            StrategyName::IpHash => Box::new(strategy::IpHash::default()),
            StrategyName::KeyHash => Box::new(strategy::KeyHash::default()),
            StrategyName::ConsistentHash => Box::new(strategy::MaglevHash::default()),
        }
    }

    /// Whether the pool differs from `old` in more than its endpoints: it needs a balancer of its
    /// own then.
    pub fn differs_from(&self, old: &Self) -> bool {
        let endpoints = old.endpoints.clone();
        Self { endpoints, ..self.clone() } != *old
    }
}

fn key_source(text: &str) -> Result<KeySource, String> {
    let header = |name: &str| name.parse::<HeaderName>().ok().map(KeySource::Header);
    let found = match text.split_once(':') {
        None if text == "path" => Some(KeySource::Path),
        Some(("header", name)) => header(name),
        Some(("cookie", name)) if !name.is_empty() => Some(KeySource::Cookie(name.to_owned())),
        _ => None,
    };
    found.ok_or_else(|| {
        format!("`hash_by` is `{text}`; allowed: `path`, `header:NAME`, `cookie:NAME`")
    })
}
