//! All sagas of one process: starting them, waiting for them, and resolving those that are stuck.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::{Clock, System};
use crate::config::{Config, nanos};
use crate::core::{self, Cause, Direction, Event, Graph, Run, StepId};
use crate::definition::{Definition, Saga, StepRef, cut};
use crate::driver::{Command, Driver, rewritten};
use crate::error::{OpenError, ResolveError, StartError, StoreError, WaitError};
use crate::store::gather::Gathered;
use crate::store::{Record, RecordKind, SagaStore};

/// The longest id of a saga, in bytes.
const ID_BYTES_MAX: usize = 200;
/// Ended sagas that are forgotten in one append: more than end meanwhile, and few bytes.
const FORGET_AT_ONCE: usize = 32;
/// Commands that wait for one saga's task.
const COMMANDS: usize = 16;

/// How a saga ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// All steps are done.
    Completed,
    /// It failed, was aborted or ran out of time, and each step that may have run was undone.
    Undone {
        /// Why.
        because: String,
    },
    /// An operator ended it as it was: see [`Sagas::give_up`].
    GivenUp,
}

/// The end of a saga, with the outputs of its steps.
#[derive(Clone, Debug)]
pub struct End {
    outcome: Outcome,
    outputs: Arc<[Option<Bytes>]>,
}

impl End {
    /// How it ended.
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// Whether all steps are done.
    pub fn is_completed(&self) -> bool {
        self.outcome == Outcome::Completed
    }

    /// The output of a step of the saga's definition. `None` if it has none.
    pub fn output<T: DeserializeOwned>(&self, step: &StepRef<T>) -> Option<T> {
        let output = self.outputs.get(usize::from(step.id()))?.as_ref()?;
        StepRef::<T>::decode(output).ok()
    }
}

/// Where a saga is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SagaState {
    /// It goes on by itself.
    Open,
    /// It waits for an operator, at these steps.
    Stuck(Vec<StuckStep>),
    /// It has ended.
    Ended(Outcome),
    /// The store failed; the next process goes on with it.
    Halted,
    /// Its definition is not registered, or has changed.
    Parked(String),
    /// The sagas are drained; the next process goes on with it.
    Drained,
}

/// A step that waits for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StuckStep {
    /// Its name.
    pub step: String,
    /// Its action or its undo.
    pub direction: Direction,
    /// Why it is stuck.
    pub why: String,
}

/// One saga, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SagaInfo {
    /// Its id.
    pub id: String,
    /// The name of its definition.
    pub definition: String,
    /// The version of its definition.
    pub version: u64,
    /// Where it is.
    pub state: SagaState,
}

/// What an operator decides about a stuck step.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resolution {
    /// Try it again, with all its attempts.
    Retry,
    /// Of an undo: take it for undone.
    Skip,
    /// Of an action: it has run, with this output in JSON.
    Replace(Bytes),
    /// Of the pivot: it has not run and will not. The saga is undone.
    NotRun,
}

#[derive(Clone, Debug)]
pub(crate) enum Status {
    /// Its beginning is not durable.
    Beginning,
    Open(Vec<StuckStep>),
    Ended(End),
    Halted(StoreError),
    Parked(String),
    Drained,
}

/// One saga that is known.
pub(crate) struct Entry {
    pub(crate) id: Arc<str>,
    definition: String,
    version: u64,
    input: Bytes,
    status: watch::Sender<Status>,
    commands: mpsc::Sender<Command>,
    /// The records of a saga that has no task, for the store that asks for it as a whole.
    kept: Mutex<Vec<Record>>,
}

impl Entry {
    pub(crate) fn set(&self, status: Status) {
        self.status.send_replace(status);
    }

    /// The beginning is durable.
    pub(crate) fn begun(&self) {
        self.status.send_if_modified(|status| {
            let begins = matches!(status, Status::Beginning);
            if begins {
                *status = Status::Open(Vec::new());
            }
            begins
        });
    }

    pub(crate) fn set_stuck(&self, stuck: Vec<(String, Direction, String)>) {
        let steps = stuck.into_iter();
        let steps: Vec<StuckStep> =
            steps.map(|(step, direction, why)| StuckStep { step, direction, why }).collect();
        self.status.send_if_modified(|status| match status {
            Status::Open(known) if *known != steps => {
                if let Some(step) = steps.first() {
                    tracing::warn!(
                        target: "voussoir::txn",
                        saga = %self.id, step = %step.step, why = %step.why,
                        "a saga waits for an operator"
                    );
                }
                *known = steps;
                true
            }
            _ => false,
        });
    }

