//! The UDP proxy.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use super::config::{OnFullFlows, UdpConfig};
use super::route::{Connection, Route};
use super::stats::add;
use crate::clock::{Clock, Monotonic};
use crate::context::Context;
use crate::endpoint::{Outcome, Pick};
use crate::error::ConfigError;

mod flow;
mod flows;
mod stats;

use flow::{Ends, Flow};
use flows::Flows;
use stats::Counters;
pub use stats::UdpStats;

/// The longest datagram.
const MAX_DATAGRAM: usize = 65_535;
/// Flows that are told to end do so at once, unless the runtime is overloaded.
const END_TIME_MAX: Duration = Duration::from_secs(1);
/// Pause after receiving failed, for instance for want of memory.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Forwards UDP datagrams to endpoints that balancers choose.
///
/// What one client address sends to one socket is a flow. A flow keeps its endpoint and has a
/// socket of its own to it, so answers find their client. It ends when it is idle, when the
/// endpoint answers with an ICMP error, which counts as a failure, or in favour of another flow at
/// the limit.
///
/// Cheap to clone; clones share everything. Each flow is a task of the runtime that calls
/// [`serve`](UdpProxy::serve).
///
/// # Example
/// ```no_run
/// use voussoir_lb::l4::{UdpConfig, UdpProxy};
/// use voussoir_lb::{Balancer, Clock, Config, EndpointConfig, Monotonic, strategy::IpHash};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let balancer = Balancer::new(IpHash::default(), Config::default())?;
/// balancer.update(["10.0.0.1:53", "10.0.0.2:53"].map(EndpointConfig::new), Monotonic.now())?;
/// let proxy = UdpProxy::new(balancer, UdpConfig::default())?;
/// proxy.serve(tokio::net::UdpSocket::bind("127.0.0.1:53").await?).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct UdpProxy {
    shared: Arc<Shared>,
}

struct Shared {
    config: UdpConfig,
    route: ArcSwap<Box<dyn Route>>,
    clock: Box<dyn Clock>,
    counters: Counters,
    flows: Mutex<Flows>,
    /// Tasks of flows, which end some time after their flow has left `flows`.
    tasks: AtomicUsize,
    /// Notified when a flow has ended.
    released: Notify,
    /// Whether no more flows begin.
    draining: watch::Sender<bool>,
    /// Whether all has ended.
    closed: watch::Sender<bool>,
    /// The origin of the times of last activity.
    epoch: Instant,
}

impl UdpProxy {
    /// A proxy whose balancers are given `now` by [`Monotonic`].
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn new(route: impl Route + 'static, config: UdpConfig) -> Result<Self, ConfigError> {
        Self::with_clock(route, config, Monotonic)
    }

    /// A proxy whose balancers are given `now` by another clock.
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn with_clock(
        route: impl Route + 'static,
        config: UdpConfig,
        clock: impl Clock + 'static,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        let shared = Shared {
            route: ArcSwap::from_pointee(Box::new(route)),
            clock: Box::new(clock),
            counters: Counters::default(),
            flows: Mutex::default(),
            tasks: AtomicUsize::new(0),
            released: Notify::new(),
            draining: watch::Sender::new(false),
            closed: watch::Sender::new(false),
            epoch: Instant::now(),
            config,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Forwards datagrams that arrive at `socket`, until [`drain`](UdpProxy::drain) has ended all
    /// flows. Several sockets may be served at a time; they share the limits. Ends at once, with a
    /// warning, if the system does not tell the address of `socket`.
    ///
    /// # Cancel safety
    /// Dropping the future stops taking datagrams of clients. Flows that it began still answer, and
    /// end when they are idle.
    pub async fn serve(&self, socket: UdpSocket) {
        let local = match socket.local_addr() {
            Ok(local) => local,
            Err(error) => {
                tracing::warn!(target: "voussoir::lb", %error, "the socket has no address");
                return;
            }
        };
        let socket = Arc::new(socket);
        let mut closed = self.shared.closed.subscribe();
        let mut buffer = vec![0; MAX_DATAGRAM];
        // Ends: when a drain is over.
        loop {
            let received = tokio::select! {
                biased;
                () = is_true(&mut closed) => return,
                received = socket.recv_from(&mut buffer) => received,
            };
            match received {
                Ok((len, client)) => {
                    let ends = Ends { client, local };
                    Shared::take(&self.shared, &socket, ends, &buffer[..len]);
                }
                Err(error) => self.pause(&error).await,
            }
        }
    }

    async fn pause(&self, error: &io::Error) {
        add(&self.shared.counters.receive_errors);
        // An ICMP error about an answer that a client does not want any more.
        if error.kind() != io::ErrorKind::ConnectionRefused {
            tracing::warn!(target: "voussoir::lb", %error, "receiving failed");
            tokio::time::sleep(ERROR_PAUSE).await;
        }
    }

    /// Replaces the route of flows to come.
    pub fn set_route(&self, route: impl Route + 'static) {
        self.shared.route.store(Arc::new(Box::new(route)));
    }

    /// Begins no more flows, waits until all have been idle for the idle time-out, ends those that
    /// go on after `timeout`, and stops serving. Returns how many it ended.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the proxy draining. It may be called again.
    pub async fn drain(&self, timeout: Duration) -> usize {
        self.shared.draining.send_replace(true);
        let all = self.shared.all_ended();
        if let Some(deadline) = Instant::now().checked_add(timeout) {
            let _ = timeout_at(deadline, all).await;
        } else {
            all.await;
        }
        let left = std::mem::take(&mut *self.shared.flows.lock());
        let count = left.len();
        left.into_flows().for_each(|flow| flow.end());
        self.shared.counters.aborted.fetch_add(count as u64, Relaxed);
        let _ = tokio::time::timeout(END_TIME_MAX, self.shared.all_ended()).await;
        self.shared.closed.send_replace(true);
        count
    }

    /// What the proxy has done.
    pub fn stats(&self) -> UdpStats {
        self.shared.counters.read(self.shared.flows.lock().len())
    }

    /// The configuration.
    pub fn config(&self) -> &UdpConfig {
        &self.shared.config
    }
}

impl Shared {
    /// Forwards a datagram of a client.
    fn take(self: &Arc<Self>, socket: &Arc<UdpSocket>, ends: Ends, datagram: &[u8]) {
        add(&self.counters.received);
        let now = self.elapsed();
        let known = self.flows.lock().touch(ends, now);
        match known {
            Some(flow) => self.forward(&flow, datagram),
            None => {
                if let Err(dropped) = self.begin(socket, ends, datagram, now) {
                    add(&self.counters.dropped);
                    let client = ends.client;
                    tracing::debug!(target: "voussoir::lb", %client, reason = dropped, "dropped");
                }
            }
        }
    }

