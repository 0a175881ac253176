//! Runs operations on the replicas of a table.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::answers::Answers;
use super::latency::Latencies;
use super::operation::{Operation, Phase, ReadStep, order};
use super::retry::{Budget, Failure, Retries};
use super::{
    CallError, Digester, Guarantee, Level, OperationError, ReadRepair, Rejected, Replica, Reply,
    Request, Stats, TableConfig,
};
use crate::ConfigError;
use crate::membership::Membership;
use crate::merkle::HashKey;
use crate::version::{Dot, Siblings, VersionVector};

/// What happens to a [`Coordinator`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CoordinatorInput {
    /// A replica answered a call. Answers to calls that have ended are discarded.
    Reply {
        /// The call.
        call: u64,
        /// The answer.
        reply: Reply,
    },
    /// A call failed.
    Failed {
        /// The call.
        call: u64,
        /// How far it got.
        error: CallError,
    },
    /// Time has passed: [`Coordinator::next_deadline`] is reached.
    Time,
}

/// What a [`Coordinator`] wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CoordinatorOutput {
    /// Call a replica, and report the answer or the failure.
    Call {
        /// The call; rises by one each.
        id: u64,
        /// The replica.
        to: u64,
        /// What to ask.
        request: Request,
    },
    /// Nobody waits for the call any more: it may be dropped, and need not be reported.
    Cancel {
        /// The call.
        id: u64,
    },
    /// A write has ended, and this replica is not known to hold it. Hand it the key's state of a
    /// replica that does, later (hinted handoff), or leave it to read repair.
    Missed {
        /// The replica.
        replica: u64,
        /// The key.
        key: Bytes,
    },
    /// An operation has ended.
    Done {
        /// The operation, as `get`, `put` or `delete` named it.
        operation: u64,
        /// How it ended.
        result: Result<Value, OperationError>,
    },
}

/// What an operation returns: the key's state, with the context that its client passes to its next
/// write, and to its next read as `at_least`. After a write it is the state after the write.
pub type Value = Siblings<Bytes>;

/// Hedged reads that may follow each other without reads between them, in hundredths.
const MAX_HEDGES: u64 = 1_000;

/// A call under way.
#[derive(Clone, Copy, Debug)]
struct Call {
    operation: u64,
    replica: u64,
    /// When it was made, in ns.
    at: u64,
    /// Whether it asks for a digest.
    is_digest: bool,
}

/// Runs the operations of one process on the replicas of a table.
#[derive(Clone, Debug)]
pub struct Coordinator {
    config: TableConfig,
    /// The replicas. Calls are of its epoch.
    membership: Membership,
    timeout_ns: u64,
    hedge_ns: u64,
    digester: Digester,
    next_operation: u64,
    next_call: u64,
    /// The highest epoch that a replica was seen to have.
    epoch: u64,
    /// Invariant: at most `max_operations`.
    operations: BTreeMap<u64, Operation>,
    calls: BTreeMap<u64, Call>,
    latencies: Latencies,
    /// Reads that may be hedged now, in hundredths. Invariant: at most [`MAX_HEDGES`].
    hedges: u64,
    /// Of calls that are made again, by replica.
    budgets: BTreeMap<u64, Budget>,
    /// When each operation wants to be woken, in ns. Invariant: one entry for each, at its `timer`.
    timers: BTreeSet<(u64, u64)>,
    outputs: VecDeque<CoordinatorOutput>,
    stats: Stats,
    rng: fastrand::Rng,
}

