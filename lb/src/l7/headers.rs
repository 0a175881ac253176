//! What a proxy changes in the heads that it forwards.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::validate::RequestError;
use crate::l4::AddressRange;

/// Headers that are for one connection, whether or not `Connection` lists them (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// Headers that frame or address a message. A `Connection` header that lists one of them wants the
/// next hop to read the message differently; the request is rejected.
const NOT_LISTABLE: [HeaderName; 5] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::AUTHORIZATION,
    header::COOKIE,
];
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// What tells about the client, and is believed from trusted proxies only.
const FORWARDED: [HeaderName; 4] =
    [X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST, header::FORWARDED];

/// Whether a server that passes headers on as variables, as CGI, WSGI and Rack do, would take
/// `name` for one of [`FORWARDED`]: `-` and `_` are the same to it.
fn is_alias_of_forwarded(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.contains('_')
        && FORWARDED.iter().any(|known| {
            let known = known.as_str();
            let is_same = |(a, b): (u8, u8)| a == b || (a == b'_' && b == b'-');
            known.len() == name.len() && name.bytes().zip(known.bytes()).all(is_same)
        })
}

/// The options that `Connection` lists, such as `close` or the name of a header.
fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(header::CONNECTION).iter();
    let options = lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
    options.map(str::trim).filter(|option| !option.is_empty())
}

/// Whether `Connection` lists `option`.
pub(super) fn has_connection_option(headers: &HeaderMap, option: &str) -> bool {
    connection_options(headers).any(|found| found.eq_ignore_ascii_case(option))
}

/// Removes the headers that are for one connection: those that `Connection` lists, and the known
/// ones. Trailers are told apart by the caller.
///
/// # Errors
/// `Connection` lists a header that every hop needs.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) -> Result<(), RequestError> {
    // Most heads have none of them: one pass over the names costs less than a search for each.
    if !headers.keys().any(|name| HOP_BY_HOP.contains(name)) {
        return Ok(());
    }
    if headers.contains_key(header::CONNECTION) {
        // `close` names no header, and the other two are removed anyway.
        let is_plain = |option: &str| {
            ["close", "keep-alive", "upgrade"]
                .iter()
                .any(|plain| plain.eq_ignore_ascii_case(option))
        };
        let options = connection_options(headers).filter(|option| !is_plain(option));
        let listed: Vec<HeaderName> = options.filter_map(|option| option.parse().ok()).collect();
        if listed.iter().any(|name| NOT_LISTABLE.contains(name)) {
            return Err(RequestError::Connection);
        }
        for name in listed {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    Ok(())
}

/// Makes one line of the cookies that a client of HTTP/2 split over several. Before HTTP/1, where
/// servers read one line or join several by commas, this is required (RFC 9113 §8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    let mut lines = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (lines.next(), lines.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for line in std::iter::once(second).chain(lines) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(line.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, value);
    }
}

/// Which headers tell backends about the client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ForwardedConfig {
    /// Proxies whose own `X-Forwarded-*` and `Forwarded` headers are believed and extended. From
    /// all others these headers are replaced. Default empty. The same names with `_` for `-`, which
    /// CGI, WSGI and Rack do not tell apart, are removed whoever sends them.
    pub trusted: Vec<AddressRange>,
    /// Sends `X-Forwarded-For`, `X-Forwarded-Proto` and `X-Forwarded-Host`. Default true.
    pub x_forwarded: bool,
    /// Sends `Forwarded` (RFC 7239). Default false.
    pub forwarded: bool,
}

impl Default for ForwardedConfig {
    fn default() -> Self {
        Self { trusted: Vec::new(), x_forwarded: true, forwarded: false }
    }
}

/// The connection that a request came over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hop<'a> {
    pub(super) peer: SocketAddr,
    /// `peer` without the port, as text.
    pub(super) peer_address: &'a HeaderValue,
    pub(super) is_tls: bool,
    pub(super) host: &'a str,
}

