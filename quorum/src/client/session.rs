//! Sessions: what one client has seen, whichever replicas answer it.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Table, TableError};
use crate::table::{Level, OperationError, Value};
use crate::version::VersionVector;
use crate::version::codec::{self, DecodeError, Limits};
use crate::wire::MAX_KEY_BYTES;

/// Why an operation of a session failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The operation failed.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The session remembers as many keys as it may. Nothing was sent. Forget keys, or begin
    /// another session.
    #[error("the session remembers {max} keys, and no more")]
    Full {
        /// How many it may remember.
        max: usize,
    },
}

/// What one client has seen of each key, so that at any level it reads its own writes, its reads
/// never go back, and its writes follow what it has read. The session's token can be passed on:
/// who reads with it sees no less.
///
/// Guarantees hold per key. A read that no replica can answer yet fails with
/// [`OperationError::Behind`], and does not go back. When every replica answers and none has seen
/// as much, the key was deleted and its tombstone collected: the session sees it as it is then.
#[derive(Clone, Debug)]
pub struct Session {
    table: Table,
    max_keys: usize,
    seen: BTreeMap<Bytes, VersionVector>,
}

impl Session {
    /// How many keys a token may hold.
    pub const MAX_KEYS: usize = 100_000;

    /// A session that has seen nothing and remembers up to `max_keys` keys, at most
    /// [`Session::MAX_KEYS`].
    pub fn new(table: &Table, max_keys: usize) -> Self {
        let max_keys = max_keys.min(Self::MAX_KEYS);
        Self { table: table.clone(), max_keys, seen: BTreeMap::new() }
    }

    /// The context of what the session has seen of a key.
    pub fn seen(&self, key: &[u8]) -> VersionVector {
        self.seen.get(key).cloned().unwrap_or_default()
    }

    /// Reads a key at a level.
    ///
    /// # Errors
    /// [`SessionError`].
    ///
    /// # Cancel safety
    /// Dropping the future ends the read; the session has seen what it had.
    pub async fn get_at(
        &mut self,
        key: impl Into<Bytes>,
        level: Level,
    ) -> Result<Value, SessionError> {
        let key = self.room_for(key.into())?;
        let value = match self.table.get_at(key.clone(), level, &self.seen(&key)).await {
            Err(behind @ TableError::Failed(OperationError::Behind)) => {
                // Its tombstone may have been collected: no replica will ever have seen as much.
                let none = VersionVector::new();
                let all = self.table.get_at(key.clone(), Level::All, &none).await;
                let value = all.map_err(|_| behind)?;
                self.seen.remove(&key);
                value
            }
            result => result?,
        };
        Ok(self.saw(key, value))
    }

    /// Reads a key at the table's level.
    ///
    /// # Errors
    /// [`SessionError`].
    ///
    /// # Cancel safety
    /// As [`Session::get_at`].
    pub async fn get(&mut self, key: impl Into<Bytes>) -> Result<Value, SessionError> {
        let level = self.table.config().read;
        self.get_at(key, level).await
    }

    /// Writes a value that replaces what the session has seen of the key.
    ///
    /// # Errors
    /// [`SessionError`].
    ///
    /// # Cancel safety
    /// The write may go on, and the session has not seen it.
    pub async fn put(
        &mut self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Value, SessionError> {
        let key = self.room_for(key.into())?;
        let state = self.table.put(key.clone(), &self.seen(&key), value).await?;
        Ok(self.saw(key, state))
    }

    /// Deletes what the session has seen of the key.
    ///
    /// # Errors
    /// [`SessionError`].
    ///
    /// # Cancel safety
    /// As [`Session::put`].
    pub async fn delete(&mut self, key: impl Into<Bytes>) -> Result<Value, SessionError> {
        let key = self.room_for(key.into())?;
        let state = self.table.delete(key.clone(), &self.seen(&key)).await?;
        Ok(self.saw(key, state))
    }

    /// Forgets a key: the session's guarantees no longer hold for it.
    pub fn forget(&mut self, key: &[u8]) {
        self.seen.remove(key);
    }

    /// What the session has seen, for another client: version u8 = 1, reserved 3 bytes, count u32,
    /// then a key with its length u16 and a context with its length u32 each.
    pub fn token(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u32_le(1);
        out.put_u32_le(self.seen.len() as u32);
        for (key, seen) in &self.seen {
            out.put_u16_le(key.len() as u16);
            out.put_slice(key);
            let seen = codec::encode_context(seen);
            out.put_u32_le(seen.len() as u32);
            out.put_slice(&seen);
        }
        out.freeze()
    }

    /// Adds what another session of the same table has seen.
    ///
    /// # Errors
    /// [`DecodeError`]: it is no token, or the session has no room for its keys. The session has
    /// seen what it had.
    pub fn add_token(&mut self, mut token: Bytes) -> Result<(), DecodeError> {
        let take = |token: &mut Bytes, len: usize| {
            if len > token.len() { Err(DecodeError::Truncated) } else { Ok(token.split_to(len)) }
        };
        let version = take(&mut token, 4)?;
        if version[..] != [1, 0, 0, 0] {
            return Err(DecodeError::Version(version[0]));
        }
        let mut seen = self.seen.clone();
        for _ in 0..token.try_get_u32_le().map_err(|_| DecodeError::Truncated)? {
            let len = token.try_get_u16_le().map_err(|_| DecodeError::Truncated)?;
            let key = take(&mut token, usize::from(len))?;
            let len = token.try_get_u32_le().map_err(|_| DecodeError::Truncated)?;
            let context = take(&mut token, len as usize)?;
            if key.len() > MAX_KEY_BYTES {
                return Err(DecodeError::AboveLimit("length of a key"));
            }
            let context = codec::decode_context(context, &Limits::default())?;
            seen.entry(key).or_default().merge(&context);
            if seen.len() > self.max_keys {
                return Err(DecodeError::AboveLimit("count of keys"));
            }
        }
        codec::nothing_more(&token)?;
        self.seen = seen;
        Ok(())
    }

    fn room_for(&self, key: Bytes) -> Result<Bytes, SessionError> {
        if self.seen.len() >= self.max_keys && !self.seen.contains_key(&key) {
            return Err(SessionError::Full { max: self.max_keys });
        }
        Ok(key)
    }

    fn saw(&mut self, key: Bytes, value: Value) -> Value {
        self.seen.entry(key).or_default().merge(value.context());
        value
    }
}
