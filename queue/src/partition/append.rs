//! Appending: a write takes all that wait. In a journal the next one may be submitted before the
//! last one has been answered, so that the disk does not wait for the partition.
//!
//! Order: writes are submitted one by one by the thread that drives the partition, and the store
//! keeps that order. What a write on its way will add to the state (offsets, sequences of
//! producers) is staged; the state itself, and what readers see, changes only when the write has
//! been acknowledged. So a write that is decided behind others rests on what may still fail. It
//! names its position, by which the store rejects it when one of them has; and when one has failed,
//! nothing more begins until all have been answered and what was staged has been given up.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use tokio::sync::oneshot;

use super::compact::Switch;
use super::generation::Generation;
use super::turn::{Turn, Waiting};
use super::{Appended, Covered, Inner, Shared};
use crate::core::{Admission, Fence, Staged};
use crate::error::{ProduceError, StoreError};
use crate::format::{Batch, FormatError};
use crate::store::{BATCH_OVERHEAD_BYTES, Done, Durability, PartitionLog, Replace, Retire, Write};

/// Ids rise, and a forgotten one takes all below along: one id must not use them all up.
const MAX_PRODUCER_ID: i64 = 1 << 62;
/// Bytes of batches that one write takes, with the overhead of each.
const GROUP_BYTES: usize = 4 << 20;

/// What a batch that waits has in memory besides its bytes: its place, its answer, what they grow
/// by.
const PLACE_BYTES: usize = 512;

/// What a batch takes of `max_pending_bytes`.
fn held_bytes(batch: &Batch) -> usize {
    batch.bytes().len() + PLACE_BYTES
}

/// Is called without a lock.
pub(super) type Answer = Box<dyn FnOnce(Result<Appended, ProduceError>) + Send>;

/// Answers through a channel.
pub(super) fn answer_by(sender: oneshot::Sender<Result<Appended, ProduceError>>) -> Answer {
    Box::new(move |result| drop(sender.send(result)))
}

/// What waits to be written.
#[derive(Default)]
pub(super) struct Queue {
    appends: VecDeque<Pending>,
    /// [`held_bytes`] of `appends` and of the writes on their way.
    pub(super) bytes: usize,
    upkeep: VecDeque<Upkeep>,
    /// Generations that the store did not delete when it was asked to: the next compaction asks
    /// again.
    unretired: Vec<Retire>,
    turns: VecDeque<Waiting>,
    /// The latest write was a turn: appends go first.
    was_turn: bool,
    /// A snapshot is due that no append has taken along.
    wants_snapshot: bool,
    /// The batches of the writes on their way, and of the one that is being put together.
    /// Invariant: empty when nothing is on its way; otherwise each batch is to be acknowledged in
    /// this order, and none once one before it has failed.
    pub(super) staged: Staged,
    /// Writes on their way, and the turn that is taken. Invariant: at most `max_in_flight`.
    in_flight: usize,
    /// No other write begins before the last one on its way, or the turn, is over. Only writes that
    /// do nothing but append batches share their way.
    is_alone: bool,
    /// A write has failed, and those that were decided behind it will. Invariant: something is on
    /// its way.
    has_failed: bool,
    /// A thread is in `drive`, and looks again before it leaves.
    is_driven: bool,
}

struct Pending {
    batch: Batch,
    durability: Durability,
    answer: Answer,
}

/// What waits to be written, and is no batch.
enum Upkeep {
    Release(Release),
    Replace(Box<Switch>),
    Retire(Retire),
}

/// A release that waits to be written.
#[derive(Debug)]
pub(super) struct Release {
    pub(super) position: u64,
    pub(super) start_offset: u64,
    /// The generation in which `position` was looked up.
    pub(super) generation: u64,
    /// Where the log begins then; `None` when the position is of a generation that has been
    /// replaced, and nothing was released.
    pub(super) answer: oneshot::Sender<Result<Option<u64>, StoreError>>,
}

