//! Entries of a queue's table, version 1. All integers are little-endian.
//!
//! A record of the log: version (1 byte), kind of the key (1), whether a value follows (1), the
//! fields of the key, the value up to the end. A name is its length (2) and its UTF-8 bytes.
//!
//! | kind | key | value |
//! |---|---|---|
//! | 1 counters | | next number of a log (4), next producer id (8) |
//! | 2 topic | name | first partition number (4), partitions (4), bytes kept (8), ms kept (8), ms of lag (8) and of tombstones (8) |
//! | 3 group | name | generation (4), when it was last used, in ms since the UNIX epoch, to about an hour (8; may be missing) |
//! | 4 offset | group, partition number (4) | offset of the next record (8) |
//! | 5 transactional id | name | producer id (8), epoch (2), transactions committed (8) |
//! | 6 side log | name | number of the log (4) |
//! | 7 last deleted | | highest generation of a group that was deleted (4) |

use std::ops::Range;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};

use crate::config::Retention;

const VERSION: u8 = 1;
/// The longest name, as in Kafka, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 249;

/// What an entry is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    Counters,
    Topic(String),
    Group(String),
    /// The number is the one of the partition, which no other partition ever has.
    Offset(String, u32),
    Transactional(String),
    SideLog(String),
    LastDeleted,
}

impl Key {
    /// Behind the offsets of a group, and before those of the next one.
    pub(crate) fn behind_offsets(group: &str) -> Self {
        Self::Offset(format!("{group}\0"), 0)
    }

    /// Bytes that a change takes in a batch of the journal, but for its value.
    pub(crate) fn len_bytes(&self) -> usize {
        let name = match self {
            Self::Counters | Self::LastDeleted => 0,
            Self::Topic(name) | Self::Group(name) | Self::Offset(name, _) => name.len(),
            Self::Transactional(name) | Self::SideLog(name) => name.len(),
        };
        13 + name
    }
}

/// A new value of a key; `None` removes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) key: Key,
    pub(crate) value: Option<Bytes>,
}

impl Change {
    pub(crate) fn put(key: Key, value: &impl Value) -> Self {
        let mut out = Vec::with_capacity(32);
        value.put(&mut out);
        Self { key, value: Some(out.into()) }
    }

    pub(crate) fn remove(key: Key) -> Self {
        Self { key, value: None }
    }

    /// Bytes that it takes in a batch of the journal.
    pub(crate) fn len_bytes(&self) -> usize {
        self.key.len_bytes() + self.value.as_ref().map_or(0, Bytes::len)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        let (kind, name, number) = match &self.key {
            Key::Counters => (1, None, None),
            Key::Topic(name) => (2, Some(name), None),
            Key::Group(name) => (3, Some(name), None),
            Key::Offset(group, number) => (4, Some(group), Some(*number)),
            Key::Transactional(name) => (5, Some(name), None),
            Key::SideLog(name) => (6, Some(name), None),
            Key::LastDeleted => (7, None, None),
        };
        out.extend_from_slice(&[VERSION, kind, u8::from(self.value.is_some())]);
        if let Some(name) = name {
            out.put_u16_le(name.len() as u16);
            out.extend_from_slice(name.as_bytes());
        }
        if let Some(number) = number {
            out.put_u32_le(number);
        }
        out.extend_from_slice(self.value.as_deref().unwrap_or_default());
        out
    }

    pub(crate) fn decode(mut input: Bytes) -> Result<Self, &'static str> {
        const CUT_OFF: &str = "the entry is cut off";
        if input.remaining() < 3 {
            return Err(CUT_OFF);
        }
        if input.get_u8() != VERSION {
            return Err("the entry has a version that this build does not know");
        }
        let (kind, has_value) = (input.get_u8(), input.get_u8());
        let mut name = || {
            let bytes = usize::from(input.try_get_u16_le().map_err(|_| CUT_OFF)?);
            if bytes > input.remaining() {
                return Err(CUT_OFF);
            }
            let name = input.split_to(bytes);
            String::from_utf8(name.into()).map_err(|_| "a name is not UTF-8")
        };
        let key = match kind {
            1 => Key::Counters,
            2 => Key::Topic(name()?),
            3 => Key::Group(name()?),
            4 => {
                let group = name()?;
                Key::Offset(group, input.try_get_u32_le().map_err(|_| CUT_OFF)?)
            }
            5 => Key::Transactional(name()?),
            6 => Key::SideLog(name()?),
            7 => Key::LastDeleted,
            _ => return Err("the entry has a kind that this build does not know"),
        };
        let is_valid = match (&key, has_value) {
            (_, 0) => input.is_empty(),
            (Key::Counters, 1) => Counters::read(&input).is_some(),
            (Key::Topic(_), 1) => TopicEntry::read(&input).is_some(),
            (Key::Offset(..), 1) => u64::read(&input).is_some(),
            (Key::Transactional(_), 1) => TransactionalEntry::read(&input).is_some(),
            (Key::Group(_), 1) => GroupEntry::read(&input).is_some(),
            (Key::SideLog(_) | Key::LastDeleted, 1) => u32::read(&input).is_some(),
            _ => false,
        };
        let value = (has_value == 1).then_some(input);
        if is_valid { Ok(Self { key, value }) } else { Err("the value is none of its key") }
    }
}

