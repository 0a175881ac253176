//! The handle that users hold, and how it is built.

use std::borrow::Borrow;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::task::unconstrained;
use tokio::time::{sleep, timeout};

use crate::behind::{Behind, RejectedWrite, WriteBehind};
use crate::clock::{Clock, default_clock};
use crate::codec::Codec;
use crate::config::{Config, OnPanic};
use crate::core::peers::Invalidation;
use crate::error::{ConfigError, LoadError, WriteError};
use crate::flights::{Answer, Boarded, Key, LoadFuture, Restart, Ride, Seen, Value};
use crate::insert::Insert;
use crate::lookup::{Found, Inner, LastLoad, Tagger};
use crate::remote::bus::{Bus, BusConfig};
use crate::remote::level::{LevelConfig, SecondLevel};
use crate::remote::through::Asked;
use crate::remote::{Remote, RemoteParts, tasks};
use crate::source::{ConditionalSource, Loaded, Loader, Sink, Source};
use crate::stats::{LoadLatency, Stats, count};
use crate::store::{HashedKey, Probe, QuickStore, Store, Weigher};

/// A cache in front of a source. Clones are handles to the same cache.
///
/// # Example
/// ```
/// use voussoir_cache::{Cache, Loaded};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cache: Cache<String, u64> = Cache::builder().build()?;
/// let length = cache.get_or_load_with("key", |key| async move {
///     Ok(Loaded::value(key.len() as u64)) // once, however many ask at the same time
/// });
/// assert_eq!(length.await?, Some(3));
/// assert_eq!(cache.get("key"), Some(3));
/// cache.invalidate("key");
/// assert_eq!(cache.get("key"), None);
/// # Ok(())
/// # }
/// ```
pub struct Cache<K: Key, V: Value> {
    pub(crate) inner: Arc<Inner<K, V>>,
}

impl<K: Key, V: Value> Cache<K, V> {
    /// A cache with defaults for everything but what is said to the builder.
    pub fn builder() -> Builder<K, V> {
        Builder::new()
    }

