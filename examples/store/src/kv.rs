//! The data: what the store holds, the commands that change it, and their bytes.
//!
//! **Change this file first** when you build your own service: everything else carries `Bytes`.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use voussoir_raft::MAX_CHUNK_BYTES;

/// Keys are at most this long.
pub const MAX_KEY_BYTES: usize = 1024;
/// Values are at most this long; it keeps a command well under raft's entry limit.
pub const MAX_VALUE_BYTES: usize = 512 * 1024;
/// Target length of a chunk of a snapshot. A chunk that is full but for the longest pair still fits
/// into [`voussoir_raft::MAX_CHUNK_BYTES`].
const CHUNK_BYTES: usize = 256 * 1024;
/// What a pair takes of a chunk beside its key and value: two lengths and a version.
const PAIR_BYTES: u64 = 16;
const _: () = assert!(CHUNK_BYTES <= MAX_CHUNK_BYTES);
const _: () = assert!(MAX_KEY_BYTES + MAX_VALUE_BYTES + 25 <= MAX_CHUNK_BYTES);

/// Bytes of a pair in a snapshot.
pub fn pair_bytes(key: &[u8], value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64 + PAIR_BYTES
}

/// A value and the version that the last write gave it. Versions are log indexes: they only grow,
/// and a key that was deleted and written again never repeats one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    pub version: u64,
    pub value: Bytes,
}

/// The condition under which a write is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Always,
    /// Only where the key is absent.
    Absent,
    /// Only where the key exists, whatever its version.
    Present,
    /// Only where the key has this version.
    Version(u64),
}

/// A command in the replicated log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Put { key: Bytes, value: Bytes, condition: Condition },
    Delete { key: Bytes, condition: Condition },
}

/// The answer to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Done; `version` is the new version of the key, or the one that was deleted.
    Done { version: u64 },
    /// Nothing was deleted: the key is absent.
    Absent,
    /// Nothing changed: the condition does not hold. The key has this version, or is absent.
    Conflict { version: Option<u64> },
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
    /// Bytes of all keys and values.
    bytes: u64,
    /// Index of the last command that was applied; 0 before the first.
    applied: u64,
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

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of all pairs in a snapshot.
    pub fn stored_bytes(&self) -> u64 {
        self.bytes + PAIR_BYTES * self.pairs.len() as u64
    }

    /// The index of the last command that was applied; 0 before the first.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Applies one command. `index` is its place in the log, the same on every node.
    ///
    /// This must depend on nothing but the state and the command: no clock, no randomness.
    pub fn apply(&mut self, index: u64, command: Command) -> Answer {
        self.applied = index;
        match command {
            Command::Put { key, value, condition } => match self.conflict(&key, condition) {
                Some(conflict) => conflict,
                None => {
                    self.insert(key, Versioned { version: index, value });
                    Answer::Done { version: index }
                }
            },
            Command::Delete { key, condition } => match self.conflict(&key, condition) {
                Some(conflict) => conflict,
                None => match self.pairs.remove(&key) {
                    Some(gone) => {
                        self.bytes -= (key.len() + gone.value.len()) as u64;
                        Answer::Done { version: gone.version }
                    }
                    None => Answer::Absent,
                },
            },
        }
    }

    /// Takes the pairs from `at` on out of this map. `index` is that of the command that does so:
    /// every later version, in both maps, is above it.
    pub fn split_off(&mut self, index: u64, at: &[u8]) -> Self {
        let pairs = self.pairs.split_off(at);
        let bytes = pairs.iter().map(|(key, held)| (key.len() + held.value.len()) as u64).sum();
        self.bytes -= bytes;
        self.applied = index;
        Self { pairs, bytes, applied: index }
    }

    /// The greatest key.
    pub fn last_key(&self) -> Option<&Bytes> {
        self.pairs.last_key_value().map(|(key, _)| key)
    }

    fn insert(&mut self, key: Bytes, held: Versioned) {
        self.bytes += (key.len() + held.value.len()) as u64;
        let key_len = key.len();
        if let Some(gone) = self.pairs.insert(key, held) {
            self.bytes -= (key_len + gone.value.len()) as u64;
        }
    }

    fn conflict(&self, key: &[u8], condition: Condition) -> Option<Answer> {
        let version = self.pairs.get(key).map(|held| held.version);
        let holds = match condition {
            Condition::Always => true,
            Condition::Absent => version.is_none(),
            Condition::Present => version.is_some(),
            Condition::Version(wanted) => version == Some(wanted),
        };
        (!holds).then_some(Answer::Conflict { version })
    }

    /// One chunk of a snapshot: a version byte, the index of the last command, then whole pairs,
    /// those after the key `after`. The chunk is about 256 KiB long and holds at least one pair,
    /// if there is one. Returns the last key in it, `None` where no pair is left.
    pub fn encode_chunk(&self, after: Option<&Bytes>) -> (Option<Bytes>, Bytes) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut out = BytesMut::new();
        out.put_u8(FORMAT);
        out.put_u64_le(self.applied);
        let mut last = None;
        for (key, Versioned { version, value }) in
            self.pairs.range::<Bytes, _>((from, Bound::Unbounded))
        {
            if last.is_some()
                && out.len() + key.len() + value.len() + PAIR_BYTES as usize > CHUNK_BYTES
            {
                break;
            }
            put_bytes(&mut out, key);
            out.put_u64_le(*version);
            put_bytes(&mut out, value);
            last = Some(key.clone());
        }
        (last, out.freeze())
    }

    /// Adds the pairs of one chunk.
    ///
    /// # Errors
    /// [`Malformed`] where the bytes are no chunk of this version.
    pub fn decode_chunk(&mut self, mut bytes: Bytes) -> Result<(), Malformed> {
        let malformed = || Malformed { what: "snapshot" };
        if bytes.try_get_u8().ok() != Some(FORMAT) {
            return Err(malformed());
        }
        self.applied = bytes.try_get_u64_le().map_err(|_| malformed())?;
        while bytes.has_remaining() {
            let key = take_bytes(&mut bytes).ok_or_else(malformed)?;
            let version = bytes.try_get_u64_le().map_err(|_| malformed())?;
            let value = take_bytes(&mut bytes).ok_or_else(malformed)?;
            self.insert(key, Versioned { version, value });
        }
        Ok(())
    }
}

