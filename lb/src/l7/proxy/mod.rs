//! The proxy: accepts, serves, drains.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::sleep;

use super::config::HttpConfig;
use super::router::Router;
use super::upstream::Upstream;
use crate::clock::{Clock, Monotonic};
use crate::error::ConfigError;
use crate::random::Random;

mod answer;
mod attempt;
mod connection;
mod forward;
mod response;
mod streams;

pub use response::ProxyBody;

/// Pause after a failed accept, such as for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A reverse proxy for HTTP/1.1 and HTTP/2. Cheap to clone; clones share everything.
///
/// # Example
/// ```no_run
/// use voussoir_lb::l7::{HttpConfig, HttpProxy, Route, Router, Upstream, UpstreamConfig};
/// use voussoir_lb::strategy::PeakEwma;
/// use voussoir_lb::{Balancer, Config, EndpointConfig};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let balancer = Balancer::new(PeakEwma::default(), Config::default())?;
/// balancer.update(["10.0.0.1:80", "10.0.0.2:80"].map(EndpointConfig::new), 0)?;
/// let upstream = Upstream::new("web", balancer, UpstreamConfig::default())?;
/// let router = Router::new(vec![Route::new("all", upstream)])?;
/// let proxy = HttpProxy::new(router, HttpConfig::default())?;
/// proxy.serve(tokio::net::TcpListener::bind("0.0.0.0:8080").await?).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct HttpProxy {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    config: HttpConfig,
    router: ArcSwap<Router<Upstream>>,
    clock: Arc<dyn Clock>,
    random: Random,
    permits: Arc<Semaphore>,
    phase: watch::Sender<Phase>,
    open: AtomicUsize,
    closed: Notify,
    counters: Counters,
}

/// How far the proxy is on its way to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Phase {
    Running,
    /// Nothing is accepted; requests under way are finished.
    Draining,
    /// What is still open is cut.
    Closed,
}

#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicU64,
    requests: AtomicU64,
    rejected: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    upgrades: AtomicU64,
}

/// What a proxy has done. Counts are since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpStats {
    /// Connections that were accepted.
    pub accepted: u64,
    /// Connections that are open, upgraded ones included.
    pub open: usize,
    /// Requests whose head was read.
    pub requests: u64,
    /// Requests that were answered with 4xx by the proxy itself.
    pub rejected: u64,
    /// Requests that were answered with 5xx by the proxy itself, or whose response broke off.
    pub failed: u64,
    /// Requests that the client gave up.
    pub cancelled: u64,
    /// Connections that were upgraded.
    pub upgrades: u64,
}

