//! Writes on their way to the journal, in order.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use voussoir_journal::{Batch, Commit, Durability, Error, Journal, Lease, Log, Rejected};

use super::state::State;
use super::{Current, entries_log, store_error};
use crate::codec;
use crate::store::{Completion, LogWrite, StoreError};
use crate::types::Entry;

/// About how long a batch of entries is, in bytes: long enough to cost nothing beside a sync,
/// short enough for small segments. One entry may exceed it.
const BATCH_BYTES: usize = 256 << 10;

/// Between two looks whether another restore of the group has ended.
const TURN: Duration = Duration::from_millis(10);

/// Orders the writes of one group.
///
/// The journal keeps commits to the same log in order, but lets small commits overtake large ones
/// of other logs. So commits follow each other freely while all of them touch the log of entries,
/// and one that does not (a vote) waits for those before it, as those after it wait for it.
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
    /// All of `flying` touch the log of entries.
    in_order: bool,
    failed: Option<StoreError>,
}

/// One commit: a part of a write or all of it.
#[derive(Debug)]
struct Step {
    commit: Commit,
    touches_entries: bool,
    /// For the last part.
    done: Option<Completion>,
}

#[derive(Debug)]
struct Flight {
    done: Option<Completion>,
    result: Option<Result<(), StoreError>>,
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
    ) -> Arc<Self> {
        let queue = Queue {
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
            failed: None,
        };
        Arc::new(Self { journal, state, queue: Mutex::new(queue) })
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
        (queue.stored, queue.state_end) = (stored, state_end + 1);
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
            let queue = self.queue.lock();
            if let Some(error) = &queue.failed {
                return Err(error.clone());
            }
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

    /// Takes a write, with the snapshot that it makes current.
    pub(super) fn write(
        self: &Arc<Self>,
        write: LogWrite,
        adopts: Option<Current>,
        done: Completion,
    ) {
        let batches = batches(&self.state, &write.entries);
        let told = {
            let mut queue = self.queue.lock();
            match self.plan(&mut queue, &write, adopts, batches, done) {
                Ok(()) => self.pump(&mut queue),
                Err(told) => told,
            }
        };
        tell(told);
    }

    /// A write cannot be carried out: nothing may follow it.
    pub(super) fn refuse(&self, error: StoreError, done: Completion) {
        let error = self.queue.lock().failed.get_or_insert(error).clone();
        done.complete(Err(error));
    }

    /// Turns a write into commits.
    fn plan(
        &self,
        queue: &mut Queue,
        write: &LogWrite,
        adopts: Option<Current>,
        batches: Vec<Batch>,
        done: Completion,
    ) -> Result<(), Told> {
        if let Some(error) = &queue.failed {
            return Err(vec![(done, Err(error.clone()))]);
        }
        let mut commit = Commit::new();
        if write.is_only_commit_index() {
            // Nobody counts on it: it need not cost a sync.
            commit = commit.durability(Durability::Written);
        }
        if write.entries.is_empty() {
            // A state record replaces the one before, and a vote, a release or a snapshot that
            // becomes current must not fail where the journal is full of entries.
            commit = commit.frees_space();
        }
        let mut touches_entries = false;
        if let Some(from) = write.truncate_from.map(|from| from.max(queue.first))
            && from < queue.end
        {
            (commit, touches_entries) = (commit.truncate(&queue.entries, from), true);
            queue.end = from;
        }
        if let Some(upto) = write.release.filter(|upto| *upto > queue.first) {
            (commit, touches_entries) = (commit.release(&queue.entries, upto), true);
            queue.first = upto;
            queue.end = queue.end.max(upto);
        }
        if let Some(first) = write.entries.first()
            && first.index != queue.end
        {
            let error = format!("entry {} would stand at {}", first.index, queue.end);
            let error = StoreError::Damaged(error);
            queue.failed = Some(error.clone());
            return Err(vec![(done, Err(error))]);
        }
        queue.end += write.entries.len() as u64;
        let replaced = queue.damaged.take_if(|_| write.repaired);
        if let Some(damaged) = &replaced {
            commit = commit.delete(damaged).frees_space();
            queue.stored.log = queue.stored.written_log();
            queue.stored.repairing = None;
        }
        let states = write.hard_state.is_some() || write.voters.is_some() || write.commit.is_some();
        if adopts.is_some() || states || write.condemned || replaced.is_some() {
            let stored = &mut queue.stored;
            stored.commit = write.commit.unwrap_or(stored.commit);
            stored.condemned |= write.condemned;
            stored.hard_state = write.hard_state.unwrap_or(stored.hard_state);
            stored.snapshot = adopts.or(stored.snapshot);
            if write.voters.is_some() {
                stored.voters.clone_from(&write.voters);
            }
            commit = commit.append(&self.state, [stored.encode()]);
            commit = commit.release(&self.state, queue.state_end);
            queue.state_end += 1;
        }
        let mut done = Some(done);
        let mut batches = batches.into_iter().peekable();
        loop {
            if let Some(batch) = batches.next() {
                (commit, touches_entries) = (commit.append_batch(&queue.entries, batch), true);
            }
            let done = if batches.peek().is_none() { done.take() } else { None };
            let last = done.is_some();
            queue.backlog.push_back(Step { commit, touches_entries, done });
            if last {
                return Ok(());
            }
            (commit, touches_entries) = (Commit::new(), false);
        }
    }

    /// Hands on what may go now.
    fn pump(self: &Arc<Self>, queue: &mut Queue) -> Told {
        while let Some(Step { commit, touches_entries, done }) = queue.backlog.pop_front() {
            let alone = queue.flying.is_empty();
            let may_follow = alone || (queue.in_order && touches_entries);
            if !may_follow {
                queue.backlog.push_front(Step { commit, touches_entries, done });
                break;
            }
            let number = queue.landed + queue.flying.len() as u64;
            let pipeline = Arc::clone(self);
            let landed = move |result: Result<_, Error>| {
                pipeline.landed(number, result.map(drop).map_err(store_error));
            };
            // One at a time waits for room: a commit of this group that completes makes room for
            // the next one, or at least calls `pump` again.
            let submitted = if alone {
                self.journal.submit_in_turn(commit, landed)
            } else {
                self.journal.submit(commit, landed)
            };
            if let Err(rejected) = submitted {
                let Rejected { error, commit, .. } = *rejected;
                if matches!(error, Error::Busy { .. }) {
                    queue.backlog.push_front(Step { commit, touches_entries, done });
                    break;
                }
                let error = store_error(error);
                let mut told = queue.fail(&error);
                told.extend(done.map(|done| (done, Err(error))));
                return told;
            }
            queue.in_order = touches_entries && (alone || queue.in_order);
            queue.flying.push_back(Flight { done, result: None });
        }
        Vec::new()
    }

    /// A commit is durable, or has failed.
    fn landed(self: &Arc<Self>, number: u64, result: Result<(), StoreError>) {
        let told = {
            let mut queue = self.queue.lock();
            let mut told = queue.land(number, result);
            if queue.failed.is_none() {
                told.extend(self.pump(&mut queue));
            }
            if queue.backlog.is_empty() && queue.flying.is_empty() && !queue.in_order {
                // Of ten thousand groups on this journal few write at a time. The last write of one
                // that has nothing more to do is that of its commit index; one at work writes
                // entries, and needs the room again.
                (queue.backlog, queue.flying) = (VecDeque::new(), VecDeque::new());
            }
            told
        };
        tell(told);
    }
}