/// Version of the layout, the first byte of each command and snapshot. Raise it when the layout
/// changes.
const FORMAT: u8 = 1;

impl Command {
    /// The key that it is about.
    pub fn key(&self) -> &Bytes {
        let (Self::Put { key, .. } | Self::Delete { key, .. }) = self;
        key
    }

    pub fn encode(&self) -> Bytes {
        let (kind, key, value, condition) = match self {
            Self::Put { key, value, condition } => (1, key, Some(value), condition),
            Self::Delete { key, condition } => (2, key, None, condition),
        };
        let (rule, version) = match condition {
            Condition::Always => (0, 0),
            Condition::Absent => (1, 0),
            Condition::Version(version) => (2, *version),
            Condition::Present => (3, 0),
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
            3 => Condition::Present,
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
            // No version is 0: the log begins at 1.
            Self::Conflict { version } => (3, version.unwrap_or(0)),
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
            3 => Ok(Self::Conflict { version: (version > 0).then_some(version) }),
            _ => Err(Malformed { what: "answer" }),
        }
    }
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(bytes.len() as u32);
    out.put_slice(bytes);
}

/// Takes a length and that many bytes, and copies them: a slice would keep the whole message or
/// chunk in memory for as long as the store holds the key or value.
fn take_bytes(from: &mut Bytes) -> Option<Bytes> {
    let len = from.try_get_u32_le().ok()? as usize;
    (len <= from.remaining()).then(|| Bytes::copy_from_slice(&from.split_to(len)))
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
            Command::Delete { key: "k".into(), condition: Condition::Present },
        ];
        for command in commands {
            let bytes = command.encode();
            assert_eq!(Command::decode(bytes.clone()).unwrap(), command);
            for cut in 0..bytes.len() {
                assert!(Command::decode(bytes.slice(..cut)).is_err(), "cut at {cut}");
            }
        }
        let conflicts = [Some(4), None].map(|version| Answer::Conflict { version });
        for answer in [Answer::Done { version: 3 }, Answer::Absent].into_iter().chain(conflicts) {
            assert_eq!(Answer::decode(&answer.encode()).unwrap(), answer);
        }
        let mut kv = Kv::default();
        kv.apply(1, put("a", "1", Condition::Always));
        kv.apply(2, put("b", "2", Condition::Always));
        let (last, chunk) = kv.encode_chunk(None);
        assert_eq!(last.unwrap(), "b");
        let mut again = Kv::default();
        again.decode_chunk(chunk.clone()).unwrap();
        assert_eq!((&again.pairs, again.bytes, again.applied()), (&kv.pairs, 4, 2));
        assert!(Kv::default().decode_chunk(chunk.slice(..20)).is_err());
    }

    #[test]
    fn a_large_state_is_cut_into_chunks_that_raft_takes() {
        let mut kv = Kv::default();
        let large = Bytes::from(vec![7; MAX_VALUE_BYTES]);
        for index in 1..=2000_u64 {
            let (key, condition) = (Bytes::from(format!("{index:01000}")), Condition::Always);
            let value = if index % 500 == 0 { large.clone() } else { Bytes::from_static(b"v") };
            kv.apply(index, Command::Put { key, value, condition });
        }
        let (mut again, mut after, mut chunks) = (Kv::default(), None, 0);
        loop {
            let (last, chunk) = kv.encode_chunk(after.as_ref());
            assert!(chunk.len() <= MAX_CHUNK_BYTES, "{}", chunk.len());
            let Some(last) = last else { break };
            again.decode_chunk(chunk).unwrap();
            (after, chunks) = (Some(last), chunks + 1);
        }
        assert!(chunks > 10, "{chunks}");
        assert_eq!((again.pairs, again.bytes), (kv.pairs, kv.bytes));
    }

    #[test]
    fn a_value_does_not_keep_the_message_that_it_came_in() {
        let message =
            Bytes::from([&[0; 1 << 20], &*put("k", "v", Condition::Always).encode()].concat());
        let mut kv = Kv::default();
        kv.apply(1, Command::decode(message.slice(1 << 20..)).unwrap());
        assert!(message.is_unique(), "a pair of two bytes keeps 1 MiB alive");
    }

    #[test]
    fn bytes_are_counted_through_every_change() {
        let mut kv = Kv::default();
        kv.apply(1, put("key", "12345", Condition::Always));
        kv.apply(2, put("key", "1", Condition::Always));
        assert_eq!(kv.bytes(), 4);
        kv.apply(3, Command::Delete { key: "key".into(), condition: Condition::Always });
        assert_eq!(kv.bytes(), 0);
    }

    #[test]
    fn conditions_hold() {
        let mut kv = Kv::default();
        let conflict = |version| Answer::Conflict { version };
        assert_eq!(kv.apply(1, put("a", "1", Condition::Version(7))), conflict(None));
        assert_eq!(kv.apply(1, put("a", "1", Condition::Present)), conflict(None));
        assert_eq!(kv.apply(2, put("a", "1", Condition::Absent)), Answer::Done { version: 2 });
        assert_eq!(kv.apply(3, put("a", "2", Condition::Absent)), conflict(Some(2)));
        assert_eq!(kv.apply(4, put("a", "2", Condition::Version(2))), Answer::Done { version: 4 });
        let stale = Command::Delete { key: "a".into(), condition: Condition::Version(2) };
        assert_eq!(kv.apply(5, stale), conflict(Some(4)));
        assert_eq!(kv.apply(6, put("a", "3", Condition::Present)), Answer::Done { version: 6 });
        let delete = Command::Delete { key: "a".into(), condition: Condition::Always };
        assert_eq!(kv.apply(7, delete.clone()), Answer::Done { version: 6 });
        assert_eq!(kv.apply(8, delete), Answer::Absent);
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
