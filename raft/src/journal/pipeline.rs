//! Writes on their way to the journal, in order.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use voussoir_journal::{Batch, Commit, Durability, Error, Journal, Lease, Log};

use super::room::{Account, taken};
use super::state::State;
use super::{Current, Identity, entries_log, max_entry_bytes, store_error};
use crate::codec;
use crate::store::{Completion, LogWrite, Room, StoreError};
use crate::types::Entry;

mod overtaking;

/// About how long a batch of entries is, in bytes, where the segments allow it: long enough to cost
/// nothing beside a sync. One entry may exceed it.
const BATCH_BYTES: usize = 256 << 10;

/// Between two looks whether another restore of the group has ended.
const TURN: Duration = Duration::from_millis(10);

/// Between two attempts to write what the journal had no room for.
pub(super) const RETRY: Duration = Duration::from_millis(100);

/// After so many attempts in a row nobody else is about to make room.
const STUCK_TRIES: u32 = 20;

/// Orders the writes of one group.
///
/// The journal keeps commits to the same log in order, but lets small commits overtake large ones
/// of other logs. So commits follow each other freely while all of them append entries, and one
/// that does not (a vote, a release) waits for those before it, as those after it wait for it.
///
/// A commit that the journal has no room for did not happen. It stays, with all that follow it, and
/// is tried again until there is room. Each commit of entries names the position where they stand,
/// so that the journal takes none that follows one that it has refused.
#[derive(Debug)]
pub(super) struct Pipeline {
    journal: Journal,
    state: Log,
    queue: Mutex<Queue>,
}

#[derive(Debug)]
struct Queue {
    /// As the last write leaves it.
    stored: State,
    /// As the last write that has landed left it.
    landed_state: State,
    /// Position of the next state record.
    state_end: u64,
    /// Where entries are written.
    entries: Log,
    /// The one before, which has lost some, while they are being brought back.
    damaged: Option<Log>,
    /// Bounds of the log of entries, as the last write leaves them.
    first: u64,
    end: u64,
    /// Not handed to the journal yet.
    backlog: VecDeque<Step>,
    /// Handed to the journal, the oldest first.
    flying: VecDeque<Flight>,
    /// Number of the first of `flying`.
    landed: u64,
    /// All of `flying` append entries.
    in_order: bool,
    /// How often that was tried again in vain.
    tries: u32,
    /// A task is about to try that again.
    retries: bool,
    /// Where such a task runs: the runtime of the group. The journal's threads have none.
    runtime: Option<Handle>,
    account: Account,
    failed: Option<StoreError>,
}

/// One commit: a part of a write or all of it.
#[derive(Debug)]
struct Step {
    /// All of it but the state record.
    commit: Commit,
    /// What the state record says, if there is one.
    state: Option<State>,
    /// Appends entries, and changes their log in no other way.
    appends: bool,
    /// The first index that it appends or cuts; `u64::MAX` for none.
    from: u64,
    /// The index behind the last entry that it appends; 0 for none.
    behind: u64,
    /// Begins a write.
    is_first: bool,
    /// Entries at and after this index go with it.
    cuts: Option<u64>,
    /// Entries before this index go with it, 0 for none and other data.
    releases: Option<u64>,
    /// Bytes of the entries of the whole write that need room beside the next snapshots, and the
    /// index behind the last. For the first part: nobody is told of a write that waits half
    /// written, so that no snapshot of what it brings could make room for the rest. Nothing where
    /// no entry has data: a leader begins with such a one, and before that is committed no
    /// snapshot may make room.
    admits: (u64, u64),
    /// The bytes that are on their way no more. For the last part.
    lands: u64,
    /// The snapshot that it makes current, where it does nothing else.
    adopts: Option<Current>,
    /// For the last part.
    done: Option<Completion>,
    /// Of the writes that it has overtaken.
    overtaken: Vec<Completion>,
}

impl Step {
    /// One that appends nothing, and does nothing that later ones look at.
    fn new(commit: Commit) -> Self {
        Self {
            commit,
            state: None,
            appends: false,
            from: u64::MAX,
            behind: 0,
            is_first: false,
            cuts: None,
            releases: None,
            admits: (0, 0),
            lands: 0,
            adopts: None,
            done: None,
            overtaken: Vec::new(),
        }
    }