    /// The value of a key, if it is in the cache and fresh, or has expired and
    /// [`Config::stale_while_revalidate`] still allows it. `None` also where it is remembered that
    /// the source has no value. Loads nothing and refreshes nothing.
    #[inline]
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        match self.inner.find(key) {
            Found::Value(value) | Found::Old(value, _) => value,
            Found::IfError(_) | Found::Nothing => None,
        }
    }

    /// The value of a key, loaded from the source when it is not in the cache: read-through.
    /// `None` where the source has no value.
    ///
    /// Those who ask for one key at the same time share one load, and each is given the outcome of
    /// the load that it joined. A load that began before an invalidation of its key, tag or
    /// everything answers those who joined it before, and is not stored.
    ///
    /// # Errors
    /// [`LoadError`], unless [`Config::stale_if_error`] allows an older value.
    ///
    /// # Cancel safety
    /// Cancel safe: another reader goes on with the load; without one it is dropped.
    pub async fn get_or_load<Q>(&self, key: &Q) -> Result<Option<V>, LoadError>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let found = self.inner.find(key);
        if let Found::Value(value) = found {
            return Ok(value);
        }
        // In a box: the future of a hit stays small.
        Ok(Box::pin(self.resolve_from_source(key, found, 0)).await?.value)
    }

    /// The value of a key, loaded by `load` when it is not in the cache: cache-aside. Otherwise as
    /// [`get_or_load`](Self::get_or_load).
    ///
    /// # Errors
    /// [`LoadError`], unless [`Config::stale_if_error`] allows an older value.
    ///
    /// # Cancel safety
    /// Cancel safe: another reader goes on with the load; without one it is dropped.
    pub async fn get_or_load_with<Q, F, L>(&self, key: &Q, load: F) -> Result<Option<V>, LoadError>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        F: Fn(K) -> L + Send + Sync + 'static,
        L: Future<Output = Result<Loaded<V>, LoadError>> + Send + 'static,
    {
        let found = self.inner.find(key);
        if let Found::Value(value) = found {
            return Ok(value);
        }
        let load = move |key: K| -> LoadFuture<V> { Box::pin(load(key)) };
        Ok(Box::pin(self.resolve(key, found, 0, load)).await?.value)
    }

    /// Stores a value. A load of the key that is under way does not replace it. Whether it was
    /// stored: not where it is too heavy, see [`Config::max_entry_weight`], or the weigher
    /// panicked. An older value does not stay then.
    pub fn insert(&self, key: K, value: V) -> bool {
        self.insert_with(key, value, Insert::default())
    }

    /// Stores a value with a lifetime, tags or a version of its own. Whether it was stored: as
    /// [`insert`](Self::insert), and not where a fresh entry has a larger version of the source's
    /// own or a later position.
    pub fn insert_with(&self, key: K, value: V, with: Insert) -> bool {
        let Insert { ttl, tags, version, position } = with;
        let loaded = Loaded::Value { value, ttl, tags, version, position };
        let at = self.inner.next_version();
        let key = HashedKey { hash: self.inner.hash(&key), key };
        let entry = self.inner.entry(&key.key, at, 0, &loaded, None);
        self.inner.tell(&key.key, entry.is_none());
        if let Some(entry) = entry {
            return self.inner.insert(key, entry);
        }
        // The older value must not stay.
        let is = |other: &K| *other == key.key;
        self.inner.invalidate(&Probe { hash: key.hash, is: &is });
        false
    }

    /// Drops the entry of a key. A load of it that is under way answers those who wait for it and
    /// is not stored; who asks from now on begins a new one. A value that write-behind has
    /// acknowledged and not yet flushed stays: it is the newest there is.
    ///
    /// Call it after the transaction that changed the value has committed: before that, a reader
    /// would load the old value again.
    pub fn invalidate<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if self.inner.remote.is_some() {
            self.inner.tell(&key.to_owned(), true);
        }
        let is = |other: &K| other.borrow() == key;
        self.inner.invalidate(&Probe { hash: self.inner.hash(key), is: &is });
    }

    /// Makes all entries with this tag invalid, and the results of loads under way that will carry
    /// it. Costs the same whatever their number; they leave the memory when they are next read, or
    /// evicted.
    pub fn invalidate_tag(&self, tag: &str) {
        if let Some(remote) = &self.inner.remote {
            remote.tell(Invalidation::Tag(tag.into()), true);
        }
        self.inner.invalidate_tag(tag);
    }

    /// Drops everything, and keeps the results of all loads under way from being stored. What is
    /// dropped lives until it has been dropped, when new entries may come in already: up to twice
    /// `max_weight` is in memory meanwhile.
    pub fn clear(&self) {
        if let Some(remote) = &self.inner.remote {
            remote.tell(Invalidation::All, true);
        }
        self.inner.clear();
    }

    /// Waits until the second level and the bus have taken everything that was changed or
    /// invalidated before the call. Returns at once without them, and once the cache is closed.
    /// While they fail, and when the runtime on which the cache was built has ended, it waits for
    /// as long as the caller does.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn settle(&self) {
        if let Some(remote) = &self.inner.remote {
            remote.settle().await;
        }
    }

    /// Writes a value. Writes of one key happen one after the other.
    ///
    /// With [`Builder::sink`] to the sink and then to the cache: write-through, in a task that is
    /// spawned on the caller's runtime. With
    /// [`Builder::write_behind`] it is acknowledged once it is in the backlog, which waits while
    /// the backlog is full, or fails then, see
    /// [`WriteBehindConfig::on_full`](crate::WriteBehindConfig::on_full); the sink gets it later,
    /// and readers get it from now on.
    ///
    /// The value stays in the cache. A tag that the source would give it is not known here, nor its
    /// version: the invalidation of any tag drops it, and of the source's versions only those
    /// replace it that are larger than the one that it was written over.
    /// [`write_with`](Self::write_with) says what it has. Nothing stays of a write-through whose
    /// key, or any tag, was invalidated while it was at the sink.
    ///
    /// # Errors
    /// [`WriteError`]. With write-through the key's entry was dropped unless the write was
    /// certainly not applied.
    ///
    /// # Cancel safety
    /// Not cancel safe: whether the write happens is unknown then. A write-through whose turn had
    /// come goes on to its end, so that the cache shows what the sink took; one that waited for
    /// its turn writes nothing. Write-behind acknowledges the write to nobody.
    pub async fn write(&self, key: K, value: V) -> Result<(), WriteError> {
        self.write_kept(key, value, None).await
    }

    /// As [`write`](Self::write), with what the cache keeps beside the value: a lifetime, tags or
    /// a version of its own. The sink is given the value alone. With write-behind the lifetime
    /// begins with the flush. [`Insert::default`] says that the source would give the value no
    /// tags.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    ///
    /// # Cancel safety
    /// As [`write`](Self::write).
    pub async fn write_with(&self, key: K, value: V, with: Insert) -> Result<(), WriteError> {
        self.write_kept(key, value, Some(with)).await
    }

    async fn write_kept(&self, key: K, value: V, with: Option<Insert>) -> Result<(), WriteError> {
        let key = HashedKey { hash: self.inner.hash(&key), key };
        let keep = self.inner.keep(&key, with);
        self.inner.write(key, Some(value), Some(keep)).await
    }

    /// Writes a value and leaves no entry of the key: write-around, for values that are not read
    /// soon. With write-behind the backlog still answers readers until the sink has the value.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    ///
    /// # Cancel safety
    /// As [`write`](Self::write).
    pub async fn write_around(&self, key: K, value: V) -> Result<(), WriteError> {
        let key = HashedKey { hash: self.inner.hash(&key), key };
        self.inner.write(key, Some(value), None).await
    }

    /// Deletes a key and leaves no entry of it.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    ///
    /// # Cancel safety
    /// As [`write`](Self::write).
    pub async fn delete(&self, key: K) -> Result<(), WriteError> {
        let key = HashedKey { hash: self.inner.hash(&key), key };
        self.inner.write(key, None, None).await
    }

    /// Waits until the sink has, for each key, the last value that was acknowledged before the call
    /// or a newer one, or has rejected it. Returns at once without [`Builder::write_behind`], and
    /// once the cache is closed or the runtime on which it was built has ended, when nothing more
    /// is flushed ([`WriteError::Stopped`]). While the sink fails it waits for as long as the
    /// caller does.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn flush(&self) {
        if let Some(behind) = &self.inner.behind {
            behind.0.flush().await;
        }
    }

    /// The writes that the sink has rejected for good, see [`SinkError::rejected`]. They were
    /// acknowledged; readers see what the sink has instead. A key's later write replaces its
    /// rejected one.
    ///
    /// [`SinkError::rejected`]: crate::SinkError::rejected
    pub fn rejected_writes(&self) -> Vec<RejectedWrite<K, V>> {
        self.inner.behind.as_ref().map_or_else(Vec::new, |behind| behind.0.rejected_writes())
    }

    /// Writes a rejected value again, after its cause was mended. False where the key has no
    /// rejected write, or was written since: an older value never replaces a newer one.
    ///
    /// # Errors
    /// [`WriteError`] of the journal.
    ///
    /// # Cancel safety
    /// Not cancel safe: whether it is written again is unknown then.
    pub async fn retry_rejected(&self, key: &K) -> Result<bool, WriteError> {
        match &self.inner.behind {
            Some(behind) => behind.0.retry_rejected(key).await,
            None => Ok(false),
        }
    }

    /// Forgets a rejected write. False where the key has none.
    ///
    /// # Errors
    /// [`WriteError`] of the journal.
    ///
    /// # Cancel safety
    /// Not cancel safe: whether it is forgotten is unknown then.
    pub async fn discard_rejected(&self, key: &K) -> Result<bool, WriteError> {
        match &self.inner.behind {
            Some(behind) => behind.0.discard_rejected(key).await,
            None => Ok(false),
        }
    }

    /// What the cache has done, and what is in it.
    pub fn stats(&self) -> Stats {
        let Inner { store, flights, counters, .. } = &*self.inner;
        let behind = self.inner.behind.as_ref().map(|behind| behind.0.counts());
        let behind = behind.unwrap_or_default();
        let mut stats = counters.snapshot();
        if let Some(remote) = &self.inner.remote {
            remote.counters.add_to(&mut stats);
            stats.unsent = remote.pending();
        }
        Stats {
            backlog: behind.backlog,
            backlog_bytes: behind.backlog_bytes,
            flushed: behind.flushed,
            flush_failures: behind.flush_failures,
            rejected_writes: behind.rejected_writes,
            evicted: store.evicted(),
            entries: store.len(),
            weight: store.weight(),
            loads_under_way: flights.under_way(),
            ..stats
        }
    }

    /// How long loads took that succeeded.
    pub fn load_latency(&self) -> LoadLatency {
        self.inner.latencies.snapshot()
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Loads from the source what was not found fresh.
    pub(crate) async fn resolve_from_source<Q>(
        &self,
        key: &Q,
        found: Found<V>,
        since: u64,
    ) -> Answer<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if self.inner.loader.is_none() {
            return match found {
                Found::Value(value) | Found::Old(value, _) => Ok(Seen { value, position: None }),
                _ => Err(LoadError::NoSource),
            };
        }
        let inner = Arc::clone(&self.inner);
        let load = move |key: K| -> LoadFuture<V> {
            let held = inner.held(&key);
            match &inner.loader {
                Some(loader) => loader.load(key, held),
                None => Box::pin(std::future::ready(Err(LoadError::NoSource))),
            }
        };
        self.resolve(key, found, since, load).await
    }

    /// Loads what was not found fresh. An answer from before the source's position `since` is none.
    pub(crate) async fn resolve<Q, F>(
        &self,
        key: &Q,
        found: Found<V>,
        since: u64,
        load: F,
    ) -> Answer<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        F: Fn(K) -> LoadFuture<V> + Send + Sync + 'static,
    {
        if self.inner.is_closed.load(Ordering::Acquire) {
            return Err(LoadError::Closed);
        }
        let hashed = HashedKey { hash: self.inner.hash(key), key: key.to_owned() };
        let load = Arc::new(load);
        let stale = match found {
            Found::Value(value) => return Ok(Seen { value, position: None }),
            Found::Old(value, version) => {
                self.refresh(&hashed, &load, version);
                return Ok(Seen { value, position: None });
            }
            Found::IfError(last) => Some(last),
            Found::Nothing => None,
        };
        if stale == Some(LastLoad::JustFailed)
            && let Some(seen) = self.inner.instead_of_error(key, since)
        {
            return Ok(seen);
        }
        let asked_at = self.inner.version();
        // Ends: a load is asked for again only when the answer is too old for this reader and the
        // load began before the reader came, or was answered by the second level for one that had
        // seen less; or when a tag or everything was invalidated after the load began and before
        // this reader came. The next load begins after that, and asks for a later position than
        // the answer had.
        let error = loop {
            let ride = match self.board(&hashed, &load, Asked { refreshes: None, since }) {
                Ok(Boarded::Joined(ride)) if stale == Some(LastLoad::Failed) => {
                    // The reader that began it finds out whether the source is back.
                    if let Some(seen) = self.inner.instead_of_error(key, since) {
                        return Ok(seen);
                    }
                    ride
                }
                Ok(Boarded::Began(ride) | Boarded::Joined(ride)) => ride,
                Ok(Boarded::Found(seen)) => return Ok(seen),
                Err(error) => break error,
            };
            let asks_source = ride.version() > asked_at && ride.asks_source_since(since);
            let answer = match stale {
                Some(_) => self.ride_for_a_while(ride).await,
                None => ride.await,
            };
            match answer {
                Some(Ok(seen)) if seen.position.unwrap_or(0) >= since => return Ok(seen),
                Some(Ok(seen)) if asks_source => {
                    break LoadError::Behind { wanted: since, found: seen.position };
                }
                Some(Err(error)) => break error,
                Some(Ok(_)) | None => {}
            }
        };
        let instead = stale.and_then(|_| self.inner.instead_of_error(key, since));
        instead.ok_or(error)
    }

    fn board<F>(
        &self,
        key: &HashedKey<K>,
        load: &Arc<F>,
        asked: Asked,
    ) -> Result<Boarded<K, V>, LoadError>
    where
        F: Fn(K) -> LoadFuture<V> + Send + Sync + 'static,
    {
        let Config { hard_timeout: limit, on_panic, .. } = self.inner.config;
        let start = || through_level(&self.inner, key.key.clone(), asked, limit, load);
        let restart = (on_panic == OnPanic::RetryOnce).then(|| -> Restart<V> {
            let (inner, key, load) = (Arc::clone(&self.inner), key.key.clone(), Arc::clone(load));
            Box::new(move || through_level(&inner, key, asked, limit, &load))
        });
        let boarded = Ride::board(&self.inner, key, asked, start, restart)?;
        let counters = &self.inner.counters;
        count(match &boarded {
            Boarded::Began(_) => &counters.loads,
            Boarded::Joined(_) | Boarded::Found(_) if asked.refreshes.is_none() => &counters.joins,
            Boarded::Joined(_) | Boarded::Found(_) => return Ok(boarded),
        });
        Ok(boarded)
    }

    /// Rides until the soft timeout, which counts as a failure; the load goes on after it without
    /// this reader.
    async fn ride_for_a_while(&self, mut ride: Ride<K, V>) -> Option<Answer<V>> {
        let Some(soft) = self.inner.config.soft_timeout else { return ride.await };
        if let Ok(answer) = timeout(soft, &mut ride).await {
            return answer;
        }
        ride.give_up();
        Some(Err(LoadError::TimedOut))
    }

    /// Loads in the background what the entry of this version has, unless the key is being loaded
    /// or has been since.
    fn refresh<F>(&self, key: &HashedKey<K>, load: &Arc<F>, version: u64)
    where
        F: Fn(K) -> LoadFuture<V> + Send + Sync + 'static,
    {
        // Too many loads: the next reader tries again.
        let boarded = self.board(key, load, Asked { refreshes: Some(version), since: 0 });
        if let Ok(Boarded::Began(ride)) = boarded {
            count(&self.inner.counters.refreshes);
            ride.go_on_alone();
        }
    }
}