/// What the partition does next.
enum Next {
    Turn(Waiting),
    Write(Write, Flight),
}

/// Something that is on its way to the store.
pub(super) enum Flight {
    Group(Group),
    Release { release: Release, has_snapshot: bool },
    Replace(Box<Switch>),
    Retire(Retire),
}

/// Batches that are written together.
#[derive(Default)]
pub(super) struct Group {
    /// A producer is forgotten for the last batch: which one depends on all before it.
    pub(super) forgets: bool,
    pub(super) batches: Vec<(Batch, Answer)>,
    /// Repeated batches whose first attempt is not durable enough yet.
    pub(super) duplicates: Vec<(Appended, Answer)>,
    /// Bytes that the group has in the queue's account.
    pub(super) bytes: usize,
    pub(super) durability: Option<Durability>,
    pub(super) has_snapshot: bool,
}

/// Queues a batch. Unless the caller has bounded its own bytes, `max_pending_bytes` does.
pub(super) fn begin(
    shared: &Arc<Shared>,
    batch: Batch,
    durability: Durability,
    has_bound: bool,
    answer: Answer,
) {
    let bytes = held_bytes(&batch);
    let rejection = {
        let mut inner = shared.inner.lock();
        let rejection = shared.check(&inner, &batch).or_else(|| {
            let (pending_bytes, limit) = (inner.queue.bytes, shared.config.max_pending_bytes);
            // One batch of the largest size has room in any case.
            (!has_bound && pending_bytes > 0 && pending_bytes + bytes > limit)
                .then_some(ProduceError::Busy { pending_bytes, limit })
        });
        match rejection {
            Some(error) => {
                inner.rejected += 1;
                Some((answer, error))
            }
            None => {
                inner.queue.bytes += bytes;
                inner.queue.appends.push_back(Pending { batch, durability, answer });
                None
            }
        }
    };
    match rejection {
        Some((answer, error)) => answer(Err(error)),
        None => drive(shared),
    }
}

/// Queues a turn: `then` is called when no write is on its way, and none begins until the turn is
/// over. It is called without a lock, and with an error when the partition has stopped.
pub(super) fn wait_for_turn(shared: &Arc<Shared>, then: Waiting) {
    let stopped = {
        let mut inner = shared.inner.lock();
        match &inner.stopped {
            Some(_) => Some(then),
            None => {
                inner.queue.turns.push_back(then);
                None
            }
        }
    };
    match stopped {
        Some(then) => then(Err(shared.stopped())),
        None => drive(shared),
    }
}

pub(super) fn release(shared: &Arc<Shared>, release: Release) {
    queue_upkeep(shared, Upkeep::Release(release));
}

/// Queues the end of a compaction.
pub(super) fn switch(shared: &Arc<Shared>, switch: Switch) {
    queue_upkeep(shared, Upkeep::Replace(Box::new(switch)));
}

/// A generation of a partition's log.
pub(super) fn generation(partition: Weak<Shared>, log: Arc<dyn PartitionLog>) -> Arc<Generation> {
    let queue_retire = move |generation: Retire| {
        if let Some(partition) = partition.upgrade() {
            retire(&partition, generation);
        }
    };
    Arc::new(Generation::new(log, Box::new(queue_retire)))
}

/// Queues the deletion of a generation that nobody reads any more.
fn retire(shared: &Arc<Shared>, retire: Retire) {
    queue_upkeep(shared, Upkeep::Retire(retire));
}

/// Queues the deletion of generations that was not possible before.
pub(super) fn retire_again(shared: &Arc<Shared>) {
    let unretired = std::mem::take(&mut shared.inner.lock().queue.unretired);
    for generation in unretired {
        retire(shared, generation);
    }
}

fn queue_upkeep(shared: &Arc<Shared>, upkeep: Upkeep) {
    let stopped = {
        let mut inner = shared.inner.lock();
        match &inner.stopped {
            Some(_) => Some(upkeep),
            None => {
                inner.queue.upkeep.push_back(upkeep);
                None
            }
        }
    };
    match stopped {
        Some(upkeep) => upkeep.fail(&shared.stopped()),
        None => drive(shared),
    }
}

