//! Sagas in a journal.
//!
//! Log 0 of the namespace holds the records, log 1 the epochs (8 bytes each, little-endian; the
//! last one counts). A record is: version (1 byte, 1), kind (1 byte: 0 more, 1 whole, 2 forgotten),
//! length of the id (2 bytes, little-endian), the id (UTF-8), events.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use voussoir_journal::{Batch, Commit, Health, Journal, Lease, Log};

use super::{Opened, Record, RecordKind, SagaStore};
use crate::error::StoreError;

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 4;
/// Bytes that are read at once when the store is opened.
const READ_BYTES: usize = 1 << 20;
/// Bytes that the records leave free of each MiB of a commit, begun or whole: more than the heads
/// of its batches and a release need.
const COMMIT_BYTES: u64 = 1 << 10;
/// Records that are kept though nobody needs them, before sagas are rewritten for their sake.
const SLACK: u64 = 10_000;
/// How many records are kept for each one that is needed.
const KEPT_FOR_EACH: u64 = 4;
/// Positions that may be released before they are.
const RELEASE_EVERY: u64 = 1_000;

/// Keeps the records of sagas in two logs of a [`Journal`], which other parts of the process share.
///
/// A store has its namespace to itself until it is dropped, and what it was given to drops it when
/// its last task has ended: sagas go on without a handle, so [`Sagas::drain`](crate::Sagas::drain)
/// comes before a namespace is opened again in one process. A second owner would run the same
/// steps, and the directory of a journal is locked to one process: so it is refused, whatever kind
/// of owner either of them is.
pub struct JournalStore {
    journal: Journal,
    records: Log,
    epochs: Log,
    state: Mutex<State>,
    lease: Lease,
}

#[derive(Default)]
struct State {
    is_open: bool,
    sagas: HashMap<Arc<str>, Kept>,
    /// The first needed position of each saga. Invariant: one entry for each of `sagas`.
    first: BTreeSet<(u64, Arc<str>)>,
    /// Sum of `Kept::records`.
    needed: u64,
}

#[derive(Clone, Copy)]
struct Kept {
    first: u64,
    records: u64,
}

impl JournalStore {
    /// A store in the logs 0 and 1 of `namespace`. Writes nothing: what is there is looked at by
    /// [`open`](SagaStore::open), which fails without a write if it is not of this crate.
    ///
    /// # Errors
    /// [`Error::Leased`](voussoir_journal::Error::Leased): another store, a queue or a cache has
    /// the namespace. Others: the namespace is no name, or the journal takes no more logs.
    pub fn new(journal: &Journal, namespace: &str) -> Result<Self, voussoir_journal::Error> {
        let lease = journal.lease(namespace)?;
        let records = journal.log(namespace, 0)?;
        let epochs = journal.log(namespace, 1)?;
        Ok(Self { journal: journal.clone(), records, epochs, state: Mutex::default(), lease })
    }

    /// The first position that is needed.
    fn first_needed(&self, state: &State) -> Result<u64, StoreError> {
        if !state.is_open {
            return Err(StoreError::new("the store was not opened yet"));
        }
        Ok(state.first_needed().unwrap_or_else(|| self.records.end()))
    }

    /// Gives space back without an append: also a full journal takes a release.
    async fn release(&self) {
        let released = {
            let state = self.state.lock();
            match self.first_needed(&state) {
                Ok(upto) if upto > self.records.first() => {
                    self.journal.commit(Commit::new().release(&self.records, upto))
                }
                _ => return,
            }
        };
        if let Err(error) = released.await {
            tracing::debug!(target: "voussoir::txn", %error, "records were not released");
        }
    }

    fn check_health(&self) -> Result<(), StoreError> {
        for log in [&self.records, &self.epochs] {
            match log.health() {
                Health::Intact => {}
                damage => {
                    let why = format!("{} is damaged ({damage:?})", log.name());
                    return Err(StoreError::new(why));
                }
            }
        }
        Ok(())
    }

