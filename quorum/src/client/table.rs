//! A table, as its clients use it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, OnceCell, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Duration, Instant, sleep_until, timeout_at};

use super::window::{Place, Window};
use crate::ConfigError;
use crate::caller::{Scope, call, find_membership};
use crate::link::{Class, Link};
use crate::membership::{Lineage, Membership};
use crate::merkle::HashKey;
use crate::node::{Node, Stranger};
use crate::table::{
    CallError, Coordinator, CoordinatorInput, CoordinatorOutput, Level, OperationError, Outcome,
    Rejected, Stats, TableConfig, Value,
};
use crate::version::VersionVector;
use crate::wire::{Answer, Ask, has_too_many_actors, is_too_long};

/// Why an operation on a table failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// Nothing was sent.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The operation began and failed.
    #[error(transparent)]
    Failed(#[from] OperationError),
    /// A node that was asked is of another cluster, or of another past of the same, and those that
    /// are left are too few. Nothing has changed. Check the addresses, and `TableConfig::lineage`.
    #[error("node {node} is of the cluster {lineage}; nothing has changed")]
    OtherCluster {
        /// A node of another cluster.
        node: u64,
        /// The name of its cluster.
        lineage: Lineage,
    },
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
    /// The caller: the context that a write is based on names more than 1,024 actors. Nothing was
    /// sent. No read returns such a context: it was merged of those of several keys.
    #[error("a context of {actors} actors is too long")]
    ContextTooLong {
        /// How many actors it names.
        actors: usize,
    },
}

impl TableError {
    /// Whether the operation has had an effect.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Failed(error) => error.outcome(),
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same operation may be tried again and cannot have a second effect.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Failed(error) => error.is_retryable(),
            Self::Rejected(rejected) => matches!(rejected, Rejected::Busy { .. }),
            Self::EmptyKey
            | Self::TooLong { .. }
            | Self::ContextTooLong { .. }
            | Self::OtherCluster { .. } => false,
        }
    }
}

/// A table of siblings on N replicas. Clones are handles to the same.
///
/// Every method returns the key's state: its values, and the context that the next write of the
/// key is based on. What the levels guarantee is [`TableConfig::guarantee`].
#[derive(Clone)]
pub struct Table {
    shared: Arc<Shared>,
}

struct Shared {
    link: Arc<dyn Link>,
    hints: Option<Node>,
    config: TableConfig,
    began: Instant,
    /// Wakes the task that waits for `next_deadline`.
    timer: Notify,
    /// Of operations that have begun and are not answered.
    window: Window,
    /// Set once a node has said who the replicas are.
    found: OnceCell<()>,
    state: Mutex<State>,
}

struct State {
    core: Coordinator,
    /// That of the core. Its epoch is 0 until a node has told of it: then no operation has begun.
    membership: Arc<Membership>,
    /// Who waits for each operation.
    waiting: HashMap<u64, oneshot::Sender<Result<Value, OperationError>>>,
    /// How many operations wait to be begun.
    not_begun: usize,
    /// The tasks of the calls under way.
    calls: HashMap<u64, AbortHandle>,
    /// What the timer task waits for, in ns.
    timer_at: u64,
    /// How many calls were answered by nodes of another cluster, and the last of them.
    strangers: (u64, Option<Stranger>),
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

impl Table {
    /// A table over a link.
    ///
    /// # Errors
    /// [`ConfigError`]: a field is out of range, or the levels cannot give what is required.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(config: TableConfig, link: Arc<dyn Link>) -> Result<Self, ConfigError> {
        Self::build(config, link, None)
    }

