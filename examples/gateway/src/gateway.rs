//! Runs what a configuration says, and moves from one to the next.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use toml::Spanned;
use voussoir_breaker::{Breaker, State};
use voussoir_lb::discovery::{Discovery, DiscoveryStats};
use voussoir_lb::l7::{HttpProxy, HttpStats, Route, Router, ServerTls, Upstream, UpstreamStats};
use voussoir_lb::{BalancerStats, Clock, Monotonic};

use crate::config::{self, Config, ConfigError, EndpointEntry, Listener, RouteEntry, Server, Tls};
use crate::gates::{RouteGate, RouteLimit};
use crate::pool::{RunningPool, client_tls};

/// A configuration that cannot be used. What ran before goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The file is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A listener's address is in use, or not this machine's.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        error: io::Error,
    },
    /// A certificate or a key cannot be used.
    #[error("TLS of the listener {address}: {why}")]
    Tls {
        /// The listener's address.
        address: SocketAddr,
        /// What is wrong.
        why: String,
    },
}

impl ApplyError {
    /// Whether the file is at fault, rather than the machine.
    pub fn is_config(&self) -> bool {
        !matches!(self, Self::Listen { .. })
    }
}

struct Listening {
    config: Listener,
    bound: SocketAddr,
    tls: Option<ServerTls>,
    task: JoinHandle<()>,
}

impl Listening {
    /// Whether it goes on for `listener`, perhaps with another certificate.
    fn is_for(&self, listener: &Listener) -> bool {
        self.config.address == listener.address && self.tls.is_some() == listener.tls.is_some()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Closes the listener; its connections go on.
        self.task.abort();
    }
}

/// A gateway that runs.
pub struct Gateway {
    server: Server,
    proxy: HttpProxy,
    pools: HashMap<String, RunningPool>,
    limits: BTreeMap<String, Arc<RouteLimit>>,
    listeners: Vec<Listening>,
    reloads: u64,
    rejected_reloads: u64,
    view: Arc<RwLock<Overview>>,
}

/// What can be seen of a gateway from outside, such as by [`admin`](crate::admin).
#[derive(Debug, Default)]
pub struct Overview {
    proxy: Option<HttpProxy>,
    pools: BTreeMap<String, SeenPool>,
    limits: BTreeMap<String, Arc<RouteLimit>>,
    /// Configurations that were put to use after the first.
    pub reloads: u64,
    /// Configurations that were rejected.
    pub rejected_reloads: u64,
    /// Whether the gateway drains.
    pub is_draining: bool,
}

/// What a pool's figures are read from.
#[derive(Debug)]
struct SeenPool {
    upstream: Upstream,
    breaker: Option<Arc<Breaker>>,
    discovery: Option<Arc<Discovery>>,
}

/// One pool at one moment.
#[derive(Clone, Debug)]
pub struct PoolStats {
    /// Its name.
    pub name: String,
    /// Backends and what they have done.
    pub balancer: BalancerStats,
    /// Connections and retries.
    pub upstream: UpstreamStats,
    /// The state of its breaker, if it has one.
    pub breaker: Option<State>,
    /// The lookups of its backends, if they are found by DNS.
    pub discovery: Option<DiscoveryStats>,
}

impl Overview {
    /// What the proxy has done.
    pub fn http(&self) -> HttpStats {
        self.proxy.as_ref().map(HttpProxy::stats).unwrap_or_default()
    }

    /// The pools by name.
    pub fn pools(&self) -> Vec<PoolStats> {
        let now = Monotonic.now();
        let stats = |(name, pool): (&String, &SeenPool)| PoolStats {
            name: name.clone(),
            balancer: pool.upstream.balancer().stats(now),
            upstream: pool.upstream.stats(),
            breaker: pool.breaker.as_ref().map(|breaker| breaker.state()),
            discovery: pool.discovery.as_ref().map(|discovery| discovery.stats()),
        };
        self.pools.iter().map(stats).collect()
    }

