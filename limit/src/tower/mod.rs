//! A keyed limiter as a `tower` layer, and keys out of HTTP requests.
//!
//! [`LimitLayer`] fits any service and rejects by an error. [`HttpLimitLayer`] fits services that
//! answer HTTP, rejects by a response of status 429, and puts the `RateLimit` fields into all
//! responses: the one to put on an axum route.

mod http_layer;
mod layer;

use std::net::{IpAddr, SocketAddr};

use http::{HeaderName, Request};

pub use http_layer::HttpLimitLayer;
pub use layer::{LimitError, LimitLayer, Limited};

/// Who a request is counted for. Called without a lock; a panic passes through to the caller of the
/// service.
pub trait KeyOf<R>: Send + Sync {
    /// Type of the keys.
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
        request.extensions().get::<Peer>().map(|peer| client_of(peer.0.ip()))
    }
}

/// The client's address as axum has it: the `ConnectInfo<SocketAddr>` among the request's
/// extensions, put there by `Router::into_make_service_with_connect_info::<SocketAddr>()`.
#[cfg(feature = "axum")]
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectedAddress;

#[cfg(feature = "axum")]
impl<B> KeyOf<Request<B>> for ConnectedAddress {
    type Key = IpAddr;

    fn key_of(&self, request: &Request<B>) -> Option<IpAddr> {
        let info = request.extensions().get::<axum::extract::ConnectInfo<SocketAddr>>();
        info.map(|info| client_of(info.0.ip()))
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
            .flat_map(|line| line.as_bytes().rsplit(|&byte| byte == b','))
            .nth(skipped)?;
        let entry = std::str::from_utf8(entry).ok()?;
        address_in(entry.trim()).map(client_of)
    }
}

/// The address in an entry of `X-Forwarded-For`, as proxies write it: bare, with a port, or an IPv6
/// address in brackets with or without one.
fn address_in(entry: &str) -> Option<IpAddr> {
    let bare = entry.strip_prefix('[').and_then(|entry| entry.strip_suffix(']')).unwrap_or(entry);
    let with_port = |_| entry.parse::<SocketAddr>().map(|address| address.ip());
    bare.parse().or_else(with_port).ok()
}

/// The key for a client of this address: one client has a whole /64 of IPv6, so that network is the
/// key, not the single address; an IPv4 address mapped into IPv6 is that of IPv4.
pub fn client_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) & !u128::from(u64::MAX)).into()),
        ip @ IpAddr::V4(_) => ip,
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
