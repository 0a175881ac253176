//! The task that brings acknowledged writes to the sink.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::log::{Change, Hold, RECORD_BYTES, complete};
use super::rejected::Reply;
use super::{Behind, Shared};
use crate::config::nanos;
use crate::core::backlog::{Flushed, Taken};
use crate::error::{ConfigError, SinkError, WriteError};
use crate::flights::{Key, Value};
use crate::lookup::Inner;
use crate::source::{Sink, Write};

/// A log is rewritten when it has this many records for each dirty key, and so many more.
const RECORDS_PER_KEY_MAX: u64 = 4;
const RECORDS_SPARE: u64 = 4096;
/// One commit that moves records has at most so many of them, and of so many bytes, unless a single
/// record is larger.
const MOVED_RECORDS_MAX: usize = 256;
const MOVED_BYTES_MAX: usize = 256 << 10;
/// Records of the log of rejected writes that are no longer needed, beyond those that are.
const REJECTED_SPARE: u64 = 64;

/// The room for records in one commit that moves them.
struct Room {
    records: usize,
    bytes: usize,
    bytes_max: usize,
}

impl Room {
    /// `bytes_max`: what the log takes in one commit.
    fn new(bytes_max: usize) -> Self {
        Self { records: 0, bytes: 0, bytes_max: bytes_max.min(MOVED_BYTES_MAX) }
    }

    /// Whether the commit takes one more record. The first one always fits: the log takes whatever
    /// it has accepted as a write.
    fn takes(&mut self, record: &[u8]) -> bool {
        let bytes = self.bytes + record.len() + RECORD_BYTES;
        let takes =
            self.records == 0 || (self.records < MOVED_RECORDS_MAX && bytes <= self.bytes_max);
        if takes {
            self.records += 1;
            self.bytes = bytes;
        }
        takes
    }
}

/// Starts the flusher. It ends with the cache.
pub(crate) fn spawn<K: Key, V: Value>(
    cache: &Arc<Inner<K, V>>,
    behind: &Behind<K, V>,
    sink: Arc<dyn Sink<K, V>>,
) -> Result<(), ConfigError> {
    let runtime = tokio::runtime::Handle::try_current().map_err(|_| ConfigError {
        field: "write_behind",
        rule: "must be built inside a tokio runtime",
    })?;
    let seed = behind.0.config.seed;
    let flusher = Flusher {
        shared: Arc::clone(&behind.0),
        cache: Arc::downgrade(cache),
        sink,
        _hold: behind.0.hold.lock().clone(),
        failures: 0,
        batch: behind.0.config.max_batch,
        released: 0,
        random: seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed),
    };
    let task = runtime.spawn(flusher.run());
    // One backlog is given to one builder.
    let _ = behind.0.flusher.set(task.abort_handle());
    Ok(())
}

struct Flusher<K: Key, V: Value> {
    shared: Arc<Shared<K, V>>,
    cache: Weak<Inner<K, V>>,
    sink: Arc<dyn Sink<K, V>>,
    _hold: Option<Arc<Hold>>,
    /// Calls in a row of which the sink took nothing.
    failures: u32,
    /// The size of the next call: halved by a call of which nothing was taken, so that one write
    /// that fails with all others of its call gets a call of its own.
    batch: usize,
    /// Records below this position have been released.
    released: u64,
    random: fastrand::Rng,
}