impl Queue {
    /// Notes how a commit ended, and finds out what is done because of it.
    fn land(&mut self, number: u64, result: Result<(), StoreError>) -> Told {
        let at = number.checked_sub(self.landed).and_then(|at| usize::try_from(at).ok());
        if let Some(flight) = at.and_then(|at| self.flying.get_mut(at)) {
            flight.result = Some(result);
        }
        let mut told = Vec::new();
        while let Some(Flight { result: Some(_), .. }) = self.flying.front() {
            let Some(Flight { done, result: Some(result) }) = self.flying.pop_front() else {
                break;
            };
            self.landed += 1;
            if let Err(error) = result {
                told.extend(done.map(|done| (done, Err(error.clone()))));
                told.extend(self.fail(&error));
            } else {
                told.extend(done.map(|done| (done, Ok(()))));
            }
        }
        told
    }

    /// Nothing that follows a failed write may count.
    fn fail(&mut self, error: &StoreError) -> Told {
        let error = self.failed.get_or_insert_with(|| error.clone()).clone();
        self.landed += self.flying.len() as u64;
        let flying = self.flying.drain(..).filter_map(|flight| flight.done);
        let backlog = self.backlog.drain(..).filter_map(|step| step.done);
        flying.chain(backlog).map(|done| (done, Err(error.clone()))).collect()
    }
}

fn tell(told: Told) {
    for (done, result) in told {
        done.complete(result);
    }
}

/// Entries as batches of the journal that `log` is in.
fn batches(log: &Log, entries: &[Entry]) -> Vec<Batch> {
    let mut batches = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let mut bytes = 0;
        let mut fits = |entry: &Entry| {
            let first = bytes == 0;
            bytes += entry.data.len() + codec::ENTRY_HEAD_BYTES + 4;
            first || bytes <= BATCH_BYTES
        };
        let count = rest.iter().take_while(|entry| fits(entry)).count();
        let (now, later) = rest.split_at(count);
        rest = later;
        let weight: usize =
            now.iter().map(|entry| entry.data.len() + codec::ENTRY_HEAD_BYTES + 4).sum();
        let mut batch = log.batch(weight);
        for entry in now {
            batch.push_pieces(&[&codec::encode_entry_head(entry), &entry.data]);
        }
        batches.push(batch.finish());
    }
    batches
}
