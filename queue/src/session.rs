//! What a session has written or read, and whether a group has come as far.

use std::collections::BTreeMap;
use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, timeout_at};

use crate::core::entry::{Key, Value};
use crate::core::table::Table;
use crate::error::TopicError;
use crate::queue::{Queue, TopicPartition};

/// The first byte of a queue's token: tokens of other crates and of other kinds begin with another.
const KIND: u8 = b'q';
/// The version of the token's form.
const VERSION: u8 = 1;
/// Bytes before the entries, and of an entry.
const HEAD_BYTES: usize = 4;
const ENTRY_BYTES: usize = 12;

/// How far a session has written or read in each partition. It travels with the client, as a cookie
/// or a header, from process to process of one queue.
///
/// A service that answers a write before its consumers have worked on it lets the client read its
/// own writes this way: [`Queue::wait_until_read`] waits until the group that keeps the view has
/// stored offsets behind those of the token.
///
/// # Bytes
/// `[b'q', 1, entries as u16]`, and for each entry `[number of the partition as u32, next offset as
/// u64]`, in ascending order of the numbers; all little-endian. No other partition ever has the
/// number, so the token of a topic that was deleted means nothing in the topic that follows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionToken {
    /// The partition's number, and the offset of the record behind the last one seen.
    next: BTreeMap<u32, u64>,
}

/// Bytes that are no token of this crate. Treat the session as one that has seen nothing, or
/// reject the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The first byte is that of another kind of token, or there is none.
    #[error("not a token of a queue")]
    Kind,
    /// A version of the token that this one does not know.
    #[error("token version {0}, this process knows 1")]
    Version(u8),
    /// Too few or too many bytes for its entries.
    #[error("token of {0} bytes, which is not the length of its entries")]
    Length(usize),
    /// The entries are not in ascending order.
    #[error("the entries of the token are not in order")]
    Order,
}

impl SessionToken {
    /// How many partitions a token may hold: the rest is not remembered.
    pub const MAX_PARTITIONS: usize = 1_024;

    /// The token of a session that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the session has seen nothing.
    pub fn is_empty(&self) -> bool {
        self.next.is_empty()
    }

    /// Adds what another token has seen, as far as there is room.
    pub fn merge(&mut self, other: &Self) {
        for (number, next) in &other.next {
            self.add(*number, *next);
        }
    }

    fn add(&mut self, number: u32, next: u64) {
        let has_room = self.next.len() < Self::MAX_PARTITIONS;
        match self.next.get_mut(&number) {
            Some(seen) => *seen = next.max(*seen),
            None if has_room => drop(self.next.insert(number, next)),
            None => {}
        }
    }

    /// The token's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + ENTRY_BYTES * self.next.len());
        bytes.extend([KIND, VERSION]);
        // At most `MAX_PARTITIONS`.
        bytes.extend((self.next.len() as u16).to_le_bytes());
        for (number, next) in &self.next {
            bytes.extend(number.to_le_bytes());
            bytes.extend(next.to_le_bytes());
        }
        bytes
    }

    /// The token of these bytes.
    ///
    /// # Errors
    /// [`TokenError`] if they are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, TokenError> {
        let length = Err(TokenError::Length(bytes.len()));
        let (count, entries) = match bytes {
            [KIND, VERSION, a, b, entries @ ..] => (u16::from_le_bytes([*a, *b]), entries),
            [KIND, VERSION, ..] | [KIND] => return length,
            [KIND, version, ..] => return Err(TokenError::Version(*version)),
            _ => return Err(TokenError::Kind),
        };
        let count = usize::from(count);
        if count > Self::MAX_PARTITIONS || entries.len() != count * ENTRY_BYTES {
            return length;
        }
        let mut next = BTreeMap::new();
        for entry in entries.chunks_exact(ENTRY_BYTES) {
            let (number, offset) = entry.split_at(4);
            let (Ok(number), Ok(offset)) = (number.try_into(), offset.try_into()) else {
                return length;
            };
            let number = u32::from_le_bytes(number);
            if next.last_key_value().is_some_and(|(last, _)| *last >= number) {
                return Err(TokenError::Order);
            }
            next.insert(number, u64::from_le_bytes(offset));
        }
        Ok(Self { next })
    }
}

impl Queue {
    /// Adds to a token that the session has written or read the record at `offset`.
    ///
    /// # Errors
    /// There is no such partition.
    pub fn add_to_token(
        &self,
        token: &mut SessionToken,
        partition: &TopicPartition,
        offset: u64,
    ) -> Result<(), TopicError> {
        let slot = self.topic(&partition.topic)?.slot(partition.partition)?;
        token.add(slot.number, offset.saturating_add(1));
        Ok(())
    }

    /// Whether a group has stored offsets behind all that the session has seen. Partitions that
    /// have been deleted do not count.
    ///
    /// What is stored has been worked on with [`Guarantee::AtLeastOnce`], and has only been read
    /// with [`Guarantee::AtMostOnce`].
    ///
    /// [`Guarantee::AtLeastOnce`]: crate::Guarantee::AtLeastOnce
    /// [`Guarantee::AtMostOnce`]: crate::Guarantee::AtMostOnce
    pub fn has_read(&self, group: &str, token: &SessionToken) -> bool {
        self.shared.writer.read(|table| has_read(table, group, token))
    }

    /// Waits until [`has_read`](Self::has_read), at most for `max_wait`. Returns whether it is so.
    ///
    /// # Cancel safety
    /// It only waits.
    pub async fn wait_until_read(
        &self,
        group: &str,
        token: &SessionToken,
        max_wait: Duration,
    ) -> bool {
        let mut watch = self.shared.writer.watch_group(group);
        let has_read = watch.changed.wait_for(|()| self.has_read(group, token));
        match Instant::now().checked_add(max_wait) {
            Some(deadline) => timeout_at(deadline, has_read).await.is_ok_and(|read| read.is_ok()),
            None => has_read.await.is_ok(),
        }
    }
}

fn has_read(table: &Table, group: &str, token: &SessionToken) -> bool {
    token.next.iter().all(|(number, next)| {
        let stored = table.get(&Key::Offset(group.to_owned(), *number));
        let stored = stored.and_then(|value| u64::read(value)).unwrap_or(0);
        stored >= *next || !table.has_partition(*number)
    })
}
