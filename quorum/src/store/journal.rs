//! Records in a log of `voussoir-journal`: keys in memory, records by position. Feature `journal`.
//!
//! A record of the log `quorum.data`/id, version 1, all integers little-endian:
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u8 | version, 1 |
//! | 1 | u8 | kind: 1 put, 2 remove |
//! | 2 | u16 | length of the key |
//! | 4 | u32 | length of the value |
//! | 8 | | the key, then the value, up to 512 KiB of it |
//!
//! What a value has beyond 512 KiB follows in records of up to 512 KiB without a head, in the same
//! commit. The latest record of a key counts. When the log holds more garbage than records, each
//! batch also cleans the oldest part of the log, at least twice as much as the batch itself: what
//! is live of it is appended again, and the part is released. A journal that is full may still take
//! releases: then garbage at the beginning of the log is released by commits that append nothing.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use voussoir_journal::{
    BatchBuilder, Commit, Error, Health, Journal, Lease, Log, Outcome, ReadError, Receipt,
};

use super::{Change, ReplicaStore, Serving, StoreError};
use crate::ConfigError;

const VERSION: u8 = 1;
const PUT: u8 = 1;
const REMOVE: u8 = 2;
const HEAD_BYTES: usize = 8;
const CHUNK_BYTES: usize = 512 << 10;
/// About how many bytes of the log are read at once.
const READ_BYTES: usize = 4 << 20;
/// What a commit takes beside its records at most: each two of its batches in a row are longer than
/// `CHUNK_BYTES` together, so that even one of 16 MiB has fewer than 70, of up to 160 bytes each.
const FRAME_BYTES: u64 = 16 << 10;
/// About how many bytes of the log are cleaned with a batch, at least. Twice the batch if that is
/// more: more than half of the log is garbage while it is cleaned, so it shrinks.
const CLEAN_BYTES: u64 = 64 << 10;
/// What a record takes of a commit at most, beside its key and value.
const RECORD_BYTES: u64 = 32;
/// Up to so many records are read one by one, and not beside the runtime's tasks, if they are in
/// memory.
const QUICK_READS: usize = 64;
/// So many keys are looked up with the lock of the state held.
const LOOKED_UP_AT_ONCE: usize = 256;

/// Configuration of a [`JournalStore`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JournalStoreConfig {
    /// The log is cleaned while it holds more than this of garbage, in bytes, and more garbage than
    /// records. `max_bytes` of the journal must have room for this and 2.5 times the length of the
    /// live records. From 64 KiB to 1 TiB. Default 16 MiB.
    pub max_garbage_bytes: u64,
}

impl Default for JournalStoreConfig {
    fn default() -> Self {
        Self { max_garbage_bytes: 16 << 20 }
    }
}

impl JournalStoreConfig {
    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if (64 << 10..=1 << 40).contains(&self.max_garbage_bytes) {
            return Ok(());
        }
        Err(ConfigError { field: "max_garbage_bytes", rule: "must be from 64 KiB to 1 TiB" })
    }
}

/// Why a store was not opened. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The journal refused or failed. With [`Error::Leased`] another store of this id is open, or
    /// one that was dropped is still used by its node or has a write under way: see
    /// [`Node::shutdown`](crate::Node::shutdown).
    #[error(transparent)]
    Journal(#[from] Error),
    /// The journal could not read. Nothing says that the records are lost: retry, or repair the
    /// disk.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The log was written by a newer version of this crate. Use that one.
    #[error("the records have format version {found}, this build knows up to {supported}")]
    NewerFormat {
        /// Its version.
        found: u8,
        /// The newest that this build reads.
        supported: u8,
    },
}

/// Keeps the records of one node in a shared [`Journal`]. The keys are held in memory; opening
/// reads the whole log once. A journal's damage that may have hit the records is no error of
/// `open`: the store then answers [`StoreError::Damaged`] until it is cleared.
///
/// Clones are the same store, and serve one node at a time. A second store of the same id is
/// refused until the first and its clones are dropped: it would write between the lines of the
/// first. The namespace `quorum.data` of the journal is theirs: give it to nothing else.
#[derive(Clone, Debug)]
pub struct JournalStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    journal: Journal,
    log: Log,
    config: JournalStoreConfig,
    state: Mutex<State>,
    /// Held while a batch is written, so that positions rise in the order of the batches: by each
    /// of its commits until the state says what it did, also where the caller has gone away.
    writing: Arc<tokio::sync::Mutex<()>>,
    /// Held by the node that the store serves.
    serving: Arc<tokio::sync::Mutex<()>>,
    _lease: Lease,
}

