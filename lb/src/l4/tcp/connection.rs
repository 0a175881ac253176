//! The life of one connection.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::Shared;
use super::accept::{Registration, reset};
use super::connect::{ConnectError, Connected, connect};
use super::prelude::{self, PreludeError};
use super::tunnel::{End, Side, Tunnel};
use crate::balancer::Balancer;
use crate::l4::client_hello::ClientHello;
use crate::l4::config::Untrusted;
use crate::l4::proxy_header::ProxyHeader;
use crate::l4::route::Connection;

/// A fatal TLS alert, `unrecognized_name` (RFC 6066 §3): level 2, description 112.
const ALERT_UNRECOGNIZED_NAME: &[u8] = &[21, 3, 1, 0, 2, 2, 112];
/// Time that a client has for taking in the alert.
const ALERT_TIME_MAX: Duration = Duration::from_secs(1);

/// What came before the tunnel.
struct Prelude {
    client: SocketAddr,
    header: Option<ProxyHeader>,
    hello: Option<ClientHello>,
    /// Bytes of the client that the endpoint must get.
    unread: Vec<u8>,
}

pub(super) async fn run(
    registration: Registration,
    mut stream: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
) {
    let shared = registration.shared();
    let started = Instant::now();
    // Fails only if the connection is already gone, which the first read tells.
    let _ = stream.set_nodelay(true);
    let Some(prelude) = read_prelude(&registration, &stream, peer).await else {
        return reset(&stream);
    };
    let client = prelude.client;
    let Some(balancer) = choose_route(shared, &prelude, peer, local) else {
        registration.ended(&shared.counters.rejected_route);
        tracing::debug!(target: "voussoir::lb", %client, "rejected by the route");
        return reject(&stream, prelude.hello.is_some()).await;
    };
    let mut connected = match connect(shared, &balancer, client, &stream).await {
        Ok(connected) => connected,
        Err(error) => {
            registration.ended(unconnected(shared, &error));
            tracing::debug!(target: "voussoir::lb", %client, %error, "not connected");
            return reset(&stream);
        }
    };
    let first = first_bytes(shared, prelude, local);
    let mut tunnel = Tunnel::new(shared, first);
    let Connected { pick, stream: upstream, at } = &mut connected;
    let end = tunnel.run(&mut stream, upstream, pick, *at).await;
    let counter = match end {
        End::Closed => &shared.counters.completed,
        End::Idle => &shared.counters.idle_timeouts,
        End::Reset(Side::Client) => {
            reset(upstream);
            &shared.counters.client_resets
        }
        End::Reset(Side::Upstream) => {
            let idle_timeout = shared.config.idle_timeout;
            let _ = timeout(idle_timeout, all_sent(&stream)).await;
            reset(&stream);
            &shared.counters.upstream_resets
        }
    };
    registration.ended(counter);
    tracing::debug!(
        target: "voussoir::lb",
        %client,
        endpoint = connected.pick.endpoint().name(),
        ?end,
        bytes_to_upstream = tunnel.bytes_to_upstream(),
        bytes_to_client = tunnel.bytes_to_client(),
        seconds = started.elapsed().as_secs_f64(),
        "connection ended"
    );
}

/// Waits until the system has sent what was written to `stream`: a reset discards the rest. Ready
/// at once where the system cannot tell.
async fn all_sent(stream: &TcpStream) {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsFd;
        // From here on the socket is writable when no byte waits to be sent. A registration of its
        // own makes the system look at that anew.
        let is_set = socket2::SockRef::from(stream).set_tcp_notsent_lowat(1);
        let copy = stream.as_fd().try_clone_to_owned();
        if let (Ok(()), Ok(copy)) = (is_set, copy)
            && let Ok(copy) = TcpStream::from_std(copy.into())
        {
            let _ = copy.writable().await;
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = stream;
}

/// Reads what the configuration expects before a route can be asked. `None` if it is not there.
async fn read_prelude(
    registration: &Registration,
    stream: &TcpStream,
    peer: SocketAddr,
) -> Option<Prelude> {
    let shared = registration.shared();
    let config = &shared.config;
    let mut prelude = Prelude { client: peer, header: None, hello: None, unread: Vec::new() };
    let trusted = config.proxy_in.as_ref().map(|given| (given, given.trusts(peer.ip())));
    let read = async {
        match trusted {
            Some((proxy_in, true)) => {
                let header = prelude::header(stream, &mut prelude.unread, proxy_in).await?;
                prelude.client = header.source().unwrap_or(peer);
                prelude.header = Some(header);
            }
            Some((proxy_in, false)) if proxy_in.untrusted == Untrusted::Reject => return Ok(false),
            _ => {}
        }
        if let Some(client_hello) = &config.client_hello {
            let hello = prelude::hello(stream, &mut prelude.unread, client_hello).await?;
            prelude.hello = Some(hello);
        }
        Ok::<_, PreludeError>(true)
    };
    match read.await {
        Ok(true) => Some(prelude),
        Ok(false) => {
            registration.ended(&shared.counters.rejected_untrusted);
            tracing::debug!(target: "voussoir::lb", %peer, "not a trusted proxy");
            None
        }
        Err(error) => {
            registration.ended(&shared.counters.prelude_failures);
            tracing::debug!(target: "voussoir::lb", %peer, %error, "rejected");
            None
        }
    }
}

fn choose_route(
    shared: &Shared,
    prelude: &Prelude,
    peer: SocketAddr,
    local: SocketAddr,
) -> Option<Balancer> {
    let connection = Connection {
        client: prelude.client,
        peer,
        local,
        header: prelude.header.as_ref(),
        hello: prelude.hello.as_ref(),
    };
    // Not under a guard of the swap: the route is foreign code and may replace itself.
    let route = shared.route.load_full();
    route.route(&connection)
}

/// Tells a TLS client that its name is not known, and resets others.
async fn reject(stream: &TcpStream, is_tls: bool) {
    if !is_tls {
        return reset(stream);
    }
    // A new connection has room for seven bytes; if not, it ends without them.
    let written = timeout(ALERT_TIME_MAX, stream.writable()).await;
    if matches!(written, Ok(Ok(()))) {
        let _ = stream.try_write(ALERT_UNRECOGNIZED_NAME);
    }
}

/// What counts connections that ended so.
fn unconnected<'a>(shared: &'a Shared, error: &ConnectError) -> &'a AtomicU64 {
    match error {
        ConnectError::NoEndpoint => &shared.counters.rejected_endpoint,
        ConnectError::Failed(_) => &shared.counters.unconnected,
        ConnectError::ClientReset => &shared.counters.client_resets,
    }
}

/// The PROXY header for the endpoint, and what was read of the client.
fn first_bytes(shared: &Shared, prelude: Prelude, local: SocketAddr) -> FirstBytes {
    let Some(version) = shared.config.proxy_out else {
        return FirstBytes { header_len: 0, bytes: prelude.unread };
    };
    // What a proxy in front said is passed on as it is. `LOCAL` is a health check of that proxy.
    let header = prelude.header.unwrap_or_else(|| ProxyHeader::tcp(prelude.client, local));
    let mut bytes = header.encode(version);
    let header_len = bytes.len();
    bytes.extend_from_slice(&prelude.unread);
    FirstBytes { header_len, bytes }
}

/// What the endpoint gets first.
pub(super) struct FirstBytes {
    /// Bytes at the beginning that are not the client's.
    pub(super) header_len: usize,
    pub(super) bytes: Vec<u8>,
}
