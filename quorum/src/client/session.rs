//! Sessions: what one client has seen, whichever replicas answer it.

use bytes::Bytes;

use super::{SessionToken, Table, TableError};
use crate::table::{Level, OperationError, Value};
use crate::version::VersionVector;

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
    /// Invariant: `seen` holds at most so many keys, and `max_keys <= SessionToken::MAX_KEYS`.
    max_keys: usize,
    seen: SessionToken,
}

impl Session {
    /// A session that has seen nothing and remembers up to `max_keys` keys, at most
    /// [`SessionToken::MAX_KEYS`].
    pub fn new(table: &Table, max_keys: usize) -> Self {
        let max_keys = max_keys.min(SessionToken::MAX_KEYS);
        Self { table: table.clone(), max_keys, seen: SessionToken::new() }
    }

    /// The context of what the session has seen of a key.
    pub fn seen(&self, key: &[u8]) -> VersionVector {
        self.seen.seen(key)
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

    /// What the session has seen, for another session of the same table.
    pub fn token(&self) -> &SessionToken {
        &self.seen
    }

    /// Adds what another session of the same table has seen.
    ///
    /// # Errors
    /// [`SessionError::Full`]: the session has no room for the token's keys, and has seen what it
    /// had.
    pub fn add_token(&mut self, token: &SessionToken) -> Result<(), SessionError> {
        if self.seen.len_with(token) > self.max_keys {
            return Err(SessionError::Full { max: self.max_keys });
        }
        self.seen.add_all(token);
        Ok(())
    }

    fn room_for(&self, key: Bytes) -> Result<Bytes, SessionError> {
        if self.seen.len() >= self.max_keys && !self.seen.has(&key) {
            return Err(SessionError::Full { max: self.max_keys });
        }
        Ok(key)
    }

    fn saw(&mut self, key: Bytes, value: Value) -> Value {
        self.seen.add(key, value.context());
        value
    }
}
