//! Small writes of several partitions in one commit of the journal.
//!
//! With many partitions each has little to write, and a commit for each of them costs more than
//! what it carries. While two commits are on their way, small writes wait here; when one has been
//! answered, all of them leave together. Two, so that the journal goes on with the second one while
//! the first is answered: with one, it waits for the next between any two syncs.
//!
//! What is put together does not share its fate: when the journal rejects the commit, each write is
//! submitted by itself, in the same order.
//!
//! A commit for which the journal has no room stalls here, with all behind it, and is handed in
//! again when one that is on its way has been answered. When none is, other users have filled the
//! journal: then the first one waits for its turn among theirs. What can wait is bounded by the
//! partitions, which have a few writes on their way each.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;
use voussoir_journal::{Batch, Commit, CommitFuture, Durability, Error, Journal, Log, Outcome};

use super::Done;
use super::journal::from_commit;
use crate::error::StoreError;

/// Bytes of the writes of one commit. A larger commit waits in the journal behind other large ones.
const COMMIT_BYTES: usize = 64 << 10;
/// Writes of one commit. The journal takes 2,048 operations, of which each write has up to two.
const COMMIT_WRITES: usize = 512;
/// Commits of small writes that are on their way beside each other.
const COMMITS: usize = 2;

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
    /// In the order of their arrival. Invariant: empty unless `in_flight` is at least `COMMITS`.
    /// Bounded by the writes that partitions may have on their way.
    waiting: Vec<(Small, Done)>,
    /// Commits of small writes that are on their way, or stalled.
    in_flight: usize,
    /// Commits that the journal has not taken, in the order in which it is to take them.
    stalled: VecDeque<Entry>,
    /// Commits that the journal has taken and not answered.
    accepted: usize,
    /// The first commit waits for its turn in the journal. Invariant: `accepted` is 0, and none is
    /// handed in before it has been answered and its writes have been told.
    is_lined_up: bool,
}

/// A commit for the journal.
struct Entry {
    commit: Commit,
    /// What it was put together of. Empty: it is a write of its own.
    smalls: Vec<Small>,
    dones: Vec<Done>,
}

