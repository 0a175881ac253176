//! The coordinator: begins transactions, knows which are active, and runs the recovery.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use super::config::CoordinatorConfig;
use super::core::{Ack, Answer, Input, Transaction};
use super::error::{BeginError, CommitError, EnlistError, OpenCoordinatorError, OtherCoordinator};
use super::gid::{Gid, TxnId, is_name};
use super::log::{Committed, DecisionLog, HeuristicOutcome};
use super::participant::Participant;
use super::recovery::{self, Recovered};
use super::task;
use crate::clock::{Clock, System};
use crate::error::StoreError;

/// The longest name of a participant, in bytes.
const MAX_PARTICIPANT_BYTES: usize = 100;

pub(super) struct Inner {
    pub(super) name: Arc<str>,
    pub(super) epoch: u64,
    pub(super) config: CoordinatorConfig,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) log: Arc<dyn DecisionLog>,
    pub(super) participants: HashMap<Arc<str>, Arc<dyn Participant>>,
    pub(super) state: Mutex<State>,
    /// True once `state.closed` is set.
    closing: watch::Sender<bool>,
    runtime: Handle,
}

#[derive(Default)]
pub(super) struct State {
    /// The number of the next transaction of this epoch.
    next: u64,
    /// Transactions that were begun and whose outcome has not reached every branch.
    pub(super) active: HashSet<TxnId>,
    /// The number of the next list of a recovery.
    pub(super) next_watch: u64,
    /// For each list under way, the transactions that have ended since it was asked for.
    pub(super) ended: HashMap<u64, HashSet<TxnId>>,
    pub(super) heuristics: Vec<HeuristicOutcome>,
    /// The age of the oldest branch that each participant held prepared at the last recovery.
    pub(super) oldest: HashMap<Arc<str>, Duration>,
    /// Set once: after it no transaction begins, and the recovery aborts nothing.
    pub(super) closed: Option<Closed>,
}

impl State {
    /// Lists a heuristic outcome. False if it is listed.
    pub(super) fn note_heuristic(&mut self, outcome: &HeuristicOutcome) -> bool {
        let is_new = !self.heuristics.contains(outcome);
        if is_new {
            self.heuristics.push(outcome.clone());
        }
        is_new
    }
}

/// Why a coordinator begins nothing more.
#[derive(Clone)]
pub(super) enum Closed {
    /// Its log failed: nobody here knows what is committed.
    Failed(StoreError),
    /// A later coordinator has taken over.
    Superseded,
}

impl From<Closed> for BeginError {
    fn from(closed: Closed) -> Self {
        match closed {
            Closed::Failed(error) => Self::Store(error),
            Closed::Superseded => Self::Superseded,
        }
    }
}

impl Inner {
    pub(super) fn gid(&self, txn: TxnId, branch: u32) -> Gid {
        Gid::new(&self.name, txn, branch)
    }

    /// The transaction's task has nothing left to do.
    pub(super) fn end(&self, txn: TxnId) {
        let mut state = self.state.lock();
        state.active.remove(&txn);
        for ended in state.ended.values_mut() {
            ended.insert(txn);
        }
    }

    pub(super) fn fail(&self, error: &StoreError) {
        tracing::error!(
            target: "voussoir::txn", coordinator = %self.name, %error, "the log of decisions failed"
        );
        self.close(Closed::Failed(error.clone()));
    }

    /// A later coordinator has taken over, which is nobody's fault.
    pub(super) fn supersede(&self) {
        if self.close(Closed::Superseded) {
            tracing::info!(
                target: "voussoir::txn", coordinator = %self.name, epoch = self.epoch,
                "a later coordinator has taken over"
            );
        }
    }

    /// Notes that a later coordinator has taken over, if the log knows so; true if it does.
    pub(super) fn look_for_successor(&self) -> bool {
        let is_superseded = self.log.is_superseded();
        if is_superseded {
            self.supersede();
        }
        is_superseded
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed.is_some()
    }

