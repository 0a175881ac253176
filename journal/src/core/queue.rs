//! What has been accepted and not yet written.
//!
//! Two lanes: small commits overtake large ones, but never one of the same log. A commit is
//! checked against the state of its logs as all accepted commits will leave it, so whatever is
//! accepted can be written.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::bounds::{LogBounds, Step, UNKNOWN};
use super::reserve::Claim;
use crate::commit::{Change, Commit, Operation, Positions, Receipt};
use crate::config::{Config, Durability};
use crate::engine::completion::{Done, Slot, Told};
use crate::engine::lead::flag::LeadFlag;
use crate::engine::log::LogInner;
use crate::error::{Error, LogName};
use crate::format::frame::SectionKind;
use crate::format::index::BatchRef;
use crate::format::{NAMESPACE_BYTES_MAX, table};

/// A commit larger than this goes to the bulk lane.
const BULK_COMMIT_BYTES: u64 = 96 << 10;
/// A log with more than this accepted and not yet written goes to the bulk lane.
const BULK_BACKLOG_BYTES: u64 = 128 << 10;

/// After so many groups without a small commit...
const QUIET_GROUPS: u32 = 64;
/// ...a group takes so many shares of large ones.
const QUIET_SHARES: u64 = 4;

/// Everything behind the short lock that each commit takes.
#[derive(Debug)]
pub(crate) struct State {
    names: HashMap<String, BTreeMap<u64, Arc<LogInner>>>,
    pub(crate) logs: Vec<Option<LogState>>,
    /// How many of them exist, as what was taken left them.
    pub(crate) existing: usize,
    unused: Vec<u32>,
    pub(crate) next_number: u64,
    pub(crate) names_missing: bool,
    /// Bytes of the table of the logs that exist or are about to.
    table_bytes: u64,
    small: VecDeque<Queued>,
    bulk: VecDeque<Queued>,
    /// The last group took no bulk commit, or there was none.
    bulk_is_due: bool,
    /// Groups since the last one with a small commit.
    quiet: u32,
    /// Wait for room, in the order of the calls.
    waiting: VecDeque<Waiting>,
    /// How many of `waiting` count against `max_waiting`.
    counted: usize,
    /// Bytes accepted and not yet acknowledged. Invariant: the sum of the weights of the queued
    /// commits and of the group under way.
    pub(crate) pending_bytes: u64,
    pub(crate) lead: LeadFlag,
    /// Set when the journal takes nothing more.
    pub(crate) rejected: Option<Error>,
    /// Set while there is no room for appends.
    pub(crate) full: Option<Error>,
    limits: Limits,
}

/// A commit that waits for room.
#[derive(Debug)]
struct Waiting {
    slot: Arc<Slot>,
    /// Whether it counts against `max_waiting`.
    is_counted: bool,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    frame_bytes: u64,
    pending_bytes: u64,
    waiting: usize,
    logs: u32,
    table_bytes: u64,
    bulk_share: u64,
}

/// The writing side of one log.
#[derive(Debug)]
pub(crate) struct LogState {
    pub(crate) inner: Arc<LogInner>,
    /// After all accepted commits.
    pub(crate) submitted: LogBounds,
    /// After all commits that have been given an LSN.
    pub(crate) taken: LogBounds,
    /// LSN of its last section.
    pub(crate) last: u64,
    backlog: u64,
    bulk_queued: u32,
}

/// A commit that has been accepted.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) parts: Vec<Part>,
    /// Logs that need no change for it, as what was accepted before will leave them. It is told
    /// after that is durable, and not if that fails.
    unchanged: Vec<Arc<LogInner>>,
    pub(crate) durability: Durability,
    pub(crate) bytes: u64,
    /// Its share of `pending_bytes`: an upper bound of `bytes`, known before planning.
    weight: u64,
    pub(crate) appends: u32,
    pub(crate) claim: Claim,
    pub(crate) positions: Positions,
    pub(crate) done: Done,
    pub(crate) bulk: bool,
    /// Given when it is taken.
    pub(crate) lsn: u64,
}

