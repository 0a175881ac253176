//! A pool that runs: its balancer, the connections to its backends, its checks and its breaker.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use voussoir_breaker::Breaker;
use voussoir_lb::discovery::{Discovery, DiscoveryConfig};
use voussoir_lb::l7::{ClientTls, Upstream};
use voussoir_lb::probe::{Checker, HttpProbe, TcpProbe};
use voussoir_lb::{Balancer, BalancerStats, Clock, EndpointConfig, Monotonic};

use crate::config::{self, EndpointEntry, Health, HealthKind, Pool, PoolTls};

/// How long a reload waits for the first answer of DNS.
const FIRST_LOOKUP: Duration = Duration::from_secs(2);

/// A pool that runs. Dropped, it ends its checks; requests under way go on.
#[derive(Debug)]
pub struct RunningPool {
    /// What it was started with; the endpoints are those of the last update.
    pub config: Pool,
    /// The connections and the balancer.
    pub upstream: Upstream,
    /// Rejects requests while most of them fail.
    pub breaker: Option<Arc<Breaker>>,
    /// Looks the backends up, where the file does not list them.
    pub discovery: Option<Arc<Discovery>>,
    _checker: Option<Checker>,
}

impl RunningPool {
    /// Starts a pool. With `old`, the pool of that name before, the backends that stay begin with
    /// the health they had: one that was down or ejected gets no request before its checks pass.
    ///
    /// # Errors
    /// What cannot be used, as a text.
    ///
    /// # Cancel safety
    /// Dropping the future ends the checks that it began.
    pub async fn start(name: &str, config: Pool, old: Option<&Self>) -> Result<Self, String> {
        let text = |error: voussoir_lb::ConfigError| error.to_string();
        let balancer = Balancer::boxed(config.strategy(), config.balancer()).map_err(text)?;
        let now = Monotonic.now();
        let stats = old.map(|old| old.upstream.balancer().stats(now));
        let before = stats.iter().flat_map(|stats| &stats.endpoints);
        let endpoints: Vec<EndpointConfig> = match config.dns {
            None => config.endpoints.iter().map(EndpointEntry::endpoint).collect(),
            // Those of the pool before serve until the first answer is there.
            Some(_) => before
                .map(|found| EndpointConfig::new(&found.name).with_weight(found.weight))
                .collect(),
        };
        if !endpoints.is_empty() {
            balancer.update(endpoints, now).map_err(|error| error.to_string())?;
        }
        if let Some(stats) = &stats {
            carry_health_over(stats, &balancer, now);
        }
        let discovery = config.dns.as_ref().map(|dns| {
            let started = Discovery::with_clock(
                balancer.clone(),
                dns.source()?,
                DiscoveryConfig::default(),
                Arc::new(Monotonic),
            );
            started.map(Arc::new).map_err(text)
        });
        let discovery = discovery.transpose()?;
        let checker = config.health.as_ref().map(|health| match health.kind {
            HealthKind::Http => {
                let probe = HttpProbe::new(&health.path);
                Checker::start(balancer.clone(), probe, config::checker(&config))
            }
            HealthKind::Tcp => {
                let probe = TcpProbe::default();
                Checker::start(balancer.clone(), probe, config::checker(&config))
            }
        });
        let checker = checker.transpose().map_err(text)?;
        let breaker = config.breaker.as_ref().map(|breaker| Breaker::new(name, &breaker.config()));
        let breaker = breaker.transpose().map_err(|error| error.to_string())?.map(Arc::new);
        let upstream_config = config.upstream()?;
        let upstream = match &config.tls {
            None => Upstream::new(name, balancer, upstream_config).map_err(text)?,
            Some(tls) => {
                let tls = client_tls(tls).await?;
                Upstream::with_tls(name, balancer, upstream_config, tls).map_err(text)?
            }
        };
        Ok(Self { config, upstream, breaker, discovery, _checker: checker })
    }

    /// Whether the pool can go on with the set of `new` at once: a backend that is healthy now goes
    /// on serving, or no backend joins, so that there is nothing to wait for. Otherwise a pool of
    /// the new set is checked first, while this one serves.
    ///
    /// A pool of DNS names goes on: its balancer keeps those that leave until a new one is checked.
    pub fn can_go_on_with(&self, new: &Pool) -> bool {
        let stats = self.upstream.balancer().stats(Monotonic.now());
        let known = |entry: &EndpointEntry| {
            let name = entry.endpoint().name;
            stats.endpoints.iter().find(|found| found.name == name)
        };
        let goes_on = |entry: &EndpointEntry| {
            !entry.draining && known(entry).is_some_and(|found| found.healthy)
        };
        let joins = |entry: &EndpointEntry| !entry.draining && known(entry).is_none();
        let endpoints = &new.endpoints;
        new.dns.is_some() || endpoints.iter().any(goes_on) || !endpoints.iter().any(joins)
    }

    /// Waits until a backend may be used, at most for two checks and one lookup: a route that moves
    /// to this pool finds one then. Without a healthy backend the pool is used all the same.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub fn warm_up(&self) -> impl Future<Output = ()> + Send + use<> {
        let check = |health: &Health| Duration::from_millis(health.timeout_ms).saturating_mul(2);
        let check = self.config.health.as_ref().map_or(Duration::ZERO, check);
        let lookup = if self.discovery.is_some() { FIRST_LOOKUP } else { Duration::ZERO };
        let within = check.saturating_add(lookup);
        let mut availability = self.upstream.balancer().availability();
        async move {
            if !within.is_zero() {
                let _ = timeout(within, availability.wait_for(|found| found.healthy > 0)).await;
            }
        }
    }
}

/// Reads the authorities that sign the backends' certificates.
///
/// # Errors
/// The file cannot be read or used; the text names it.
///
/// # Cancel safety
/// Nothing is lost.
pub async fn client_tls(tls: &PoolTls) -> Result<ClientTls, String> {
    let named = |error: &dyn Display| format!("`tls`: {}: {error}", tls.authorities.display());
    let roots = tokio::fs::read(&tls.authorities).await.map_err(|error| named(&error))?;
    ClientTls::new(&roots, &tls.name).map_err(|error| named(&error))
}

/// Tells `balancer` about the backends that `old` knows, as if a check had run: the first result
/// of a check decides alone.
fn carry_health_over(old: &BalancerStats, balancer: &Balancer, now: u64) {
    for endpoint in balancer.endpoints() {
        let found = old.endpoints.iter().find(|found| found.name == endpoint.name());
        // One that was never checked stays unknown.
        if let Some(found) = found.filter(|found| found.healthy || found.picks > 0) {
            balancer.record_check(endpoint.id(), found.healthy, now);
        }
    }
}