#[derive(Debug, Default)]
struct State {
    keys: BTreeMap<Bytes, Place>,
    /// Bytes of the log, and those of them that `keys` lead to.
    total_bytes: u64,
    live_bytes: u64,
    /// What a commit under way appends again and releases: it may be released before `keys` say so.
    moving: Option<Arc<Swept>>,
    damage: Option<String>,
    /// A batch has failed in a way that leaves open whether it was written.
    failure: Option<String>,
}

/// Where the record of a key lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    position: u64,
    /// How many records of the log hold it. Invariant: at least 1.
    records: u64,
    bytes: u64,
}

impl JournalStore {
    /// Opens the records with the number `id` of a journal; there are none if it is new.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(journal: &Journal, id: u64, config: JournalStoreConfig) -> Result<Self, OpenError> {
        config.validate()?;
        // The stores of other ids are in the same namespace: so it is the log that is taken.
        let lease = journal.lease(&format!("quorum.data/{id}"))?;
        let log = journal.log("quorum.data", id)?;
        let state = Mutex::new(State::read(&log)?);
        let (journal, writing, serving) = (journal.clone(), Arc::default(), Arc::default());
        let inner = Inner { journal, log, config, state, writing, serving, _lease: lease };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.inner.state.lock().keys.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the log, and those of them that are records of keys.
    pub fn log_bytes(&self) -> (u64, u64) {
        let state = self.inner.state.lock();
        (state.total_bytes, state.live_bytes)
    }
}

/// A record of the log that begins a value.
struct Head {
    is_put: bool,
    key: Bytes,
    value_bytes: usize,
    /// The first part of the value.
    value: Bytes,
}

impl Head {
    fn decode(mut record: Bytes) -> Result<Self, u8> {
        let version = record.first().copied().unwrap_or(0);
        if version != VERSION || record.len() < HEAD_BYTES {
            return Err(version);
        }
        record.advance(1);
        let kind = record.get_u8();
        let key_bytes = usize::from(record.get_u16_le());
        let value_bytes = record.get_u32_le() as usize;
        if key_bytes + value_bytes.min(CHUNK_BYTES) != record.len() || kind == 0 || kind > REMOVE {
            return Err(0);
        }
        let key = record.split_to(key_bytes);
        Ok(Self { is_put: kind == PUT, key, value_bytes, value: record })
    }

    fn records(&self) -> u64 {
        records_of(self.value_bytes)
    }

    fn bytes(&self) -> u64 {
        bytes_of(&self.key, self.value_bytes)
    }
}

fn records_of(value_bytes: usize) -> u64 {
    value_bytes.div_ceil(CHUNK_BYTES).max(1) as u64
}

fn bytes_of(key: &[u8], value_bytes: usize) -> u64 {
    (HEAD_BYTES + key.len() + value_bytes) as u64
}

impl State {
    fn read(log: &Log) -> Result<Self, OpenError> {
        let mut state = Self::default();
        if log.health() != Health::Intact {
            state.damage = Some(format!("{}: records were lost", log.name()));
            return Ok(state);
        }
        let (mut next, end) = (log.first(), log.end());
        // Ends: each turn reads at least one record, or returns.
        while next < end {
            let records = match log.read_range(next..end, READ_BYTES) {
                Ok(records) => records,
                Err(error @ ReadError::Damaged { .. }) => {
                    return Ok(Self { damage: Some(error.to_string()), ..Self::default() });
                }
                Err(error) => return Err(error.into()),
            };
            let count = records.len() as u64;
            let mut at = 0;
            while at < count {
                let head = match Head::decode(records[at as usize].clone()) {
                    Ok(head) => head,
                    Err(found) if found > VERSION => {
                        return Err(OpenError::NewerFormat { found, supported: VERSION });
                    }
                    Err(_) => {
                        let damage =
                            format!("{}: record {} is none of ours", log.name(), next + at);
                        return Ok(Self { damage: Some(damage), ..Self::default() });
                    }
                };
                let (records, bytes) = (head.records(), head.bytes());
                // A key is kept; the buffer that it was read in is not.
                let key = Bytes::copy_from_slice(&head.key);
                state.written(key, head.is_put, Place { position: next + at, records, bytes });
                at += records;
            }
            next += at;
        }
        Ok(state)
    }