/// Ends a load after `limit`. The timer is made when the load first has to wait: a load that is
/// done at once costs none.
fn within<V: Value>(limit: Duration, mut load: LoadFuture<V>) -> LoadFuture<V> {
    let mut timer = None;
    Box::pin(std::future::poll_fn(move |cx| {
        if let Poll::Ready(result) = load.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        // Unconstrained: a load that uses up its task's budget is timed out all the same.
        let timer = timer.get_or_insert_with(|| Box::pin(unconstrained(sleep(limit))));
        timer.as_mut().poll(cx).map(|()| Err(LoadError::TimedOut))
    }))
}

/// The load, by way of the second level if there is one. `limit` bounds the source's part alone:
/// the second level has limits of its own, and one that hangs must not use up the source's time.
fn through_level<K: Key, V: Value, F>(
    inner: &Arc<Inner<K, V>>,
    key: K,
    asked: Asked,
    limit: Duration,
    load: &Arc<F>,
) -> LoadFuture<V>
where
    F: Fn(K) -> LoadFuture<V> + Send + Sync + 'static,
{
    let level = inner.remote.as_ref().and_then(|remote| remote.level.clone());
    let Some(level) = level else { return within(limit, load(key)) };
    let (inner, load) = (Arc::clone(inner), Arc::clone(load));
    Box::pin(async move {
        let load = |key| within(limit, load(key));
        // A tagger that panics costs the second level's copy: without the tags of its key a value
        // there could not be invalidated.
        match (&inner.remote, inner.derive_tags(&key)) {
            (Some(remote), Some(tags)) => remote.load_through(&level, key, tags, asked, load).await,
            _ => load(key).await,
        }
    })
}