    /// A table in the process of a node. The node hands writes to the replicas that have missed
    /// them ([`Node::maintain`]).
    ///
    /// # Errors
    /// As [`Table::new`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn with_hints(
        config: TableConfig,
        link: Arc<dyn Link>,
        node: &Node,
    ) -> Result<Self, ConfigError> {
        Self::build(config, link, Some(node.clone()))
    }

    fn build(
        config: TableConfig,
        link: Arc<dyn Link>,
        hints: Option<Node>,
    ) -> Result<Self, ConfigError> {
        let digest_key = HashKey::new(fastrand::u128(..).to_le_bytes());
        let mut core = Coordinator::new(config.clone())?.with_digest_key(digest_key);
        let known = hints.as_ref().map(|node| Arc::clone(&node.membership().borrow()));
        let membership = known.unwrap_or_else(|| Arc::new(Membership::unknown(config.lineage)));
        if membership.epoch() > 0 {
            core.begin_with(Membership::clone(&membership));
        }
        let state = State {
            core,
            membership,
            waiting: HashMap::new(),
            not_begun: 0,
            calls: HashMap::new(),
            timer_at: u64::MAX,
            strangers: (0, None),
        };
        let state = Mutex::new(state);
        let window = Window::new(config.timeout, config.max_operations);
        let (began, timer, found) = (Instant::now(), Notify::new(), OnceCell::new());
        let shared = Arc::new(Shared { link, hints, config, began, timer, window, found, state });
        tokio::spawn(keep_time(Arc::downgrade(&shared)));
        Ok(Self { shared })
    }

    /// The configuration.
    pub fn config(&self) -> &TableConfig {
        &self.shared.config
    }

    /// The replicas, as far as the table knows: the epoch is 0 until the first operation has asked
    /// for them. An operation that finds others goes on with them.
    pub fn membership(&self) -> Arc<Membership> {
        Arc::clone(&self.shared.state.lock().membership)
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        self.shared.state.lock().core.stats()
    }

    /// Reads a key at the table's level.
    ///
    /// # Errors
    /// [`TableError`]; nothing has changed.
    ///
    /// # Cancel safety
    /// Dropping the future ends the read.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Value, TableError> {
        self.get_at(key, self.shared.config.read, &VersionVector::new()).await
    }

    /// Reads a key at a level. The result has seen `at_least`: the context of an earlier result,
    /// or an empty vector.
    ///
    /// # Errors
    /// [`TableError`]; nothing has changed. [`Rejected::Guarantee`] if the level cannot give what
    /// the table requires.
    ///
    /// # Cancel safety
    /// Dropping the future ends the read.
    pub async fn get_at(
        &self,
        key: impl Into<Bytes>,
        level: Level,
        at_least: &VersionVector,
    ) -> Result<Value, TableError> {
        let at_least = at_least.clone();
        self.run(key.into(), 0, |core, now, key| core.get_at(now, key, at_least, level)).await
    }

    /// Writes a value that replaces what `seen` covers: the context of the read that it is based
    /// on. What the writer has not seen stays as a sibling.
    ///
    /// # Errors
    /// [`TableError`]; see [`TableError::outcome`].
    ///
    /// # Cancel safety
    /// The write goes on when the future is dropped, unless it waits to be begun: its outcome is
    /// unknown.
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        seen: &VersionVector,
        value: impl Into<Bytes>,
    ) -> Result<Value, TableError> {
        let (seen, value) = (check_context(seen)?, value.into());
        let value_bytes = value.len();
        self.run(key.into(), value_bytes, |core, now, key| core.put(now, key, seen, value)).await
    }

    /// Writes a value without having read the key: it becomes a sibling of what is there.
    ///
    /// # Errors
    /// As [`Table::put`].
    ///
    /// # Cancel safety
    /// As [`Table::put`].
    pub async fn put_blind(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Value, TableError> {
        self.put(key, &VersionVector::new(), value).await
    }

    /// Deletes what `seen` covers.
    ///
    /// # Errors
    /// As [`Table::put`].
    ///
    /// # Cancel safety
    /// As [`Table::put`].
    pub async fn delete(
        &self,
        key: impl Into<Bytes>,
        seen: &VersionVector,
    ) -> Result<Value, TableError> {
        let seen = check_context(seen)?;
        self.run(key.into(), 0, |core, now, key| core.delete(now, key, seen)).await
    }

    async fn run(
        &self,
        key: Bytes,
        value_bytes: usize,
        begin: impl FnOnce(&mut Coordinator, u64, Bytes) -> Result<u64, Rejected>,
    ) -> Result<Value, TableError> {
        let key_bytes = key.len();
        if key.is_empty() {
            return Err(TableError::EmptyKey);
        }
        if is_too_long(key_bytes, value_bytes) {
            return Err(TableError::TooLong { key_bytes, value_bytes });
        }
        if let Err(stranger) = self.shared.find_replicas().await {
            let unavailable = OperationError::Unavailable { answered: 0, needed: 1 };
            return Err(error_by(unavailable, stranger));
        }
        let (deadline, mut has_waited) = (Instant::now() + self.shared.config.timeout, false);
        let place = match self.shared.window.try_enter() {
            Some(place) => place,
            None => {
                has_waited = true;
                self.shared.wait_for_place(deadline).await?
            }
        };
        let strangers = self.shared.state.lock().strangers.0;
        let (done, is_done) = oneshot::channel();
        let mut operation = Running { shared: &self.shared, id: None };
        self.shared.with(|state| {
            let id = begin(&mut state.core, self.shared.now(), key)?;
            if has_waited {
                let ends = deadline.saturating_duration_since(self.shared.began);
                state.core.end_by(id, ends.as_nanos() as u64);
            }
            state.waiting.insert(id, done);
            operation.id = Some(id);
            Ok::<_, Rejected>(())
        })?;
        // The sender is dropped only with the table, which this call holds.
        let result = async { is_done.await.unwrap_or(Err(OperationError::Behind)) };
        let result = place.hold(result).await;
        operation.id = None;
        result.map_err(|error| {
            let (count, last) = self.shared.state.lock().strangers;
            error_by(error, last.filter(|_| count > strangers))
        })
    }
}

