//! The writes in a journal: the format of the records, and reading them back.
//!
//! Namespace and log 0 hold the writes, log 1 the rejected ones. A record is: version (1 byte, 1),
//! kind (1 byte), length of the key (4 bytes, little-endian), the key, and what the kind says:
//!
//! | kind | in log | meaning | after the key |
//! |---|---|---|---|
//! | 0 | 0 | the key was written | the value |
//! | 1 | 0 | the key was deleted | nothing |
//! | 2 | 1 | a write was rejected | length of the reason (4 bytes, little-endian), reason (UTF-8), value |
//! | 3 | 1 | a deletion was rejected | length of the reason (4 bytes, little-endian), reason (UTF-8) |
//! | 4 | 1 | the key's rejected write is settled | nothing |
//!
//! The last record of a key counts. Records of kinds that a version does not know are an error.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;
use voussoir_journal::{Commit, Durability, Health, Journal, Lease, Log, ReadError};

use super::log::{Change, Completion, Done, Hold, RECORD_BYTES, WriteLog};
use crate::codec::{Codec, CodecError};
use crate::error::{ConfigError, WriteError};
use crate::flights::{Key, Value};

const VERSION: u8 = 1;
const WRITTEN: u8 = 0;
const DELETED: u8 = 1;
const WRITE_REJECTED: u8 = 2;
const DELETE_REJECTED: u8 = 3;
const SETTLED: u8 = 4;
/// Bytes that are read from a log at once when it is opened.
const READ_BYTES: usize = 1 << 20;
/// Longer reasons are cut: they come from the sink.
const REASON_BYTES_MAX: usize = 1024;
/// The length of a reason.
const REASON_HEAD_BYTES: usize = 4;

/// Why the writes of an earlier process could not be read back. The journal was not changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The configuration breaks a rule.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The journal rejects the call. With `Error::Leased` another cache uses the namespace, or one
    /// that was dropped has not ended yet: its flusher ends when its task is next polled, and
    /// writes on their way to the journal end with it. [`Cache::close`](crate::Cache::close) waits
    /// for both.
    #[error("the journal rejects the call: {0}")]
    Journal(#[from] voussoir_journal::Error),
    /// A record cannot be read.
    #[error("{log}: {source}")]
    Read {
        /// The log.
        log: voussoir_journal::LogName,
        /// Why not.
        source: ReadError,
    },
    /// Damage to the disk has hit the log: acknowledged writes are lost. Look at it with the
    /// journal's own tools, then release the log past its end, or delete it.
    #[error("{log} is damaged ({health:?}): acknowledged writes may be lost")]
    Damaged {
        /// The log.
        log: voussoir_journal::LogName,
        /// What is known about the damage.
        health: Health,
    },
    /// A record was written by a newer version of this crate, or is none.
    #[error("{log}, position {position}: {reason}")]
    Format {
        /// The log.
        log: voussoir_journal::LogName,
        /// The record's position.
        position: u64,
        /// What is wrong.
        reason: String,
    },
    /// The codec does not know a key or a value of an acknowledged write. Open with a codec that
    /// does: no write is dropped silently.
    #[error("{log}, position {position}: {source}")]
    Codec {
        /// The log.
        log: voussoir_journal::LogName,
        /// The record's position.
        position: u64,
        /// What the codec says.
        source: CodecError,
    },
}

/// What is kept in the journal.
pub(crate) struct JournalLog<K, V> {
    journal: Journal,
    writes: Log,
    rejected: Log,
    codec: Arc<dyn Codec<K, V>>,
}

/// A write that was read back.
#[derive(Debug)]
pub(crate) struct Recovered<V> {
    pub(crate) position: u64,
    pub(crate) bytes: u64,
    pub(crate) value: Option<V>,
}

/// A rejected write that was read back.
#[derive(Debug)]
pub(crate) struct RecoveredRejection<V> {
    pub(crate) value: Option<V>,
    pub(crate) reason: String,
}

/// Everything that was read back.
#[derive(Debug)]
pub(crate) struct Recovery<K, V> {
    pub(crate) writes: HashMap<K, Recovered<V>>,
    pub(crate) end: u64,
    pub(crate) rejected: HashMap<K, RecoveredRejection<V>>,
}

