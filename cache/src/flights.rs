//! Loads under way: one for each key, polled by those who wait for it.
//!
//! No task is spawned for a load. Its future lies in the flight; when it can go on, all who wait
//! are woken, and the first that is polled polls it. A member that is dropped, or held without
//! being polled, therefore stops no other.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use hashbrown::HashTable;
use parking_lot::Mutex;

use crate::config::nanos;
use crate::core::flight::Flight;
use crate::error::LoadError;
pub(crate) use crate::load::{Key, LoadFuture, LoadResult, Value};
use crate::lookup::{Inner, Removals};
use crate::remote::through::Asked;
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

/// The answer that each member of a load gets.
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
///
/// Wakers of the load hold it, and what the load waited for may keep a waker long after the load
/// has ended: tokio keeps that of a `yield_now` until the worker has run out of tasks. So it holds
/// a value only while members are to be given it.
pub(crate) struct InFlight<K, V> {
    key: HashedKey<K>,
    /// When it began, in the order of the cache's operations: before the source was asked.
    version: u64,
    /// Least position of an answer of the second level that ends the load: for the sake of a later
    /// position the source may not have been asked. `u64::MAX` without a second level.
    since: u64,
    began_at: u64,
    state: Mutex<State<V>>,
}

struct State<V> {
    flight: Flight,
    /// The future of the load. Invariant: `None` only while a member begins, polls or ends it, and
    /// when it has ended.
    load: Option<LoadFuture<V>>,
    restart: Option<Restart<V>>,
    /// How the load ended, for the members that did not end it. Invariant: `None` without members.
    landed: Option<Arc<Landed<V>>>,
    wakers: Wakers,
}

/// The wakers of those who wait, each in a slot that its member keeps.
#[derive(Default)]
struct Wakers {
    slots: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Wakers {
    /// Registers a member's waker. Returns the member's previous waker, which the caller drops
    /// after it has released the lock.
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
    began: Mutex<Began>,
    max_loads: usize,
}

/// The versions at which the loads under way began. Versions are drawn under the lock, so they are
/// added in their order; those of loads that have ended leave from the front, and are swept out
/// when they are most of all.
#[derive(Debug, Default)]
struct Began {
    /// Invariant: the versions grow. `true`: the load has ended.
    versions: VecDeque<(u64, bool)>,
    under_way: usize,
}

impl Began {
    fn add(&mut self, version: u64) {
        self.versions.push_back((version, false));
        self.under_way += 1;
    }

    fn end(&mut self, version: u64) {
        let Ok(at) = self.versions.binary_search_by_key(&version, |(version, _)| *version) else {
            return;
        };
        if !std::mem::replace(&mut self.versions[at].1, true) {
            self.under_way -= 1;
        }
        while self.versions.front().is_some_and(|(_, has_ended)| *has_ended) {
            self.versions.pop_front();
        }
        if self.versions.len() > 2 * self.under_way + 64 {
            self.versions.retain(|(_, has_ended)| !has_ended);
        }
    }
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
        self.began.lock().under_way as u64
    }

    /// The version at which the oldest load under way began.
    pub(crate) fn oldest(&self) -> Option<u64> {
        // The front has not ended, see `Began::end`.
        self.began.lock().versions.front().map(|(version, _)| *version)
    }

    /// Registers a load that begins now. The version is drawn while `began` is locked, so an
    /// invalidation of a larger version always sees the load.
    fn begin(&self, version: impl FnOnce() -> u64) -> Result<u64, LoadError> {
        let mut began = self.began.lock();
        if began.under_way >= self.max_loads {
            return Err(LoadError::Busy);
        }
        let version = version();
        began.add(version);
        Ok(version)
    }

    fn end(&self, version: u64) {
        self.began.lock().end(version);
    }

    pub(crate) fn find(
        table: &HashTable<Arc<InFlight<K, V>>>,
        probe: &Probe<'_, K>,
    ) -> Option<Arc<InFlight<K, V>>> {
        table.find(probe.hash, |flight| matches(flight, probe)).cloned()
    }

    /// Marks the key's load, if one is under way, as overtaken and removes it from the table: the
    /// next reader begins a new load. The caller holds the lock of the shard, and drops the
    /// returned flight after it has released the lock.
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
    /// Index of this member's waker in `Wakers::slots`. `None` until the member was polled.
    slot: Option<usize>,
    /// The version of the latest operation when this member asked.
    asked_at: u64,
    /// How the load ended, if this member ended it.
    landed: Option<Landed<V>>,
}

