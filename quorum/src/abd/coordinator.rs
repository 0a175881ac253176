//! Runs reads and writes on a majority of replicas.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::{AbdConfig, Reply, Request, Tag, Versioned};
use crate::ConfigError;
use crate::resend::Resend;
use crate::table::Outcome;
use crate::version::Dot;

/// What happens to a [`Coordinator`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CoordinatorInput {
    /// A replica answered a call. Answers to calls that have ended are discarded.
    Reply {
        /// The call.
        call: u64,
        /// The replica.
        from: u64,
        /// The answer.
        reply: Reply,
    },
    /// Time has passed: [`Coordinator::next_deadline`] is reached.
    Time,
}

/// What a [`Coordinator`] wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CoordinatorOutput {
    /// Send the request. It may be lost, repeated and reordered; failures need no report.
    Call {
        /// The call: one for each phase of an operation, the same at all replicas.
        id: u64,
        /// The replica.
        to: u64,
        /// What to ask.
        request: Request,
    },
    /// An operation has ended.
    Done {
        /// The operation, as `read` or `write` named it.
        operation: u64,
        /// After a read, the value and its tag; after a write, what was written.
        result: Result<Versioned, OperationError>,
    },
}

/// How an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OperationError {
    /// Too few whole replicas answered before the deadline. A read: nothing has changed. A write:
    /// no replica was asked to store it. Retry.
    #[error("{answered} replicas answered, {needed} are needed; nothing has changed")]
    Unavailable {
        /// How many answered.
        answered: usize,
        /// How many must.
        needed: usize,
    },
    /// A write may be on some replicas, or become visible later. Writing again is a second write:
    /// it may replace what another writer wrote in between.
    #[error("{holders} replicas are known to hold the write, {needed} must")]
    WriteUnknown {
        /// How many replicas are known to hold it.
        holders: usize,
        /// How many must.
        needed: usize,
    },
    /// The register has used all of its tags. Nothing has changed.
    #[error("the register has no greater tag")]
    Exhausted,
}

impl OperationError {
    /// Whether the operation has had an effect.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::WriteUnknown { .. } => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same operation may be tried again and cannot have a second effect.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// Why an operation was not begun. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// As many operations as allowed are under way. Retry later.
    #[error("{max} operations are under way; retry later")]
    Busy {
        /// `AbdConfig::max_operations`.
        max: usize,
    },
    /// The write cannot be carried out at any time.
    #[error("the write's {field} {rule}")]
    Invalid {
        /// `dot` or `value`.
        field: &'static str,
        /// What must hold for it.
        rule: &'static str,
    },
}

/// Runs the operations of one process on the replicas of the registers.
///
/// # Example
/// ```
/// use voussoir_quorum::abd::*;
/// use voussoir_quorum::version::{Actor, Dot};
/// let mut replicas: Vec<_> = (0..3).map(|_| Replica::recover([], true)).collect();
/// let mut coordinator = Coordinator::new(AbdConfig::with_replicas([0, 1, 2]))?;
/// let dot = Dot::new(Actor::new(9, 1), 1); // from a DotSource
/// coordinator.write(0, "k".into(), dot, Some("v".into()))?;
/// coordinator.read(0, "k".into())?;
/// while let Some(output) = coordinator.poll_output() {
///     match output {
///         CoordinatorOutput::Call { id, to, request } => {
///             let replica = &mut replicas[to as usize];
///             replica.request(id, request)?;
///             while let Some(output) = replica.poll_output() {
///                 match output {
///                     // … written and synced …
///                     ReplicaOutput::Persist { id, .. } => {
///                         replica.step(ReplicaInput::Persisted { id });
///                     }
///                     ReplicaOutput::Reply { id: call, reply } => {
///                         coordinator.step(0, CoordinatorInput::Reply { call, from: to, reply });
///                     }
///                     _ => {}
///                 }
///             }
///         }
///         CoordinatorOutput::Done { result, .. } => drop(result?),
///         _ => {}
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Coordinator {
    config: AbdConfig,
    timeout_ns: u64,
    resend_ns: u64,
    next_id: u64,
    /// Invariant: at most `max_operations`.
    operations: BTreeMap<u64, Operation>,
    /// The operation of each call under way: one for each operation.
    calls: BTreeMap<u64, u64>,
    /// When each operation wants to be woken, in ns. Invariant: one entry for each.
    timers: BTreeSet<(u64, u64)>,
    outputs: VecDeque<CoordinatorOutput>,
}