/// What is left to do without the lock.
#[derive(Default)]
struct Later {
    /// Writes that were answered on the spot.
    rejected: Vec<(Done, StoreError)>,
    line: Option<Arc<Line>>,
}

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
        let mut later = Later::default();
        {
            let mut inner = self.inner.lock();
            inner.waiting.push((small, done));
            if inner.in_flight < COMMITS {
                self.send(&mut inner, &mut later);
            }
        }
        later.run();
    }

    /// Submits another commit behind all that wait: a partition may have a small write among them.
    pub(super) fn submit_behind(self: &Arc<Self>, commit: Commit, done: Done) {
        let mut later = Later::default();
        {
            let mut inner = self.inner.lock();
            // Ends: each round takes writes off.
            while !inner.waiting.is_empty() {
                self.send(&mut inner, &mut later);
            }
            inner.stalled.push_back(Entry { commit, smalls: Vec::new(), dones: vec![done] });
            self.hand_in(&mut inner, &mut later);
        }
        later.run();
    }

    /// Submits what waits, up to the limits of a commit. The lock is held until the journal has
    /// it, so that the writes of a partition stay in order.
    fn send(self: &Arc<Self>, inner: &mut Inner, later: &mut Later) {
        let mut bytes = 0;
        let fits = |(small, _): &&(Small, Done)| {
            let is_first = bytes == 0;
            bytes += small.bytes;
            is_first || bytes <= COMMIT_BYTES
        };
        let fitting = inner.waiting.iter().take(COMMIT_WRITES).take_while(fits).count();
        let behind = inner.waiting.split_off(fitting);
        let all = std::mem::replace(&mut inner.waiting, behind);
        let (smalls, dones) = all.into_iter().unzip();
        inner.in_flight += 1;
        inner.stalled.push_back(Entry::together(smalls, dones));
        self.hand_in(inner, later);
    }

    /// Hands in the commits that the journal has room for.
    fn hand_in(self: &Arc<Self>, inner: &mut Inner, later: &mut Later) {
        if inner.is_lined_up {
            return;
        }
        // Ends: each round takes a commit off, or several writes of one apart, or leaves.
        while let Some(entry) = inner.stalled.pop_front() {
            match self.try_one(entry) {
                Ok(()) => inner.accepted += 1,
                Err(refused) => match *refused {
                    (entry, Error::Busy { .. }) if inner.accepted > 0 => {
                        // The answer of one that is on its way hands in again.
                        inner.stalled.push_front(entry);
                        return;
                    }
                    (entry, Error::Busy { .. }) => {
                        inner.is_lined_up = true;
                        later.line = Some(self.line_up(entry));
                        return;
                    }
                    (entry, error) => inner.refused(entry, &error, later),
                },
            }
        }
    }

    /// Gives the commit back when the journal rejects it.
    fn try_one(self: &Arc<Self>, entry: Entry) -> Result<(), Box<(Entry, Error)>> {
        let Entry { commit, smalls, dones } = entry;
        let is_small = !smalls.is_empty();
        // A rejected commit drops its callback, and an answer that is dropped says that the outcome
        // is unknown: so the answers are left where both can take them.
        let slot = Arc::new(Mutex::new(Some(dones)));
        let (taken, gather) = (Arc::clone(&slot), Arc::clone(self));
        let answer = move |result: Result<_, Error>| {
            let mut later = Later::default();
            {
                let mut inner = gather.inner.lock();
                inner.accepted -= 1;
                // Before those of this commit are told: the journal takes the next one right after.
                gather.ended(&mut inner, is_small, &mut later);
            }
            let dones = taken.lock().take();
            complete(dones.unwrap_or_default(), result.map(|_| ()));
            later.run();
        };
        self.journal.submit(commit, answer).map_err(|rejected| {
            let dones = slot.lock().take().unwrap_or_default();
            Box::new((Entry { commit: rejected.commit, smalls, dones }, rejected.error))
        })
    }

    /// A commit has been answered: the next ones go.
    fn ended(self: &Arc<Self>, inner: &mut Inner, is_small: bool, later: &mut Later) {
        inner.in_flight -= usize::from(is_small);
        self.go_on(inner, later);
    }

    /// Hands in what is stalled, and what waits as far as it may.
    fn go_on(self: &Arc<Self>, inner: &mut Inner, later: &mut Later) {
        self.hand_in(inner, later);
        // Ends: each round takes writes off.
        while inner.in_flight < COMMITS && !inner.waiting.is_empty() {
            self.send(inner, later);
        }
    }

    fn line_up(self: &Arc<Self>, entry: Entry) -> Arc<Line> {
        let Entry { commit, smalls, dones } = entry;
        let place = Place { future: self.journal.commit(commit), smalls, dones };
        Arc::new(Line { gather: Arc::clone(self), place: Mutex::new(Some(place)) })
    }
}

impl Entry {
    fn together(smalls: Vec<Small>, dones: Vec<Done>) -> Self {
        let durability = smalls.iter().map(|small| small.durability).max().unwrap_or_default();
        let commit = smalls.iter().fold(Commit::new(), |commit, small| small.add_to(commit));
        Self { commit: commit.durability(durability), smalls, dones }
    }
}

impl Inner {
    /// The journal does not take a commit: its writes are handed in one by one, or told.
    fn refused(&mut self, entry: Entry, error: &Error, later: &mut Later) {
        let Entry { smalls, dones, .. } = entry;
        self.in_flight -= usize::from(!smalls.is_empty());
        if smalls.len() > 1 {
            self.in_flight += smalls.len();
            for (small, done) in smalls.into_iter().zip(dones).rev() {
                self.stalled.push_front(Entry::together(vec![small], vec![done]));
            }
            return;
        }
        let error = from_commit(error);
        later.rejected.extend(dones.into_iter().map(|done| (done, error.clone())));
    }
}

/// A commit that waits for its turn in the journal. Woken, it looks whether it was answered.
struct Line {
    gather: Arc<Gather>,
    /// None once it was answered.
    place: Mutex<Option<Place>>,
}

struct Place {
    future: CommitFuture,
    smalls: Vec<Small>,
    dones: Vec<Done>,
}

