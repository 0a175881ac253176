//! Who is let through before a backend is asked: the limit of a route and the breaker of a pool.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hyper::StatusCode;
use voussoir_breaker::Breaker;
use voussoir_lb::Outcome;
use voussoir_lb::l7::{Gate, GatePermit, GateRejected, RequestFacts, Upstream};
use voussoir_limit::Keyed;

use crate::config::{Limit, LimitBy};

/// Counts the requests of a route by client, by header, or all together.
#[derive(Debug)]
pub struct RouteLimit {
    config: Limit,
    keyed: Keyed<Vec<u8>>,
    rejected: AtomicU64,
}

impl RouteLimit {
    /// A limit under which nobody has asked yet.
    ///
    /// # Errors
    /// A quota out of its range.
    pub fn new(config: &Limit) -> Result<Self, voussoir_limit::ConfigError> {
        let keyed = Keyed::new(config.quota())?;
        Ok(Self { config: config.clone(), keyed, rejected: AtomicU64::new(0) })
    }

    /// Whether it may stay in use for `config`: the counts of all clients go on.
    pub fn is_for(&self, config: &Limit) -> bool {
        self.config == *config
    }

    /// Requests that were answered with 429.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Relaxed)
    }

    fn key(&self, facts: &RequestFacts<'_>) -> Vec<u8> {
        match &self.config.by {
            LimitBy::Route => Vec::new(),
            LimitBy::Client => facts.client.map(client_key).unwrap_or_default(),
            LimitBy::Header(name) => {
                facts.headers.get(name).map(|value| value.as_bytes().to_vec()).unwrap_or_default()
            }
        }
    }

    fn check(&self, facts: &RequestFacts<'_>) -> Result<(), GateRejected> {
        let Err(rejected) = self.keyed.check(&self.key(facts)) else { return Ok(()) };
        self.rejected.fetch_add(1, Relaxed);
        let answer = GateRejected::new(StatusCode::TOO_MANY_REQUESTS, "rate limit exceeded");
        Err(match rejected.retry_after() {
            Some(after) => answer.with_retry_after(after),
            None => answer,
        })
    }
}

/// The key of a client: its address, of IPv6 the network of 64 bits, all of which one client has.
fn client_key(address: IpAddr) -> Vec<u8> {
    match address.to_canonical() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            Ipv6Addr::from(network).octets().to_vec()
        }
    }
}

/// The gate of a route: its limit first, then the breaker of the pool that the request goes to.
#[derive(Debug, Default)]
pub struct RouteGate {
    /// The limit of the route.
    pub limit: Option<Arc<RouteLimit>>,
    /// Breakers by the name of their pool.
    pub breakers: HashMap<String, Arc<Breaker>>,
}

impl Gate for RouteGate {
    fn admit(
        &self,
        facts: &RequestFacts<'_>,
        upstream: &Upstream,
    ) -> Result<GatePermit, GateRejected> {
        if let Some(limit) = &self.limit {
            limit.check(facts)?;
        }
        let Some(breaker) = self.breakers.get(upstream.name()) else {
            return Ok(GatePermit::new());
        };
        let permit = breaker.try_acquire_owned().map_err(|rejected| {
            let reason = "most requests to these backends fail; the breaker is open";
            let answer = GateRejected::new(StatusCode::SERVICE_UNAVAILABLE, reason);
            rejected.retry_after.map_or(answer, |after| answer.with_retry_after(after))
        })?;
        // A request that the client gives up drops the permit: the breaker counts nothing.
        Ok(GatePermit::on_end(move |outcome| match outcome {
            Outcome::Success => permit.success(),
            Outcome::Failure => permit.failure(),
        }))
    }
}
