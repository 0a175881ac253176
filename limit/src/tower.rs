//! A keyed limiter as a `tower` layer, and keys out of HTTP requests.

use std::fmt;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderName, Request};
use tower_layer::Layer;
use tower_service::Service;

use crate::error::Denied;
use crate::keyed::Keyed;

/// Who a request is counted for.
pub trait KeyOf<R>: Send + Sync {
    /// What it finds.
    type Key;

    /// The key, or `None` if the request has none.
    fn key_of(&self, request: &R) -> Option<Self::Key>;
}

impl<R, K, F> KeyOf<R> for F
where
    F: Fn(&R) -> Option<K> + Send + Sync,
{
    type Key = K;

    fn key_of(&self, request: &R) -> Option<K> {
        self(request)
    }
}

/// The address of the connection's other end, put into a request's extensions by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// The client's address as the connection has it: the [`Peer`] among the request's extensions.
#[derive(Clone, Copy, Debug, Default)]
pub struct PeerAddress;

impl<B> KeyOf<Request<B>> for PeerAddress {
    type Key = IpAddr;

    fn key_of(&self, request: &Request<B>) -> Option<IpAddr> {
        request.extensions().get::<Peer>().map(|peer| network(peer.0.ip()))
    }
}

/// The client's address as proxies of your own report it in `X-Forwarded-For`.
///
/// Each proxy appends the address that it saw. With `trusted_hops` proxies of yours between the
/// client and this server the right one is that many entries from the end; what stands before it
/// the client may have made up, and is not read. Fewer entries than hops: the request did not come
/// by your proxies, and has no key.
#[derive(Clone, Copy, Debug)]
pub struct ForwardedFor {
    /// Proxies of your own on the way. 0: the header is not read, and the peer is the client.
    pub trusted_hops: usize,
}

impl<B> KeyOf<Request<B>> for ForwardedFor {
    type Key = IpAddr;

    fn key_of(&self, request: &Request<B>) -> Option<IpAddr> {
        let Some(skipped) = self.trusted_hops.checked_sub(1) else {
            return PeerAddress.key_of(request);
        };
        let lines = request.headers().get_all("x-forwarded-for");
        let entry = lines
            .iter()
            .rev()
            .flat_map(|line| line.to_str().unwrap_or("").rsplit(','))
            .nth(skipped)?
            .trim();
        let ip = entry.parse::<SocketAddr>().map(|address| address.ip()).or_else(|_| entry.parse());
        ip.ok().map(network)
    }
}

/// One client has a whole /64 of IPv6: it is the key, not the single address.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) & !u128::from(u64::MAX)).into()),
        ip => ip,
    }
}

/// The value of a header, say an API key.
#[derive(Clone, Debug)]
pub struct Header(pub HeaderName);

impl<B> KeyOf<Request<B>> for Header {
    type Key = String;

    fn key_of(&self, request: &Request<B>) -> Option<String> {
        request.headers().get(&self.0)?.to_str().ok().map(Into::into)
    }
}

/// Why a limited service did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LimitError<E> {
    /// The limit is reached. The inner service did not see the request.
    #[error(transparent)]
    Denied(Denied),
    /// The request has no key. The inner service did not see it.
    #[error("the request has nothing to be counted by")]
    NoKey,
    /// The inner service failed.
    #[error(transparent)]
    Inner(E),
}

/// Puts a keyed limiter before a service.
///
/// A denied request is answered with an error at once: it does not hold the service back for
/// others, as waiting in `poll_ready` would.
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

/// A service behind a limiter. See [`LimitLayer`].
#[derive(Clone, Debug)]
pub struct Limited<S, L> {
    inner: S,
    layer: L,
}

impl<R, S, K, X> Service<R> for Limited<S, LimitLayer<K, X>>
where
    S: Service<R>,
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

    /// Calls the very instance that was ready, or not at all.
    fn call(&mut self, request: R) -> Self::Future {
        let checked = match self.layer.key_of.key_of(&request) {
            Some(key) => self.layer.limiter.check(&key).map_err(LimitError::Denied),
            None => Err(LimitError::NoKey),
        };
        let call = checked.map(|_| self.inner.call(request));
        Box::pin(async move { call?.await.map_err(LimitError::Inner) })
    }
}

type BoxFuture<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;
