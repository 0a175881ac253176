//! The journal as its users see it, and its two threads.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::commit::{Commit, Receipt, Rejected};
use crate::config::Options;
use crate::core::Core;
use crate::core::completion::{Outcome, Slot};
use crate::core::lead::StopOnPanic;
use crate::core::space::Need;
use crate::core::submit::{Closed, Submitted};
use crate::error::{Error, Fault, LogName, OpenError};
use crate::files::{DiskFiles, Files};
use crate::format::BATCH_BYTES_MAX;
use crate::inspect::info_of;
use crate::log::{Health, Log};
use crate::recovery;

/// After a group of this many commits the writer waits a moment for those who commit again.
const COMPANY_MIN: usize = 4;
/// And never longer than this.
const COMPANY_WAIT_MAX: Duration = Duration::from_micros(250);

/// A crash-safe log of many logs in one directory. Clones are handles to the same journal; when
/// the last one is dropped the journal is closed.
///
/// # Example
/// ```
/// use voussoir_journal::{Commit, Journal, MemoryFiles, Options};
/// let files = std::sync::Arc::new(MemoryFiles::new());
/// let mut options = Options::default();
/// options.segment_bytes = 1 << 20;
/// let journal = Journal::open_with(files, options)?;
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
    core: Arc<Core>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What [`Journal::work`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Work {
    /// There was nothing to do, or somebody else is at it.
    Idle,
    /// A group was written, and these many commits were told their outcome.
    Committed {
        /// How many.
        commits: usize,
    },
    /// A segment was made ready for use.
    Prepared,
    /// Everything was made durable, and a mark says so.
    Marked,
}

/// What a journal knows about one of its logs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogInfo {
    /// Its name.
    pub name: LogName,
    /// Its first position.
    pub first: u64,
    /// The position after its last.
    pub end: u64,
    /// Bytes of its batches, counted in whole batches.
    pub bytes: u64,
    /// How many segments it keeps alive.
    pub segments: usize,
    /// Whether damage has hit it.
    pub health: Health,
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
    /// Time that those syncs took, all together; not measured with [`Options::manual`].
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
    /// Segments that are in use or ready.
    pub segments: usize,
    /// Segment files, with those that wait to be used again.
    pub files: usize,
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
    /// Reading back the newest segment takes about as long as reading a file of
    /// [`Options::segment_bytes`]; older ones are only looked at.
    ///
    /// # Errors
    /// See [`OpenError`]. Damage to logs is no error here: such logs say so by
    /// [`Log::health`](crate::Log::health), and the others work.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self, OpenError> {
        options.validate()?;
        let files =
            DiskFiles::new(dir).map_err(|error| Fault::new("create", "directory", &error))?;
        Self::open_with(Arc::new(files), options)
    }

    /// Opens a journal over any files. With [`Options::manual`] it has no threads.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(files: Arc<dyn Files>, options: Options) -> Result<Self, OpenError> {
        let manual = options.manual;
        let core = recovery::open(files, options)?;
        let owner = Owner { core, threads: Mutex::new(Vec::new()) };
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
        let inner = self.core().state.lock().log(namespace, id)?;
        Ok(Log::new(Arc::clone(self.core()), inner))
    }

    /// All logs that exist, by name.
    pub fn logs(&self) -> Vec<LogInfo> {
        let mut logs: Vec<LogInfo> =
            self.core().existing().iter().map(|log| info_of(log)).collect();
        logs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        logs
    }

    /// The logs of one namespace that exist, by id. Costs time for that namespace only, however
    /// many logs the others have.
    pub fn logs_of(&self, namespace: &str) -> Vec<LogInfo> {
        self.core().existing_in(namespace).iter().map(|log| info_of(log)).collect()
    }

    /// Hands a commit in, now; the future is done when it is acknowledged as its
    /// [`Durability`](crate::Durability) says.
    ///
    /// When too much is pending (see [`Options::max_pending_bytes`]) the commit waits its turn;
    /// commits are accepted in the order of the calls.
    ///
    /// # Cancel safety
    /// Dropping the future does not undo the commit, and its outcome is then unknown to the
    /// caller. Only a commit that is still waiting for its turn is withdrawn.
    pub fn commit(&self, commit: Commit) -> CommitFuture {
        let submitted = self.core().commit(commit);
        CommitFuture {
            stage: match submitted {
                Submitted::Told(outcome) => Stage::Told(Some(outcome)),
                Submitted::Later(slot) => Stage::Later(slot, Arc::clone(self.core())),
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
        self.core().commit_blocking(commit)
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
        self.core().submit(commit, Box::new(done))
    }

    /// Does one thing that can be done now: writes a group; else prepares a segment, when the
    /// journal has no thread for it; else, when the journal has been idle for
    /// [`Options::idle_mark`], marks everything as durable.
    ///
    /// `now` is in nanoseconds since any fixed moment, and never goes back.
    pub fn work(&self, now: u64) -> Work {
        self.core().work(now)
    }

    /// Bytes of the largest commit: its batches with 4 bytes per record, and 40 to 160 bytes for
    /// each operation. A quarter of [`Options::segment_bytes`], at most 16 MiB and a bit.
    pub fn max_commit_bytes(&self) -> u64 {
        self.core().options.max_frame_bytes()
    }

    /// Bytes of the largest batch, with 4 bytes per record.
    pub fn max_batch_bytes(&self) -> u64 {
        BATCH_BYTES_MAX.min(self.max_commit_bytes() - 256)
    }

    /// Highest LSN that is durable: a watermark of all commits at or below it.
    pub fn durable_lsn(&self) -> u64 {
        self.core().durable_lsn()
    }

    /// Counts since the journal was opened, and its present size.
    pub fn stats(&self) -> Stats {
        let core = self.core();
        let (segments, files) = core.space.counts();
        let state = core.state.lock();
        let (counters, prepared) = (&core.counters, &core.space.prepared);
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
            segments,
            files,
            pending_bytes: state.pending_bytes,
            logs: state.existing,
            written_lsn: core.written.load(Ordering::Acquire),
            durable_lsn: core.durable_lsn(),
        }
    }

    /// Takes no more commits, writes those that have been accepted, makes everything durable and
    /// gives the directory free. Dropping the last handle does the same, without telling of
    /// errors. From within a callback of [`submit`](Self::submit), both only ask for it, and it
    /// is done right after the callback.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the journal had failed before; [`Error::Failed`] when it failed
    /// now.
    pub fn close(&self) -> Result<(), Error> {
        self.owner.close()
    }

    fn core(&self) -> &Arc<Core> {
        &self.owner.core
    }
}