#[derive(Clone, Debug)]
struct Operation {
    key: Bytes,
    /// When it ends at the latest, in ns.
    deadline: u64,
    /// When its requests are sent again.
    resend: Resend,
    call: u64,
    /// What a write writes; none: it is a read.
    write: Option<(Dot, Option<Bytes>)>,
    phase: Phase,
}

#[derive(Clone, Debug)]
enum Phase {
    /// Collects what a majority holds.
    Query { answers: BTreeMap<u64, Versioned> },
    /// Stores at a majority.
    Store { versioned: Versioned, holders: BTreeSet<u64> },
}

impl Coordinator {
    /// A coordinator without operations.
    ///
    /// # Errors
    /// [`ConfigError`]: a field is out of range.
    pub fn new(config: AbdConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            timeout_ns: config.timeout.as_nanos() as u64,
            resend_ns: config.resend_after.as_nanos() as u64,
            config,
            next_id: 0,
            operations: BTreeMap::new(),
            calls: BTreeMap::new(),
            timers: BTreeSet::new(),
            outputs: VecDeque::new(),
        })
    }

    /// Reads a register.
    ///
    /// # Errors
    /// [`Rejected::Busy`].
    pub fn read(&mut self, now: u64, key: Bytes) -> Result<u64, Rejected> {
        self.begin(now, key, None)
    }

    /// Writes a value (none: deletes) whatever is there. `dot` has named no other write: draw it
    /// from the [`DotSource`](crate::version::DotSource) of the process.
    ///
    /// # Errors
    /// [`Rejected`]: nothing was begun.
    pub fn write(
        &mut self,
        now: u64,
        key: Bytes,
        dot: Dot,
        value: Option<Bytes>,
    ) -> Result<u64, Rejected> {
        if !dot.is_valid() {
            let rule = "must have a counter from 1 to 2^62 - 1";
            return Err(Rejected::Invalid { field: "dot", rule });
        }
        if value.as_ref().is_some_and(|value| value.len() > super::Replica::MAX_VALUE_BYTES) {
            let rule = "must not be longer than `Replica::MAX_VALUE_BYTES`";
            return Err(Rejected::Invalid { field: "value", rule });
        }
        self.begin(now, key, Some((dot, value)))
    }

    /// Takes an input. `now` is in ns and does not go back.
    pub fn step(&mut self, now: u64, input: CoordinatorInput) {
        // First: an operation whose time is over counts no answer. `Replica::rebuilt` relies on it.
        self.time(now);
        if let CoordinatorInput::Reply { call, from, reply } = input
            && self.config.replicas.contains(&from)
        {
            self.reply(now, call, from, reply);
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<CoordinatorOutput> {
        self.outputs.pop_front()
    }

    /// When [`CoordinatorInput::Time`] is due, in ns. None: no operation is under way.
    pub fn next_deadline(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    fn begin(
        &mut self,
        now: u64,
        key: Bytes,
        write: Option<(Dot, Option<Bytes>)>,
    ) -> Result<u64, Rejected> {
        if self.operations.len() >= self.config.max_operations {
            return Err(Rejected::Busy { max: self.config.max_operations });
        }
        self.next_id += 1;
        let id = self.next_id;
        let deadline = now.saturating_add(self.timeout_ns);
        let phase = Phase::Query { answers: BTreeMap::new() };
        let resend = Resend::after(now, self.resend_ns);
        let operation = Operation { key, deadline, resend, call: 0, write, phase };
        self.timers.insert((operation.due(), id));
        self.operations.insert(id, operation);
        self.call(now, id);
        Ok(id)
    }

    /// Begins the calls of a phase.
    fn call(&mut self, now: u64, id: u64) {
        let Some(operation) = self.operations.get_mut(&id) else { return };
        self.calls.remove(&operation.call);
        self.next_id += 1;
        operation.call = self.next_id;
        self.calls.insert(operation.call, id);
        self.timers.remove(&(operation.due(), id));
        operation.resend = Resend::after(now, self.resend_ns);
        self.timers.insert((operation.due(), id));
        self.send(id);
    }

    /// Sends the requests of the phase again.
    fn send_again(&mut self, now: u64, id: u64) {
        let Some(operation) = self.operations.get_mut(&id) else { return };
        self.timers.remove(&(operation.due(), id));
        operation.resend.again(now);
        self.timers.insert((operation.due(), id));
        self.send(id);
    }

    /// Sends the requests of the phase to the replicas that have not answered them.
    fn send(&mut self, id: u64) {
        let Some(operation) = self.operations.get(&id) else { return };
        let (call, request) = (operation.call, operation.request());
        for to in self.config.replicas.iter().copied().filter(|to| operation.misses(*to)) {
            let request = request.clone();
            self.outputs.push_back(CoordinatorOutput::Call { id: call, to, request });
        }
    }

    fn reply(&mut self, now: u64, call: u64, from: u64, reply: Reply) {
        let Some(id) = self.calls.get(&call).copied() else { return };
        let majority = self.config.majority();
        let Some(operation) = self.operations.get_mut(&id) else { return };
        match (reply, &mut operation.phase) {
            (Reply::Value { versioned }, Phase::Query { answers }) if versioned.tag.is_valid() => {
                answers.insert(from, versioned);
                if answers.len() >= majority {
                    self.queried(now, id);
                }
            }
            (Reply::Stored, Phase::Store { holders, .. }) => {
                holders.insert(from);
                self.finish_if_stored(id);
            }
            // Not whole, or no answer to what was asked: it counts for nothing.
            _ => {}
        }
    }

    /// A majority has told what it holds.
    fn queried(&mut self, now: u64, id: u64) {
        let Some(operation) = self.operations.get_mut(&id) else { return };
        let Phase::Query { answers } = &operation.phase else { return };
        let greatest = answers.values().max_by_key(|answer| answer.tag);
        let Some(found) = greatest.cloned() else { return };
        let (versioned, holders) = match &operation.write {
            None => {
                let holds = |(_, answer): &(&u64, &Versioned)| answer.tag == found.tag;
                let holders = answers.iter().filter(holds).map(|(id, _)| *id).collect();
                (found, holders)
            }
            Some(_) if found.tag.number >= Tag::MAX_NUMBER => {
                return self.finish(id, Err(OperationError::Exhausted));
            }
            Some((writer, value)) => {
                let tag = Tag { number: found.tag.number + 1, writer: *writer };
                (Versioned { tag, value: value.clone() }, BTreeSet::new())
            }
        };
        operation.phase = Phase::Store { versioned, holders };
        if !self.finish_if_stored(id) {
            self.call(now, id);
        }
    }

    fn finish_if_stored(&mut self, id: u64) -> bool {
        let Some(operation) = self.operations.get(&id) else { return false };
        let Phase::Store { versioned, holders } = &operation.phase else { return false };
        let is_stored = holders.len() >= self.config.majority();
        if is_stored {
            let versioned = versioned.clone();
            self.finish(id, Ok(versioned));
        }
        is_stored
    }

    fn finish(&mut self, id: u64, result: Result<Versioned, OperationError>) {
        let Some(operation) = self.operations.remove(&id) else { return };
        self.calls.remove(&operation.call);
        self.timers.remove(&(operation.due(), id));
        self.outputs.push_back(CoordinatorOutput::Done { operation: id, result });
    }

    fn time(&mut self, now: u64) {
        let needed = self.config.majority();
        // Ends: each turn ends an operation or moves its timer behind `now`.
        while let Some((_, id)) = self.timers.first().copied().filter(|(due, _)| *due <= now) {
            let Some(operation) = self.operations.get(&id) else { return };
            if operation.deadline > now {
                self.send_again(now, id);
                continue;
            }
            let error = match &operation.phase {
                Phase::Store { holders, .. } if operation.write.is_some() => {
                    OperationError::WriteUnknown { holders: holders.len(), needed }
                }
                Phase::Store { holders, .. } => {
                    OperationError::Unavailable { answered: holders.len(), needed }
                }
                Phase::Query { answers } => {
                    OperationError::Unavailable { answered: answers.len(), needed }
                }
            };
            self.finish(id, Err(error));
        }
    }
}

impl Operation {
    fn due(&self) -> u64 {
        self.deadline.min(self.resend.at())
    }

    fn request(&self) -> Request {
        let key = self.key.clone();
        match &self.phase {
            Phase::Query { .. } => Request::Get { key },
            Phase::Store { versioned, .. } => Request::Store { key, versioned: versioned.clone() },
        }
    }

    /// Whether the replica has not answered in this phase.
    fn misses(&self, replica: u64) -> bool {
        match &self.phase {
            Phase::Query { answers } => !answers.contains_key(&replica),
            Phase::Store { holders, .. } => !holders.contains(&replica),
        }
    }
}
