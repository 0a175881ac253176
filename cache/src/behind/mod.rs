//! Write-behind: a write is acknowledged by a log, and reaches the sink later.

mod config;
mod flusher;
#[cfg(feature = "journal")]
mod journal;
mod log;
mod rejected;

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::core::backlog::{Admission, Backlog, Ticket};
use crate::error::{ConfigError, WriteError};
use crate::flights::{Key, Value};
use crate::insert::Keep;
use log::{Change, Completion, Done, Hold, NoLog, WriteLog};

pub use config::{OnFull, WriteBehindConfig};
#[cfg(feature = "journal")]
pub use journal::OpenError;
pub use rejected::RejectedWrite;
use rejected::Rejections;

/// The flusher looks at the size of the log at least after so many writes.
const WAKE_EVERY: u64 = 1024;
/// Counters of dirty keys by their hash: a power of two. With 1,000 dirty keys one reader in 17 of
/// other keys meets one.
const DIRTY_COUNTERS: usize = 16_384;

/// Acknowledged writes that a sink does not have yet. Give it to
/// [`Builder::write_behind`](crate::Builder::write_behind).
///
/// A key's newest acknowledged value is what readers of the cache get until the sink has it; of
/// several values of a key only the newest one is flushed. Values of one key are given to the sink
/// in the order of their acknowledgements, one call after the other.
///
/// # What a crash loses
/// With [`in_memory`](Self::in_memory): everything that was acknowledged and not flushed. The loss
/// window is [`WriteBehindConfig::flush_after`] and a call of the sink while the sink works, and
/// without end while it does not. With the feature `journal` and `open`: nothing. A write is
/// acknowledged when the journal has synced it; `open` reads back what was not flushed, and the
/// sink gets each key's last acknowledged value. A write that was flushed just before the crash may
/// be flushed once more: the sink must take the same write twice.
///
/// # The sink must have no other writer
/// After a crash a key's last acknowledged value is written again, over what another writer has put
/// there meanwhile.
///
/// # The sink must refuse what comes late
/// A call that took too long is dropped, and may be carried out after the next one all the same:
/// see [`Sink::write`](crate::Sink::write).
pub struct WriteBehind<K: Key, V: Value> {
    pub(crate) shared: Arc<Shared<K, V>>,
}