/// Nothing in it is pinned: the load's future is in a box of its own.
impl<K: Key, V: Value> Unpin for Ride<K, V> {}

/// How a reader that found no fresh entry gets its answer.
pub(crate) enum Boarded<K: Key, V: Value> {
    /// By the load that this reader has begun.
    Began(Ride<K, V>),
    /// By the load of another reader.
    Joined(Ride<K, V>),
    /// A load has ended since the reader looked.
    Found(Seen<V>),
}

impl<K: Key, V: Value> Ride<K, V> {
    /// Joins the load of the key, or begins it by `start`. `restart` is how it is started again
    /// after a panic.
    pub(crate) fn board(
        cache: &Arc<Inner<K, V>>,
        key: &HashedKey<K>,
        asked: Asked,
        start: impl FnOnce() -> LoadFuture<V>,
        restart: Option<Restart<V>>,
    ) -> Result<Boarded<K, V>, LoadError> {
        let is = |other: &K| *other == key.key;
        let probe = Probe { hash: key.hash, is: &is };
        let flights = &cache.flights;
        let asked_at = cache.version();
        // Dropped after the lock: the answer of a load that has ended is foreign code, and so is a
        // value.
        let (_ended, seen);
        let mut table = flights.shard(key.hash).lock();
        if let Some(flight) = Flights::find(&table, &probe) {
            let joined = flight.state.lock().flight.join();
            if joined {
                drop(table);
                let cache = Arc::clone(cache);
                return Ok(Boarded::Joined(Self {
                    cache,
                    flight,
                    slot: None,
                    asked_at,
                    landed: None,
                }));
            }
            // It has just ended: its result is stored, or was not to be.
            _ended = Some((Flights::overtake(&mut table, &probe), flight));
        }
        // The load that this reader would have joined may have ended since it looked.
        seen = cache.store.get(&probe);
        if let Some(entry) = &seen
            && cache.answers(entry, asked)
        {
            let (value, position) = (entry.value.clone(), entry.position());
            return Ok(Boarded::Found(Seen { value, position }));
        }
        let version = flights.begin(|| cache.next_version())?;
        let mut flight = Flight::default();
        flight.join();
        // Keeps members that join from polling the load before it is stored in the flight.
        flight.take_turn();
        let wakers = Wakers::default();
        let flight = Arc::new(InFlight {
            key: key.clone(),
            version,
            since: if cache.has_level() { asked.since } else { u64::MAX },
            began_at: cache.clock.now(),
            state: Mutex::new(State { flight, load: None, restart, landed: None, wakers }),
        });
        let hash = flight.key.hash;
        table.insert_unique(hash, Arc::clone(&flight), |flight| flight.key.hash);
        drop(table);
        let mut ride =
            Self { cache: Arc::clone(cache), flight, slot: None, asked_at, landed: None };
        // Foreign code: after the locks.
        match catch_unwind(AssertUnwindSafe(start)) {
            Ok(load) => drop(ride.put_back(load, true, None)),
            Err(_) => drop(ride.panicked(None)),
        }
        Ok(Boarded::Began(ride))
    }

    /// Ends this member's turn: stores the load for the next poll. `is_new`: the load has not been
    /// polled yet. `waker`: this member's waker, registered and woken with the others if the load
    /// was woken during the poll. Returns this member's previous waker.
    fn put_back(
        &mut self,
        load: LoadFuture<V>,
        is_new: bool,
        waker: Option<&Waker>,
    ) -> Option<Waker> {
        let mut last = None;
        let wakers = {
            let mut state = self.flight.state.lock();
            state.load = Some(load);
            if let Some(waker) = waker {
                last = state.wakers.set(&mut self.slot, waker);
            }
            if is_new {
                state.flight.wake();
            }
            if state.flight.end_turn() { state.wakers.take_all() } else { Vec::new() }
        };
        wakers.into_iter().for_each(Waker::wake);
        last
    }

    /// The load that this member polled has panicked.
    fn panicked(&mut self, waker: Option<&Waker>) -> Option<Waker> {
        let restart = self.flight.state.lock().restart.take();
        match restart.map(|restart| catch_unwind(AssertUnwindSafe(restart))) {
            Some(Ok(load)) => return self.put_back(load, true, waker),
            Some(Err(_)) | None => self.finish(Err(LoadError::Panicked)),
        }
        None
    }

