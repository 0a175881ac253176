//! A `tower` service that spreads its calls over the endpoints of a balancer.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};

use parking_lot::Mutex;
use tokio::sync::watch;
use tower_service::Service;

use crate::balancer::Balancer;
use crate::clock::{Clock, Monotonic};
use crate::context::Context;
use crate::endpoint::{Awaited, Endpoint, Outcome};

/// Why a call got no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BalanceError<E> {
    /// No endpoint may be used now. Nothing was sent: retry later.
    #[error("no endpoint may be used")]
    NoEndpoint,
    /// The services of all endpoints that were tried failed before they took the request. Nothing
    /// was sent: retry later.
    #[error("no endpoint became ready; the last one of {tried}: {last}")]
    NotReady {
        /// Endpoints that were tried.
        tried: usize,
        /// The error of the last one.
        last: E,
    },
    /// The service of the endpoint took the request and failed; whether it was applied is unknown.
    #[error("{0}")]
    Inner(E),
}

impl<E> BalanceError<E> {
    /// Whether a service took the request. If not, it may be sent again whatever it does.
    pub fn was_sent(&self) -> bool {
        matches!(self, Self::Inner(_))
    }
}

type Make<S> = dyn Fn(&Endpoint) -> S + Send + Sync;
type ContextOf<R> = dyn for<'a> Fn(&'a R) -> Context<'a> + Send + Sync;
type OutcomeOf<T, E> = dyn Fn(&Result<T, E>) -> Outcome + Send + Sync;
type BoxFuture<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// Sends each request to an endpoint that the balancer picks.
///
/// Each endpoint has a service, made when it is first used and dropped with the next call after it
/// left the set and stopped serving; its clones serve the requests, and all clones of this one
/// share it. A call drives the very clone that it calls until that is ready, as the contract of
/// `tower` demands, and counts as load of the endpoint meanwhile. A service that fails before it is
/// ready counts as a failure, and the request goes to another endpoint.
///
/// Always ready: which endpoint is asked depends on the request. The latency is that of the
/// response, not of its body. A dropped call, such as one that a time-out outside of this service
/// ends, gives its place back and counts as cancelled; the latency is then at least the time that
/// it has lasted.
///
/// # Example
/// ```
/// use voussoir_lb::tower::BalanceService;
/// use voussoir_lb::{Balancer, Config, EndpointConfig, strategy::PeakEwma};
/// # use std::{convert::Infallible, future::{Ready, ready}, task::{Context, Poll}};
/// # #[derive(Clone)] struct Client(String);
/// # impl tower_service::Service<u32> for Client {
/// #     type Response = u32; type Error = Infallible;
/// #     type Future = Ready<Result<u32, Infallible>>;
/// #     fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
/// #         Poll::Ready(Ok(()))
/// #     }
/// #     fn call(&mut self, n: u32) -> Self::Future { ready(Ok(n)) }
/// # }
/// let balancer = Balancer::new(PeakEwma::default(), Config::default())?;
/// balancer.update(["10.0.0.1:80", "10.0.0.2:80"].map(EndpointConfig::new), 0)?;
/// let service = BalanceService::<Client, u32>::new(balancer, |endpoint| {
///     Client(endpoint.name().to_owned())
/// });
/// # let _ = service;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct BalanceService<S: Service<R>, R> {
    shared: Arc<Shared<S>>,
    context: Arc<ContextOf<R>>,
    outcome: Arc<OutcomeOf<S::Response, S::Error>>,
    max_attempts: usize,
}

struct Shared<S> {
    balancer: Balancer,
    clock: Arc<dyn Clock>,
    make: Box<Make<S>>,
    services: Mutex<Services<S>>,
}

struct Services<S> {
    /// By the ids of the endpoints.
    by_id: HashMap<u64, Arc<S>>,
    /// Unchanged since `by_id` was last compared with the endpoints. Its count does not tell: it
    /// stays when those that had left the set stop serving.
    updates: watch::Receiver<u64>,
}

impl<S: Service<R>, R> BalanceService<S, R> {
    /// A service over the clock [`Monotonic`]. `make` makes the service of an endpoint, such as a
    /// client that connects when it is first called. It may be called twice for one endpoint when
    /// two calls come at once; one of the services is then dropped unused.
    pub fn new(balancer: Balancer, make: impl Fn(&Endpoint) -> S + Send + Sync + 'static) -> Self {
        Self::with_clock(balancer, make, Arc::new(Monotonic))
    }