    pub(crate) fn ended(
        &self,
        end: &core::End,
        graph: &Graph,
        outputs: Arc<[Option<Bytes>]>,
        kept: Vec<Record>,
    ) {
        *self.kept.lock() = kept;
        self.set(Status::Ended(End { outcome: outcome(end, graph), outputs }));
    }

    fn info(&self) -> SagaInfo {
        let state = match &*self.status.borrow() {
            Status::Beginning => SagaState::Open,
            Status::Open(stuck) if stuck.is_empty() => SagaState::Open,
            Status::Open(stuck) => SagaState::Stuck(stuck.clone()),
            Status::Ended(end) => SagaState::Ended(end.outcome.clone()),
            Status::Halted(_) => SagaState::Halted,
            Status::Parked(why) => SagaState::Parked(why.clone()),
            Status::Drained => SagaState::Drained,
        };
        let (id, definition) = (self.id.to_string(), self.definition.clone());
        SagaInfo { id, definition, version: self.version, state }
    }

    fn is_open(&self) -> bool {
        !matches!(*self.status.borrow(), Status::Ended(_))
    }
}

fn outcome(end: &core::End, graph: &Graph) -> Outcome {
    match end {
        core::End::Completed => Outcome::Completed,
        core::End::GivenUp => Outcome::GivenUp,
        core::End::Undone { cause, why } => {
            let because = match cause {
                Cause::Step(step) => format!("the step `{}`: {why}", graph.node(*step).name),
                Cause::Abort => format!("aborted: {why}"),
                Cause::Deadline => why.to_string(),
            };
            Outcome::Undone { because }
        }
    }
}

#[derive(Default)]
struct Known {
    sagas: HashMap<Arc<str>, Arc<Entry>>,
    open: usize,
    /// Those that have ended, the oldest first.
    ended: VecDeque<Arc<str>>,
    drains: bool,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    store: Arc<dyn SagaStore>,
    /// What is appended to `store`.
    pub(crate) appends: Gathered,
    /// Bytes of the largest append that `store` takes.
    pub(crate) max_append_bytes: usize,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) epoch: u64,
    definitions: HashMap<(String, u64), Arc<Definition>>,
    known: Mutex<Known>,
    /// Seeds of the sagas' delays.
    seed: AtomicU64,
    /// Each task of a saga has a receiver until it is gone.
    pub(crate) running: watch::Sender<()>,
}

impl Inner {
    fn next_seed(&self) -> u64 {
        self.seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
    }

    /// The saga of this id, and its commands if it is new.
    fn enter(
        &self,
        id: &str,
        key: (String, u64),
        input: &Bytes,
    ) -> Result<(Arc<Entry>, Option<mpsc::Receiver<Command>>), StartError> {
        let mut known = self.known.lock();
        if let Some(entry) = known.sagas.get(id) {
            let is_same =
                entry.definition == key.0 && entry.version == key.1 && entry.input == *input;
            return is_same.then(|| (Arc::clone(entry), None)).ok_or(StartError::Mismatch);
        }
        if known.drains {
            return Err(StartError::Draining);
        }
        if known.open >= self.config.max_open {
            return Err(StartError::Busy);
        }
        let (entry, commands) = new_entry(id.into(), key, input.clone(), Status::Beginning);
        known.sagas.insert(Arc::clone(&entry.id), Arc::clone(&entry));
        known.open += 1;
        Ok((entry, Some(commands)))
    }

    /// Bytes of the input and the outputs of one saga. The rest of an append is for the heads of
    /// its events and for the reasons of its failures.
    pub(crate) fn max_values_bytes(&self) -> usize {
        self.max_append_bytes - self.max_append_bytes / 4
    }