    fn forward(&self, flow: &Flow, datagram: &[u8]) {
        if flow.send(datagram, self.config.max_queued) {
            add(&self.counters.sent_to_upstream);
        } else {
            add(&self.counters.dropped);
        }
    }

    /// Begins a flow with its first datagram.
    fn begin(
        self: &Arc<Self>,
        socket: &Arc<UdpSocket>,
        ends: Ends,
        datagram: &[u8],
        now: u64,
    ) -> Result<(), &'static str> {
        if *self.draining.borrow() {
            return Err("the proxy is draining");
        }
        let is_full = self.flows.lock().len() >= self.config.max_flows;
        if is_full && self.config.on_full == OnFullFlows::Reject {
            add(&self.counters.rejected_full);
            return Err("there are as many flows as allowed");
        }
        // Without the lock: the route and the strategy are foreign code.
        let pick = self.choose(ends).ok_or("no endpoint may be used")?;
        let upstream = match open(pick.endpoint().name(), datagram) {
            Ok(upstream) => upstream,
            Err(error) => {
                add(&self.counters.upstream_errors);
                let endpoint = pick.endpoint().name();
                tracing::debug!(target: "voussoir::lb", endpoint, %error, "no flow");
                if error.kind() == io::ErrorKind::ConnectionRefused {
                    pick.finish(self.now(), Outcome::Failure);
                }
                return Err("the endpoint cannot be sent to");
            }
        };
        add(&self.counters.sent_to_upstream);
        add(&self.counters.flows);
        let flow = Arc::new(Flow::new(upstream, ends, now));
        let evicted = {
            let mut flows = self.flows.lock();
            let evicted = (flows.len() >= self.config.max_flows).then(|| flows.pop_idlest());
            flows.insert(Arc::clone(&flow));
            evicted.flatten()
        };
        if let Some(evicted) = evicted {
            add(&self.counters.evicted);
            evicted.end();
        }
        flow::start(self, flow, Arc::clone(socket), pick);
        Ok(())
    }

    fn choose(&self, ends: Ends) -> Option<Pick> {
        let Ends { client, local } = ends;
        let connection = Connection { client, peer: client, local, header: None, hello: None };
        let route = self.route.load_full();
        let Some(balancer) = route.route(&connection) else {
            add(&self.counters.rejected_route);
            return None;
        };
        let ip = client.ip().to_canonical();
        let octets = match ip {
            std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            std::net::IpAddr::V6(ip) => ip.octets(),
        };
        let ctx = Context::new().with_client(ip).with_key(&octets);
        let pick = balancer.pick(&ctx, self.now());
        let Some(mut pick) = pick else {
            add(&self.counters.rejected_endpoint);
            return None;
        };
        // A flow without answers may be one that expects none.
        pick.ignore_duration();
        Some(pick)
    }

    /// Waits until there is no flow.
    async fn all_ended(&self) {
        // Ends: with the last flow, or when the caller's time is over.
        loop {
            let released = self.released.notified();
            if self.tasks.load(Relaxed) == 0 {
                return;
            }
            released.await;
        }
    }

    fn now(&self) -> u64 {
        self.clock.now()
    }

    /// Time since `epoch` in ns.
    fn elapsed(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }
}

async fn is_true(receiver: &mut watch::Receiver<bool>) {
    // Fails only without a sender, which the proxy keeps.
    let _ = receiver.wait_for(|value| *value).await;
}

/// A socket to the endpoint, over which the first datagram was sent. A fresh socket always has room
/// for one.
fn open(name: &str, datagram: &[u8]) -> io::Result<UdpSocket> {
    let address: SocketAddr = name.parse().map_err(|_| {
        let text = format!("the endpoint's name `{name}` is no address such as 10.0.0.1:53");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })?;
    let any: SocketAddr = if address.is_ipv4() {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(address)?;
    socket.send(datagram)?;
    UdpSocket::from_std(socket)
}

impl fmt::Debug for UdpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpProxy")
            .field("config", &self.shared.config)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
