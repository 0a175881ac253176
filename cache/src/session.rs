//! Reads of a session, which never go back behind what the session has seen.

use std::borrow::Borrow;
use std::future::Future;
use std::hash::Hash;

use thiserror::Error;

use crate::cache::Cache;
use crate::error::LoadError;
use crate::flights::{Key, LoadFuture, Value};
use crate::lookup::Found;
use crate::source::Loaded;

/// The first byte of a cache's token: tokens of other crates and of other kinds begin with another.
const KIND: u8 = b'c';
/// The version of the token's form.
const VERSION: u8 = 1;

/// What a session has seen of a source: the largest position at which it has read or written. It
/// travels with the client, as a cookie or a header, from process to process.
///
/// Positions come from the source ([`Loaded::as_of`]) and must only grow: a log sequence number, an
/// applied index, a time of the last commit. Take a position for a token after a write has
/// committed ([`new`](Self::new)); reads raise the token themselves.
///
/// # Bytes
/// `[b'c', 1, position as u64 little-endian]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionToken {
    position: u64,
}

/// Bytes that are no token of this crate. Treat the session as one that has seen nothing, or
/// reject the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The first byte is that of another kind of token, or there is none.
    #[error("not a token of a cache")]
    Kind,
    /// A version of the token that this one does not know.
    #[error("token version {0}, this process knows 1")]
    Version(u8),
    /// Too few or too many bytes.
    #[error("token of {0} bytes, a cache's has 10")]
    Length(usize),
}

impl SessionToken {
    /// The token of a session that has seen the source up to this position. The default token has
    /// seen nothing.
    pub fn new(position: u64) -> Self {
        Self { position }
    }

    /// The position that the session has seen.
    pub fn position(self) -> u64 {
        self.position
    }

    /// Adds what another token has seen.
    pub fn merge(&mut self, other: Self) {
        self.position = self.position.max(other.position);
    }

    /// The token's bytes.
    pub fn encode(self) -> [u8; 10] {
        let mut bytes = [0; 10];
        (bytes[0], bytes[1]) = (KIND, VERSION);
        bytes[2..].copy_from_slice(&self.position.to_le_bytes());
        bytes
    }

    /// The token of these bytes.
    ///
    /// # Errors
    /// [`TokenError`] if they are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, TokenError> {
        match bytes {
            [KIND, VERSION, position @ ..] => {
                let position = position.try_into().map_err(|_| TokenError::Length(bytes.len()))?;
                Ok(Self { position: u64::from_le_bytes(position) })
            }
            [KIND, version, ..] => Err(TokenError::Version(*version)),
            [KIND] => Err(TokenError::Length(1)),
            _ => Err(TokenError::Kind),
        }
    }
}

/// A read that carries a session's token, see [`Cache::session`].
#[derive(Debug)]
#[must_use = "a session reads nothing by itself"]
pub struct Session<'a, K: Key, V: Value> {
    cache: &'a Cache<K, V>,
    token: &'a mut SessionToken,
}

impl<K: Key, V: Value> Cache<K, V> {
    /// Reads for a session. An entry that was read from the source before the token's position, or
    /// whose position is not known, is a miss; what is read raises the token. The entries of
    /// write-behind's backlog are newer than all others and always found.
    ///
    /// # Example
    /// ```
    /// use voussoir_cache::{Cache, Loaded, SessionToken};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cache: Cache<String, u64> = Cache::builder().build()?;
    /// let load = |_| async { Ok(Loaded::value(7).as_of(100)) };
    /// let mut token = SessionToken::decode(&SessionToken::new(90).encode())?;
    /// assert_eq!(cache.session(&mut token).get_or_load_with("a", load).await?, Some(7));
    /// assert_eq!(token.position(), 100);
    /// assert_eq!(cache.session(&mut SessionToken::new(101)).get("a"), None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn session<'a>(&'a self, token: &'a mut SessionToken) -> Session<'a, K, V> {
        Session { cache: self, token }
    }
}

impl<K: Key, V: Value> Session<'_, K, V> {
    /// As [`Cache::get`].
    pub fn get<Q>(mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        match self.find(key) {
            Found::Value(value) | Found::Old(value, _) => value,
            Found::IfError(_) | Found::Nothing => None,
        }
    }

    /// As [`Cache::get_or_load`].
    ///
    /// # Errors
    /// [`LoadError::Behind`] when the source itself has not reached the token's position; otherwise
    /// as [`Cache::get_or_load`].
    ///
    /// # Cancel safety
    /// As [`Cache::get_or_load`].
    pub async fn get_or_load<Q>(mut self, key: &Q) -> Result<Option<V>, LoadError>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let found = self.find(key);
        if let Found::Value(value) = found {
            return Ok(value);
        }
        let since = self.token.position;
        let seen = self.cache.resolve_from_source(key, found, since).await?;
        self.raise(seen.position);
        Ok(seen.value)
    }

    /// As [`Cache::get_or_load_with`].
    ///
    /// # Errors
    /// [`LoadError::Behind`] when what was loaded has not reached the token's position; otherwise
    /// as [`Cache::get_or_load_with`].
    ///
    /// # Cancel safety
    /// As [`Cache::get_or_load_with`].
    pub async fn get_or_load_with<Q, F, L>(
        mut self,
        key: &Q,
        load: F,
    ) -> Result<Option<V>, LoadError>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        F: Fn(K) -> L + Send + Sync + 'static,
        L: Future<Output = Result<Loaded<V>, LoadError>> + Send + 'static,
    {
        let found = self.find(key);
        if let Found::Value(value) = found {
            return Ok(value);
        }
        let since = self.token.position;
        let load = move |key: K| -> LoadFuture<V> { Box::pin(load(key)) };
        let seen = self.cache.resolve(key, found, since, load).await?;
        self.raise(seen.position);
        Ok(seen.value)
    }

    fn find<Q>(&mut self, key: &Q) -> Found<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (found, found_at) = self.cache.inner.find_since(key, self.token.position);
        if let Found::Value(_) | Found::Old(..) = found {
            self.raise(found_at);
        }
        found
    }

    fn raise(&mut self, position: Option<u64>) {
        self.token.merge(SessionToken::new(position.unwrap_or(0)));
    }
}
