//! The task that runs a participant: polls the bus, calls rules, commits.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinError, JoinHandle, JoinSet};

use super::bus::{Bus, BusError, Commit, Delivery, Subscription};
use super::config::ChoreographyConfig;
use super::core::{Call, Core, Input, MAX_PUBLISHED_BYTES, STEP_BYTES, Waiting};
use super::event::NewEvent;
use super::participant::{EventCx, Participant};
use crate::clock::{Clock, System};
use crate::error::ConfigError;

/// How long a poll waits. It is dropped when something else happens.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// Questions of callers that wait.
const MAX_QUESTIONS: usize = 16;

/// What a running participant has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunningStats {
    /// Events that were read, duplicates and those of no rule included.
    pub events: u64,
    /// Attempts of rules that ended.
    pub calls: u64,
    /// Attempts of rules that failed, panicked, or took too long.
    pub failures: u64,
    /// Events that were published.
    pub published: u64,
    /// Events that were given up.
    pub dead: u64,
    /// Commits.
    pub commits: u64,
    /// Why the bus failed last, if it has not been reached since. [`BusError::Garbled`] while a
    /// partition is its whose state it cannot read: it keeps that, and reads no events of it.
    pub error: Option<BusError>,
}

/// A participant that runs. Dropped, it stops at once: what it was doing is done again by the next.
pub struct Running {
    stop: watch::Sender<bool>,
    questions: mpsc::Sender<oneshot::Sender<Vec<Waiting>>>,
    stats: Arc<Mutex<RunningStats>>,
    task: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts a participant in a task of the current runtime.
    ///
    /// # Errors
    /// [`ConfigError`]. A bus that cannot be reached is no error: it is tried again, and
    /// [`RunningStats::error`] says so.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(
        bus: Arc<dyn Bus>,
        participant: &Participant,
        config: ChoreographyConfig,
    ) -> Result<Self, ConfigError> {
        Self::start_with_clock(bus, participant, config, Arc::new(System::new()))
    }

    /// As [`start`](Self::start), with a clock in ns since the UNIX epoch that goes on as tokio's
    /// time does.
    ///
    /// # Errors
    /// [`ConfigError`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start_with_clock(
        bus: Arc<dyn Bus>,
        participant: &Participant,
        config: ChoreographyConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        let (stop, stopped) = watch::channel(false);
        let (questions, asked) = mpsc::channel(MAX_QUESTIONS);
        let stats: Arc<Mutex<RunningStats>> = Arc::default();
        let runner = Runner {
            bus,
            participant: participant.clone(),
            config,
            clock,
            stats: Arc::clone(&stats),
            stopped,
            asked,
        };
        Ok(Self { stop, questions, stats, task: Some(tokio::spawn(runner.run())) })
    }

    /// What it has done.
    pub fn stats(&self) -> RunningStats {
        self.stats.lock().clone()
    }

    /// What waits here: joins, and reactions that run or are to be tried again. Empty while the bus
    /// cannot be reached.
    ///
    /// # Cancel safety
    /// Reads only.
    pub async fn waiting(&self) -> Vec<Waiting> {
        let (answer, answered) = oneshot::channel();
        match self.questions.send(answer).await {
            Ok(()) => answered.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// Begins no more reactions, waits for those that run, commits what they did, and ends.
    /// Meanwhile it stays a member of its group, which may be rebalanced: reactions of partitions
    /// that go to another member stop, and are done again there.
    ///
    /// # Cancel safety
    /// Dropped, it stops at once, as if it were dropped.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Some(task) = &mut self.task {
            // An error: the task has panicked; nothing of it is left.
            let _ = task.await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("stats", &*self.stats.lock()).finish_non_exhaustive()
    }
}

struct Runner {
    bus: Arc<dyn Bus>,
    participant: Participant,
    config: ChoreographyConfig,
    clock: Arc<dyn Clock>,
    stats: Arc<Mutex<RunningStats>>,
    stopped: watch::Receiver<bool>,
    asked: mpsc::Receiver<oneshot::Sender<Vec<Waiting>>>,
}