    /// When the load began, in the order of the cache's operations.
    pub(crate) fn version(&self) -> u64 {
        self.flight.version
    }

    /// Leaves the load to a task, which goes on with it without this member's reader. One task does
    /// so for all readers of the load.
    pub(crate) fn go_on_alone(self) {
        if self.flight.state.lock().flight.begin_task() {
            tokio::spawn(self);
        }
    }

    /// Leaves the load to a task, and has it count as one that failed: readers that are given
    /// another value for it now do not wait for it.
    pub(crate) fn give_up(self) {
        let key = &self.flight.key;
        let mut removed = Removals::default();
        {
            let table = self.cache.flights.shard(key.hash).lock();
            // What is stored after a load was overtaken is not older than the load.
            if table.find(key.hash, |flight| Arc::ptr_eq(flight, &self.flight)).is_some() {
                self.cache.pause_loads(key, &mut removed);
            }
        }
        // Foreign code: after the lock.
        drop(removed);
        self.go_on_alone();
    }

    /// Whether an answer from before this position is certainly the source's own.
    pub(crate) fn asks_source_since(&self, position: u64) -> bool {
        position <= self.flight.since
    }

    /// Ends the load. Where foreign code panics on the way, such as the clone of a value, the load
    /// has: no member may wait for an answer that never lands.
    fn end(&mut self, result: LoadResult<V>) {
        let ended = catch_unwind(AssertUnwindSafe(|| self.finish(result)));
        if ended.is_err() {
            tracing::error!(target: "voussoir::cache", "a clone, hash or drop panicked");
            // Clones neither key nor value.
            self.finish(Err(LoadError::Panicked));
        }
    }

    fn finish(&mut self, result: LoadResult<V>) {
        let InFlight { key, version, began_at, state, .. } = &*self.flight;
        let took = self.cache.clock.now().saturating_sub(*began_at);
        let (answer, entry) = self.cache.judge_load(&key.key, *version, took, result);
        let absent = answer.as_ref().ok().filter(|seen| seen.value.is_none());
        let absent_at = absent.map(|seen| seen.position);
        let has_failed = answer.is_err();
        let is_untagged = entry.is_none() && !has_failed;
        let tags = entry.as_ref().and_then(|entry| entry.extra.clone());
        let is = |other: &K| *other == key.key;
        let probe = Probe { hash: key.hash, is: &is };
        let entry = entry.map(|entry| (key.clone(), entry));
        let own_answer = answer.clone();
        let mut removed = Removals::default();
        let (wakers, is_hit, _others_answer, _restart) = {
            let mut table = self.cache.flights.shard(key.hash).lock();
            let mut state = state.lock();
            let may_store = state.flight.finish();
            if may_store {
                if let Ok(found) = table.find_entry(probe.hash, |flight| matches(flight, &probe)) {
                    found.remove();
                }
                match (entry, absent_at) {
                    (Some((stored_key, entry)), _) => {
                        self.cache.store_loaded(&probe, stored_key, entry, &mut removed);
                    }
                    // An older value must not outlive the answer that there is none.
                    (None, Some(position)) => {
                        self.cache.remove_absent(&probe, position, &mut removed);
                    }
                    (None, None) if has_failed => self.cache.pause_loads(key, &mut removed),
                    (None, None) => {}
                }
            } else {
                self.cache.count_overtaken();
                removed.unstored = entry.map(|(_, entry)| entry);
            }
            // After the result was stored: a later invalidation hits the entry itself. The tags of
            // an answer without an entry are not known.
            let is_hit_by_any = is_untagged && self.cache.tags.any().floor() > *version;
            let is_hit = self.cache.is_hit(*version, tags.as_deref()) || is_hit_by_any;
            let unshared = if state.flight.has_others() {
                state.landed = Some(Arc::new(Landed { answer, is_hit }));
                None
            } else {
                Some(answer)
            };
            (state.wakers.take_all(), is_hit, unshared, state.restart.take())
        };
        self.landed = Some(Landed { answer: own_answer, is_hit });
        self.cache.flights.end(*version);
        // Foreign code: after the locks.
        wakers.into_iter().for_each(Waker::wake);
        drop(removed);
    }
}

