//! What all handles of a cache share: finding entries, judging them, and storing what was loaded.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::behind::Behind;
use crate::clock::Clock;
use crate::config::{Config, nanos};
use crate::core::freshness::{Freshness, Lifetimes};
use crate::core::random::Random;
use crate::flights::{Answer, Flights, Key, LoadResult, Seen, Value};
use crate::insert::Kept;
use crate::remote::Remote;
use crate::remote::through::Asked;
use crate::source::{HeldEntry, Loaded, Loader, Sink};
use crate::stats::{Counters, Latencies, count};
use crate::store::{Entry, Extra, HashedKey, Probe, Removed, SourceVersion, Store, Weigher};
use crate::tags::Tags;

/// Derives tags from a key, such as the prefix that it shares with others.
pub(crate) type Tagger<K> = Arc<dyn Fn(&K) -> Vec<String> + Send + Sync>;

pub(crate) struct Inner<K: Key, V: Value> {
    pub(crate) config: Config,
    pub(crate) lifetimes: Lifetimes,
    pub(crate) idle: Option<u64>,
    pub(crate) store: Arc<dyn Store<K, V>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) loader: Option<Loader<K, V>>,
    /// Entries that have expired stay in the store: the source is asked about their values.
    keeps_expired: bool,
    pub(crate) sink: Option<Arc<dyn Sink<K, V>>>,
    pub(crate) writes: crate::write::Writes<K>,
    pub(crate) behind: Option<Behind<K, V>>,
    pub(crate) weigher: Option<Weigher<K, V>>,
    pub(crate) tagger: Option<Tagger<K>>,
    pub(crate) remote: Option<Remote<K, V>>,
    pub(crate) tags: Tags,
    pub(crate) flights: Flights<K, V>,
    pub(crate) hasher: foldhash::fast::RandomState,
    pub(crate) random: Random,
    pub(crate) counters: Counters,
    pub(crate) latencies: Latencies,
    /// The version of the latest operation. Versions order loads, inserts and invalidations.
    version: AtomicU64,
    /// Entries of a lower version are invalid: raised by `clear`.
    generation: AtomicU64,
    /// Loads of a lower version are not stored: raised when too many tags were invalidated.
    loads_floor: AtomicU64,
    /// No write is taken any more.
    pub(crate) is_draining: AtomicBool,
    /// Nothing is stored or loaded any more. Set before the last `clear`.
    pub(crate) is_closed: AtomicBool,
}

/// Keys and values that a change removed from the store or did not store. Their `Drop` is foreign
/// code: the caller drops them after it has released its locks.
pub(crate) struct Removals<K, V> {
    pub(crate) stored: Vec<Removed<K, V>>,
    pub(crate) unstored: Option<Entry<V>>,
    /// A copy of the entry that was looked at.
    pub(crate) seen: Option<Entry<V>>,
}

impl<K, V> Default for Removals<K, V> {
    fn default() -> Self {
        Self { stored: Vec::new(), unstored: None, seen: None }
    }
}

/// What a reader found.
pub(crate) enum Found<V> {
    /// Serve it.
    Value(Option<V>),
    /// Serve it, and load it again in the background, unless that has been done since: the version
    /// of the entry.
    Old(Option<V>, u64),
    /// Load; where that fails, serve [`Inner::instead_of_error`].
    IfError(LastLoad),
    Nothing,
}

impl<V> Found<V> {
    fn served(entry: Entry<V>, refresh: bool) -> Self {
        if refresh { Self::Old(entry.value, entry.version) } else { Self::Value(entry.value) }
    }
}

/// How the last load of a key ended that has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastLoad {
    Succeeded,
    /// It failed less than [`Config::error_pause`] ago.
    JustFailed,
    /// It failed, and may be tried again.
    Failed,
}

impl LastLoad {
    fn of(extra: Option<&Extra>, now: u64) -> Self {
        match extra.map_or(0, |extra| extra.retry_at.load(Ordering::Relaxed)) {
            0 => Self::Succeeded,
            retry_at if now < retry_at => Self::JustFailed,
            _ => Self::Failed,
        }
    }
}