    /// Adds what there is to tell when it has ended so.
    fn tell(self, result: &Result<(), StoreError>, told: &mut Told) {
        let overtaken = || result.clone().and(Err(StoreError::Overtaken));
        told.extend(self.overtaken.into_iter().map(|done| (done, overtaken())));
        told.extend(self.done.map(|done| (done, result.clone())));
    }
}

#[derive(Debug)]
struct Flight {
    step: Step,
    result: Option<Result<(), Error>>,
}

impl Flight {
    fn is_refused(&self) -> bool {
        matches!(&self.result, Some(Err(error)) if error.is_retryable())
    }
}

/// The groups that had a store on one opened journal.
#[derive(Debug, Default)]
pub(super) struct Stores {
    by_group: Mutex<BTreeMap<u64, Weak<Pipeline>>>,
}

impl Stores {
    /// Waits until nothing of an earlier store of the group is on its way, if there was one: its
    /// writes, and snapshots that it had staged. What waits for room there never happens.
    pub(super) fn settle(&self, journal: &Journal, group: u64) -> Result<(), Error> {
        let Some(earlier) = self.by_group.lock().get(&group).cloned() else { return Ok(()) };
        if let Some(pipeline) = earlier.upgrade() {
            pipeline.settle_blocking()?;
        }
        journal.commit_blocking(Commit::new()).map(drop)
    }

    pub(super) fn note(&self, group: u64, pipeline: &Arc<Pipeline>) {
        self.by_group.lock().insert(group, Arc::downgrade(pipeline));
    }

    /// The group has been deleted.
    pub(super) fn forget(&self, group: u64) {
        self.by_group.lock().remove(&group);
    }
}

/// What has to be told once the queue is unlocked.
type Told = Vec<(Completion, Result<(), StoreError>)>;

/// Writes the first state of a new group.
pub(super) fn begin(
    journal: &Journal,
    entries: &Log,
    log: &Log,
    state: &State,
) -> Result<(), Error> {
    let commit = Commit::new().release(entries, 1).append(log, [state.encode()]);
    journal.commit_blocking(commit).map(drop)
}

impl Pipeline {
    pub(super) fn new(
        journal: Journal,
        entries: Log,
        damaged: Option<Log>,
        state: Log,
        stored: State,
        account: Account,
    ) -> Arc<Self> {
        let queue = Queue {
            landed_state: stored.clone(),
            stored,
            damaged,
            state_end: state.end(),
            first: entries.first(),
            end: entries.end(),
            entries,
            backlog: VecDeque::new(),
            flying: VecDeque::new(),
            landed: 0,
            in_order: true,
            tries: 0,
            retries: false,
            runtime: None,
            account,
            failed: None,
        };
        Arc::new(Self { journal, state, queue: Mutex::new(queue) })
    }

    /// Whether there is room for the next snapshot.
    pub(super) fn admit_snapshot(&self) -> bool {
        self.queue.lock().account.admit_snapshot(&self.journal)
    }

    /// The room for entries, with a current snapshot of so many bytes that covers what is before
    /// index `covered`, while so many bytes of the next one are stored.
    pub(super) fn room(&self, covered: u64, snapshot: u64, staged: Option<u64>) -> Room {
        let mut queue = self.queue.lock();
        queue.account.room(&self.journal, covered, snapshot, staged)
    }

    /// The log that entries are written to.
    pub(super) fn entries(&self) -> Log {
        self.queue.lock().entries.clone()
    }

    /// The log that has lost entries, while they are being brought back.
    pub(super) fn damaged(&self) -> Option<Log> {
        self.queue.lock().damaged.clone()
    }

    /// The log begins at `first`: what lies before is lost and not needed. Nothing is under way.
    pub(super) fn begin_at(&self, first: u64) -> Result<(), StoreError> {
        let release = Commit::new().release(&self.entries(), first);
        self.journal.commit_blocking(release).map_err(store_error)?;
        self.queue.lock().first = first;
        Ok(())
    }

