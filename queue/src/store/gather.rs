//! Small writes of several partitions in one commit of the journal.
//!
//! With many partitions each has little to write, and a commit for each of them costs more than
//! what it carries. While a commit is on its way, small writes wait here; when it has been
//! answered, all of them leave together. A write that finds nothing on its way leaves at once.
//!
//! What is put together does not share its fate: when the journal rejects the commit, each write is
//! submitted by itself, in the same order.

use std::sync::Arc;

use parking_lot::Mutex;
use voussoir_journal::{Batch, Commit, Durability, Error, Journal, Log};

use super::Done;
use super::journal::from_commit;
use crate::error::StoreError;

/// Bytes of the writes of one commit. A larger commit waits in the journal behind other large ones.
const COMMIT_BYTES: usize = 64 << 10;
/// Writes of one commit. The journal takes 2,048 operations, of which each write has up to two.
const COMMIT_WRITES: usize = 512;

/// A small write: one batch of the journal for one log.
pub(super) struct Small {
    pub(super) log: Log,
    /// Where the batch has to be, when other writes of its log are on their way.
    pub(super) position: Option<u64>,
    pub(super) batch: Batch,
    /// Of the batch.
    pub(super) bytes: usize,
    pub(super) durability: Durability,
}

impl Small {
    fn add_to(&self, commit: Commit) -> Commit {
        append_at(commit, &self.log, self.position).append_batch(&self.log, self.batch.clone())
    }
}

/// Has the journal reject a commit when a log does not end at `position`, because a write before
/// this one has failed: at the end a truncation has no effect, and beyond it none is possible.
pub(super) fn append_at(commit: Commit, log: &Log, position: Option<u64>) -> Commit {
    match position {
        Some(position) => commit.truncate(log, position),
        None => commit,
    }
}

/// The small writes of a namespace.
pub(super) struct Gather {
    journal: Journal,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// In the order of their arrival. Invariant: empty unless a commit is on its way. Bounded by
    /// the writes that partitions may have on their way.
    waiting: Vec<(Small, Done)>,
    /// Commits that are on their way.
    in_flight: usize,
}

/// Writes that were answered on the spot, to be told without the lock.
type Rejected = Vec<(Done, StoreError)>;

impl std::fmt::Debug for Gather {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gather").finish_non_exhaustive()
    }
}

impl Gather {
    pub(super) fn new(journal: &Journal) -> Arc<Self> {
        Arc::new(Self { journal: journal.clone(), inner: Mutex::default() })
    }

    pub(super) fn submit(self: &Arc<Self>, small: Small, done: Done) {
        let mut rejected = Vec::new();
        {
            let mut inner = self.inner.lock();
            inner.waiting.push((small, done));
            if inner.in_flight == 0 {
                self.send(&mut inner, &mut rejected);
            }
        }
        tell(rejected);
    }

    /// Submits another commit behind all that wait: a partition may have a small write among them.
    pub(super) fn submit_behind(self: &Arc<Self>, commit: Commit, done: Done) {
        let mut rejected = Vec::new();
        {
            let mut inner = self.inner.lock();
            // Ends: each round takes writes off.
            while !inner.waiting.is_empty() {
                self.send(&mut inner, &mut rejected);
            }
            if let Err((dones, error)) = self.hand_in(commit, vec![done], |_| {}) {
                reject(&mut rejected, dones, &error);
            }
        }
        tell(rejected);
    }

    /// Submits what waits, up to the limits of a commit. The lock is held until the journal has
    /// it, so that the writes of a partition stay in order.
    fn send(self: &Arc<Self>, inner: &mut Inner, rejected: &mut Rejected) {
        let mut bytes = 0;
        let fits = |(small, _): &&(Small, Done)| {
            let is_first = bytes == 0;
            bytes += small.bytes;
            is_first || bytes <= COMMIT_BYTES
        };
        let fitting = inner.waiting.iter().take(COMMIT_WRITES).take_while(fits).count();
        let later = inner.waiting.split_off(fitting);
        let all = std::mem::replace(&mut inner.waiting, later);
        let (smalls, dones): (Vec<Small>, Vec<Done>) = all.into_iter().unzip();
        match self.send_together(&smalls, dones) {
            Ok(()) => inner.in_flight += 1,
            Err((dones, error)) if smalls.len() == 1 => reject(rejected, dones, &error),
            Err((dones, _)) => {
                for (small, done) in smalls.iter().zip(dones) {
                    match self.send_together(std::slice::from_ref(small), vec![done]) {
                        Ok(()) => inner.in_flight += 1,
                        Err((dones, error)) => reject(rejected, dones, &error),
                    }
                }
            }
        }
    }

    fn send_together(
        self: &Arc<Self>,
        smalls: &[Small],
        dones: Vec<Done>,
    ) -> Result<(), (Vec<Done>, StoreError)> {
        let durability = smalls.iter().map(|small| small.durability).max().unwrap_or_default();
        let commit = smalls.iter().fold(Commit::new(), |commit, small| small.add_to(commit));
        let gather = Arc::clone(self);
        self.hand_in(commit.durability(durability), dones, move |rejected| {
            let mut inner = gather.inner.lock();
            inner.in_flight -= 1;
            // Before those of this commit are told: the journal takes the next one right after.
            // Ends: each round takes writes off.
            while inner.in_flight == 0 && !inner.waiting.is_empty() {
                gather.send(&mut inner, rejected);
            }
        })
    }

