//! The breaker as a layer.

use std::future::poll_fn;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use super::BoxFuture;
use crate::breaker::{Breaker, watch};
use crate::error::BreakerError;
use crate::policy::{ByResult, Classify};

/// Puts a breaker before a service.
///
/// An answer counts as the classifier says; without one `Ok` is a success and `Err` a failure.
/// Services whose errors are answers (HTTP, axum handlers) need one: `HttpAnswers`.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use voussoir_breaker::tower::BreakerLayer;
/// use voussoir_breaker::{Breaker, BreakerConfig, Classify, Verdict};
///
/// struct Status;
/// impl<E> Classify<u16, E> for Status {
///     fn verdict(&self, answer: &Result<u16, E>) -> Verdict {
///         match answer {
///             Ok(500..) | Err(_) => Verdict::Failure,
///             Ok(_) => Verdict::Success,
///         }
///     }
/// }
///
/// let breaker = Arc::new(Breaker::new("users", &BreakerConfig::default())?);
/// let layer = BreakerLayer::new(breaker).classify(Status);
/// # let _ = layer;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct BreakerLayer<C = ByResult> {
    breaker: Arc<Breaker>,
    classify: Arc<C>,
}

impl BreakerLayer {
    /// A layer over a breaker, which all services made by it share.
    pub fn new(breaker: Arc<Breaker>) -> Self {
        Self { breaker, classify: Arc::new(ByResult) }
    }
}

impl<C> BreakerLayer<C> {
    /// The same with another classifier of answers, of which only
    /// [`verdict`](Classify::verdict) is asked.
    pub fn classify<D>(self, classify: D) -> BreakerLayer<D> {
        BreakerLayer { breaker: self.breaker, classify: Arc::new(classify) }
    }
}

impl<C> Clone for BreakerLayer<C> {
    fn clone(&self) -> Self {
        Self { breaker: Arc::clone(&self.breaker), classify: Arc::clone(&self.classify) }
    }
}

impl<S, C> Layer<S> for BreakerLayer<C> {
    type Service = BreakerService<S, C>;

    fn layer(&self, inner: S) -> BreakerService<S, C> {
        BreakerService { layer: self.clone(), inner, is_ready: false }
    }
}

/// A service behind a breaker. See [`BreakerLayer`].
#[derive(Debug)]
pub struct BreakerService<S, C = ByResult> {
    layer: BreakerLayer<C>,
    inner: S,
    /// Whether `inner` has said so.
    is_ready: bool,
}

impl<S: Clone, C> Clone for BreakerService<S, C> {
    fn clone(&self) -> Self {
        Self { layer: self.layer.clone(), inner: self.inner.clone(), is_ready: false }
    }
}

impl<R, S, C> Service<R> for BreakerService<S, C>
where
    R: Send + 'static,
    S: Service<R> + Clone + Send + 'static,
    S::Future: Send,
    S::Response: Send,
    S::Error: Send,
    C: Classify<S::Response, S::Error> + 'static,
{
    type Response = S::Response;
    type Error = BreakerError<S::Error>;
    type Future = BoxFuture<S::Response, Self::Error>;

    /// Ready when the inner service is, or when the breaker rejects: a service that is stuck must
    /// not keep the breaker from failing fast.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if !self.is_ready && !self.layer.breaker.would_admit() {
            return Poll::Ready(Ok(()));
        }
        let ready = self.inner.poll_ready(cx).map_err(BreakerError::Inner);
        self.is_ready = matches!(ready, Poll::Ready(Ok(())));
        ready
    }

    /// Takes the permit here, before the inner service hears of the request.
    ///
    /// The instance that was ready goes with the call, or is dropped with its rejection: a clone
    /// that stays behind must not keep what the inner service has reserved.
    fn call(&mut self, request: R) -> Self::Future {
        let fresh = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, fresh);
        let is_ready = mem::take(&mut self.is_ready);
        let permit = match self.layer.breaker.try_acquire_owned() {
            Ok(permit) => permit,
            Err(rejected) => return Box::pin(async move { Err(BreakerError::Rejected(rejected)) }),
        };
        let classify = Arc::clone(&self.layer.classify);
        if is_ready {
            let call = inner.call(request);
            return Box::pin(async move {
                let (answer, permit) = watch(permit, call).await;
                if let Some(permit) = permit {
                    permit.record(classify.verdict(&answer));
                }
                answer.map_err(BreakerError::Inner)
            });
        }
        // The breaker would have rejected when it was asked whether it is ready.
        Box::pin(async move {
            let call = async {
                poll_fn(|cx| inner.poll_ready(cx)).await?;
                inner.call(request).await
            };
            let (answer, permit) = watch(permit, call).await;
            if let Some(permit) = permit {
                permit.record(classify.verdict(&answer));
            }
            answer.map_err(BreakerError::Inner)
        })
    }
}