    /// Requests that the limit of each route has rejected.
    pub fn limits(&self) -> Vec<(String, u64)> {
        self.limits.iter().map(|(name, limit)| (name.clone(), limit.rejected())).collect()
    }
}

impl Gateway {
    /// Starts what `text` says. Relative paths in it are below `folder`.
    ///
    /// # Errors
    /// A configuration that cannot be used.
    ///
    /// # Cancel safety
    /// Dropping the future closes what it opened.
    pub async fn start(text: &str, folder: &Path) -> Result<Self, ApplyError> {
        let server = config::parse(text)?.server;
        let empty = Router::new(Vec::new()).map_err(|error| internal(&error))?;
        let http = config::http(&server).map_err(|what| ConfigError::at(text, 0, what))?;
        let proxy = HttpProxy::new(empty, http).map_err(|error| internal(&error))?;
        let mut gateway = Self {
            server,
            proxy,
            pools: HashMap::new(),
            limits: BTreeMap::new(),
            listeners: Vec::new(),
            reloads: 0,
            rejected_reloads: 0,
            view: Arc::default(),
        };
        gateway.apply(text, folder).await?;
        gateway.reloads = 0;
        gateway.show();
        Ok(gateway)
    }

    /// Moves to the configuration `text`, all of it or nothing. No open connection is dropped:
    /// requests under way keep their backend, and pools whose settings stay keep their state. A
    /// pool whose settings change is replaced; its backends keep their health. Of a listener that
    /// is not in `text` any more, the system resets what has connected and was not accepted yet.
    ///
    /// # Errors
    /// A configuration that cannot be used; the old one goes on.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the old configuration.
    pub async fn apply(&mut self, text: &str, folder: &Path) -> Result<(), ApplyError> {
        let applied = self.try_apply(text, folder).await;
        match &applied {
            Ok(()) => self.reloads += 1,
            Err(_) => self.rejected_reloads += 1,
        }
        self.show();
        applied
    }

    async fn try_apply(&mut self, text: &str, folder: &Path) -> Result<(), ApplyError> {
        let config = parse(text, folder)?;
        if config.server != self.server {
            let start = text.find("[server]").unwrap_or(0);
            let what = "`server` cannot change in a reload; restart the gateway";
            return Err(ConfigError::at(text, start, what).into());
        }
        // All that can fail or wait comes first; what follows is done at once.
        let opened = self.open(&config, folder).await?;
        let fresh = self.start_pools(text, &config).await?;
        // Side by side: pools whose backends are all down take no longer together than one of them.
        let mut warming: JoinSet<()> = fresh.values().map(RunningPool::warm_up).collect();
        while warming.join_next().await.is_some() {}
        let limits = self.limits(text, &config)?;
        let routes = self.routes(text, &config, &fresh, &limits)?;
        let router = Router::new(routes).map_err(|error| internal(&error))?;
        let now = Monotonic.now();
        for (name, pool) in &config.pools {
            if let Some(kept) = self.pools.get_mut(name).filter(|_| !fresh.contains_key(name)) {
                let pool = pool.get_ref();
                if pool.dns.is_none() {
                    let endpoints = pool.endpoints.iter().map(EndpointEntry::endpoint);
                    // `parse` has tried this set.
                    let updated = kept.upstream.balancer().update(endpoints, now);
                    updated.map_err(|error| internal(&error))?;
                }
                kept.config = pool.clone();
            }
        }
        self.proxy.set_router(router);
        self.pools.extend(fresh);
        self.pools.retain(|name, _| config.pools.contains_key(name));
        self.limits = limits;
        self.listen(&config, opened);
        Ok(())
    }

    /// Starts the pools that are new, and those that cannot go on as they are.
    async fn start_pools(
        &self,
        text: &str,
        config: &Config,
    ) -> Result<HashMap<String, RunningPool>, ConfigError> {
        let mut fresh = HashMap::new();
        for (name, spanned) in &config.pools {
            let pool = spanned.get_ref();
            let old = self.pools.get(name);
            // A set in which nobody that stays can serve has no healthy backend yet: the old one
            // serves meanwhile.
            let is_kept =
                old.is_some_and(|old| !pool.differs_from(&old.config) && old.can_go_on_with(pool));
            if !is_kept {
                let failed = |what: String| {
                    ConfigError::at(text, spanned.span().start, format!("pool `{name}`: {what}"))
                };
                let started = RunningPool::start(name, pool.clone(), old).await.map_err(failed)?;
                fresh.insert(name.clone(), started);
            }
        }
        Ok(fresh)
    }

