//! What is behind a cache: where values come from, and where they are written to.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::error::{LoadError, SinkError, SourceError};
use crate::flights::{Key, LoadResult, Value};

/// What a source says about one key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loaded<V> {
    /// There is a value.
    #[non_exhaustive]
    Value {
        /// The value.
        value: V,
        /// A lifetime of its own, which goes before the configured one.
        ttl: Option<Duration>,
        /// Tags by which it can be invalidated.
        tags: Vec<String>,
        /// A version of the source's own, which only grows for one key. A stored value of a larger
        /// version is never overwritten.
        version: Option<u64>,
    },
    /// There is none. Remembered for [`Config::negative_ttl`](crate::Config::negative_ttl).
    Absent,
}

impl<V> Loaded<V> {
    /// A value without anything else.
    pub fn value(value: V) -> Self {
        Self::Value { value, ttl: None, tags: Vec::new(), version: None }
    }

    /// Gives the value a lifetime of its own. Nothing where there is no value.
    #[must_use]
    pub fn with_ttl(mut self, own: Duration) -> Self {
        if let Self::Value { ttl, .. } = &mut self {
            *ttl = Some(own);
        }
        self
    }

    /// Adds a tag. Nothing where there is no value.
    #[must_use]
    pub fn tagged(mut self, tag: impl Into<String>) -> Self {
        if let Self::Value { tags, .. } = &mut self {
            tags.push(tag.into());
        }
        self
    }

    /// Gives the value a version of the source's own. Nothing where there is no value.
    #[must_use]
    pub fn at_version(mut self, own: u64) -> Self {
        if let Self::Value { version, .. } = &mut self {
            *version = Some(own);
        }
        self
    }
}

impl<V> From<Option<V>> for Loaded<V> {
    fn from(value: Option<V>) -> Self {
        value.map_or(Self::Absent, Self::value)
    }
}

/// Where values come from. Runs without any lock held; it may panic, block its own task or call
/// back into the cache.
#[async_trait]
pub trait Source<K, V>: Send + Sync + 'static {
    /// Looks the keys up: one answer for each, in their order. There are at most
    /// [`max_batch`](Source::max_batch) keys, all different.
    ///
    /// # Errors
    /// One [`SourceError`] for each key that could not be looked up.
    ///
    /// # Cancel safety
    /// The future is dropped when nobody waits for the keys any more, and at the hard timeout.
    async fn load(&self, keys: &[K]) -> Vec<Result<Loaded<V>, SourceError>>;

    /// How many keys one call may have. With more than 1, misses of different keys that come at the
    /// same time are collected into one call. Default 1.
    fn max_batch(&self) -> usize {
        1
    }
}

/// One write on its way to a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Write<K, V> {
    /// The key.
    pub key: K,
    /// The value, or `None`: delete the key.
    pub value: Option<V>,
}

impl<K, V> Write<K, V> {
    /// A write of a value, or a deletion.
    pub fn new(key: K, value: Option<V>) -> Self {
        Self { key, value }
    }
}

/// Where writes go. Runs without any lock held.
#[async_trait]
pub trait Sink<K, V>: Send + Sync + 'static {
    /// Writes values and deletes keys: one answer for each write, in their order. All keys are
    /// different. Write-through gives one write a call, write-behind up to
    /// [`WriteBehindConfig::max_batch`](crate::WriteBehindConfig::max_batch); the same write may
    /// come again. A sink that writes all of a call in one transaction and knows which of them
    /// broke it answers [`SinkError::rejected`] for that one and [`SinkError::not_applied`] for the
    /// others.
    ///
    /// # Cancel safety
    /// With write-through the future is dropped with the caller's, and the cache drops the key's
    /// entry. With write-behind it is dropped after the sink's timeout, and called again.
    async fn write(&self, writes: &[Write<K, V>]) -> Vec<Result<(), SinkError>>;
}

type Reply<V> = tokio::sync::oneshot::Sender<Result<Loaded<V>, LoadError>>;

/// Collects misses of different keys into calls of the source.
pub(crate) struct Batcher<K, V> {
    shared: Arc<Shared<K, V>>,
}

struct Shared<K, V> {
    source: Arc<dyn Source<K, V>>,
    max_batch: usize,
    queue: Mutex<Queue<K, V>>,
}

struct Queue<K, V> {
    waiting: Vec<(K, Reply<V>)>,
    /// A task is about to take what waits.
    is_scheduled: bool,
}

impl<K: Key, V: Value> Batcher<K, V> {
    /// `None` for a source that takes one key at a time.
    pub(crate) fn new(source: &Arc<dyn Source<K, V>>) -> Option<Self> {
        let max_batch = source.max_batch();
        let queue = Mutex::new(Queue { waiting: Vec::new(), is_scheduled: false });
        let shared = Shared { source: Arc::clone(source), max_batch, queue };
        (max_batch > 1).then(|| Self { shared: Arc::new(shared) })
    }

    /// Loads a key together with others that miss before the task which is spawned for the first
    /// of them runs.
    pub(crate) fn load(&self, key: K) -> impl Future<Output = LoadResult<V>> + Send + use<K, V> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let schedule = {
            let mut queue = self.shared.queue.lock();
            queue.waiting.push((key, reply));
            !std::mem::replace(&mut queue.is_scheduled, true)
        };
        if schedule {
            tokio::spawn(Shared::run(Arc::clone(&self.shared)));
        }
        // A call that panicked drops its replies.
        async move { answer.await.unwrap_or(Err(LoadError::Panicked)) }
    }
}

impl<K: Key, V: Value> Shared<K, V> {
    /// Takes all that waits, a call for each batch.
    async fn run(self: Arc<Self>) {
        let mut waiting = {
            let mut queue = self.queue.lock();
            queue.is_scheduled = false;
            std::mem::take(&mut queue.waiting)
        };
        while waiting.len() > self.max_batch {
            let batch = waiting.split_off(waiting.len() - self.max_batch);
            tokio::spawn(Arc::clone(&self).call(batch));
        }
        self.call(waiting).await;
    }

    async fn call(self: Arc<Self>, batch: Vec<(K, Reply<V>)>) {
        // Those whose readers have gone are not asked for.
        let batch = batch.into_iter().filter(|(_, reply)| !reply.is_closed());
        let (keys, mut replies): (Vec<K>, Vec<Reply<V>>) = batch.unzip();
        if keys.is_empty() {
            return;
        }
        let all_gone = async {
            for reply in &mut replies {
                reply.closed().await;
            }
        };
        let answers = tokio::select! {
            answers = self.source.load(&keys) => answers,
            () = all_gone => return,
        };
        let (asked, answered) = (keys.len(), answers.len());
        let mut answers = answers.into_iter();
        for reply in replies {
            let missing = || Err(LoadError::Unanswered { answered, asked });
            let answer = answers.next().map_or_else(missing, |answer| answer.map_err(Into::into));
            // An error here says that the reader has gone.
            let _ = reply.send(answer);
        }
    }
}