    /// Hands a commit to the journal; `then` is called before its writes are told. Gives them back
    /// when the journal rejects the commit, in which case `then` is not called.
    fn hand_in(
        &self,
        commit: Commit,
        dones: Vec<Done>,
        then: impl FnOnce(&mut Rejected) + Send + 'static,
    ) -> Result<(), (Vec<Done>, StoreError)> {
        // A rejected commit drops its callback, and an answer that is dropped says that the outcome
        // is unknown: so the answers are left where both can take them.
        let slot = Arc::new(Mutex::new(Some(dones)));
        let taken = Arc::clone(&slot);
        let answer = move |result: Result<_, Error>| {
            let mut rejected = Vec::new();
            then(&mut rejected);
            let result = result.map(|_| ()).map_err(|error| from_commit(&error));
            let dones = taken.lock().take();
            for done in dones.into_iter().flatten() {
                done.complete(result.clone());
            }
            tell(rejected);
        };
        match self.journal.submit(commit, answer) {
            Ok(()) => Ok(()),
            Err(rejected) => {
                let dones = slot.lock().take();
                Err((dones.unwrap_or_default(), from_commit(&rejected.error)))
            }
        }
    }
}

fn reject(rejected: &mut Rejected, dones: Vec<Done>, error: &StoreError) {
    rejected.extend(dones.into_iter().map(|done| (done, error.clone())));
}

fn tell(rejected: Rejected) {
    for (done, error) in rejected {
        done.complete(Err(error));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use bytes::Bytes;
    use voussoir_journal::{Config, MemoryFiles, Work};

    use super::*;
    use crate::store::{JournalPartition, JournalStore, PartitionStore, Write};

    struct Setup {
        journal: Journal,
        store: JournalStore,
        sender: mpsc::Sender<(&'static str, Result<(), StoreError>)>,
        answers: mpsc::Receiver<(&'static str, Result<(), StoreError>)>,
    }

    impl Setup {
        fn new() -> Self {
            let mut config = Config::manual();
            config.segment_bytes = 1 << 20;
            let files = Arc::new(MemoryFiles::new());
            let journal = Journal::open_with(files, config).expect("the journal opens");
            let store = JournalStore::new(&journal, "q").expect("a namespace");
            let (sender, answers) = mpsc::channel();
            Self { journal, store, sender, answers }
        }

        fn partitions<const N: usize>(&self) -> [JournalPartition; N] {
            std::array::from_fn(|at| self.store.partition(at as u32).expect("a partition"))
        }

        fn write(
            &self,
            to: &JournalPartition,
            name: &'static str,
            bytes: usize,
            position: Option<u64>,
        ) {
            let mut batch = name.as_bytes().to_vec();
            batch.resize(bytes.max(name.len()), b'.');
            let write = Write { batches: vec![batch.into()], position, ..Write::default() };
            let sender = self.sender.clone();
            let done = Done::new(move |result| drop(sender.send((name, result))));
            to.submit(write, done);
        }

        /// Lets the journal do what it has to do, and returns the answers in their order.
        fn work(&self) -> Vec<(&'static str, Result<(), StoreError>)> {
            let mut now = 0;
            // Ends: the journal is idle when everything is written and marked.
            while self.journal.work(now) != Work::Idle {
                now += 200_000_000;
            }
            let inner = self.store.gather().inner.lock();
            assert!(inner.waiting.is_empty() && inner.in_flight == 0);
            self.answers.try_iter().collect()
        }
    }

    fn names(partition: &JournalPartition) -> Vec<Bytes> {
        let log = partition.log();
        let read = log.read(log.bounds(), 1 << 20).expect("it can be read");
        read.into_iter().map(|batch| batch.slice(..1)).collect()
    }

    #[test]
    fn what_waits_leaves_together() {
        let setup = Setup::new();
        let partitions = setup.partitions::<4>();
        let before = setup.journal.stats().commits;
        for (partition, name) in partitions.iter().zip(["a", "b", "c", "d"]) {
            setup.write(partition, name, 1, None);
        }
        let answers = setup.work();
        assert_eq!(answers, ["a", "b", "c", "d"].map(|name| (name, Ok::<_, StoreError>(()))));
        assert_eq!(setup.journal.stats().commits - before, 2, "the first one, and the others");
        assert!(partitions.iter().all(|partition| names(partition).len() == 1));
    }

    #[test]
    fn a_write_that_is_rejected_takes_no_other_with_it() {
        let setup = Setup::new();
        let [first, second, third] = setup.partitions();
        setup.write(&first, "a", 1, None);
        setup.write(&second, "b", 1, None);
        // Decided behind writes that have failed meanwhile.
        setup.write(&first, "x", 1, Some(5));
        setup.write(&third, "c", 1, None);
        setup.write(&second, "d", 1, Some(1));
        let answers = setup.work();
        let of = |name| answers.iter().find(|(found, _)| *found == name).map(|(_, it)| it.clone());
        assert!(matches!(of("x"), Some(Err(StoreError::Busy { .. }))), "{answers:?}");
        assert!(["a", "b", "c", "d"].iter().all(|name| of(name) == Some(Ok(()))), "{answers:?}");
        assert_eq!([names(&first).len(), names(&third).len()], [1, 1]);
        assert_eq!(names(&second), ["b", "d"]);
    }

    #[test]
    fn large_and_small_writes_of_a_log_stay_in_order() {
        let setup = Setup::new();
        let [first, second] = setup.partitions();
        setup.write(&first, "a", 1, None);
        setup.write(&second, "b", 1, None);
        setup.write(&second, "l", 40 << 10, Some(1));
        setup.write(&second, "s", 1, Some(2));
        let waiting = setup.store.gather().inner.lock().waiting.len();
        assert_eq!(waiting, 0, "a small write behind a large one holds up no other");
        let answers = setup.work();
        assert!(answers.iter().all(|(_, result)| result.is_ok()), "{answers:?}");
        assert_eq!(names(&second), ["b", "l", "s"]);
    }
}