    /// The limits of the routes. One whose configuration stays goes on counting.
    fn limits(
        &self,
        text: &str,
        config: &Config,
    ) -> Result<BTreeMap<String, Arc<RouteLimit>>, ConfigError> {
        let mut limits = BTreeMap::new();
        for route in &config.routes {
            let entry = route.get_ref();
            let Some(limit) = &entry.limit else { continue };
            let name = entry.name.get_ref();
            let kept = self.limits.get(name).filter(|old| old.is_for(limit.get_ref()));
            let used = match kept {
                Some(old) => Arc::clone(old),
                None => Arc::new(RouteLimit::new(limit.get_ref()).map_err(|error| {
                    ConfigError::at(text, limit.span().start, format!("`limit`: {error}"))
                })?),
            };
            limits.insert(name.clone(), used);
        }
        Ok(limits)
    }

    fn routes(
        &self,
        text: &str,
        config: &Config,
        fresh: &HashMap<String, RunningPool>,
        limits: &BTreeMap<String, Arc<RouteLimit>>,
    ) -> Result<Vec<Route<Upstream>>, ConfigError> {
        let pool = |name: &str| fresh.get(name).or_else(|| self.pools.get(name));
        let route = |entry: &RouteEntry| {
            let upstream = |name: &str| pool(name).map(|found| found.upstream.clone());
            let mut route = config::build_route(text, entry, upstream)?;
            let limit = limits.get(entry.name.get_ref()).map(Arc::clone);
            let mut gate = RouteGate { limit, breakers: HashMap::new() };
            for (upstream, _) in &route.targets {
                let breaker = pool(upstream.name()).and_then(|found| found.breaker.clone());
                gate.breakers.extend(breaker.map(|breaker| (upstream.name().to_owned(), breaker)));
            }
            if gate.limit.is_some() || !gate.breakers.is_empty() {
                route = route.with_gate(Arc::new(gate));
            }
            Ok(route)
        };
        config.routes.iter().map(|entry| route(entry.get_ref())).collect()
    }

    /// Binds the listeners that are new, and reads every certificate.
    async fn open(&self, config: &Config, folder: &Path) -> Result<Opened, ApplyError> {
        let mut opened = Opened { sockets: Vec::new(), certificates: Vec::new() };
        for listener in &config.listeners {
            let listener = listener.get_ref();
            let address = listener.address;
            let pem = match &listener.tls {
                Some(tls) => Some(read_pem(address, tls, folder).await?),
                None => None,
            };
            if self.listeners.iter().any(|old| old.is_for(listener)) {
                opened.certificates.extend(pem.map(|(pem, _)| (address, pem)));
                continue;
            }
            if address.port() != 0 && self.listeners.iter().any(|old| old.bound == address) {
                let why = "cannot be switched on or off in a reload; restart the gateway";
                return Err(ApplyError::Tls { address, why: why.to_owned() });
            }
            let socket = TcpListener::bind(address).await;
            let socket = socket.map_err(|error| ApplyError::Listen { address, error })?;
            opened.sockets.push((listener.clone(), socket, pem.map(|(_, tls)| tls)));
        }
        Ok(opened)
    }