/// A value of the table.
pub(crate) trait Value: Sized {
    fn put(&self, out: &mut Vec<u8>);
    /// `None` unless `bytes` is exactly one value.
    fn read(bytes: &[u8]) -> Option<Self>;
}

macro_rules! value {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) struct $name {
            $($(#[$field_doc])* pub(crate) $field: $type,)*
        }

        impl Value for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $(out.extend_from_slice(&self.$field.to_le_bytes());)*
            }

            fn read(mut bytes: &[u8]) -> Option<Self> {
                $(let $field = <$type>::from_le_bytes(*take(&mut bytes)?);)*
                bytes.is_empty().then_some(Self { $($field,)* })
            }
        }
    )*};
}

fn take<'a, const N: usize>(bytes: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(taken)
}

value! {
    /// What is given once and never again.
    Counters {
        /// Number of the next partition or side log. Invariant: at least 1, 0 is the table's log.
        next_number: u32,
        next_producer: i64,
    }
    TopicEntry {
        first_number: u32,
        partitions: u32,
        /// `u64::MAX` for no limit.
        max_bytes: u64,
        /// `u64::MAX` for no limit.
        max_age_ms: u64,
        /// `u64::MAX` for no compaction.
        min_lag_ms: u64,
        min_tombstone_age_ms: u64,
    }
    TransactionalEntry {
        producer_id: i64,
        epoch: i16,
        /// Transactions that have been committed.
        committed: u64,
    }
}

/// A group that there has been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupEntry {
    /// 0 while it has had no members.
    pub(crate) generation: u32,
    /// 0: not known.
    pub(crate) used_at_ms: u64,
}

impl Value for GroupEntry {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.used_at_ms.to_le_bytes());
    }

    fn read(mut bytes: &[u8]) -> Option<Self> {
        let generation = u32::from_le_bytes(*take(&mut bytes)?);
        let used_at_ms = if bytes.is_empty() { 0 } else { u64::read(bytes)? };
        Some(Self { generation, used_at_ms })
    }
}

impl TopicEntry {
    /// The numbers of its partitions.
    pub(crate) fn numbers(&self) -> Range<u32> {
        self.first_number..self.first_number.saturating_add(self.partitions)
    }

    /// Bytes and ms that an entry has for a retention.
    pub(crate) fn limits(retention: Retention) -> (u64, u64) {
        let ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        (retention.max_bytes.unwrap_or(u64::MAX), retention.max_age.map_or(u64::MAX, ms))
    }

    pub(crate) fn retention(&self) -> Retention {
        let limit = |limit: u64| (limit != u64::MAX).then_some(limit);
        let max_age = limit(self.max_age_ms).map(Duration::from_millis);
        Retention { max_bytes: limit(self.max_bytes), max_age }
    }
}

impl Counters {
    pub(crate) const FIRST: Self = Self { next_number: 1, next_producer: 1 };
}

macro_rules! plain {
    ($($type:ty)*) => {$(
        impl Value for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn read(bytes: &[u8]) -> Option<Self> {
                Some(Self::from_le_bytes(bytes.try_into().ok()?))
            }
        }
    )*};
}

plain! { u32 u64 }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_these_bytes() {
        // Without the time, as it was once written.
        let old = Change::put(Key::Group("ab".into()), &7_u32);
        assert_eq!(old.encode(), [1, 3, 1, 2, 0, b'a', b'b', 7, 0, 0, 0]);
        assert_eq!(Change::decode(old.encode().into()), Ok(old));
        let entry = GroupEntry { generation: 7, used_at_ms: 0x0102 };
        let change = Change::put(Key::Group("ab".into()), &entry);
        assert_eq!(change.encode()[7..], [7, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        let offset = Change::put(Key::Offset("g".into(), 0x0102_0304), &9_u64);
        assert_eq!(offset.encode(), [1, 4, 1, 1, 0, b'g', 4, 3, 2, 1, 9, 0, 0, 0, 0, 0, 0, 0]);
        let topic = TopicEntry {
            first_number: 1,
            partitions: 2,
            max_bytes: 3,
            max_age_ms: 4,
            min_lag_ms: 5,
            min_tombstone_age_ms: 6,
        };
        let entry = TransactionalEntry { producer_id: 5, epoch: 6, committed: 7 };
        for change in [
            change,
            offset,
            Change::put(Key::Counters, &Counters::FIRST),
            Change::put(Key::Topic("orders".into()), &topic),
            Change::put(Key::Transactional("t".into()), &entry),
            Change::put(Key::SideLog("s".into()), &8_u32),
            Change::put(Key::LastDeleted, &9_u32),
            Change::remove(Key::Topic("orders".into())),
        ] {
            let bytes = change.encode();
            assert!(bytes.len() + 4 <= change.len_bytes());
            assert_eq!(Change::decode(bytes.clone().into()), Ok(change));
            for cut in 0..bytes.len() {
                let found = Change::decode(Bytes::copy_from_slice(&bytes[..cut]));
                // A group without its time.
                let is_old = bytes[1] == 3 && cut == bytes.len() - 8;
                assert_eq!(found.is_ok(), is_old, "{found:?}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert!(Change::decode(longer.into()).is_err());
        }
        assert!(Change::decode(Bytes::from_static(&[2, 1, 0])).is_err());
        assert!(Change::decode(Bytes::from_static(&[1, 9, 0])).is_err());
    }
}