/// What a call of a rule has ended with.
type Answer = Result<Vec<NewEvent>, String>;

/// What the runner has while it is subscribed.
struct Session {
    subscription: Box<dyn Subscription>,
    cores: BTreeMap<u32, Core>,
    /// Partitions whose state cannot be read, which have no core. They are kept, and full: given
    /// back they would go from member to member, each time with a rebalance of the group.
    garbled: BTreeSet<u32>,
    /// Calls that wait for one that runs to end.
    queued: VecDeque<(u32, Call)>,
    running: JoinSet<Answer>,
    /// Invariant: those of `running` whose partition has not been lost since they began. What
    /// others end with is nobody's: the partition may have come back, and its core may have given
    /// their number to another call.
    calls: HashMap<tokio::task::Id, Begun>,
    /// Events were worked with since the last commit.
    is_dirty: bool,
    /// What all cores have to record.
    commit_bytes: usize,
    /// At this many a commit comes before the next input. One input more fits into it.
    limit_bytes: usize,
    /// It begins nothing, and all partitions are full: also those that it is assigned yet.
    is_stopping: bool,
}

/// A call that runs.
struct Begun {
    partition: u32,
    /// In the core of the partition.
    number: u64,
    handle: AbortHandle,
}

/// What a session waits for.
enum Woken {
    Polled(Vec<Delivery>),
    Ended(Result<(tokio::task::Id, Answer), JoinError>),
    Time,
    Stop,
}

impl Runner {
    async fn run(mut self) {
        let mut failures = 0;
        // Ends: when it is stopped. The bus may fail as often as it likes.
        while !*self.stopped.borrow() {
            let mut stopped = self.stopped.clone();
            let subscribed = tokio::select! {
                subscribed = self.bus.subscribe(self.participant.name()) => subscribed,
                _ = stopped.wait_for(|stopped| *stopped) => return,
            };
            let result = match subscribed {
                Ok(subscription) => {
                    let mut session = Session::new(subscription);
                    let result = self.session(&mut session, &mut failures).await;
                    session.running.shutdown().await;
                    result
                }
                Err(error) => Err(error),
            };
            let Err(error) = result else { return };
            tracing::debug!(target: "voussoir::txn", %error, "the bus failed");
            self.stats.lock().error = Some(error);
            let pause = self.config.pause * (1 << failures.min(6));
            failures = failures.saturating_add(1);
            self.pause(pause).await;
        }
    }

    async fn pause(&mut self, pause: Duration) {
        let until = tokio::time::sleep(pause);
        tokio::pin!(until);
        // Ends: after the pause, or when it is stopped.
        loop {
            tokio::select! {
                () = &mut until => return,
                _ = self.stopped.wait_for(|stopped| *stopped) => return,
                // Dropped: there is nothing to say.
                Some(_) = self.asked.recv() => {}
            }
        }
    }

    /// Ends well when it was stopped, or with why the bus failed.
    async fn session(&mut self, session: &mut Session, failures: &mut u32) -> Result<(), BusError> {
        // Ends: when it was stopped and nothing runs any more, or by an error.
        loop {
            if self.commit(session).await? {
                *failures = 0;
            }
            session.is_stopping |= *self.stopped.borrow();
            if !session.is_stopping && session.tick(self.clock.now()) {
                // Until nothing is due, each time with a commit.
                continue;
            }
            if !session.is_stopping {
                self.begin(session);
            } else if session.running.is_empty() {
                // What has not begun is in the state, or is read again.
                return Ok(());
            }
            match self.wait(session).await? {
                Woken::Polled(deliveries) => {
                    // One that brings something shows nothing yet: it may fail to be committed.
                    if deliveries.is_empty() {
                        *failures = 0;
                    }
                    self.deliver(session, deliveries).await?;
                    self.stats.lock().error = session.error();
                }
                Woken::Ended(ended) => self.ended(session, ended),
                Woken::Time => {}
                Woken::Stop => session.is_stopping = true,
            }
        }
    }