/// One change of one commit.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) log: Arc<LogInner>,
    pub(crate) change: Change,
    pub(crate) creates: bool,
    pub(crate) number: u64,
    /// What is written of it. None: the creation of the log is all (one whose damage may have taken
    /// its name is deleted).
    pub(crate) section: Option<(SectionKind, u64)>,
    /// The log was damaged, and is whole after it.
    pub(crate) heals: bool,
    /// The log after it.
    pub(crate) after: LogBounds,
    /// Given when it is taken.
    pub(crate) previous: u64,
    /// Given when it is encoded, for appends.
    pub(crate) batch: Option<BatchRef>,
}

/// What one operation does to its log.
#[derive(Debug, Clone, Copy)]
struct Planned {
    before: LogBounds,
    after: LogBounds,
    /// `None` when the operation has no effect.
    step: Option<Step>,
}

/// What became of a commit that was handed in.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// It will be written; `done` will be told.
    Queued,
    /// It will be written, and need not be waited for.
    Buffered(Done, Receipt),
}

/// Why a commit was not accepted.
#[derive(Debug)]
pub(crate) struct Rejection {
    pub(crate) error: Error,
    /// Dropped without being told: `submit` returns the error to its caller.
    pub(crate) done: Done,
    /// The whole commit. Its memory may be foreign, with a destructor of its own: to be dropped
    /// without a lock.
    pub(crate) commit: Commit,
}

impl Rejection {
    /// Whether the commit may wait for room.
    pub(crate) fn may_wait(&self) -> bool {
        matches!(self.error, Error::Busy { .. })
    }
}

/// How much of the active segment a group may use.
pub(crate) trait Room {
    /// Whether a commit fits; if so, its room is taken.
    fn take(&mut self, commit: &Queued) -> bool;
}

/// What was taken for a group.
#[derive(Debug)]
pub(crate) enum Taken {
    Nothing,
    Group(Vec<Queued>),
    /// The next commit, which has this claim to the reserve, does not fit.
    NoRoom(Claim),
}

impl State {
    pub(crate) fn new(config: &Config) -> Self {
        let limits = Limits {
            frame_bytes: config.max_frame_bytes(),
            pending_bytes: config.max_pending_bytes as u64,
            waiting: config.max_waiting,
            logs: config.max_logs,
            table_bytes: table::bytes_max(config.segment_bytes),
            bulk_share: config.bulk_share_bytes as u64,
        };
        Self {
            names: HashMap::new(),
            logs: Vec::new(),
            existing: 0,
            unused: Vec::new(),
            next_number: 1,
            names_missing: false,
            table_bytes: table::FRAME_BYTES,
            small: VecDeque::new(),
            bulk: VecDeque::new(),
            bulk_is_due: true,
            quiet: 0,
            waiting: VecDeque::new(),
            counted: 0,
            pending_bytes: 0,
            lead: LeadFlag::default(),
            rejected: None,
            full: None,
            limits,
        }
    }

    /// The log of this name, which may not exist yet.
    pub(crate) fn log(&mut self, namespace: &str, id: u64) -> Result<Arc<LogInner>, Error> {
        if let Some(log) = self.names.get(namespace).and_then(|ids| ids.get(&id)) {
            return Ok(Arc::clone(log));
        }
        if namespace.is_empty() || namespace.len() > NAMESPACE_BYTES_MAX {
            return Err(Error::InvalidName);
        }
        if self.live_names() >= self.limits.logs as usize {
            self.forget_unused();
            if self.live_names() >= self.limits.logs as usize {
                return Err(Error::TooManyLogs { limit: self.limits.logs });
            }
        }
        let damage = self.names_missing.then_some((0, UNKNOWN));
        Ok(self.insert(namespace, id, LogBounds { damage, ..LogBounds::default() }, 0))
    }

    /// The first logs of a namespace with an id of at least `from`, at most `count`, whether they
    /// exist or not.
    pub(crate) fn ids_from(&self, namespace: &str, from: u64, count: usize) -> Vec<Arc<LogInner>> {
        let ids = self.names.get(namespace);
        ids.into_iter()
            .flat_map(|ids| ids.range(from..))
            .take(count)
            .map(|id| id.1.clone())
            .collect()
    }

    fn live_names(&self) -> usize {
        self.logs.len() - self.unused.len()
    }

