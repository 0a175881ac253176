//! Snapshots in logs of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use voussoir_journal::{Batch, Commit, Durability, Health, Journal, Log, ReadError};

use super::{Current, OpenError, blocking, intact, read_failed, stopped, store_error};
use crate::codec;
use crate::store::{
    MAX_CHUNK_BYTES, ReadFailed, SnapshotName, SnapshotReader, SnapshotWriter, StoreError,
};
use crate::types::SnapshotMeta;

/// Records of a snapshot's log beside the chunks: the name and the end.
const EXTRA_RECORDS: u64 = 2;

/// More than the ends of all records of one chunk take in a batch, in the smallest segments.
const ENDS_BYTES: u64 = 1024;
/// No record of a snapshot is longer than one of so many parts of a segment...
const PARTS_OF_SEGMENT: u64 = 16;
/// ...unless the segments are small.
const MIN_PIECE_BYTES: u64 = 8 << 10;

/// The snapshots of one group.
#[derive(Debug)]
pub(super) struct Snapshots {
    journal: Journal,
    group: u64,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    next_number: u64,
    /// What has a lower number was begun before the last restore, and is not staged any more.
    first_number: u64,
    /// Finished and not adopted, by identity.
    staged: BTreeMap<u64, Current>,
    /// What the last write makes current.
    adopted: Option<Current>,
    /// What is current on the disk.
    current: Option<Current>,
    /// Bytes of the chunks of the current one.
    current_bytes: u64,
    /// Bytes of the chunks of those that are not current, by number.
    sizes: BTreeMap<u64, u64>,
    /// How many readers a log has.
    readers: BTreeMap<u64, usize>,
    /// Logs that go with their last reader.
    doomed: BTreeSet<u64>,
}

fn namespace(group: u64) -> String {
    format!("raft.snapshot.{group}")
}

/// What becomes of a staged snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) enum Adoption {
    /// It becomes current.
    Newer(Current),
    /// It is not newer than the current one, and goes.
    Stale,
}

impl Snapshots {
    /// Removes what is not current, unless it is uncertain what that is.
    pub(super) fn open(
        journal: &Journal,
        group: u64,
        current: Option<Current>,
        sound: bool,
    ) -> Result<Arc<Self>, OpenError> {
        let namespace = namespace(group);
        let mut next_number = current.map_or(1, |current| current.number + 1);
        let mut remains = Commit::new().durability(Durability::Buffered);
        for info in journal.logs_of(&namespace) {
            next_number = next_number.max(info.name.id.saturating_add(1));
            if sound && current.is_none_or(|current| current.number != info.name.id) {
                remains = remains.delete(&journal.log(&namespace, info.name.id)?);
            }
        }
        journal.commit_blocking(remains)?;
        let current_bytes = match current {
            Some(current) => journal.log(&namespace, current.number)?.info().bytes,
            None => 0,
        };
        let table = Table {
            next_number,
            first_number: next_number,
            staged: BTreeMap::new(),
            adopted: current,
            current,
            current_bytes,
            sizes: BTreeMap::new(),
            readers: BTreeMap::new(),
            doomed: BTreeSet::new(),
        };
        Ok(Arc::new(Self { journal: journal.clone(), group, table: Mutex::new(table) }))
    }

    pub(super) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The index behind the current snapshot, its bytes, and those of the ones that are being
    /// stored to follow it.
    pub(super) fn sizes(&self) -> (u64, u64, Option<u64>) {
        let table = self.table.lock();
        let covered = table.current.map_or(0, |current| current.index.saturating_add(1));
        let staged = (!table.sizes.is_empty()).then(|| table.sizes.values().sum());
        (covered, table.current_bytes, staged)
    }

    fn log(&self, number: u64) -> Result<Log, StoreError> {
        self.journal.log(&namespace(self.group), number).map_err(store_error)
    }

