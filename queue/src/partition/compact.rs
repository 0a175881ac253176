//! Compaction by key: a copy of the first part of the log without the records that later ones
//! replace, which then takes the place of that part in one write.
//!
//! A round reads the records behind the ones that have been compacted, notes the last offset of
//! each key until the map is full, and copies the log up to there. When the keys do not fit, there
//! are several rounds.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::generation::Generation;
use super::read::{batches, no_batch, position_of};
use super::{Partition, Shared, append};
use crate::config::Compaction;
use crate::core::State;
use crate::core::clean::{Clean, Copied, Filter, KeyMap, Left, Replacement};
use crate::error::{FetchError, StoreError};
use crate::format::{Batch, MAX_UNPACKED_BYTES};
use crate::store::{BATCH_OVERHEAD_BYTES, Done};

/// Bytes of batches that are read at once, one batch at least.
const READ_BYTES: usize = 256 << 10;
/// Rounds that begin again because a release has changed the log meanwhile.
const OVERTAKEN_AGAIN: usize = 3;
/// Before a store that was busy is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// What a compaction has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compacted {
    /// How often the log was copied: more than once when the keys did not fit into
    /// [`Config::max_compaction_map_bytes`](crate::Config::max_compaction_map_bytes).
    pub rounds: u32,
    /// Records that were removed.
    pub removed_records: u64,
    /// Records before this offset are compacted.
    pub compacted_offset: u64,
}

/// The right to compact a partition: one at a time.
pub(super) struct Compacting(Arc<Shared>);

impl Compacting {
    fn begin(shared: &Arc<Shared>) -> Option<Self> {
        let was_free = !shared.is_compacting.swap(true, Acquire);
        was_free.then(|| Self(Arc::clone(shared)))
    }
}

impl Drop for Compacting {
    fn drop(&mut self) {
        self.0.is_compacting.store(false, Release);
    }
}

impl std::fmt::Debug for Compacting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compacting").finish_non_exhaustive()
    }
}

/// The end of a round, which waits to be written.
#[derive(Debug)]
pub(super) struct Switch {
    pub(super) replacement: Replacement,
    /// The first position when the copy was begun.
    pub(super) first: u64,
    /// Held until the write has been answered, also when nobody waits for the answer.
    compacting: Arc<Compacting>,
    /// `false` when a release came first.
    answer: oneshot::Sender<Result<bool, StoreError>>,
}

impl Switch {
    pub(super) fn answer(self, result: Result<bool, StoreError>) {
        // First: whoever is told may begin another compaction at once.
        drop(self.compacting);
        drop(self.answer.send(result));
    }
}

/// Keeps to a number of bytes per second.
struct Pace {
    bytes_per_second: u64,
    bytes: u64,
    began: Instant,
}

