//! Peers that are scripted from the outside, and stores that fail.
#![allow(dead_code, reason = "each test file uses some of this")]

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use voussoir_txn::store::{Opened, Record, SagaStore};
use voussoir_txn::{Retry, Saga, Step, StepCx, StepError, StepRef, StoreError, async_trait};

#[derive(Default)]
struct State {
    calls: Vec<String>,
    scripts: HashMap<String, VecDeque<StepError>>,
    hangs: HashMap<String, usize>,
    undone: HashMap<String, Option<u64>>,
    epochs: Vec<u64>,
}

/// The peers of a trip, which note each call by its key.
#[derive(Default)]
pub(crate) struct Peers(Mutex<State>);

impl Peers {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.0.lock().calls.clone()
    }

    /// The output that the undo of this key was given, as it is shown.
    pub(crate) fn undone(&self, key: &str) -> String {
        self.0.lock().undone.get(key).map_or("not called".into(), |output| format!("{output:?}"))
    }

    pub(crate) fn epochs(&self) -> Vec<u64> {
        self.0.lock().epochs.clone()
    }

    /// The next call of this key fails so.
    pub(crate) fn fail(&self, key: &str, error: StepError) {
        self.0.lock().scripts.entry(key.into()).or_default().push_back(error);
    }

    /// As many next calls of this key never answer.
    pub(crate) fn hang(&self, key: &str, calls: usize) {
        self.0.lock().hangs.insert(key.into(), calls);
    }

    async fn answer(&self, cx: &StepCx) -> Result<(), StepError> {
        let hangs = {
            let mut state = self.0.lock();
            state.calls.push(cx.key.to_string());
            state.epochs.push(cx.epoch);
            let hangs = state.hangs.get_mut(&*cx.key).filter(|left| **left > 0);
            hangs.map(|left| *left -= 1).is_some()
        };
        tokio::time::sleep(Duration::from_millis(1)).await;
        if hangs {
            std::future::pending::<()>().await;
        }
        let scripted = self.0.lock().scripts.get_mut(&*cx.key).and_then(VecDeque::pop_front);
        scripted.map_or(Ok(()), Err)
    }

    async fn undo(&self, cx: &StepCx, output: Option<u64>) -> Result<(), StepError> {
        self.0.lock().undone.insert(cx.key.to_string(), output);
        self.answer(cx).await
    }
}

pub(crate) struct Refs {
    pub(crate) seat: StepRef<u64>,
    pub(crate) charge: StepRef<String>,
}

/// Seat, then car, then the charge as the pivot, then a mail. Each step has three attempts of 5 s.
pub(crate) fn trip(peers: &Arc<Peers>) -> (Saga<u64>, Refs) {
    trip_of_version(peers, 1)
}

pub(crate) fn trip_of_version(peers: &Arc<Peers>, version: u32) -> (Saga<u64>, Refs) {
    let retry = Retry::exponential(Duration::from_millis(100), 3);
    let limit = Duration::from_secs(5);
    let mut trip = Saga::<u64>::define("trip", version);
    let act = |offset: u64| {
        let peers = Arc::clone(peers);
        move |cx: StepCx, input: u64| {
            let peers = Arc::clone(&peers);
            async move { peers.answer(&cx).await.map(|()| input * 10 + offset) }
        }
    };
    let undo = || {
        let peers = Arc::clone(peers);
        move |cx: StepCx, _: u64, output: Option<u64>| {
            let peers = Arc::clone(&peers);
            async move { peers.undo(&cx, output).await }
        }
    };
    let (seat, car) = (act(0), act(1));
    let seat = Step::new("seat", (), move |cx, input, ()| seat(cx, input));
    let seat = seat.retry(retry.clone()).timeout(limit).undo(undo()).undo_retry(retry.clone());
    let seat = trip.step(seat);
    let car = Step::new("car", seat, move |cx, input, _: u64| car(cx, input));
    let car = car.retry(retry.clone()).timeout(limit).undo(undo()).undo_retry(retry.clone());
    let car = trip.step(car);
    let charge = {
        let peers = Arc::clone(peers);
        move |cx: StepCx, _: u64, (seat, car): (u64, u64)| {
            let peers = Arc::clone(&peers);
            async move { peers.answer(&cx).await.map(|()| format!("charged {seat} and {car}")) }
        }
    };
    let charge = Step::new("charge", (seat, car), charge).retry(retry.clone()).timeout(limit);
    let (mut trip, charge) = trip.pivot(charge);
    let mail = {
        let peers = Arc::clone(peers);
        move |cx: StepCx, _: u64, _: String| {
            let peers = Arc::clone(&peers);
            async move { peers.answer(&cx).await }
        }
    };
    trip.then(Step::new("mail", charge, mail).retry(retry).timeout(limit));
    (trip.build().expect("a definition in order"), Refs { seat, charge })
}

/// A clock that goes on with tokio's time, and jumps over the time between two processes.
pub(crate) struct Time {
    started: Instant,
    passed: AtomicU64,
}

impl Time {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { started: Instant::now(), passed: AtomicU64::new(1 << 60) })
    }

    pub(crate) fn now(&self) -> u64 {
        self.passed.load(Ordering::SeqCst) + self.started.elapsed().as_nanos() as u64
    }

    pub(crate) fn pass(&self, time: Duration) {
        self.passed.fetch_add(time.as_nanos() as u64, Ordering::SeqCst);
    }
}

/// A store that a dying process can no longer reach.
pub(crate) struct Cut<S> {
    pub(crate) store: Arc<S>,
    is_dead: Arc<AtomicBool>,
    is_full: Arc<AtomicBool>,
}

impl<S> Cut<S> {
    pub(crate) fn new(store: S) -> Self {
        Self { store: Arc::new(store), is_dead: Arc::default(), is_full: Arc::default() }
    }

    pub(crate) fn cut(&self) {
        self.is_dead.store(true, Ordering::SeqCst);
    }

    /// Whether it has no room.
    pub(crate) fn set_full(&self, is_full: bool) {
        self.is_full.store(is_full, Ordering::SeqCst);
    }
}

impl<S> Clone for Cut<S> {
    fn clone(&self) -> Self {
        let (is_dead, is_full) = (Arc::clone(&self.is_dead), Arc::clone(&self.is_full));
        Self { store: Arc::clone(&self.store), is_dead, is_full }
    }
}

#[async_trait]
impl<S: SagaStore> SagaStore for Cut<S> {
    async fn open(&self) -> Result<Opened, StoreError> {
        self.store.open().await
    }

    async fn append(&self, records: Vec<Record>) -> Result<(), StoreError> {
        if self.is_dead.load(Ordering::SeqCst) {
            return Err(StoreError::new("the process is dead"));
        }
        if self.is_full.load(Ordering::SeqCst) {
            return Err(StoreError::retryable("there is no room"));
        }
        self.store.append(records).await
    }

    fn max_append_bytes(&self) -> usize {
        self.store.max_append_bytes()
    }
}