    /// What the current snapshot covers; `None` when it is damaged.
    pub(super) fn current_meta(
        &self,
        current: Current,
    ) -> Result<Option<SnapshotMeta>, StoreError> {
        let log = self.log(current.number)?;
        if log.health() != Health::Intact || read_end(&log, current.chunks)?.is_none() {
            return Ok(None);
        }
        let agrees =
            |name: &SnapshotName| current.is(&name.meta) && name.identity == current.identity;
        Ok(read_name(&log)?.filter(agrees).map(|name| name.meta))
    }

    pub(super) async fn stage(this: &Arc<Self>, name: &SnapshotName) -> Result<Writer, StoreError> {
        let number = {
            let mut table = this.table.lock();
            table.next_number += 1;
            table.next_number - 1
        };
        let log = this.log(number)?;
        let mut record = BytesMut::new();
        record.put_u64_le(name.identity);
        record.put(codec::encode_snapshot(&name.meta));
        let meta = &name.meta;
        let current = Current {
            index: meta.index,
            term: meta.term,
            identity: name.identity,
            number,
            chunks: 0,
        };
        if log.health() != Health::Intact {
            // After damage elsewhere the journal cannot tell whether this log has been there.
            // Whatever it held, no state refers to it.
            let clean = Commit::new().delete(&log).durability(Durability::Buffered);
            this.journal.commit(clean).await.map_err(store_error)?;
        }
        let snapshots = Arc::clone(this);
        let pieces = Pieces::of(&this.journal);
        this.table.lock().sizes.insert(number, 0);
        let writer = Writer { snapshots, log, current, pieces, bytes: 0, finished: false };
        writer.write(Batch::from(record.freeze()), Durability::Written).await?;
        Ok(writer)
    }

    pub(super) fn unstage(&self, identity: u64) {
        let staged = self.table.lock().staged.remove(&identity);
        if let Some(staged) = staged {
            self.delete(staged.number);
        }
    }

    /// The group starts again: nobody will adopt what was staged, or is being staged, before.
    pub(super) fn unstage_all(&self) {
        let staged = {
            let mut table = self.table.lock();
            table.first_number = table.next_number;
            std::mem::take(&mut table.staged)
        };
        for staged in staged.values() {
            self.delete(staged.number);
        }
    }

    /// Decides about a staged snapshot. `None` when it is not there.
    pub(super) fn adopt(&self, name: &SnapshotName) -> Option<Adoption> {
        let mut table = self.table.lock();
        let staged = table.staged.remove(&name.identity)?;
        if table.adopted.is_some_and(|adopted| adopted.index >= staged.index) {
            drop(table);
            self.delete(staged.number);
            return Some(Adoption::Stale);
        }
        table.adopted = Some(staged);
        Some(Adoption::Newer(staged))
    }

    /// The write that makes it current is durable: the one before goes.
    pub(super) fn became_current(&self, current: Current) {
        let mut table = self.table.lock();
        let before = table.current.replace(current);
        table.current_bytes = table.sizes.remove(&current.number).unwrap_or(0);
        let Some(number) = before.map(|before| before.number) else { return };
        if table.readers.contains_key(&number) {
            table.doomed.insert(number);
            return;
        }
        drop(table);
        self.delete(number);
    }

    pub(super) fn open_current(this: &Arc<Self>) -> Result<Option<Reader>, StoreError> {
        let current = {
            let mut table = this.table.lock();
            let Some(current) = table.current else { return Ok(None) };
            *table.readers.entry(current.number).or_default() += 1;
            current
        };
        let mut reader = Reader {
            snapshots: Arc::clone(this),
            number: current.number,
            log: None,
            name: SnapshotName { meta: SnapshotMeta::default(), identity: current.identity },
            chunks: current.chunks,
            per_chunk: 1,
            bytes: 0,
        };
        let log = this.log(current.number)?;
        let name = read_name(&log)?.filter(|name| current.is(&name.meta));
        reader.name = name.ok_or_else(|| StoreError::Damaged("the snapshot's name".to_owned()))?;
        let end = read_end(&log, current.chunks)?;
        let end = end.ok_or_else(|| StoreError::Damaged("the snapshot's end".to_owned()))?;
        reader.bytes = end.bytes.unwrap_or_else(|| log.info().bytes);
        reader.per_chunk = end.per_chunk;
        reader.log = Some(log);
        Ok(Some(reader))
    }

