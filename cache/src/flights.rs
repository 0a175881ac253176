//! Loads under way: one for each key, driven by one of those who wait for it.
//!
//! No task is spawned for a load. The future of the load is polled by the member that drives it; a
//! member that is dropped while it drives puts the future back, and the next one goes on with it.

use std::collections::BTreeSet;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use hashbrown::HashTable;
use parking_lot::Mutex;

use crate::core::flight::{Action, Flight, Joined, Member};
use crate::error::LoadError;
use crate::lookup::Inner;
use crate::source::Loaded;
use crate::store::{HashedKey, Probe};

pub(crate) type LoadResult<V> = Result<Loaded<V>, LoadError>;
pub(crate) type LoadFuture<V> = Pin<Box<dyn Future<Output = LoadResult<V>> + Send>>;
/// Starts a load once more after a panic.
pub(crate) type Restart<V> = Box<dyn FnOnce() -> LoadFuture<V> + Send>;

/// What those who joined a load are given: the value, or `None` where the source has none.
pub(crate) type Answer<V> = Result<Option<V>, LoadError>;

/// How a load ended.
#[derive(Clone)]
struct Landed<V> {
    answer: Answer<V>,
    /// An invalidation, by tag or of everything, has hit the result. It may have come before some
    /// of the members asked, who must not be given the answer then.
    is_hit: bool,
}

/// Shards of the table of flights: a power of two.
const SHARDS: usize = 64;

/// One load under way.
pub(crate) struct InFlight<K, V> {
    key: HashedKey<K>,
    /// When it began, in the order of the cache's operations: before the source was asked.
    version: u64,
    began_at: u64,
    state: Mutex<State<V>>,
}

struct State<V> {
    flight: Flight,
    /// The future of the load, while nobody polls it.
    load: Option<LoadFuture<V>>,
    restart: Option<Restart<V>>,
    landed: Option<Landed<V>>,
    wakers: Vec<(Member, Waker)>,
}

impl<V> State<V> {
    fn waker_of(&mut self, member: Member) -> Option<Waker> {
        let at = self.wakers.iter().position(|(of, _)| *of == member)?;
        Some(self.wakers.swap_remove(at).1)
    }
}

type Shard<K, V> = Mutex<HashTable<Arc<InFlight<K, V>>>>;

/// All loads under way.
pub(crate) struct Flights<K, V> {
    shards: Box<[Shard<K, V>]>,
    /// The versions at which the loads under way began.
    began: Mutex<BTreeSet<u64>>,
    max_loads: usize,
}

impl<K, V> Flights<K, V> {
    pub(crate) fn new(max_loads: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::new(HashTable::new())).collect();
        Self { shards, began: Mutex::default(), max_loads }
    }

    pub(crate) fn shard(&self, hash: u64) -> &Shard<K, V> {
        // The upper bits: the store shards by others.
        &self.shards[(hash >> 32) as usize % SHARDS]
    }

    pub(crate) fn under_way(&self) -> u64 {
        self.began.lock().len() as u64
    }

    /// The version at which the oldest load under way began.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.began.lock().first().copied()
    }

    /// Registers a load that begins now. The version is drawn while `began` is locked, so an
    /// invalidation of a larger version always sees the load.
    fn begin(&self, version: impl FnOnce() -> u64) -> Result<u64, LoadError> {
        let mut began = self.began.lock();
        if began.len() >= self.max_loads {
            return Err(LoadError::Busy);
        }
        let version = version();
        began.insert(version);
        Ok(version)
    }

    fn end(&self, version: u64) {
        self.began.lock().remove(&version);
    }

    pub(crate) fn find(
        table: &HashTable<Arc<InFlight<K, V>>>,
        probe: &Probe<'_, K>,
    ) -> Option<Arc<InFlight<K, V>>> {
        table.find(probe.hash, |flight| matches(flight, probe)).cloned()
    }

    /// Marks the load of the key, if one is under way, as overtaken and takes it out of the table:
    /// who comes now begins a new one. The caller holds the shard.
    pub(crate) fn overtake(table: &mut HashTable<Arc<InFlight<K, V>>>, probe: &Probe<'_, K>) {
        if let Ok(found) = table.find_entry(probe.hash, |flight| matches(flight, probe)) {
            let (flight, _) = found.remove();
            flight.state.lock().flight.overtake();
        }
    }
}

