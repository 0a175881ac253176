//! Configurations of the proxies.

use std::time::Duration;

use super::address_range::AddressRange;
use super::proxy_header::{MAX_V2_BYTES, ProxyVersion};
use crate::error::ConfigError;

/// How a [`TcpProxy`](super::TcpProxy) treats its connections.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TcpConfig {
    /// Connections at a time, 1 to 1,000,000; default 10,000. Each holds two descriptors.
    pub max_connections: usize,
    /// What happens at `max_connections`. Default: accepting waits.
    pub on_full: OnFull,
    /// How long a connection waits while no endpoint may be used, for instance because all hold
    /// [`max_in_flight`](crate::Config::max_in_flight) connections. 0 (the default: reject at once)
    /// to 1 hour. Those that wait count against `max_connections`.
    pub endpoint_wait: Duration,
    /// Time for connecting to one endpoint, 1 ms to 5 min; default 3 s.
    pub connect_timeout: Duration,
    /// Endpoints that are tried for one connection, 1 to 100; default 3. Only connecting is
    /// repeated, so nothing is sent twice.
    pub max_attempts: u32,
    /// Time without a byte in either direction after which a connection is closed, 1 ms to
    /// 30 days; default 10 min.
    pub idle_timeout: Duration,
    /// Bytes that are read at a time, and the most that are held for each direction when its
    /// receiver is slow, 1 KiB to 16 MiB; default 64 KiB. A connection whose receivers keep up
    /// holds none.
    pub buffer_bytes: usize,
    /// Takes the client's address from PROXY headers. `None` (the default): no header is expected.
    pub proxy_in: Option<ProxyInConfig>,
    /// Sends the client's address to the endpoint. `None` (the default): no header is sent.
    pub proxy_out: Option<ProxyVersion>,
    /// Reads the ClientHello before an endpoint is chosen, for routes by server name. `None` (the
    /// default): the route knows the addresses only.
    pub client_hello: Option<ClientHelloConfig>,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            on_full: OnFull::Wait,
            endpoint_wait: Duration::ZERO,
            connect_timeout: Duration::from_secs(3),
            max_attempts: 3,
            idle_timeout: Duration::from_secs(600),
            buffer_bytes: 64 << 10,
            proxy_in: None,
            proxy_out: None,
            client_hello: None,
        }
    }
}

/// What a proxy does with a client that is one too many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFull {
    /// It is not accepted before another one has ended. It waits in the system's queue, which
    /// the backlog of the listener bounds. Of several listeners, each may have accepted one more,
    /// which waits.
    #[default]
    Wait,
    /// It is accepted and reset.
    Reject,
}

/// From whom PROXY headers are accepted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProxyInConfig {
    /// The proxies in front of this one. Their connections must begin with a header. Not empty.
    pub trusted: Vec<AddressRange>,
    /// What happens to others. Default: they are clients without a header.
    pub untrusted: Untrusted,
    /// Time for the header, 1 ms to 5 min; default 3 s.
    pub timeout: Duration,
    /// The longest header of version 2, 16 to 65,551 bytes; default 4,096.
    pub max_bytes: usize,
}

impl ProxyInConfig {
    /// Headers from these proxies.
    pub fn new(trusted: impl IntoIterator<Item = AddressRange>) -> Self {
        Self {
            trusted: trusted.into_iter().collect(),
            untrusted: Untrusted::Direct,
            timeout: Duration::from_secs(3),
            max_bytes: 4_096,
        }
    }

    pub(crate) fn trusts(&self, address: std::net::IpAddr) -> bool {
        self.trusted.iter().any(|range| range.contains(address))
    }
}

/// What is done with a connection that does not come from a trusted proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Untrusted {
    /// It is a client: its own address counts, and all of its bytes go to the endpoint, a forged
    /// header as well.
    #[default]
    Direct,
    /// It is reset.
    Reject,
}