    /// The right to restore the group, in whichever store. Waits for a restore that is under way,
    /// which goes on when its future is dropped.
    pub(super) async fn turn(&self) -> Result<Lease, StoreError> {
        let group = self.queue.lock().stored.identity.group;
        let name = format!("raft.log.{group}");
        // Ends: with the restore that is under way, or when the caller drops this.
        loop {
            match self.journal.lease(&name) {
                Err(Error::Leased { .. }) => tokio::time::sleep(TURN).await,
                taken => return taken.map_err(store_error),
            }
        }
    }

    /// Whether the state is as this store has read or written it. Nothing is under way.
    ///
    /// # Errors
    /// Another store of the group has written to it.
    pub(super) fn check_current(&self) -> Result<(), StoreError> {
        if self.state.end() == self.queue.lock().state_end {
            return Ok(());
        }
        let why = "another store of the group has written since this one was opened: open it again";
        Err(StoreError::Rejected(Arc::new(io::Error::other(why))))
    }

    /// Goes on in a new log, which begins with `range` of the present one. That one stays as it is
    /// until the new one has all of it. No entry that is lost is of a later term than `term`.
    /// Nothing is under way, and this is the only restore of the group.
    pub(super) fn begin_repair(&self, range: Range<u64>, term: u64) -> Result<(), StoreError> {
        let (damaged, mut stored, state_end) = {
            let queue = self.queue.lock();
            (queue.entries.clone(), queue.stored.clone(), queue.state_end)
        };
        stored.repairing = Some(term);
        let group = stored.identity.group;
        let log = entries_log(&self.journal, group, stored.written_log()).map_err(store_error)?;
        // What an attempt has left that a crash ended.
        self.commit(Commit::new().delete(&log))?;
        if let Err(error) = self.copy(&damaged, range, &log) {
            // It would take room from everybody on this journal. The next attempt begins anew.
            let _ = self.commit(Commit::new().delete(&log));
            return Err(error);
        }
        // Its sync covers the writes before it.
        let begins = Commit::new().append(&self.state, [stored.encode()]);
        self.commit(begins.release(&self.state, state_end))?;
        let mut queue = self.queue.lock();
        (queue.first, queue.end) = (log.first(), log.end());
        (queue.entries, queue.damaged) = (log, Some(damaged));
        (queue.landed_state, queue.stored) = (stored.clone(), stored);
        queue.state_end = state_end + 1;
        Ok(())
    }

    fn commit(&self, commit: Commit) -> Result<(), StoreError> {
        self.journal.commit_blocking(commit).map(drop).map_err(store_error)
    }

    /// Copies `range` of a log to a new one. Takes at most half of the room that is left: a journal
    /// that is full halts every group on it.
    fn copy(&self, from: &Log, range: Range<u64>, to: &Log) -> Result<(), StoreError> {
        let (bytes, room) = (from.info().bytes, self.journal.stats().room_bytes);
        if bytes > room / 2 {
            let why = format!(
                "the repair of {} takes up to {bytes} bytes beside it, and may take half of the \
                 {room} that are left: raise max_bytes of the journal, or free space",
                from.name()
            );
            return Err(StoreError::Rejected(Arc::new(io::Error::other(why))));
        }
        self.commit(Commit::new().release(to, range.start).durability(Durability::Written))?;
        // Half of the limit leaves room for what a commit takes around its records.
        let bytes = usize::try_from(self.journal.max_commit_bytes() / 2).unwrap_or(usize::MAX);
        let mut next = range.start;
        while next < range.end {
            let records = from.read_range(next..range.end, bytes.min(BATCH_BYTES));
            let records = records.map_err(|error| StoreError::Failed(Arc::new(error)))?;
            next += records.len() as u64;
            self.commit(Commit::new().append(to, records).durability(Durability::Written))?;
        }
        Ok(())
    }

    /// The state as the last write leaves it.
    pub(super) fn stored(&self) -> State {
        self.queue.lock().stored.clone()
    }