impl Upkeep {
    fn fail(self, error: &StoreError) {
        match self {
            Self::Release(release) => drop(release.answer.send(Err(error.clone()))),
            Self::Replace(switch) => switch.answer(Err(error.clone())),
            // What is left of it is deleted when the partition is opened again.
            Self::Retire(_) => {}
        }
    }
}

/// Rejects all that waits, and all that comes.
pub(super) fn stop(shared: &Arc<Shared>, error: StoreError) {
    let (appends, upkeep, turns, readers) = {
        let mut inner = shared.inner.lock();
        inner.stopped.get_or_insert(error);
        let appends = std::mem::take(&mut inner.queue.appends);
        inner.queue.bytes -= appends.iter().map(|p| held_bytes(&p.batch)).sum::<usize>();
        let upkeep = std::mem::take(&mut inner.queue.upkeep);
        let turns = std::mem::take(&mut inner.queue.turns);
        (appends, upkeep, turns, inner.waiters.close())
    };
    let error = shared.stopped();
    for pending in appends {
        (pending.answer)(Err(error.clone().into()));
    }
    for upkeep in upkeep {
        upkeep.fail(&error);
    }
    for then in turns {
        then(Err(error.clone()));
    }
    readers.into_iter().for_each(std::task::Waker::wake);
}

impl Shared {
    /// Why the batch cannot be queued.
    pub(super) fn check(&self, inner: &Inner, batch: &Batch) -> Option<ProduceError> {
        if let Some(error) = &inner.stopped {
            return Some(error.as_stopped().into());
        }
        let header = batch.header();
        if header.is_control() {
            return Some(ProduceError::Unsupported { what: "control" });
        }
        if header.is_transactional() {
            return Some(ProduceError::Unsupported { what: "transactional" });
        }
        if header.producer_id > MAX_PRODUCER_ID {
            let (value, rule) = (header.producer_id, "must be at most 2^62");
            return Some(FormatError::Header { field: "producer id", value, rule }.into());
        }
        let bytes = header.bytes;
        if bytes > self.max_batch_bytes {
            let (bytes, limit) = (bytes as u64, self.max_batch_bytes as u64);
            return Some(FormatError::TooLarge { bytes, limit }.into());
        }
        None
    }

    /// Counts what is on its way, too: opening reads no more batches than it says.
    fn is_snapshot_due(&self, inner: &Inner) -> bool {
        let next_position = inner.state.next_position + inner.queue.staged.batches();
        let behind = next_position - inner.covered.position;
        behind >= self.config.snapshot_every || inner.bytes_behind >= self.snapshot_bytes
    }

    pub(super) fn stopped(&self) -> StoreError {
        let inner = self.inner.lock();
        let error = inner.stopped.as_ref().map(StoreError::as_stopped);
        error.unwrap_or_else(|| StoreError::Stopped { why: String::new() })
    }
}

/// Leaves `drive`, also when the store panics.
struct Driving<'a>(&'a Shared);

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        self.0.inner.lock().queue.is_driven = false;
    }
}

/// Begins writes until as many are on their way as may be, or nothing waits.
///
/// The store may answer before `submit` returns, or in another thread before this one has left:
/// whoever finds that the partition is driven leaves the rest to the driver, which looks again.
pub(super) fn drive(shared: &Arc<Shared>) {
    // Ends: each round takes at least one append, release, turn or wish for a snapshot off.
    loop {
        let mut answers = Answers::default();
        let next = {
            let mut inner = shared.inner.lock();
            let queue = &inner.queue;
            let has_room = queue.in_flight < shared.max_in_flight;
            if queue.is_driven || !has_room || queue.is_alone || queue.has_failed {
                return;
            }
            if inner.stopped.is_some() {
                // What still waits is answered by `stop`.
                return;
            }
            let next = next(shared, &mut inner, &mut answers);
            if let Some(next) = &next {
                inner.queue.in_flight += 1;
                inner.queue.is_alone = next.is_alone();
                inner.queue.is_driven = true;
            }
            next
        };
        answers.send();
        let Some(next) = next else { return };
        let driving = Driving(shared);
        let (write, flight) = match next {
            Next::Turn(then) => {
                then(Ok(Turn::new(shared)));
                drop(driving);
                continue;
            }
            Next::Write(write, flight) => (write, flight),
        };
        let partition = Arc::clone(shared);
        let done = Done::new(move |result| {
            land(&partition, flight, result);
            drive(&partition);
        });
        shared.store.submit(write, done);
        drop(driving);
    }
}