fn matches<K, V>(flight: &InFlight<K, V>, probe: &Probe<'_, K>) -> bool {
    flight.key.hash == probe.hash && (probe.is)(&flight.key.key)
}

/// A member of a flight: a future of the load's answer.
pub(crate) struct Ride<K: Key, V: Value> {
    cache: Arc<Inner<K, V>>,
    flight: Arc<InFlight<K, V>>,
    member: Member,
    /// The version of the latest operation when this member asked.
    asked_at: u64,
    /// The load, while this member drives it and is not being polled.
    load: Option<LoadFuture<V>>,
}

/// What keys are.
pub trait Key: std::hash::Hash + Eq + Clone + Send + Sync + 'static {}
impl<K: std::hash::Hash + Eq + Clone + Send + Sync + 'static> Key for K {}

/// What values are. Wrap what is costly to clone in an `Arc`.
pub trait Value: Clone + Send + Sync + 'static {}
impl<V: Clone + Send + Sync + 'static> Value for V {}

/// How a load is started, and started again.
pub(crate) struct Start<V> {
    pub(crate) load: Box<dyn FnOnce() -> LoadFuture<V> + Send>,
    pub(crate) restart: Option<Restart<V>>,
}

impl<K: Key, V: Value> Ride<K, V> {
    /// Joins the load of the key, or begins it. Returns whether it was joined.
    pub(crate) fn board(
        cache: &Arc<Inner<K, V>>,
        key: HashedKey<K>,
        start: Start<V>,
    ) -> Result<(Self, bool), LoadError> {
        let is = |other: &K| *other == key.key;
        let probe = Probe { hash: key.hash, is: &is };
        let flights = &cache.flights;
        let asked_at = cache.version();
        let mut table = flights.shard(key.hash).lock();
        if let Some(flight) = Flights::find(&table, &probe) {
            let joined = flight.state.lock().flight.join();
            match joined {
                Some(Joined::Driver(member) | Joined::Waiter(member)) => {
                    drop(table);
                    return Ok((Self::new(cache, flight, member, asked_at), true));
                }
                // It has just ended: its result is stored, or was not to be.
                None => Flights::overtake(&mut table, &probe),
            }
        }
        let version = flights.begin(|| cache.next_version())?;
        let mut flight = Flight::default();
        let Some(Joined::Driver(member) | Joined::Waiter(member)) = flight.join() else {
            flights.end(version);
            return Err(LoadError::Busy);
        };
        let Start { load, restart } = start;
        let state = State { flight, load: None, restart, landed: None, wakers: Vec::new() };
        let flight = Arc::new(InFlight {
            key,
            version,
            began_at: cache.clock.now(),
            state: Mutex::new(state),
        });
        let hash = flight.key.hash;
        table.insert_unique(hash, Arc::clone(&flight), |flight| flight.key.hash);
        drop(table);
        let mut ride = Self::new(cache, flight, member, asked_at);
        // Foreign code: after the locks.
        match catch_unwind(AssertUnwindSafe(load)) {
            Ok(load) => ride.load = Some(load),
            Err(_) => ride.panicked(),
        }
        Ok((ride, false))
    }

    fn new(
        cache: &Arc<Inner<K, V>>,
        flight: Arc<InFlight<K, V>>,
        member: Member,
        asked_at: u64,
    ) -> Self {
        Self { cache: Arc::clone(cache), flight, member, asked_at, load: None }
    }

    /// Whether this member began the load or took it over, and has not finished it.
    fn take_baton(&mut self) -> bool {
        let mut state = self.flight.state.lock();
        if state.flight.drives(self.member) {
            self.load = state.load.take();
        }
        self.load.is_some()
    }

    /// The load that this member drove has panicked.
    fn panicked(&mut self) {
        let restart = self.flight.state.lock().restart.take();
        let again = restart.map(|restart| catch_unwind(AssertUnwindSafe(restart)));
        match again {
            Some(Ok(load)) => self.load = Some(load),
            Some(Err(_)) | None => self.finish(Err(LoadError::Panicked)),
        }
    }