impl<K: Key, V: Value> Clone for Cache<K, V> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<K: Key, V: Value> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

pub(crate) struct Parts<K: Key, V: Value> {
    pub(crate) config: Config,
    pub(crate) store: Arc<dyn Store<K, V>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) loader: Option<Loader<K, V>>,
    pub(crate) sink: Option<Arc<dyn Sink<K, V>>>,
    pub(crate) behind: Option<Behind<K, V>>,
    pub(crate) weigher: Option<Weigher<K, V>>,
    pub(crate) tagger: Option<Tagger<K>>,
    pub(crate) remote: Option<Remote<K, V>>,
}

/// Builds a [`Cache`].
#[must_use = "a builder does nothing until `build` is called"]
pub struct Builder<K: Key, V: Value> {
    config: Config,
    store: Option<Arc<dyn Store<K, V>>>,
    clock: Option<Arc<dyn Clock>>,
    loader: Option<Loader<K, V>>,
    sink: Option<Arc<dyn Sink<K, V>>>,
    behind: Option<WriteBehind<K, V>>,
    weigher: Option<Weigher<K, V>>,
    tagger: Option<Tagger<K>>,
    remote: RemoteParts<K, V>,
}

impl<K: Key, V: Value> Builder<K, V> {
    fn new() -> Self {
        Self {
            config: Config::default(),
            store: None,
            clock: None,
            loader: None,
            sink: None,
            behind: None,
            weigher: None,
            tagger: None,
            remote: RemoteParts::default(),
        }
    }