/// Bounds of the ClientHello.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientHelloConfig {
    /// Time for the message, 1 ms to 5 min; default 5 s.
    pub timeout: Duration,
    /// The most bytes it may take, 64 to 262,144; default 16,384. One with post-quantum keys has
    /// about 1,800.
    pub max_bytes: usize,
}

impl Default for ClientHelloConfig {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5), max_bytes: 16_384 }
    }
}

/// How a [`UdpProxy`](super::UdpProxy) treats its flows. A flow is what one client address sends.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UdpConfig {
    /// Flows at a time, 1 to 1,000,000; default 10,000. Each holds a descriptor.
    pub max_flows: usize,
    /// What happens at `max_flows`. Default: the flow that was idle longest ends.
    pub on_full: OnFullFlows,
    /// Time without a datagram in either direction after which a flow ends, 1 ms to 1 day;
    /// default 60 s.
    pub idle_timeout: Duration,
    /// Datagrams of one flow that wait while its socket to the endpoint is not writable, 1 to
    /// 10,000; default 64. What comes beyond is dropped and counted.
    pub max_queued: usize,
}

impl Default for UdpConfig {
    fn default() -> Self {
        Self {
            max_flows: 10_000,
            on_full: OnFullFlows::EvictIdle,
            idle_timeout: Duration::from_secs(60),
            max_queued: 64,
        }
    }
}

/// What a UDP proxy does with a client that is one too many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFullFlows {
    /// The flow that was idle longest ends in its favour.
    #[default]
    EvictIdle,
    /// Its datagrams are dropped.
    Reject,
}

const MS: Duration = Duration::from_millis(1);
const FIVE_MINUTES: Duration = Duration::from_secs(300);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

fn check(holds: bool, field: &'static str, rule: &'static str) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::new(field, rule)) }
}

impl TcpConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let connections = (1..=1_000_000).contains(&self.max_connections);
        check(connections, "max_connections", "must be between 1 and 1000000")?;
        check(self.endpoint_wait <= HOUR, "endpoint_wait", "must be at most 1 hour")?;
        let connect = (MS..=FIVE_MINUTES).contains(&self.connect_timeout);
        check(connect, "connect_timeout", "must be between 1 ms and 5 min")?;
        let attempts = (1..=100).contains(&self.max_attempts);
        check(attempts, "max_attempts", "must be between 1 and 100")?;
        let idle = (MS..=30 * DAY).contains(&self.idle_timeout);
        check(idle, "idle_timeout", "must be between 1 ms and 30 days")?;
        let buffer = (1 << 10..=16 << 20).contains(&self.buffer_bytes);
        check(buffer, "buffer_bytes", "must be between 1024 and 16777216")?;
        if let Some(proxy) = &self.proxy_in {
            check(!proxy.trusted.is_empty(), "proxy_in.trusted", "must not be empty")?;
            let timeout = (MS..=FIVE_MINUTES).contains(&proxy.timeout);
            check(timeout, "proxy_in.timeout", "must be between 1 ms and 5 min")?;
            let bytes = (16..=MAX_V2_BYTES).contains(&proxy.max_bytes);
            check(bytes, "proxy_in.max_bytes", "must be between 16 and 65551")?;
        }
        if let Some(hello) = &self.client_hello {
            let timeout = (MS..=FIVE_MINUTES).contains(&hello.timeout);
            check(timeout, "client_hello.timeout", "must be between 1 ms and 5 min")?;
            let bytes = (64..=1 << 18).contains(&hello.max_bytes);
            check(bytes, "client_hello.max_bytes", "must be between 64 and 262144")?;
        }
        Ok(())
    }
}

impl UdpConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let flows = (1..=1_000_000).contains(&self.max_flows);
        check(flows, "max_flows", "must be between 1 and 1000000")?;
        let idle = (MS..=DAY).contains(&self.idle_timeout);
        check(idle, "idle_timeout", "must be between 1 ms and 1 day")?;
        let queued = (1..=10_000).contains(&self.max_queued);
        check(queued, "max_queued", "must be between 1 and 10000")
    }
}