    /// Adds a log, known from the disk or new.
    pub(crate) fn insert(
        &mut self,
        namespace: &str,
        id: u64,
        bounds: LogBounds,
        last: u64,
    ) -> Arc<LogInner> {
        let name = LogName { namespace: namespace.to_owned(), id };
        let index = self.unused.pop().unwrap_or(self.logs.len() as u32);
        let inner = Arc::new(LogInner::new(name, index, bounds));
        if bounds.exists() {
            self.table_bytes += table::entry_bytes(namespace);
            self.existing += 1;
        }
        let log = LogState {
            inner: Arc::clone(&inner),
            submitted: bounds,
            taken: bounds,
            last,
            backlog: 0,
            bulk_queued: 0,
        };
        match self.logs.get_mut(index as usize) {
            Some(slot) => *slot = Some(log),
            None => self.logs.push(Some(log)),
        }
        self.names.entry(namespace.to_owned()).or_default().insert(id, Arc::clone(&inner));
        inner
    }

    /// Drops handles of logs that do not exist and that no caller holds.
    fn forget_unused(&mut self) {
        for index in 0..self.logs.len() {
            let unused = self.logs[index].as_ref().is_some_and(|log| {
                // The map of names and this table hold one each.
                Arc::strong_count(&log.inner) == 2
                    && !log.submitted.exists()
                    && log.taken == log.submitted
            });
            if unused && let Some(log) = self.logs[index].take() {
                let name = log.inner.name();
                if let Some(ids) = self.names.get_mut(&name.namespace) {
                    ids.remove(&name.id);
                }
                self.unused.push(index as u32);
            }
        }
        self.names.retain(|_, ids| !ids.is_empty());
    }

    pub(crate) fn log_state(&mut self, log: &LogInner) -> &mut LogState {
        self.logs[log.index() as usize].as_mut().expect("a log with a handle keeps its place")
    }

    /// Accepts a commit, or says why not; then nothing has changed.
    pub(crate) fn accept(
        &mut self,
        commit: Commit,
        done: Done,
    ) -> Result<Accepted, Box<Rejection>> {
        let planned = self.check(&commit).and_then(|()| self.plan(&commit.operations));
        let planned = match planned {
            Ok(planned) => planned,
            Err(error) => return Err(Box::new(Rejection { error, done, commit })),
        };
        let weight = commit.frame_bytes();
        let (durability, frees) = (commit.durability, commit.frees_space);
        let (parts, unchanged, positions) = parts_of(commit.operations, planned);
        let (done, told) = match durability {
            Durability::Buffered => (Done::Nobody, Some(done)),
            _ => (done, None),
        };
        let receipt = told.map(|done| (done, positions.clone()));
        let appends = parts.iter().filter(|part| part.batch_change()).count() as u32;
        let claim = match appends as usize {
            0 => Claim::Controls,
            // A release of what has been released already frees nothing.
            appends if frees && appends < parts.len() => Claim::Frees,
            _ => Claim::Adds,
        };
        let queued = Queued {
            bytes: encoded_bytes(&parts),
            parts,
            unchanged,
            durability,
            weight,
            appends,
            claim,
            positions,
            done,
            bulk: false,
            lsn: 0,
        };
        self.push(queued);
        Ok(match receipt {
            Some((done, positions)) => Accepted::Buffered(done, Receipt { lsn: None, positions }),
            None => Accepted::Queued,
        })
    }

    fn check(&self, commit: &Commit) -> Result<(), Error> {
        if let Some(error) = &self.rejected {
            return Err(error.clone());
        }
        commit.check(self.limits.frame_bytes)?;
        if let Some(full) = self.full.as_ref().filter(|_| commit.only_adds()) {
            return Err(full.clone());
        }
        let bytes = self.pending_bytes.saturating_add(commit.frame_bytes());
        if self.pending_bytes > 0 && bytes > self.limits.pending_bytes {
            return Err(self.too_many_bytes());
        }
        Ok(())
    }

    /// The bytes that wait are at their limit.
    pub(crate) fn too_many_bytes(&self) -> Error {
        Error::Busy { option: "max_pending_bytes", limit: self.limits.pending_bytes }
    }

    /// Waits for room in the order of the calls.
    pub(crate) fn wait_for_room(&mut self, slot: Arc<Slot>) -> Result<(), Error> {
        if self.counted >= self.limits.waiting {
            let limit = self.limits.waiting as u64;
            return Err(Error::Busy { option: "max_waiting", limit });
        }
        self.counted += 1;
        self.waiting.push_back(Waiting { slot, is_counted: true });
        Ok(())
    }