/// The task may end before the cache does, with the runtime on which the cache was built: nothing
/// is flushed any more then, and no write may be acknowledged.
impl<K: Key, V: Value> Drop for Flusher<K, V> {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

type Answers = Vec<Result<(), SinkError>>;

/// A write of which the log of rejected writes has to be told before it leaves the backlog: the
/// sink has rejected it, or with `None` has taken it, which settles the key's older rejection.
type Booking<K, V> = (Taken<K, V>, Option<SinkError>);

impl<K: Key, V: Value> Flusher<K, V> {
    async fn run(mut self) {
        let mut pause_until = 0;
        while !self.is_closed() {
            self.shared.compact();
            self.release();
            let now = self.shared.now();
            let taken = if now < pause_until {
                Vec::new()
            } else {
                self.shared.state.lock().take(now, self.batch)
            };
            if taken.is_empty() {
                let next = self.shared.state.lock().next_deadline();
                self.rest(next.map(|next| next.max(pause_until))).await;
                continue;
            }
            let Some(answers) = self.call(&taken).await else { return };
            pause_until = self.settle(taken, answers).await;
        }
    }

    fn is_closed(&self) -> bool {
        self.shared.is_closed.load(Ordering::Acquire)
    }

    /// Waits until a time of [`Shared::now`], or until somebody wakes the flusher.
    async fn rest(&self, until: Option<u64>) {
        let woken = self.shared.wake.notified();
        let Some(until) = until else { return woken.await };
        let epoch = *self.shared.epoch.get_or_init(Instant::now);
        let until = epoch.checked_add(Duration::from_nanos(until));
        let Some(until) = until else { return woken.await };
        tokio::select! {
            biased;
            () = woken => {}
            () = sleep_until(until) => {}
        }
    }

