//! A whole policy as a layer.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tower_layer::Layer;
use tower_service::Service;

use super::BoxFuture;
use crate::policy::{CallOptions, Policy, PolicyError};

/// How a request is duplicated for retries and hedges.
pub trait CopyRequest<R>: Send + Sync {
    /// A duplicate of the request, or `None` if it must be sent at most once: it is then neither
    /// retried nor hedged. A request that was copied once must be copied whenever it is asked for
    /// again; otherwise the future of the service call panics.
    fn copy(&self, request: &R) -> Option<R>;
}

/// Clones every request, so that it can be retried and hedged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cloned;

impl<R: Clone> CopyRequest<R> for Cloned {
    fn copy(&self, request: &R) -> Option<R> {
        Some(request.clone())
    }
}

/// No request is sent again. For requests that cannot be cloned, those of axum for instance: they
/// need neither `Clone` nor `Sync`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Once;

impl<R> CopyRequest<R> for Once {
    fn copy(&self, _request: &R) -> Option<R> {
        None
    }
}

/// Puts a whole policy before a service. The service is cloned for each attempt, and the request
/// is copied as `K` says.
///
/// The policy's classifier is asked about the answers of the service.
pub struct PolicyLayer<P, K = Cloned> {
    policy: Arc<P>,
    copy: Arc<K>,
}

impl<P> PolicyLayer<P> {
    /// A layer over a policy, which all services made by it share. Requests are cloned.
    pub fn new(policy: Arc<P>) -> Self {
        Self { policy, copy: Arc::new(Cloned) }
    }
}

impl<P, K> PolicyLayer<P, K> {
    /// The same with another way to copy requests: [`Once`] for those that cannot be cloned, or
    /// `SafeRequests` for HTTP.
    pub fn copy_by<L>(self, copy: L) -> PolicyLayer<P, L> {
        PolicyLayer { policy: self.policy, copy: Arc::new(copy) }
    }
}

impl<P, K> Clone for PolicyLayer<P, K> {
    fn clone(&self) -> Self {
        Self { policy: Arc::clone(&self.policy), copy: Arc::clone(&self.copy) }
    }
}

impl<P: fmt::Display, K> fmt::Debug for PolicyLayer<P, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PolicyLayer({})", self.policy)
    }
}

impl<S, P, K> Layer<S> for PolicyLayer<P, K> {
    type Service = PolicyService<S, Self>;

    fn layer(&self, inner: S) -> Self::Service {
        PolicyService { layer: self.clone(), inner }
    }
}

/// A service behind a policy, made by the [`PolicyLayer`] `L`.
#[derive(Clone, Debug)]
pub struct PolicyService<S, L> {
    layer: L,
    inner: S,
}

impl<R, S, T, E, K> Service<R> for PolicyService<S, PolicyLayer<Policy<T, E>, K>>
where
    R: Send + 'static,
    S: Service<R, Response = T, Error = E> + Clone + Send + 'static,
    S::Future: Send,
    T: Send + 'static,
    E: Send + 'static,
    K: CopyRequest<R> + 'static,
{
    type Response = T;
    type Error = PolicyError<E>;
    type Future = BoxFuture<T, PolicyError<E>>;

    /// Always ready. If this waited for the inner service, the policy could not shed, time out or
    /// fall back meanwhile; each attempt waits for its own clone, within the time limits.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let (layer, inner) = (self.layer.clone(), Lent::new(self.inner.clone()));
        Box::pin(async move {
            // Copied before the first attempt: only a request that can be copied is repeated.
            let copy = layer.copy.copy(&request);
            let options = CallOptions { once: copy.is_none(), ..CallOptions::default() };
            // The request to copy from, and the copy that goes out next.
            let requests = Lent::new((Some(request), copy));
            let attempt = |_| {
                let next = requests.with(|(original, spare)| {
                    spare.take().or_else(|| match &*original {
                        Some(held) if !options.once => layer.copy.copy(held),
                        _ => original.take(),
                    })
                });
                let mut service = inner.with(|inner| inner.clone());
                async move {
                    poll_fn(|cx| service.poll_ready(cx)).await?;
                    // `None` only if a request could be copied at first and later could not.
                    let request = next.expect("a request that was copied once can be copied again");
                    service.call(request).await
                }
            };
            layer.policy.call_with(options, attempt).await
        })
    }
}

/// A value that need not be `Sync`, lent to one attempt at a time. Copying a request and
/// cloning a service are foreign code, so no lock is held meanwhile.
struct Lent<T>(Mutex<Option<T>>);

impl<T> Lent<T> {
    fn new(value: T) -> Self {
        Self(Mutex::new(Some(value)))
    }

    /// The value is put back also when `borrow` panics.
    ///
    /// # Panics
    /// If the value is lent: the attempts of a call are begun one after the other, by whoever polls
    /// the call, and `borrow` has no way to poll it.
    fn with<O>(&self, borrow: impl FnOnce(&mut T) -> O) -> O {
        let value = self.0.lock().take();
        let mut loan = Loan { lender: self, value };
        borrow(loan.value.as_mut().expect("the attempts of a call are begun one after the other"))
    }
}

/// Puts the value back when dropped.
struct Loan<'a, T> {
    lender: &'a Lent<T>,
    value: Option<T>,
}

impl<T> Drop for Loan<'_, T> {
    fn drop(&mut self) {
        *self.lender.0.lock() = self.value.take();
    }
}