impl fmt::Debug for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpProxy").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl HttpProxy {
    /// A proxy that reads the clock of the process.
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn new(router: Router<Upstream>, config: HttpConfig) -> Result<Self, ConfigError> {
        Self::with_clock(router, config, Monotonic)
    }

    /// A proxy that tells its balancers the time of `clock`.
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn with_clock(
        router: Router<Upstream>,
        config: HttpConfig,
        clock: impl Clock + 'static,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        let inner = Inner {
            permits: Arc::new(Semaphore::new(config.max_connections)),
            config,
            router: ArcSwap::from_pointee(router),
            clock: Arc::new(clock),
            random: Random::new(None),
            phase: watch::Sender::new(Phase::Running),
            open: AtomicUsize::new(0),
            closed: Notify::new(),
            counters: Counters::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Accepts connections until [`drain`](HttpProxy::drain). May run for several listeners at a
    /// time. A client that begins with the HTTP/2 preface is served HTTP/2.
    ///
    /// # Cancel safety
    /// Dropping the future closes the listener. Connections that it accepted go on.
    pub async fn serve(&self, listener: TcpListener) {
        self.accept(listener, |inner, tcp, peer| async move {
            connection::serve(inner, tcp, peer, false, None).await;
        })
        .await;
    }

    /// Like [`serve`](HttpProxy::serve), over TLS. The protocol is chosen by ALPN.
    ///
    /// # Cancel safety
    /// Dropping the future closes the listener. Connections that it accepted go on.
    #[cfg(feature = "tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    pub async fn serve_tls(&self, listener: TcpListener, tls: super::tls::ServerTls) {
        self.accept(listener, move |inner, tcp, peer| {
            let tls = tls.clone();
            async move {
                let within = inner.config.header_timeout;
                let mut phase = inner.phase.subscribe();
                let shaken = tokio::select! {
                    shaken = tokio::time::timeout(within, tls.accept(tcp)) => shaken,
                    // No request has begun.
                    _ = phase.wait_for(|phase| *phase != Phase::Running) => return,
                };
                // A client that cannot agree on TLS has been told so by an alert.
                let Ok(Ok(stream)) = shaken else { return };
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                connection::serve(inner, stream, peer, true, Some(is_http2)).await;
            }
        })
        .await;
    }

    async fn accept<F, S>(&self, listener: TcpListener, serve: S)
    where
        F: Future<Output = ()> + Send + 'static,
        S: Fn(Arc<Inner>, TcpStream, SocketAddr) -> F,
    {
        let mut phase = self.inner.phase.subscribe();
        let accepting = async {
            // Ends: never; `drain` drops this future.
            loop {
                let permits = &self.inner.permits;
                // Not kept while nobody connects: it may be the last one, which another listener
                // needs.
                let Ok(()) = permits.acquire().await.map(drop) else { return };
                match listener.accept().await {
                    Ok((tcp, peer)) => {
                        // At once, unless another listener has given away the last one meanwhile.
                        let permit = Arc::clone(permits).acquire_owned().await;
                        let Ok(permit) = permit else { return };
                        let _ = tcp.set_nodelay(true);
                        self.inner.counters.accepted.fetch_add(1, Relaxed);
                        let open = Open::new(&self.inner);
                        let serving = serve(Arc::clone(&self.inner), tcp, peer);
                        tokio::spawn(async move {
                            serving.await;
                            drop((open, permit));
                        });
                    }
                    Err(error) => {
                        tracing::warn!(target: "voussoir::lb::l7", %error, "accept failed");
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            () = accepting => {}
            _ = phase.wait_for(|phase| *phase != Phase::Running) => {}
        }
    }

    /// Replaces the router. Requests whose head was read before keep their route.
    pub fn set_router(&self, router: Router<Upstream>) {
        self.inner.router.store(Arc::new(router));
    }

    /// Stops accepting, tells clients to go (`Connection: close`, GOAWAY), and waits until every
    /// connection has ended; after `timeout` cuts the rest. Returns how many were cut. Clients that
    /// have connected and were not accepted yet are reset by the system, and those within their TLS
    /// handshake are ended: no request of theirs was read.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the proxy draining: nothing is accepted, nothing is cut. It may
    /// be called again.
    pub async fn drain(&self, timeout: Duration) -> usize {
        self.inner.phase.send_if_modified(|phase| {
            let is_running = *phase == Phase::Running;
            if is_running {
                *phase = Phase::Draining;
            }
            is_running
        });
        if tokio::time::timeout(timeout, self.inner.all_closed()).await.is_ok() {
            return 0;
        }
        let cut = self.inner.open.load(Relaxed);
        self.inner.phase.send_replace(Phase::Closed);
        self.inner.all_closed().await;
        cut
    }

    /// What the proxy has done.
    pub fn stats(&self) -> HttpStats {
        let counters = &self.inner.counters;
        HttpStats {
            accepted: counters.accepted.load(Relaxed),
            open: self.inner.open.load(Relaxed),
            requests: counters.requests.load(Relaxed),
            rejected: counters.rejected.load(Relaxed),
            failed: counters.failed.load(Relaxed),
            cancelled: counters.cancelled.load(Relaxed),
            upgrades: counters.upgrades.load(Relaxed),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &HttpConfig {
        &self.inner.config
    }
}

impl Inner {
    async fn all_closed(&self) {
        // Ends with the last connection; `Open::drop` wakes.
        loop {
            let closed = self.closed.notified();
            tokio::pin!(closed);
            closed.as_mut().enable();
            if self.open.load(Relaxed) == 0 {
                return;
            }
            closed.await;
        }
    }
}

/// Counts an open connection.
#[derive(Debug)]
struct Open(Arc<Inner>);

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inner")
    }
}

impl Open {
    fn new(inner: &Arc<Inner>) -> Self {
        inner.open.fetch_add(1, Relaxed);
        Self(Arc::clone(inner))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
        self.0.closed.notify_waiters();
    }
}