    /// Waits until all writes so far have ended: the group may have been stopped in the middle of
    /// some, and started again. [`stored`](Self::stored) and the logs then say the same.
    pub(super) async fn settled(self: &Arc<Self>) -> Result<(), StoreError> {
        let (done, landed) = tokio::sync::oneshot::channel();
        {
            let mut queue = self.queue.lock();
            if let Some(error) = &queue.failed {
                return Err(error.clone());
            }
            // That of before may have ended, with the task in it that was to try again.
            (queue.runtime, queue.retries) = (Handle::try_current().ok(), false);
            if queue.backlog.is_empty() && queue.flying.is_empty() {
                return Ok(());
            }
        }
        let tell = move |result| {
            // An error here only says that the caller has gone.
            let _ = done.send(result);
        };
        self.write(LogWrite::default(), None, Completion::new(tell));
        landed.await.unwrap_or(Err(StoreError::Abandoned))
    }

    /// As [`settled`](Self::settled), in this thread, but gives up what waits for room.
    fn settle_blocking(self: &Arc<Self>) -> Result<(), Error> {
        let is_settled = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&is_settled);
        let done = Completion::new(move |_| ended.store(true, Ordering::Release));
        self.write(LogWrite::default(), None, done);
        // Ends: each turn waits for all that is with the journal, and hands more of the rest to it.
        while !is_settled.load(Ordering::Acquire) {
            let told = {
                let mut queue = self.queue.lock();
                let waits = queue.account.is_waiting() && queue.flying.is_empty();
                if waits { queue.fail(&StoreError::Abandoned) } else { Vec::new() }
            };
            self.tell((told, None));
            self.journal.commit_blocking(Commit::new())?;
        }
        Ok(())
    }

    /// Takes a write, with the snapshot that it makes current.
    pub(super) fn write(
        self: &Arc<Self>,
        write: LogWrite,
        adopts: Option<Current>,
        done: Completion,
    ) {
        let most = max_entry_bytes(&self.journal).min(BATCH_BYTES);
        let batches = batches(&self.state, &write.entries, most);
        let (bytes, longest) = to_be_admitted(&write.entries, most);
        let bytes = taken(&self.journal, bytes, longest);
        let told = {
            let mut queue = self.queue.lock();
            if queue.runtime.is_none() {
                queue.runtime = Handle::try_current().ok();
            }
            let told = match queue.plan(&write, adopts, batches, bytes, done) {
                Ok(()) => self.pump(&mut queue),
                Err(told) => told,
            };
            (told, queue.take_retry())
        };
        self.tell(told);
    }

    /// A write cannot be carried out: nothing may follow it.
    pub(super) fn refuse(&self, error: StoreError, done: Completion) {
        let error = self.queue.lock().failed.get_or_insert(error).clone();
        done.complete(Err(error));
    }

    /// Hands on what may go now.
    fn pump(self: &Arc<Self>, queue: &mut Queue) -> Told {
        queue.drop_overtaken();
        queue.prefer_snapshot();
        // What has been refused comes back once all that followed it has, too.
        while !queue.flying.front().is_some_and(Flight::is_refused)
            && let Some(step) = queue.backlog.pop_front()
        {
            let alone = queue.flying.is_empty();
            let may_follow = alone || (queue.in_order && step.appends);
            if !may_follow {
                queue.backlog.push_front(step);
                break;
            }
            let ((bytes, end), is_stuck) = (step.admits, queue.tries >= STUCK_TRIES);
            if !queue.account.admit(&self.journal, end, bytes, is_stuck) {
                queue.backlog.push_front(step);
                if alone {
                    queue.note_shortage(&"the rest is for the next snapshots");
                }
                break;
            }
            let mut commit = step.commit.clone();
            if let Some(state) = &step.state {
                commit = commit.append(&self.state, [state.encode()]);
                commit = commit.release(&self.state, queue.state_end);
            }
            let number = queue.landed + queue.flying.len() as u64;
            let pipeline = Arc::clone(self);
            let landed = move |result: Result<_, Error>| {
                pipeline.landed(number, result.map(drop));
            };
            // One at a time waits for its turn: a commit of this group that completes makes room
            // for the next one, or at least calls `pump` again.
            let submitted = if alone {
                self.journal.submit_in_turn(commit, landed)
            } else {
                self.journal.submit(commit, landed)
            };
            if let Err(rejected) = submitted {
                queue.account.refused(bytes);
                let error = rejected.error;
                let is_full = error.is_retryable();
                if is_full || !alone {
                    // Behind one that has been refused and not yet told, whatever the reason.
                    queue.backlog.push_front(step);
                    if alone {
                        queue.note_shortage(&error);
                    }
                    break;
                }
                let error = store_error(error);
                let mut told = queue.fail(&error);
                step.tell(&Err(error), &mut told);
                return told;
            }
            queue.state_end += u64::from(step.state.is_some());
            queue.in_order = step.appends && (alone || queue.in_order);
            queue.flying.push_back(Flight { step, result: None });
        }
        Vec::new()
    }

    /// A commit is durable, or has failed.
    fn landed(self: &Arc<Self>, number: u64, result: Result<(), Error>) {
        let told = {
            let mut queue = self.queue.lock();
            let mut told = queue.land(number, result);
            if let Some(error) = queue.take_refused_back() {
                queue.note_shortage(&error);
            } else if queue.failed.is_none() {
                told.extend(self.pump(&mut queue));
            }
            if queue.backlog.is_empty() && queue.flying.is_empty() && !queue.in_order {
                // Of ten thousand groups on this journal few write at a time. The last write of one
                // that has nothing more to do is that of its commit index; one at work writes
                // entries, and needs the room again.
                (queue.backlog, queue.flying) = (VecDeque::new(), VecDeque::new());
            }
            (told, queue.take_retry())
        };
        self.tell(told);
    }

    /// Tells what is done, and sees to it that what the journal has no room for is tried again.
    fn tell(self: &Arc<Self>, (told, retry): (Told, Option<Handle>)) {
        for (done, result) in told {
            done.complete(result);
        }
        let Some(runtime) = retry else { return };
        let mut retry = Retry(Arc::downgrade(self));
        runtime.spawn(async move {
            tokio::time::sleep(RETRY).await;
            if let Some(pipeline) = std::mem::take(&mut retry.0).upgrade() {
                pipeline.retry();
            }
        });
    }

    fn retry(self: &Arc<Self>) {
        let told = {
            let mut queue = self.queue.lock();
            queue.retries = false;
            queue.tries += 1;
            // What counts may be strewn over segments that hold little else.
            self.journal.make_room();
            let told = if queue.failed.is_none() { self.pump(&mut queue) } else { Vec::new() };
            (told, queue.take_retry())
        };
        self.tell(told);
    }
}