    /// Removes a log by and by. When that fails the next opening does it.
    fn delete(&self, number: u64) {
        self.table.lock().sizes.remove(&number);
        if let Ok(log) = self.log(number) {
            let commit = Commit::new().delete(&log).durability(Durability::Buffered);
            let _ = self.journal.submit_in_turn(commit, |_| ());
        }
    }
}

/// `None` when it is damaged.
fn read_name(log: &Log) -> Result<Option<SnapshotName>, StoreError> {
    let named = |mut record: Bytes| {
        let identity = record.try_get_u64_le().ok()?;
        let meta = codec::decode_snapshot(record).ok()?;
        Some(SnapshotName { meta, identity })
    };
    Ok(intact(log.read(0))?.and_then(named))
}

/// What the record behind the chunks says.
struct End {
    /// The length of all chunks; `None` where it was written before it said that.
    bytes: Option<u64>,
    /// How many records each chunk takes. At least 1.
    per_chunk: u64,
}

/// `None` when it is damaged, or the log does not hold so many chunks.
fn read_end(log: &Log, chunks: u64) -> Result<Option<End>, StoreError> {
    let Range { start: 0, end } = log.bounds() else { return Ok(None) };
    let Some(last) = end.checked_sub(1) else { return Ok(None) };
    let understood = |mut record: Bytes| {
        record.try_get_u64_le().ok().filter(|count| *count == chunks)?;
        let bytes = record.try_get_u64_le().ok();
        let per_chunk = record.try_get_u64_le().unwrap_or(1);
        let records = chunks.checked_mul(per_chunk)?.checked_add(EXTRA_RECORDS)?;
        (per_chunk > 0 && records == end).then_some(End { bytes, per_chunk })
    };
    Ok(intact(log.read(last))?.and_then(understood))
}

/// How a chunk lies in records. Each chunk takes as many, so that its number says where they are;
/// the last ones of a short chunk are empty.
#[derive(Clone, Copy)]
pub(super) struct Pieces {
    /// The longest record, in bytes.
    pub(super) longest: usize,
    /// How many records a chunk takes.
    per_chunk: u64,
}

impl Pieces {
    /// One record, where the segments are large beside the longest chunk. A record that does not
    /// fit into the rest of a segment leaves that unused, and two snapshots of a third of the
    /// journal must find room in it.
    pub(super) fn of(journal: &Journal) -> Self {
        let (_, segment) = journal.limits();
        let longest = (segment / PARTS_OF_SEGMENT).max(MIN_PIECE_BYTES);
        let longest = longest.min(journal.max_batch_bytes() - ENDS_BYTES);
        let chunk = MAX_CHUNK_BYTES as u64;
        Self { longest: longest.min(chunk) as usize, per_chunk: chunk.div_ceil(longest) }
    }
}

/// Stages one snapshot.
pub(super) struct Writer {
    snapshots: Arc<Snapshots>,
    log: Log,
    current: Current,
    pieces: Pieces,
    /// Length of the chunks.
    bytes: u64,
    finished: bool,
}

impl Writer {
    async fn write(&self, records: Batch, durability: Durability) -> Result<(), StoreError> {
        let commit = Commit::new().append_batch(&self.log, records);
        let committed = self.snapshots.journal.commit(commit.durability(durability)).await;
        committed.map(drop).map_err(store_error)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            self.snapshots.delete(self.current.number);
        }
    }
}

