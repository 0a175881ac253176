//! The breaker and the policy as `tower` layers.
//!
//! Both drive the very instance of the inner service that said it was ready, as the contract of
//! `tower_service::Service` demands: a clone need not be ready.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tower_layer::Layer;
use tower_service::Service;

use crate::breaker::{Breaker, Verdict};
use crate::error::BreakerError;
use crate::policy::{Policy, PolicyError};

type BoxFuture<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// Puts a breaker before a service: `Ok` is a success, `Err` a failure. For a classifier of your
/// own put the breaker into a [`Policy`] and that into a [`PolicyLayer`].
#[derive(Clone, Debug)]
pub struct BreakerLayer {
    breaker: Arc<Breaker>,
}

impl BreakerLayer {
    /// A layer over a breaker, which all services made by it share.
    pub const fn new(breaker: Arc<Breaker>) -> Self {
        Self { breaker }
    }
}

impl<S> Layer<S> for BreakerLayer {
    type Service = BreakerService<S>;

    fn layer(&self, inner: S) -> BreakerService<S> {
        BreakerService { breaker: Arc::clone(&self.breaker), inner }
    }
}

/// A service behind a breaker. See [`BreakerLayer`].
#[derive(Clone, Debug)]
pub struct BreakerService<S> {
    breaker: Arc<Breaker>,
    inner: S,
}

impl<R, S> Service<R> for BreakerService<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BreakerError<S::Error>;
    type Future = BoxFuture<S::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(BreakerError::Inner)
    }

    /// Takes the permit here, before the inner service hears of the request.
    fn call(&mut self, request: R) -> Self::Future {
        let permit = match self.breaker.try_acquire_owned() {
            Ok(permit) => permit,
            Err(rejected) => return Box::pin(async move { Err(BreakerError::Rejected(rejected)) }),
        };
        let call = self.inner.call(request);
        Box::pin(async move {
            let answer = call.await;
            permit.record(Verdict::of(&answer));
            answer.map_err(BreakerError::Inner)
        })
    }
}

/// Puts a whole policy before a service. Requests are cloned for each attempt, and the service for
/// each attempt after the first.
pub struct PolicyLayer<T, E> {
    policy: Arc<Policy<T, E>>,
}

impl<T, E> PolicyLayer<T, E> {
    /// A layer over a policy, which all services made by it share.
    pub const fn new(policy: Arc<Policy<T, E>>) -> Self {
        Self { policy }
    }
}

impl<T, E> Clone for PolicyLayer<T, E> {
    fn clone(&self) -> Self {
        Self { policy: Arc::clone(&self.policy) }
    }
}

impl<T, E> fmt::Debug for PolicyLayer<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PolicyLayer({})", self.policy)
    }
}

impl<S, T, E> Layer<S> for PolicyLayer<T, E> {
    type Service = PolicyService<S, Policy<T, E>>;

    fn layer(&self, inner: S) -> Self::Service {
        PolicyService { policy: Arc::clone(&self.policy), inner }
    }
}

/// A service behind a policy. See [`PolicyLayer`].
#[derive(Debug)]
pub struct PolicyService<S, P> {
    policy: Arc<P>,
    inner: S,
}

impl<S: Clone, P> Clone for PolicyService<S, P> {
    fn clone(&self) -> Self {
        Self { policy: Arc::clone(&self.policy), inner: self.inner.clone() }
    }
}

impl<R, S, T, E> Service<R> for PolicyService<S, Policy<T, E>>
where
    R: Clone + Send + Sync + 'static,
    S: Service<R, Response = T, Error = E> + Clone + Send + 'static,
    S::Future: Send,
    T: Send + 'static,
    E: Send + 'static,
{
    type Response = T;
    type Error = PolicyError<E>;
    type Future = BoxFuture<T, PolicyError<E>>;

    /// Always ready: an inner service that is not must not keep the policy from shedding, timing
    /// out or falling back. Each attempt waits for its service, within the time limits.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let (policy, inner) = (Arc::clone(&self.policy), Mutex::new(self.inner.clone()));
        Box::pin(async move {
            let attempt = |_| {
                let (mut service, request) = (inner.lock().clone(), request.clone());
                async move {
                    poll_fn(|cx| service.poll_ready(cx)).await?;
                    service.call(request).await
                }
            };
            policy.call(attempt).await
        })
    }
}
