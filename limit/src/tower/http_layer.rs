//! The layer for services that answer HTTP: it rejects by a response, and tells in each response
//! where the quota stands.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use tower_layer::Layer;
use tower_service::Service;

use super::KeyOf;
use super::layer::{BoxFuture, Limited};
use crate::core::Standing;
use crate::error::Rejected;
use crate::header::{policy_field, standing_field};
use crate::keyed::Keyed;
use crate::quota::Quota;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Puts a keyed limiter before a service that answers HTTP.
///
/// A rejected request is answered at once, without the inner service: status 429, `Retry-After` in
/// whole seconds, and an empty body. Each response, also of the inner service, has the fields
/// `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10). The inner service
/// finds the [`Standing`] among the request's extensions. The errors are those of the inner
/// service, so that an infallible one stays infallible: it can be put on an axum route.
///
/// A rejected request gives back what the inner service had reserved for it, as
/// [`LimitLayer`](super::LimitLayer) does.
pub struct HttpLimitLayer<K, X> {
    limiter: Arc<Keyed<K>>,
    key_of: Arc<X>,
    without_key: StatusCode,
}

impl<K, X> HttpLimitLayer<K, X> {
    /// A layer over a limiter, which all services made by it share.
    pub fn new(limiter: Arc<Keyed<K>>, key_of: X) -> Self {
        Self { limiter, key_of: Arc::new(key_of), without_key: StatusCode::BAD_REQUEST }
    }

    /// The status of the answer to a request that has no key. Default 400. To let such requests
    /// pass, give them a key of their own.
    pub fn without_key(mut self, status: StatusCode) -> Self {
        self.without_key = status;
        self
    }
}

impl<K, X> Clone for HttpLimitLayer<K, X> {
    fn clone(&self) -> Self {
        Self {
            limiter: Arc::clone(&self.limiter),
            key_of: Arc::clone(&self.key_of),
            without_key: self.without_key,
        }
    }
}

impl<K, X> fmt::Debug for HttpLimitLayer<K, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HttpLimitLayer").field(&self.limiter).finish()
    }
}

impl<S, K, X> Layer<S> for HttpLimitLayer<K, X> {
    type Service = Limited<S, HttpLimitLayer<K, X>>;

    fn layer(&self, inner: S) -> Self::Service {
        Limited { inner, layer: self.clone() }
    }
}

impl<B, A, S, K, X> Service<Request<B>> for Limited<S, HttpLimitLayer<K, X>>
where
    S: Service<Request<B>, Response = Response<A>> + Clone,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    A: Default + 'static,
    K: Hash + Eq + Clone,
    X: KeyOf<Request<B>, Key = K>,
{
    type Response = Response<A>;
    type Error = S::Error;
    type Future = BoxFuture<Response<A>, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    /// Calls the very instance that was ready, or drops it.
    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let Some(key) = self.layer.key_of.key_of(&request) else {
            self.renew();
            let status = self.layer.without_key;
            return Box::pin(async move { Ok(empty(status)) });
        };
        let quotas = self.layer.limiter.quotas();
        match self.layer.limiter.check(&key) {
            Ok(admitted) => {
                let standing = *admitted.standing();
                request.extensions_mut().insert(standing);
                let call = self.inner.call(request);
                Box::pin(async move {
                    let mut response = call.await?;
                    tell(response.headers_mut(), &quotas, &standing);
                    Ok(response)
                })
            }
            Err(rejected) => {
                self.renew();
                Box::pin(async move { Ok(too_many_requests(&quotas, &rejected)) })
            }
        }
    }
}

fn empty<A: Default>(status: StatusCode) -> Response<A> {
    let mut response = Response::new(A::default());
    *response.status_mut() = status;
    response
}

fn too_many_requests<A: Default>(quotas: &[Quota], rejected: &Rejected) -> Response<A> {
    let mut response = empty(StatusCode::TOO_MANY_REQUESTS);
    let headers = response.headers_mut();
    if let Some(seconds) = rejected.retry_after_secs() {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    tell(headers, quotas, rejected.standing());
    response
}

/// Appends the fields: both are lists, to which each limiter on the way adds its own.
fn tell(headers: &mut HeaderMap, quotas: &[Quota], standing: &Standing) {
    for (name, text) in
        [(RATE_LIMIT_POLICY, policy_field(quotas)), (RATE_LIMIT, standing_field(quotas, standing))]
    {
        // A limiter's quotas have names of printable ASCII only.
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.append(name, value);
        }
    }
}