    /// A saga has ended: those beyond `max_ended` are forgotten.
    pub(crate) async fn forget_the_oldest(&self, ended: &Arc<Entry>) {
        let rewrite = self.store.to_rewrite();
        let append = {
            let mut known = self.known.lock();
            known.open -= 1;
            known.ended.push_back(Arc::clone(&ended.id));
            let beyond = known.ended.len().saturating_sub(self.config.max_ended);
            let mut forgotten: Vec<Arc<str>> =
                known.ended.drain(..beyond.min(FORGET_AT_ONCE)).collect();
            for id in &forgotten {
                known.sagas.remove(id);
            }
            let mut records = Vec::new();
            match rewrite.map(|id| known.sagas.get(&id).cloned().ok_or(id)) {
                None => {}
                Some(Ok(entry)) => {
                    records.clone_from(&entry.kept.lock());
                    if records.is_empty() {
                        // Full: the next ended saga asks again.
                        let _ = entry.commands.try_send(Command::Rewrite);
                    }
                }
                // The store needs a saga that nobody knows: its record was not forgotten.
                Some(Err(id)) => forgotten.push(id),
            }
            let record = |id| Record::new(id, RecordKind::Forgotten, Bytes::new());
            records.extend(forgotten.into_iter().map(record));
            if records.is_empty() {
                return;
            }
            // Joins the queue under the lock: a saga is not written again behind the record that it
            // is forgotten, and one that is started again under its id is not forgotten behind its
            // beginning.
            self.appends.append(records)
        };
        if let Err(error) = append.await {
            tracing::error!(target: "voussoir::txn", %error, "forgetting ended sagas failed");
        }
    }
}

/// Builds [`Sagas`].
#[must_use = "a builder does nothing until `open` is called"]
pub struct Builder {
    config: Config,
    clock: Arc<dyn Clock>,
    definitions: Vec<Arc<Definition>>,
}

impl Builder {
    /// Sets all that is configured by values.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Where `now` comes from. Default [`System`].
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Registers a definition. All that may still have sagas under way belong here.
    pub fn register<In>(mut self, saga: &Saga<In>) -> Self {
        self.definitions.push(Arc::clone(&saga.definition));
        self
    }

