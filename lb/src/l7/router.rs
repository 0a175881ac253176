//! Which target a request goes to: the first route whose conditions all hold.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::Method;
use hyper::header::{HeaderMap, HeaderName};
use xxhash_rust::xxh3::xxh3_64;

use super::gate::Gate;
use super::headers::Rewrite;
use super::matching::{CookieMatch, HeaderMatch, HostMatch, PathMatch, cookies};
use crate::error::ConfigError;

/// Sum of the weights of one route.
const MAX_WEIGHTS: u64 = u32::MAX as u64;

/// What a router looks at.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RequestFacts<'a> {
    /// The host: of the request target, else of the `Host` header. May have a port.
    pub host: &'a str,
    /// The path, without the query.
    pub path: &'a str,
    /// The method.
    pub method: &'a Method,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The client's address.
    pub client: Option<IpAddr>,
}

impl<'a> RequestFacts<'a> {
    /// The facts of a request whose client is unknown.
    pub fn new(host: &'a str, path: &'a str, method: &'a Method, headers: &'a HeaderMap) -> Self {
        Self { host, path, method, headers, client: None }
    }
}

/// Which requests of a split route stay together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SplitBy {
    /// None: each request is drawn by itself.
    #[default]
    Request,
    /// Those of one client address.
    Client,
    /// Those with the same value of this header; without the header, each by itself.
    Header(HeaderName),
    /// Those with the same value of this cookie; without the cookie, each by itself.
    Cookie(String),
}

/// Conditions, and the targets of requests that fulfil them all. `T` is what a target is; in an
/// [`HttpProxy`](super::HttpProxy) it is an [`Upstream`](super::Upstream).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Route<T> {
    /// Names the route in the access log.
    pub name: String,
    /// Hosts, one of which must match; empty is any.
    pub hosts: Vec<HostMatch>,
    /// The path; `None` is any.
    pub path: Option<PathMatch>,
    /// Methods, one of which must be the request's; empty is any.
    pub methods: Vec<Method>,
    /// Headers, all of which must match.
    pub headers: Vec<HeaderMatch>,
    /// Cookies, all of which must match.
    pub cookies: Vec<CookieMatch>,
    /// Targets and their weights, 1 or more; the sum at most 4,294,967,295. Weights 95 and 5 send
    /// one request in twenty to the second.
    pub targets: Vec<(T, u32)>,
    /// Which requests go to the same target.
    pub split_by: SplitBy,
    /// What is changed in requests and responses of this route.
    pub rewrite: Rewrite,
    /// Decides whether a request of this route is sent to a backend; `None` sends all.
    pub gate: Option<Arc<dyn Gate>>,
}

impl<T> Route<T> {
    /// A route that every request fulfils.
    pub fn new(name: impl Into<String>, target: T) -> Self {
        Self {
            name: name.into(),
            hosts: Vec::new(),
            path: None,
            methods: Vec::new(),
            headers: Vec::new(),
            cookies: Vec::new(),
            targets: vec![(target, 1)],
            split_by: SplitBy::Request,
            rewrite: Rewrite::default(),
            gate: None,
        }
    }

    /// Sets the path.
    pub fn with_path(mut self, path: PathMatch) -> Self {
        self.path = Some(path);
        self
    }

    /// Adds a host.
    pub fn with_host(mut self, host: HostMatch) -> Self {
        self.hosts.push(host);
        self
    }

    /// Adds a header.
    pub fn with_header(mut self, header: HeaderMatch) -> Self {
        self.headers.push(header);
        self
    }

    /// Adds a target.
    pub fn with_target(mut self, target: T, weight: u32) -> Self {
        self.targets.push((target, weight));
        self
    }

    /// Sets the gate.
    pub fn with_gate(mut self, gate: Arc<dyn Gate>) -> Self {
        self.gate = Some(gate);
        self
    }

    fn matches(&self, facts: &RequestFacts<'_>) -> bool {
        (self.hosts.is_empty() || self.hosts.iter().any(|host| host.matches(facts.host)))
            && self.path.as_ref().is_none_or(|path| path.matches(facts.path))
            && (self.methods.is_empty() || self.methods.contains(facts.method))
            && self.headers.iter().all(|header| header.matches(facts.headers))
            && self.cookies.iter().all(|cookie| cookie.matches(facts.headers))
    }

    /// The target of a request; `draw` is uniform over all `u64`.
    fn target(&self, facts: &RequestFacts<'_>, draw: u64) -> &T {
        if let [(only, _)] = &*self.targets {
            return only;
        }
        let point = self.split_point(facts).unwrap_or(draw);
        let total: u64 = self.targets.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut at = ((u128::from(point) * u128::from(total)) >> 64) as u64;
        for (target, weight) in &self.targets {
            match at.checked_sub(u64::from(*weight)) {
                Some(rest) => at = rest,
                None => return target,
            }
        }
        &self.targets[0].0
    }

    fn split_point(&self, facts: &RequestFacts<'_>) -> Option<u64> {
        match &self.split_by {
            SplitBy::Request => None,
            SplitBy::Client => match facts.client? {
                IpAddr::V4(address) => Some(xxh3_64(&address.octets())),
                IpAddr::V6(address) => Some(xxh3_64(&address.octets())),
            },
            SplitBy::Header(name) => Some(xxh3_64(facts.headers.get(name)?.as_bytes())),
            SplitBy::Cookie(name) => {
                let mut all = cookies(facts.headers);
                all.find(|(found, _)| found == name).map(|(_, value)| xxh3_64(value.as_bytes()))
            }
        }
    }
}

/// The routes of a proxy, in order.
#[derive(Clone, Debug)]
pub struct Router<T> {
    routes: Vec<Route<T>>,
}

impl<T> Router<T> {
    /// A router that asks `routes` in their order. Without a route every request gets 404.
    ///
    /// # Errors
    /// A route without a target, or weights that are out of their range.
    pub fn new(routes: Vec<Route<T>>) -> Result<Self, ConfigError> {
        for route in &routes {
            if route.targets.is_empty() {
                return Err(ConfigError::new("targets", "must not be empty"));
            }
            let total: u64 = route.targets.iter().map(|(_, weight)| u64::from(*weight)).sum();
            if total > MAX_WEIGHTS || route.targets.iter().any(|(_, weight)| *weight == 0) {
                let rule = "must have weights of 1 or more, in sum at most 4294967295";
                return Err(ConfigError::new("targets", rule));
            }
        }
        Ok(Self { routes })
    }

    /// The first route that the request fulfils, and its target. `draw` splits among targets: a
    /// random number, uniform over all `u64`.
    pub fn route(&self, facts: &RequestFacts<'_>, draw: u64) -> Option<(&Route<T>, &T)> {
        let route = self.routes.iter().find(|route| route.matches(facts))?;
        Some((route, route.target(facts, draw)))
    }

    /// The routes, in order.
    pub fn routes(&self) -> &[Route<T>] {
        &self.routes
    }
}
