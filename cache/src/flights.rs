//! Loads under way: one for each key, polled by those who wait for it.
//!
//! No task is spawned for a load. Its future lies in the flight; when it can go on, all who wait
//! are woken, and the first that is polled polls it. A member that is dropped, or held without
//! being polled, therefore stops no other.

use std::collections::BTreeSet;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};

use hashbrown::HashTable;
use parking_lot::Mutex;

use crate::core::flight::Flight;
use crate::error::LoadError;
pub(crate) use crate::load::{Key, LoadFuture, LoadResult, Value};
use crate::lookup::{Inner, Removals};
use crate::store::{HashedKey, Probe};

/// Starts a load once more after a panic.
pub(crate) type Restart<V> = Box<dyn FnOnce() -> LoadFuture<V> + Send>;

/// What a source had.
#[derive(Clone)]
pub(crate) struct Seen<V> {
    /// `None`: the source has no value.
    pub(crate) value: Option<V>,
    pub(crate) position: Option<u64>,
}

/// What those who joined a load are given.
pub(crate) type Answer<V> = Result<Seen<V>, LoadError>;

/// How a load ended.
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
    /// Set once, while `state` is locked.
    landed: OnceLock<Landed<V>>,
}

struct State<V> {
    flight: Flight,
    /// The future of the load. Invariant: `None` only while a member begins, polls or ends it, and
    /// when it has ended.
    load: Option<LoadFuture<V>>,
    restart: Option<Restart<V>>,
    wakers: Wakers,
}

/// The wakers of those who wait, each in a slot that its member keeps.
#[derive(Default)]
struct Wakers {
    slots: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Wakers {
    /// Returns the waker before, which is to be dropped without a lock.
    fn set(&mut self, slot: &mut Option<usize>, waker: &Waker) -> Option<Waker> {
        let at = *slot.get_or_insert_with(|| {
            self.free.pop().unwrap_or_else(|| {
                self.slots.push(None);
                self.slots.len() - 1
            })
        });
        match &mut self.slots[at] {
            Some(last) if last.will_wake(waker) => None,
            last => last.replace(waker.clone()),
        }
    }

    fn remove(&mut self, slot: Option<usize>) -> Option<Waker> {
        let at = slot?;
        self.free.push(at);
        self.slots[at].take()
    }

    fn take_all(&mut self) -> Vec<Waker> {
        self.slots.iter_mut().filter_map(Option::take).collect()
    }
}

/// The waker of a load.
impl<K: Key, V: Value> Wake for InFlight<K, V> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let wakers = {
            let mut state = self.state.lock();
            if state.flight.wake() { state.wakers.take_all() } else { Vec::new() }
        };
        wakers.into_iter().for_each(Waker::wake);
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
    /// Returns the flight, which is to be dropped without a lock.
    pub(crate) fn overtake(
        table: &mut HashTable<Arc<InFlight<K, V>>>,
        probe: &Probe<'_, K>,
    ) -> Option<Arc<InFlight<K, V>>> {
        let found = table.find_entry(probe.hash, |flight| matches(flight, probe)).ok()?;
        let (flight, _) = found.remove();
        flight.state.lock().flight.overtake();
        Some(flight)
    }
}

fn matches<K, V>(flight: &InFlight<K, V>, probe: &Probe<'_, K>) -> bool {
    flight.key.hash == probe.hash && (probe.is)(&flight.key.key)
}