impl<K: Key, V: Value> WriteBehind<K, V> {
    /// Keeps acknowledged writes in memory only: a crash loses them. `weigh` says how many bytes
    /// the key and value of a write take, for [`WriteBehindConfig::max_bytes`]; a deletion has no
    /// value.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn in_memory(
        config: WriteBehindConfig,
        weigh: impl Fn(&K, Option<&V>) -> u64 + Send + Sync + 'static,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        let backlog = Backlog::new(config.limits());
        let log = Arc::new(NoLog::new(Box::new(weigh)));
        Ok(Self::new(config, log, None, backlog, Rejections::default()))
    }

    /// Keeps acknowledged writes in a journal, in logs 0 and 1 of a namespace that nothing else
    /// uses, and reads back those of an earlier process. One namespace belongs to one cache at a
    /// time: the cache has the journal's lease of it.
    ///
    /// # Errors
    /// [`OpenError`]; the journal was not changed.
    #[cfg(feature = "journal")]
    pub fn open(
        journal: &voussoir_journal::Journal,
        namespace: &str,
        codec: impl crate::codec::Codec<K, V>,
        config: WriteBehindConfig,
    ) -> Result<Self, OpenError> {
        config.validate()?;
        let (log, lease, recovery) =
            journal::JournalLog::open(journal, namespace, Arc::new(codec))?;
        let mut backlog = Backlog::new(config.limits());
        let mut writes: Vec<_> = recovery.writes.into_iter().collect();
        writes.sort_by_key(|(_, recovered)| recovered.position);
        for (key, recovered) in writes {
            let ticket = backlog.begin(&key, recovered.bytes);
            let value = Arc::new(recovered.value);
            backlog.acknowledge(0, &key, ticket, recovered.position, value, None);
        }
        backlog.set_end(recovery.end);
        let rejected =
            Rejections::recovered(recovery.rejected.into_iter().map(|(key, found)| {
                RejectedWrite { key, value: found.value, reason: found.reason }
            }));
        Ok(Self::new(config, Arc::new(log), Some(Box::new(lease)), backlog, rejected))
    }

    fn new(
        config: WriteBehindConfig,
        log: Arc<dyn WriteLog<K, V>>,
        lease: Option<Box<dyn Send + Sync>>,
        backlog: Backlog<K, V>,
        rejected: Rejections<K, V>,
    ) -> Self {
        let (hold, ended) = Hold::new(lease);
        let shared = Shared {
            hold: Mutex::new(Some(Arc::new(hold))),
            ended,
            flusher: std::sync::OnceLock::new(),
            is_draining: AtomicBool::new(false),
            dirty: DirtyKeys::new(&backlog),
            state: Mutex::new(backlog),
            order: Mutex::new(()),
            rejected: Mutex::new(rejected),
            rejected_order: Mutex::new(()),
            log,
            progress: Notify::new(),
            wake: Notify::new(),
            is_closed: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
            is_moving: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            flush_failures: AtomicU64::new(0),
            epoch: std::sync::OnceLock::new(),
            config,
        };
        Self { shared: Arc::new(shared) }
    }

    /// How many keys have a value that the sink does not have yet.
    pub fn backlog(&self) -> usize {
        self.shared.dirty.all.load(Ordering::Acquire)
    }
}

impl<K: Key, V: Value> fmt::Debug for WriteBehind<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.shared.config;
        f.debug_struct("WriteBehind").field("config", config).finish_non_exhaustive()
    }
}

/// How many keys are dirty, to be read without the lock of the backlog: in all, and by hash, so
/// that the readers of other keys do not meet at that lock. Changed while it is held.
struct DirtyKeys {
    all: AtomicUsize,
    by_hash: Box<[AtomicU32]>,
    hasher: foldhash::fast::RandomState,
}

impl DirtyKeys {
    fn new<K: Key, V>(backlog: &Backlog<K, V>) -> Self {
        let by_hash = (0..DIRTY_COUNTERS).map(|_| AtomicU32::new(0)).collect();
        let hasher = foldhash::fast::RandomState::default();
        let keys = Self { all: AtomicUsize::new(backlog.dirty()), by_hash, hasher };
        for key in backlog.dirty_keys() {
            keys.counter(key).fetch_add(1, Ordering::Relaxed);
        }
        keys
    }

    fn counter<Q: Hash + ?Sized>(&self, key: &Q) -> &AtomicU32 {
        &self.by_hash[self.hasher.hash_one(key) as usize % DIRTY_COUNTERS]
    }

    /// False only if the key is not dirty.
    #[inline]
    fn may_have<Q: Hash + ?Sized>(&self, key: &Q) -> bool {
        self.all.load(Ordering::Acquire) != 0 && self.counter(key).load(Ordering::Acquire) != 0
    }
}