    async fn wait(&mut self, session: &mut Session) -> Result<Woken, BusError> {
        // Polled also when all are full, and while it stops: who does not poll holds up the
        // rebalances of its group, and then loses its partitions with all that runs.
        let full: BTreeSet<u32> = session.full().collect();
        let is_stopping = session.is_stopping;
        // Ends: each round but one that answers a question leaves.
        loop {
            let now = self.clock.now();
            let deadline = session.cores.values().filter_map(Core::next_deadline).min();
            let sleep = deadline.map(|at| Duration::from_nanos(at.saturating_sub(now)));
            let time = async {
                match sleep {
                    Some(sleep) => tokio::time::sleep(sleep).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                polled = session.subscription.poll(MAX_WAIT, &full) => {
                    return polled.map(Woken::Polled);
                }
                Some(ended) = session.running.join_next_with_id() => return Ok(Woken::Ended(ended)),
                () = time, if !is_stopping => return Ok(Woken::Time),
                _ = self.stopped.wait_for(|stopped| *stopped), if !is_stopping => {
                    return Ok(Woken::Stop);
                }
                Some(answer) = self.asked.recv() => {
                    let waiting = session.cores.values().flat_map(Core::waiting).collect();
                    // An error: the caller has gone.
                    let _ = answer.send(waiting);
                }
            }
        }
    }

    async fn deliver(
        &mut self,
        session: &mut Session,
        deliveries: Vec<Delivery>,
    ) -> Result<(), BusError> {
        let now = self.clock.now();
        let is_event = |one: &&Delivery| matches!(one, Delivery::Event { .. });
        // Events that no core has been given.
        let mut left = deliveries.iter().filter(is_event).count();
        for delivery in deliveries {
            match delivery {
                Delivery::Assigned { partition, state } => {
                    let (participant, config) = (self.participant.clone(), self.config.clone());
                    let limit = session.limit_bytes;
                    let mut core = match Core::open(partition, participant, config, limit, state) {
                        Ok(core) => core,
                        Err(error) => {
                            session.insert_garbled(partition);
                            tracing::error!(target: "voussoir::txn", %error);
                            continue;
                        }
                    };
                    let sealed = core.take_sealed();
                    if !sealed.is_empty() {
                        // Commits say how far polls have read.
                        session.subscription.give_back(std::mem::take(&mut left))?;
                        self.commit(session).await?;
                    }
                    session.insert(partition, core);
                    for commit in sealed {
                        self.write(session, commit).await?;
                    }
                }
                Delivery::Lost { partition } => session.lose(partition),
                // It was given back.
                Delivery::Event { .. } if left == 0 => {}
                Delivery::Event { partition, .. } if !session.has_room(partition) => {
                    session.subscription.give_back(std::mem::take(&mut left))?;
                }
                Delivery::Event { partition, event } => {
                    left -= 1;
                    session.is_dirty = true;
                    self.stats.lock().events += 1;
                    session.step(now, partition, Input::Event(event));
                }
            }
        }
        Ok(())
    }

    /// Takes what a call has ended with, and what others have that ended meanwhile.
    fn ended(&self, session: &mut Session, ended: Result<(tokio::task::Id, Answer), JoinError>) {
        let mut next = Some(ended);
        // Ends: when no other call has ended, or the commit is large enough.
        while let Some(ended) = next {
            let (id, answer) = match ended {
                Ok(ended) => ended,
                Err(error) => (error.id(), Err(format!("it panicked: {error}"))),
            };
            if let Some(Begun { partition, number, .. }) = session.calls.remove(&id) {
                let result = answer.and_then(fits);
                let mut stats = self.stats.lock();
                stats.calls += 1;
                stats.failures += u64::from(result.is_err());
                drop(stats);
                session.step(self.clock.now(), partition, Input::Handled { number, result });
            }
            next = (session.commit_bytes < session.limit_bytes)
                .then(|| session.running.try_join_next_with_id())
                .flatten();
        }
    }

    /// Begins calls, up to `max_parallel`.
    fn begin(&self, session: &mut Session) {
        for (partition, core) in &mut session.cores {
            while let Some(call) = core.poll_output() {
                session.queued.push_back((*partition, call));
            }
        }
        while session.running.len() < self.config.max_parallel
            && let Some((partition, call)) = session.queued.pop_front()
        {
            let number = call.number;
            let rules = Arc::clone(&self.participant.rules);
            let handle = session.running.spawn(async move {
                let rule = &rules[call.rule];
                let cx = EventCx { key: call.key, events: call.events, attempt: call.attempt };
                match tokio::time::timeout(rule.timeout, (rule.run)(cx)).await {
                    Ok(result) => result.map_err(|error| error.0),
                    Err(_) => Err(format!("it did not end within {:?}", rule.timeout)),
                }
            });
            session.calls.insert(handle.id(), Begun { partition, number, handle });
        }
    }

    /// Returns whether there was something to commit.
    async fn commit(&self, session: &mut Session) -> Result<bool, BusError> {
        session.commit_bytes = 0;
        let mut all = Commit::default();
        for core in session.cores.values_mut() {
            let Commit { state, publish, dead } = core.take_commit();
            all.state.extend(state);
            all.publish.extend(publish);
            all.dead.extend(dead);
        }
        if all.is_empty() && !session.is_dirty {
            return Ok(false);
        }
        self.write(session, all).await?;
        Ok(true)
    }

    async fn write(&self, session: &mut Session, commit: Commit) -> Result<(), BusError> {
        let (published, dead) = (commit.publish.len() as u64, commit.dead.len() as u64);
        session.subscription.commit(commit).await?;
        session.is_dirty = false;
        let mut stats = self.stats.lock();
        stats.commits += 1;
        stats.published += published;
        stats.dead += dead;
        Ok(())
    }
}

impl Session {
    fn new(subscription: Box<dyn Subscription>) -> Self {
        Self {
            limit_bytes: subscription.max_commit_bytes().saturating_sub(STEP_BYTES).max(1),
            subscription,
            cores: BTreeMap::new(),
            garbled: BTreeSet::new(),
            queued: VecDeque::new(),
            running: JoinSet::new(),
            calls: HashMap::new(),
            is_dirty: false,
            commit_bytes: 0,
            is_stopping: false,
        }
    }