    /// False if it was closed before.
    fn close(&self, why: Closed) -> bool {
        let mut state = self.state.lock();
        let is_first = state.closed.is_none();
        state.closed.get_or_insert(why);
        drop(state);
        self.closing.send_replace(true);
        is_first
    }
}

/// Builds a [`Coordinator`].
pub struct CoordinatorBuilder {
    name: String,
    config: CoordinatorConfig,
    clock: Option<Arc<dyn Clock>>,
    participants: Vec<(Arc<str>, Arc<dyn Participant>)>,
}

impl CoordinatorBuilder {
    /// Replaces the configuration.
    pub fn config(mut self, config: CoordinatorConfig) -> Self {
        self.config = config;
        self
    }

    /// Replaces the clock; default [`System`].
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// Adds a participant under a name that does not change from one start to the next: the records
    /// of commits name it.
    pub fn participant(mut self, name: &str, participant: Arc<dyn Participant>) -> Self {
        self.participants.push((name.into(), participant));
        self
    }

    /// Begins a new epoch, has the branches of recorded commits told again, and starts the
    /// recovery. An earlier coordinator of this log decides nothing any more.
    ///
    /// A participant that does not answer holds up only its own branches. A record that names a
    /// participant that the builder was not given stays; a warning says so.
    ///
    /// # Errors
    /// [`OpenCoordinatorError`]. Nothing was told.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    ///
    /// # Cancel safety
    /// Dropped before it returns, it may have used up an epoch.
    pub async fn open(self, log: impl DecisionLog) -> Result<Coordinator, OpenCoordinatorError> {
        self.config.validate()?;
        if !is_name(&self.name) {
            return Err(OpenCoordinatorError::Name);
        }
        let mut participants = HashMap::new();
        for (name, participant) in self.participants {
            let fits = (1..=MAX_PARTICIPANT_BYTES).contains(&name.len());
            if !fits || participants.insert(Arc::clone(&name), participant).is_some() {
                return Err(OpenCoordinatorError::Participant { name: name.to_string() });
            }
        }
        let log: Arc<dyn DecisionLog> = Arc::new(log);
        let opened = log.open(&self.name).await.map_err(|error| match error.is() {
            Some(OtherCoordinator { owner }) => {
                OpenCoordinatorError::OtherCoordinator { owner: owner.clone() }
            }
            None => error.into(),
        })?;
        let mut state = State { heuristics: opened.heuristics, ..State::default() };
        state.active = opened.committed.iter().map(|commit| commit.txn).collect();
        let inner = Arc::new(Inner {
            name: self.name.into(),
            epoch: opened.epoch,
            config: self.config,
            clock: self.clock.unwrap_or_else(|| Arc::new(System::new())),
            log,
            participants,
            state: Mutex::new(state),
            closing: watch::channel(false).0,
            runtime: Handle::current(),
        });
        for commit in opened.committed {
            inner.take_up(commit);
        }
        let (stop, stopped) = watch::channel(());
        recovery::start(&inner, &stopped);
        Ok(Coordinator { inner, _stop: Arc::new(stop) })
    }
}

impl fmt::Debug for CoordinatorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoordinatorBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Inner {
    /// Tells the branches of a commit of an earlier epoch.
    fn take_up(self: &Arc<Self>, commit: Committed) {
        let is_unknown = |(_, name): &&(u32, Arc<str>)| !self.participants.contains_key(name);
        if let Some((_, participant)) = commit.branches.iter().find(is_unknown) {
            tracing::warn!(
                target: "voussoir::txn", coordinator = %self.name, %participant, txn = ?commit.txn,
                "a recorded commit names a participant that this coordinator does not have"
            );
        }
        let numbers: Vec<u32> = commit.branches.iter().map(|(branch, _)| *branch).collect();
        let core = Transaction::committed(self.config.times(), &numbers);
        // By number; a branch that is not in the record is told nothing.
        let count = numbers.iter().max().map_or(0, |last| *last as usize + 1);
        let mut participants: Vec<Arc<str>> = vec!["".into(); count];
        for (branch, name) in commit.branches {
            participants[branch as usize] = name;
        }
        tokio::spawn(task::drive(Arc::clone(self), commit.txn, participants, core, None));
    }
}

