//! Registers with compare-and-set, as their clients use them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::window::{Place, Window};
use crate::ConfigError;
use crate::caller::{Scope, call, find_membership};
use crate::link::{Class, Link};
use crate::membership::{Lineage, Membership};
use crate::node::Stranger;
use crate::paxos::{
    self, Ballot, Change, Outcome, Proposer, ProposerConfig, ProposerInput, ProposerOutput, Record,
    Request, Token,
};
use crate::table::Level;
use crate::version::{Actor, Dot, DotSource};
use crate::wire::{Answer, Ask, DECREES, Space, decode_record, is_too_long};

/// Configuration of [`Registers`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegisterConfig {
    /// Of the proposers: the acceptors, and when they resend and back off.
    pub proposer: ProposerConfig,
    /// The cluster whose registers these are; nodes of another one are not heard. Default
    /// [`Lineage::UNNAMED`]: that of the node that answers first.
    pub lineage: Lineage,
    /// How long a change takes at most. From 1 ms to 1 hour, and not longer than the `timeout` of
    /// the nodes. Default 1 s.
    pub timeout: Duration,
    /// Registers whose proposers are kept, so that the next change takes one round trip. From 1
    /// to 1,000,000. Default 10,000.
    pub max_registers: usize,
    /// Changes and reads under way and waiting: as many are begun at once as are answered in time
    /// (as in [`TableConfig::max_operations`](crate::table::TableConfig)), 64 at first, and one
    /// that has waited for half of `timeout` is rejected. One beyond is rejected at once. From 1 to
    /// 1,000,000. Default 10,000.
    pub max_changes: usize,
}

impl Default for RegisterConfig {
    fn default() -> Self {
        Self {
            proposer: ProposerConfig::default(),
            lineage: Lineage::UNNAMED,
            timeout: Duration::from_secs(1),
            max_registers: 10_000,
            max_changes: 10_000,
        }
    }
}

impl RegisterConfig {
    /// The default with these acceptors.
    pub fn with_acceptors(acceptors: impl IntoIterator<Item = u64>) -> Self {
        Self { proposer: ProposerConfig::with_acceptors(acceptors), ..Self::default() }
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.proposer.validate()?;
        let times = Duration::from_millis(1)..=Duration::from_secs(3_600);
        if !times.contains(&self.timeout) {
            return Err(ConfigError { field: "timeout", rule: "must be from 1 ms to 1 hour" });
        }
        let rule = "must be from 1 to 1,000,000";
        if !(1..=1_000_000).contains(&self.max_registers) {
            return Err(ConfigError { field: "max_registers", rule });
        }
        if !(1..=1_000_000).contains(&self.max_changes) {
            return Err(ConfigError { field: "max_changes", rule });
        }
        Ok(())
    }
}

/// Why a change of a register has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// Nothing was written and nothing will be: no majority answered in time. Retry.
    #[error("no majority of acceptors answered; nothing has changed")]
    Unavailable,
    /// The change may have been made, or may yet be. [`Registers::resolve`] finds out, for good.
    #[error("the outcome of the change is unknown; resolve its token")]
    Unknown(Token),
    /// As many changes as allowed are under way, or the acceptors do not keep up: the change has
    /// waited for half of its timeout behind as many as they answer in time. Nothing was sent.
    /// Retry later.
    #[error("{max} changes are under way; retry later")]
    Busy {
        /// `RegisterConfig::max_changes`, or how many the acceptors answer in time.
        max: usize,
    },
    /// A token can no longer be told: the register was changed more often since than its state
    /// remembers. The change will not be made later.
    #[error("the register was changed too often since; the change will not be made later")]
    Forgotten,
    /// The caller: the key is empty. Nothing was sent.
    #[error("the key is empty")]
    EmptyKey,
    /// The caller: the key is longer than 1,024 bytes, or the value than 1 MiB. Nothing was sent.
    #[error("a key of {key_bytes} bytes with a value of {value_bytes} bytes is too long")]
    TooLong {
        /// Length of the key.
        key_bytes: usize,
        /// Length of the value.
        value_bytes: usize,
    },
    /// Nodes that were asked are of another cluster, or of another past of the same, and those that
    /// are left are no majority. Nothing has changed. Check the addresses, and
    /// `RegisterConfig::lineage`.
    #[error("node {node} is of the cluster {lineage}; nothing has changed")]
    OtherCluster {
        /// A node of another cluster.
        node: u64,
        /// The name of its cluster.
        lineage: Lineage,
    },
    /// The caller: the key begins like those that hold the memberships. Nothing was sent.
    #[error("the key is reserved for memberships")]
    Reserved,
}

