//! Crash points of your own sagas: every fault at every call, alone and in pairs.
//!
//! The kit runs a saga once without a fault and counts the calls of its actions, undos and probes.
//! Then it runs it again for each fault at each call, and for each pair of faults, every time from
//! the beginning, in memory and in paused time, and asks your check what is left of it. The first
//! schedule that fails is as short as any that does.
//!
//! ```
//! use voussoir_txn::testing::{Case, crash_points};
//! use voussoir_txn::{Saga, Step, StepError};
//!
//! let explored = crash_points(|| {
//!     // A world of its own for each run: fakes of your peers, which the saga and the check share.
//!     let mut saga = Saga::<u64>::define("ping", 1);
//!     let _ = saga.read(Step::new("ping", (), |_, _, ()| async { Ok::<(), StepError>(()) }));
//!     let saga = saga.build().expect("it is in order");
//!     Case::new(saga, 7, |_outcome| Ok(()))
//! });
//! assert!(explored.expect("no schedule breaks it").runs > 30);
//! ```
//!
//! [`participant_conformance`] and `sink_conformance` (feature `postgres`) check participants of
//! two-phase commit and sinks of an outbox that are your own.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::Config;
use crate::definition::{BoxFuture, Saga};
use crate::error::{StepError, StoreError, WaitError};
use crate::sagas::{Outcome, Resolution, Sagas};
use crate::store::{MemoryStore, Opened, Record, SagaStore};

mod participants;
#[cfg(feature = "postgres")]
mod sinks;

pub use participants::{Broken, Nonconforming, ParticipantWorld, participant_conformance};
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use sinks::{SinkWorld, sink_conformance};

/// Calls of one run after which a saga counts as one that does not end.
const MAX_CALLS: usize = 300;
/// Times that the kit tries a stuck step again, as an operator would.
const MAX_RESOLUTIONS: usize = 50;
/// Seed of the jitter of delays.
const SEED: u64 = 1;
/// Replays one schedule, and prints its calls.
const VARIABLE: &str = "VOUSSOIR_CRASH_POINTS";

/// What goes wrong at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The process ends before the call has its effect.
    CrashBefore,
    /// The process ends after the effect, before its record.
    CrashAfter,
    /// The call has its effect, and its answer is lost.
    ReplyLost,
    /// The call is delivered twice.
    Twice,
    /// The call gets no answer, and has its effect when the saga has ended.
    Late,
    /// The peer refuses for good, without effect. One that knows the key from an earlier attempt
    /// answers as it did then.
    Refused,
    /// From this call on the peer is away for this kind of call, until an operator has to look.
    Down,
    /// Another process takes the saga over, and the call has its effect after that.
    SecondRunner,
}

const FAULTS: [(Fault, &str); 8] = [
    (Fault::CrashBefore, "crash-before"),
    (Fault::CrashAfter, "crash-after"),
    (Fault::ReplyLost, "reply-lost"),
    (Fault::Twice, "twice"),
    (Fault::Late, "late"),
    (Fault::Refused, "refused"),
    (Fault::Down, "down"),
    (Fault::SecondRunner, "second-runner"),
];

/// Faults by the number of the call that they hit, from 0 on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Schedule {
    /// Call and fault.
    pub faults: Vec<(usize, Fault)>,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (call, fault)) in self.faults.iter().enumerate() {
            let name = FAULTS.iter().find(|(one, _)| one == fault).map_or("", |(_, name)| name);
            write!(f, "{}{call}:{name}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// A text that is no [`Schedule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no schedule: CALL:FAULT,...")]
pub struct ScheduleError;

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let parse = |part: &str| {
            let (call, name) = part.split_once(':')?;
            let fault = FAULTS.iter().find(|(_, one)| *one == name)?.0;
            Some((call.parse().ok()?, fault))
        };
        let faults = text.split(',').filter(|part| !part.is_empty()).map(parse);
        Ok(Self { faults: faults.collect::<Option<_>>().ok_or(ScheduleError)? })
    }
}

type Check = Box<dyn Fn(&Outcome) -> Result<(), String>>;

/// One run: a saga over a world of its own, and what must be left of it.
pub struct Case<In> {
    saga: Saga<In>,
    input: In,
    check: Check,
}

impl<In> Case<In> {
    /// A case. `check` looks at the world when the saga has ended and all late calls have landed.
    pub fn new(
        saga: Saga<In>,
        input: In,
        check: impl Fn(&Outcome) -> Result<(), String> + 'static,
    ) -> Self {
        Self { saga, input, check: Box::new(check) }
    }
}

impl<In> fmt::Debug for Case<In> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("saga", &self.saga).finish_non_exhaustive()
    }
}