/// Decides transactions over several participants. Clones are the same coordinator. When the last
/// clone is dropped the recovery stops; transactions that were asked to commit go on to their end.
#[derive(Clone)]
pub struct Coordinator {
    inner: Arc<Inner>,
    /// Dropped with the last clone.
    _stop: Arc<watch::Sender<()>>,
}

impl Coordinator {
    /// A builder. `name` is part of the id of every branch: no two coordinators that share a
    /// participant have the same.
    pub fn builder(name: &str) -> CoordinatorBuilder {
        CoordinatorBuilder {
            name: name.to_owned(),
            config: CoordinatorConfig::default(),
            clock: None,
            participants: Vec::new(),
        }
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// [`BeginError`].
    pub fn begin(&self) -> Result<Txn, BeginError> {
        let now = self.inner.clock.now();
        let max_age = self.inner.config.max_in_doubt_age;
        if self.inner.look_for_successor() {
            return Err(BeginError::Superseded);
        }
        let can_decide = self.inner.log.can_decide();
        let mut state = self.inner.state.lock();
        if let Some(why) = &state.closed {
            return Err(why.clone().into());
        }
        if !can_decide {
            return Err(BeginError::NotHere);
        }
        if let Some((participant, age)) = state.oldest.iter().find(|(_, age)| **age > max_age) {
            let participant = participant.to_string();
            return Err(BeginError::InDoubt { participant, age: *age });
        }
        if state.active.len() >= self.inner.config.max_active {
            return Err(BeginError::Busy);
        }
        let id = TxnId { epoch: self.inner.epoch, number: state.next };
        state.next += 1;
        state.active.insert(id);
        drop(state);
        let core = Transaction::new(now, self.inner.config.times());
        let inner = Arc::clone(&self.inner);
        Ok(Txn { inner, id, participants: Vec::new(), core: Some(core) })
    }

    /// Runs one recovery now, beside those that run by themselves, and tells what it did. For an
    /// operator who does not want to wait, and for tests.
    ///
    /// # Cancel safety
    /// May be dropped: the next recovery does what is left.
    pub async fn recover(&self) -> Recovered {
        recovery::once(&self.inner).await
    }

    /// Decisions that participants took alone, as this coordinator found them recorded or was told.
    /// What another one has recorded since is there after the next recovery.
    pub fn heuristics(&self) -> Vec<HeuristicOutcome> {
        self.inner.state.lock().heuristics.clone()
    }

    /// Forgets the heuristic outcome of a branch: an operator has dealt with it.
    ///
    /// # Errors
    /// [`StoreError`]: it may be listed again at the next start.
    ///
    /// # Cancel safety
    /// Dropped, it may be listed again at the next start.
    pub async fn forget_heuristic(&self, gid: &Gid) -> Result<(), StoreError> {
        self.inner.log.resolve(gid).await?;
        self.inner.state.lock().heuristics.retain(|outcome| outcome.gid != *gid);
        Ok(())
    }

    /// Waits until no transaction begins here any more, and returns the error with which
    /// [`begin`](Self::begin) answers from then on: [`BeginError::Store`] when the log has failed,
    /// [`BeginError::Superseded`] when a later coordinator has taken over, which is seen at the
    /// next recovery at the latest. Open another coordinator then, where it may decide.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn closed(&self) -> BeginError {
        let mut closing = self.inner.closing.subscribe();
        // The sender is in `inner`, which this handle keeps.
        let _ = closing.wait_for(|is_closed| *is_closed).await;
        let closed = self.inner.state.lock().closed.clone();
        closed.map_or(BeginError::Superseded, BeginError::from)
    }

    /// The epoch of this coordinator: all ids of its transactions have it, and earlier ones of its
    /// name have smaller ones.
    pub fn epoch(&self) -> u64 {
        self.inner.epoch
    }

    /// Transactions that have not ended.
    pub fn active(&self) -> usize {
        self.inner.state.lock().active.len()
    }
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator")
            .field("name", &self.inner.name)
            .field("epoch", &self.inner.epoch)
            .finish_non_exhaustive()
    }
}