impl Next {
    /// Whether no other write may begin before it is over.
    fn is_alone(&self) -> bool {
        match self {
            Self::Write(_, Flight::Group(group)) => group.has_snapshot || group.forgets,
            _ => true,
        }
    }
}

impl Queue {
    /// A write has been answered.
    fn end_write(&mut self, is_ok: bool) {
        self.in_flight -= 1;
        self.has_failed |= !is_ok;
        if self.in_flight == 0 {
            // Those ahead of the write that lets none begin behind it have ended before.
            (self.is_alone, self.has_failed) = (false, false);
            // Empty by now, unless a write has failed or a turn was given up.
            self.staged.clear();
        }
    }

    /// A turn is over, and nothing was written.
    pub(super) fn give_up_turn(&mut self) {
        self.end_write(true);
    }
}

/// What is to be written next, if anything can be now. Only batches may follow a write that is on
/// its way.
fn next(shared: &Shared, inner: &mut Inner, answers: &mut Answers) -> Option<Next> {
    let queue = &mut inner.queue;
    let has_others = !queue.appends.is_empty() || !queue.upkeep.is_empty();
    let is_turn = !(queue.turns.is_empty() || queue.was_turn && has_others);
    if queue.in_flight > 0 && (is_turn || !queue.upkeep.is_empty()) {
        return None;
    }
    queue.was_turn = is_turn;
    if is_turn {
        return queue.turns.pop_front().map(Next::Turn);
    }
    next_flight(shared, inner, answers).map(|(write, flight)| Next::Write(write, flight))
}

/// Answers that are given when the lock has been released.
#[derive(Default)]
struct Answers {
    appends: Vec<(Answer, Result<Appended, ProduceError>)>,
    /// What was looked up in a log that has changed since.
    releases: Vec<Release>,
    switches: Vec<Switch>,
}

impl Answers {
    fn send(self) {
        for (answer, result) in self.appends {
            answer(result);
        }
        for release in self.releases {
            drop(release.answer.send(Ok(None)));
        }
        for switch in self.switches {
            switch.answer(Ok(false));
        }
    }
}

fn next_flight(
    shared: &Shared,
    inner: &mut Inner,
    answers: &mut Answers,
) -> Option<(Write, Flight)> {
    let upkeep = next_upkeep(shared, inner, answers);
    if upkeep.is_some() {
        return upkeep;
    }
    let position = inner.state.next_position + inner.queue.staged.batches();
    let mut group = next_group(shared, inner, answers);
    if std::mem::take(&mut inner.queue.wants_snapshot) && group.durability.is_none() {
        group.has_snapshot = true;
        group.durability = Some(Durability::Written);
    }
    let durability = group.durability?;
    let batches = group.batches.iter().map(|(batch, _)| batch.bytes().clone()).collect();
    let position = (inner.queue.in_flight > 0).then_some(position);
    let snapshot = group.has_snapshot.then(|| inner.state.encode());
    let write = Write { batches, position, snapshot, durability, ..Write::default() };
    Some((write, Flight::Group(group)))
}