    fn finish(&self, result: LoadResult<V>) {
        let InFlight { key, version, began_at, state } = &*self.flight;
        let took = self.cache.clock.now().saturating_sub(*began_at);
        let (answer, entry) = self.cache.judge_load(&key.key, *version, took, result);
        let tags = entry.as_ref().and_then(|entry| entry.extra.clone());
        let is = |other: &K| *other == key.key;
        let probe = Probe { hash: key.hash, is: &is };
        let wakers = {
            let mut table = self.cache.flights.shard(key.hash).lock();
            let mut state = state.lock();
            let may_store = state.flight.finish();
            if may_store {
                if let Ok(found) = table.find_entry(probe.hash, |flight| matches(flight, &probe)) {
                    found.remove();
                }
                if let Some(entry) = entry {
                    self.cache.store_loaded(&probe, key, entry);
                }
            } else {
                self.cache.count_overtaken();
            }
            // After the result was stored: a later invalidation hits the entry itself.
            let is_hit = self.cache.is_hit(*version, tags.as_deref());
            state.landed = Some(Landed { answer, is_hit });
            std::mem::take(&mut state.wakers)
        };
        self.cache.flights.end(*version);
        for (_, waker) in wakers {
            waker.wake();
        }
    }
}

impl<K: Key, V: Value> Future for Ride<K, V> {
    /// `None`: an invalidation that this member must see has hit the result. Ask again.
    type Output = Option<Answer<V>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Ends: each turn takes the load, ends it, or waits.
        loop {
            if let Some(mut load) = self.load.take() {
                match catch_unwind(AssertUnwindSafe(|| load.as_mut().poll(cx))) {
                    Ok(Poll::Pending) => {
                        self.load = Some(load);
                        return Poll::Pending;
                    }
                    Ok(Poll::Ready(result)) => self.finish(result),
                    Err(_) => self.panicked(),
                }
            }
            {
                let mut state = self.flight.state.lock();
                if let Some(landed) = &state.landed {
                    // Who asked before the load began is older than any invalidation of it.
                    let valid = !landed.is_hit || self.asked_at <= self.flight.version;
                    return Poll::Ready(valid.then(|| landed.answer.clone()));
                }
                let member = self.member;
                if !state.flight.drives(member) {
                    state.waker_of(member);
                    state.wakers.push((member, cx.waker().clone()));
                    return Poll::Pending;
                }
            }
            if self.load.is_none() && !self.take_baton() {
                // Whoever drove before is just putting the load back, and will wake this member.
                let mut state = self.flight.state.lock();
                if state.load.is_none() && state.landed.is_none() {
                    let member = self.member;
                    state.waker_of(member);
                    state.wakers.push((member, cx.waker().clone()));
                    return Poll::Pending;
                }
            }
        }
    }
}

impl<K: Key, V: Value> Drop for Ride<K, V> {
    fn drop(&mut self) {
        let load = self.load.take();
        let (waker, action) = {
            let mut state = self.flight.state.lock();
            if state.landed.is_none() && load.is_some() {
                state.load = load;
            }
            state.waker_of(self.member);
            let action = state.flight.leave(self.member);
            let waker = match action {
                Action::Wake(next) => state.waker_of(next),
                Action::Nothing | Action::Abandon => None,
            };
            (waker, action)
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        if action == Action::Abandon {
            self.abandon();
        }
    }
}

impl<K: Key, V: Value> Ride<K, V> {
    /// Nobody waits for the load any more, unless somebody has joined it meanwhile.
    fn abandon(&self) {
        let key = &self.flight.key;
        let is_this = |flight: &Arc<InFlight<K, V>>| Arc::ptr_eq(flight, &self.flight);
        let dropped = {
            let mut table = self.cache.flights.shard(key.hash).lock();
            let mut state = self.flight.state.lock();
            if state.flight.is_driven() || state.landed.is_some() {
                return;
            }
            if let Ok(found) = table.find_entry(key.hash, is_this) {
                found.remove();
            }
            state.flight.overtake();
            (state.load.take(), state.restart.take())
        };
        self.cache.flights.end(self.flight.version);
        // Foreign code: after the locks.
        drop(dropped);
    }
}
