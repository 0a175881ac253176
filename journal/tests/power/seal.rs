//! What goes on while a full segment has no index yet: that is written behind the commits.

use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use voussoir_journal::files::crash::{CrashFiles, Loss, Op};
use voussoir_journal::testing::HookedFiles;
use voussoir_journal::{Commit, Config, Durability, Health, Journal};

use crate::losses::in_order;

/// The thread that prepares and seals segments.
const KEEPER: &str = "journal-keeper";

/// What the threads of a journal may do, and what they did.
#[derive(Debug)]
struct Gate {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    /// Writes that the keeper may still do.
    keeper_writes: u64,
    /// Writes that it has done.
    keeper_written: u64,
    /// Calls of the other threads.
    calls: Vec<(ThreadId, &'static str)>,
}

impl Gate {
    fn open() -> Arc<Self> {
        let inner = Inner { keeper_writes: u64::MAX, keeper_written: 0, calls: Vec::new() };
        Arc::new(Self { inner: Mutex::new(inner), changed: Condvar::new() })
    }

    fn allow(&self, keeper_writes: u64) {
        self.inner.lock().keeper_writes = keeper_writes;
        self.changed.notify_all();
    }

    /// Notes a call that begins. Holds a write of the keeper back until it is allowed.
    fn begins(&self, op: Op) {
        let current = std::thread::current();
        let mut inner = self.inner.lock();
        match op {
            Op::Write if current.name() == Some(KEEPER) => {
                self.changed.wait_while(&mut inner, |inner| inner.keeper_writes == 0);
                inner.keeper_writes -= 1;
            }
            Op::Write => inner.calls.push((current.id(), "write")),
            Op::Sync => inner.calls.push((current.id(), "sync")),
            _ => {}
        }
    }

    fn ended(&self, op: Op) {
        if op == Op::Write && std::thread::current().name() == Some(KEEPER) {
            self.inner.lock().keeper_written += 1;
            self.changed.notify_all();
        }
    }

    /// Waits until the keeper has done so many writes.
    fn wait_for(&self, keeper_written: u64) {
        let mut inner = self.inner.lock();
        self.changed.wait_while(&mut inner, |inner| inner.keeper_written < keeper_written);
    }

    /// The calls of this thread since the last time.
    fn calls(&self) -> Vec<&'static str> {
        let this = std::thread::current().id();
        let calls = std::mem::take(&mut self.inner.lock().calls);
        calls.into_iter().filter(|(thread, _)| *thread == this).map(|(_, call)| call).collect()
    }
}

/// Lets a journal that is dropped by a failed test come to its end.
struct OpenInTheEnd<'a>(&'a Gate);

impl Drop for OpenInTheEnd<'_> {
    fn drop(&mut self) {
        self.0.allow(u64::MAX);
    }
}

fn config() -> Config {
    let mut config = Config::default();
    config.segment_bytes = in_order().config.segment_bytes;
    config.max_bytes = 64 * config.segment_bytes;
    // No other thread writes while this one leads.
    config.idle_mark = Duration::from_secs(3600);
    config
}

fn open(disk: &CrashFiles, gate: &Arc<Gate>) -> Journal {
    let (before, after) = (Arc::clone(gate), Arc::clone(gate));
    let files = HookedFiles::new(disk.mount(), move |call| {
        before.begins(call.op);
        Ok(())
    });
    let files = files.after(move |call| after.ended(call.op));
    Journal::open_with(Arc::new(files), config()).unwrap()
}

#[test]
fn a_commit_that_rotates_is_one_write_and_one_sync() {
    let gate = Gate::open();
    let journal = open(&CrashFiles::new(1), &gate);
    let log = journal.log("own", 1).unwrap();
    let mut rotations = 0;
    while rotations < 20 {
        gate.calls();
        let commit = Commit::new().append(&log, [[7; 900]]);
        let upto = log.end().saturating_sub(30);
        journal.commit_blocking(commit.release(&log, upto)).unwrap();
        assert_eq!(gate.calls(), ["write", "sync"], "after {rotations} rotations");
        rotations = journal.stats().rotations;
    }
}

/// The index says what was in the segment when the next one was begun. A power loss may keep it
/// and lose what became of the logs afterwards.
#[test]
fn an_index_knows_nothing_of_later_commits() {
    let (disk, gate) = (CrashFiles::new(1), Gate::open());
    let journal = open(&disk, &gate);
    let _open = OpenInTheEnd(&gate);
    let (gone, cut) = (journal.log("gone", 1).unwrap(), journal.log("cut", 1).unwrap());
    for _ in 0..12 {
        let commit = Commit::new().append(&gone, [[1; 900]]).append(&cut, [[2; 900]]);
        journal.commit_blocking(commit).unwrap();
    }
    // The next segment and the reserve. The keeper's last write for a spare is that of the
    // manifest; then it has nothing to do.
    while journal.stats().segments < 5 {
        std::thread::yield_now();
    }
    gate.allow(0);
    while journal.stats().rotations == 0 {
        let commit = Commit::new().append(&gone, [[1; 900]]).append(&cut, [[2; 900]]);
        journal.commit_blocking(commit).unwrap();
    }
    let (end, half) = (cut.end(), cut.end() / 2);
    let later = Commit::new().delete(&gone).truncate(&cut, half).durability(Durability::Written);
    journal.commit_blocking(later).unwrap();
    assert_eq!(cut.read(half - 1).unwrap(), [2; 900][..], "read without an index");

    let written = gate.inner.lock().keeper_written;
    gate.allow(2);
    gate.wait_for(written + 2);
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..200 {
        let disk = disk.fork(seed);
        disk.power_loss(Loss::Any);
        let journal = Journal::open_with(disk.mount(), in_order().config).unwrap();
        let (gone, cut) = (journal.log("gone", 1).unwrap(), journal.log("cut", 1).unwrap());
        assert_eq!((gone.health(), cut.health()), (Health::Intact, Health::Intact), "{seed}");
        let happened = gone.end() == 0;
        *if happened { &mut kept } else { &mut lost } += 1;
        assert_eq!(gone.bounds(), 0..if happened { 0 } else { end }, "{seed}");
        assert_eq!(cut.bounds(), 0..if happened { half } else { end }, "{seed}");
        for (log, byte) in [(&gone, 1), (&cut, 2)] {
            for position in log.bounds() {
                assert_eq!(log.read(position).unwrap(), [byte; 900][..], "{seed}");
            }
        }
    }
    assert!(kept > 10 && lost > 10, "kept {kept}, lost {lost}");
}
