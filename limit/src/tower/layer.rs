//! The layer for any service: rejects by an error.

use std::fmt;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use super::KeyOf;
use crate::error::Rejected;
use crate::keyed::Keyed;

/// Why a limited service did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LimitError<E> {
    /// The limit is reached. The inner service did not see the request.
    #[error(transparent)]
    Rejected(Rejected),
    /// The request has no key. The inner service did not see it.
    #[error("the request has nothing to be counted by")]
    NoKey,
    /// The inner service failed.
    #[error(transparent)]
    Inner(E),
}

/// Puts a keyed limiter before a service.
///
/// A rejected request is answered with an error at once: it does not hold the service back for
/// others, as waiting in `poll_ready` would. What the inner service had reserved for it when it
/// became ready, say a permit of `concurrency_limit`, is given back by dropping that instance for a
/// fresh clone.
pub struct LimitLayer<K, X> {
    limiter: Arc<Keyed<K>>,
    key_of: Arc<X>,
}

impl<K, X> LimitLayer<K, X> {
    /// A layer over a limiter, which all services made by it share.
    pub fn new(limiter: Arc<Keyed<K>>, key_of: X) -> Self {
        Self { limiter, key_of: Arc::new(key_of) }
    }
}

impl<K, X> Clone for LimitLayer<K, X> {
    fn clone(&self) -> Self {
        Self { limiter: Arc::clone(&self.limiter), key_of: Arc::clone(&self.key_of) }
    }
}

impl<K, X> fmt::Debug for LimitLayer<K, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LimitLayer").field(&self.limiter).finish()
    }
}

impl<S, K, X> Layer<S> for LimitLayer<K, X> {
    type Service = Limited<S, LimitLayer<K, X>>;

    fn layer(&self, inner: S) -> Self::Service {
        Limited { inner, layer: self.clone() }
    }
}

/// A service behind a limiter. See [`LimitLayer`] and [`HttpLimitLayer`](super::HttpLimitLayer).
#[derive(Clone, Debug)]
pub struct Limited<S, L> {
    pub(super) inner: S,
    pub(super) layer: L,
}

impl<S: Clone, L> Limited<S, L> {
    /// Gives up the instance that is ready, with all that it has reserved for a call.
    pub(super) fn renew(&mut self) {
        self.inner = self.inner.clone();
    }
}

impl<R, S, K, X> Service<R> for Limited<S, LimitLayer<K, X>>
where
    S: Service<R> + Clone,
    S::Future: Send + 'static,
    S::Response: 'static,
    S::Error: Send + 'static,
    K: Hash + Eq + Clone,
    X: KeyOf<R, Key = K>,
{
    type Response = S::Response;
    type Error = LimitError<S::Error>;
    type Future = BoxFuture<S::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(LimitError::Inner)
    }

    /// Calls the very instance that was ready, or drops it.
    fn call(&mut self, request: R) -> Self::Future {
        let checked = match self.layer.key_of.key_of(&request) {
            Some(key) => self.layer.limiter.check(&key).map_err(LimitError::Rejected),
            None => Err(LimitError::NoKey),
        };
        let call = match checked {
            Ok(_) => Ok(self.inner.call(request)),
            Err(error) => {
                self.renew();
                Err(error)
            }
        };
        Box::pin(async move { call?.await.map_err(LimitError::Inner) })
    }
}

pub(super) type BoxFuture<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;