impl Pace {
    /// Waits until `bytes` more may have been read or written.
    async fn pay(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        let seconds = self.bytes as f64 / self.bytes_per_second as f64;
        // A hundred years end no sooner than the process does.
        let longest = Duration::from_secs(100 * 365 * 86_400);
        let due = Duration::try_from_secs_f64(seconds).map_or(longest, |due| due.min(longest));
        if self.began.elapsed() < due {
            tokio::time::sleep_until(self.began + due).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}

/// A round's view of the partition.
struct Source {
    generation: Arc<Generation>,
    first: u64,
    /// Position of the last batch, which stays as it is: so an offset below the end of the log
    /// always has a record at or behind it.
    last: u64,
    clean: Clean,
    /// The first offset that has not been compacted, and where to look for it.
    from: u64,
    range: std::ops::Range<u64>,
}

/// What a round has found out before it copies.
struct Plan {
    filter: Filter,
    /// Position behind the last batch to copy.
    end: u64,
    /// Offset before which the keys are in the map.
    compacted_offset: u64,
    /// Bytes of the batches that were compacted for the first time.
    taken_bytes: u64,
}

impl Partition {
    /// Removes the records that later ones of the same key replace, as `compaction` says. Offsets
    /// stay; readers pass over those that have no record. `now_ms` is the time of day in ms since
    /// the UNIX epoch.
    ///
    /// The last batch stays as it is, and a record without a key stays.
    /// [`Queue::apply_compaction`](crate::Queue::apply_compaction) compacts the topics that ask for
    /// it.
    ///
    /// # Errors
    /// A batch cannot be read or unpacked, the store has no room for the copy, or another
    /// compaction of the partition is under way ([`StoreError::Busy`]). The log is then as it was,
    /// or as the last whole round has left it. A store that is busy is asked again.
    ///
    /// # Cancel safety
    /// The round under way is given up, unless its last write has been begun.
    pub async fn compact(
        &self,
        compaction: Compaction,
        now_ms: i64,
    ) -> Result<Compacted, FetchError> {
        let busy = |why: &str| FetchError::from(StoreError::Busy { why: why.to_owned() });
        let under_way = || busy("the partition is being compacted");
        let compacting = Arc::new(Compacting::begin(&self.shared).ok_or_else(under_way)?);
        append::retire_again(&self.shared);
        let mut pace = Pace {
            bytes_per_second: self.shared.config.max_compaction_bytes_per_second,
            bytes: 0,
            began: Instant::now(),
        };
        // What is appended from now on is for the next call.
        let last = self.shared.source(u64::MAX).last;
        let (mut done, mut overtaken) = (Compacted::default(), 0);
        // Ends: each round compacts a record more or removes one, is overtaken, or leaves.
        loop {
            let source = self.shared.source(last);
            done.compacted_offset = source.clean.offset;
            let prepared = self.shared.prepare(&source, compaction, now_ms, &mut pace).await;
            let (replacement, removed_records) = match prepared {
                Ok(Some(prepared)) => prepared,
                Ok(None) => return Ok(done),
                // What was to be copied has been released meanwhile.
                Err(FetchError::Store(StoreError::Released { .. }))
                    if overtaken < OVERTAKEN_AGAIN =>
                {
                    overtaken += 1;
                    continue;
                }
                Err(error) => {
                    drop(self.shared.discard_copy().await);
                    return Err(error);
                }
            };
            let (first, compacted_offset) = (source.first, replacement.clean.offset);
            drop(source);
            let switch = || {
                let (answer, answered) = oneshot::channel();
                let (replacement, compacting) = (replacement.clone(), Arc::clone(&compacting));
                append::switch(&self.shared, Switch { replacement, first, compacting, answer });
                answered
            };
            match self.shared.unless_busy(switch).await {
                Ok(true) => {
                    done.rounds += 1;
                    done.removed_records += removed_records;
                    if compacted_offset <= done.compacted_offset && removed_records == 0 {
                        return Ok(done);
                    }
                }
                Ok(false) if overtaken == OVERTAKEN_AGAIN => {
                    return Err(busy("each time a release came before the end of the compaction"));
                }
                Ok(false) => overtaken += 1,
                Err(error) => {
                    drop(self.shared.discard_copy().await);
                    return Err(error.into());
                }
            }
        }
    }

    /// Whether compacting is worth its reading and writing.
    #[cfg(feature = "journal")]
    pub(crate) fn is_compaction_due(&self, compaction: Compaction, now_ms: i64) -> bool {
        let inner = self.shared.inner.lock();
        inner.state.clean.is_due(compaction.min_tombstone_age_ms(), now_ms)
    }
}

impl Shared {
    /// The partition as it is now, up to the position `last`.
    fn source(&self, last: u64) -> Source {
        let inner = self.inner.lock();
        let State { first_position, next_position, start_offset, clean, .. } = &inner.state;
        let from = (*start_offset).max(clean.offset);
        Source {
            generation: Arc::clone(&inner.generation),
            first: *first_position,
            last: next_position.saturating_sub(1).min(last).max(*first_position),
            clean: *clean,
            from,
            range: inner.state.search_range(from),
        }
    }

    /// Writes the copy, and counts the records that are not in it; `None` when there is nothing to
    /// do.
    async fn prepare(
        &self,
        source: &Source,
        compaction: Compaction,
        now_ms: i64,
        pace: &mut Pace,
    ) -> Result<Option<(Replacement, u64)>, FetchError> {
        let Some(plan) = self.plan(source, compaction, now_ms, pace).await? else {
            return Ok(None);
        };
        let aged = (compaction.min_tombstone_age_ms(), now_ms);
        self.copy(source, plan, aged, pace).await.map(Some)
    }

    /// Fills the map of keys; `None` when there is nothing to do.
    async fn plan(
        &self,
        source: &Source,
        compaction: Compaction,
        now_ms: i64,
        pace: &mut Pace,
    ) -> Result<Option<Plan>, FetchError> {
        let log = source.generation.log();
        let mut keys = KeyMap::new(self.config.max_compaction_map_bytes);
        let mut position = position_of(log, source.range.clone(), source.from)?.min(source.last);
        let (mut compacted_offset, mut taken_bytes) = (source.from, 0);
        // Ends: each round reads at least one batch, or leaves.
        'reading: while position < source.last {
            let read = batches(log, position..source.last, READ_BYTES)?;
            if read.is_empty() {
                return Err(no_batch(position));
            }
            let bytes = read.iter().map(|batch| batch.bytes().len()).sum();
            for batch in read {
                if batch.last_offset() >= source.from {
                    if !compaction.takes(batch.header(), now_ms) {
                        break 'reading;
                    }
                    let noted = note_keys(&batch, source.from, &mut keys)?;
                    if noted > batch.base_offset() {
                        taken_bytes += batch.bytes().len() as u64;
                        compacted_offset = noted;
                    }
                    if noted <= batch.last_offset() {
                        // The map is full. A batch of which it has some keys is copied.
                        position += u64::from(noted > batch.base_offset().max(source.from));
                        break 'reading;
                    }
                }
                position += 1;
            }
            pace.pay(bytes).await;
        }
        let min_age_ms = compaction.min_tombstone_age_ms();
        let tombstones_before = match source.clean.tombstones {
            0 => 0,
            _ => source.clean.expired_offset(min_age_ms, now_ms),
        };
        if compacted_offset == source.from && tombstones_before == 0 {
            return Ok(None);
        }
        let filter = Filter { keys, tombstones_before };
        // What is in a copy is nowhere else: the next copy has all of it, whatever was noted.
        let end = position.max(source.clean.position);
        Ok(Some(Plan { filter, end, compacted_offset, taken_bytes }))
    }

    /// Writes the copy. `aged` has how long tombstones are kept, and the time of day.
    async fn copy(
        &self,
        source: &Source,
        plan: Plan,
        aged: (i64, i64),
        pace: &mut Pace,
    ) -> Result<(Replacement, u64), FetchError> {
        self.discard_copy().await?;
        let log = source.generation.log();
        let max_bytes = self.store.max_write_bytes().min(READ_BYTES * 4);
        let mut copied = Copied::new();
        let (mut removed_records, mut has_unfit) = (0, false);
        let mut position = source.first;
        // Ends: each round reads at least one batch, or fails.
        while position < plan.end {
            let read = batches(log, position..plan.end, READ_BYTES)?;
            if read.is_empty() {
                return Err(no_batch(position));
            }
            let (mut group, mut group_bytes) = (Vec::new(), 0);
            let mut bytes = 0;
            for batch in read {
                position += 1;
                bytes += batch.bytes().len();
                let applied = plan.filter.apply(&batch, self.max_batch_bytes);
                let (left, kept) = applied.map_err(|error| undecodable(&batch, error))?;
                let batch = match left {
                    Left::Nothing => None,
                    Left::Whole => Some(batch),
                    Left::Part(part) => Some(part),
                    Left::Unfit => {
                        has_unfit = true;
                        Some(batch)
                    }
                };
                removed_records += kept.before - kept.records;
                let Some(batch) = batch else { continue };
                let size = batch.bytes().len() + BATCH_OVERHEAD_BYTES;
                if group_bytes + size > max_bytes && !group.is_empty() {
                    self.append_copy(std::mem::take(&mut group)).await?;
                    group_bytes = 0;
                }
                copied.push(batch.header(), kept.tombstones, self.config.max_index_entries);
                bytes += batch.bytes().len();
                group_bytes += size;
                group.push(batch.bytes().clone());
            }
            if !group.is_empty() {
                self.append_copy(group).await?;
            }
            pace.pay(bytes).await;
        }
        let clean = aged_clean(source.clean, &plan, &copied, has_unfit, aged);
        let Copied { batches, index, .. } = copied;
        let (end, taken_bytes) = (plan.end, plan.taken_bytes);
        Ok((Replacement { end, batches, index, clean, taken_bytes }, removed_records))
    }

    async fn discard_copy(&self) -> Result<(), StoreError> {
        self.unless_busy(|| answered(|done| self.store.discard_copy(done))).await
    }

    async fn append_copy(&self, batches: Vec<Bytes>) -> Result<(), StoreError> {
        if self.inner.lock().stopped.is_some() {
            return Err(self.stopped());
        }
        let append = |done| self.store.append_copy(batches.clone(), done);
        self.unless_busy(|| answered(append)).await
    }

    /// Asks the store again while it is busy: under load it is so at times, and a copy of hours is
    /// not given up for it.
    async fn unless_busy<T>(
        &self,
        ask: impl Fn() -> oneshot::Receiver<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        // Ends: with an answer other than "busy", or with the partition.
        loop {
            match ask().await.map_err(|_| self.stopped())? {
                Err(StoreError::Busy { .. }) => tokio::time::sleep(BUSY_PAUSE).await,
                result => return result,
            }
            if self.inner.lock().stopped.is_some() {
                return Err(self.stopped());
            }
        }
    }
}

fn answered(ask: impl FnOnce(Done)) -> oneshot::Receiver<Result<(), StoreError>> {
    let (sender, answered) = oneshot::channel();
    ask(Done::new(move |result| drop(sender.send(result))));
    answered
}

/// Notes the keys of the records from `from` on. Returns the offset before which all are noted:
/// behind the batch, unless the map is full.
fn note_keys(batch: &Batch, from: u64, keys: &mut KeyMap) -> Result<u64, FetchError> {
    let records = batch.records(MAX_UNPACKED_BYTES).map_err(|error| undecodable(batch, error))?;
    for record in records {
        let record = record.map_err(|error| undecodable(batch, error))?;
        let Some(key) = record.key.filter(|_| record.offset >= from) else { continue };
        if !keys.note(&key, record.offset) {
            return Ok(record.offset);
        }
    }
    Ok(batch.last_offset() + 1)
}

fn undecodable(batch: &Batch, error: crate::format::FormatError) -> FetchError {
    let (offset, next_offset) = (batch.base_offset(), batch.last_offset() + 1);
    FetchError::Undecodable { offset, next_offset, error }
}

/// What there is to know of the copy. Tombstones that have been compacted begin to age, unless
/// those of an earlier round still do.
fn aged_clean(
    before: Clean,
    plan: &Plan,
    copied: &Copied,
    has_unfit: bool,
    (min_age_ms, now_ms): (i64, i64),
) -> Clean {
    let is_over = before.aging_offset == 0 || before.expired_offset(min_age_ms, now_ms) > 0;
    // A batch that could not be packed again has records which the next compaction has to find.
    let offset = if has_unfit { before.offset } else { plan.compacted_offset.max(before.offset) };
    let (aging_offset, aging_since_ms) =
        if is_over { (offset, now_ms) } else { (before.aging_offset, before.aging_since_ms) };
    Clean {
        offset,
        position: plan.end,
        bytes: copied.bytes,
        dirty_bytes: before.dirty_bytes,
        tombstones: copied.tombstones,
        aging_offset,
        aging_since_ms,
    }
}