/// What the cache, the flusher and the log's callbacks share.
pub(crate) struct Shared<K: Key, V: Value> {
    config: WriteBehindConfig,
    state: Mutex<Backlog<K, V>>,
    /// Held while a sequence is drawn and its record is handed to the log, so that both have one
    /// order. Taken before `state`; the log's callbacks take only `state`.
    order: Mutex<()>,
    rejected: Mutex<Rejections<K, V>>,
    /// Held while records of rejected writes are handed to the log, so that the log's last record
    /// of a key says what `rejected` does. Taken after `order` and before `state` and `rejected`.
    rejected_order: Mutex<()>,
    log: Arc<dyn WriteLog<K, V>>,
    /// `None` once the cache is closed. Taken last, for a moment.
    hold: Mutex<Option<Arc<Hold>>>,
    /// Closed when nobody has the hold any more.
    ended: watch::Receiver<()>,
    flusher: std::sync::OnceLock<AbortHandle>,
    /// No write is admitted any more. Set while `order` is held.
    is_draining: AtomicBool,
    /// Notifies those who wait for room, or for a flush.
    progress: Notify,
    /// Wakes the flusher.
    wake: Notify,
    is_closed: AtomicBool,
    /// The flusher has ended, with its runtime or by a defect. Set while `order` is held.
    is_stopped: AtomicBool,
    /// Records are being appended again.
    is_moving: AtomicBool,
    dirty: DirtyKeys,
    acknowledged: AtomicU64,
    flushed: AtomicU64,
    flush_failures: AtomicU64,
    epoch: std::sync::OnceLock<Instant>,
}

/// The number of each kind, for [`Stats`](crate::Stats).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) backlog: u64,
    pub(crate) backlog_bytes: u64,
    pub(crate) flushed: u64,
    pub(crate) flush_failures: u64,
    pub(crate) rejected_writes: u64,
}

/// A write that has been admitted.
struct Submission<V> {
    value: Arc<Option<V>>,
    keep: Keep,
    record: Vec<u8>,
    bytes: u64,
}

impl<K: Key, V: Value> Shared<K, V> {
    fn now(&self) -> u64 {
        let epoch = self.epoch.get_or_init(Instant::now);
        u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The value of a key that the sink does not have yet. `Some(None)`: it was deleted.
    #[inline]
    #[expect(clippy::option_option, reason = "not in the backlog, or deleted in it")]
    pub(crate) fn get<Q>(&self, key: &Q) -> Option<Option<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if !self.dirty.may_have(key) {
            return None;
        }
        // Foreign code, cloning the value, runs after the lock.
        let found = self.state.lock().get(key)?;
        Some(Option::clone(&found))
    }

    /// Waits for room, hands the write to the log, and waits until the log has it.
    ///
    /// # Cancel safety
    /// Until there is room nothing has happened. After that the write goes on without the caller.
    pub(crate) async fn write(
        self: &Arc<Self>,
        key: &K,
        value: Option<V>,
        keep: Keep,
    ) -> Result<(), WriteError> {
        let record = self.log.encode(key, value.as_ref());
        let bytes = self.log.weigh(key, value.as_ref(), &record);
        let bytes = bytes.saturating_add(keep.as_ref().map_or(0, |kept| kept.bytes()));
        let mut submission = Submission { value: Arc::new(value), keep, record, bytes };
        let reply = match self.try_submit(key, submission)? {
            Ok(reply) => reply,
            Err(_) if self.config.on_full == OnFull::Fail => return Err(WriteError::Full),
            Err(refused) => {
                submission = refused;
                // Ends: when a flush has made room, or the caller gives up.
                loop {
                    let mut progress = pin!(self.progress.notified());
                    progress.as_mut().enable();
                    match self.try_submit(key, submission)? {
                        Ok(reply) => break reply,
                        Err(refused) => submission = refused,
                    }
                    progress.await;
                }
            }
        };
        reply.await.unwrap_or(Err(WriteError::Panicked))
    }

    /// Gives the submission back when there is no room.
    #[expect(clippy::type_complexity, reason = "a refusal gives back what it was given")]
    fn try_submit(
        self: &Arc<Self>,
        key: &K,
        submission: Submission<V>,
    ) -> Result<Result<oneshot::Receiver<Result<(), WriteError>>, Submission<V>>, WriteError> {
        // Foreign code, cloning the key, runs before the lock.
        let acknowledged_key = key.clone();
        let order = self.order.lock();
        self.check_admits()?;
        let Admission::Admitted(ticket) = self.state.lock().admit(key, submission.bytes) else {
            return Ok(Err(submission));
        };
        let Submission { value, keep, record, .. } = submission;
        let change = Change { writes: vec![record], ..Change::default() };
        let (done, reply) = self.on_acknowledged(acknowledged_key, ticket, value, keep);
        let submitted = self.submit(change, done);
        drop(order);
        match submitted {
            Ok(completion) => log::complete(completion),
            Err(error) => {
                self.state.lock().abandon(key, ticket);
                self.progress.notify_waiters();
                return Err(error);
            }
        }
        Ok(Ok(reply))
    }