/// A task that is about to try again.
struct Retry(Weak<Pipeline>);

impl Drop for Retry {
    /// Its runtime has ended before: the next restore comes from another one.
    fn drop(&mut self) {
        if let Some(pipeline) = self.0.upgrade() {
            pipeline.queue.lock().retries = false;
        }
    }
}

impl Queue {
    /// Turns a write into commits. Its entries are in `batches` and need room for `bytes`.
    fn plan(
        &mut self,
        write: &LogWrite,
        adopts: Option<Current>,
        batches: Vec<Batch>,
        bytes: u64,
        done: Completion,
    ) -> Result<(), Told> {
        if let Some(error) = &self.failed {
            return Err(vec![(done, Err(error.clone()))]);
        }
        let mut commit = Commit::new();
        if write.is_only_commit_index() {
            // Nobody counts on it: it need not cost a sync.
            commit = commit.durability(Durability::Written);
        }
        let (mut cuts, mut releases) = (None, false);
        if let Some(from) = write.truncate_from.map(|from| from.max(self.first))
            && from < self.end
        {
            (commit, cuts) = (commit.truncate(&self.entries, from), Some(from));
            self.end = from;
        }
        if let Some(upto) = write.release.filter(|upto| *upto > self.first) {
            (commit, releases) = (commit.release(&self.entries, upto), true);
            self.account.release(upto);
            self.first = upto;
            self.end = self.end.max(upto);
        }
        if let Some(error) = self.gap_before(write) {
            self.failed = Some(error.clone());
            return Err(vec![(done, Err(error))]);
        }
        let replaced = self.damaged.take_if(|_| write.repaired);
        if let Some(damaged) = &replaced {
            (commit, releases) = (commit.delete(damaged), true);
            self.stored.log = self.stored.written_log();
            self.stored.repairing = None;
        }
        let mut state = self.plan_state(write, adopts, replaced.is_some());
        let mut done = Some(done);
        let mut batches = batches.into_iter().peekable();
        let released = releases.then(|| write.release.unwrap_or(0));
        let mut is_first = true;
        // A release makes the room that the entries beside it may need.
        if batches.peek().is_none() || releases {
            // A state record replaces the one before, and a vote, a release or a snapshot that
            // becomes current must not fail where the journal is full of entries.
            let commit = std::mem::take(&mut commit).frees_space();
            let mut step = Step::new(commit);
            (step.state, step.releases) = (state.take(), released);
            step.cuts = cuts.take();
            step.from = step.cuts.unwrap_or(u64::MAX);
            step.adopts = adopts.filter(|_| write.has_only_snapshot());
            step.is_first = std::mem::take(&mut is_first);
            if batches.peek().is_none() {
                step.done = done.take();
            }
            self.backlog.push_back(step);
        }
        let behind = write.entries.last().map_or(0, |entry| entry.index + 1);
        let mut admits = (bytes, behind);
        while let Some(batch) = batches.next() {
            let cut = cuts.take();
            if cut.is_none() {
                // Has no effect where the log ends there, and is refused where it ends before.
                commit = commit.truncate(&self.entries, self.end);
            }
            let from = cut.unwrap_or(self.end);
            self.end += batch.len() as u64;
            commit = commit.append_batch(&self.entries, batch);
            let mut step = Step::new(std::mem::take(&mut commit));
            (step.appends, step.from, step.behind, step.cuts) =
                (cut.is_none(), from, self.end, cut);
            (step.state, step.admits) = (state.take(), std::mem::take(&mut admits));
            step.is_first = std::mem::take(&mut is_first);
            if batches.peek().is_none() {
                (step.lands, step.done) = (bytes, done.take());
            }
            self.backlog.push_back(step);
        }
        Ok(())
    }