/// A transaction that is not decided. Dropped, it is aborted.
pub struct Txn {
    inner: Arc<Inner>,
    id: TxnId,
    participants: Vec<Arc<str>>,
    /// `None` once its task has it.
    core: Option<Transaction>,
}

impl Txn {
    /// The id, unique among the transactions of the coordinator: for logs, and to find its branches
    /// in a database, whose [`Gid`] contains it.
    pub fn id(&self) -> TxnId {
        self.id
    }

    /// Time until the transaction is aborted, by
    /// [`CoordinatorConfig::active_timeout`](super::CoordinatorConfig::active_timeout). Work at a
    /// participant should wait no longer: a deadlock across two databases is seen by neither, and
    /// ends only by this time-out.
    pub fn time_left(&self) -> Duration {
        let deadline = self.core.as_ref().and_then(Transaction::next_deadline).unwrap_or(0);
        Duration::from_nanos(deadline.saturating_sub(self.inner.clock.now()))
    }

    /// Adds a branch at a participant; its work is done under the id that is returned.
    ///
    /// # Errors
    /// [`EnlistError`].
    pub fn enlist(&mut self, participant: &str) -> Result<Gid, EnlistError> {
        let Some((name, _)) = self.inner.participants.get_key_value(participant) else {
            return Err(EnlistError::Unknown(participant.to_owned()));
        };
        let branch = self.participants.len() as u32;
        if branch >= self.inner.config.max_branches {
            return Err(EnlistError::TooMany(branch));
        }
        self.participants.push(Arc::clone(name));
        if let Some(core) = &mut self.core {
            core.step(0, Input::Enlist);
        }
        Ok(self.inner.gid(self.id, branch))
    }

    /// Commits: all branches, or none. With no branch there is nothing to do.
    ///
    /// # Errors
    /// [`CommitError`]; its `outcome()` says what the transaction did.
    ///
    /// # Cancel safety
    /// Once it was polled the transaction goes on to its end, also if the future is dropped: its
    /// outcome is unknown then. Dropped before, the transaction is aborted.
    pub async fn commit(mut self, ack: Ack) -> Result<(), CommitError> {
        let answer = self.start(|now, core| {
            // A transaction whose time is over is aborted here.
            core.step(now, Input::Tick);
            core.step(now, Input::Commit(ack));
        });
        match answer.await {
            Ok(Answer::Committed) => Ok(()),
            Ok(Answer::Aborted(why)) => Err(CommitError::Aborted(why)),
            Ok(Answer::NotHere(why)) => Err(CommitError::NotHere(why)),
            Ok(Answer::Unknown) => Err(CommitError::Unknown(self.failure())),
            Err(_) => Err(CommitError::Unknown(StoreError::new("the runtime ended"))),
        }
    }

    /// Aborts, and returns without waiting for the participants.
    pub fn abort(self) {}

    fn failure(&self) -> StoreError {
        match &self.inner.state.lock().closed {
            Some(Closed::Failed(error)) => error.clone(),
            _ => StoreError::new("the log of decisions failed"),
        }
    }

    /// Hands the transaction to its task.
    fn start(&mut self, first: impl FnOnce(u64, &mut Transaction)) -> oneshot::Receiver<Answer> {
        let (reply, answer) = oneshot::channel();
        if let Some(mut core) = self.core.take() {
            first(self.inner.clock.now(), &mut core);
            let participants = std::mem::take(&mut self.participants);
            let inner = Arc::clone(&self.inner);
            let task = task::drive(inner, self.id, participants, core, Some(reply));
            self.inner.runtime.spawn(task);
        }
        answer
    }
}

impl Drop for Txn {
    fn drop(&mut self) {
        if self.core.is_some() {
            let why = "the transaction was dropped".to_owned();
            drop(self.start(|now, core| core.step(now, Input::Abort(why))));
        }
    }
}

impl fmt::Debug for Txn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Txn")
            .field("id", &self.id)
            .field("participants", &self.participants)
            .finish_non_exhaustive()
    }
}