    fn encode(&self, records: &[Record]) -> Result<Batch, StoreError> {
        let bytes = records.iter().map(|record| HEAD_BYTES + record.len_bytes()).sum();
        let mut batch = self.records.batch(bytes);
        for Record { saga, kind, events } in records {
            let too_long = |_| StoreError::new("a saga's id is longer than 65,535 bytes");
            let [low, high] = u16::try_from(saga.len()).map_err(too_long)?.to_le_bytes();
            let kind = match kind {
                RecordKind::More => 0,
                RecordKind::Whole => 1,
                RecordKind::Forgotten => 2,
            };
            batch.push_pieces(&[&[VERSION, kind, low, high], saga.as_bytes(), events]);
        }
        Ok(batch.finish())
    }

    /// Adds the records from a position on. Returns the position behind them.
    fn read_from(&self, from: u64, records: &mut Vec<(u64, Record)>) -> Result<u64, StoreError> {
        let (mut at, end) = (from, self.records.end());
        // Ends: each read returns at least one record, or fails.
        while at < end {
            let read = self.records.read_range(at..end, READ_BYTES).map_err(StoreError::new)?;
            if read.is_empty() {
                return Err(self.is_foreign(&format!("the log of the records ends at {at}")));
            }
            for record in read {
                let record = decode(record)
                    .map_err(|what| self.is_foreign(&format!("the record at {at} {what}")))?;
                records.push((at, record));
                at += 1;
            }
        }
        Ok(at)
    }

    /// The epoch that is next, once the records have been read: there are none without an epoch.
    fn next_epoch(&self, has_records: bool) -> Result<u64, StoreError> {
        let Range { start, end } = self.epochs.bounds();
        if start == end {
            if has_records {
                return Err(self.is_foreign("it has records and no epoch"));
            }
            return Ok(1);
        }
        let last = self.epochs.read(end - 1).map_err(StoreError::new)?;
        let last = last[..].try_into().map_err(|_| self.is_foreign("its last epoch is none"))?;
        let next = u64::from_le_bytes(last).checked_add(1);
        next.ok_or_else(|| StoreError::new("the epochs are used up"))
    }

    /// The namespace has logs that no store of this crate writes.
    fn check_logs(&self) -> Result<(), StoreError> {
        let logs = self.journal.logs_of(self.lease.namespace());
        match logs.iter().find(|log| log.name.id > 1) {
            Some(log) => Err(self.is_foreign(&format!("there is a log {}", log.name))),
            None => Ok(()),
        }
    }

    fn is_foreign(&self, why: &str) -> StoreError {
        StoreError::new(format!(
            "the namespace {:?} cannot be read or belongs to something else, and nothing was \
             written to it: {why}",
            self.lease.namespace()
        ))
    }
}

impl State {
    fn note(&mut self, saga: &Arc<str>, kind: RecordKind, at: u64) {
        // By far the most: the saga's first position stays.
        if kind == RecordKind::More
            && let Some(kept) = self.sagas.get_mut(saga)
        {
            kept.records += 1;
            self.needed += 1;
            return;
        }
        if let Some(known) = self.sagas.remove(saga) {
            self.needed -= known.records;
            self.first.remove(&(known.first, Arc::clone(saga)));
        }
        if kind != RecordKind::Forgotten {
            self.needed += 1;
            self.first.insert((at, Arc::clone(saga)));
            self.sagas.insert(Arc::clone(saga), Kept { first: at, records: 1 });
        }
    }

    /// The first position that is needed, if any is.
    fn first_needed(&self) -> Option<u64> {
        self.first.first().map(|(at, _)| *at)
    }
}