    /// Opens the store and goes on with the sagas in it, each in a task of the current runtime.
    ///
    /// # Errors
    /// [`OpenError`]. A saga that cannot go on is no error: it is listed as
    /// [`Parked`](SagaState::Parked).
    ///
    /// # Panics
    /// Outside a tokio runtime.
    ///
    /// # Cancel safety
    /// Not cancel safe: sagas may go on.
    pub async fn open(self, store: impl SagaStore) -> Result<Sagas, OpenError> {
        self.config.validate()?;
        let mut definitions = HashMap::new();
        for definition in self.definitions {
            let (name, version) = (definition.graph.name.to_string(), definition.graph.version);
            if definitions.insert((name.clone(), u64::from(version)), definition).is_some() {
                return Err(OpenError::Duplicate { name, version });
            }
        }
        let store: Arc<dyn SagaStore> = Arc::new(store);
        let opened = store.open().await?;
        let seed = self.config.seed.unwrap_or_else(|| fastrand::u64(..));
        let inner = Arc::new(Inner {
            config: self.config,
            appends: Gathered::new(Arc::clone(&store)),
            max_append_bytes: store.max_append_bytes(),
            store,
            clock: self.clock,
            epoch: opened.epoch,
            definitions,
            known: Mutex::default(),
            seed: AtomicU64::new(seed),
            running: watch::Sender::new(()),
        });
        let mut order = Vec::new();
        let mut histories: HashMap<Arc<str>, Vec<Record>> = HashMap::new();
        for record in opened.records {
            if record.kind == RecordKind::Forgotten {
                histories.remove(&record.saga);
                continue;
            }
            let history = histories.entry(Arc::clone(&record.saga)).or_insert_with(|| {
                order.push(Arc::clone(&record.saga));
                Vec::new()
            });
            if record.kind == RecordKind::Whole {
                history.clear();
            }
            history.push(record);
        }
        let sagas = Sagas { inner };
        for id in order {
            if let Some(history) = histories.remove(&id) {
                sagas.take_up(&id, history);
            }
        }
        Ok(sagas)
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Runs sagas. Clones are handles to the same sagas.
#[derive(Clone)]
pub struct Sagas {
    inner: Arc<Inner>,
}

impl Sagas {
    /// Sagas with defaults for everything but what is said to the builder.
    pub fn builder() -> Builder {
        Builder {
            config: Config::default(),
            clock: Arc::new(System::new()),
            definitions: Vec::new(),
        }
    }

    /// Starts a saga and returns when its beginning is durable. With the id of a saga that is known
    /// it starts nothing and returns that one's handle: so it may be called again when its outcome
    /// is not known.
    ///
    /// # Errors
    /// [`StartError`].
    ///
    /// # Cancel safety
    /// Not cancel safe: whether the saga has begun is unknown then. Start it again with its id.
    pub async fn start<In: Serialize>(
        &self,
        saga: &Saga<In>,
        id: &str,
        input: &In,
    ) -> Result<Handle, StartError> {
        self.begin(saga, id, input, None).await
    }

    /// As [`start`](Self::start), with a time limit: a saga whose pivot has not begun by then is
    /// undone. It holds across restarts, by the time of day.
    ///
    /// # Errors
    /// [`StartError`].
    ///
    /// # Cancel safety
    /// As [`start`](Self::start).
    pub async fn start_within<In: Serialize>(
        &self,
        saga: &Saga<In>,
        id: &str,
        input: &In,
        limit: Duration,
    ) -> Result<Handle, StartError> {
        self.begin(saga, id, input, Some(limit)).await
    }

    async fn begin<In: Serialize>(
        &self,
        saga: &Saga<In>,
        id: &str,
        input: &In,
        limit: Option<Duration>,
    ) -> Result<Handle, StartError> {
        let definition = &saga.definition;
        let Graph { name, version, .. } = &*definition.graph;
        let key = (name.to_string(), u64::from(*version));
        match self.inner.definitions.get(&key) {
            Some(known) if Arc::ptr_eq(known, definition) => {}
            _ => return Err(StartError::Unregistered),
        }
        if id.is_empty() || id.len() > ID_BYTES_MAX || id.contains(['/', '\0']) {
            return Err(StartError::Id);
        }
        let input = serde_json::to_vec(input);
        let input = Bytes::from(input.map_err(|error| StartError::Input(error.to_string()))?);
        let most = self.inner.config.max_value_bytes.min(self.inner.max_values_bytes());
        if input.len() > most {
            return Err(StartError::Input(format!("it has {} bytes", input.len())));
        }
        let now = self.inner.clock.now();
        let deadline = limit.map(|limit| now.saturating_add(nanos(limit)).min(u64::MAX - 1));
        let (entry, commands) = self.inner.enter(id, key, &input)?;
        if let Some(commands) = commands {
            let graph = Arc::clone(&definition.graph);
            let run = Run::start(graph, input, deadline, self.inner.next_seed(), now);
            self.spawn(&entry, definition, run, commands);
        }
        Handle::begun(entry).await
    }

    fn spawn(
        &self,
        entry: &Arc<Entry>,
        definition: &Arc<Definition>,
        run: Run,
        commands: mpsc::Receiver<Command>,
    ) {
        let (inner, entry) = (Arc::clone(&self.inner), Arc::clone(entry));
        let driver = Driver::new(inner, entry, Arc::clone(definition), run, commands);
        tokio::spawn(driver.drive());
    }

    /// Goes on with a saga of an earlier process.
    fn take_up(&self, id: &Arc<str>, history: Vec<Record>) {
        let recovered = self.recover(&history);
        let mut known = self.inner.known.lock();
        let (run, definition) = match recovered {
            Ok(recovered) => recovered,
            Err((key, input, why)) => {
                tracing::error!(target: "voussoir::txn", saga = %id, %why, "a saga is parked");
                let status = Status::Parked(why);
                let (entry, _) = new_entry(Arc::clone(id), key, input, status);
                *entry.kept.lock() = whole(history);
                known.open += 1;
                known.sagas.insert(Arc::clone(id), entry);
                return;
            }
        };
        let state = run.state();
        let key = (definition.graph.name.to_string(), u64::from(definition.graph.version));
        let status = Status::Open(Vec::new());
        let (entry, commands) = new_entry(Arc::clone(id), key, state.input.clone(), status);
        known.sagas.insert(Arc::clone(id), Arc::clone(&entry));
        if let Some(end) = run.end() {
            let outputs = state.steps.iter().map(|step| step.output.clone()).collect();
            let kept = rewritten(id, &state.events(), self.inner.max_append_bytes);
            entry.ended(&end, &definition.graph, outputs, kept);
            known.ended.push_back(Arc::clone(id));
            return;
        }
        known.open += 1;
        drop(known);
        self.spawn(&entry, &definition, run, commands);
    }

    #[expect(clippy::type_complexity, reason = "what a parked saga is known by, and why")]
    fn recover(
        &self,
        history: &[Record],
    ) -> Result<(Run, Arc<Definition>), ((String, u64), Bytes, String)> {
        let mut events = Vec::new();
        let mut key = (String::new(), 0);
        let mut begun_with = Bytes::new();
        for record in history {
            match Event::decode(record.events.clone()) {
                Ok(more) => events.extend(more),
                Err(error) => return Err((key, begun_with, error.to_string())),
            }
            if let [Event::Started { definition, input, .. }, Event::Version(version), ..] =
                &events[..]
            {
                key = (definition.to_string(), *version);
                begun_with = input.clone();
            }
        }
        let Some(definition) = self.inner.definitions.get(&key) else {
            return Err((key, begun_with, "its definition is not registered".into()));
        };
        let graph = Arc::clone(&definition.graph);
        let now = self.inner.clock.now();
        match Run::recover(graph, &events, self.inner.next_seed(), now) {
            Ok(run) => Ok((run, Arc::clone(definition))),
            Err(error) => Err((key, begun_with, error.to_string())),
        }
    }

    /// A saga that is known. `None` also for one that has ended and was forgotten.
    pub fn get(&self, id: &str) -> Option<Handle> {
        let entry = self.inner.known.lock().sagas.get(id).cloned();
        entry.map(|entry| Handle { entry })
    }

    /// All sagas that are known, in no order.
    pub fn list(&self) -> Vec<SagaInfo> {
        let entries: Vec<Arc<Entry>> = self.inner.known.lock().sagas.values().cloned().collect();
        entries.iter().map(|entry| entry.info()).collect()
    }

    /// The number of this process among those that have opened the store.
    pub fn epoch(&self) -> u64 {
        self.inner.epoch
    }

    /// Undoes a saga whose pivot has not begun. Of `why` 1 KiB is recorded. Returns when that is
    /// durable, however long the store has no room: from then on no restart takes it back.
    ///
    /// # Errors
    /// [`ResolveError`].
    ///
    /// # Cancel safety
    /// Not cancel safe: whether it is undone is unknown then.
    pub async fn abort(&self, id: &str, why: impl Into<String>) -> Result<(), ResolveError> {
        let why = cut(why.into());
        self.ask(id, |_| Ok(()), |(), reply| Command::Abort { why, reply }).await
    }

    /// Says what becomes of a stuck step. Returns when that is durable, as
    /// [`abort`](Self::abort) does.
    ///
    /// # Errors
    /// [`ResolveError`].
    ///
    /// # Cancel safety
    /// Not cancel safe: whether it is resolved is unknown then.
    pub async fn resolve(
        &self,
        id: &str,
        step: &str,
        resolution: Resolution,
    ) -> Result<(), ResolveError> {
        let resolution = match resolution {
            Resolution::Retry => core::Resolution::Retry,
            Resolution::Skip => core::Resolution::Skip,
            Resolution::Replace(output) => core::Resolution::Replace(output),
            Resolution::NotRun => core::Resolution::NotRun,
        };
        let find = |graph: &Graph| {
            let found = graph.ids().find(|id| &*graph.node(*id).name == step);
            found.ok_or(ResolveError::NotFound)
        };
        self.ask(id, find, |step: StepId, reply| Command::Resolve { step, resolution, reply }).await
    }

    /// Ends an open saga as it is, with nothing undone. An operator's last word. Returns when that
    /// is durable, as [`abort`](Self::abort) does.
    ///
    /// # Errors
    /// [`ResolveError`].
    ///
    /// # Cancel safety
    /// Not cancel safe: whether it is ended is unknown then.
    pub async fn give_up(&self, id: &str) -> Result<(), ResolveError> {
        self.ask(id, |_| Ok(()), |(), reply| Command::GiveUp { reply }).await
    }

    async fn ask<T>(
        &self,
        id: &str,
        find: impl FnOnce(&Graph) -> Result<T, ResolveError>,
        command: impl FnOnce(T, oneshot::Sender<Result<(), ResolveError>>) -> Command,
    ) -> Result<(), ResolveError> {
        let entry = self.inner.known.lock().sagas.get(id).cloned();
        let entry = entry.ok_or(ResolveError::NotFound)?;
        let key = (entry.definition.clone(), entry.version);
        let definition = self.inner.definitions.get(&key).ok_or(ResolveError::NotFound)?;
        let found = find(&definition.graph)?;
        let (reply, answer) = oneshot::channel();
        let sent = entry.commands.send(command(found, reply)).await;
        sent.map_err(|_| ResolveError::NotFound)?;
        answer.await.unwrap_or(Err(ResolveError::NotFound))
    }

    /// Starts no saga and no attempt any more, and returns when all attempts that are under way
    /// have ended, by their time limit at the latest, and are recorded. Another process may open
    /// the store then, and this one when the handles are dropped, too.
    ///
    /// # Cancel safety
    /// Not cancel safe: it is drained all the same.
    pub async fn drain(&self) {
        let entries: Vec<Arc<Entry>> = {
            let mut known = self.inner.known.lock();
            known.drains = true;
            known.sagas.values().filter(|entry| entry.is_open()).cloned().collect()
        };
        for entry in &entries {
            // An error here says that it has no task.
            let _ = entry.commands.send(Command::Drain).await;
        }
        for entry in &entries {
            let mut status = entry.status.subscribe();
            let ends = |status: &Status| !matches!(status, Status::Beginning | Status::Open(_));
            let _ = status.wait_for(ends).await;
        }
        // Also of those that have ended, which may be forgetting older ones.
        self.inner.running.closed().await;
    }
}

impl fmt::Debug for Sagas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.inner.known.lock();
        f.debug_struct("Sagas")
            .field("epoch", &self.inner.epoch)
            .field("open", &known.open)
            .field("ended", &known.ended.len())
            .finish_non_exhaustive()
    }
}