impl<K: Key, V: Value> Inner<K, V> {
    pub(crate) fn new(parts: crate::cache::Parts<K, V>) -> Self {
        let config = parts.config;
        let seed =
            config.seed.unwrap_or_else(|| foldhash::fast::RandomState::default().hash_one(0));
        let has_sink = parts.sink.is_some();
        let level = parts.remote.as_ref().and_then(|remote| remote.level.as_ref());
        let longest = level.map(|level| level.ttl());
        Self {
            lifetimes: Lifetimes::new(&config, longest),
            idle: config.tti.map(nanos),
            store: parts.store,
            clock: parts.clock,
            keeps_expired: parts.loader.as_ref().is_some_and(Loader::is_conditional),
            loader: parts.loader,
            sink: parts.sink,
            writes: crate::write::Writes::new(has_sink),
            behind: parts.behind,
            weigher: parts.weigher,
            tagger: parts.tagger,
            remote: parts.remote,
            tags: Tags::new(config.max_tag_floors),
            flights: Flights::new(config.max_loads),
            hasher: foldhash::fast::RandomState::default(),
            random: Random::new(seed),
            counters: Counters::default(),
            latencies: Latencies::default(),
            version: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            loads_floor: AtomicU64::new(0),
            is_draining: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            config,
        }
    }

    pub(crate) fn has_level(&self) -> bool {
        self.remote.as_ref().is_some_and(|remote| remote.level.is_some())
    }

    pub(crate) fn next_version(&self) -> u64 {
        self.version.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The version of the latest operation.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether an invalidation, by tag or of everything, has hit what was loaded from `version` on.
    pub(crate) fn is_hit(&self, version: u64, extra: Option<&Extra>) -> bool {
        version < self.generation.load(Ordering::Acquire)
            || version < self.loads_floor.load(Ordering::Acquire)
            || extra.is_some_and(|extra| extra.is_invalid(version))
    }

    #[inline]
    pub(crate) fn hash<Q: Hash + ?Sized>(&self, key: &Q) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Finds and judges the entry of a key.
    #[inline]
    pub(crate) fn find<Q>(&self, key: &Q) -> Found<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if let Some(behind) = &self.behind
            && let Some(value) = behind.0.get(key)
        {
            self.counters.hits.add();
            return Found::Value(value);
        }
        let is = |other: &K| other.borrow() == key;
        let probe = Probe { hash: self.hash(key), is: &is };
        let Some(entry) = self.store.get(&probe) else {
            count(&self.counters.misses);
            return Found::Nothing;
        };
        let now = self.clock.now();
        let is_live = entry.version >= self.generation.load(Ordering::Acquire);
        if is_live && now < entry.look_at {
            self.counters.hits.add();
            return Found::Value(entry.value);
        }
        self.judge(&probe, entry, is_live, now)
    }

    /// The rest of [`find`](Self::find), for entries that need a closer look. Not inlined: it would
    /// cost every hit registers.
    #[inline(never)]
    fn judge(&self, probe: &Probe<'_, K>, entry: Entry<V>, is_live: bool, now: u64) -> Found<V> {
        let idle_over = |extra: &Extra| {
            let idle = self.idle.unwrap_or(u64::MAX);
            now.saturating_sub(extra.read_at()) >= idle
        };
        let extra = entry.extra.as_deref();
        let invalid = !is_live || extra.is_some_and(|extra| extra.is_invalid(entry.version));
        let judged = if invalid || extra.is_some_and(idle_over) {
            Freshness::Gone
        } else {
            self.lifetimes.judge(&entry.times(), now, &self.random)
        };
        if let Some(extra) = extra
            && self.idle.is_some()
            && judged != Freshness::Gone
        {
            extra.read_at.fetch_max(now, Ordering::Relaxed);
        }
        let last = LastLoad::of(extra, now);
        match judged {
            Freshness::Fresh | Freshness::Refresh => {
                self.counters.hits.add();
                let refresh = judged == Freshness::Refresh && last != LastLoad::JustFailed;
                Found::served(entry, refresh)
            }
            Freshness::Revalidate => {
                count(&self.counters.stale_served);
                Found::served(entry, last != LastLoad::JustFailed)
            }
            Freshness::IfError => {
                count(&self.counters.misses);
                Found::IfError(last)
            }
            Freshness::Gone => {
                count(&self.counters.misses);
                if (invalid || !self.keeps_expired)
                    && self.store.remove_version(probe, entry.version).is_some()
                {
                    let counters = &self.counters;
                    let is_idle = || extra.is_some_and(idle_over) && now < entry.times().end;
                    count(match invalid {
                        true => &counters.invalidated,
                        false if is_idle() => &counters.idle,
                        false => &counters.expired,
                    });
                }
                Found::Nothing
            }
        }
    }