    /// Partitions that take no more events until some of their calls have ended.
    fn full(&self) -> impl Iterator<Item = u32> {
        let full = self.cores.iter().filter(|(_, core)| self.is_stopping || !core.has_room());
        full.map(|(partition, _)| *partition).chain(self.garbled.iter().copied())
    }

    fn has_room(&self, partition: u32) -> bool {
        self.commit_bytes < self.limit_bytes
            && self.cores.get(&partition).is_none_or(Core::has_room)
            && !self.garbled.contains(&partition)
            && !self.is_stopping
    }

    /// What is wrong, although the bus can be reached.
    fn error(&self) -> Option<BusError> {
        self.garbled.first().map(|partition| BusError::Garbled { partition: *partition })
    }

    fn insert_garbled(&mut self, partition: u32) {
        self.lose(partition);
        self.garbled.insert(partition);
    }

    fn insert(&mut self, partition: u32, core: Core) {
        self.garbled.remove(&partition);
        self.commit_bytes += core.commit_bytes();
        let old = self.cores.insert(partition, core);
        self.commit_bytes -= old.map_or(0, |core| core.commit_bytes());
    }

    /// Gives a core an input, and then records what waits for room in its commit.
    fn step(&mut self, now: u64, partition: u32, input: Input) {
        let Some(core) = self.cores.get_mut(&partition) else { return };
        self.commit_bytes -= core.commit_bytes();
        core.step(now, input);
        let room = self.limit_bytes.saturating_sub(self.commit_bytes + core.commit_bytes());
        core.step(now, Input::Tick { room });
        self.commit_bytes += core.commit_bytes();
    }