#[async_trait]
impl SnapshotWriter for Writer {
    async fn append(&mut self, mut chunk: Bytes) -> Result<(), StoreError> {
        if chunk.is_empty() || chunk.len() > MAX_CHUNK_BYTES {
            return Err(StoreError::ChunkSize { bytes: chunk.len() });
        }
        // Written, not synced: the end record's sync covers all that was written before it.
        let bytes = chunk.len() as u64;
        let mut records = self.pieces.per_chunk;
        while chunk.len() > self.pieces.longest {
            let piece = chunk.split_to(self.pieces.longest);
            self.write(Batch::from(piece), Durability::Written).await?;
            records -= 1;
        }
        self.write(with_empty(chunk, records - 1), Durability::Written).await?;
        self.current.chunks += 1;
        self.bytes += bytes;
        self.snapshots.table.lock().sizes.insert(self.current.number, self.bytes);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        let mut end = BytesMut::with_capacity(24);
        end.put_u64_le(self.current.chunks);
        end.put_u64_le(self.bytes);
        if self.pieces.per_chunk > 1 {
            end.put_u64_le(self.pieces.per_chunk);
        }
        self.write(Batch::from(end.freeze()), Durability::Synced).await?;
        let mut table = self.snapshots.table.lock();
        if self.current.number < table.first_number {
            drop(table);
            return Err(StoreError::Abandoned);
        }
        table.staged.insert(self.current.identity, self.current);
        drop(table);
        self.finished = true;
        Ok(())
    }
}

/// A record and so many empty ones.
fn with_empty(record: Bytes, count: u64) -> Batch {
    if count == 0 {
        return Batch::from(record);
    }
    let mut batch = Batch::builder(record.len());
    batch.push(&record);
    (0..count).for_each(|_| batch.push(&[]));
    batch.finish()
}

/// Reads one snapshot, which stays until the reader goes.
pub(super) struct Reader {
    snapshots: Arc<Snapshots>,
    number: u64,
    log: Option<Log>,
    name: SnapshotName,
    chunks: u64,
    /// How many records each of them takes.
    per_chunk: u64,
    bytes: u64,
}

/// The chunk with this number, of a log that holds it.
fn read_chunk(log: &Log, number: u64, per_chunk: u64) -> Result<Bytes, ReadError> {
    let first = 1 + number * per_chunk;
    if per_chunk == 1 {
        return log.read(first);
    }
    let (mut rest, mut chunk) = (first..first + per_chunk, BytesMut::new());
    // Ends: each turn reads at least one record.
    while !rest.is_empty() {
        let records = log.read_range(rest.clone(), MAX_CHUNK_BYTES)?;
        rest.start += records.len() as u64;
        chunk.extend(records);
    }
    Ok(chunk.freeze())
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut table = self.snapshots.table.lock();
        let Some(readers) = table.readers.get_mut(&self.number) else { return };
        *readers -= 1;
        if *readers > 0 {
            return;
        }
        table.readers.remove(&self.number);
        let doomed = table.doomed.remove(&self.number);
        drop(table);
        if doomed {
            self.snapshots.delete(self.number);
        }
    }
}

#[cfg(feature = "testing")]
impl Reader {
    /// Name and content, read in this thread.
    pub(super) fn whole(&self) -> Result<(SnapshotName, Bytes), StoreError> {
        let damaged = || StoreError::Damaged("the snapshot's log".to_owned());
        let log = self.log.as_ref().ok_or_else(damaged)?;
        let mut whole = BytesMut::new();
        for number in 0..self.chunks {
            whole.put(read_chunk(log, number, self.per_chunk).map_err(|_| damaged())?);
        }
        Ok((self.name.clone(), whole.freeze()))
    }
}

#[async_trait]
impl SnapshotReader for Reader {
    fn name(&self) -> &SnapshotName {
        &self.name
    }

    fn chunks(&self) -> u64 {
        self.chunks
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    async fn chunk(&self, number: u64) -> Result<Bytes, ReadFailed> {
        let Some(log) = self.log.clone().filter(|_| number < self.chunks) else {
            return Err(ReadFailed::Absent);
        };
        let per_chunk = self.per_chunk;
        match blocking(move || read_chunk(&log, number, per_chunk)).await {
            Some(read) => read.map_err(read_failed),
            None => Err(ReadFailed::Failed(stopped())),
        }
    }
}
