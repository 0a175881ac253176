//! Configurations of the proxy and of upstreams.

use std::time::Duration;

use hyper::header::HeaderName;
use hyper::{Method, StatusCode};

use super::headers::ForwardedConfig;
use crate::error::ConfigError;

/// How an [`HttpProxy`](super::HttpProxy) treats its clients.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HttpConfig {
    /// Open client connections, 1 to 1,000,000; default 10,000. At the limit nothing is accepted
    /// until one closes. Of several listeners, each may have accepted one more, which waits.
    pub max_connections: usize,
    /// Bytes of the head of a request, 1 KiB to 1 MiB; default 32 KiB. Above: 431.
    pub max_header_bytes: usize,
    /// Headers of a request, 1 to 1,000; default 100. Above: 431.
    pub max_headers: usize,
    /// Time in which the whole head must arrive, counted from when the connection opened or the
    /// previous response ended; also the keep-alive time of HTTP/1. 10 ms to 1 hour; default 30 s.
    pub header_timeout: Duration,
    /// Time after which an HTTP/2 connection without a request is closed, 10 ms to 1 day;
    /// default 60 s.
    pub idle_timeout: Duration,
    /// Time without a byte of a request's body, or without the client taking a byte of the
    /// response: of its socket, or by granting window to the HTTP/2 stream, which is then reset.
    /// 10 ms to 1 hour; default 30 s.
    pub body_timeout: Duration,
    /// Time without a byte in either direction of an upgraded connection. 10 ms to 1 day;
    /// default 1 hour.
    pub tunnel_timeout: Duration,
    /// Concurrent requests of one HTTP/2 connection, 1 to 10,000; default 128.
    pub max_concurrent_streams: u32,
    /// HTTP/2 streams that a client may reset before the proxy has seen their requests, 1 to
    /// 10,000; default 20. Above, the connection is closed (CVE-2023-44487).
    pub max_pending_resets: u32,
    /// Protocols to which a request may upgrade its connection; default `websocket`. An upgrade to
    /// any other, such as `h2c`, is ignored: the request is forwarded as an ordinary one.
    pub upgrades: Vec<String>,
    /// What backends learn about clients.
    pub forwarded: ForwardedConfig,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_header_bytes: 32 << 10,
            max_headers: 100,
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(30),
            tunnel_timeout: HOUR,
            max_concurrent_streams: 128,
            max_pending_resets: 20,
            upgrades: vec!["websocket".to_owned()],
            forwarded: ForwardedConfig::default(),
        }
    }
}

/// The protocol between proxy and backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// HTTP/1.1, one request at a time on a connection.
    #[default]
    Http1,
    /// HTTP/2, `max_streams` requests at a time on a connection; over plain TCP with prior
    /// knowledge.
    Http2,
}

/// Where the key of hashing strategies comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeySource {
    /// The path, without the query.
    Path,
    /// The value of a header.
    Header(HeaderName),
    /// The value of a cookie.
    Cookie(String),
}

/// How an [`Upstream`](super::Upstream) talks to its endpoints.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UpstreamConfig {
    /// The protocol; default HTTP/1.1.
    pub protocol: Protocol,
    /// Time in which a connection must be established, with TLS. 1 ms to 1 minute; default 2 s.
    pub connect_timeout: Duration,
    /// Time from the request to the head of the response, of each attempt. While the body of the
    /// request advances, the time begins anew. 1 ms to 1 day; default 15 s.
    pub try_timeout: Duration,
    /// The same for all attempts together, at least `try_timeout`; default 30 s.
    pub total_timeout: Duration,
    /// Time without a byte of the response's body. 1 ms to 1 day; default 60 s.
    pub body_timeout: Duration,
    /// Idle connections kept for each endpoint, 0 to 10,000; default 64.
    pub max_idle: usize,
    /// Time for which an idle connection is kept, 1 ms to 1 hour; default 30 s. Choose it below the
    /// keep-alive time of the backends.
    pub idle_timeout: Duration,
    /// Requests at a time on one connection of HTTP/2, 1 to 10,000; default 100. Above, another
    /// connection is opened. Not above what the backends allow (their
    /// SETTINGS_MAX_CONCURRENT_STREAMS, often 100 or more): a request beyond that waits within its
    /// `try_timeout`, and counts as one of a slow backend.
    pub max_streams: u32,
    /// Bytes of the head of a response, 1 KiB to 1 MiB; default 64 KiB. Above, and above 1,000
    /// headers of HTTP/1: 502. Up to 64 KiB, a head of HTTP/1 that arrives at once may exceed it.
    pub max_header_bytes: usize,
    /// When a request is sent again.
    pub retry: RetryConfig,
    /// Where the key of hashing strategies comes from; default nowhere.
    pub key: Option<KeySource>,
    /// The cookie that binds a client to its endpoint. The proxy sets it, for the session of the
    /// browser. Default none.
    pub session_cookie: Option<String>,
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            protocol: Protocol::default(),
            connect_timeout: Duration::from_secs(2),
            try_timeout: Duration::from_secs(15),
            total_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(60),
            max_idle: 64,
            max_streams: 100,
            idle_timeout: Duration::from_secs(30),
            max_header_bytes: 64 << 10,
            retry: RetryConfig::default(),
            key: None,
            session_cookie: None,
        }
    }
}