/// A member of a flight: a future of the load's answer.
pub(crate) struct Ride<K: Key, V: Value> {
    cache: Arc<Inner<K, V>>,
    flight: Arc<InFlight<K, V>>,
    /// Where its waker is, once it was polled.
    slot: Option<usize>,
    /// The version of the latest operation when this member asked.
    asked_at: u64,
}

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
        // Dropped after the lock: the answer of a load that has ended is foreign code.
        let mut _ended = None;
        let mut table = flights.shard(key.hash).lock();
        if let Some(flight) = Flights::find(&table, &probe) {
            let joined = flight.state.lock().flight.join();
            if joined {
                drop(table);
                return Ok((Self { cache: Arc::clone(cache), flight, slot: None, asked_at }, true));
            }
            // It has just ended: its result is stored, or was not to be.
            _ended = Some((Flights::overtake(&mut table, &probe), flight));
        }
        let version = flights.begin(|| cache.next_version())?;
        let Start { load, restart } = start;
        let mut flight = Flight::default();
        flight.join();
        // Nobody else polls the load before it is there.
        flight.take_turn();
        let wakers = Wakers::default();
        let flight = Arc::new(InFlight {
            key,
            version,
            began_at: cache.clock.now(),
            state: Mutex::new(State { flight, load: None, restart, wakers }),
            landed: OnceLock::new(),
        });
        let hash = flight.key.hash;
        table.insert_unique(hash, Arc::clone(&flight), |flight| flight.key.hash);
        drop(table);
        let ride = Self { cache: Arc::clone(cache), flight, slot: None, asked_at };
        // Foreign code: after the locks.
        match catch_unwind(AssertUnwindSafe(load)) {
            Ok(load) => ride.put_back(load, true),
            Err(_) => ride.panicked(),
        }
        Ok((ride, false))
    }

    /// Ends this member's turn. `is_new`: nobody has polled the load yet.
    fn put_back(&self, load: LoadFuture<V>, is_new: bool) {
        let wakers = {
            let mut state = self.flight.state.lock();
            state.load = Some(load);
            if is_new {
                state.flight.wake();
            }
            if state.flight.end_turn() { state.wakers.take_all() } else { Vec::new() }
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The load that this member polled has panicked.
    fn panicked(&self) {
        let restart = self.flight.state.lock().restart.take();
        match restart.map(|restart| catch_unwind(AssertUnwindSafe(restart))) {
            Some(Ok(load)) => self.put_back(load, true),
            Some(Err(_)) | None => self.finish(Err(LoadError::Panicked)),
        }
    }

    /// When the load began, in the order of the cache's operations.
    pub(crate) fn version(&self) -> u64 {
        self.flight.version
    }

    fn finish(&self, result: LoadResult<V>) {
        let InFlight { key, version, began_at, state, landed } = &*self.flight;
        let took = self.cache.clock.now().saturating_sub(*began_at);
        let (answer, entry) = self.cache.judge_load(&key.key, *version, took, result);
        let absent = answer.as_ref().ok().filter(|seen| seen.value.is_none());
        let absent_at = absent.map(|seen| seen.position);
        let tags = entry.as_ref().and_then(|entry| entry.extra.clone());
        let is = |other: &K| *other == key.key;
        let probe = Probe { hash: key.hash, is: &is };
        let stored_key = key.clone();
        let mut removed = Removals::default();
        let wakers = {
            let mut table = self.cache.flights.shard(key.hash).lock();
            let mut state = state.lock();
            let may_store = state.flight.finish();
            if may_store {
                if let Ok(found) = table.find_entry(probe.hash, |flight| matches(flight, &probe)) {
                    found.remove();
                }
                match (entry, absent_at) {
                    (Some(entry), _) => {
                        self.cache.store_loaded(&probe, stored_key, entry, &mut removed);
                    }
                    // An older value must not outlive the answer that there is none.
                    (None, Some(position)) => {
                        self.cache.remove_absent(&probe, position, &mut removed);
                    }
                    (None, None) => {}
                }
            } else {
                self.cache.count_overtaken();
                removed.unstored = entry;
            }
            // After the result was stored: a later invalidation hits the entry itself.
            let is_hit = self.cache.is_hit(*version, tags.as_deref());
            // Only who polled the load ends it, once.
            let _ = landed.set(Landed { answer, is_hit });
            state.wakers.take_all()
        };
        self.cache.flights.end(*version);
        // Foreign code: after the locks.
        wakers.into_iter().for_each(Waker::wake);
        drop(removed);
    }
}

impl<K: Key, V: Value> Future for Ride<K, V> {
    /// `None`: an invalidation that this member must see has hit the result. Ask again.
    type Output = Option<Answer<V>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { flight, slot, .. } = &mut *self;
        if flight.landed.get().is_none() {
            let (load, _last_waker) = {
                let mut state = flight.state.lock();
                // Before the load is polled: a wake during the poll is for this member too.
                let last = state.wakers.set(slot, cx.waker());
                (if state.flight.take_turn() { state.load.take() } else { None }, last)
            };
            if let Some(load) = load {
                self.poll_load(load);
            }
        }
        let Some(landed) = self.flight.landed.get() else { return Poll::Pending };
        // Who asked before the load began is older than any invalidation of it.
        let valid = !landed.is_hit || self.asked_at <= self.flight.version;
        Poll::Ready(valid.then(|| landed.answer.clone()))
    }
}

impl<K: Key, V: Value> Drop for Ride<K, V> {
    fn drop(&mut self) {
        let (is_abandoned, waker) = {
            let mut state = self.flight.state.lock();
            let waker = state.wakers.remove(self.slot);
            (state.flight.leave(), waker)
        };
        if is_abandoned {
            self.abandon();
        }
        // Foreign code: after the lock.
        drop(waker);
    }
}

impl<K: Key, V: Value> Ride<K, V> {
    /// Polls the load once. If it was woken meanwhile, so was this member.
    fn poll_load(&self, mut load: LoadFuture<V>) {
        let waker = Waker::from(Arc::clone(&self.flight));
        let mut cx = Context::from_waker(&waker);
        match catch_unwind(AssertUnwindSafe(|| load.as_mut().poll(&mut cx))) {
            Ok(Poll::Pending) => self.put_back(load, false),
            Ok(Poll::Ready(result)) => self.finish(result),
            Err(_) => self.panicked(),
        }
    }

    /// Nobody waits for the load any more, unless somebody has joined it meanwhile.
    fn abandon(&self) {
        let key = &self.flight.key;
        let is_this = |flight: &Arc<InFlight<K, V>>| Arc::ptr_eq(flight, &self.flight);
        let dropped = {
            let mut table = self.cache.flights.shard(key.hash).lock();
            let mut state = self.flight.state.lock();
            if !state.flight.is_abandoned() {
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
