//! From a balancer to an endpoint that accepts the connection.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::Shared;
use crate::balancer::Balancer;
use crate::context::Context;
use crate::endpoint::{Awaited, Outcome, Pick};
use crate::error::is_local;
use crate::l4::stats::add;

/// How often a connection that waits for an endpoint asks again. What other users of the balancer
/// give back, and changes of the set, are noticed by this alone.
const WAIT_TICK: Duration = Duration::from_millis(20);

/// A connection to an endpoint, whose outcome is not recorded yet.
pub(super) struct Connected {
    pub(super) pick: Pick,
    pub(super) stream: TcpStream,
    /// When the connection was established, in ns.
    pub(super) at: u64,
}

/// Why no endpoint was reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("no endpoint may be used")]
    NoEndpoint,
    #[error("no endpoint could be connected to; the last failure: {0}")]
    Failed(io::Error),
    #[error("the client reset the connection")]
    ClientReset,
}

/// Connects to an endpoint, and to another one when that fails.
pub(super) async fn connect(
    shared: &Shared,
    balancer: &Balancer,
    client: SocketAddr,
    stream: &TcpStream,
) -> Result<Connected, ConnectError> {
    // An endpoint may take its time. A client that resets meanwhile is noticed at once, and a
    // client that only ends its direction is not in a hurry.
    tokio::select! {
        biased;
        result = attempts(shared, balancer, client) => result,
        _ = stream.ready(Interest::ERROR) => Err(ConnectError::ClientReset),
    }
}

async fn attempts(
    shared: &Shared,
    balancer: &Balancer,
    client: SocketAddr,
) -> Result<Connected, ConnectError> {
    let wait_until = Instant::now() + shared.config.endpoint_wait;
    let mut failed: Vec<u64> = Vec::new();
    let mut last = None;
    for _ in 0..shared.config.max_attempts {
        let Some(mut pick) = choose(shared, balancer, client, &failed, wait_until).await else {
            break;
        };
        let endpoint = std::sync::Arc::clone(pick.endpoint());
        let awaited = Awaited::new(&mut pick, &*shared.clock);
        let opened = open(shared, endpoint.name()).await;
        awaited.end();
        // How long the connection lasts, or that this machine cannot connect, is none of the
        // endpoint's latency.
        pick.ignore_duration();
        match opened {
            Ok(stream) => return Ok(Connected { pick, stream, at: shared.now() }),
            Err(error) => {
                add(&shared.counters.connect_failures);
                let endpoint = endpoint.name();
                tracing::debug!(target: "voussoir::lb", endpoint, %error, "connecting failed");
                failed.push(pick.endpoint().id());
                if !is_local(&error) {
                    pick.record(shared.now(), Outcome::Failure);
                }
                last = Some(error);
            }
        }
    }
    Err(last.map_or(ConnectError::NoEndpoint, ConnectError::Failed))
}

/// Leases an endpoint that has not failed. Waits for one until `wait_until`.
async fn choose(
    shared: &Shared,
    balancer: &Balancer,
    client: SocketAddr,
    failed: &[u64],
    wait_until: Instant,
) -> Option<Pick> {
    let ip = client.ip().to_canonical();
    let octets = match ip {
        std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(ip) => ip.octets(),
    };
    let ctx = Context::new().with_client(ip).with_key(&octets).with_excluded(failed);
    // Ends: at `wait_until` at the latest.
    loop {
        // Created before the pick, so that a place that is given back after it is not missed.
        let released = shared.released.notified();
        if let Some(pick) = balancer.pick(&ctx, shared.now()) {
            return Some(pick);
        }
        let left = wait_until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        tokio::select! {
            () = released => {}
            () = sleep(left.min(WAIT_TICK)) => {}
        }
    }
}

async fn open(shared: &Shared, name: &str) -> io::Result<TcpStream> {
    let address: SocketAddr = name.parse().map_err(|_| {
        let text = format!("the endpoint's name `{name}` is no address such as 10.0.0.1:80");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })?;
    let connected = timeout(shared.config.connect_timeout, TcpStream::connect(address)).await;
    let late = |_| {
        let limit = shared.config.connect_timeout;
        io::Error::new(io::ErrorKind::TimedOut, format!("not connected within {limit:?}"))
    };
    let stream = connected.map_err(late)??;
    stream.set_nodelay(true)?;
    Ok(stream)
}