#[async_trait]
impl SagaStore for JournalStore {
    async fn open(&self) -> Result<Opened, StoreError> {
        self.check_health()?;
        self.check_logs()?;
        // Before anything is written: a namespace of something else stays as it is.
        let mut read = Vec::new();
        let at = self.read_from(self.records.first(), &mut read)?;
        let epoch = self.next_epoch(!read.is_empty())?;
        // It takes the place of the epoch before it: it is let into the reserve of a journal that
        // is full.
        let begin = Commit::new().append(&self.epochs, [epoch.to_le_bytes()]);
        let begin = begin.release(&self.epochs, self.epochs.end()).frees_space();
        self.journal.commit(begin).await.map_err(store_error)?;
        // A store that had the namespace before may have been dropped with appends under way. The
        // journal keeps the order of commits to one log only: the epoch may have overtaken them,
        // and a commit without operations overtakes none.
        self.journal.commit(Commit::new()).await.map_err(store_error)?;
        self.read_from(at, &mut read)?;
        let mut state = State { is_open: true, ..State::default() };
        let mut records = Vec::with_capacity(read.len());
        for (at, record) in read {
            state.note(&record.saga, record.kind, at);
            records.push(record);
        }
        *self.state.lock() = state;
        Ok(Opened { epoch, records })
    }

    async fn append(&self, records: Vec<Record>) -> Result<(), StoreError> {
        let mut commit = Commit::new();
        for records in batches(&records, self.journal.max_batch_bytes()) {
            commit = commit.append_batch(&self.records, self.encode(records)?);
        }
        let submitted = {
            let state = self.state.lock();
            let upto = self.first_needed(&state)?;
            if upto >= self.records.first() + RELEASE_EVERY {
                commit = commit.release(&self.records, upto);
            }
            self.journal.commit(commit)
        };
        let receipt = match submitted.await {
            Ok(receipt) => receipt,
            Err(error) => {
                if error.is_retryable() {
                    self.release().await;
                }
                return Err(store_error(error));
            }
        };
        let positions = receipt.positions().iter().cloned().flatten();
        let mut state = self.state.lock();
        for (at, record) in positions.zip(&records) {
            state.note(&record.saga, record.kind, at);
        }
        Ok(())
    }

    fn max_append_bytes(&self) -> usize {
        let commit = self.journal.max_commit_bytes();
        let bytes = commit.saturating_sub(COMMIT_BYTES * (1 + (commit >> 20)));
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    fn to_rewrite(&self) -> Option<Arc<str>> {
        let state = self.state.lock();
        let (first, saga) = state.first.first()?;
        let kept = self.records.end().saturating_sub(*first);
        (kept > state.needed * KEPT_FOR_EACH + SLACK).then(|| Arc::clone(saga))
    }
}

impl fmt::Debug for JournalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sagas = self.state.lock().sagas.len();
        f.debug_struct("JournalStore").field("sagas", &sagas).finish_non_exhaustive()
    }
}

/// An error of the journal that passes by itself says so.
fn store_error(error: voussoir_journal::Error) -> StoreError {
    if error.is_retryable() { StoreError::retryable(error) } else { StoreError::new(error) }
}

/// Cuts records into batches of the journal. One that is longer than a batch stands alone.
fn batches(records: &[Record], max_bytes: u64) -> impl Iterator<Item = &[Record]> {
    let mut bytes = 0;
    records.chunk_by(move |record, next| {
        // Its 8 bytes are those of the head here and of the length in the journal.
        bytes += record.len_bytes() as u64;
        let fits = bytes + next.len_bytes() as u64 <= max_bytes;
        if !fits {
            bytes = 0;
        }
        fits
    })
}

/// A record, or what is wrong with it.
fn decode(record: Bytes) -> Result<Record, &'static str> {
    let [version, kind, low, high, ..] = record[..] else { return Err("is cut off") };
    if version != VERSION {
        return Err("has a format that this version does not know");
    }
    let kind = match kind {
        0 => RecordKind::More,
        1 => RecordKind::Whole,
        2 => RecordKind::Forgotten,
        _ => return Err("has a kind that this version does not know"),
    };
    let end = HEAD_BYTES + usize::from(u16::from_le_bytes([low, high]));
    let id = record.get(HEAD_BYTES..end).ok_or("is cut off")?;
    let id = std::str::from_utf8(id).map_err(|_| "has an id that is no text")?;
    Ok(Record { saga: id.into(), kind, events: record.slice(end..) })
}