    /// Records what was appended to the log.
    fn written(&mut self, key: Bytes, is_put: bool, place: Place) {
        self.total_bytes += place.bytes;
        let before = if is_put {
            self.live_bytes += place.bytes;
            self.keys.insert(key, place)
        } else {
            self.keys.remove(&key)
        };
        self.live_bytes -= before.map_or(0, |before| before.bytes);
    }

    fn check(&self) -> Result<(), StoreError> {
        match (&self.damage, &self.failure) {
            (Some(damage), _) => Err(StoreError::Damaged(damage.clone())),
            (_, Some(failure)) => Err(StoreError::Unknown(failure.clone())),
            _ => Ok(()),
        }
    }
}

/// A commit that is being put together.
struct Draft {
    commit: Commit,
    /// What it appends, in the order of the appends.
    entries: Vec<(Bytes, bool, u64, u64)>,
    /// Records that are not yet part of the commit, and their length.
    open: Option<(BatchBuilder, usize)>,
    /// How long the records will be that are still to come, about.
    expected_bytes: u64,
}

impl Draft {
    fn new(expected_bytes: u64) -> Self {
        Self { commit: Commit::new(), entries: Vec::new(), open: None, expected_bytes }
    }

    fn add(&mut self, log: &Log, key: &Bytes, value: Option<&Bytes>) {
        let is_put = value.is_some();
        let value = value.map_or(&[][..], |value| &value[..]);
        let mut head = [VERSION, if is_put { PUT } else { REMOVE }, 0, 0, 0, 0, 0, 0];
        head[2..4].copy_from_slice(&(key.len() as u16).to_le_bytes());
        head[4..].copy_from_slice(&(value.len() as u32).to_le_bytes());
        let (first, rest) = value.split_at(value.len().min(CHUNK_BYTES));
        self.push(log, &[&head, key, first]);
        rest.chunks(CHUNK_BYTES).for_each(|part| self.push(log, &[part]));
        let bytes = bytes_of(key, value.len());
        self.entries.push((key.clone(), is_put, records_of(value.len()), bytes));
    }

    /// Adds a record that is in several pieces. Batches of the journal are bounded: several are one
    /// commit.
    fn push(&mut self, log: &Log, record: &[&[u8]]) {
        let bytes = record.iter().map(|piece| piece.len()).sum();
        if self.open.as_ref().is_some_and(|(_, before)| before + bytes > CHUNK_BYTES) {
            self.close(log);
        }
        let expected = self.expected_bytes.min(CHUNK_BYTES as u64) as usize;
        let (batch, open_bytes) =
            self.open.get_or_insert_with(|| (log.batch(expected.max(bytes)), 0));
        batch.push_pieces(record);
        *open_bytes += bytes;
        self.expected_bytes = self.expected_bytes.saturating_sub(bytes as u64);
    }

    fn close(&mut self, log: &Log) {
        if let Some((batch, _)) = self.open.take() {
            self.commit = std::mem::take(&mut self.commit).append_batch(log, batch.finish());
        }
    }
}

/// Keys whose values are to be read.
#[derive(Default)]
struct Wanted {
    keys: Vec<Bytes>,
    /// Where their records lie, by the key's index. A key without a record has none.
    places: Vec<(usize, Place)>,
}

/// A record cannot be read without waiting for a device, or has moved meanwhile.
struct NotInMemory;

/// What a cleaning has read at the beginning of the log.
#[derive(Debug)]
struct Swept {
    /// Records that are live: their positions, in ascending order, keys and values.
    live: Vec<(u64, Bytes, Bytes)>,
    /// What they take of a commit at most.
    live_bytes: u64,
    /// Bytes of the log that it takes up.
    bytes: u64,
    /// Where the log begins afterwards.
    until: u64,
}