    /// Fails where no write is admitted any more. The caller holds `order`.
    pub(super) fn check_admits(&self) -> Result<(), WriteError> {
        if self.is_draining.load(Ordering::Acquire) {
            return Err(WriteError::Closed);
        }
        if self.is_stopped.load(Ordering::Acquire) {
            return Err(WriteError::Stopped);
        }
        Ok(())
    }

    /// Hands a change to the log, which is done before the namespace is given back.
    fn submit(&self, change: Change, done: Done) -> Result<Option<Completion>, WriteError> {
        let hold = self.hold.lock().clone().ok_or(WriteError::Closed)?;
        self.log.submit(change, hold, done)
    }

    /// Changes the backlog for a key by `change`, and makes it known to readers whether the key is
    /// dirty: before a write of it is acknowledged, and after the cache has a flushed value.
    fn change_dirty<R>(
        &self,
        state: &mut Backlog<K, V>,
        key: &K,
        change: impl FnOnce(&mut Backlog<K, V>) -> R,
    ) -> R {
        let before = state.dirty();
        let result = change(state);
        match state.dirty().cmp(&before) {
            std::cmp::Ordering::Greater => {
                self.dirty.counter(key).fetch_add(1, Ordering::Release);
            }
            std::cmp::Ordering::Less => {
                self.dirty.counter(key).fetch_sub(1, Ordering::Release);
            }
            std::cmp::Ordering::Equal => {}
        }
        self.show_dirty(state);
        result
    }

    /// Makes the number of dirty keys known to readers. A closed cache shows none: another one may
    /// have newer values.
    fn show_dirty(&self, state: &Backlog<K, V>) {
        let dirty = if self.is_closed.load(Ordering::Acquire) { 0 } else { state.dirty() };
        self.dirty.all.store(dirty, Ordering::Release);
    }

    /// What happens when the log has, or has not, taken a write.
    fn on_acknowledged(
        self: &Arc<Self>,
        key: K,
        ticket: Ticket,
        value: Arc<Option<V>>,
        keep: Keep,
    ) -> (Done, oneshot::Receiver<Result<(), WriteError>>) {
        let (reply, receiver) = oneshot::channel();
        let shared = Arc::clone(self);
        // Read here: the log's thread is in no runtime, and knows nothing of a paused clock.
        let now = self.now();
        let done = move |outcome: Result<u64, WriteError>| {
            let answer = match outcome {
                Ok(position) => {
                    shared.acknowledge(now, &key, ticket, position, value, keep);
                    Ok(())
                }
                Err(error) => {
                    shared.state.lock().abandon(&key, ticket);
                    shared.progress.notify_waiters();
                    Err(error)
                }
            };
            // An error here says that the caller has gone.
            let _ = reply.send(answer);
        };
        (Box::new(done), receiver)
    }

    fn acknowledge(
        &self,
        now: u64,
        key: &K,
        ticket: Ticket,
        position: u64,
        value: Arc<Option<V>>,
        keep: Keep,
    ) {
        let (dropped, is_first) = {
            let mut state = self.state.lock();
            self.change_dirty(&mut state, key, |state| {
                state.acknowledge(now, key, ticket, position, value, keep)
            })
        };
        // Foreign code: after the lock.
        drop(dropped);
        let count = self.acknowledged.fetch_add(1, Ordering::Relaxed);
        if is_first || count.is_multiple_of(WAKE_EVERY) {
            self.wake.notify_one();
        }
        if self.is_draining.load(Ordering::Acquire) {
            self.progress.notify_waiters();
        }
    }