    /// What a reader is given whose load has failed: what the cache has now, and not what it had
    /// before the load, which may have been invalidated or replaced since. Nothing from before the
    /// source's position `since`.
    pub(crate) fn instead_of_error<Q>(&self, key: &Q, since: u64) -> Option<Seen<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if let Some(behind) = &self.behind
            && let Some(value) = behind.0.get(key)
        {
            return Some(Seen { value, position: None });
        }
        let is = |other: &K| other.borrow() == key;
        let entry = self.store.get(&Probe { hash: self.hash(key), is: &is })?;
        let (position, now) = (entry.position(), self.clock.now());
        let valid = |extra: &Extra| !extra.is_invalid(entry.version);
        let may_serve = entry.version >= self.generation.load(Ordering::Acquire)
            && entry.extra.as_deref().is_none_or(valid)
            && self.lifetimes.may_serve_on_error(&entry.times(), now)
            && position.unwrap_or(0) >= since;
        if !may_serve {
            return None;
        }
        if now >= entry.times().end {
            count(&self.counters.stale_served);
        }
        Some(Seen { value: entry.value, position })
    }

    /// A load of the key has failed: what the cache has of it is served without another one for
    /// [`Config::error_pause`]. The caller holds the key's shard of the flights, and drops the
    /// removals after it.
    pub(crate) fn pause_loads(&self, key: &HashedKey<K>, removed: &mut Removals<K, V>) {
        if self.config.error_pause.is_zero() {
            return;
        }
        // Keys and values are cloned. Where that panics there is no pause.
        let paused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let is = |other: &K| *other == key.key;
            let entry = self.store.get(&Probe { hash: key.hash, is: &is })?;
            let now = self.clock.now();
            let retry_at = now.saturating_add(nanos(self.config.error_pause));
            if let Some(extra) = &entry.extra {
                extra.retry_at.fetch_max(retry_at, Ordering::Relaxed);
            } else if self.lifetimes.may_serve(&entry.times(), now) {
                let extra = Extra::plain(entry.times(), now, retry_at);
                let paused = Entry { extra: Some(Arc::new(extra)), ..entry.clone() };
                removed.stored = self.store.insert(key.clone(), paused);
            }
            Some(entry)
        }));
        removed.seen = paused.ok().flatten();
    }

    /// Whether an entry is fresh and valid. Unlike [`judge`](Self::judge) this counts nothing,
    /// removes nothing and does not renew the idle time.
    pub(crate) fn is_fresh(&self, entry: &Entry<V>) -> bool {
        let now = self.clock.now();
        let extra = entry.extra.as_deref();
        let idle = self.idle.unwrap_or(u64::MAX);
        now < entry.times().end
            && entry.version >= self.generation.load(Ordering::Acquire)
            && extra.is_none_or(|extra| {
                !extra.is_invalid(entry.version) && now.saturating_sub(extra.read_at()) < idle
            })
    }

    /// Whether an entry is what a load was asked for: `asked` says what else it has to be.
    pub(crate) fn answers(&self, entry: &Entry<V>, asked: Asked) -> bool {
        match asked.refreshes {
            Some(version) => {
                let last = LastLoad::of(entry.extra.as_deref(), self.clock.now());
                entry.version != version || last == LastLoad::JustFailed
            }
            None => entry.position().unwrap_or(0) >= asked.since && self.is_fresh(entry),
        }
    }

    /// The tags that the tagger, which is foreign code, derives from a key. `None` if it panicked.
    pub(crate) fn derive_tags(&self, key: &K) -> Option<Vec<String>> {
        let Some(tagger) = &self.tagger else { return Some(Vec::new()) };
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| tagger(key))).ok()
    }

    /// Makes an answer for the members of a load, and an entry of what is to be stored. Runs
    /// foreign code (weigher, tagger), so no lock is held.
    pub(crate) fn judge_load(
        &self,
        key: &K,
        version: u64,
        took: u64,
        result: LoadResult<V>,
    ) -> (Answer<V>, Option<Entry<V>>) {
        match result {
            Ok(loaded) => {
                self.counters.load_nanos.fetch_add(took, Ordering::Relaxed);
                self.latencies.record(took);
                let made = self.entry(key, version, took, &loaded, None);
                let seen = match loaded {
                    Loaded::Value { value, position, .. } => Seen { value: Some(value), position },
                    Loaded::Absent { position } => Seen { value: None, position },
                };
                // A weigher or tagger that panics costs the entry, not the answer.
                (Ok(seen), made)
            }
            Err(error) => {
                count(&self.counters.load_failures);
                (Err(error), None)
            }
        }
    }

    /// The entry of a value, which was loaded, inserted or, with `written`, written. `None`: it is
    /// not to be stored.
    pub(crate) fn entry(
        &self,
        key: &K,
        version: u64,
        took: u64,
        loaded: &Loaded<V>,
        written: Option<&Kept>,
    ) -> Option<Entry<V>> {
        // Read after `version` was drawn: an entry that does not see it is hit by the last `clear`.
        if self.is_closed.load(Ordering::Acquire) {
            return None;
        }
        let now = self.clock.now();
        let (value, ttl, names, source_version, position) = match loaded {
            Loaded::Value { value, ttl, tags, version, position } => {
                (Some(value.clone()), *ttl, tags.as_slice(), *version, *position)
            }
            Loaded::Absent { position } if self.lifetimes.remembers_absence() => {
                (None, None, &[][..], None, *position)
            }
            Loaded::Absent { .. } => return None,
        };
        let foreign = || {
            let weight = match (&self.weigher, &value) {
                (Some(weigher), Some(value)) => weigher(key, value),
                _ => 1,
            };
            (weight, self.derive_tags(key))
        };
        let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(foreign));
        let Ok((weight, Some(derived))) = made else {
            tracing::error!(target: "voussoir::cache", "the weigher or the tagger panicked");
            return None;
        };
        let own = ttl.map(nanos);
        let mut times = self.lifetimes.times(now, value.is_none(), own, took, &self.random);
        if let Some(remote) = &self.remote {
            let longest = remote.max_ttl();
            if longest == 0 {
                return None;
            }
            times = times.until(now.saturating_add(longest));
        }
        // Neither a write nor the absence of a value tells the tags that the source would give it.
        let has_any = value.is_none() || written.is_some_and(|kept| kept.with.is_none());
        let above = written.and_then(|kept| kept.above).map(SourceVersion::Above);
        let source_version = source_version.map(SourceVersion::At).or(above);
        let has_tags = has_any || !names.is_empty() || !derived.is_empty();
        let is_judged_always = has_tags || self.idle.is_some();
        // What comes from the second level has the rest of a lifetime and not its own.
        let own_ttl = ttl.filter(|_| self.keeps_expired && !self.has_level());
        let has_extra = is_judged_always
            || !times.is_plain()
            || source_version.is_some()
            || position.is_some()
            || own_ttl.is_some();
        let extra = has_extra.then(|| {
            let names = names.iter().chain(&derived).map(String::as_str);
            let tags = if has_tags { self.tags.intern(names, has_any) } else { Box::default() };
            let plain = Extra::plain(times, now, 0);
            Arc::new(Extra { tags, source_version, position, own_ttl, ..plain })
        });
        let look_at = if is_judged_always { 0 } else { times.look_at };
        // Sums of weights stay far from overflow.
        let weight = weight.clamp(1, self.config.max_weight.saturating_add(1).min(1 << 62));
        Some(Entry { value, version, look_at, weight, extra })
    }

    /// Stores the result of a load that no write of its key has overtaken. The caller holds the
    /// key's shard of the flights, and drops the removals after it.
    pub(crate) fn store_loaded(
        &self,
        probe: &Probe<'_, K>,
        key: HashedKey<K>,
        entry: Entry<V>,
        removed: &mut Removals<K, V>,
    ) {
        if self.is_hit(entry.version, entry.extra.as_deref()) {
            self.count_overtaken();
            removed.unstored = Some(entry);
        } else if self.is_outdated(probe, &entry, removed) {
            removed.unstored = Some(entry);
        } else {
            removed.stored = self.store.insert(key, entry);
        }
    }

    /// Whether a fresh stored entry has a larger version of the source's own, or was read at a
    /// later position of the source. One that has expired is no obstacle: a row that was deleted
    /// and inserted again counts its versions anew.
    fn is_outdated(
        &self,
        probe: &Probe<'_, K>,
        entry: &Entry<V>,
        removed: &mut Removals<K, V>,
    ) -> bool {
        let own = entry.source_version().and_then(SourceVersion::known);
        if own.is_none() && entry.position().is_none() {
            return false;
        }
        removed.seen = self.store.get(probe);
        let Some(stored) = &removed.seen else { return false };
        let newer = |(stored, own): (SourceVersion, u64)| stored.is_newer_than(own);
        let later = |(stored, own): (u64, u64)| stored > own;
        self.is_fresh(stored)
            && (stored.source_version().zip(own).is_some_and(newer)
                || stored.position().zip(entry.position()).is_some_and(later))
    }

    /// The source has no value, as of `position`, and that is not remembered: an older one is
    /// dropped. The caller holds the key's shard of the flights, and drops the removals after it.
    pub(crate) fn remove_absent(
        &self,
        probe: &Probe<'_, K>,
        position: Option<u64>,
        removed: &mut Removals<K, V>,
    ) {
        removed.seen = position.and_then(|_| self.store.get(probe));
        let stored = removed.seen.as_ref().and_then(Entry::position);
        if stored <= position
            && let Some(entry) = self.store.remove(probe)
        {
            count(&self.counters.invalidated);
            removed.stored.push(entry);
        }
    }

    /// The value of a key that may be asked about, though it may have expired. Not one that was
    /// invalidated.
    pub(crate) fn held(&self, key: &K) -> Option<HeldEntry<V>> {
        if !self.keeps_expired {
            return None;
        }
        let is = |other: &K| other == key;
        let entry = self.store.get(&Probe { hash: self.hash(key), is: &is })?;
        let extra = entry.extra.as_deref();
        if entry.version < self.generation.load(Ordering::Acquire)
            || extra.is_some_and(|extra| extra.is_invalid(entry.version))
        {
            return None;
        }
        let tags = extra.map_or(&[][..], |extra| &extra.tags);
        if tags.iter().any(|tag| Arc::ptr_eq(tag, self.tags.any())) {
            // "Not modified" would not tell its tags, and a load does.
            return None;
        }
        Some(HeldEntry {
            value: entry.value?,
            version: extra.and_then(|extra| extra.source_version?.known()),
            ttl: extra.and_then(|extra| extra.own_ttl),
            tags: tags.iter().map(|tag| tag.name().to_owned()).collect(),
        })
    }

    /// As [`find`](Self::find), but an entry from before `position` is not found. Also the position
    /// of what was found.
    pub(crate) fn find_since<Q>(&self, key: &Q, position: u64) -> (Found<V>, Option<u64>)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if let Some(behind) = &self.behind
            && let Some(value) = behind.0.get(key)
        {
            self.counters.hits.add();
            return (Found::Value(value), None);
        }
        let is = |other: &K| other.borrow() == key;
        let probe = Probe { hash: self.hash(key), is: &is };
        let entry = self.store.get(&probe);
        let Some(entry) = entry.filter(|entry| entry.position().unwrap_or(0) >= position) else {
            count(&self.counters.misses);
            return (Found::Nothing, None);
        };
        let found_at = entry.position();
        let is_live = entry.version >= self.generation.load(Ordering::Acquire);
        (self.judge(&probe, entry, is_live, self.clock.now()), found_at)
    }

    pub(crate) fn count_overtaken(&self) {
        count(&self.counters.overtaken);
    }

    /// Makes everything invalid that is in the cache or being loaded.
    pub(crate) fn clear(&self) {
        let version = self.next_version();
        self.generation.fetch_max(version, Ordering::AcqRel);
        // Only frees memory: the raised generation has made the entries invalid. An entry that was
        // stored after that may be dropped with them, which costs a load.
        self.store.clear();
    }

    pub(crate) fn invalidate_tag(&self, tag: &str) {
        let version = self.next_version();
        if !self.tags.invalidate(tag, version, || self.flights.oldest()) {
            self.loads_floor.fetch_max(version, Ordering::AcqRel);
        }
    }

    /// Tells the second level and the other processes, if there are any, that a key was changed
    /// here. Must be called before this cache is changed. `again`: the entry that is in this cache
    /// afterwards may come from the old value in the second level, and is dropped once more after
    /// the second level has dropped that value.
    pub(crate) fn tell(&self, key: &K, again: bool) {
        if let Some(remote) = &self.remote {
            remote.tell(remote.key(key), again);
        }
    }

    /// Drops the entry of a key, and keeps the result of a load under way from being stored.
    pub(crate) fn invalidate(&self, probe: &Probe<'_, K>) {
        let removed = {
            let mut table = self.flights.shard(probe.hash).lock();
            let overtaken = Flights::overtake(&mut table, probe);
            self.writes.overtake(probe.hash);
            (self.store.remove(probe), overtaken)
        };
        if removed.0.is_some() {
            count(&self.counters.invalidated);
        }
        // Foreign code: after the lock.
        drop(removed);
    }

    /// Stores a value and keeps the result of a load under way from replacing it. Whether it was
    /// stored: not if the stored one has a larger version of the source's own, or if it is too
    /// heavy.
    pub(crate) fn insert(&self, key: HashedKey<K>, entry: Entry<V>) -> bool {
        let (stored_key, version) = (key.clone(), entry.version);
        let is = |other: &K| *other == key.key;
        let probe = Probe { hash: key.hash, is: &is };
        let mut removed = Removals::default();
        let overtaken = {
            let mut table = self.flights.shard(key.hash).lock();
            if self.is_outdated(&probe, &entry, &mut removed) {
                return false;
            }
            self.writes.overtake(key.hash);
            removed.stored = self.store.insert(stored_key, entry);
            Flights::overtake(&mut table, &probe)
        };
        // An entry that is too heavy for the store leaves it at once.
        let is_kept = removed.stored.iter().all(|(_, entry)| entry.version != version);
        // Foreign code: after the lock.
        drop((removed, overtaken));
        is_kept
    }

    /// Stores a value that the sink has taken, unless what invalidates or replaces it came since
    /// its write began, with `began` of [`Writes::began`](crate::write::Writes::began). Returns
    /// false if the key's entry may be older than the source's value, and has to be dropped.
    pub(crate) fn insert_written(&self, key: HashedKey<K>, entry: Entry<V>, began: u64) -> bool {
        let stored_key = key.clone();
        let is = |other: &K| *other == key.key;
        let probe = Probe { hash: key.hash, is: &is };
        let version = entry.version;
        let mut removed = Removals::default();
        let (is_overtaken, flight) = {
            let mut table = self.flights.shard(key.hash).lock();
            // Of each tag: those that the value will carry may have been forgotten meanwhile.
            let is_overtaken = self.writes.began(key.hash) != began
                || self.tags.any().floor() > version
                || self.is_hit(version, entry.extra.as_deref());
            if is_overtaken || self.is_outdated(&probe, &entry, &mut removed) {
                removed.unstored = Some(entry);
            } else {
                removed.stored = self.store.insert(stored_key, entry);
            }
            (is_overtaken, Flights::overtake(&mut table, &probe))
        };
        let is_kept =
            !is_overtaken && removed.stored.iter().all(|(_, entry)| entry.version != version);
        // Foreign code: after the lock.
        drop((removed, flight));
        is_kept
    }
}
