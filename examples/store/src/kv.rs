//! The data: what the store holds, the commands that change it, and their bytes.
//!
//! **Change this file first** when you build your own service: everything else carries `Bytes`.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Keys are at most this long.
pub const KEY_BYTES_MAX: usize = 1024;
/// Values are at most this long; it keeps a command well under raft's entry limit.
pub const VALUE_BYTES_MAX: usize = 512 * 1024;

/// A value and the version that the last write gave it. Versions are log indexes: they only grow,
/// and a key that was deleted and written again never repeats one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    pub version: u64,
    pub value: Bytes,
}

/// When a write applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Always,
    /// Only where the key is absent.
    Absent,
    /// Only where the key has this version.
    Version(u64),
}

/// What goes through the replicated log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Put { key: Bytes, value: Bytes, condition: Condition },
    Delete { key: Bytes, condition: Condition },
}

/// What a command answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Done; `version` is the new version of the key, or the one that was deleted.
    Done { version: u64 },
    /// Nothing changed: the key is absent.
    Absent,
    /// Nothing changed: the key has this version.
    Conflict { version: u64 },
}

/// Bytes that are no command, answer or snapshot of this version.
#[derive(Debug, thiserror::Error)]
#[error("not a {what} that this version of the store can read")]
pub struct Malformed {
    what: &'static str,
}

/// All pairs, in order of their keys.
#[derive(Debug, Clone, Default)]
pub struct Kv {
    pairs: BTreeMap<Bytes, Versioned>,
}

impl Kv {
    pub fn get(&self, key: &[u8]) -> Option<&Versioned> {
        self.pairs.get(key)
    }

    /// The pairs whose keys start with `prefix` and come after `after`, at most `limit`.
    pub fn list(&self, prefix: &[u8], after: &[u8], limit: usize) -> Vec<(Bytes, Versioned)> {
        let from = if after >= prefix { Bound::Excluded(after) } else { Bound::Included(prefix) };
        self.pairs
            .range::<[u8], _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(limit)
            .map(|(key, versioned)| (key.clone(), versioned.clone()))
            .collect()
    }

    pub fn count(&self) -> usize {
        self.pairs.len()
    }

    /// Applies one command. `index` is its place in the log, the same on every node.
    ///
    /// This must depend on nothing but the state and the command: no clock, no randomness.
    pub fn apply(&mut self, index: u64, command: Command) -> Answer {
        match command {
            Command::Put { key, value, condition } => match self.refuses(&key, condition) {
                Some(refusal) => refusal,
                None => {
                    self.pairs.insert(key, Versioned { version: index, value });
                    Answer::Done { version: index }
                }
            },
            Command::Delete { key, condition } => match self.refuses(&key, condition) {
                Some(refusal) => refusal,
                None => self
                    .pairs
                    .remove(&key)
                    .map_or(Answer::Absent, |gone| Answer::Done { version: gone.version }),
            },
        }
    }

    fn refuses(&self, key: &[u8], condition: Condition) -> Option<Answer> {
        let version = self.pairs.get(key).map(|held| held.version);
        match (condition, version) {
            (Condition::Always, _) | (Condition::Absent, None) => None,
            (Condition::Version(wanted), Some(version)) if wanted == version => None,
            (_, Some(version)) => Some(Answer::Conflict { version }),
            (Condition::Version(_), None) => Some(Answer::Absent),
        }
    }

    /// The whole state as bytes: a version byte, then pair after pair.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(FORMAT);
        for (key, Versioned { version, value }) in &self.pairs {
            put_bytes(&mut out, key);
            out.put_u64_le(*version);
            put_bytes(&mut out, value);
        }
        out.freeze()
    }

    /// # Errors
    /// [`Malformed`] where the bytes are no snapshot of this version.
    pub fn decode(mut bytes: Bytes) -> Result<Self, Malformed> {
        let malformed = || Malformed { what: "snapshot" };
        if bytes.try_get_u8().ok() != Some(FORMAT) {
            return Err(malformed());
        }
        let mut pairs = BTreeMap::new();
        while bytes.has_remaining() {
            let key = take_bytes(&mut bytes).ok_or_else(malformed)?;
            let version = bytes.try_get_u64_le().map_err(|_| malformed())?;
            let value = take_bytes(&mut bytes).ok_or_else(malformed)?;
            pairs.insert(key, Versioned { version, value });
        }
        Ok(Self { pairs })
    }
}

/// The first byte of all that is stored: raise it when the layout changes.
const FORMAT: u8 = 1;

impl Command {
    pub fn encode(&self) -> Bytes {
        let (kind, key, value, condition) = match self {
            Self::Put { key, value, condition } => (1, key, Some(value), condition),
            Self::Delete { key, condition } => (2, key, None, condition),
        };
        let (rule, version) = match condition {
            Condition::Always => (0, 0),
            Condition::Absent => (1, 0),
            Condition::Version(version) => (2, *version),
        };
        let value_len = value.map_or(0, Bytes::len);
        let mut out = BytesMut::with_capacity(19 + key.len() + value_len);
        out.put_u8(FORMAT);
        out.put_u8(kind);
        out.put_u8(rule);
        out.put_u64_le(version);
        put_bytes(&mut out, key);
        if let Some(value) = value {
            put_bytes(&mut out, value);
        }
        out.freeze()
    }