impl Coordinator {
    /// A coordinator without operations.
    ///
    /// # Errors
    /// [`ConfigError`]: a field is out of range, or the levels cannot give what is required.
    pub fn new(config: TableConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            timeout_ns: config.timeout.as_nanos() as u64,
            hedge_ns: config.hedge_after.as_nanos() as u64,
            digester: Digester { key: HashKey::new([0; 16]), min_bytes: config.min_digest_bytes },
            membership: Membership::first(config.replicas.iter().copied()),
            rng: config.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed),
            config,
            next_operation: 0,
            next_call: 0,
            epoch: Replica::FIRST_EPOCH,
            operations: BTreeMap::new(),
            calls: BTreeMap::new(),
            latencies: Latencies::default(),
            hedges: MAX_HEDGES,
            budgets: BTreeMap::new(),
            timers: BTreeSet::new(),
            outputs: VecDeque::new(),
            stats: Stats::default(),
        })
    }

    /// The coordinator with a key for the digests of its reads. Draw it where clients are not
    /// trusted: whoever knows it may make two states of one digest.
    #[must_use]
    pub fn with_digest_key(self, key: HashKey) -> Self {
        Self { digester: Digester { key, ..self.digester }, ..self }
    }

    /// The configuration.
    pub fn config(&self) -> &TableConfig {
        &self.config
    }

    /// The replicas, as far as the coordinator knows.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The replicas, before the first operation: in place of those of the configuration.
    pub(crate) fn begin_with(&mut self, membership: Membership) {
        if self.operations.is_empty() {
            self.membership = membership;
        }
    }

    /// Goes on with the replicas of a later epoch, which a replica has told. An earlier one is
    /// discarded.
    ///
    /// What runs is begun anew at the new replicas, within its deadline: a read asks again, and a
    /// state that is spread is merged into quorums of the new replicas, for what was acknowledged
    /// in the old epoch counts for it no more. Only the call of a write to its primary goes on: the
    /// write may have been made. An operation whose level does not give of the new replicas what
    /// the table requires fails.
    pub fn reconfigure(&mut self, now: u64, membership: Membership) {
        if membership.epoch() <= self.membership.epoch() {
            return;
        }
        self.membership = membership;
        self.budgets.retain(|replica, _| self.membership.contains(*replica));
        for id in self.operations.keys().copied().collect::<Vec<_>>() {
            self.ask_anew(now, id);
        }
    }

    /// Begins an operation anew at the replicas of a later epoch.
    fn ask_anew(&mut self, now: u64, id: u64) {
        let order = order(&self.config, &self.membership, &mut self.latencies, now, id);
        let Some(operation) = self.operations.get_mut(&id) else { return };
        (operation.order, operation.asked) = (order, 0);
        operation.retries.clear();
        let is_read = matches!(operation.phase, Phase::Read { .. });
        let levels = (operation.read, operation.write);
        // Of a write: between two calls to its primary. It is nowhere.
        let is_unsent =
            matches!(operation.phase, Phase::Primary { .. }) && operation.calls.is_empty();
        if let Some(error) = self.refusal(levels).filter(|_| is_read || is_unsent) {
            return self.finish(id, Err(error));
        }
        let Some(operation) = self.operations.get_mut(&id) else { return };
        match &mut operation.phase {
            Phase::Read { answers, .. } => {
                answers.clear();
                self.cancel_calls(id);
                self.ask_first(now, id);
                self.go_on(now, id);
            }
            Phase::Primary { .. } if is_unsent => self.ask_first(now, id),
            Phase::Primary { .. } => self.retime(id),
            Phase::Spread { .. } if operation.is_answered => {
                // Repair and hints find the rest.
                self.cancel_calls(id);
                self.go_on(now, id);
            }
            Phase::Spread { state, is_read, .. } => {
                let (state, is_read) = (state.clone(), *is_read);
                self.spread(now, id, state, BTreeSet::new(), is_read);
            }
        }
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        Stats { operations: self.operations.len(), ..self.stats }
    }

    /// Records the epoch of a replica. Operations carry the epoch that was known when they began.
    pub fn observe_epoch(&mut self, epoch: u64) {
        if epoch <= Dot::MAX_COUNTER {
            self.epoch = self.epoch.max(epoch);
        }
    }

    /// The epoch in which the operation of a call began, to be sent with the request. None: the
    /// call has ended.
    pub fn epoch_of(&self, call: u64) -> Option<u64> {
        let call = self.calls.get(&call)?;
        self.operations.get(&call.operation).map(|operation| operation.epoch)
    }

    /// Ends an operation that has waited before it began at `deadline` in ns, if that is earlier
    /// than its own.
    pub(crate) fn end_by(&mut self, operation: u64, deadline: u64) {
        if let Some(running) = self.operations.get_mut(&operation) {
            running.deadline = running.deadline.min(deadline);
            self.retime(operation);
        }
    }

    /// Ends a read that nobody waits for any more: it is not answered. A write goes on, for a part
    /// of it may have been made; its `Done` may be discarded.
    pub fn cancel(&mut self, operation: u64) {
        let Some(running) = self.operations.get_mut(&operation) else { return };
        if matches!(running.phase, Phase::Read { .. }) {
            running.is_answered = true;
            self.finish(operation, Err(OperationError::Behind));
        }
    }

    /// Reads a key at the table's level. `at_least` is what the result must have seen: the context
    /// of the session's latest operation on the key (read your writes, monotonic reads at any
    /// level), or an empty vector.
    ///
    /// # Errors
    /// [`Rejected::Busy`].
    pub fn get(&mut self, now: u64, key: Bytes, at_least: VersionVector) -> Result<u64, Rejected> {
        self.get_at(now, key, at_least, self.config.read)
    }

    /// Reads a key at another level than the table's.
    ///
    /// # Errors
    /// [`Rejected`]: the level cannot give what the table requires, or the coordinator is busy.
    pub fn get_at(
        &mut self,
        now: u64,
        key: Bytes,
        at_least: VersionVector,
        level: Level,
    ) -> Result<u64, Rejected> {
        let is_compared = self.membership.sets().any(|set| level.count(set.len()) > 1);
        let answers = Answers::new(is_compared.then_some(self.digester));
        let phase = Phase::Read { answers, at_least };
        self.begin(now, key, phase, (level, self.config.write))
    }

    /// Writes a value that replaces what `seen` covers: the context of the read that it is based
    /// on. What the writer has not seen stays as a sibling.
    ///
    /// # Errors
    /// [`Rejected::Busy`].
    pub fn put(
        &mut self,
        now: u64,
        key: Bytes,
        seen: VersionVector,
        value: Bytes,
    ) -> Result<u64, Rejected> {
        let phase = Phase::Primary { seen, value: Some(value) };
        self.begin(now, key, phase, (self.config.read, self.config.write))
    }

    /// Writes a value without having read the key: it becomes a sibling of what is there.
    ///
    /// # Errors
    /// [`Rejected::Busy`].
    pub fn put_blind(&mut self, now: u64, key: Bytes, value: Bytes) -> Result<u64, Rejected> {
        self.put(now, key, VersionVector::new(), value)
    }

    /// Deletes what `seen` covers.
    ///
    /// # Errors
    /// [`Rejected::Busy`].
    pub fn delete(&mut self, now: u64, key: Bytes, seen: VersionVector) -> Result<u64, Rejected> {
        let phase = Phase::Primary { seen, value: None };
        self.begin(now, key, phase, (self.config.read, self.config.write))
    }

    /// Takes an input. `now` is in ns and does not go back.
    pub fn step(&mut self, now: u64, input: CoordinatorInput) {
        // First: an operation whose time is over counts no answer, also if the answer is handed in
        // before the timer. `Replica::rebuilt` relies on it.
        self.time(now);
        match input {
            CoordinatorInput::Reply { call, reply } => self.reply(now, call, reply),
            CoordinatorInput::Failed { call, error } => {
                if let Some(call) = self.end_call(call) {
                    let failure = match error {
                        CallError::NotSent => Failure::NotSent,
                        CallError::Busy => Failure::Busy,
                        CallError::Unknown => Failure::Unknown,
                    };
                    self.latencies.waited(now, call.replica, self.timeout_ns);
                    self.failed(now, call.operation, call.replica, failure);
                }
            }
            CoordinatorInput::Time => {}
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<CoordinatorOutput> {
        self.outputs.pop_front()
    }

    /// When [`CoordinatorInput::Time`] is due, in ns.
    pub fn next_deadline(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    fn begin(
        &mut self,
        now: u64,
        key: Bytes,
        phase: Phase,
        (read, write): (Level, Level),
    ) -> Result<u64, Rejected> {
        if let Some(OperationError::Guarantee { given, required }) = self.refusal((read, write)) {
            return Err(Rejected::Guarantee { given, required });
        }
        if self.operations.len() >= self.config.max_operations {
            return Err(Rejected::Busy { max: self.config.max_operations });
        }
        self.next_operation += 1;
        let id = self.next_operation;
        let is_read = matches!(phase, Phase::Read { .. });
        if is_read {
            let share = u64::from(self.config.max_hedge_percent);
            self.hedges = (self.hedges + share).min(MAX_HEDGES);
        }
        let deadline = now.saturating_add(self.timeout_ns);
        let operation = Operation {
            key,
            epoch: self.epoch,
            began: now,
            deadline,
            timer: deadline,
            hedge_at: now.saturating_add(self.hedge_ns),
            order: order(&self.config, &self.membership, &mut self.latencies, now, id),
            asked: 0,
            calls: BTreeSet::new(),
            retries: Retries::default(),
            read,
            write,
            phase,
            is_answered: false,
        };
        self.timers.insert((deadline, id));
        self.operations.insert(id, operation);
        self.ask_first(now, id);
        Ok(id)
    }

    /// Why an operation of these levels is not acknowledged with the replicas of now.
    fn refusal(&self, (read, write): (Level, Level)) -> Option<OperationError> {
        let required = self.config.require;
        let sizes = || self.membership.sets().map(<[_]>::len);
        let given = sizes().map(|n| self.config.guarantee_of(n, read, write)).min();
        let given = given.unwrap_or(Guarantee::Eventual);
        let is_too_many = sizes().any(|n| read.count(n) > n);
        let is_refused = given < required || is_too_many;
        is_refused.then_some(OperationError::Guarantee { given, required })
    }

    /// Asks those that an operation begins with: as many as it waits for; of two sets of replicas,
    /// all.
    fn ask_first(&mut self, now: u64, id: u64) {
        let Some(operation) = self.operations.get(&id) else { return };
        let first = match &operation.phase {
            Phase::Read { .. } if self.membership.is_changing() => operation.order.len(),
            Phase::Read { .. } => operation.read.count(operation.order.len()),
            _ => 1,
        };
        for _ in 0..first {
            self.ask_next(now, id);
        }
    }

    /// Calls the next replica of the operation's order. Returns false if all have been asked.
    fn ask_next(&mut self, now: u64, id: u64) -> bool {
        let Some(operation) = self.operations.get_mut(&id) else { return false };
        let Some(to) = operation.order.get(operation.asked).copied() else { return false };
        operation.asked += 1;
        let request = operation.request(false);
        self.ask(now, id, to, request);
        true
    }

    /// Calls a replica.
    fn ask(&mut self, now: u64, id: u64, to: u64, request: Request) {
        let Some(operation) = self.operations.get_mut(&id) else { return };
        self.next_call += 1;
        let call = self.next_call;
        operation.calls.insert(call);
        self.retime(id);
        let is_digest = matches!(request, Request::Digest { .. });
        self.calls.insert(call, Call { operation: id, replica: to, at: now, is_digest });
        self.outputs.push_back(CoordinatorOutput::Call { id: call, to, request });
    }

    fn retime(&mut self, id: u64) {
        let Some(operation) = self.operations.get_mut(&id) else { return };
        let due = operation.due();
        self.timers.remove(&(operation.timer, id));
        self.timers.insert((due, id));
        operation.timer = due;
    }

    /// Takes a call off the books.
    fn end_call(&mut self, id: u64) -> Option<Call> {
        let call = self.calls.remove(&id)?;
        self.operations.get_mut(&call.operation)?.calls.remove(&id);
        Some(call)
    }

    fn reply(&mut self, now: u64, call: u64, reply: Reply) {
        let Some(call) = self.end_call(call) else { return };
        let Call { operation: id, replica: from, at, is_digest } = call;
        if reply == Reply::NotWhole {
            self.latencies.not_whole(now, from);
        } else {
            self.budgets.entry(from).or_default().succeeded();
            self.latencies.answered(now, from, now.saturating_sub(at));
        }
        let Some(operation) = self.operations.get_mut(&id) else { return };
        match (reply, &mut operation.phase) {
            (Reply::Value { state }, Phase::Read { answers, .. }) => {
                answers.add_state(from, state);
                self.fetch(now, id);
                self.go_on(now, id);
            }
            (Reply::Digest { digest }, Phase::Read { answers, .. }) if is_digest => {
                self.stats.digests += 1;
                answers.add_digest(from, digest);
                self.fetch(now, id);
                self.go_on(now, id);
            }
            (Reply::Written { state }, Phase::Primary { .. }) => {
                self.spread(now, id, state, BTreeSet::from([from]), false);
            }
            (Reply::Merged, Phase::Spread { holders, .. }) => {
                holders.insert(from);
                self.go_on(now, id);
            }
            (Reply::Refused, Phase::Primary { .. }) => {
                self.finish(id, Err(OperationError::Refused));
            }
            (Reply::Stale { epoch }, Phase::Read { .. } | Phase::Primary { .. })
                if epoch > operation.epoch && epoch <= Dot::MAX_COUNTER =>
            {
                self.restart(now, id, epoch);
            }
            (Reply::NotWhole, _) => {
                self.stats.not_whole += 1;
                self.failed(now, id, from, Failure::NotWhole);
            }
            // No answer to what was asked: nothing is known of what was done.
            (reply, Phase::Primary { .. }) if !matches!(reply, Reply::Stale { .. }) => {
                self.failed(now, id, from, Failure::Unknown);
            }
            // Too much to be merged, too old, or no answer to what was asked.
            _ => self.failed(now, id, from, Failure::Final),
        }
    }

    /// Asks the replicas for their states whose digests are those of no state that has come.
    fn fetch(&mut self, now: u64, id: u64) {
        let Some(operation) = self.operations.get_mut(&id) else { return };
        let Phase::Read { answers, .. } = &mut operation.phase else { return };
        let key = operation.key.clone();
        for to in answers.take_unmatched() {
            self.stats.unmatched_digests += 1;
            self.ask(now, id, to, Request::Get { key: key.clone() });
        }
    }

    /// Begins an operation anew in the epoch `epoch`: what it has read may hold what was deleted
    /// and collected since, and nothing was written. Ends: each turn raises the epoch, and the
    /// deadline stays.
    fn restart(&mut self, now: u64, id: u64, epoch: u64) {
        self.observe_epoch(epoch);
        self.cancel_calls(id);
        let Some(operation) = self.operations.get_mut(&id) else { return };
        (operation.epoch, operation.asked) = (epoch, 0);
        operation.retries.clear();
        if let Phase::Read { answers, .. } = &mut operation.phase {
            answers.clear();
        }
        self.ask_first(now, id);
        self.go_on(now, id);
    }

    /// A call of the operation to `replica` has failed.
    fn failed(&mut self, now: u64, id: u64, replica: u64, failure: Failure) {
        let Some(operation) = self.operations.get_mut(&id) else { return };
        let is_not_applied = failure != Failure::Unknown;
        let holds_none = matches!(operation.phase, Phase::Primary { .. });
        if holds_none && !is_not_applied {
            // Another primary would give the write a second dot.
            let write = operation.write;
            let needed = self.needed(write);
            self.finish(id, Err(OperationError::WriteUnknown { holders: 0, needed }));
            return;
        }
        let levels = (operation.read, operation.write);
        if holds_none
            && operation.calls.is_empty()
            && let Some(error) = self.refusal(levels)
        {
            // It is nowhere, and the replicas have changed since it began.
            return self.finish(id, Err(error));
        }
        let Some(operation) = self.operations.get_mut(&id) else { return };
        // What was answered is left to hints and to the next read.
        if !operation.is_answered && self.membership.contains(replica) {
            let (timeout, rng) = (self.timeout_ns, &mut self.rng);
            operation.retries.failed(now, replica, failure, timeout, rng);
        }
        if !matches!(operation.phase, Phase::Spread { .. }) {
            self.ask_next(now, id);
        }
        self.retime(id);
        self.go_on(now, id);
    }

    /// Asks the replicas of an operation again whose pauses have ended. Without budget it waits for
    /// another pause, until half of its time is over.
    fn retry(&mut self, now: u64, id: u64) {
        // Ends: each turn takes one of them, or moves it behind `now`.
        while let Some(operation) = self.operations.get_mut(&id)
            && let Some(replica) = operation.take_retry(now)
        {
            let is_late = now.saturating_sub(operation.began) >= self.timeout_ns / 2;
            if !is_late && !self.budgets.entry(replica).or_default().take() {
                self.stats.postponed += 1;
                let (timeout, rng) = (self.timeout_ns, &mut self.rng);
                operation.retries.failed(now, replica, Failure::Busy, timeout, rng);
                continue;
            }
            let request = operation.request(true);
            self.stats.retried += 1;
            self.ask(now, id, replica, request);
        }
    }

    /// Answers the operation if it has what it waits for, or can no longer get it.
    fn go_on(&mut self, now: u64, id: u64) {
        let Some(operation) = self.operations.get(&id) else { return };
        if let ReadStep::Merged { state, holders } = operation.read_step(&self.membership) {
            self.merged(now, id, state, holders);
            return;
        }
        let Some(operation) = self.operations.get(&id) else { return };
        if matches!(operation.phase, Phase::Read { .. }) && operation.calls.is_empty() {
            // Too few are whole, or those that answered are behind the session.
            self.ask_next(now, id);
            return self.end_if_hopeless(id);
        }
        if let Phase::Spread { holders, is_read, .. } = &operation.phase
            && !operation.is_answered
            && let Some(refusal) = self.refusal((operation.read, operation.write))
        {
            // It spreads all the same, but a read at this level may miss it.
            let (holders, needed) = (holders.len(), self.needed(operation.write));
            let unknown = OperationError::WriteUnknown { holders, needed };
            let error = if *is_read { refusal } else { unknown };
            self.answer(id, Err(error));
        }
        let Some(operation) = self.operations.get(&id) else { return };
        if let Phase::Spread { state, holders, .. } = &operation.phase
            && self.membership.is_met(operation.write, |id| holders.contains(&id))
            && !operation.is_answered
        {
            let state = state.clone();
            self.answer(id, Ok(state));
        }
        self.end_if_hopeless(id);
    }

    /// A read has its result.
    fn merged(&mut self, now: u64, id: u64, state: Value, holders: BTreeSet<u64>) {
        let Some(operation) = self.operations.get(&id) else { return };
        let Phase::Read { answers, .. } = &operation.phase else { return };
        let is_divergent = holders.len() < answers.states().len();
        self.stats.divergent_reads += u64::from(is_divergent);
        let repair = self.config.read_repair;
        let is_held = self.membership.is_met(operation.write, |id| holders.contains(&id));
        let must_wait = repair == ReadRepair::Blocking && !is_held;
        let is_needed = must_wait || (is_divergent && repair != ReadRepair::Off);
        if !is_needed {
            self.finish(id, Ok(state));
            return;
        }
        self.stats.blocking_repairs += u64::from(must_wait);
        if !must_wait {
            // Only those that answered with less are repaired.
            let answered: BTreeSet<u64> = answers.states().keys().copied().collect();
            self.answer(id, Ok(state.clone()));
            if let Some(operation) = self.operations.get_mut(&id) {
                operation.order.retain(|replica| answered.contains(replica));
            }
        }
        self.spread(now, id, state, holders, true);
    }

    /// Merges `state` into every replica of the operation that does not hold it.
    fn spread(&mut self, now: u64, id: u64, state: Value, holders: BTreeSet<u64>, is_read: bool) {
        self.cancel_calls(id);
        let Some(operation) = self.operations.get_mut(&id) else { return };
        operation.order.retain(|replica| !holders.contains(replica));
        operation.asked = 0;
        operation.retries.clear();
        operation.phase = Phase::Spread { state, holders, is_read };
        self.retime(id);
        // Ends: each turn asks one more replica.
        while self.ask_next(now, id) {}
        self.go_on(now, id);
    }

    /// Ends an operation that nothing can give what it waits for: its calls have ended, and the
    /// replicas that are to be asked again are too few.
    fn end_if_hopeless(&mut self, id: u64) {
        let Some(operation) = self.operations.get(&id) else { return };
        let retries = &operation.retries;
        let is_waiting = !operation.calls.is_empty() || retries.due().is_some();
        let could_still = match &operation.phase {
            Phase::Spread { holders, .. } if !operation.is_answered => {
                let calls = operation.calls.iter().filter_map(|call| self.calls.get(call));
                let asked: BTreeSet<u64> = calls.map(|call| call.replica).collect();
                let may_answer = |id| asked.contains(&id) || retries.contains(id);
                let may_hold = |id| holders.contains(&id) || may_answer(id);
                self.membership.is_met(operation.write, may_hold)
            }
            _ => is_waiting,
        };
        if !could_still {
            self.give_up(id);
        }
    }

    /// Ends an operation that has waited long enough or has nothing more to wait for.
    fn give_up(&mut self, id: u64) {
        let Some(operation) = self.operations.get(&id) else { return };
        let needed = self.needed(operation.write);
        let error = match &operation.phase {
            Phase::Read { answers, .. } if operation.is_answered_by(answers, &self.membership) => {
                OperationError::Behind
            }
            Phase::Read { answers, .. } => OperationError::Unavailable {
                answered: answers.states().len(),
                needed: self.needed(operation.read),
            },
            Phase::Primary { .. } if operation.calls.is_empty() => {
                OperationError::Unavailable { answered: 0, needed }
            }
            Phase::Primary { .. } => OperationError::WriteUnknown { holders: 0, needed },
            Phase::Spread { holders, is_read, .. } => {
                let holders = holders.len();
                if *is_read {
                    OperationError::RepairFailed { holders, needed }
                } else {
                    OperationError::WriteUnknown { holders, needed }
                }
            }
        };
        self.finish(id, Err(error));
    }

    /// How many replicas a level takes: of the larger set, while there are two.
    fn needed(&self, level: Level) -> usize {
        self.membership.sets().map(|set| level.count(set.len())).max().unwrap_or(0)
    }

    fn answer(&mut self, id: u64, result: Result<Value, OperationError>) {
        let Some(operation) = self.operations.get_mut(&id) else { return };
        if !std::mem::replace(&mut operation.is_answered, true) {
            operation.retries.clear();
            self.retime(id);
            self.outputs.push_back(CoordinatorOutput::Done { operation: id, result });
        }
    }

    /// Answers the operation unless it was, and forgets it.
    fn finish(&mut self, id: u64, result: Result<Value, OperationError>) {
        self.answer(id, result);
        self.cancel_calls(id);
        let Some(operation) = self.operations.remove(&id) else { return };
        self.timers.remove(&(operation.timer, id));
        if let Phase::Spread { holders, is_read: false, .. } = &operation.phase {
            for replica in self.membership.ids().into_iter().filter(|id| !holders.contains(id)) {
                let key = operation.key.clone();
                self.outputs.push_back(CoordinatorOutput::Missed { replica, key });
            }
        }
    }

    fn cancel_calls(&mut self, id: u64) {
        let Some(operation) = self.operations.get_mut(&id) else { return };
        for call in std::mem::take(&mut operation.calls) {
            self.calls.remove(&call);
            self.outputs.push_back(CoordinatorOutput::Cancel { id: call });
        }
    }

    fn time(&mut self, now: u64) {
        // Ends: each turn ends an operation or moves its timer behind `now`.
        while let Some((_, id)) = self.timers.first().copied().filter(|(due, _)| *due <= now) {
            let Some(operation) = self.operations.get(&id) else { return };
            if operation.deadline <= now {
                self.give_up(id);
                continue;
            }
            self.retry(now, id);
            self.hedge(now, id);
            self.retime(id);
        }
    }

    /// Asks one more replica of a read that has waited long; all that are left if it has waited for
    /// half of its time.
    fn hedge(&mut self, now: u64, id: u64) {
        let Some(operation) = self.operations.get(&id) else { return };
        if !operation.may_hedge() || operation.hedge_at > now {
            return;
        }
        let (waited, half) = (now.saturating_sub(operation.began), self.timeout_ns / 2);
        for call in operation.calls.iter().filter_map(|call| self.calls.get(call)) {
            self.latencies.waited(now, call.replica, now.saturating_sub(call.at));
        }
        let mut pause = self.hedge_ns;
        if waited >= half {
            // Ends: each turn asks one more replica.
            while self.ask_next(now, id) {}
        } else if self.hedges >= 100 {
            self.hedges -= 100;
            self.stats.hedged += u64::from(self.ask_next(now, id));
            pause = pause.min(half - waited);
        } else {
            // Without budget it is not woken again and again.
            pause = pause.max(waited).min(half - waited);
        }
        if let Some(operation) = self.operations.get_mut(&id) {
            operation.hedge_at = now.saturating_add(pause);
        }
    }
}
