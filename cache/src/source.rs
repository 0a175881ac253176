//! What is behind a cache: where values come from, and where they are written to.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::error::{LoadError, SinkError, SourceError};
use crate::load::{Key, LoadFuture, LoadResult, Value};

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
        /// version is not overwritten while it is fresh.
        version: Option<u64>,
        /// The source's position at which the value was read, see [`as_of`](Self::as_of).
        position: Option<u64>,
    },
    /// There is none. Remembered for [`Config::negative_ttl`](crate::Config::negative_ttl).
    #[non_exhaustive]
    Absent {
        /// The source's position at which it had no value, see [`as_of`](Self::as_of).
        position: Option<u64>,
    },
}

impl<V> Loaded<V> {
    /// A value without anything else.
    pub fn value(value: V) -> Self {
        Self::Value { value, ttl: None, tags: Vec::new(), version: None, position: None }
    }

    /// No value.
    pub fn absent() -> Self {
        Self::Absent { position: None }
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

    /// Says at which position of the source the answer was read: a log sequence number, an applied
    /// index. The answer contains every write up to it. Reads that carry a
    /// [`SessionToken`](crate::SessionToken) of a larger position load again.
    #[must_use]
    pub fn as_of(mut self, at: u64) -> Self {
        let (Self::Value { position, .. } | Self::Absent { position }) = &mut self;
        *position = Some(at);
        self
    }
}

impl<V> From<Option<V>> for Loaded<V> {
    fn from(value: Option<V>) -> Self {
        value.map_or_else(Self::absent, Self::value)
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
    /// same time, also in different tasks, are collected into one call: it leaves once it is full,
    /// or once a turn of the runtime, in which the tasks that can run do so, has brought no further
    /// miss. No timer is involved: a miss that comes alone waits for one such turn. Default 1.
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
    /// With write-behind the place of this value among those of its key: a newer value has a larger
    /// number, and the same one never has a smaller number than before, also in another process
    /// that has opened the same namespace. Numbers of
    /// [`WriteBehind::in_memory`](crate::WriteBehind::in_memory) begin anew with each process.
    /// `None` with write-through.
    pub sequence: Option<u64>,
}

impl<K, V> Write<K, V> {
    /// A write of a value, or a deletion.
    pub fn new(key: K, value: Option<V>) -> Self {
        Self { key, value, sequence: None }
    }

    /// The same with a place among the values of its key.
    #[must_use]
    pub fn at(mut self, sequence: u64) -> Self {
        self.sequence = Some(sequence);
        self
    }
}

/// Where writes go. Runs without any lock held but the turn of the key with write-through: a sink
/// that writes through the same cache waits for itself, until its timeout.
#[async_trait]
pub trait Sink<K, V>: Send + Sync + 'static {
    /// Writes values and deletes keys: one answer for each write, in their order. All keys are
    /// different. Write-through gives one write a call, write-behind up to
    /// [`WriteBehindConfig::max_batch`](crate::WriteBehindConfig::max_batch); the same write may
    /// come again. A sink that writes all of a call in one transaction and knows which of them
    /// broke it answers [`SinkError::rejected`] for that one and [`SinkError::not_applied`] for the
    /// others.
    ///
    /// A call whose future is dropped may still be carried out, as a statement is that a server has
    /// begun: after a newer value of its key was written by the next call, or by the next process.
    /// No cache can hinder it. With write-behind a sink must therefore either end its own attempt
    /// before the timeout (and before the next process starts), or store
    /// [`Write::sequence`] with each value and refuse a smaller one, such as by
    /// `ON CONFLICT (key) DO UPDATE ... WHERE held.sequence < EXCLUDED.sequence`. A deletion keeps
    /// its row for that, or leaves the sequence elsewhere.
    ///
    /// # Cancel safety
    /// The future is dropped only after the sink's timeout, when the cache is closed, or with the
    /// runtime. The cache drops the key's entry then; write-behind calls again.
    async fn write(&self, writes: &[Write<K, V>]) -> Vec<Result<(), SinkError>>;
}

/// A value that the cache holds and asks its source about: it has expired, or is being refreshed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Held<K, V> {
    /// The key.
    pub key: K,
    /// The value.
    pub value: V,
    /// The version that the source gave the value.
    pub version: Option<u64>,
}

/// What a source says about a value that the cache holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reloaded<V> {
    /// The held value is the current one. It keeps its tags and its version, and is fresh again for
    /// the lifetime that it had: its own, or the configured one. With a second level for the
    /// configured one, because a value may have come from there with a part of its own.
    #[non_exhaustive]
    NotModified {
        /// A new lifetime of its own.
        ttl: Option<Duration>,
        /// The source's position at which this was read, see [`Loaded::as_of`].
        position: Option<u64>,
    },
    /// Another value, or none.
    Changed(Loaded<V>),
}