impl Swept {
    fn value_at(&self, place: Place) -> Option<Bytes> {
        let at =
            self.live.binary_search_by_key(&place.position, |(position, ..)| *position).ok()?;
        Some(self.live[at].2.clone())
    }
}

/// To write is one caller's turn.
type Turn = tokio::sync::OwnedMutexGuard<()>;

impl Inner {
    async fn turn(&self) -> Arc<Turn> {
        Arc::new(Arc::clone(&self.writing).lock_owned().await)
    }

    /// One record of the log, or several that hold one value.
    fn value_at(&self, key: &[u8], place: Place) -> Result<Bytes, ReadError> {
        // Another key stands there if the log was deleted meanwhile.
        let head = Head::decode(self.log.read(place.position)?).ok();
        let Some(head) = head.filter(|head| head.key == key && head.records() == place.records)
        else {
            return Err(ReadError::Absent { end: self.log.end() });
        };
        if place.records == 1 {
            return Ok(head.value);
        }
        let mut value = BytesMut::with_capacity(head.value_bytes);
        value.put_slice(&head.value);
        for position in place.position + 1..place.position + place.records {
            value.put_slice(&self.log.read(position)?);
        }
        Ok(value.freeze())
    }

    /// The value of a key as it is now.
    fn value_of(&self, key: &Bytes) -> Result<Option<Bytes>, StoreError> {
        // Ends: a record is released only after its key has moved on, which takes a commit.
        loop {
            let place = {
                let state = self.state.lock();
                state.check()?;
                state.keys.get(key).copied()
            };
            let Some(place) = place else { return Ok(None) };
            let error = match self.value_at(key, place) {
                Ok(value) => return Ok(Some(value)),
                Err(error) => error,
            };
            let state = self.state.lock();
            if state.keys.get(key) == Some(&place) {
                let moving = state.moving.as_ref().and_then(|swept| swept.value_at(place));
                return moving.map(Some).ok_or(read_failed(&error));
            }
        }
    }

    /// The values at places, without waiting for a device.
    fn values_in_memory(&self, wanted: &Wanted) -> Result<Vec<Option<Bytes>>, NotInMemory> {
        let mut values = vec![None; wanted.keys.len()];
        for (at, place) in &wanted.places {
            if place.records > 1 {
                return Err(NotInMemory);
            }
            let record = self.log.try_read(place.position).ok().flatten().ok_or(NotInMemory)?;
            let head = Head::decode(record).ok().filter(|head| head.key == wanted.keys[*at]);
            values[*at] = Some(head.ok_or(NotInMemory)?.value);
        }
        Ok(values)
    }

    /// The values of keys, read by position: a batch of the journal is read once for all of its
    /// records among them, however many there are, and kept by none of them.
    fn values_at(&self, mut wanted: Wanted) -> Result<Vec<Option<Bytes>>, StoreError> {
        wanted.places.sort_unstable_by_key(|(_, place)| place.position);
        let Wanted { keys, places } = wanted;
        let positions: Vec<u64> = places.iter().map(|(_, place)| place.position).collect();
        let short = places.iter().filter(|(_, place)| place.records == 1);
        let bytes: u64 = short.map(|(_, place)| place.bytes).sum();
        let mut read = BytesMut::with_capacity(usize::try_from(bytes).unwrap_or(0));
        let (mut found, mut others) = (Vec::with_capacity(places.len()), Vec::new());
        self.log.read_each(&positions, |number, record| {
            let (at, place) = places[number];
            let head = record.ok().and_then(|record| Head::decode(record).ok());
            match head.filter(|head| head.key == keys[at] && head.records() == 1) {
                Some(head) if place.records == 1 => {
                    read.put_slice(&head.value);
                    found.push((at, head.value.len()));
                }
                // It is long, or its key has moved on.
                _ => others.push(at),
            }
        });
        let (mut values, mut read) = (vec![None; keys.len()], read.freeze());
        for (at, bytes) in found {
            values[at] = Some(read.split_to(bytes));
        }
        for at in others {
            values[at] = self.value_of(&keys[at])?;
        }
        Ok(values)
    }