    /// Entries that do not follow on those before.
    fn gap_before(&self, write: &LogWrite) -> Option<StoreError> {
        let first = write.entries.first().filter(|first| first.index != self.end)?;
        let error = format!("entry {} would stand at {}", first.index, self.end);
        Some(StoreError::Damaged(error))
    }

    /// What the state record of a write says, if it has one.
    fn plan_state(
        &mut self,
        write: &LogWrite,
        adopts: Option<Current>,
        is_repaired: bool,
    ) -> Option<State> {
        let states = write.hard_state.is_some() || write.voters.is_some() || write.commit.is_some();
        if adopts.is_none() && !states && !write.condemned && !is_repaired {
            return None;
        }
        let stored = &mut self.stored;
        stored.commit = write.commit.unwrap_or(stored.commit);
        stored.condemned |= write.condemned;
        stored.hard_state = write.hard_state.unwrap_or(stored.hard_state);
        stored.snapshot = adopts.or(stored.snapshot);
        if write.voters.is_some() {
            stored.voters.clone_from(&write.voters);
        }
        Some(stored.clone())
    }

    /// Notes how a commit ended, and finds out what is done because of it.
    fn land(&mut self, number: u64, result: Result<(), Error>) -> Told {
        let at = number.checked_sub(self.landed).and_then(|at| usize::try_from(at).ok());
        if let Some(flight) = at.and_then(|at| self.flying.get_mut(at)) {
            flight.result = Some(result);
        }
        let mut told = Vec::new();
        let has_ended = |flight: &Flight| flight.result.is_some() && !flight.is_refused();
        while self.flying.front().is_some_and(has_ended) {
            let Some(Flight { mut step, result: Some(result) }) = self.flying.pop_front() else {
                break;
            };
            self.landed += 1;
            self.account.landed(step.lands);
            if let Err(error) = result {
                let error = store_error(error);
                step.tell(&Err(error.clone()), &mut told);
                told.extend(self.fail(&error));
            } else {
                if step.adopts.is_none() {
                    self.note_room();
                }
                if let Some(state) = step.state.take() {
                    self.landed_state = state;
                }
                step.tell(&Ok(()), &mut told);
            }
        }
        told
    }