impl<K: Key, V: Value> Future for Ride<K, V> {
    /// `None`: the result is older than an invalidation that returned before this member asked. The
    /// member has to ask again.
    type Output = Option<Answer<V>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.landed.is_none() {
            let (landed, load, mut last_waker) = {
                let this = &mut *self;
                let mut state = this.flight.state.lock();
                let landed = state.landed.clone();
                let load = if state.flight.take_turn() { state.load.take() } else { None };
                // The member that polls the load registers its waker when it puts the load back.
                let waits = landed.is_none() && load.is_none();
                let last = if waits { state.wakers.set(&mut this.slot, cx.waker()) } else { None };
                (landed, load, last)
            };
            if let Some(landed) = landed {
                return Poll::Ready(self.judge(&landed));
            }
            if let Some(load) = load {
                last_waker = self.poll_load(load, cx.waker());
            }
            // Foreign code: after the lock.
            drop(last_waker);
        }
        let Some(landed) = self.landed.take() else { return Poll::Pending };
        Poll::Ready(self.judge(&landed))
    }
}

impl<K: Key, V: Value> Drop for Ride<K, V> {
    fn drop(&mut self) {
        let (is_abandoned, waker, landed) = {
            let mut state = self.flight.state.lock();
            let waker = state.wakers.remove(self.slot);
            let is_abandoned = state.flight.leave();
            let landed = if state.flight.is_empty() { state.landed.take() } else { None };
            (is_abandoned, waker, landed)
        };
        if is_abandoned {
            self.abandon();
        }
        // Foreign code: after the lock.
        drop((waker, landed));
    }
}

impl<K: Key, V: Value> Ride<K, V> {
    /// The answer for this member. `None`: an invalidation that came before this member asked has
    /// hit the result.
    fn judge(&self, landed: &Landed<V>) -> Option<Answer<V>> {
        // A member that asked before the load began asked before each invalidation that hit it.
        let is_valid = !landed.is_hit || self.asked_at <= self.flight.version;
        is_valid.then(|| landed.answer.clone())
    }

    /// Polls the load once. If the load was woken during the poll, this member is woken too.
    /// Returns this member's previous waker.
    fn poll_load(&mut self, mut load: LoadFuture<V>, own: &Waker) -> Option<Waker> {
        let waker = Waker::from(Arc::clone(&self.flight));
        let mut cx = Context::from_waker(&waker);
        match catch_unwind(AssertUnwindSafe(|| load.as_mut().poll(&mut cx))) {
            Ok(Poll::Pending) => return self.put_back(load, false, Some(own)),
            Ok(Poll::Ready(result)) => self.end(result),
            Err(_) => return self.panicked(Some(own)),
        }
        None
    }

    /// Drops the load of a flight whose last member has left, unless another reader has joined the
    /// flight since.
    fn abandon(&self) {
        let key = &self.flight.key;
        let is_this = |flight: &Arc<InFlight<K, V>>| Arc::ptr_eq(flight, &self.flight);
        // Readers whose patience a source outlasts would else wait for it one after the other.
        let lasted = self.cache.clock.now().saturating_sub(self.flight.began_at);
        let has_failed = lasted >= nanos(self.cache.config.error_pause) / 4;
        let mut removed = Removals::default();
        let dropped = {
            let mut table = self.cache.flights.shard(key.hash).lock();
            let mut state = self.flight.state.lock();
            if !state.flight.is_abandoned() {
                return;
            }
            if let Ok(found) = table.find_entry(key.hash, is_this) {
                found.remove();
                if has_failed {
                    self.cache.pause_loads(key, &mut removed);
                }
            }
            state.flight.overtake();
            (state.load.take(), state.restart.take())
        };
        self.cache.flights.end(self.flight.version);
        // Foreign code: after the locks.
        drop((dropped, removed));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Loads end in any order: the oldest one is known, in memory for those under way.
        #[test]
        fn the_oldest_load_is_known_in_bounded_memory(
            acts in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..2_000),
        ) {
            let mut began = Began::default();
            let mut model = std::collections::BTreeSet::new();
            for (version, (begins, which)) in (1..).zip(acts) {
                if begins || model.is_empty() {
                    began.add(version);
                    model.insert(version);
                } else {
                    let ends = *which.get(&model.iter().copied().collect::<Vec<u64>>());
                    model.remove(&ends);
                    began.end(ends);
                    began.end(ends);
                }
                let front = began.versions.front().map(|(version, _)| *version);
                prop_assert_eq!(front, model.first().copied());
                prop_assert_eq!(began.under_way, model.len());
                prop_assert!(began.versions.len() <= 2 * began.under_way + 64);
            }
        }
    }
}
