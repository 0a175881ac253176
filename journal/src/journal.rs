//! The journal as its users see it, and its two threads.

use std::any::TypeId;
use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use crate::commit::{Commit, Receipt, Rejected};
use crate::config::Config;
use crate::engine::Engine;
use crate::engine::completion::{Outcome, Slot};
use crate::engine::submit::{Closed, Submitted, Work};
use crate::engine::threads;
use crate::error::{Error, Fault, OpenError};
use crate::files::disk::descriptor_limit;
use crate::files::{DiskFiles, Files};
use crate::format::BATCH_BYTES_MAX;
use crate::lease::Lease;
use crate::log::Log;
use crate::log_info::{LogInfo, info_of};
use crate::recovery;

/// A crash-safe log of many logs in one directory. Clones are handles to the same journal; when
/// the last one is dropped the journal is closed.
///
/// # Example
/// ```
/// use voussoir_journal::{Commit, Journal, MemoryFiles, Config};
/// let files = std::sync::Arc::new(MemoryFiles::new());
/// let mut config = Config::default();
/// config.segment_bytes = 1 << 20;
/// let journal = Journal::open_with(files, config)?;
/// let log = journal.log("greetings", 0)?;
/// journal.commit_blocking(Commit::new().append(&log, ["hello"]))?;
/// assert_eq!(&log.read(0)?[..], b"hello");
/// journal.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Journal {
    owner: Arc<Owner>,
}

#[derive(Debug)]
struct Owner {
    engine: Arc<Engine>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Counts since the journal was opened, and its present size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Commits written.
    pub commits: u64,
    /// Groups in which they were written.
    pub groups: u64,
    /// Syncs of segments, outside the preparation of new ones.
    pub syncs: u64,
    /// Time that those syncs took, all together; not measured with [`Config::manual`].
    pub sync_time: Duration,
    /// Bytes written to segments, outside the preparation of new ones.
    pub bytes_written: u64,
    /// Times a segment was full and the next one begun.
    pub rotations: u64,
    /// Idle and closing marks written.
    pub marks: u64,
    /// Buffered commits that failed after they had been acknowledged: there was no room for them,
    /// or the journal stopped before they were written. Never falls; see
    /// [`Durability::Buffered`](crate::Durability::Buffered).
    pub buffered_lost: u64,
    /// Segment files created.
    pub segments_created: u64,
    /// Segment files used again.
    pub segments_recycled: u64,
    /// Bytes of zeros with which new files were filled.
    pub bytes_zeroed: u64,
    /// Segments that came back because what still counted in them was moved.
    pub segments_rewritten: u64,
    /// Bytes that were written for that.
    pub bytes_rewritten: u64,
    /// Segments that stay as they are, because a batch in them did not verify or could not be read
    /// when it was to be moved, or because they have no index that can be used.
    pub segments_unmovable: u64,
    /// Segments that are in use or ready.
    pub segments: usize,
    /// Bytes of the segments that appends may still begin before the limit of
    /// [`Config::max_bytes`]. The disk may have fewer.
    pub room_bytes: u64,
    /// Segment files, with those that wait to be used again.
    pub files: usize,
    /// Extents of logs in full segments: one for each log in each segment that has records of it.
    /// Each takes 48 bytes of memory, and at most as much again, for as long as the log keeps the
    /// records.
    pub extents: u64,
    /// Bytes of commits accepted and not yet acknowledged.
    pub pending_bytes: u64,
    /// Logs that exist.
    pub logs: usize,
    /// Highest LSN that has been written.
    pub written_lsn: u64,
    /// Highest LSN that is durable.
    pub durable_lsn: u64,
}