impl ForwardedConfig {
    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|range| range.contains(address))
    }

    /// The client: the last address of `X-Forwarded-For` that is no trusted proxy, if the peer is
    /// one; else the peer.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer;
        let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
        let hops = lines.flat_map(|line| line.to_str().unwrap_or("?").rsplit(','));
        for hop in hops {
            // The hop that named this address is not believed, or it is no address.
            let (true, Ok(before)) = (self.trusts(client), hop.trim().parse()) else { break };
            client = before;
        }
        client
    }

    pub(super) fn apply(&self, hop: Hop<'_>, headers: &mut HeaderMap) {
        let peer = hop.peer.ip();
        let is_trusted = self.trusts(peer);
        let is_doubtful = |name: &HeaderName| {
            (!is_trusted && FORWARDED.contains(name)) || is_alias_of_forwarded(name)
        };
        if headers.keys().any(is_doubtful) {
            let doubtful: Vec<HeaderName> =
                headers.keys().filter(|name| is_doubtful(name)).cloned().collect();
            for name in doubtful {
                headers.remove(name);
            }
        }
        let scheme = if hop.is_tls { "https" } else { "http" };
        if self.x_forwarded {
            extend(headers, X_FORWARDED_FOR, hop.peer_address);
            if !headers.contains_key(X_FORWARDED_PROTO) {
                headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
            }
            if !headers.contains_key(X_FORWARDED_HOST)
                && let Some(host) = host_value(headers, hop.host)
            {
                headers.insert(X_FORWARDED_HOST, host);
            }
        }
        if self.forwarded {
            let mut element = match peer {
                IpAddr::V4(address) => format!("for={address}"),
                IpAddr::V6(address) => format!("for=\"[{address}]\""),
            };
            // The host passed the validation: it has no quote and no backslash.
            let _ = write!(element, ";host=\"{}\";proto={scheme}", hop.host);
            if let Ok(element) = HeaderValue::try_from(element) {
                extend(headers, header::FORWARDED, &element);
            }
        }
    }
}

/// The host as the value of a header. That of `Host` shares the bytes that were received.
pub(super) fn host_value(headers: &HeaderMap, host: &str) -> Option<HeaderValue> {
    let sent = headers.get(header::HOST).filter(|sent| sent.as_bytes() == host.as_bytes());
    sent.cloned().or_else(|| HeaderValue::from_str(host).ok())
}

/// Appends `element` to the list in the header `name`, as one line.
fn extend(headers: &mut HeaderMap, name: HeaderName, element: &HeaderValue) {
    if !headers.contains_key(&name) {
        headers.insert(name, element.clone());
        return;
    }
    let mut list = Vec::new();
    for line in headers.get_all(&name) {
        list.extend_from_slice(line.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(element.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&list) {
        headers.insert(name, value);
    }
}

/// Changes to the headers of a message, in this order: remove, set, append.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeaderChanges {
    /// Headers that are removed.
    pub remove: Vec<HeaderName>,
    /// Headers that replace those of the same name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Headers that are added to those of the same name.
    pub append: Vec<(HeaderName, HeaderValue)>,
}

impl HeaderChanges {
    /// Makes the changes.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.append {
            headers.append(name, value.clone());
        }
    }
}

/// What a route changes. Headers that belong to one connection, and `Content-Length`, are the
/// proxy's own: changes to them have no effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rewrite {
    /// Replaces the beginning of the path: (`/v1`, ``) turns `/v1/users` into `/users`.
    pub path_prefix: Option<(String, String)>,
    /// The `Host` that backends see. `None`: the client's.
    pub host: Option<HeaderValue>,
    /// Changes to the request's headers.
    pub request: HeaderChanges,
    /// Changes to the response's headers.
    pub response: HeaderChanges,
}

impl Rewrite {
    /// The path and query for the backend; `None` if nothing changes.
    pub fn path(&self, path_and_query: &str) -> Option<String> {
        let (prefix, replacement) = self.path_prefix.as_ref()?;
        let rest = path_and_query.strip_prefix(&**prefix)?;
        let path = format!("{}{rest}", replacement.trim_end_matches('/'));
        Some(if path.starts_with('/') { path } else { format!("/{path}") })
    }
}