    fn listen(&mut self, config: &Config, opened: Opened) {
        let stays = |old: &Listening| config.listeners.iter().any(|new| old.is_for(new.get_ref()));
        self.listeners.retain(stays);
        for (address, (certificate, key)) in opened.certificates {
            let mut secure = self.listeners.iter().filter_map(|old| Some((old, old.tls.as_ref()?)));
            if let Some((_, tls)) = secure.find(|(old, _)| old.config.address == address)
                && let Err(error) = tls.reload(&certificate, &key)
            {
                tracing::error!(%address, %error, "the old certificate stays");
            }
        }
        for (listener, socket, tls) in opened.sockets {
            let bound = socket.local_addr().unwrap_or(listener.address);
            let (proxy, server) = (self.proxy.clone(), tls.clone());
            let task = tokio::spawn(async move {
                match server {
                    Some(tls) => proxy.serve_tls(socket, tls).await,
                    None => proxy.serve(socket).await,
                }
            });
            self.listeners.push(Listening { config: listener, bound, tls, task });
        }
    }

    fn show(&self) {
        let mut view = self.view.write();
        view.proxy = Some(self.proxy.clone());
        let pool = |(name, pool): (&String, &RunningPool)| {
            let RunningPool { upstream, breaker, discovery, .. } = pool;
            let (upstream, breaker) = (upstream.clone(), breaker.clone());
            (name.clone(), SeenPool { upstream, breaker, discovery: discovery.clone() })
        };
        view.pools = self.pools.iter().map(pool).collect();
        view.limits.clone_from(&self.limits);
        (view.reloads, view.rejected_reloads) = (self.reloads, self.rejected_reloads);
    }

    /// Properties that a reload cannot change.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The addresses that are listened on, with the port that was given for a port 0.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|listening| listening.bound).collect()
    }

    /// What can be seen from outside. It follows every reload.
    pub fn overview(&self) -> Arc<RwLock<Overview>> {
        Arc::clone(&self.view)
    }

    /// Stops accepting and waits for requests under way. Returns how many connections were cut.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the gateway draining.
    pub async fn drain(&self, timeout: Duration) -> usize {
        self.view.write().is_draining = true;
        self.proxy.drain(timeout).await
    }
}

/// Checks a configuration as [`Gateway::apply`] does, without a socket: the text, and the
/// certificates that it names.
///
/// # Errors
/// A configuration that cannot be used.
///
/// # Cancel safety
/// Nothing is lost.
pub async fn check(text: &str, folder: &Path) -> Result<Config, ApplyError> {
    let config = parse(text, folder)?;
    for listener in config.listeners.iter().map(Spanned::get_ref) {
        if let Some(tls) = &listener.tls {
            read_pem(listener.address, tls, folder).await?;
        }
    }
    for (name, spanned) in &config.pools {
        if let Some(tls) = &spanned.get_ref().tls {
            client_tls(tls).await.map_err(|what| {
                ConfigError::at(text, spanned.span().start, format!("pool `{name}`: {what}"))
            })?;
        }
    }
    Ok(config)
}

/// The configuration, with the paths of its pools below `folder`.
fn parse(text: &str, folder: &Path) -> Result<Config, ConfigError> {
    let mut config = config::parse(text)?;
    for pool in config.pools.values_mut() {
        if let Some(tls) = &mut pool.get_mut().tls {
            tls.authorities = folder.join(&tls.authorities);
        }
    }
    Ok(config)
}

type Pem = (Vec<u8>, Vec<u8>);

struct Opened {
    sockets: Vec<(Listener, TcpListener, Option<ServerTls>)>,
    certificates: Vec<(SocketAddr, Pem)>,
}

async fn read_pem(
    address: SocketAddr,
    tls: &Tls,
    folder: &Path,
) -> Result<(Pem, ServerTls), ApplyError> {
    let read = async |path: &Path| {
        let path = folder.join(path);
        tokio::fs::read(&path).await.map_err(|error| ApplyError::Tls {
            address,
            why: format!("{}: {error}", path.display()),
        })
    };
    let (certificate, key) = (read(&tls.certificate).await?, read(&tls.key).await?);
    let server = ServerTls::new(&certificate, &key)
        .map_err(|error| ApplyError::Tls { address, why: error.to_string() })?;
    Ok(((certificate, key), server))
}

fn internal(error: &dyn std::error::Error) -> ApplyError {
    ApplyError::Config(ConfigError { line: 1, column: 1, what: error.to_string() })
}
