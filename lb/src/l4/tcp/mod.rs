//! The TCP proxy.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::config::TcpConfig;
use super::route::Route;
use crate::clock::{Clock, Monotonic};
use crate::error::ConfigError;

mod accept;
mod connect;
mod connection;
mod prelude;
mod stats;
mod tunnel;

use stats::Counters;
pub use stats::TcpStats;

/// After a drain has aborted the last connections, their tasks end at once, unless a [`Route`]
/// blocks.
const ABORT_TIME_MAX: Duration = Duration::from_secs(1);

/// Forwards TCP connections to endpoints that balancers choose.
///
/// Cheap to clone; clones share everything. Each connection is a task of the runtime that calls
/// [`serve`](TcpProxy::serve), and goes on when the handle is dropped.
///
/// # Example
/// ```no_run
/// use voussoir_lb::l4::{TcpConfig, TcpProxy};
/// use voussoir_lb::strategy::LeastConnections;
/// use voussoir_lb::{Balancer, Clock, Config, EndpointConfig, Monotonic};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let balancer = Balancer::new(LeastConnections::default(), Config::default())?;
/// balancer.update(["10.0.0.1:5432", "10.0.0.2:5432"].map(EndpointConfig::new), Monotonic.now())?;
/// let proxy = TcpProxy::new(balancer, TcpConfig::default())?;
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:5432").await?;
/// tokio::spawn({
///     let proxy = proxy.clone();
///     async move { proxy.serve(listener).await }
/// });
/// // At the end: no new connections, and up to 30 s for those that are open.
/// let aborted = proxy.drain(std::time::Duration::from_secs(30)).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TcpProxy {
    shared: Arc<Shared>,
}

struct Shared {
    config: TcpConfig,
    route: ArcSwap<Box<dyn Route>>,
    clock: Box<dyn Clock>,
    counters: Counters,
    /// One permit for each connection that may be open.
    permits: Arc<Semaphore>,
    /// Those that are open. Whoever takes a handle out counts how that connection ended, so that a
    /// drain does not count one that is ending by itself.
    connections: Mutex<HashMap<u64, Option<AbortHandle>>>,
    next_id: AtomicU64,
    /// Notified when a connection ends: an endpoint or a descriptor may be free.
    released: Notify,
    /// Whether no more connections are accepted.
    draining: watch::Sender<bool>,
}

impl TcpProxy {
    /// A proxy whose balancers are given `now` by [`Monotonic`].
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn new(route: impl Route + 'static, config: TcpConfig) -> Result<Self, ConfigError> {
        Self::with_clock(route, config, Monotonic)
    }

    /// A proxy whose balancers are given `now` by another clock.
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn with_clock(
        route: impl Route + 'static,
        config: TcpConfig,
        clock: impl Clock + 'static,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        let shared = Shared {
            route: ArcSwap::from_pointee(Box::new(route)),
            clock: Box::new(clock),
            counters: Counters::default(),
            permits: Arc::new(Semaphore::new(config.max_connections)),
            connections: Mutex::default(),
            next_id: AtomicU64::new(0),
            released: Notify::new(),
            draining: watch::Sender::new(false),
            config,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Accepts connections until [`drain`](TcpProxy::drain) is called. Several listeners may be
    /// served at a time; they share the limits.
    ///
    /// When accepting fails, for instance because the process has no descriptor left, it is tried
    /// again after 50 ms or when a connection ends, and counted.
    ///
    /// # Cancel safety
    /// Dropping the future closes the listener. Connections that it accepted go on.
    pub async fn serve(&self, listener: TcpListener) {
        accept::run(&self.shared, listener).await;
    }

    /// Replaces the route of connections to come. Those that are open stay where they are.
    pub fn set_route(&self, route: impl Route + 'static) {
        self.shared.route.store(Arc::new(Box::new(route)));
    }

    /// Stops accepting, waits until all connections have ended, and closes those that are open
    /// after `timeout`. Returns how many it closed. The proxy cannot serve again.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the proxy draining: nothing is accepted, nothing is closed. It
    /// may be called again.
    pub async fn drain(&self, timeout: Duration) -> usize {
        self.shared.draining.send_replace(true);
        let deadline = Instant::now().checked_add(timeout);
        let all = self.shared.all_ended();
        match deadline {
            None => {
                all.await;
                0
            }
            Some(deadline) if timeout_at(deadline, all).await.is_ok() => 0,
            Some(_) => self.abort_all().await,
        }
    }

    async fn abort_all(&self) -> usize {
        let handles: Vec<AbortHandle> = {
            let mut connections = self.shared.connections.lock();
            connections.values_mut().filter_map(Option::take).collect()
        };
        // Without the lock: a task that is dropped takes it.
        handles.iter().for_each(AbortHandle::abort);
        self.shared.counters.aborted.fetch_add(handles.len() as u64, Relaxed);
        let _ = tokio::time::timeout(ABORT_TIME_MAX, self.shared.all_ended()).await;
        handles.len()
    }

    /// What the proxy has done.
    pub fn stats(&self) -> TcpStats {
        self.shared.counters.read(self.shared.connections.lock().len())
    }

    /// The configuration.
    pub fn config(&self) -> &TcpConfig {
        &self.shared.config
    }
}

impl Shared {
    /// Waits until no connection is open.
    async fn all_ended(&self) {
        // Ends: with the last connection, or when the caller's time is over.
        loop {
            let released = self.released.notified();
            if self.connections.lock().is_empty() {
                return;
            }
            released.await;
        }
    }

    fn now(&self) -> u64 {
        self.clock.now()
    }
}

impl fmt::Debug for TcpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpProxy")
            .field("config", &self.shared.config)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