    /// Sets all that is configured by values.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Where values come from, for [`Cache::get_or_load`].
    pub fn source(mut self, source: impl Source<K, V>) -> Self {
        self.loader = Some(Loader::new(Arc::new(source), None));
        self
    }

    /// As [`source`](Self::source), for one that can say that a value has not changed.
    pub fn conditional_source(mut self, source: impl ConditionalSource<K, V>) -> Self {
        let source: Arc<dyn ConditionalSource<K, V>> = Arc::new(source);
        let plain: Arc<dyn Source<K, V>> = Arc::<dyn ConditionalSource<K, V>>::clone(&source);
        self.loader = Some(Loader::new(plain, Some(source)));
        self
    }

    /// Where [`Cache::write`] goes before it is acknowledged: write-through.
    pub fn sink(mut self, sink: impl Sink<K, V>) -> Self {
        self.sink = Some(Arc::new(sink));
        self.behind = None;
        self
    }

    /// Where [`Cache::write`] goes after it was acknowledged: write-behind. Instead of
    /// [`sink`](Self::sink), not beside it: a write that went past the backlog would be undone by
    /// an older one in it. The cache must then be built inside a tokio runtime, which flushes until
    /// it ends: writes fail with [`WriteError::Stopped`] after that.
    pub fn write_behind(mut self, behind: WriteBehind<K, V>, sink: impl Sink<K, V>) -> Self {
        self.sink = Some(Arc::new(sink));
        self.behind = Some(behind);
        self
    }