impl<V> Reloaded<V> {
    /// The held value is the current one.
    pub fn not_modified() -> Self {
        Self::NotModified { ttl: None, position: None }
    }

    /// Gives the value a lifetime of its own.
    #[must_use]
    pub fn with_ttl(mut self, own: Duration) -> Self {
        match &mut self {
            Self::NotModified { ttl, .. } => *ttl = Some(own),
            Self::Changed(loaded) => {
                if let Loaded::Value { ttl, .. } = loaded {
                    *ttl = Some(own);
                }
            }
        }
        self
    }

    /// As [`Loaded::as_of`].
    #[must_use]
    pub fn as_of(mut self, at: u64) -> Self {
        match &mut self {
            Self::NotModified { position, .. } => *position = Some(at),
            Self::Changed(loaded) => {
                let (Loaded::Value { position, .. } | Loaded::Absent { position }) = loaded;
                *position = Some(at);
            }
        }
        self
    }
}

/// A source that can say of a held value that it is still the current one, without sending it
/// again: by version, `ETag` or time of change. Give it to
/// [`Builder::conditional_source`](crate::Builder::conditional_source); entries that have expired
/// then stay in the table until they are evicted, to be asked about.
#[async_trait]
pub trait ConditionalSource<K, V>: Source<K, V> {
    /// Looks up the keys of held values: one answer for each, in their order. There are at most
    /// [`max_batch`](Source::max_batch), with different keys. A value that was invalidated is not
    /// asked about but loaded.
    ///
    /// # Errors
    /// One [`SourceError`] for each key that could not be looked up.
    ///
    /// # Cancel safety
    /// As [`Source::load`].
    async fn reload(&self, held: &[Held<K, V>]) -> Vec<Result<Reloaded<V>, SourceError>>;
}

/// A held value, with the names of its tags.
#[derive(Clone)]
pub(crate) struct HeldEntry<V> {
    pub(crate) value: V,
    pub(crate) version: Option<u64>,
    /// Its own lifetime.
    pub(crate) ttl: Option<Duration>,
    pub(crate) tags: Vec<String>,
}

impl<V> HeldEntry<V> {
    fn resolve(self, reloaded: Reloaded<V>) -> Loaded<V> {
        match reloaded {
            Reloaded::Changed(loaded) => loaded,
            Reloaded::NotModified { ttl, position } => {
                let Self { value, version, ttl: own, tags } = self;
                Loaded::Value { value, ttl: ttl.or(own), tags, version, position }
            }
        }
    }
}

type Reply<V> = tokio::sync::oneshot::Sender<Result<Loaded<V>, LoadError>>;

/// The most turns of the runtime for which a call waits for further keys. Reached only by a source
/// that takes very large batches while a turn of the runtime never goes by without a miss.
const MAX_TURNS: usize = 64;

/// How the cache asks its source: key by key, or in batches.
pub(crate) struct Loader<K, V>(Arc<Shared<K, V>>);

struct Shared<K, V> {
    source: Arc<dyn Source<K, V>>,
    conditional: Option<Arc<dyn ConditionalSource<K, V>>>,
    max_batch: usize,
    queue: Mutex<Queue<K, V>>,
}

/// A key to be looked up, and what the cache holds of it.
struct Ask<K, V> {
    key: K,
    held: Option<HeldEntry<V>>,
}

struct Queue<K, V> {
    waiting: Vec<(Ask<K, V>, Reply<V>)>,
    /// A task is about to take what waits. Invariant: true exactly while there is a [`Collector`]
    /// that has not taken it.
    is_scheduled: bool,
}

/// The task's right to take what waits, once. Where the task is dropped with its runtime before
/// that, what waits is dropped too, and the next miss schedules another task.
struct Collector<K, V>(Option<Arc<Shared<K, V>>>);

impl<K, V> Collector<K, V> {
    fn take(&mut self) -> Vec<(Ask<K, V>, Reply<V>)> {
        let Some(shared) = self.0.take() else { return Vec::new() };
        let mut queue = shared.queue.lock();
        queue.is_scheduled = false;
        std::mem::take(&mut queue.waiting)
    }
}

impl<K, V> Drop for Collector<K, V> {
    fn drop(&mut self) {
        // Foreign code, after the lock. Readers whose reply is dropped are told so.
        drop(self.take());
    }
}

impl<K: Key, V: Value> Loader<K, V> {
    pub(crate) fn new(
        source: Arc<dyn Source<K, V>>,
        conditional: Option<Arc<dyn ConditionalSource<K, V>>>,
    ) -> Self {
        let max_batch = source.max_batch();
        let queue = Mutex::new(Queue { waiting: Vec::new(), is_scheduled: false });
        Self(Arc::new(Shared { source, conditional, max_batch, queue }))
    }

    pub(crate) fn is_conditional(&self) -> bool {
        self.0.conditional.is_some()
    }

