//! What goes on while a full segment has no index yet: that is written behind the commits.

use std::io;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use voussoir_journal::files::crash::{CrashFiles, Loss};
use voussoir_journal::files::{File, Files};
use voussoir_journal::{Commit, Config, Durability, Health, Journal};

use crate::losses::in_order;

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

    fn write<T>(&self, work: impl FnOnce() -> T) -> T {
        let current = std::thread::current();
        if current.name() != Some("journal-keeper") {
            self.inner.lock().calls.push((current.id(), "write"));
            return work();
        }
        let mut inner = self.inner.lock();
        self.changed.wait_while(&mut inner, |inner| inner.keeper_writes == 0);
        inner.keeper_writes -= 1;
        drop(inner);
        let done = work();
        self.inner.lock().keeper_written += 1;
        self.changed.notify_all();
        done
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

#[derive(Debug)]
struct GatedFiles {
    files: Arc<dyn Files>,
    gate: Arc<Gate>,
}

#[derive(Debug)]
struct GatedFile {
    file: Arc<dyn File>,
    gate: Arc<Gate>,
}

impl GatedFiles {
    fn gated(&self, file: io::Result<Arc<dyn File>>) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(GatedFile { file: file?, gate: Arc::clone(&self.gate) }))
    }
}

impl Files for GatedFiles {
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        self.files.lock()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.files.list()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.gated(self.files.open(name))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.gated(self.files.create(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.files.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.files.sync_dir()
    }
}

impl File for GatedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, bufs: &[io::IoSlice<'_>], offset: u64) -> io::Result<usize> {
        self.gate.write(|| self.file.write_at(bufs, offset))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.gate.inner.lock().calls.push((std::thread::current().id(), "sync"));
        self.file.sync_data()
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
    let files = GatedFiles { files: disk.mount(), gate: Arc::clone(gate) };
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
    // The keeper's last write for a spare is that of the manifest; then it has nothing to do.
    while journal.stats().segments < 2 {
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