/// Takes releases and the like off the queue, up to one that can be written.
fn next_upkeep(
    shared: &Shared,
    inner: &mut Inner,
    answers: &mut Answers,
) -> Option<(Write, Flight)> {
    // Ends: each round takes one off the queue.
    loop {
        match inner.queue.upkeep.pop_front()? {
            Upkeep::Release(release) if release.generation != inner.generation.number() => {
                answers.releases.push(release);
            }
            Upkeep::Release(release) => {
                // Up to where the snapshot speaks nothing is lost with the batches, and a store
                // takes such a release when it is full.
                let snapshot = (release.position > inner.covered.position).then(|| {
                    let mut state = inner.state.clone();
                    state.release(release.position, release.start_offset);
                    state.encode()
                });
                let has_snapshot = snapshot.is_some();
                let position = Some(release.position);
                let write = Write { release: position, snapshot, ..Write::default() };
                return Some((write, Flight::Release { release, has_snapshot }));
            }
            // Batches that the copy has are not in the log any more.
            Upkeep::Replace(switch) if switch.first != inner.state.first_position => {
                answers.switches.push(*switch);
            }
            Upkeep::Replace(switch) => {
                let mut state = inner.state.clone();
                state.replace(&switch.replacement, shared.config.limits());
                let (end, batches) = (switch.replacement.end, switch.replacement.batches);
                let replace = Some(Replace { end, batches });
                let write = Write { replace, snapshot: Some(state.encode()), ..Write::default() };
                return Some((write, Flight::Replace(switch)));
            }
            Upkeep::Retire(retire) => {
                let durability = Durability::Written;
                let write = Write { retire: Some(retire), durability, ..Write::default() };
                return Some((write, Flight::Retire(retire)));
            }
        }
    }
}

/// Takes appends off the queue for one write, and gives them their offsets.
fn next_group(shared: &Shared, inner: &mut Inner, answers: &mut Answers) -> Group {
    let mut group = Group::default();
    // A snapshot has the state, so nothing may be on its way that is not in it.
    let is_idle = inner.queue.in_flight == 0;
    group.has_snapshot = shared.is_snapshot_due(inner);
    if group.has_snapshot && !is_idle {
        return Group::default();
    }
    // With the overhead, the largest batch and the largest snapshot fill a write.
    let most = GROUP_BYTES.min(shared.max_batch_bytes + BATCH_OVERHEAD_BYTES);
    let mut counted = 0;
    // Ends: each round takes an append off the queue, or leaves.
    while let Some(pending) = inner.queue.appends.front() {
        let bytes = pending.batch.bytes().len();
        let is_full = counted + bytes + BATCH_OVERHEAD_BYTES > most;
        if is_full && group.durability.is_some() {
            break;
        }
        let header = *pending.batch.header();
        let admission = inner.state.admit(&inner.queue.staged, &header);
        let last_offset_of = |base_offset: u64| base_offset + header.last_offset_delta as u64;
        let waits = match admission {
            Admission::Append => false,
            // It is answered when its first attempt has been, or in a write with a snapshot.
            Admission::Duplicate(base_offset) => {
                let last_offset = last_offset_of(base_offset);
                !is_idle && !inner.is_durable(last_offset, pending.durability)
            }
            // What it is rejected for may fail.
            Admission::Reject(_) => inner.queue.staged.concerns(&header),
        };
        if waits {
            break;
        }
        let Some(Pending { batch, durability, answer }) = inner.queue.appends.pop_front() else {
            break;
        };
        match admission {
            Admission::Append => {
                let Inner { state, queue, .. } = &mut *inner;
                let batch = batch.placed(state.offset_behind(&queue.staged), 0);
                group.forgets = state.stage(&mut queue.staged, &header, shared.config.limits());
                counted += bytes + BATCH_OVERHEAD_BYTES;
                group.bytes += held_bytes(&batch);
                group.durability = group.durability.max(Some(durability));
                group.batches.push((batch, answer));
                if group.forgets {
                    break;
                }
            }
            Admission::Duplicate(base_offset) => {
                inner.duplicates += 1;
                let last_offset = last_offset_of(base_offset);
                let appended = Appended { base_offset, last_offset, is_duplicate: true };
                if inner.is_durable(last_offset, durability) {
                    inner.queue.bytes -= held_bytes(&batch);
                    answers.appends.push((answer, Ok(appended)));
                } else {
                    // The snapshot gives the write something to make durable.
                    group.bytes += held_bytes(&batch);
                    group.has_snapshot = true;
                    group.durability = group.durability.max(Some(durability));
                    group.duplicates.push((appended, answer));
                }
            }
            Admission::Reject(fence) => {
                inner.rejected += 1;
                inner.queue.bytes -= held_bytes(&batch);
                answers.appends.push((answer, Err(rejection(header.producer_id, fence))));
            }
        }
    }
    group
}