impl<K: Key, V: Value> JournalLog<K, V> {
    /// The log, the lease of its namespace, and what an earlier process has left there.
    pub(crate) fn open(
        journal: &Journal,
        namespace: &str,
        codec: Arc<dyn Codec<K, V>>,
    ) -> Result<(Self, Lease, Recovery<K, V>), OpenError> {
        let lease = journal.lease(namespace)?;
        let (writes, rejected) = (journal.log(namespace, 0)?, journal.log(namespace, 1)?);
        // A cache that had the namespace before may have handed in a release that takes place now.
        // What was read before it is read again: a released record is older than what the sink has.
        // Ends: nobody hands in more of them, because this one has the lease.
        let recovery = loop {
            match Recovery::read(&writes, &rejected, &*codec) {
                Err(OpenError::Read { source: ReadError::Released { .. }, .. }) => {}
                recovery => break recovery?,
            }
        };
        let journal = journal.clone();
        Ok((Self { journal, writes, rejected, codec }, lease, recovery))
    }
}

impl<K: Key, V: Value> Recovery<K, V> {
    fn read(writes: &Log, rejected: &Log, codec: &dyn Codec<K, V>) -> Result<Self, OpenError> {
        let mut recovery =
            Self { writes: HashMap::new(), end: writes.end(), rejected: HashMap::new() };
        for_each_record(writes, |position, record| {
            let key = codec.decode_key(record.key).map_err(Fault::Codec)?;
            let value = match record.kind {
                WRITTEN => Some(codec.decode_value(record.rest).map_err(Fault::Codec)?),
                DELETED => None,
                kind => return Err(Fault::Format(format!("unknown kind {kind} of a write"))),
            };
            let recovered = Recovered { position, bytes: record.bytes, value };
            recovery.writes.insert(key, recovered);
            Ok(())
        })?;
        for_each_record(rejected, |_, record| {
            let key = codec.decode_key(record.key).map_err(Fault::Codec)?;
            let kind = record.kind;
            if kind == SETTLED {
                recovery.rejected.remove(&key);
                return Ok(());
            }
            let no_reason = || Fault::Format("a rejected write without its reason".to_owned());
            let (reason, rest) = split_prefixed(record.rest).ok_or_else(no_reason)?;
            let value = match kind {
                WRITE_REJECTED => Some(codec.decode_value(rest).map_err(Fault::Codec)?),
                DELETE_REJECTED => None,
                _ => return Err(Fault::Format(format!("unknown kind {kind} of a rejected write"))),
            };
            let reason = String::from_utf8_lossy(reason).into_owned();
            recovery.rejected.insert(key, RecoveredRejection { value, reason });
            Ok(())
        })?;
        Ok(recovery)
    }
}

/// A record, taken apart.
struct Record<'a> {
    kind: u8,
    key: &'a [u8],
    rest: &'a [u8],
    bytes: u64,
}

enum Fault {
    Format(String),
    Codec(CodecError),
}

fn split_prefixed(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

fn decode(bytes: &[u8]) -> Result<Record<'_>, Fault> {
    let too_short = || Fault::Format(format!("a record of {} bytes is too short", bytes.len()));
    let [version, kind, rest @ ..] = bytes else { return Err(too_short()) };
    if *version != VERSION {
        return Err(Fault::Format(format!(
            "record version {version}, this build knows version {VERSION}"
        )));
    }
    let (key, rest) = split_prefixed(rest).ok_or_else(too_short)?;
    Ok(Record { kind: *kind, key, rest, bytes: bytes.len() as u64 })
}