impl Journal {
    /// Opens the journal in a directory, creating both when missing, and starts its threads: one
    /// that writes, and one that prepares segments.
    ///
    /// Each segment file takes a descriptor for as long as the journal is open. A `tracing` event
    /// warns when the process may not have as many as [`Config::max_bytes`] may need.
    ///
    /// Reading back the newest segment takes about as long as reading a file of
    /// [`Config::segment_bytes`]; older ones are only looked at.
    ///
    /// # Errors
    /// See [`OpenError`]. Damage to logs is no error here: such logs say so by
    /// [`Log::health`](crate::Log::health), and the others work.
    pub fn open(dir: impl AsRef<Path>, config: Config) -> Result<Self, OpenError> {
        config.validate()?;
        let files =
            DiskFiles::new(dir).map_err(|error| Fault::new("create", "directory", &error))?;
        let needed = config.descriptors();
        if let Some(limit) = descriptor_limit().filter(|limit| *limit < needed) {
            tracing::warn!(
                target: "voussoir::journal", limit, needed,
                "fewer descriptors than segments: raise the process's limit, or lower max_bytes"
            );
        }
        Self::open_with(Arc::new(files), config)
    }

    /// Opens a journal over any files. With [`Config::manual`] it has no threads.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(files: Arc<dyn Files>, config: Config) -> Result<Self, OpenError> {
        let manual = config.manual;
        let engine = recovery::open(files, config)?;
        let owner = Owner { engine, threads: Mutex::new(Vec::new()) };
        if !manual {
            owner.start().map_err(|error| Fault::new("start", "thread", &error))?;
        }
        Ok(Self { owner: Arc::new(owner) })
    }

    /// A handle to a log, which comes into being with the first commit that appends to it.
    ///
    /// The namespace (1 to 64 bytes) keeps the logs of different crates apart; it is free to
    /// choose.
    ///
    /// # Errors
    /// [`Error::InvalidName`]; [`Error::TooManyLogs`].
    pub fn log(&self, namespace: &str, id: u64) -> Result<Log, Error> {
        let inner = self.engine().state.lock().log(namespace, id)?;
        Ok(Log::new(Arc::clone(self.engine()), inner))
    }

    /// Reserves a namespace for one user, such as a cache whose backlog two caches must not share.
    /// It is free again when the lease is dropped.
    ///
    /// # Errors
    /// [`Error::Leased`]: another user has it.
    pub fn lease(&self, namespace: &str) -> Result<Lease, Error> {
        Lease::take(self.engine(), namespace)
    }

    /// All logs that exist, by name.
    pub fn logs(&self) -> Vec<LogInfo> {
        let mut logs: Vec<LogInfo> =
            self.engine().existing().iter().map(|log| info_of(log)).collect();
        logs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        logs
    }

    /// The logs of one namespace that exist, by id. Costs time for that namespace only, however
    /// many logs the others have.
    pub fn logs_of(&self, namespace: &str) -> Vec<LogInfo> {
        self.engine().existing_in(namespace).iter().map(|log| info_of(log)).collect()
    }

    /// Hands a commit in, now; the future is done when it is acknowledged as its
    /// [`Durability`](crate::Durability) says.
    ///
    /// When too much is pending (see [`Config::max_pending_bytes`]) the commit waits its turn;
    /// commits are accepted in the order of the calls.
    ///
    /// # Cancel safety
    /// Dropping the future does not undo the commit, and its outcome is then unknown to the
    /// caller. Only a commit that is still waiting for its turn is withdrawn.
    pub fn commit(&self, commit: Commit) -> CommitFuture {
        let submitted = self.engine().commit(commit);
        CommitFuture {
            stage: match submitted {
                Submitted::Told(outcome) => Stage::Told(Some(outcome)),
                Submitted::Later(slot) => Stage::Later(slot, Arc::clone(self.engine())),
            },
        }
    }

    /// Commits and waits. When nobody else is writing, the calling thread does the write and the
    /// sync itself: no other thread has to be woken.
    ///
    /// Blocks on the disk; inside an async task use [`commit`](Self::commit).
    ///
    /// # Errors
    /// See [`Error`].
    pub fn commit_blocking(&self, commit: Commit) -> Result<Receipt, Error> {
        self.engine().commit_blocking(commit)
    }

    /// Hands a commit in without waiting: `done` is called with the outcome, from the thread
    /// that wrote it, or from this one for [`Durability::Buffered`](crate::Durability). It must
    /// not block; it may submit.
    ///
    /// # Errors
    /// The commit was rejected and is in the error, nothing happened, and `done` is never called;
    /// [`Error::Busy`] when too much is pending.
    pub fn submit(
        &self,
        commit: Commit,
        done: impl FnOnce(Result<Receipt, Error>) + Send + 'static,
    ) -> Result<(), Box<Rejected>> {
        self.engine().submit(commit, Box::new(done), false)
    }

    /// As [`submit`](Self::submit), but when too much is pending the commit waits its turn, as with
    /// [`commit`](Self::commit), and is never rejected for it: [`Config::max_waiting`] does not
    /// count it. Its caller bounds how many of its own wait.
    ///
    /// # Errors
    /// As [`submit`](Self::submit), but for [`Error::Busy`].
    pub fn submit_in_turn(
        &self,
        commit: Commit,
        done: impl FnOnce(Result<Receipt, Error>) + Send + 'static,
    ) -> Result<(), Box<Rejected>> {
        self.engine().submit(commit, Box::new(done), true)
    }

    /// Does one thing that can be done now: writes a group; else, when the journal has no thread
    /// for it, prepares a segment, or moves some of what is in segments that are pinned by little;
    /// else, when the journal has been idle for [`Config::idle_mark`], marks everything as durable.
    ///
    /// `now` is in nanoseconds since any fixed moment, and never goes back.
    pub fn work(&self, now: u64) -> Work {
        self.engine().work(now)
    }

    /// Bytes of the largest commit: its batches with 4 bytes per record, and 40 to 160 bytes for
    /// each operation. A quarter of [`Config::segment_bytes`], at most 16 MiB and a bit.
    pub fn max_commit_bytes(&self) -> u64 {
        self.engine().config.max_frame_bytes()
    }

    /// Bytes of the largest batch, with 4 bytes per record.
    pub fn max_batch_bytes(&self) -> u64 {
        BATCH_BYTES_MAX.min(self.max_commit_bytes() - 256)
    }

    /// Highest LSN that is durable: a watermark of all commits at or below it.
    pub fn durable_lsn(&self) -> u64 {
        self.engine().durable_lsn()
    }

    /// Bytes of the segments that appends may still begin before the limit of
    /// [`Config::max_bytes`], as [`Stats::room_bytes`] has them, without the other counts.
    pub fn room_bytes(&self) -> u64 {
        let engine = self.engine();
        let free = engine.config.max_segments().saturating_sub(engine.space.used());
        engine.config.segment_bytes * free as u64
    }

    /// Asks for segments that are pinned by little to be rewritten now, although fewer than three
    /// quarters are in use: for whoever needs more than [`room_bytes`](Self::room_bytes), and tries
    /// again later. Does not wait. What it finds no victims for stays as it is, and so does a
    /// journal with [`Config::rewrite_bytes_per_second`] of 0.
    pub fn make_room(&self) {
        self.engine().space.ask_for_victims();
    }

    /// [`Config::max_bytes`] and [`Config::segment_bytes`] with which the journal was opened.
    pub fn limits(&self) -> (u64, u64) {
        (self.engine().config.max_bytes, self.engine().config.segment_bytes)
    }

    /// What the users of one opening share: one value of each type, which the first who asks makes.
    /// It lives as long as the journal is open or somebody holds it.
    ///
    /// # Example
    /// ```
    /// use std::sync::{Arc, Mutex};
    /// use voussoir_journal::{Config, Journal, MemoryFiles};
    ///
    /// let journal = Journal::open_with(Arc::new(MemoryFiles::new()), Config::manual()).unwrap();
    /// *journal.shared::<Mutex<u64>>().lock().unwrap() = 7;
    /// assert_eq!(*journal.clone().shared::<Mutex<u64>>().lock().unwrap(), 7);
    /// assert_eq!(journal.room_bytes(), journal.stats().room_bytes);
    /// ```
    pub fn shared<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        // Made before the lock is taken: it is not our code.
        let fresh = Arc::new(T::default());
        let mut shared = self.engine().shared.lock();
        let first = shared.entry(TypeId::of::<T>()).or_insert_with(|| Arc::clone(&fresh) as Arc<_>);
        // The type is the key, so it is the one asked for.
        Arc::clone(first).downcast().unwrap_or(fresh)
    }

    /// Counts since the journal was opened, and its present size.
    pub fn stats(&self) -> Stats {
        let engine = self.engine();
        let (segments, files) = engine.space.counts();
        let room_bytes = self.room_bytes();
        let state = engine.state.lock();
        let (counters, prepared) = (&engine.counters, &engine.space.prepared);
        Stats {
            commits: counters.commits.load(Ordering::Relaxed),
            groups: counters.groups.load(Ordering::Relaxed),
            syncs: counters.syncs.load(Ordering::Relaxed),
            sync_time: Duration::from_nanos(counters.sync_nanos.load(Ordering::Relaxed)),
            bytes_written: counters.bytes.load(Ordering::Relaxed),
            rotations: counters.rotations.load(Ordering::Relaxed),
            marks: counters.marks.load(Ordering::Relaxed),
            buffered_lost: counters.buffered_lost.load(Ordering::Relaxed),
            segments_created: prepared.created.load(Ordering::Relaxed),
            segments_recycled: prepared.recycled.load(Ordering::Relaxed),
            bytes_zeroed: prepared.bytes_zeroed.load(Ordering::Relaxed),
            segments_rewritten: counters.segments_rewritten.load(Ordering::Relaxed),
            bytes_rewritten: counters.bytes_rewritten.load(Ordering::Relaxed),
            segments_unmovable: counters.segments_unmovable.load(Ordering::Relaxed),
            segments,
            room_bytes,
            files,
            extents: engine.space.extents(),
            pending_bytes: state.pending_bytes,
            logs: state.existing,
            written_lsn: engine.written.load(Ordering::Acquire),
            durable_lsn: engine.durable_lsn(),
        }
    }

    /// Waits until the journal takes no more commits, and returns the error that each further
    /// commit gets: [`Error::Stopped`] with the first failed write or sync, or [`Error::Closed`]
    /// once [`close`](Self::close) has been called. Returns at once when that has happened before.
    ///
    /// A failed write or sync is never repeated: nothing is acknowledged until the journal has been
    /// closed and opened again. A process with one journal usually ends with an error, and its next
    /// start opens the journal. A full disk ([`Error::Full`]) and a failed read are no such
    /// failure. A disk that fails while nothing is written is noticed with the next write.
    ///
    /// The wait has no limit: a journal that works and stays open never fails. A failure while the
    /// journal closes is told by [`close`](Self::close) alone.
    ///
    /// # Cancel safety
    /// Safe: a dropped call leaves nothing behind. It may be a branch of the `select!` of a loop.
    ///
    /// # Example
    /// ```
    /// # use voussoir_journal::{Config, Error, Journal, MemoryFiles};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// # let files = std::sync::Arc::new(MemoryFiles::new());
    /// # let journal = Journal::open_with(files, Config::manual()).unwrap();
    /// # let stopped = std::future::ready(());
    /// tokio::select! {
    ///     () = stopped => journal.close(),
    ///     error = journal.failed() => Err(error),
    /// }
    /// # }
    /// ```
    pub async fn failed(&self) -> Error {
        let wait = HaltWait::new(self.engine());
        poll_fn(|context| wait.poll(context)).await
    }

    /// Takes no more commits, writes those that have been accepted, makes everything durable and
    /// releases the directory lock. Dropping the last handle does the same, without telling of
    /// errors. From within a callback of [`submit`](Self::submit), both only ask for it, and it
    /// is done right after the callback.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the journal had failed before; [`Error::Failed`] when it failed
    /// now.
    pub fn close(&self) -> Result<(), Error> {
        self.owner.close()
    }

    fn engine(&self) -> &Arc<Engine> {
        &self.owner.engine
    }
}