fn rejection(id: i64, fence: Fence) -> ProduceError {
    match fence {
        Fence::Epoch { current } => ProduceError::Fenced { id, current },
        Fence::Gap { expected, found } => ProduceError::OutOfOrder { id, expected, found },
        Fence::Old { found } => ProduceError::DuplicateForgotten { id, found },
        Fence::Unknown => ProduceError::UnknownProducer { id },
    }
}

/// Takes what the store says about a write.
pub(super) fn land(shared: &Arc<Shared>, flight: Flight, result: Result<(), StoreError>) {
    let mut failed = stops(&result).cloned();
    match flight {
        Flight::Group(group) => failed = land_group(shared, group, result),
        Flight::Release { release, has_snapshot } => {
            land_release(shared, release, has_snapshot, result);
        }
        Flight::Replace(switch) => land_switch(shared, *switch, result),
        Flight::Retire(retire) => {
            let mut inner = shared.inner.lock();
            inner.end_write(&result);
            if result.is_err() {
                inner.queue.unretired.push(retire);
            }
        }
    }
    if let Some(error) = failed {
        // A store that says `Stopped` has not failed here: a leader of a replicated partition was
        // replaced, the store was closed, or another user of its journal has met the failure.
        if matches!(error, StoreError::Failed { .. }) {
            tracing::error!(target: "voussoir::queue", %error, "the partition has stopped");
        } else {
            tracing::warn!(target: "voussoir::queue", %error, "the partition has stopped");
        }
        stop(shared, error);
    }
}

/// The error after which nothing more may be written. An unknown outcome must not be followed by
/// other batches: which offsets they would get depends on it.
fn stops(result: &Result<(), StoreError>) -> Option<&StoreError> {
    result
        .as_ref()
        .err()
        .filter(|error| matches!(error, StoreError::Failed { .. } | StoreError::Stopped { .. }))
}

impl Inner {
    /// Ends a write. When its outcome is unknown the partition stops in the same critical section:
    /// another write must not begin before the answers are given.
    fn end_write(&mut self, result: &Result<(), StoreError>) {
        self.queue.end_write(result.is_ok());
        if let Some(error) = stops(result) {
            self.stopped.get_or_insert_with(|| error.clone());
        }
    }

    /// Whether the records up to this offset are as durable as a producer asks.
    fn is_durable(&self, last_offset: u64, durability: Durability) -> bool {
        last_offset < self.synced_offset
            || (durability == Durability::Buffered && last_offset < self.state.next_offset)
    }

    /// An acknowledged group follows what the state has. Otherwise the store has written it behind
    /// one that it did not write, and the log holds what nobody decided.
    fn check_order(&self, group: &Group) -> Result<(), StoreError> {
        let first = group.batches.first().map(|(batch, _)| batch.base_offset());
        if first.is_none_or(|first| first == self.state.next_offset) {
            return Ok(());
        }
        let why = "the store wrote it behind a write that had failed".to_owned();
        Err(StoreError::Failed { why })
    }
}

