//! Who owns the state machine, and who polls it.

use std::future::poll_fn;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::task::JoinHandle;

use super::error::{Doubt, ProposeError, StopReason};
use super::mailbox::Mailbox;
use super::pending::Placed;
use super::shared::{Answer, Event, Shared, count_alone};
use super::tasks::Tasks;
use crate::codec;
use crate::machine::{Chunks, Command, MachineError, StateMachine};
use crate::membership::Membership;
use crate::store::{
    Completion, LogStore, LogWrite, ReadFailed, SnapshotName, SnapshotReader, StoreError,
};
use crate::types::{Entry, EntryKind, SnapshotMeta};

/// About how many bytes of entries are read back from the log at once.
const READ_BYTES: u64 = 1 << 20;

/// Something for the state machine to do.
#[derive(Debug)]
pub(crate) enum Job {
    /// Apply the entries of `range`, which are read from the log when they are not given.
    Apply { range: Range<u64>, entries: Option<Vec<Entry>>, waiting: Vec<Placed> },
    /// Start over from the current snapshot, which covers at least `index`.
    Restore { index: u64 },
    /// Take a snapshot.
    Snapshot,
}

/// Why the state machine cannot go on.
#[derive(Debug, thiserror::Error)]
enum ApplyError {
    #[error("{0}")]
    Machine(#[from] MachineError),
    #[error("{got} answers to {wanted} commands")]
    Answers { got: usize, wanted: usize },
    #[error("an entry could not be read: {0}")]
    Read(#[from] ReadFailed),
    #[error("the snapshot could not be opened: {0}")]
    Open(#[from] StoreError),
    #[error("the snapshot is not there")]
    NoSnapshot,
    #[error("entry {next} follows {at}, which was the last one applied")]
    Gap { next: u64, at: u64 },
}

/// The driver's end of the state machine.
pub(crate) struct Machine {
    jobs: Arc<Mailbox<Job>>,
    place: Place,
    /// A quick machine may have something to do: it was left a job, or was in the middle of one.
    is_due: bool,
}

enum Place {
    /// The driver polls it: it is quick.
    Here(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// It has a task of its own.
    Beside(JoinHandle<()>),
    Gone,
}

impl Machine {
    /// Starts an applier.
    pub(crate) fn start(applier: Box<Applier>) -> Self {
        let jobs = Arc::clone(&applier.jobs);
        let place = if applier.machine.is_quick() {
            Place::Here(Box::pin(applier.run()))
        } else {
            Place::Beside(tokio::spawn(applier.run()))
        };
        Self { jobs, place, is_due: true }
    }

    /// Leaves a job.
    pub(crate) fn push(&mut self, job: Job) {
        self.is_due = true;
        // Closed only after this node has been told to stop, and then nobody waits for it.
        drop(match self.place {
            Place::Beside(_) => self.jobs.push(job),
            // It is polled before the driver sleeps.
            Place::Here(_) | Place::Gone => self.jobs.leave(job),
        });
    }

    /// Whether the driver polls it.
    pub(crate) fn is_here(&self) -> bool {
        matches!(self.place, Place::Here(_))
    }

    /// Gives back memory that only a group at work needs.
    pub(crate) fn shrink(&mut self) {
        self.is_due = true;
        self.jobs.shrink();
    }

    /// Lets a quick machine do what it can, and returns whether it had anything to do. One that
    /// waits for a job is left alone: most turns of a group have nothing for it.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.is_due {
            return false;
        }
        let Place::Here(applier) = &mut self.place else { return false };
        // As a task of its own would be: a panic, which the applier reports, ends it alone.
        let polled = catch_unwind(AssertUnwindSafe(|| applier.as_mut().poll(cx)));
        if !matches!(polled, Ok(Poll::Pending)) {
            self.place = Place::Gone;
        }
        self.is_due = !self.jobs.is_awaited();
        true
    }

    /// Ends it where it stands.
    pub(crate) async fn stop(self) {
        if let Place::Beside(task) = self.place {
            task.abort();
            // A panic of it has been reported already.
            drop(task.await);
        }
    }
}

pub(crate) struct Applier {
    pub(crate) machine: Box<dyn StateMachine>,
    pub(crate) log: Arc<dyn LogStore>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) jobs: Arc<Mailbox<Job>>,
    /// The membership at `at`, for the description of snapshots.
    pub(crate) members: Arc<Membership>,
    /// Differs in each life of each node.
    pub(crate) nonce: u64,
    /// The last entry that the state includes, and its term.
    pub(crate) at: (u64, u64),
    /// The store has released entries after `at`: the machine waits for the snapshot that took
    /// their place.
    pub(crate) gap: bool,
    /// Snapshots on their way to the disk; at most one, the core waits for it.
    pub(crate) tasks: Tasks,
}

impl Applier {
    /// Runs until the node stops or the machine fails. Boxed, since a future holds each of its
    /// arguments twice.
    pub(crate) async fn run(mut self: Box<Self>) {
        // Also said when the machine panics.
        let ended = Ended(Arc::clone(&self.shared));
        let mut jobs = Vec::new();
        while poll_fn(|cx| self.jobs.poll_take(cx, &mut jobs, || ())).await {
            for job in jobs.drain(..) {
                if let Err(error) = self.run_job(job).await {
                    self.shared.tell(Event::Stop(StopReason::Machine(error.to_string())));
                    std::mem::forget(ended);
                    return;
                }
            }
            self.tasks.reap();
        }
        std::mem::forget(ended);
    }