/// A context that a write is based on: a node would not read the request of a longer one, and
/// nothing would be known of the write.
fn check_context(seen: &VersionVector) -> Result<VersionVector, TableError> {
    let actors = seen.len();
    if has_too_many_actors(actors) {
        return Err(TableError::ContextTooLong { actors });
    }
    Ok(seen.clone())
}

/// Why an operation failed: if nothing has changed, perhaps by a node of another cluster.
fn error_by(error: OperationError, stranger: Option<Stranger>) -> TableError {
    match (&error, stranger) {
        (OperationError::Unavailable { .. }, Some(Stranger { node: Some(node), lineage })) => {
            TableError::OtherCluster { node, lineage }
        }
        _ => error.into(),
    }
}

/// Ends a read when its future is dropped.
struct Running<'a> {
    shared: &'a Arc<Shared>,
    id: Option<u64>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let _ = self.shared.with(|state| {
            state.waiting.remove(&id);
            state.core.cancel(id);
            Ok::<_, Rejected>(())
        });
    }
}

/// Counts an operation that waits to be begun.
struct NotBegun<'a> {
    shared: &'a Shared,
}

impl Drop for NotBegun<'_> {
    fn drop(&mut self) {
        self.shared.state.lock().not_begun -= 1;
    }
}

/// What is done without the lock.
enum Task {
    Call { id: u64, to: u64, class: Class, scope: Scope, ask: Ask },
    Done(oneshot::Sender<Result<Value, OperationError>>, Result<Value, OperationError>),
    Missed { replica: u64, key: Bytes },
}

impl Shared {
    /// Asks the nodes of the configuration who the replicas are, once. An error: no answer in time,
    /// but perhaps of a node of another cluster.
    async fn find_replicas(self: &Arc<Self>) -> Result<(), Option<Stranger>> {
        if self.state.lock().membership.epoch() > 0 {
            return Ok(());
        }
        let deadline = Instant::now() + self.config.timeout;
        let found = self.found.get_or_try_init(|| async {
            let ids = &self.config.replicas;
            let lineage = self.config.lineage;
            let membership = find_membership(&self.link, ids, lineage, deadline).await?;
            self.state.lock().begin_with(membership);
            Ok(())
        });
        timeout_at(deadline, found).await.unwrap_or(Err(None)).map(|&()| ())
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// Waits until an operation may begin that ends at `deadline`.
    async fn wait_for_place(&self, deadline: Instant) -> Result<Place<'_>, Rejected> {
        let _not_begun = {
            let (mut state, max) = (self.state.lock(), self.config.max_operations);
            if state.core.stats().operations + state.not_begun >= max {
                return Err(Rejected::Busy { max });
            }
            state.not_begun += 1;
            NotBegun { shared: self }
        };
        let place = self.window.enter(deadline).await;
        place.ok_or_else(|| Rejected::Busy { max: self.window.size() })
    }