impl RegisterError {
    /// Whether the same change may be tried again and cannot have a second effect.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable | Self::Busy { .. })
    }
}

/// Linearizable registers with compare-and-set, on a majority of the acceptors of nodes. Clones
/// are handles to the same. The keys have nothing to do with those of a table.
///
/// Changes of one register through one handle follow each other; those of different registers, and
/// of other processes, run at once.
///
/// # Example
/// `cargo run -p voussoir-quorum --example node` has three nodes, a table and registers.
#[derive(Clone)]
pub struct Registers {
    shared: Arc<Shared>,
}

struct Shared {
    link: Arc<dyn Link>,
    config: RegisterConfig,
    began: Instant,
    /// Registers of one membership alone, whose changes end where it has: the acceptors that count.
    pinned: Option<Membership>,
    /// Of changes and reads that have begun.
    window: Window,
    /// Set once a node has said who the acceptors are.
    found: OnceCell<()>,
    state: Mutex<State>,
}

struct State {
    /// The acceptors, as far as they are known.
    membership: Arc<Membership>,
    dots: DotSource,
    proposers: HashMap<Bytes, Slot>,
    /// Invariant: at most `max_changes`.
    changes: usize,
}

/// The proposer of one register. None: it was lost with a change that was dropped.
type Slot = Arc<tokio::sync::Mutex<Option<Proposer>>>;

impl std::fmt::Debug for Registers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registers").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

impl Registers {
    /// Registers over a link. `client` names this process in ballots and tokens; an incarnation is
    /// drawn, so that nothing has to be kept for a restart.
    ///
    /// # Errors
    /// [`ConfigError`]: a field is out of range.
    pub fn new(
        client: u64,
        config: RegisterConfig,
        link: Arc<dyn Link>,
    ) -> Result<Self, ConfigError> {
        let unknown = Arc::new(Membership::unknown(config.lineage));
        Self::build(client, config, unknown, link, None)
    }

    /// Registers of one membership alone, on those of its acceptors that decide what follows it.
    pub(crate) fn pinned(
        client: u64,
        timeout: Duration,
        membership: &Arc<Membership>,
        link: Arc<dyn Link>,
    ) -> Result<Self, ConfigError> {
        let electorate = membership.electorate();
        let mut config = RegisterConfig::with_acceptors(electorate.ids());
        config.timeout = timeout;
        Self::build(client, config, Arc::clone(membership), link, Some(electorate))
    }

    fn build(
        client: u64,
        config: RegisterConfig,
        membership: Arc<Membership>,
        link: Arc<dyn Link>,
        pinned: Option<Membership>,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        let actor = Actor::new(client, fastrand::u64(1..1 << 62));
        let mut dots = DotSource::recover(actor, 0, []);
        // The incarnation is new with each process: no dot has to outlive this one.
        dots.mark_persisted(u64::MAX);
        let proposers = HashMap::new();
        let state = Mutex::new(State { membership, dots, proposers, changes: 0 });
        let (began, found) = (Instant::now(), OnceCell::new());
        let window = Window::new(config.timeout, config.max_changes);
        let shared = Shared { link, config, began, pinned, window, found, state };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The acceptors, as far as these registers know: the epoch is 0 until the first change or read
    /// has asked for them. A change that finds others goes on with them.
    pub fn membership(&self) -> Arc<Membership> {
        Arc::clone(&self.shared.state.lock().membership)
    }

    /// Reads a register: its version, 0 if it was never written, and its value. Where a majority of
    /// the acceptors hold the same and nobody else has begun a change there, that is one round trip
    /// and nothing is written; otherwise it is a change that writes back what it finds.
    ///
    /// # Errors
    /// [`RegisterError`].
    ///
    /// # Cancel safety
    /// Dropping the future ends the read.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<(u64, Option<Bytes>), RegisterError> {
        let key = key.into();
        // Both ways of reading are one operation: with one deadline, and within the same limits.
        self.check(&key, 0)?;
        let (deadline, entry) = (self.deadline(), self.shared.begin(&key)?);
        let place = self.shared.place(deadline).await?;
        let chosen = place.hold(self.shared.read_chosen(&key, deadline)).await;
        if let Ok(paxos::State { version, value, .. }) = chosen {
            return Ok((version, value));
        }
        match self.change_by(deadline, entry, key, Change::Read).await? {
            Outcome::Read { version, value } | Outcome::NotApplied { version, value } => {
                Ok((version, value))
            }
            outcome => Err(error_of(&outcome)),
        }
    }