    /// Where the records of some keys lie.
    fn places_of(&self, keys: &[Bytes]) -> Result<Wanted, StoreError> {
        let mut places = Vec::new();
        for (number, keys) in keys.chunks(LOOKED_UP_AT_ONCE).enumerate() {
            let state = self.state.lock();
            state.check()?;
            let first = number * LOOKED_UP_AT_ONCE;
            let place = |(at, key): (usize, &Bytes)| Some((first + at, *state.keys.get(key)?));
            places.extend(keys.iter().enumerate().filter_map(place));
        }
        Ok(Wanted { keys: keys.to_vec(), places })
    }

    /// The keys of a page, and where their records lie.
    fn places_after(
        &self,
        prefix: &[u8],
        after: &[u8],
        max_bytes: usize,
    ) -> Result<Wanted, StoreError> {
        let (mut wanted, mut bytes) = (Wanted::default(), 0);
        let state = self.state.lock();
        state.check()?;
        let from = if after >= prefix { Bound::Excluded(after) } else { Bound::Included(prefix) };
        for (key, place) in state.keys.range::<[u8], _>((from, Bound::Unbounded)) {
            bytes += place.bytes as usize;
            if !key.starts_with(prefix) || (bytes > max_bytes && !wanted.keys.is_empty()) {
                break;
            }
            wanted.places.push((wanted.keys.len(), *place));
            wanted.keys.push(key.clone());
        }
        Ok(wanted)
    }

    fn max_batch_bytes(&self) -> u64 {
        self.journal.max_commit_bytes().saturating_sub(FRAME_BYTES)
    }

    fn is_to_be_cleaned(&self) -> bool {
        let state = self.state.lock();
        let garbage = state.total_bytes.saturating_sub(state.live_bytes);
        garbage > self.config.max_garbage_bytes.max(state.live_bytes)
    }

    fn has_garbage(&self) -> bool {
        let state = self.state.lock();
        state.total_bytes > state.live_bytes
    }

    /// Reads the oldest part of the log: about `bytes`, with live records that take up to
    /// `max_live_bytes` of a commit.
    fn sweep(&self, bytes: u64, max_live_bytes: u64) -> Result<Swept, ReadError> {
        let (first, end) = (self.log.first(), self.log.end());
        let mut swept = Swept { live: Vec::new(), live_bytes: 0, bytes: 0, until: first };
        // Ends: each turn moves on by a record, up to a number of bytes, or returns.
        while swept.until < end && swept.bytes < bytes {
            // In one piece: a record alone costs the whole batch of the journal that it is in.
            let wanted = usize::try_from(bytes - swept.bytes).unwrap_or(usize::MAX);
            let records = self.log.read_range(swept.until..end, wanted.min(READ_BYTES))?;
            let begin = swept.until;
            // Ends: each turn moves on by a record.
            while let Some(record) = records.get((swept.until - begin) as usize)
                && swept.bytes < bytes
            {
                let position = swept.until;
                let Ok(head) = Head::decode(record.clone()) else {
                    return Err(ReadError::Absent { end });
                };
                let place = Place { position, records: head.records(), bytes: head.bytes() };
                if self.state.lock().keys.get(&head.key) == Some(&place) {
                    let live_bytes = swept.live_bytes + place.bytes + RECORD_BYTES;
                    if live_bytes > max_live_bytes {
                        return Ok(swept);
                    }
                    swept.live_bytes = live_bytes;
                    let value = match place.records {
                        1 => head.value,
                        _ => self.value_at(&head.key, place)?,
                    };
                    let key = Bytes::copy_from_slice(&head.key);
                    swept.live.push((position, key, value));
                }
                swept.until += place.records;
                swept.bytes += place.bytes;
            }
        }
        Ok(swept)
    }

