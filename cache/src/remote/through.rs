//! A load that asks the second level before the source.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::envelope::Envelope;
use super::level::{LevelConfig, LevelError, OnOutage, Put, SecondLevel};
use super::{Remote, catch_panic};
use crate::codec::Codec;
use crate::core::peers::Invalidation;
use crate::error::LoadError;
use crate::load::{Key, LoadFuture, LoadResult, Value};
use crate::source::Loaded;
use crate::stats::count;

/// The pauses of a load that waits for another process, first and longest.
const POLL: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// The second level as the cache uses it.
pub(crate) struct Level {
    seam: Arc<dyn SecondLevel>,
    config: LevelConfig,
    /// It is left alone until then.
    rest_until: Mutex<Option<Instant>>,
    /// A [`Level::probe`] is under way: at most one is.
    is_probed: AtomicBool,
}

impl Level {
    pub(super) fn new(seam: Arc<dyn SecondLevel>, config: LevelConfig) -> Self {
        Self { seam, config, rest_until: Mutex::new(None), is_probed: AtomicBool::new(false) }
    }

    /// One call, unless the second level rests.
    pub(super) async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, LevelError>>,
    ) -> Result<T, LevelError> {
        if self.rest_until.lock().is_some_and(|until| Instant::now() < until) {
            return Err(LevelError("resting after a failure".into()));
        }
        let limit = self.config.timeout;
        let answer = match timeout(limit, catch_panic(call)).await {
            Ok(Some(answer)) => answer,
            Ok(None) => Err(LevelError("it panicked".into())),
            Err(_) => Err(LevelError(format!("no answer in {} ms", limit.as_millis()))),
        };
        *self.rest_until.lock() = match &answer {
            Ok(_) => None,
            Err(_) => Some(Instant::now() + self.config.rest),
        };
        answer
    }

    /// One call for a load. Its readers may go away before the second level has answered or run
    /// into its time limit; whether it has to rest is then found out without them.
    async fn ask<T>(
        self: &Arc<Self>,
        key: &Arc<[u8]>,
        call: impl Future<Output = Result<T, LevelError>>,
    ) -> Result<T, LevelError> {
        let mut unanswered = Unanswered { level: self, key, is_over: false };
        let answer = self.call(call).await;
        unanswered.is_over = true;
        answer
    }

    /// Asks for a key that nobody waits for, unless that is under way already: a second level that
    /// does not answer begins to rest, although each of its readers gives up before its limit.
    fn probe(self: &Arc<Self>, key: &Arc<[u8]>) {
        // The runtime is gone with the readers.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.is_probed.swap(true, Ordering::AcqRel) {
            return;
        }
        let probe = Probed(Arc::clone(self));
        let key = Arc::clone(key);
        runtime.spawn(async move { probe.0.call(probe.0.seam.fetch(&key)).await.is_ok() });
    }

    /// The bound on the age of a fresh value.
    pub(crate) fn ttl(&self) -> Duration {
        self.config.ttl
    }

    pub(super) fn seam(&self) -> &dyn SecondLevel {
        &*self.seam
    }
}

/// A call that has not ended.
struct Unanswered<'a> {
    level: &'a Arc<Level>,
    key: &'a Arc<[u8]>,
    is_over: bool,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.level.probe(self.key);
        }
    }
}

/// The probe under way: another one may begin when it is dropped.
struct Probed(Arc<Level>);

impl Drop for Probed {
    fn drop(&mut self) {
        self.0.is_probed.store(false, Ordering::Release);
    }
}

/// Where a key is in the second level.
struct Place {
    key: Arc<[u8]>,
    /// The tags that were derived from the key. A value there is valid only if it has them too.
    derived: Vec<String>,
}

impl Place {
    /// The tags of a value and those of its key, each once.
    fn tags<'a>(&'a self, own: &'a [String]) -> Vec<&'a str> {
        let all: std::collections::BTreeSet<&str> =
            own.iter().chain(&self.derived).map(String::as_str).collect();
        all.into_iter().collect()
    }
}

/// Which load it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// In the background, because this cache's value is old, of the entry with this version: the
    /// second level's is as old.
    pub(crate) refreshes: Option<u64>,
    /// A value from before this position of the source is none.
    pub(crate) since: u64,
}

/// The lease of a key: ends when it is dropped.
struct Lease {
    level: Arc<Level>,
    key: Arc<[u8]>,
    token: u64,
    is_over: bool,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.is_over {
            return;
        }
        let (level, key, token) = (Arc::clone(&self.level), Arc::clone(&self.key), self.token);
        // A release that fails leaves the lease to its time.
        runtime.spawn(async move { level.call(level.seam.release(&key, token)).await });
    }
}

impl<K: Key, V: Value> Remote<K, V> {
    /// The second level's value, or the source's, which is stored there.
    pub(crate) async fn load_through(
        &self,
        level: &Arc<Level>,
        key: K,
        derived: Vec<String>,
        asked: Asked,
        load: impl Fn(K) -> LoadFuture<V> + Send,
    ) -> LoadResult<V> {
        let mut encoded = Vec::new();
        self.codec.encode_key(&key, &mut encoded);
        let place = Place { key: encoded.into(), derived };
        // The second level may still have the value that was invalidated here.
        if self.outbox.hides_key(&place.key) {
            return load(key).await;
        }
        match self.fetch_or_lease(level, &place, asked).await {
            Ok(Step::Found(loaded)) => Ok(loaded),
            Ok(Step::Leased(mut lease, version)) => {
                let result = load(key).await;
                if let Ok(loaded) = &result {
                    self.store(&mut lease, &place, version, loaded).await;
                }
                result
            }
            Ok(Step::Alone) => load(key).await,
            Err(error) => {
                count(&self.counters.level_failures);
                match level.config.on_outage {
                    OnOutage::AskSource => load(key).await,
                    OnOutage::Fail => Err(LoadError::SecondLevel(error)),
                }
            }
        }
    }