    /// Writes a value, whatever is there, and returns the version that it made.
    ///
    /// # Errors
    /// [`RegisterError`].
    ///
    /// # Cancel safety
    /// The write may be made, now or when another client carries it on.
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<u64, RegisterError> {
        match self.change(key.into(), Change::Write(Some(value.into()))).await? {
            Outcome::Applied { version } => Ok(version),
            outcome => Err(error_of(&outcome)),
        }
    }

    /// Writes a value (none: deletes) if the register has the version `expected`; 0: if it was
    /// never written. `Ok(Outcome::Applied)` says which version it made, `Ok(Outcome::NotApplied)`
    /// what is there instead.
    ///
    /// # Errors
    /// [`RegisterError`].
    ///
    /// # Cancel safety
    /// The write may be made, now or when another client carries it on.
    pub async fn compare_and_set(
        &self,
        key: impl Into<Bytes>,
        expected: u64,
        value: Option<Bytes>,
    ) -> Result<Outcome, RegisterError> {
        self.definite(key.into(), Change::CompareAndSet { expected, value }).await
    }

    /// Finds out what became of a change whose outcome was unknown: `Applied` or `NotApplied`. The
    /// answer stays true: a change that was not applied never will be.
    ///
    /// # Errors
    /// [`RegisterError`]; [`RegisterError::Forgotten`] if nothing remembers it any more.
    ///
    /// # Cancel safety
    /// Dropping the future ends the question.
    pub async fn resolve(
        &self,
        key: impl Into<Bytes>,
        token: Token,
    ) -> Result<Outcome, RegisterError> {
        self.definite(key.into(), Change::Resolve(token)).await
    }

    async fn definite(&self, key: Bytes, change: Change) -> Result<Outcome, RegisterError> {
        match self.change(key, change).await? {
            outcome @ (Outcome::Applied { .. } | Outcome::NotApplied { .. }) => Ok(outcome),
            outcome => Err(error_of(&outcome)),
        }
    }

    async fn change(&self, key: Bytes, change: Change) -> Result<Outcome, RegisterError> {
        let value_bytes = match &change {
            Change::Write(value) | Change::CompareAndSet { value, .. } => {
                value.as_ref().map_or(0, Bytes::len)
            }
            _ => 0,
        };
        self.check(&key, value_bytes)?;
        let (deadline, entry) = (self.deadline(), self.shared.begin(&key)?);
        self.change_by(deadline, entry, key, change).await
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.shared.config.timeout
    }

    fn check(&self, key: &Bytes, value_bytes: usize) -> Result<(), RegisterError> {
        let key_bytes = key.len();
        if key.is_empty() {
            return Err(RegisterError::EmptyKey);
        }
        if is_too_long(key_bytes, value_bytes) {
            return Err(RegisterError::TooLong { key_bytes, value_bytes });
        }
        if key.starts_with(DECREES) && self.shared.pinned.is_none() {
            return Err(RegisterError::Reserved);
        }
        Ok(())
    }

    async fn change_by(
        &self,
        deadline: Instant,
        (slot, dot, _underway): (Slot, Dot, Underway),
        key: Bytes,
        change: Change,
    ) -> Result<Outcome, RegisterError> {
        let shared = &self.shared;
        let Ok(mut slot) = timeout_at(deadline, slot.lock_owned()).await else {
            return Err(RegisterError::Unavailable);
        };
        shared.find_acceptors(deadline).await.map_err(error_by)?;
        let place = shared.place(deadline).await?;
        // Taken out: a change that is dropped on its way takes the proposer with it.
        let mut proposer = match slot.take() {
            Some(proposer) => proposer,
            None => shared.proposer()?,
        };
        let mut stranger = None;
        let run = shared.run(&mut proposer, &key, dot, change, deadline, &mut stranger);
        let is_answered =
            |outcome: &Outcome| !matches!(outcome, Outcome::Unavailable | Outcome::Unknown(_));
        let run = async {
            let outcome = run.await;
            if is_answered(&outcome) { Ok(outcome) } else { Err(outcome) }
        };
        let (Ok(outcome) | Err(outcome)) = place.hold(run).await;
        *slot = Some(proposer);
        match outcome {
            Outcome::Unavailable => Err(error_by(stranger)),
            outcome => Ok(outcome),
        }
    }
}