    async fn write(
        self: &Arc<Self>,
        turn: &Arc<Turn>,
        batch: &[Change],
        swept: Option<&Arc<Swept>>,
    ) -> Result<(), Error> {
        let length =
            |change: &Change| bytes_of(&change.key, change.record.as_ref().map_or(0, Bytes::len));
        let bytes: u64 = batch.iter().map(length).sum();
        let mut draft = Draft::new(bytes + swept.map_or(0, |swept| swept.live_bytes));
        if let Some(swept) = swept {
            for (_, key, value) in &swept.live {
                draft.add(&self.log, key, Some(value));
            }
        }
        for Change { key, record } in batch {
            draft.add(&self.log, key, record.as_ref());
        }
        draft.close(&self.log);
        let mut commit = draft.commit;
        if let Some(swept) = swept {
            commit = commit.release(&self.log, swept.until);
            if batch.is_empty() && swept.live_bytes < swept.bytes {
                commit = commit.frees_space();
            }
        }
        self.state.lock().moving = swept.cloned();
        let (entries, released_bytes) = (draft.entries, swept.map_or(0, |swept| swept.bytes));
        self.commit(turn, commit, move |state, receipt| {
            let first = receipt.positions().iter().find(|range| !range.is_empty());
            let mut position = first.map_or(0, |range| range.start);
            state.total_bytes -= released_bytes;
            for (key, is_put, records, bytes) in entries {
                state.written(key, is_put, Place { position, records, bytes });
                position += records;
            }
        })
        .await
    }

    /// Commits, and lets the state follow as soon as the commit is durable, whether or not the
    /// caller still waits. Until then the turn is taken and the log leased.
    async fn commit(
        self: &Arc<Self>,
        turn: &Arc<Turn>,
        commit: Commit,
        follow: impl FnOnce(&mut State, &Receipt) + Send + 'static,
    ) -> Result<(), Error> {
        let (done, ended) = oneshot::channel();
        let (inner, turn) = (Arc::clone(self), Arc::clone(turn));
        let submitted = self.journal.submit_in_turn(commit, move |receipt| {
            let mut state = inner.state.lock();
            state.moving = None;
            match &receipt {
                Ok(receipt) => follow(&mut state, receipt),
                Err(error) if is_refused(error) => {}
                Err(error) => state.failure = Some(error.to_string()),
            }
            drop(state);
            drop((turn, inner));
            let _ = done.send(receipt.map(drop));
        });
        if let Err(rejected) = submitted {
            self.state.lock().moving = None;
            return Err(rejected.error);
        }
        ended.await.unwrap_or(Err(Error::Closed))
    }

    /// Writes a batch, and cleans the log beside it if it is time.
    async fn write_and_clean(
        self: &Arc<Self>,
        turn: &Arc<Turn>,
        batch: &[Change],
    ) -> Result<(), StoreError> {
        let length =
            |change: &Change| change.key.len() + change.record.as_ref().map_or(0, Bytes::len);
        let bytes: u64 = batch.iter().map(|change| length(change) as u64 + RECORD_BYTES).sum();
        let max_bytes = self.max_batch_bytes();
        let mut to_clean = CLEAN_BYTES.max(2 * bytes);
        let mut beside = None;
        // Ends: each turn releases a record, or is the last.
        while to_clean > 0 && self.is_to_be_cleaned() {
            let swept = self.sweep_blocking(to_clean, max_bytes).await?;
            if swept.live_bytes + bytes <= max_bytes {
                beside = Some(swept);
                break;
            }
            match self.write(turn, &[], Some(&swept)).await {
                Ok(()) if swept.bytes > 0 => to_clean = to_clean.saturating_sub(swept.bytes),
                Err(error) if !is_refused(&error) => return Err(write_failed(&error)),
                _ => break,
            }
        }
        let mut result = self.write(turn, batch, beside.as_ref()).await;
        if beside.is_some() && result.as_ref().is_err_and(is_refused) {
            // The batch alone may fit where it did not together with what is cleaned.
            result = self.write(turn, batch, None).await;
        }
        let end = self.log.end();
        // Ends: each turn releases a record in front of `end`, or is the last.
        while matches!(result, Err(Error::Full { .. })) && self.log.first() < end {
            // Releases are taken by a journal that is full. What is live may fit, too.
            let mut swept = self.sweep_blocking(CLEAN_BYTES.max(bytes), 0).await?;
            if swept.bytes == 0 {
                swept = self.sweep_blocking(CLEAN_BYTES, max_bytes).await?;
            }
            if swept.bytes == 0 || !self.has_garbage() {
                break;
            }
            match self.write(turn, &[], Some(&swept)).await {
                Err(error) if !is_refused(&error) => return Err(write_failed(&error)),
                Err(_) => break,
                Ok(()) => result = self.write(turn, batch, None).await,
            }
        }
        result.map_err(|error| write_failed(&error))
    }