    /// # Errors
    /// [`Malformed`] where the bytes are no command of this version.
    pub fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        Self::parse(bytes).ok_or(Malformed { what: "command" })
    }

    fn parse(mut bytes: Bytes) -> Option<Self> {
        if bytes.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let kind = bytes.try_get_u8().ok()?;
        let rule = bytes.try_get_u8().ok()?;
        let version = bytes.try_get_u64_le().ok()?;
        let condition = match rule {
            0 => Condition::Always,
            1 => Condition::Absent,
            2 => Condition::Version(version),
            _ => return None,
        };
        let key = take_bytes(&mut bytes)?;
        let command = match kind {
            1 => Self::Put { key, value: take_bytes(&mut bytes)?, condition },
            2 => Self::Delete { key, condition },
            _ => return None,
        };
        (!bytes.has_remaining()).then_some(command)
    }
}

impl Answer {
    pub fn encode(self) -> Bytes {
        let (kind, version) = match self {
            Self::Done { version } => (1, version),
            Self::Absent => (2, 0),
            Self::Conflict { version } => (3, version),
        };
        let mut out = BytesMut::with_capacity(9);
        out.put_u8(kind);
        out.put_u64_le(version);
        out.freeze()
    }

    /// # Errors
    /// [`Malformed`] where the bytes are no answer of this version.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let malformed = |_| Malformed { what: "answer" };
        let kind = bytes.try_get_u8().map_err(malformed)?;
        let version = bytes.try_get_u64_le().map_err(malformed)?;
        match kind {
            1 => Ok(Self::Done { version }),
            2 => Ok(Self::Absent),
            3 => Ok(Self::Conflict { version }),
            _ => Err(Malformed { what: "answer" }),
        }
    }
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(bytes.len() as u32);
    out.put_slice(bytes);
}

fn take_bytes(from: &mut Bytes) -> Option<Bytes> {
    let len = from.try_get_u32_le().ok()? as usize;
    (len <= from.remaining()).then(|| from.split_to(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str, value: &'static str, condition: Condition) -> Command {
        Command::Put { key: key.into(), value: value.into(), condition }
    }

    #[test]
    fn commands_answers_and_snapshots_survive_their_bytes() {
        let commands = [
            put("k", "v", Condition::Always),
            put("", "", Condition::Absent),
            Command::Delete { key: "k".into(), condition: Condition::Version(9) },
        ];
        for command in commands {
            let bytes = command.encode();
            assert_eq!(Command::decode(bytes.clone()).unwrap(), command);
            for cut in 0..bytes.len() {
                assert!(Command::decode(bytes.slice(..cut)).is_err(), "cut at {cut}");
            }
        }
        for answer in [Answer::Done { version: 3 }, Answer::Absent, Answer::Conflict { version: 4 }]
        {
            assert_eq!(Answer::decode(&answer.encode()).unwrap(), answer);
        }
        let mut kv = Kv::default();
        kv.apply(1, put("a", "1", Condition::Always));
        kv.apply(2, put("b", "2", Condition::Always));
        let again = Kv::decode(kv.encode()).unwrap();
        assert_eq!(again.pairs, kv.pairs);
        assert!(Kv::decode(kv.encode().slice(..9)).is_err());
    }

    #[test]
    fn conditions_hold() {
        let mut kv = Kv::default();
        assert_eq!(kv.apply(1, put("a", "1", Condition::Version(7))), Answer::Absent);
        assert_eq!(kv.apply(2, put("a", "1", Condition::Absent)), Answer::Done { version: 2 });
        assert_eq!(kv.apply(3, put("a", "2", Condition::Absent)), Answer::Conflict { version: 2 });
        assert_eq!(kv.apply(4, put("a", "2", Condition::Version(2))), Answer::Done { version: 4 });
        let stale = Command::Delete { key: "a".into(), condition: Condition::Version(2) };
        assert_eq!(kv.apply(5, stale), Answer::Conflict { version: 4 });
        let delete = Command::Delete { key: "a".into(), condition: Condition::Always };
        assert_eq!(kv.apply(6, delete.clone()), Answer::Done { version: 4 });
        assert_eq!(kv.apply(7, delete), Answer::Absent);
    }

    #[test]
    fn a_list_is_ordered_bounded_and_goes_on_where_it_ended() {
        let mut kv = Kv::default();
        for (index, key) in (1..).zip(["b/1", "a/2", "a/1", "a/3", "a"]) {
            kv.apply(index, put(key, "", Condition::Always));
        }
        let keys = |after: &str, limit| -> Vec<Bytes> {
            kv.list(b"a/", after.as_bytes(), limit).into_iter().map(|(key, _)| key).collect()
        };
        assert_eq!(keys("", 10), ["a/1", "a/2", "a/3"]);
        assert_eq!(keys("", 2), ["a/1", "a/2"]);
        assert_eq!(keys("a/2", 10), ["a/3"]);
        assert_eq!(kv.count(), 5);
    }
}