    /// Waits until the sink has everything that was acknowledged before the call, or newer values,
    /// or has rejected it.
    pub(crate) async fn flush(&self) {
        let now = self.now();
        let mark = {
            let mut state = self.state.lock();
            state.hurry(now);
            state.mark()
        };
        self.wake.notify_one();
        // Ends: when the sink has taken or rejected what is below the mark, or the caller gives up.
        loop {
            let mut progress = pin!(self.progress.notified());
            progress.as_mut().enable();
            let has_ended =
                self.is_closed.load(Ordering::Acquire) || self.is_stopped.load(Ordering::Acquire);
            if has_ended || self.state.lock().has_flushed(mark) {
                return;
            }
            progress.await;
        }
    }

    /// Admits no write from now on. Those who wait for room are rejected.
    pub(crate) fn drain(&self) {
        {
            let _order = self.order.lock();
            self.is_draining.store(true, Ordering::Release);
        }
        self.progress.notify_waiters();
    }

    /// The flusher has ended: no write is admitted from now on, and nobody waits for it.
    fn stop(&self) {
        {
            let _order = self.order.lock();
            self.is_stopped.store(true, Ordering::Release);
        }
        self.progress.notify_waiters();
    }

    /// Waits until the log has answered everything that was handed to it.
    pub(crate) async fn answered(&self) {
        // Ends: when the log has answered, nothing more being handed in, or the caller gives up.
        loop {
            let mut progress = pin!(self.progress.notified());
            progress.as_mut().enable();
            if self.state.lock().is_answered() {
                return;
            }
            progress.await;
        }
    }

    /// Ends the flusher when its task is next polled, and the backlog's answers to readers.
    pub(crate) fn close(&self) {
        {
            let state = self.state.lock();
            self.is_closed.store(true, Ordering::Release);
            self.show_dirty(&state);
        }
        self.wake.notify_one();
        self.progress.notify_waiters();
    }

    /// Gives the namespace back, and waits until the flusher and the changes on their way to the
    /// log have done so too.
    ///
    /// # Cancel safety
    /// Cancel safe: the namespace is given back all the same.
    pub(crate) async fn end(&self) {
        self.close();
        // The log tells of lazy releases before they take place, and of this one after them.
        let release = Some(self.state.lock().release_point());
        let change = Change { release, ..Change::default() };
        if let Ok(completion) = self.submit(change, Box::new(|_| {})) {
            log::complete(completion);
        }
        let hold = self.hold.lock().take();
        // The lease is the journal's own: dropped without the lock.
        drop(hold);
        if let Some(flusher) = self.flusher.get() {
            flusher.abort();
        }
        // Ends: an error says that the last hold has ended.
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }

    /// Whether nobody has the hold any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.has_changed().is_err()
    }

    /// How many writes the log has not answered yet.
    pub(crate) fn unacknowledged(&self) -> u64 {
        self.state.lock().unacknowledged() as u64
    }

    pub(crate) fn counts(&self) -> Counts {
        let (backlog, backlog_bytes) = {
            let state = self.state.lock();
            (state.dirty() as u64, state.bytes())
        };
        Counts {
            backlog,
            backlog_bytes,
            flushed: self.flushed.load(Ordering::Relaxed),
            flush_failures: self.flush_failures.load(Ordering::Relaxed),
            rejected_writes: self.rejected.lock().len() as u64,
        }
    }
}

/// The cache's hold on its backlog: the flusher ends with it.
pub(crate) struct Behind<K: Key, V: Value>(pub(crate) Arc<Shared<K, V>>);

impl<K: Key, V: Value> Drop for Behind<K, V> {
    fn drop(&mut self) {
        self.0.close();
    }
}

pub(crate) use flusher::spawn;