    async fn fetch_or_lease(
        &self,
        level: &Arc<Level>,
        place: &Place,
        asked: Asked,
    ) -> Result<Step<V>, LevelError> {
        let key = &place.key;
        let token = fastrand::u64(1..);
        let deadline = Instant::now() + level.config.lease_wait;
        let mut pause = POLL.0;
        // Ends: with a value, with the lease, or at the deadline.
        loop {
            if asked.refreshes.is_none() {
                if let Some(found) = self.fetch(level, place, asked.since).await? {
                    count(&self.counters.level_hits);
                    return Ok(Step::Found(found));
                }
                if pause == POLL.0 {
                    count(&self.counters.level_misses);
                }
            }
            let mut guard =
                Lease { level: Arc::clone(level), key: Arc::clone(key), token, is_over: false };
            // A call that is dropped or fails may have taken the lease: the guard ends it.
            let leased = level.seam.lease(key, token, level.config.lease_for);
            if let Some(version) = level.ask(key, leased).await? {
                return Ok(Step::Leased(guard, version));
            }
            guard.is_over = true;
            if asked.refreshes.is_some() || Instant::now() + pause > deadline {
                return Ok(Step::Alone);
            }
            sleep(pause).await;
            pause = (pause * 2).min(POLL.1);
        }
    }

    /// The value that the second level has, if it is valid.
    async fn fetch(
        &self,
        level: &Arc<Level>,
        place: &Place,
        since: u64,
    ) -> Result<Option<Loaded<V>>, LevelError> {
        let key = &place.key;
        let Some(fetched) = level.ask(key, level.seam.fetch(key)).await? else { return Ok(None) };
        let Some(envelope) = Envelope::decode(key, &fetched.bytes) else {
            count(&self.counters.level_invalid);
            tracing::debug!(target: "voussoir::cache", "bytes of another key or form are ignored");
            return Ok(None);
        };
        let Envelope { version, source_version, position, .. } = envelope;
        let tags = place.tags(&envelope.tags);
        if version <= fetched.floor
            || position.unwrap_or(0) < since
            || self.outbox.hides_key(key)
            || tags.iter().any(|tag| self.outbox.hides_tag(tag))
        {
            return Ok(None);
        }
        if !tags.is_empty() {
            let floors = level.ask(key, level.seam.floors(&tags)).await?;
            let is_above = |floor: &Option<u64>| floor.is_some_and(|floor| version > floor);
            if floors.len() != tags.len() || !floors.iter().all(is_above) {
                return Ok(None);
            }
        }
        let Ok(value) = self.codec.decode_value(&envelope.value) else {
            count(&self.counters.level_invalid);
            return Ok(None);
        };
        let ttl = Some(self.config_ttl.map_or(fetched.remaining, |ttl| ttl.min(fetched.remaining)));
        Ok(Some(Loaded::Value {
            value,
            ttl,
            tags: envelope.tags,
            version: source_version,
            position,
        }))
    }

    /// Stores what was loaded under a lease. A failure costs the second level's copy.
    async fn store(&self, lease: &mut Lease, place: &Place, version: u64, loaded: &Loaded<V>) {
        let level = Arc::clone(&lease.level);
        let Loaded::Value { value, ttl, tags, version: source_version, position } = loaded else {
            // Absence stays in the process that learnt of it; an older value must not.
            if self.forgets_absent(&level, lease).await.is_err() {
                count(&self.counters.level_failures);
            }
            return;
        };
        let mut bytes = Vec::new();
        self.codec.encode_value(value, &mut bytes);
        let tags = place.tags(tags);
        let envelope = Envelope {
            version,
            source_version: *source_version,
            position: *position,
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            value: bytes,
        };
        let Some(bytes) = envelope.encode(&place.key) else { return };
        let ttl = ttl.map_or(level.config.ttl, |ttl| ttl.min(level.config.ttl));
        if ttl < Duration::from_millis(1) {
            return;
        }
        let put = Put { key: &place.key, lease: lease.token, bytes: &bytes, ttl, tags: &tags };
        match level.ask(&place.key, level.seam.store(put)).await {
            Ok(_) => lease.is_over = true,
            Err(_) => count(&self.counters.level_failures),
        }
    }

    async fn forgets_absent(
        &self,
        level: &Arc<Level>,
        lease: &mut Lease,
    ) -> Result<(), LevelError> {
        let key = [Invalidation::Key(lease.key.iter().copied().collect())];
        level.ask(&lease.key, level.seam.invalidate(&key)).await?;
        lease.is_over = true;
        Ok(())
    }
}

enum Step<V> {
    Found(Loaded<V>),
    /// The source is to be asked, and the answer stored.
    Leased(Lease, u64),
    /// The source is to be asked for this process only.
    Alone,
}

/// The codec, without its types' names.
pub(crate) type SharedCodec<K, V> = Arc<dyn Codec<K, V>>;