    /// The journal has no room for the first of `backlog`.
    fn note_shortage(&mut self, why: &dyn fmt::Display) {
        if !self.account.set_waiting(true) {
            let Identity { node, group, .. } = self.stored.identity;
            tracing::warn!(
                target: "voussoir::raft", node, group, %why,
                "no room for a write: it waits, with all that follow it"
            );
        }
    }

    fn note_room(&mut self) {
        if self.account.set_waiting(false) {
            self.tries = 0;
            let Identity { node, group, .. } = self.stored.identity;
            tracing::info!(target: "voussoir::raft", node, group, "there is room for writes again");
        }
    }

    /// Where to try again what the journal had no room for, unless a task is about to.
    fn take_retry(&mut self) -> Option<Handle> {
        let is_waiting = self.account.is_waiting();
        let waits = is_waiting && self.flying.is_empty() && !self.backlog.is_empty();
        let runtime = self.runtime.clone().filter(|_| waits && !self.retries)?;
        self.retries = true;
        Some(runtime)
    }

    /// Takes back what the journal had no room for, with all that was to follow it. Returns why,
    /// once the journal has answered for all of it.
    fn take_refused_back(&mut self) -> Option<Error> {
        let has_ended = |flight: &Flight| flight.result.is_some();
        if !self.flying.front().is_some_and(Flight::is_refused)
            || !self.flying.iter().all(has_ended)
        {
            return None;
        }
        self.landed += self.flying.len() as u64;
        let mut why = None;
        while let Some(Flight { step, result }) = self.flying.pop_back() {
            self.state_end -= u64::from(step.state.is_some());
            self.account.refused(step.admits.0);
            self.backlog.push_front(step);
            why = result.and_then(Result::err);
        }
        why
    }

    /// Nothing that follows a failed write may count.
    fn fail(&mut self, error: &StoreError) -> Told {
        let error = self.failed.get_or_insert_with(|| error.clone()).clone();
        self.landed += self.flying.len() as u64;
        self.account.landed(u64::MAX);
        self.account.set_waiting(false);
        let flying = self.flying.drain(..).map(|flight| flight.step);
        let result = Err(error);
        let mut told = Vec::new();
        flying.chain(self.backlog.drain(..)).for_each(|step| step.tell(&result, &mut told));
        told
    }
}

/// The bytes of the entries of a write that need room, in batches of at most so many bytes, and
/// those of the longest batch.
fn to_be_admitted(entries: &[Entry], most: usize) -> (u64, u64) {
    if entries.iter().all(|entry| entry.data.is_empty()) {
        return (0, 0);
    }
    let (bytes, longest) = entries.iter().map(weight).fold((0, 0), |(bytes, longest), weight| {
        (bytes + weight as u64, longest.max(weight as u64))
    });
    (bytes, longest.max(bytes.min(most as u64)))
}

/// Bytes of an entry in a batch.
fn weight(entry: &Entry) -> usize {
    entry.data.len() + codec::ENTRY_HEAD_BYTES + 4
}

/// Entries as batches of the journal that `log` is in, of at most so many bytes. One entry may
/// exceed it.
fn batches(log: &Log, entries: &[Entry], most: usize) -> Vec<Batch> {
    let mut batches = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let mut bytes = 0;
        let mut fits = |entry: &Entry| {
            let first = bytes == 0;
            bytes += weight(entry);
            first || bytes <= most
        };
        let count = rest.iter().take_while(|entry| fits(entry)).count();
        let (now, later) = rest.split_at(count);
        rest = later;
        let mut batch = log.batch(now.iter().map(weight).sum());
        for entry in now {
            batch.push_pieces(&[&codec::encode_entry_head(entry), &entry.data]);
        }
        batches.push(batch.finish());
    }
    batches
}