/// Returns the error after which the partition has to stop.
fn land_group(
    shared: &Arc<Shared>,
    group: Group,
    result: Result<(), StoreError>,
) -> Option<StoreError> {
    let (result, readers) = {
        let mut inner = shared.inner.lock();
        let inner = &mut *inner;
        let result = result.and_then(|()| inner.check_order(&group));
        inner.queue.bytes -= group.bytes;
        let readers = match &result {
            Ok(()) => apply_group(shared, inner, &group),
            Err(_) => Vec::new(),
        };
        inner.end_write(&result);
        (result, readers)
    };
    let Group { batches, duplicates, .. } = group;
    for (batch, answer) in batches {
        let (base_offset, last_offset) = (batch.base_offset(), batch.last_offset());
        let appended = Appended { base_offset, last_offset, is_duplicate: false };
        answer(result.clone().map(|()| appended).map_err(ProduceError::Store));
    }
    for (appended, answer) in duplicates {
        answer(result.clone().map(|()| appended).map_err(ProduceError::Store));
    }
    readers.into_iter().for_each(std::task::Waker::wake);
    stops(&result).cloned()
}

/// Takes a group that is in the store now into the state. Returns the readers that wait for it.
fn apply_group(shared: &Shared, inner: &mut Inner, group: &Group) -> Vec<std::task::Waker> {
    if group.has_snapshot {
        inner.covered = Covered::by(&inner.state);
        inner.bytes_behind = 0;
    }
    let limits = shared.config.limits();
    for (batch, _) in &group.batches {
        inner.bytes_behind += batch.bytes().len() as u64;
        let applied = inner.state.apply_staged(&mut inner.queue.staged, batch.header(), limits);
        debug_assert_eq!(applied, Ok(()), "offsets are given in order");
        inner.tail.push(batch.clone());
    }
    inner.appended += group.batches.len() as u64;
    if group.durability == Some(Durability::Synced) {
        inner.synced_offset = inner.state.next_offset;
    }
    inner.queue.wants_snapshot = inner.queue.was_turn && shared.is_snapshot_due(inner);
    inner.waiters.take_below(inner.state.next_offset)
}

fn land_release(
    shared: &Arc<Shared>,
    mut release: Release,
    has_snapshot: bool,
    result: Result<(), StoreError>,
) {
    let mut inner = shared.inner.lock();
    inner.end_write(&result);
    match result {
        Ok(()) => {
            inner.state.release(release.position, release.start_offset);
            inner.tail.release(release.position);
            if has_snapshot {
                inner.covered = Covered::by(&inner.state);
                inner.bytes_behind = 0;
            }
            let start = inner.state.start_offset;
            drop(inner);
            drop(release.answer.send(Ok(Some(start))));
        }
        Err(StoreError::Full { .. })
            if has_snapshot
                && inner.covered.position > inner.state.first_position
                && inner.stopped.is_none() =>
        {
            // There is no room for a snapshot. What the last one covers can go without.
            release.position = inner.covered.position;
            release.start_offset = inner.covered.offset;
            inner.queue.upkeep.push_front(Upkeep::Release(release));
        }
        Err(error) => {
            drop(inner);
            drop(release.answer.send(Err(error)));
        }
    }
}

/// Ends a compaction: readers that come now read from the copy, and those that are reading go on
/// in the generation that they began with.
fn land_switch(shared: &Arc<Shared>, switch: Switch, result: Result<(), StoreError>) {
    let mut replaced = None;
    let log = result.is_ok().then(|| shared.store.log());
    {
        let mut inner = shared.inner.lock();
        let inner = &mut *inner;
        inner.end_write(&result);
        if let Some(log) = log {
            let end = switch.replacement.end;
            inner.state.replace(&switch.replacement, shared.config.limits());
            inner.tail.release(end);
            inner.covered = Covered::by(&inner.state);
            inner.bytes_behind = 0;
            inner.synced_offset = inner.state.next_offset;
            let successor = generation(Arc::downgrade(shared), log);
            inner.generation.replaced_by(Arc::clone(&successor), end);
            replaced = Some(std::mem::replace(&mut inner.generation, successor));
        }
    }
    drop(replaced);
    switch.answer(result.map(|()| true));
}
