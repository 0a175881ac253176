//! What a request says about where it wants to go.

use std::net::IpAddr;

/// The facts of one request that a strategy may use. All are optional.
///
/// # Example
/// ```
/// use voussoir_lb::Context;
/// let ctx = Context::new().with_key(b"user:42").with_client("192.0.2.7".parse().unwrap());
/// assert_eq!(ctx.key, Some(&b"user:42"[..]));
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Context<'a> {
    /// The key of hashing strategies.
    pub key: Option<&'a [u8]>,
    /// The client's address, for [`IpHash`](crate::strategy::IpHash).
    pub client: Option<IpAddr>,
    /// The session token of an earlier answer ([`Endpoint::session`](crate::Endpoint::session)),
    /// taken from a cookie or a header. An unknown token is ignored.
    pub session: Option<&'a str>,
    /// [`Endpoint::id`](crate::Endpoint::id)s that must not be picked: those that this request has
    /// already failed at. They are skipped as full endpoints are.
    pub excluded: &'a [u64],
}

impl<'a> Context<'a> {
    /// A request about which nothing is known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the key of hashing strategies.
    pub fn with_key(mut self, key: &'a [u8]) -> Self {
        self.key = Some(key);
        self
    }

    /// Sets the client's address.
    pub fn with_client(mut self, client: IpAddr) -> Self {
        self.client = Some(client);
        self
    }

    /// Sets the session token.
    pub fn with_session(mut self, session: &'a str) -> Self {
        self.session = Some(session);
        self
    }

    /// Sets the ids of the endpoints that must not be picked.
    pub fn with_excluded(mut self, ids: &'a [u64]) -> Self {
        self.excluded = ids;
        self
    }

    #[inline]
    pub(crate) fn admits(&self, id: u64) -> bool {
        self.excluded.is_empty() || !self.excluded.contains(&id)
    }

    /// Takes the session token from a `Cookie` header: the first cookie called `name`.
    pub fn with_cookie(self, header: &'a str, name: &str) -> Self {
        let mut pairs = header.split(';').filter_map(|pair| pair.trim().split_once('='));
        match pairs.find(|(found, _)| *found == name) {
            Some((_, value)) => self.with_session(value.trim_matches('"')),
            None => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let session = |header| Context::new().with_cookie(header, "lb").session;
        assert_eq!(session("a=1; lb=abc; b=2"), Some("abc"));
        assert_eq!(session("xlb=1;lb=\"q\""), Some("q"));
        assert_eq!(session("lbx=1"), None);
        assert_eq!(session("lb"), None);
    }
}