    /// Changes the core, and carries out what it wants done after the lock was released.
    fn with<E>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut State) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut tasks = Vec::new();
        {
            let mut state = self.state.lock();
            change(&mut state)?;
            state.drain(&mut tasks);
            let deadline = state.core.next_deadline().unwrap_or(u64::MAX);
            if deadline < state.timer_at {
                self.timer.notify_one();
            }
        }
        for task in tasks {
            match task {
                Task::Done(waiting, result) => {
                    // Who waited may have gone.
                    let _ = waiting.send(result);
                }
                Task::Missed { replica, key } => {
                    if let Some(node) = &self.hints {
                        node.add_hint(replica, key);
                    }
                }
                Task::Call { id, to, class, scope, ask } => self.call(id, to, class, scope, ask),
            }
        }
        Ok(())
    }

    fn call(self: &Arc<Self>, id: u64, to: u64, class: Class, scope: Scope, ask: Ask) {
        let shared = Arc::clone(self);
        let deadline = Instant::now() + self.config.timeout;
        let task = tokio::spawn(async move {
            let result = call(&shared.link, to, class, &scope, ask, deadline).await;
            let _ = shared.with(|state| {
                state.calls.remove(&id);
                let input = match result {
                    Ok((seen, Answer::Table(reply))) => {
                        state.core.observe_epoch(seen);
                        CoordinatorInput::Reply { call: id, reply }
                    }
                    Ok((_, Answer::Membership { membership, .. })) => {
                        // Nothing was done: the operation goes on at the new replicas.
                        state.reconfigure(shared.now(), membership);
                        CoordinatorInput::Failed { call: id, error: CallError::NotSent }
                    }
                    Ok((_, Answer::OtherCluster { lineage })) => {
                        let last = Some(Stranger { node: Some(to), lineage });
                        state.strangers = (state.strangers.0 + 1, last);
                        CoordinatorInput::Failed { call: id, error: CallError::NotSent }
                    }
                    // No answer to what was asked: nothing is known of what was done.
                    Ok(_) => CoordinatorInput::Failed { call: id, error: CallError::Unknown },
                    Err(error) => CoordinatorInput::Failed { call: id, error },
                };
                // Read under the lock: an answer that waited for it may be behind its deadline.
                state.core.step(shared.now(), input);
                Ok::<_, Rejected>(())
            });
        });
        let mut state = self.state.lock();
        // It may have ended already, on another thread, or have been cancelled.
        if state.core.epoch_of(id).is_none() {
            task.abort();
        } else if !task.is_finished() {
            state.calls.insert(id, task.abort_handle());
        }
    }
}

impl State {
    fn begin_with(&mut self, membership: Membership) {
        self.membership = Arc::new(membership);
        self.core.begin_with(Membership::clone(&self.membership));
    }

    fn reconfigure(&mut self, now: u64, membership: Membership) {
        let is_later = membership.epoch() > self.membership.epoch();
        if is_later && self.membership.is_in_past_of(&membership) {
            self.membership = Arc::new(membership);
            self.core.reconfigure(now, Membership::clone(&self.membership));
        }
    }

    fn drain(&mut self, tasks: &mut Vec<Task>) {
        while let Some(output) = self.core.poll_output() {
            match output {
                CoordinatorOutput::Call { id, to, request } => {
                    // A call may have been cancelled by the output behind it.
                    let Some(epoch) = self.core.epoch_of(id) else { continue };
                    let (class, ask) = (Class::Small, Ask::Table(request));
                    let scope = Scope::new(&self.membership, epoch);
                    tasks.push(Task::Call { id, to, class, scope, ask });
                }
                CoordinatorOutput::Cancel { id } => {
                    if let Some(call) = self.calls.remove(&id) {
                        call.abort();
                    }
                }
                CoordinatorOutput::Missed { replica, key } => {
                    tasks.push(Task::Missed { replica, key });
                }
                CoordinatorOutput::Done { operation, result } => {
                    if let Some(waiting) = self.waiting.remove(&operation) {
                        tasks.push(Task::Done(waiting, result));
                    }
                }
            }
        }
    }
}

/// Steps the core when its deadlines are reached. Ends with the table.
async fn keep_time(shared: Weak<Shared>) {
    /// How long an idle task waits before it looks whether the table is still there.
    const IDLE: Duration = Duration::from_secs(1);
    // Ends: when the last handle to the table is dropped.
    loop {
        let Some(table) = shared.upgrade() else { return };
        let deadline = {
            let mut state = table.state.lock();
            state.timer_at = state.core.next_deadline().unwrap_or(u64::MAX);
            state.timer_at
        };
        let idle = Instant::now() + IDLE;
        let at = table.began.checked_add(Duration::from_nanos(deadline)).unwrap_or(idle);
        let is_due = tokio::select! {
            biased;
            () = sleep_until(at.min(idle)) => table.now() >= deadline,
            () = table.timer.notified() => false,
        };
        if is_due {
            let _ = table.with(|state| {
                state.core.step(table.now(), CoordinatorInput::Time);
                Ok::<_, Rejected>(())
            });
        }
    }
}