    async fn run_job(&mut self, job: Job) -> Result<(), ApplyError> {
        match job {
            // The machine never sees an entry without the ones before it. A snapshot that covers
            // all of them is on its way, and the read of an index waits for that.
            Job::Apply { waiting, .. } if self.gap => self.hidden(waiting),
            Job::Apply { range, .. } if range.start > self.at.0 + 1 => {
                return Err(ApplyError::Gap { next: range.start, at: self.at.0 });
            }
            Job::Apply { range, entries: Some(entries), mut waiting } => {
                let answered = waiting.len();
                self.apply(entries, &mut waiting).await?;
                self.hidden(waiting);
                self.shared.tell(Event::Applied { index: range.end - 1, answered });
            }
            // Boxed, as what is rare: a machine at rest holds the room of its longest future.
            Job::Apply { range, entries: None, waiting } => {
                Box::pin(self.catch_up(range, waiting)).await?;
            }
            Job::Restore { index } => Box::pin(self.restore(index)).await?,
            Job::Snapshot => Box::pin(self.snapshot()).await,
        }
        Ok(())
    }

    /// Applies entries that are no longer in memory.
    async fn catch_up(
        &mut self,
        range: Range<u64>,
        mut waiting: Vec<Placed>,
    ) -> Result<(), ApplyError> {
        let mut next = range.start.max(self.at.0 + 1);
        while next < range.end {
            let entries = match self.log.read(next..range.end, READ_BYTES).await {
                Ok(entries) => entries,
                // A newer snapshot took their place. Nothing is reported as applied before it has
                // been restored: a read may wait for just these entries.
                Err(ReadFailed::Released) => {
                    self.gap = true;
                    self.hidden(waiting);
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
            let fits = |(index, entry): (u64, &Entry)| entry.index == index;
            if entries.is_empty() || !(next..range.end).zip(&entries).all(fits) {
                return Err(ReadFailed::Absent.into());
            }
            next += entries.len() as u64;
            self.apply(entries, &mut waiting).await?;
        }
        self.hidden(waiting);
        self.shared.tell(Event::Applied { index: range.end - 1, answered: 0 });
        Ok(())
    }

    /// Applies entries and answers those of `waiting` that are among them.
    async fn apply(
        &mut self,
        entries: Vec<Entry>,
        waiting: &mut Vec<Placed>,
    ) -> Result<(), ApplyError> {
        let Some(last) = entries.last() else { return Ok(()) };
        let applied = self.at.0;
        self.follow_members(&entries);
        let at = (last.index, last.term);
        count_alone(&self.shared.counters.entries_applied, entries.len() as u64);
        let commands: Vec<Command> = entries
            .into_iter()
            // A snapshot that is newer than the core knows may already include some.
            .filter(|entry| entry.kind == EntryKind::Command && entry.index > applied)
            .map(|entry| Command { index: entry.index, data: entry.data })
            .collect();
        self.at = self.at.max(at);
        if commands.is_empty() {
            return Ok(());
        }
        let answers = self.machine.apply(&commands).await?;
        if answers.len() != commands.len() {
            return Err(ApplyError::Answers { got: answers.len(), wanted: commands.len() });
        }
        if waiting.is_empty() {
            return Ok(());
        }
        let mut room = 0;
        let mut placed = waiting.drain(..).peekable();
        for (command, answer) in commands.iter().zip(answers) {
            if let Some(mine) = placed.next_if(|placed| placed.index == command.index) {
                room += mine.proposal.weight as usize;
                // An error here only says that the caller has gone.
                let _ = mine.proposal.reply.send(Ok(answer));
            }
        }
        let rest: Vec<Placed> = placed.collect();
        *waiting = rest;
        self.shared.proposal_room.add_permits(room);
        Ok(())
    }

    /// Takes the latest membership among entries that are about to be applied.
    fn follow_members(&mut self, entries: &[Entry]) {
        let is_new = |entry: &&Entry| entry.index > self.at.0 && entry.kind == EntryKind::Config;
        let latest = entries.iter().rev().find(is_new);
        // The core has read it before.
        if let Some(Ok(members)) = latest.map(|entry| codec::decode_members(entry.data.clone())) {
            self.members = Arc::new(members);
        }
    }

    /// These were applied as part of a snapshot: their answers are not known.
    fn hidden(&self, waiting: Vec<Placed>) {
        for Placed { proposal, .. } in waiting {
            self.shared.proposal_room.add_permits(proposal.weight as usize);
            proposal.fail(ProposeError::Unknown(Doubt::Snapshot));
        }
    }

    /// At each start, and after a snapshot was received.
    async fn restore(&mut self, index: u64) -> Result<(), ApplyError> {
        let reader = self.log.open_snapshot().await?.ok_or(ApplyError::NoSnapshot)?;
        let covers = reader.name().meta.clone();
        if covers.index < index {
            return Err(ApplyError::NoSnapshot);
        }
        if covers.index > self.at.0 {
            self.machine.restore(&mut Stored { reader, next: 0 }).await?;
            self.at = (covers.index, covers.term);
            self.members = Arc::new(covers.members);
            self.gap = false;
        }
        // Cannot be: entries are released only behind a newer snapshot.
        if self.gap {
            return Err(ApplyError::NoSnapshot);
        }
        // Not `covers.index`: the core does not know of a newer snapshot yet, and ignores what it
        // did not hand over.
        self.shared.tell(Event::Applied { index, answered: 0 });
        Ok(())
    }

    /// Cuts the state now and stores it beside what follows.
    async fn snapshot(&mut self) {
        let (index, term) = self.at;
        if self.members.is_empty() {
            // This node has joined and has not come to the entry that says so: nobody could go on
            // from a snapshot without members.
            return self.shared.tell(Event::SnapshotFailed);
        }
        let chunks = match self.machine.snapshot().await {
            Ok(chunks) => chunks,
            Err(error) => {
                tracing::warn!(target: "voussoir::raft", index, %error, "no snapshot taken");
                return self.shared.tell(Event::SnapshotFailed);
            }
        };
        let meta = SnapshotMeta { index, term, members: (*self.members).clone() };
        let name = SnapshotName { identity: self.nonce.wrapping_add(index), meta };
        let (log, shared) = (Arc::clone(&self.log), Arc::clone(&self.shared));
        let answer = Answer::new(&shared, Event::SnapshotFailed);
        self.tasks.spawn(async move {
            if let Err(error) = store(&*log, &name, chunks).await {
                tracing::warn!(target: "voussoir::raft", index, %error, "no snapshot stored");
                return shared.doubt(&*log);
            }
            // It becomes current before the core hears of it, so that the log is never cut
            // behind a snapshot that does not count yet.
            let meta = Box::new(name.meta.clone());
            let write = LogWrite { snapshot: Some(name), ..LogWrite::default() };
            log.write(
                write,
                Completion::new(move |result| match result {
                    Ok(()) => answer.give(Event::SnapshotTaken { meta }),
                    Err(error) => {
                        tracing::warn!(target: "voussoir::raft", index, %error, "no snapshot kept");
                    }
                }),
            );
        });
    }
}

/// Why a snapshot was not stored.
#[derive(Debug, thiserror::Error)]
enum SnapshotError {
    #[error("{0}")]
    Machine(#[from] MachineError),
    #[error("{0}")]
    Store(#[from] StoreError),
}

async fn store(
    log: &dyn LogStore,
    name: &SnapshotName,
    mut chunks: Box<dyn Chunks>,
) -> Result<(), SnapshotError> {
    let mut writer = log.stage(name).await?;
    while let Some(chunk) = chunks.next().await? {
        writer.append(chunk).await?;
    }
    Ok(writer.finish().await?)
}

/// A stored snapshot, chunk by chunk.
struct Stored {
    reader: Box<dyn SnapshotReader>,
    next: u64,
}

#[async_trait::async_trait]
impl Chunks for Stored {
    async fn next(&mut self) -> Result<Option<bytes::Bytes>, MachineError> {
        if self.next == self.reader.chunks() {
            return Ok(None);
        }
        let chunk = self.reader.chunk(self.next).await?;
        self.next += 1;
        Ok(Some(chunk))
    }
}

/// Says that the applier is gone, unless it is forgotten.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.tell(Event::Stop(StopReason::of_dropped_task()));
    }
}