    async fn sweep_blocking(
        self: &Arc<Self>,
        bytes: u64,
        max_live_bytes: u64,
    ) -> Result<Arc<Swept>, StoreError> {
        let inner = Arc::clone(self);
        let read = move || inner.sweep(bytes, max_live_bytes).map(Arc::new);
        blocking(move || read().map_err(|error| read_failed(&error))).await
    }
}

#[async_trait]
impl ReplicaStore for JournalStore {
    fn serve(&self) -> Result<Serving, StoreError> {
        let serving = Arc::clone(&self.inner.serving).try_lock_owned();
        // What a node that was dropped has handed in is still to come.
        let is_written = self.inner.writing.try_lock().is_err();
        serving.ok().filter(|_| !is_written).map(Serving::until_dropped).ok_or(StoreError::InUse)
    }

    fn max_batch_bytes(&self) -> usize {
        usize::try_from(self.inner.max_batch_bytes()).unwrap_or(usize::MAX)
    }

    async fn get(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let wanted = self.inner.places_of(keys)?;
        if wanted.places.len() <= QUICK_READS
            && let Ok(found) = self.inner.values_in_memory(&wanted)
        {
            return Ok(found);
        }
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.values_at(wanted)).await
    }

    async fn apply(&self, batch: Vec<Change>) -> Result<(), StoreError> {
        let turn = self.inner.turn().await;
        self.inner.state.lock().check()?;
        let too_long = |change: &&Change| {
            let value_bytes = change.record.as_ref().map_or(0, Bytes::len);
            change.key.len() > usize::from(u16::MAX) || u32::try_from(value_bytes).is_err()
        };
        if batch.iter().any(|change| too_long(&change)) {
            return Err(StoreError::NotApplied("a key or a record is too long".to_owned()));
        }
        self.inner.write_and_clean(&turn, &batch).await
    }

    async fn scan(
        &self,
        prefix: &[u8],
        after: &[u8],
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let mut after = Bytes::copy_from_slice(after);
        // Ends: each turn moves on by a key, or returns.
        loop {
            let wanted = self.inner.places_after(prefix, &after, max_bytes)?;
            let Some(last) = wanted.keys.last().cloned() else { return Ok(Vec::new()) };
            let (inner, keys) = (Arc::clone(&self.inner), wanted.keys.clone());
            let values = blocking(move || inner.values_at(wanted)).await?;
            let page: Vec<_> = keys
                .into_iter()
                .zip(values)
                .filter_map(|(key, value)| Some((key, value?)))
                .collect();
            if !page.is_empty() {
                return Ok(page);
            }
            after = last; // All of them were removed meanwhile.
        }
    }

    async fn clear(&self) -> Result<(), StoreError> {
        let turn = self.inner.turn().await;
        if !self.inner.log.exists() {
            *self.inner.state.lock() = State::default();
            return Ok(());
        }
        let commit = Commit::new().delete(&self.inner.log);
        let deleted = self.inner.commit(&turn, commit, |state, _| *state = State::default()).await;
        deleted.map_err(|error| StoreError::Unknown(error.to_string()))
    }
}

/// Whether the journal says that nothing was written.
fn is_refused(error: &Error) -> bool {
    error.outcome() == Outcome::NotApplied
}

fn write_failed(error: &Error) -> StoreError {
    if is_refused(error) {
        StoreError::NotApplied(error.to_string())
    } else {
        StoreError::Unknown(error.to_string())
    }
}

fn read_failed(error: &ReadError) -> StoreError {
    match error {
        ReadError::Io(_) | ReadError::Closed => StoreError::Unknown(error.to_string()),
        _ => StoreError::Damaged(error.to_string()),
    }
}

/// Runs what may wait for the disk beside the runtime's tasks.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let stopped = |_| StoreError::Unknown("the runtime stops".to_owned());
    tokio::task::spawn_blocking(work).await.map_err(stopped)?
}