impl Line {
    /// Tells what was answered, and goes on with the commit that waits next.
    fn follow(self: Arc<Self>) {
        let mut line = Some(self);
        // Ends: each turn tells the writes of a commit, or leaves.
        while let Some(waiting) = line {
            line = waiting.look();
        }
    }

    /// Returns the commit that waits next, once this one was answered.
    fn look(self: &Arc<Self>) -> Option<Arc<Self>> {
        let waker = Waker::from(Arc::clone(self));
        let (result, smalls, dones) = {
            let mut place = self.place.lock();
            let future = Pin::new(&mut place.as_mut()?.future);
            let Poll::Ready(result) = future.poll(&mut Context::from_waker(&waker)) else {
                return None;
            };
            let Place { smalls, dones, .. } = place.take()?;
            (result, smalls, dones)
        };
        let (gather, mut later) = (&self.gather, Later::default());
        let is_small = !smalls.is_empty();
        let refused = match result {
            Err(error) if smalls.len() > 1 && error.outcome() == Outcome::NotApplied => {
                Some((Entry { commit: Commit::new(), smalls, dones }, error))
            }
            result => {
                // First: what is handed in below may be answered by another thread.
                complete(dones, result.map(|_| ()));
                None
            }
        };
        {
            let mut inner = gather.inner.lock();
            inner.is_lined_up = false;
            match refused {
                Some((entry, error)) => {
                    inner.refused(entry, &error, &mut later);
                    // The journal may reject each of its writes on the spot, and no answer comes.
                    gather.go_on(&mut inner, &mut later);
                }
                None => gather.ended(&mut inner, is_small, &mut later),
            }
        }
        later.tell()
    }
}

impl Wake for Line {
    fn wake(self: Arc<Self>) {
        self.follow();
    }
}

fn complete(dones: Vec<Done>, result: Result<(), Error>) {
    let result = result.map_err(|error| from_commit(&error));
    for done in dones {
        done.complete(result.clone());
    }
}

impl Later {
    fn run(self) {
        if let Some(line) = self.tell() {
            line.follow();
        }
    }

    fn tell(self) -> Option<Arc<Line>> {
        for (done, error) in self.rejected {
            done.complete(Err(error));
        }
        self.line
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
            Self::with_pending(Config::default().max_pending_bytes)
        }

        /// Over a journal in which so much may wait.
        fn with_pending(bytes: usize) -> Self {
            let mut config = Config::manual();
            (config.segment_bytes, config.max_pending_bytes) = (1 << 20, bytes);
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
        let partitions = setup.partitions::<5>();
        let before = setup.journal.stats().commits;
        for (partition, name) in partitions.iter().zip(["a", "b", "c", "d", "e"]) {
            setup.write(partition, name, 1, None);
        }
        let answers = setup.work();
        assert_eq!(answers, ["a", "b", "c", "d", "e"].map(|name| (name, Ok::<_, StoreError>(()))));
        assert_eq!(setup.journal.stats().commits - before, 3, "the first two, and the others");
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
        setup.write(&first, "c", 1, Some(1));
        setup.write(&second, "b", 1, None);
        assert_eq!(setup.store.gather().inner.lock().waiting.len(), 1);
        setup.write(&second, "l", 40 << 10, Some(1));
        setup.write(&second, "s", 1, Some(2));
        let waiting = setup.store.gather().inner.lock().waiting.len();
        assert_eq!(waiting, 0, "a small write behind a large one holds up no other");
        let answers = setup.work();
        assert!(answers.iter().all(|(_, result)| result.is_ok()), "{answers:?}");
        assert_eq!(names(&second), ["b", "l", "s"]);
    }

    /// Before, the second write of a partition was an error that its producer saw.
    #[test]
    fn what_finds_no_room_in_the_journal_waits() {
        let setup = Setup::with_pending(100 << 10);
        let [first, second, third] = setup.partitions();
        setup.write(&first, "a", 60 << 10, None);
        setup.write(&first, "b", 60 << 10, Some(1));
        setup.write(&second, "c", 1, None);
        setup.write(&third, "d", 60 << 10, None);
        setup.write(&second, "e", 1, Some(1));
        assert_eq!(setup.answers.try_iter().count(), 0, "nothing is told before it is written");
        let answers = setup.work();
        assert!(answers.iter().all(|(_, result)| result.is_ok()), "{answers:?}");
        assert_eq!(answers.len(), 5);
        assert_eq!(
            (names(&first), names(&second)),
            (vec!["a".into(), "b".into()], vec!["c".into(), "e".into()])
        );
    }