    /// One call of the sink. `None` if the cache was closed meanwhile: the call is dropped then,
    /// and its outcome unknown.
    async fn call(&self, taken: &[Taken<K, V>]) -> Option<Answers> {
        let failed = |error: &SinkError| taken.iter().map(|_| Err(error.clone())).collect();
        // Foreign code: cloning may panic.
        let clone = || -> Vec<Write<K, V>> {
            let write = |one: &Taken<K, V>| {
                Write::new(one.key.clone(), Option::clone(&one.value)).at(one.position)
            };
            taken.iter().map(write).collect()
        };
        let Ok(writes) = catch_unwind(AssertUnwindSafe(clone)) else {
            return Some(failed(&SinkError::panicked()));
        };
        // In the future, where a panic is caught.
        let mut call = pin!(async { self.sink.write(&writes).await });
        let call = std::future::poll_fn(|cx| {
            let polled = catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx)));
            polled.unwrap_or_else(|_| Poll::Ready(failed(&SinkError::panicked())))
        });
        let limit = self.shared.config.sink_timeout;
        let mut call = pin!(timeout(limit, call));
        // Ends when the timeout of the call fires, at the latest.
        let mut answers = loop {
            tokio::select! {
                biased;
                answers = &mut call => {
                    let timed_out = |_| failed(&SinkError::unknown("the call took too long"));
                    break answers.unwrap_or_else(timed_out);
                }
                () = self.shared.wake.notified() => {
                    if self.is_closed() {
                        return None;
                    }
                    self.shared.compact();
                }
            }
        };
        let missing = || Err(SinkError::unknown("the sink did not answer for this write"));
        // Surplus answers are ignored.
        answers.resize_with(taken.len(), missing);
        Some(answers)
    }

    /// Books what the sink said. Returns when the next call may be.
    async fn settle(&mut self, taken: Vec<Taken<K, V>>, answers: Answers) -> u64 {
        let (mut taken_by_sink, mut rejected) = (0, 0);
        let mut bookings = Vec::new();
        for (one, answer) in taken.into_iter().zip(answers) {
            match answer {
                Ok(()) => {
                    taken_by_sink += 1;
                    if self.shared.rejected.lock().contains(&one.key) {
                        // What was rejected is older than what the sink has now.
                        bookings.push((one, None));
                    } else {
                        self.flushed(&one);
                    }
                }
                Err(error) if error.is_rejection() && self.has_room_for(rejected) => {
                    rejected += 1;
                    bookings.push((one, Some(error)));
                }
                Err(error) => self.failed(&one, &error),
            }
        }
        if taken_by_sink == 0 && rejected == 0 {
            self.failures = self.failures.saturating_add(1);
            self.batch = (self.batch / 2).max(1);
        } else {
            self.failures = 0;
            self.batch = self.batch.saturating_mul(2).min(self.shared.config.max_batch);
        }
        self.book(bookings).await;
        self.shared.progress.notify_waiters();
        if self.failures == 0 { 0 } else { self.shared.now() + self.backoff(self.failures) }
    }

    /// Whether one more write than `rejected` may be kept as rejected.
    fn has_room_for(&self, rejected: usize) -> bool {
        self.shared.rejected.lock().len() + rejected < self.shared.config.max_rejected
    }

    /// The sink has this value. The cache gets it before it leaves the backlog: at no moment does a
    /// reader find an older one.
    fn flushed(&self, one: &Taken<K, V>) {
        let hand_over = || {
            if let Some(cache) = self.cache.upgrade() {
                let value = one
                    .keep
                    .as_deref()
                    .and_then(|kept| Option::clone(&one.value).map(|value| (value, kept)));
                cache.flushed(&one.key, value);
            }
        };
        if catch_unwind(AssertUnwindSafe(hand_over)).is_err() {
            tracing::error!(target: "voussoir::cache", "a clone, hash or drop panicked");
        }
        self.shared.flushed.fetch_add(1, Ordering::Relaxed);
        self.finish(one, Flushed::Done);
    }

    fn failed(&mut self, one: &Taken<K, V>, error: &SinkError) {
        if self.failures == 0 {
            tracing::warn!(target: "voussoir::cache", %error, "a write could not be flushed");
        }
        self.retry(one);
    }

    /// The write stays in the backlog, and the sink gets it again.
    fn retry(&mut self, one: &Taken<K, V>) {
        self.shared.flush_failures.fetch_add(1, Ordering::Relaxed);
        let at = self.shared.now().saturating_add(self.backoff(one.attempts + 1));
        self.finish(one, Flushed::Retry { at });
    }

    fn finish(&self, one: &Taken<K, V>, how: Flushed) {
        let now = self.shared.now();
        let dropped = {
            let mut state = self.shared.state.lock();
            self.shared.change_dirty(&mut state, &one.key, |state| {
                state.finish(now, &one.key, one.sequence, how)
            })
        };
        // Foreign code: after the lock.
        drop(dropped);
    }

    /// Half of the pause to all of it.
    fn backoff(&mut self, failures: u32) -> u64 {
        let config = &self.shared.config;
        let (least, most) = (nanos(config.min_backoff), nanos(config.max_backoff));
        let doubled = least.saturating_mul(1 << (failures.clamp(1, 40) - 1));
        let pause = doubled.min(most);
        pause / 2 + self.random.u64(0..=pause / 2)
    }

    /// Tells the log of rejected writes what has to be told there, in commits of bounded size, and
    /// releases what nobody needs any more.
    async fn book(&mut self, bookings: Vec<Booking<K, V>>) {
        if bookings.is_empty() {
            return self.release();
        }
        let log = Arc::clone(&self.shared.log);
        let record = |booking: Booking<K, V>| {
            let (one, rejection) = &booking;
            let record = match rejection {
                Some(error) => {
                    let value = Option::as_ref(&one.value);
                    log.encode_rejected(&one.key, value, &error.to_string())
                }
                None => log.encode_settled(&one.key),
            };
            (booking, record)
        };
        let mut rest = bookings.into_iter().map(record).peekable();
        // Ends: each round takes at least one of the rest.
        while rest.peek().is_some() {
            let mut room = Room::new(log.max_batch_bytes());
            let part = std::iter::from_fn(|| rest.next_if(|(_, record)| room.takes(record)));
            let (part, records) = part.unzip();
            self.commit(part, records).await;
        }
        self.release();
        self.compact_rejected().await;
    }

    /// One commit: rejected writes move to their own log, settled rejections leave it, and the
    /// records of both writes are released with it. Only when the log has it do they leave the
    /// backlog: until then the next process writes them again, whatever the log says of older
    /// rejections.
    async fn commit(&mut self, bookings: Vec<Booking<K, V>>, records: Vec<Vec<u8>>) {
        let release_point = {
            let ends = bookings.iter().map(|(one, _)| (&one.key, one.sequence));
            self.shared.state.lock().release_point_without(ends)
        };
        let change =
            Change { rejected: records, release: Some(release_point), ..Change::default() };
        let (settling, outcome) = self.submit_bookings(change, &bookings).await;
        if let Err(error) = &outcome {
            let what = "rejected writes could not be moved";
            tracing::error!(target: "voussoir::cache", %error, what);
            for ((one, _), is_settling) in bookings.iter().zip(settling) {
                if is_settling {
                    self.shared.rejected.lock().keep(&one.key);
                }
                self.retry(one);
            }
            return;
        }
        self.released = self.released.max(release_point);
        for (one, rejection) in bookings {
            match rejection {
                Some(error) => self.rejected(&one, &error),
                None => {
                    let settled = self.shared.rejected.lock().remove(&one.key);
                    // Foreign code: after the lock.
                    drop(settled);
                    self.flushed(&one);
                }
            }
        }
    }

    /// The log has this rejected write.
    fn rejected(&self, one: &Taken<K, V>, error: &SinkError) {
        tracing::warn!(target: "voussoir::cache", %error, "the sink has rejected a write");
        let (value, reason) = (Arc::clone(&one.value), error.to_string().into());
        let replaced = self.shared.rejected.lock().insert(one.key.clone(), value, reason);
        // Foreign code: after the lock.
        drop(replaced);
        // The reader's next answer is the sink's.
        if let Some(cache) = self.cache.upgrade() {
            cache.flushed(&one.key, None);
        }
        self.finish(one, Flushed::Done);
    }

    /// Commits the change, and waits for the log. From its submission on nobody else settles an
    /// older rejection of these keys: that would settle a new one too. Also returns for which keys
    /// this has begun to settle one.
    async fn submit_bookings(
        &self,
        change: Change,
        bookings: &[Booking<K, V>],
    ) -> (Vec<bool>, Result<(), WriteError>) {
        let (settling, reply) = {
            let _order = self.shared.rejected_order.lock();
            let mut table = self.shared.rejected.lock();
            let settle = |(one, _): &Booking<K, V>| table.settle(&one.key).is_some();
            let settling = bookings.iter().map(settle).collect();
            drop(table);
            (settling, self.shared.submit_with_reply(change))
        };
        let outcome = match reply {
            Ok(reply) => Reply::wait(reply).await,
            Err(error) => Err(error),
        };
        (settling, outcome)
    }

    /// Releases what nobody needs any more. When a crash loses the release, more is flushed again.
    fn release(&mut self) {
        let release_point = self.shared.state.lock().release_point();
        if release_point <= self.released {
            return;
        }
        let release = Some(release_point);
        let change = Change { release, is_lazy: true, ..Change::default() };
        // A journal that has stopped releases nothing, and acknowledges nothing either.
        if let Ok(completion) = self.shared.submit(change, Box::new(|_| {})) {
            complete(completion);
            self.released = release_point;
        }
    }

    /// Appends the rejected writes anew when most of their log is settled, in commits of bounded
    /// size, and with the last one releases what lies before. Until then nothing is released, so a
    /// compaction that stops halfway loses nothing.
    async fn compact_rejected(&self) {
        let bounds = self.shared.log.rejected_bounds();
        let all = self.shared.rejected.lock().all();
        if bounds.end - bounds.start <= 4 * all.len() as u64 + REJECTED_SPARE {
            return;
        }
        let log = Arc::clone(&self.shared.log);
        let encode = |(key, value, reason): (K, Arc<Option<V>>, Arc<str>)| {
            let record = log.encode_rejected(&key, Option::as_ref(&value), &reason);
            (key, value, record)
        };
        let mut rest = all.into_iter().map(encode).peekable();
        // Ends: each round takes at least one of the rest, or is the last.
        loop {
            let mut room = Room::new(log.max_batch_bytes());
            let part = std::iter::from_fn(|| rest.next_if(|(.., record)| room.takes(record)));
            let records = part.collect();
            let is_last = rest.peek().is_none();
            let release_rejected = is_last.then_some(bounds.end);
            let Some(reply) = self.append_rejected(records, release_rejected) else { return };
            // Failed: tried again with the next rejected write.
            if Reply::wait(reply).await.is_err() || is_last {
                return;
            }
        }
    }

    /// Appends those of the records that are still the newest of their keys. `None`: the journal
    /// rejects it, or a rejection is being settled, whose record may still be needed.
    fn append_rejected(
        &self,
        mut records: Vec<(K, Arc<Option<V>>, Vec<u8>)>,
        release_rejected: Option<u64>,
    ) -> Option<Reply> {
        let _order = self.shared.rejected_order.lock();
        let table = self.shared.rejected.lock();
        if table.is_settling() {
            return None;
        }
        records.retain(|(key, value, _)| table.is_current(key, value));
        drop(table);
        let rejected = records.iter_mut().map(|(.., record)| std::mem::take(record)).collect();
        let change = Change { rejected, release_rejected, ..Change::default() };
        self.shared.submit_with_reply(change).ok()
    }
}