    /// Has cores do what is due, up to the limit. Returns whether any had something to do: then it
    /// has done some of it, and there may be more after a commit.
    fn tick(&mut self, now: u64) -> bool {
        let mut has_ticked = false;
        for core in self.cores.values_mut() {
            let room = self.limit_bytes.saturating_sub(self.commit_bytes);
            if room == 0 {
                break;
            }
            if core.next_deadline().is_some_and(|at| at <= now) {
                self.commit_bytes -= core.commit_bytes();
                core.step(now, Input::Tick { room });
                self.commit_bytes += core.commit_bytes();
                has_ticked = true;
            }
        }
        has_ticked
    }

    /// Forgets a partition: its calls are made again by whoever has it now.
    fn lose(&mut self, partition: u32) {
        self.garbled.remove(&partition);
        let lost = self.cores.remove(&partition);
        self.commit_bytes -= lost.map_or(0, |core| core.commit_bytes());
        self.queued.retain(|(of, _)| *of != partition);
        self.calls.retain(|_, call| {
            if call.partition == partition {
                call.handle.abort();
            }
            call.partition != partition
        });
    }
}

fn fits(events: Vec<NewEvent>) -> Result<Vec<NewEvent>, String> {
    let bytes: usize = events.iter().map(|event| event.body.len()).sum();
    if bytes > MAX_PUBLISHED_BYTES {
        return Err(format!("it published {bytes} bytes, at most {MAX_PUBLISHED_BYTES}"));
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choreography::{Event, MemoryBus, Rule};

    /// The number of a call is given again: a member that has been away numbers from what the log
    /// remembers, and what has ended is not in it.
    #[tokio::test]
    async fn what_a_call_ends_with_is_not_that_of_another_one_behind_a_loss() {
        let publish = |cx: EventCx| async move {
            let body = bytes::Bytes::copy_from_slice(cx.event().id.as_bytes());
            Ok(vec![NewEvent::new("done", body)])
        };
        let participant = Participant::new("p", [Rule::on("a", "r", publish)]).unwrap();
        let bus = MemoryBus::new(10);
        let (_stop, stopped) = watch::channel(false);
        let (_questions, asked) = mpsc::channel(1);
        let runner = Runner {
            bus: Arc::new(bus.clone()),
            participant: participant.clone(),
            config: ChoreographyConfig::default(),
            clock: Arc::new(System::new()),
            stats: Arc::default(),
            stopped,
            asked,
        };
        let mut session = Session::new(bus.subscribe("p").await.unwrap());
        let open = || {
            let config = ChoreographyConfig::default();
            Core::open(0, participant.clone(), config, usize::MAX, Vec::new()).unwrap()
        };
        for id in ["1", "2"] {
            session.lose(0);
            session.insert(0, open());
            session.step(0, 0, Input::Event(Event::first(id, "a", "k", "body")));
            runner.begin(&mut session);
            // The first has ended, and nobody has taken what with, when its partition goes.
            tokio::task::yield_now().await;
        }
        let numbers: Vec<u64> = session.calls.values().map(|call| call.number).collect();
        assert_eq!((session.running.len(), numbers.len()), (2, 1), "one of the two is nobody's");
        let ended = session.running.join_next_with_id().await.unwrap();
        runner.ended(&mut session, ended);
        let commit = session.cores.get_mut(&0).unwrap().take_commit();
        let done = commit.publish.iter().map(|event| (&*event.cause, &*event.body));
        assert_eq!(done.collect::<Vec<_>>(), [("2", &b"2"[..])]);
        assert_eq!(runner.stats.lock().calls, 1);
    }
}