    /// A service over a clock of the caller's: the one that the balancer is given `now` from.
    pub fn with_clock(
        balancer: Balancer,
        make: impl Fn(&Endpoint) -> S + Send + Sync + 'static,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let services = Services { by_id: HashMap::new(), updates: balancer.updates() };
        let services = Mutex::new(services);
        let by_result = |result: &Result<S::Response, S::Error>| match result {
            Ok(_) => Outcome::Success,
            Err(_) => Outcome::Failure,
        };
        Self {
            shared: Arc::new(Shared { balancer, clock, make: Box::new(make), services }),
            context: Arc::new(|_: &R| Context::new()),
            outcome: Arc::new(by_result),
            max_attempts: 3,
        }
    }

    /// Sets what a request says about where it wants to go: its key, client or session, and the
    /// endpoints that it must not go to.
    pub fn with_context(
        mut self,
        context: impl for<'a> Fn(&'a R) -> Context<'a> + Send + Sync + 'static,
    ) -> Self {
        self.context = Arc::new(context);
        self
    }

    /// Sets which results are failures of the endpoint. By default `Err` is one.
    pub fn with_outcome(
        mut self,
        outcome: impl Fn(&Result<S::Response, S::Error>) -> Outcome + Send + Sync + 'static,
    ) -> Self {
        self.outcome = Arc::new(outcome);
        self
    }

    /// Sets how many endpoints a request asks for readiness, at least 1; default 3.
    pub fn with_max_attempts(mut self, attempts: usize) -> Self {
        self.max_attempts = attempts.max(1);
        self
    }
}

impl<S: Service<R>, R> Clone for BalanceService<S, R> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            context: Arc::clone(&self.context),
            outcome: Arc::clone(&self.outcome),
            max_attempts: self.max_attempts,
        }
    }
}

impl<S: Service<R>, R> fmt::Debug for BalanceService<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalanceService")
            .field("balancer", &self.shared.balancer)
            .finish_non_exhaustive()
    }
}

impl<S: Clone> Shared<S> {
    /// A clone of the endpoint's service. Services are made, cloned and dropped without the lock.
    fn service(&self, endpoint: &Endpoint) -> S {
        let (known, is_changed) = {
            let mut services = self.services.lock();
            // An error: no further update comes.
            let is_changed = services.updates.has_changed().unwrap_or(false);
            services.updates.mark_unchanged();
            (services.by_id.get(&endpoint.id()).cloned(), is_changed)
        };
        if is_changed {
            self.drop_left();
        }
        if let Some(service) = known {
            return S::clone(&service);
        }
        let made = Arc::new((self.make)(endpoint));
        let service = {
            let mut services = self.services.lock();
            Arc::clone(services.by_id.entry(endpoint.id()).or_insert_with(|| Arc::clone(&made)))
        };
        // Picked before it left, and another call has dropped what left meanwhile.
        if !self.balancer.has_endpoint(endpoint.id()) {
            let left = self.services.lock().by_id.remove(&endpoint.id());
            drop(left);
        }
        S::clone(&service)
    }

    /// Drops the services of endpoints that left the set.
    fn drop_left(&self) {
        let endpoints = self.balancer.endpoints();
        let ids: HashSet<u64> = endpoints.iter().map(|endpoint| endpoint.id()).collect();
        let left: Vec<Arc<S>> = {
            let mut services = self.services.lock();
            let left = services.by_id.extract_if(|id, _| !ids.contains(id));
            left.map(|(_, service)| service).collect()
        };
        drop(left);
    }
}

impl<S, R> Service<R> for BalanceService<S, R>
where
    R: Send + 'static,
    S: Service<R> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Response: Send,
    S::Error: Error + Send,
{
    type Response = S::Response;
    type Error = BalanceError<S::Error>;
    type Future = BoxFuture<S::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let shared = &*this.shared;
            let mut failed = Vec::new();
            let mut last = None;
            while failed.len() < this.max_attempts {
                let pick = {
                    let context = (this.context)(&request);
                    let now = shared.clock.now();
                    if failed.is_empty() {
                        shared.balancer.pick(&context, now)
                    } else {
                        let excluded = [context.excluded, &failed].concat();
                        shared.balancer.pick(&context.with_excluded(&excluded), now)
                    }
                };
                let Some(mut pick) = pick else { break };
                let mut service = shared.service(pick.endpoint());
                let awaited = Awaited::new(&mut pick, &*shared.clock);
                if let Err(error) = poll_fn(|context| service.poll_ready(context)).await {
                    awaited.end();
                    failed.push(pick.endpoint().id());
                    last = Some(error);
                    pick.finish(shared.clock.now(), Outcome::Failure);
                    continue;
                }
                let result = service.call(request).await;
                awaited.end();
                let outcome = (this.outcome)(&result);
                pick.finish(shared.clock.now(), outcome);
                return result.map_err(BalanceError::Inner);
            }
            let tried = failed.len();
            Err(last
                .map_or(BalanceError::NoEndpoint, |last| BalanceError::NotReady { tried, last }))
        })
    }
}