    /// Loads a key. With a source that takes batches, together with others that miss at the same
    /// time: see [`Source::max_batch`].
    pub(crate) fn load(&self, key: K, held: Option<HeldEntry<V>>) -> LoadFuture<V> {
        let ask = Ask { key, held };
        if self.0.max_batch <= 1 {
            let shared = Arc::clone(&self.0);
            return Box::pin(async move {
                let answer = if ask.held.is_some() {
                    shared.ask(vec![ask]).await.pop()
                } else {
                    let answers = shared.source.load(std::slice::from_ref(&ask.key)).await;
                    answers.into_iter().next().map(|answer| Ok(answer?))
                };
                answer.unwrap_or(Err(LoadError::Unanswered { answered: 0, asked: 1 }))
            });
        }
        let (reply, answer) = tokio::sync::oneshot::channel();
        let schedule = {
            let mut queue = self.0.queue.lock();
            queue.waiting.push((ask, reply));
            !std::mem::replace(&mut queue.is_scheduled, true)
        };
        if schedule {
            tokio::spawn(Arc::clone(&self.0).run(Collector(Some(Arc::clone(&self.0)))));
        }
        // A call that panicked drops its replies, and so does a runtime that is shut down.
        Box::pin(async move { answer.await.unwrap_or(Err(LoadError::Panicked)) })
    }
}

impl<K: Key, V: Value> Shared<K, V> {
    /// Returns when what waits is a full call, or when a turn of the runtime has added nothing.
    async fn collect(&self) {
        let waiting = || self.queue.lock().waiting.len();
        let mut collected = waiting();
        for _ in 0..MAX_TURNS {
            if collected >= self.max_batch {
                return;
            }
            tokio::task::yield_now().await;
            let more = waiting();
            if more == collected {
                return;
            }
            collected = more;
        }
    }

    /// Takes all that waits, a call for each batch.
    async fn run(self: Arc<Self>, mut collector: Collector<K, V>) {
        self.collect().await;
        let waiting = collector.take();
        // Held values are asked about in calls of their own.
        let (mut held, mut missing): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|(ask, _)| ask.held.is_some());
        for waiting in [&mut held, &mut missing] {
            while waiting.len() > self.max_batch {
                let batch = waiting.split_off(waiting.len() - self.max_batch);
                tokio::spawn(Arc::clone(&self).call(batch));
            }
        }
        // A task for each: one that panics takes only its own readers with it.
        if !held.is_empty() {
            tokio::spawn(Arc::clone(&self).call(held));
        }
        self.call(missing).await;
    }

    async fn call(self: Arc<Self>, batch: Vec<(Ask<K, V>, Reply<V>)>) {
        // Those whose readers have gone are not asked for.
        let batch = batch.into_iter().filter(|(_, reply)| !reply.is_closed());
        let (asks, mut replies): (Vec<Ask<K, V>>, Vec<Reply<V>>) = batch.unzip();
        if asks.is_empty() {
            return;
        }
        let all_gone = async {
            for reply in &mut replies {
                reply.closed().await;
            }
        };
        let answers = tokio::select! {
            biased;
            answers = self.ask(asks) => answers,
            () = all_gone => return,
        };
        for (reply, answer) in replies.into_iter().zip(answers) {
            // An error here says that the reader has gone.
            let _ = reply.send(answer);
        }
    }

    /// One call of the source. Either all of the asks have a held value, or none has. There are as
    /// many answers as asks.
    async fn ask(&self, asks: Vec<Ask<K, V>>) -> Vec<LoadResult<V>> {
        let asked = asks.len();
        let unanswered = |answered| move || Err(LoadError::Unanswered { answered, asked });
        let all_held: Option<Vec<HeldEntry<V>>> = asks.iter().map(|ask| ask.held.clone()).collect();
        let keys = asks.into_iter().map(|ask| ask.key);
        if let (Some(conditional), Some(entries)) = (&self.conditional, all_held) {
            let values = keys.zip(&entries).map(|(key, held)| {
                let HeldEntry { value, version, .. } = held;
                Held { key, value: value.clone(), version: *version }
            });
            let answers = conditional.reload(&values.collect::<Vec<_>>()).await;
            let missing = unanswered(answers.len());
            let mut answers = answers.into_iter();
            let resolved = entries.into_iter().map(|held| match answers.next() {
                Some(answer) => Ok(held.resolve(answer?)),
                None => missing(),
            });
            return resolved.collect();
        }
        let answers = self.source.load(&keys.collect::<Vec<_>>()).await;
        let missing = unanswered(answers.len());
        let mut answers = answers.into_iter();
        let next = || match answers.next() {
            Some(answer) => Ok(answer?),
            None => missing(),
        };
        std::iter::repeat_with(next).take(asked).collect()
    }
}