impl Owner {
    fn start(&self) -> std::io::Result<()> {
        let mut threads = self.threads.lock();
        let engine = Arc::clone(&self.engine);
        let writer = std::thread::Builder::new().name("journal-writer".to_owned());
        let writer = writer.spawn(move || threads::write_until_closed(&engine))?;
        self.engine.leadership.set_writer(writer.thread().clone());
        threads.push(writer);
        let engine = Arc::clone(&self.engine);
        let keeper = std::thread::Builder::new().name("journal-keeper".to_owned());
        threads.push(keeper.spawn(move || threads::keep_until_closed(&engine))?);
        Ok(())
    }

    fn close(&self) -> Result<(), Error> {
        let closed = self.engine.close();
        if matches!(closed, Ok(Closed::Now) | Err(_)) {
            let threads = std::mem::take(&mut *self.threads.lock());
            // The last handle may go in a waker that one of these threads calls.
            let this = std::thread::current().id();
            for thread in threads.into_iter().filter(|thread| thread.thread().id() != this) {
                // A thread of ours that panicked has been reported already.
                let _ = thread.join();
            }
        }
        closed.map(|_| ())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // The last handle is gone, so no caller can take the error; `close` returns it.
        let _ = self.close();
    }
}

/// The outcome of a commit, to be awaited.
#[derive(Debug)]
#[must_use = "the commit goes on without it, but then nobody knows its outcome"]
pub struct CommitFuture {
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Told(Option<Outcome>),
    Later(Arc<Slot>, Arc<Engine>),
}