    /// Weighs entries by key and value. Without one each weighs 1.
    pub fn weigher(mut self, weigh: impl Fn(&K, &V) -> u64 + Send + Sync + 'static) -> Self {
        self.weigher = Some(Arc::new(weigh));
        self
    }

    /// Derives tags from keys, such as the prefix that a group of keys shares.
    pub fn tag_keys(mut self, tags: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) -> Self {
        self.tagger = Some(Arc::new(tags));
        self
    }

    /// How keys and values become bytes for the bus and the second level.
    pub fn codec(mut self, codec: impl Codec<K, V>) -> Self {
        self.remote.codec = Some(Arc::new(codec));
        self
    }

    /// Tells other caches what is changed and invalidated here, and hears it from them. Needs
    /// [`codec`](Self::codec). The cache must then be built inside a tokio runtime.
    ///
    /// Everything is dropped when the bus comes up, at the start too, when it goes down and when a
    /// message was missed. While it is down entries are served for [`BusConfig::outage_ttl`] at
    /// most, stale ones included. A bus whose runtime has ended is down, and so is one over which
    /// another cache has fallen silent without closing, for [`BusConfig::peer_memory`]: it may be
    /// cut off from the bus alone, and go on invalidating.
    pub fn bus(mut self, bus: impl Bus, config: BusConfig) -> Self {
        self.remote.bus = Some((Arc::new(bus), config));
        self
    }

    /// Asks a store that processes share before the source. Needs [`codec`](Self::codec). The cache
    /// must then be built inside a tokio runtime. Without a [`bus`](Self::bus) other processes keep
    /// what they hold in memory after an invalidation, to the end of its lifetime.
    pub fn second_level(mut self, level: impl SecondLevel, config: LevelConfig) -> Self {
        self.remote.level = Some((Arc::new(level), config));
        self
    }

    /// Where entries are. Default: a [`QuickStore`] of [`Config::max_weight`], in which an entry of
    /// up to [`Config::max_entry_weight`] fits.
    pub fn store(mut self, store: Arc<dyn Store<K, V>>) -> Self {
        self.store = Some(store);
        self
    }

    /// Where `now` comes from. Default: [`Coarse`](crate::Coarse) on Linux, else
    /// [`Monotonic`](crate::Monotonic).
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Builds the cache.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn build(self) -> Result<Cache<K, V>, ConfigError> {
        self.config.validate()?;
        let Self { config, store, clock, loader, sink, behind, weigher, tagger, remote } = self;
        let remote = Remote::new(remote, config.ttl)?;
        let store = store.unwrap_or_else(|| {
            let largest = if weigher.is_some() { config.largest_entry() } else { 1 };
            Arc::new(QuickStore::with_max_entry(config.max_weight, largest))
        });
        let clock = clock.unwrap_or_else(default_clock);
        let behind = behind.map(|behind| Behind(behind.shared));
        let parts = Parts { config, store, clock, loader, sink, behind, weigher, tagger, remote };
        let inner = Arc::new(Inner::new(parts));
        if let (Some(behind), Some(sink)) = (&inner.behind, &inner.sink) {
            crate::behind::spawn(&inner, behind, Arc::clone(sink))?;
        }
        tasks::spawn(&inner)?;
        Ok(Cache { inner })
    }
}

impl<K: Key, V: Value> fmt::Debug for Builder<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("config", &self.config).finish_non_exhaustive()
    }
}