impl Owner {
    fn start(&self) -> std::io::Result<()> {
        let mut threads = self.threads.lock();
        let core = Arc::clone(&self.core);
        let writer = std::thread::Builder::new().name("journal-writer".to_owned());
        let writer = writer.spawn(move || write_until_closed(&core))?;
        *self.core.thread.lock() = Some(writer.thread().clone());
        threads.push(writer);
        let core = Arc::clone(&self.core);
        let keeper = std::thread::Builder::new().name("journal-keeper".to_owned());
        threads.push(keeper.spawn(move || keep_until_closed(&core))?);
        Ok(())
    }

    fn close(&self) -> Result<(), Error> {
        let closed = self.core.close()?;
        if closed == Closed::Now {
            for thread in self.threads.lock().drain(..) {
                // A thread of ours that panicked has been reported already.
                let _ = thread.join();
            }
        }
        Ok(())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Nobody is left to be told; whoever wants to know calls `close`.
        let _ = self.close();
    }
}

fn write_until_closed(core: &Core) {
    let mut groups = core.groups();
    loop {
        if core.writer_leads.swap(false, Ordering::AcqRel) {
            let lead = core.assume_lead();
            lead_while_any(core);
            lead.hand_over();
            continue;
        }
        if core.closed.load(Ordering::Acquire) {
            return;
        }
        if !core.mark_is_due.load(Ordering::Acquire) {
            std::thread::park();
            continue;
        }
        std::thread::park_timeout(core.options.idle_mark);
        let before = std::mem::replace(&mut groups, core.groups());
        let idle = before == groups && !core.writer_leads.load(Ordering::Acquire);
        if idle
            && !core.closed.load(Ordering::Acquire)
            && let Some(lead) = core.try_lead()
        {
            core.mark_is_due.store(false, Ordering::Release);
            if let Err(fault) = core.mark(false) {
                core.stop(&fault);
            }
            lead.hand_over_after_mark();
        }
    }
}

/// Writes group after group while anything waits.
fn lead_while_any(core: &Core) {
    loop {
        let start = Instant::now();
        let told = core.run_group(0);
        if told == 0 {
            return;
        }
        if told >= COMPANY_MIN {
            wait_for_company(core, told, (start.elapsed() / 2).min(COMPANY_WAIT_MAX));
        }
    }
}

/// Those who have just been told often commit again at once. Whoever starts the next sync with
/// the first of them lets the others wait for two; so give them the processor for a moment, as
/// long as they keep coming.
fn wait_for_company(core: &Core, told: usize, limit: Duration) {
    let start = Instant::now();
    while core.waiting_commits() < told && start.elapsed() < limit {
        std::thread::yield_now();
    }
}

fn keep_until_closed(core: &Core) {
    let _stop = StopOnPanic(core);
    loop {
        let done = match core.space.wait_for_need() {
            Need::Seal => core.seal_full_segments(),
            Need::Spare => core.prepare().map(|_| ()),
            Need::Nothing | Need::Stop => return,
        };
        if let Err(fault) = done {
            core.stop(&fault);
            return;
        }
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
    Later(Arc<Slot>, Arc<Core>),
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
        if let Stage::Later(slot, core) = &self.stage {
            core.abandon(slot);
        }
    }
}