/// When a request is sent again, each time to an endpoint that it has not failed at.
///
/// A request of which nothing was written is sent again whatever its method. One that a backend may
/// have seen is sent again only if its method is in `methods`, no byte of its body was read from
/// the client, and the budget allows it. Under the same rule, a request that met the end of a
/// connection that was open before is sent once more to the same endpoint, which is no attempt of
/// `max_attempts`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RetryConfig {
    /// Endpoints that one request may try, 1 to 100; default 3.
    pub max_attempts: u32,
    /// Methods that may take effect twice; default GET, HEAD, OPTIONS, TRACE, PUT, DELETE.
    pub methods: Vec<Method>,
    /// Statuses that count as failed attempts; default 502, 503, 504.
    pub statuses: Vec<StatusCode>,
    /// Retries under way, as a share of the upstream's requests under way. 0 to 1; default 0.2.
    /// Retries of which nothing was written do not count. Without effect, like `min_budget`, once
    /// [`set_retry_budget`](super::Upstream::set_retry_budget) was called.
    pub budget_share: f64,
    /// Retries under way that are always allowed; default 3.
    pub min_budget: u32,
}

impl Default for RetryConfig {
    fn default() -> Self {
        use Method as M;
        Self {
            max_attempts: 3,
            methods: vec![M::GET, M::HEAD, M::OPTIONS, M::TRACE, M::PUT, M::DELETE],
            statuses: vec![
                StatusCode::BAD_GATEWAY,
                StatusCode::SERVICE_UNAVAILABLE,
                StatusCode::GATEWAY_TIMEOUT,
            ],
            budget_share: 0.2,
            min_budget: 3,
        }
    }
}

const MS: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

fn check(holds: bool, field: &'static str, rule: &'static str) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::new(field, rule)) }
}

impl HttpConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let connections = (1..=1_000_000).contains(&self.max_connections);
        check(connections, "max_connections", "must be between 1 and 1000000")?;
        let bytes = (1 << 10..=1 << 20).contains(&self.max_header_bytes);
        check(bytes, "max_header_bytes", "must be between 1024 and 1048576")?;
        let headers = (1..=1_000).contains(&self.max_headers);
        check(headers, "max_headers", "must be between 1 and 1000")?;
        let header = (10 * MS..=HOUR).contains(&self.header_timeout);
        check(header, "header_timeout", "must be between 10 ms and 1 hour")?;
        let idle = (10 * MS..=DAY).contains(&self.idle_timeout);
        check(idle, "idle_timeout", "must be between 10 ms and 1 day")?;
        let body = (10 * MS..=HOUR).contains(&self.body_timeout);
        check(body, "body_timeout", "must be between 10 ms and 1 hour")?;
        let tunnel = (10 * MS..=DAY).contains(&self.tunnel_timeout);
        check(tunnel, "tunnel_timeout", "must be between 10 ms and 1 day")?;
        let streams = (1..=10_000).contains(&self.max_concurrent_streams);
        check(streams, "max_concurrent_streams", "must be between 1 and 10000")?;
        let resets = (1..=10_000).contains(&self.max_pending_resets);
        check(resets, "max_pending_resets", "must be between 1 and 10000")
    }
}

impl UpstreamConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let connect = (MS..=MINUTE).contains(&self.connect_timeout);
        check(connect, "connect_timeout", "must be between 1 ms and 1 minute")?;
        let attempt = (MS..=DAY).contains(&self.try_timeout);
        check(attempt, "try_timeout", "must be between 1 ms and 1 day")?;
        let total = (self.try_timeout..=DAY).contains(&self.total_timeout);
        check(total, "total_timeout", "must be between `try_timeout` and 1 day")?;
        let body = (MS..=DAY).contains(&self.body_timeout);
        check(body, "body_timeout", "must be between 1 ms and 1 day")?;
        check(self.max_idle <= 10_000, "max_idle", "must be at most 10000")?;
        let idle = (MS..=HOUR).contains(&self.idle_timeout);
        check(idle, "idle_timeout", "must be between 1 ms and 1 hour")?;
        let bytes = (1 << 10..=1 << 20).contains(&self.max_header_bytes);
        check(bytes, "max_header_bytes", "must be between 1024 and 1048576")?;
        let streams = (1..=10_000).contains(&self.max_streams);
        check(streams, "max_streams", "must be between 1 and 10000")?;
        let attempts = (1..=100).contains(&self.retry.max_attempts);
        check(attempts, "retry.max_attempts", "must be between 1 and 100")?;
        let share = (0.0..=1.0).contains(&self.retry.budget_share);
        check(share, "retry.budget_share", "must be between 0 and 1")?;
        let cookie = self.session_cookie.as_ref().is_none_or(|name| {
            let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !name.is_empty() && name.bytes().all(is_token)
        });
        check(cookie, "session_cookie", "must be letters, digits, `-`, `_` and `.`")
    }
}