/// Counts a change that is under way.
struct Underway {
    shared: Arc<Shared>,
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.shared.state.lock().changes -= 1;
    }
}

impl Shared {
    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn begin(self: &Arc<Self>, key: &Bytes) -> Result<(Slot, Dot, Underway), RegisterError> {
        let mut state = self.state.lock();
        let max = self.config.max_changes;
        if state.changes >= max {
            return Err(RegisterError::Busy { max });
        }
        let dot = state.dots.draw().map_err(|_| RegisterError::Unavailable)?;
        state.changes += 1;
        if state.proposers.len() >= self.config.max_registers && !state.proposers.contains_key(key)
        {
            // Those that nobody uses: their next change begins with phase 1 again.
            state.proposers.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        let slot = Arc::clone(state.proposers.entry(key.clone()).or_default());
        Ok((slot, dot, Underway { shared: Arc::clone(self) }))
    }

    /// Waits until a change or a read may begin that ends at `deadline`.
    async fn place(&self, deadline: Instant) -> Result<Place<'_>, RegisterError> {
        let place = match self.window.try_enter() {
            None => self.window.enter(deadline).await,
            place => place,
        };
        place.ok_or_else(|| RegisterError::Busy { max: self.window.size() })
    }

    /// A proposer for a session of its own: no ballot is used twice.
    fn proposer(&self) -> Result<Proposer, RegisterError> {
        let session = self.state.lock().dots.draw().map_err(|_| RegisterError::Unavailable)?;
        let config = self.config.proposer.clone();
        let acceptors = Membership::clone(&self.state.lock().membership);
        let acceptors = self.pinned.clone().unwrap_or(acceptors);
        let proposer = Proposer::new(session, config).map_err(|_| RegisterError::Unavailable)?;
        Ok(proposer.of(acceptors))
    }

    /// Asks the nodes of the configuration who the acceptors are, once. An error: no answer in
    /// time, but perhaps of a node of another cluster.
    async fn find_acceptors(&self, deadline: Instant) -> Result<(), Option<Stranger>> {
        if self.state.lock().membership.epoch() > 0 {
            return Ok(());
        }
        let found = self.found.get_or_try_init(|| async {
            let ids = &self.config.proposer.acceptors;
            let lineage = self.config.lineage;
            self.learn(find_membership(&self.link, ids, lineage, deadline).await?);
            Ok(())
        });
        timeout_at(deadline, found).await.unwrap_or(Err(None)).map(|&()| ())
    }

    fn scope(&self) -> Scope {
        Scope::new(&self.state.lock().membership, 0)
    }

    /// An acceptor serves a later membership.
    fn learn(&self, membership: Membership) {
        let mut state = self.state.lock();
        let is_later = membership.epoch() > state.membership.epoch();
        if is_later && state.membership.is_in_past_of(&membership) {
            state.membership = Arc::new(membership);
        }
    }

    /// Reads the acceptors' records, and returns the state that a quorum of them has chosen and
    /// nobody is about to replace. An error: it takes a ballot to find out.
    async fn read_chosen(&self, key: &Bytes, by: Instant) -> Result<paxos::State, ()> {
        let scope = self.scope();
        if self.pinned.is_some() || scope.membership.epoch() == 0 {
            return Err(());
        }
        let deadline = self.call_deadline(by);
        let (mut calls, mut seen) = (JoinSet::new(), BTreeMap::new());
        for id in scope.membership.ids() {
            let (link, scope) = (Arc::clone(&self.link), scope.clone());
            let ask = Ask::Read { space: Space::Registers, key: key.clone() };
            calls.spawn(
                async move { (id, call(&link, id, Class::Small, &scope, ask, deadline).await) },
            );
        }
        // Ends: each turn takes one of them.
        while let Some(called) = calls.join_next().await {
            let Ok((id, Ok((_, Answer::Page(page))))) = called else { continue };
            let record = match page.into_iter().next() {
                None => Record::EMPTY,
                Some((_, record)) => decode_record(record).map_err(|_| ())?,
            };
            seen.insert(id, record);
            if let Some(state) = paxos::chosen(&scope.membership, &seen) {
                return Ok(state);
            }
            if scope.membership.is_met(Level::Quorum, |id| seen.contains_key(&id)) {
                return Err(()); // A change is on its way, or was left half done.
            }
        }
        Err(())
    }