    /// Waits for room in the order of the calls, however many wait. `max_waiting` does not count
    /// it, so it takes no place of others either.
    pub(crate) fn wait_in_turn(&mut self, slot: Arc<Slot>) {
        self.waiting.push_back(Waiting { slot, is_counted: false });
    }

    /// Removes a slot whose waiter was dropped from the line for room.
    pub(crate) fn stop_waiting(&mut self, slot: &Arc<Slot>) {
        self.waiting.retain(|waiting| !Arc::ptr_eq(&waiting.slot, slot));
        self.counted = self.waiting.iter().filter(|waiting| waiting.is_counted).count();
    }

    pub(crate) fn has_waiters(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Accepts commits that waited for room and returns the outcomes to be told. Ends when the
    /// line is empty or its first commit still has no room.
    pub(crate) fn admit_waiting(&mut self) -> Told {
        let mut told = Told::default();
        while let Some(Waiting { slot, is_counted }) = self.waiting.pop_front() {
            self.counted -= usize::from(is_counted);
            let Some(commit) = slot.admit() else { continue };
            match self.accept(commit, Done::Slot(Arc::clone(&slot))) {
                Ok(Accepted::Queued) => {}
                Ok(Accepted::Buffered(done, receipt)) => told.push(done, Ok(receipt)),
                Err(rejection) if rejection.may_wait() => {
                    if let Some(commit) = slot.wait_again(rejection.commit) {
                        told.keep(commit);
                    } else {
                        self.counted += usize::from(is_counted);
                        self.waiting.push_front(Waiting { slot, is_counted });
                        break;
                    }
                }
                Err(rejection) => {
                    let Rejection { error, done, commit } = *rejection;
                    told.push(done, Err(error));
                    told.keep(commit);
                }
            }
        }
        told
    }

    /// Applies operations to the submitted state of their logs, all of them or none.
    fn plan(&mut self, operations: &[Operation]) -> Result<Vec<Planned>, Error> {
        let mut planned: Vec<Planned> = Vec::with_capacity(operations.len());
        for operation in operations {
            let log = &operation.log;
            let before = self.log_state(log).submitted;
            match self.plan_one(log, &operation.change) {
                Ok(step) => {
                    let after = self.log_state(log).submitted;
                    planned.push(Planned { before, after, step });
                }
                Err(error) => {
                    // Backwards, so that the first state of a log that occurs twice wins.
                    for (operation, undone) in operations.iter().zip(&planned).rev() {
                        let log = &operation.log;
                        self.log_state(log).submitted = undone.before;
                        self.count_table(log, undone.after, undone.before);
                    }
                    return Err(error);
                }
            }
        }
        Ok(planned)
    }

    fn plan_one(&mut self, log: &LogInner, change: &Change) -> Result<Option<Step>, Error> {
        let before = self.log_state(log).submitted;
        let (mut after, mut next_number) = (before, self.next_number);
        let Some(step) = after.apply(change, log.name(), &mut next_number)? else {
            return Ok(None);
        };
        if let Change::Append(batch) = change {
            log.check_quota(self.log_state(log).backlog + batch.len_bytes())?;
        }
        if step.creates {
            let bytes = self.table_bytes + table::entry_bytes(&log.name().namespace);
            if bytes > self.limits.table_bytes {
                return Err(Error::TableFull { bytes, limit: self.limits.table_bytes });
            }
        }
        self.next_number = next_number;
        self.log_state(log).submitted = after;
        self.count_table(log, before, after);
        Ok(Some(step))
    }

    fn count_table(&mut self, log: &LogInner, before: LogBounds, after: LogBounds) {
        let bytes = table::entry_bytes(&log.name().namespace);
        match (before.exists(), after.exists()) {
            (false, true) => self.table_bytes += bytes,
            (true, false) => self.table_bytes -= bytes,
            _ => {}
        }
    }

    fn push(&mut self, mut queued: Queued) {
        let barrier = queued.parts.is_empty() && !self.bulk.is_empty();
        let mut bulk = queued.bytes > BULK_COMMIT_BYTES || barrier;
        for part in &queued.parts {
            let log = self.log_state(&part.log);
            bulk |= log.bulk_queued > 0 || log.backlog + queued.bytes > BULK_BACKLOG_BYTES;
        }
        bulk |= queued.unchanged.iter().any(|log| self.log_state(log).bulk_queued > 0);
        queued.bulk = bulk;
        for part in &queued.parts {
            let log = self.log_state(&part.log);
            log.backlog += part.bytes();
            log.bulk_queued += u32::from(bulk);
        }
        self.pending_bytes += queued.weight;
        if bulk { self.bulk.push_back(queued) } else { self.small.push_back(queued) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.bulk.is_empty()
    }

    pub(crate) fn waiting_commits(&self) -> usize {
        self.small.len() + self.bulk.len()
    }

    /// Takes the next group, giving LSNs from `next_lsn` on.
    pub(crate) fn take(&mut self, next_lsn: &mut u64, room: &mut dyn Room) -> Taken {
        if self.is_empty() {
            return Taken::Nothing;
        }
        let mut group = Vec::with_capacity(self.small.len() + 1);
        let mut fits = true;
        while fits && let Some(queued) = self.small.front() {
            fits = room.take(queued);
            if fits && let Some(queued) = self.small.pop_front() {
                group.push(self.number(queued, next_lsn));
            }
        }
        // Only when all small ones are in: a log's small commits precede its large ones.
        let turn = group.is_empty() || self.bulk_is_due;
        self.quiet = if group.is_empty() { self.quiet.saturating_add(1) } else { 0 };
        if fits && turn {
            let shares = if self.is_quiet() { QUIET_SHARES } else { 1 };
            let mut share = self.limits.bulk_share.saturating_mul(shares);
            let mut any = false;
            while let Some(queued) = self.bulk.front() {
                if any && queued.bytes > share {
                    break;
                }
                fits = room.take(queued);
                if !fits {
                    break;
                }
                share = share.saturating_sub(queued.bytes);
                any = true;
                if let Some(queued) = self.bulk.pop_front() {
                    group.push(self.number(queued, next_lsn));
                }
            }
            self.bulk_is_due = !any;
        } else {
            self.bulk_is_due = true;
        }
        match self.small.front().or(self.bulk.front()) {
            Some(next) if group.is_empty() => Taken::NoRoom(next.claim),
            _ => Taken::Group(group),
        }
    }

    /// Whether there has been no small commit for some time.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet > QUIET_GROUPS
    }

    fn number(&mut self, mut queued: Queued, next_lsn: &mut u64) -> Queued {
        queued.lsn = *next_lsn;
        *next_lsn += 1;
        let mut existing = self.existing;
        for part in &mut queued.parts {
            let log = self.log_state(&part.log);
            part.previous = log.last;
            log.last = queued.lsn;
            let before = std::mem::replace(&mut log.taken, part.after);
            match (before.exists(), part.after.exists()) {
                (false, true) => existing += 1,
                (true, false) => existing -= 1,
                _ => {}
            }
            log.backlog -= part.bytes();
            log.bulk_queued -= u32::from(queued.bulk);
        }
        self.existing = existing;
        queued
    }

    /// Counts a commit as no longer pending.
    pub(crate) fn finished(&mut self, queued: &Queued) {
        self.pending_bytes -= queued.weight;
    }

    /// Fails queued commits because the journal is full, and returns them. First those that only
    /// add, with the commits that build on them, so that the others fit into the reserve; if there
    /// are none, those that add and free; if there are none of these, all commits.
    pub(crate) fn fail_full(&mut self, error: &Error) -> Vec<Queued> {
        self.full = Some(error.clone());
        for claim in [Claim::Adds, Claim::Frees] {
            let failed = self.fail_claims(claim);
            if !failed.is_empty() {
                return failed;
            }
        }
        let all: Vec<Queued> = self.small.drain(..).chain(self.bulk.drain(..)).collect();
        self.forget(&all);
        all
    }

    fn fail_claims(&mut self, claim: Claim) -> Vec<Queued> {
        let mut failed: Vec<Queued> = Vec::new();
        let mut kept: Vec<Queued> = Vec::new();
        let mut hit: Vec<u32> = Vec::new();
        let all: Vec<Queued> = self.small.drain(..).chain(self.bulk.drain(..)).collect();
        for queued in all {
            let changed = queued.parts.iter().map(|part| &part.log);
            let mut logs = changed.chain(&queued.unchanged);
            if queued.claim == claim || logs.any(|log| hit.contains(&log.index())) {
                hit.extend(queued.parts.iter().map(|part| part.log.index()));
                failed.push(queued);
            } else {
                kept.push(queued);
            }
        }
        self.forget(&failed);
        self.forget(&kept);
        // The kept ones were checked in this order, and none builds on a failed one.
        for queued in kept {
            for part in &queued.parts {
                let before =
                    std::mem::replace(&mut self.log_state(&part.log).submitted, part.after);
                self.count_table(&part.log, before, part.after);
            }
            self.push(queued);
        }
        failed
    }

    /// Undoes the acceptance of queued commits: each of their logs returns to its state after the
    /// last commit that has an LSN.
    fn forget(&mut self, commits: &[Queued]) {
        for queued in commits {
            self.pending_bytes -= queued.weight;
            for part in &queued.parts {
                let log = self.log_state(&part.log);
                log.backlog -= part.bytes();
                log.bulk_queued -= u32::from(queued.bulk);
                let (before, after) = (log.submitted, log.taken);
                log.submitted = after;
                self.count_table(&part.log, before, after);
            }
        }
    }

    /// The journal takes nothing more: fails all that wait.
    pub(crate) fn reject(&mut self, error: &Error) -> Told {
        if !matches!(self.rejected, Some(Error::Stopped { .. })) {
            self.rejected = Some(error.clone());
        }
        let all: Vec<Queued> = self.small.drain(..).chain(self.bulk.drain(..)).collect();
        self.forget(&all);
        let mut told = Told::default();
        for queued in all {
            if queued.durability == Durability::Buffered {
                told.lose_buffered();
            }
            told.push(queued.done, Err(error.clone()));
            told.keep_parts(queued.parts);
        }
        told.extend(self.reject_new(error));
        told
    }

    /// The journal closes: takes nothing new, keeps what it has accepted.
    pub(crate) fn reject_new(&mut self, error: &Error) -> Told {
        self.rejected.get_or_insert(error.clone());
        let mut told = Told::default();
        self.counted = 0;
        for Waiting { slot, .. } in self.waiting.drain(..) {
            if let Some(commit) = slot.admit() {
                told.push(Done::Slot(slot), Err(error.clone()));
                told.keep(commit);
            }
        }
        told
    }
}

/// Turns planned operations into the parts of a queued commit, and the logs it does not change.
fn parts_of(
    operations: Vec<Operation>,
    planned: Vec<Planned>,
) -> (Vec<Part>, Vec<Arc<LogInner>>, Positions) {
    let mut parts: Vec<Part> = Vec::with_capacity(operations.len());
    let (mut unchanged, mut positions) = (Vec::new(), Positions::None);
    for (operation, Planned { before, after, step }) in operations.into_iter().zip(planned) {
        let Some(step) = step else {
            unchanged.push(operation.log);
            continue;
        };
        if let Change::Append(batch) = &operation.change {
            positions.push(after.end - batch.len() as u64..after.end);
        }
        parts.push(Part {
            log: operation.log,
            change: operation.change,
            creates: step.creates,
            number: step.number,
            section: step.section,
            heals: before.damage.is_some() && after.damage.is_none(),
            after,
            previous: 0,
            batch: None,
        });
    }
    (parts, unchanged, positions)
}

impl Part {
    fn batch_change(&self) -> bool {
        matches!(self.change, Change::Append(_))
    }

    fn bytes(&self) -> u64 {
        match &self.change {
            Change::Append(batch) => batch.len_bytes(),
            _ => 0,
        }
    }
}

/// The exact size of the frame of these parts. [`Commit::frame_bytes`] is an upper bound of it that
/// is known before planning.
fn encoded_bytes(parts: &[Part]) -> u64 {
    use crate::format::{frame, padded};
    let section = frame::SECTION_BYTES as u64;
    let parts: u64 = parts
        .iter()
        .map(|part| {
            let name = if part.creates {
                section + padded(part.log.name().namespace.len() as u64)
            } else {
                0
            };
            name + part.section.map_or(0, |_| section) + padded(part.bytes())
        })
        .sum();
    frame::HEADER_BYTES as u64 + parts
}