fn new_entry(
    id: Arc<str>,
    (definition, version): (String, u64),
    input: Bytes,
    status: Status,
) -> (Arc<Entry>, mpsc::Receiver<Command>) {
    let (commands, receiver) = mpsc::channel(COMMANDS);
    let status = watch::Sender::new(status);
    let kept = Mutex::default();
    (Arc::new(Entry { id, definition, version, input, status, commands, kept }), receiver)
}

/// The same history, as one that replaces what went before.
fn whole(mut history: Vec<Record>) -> Vec<Record> {
    for (at, record) in history.iter_mut().enumerate() {
        record.kind = if at == 0 { RecordKind::Whole } else { RecordKind::More };
    }
    history
}

/// One saga.
#[derive(Clone)]
pub struct Handle {
    entry: Arc<Entry>,
}

impl Handle {
    async fn begun(entry: Arc<Entry>) -> Result<Self, StartError> {
        let mut status = entry.status.subscribe();
        let begun = |status: &Status| !matches!(status, Status::Beginning);
        if let Ok(status) = status.wait_for(begun).await
            && let Status::Halted(error) = &*status
        {
            return Err(StartError::Store(error.clone()));
        }
        Ok(Self { entry })
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.entry.id
    }

    /// Where it is.
    pub fn state(&self) -> SagaState {
        self.entry.info().state
    }

    /// Waits for its end, however long it takes, or until it is stuck.
    ///
    /// # Errors
    /// [`WaitError`]: it has not ended.
    ///
    /// # Cancel safety
    /// Cancel safe: the saga goes on.
    pub async fn end(&self) -> Result<End, WaitError> {
        let mut status = self.entry.status.subscribe();
        let is_over = |status: &Status| match status {
            Status::Beginning => false,
            Status::Open(stuck) => !stuck.is_empty(),
            _ => true,
        };
        // The sender lives in the entry, which this handle holds.
        let Ok(status) = status.wait_for(is_over).await else { return Err(WaitError::Drained) };
        match &*status {
            Status::Ended(end) => Ok(end.clone()),
            Status::Open(stuck) => {
                let (step, why) =
                    stuck.first().map(|at| (at.step.clone(), at.why.clone())).unwrap_or_default();
                Err(WaitError::Stuck { step, why })
            }
            Status::Halted(error) => Err(error.clone().into()),
            Status::Parked(why) => Err(WaitError::Parked(why.clone())),
            Status::Beginning | Status::Drained => Err(WaitError::Drained),
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("id", &self.entry.id).finish_non_exhaustive()
    }
}