    /// When a call is given up that may be made again before `deadline`: early enough that a lost
    /// message costs no change, and behind the answers of acceptors that have much to do.
    fn call_deadline(&self, deadline: Instant) -> Instant {
        let patience = (self.config.timeout / 2).max(self.config.proposer.resend_after);
        deadline.min(Instant::now() + patience)
    }

    async fn run(
        &self,
        proposer: &mut Proposer,
        key: &Bytes,
        dot: Dot,
        change: Change,
        deadline: Instant,
        stranger: &mut Option<Stranger>,
    ) -> Outcome {
        let mut calls = JoinSet::new();
        // Requests that an acceptor may still answer: it has enough to do without another one.
        let mut asked: HashMap<tokio::task::Id, (u64, Phase)> = HashMap::new();
        let mut scope = self.scope();
        let acceptors = self.pinned.as_ref().unwrap_or(&scope.membership);
        proposer.reconfigure(self.now(), acceptors.clone());
        let ends = deadline.saturating_duration_since(self.began).as_nanos() as u64;
        if proposer.propose(self.now(), dot, change, ends).is_err() {
            return Outcome::Unavailable;
        }
        // Ends: the proposer answers by its deadline.
        loop {
            while let Some(output) = proposer.poll_output() {
                match output {
                    ProposerOutput::Done { outcome } => return outcome,
                    ProposerOutput::Send { to, request } => {
                        let asks = (to, phase_of(&request));
                        if asked.values().any(|asked| *asked == asks) {
                            continue;
                        }
                        let (link, key) = (Arc::clone(&self.link), key.clone());
                        let (scope, deadline) = (scope.clone(), self.call_deadline(deadline));
                        let ask = Ask::Register { key, request };
                        let task = calls.spawn(async move {
                            (to, call(&link, to, Class::Small, &scope, ask, deadline).await)
                        });
                        asked.insert(task.id(), asks);
                    }
                }
            }
            let wake_at = proposer.next_deadline().unwrap_or(ends);
            let wake_at = self.began + Duration::from_nanos(wake_at);
            let input = tokio::select! {
                biased;
                Some(called) = calls.join_next_with_id() => match called.map(|(id, called)| {
                    asked.remove(&id);
                    called
                }) {
                    Ok((from, Ok((_, Answer::Register(reply))))) => {
                        ProposerInput::Reply { from, reply }
                    }
                    Ok((_, Ok((_, Answer::Membership { membership, .. })))) => {
                        self.learn(membership);
                        if self.pinned.is_some() {
                            // Nothing more is decided by the acceptors of this membership.
                            return Outcome::Unavailable;
                        }
                        scope = self.scope();
                        proposer.reconfigure(self.now(), Membership::clone(&scope.membership));
                        continue;
                    }
                    Ok((from, Ok((_, Answer::OtherCluster { lineage })))) => {
                        *stranger = Some(Stranger { node: Some(from), lineage });
                        continue;
                    }
                    // Lost: it is sent again.
                    _ => continue,
                },
                () = sleep_until(wake_at) => ProposerInput::Time,
            };
            proposer.step(self.now(), input);
        }
    }
}

/// What tells the requests of a change to one acceptor apart: the ballot, and whether it is to be
/// accepted.
type Phase = (Ballot, bool);

fn phase_of(request: &Request) -> Phase {
    match request {
        Request::Prepare { ballot } => (*ballot, false),
        Request::Accept { ballot, .. } => (*ballot, true),
    }
}

/// Why a change was not made: nobody answered, or somebody of another cluster.
fn error_by(stranger: Option<Stranger>) -> RegisterError {
    match stranger {
        Some(Stranger { node: Some(node), lineage }) => {
            RegisterError::OtherCluster { node, lineage }
        }
        _ => RegisterError::Unavailable,
    }
}

fn error_of(outcome: &Outcome) -> RegisterError {
    match outcome {
        Outcome::Unknown(token) => RegisterError::Unknown(*token),
        Outcome::Forgotten => RegisterError::Forgotten,
        _ => RegisterError::Unavailable,
    }
}