/// What the kit has tried, all of it without a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Explored {
    /// Runs, the one without a fault included.
    pub runs: usize,
    /// Calls of the run without a fault.
    pub calls: usize,
    /// Runs that completed, and runs that were undone.
    pub completed: usize,
    /// Runs that were undone.
    pub undone: usize,
}

/// A schedule that breaks the saga; none is shorter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{why}\n  schedule: {schedule}\n  calls:\n    {}\n  again: {VARIABLE}='{schedule}' cargo test",
    calls.join("\n    ")
)]
#[non_exhaustive]
pub struct Found {
    /// The faults.
    pub schedule: Schedule,
    /// What the check said, or why the saga did not end.
    pub why: String,
    /// Each call of the run, in order, with its fault.
    pub calls: Vec<String>,
}

/// Runs the case that `make` gives, once for each single fault and each pair of faults at each of
/// its calls. With `VOUSSOIR_CRASH_POINTS` set to a schedule, only that one.
///
/// # Errors
/// [`Found`]: the first schedule that breaks the case.
///
/// # Panics
/// If `VOUSSOIR_CRASH_POINTS` is no schedule, or inside of a tokio runtime.
pub fn crash_points<In: Serialize>(
    mut make: impl FnMut() -> Case<In>,
) -> Result<Explored, Box<Found>> {
    let mut explored = Explored { runs: 0, calls: 0, completed: 0, undone: 0 };
    let mut try_one = |faults: Vec<(usize, Fault)>| {
        let schedule = Schedule { faults };
        let (result, calls) = run(make(), &schedule);
        explored.runs += 1;
        match result {
            Ok(Outcome::Completed) => explored.completed += 1,
            Ok(_) => explored.undone += 1,
            Err(why) => return Err(Box::new(Found { schedule, why, calls })),
        }
        Ok(calls)
    };
    if let Ok(text) = std::env::var(VARIABLE) {
        let schedule: Schedule = text.parse().unwrap_or_else(|error| panic!("{VARIABLE}: {error}"));
        println!("{}", try_one(schedule.faults)?.join("\n"));
        return Ok(explored);
    }
    let clean = try_one(Vec::new())?.len();
    let mut singles = Vec::new();
    for call in 0..clean {
        for (fault, _) in FAULTS {
            let calls = try_one(vec![(call, fault)])?.len();
            singles.push((call, fault, calls));
        }
    }
    for (first, fault, calls) in singles {
        for second in first + 1..calls {
            for (other, _) in FAULTS {
                try_one(vec![(first, fault), (second, other)])?;
            }
        }
    }
    explored.calls = clean;
    Ok(explored)
}

/// One run, and its calls.
fn run<In: Serialize>(
    case: Case<In>,
    schedule: &Schedule,
) -> (Result<Outcome, String>, Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_time().start_paused(true).build().expect("a runtime");
    let kit = Arc::new(Kit { schedule: schedule.clone(), ..Kit::default() });
    let result = runtime.block_on(live(&case, &kit));
    // Calls of processes that are gone end with the runtime.
    drop(runtime);
    let result = result.and_then(|outcome| (case.check)(&outcome).map(|()| outcome));
    let calls = std::mem::take(&mut *kit.calls.lock());
    (result, calls)
}

async fn live<In: Serialize>(case: &Case<In>, kit: &Arc<Kit>) -> Result<Outcome, String> {
    const ID: &str = "case";
    let store = MemoryStore::new();
    let saga = case.saga.through(kit);
    let started = Instant::now();
    let mut resolutions = 0;
    // Ends: each process ends by a fault of the schedule, and each stuck step is counted.
    'processes: loop {
        let process = Process { store: store.clone(), is_dead: Arc::default() };
        *kit.process.lock() = Arc::clone(&process.is_dead);
        let clock = move || 1 + u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // The same delays in each run of a schedule.
        let config = Config { seed: Some(SEED), ..Config::default() };
        let builder = Sagas::builder().config(config).register(&saga).clock(Arc::new(clock));
        let sagas = builder.open(process).await.map_err(|error| error.to_string())?;
        kit.taken_over.notify_waiters();
        loop {
            let started = sagas.start(&saga, ID, &case.input).await;
            let handle = match started {
                Ok(handle) => handle,
                Err(error) if error.may_have_begun() => continue 'processes,
                Err(error) => return Err(error.to_string()),
            };
            let end = tokio::select! {
                biased;
                () = kit.crashed.notified() => continue 'processes,
                () = kit.endless.notified() => {
                    return Err(format!("it does not end within {MAX_CALLS} calls"));
                }
                end = handle.end() => end,
            };
            match end {
                Ok(end) => {
                    kit.land_late().await;
                    return Ok(end.outcome().clone());
                }
                Err(WaitError::Stuck { step, why }) => {
                    resolutions += 1;
                    if resolutions > MAX_RESOLUTIONS {
                        return Err(format!("it stays stuck at the step `{step}`: {why}"));
                    }
                    kit.down.lock().clear();
                    // An error: it is on its way already.
                    let _ = sagas.resolve(ID, &step, Resolution::Retry).await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(WaitError::Parked(why)) => return Err(why),
                Err(_) => continue 'processes,
            }
        }
    }
}