impl<K: Key, V: Value> Shared<K, V> {
    /// Appends the oldest records that are still needed again, when they keep many that are not
    /// from being released: one key whose flush fails for long must not keep every write of all
    /// others.
    fn compact(self: &Arc<Self>) {
        let dirty = self.dirty.all.load(Ordering::Acquire) as u64;
        if self.log.len() <= dirty.saturating_mul(RECORDS_PER_KEY_MAX) + RECORDS_SPARE
            || self.is_moving.swap(true, Ordering::AcqRel)
        {
            return;
        }
        let oldest = self.state.lock().oldest(MOVED_RECORDS_MAX);
        let mut room = Room::new(self.log.max_batch_bytes());
        let encode = |(key, sequence, value): (K, u64, Arc<Option<V>>)| {
            let record = self.log.encode(&key, Option::as_ref(&value));
            (key, sequence, record)
        };
        let oldest = oldest.into_iter().map(encode);
        let mut records: Vec<_> = oldest.take_while(|(.., record)| room.takes(record)).collect();
        let order = self.order.lock();
        let (least, moved, writes) = {
            let mut state = self.state.lock();
            records.retain(|(key, sequence, _)| state.is_movable(key, *sequence));
            let least = state.begin_move();
            let split = |(key, sequence, record)| ((key, sequence), record);
            let (moved, writes): (Vec<(K, u64)>, Vec<Vec<u8>>) =
                records.into_iter().map(split).unzip();
            (least, Arc::new(moved), writes)
        };
        let (shared, keys) = (Arc::clone(self), Arc::clone(&moved));
        let done = move |outcome: Result<u64, _>| shared.moved(least, &keys, outcome.ok());
        let is_empty = writes.is_empty();
        let change = Change { writes, ..Change::default() };
        let submitted = if is_empty { None } else { self.submit(change, Box::new(done)).ok() };
        drop(order);
        if let Some(completion) = submitted {
            complete(completion);
        } else {
            self.moved(least, &[], None);
        }
    }

    fn moved(&self, least: u64, moved: &[(K, u64)], position: Option<u64>) {
        self.state.lock().end_move(least, moved, position);
        self.is_moving.store(false, Ordering::Release);
        if self.is_draining.load(Ordering::Acquire) {
            self.progress.notify_waiters();
        }
        if position.is_some() {
            self.wake.notify_one();
        }
    }
}