    /// Others have filled the journal, and wait for room in it themselves.
    #[test]
    fn what_others_leave_no_room_for_waits_its_turn() {
        let setup = Setup::with_pending(100 << 10);
        let [first, second] = setup.partitions();
        let log = setup.journal.log("other", 1).expect("a log");
        let fill = || Commit::new().append(&log, [vec![1; 90 << 10]]);
        let (filled, waits) = (setup.journal.commit(fill()), setup.journal.commit(fill()));
        setup.write(&first, "a", 1, None);
        setup.write(&second, "b", 40 << 10, None);
        let waits_behind = setup.journal.commit(fill());
        setup.write(&first, "c", 40 << 10, Some(1));
        let answers = setup.work();
        assert!(answers.iter().all(|(_, result)| result.is_ok()), "{answers:?}");
        assert_eq!(answers.len(), 3);
        assert_eq!(names(&first), ["a", "c"]);
        drop((filled, waits, waits_behind));
    }

    /// What was put together and waited its turn does not share the fate of one of its writes.
    #[test]
    fn a_write_that_is_rejected_when_its_turn_comes_takes_no_other_with_it() {
        for is_foreign in [false, true] {
            let setup = Setup::with_pending(100 << 10);
            let [first, second, third] = setup.partitions();
            let log = setup.journal.log("other", 1).expect("a log");
            let fill = |bytes| setup.journal.commit(Commit::new().append(&log, [vec![1; bytes]]));
            if !is_foreign {
                setup.write(&third, "l", 40 << 10, None);
            }
            let line: Vec<_> =
                (0..if is_foreign { 6 } else { 0 }).map(|_| fill(90 << 10)).collect();
            setup.write(&first, "a", 1, None);
            setup.write(&first, "c", 1, Some(1));
            setup.write(&first, "x", 1, Some(5));
            setup.write(&second, "b", 1, None);
            let filled = fill(50 << 10);
            setup.write(&third, "m", 40 << 10, None);
            let answers = setup.work();
            let all = answers.iter().filter(|(name, _)| *name != "x");
            assert!(all.clone().all(|(_, result)| result.is_ok()), "{answers:?}");
            assert_eq!(all.count(), if is_foreign { 4 } else { 5 });
            let of_x = answers.iter().find(|(name, _)| *name == "x").map(|(_, it)| it);
            assert!(matches!(of_x, Some(Err(StoreError::Busy { .. }))), "{answers:?}");
            drop((line, filled));
        }
    }

    /// What waits behind a commit of which each write is rejected is told, too: nobody else would
    /// hand it in.
    #[test]
    fn what_waits_behind_a_line_that_is_rejected_is_told() {
        let setup = Setup::with_pending(100 << 10);
        let partitions = setup.partitions::<7>();
        let write = |at: usize, name| setup.write(&partitions[at], name, 1, None);
        write(0, "a");
        write(1, "b");
        write(2, "c");
        write(3, "d");
        // Others wait for room, too.
        let log = setup.journal.log("other", 1).expect("a log");
        let fill = || setup.journal.commit(Commit::new().append(&log, [vec![1; 90 << 10]]));
        let line: Vec<_> = (0..6).map(|_| fill()).collect();
        let mut now = 0;
        let is_lined_up = || {
            let inner = setup.store.gather().inner.lock();
            inner.is_lined_up && inner.in_flight == 1
        };
        // Ends: the first two are written, and the next ones, together, find no room.
        while !is_lined_up() {
            assert_ne!(setup.journal.work(now), Work::Idle, "they are never in line");
            now += 1;
        }
        write(4, "e");
        write(5, "f");
        write(6, "g");
        assert_eq!(setup.store.gather().inner.lock().waiting.len(), 2, "f and g");
        setup.journal.close().expect("it closes");
        drop(line);
        let mut told: Vec<_> = setup.answers.try_iter().map(|(name, _)| name).collect();
        told.sort_unstable();
        assert_eq!(told, ["a", "b", "c", "d", "e", "f", "g"]);
    }
}