type Late = Box<dyn FnOnce() -> BoxFuture<()> + Send>;

/// The faults of one run.
#[derive(Default)]
pub(crate) struct Kit {
    schedule: Schedule,
    count: AtomicUsize,
    calls: Mutex<Vec<String>>,
    /// Calls whose peer is away.
    down: Mutex<HashSet<(Arc<str>, &'static str)>>,
    late: Mutex<Vec<Late>>,
    /// Calls that have reached their peer, or will.
    known: Mutex<HashSet<(Arc<str>, &'static str)>>,
    /// Whether the process that runs now is dead.
    process: Mutex<Arc<AtomicBool>>,
    crashed: Notify,
    taken_over: Notify,
    endless: Notify,
}

impl Kit {
    /// One call of the user's code, with the fault that hits it.
    pub(crate) fn call<T: Send + 'static>(
        self: Arc<Self>,
        step: Arc<str>,
        call: &'static str,
        run: impl Fn() -> BoxFuture<Result<T, StepError>> + Send + Sync + 'static,
    ) -> BoxFuture<Result<T, StepError>> {
        Box::pin(async move {
            let number = self.count.fetch_add(1, Ordering::Relaxed);
            if number >= MAX_CALLS {
                self.endless.notify_one();
                return std::future::pending().await;
            }
            let fault = self.schedule.faults.iter().find(|(at, _)| *at == number);
            let fault = fault.map(|(_, fault)| *fault);
            let named =
                Schedule { faults: fault.map(|fault| (number, fault)).into_iter().collect() };
            self.calls.lock().push(format!("{number} {step} {call} {named}"));
            let peer = (step, call);
            if self.down.lock().contains(&peer) {
                return Err(StepError::transient("the peer is away"));
            }
            let is_known = self.known.lock().contains(&peer);
            let fault = fault.filter(|fault| !(*fault == Fault::Refused && is_known));
            if !matches!(fault, Some(Fault::CrashBefore | Fault::Refused | Fault::Down)) {
                self.known.lock().insert(peer.clone());
            }
            match fault {
                None => run().await,
                Some(Fault::CrashBefore) => self.crash().await,
                Some(Fault::CrashAfter) => {
                    let _ = run().await;
                    self.crash().await
                }
                Some(Fault::ReplyLost) => {
                    let _ = run().await;
                    Err(StepError::unknown("the answer was lost"))
                }
                Some(Fault::Twice) => {
                    let _ = run().await;
                    run().await
                }
                Some(Fault::Late) => {
                    let land: Late = Box::new(move || Box::pin(async move { drop(run().await) }));
                    self.late.lock().push(land);
                    Err(StepError::unknown("no answer came"))
                }
                Some(Fault::Refused) => Err(StepError::domain("the peer refuses")),
                Some(Fault::Down) => {
                    self.down.lock().insert(peer);
                    Err(StepError::transient("the peer is away"))
                }
                Some(Fault::SecondRunner) => {
                    let mut taken_over = std::pin::pin!(self.taken_over.notified());
                    taken_over.as_mut().enable();
                    self.crashed.notify_one();
                    taken_over.await;
                    run().await
                }
            }
        })
    }

    /// The process records nothing any more, and hears no answer.
    async fn crash<T>(&self) -> T {
        self.process.lock().store(true, Ordering::Relaxed);
        self.crashed.notify_one();
        std::future::pending().await
    }

    async fn land_late(&self) {
        let late = std::mem::take(&mut *self.late.lock());
        for land in late {
            land().await;
        }
    }
}

/// The store as one process sees it.
struct Process {
    store: MemoryStore,
    is_dead: Arc<AtomicBool>,
}

#[crate::async_trait]
impl SagaStore for Process {
    async fn open(&self) -> Result<Opened, StoreError> {
        self.store.open().await
    }

    async fn append(&self, records: Vec<Record>) -> Result<(), StoreError> {
        if self.is_dead.load(Ordering::Relaxed) {
            return Err(StoreError::new("the process is dead"));
        }
        self.store.append(records).await
    }
}