impl Future for CommitFuture {
    type Output = Result<Receipt, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.stage {
            Stage::Told(outcome) => outcome.take().map_or(Poll::Pending, Poll::Ready),
            Stage::Later(slot, _) => {
                let polled = slot.poll(context);
                if polled.is_ready() {
                    self.stage = Stage::Told(None);
                }
                polled
            }
        }
    }
}

impl Drop for CommitFuture {
    fn drop(&mut self) {
        if let Stage::Later(slot, engine) = &self.stage {
            engine.abandon(slot);
        }
    }
}

/// One call of [`Journal::failed`].
#[derive(Debug)]
struct HaltWait<'a> {
    engine: &'a Engine,
    /// By which the engine knows its waker.
    number: u64,
}

impl<'a> HaltWait<'a> {
    fn new(engine: &'a Engine) -> Self {
        Self { engine, number: engine.halted.new_number() }
    }

    fn poll(&self, context: &Context<'_>) -> Poll<Error> {
        if let Some(error) = self.engine.rejection() {
            return Poll::Ready(error);
        }
        self.engine.halted.register(self.number, context.waker());
        // Once more after registering: the journal may have halted in between.
        self.engine.rejection().map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for HaltWait<'_> {
    fn drop(&mut self) {
        self.engine.halted.forget(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Wake, Waker};

    use super::*;
    use crate::files::MemoryFiles;

    struct WakesNobody;

    impl Wake for WakesNobody {
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn a_halt_while_a_wait_begins_is_told() {
        let journal = Journal::open_with(Arc::new(MemoryFiles::new()), Config::manual()).unwrap();
        let engine = journal.engine();
        let wakes_nobody = Arc::new(WakesNobody);
        let waker = Waker::from(Arc::clone(&wakes_nobody));
        let wait = HaltWait::new(engine);
        std::thread::scope(|scope| {
            let held = engine.halted.hold();
            let polled = scope.spawn(|| wait.poll(&Context::from_waker(&waker)));
            // Ends: the waker is cloned before the wait is held up, after it has looked once.
            while Arc::strong_count(&wakes_nobody) == 2 {
                std::thread::yield_now();
            }
            // The halt wakes only those who have registered.
            engine.state.lock().reject_new(&Error::Closed).tell();
            drop(held);
            assert_eq!(polled.join().unwrap(), Poll::Ready(Error::Closed));
        });
    }

    /// As a loop does whose `select!` waits for the failure in each round.
    #[test]
    fn waits_for_the_failure_that_are_dropped_leave_no_waker() {
        let journal = Journal::open_with(Arc::new(MemoryFiles::new()), Config::manual()).unwrap();
        let mut context = Context::from_waker(Waker::noop());
        let wakers = || journal.engine().halted.len();
        let mut kept = pin!(journal.failed());
        for _ in 0..10_000 {
            let mut dropped = pin!(journal.failed());
            assert!(dropped.as_mut().poll(&mut context).is_pending());
            assert!(kept.as_mut().poll(&mut context).is_pending());
            assert!(wakers() <= 2);
        }
        assert_eq!(wakers(), 1);
        journal.close().unwrap();
        assert_eq!(wakers(), 0);
        assert_eq!(kept.as_mut().poll(&mut context), Poll::Ready(Error::Closed));
    }
}