fn for_each_record(
    log: &Log,
    mut take: impl FnMut(u64, Record<'_>) -> Result<(), Fault>,
) -> Result<(), OpenError> {
    let name = || log.name().clone();
    if log.health() != Health::Intact {
        return Err(OpenError::Damaged { log: name(), health: log.health() });
    }
    let Range { start: mut position, end } = log.bounds();
    while position < end {
        let records = log.read_range(position..end, READ_BYTES);
        for record in records.map_err(|source| OpenError::Read { log: name(), source })? {
            decode(&record).and_then(|record| take(position, record)).map_err(
                |fault| match fault {
                    Fault::Format(reason) => OpenError::Format { log: name(), position, reason },
                    Fault::Codec(source) => OpenError::Codec { log: name(), position, source },
                },
            )?;
            position += 1;
        }
    }
    Ok(())
}

impl<K: Key, V: Value> JournalLog<K, V> {
    fn record(&self, kind: u8, key: &K) -> Vec<u8> {
        let mut out = vec![VERSION, kind, 0, 0, 0, 0];
        self.codec.encode_key(key, &mut out);
        let length = (out.len() - 6) as u32;
        out[2..6].copy_from_slice(&length.to_le_bytes());
        out
    }

    /// Bytes of the largest record.
    fn max_record_bytes(&self) -> usize {
        self.max_batch_bytes().saturating_sub(RECORD_BYTES)
    }

    /// Rejects a write of which no record could say that the sink has rejected it, which is longer
    /// than that of the write.
    fn check_size(&self, writes: &[Vec<u8>]) -> Result<(), WriteError> {
        let limit = self.max_record_bytes().saturating_sub(REASON_HEAD_BYTES);
        let Some(record) = writes.iter().find(|record| record.len() > limit) else { return Ok(()) };
        let (what, bytes, limit) = ("write", record.len() as u64, limit as u64);
        Err(WriteError::Journal(voussoir_journal::Error::TooLarge { what, bytes, limit }))
    }
}

impl<K: Key, V: Value> WriteLog<K, V> for JournalLog<K, V> {
    fn encode(&self, key: &K, value: Option<&V>) -> Vec<u8> {
        let mut out = self.record(if value.is_some() { WRITTEN } else { DELETED }, key);
        if let Some(value) = value {
            self.codec.encode_value(value, &mut out);
        }
        out
    }

    fn weigh(&self, _: &K, _: Option<&V>, record: &[u8]) -> u64 {
        record.len() as u64
    }

    fn encode_rejected(&self, key: &K, value: Option<&V>, reason: &str) -> Vec<u8> {
        let kind = if value.is_some() { WRITE_REJECTED } else { DELETE_REJECTED };
        let mut out = self.record(kind, key);
        let mut encoded = Vec::new();
        if let Some(value) = value {
            self.codec.encode_value(value, &mut encoded);
        }
        let taken = out.len() + REASON_HEAD_BYTES + encoded.len();
        let room = self.max_record_bytes().saturating_sub(taken);
        let reason = &reason.as_bytes()[..reason.len().min(REASON_BYTES_MAX).min(room)];
        out.extend_from_slice(&(reason.len() as u32).to_le_bytes());
        out.extend_from_slice(reason);
        out.extend_from_slice(&encoded);
        out
    }

    fn encode_settled(&self, key: &K) -> Vec<u8> {
        self.record(SETTLED, key)
    }

    fn submit(
        &self,
        change: Change,
        hold: Arc<Hold>,
        done: Done,
    ) -> Result<Option<Completion>, WriteError> {
        self.check_size(&change.writes)?;
        let mut commit = Commit::new();
        if let Some(upto) = change.release {
            commit = commit.release(&self.writes, upto);
        }
        let writes = !change.writes.is_empty();
        // What was rejected or settled frees the records before it, and a log that is written anew
        // the one before it: a full journal must not refuse what makes room there.
        let releases = change.release.is_some() || change.release_rejected.is_some();
        if releases && !change.rejected.is_empty() {
            commit = commit.frees_space();
        }
        commit = commit.append(&self.writes, change.writes).append(&self.rejected, change.rejected);
        if let Some(upto) = change.release_rejected {
            commit = commit.release(&self.rejected, upto);
        }
        if change.is_lazy {
            commit = commit.durability(Durability::Buffered);
        }
        let done = move |outcome: Result<voussoir_journal::Receipt, voussoir_journal::Error>| {
            let position = |receipt: voussoir_journal::Receipt| {
                receipt.positions().first().filter(|_| writes).map_or(0, |range| range.start)
            };
            done(outcome.map(position).map_err(WriteError::Journal));
            drop(hold);
        };
        let submitted = self.journal.submit(commit, done);
        submitted.map(|()| None).map_err(|rejected| WriteError::Journal(rejected.error))
    }

    fn max_batch_bytes(&self) -> usize {
        usize::try_from(self.journal.max_batch_bytes()).unwrap_or(usize::MAX)
    }

    fn rejected_bounds(&self) -> Range<u64> {
        self.rejected.bounds()
    }

    fn len(&self) -> u64 {
        let bounds = self.writes.bounds();
        bounds.end - bounds.start
    }
}

impl<K, V> fmt::Debug for JournalLog<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalLog").field("writes", &self.writes).finish_non_exhaustive()
    }
}
