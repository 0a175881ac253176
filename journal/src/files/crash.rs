//! A simulated disk that loses power: the proof that what was acknowledged survives.
//!
//! [`CrashFiles`] keeps apart what reads show (the page cache) and what the disk holds. Data moves
//! from one to the other by `sync_data`, names by `sync_dir`, and by nothing else,
//! unless the disk [ages](CrashFiles::set_aging). A
//! [`power_loss`](CrashFiles::power_loss) leaves any outcome that a disk may: each unsynced write
//! kept, lost, torn at a sector or a byte, or scattered by sectors, in any order between files and
//! within one; file sizes ahead of their data, with zeros or old blocks showing; each unsynced
//! create, rename and remove kept or lost for itself. A [`Fault`] plan adds what disks do while
//! they run. All of it follows from one seed.
//!
//! Two things are taken as given, as SQLite and PostgreSQL take them: a write never damages bytes
//! outside its own range, unless the disk is [fragile](CrashFiles::set_fragile), and a rename is
//! atomic. A sync keeps its word, unless a fault makes it [lie](Effect::LieSync).
//!
//! ```
//! use voussoir_journal::files::crash::{CrashFiles, Loss};
//!
//! # fn main() -> std::io::Result<()> {
//! let disk = CrashFiles::new(1);
//! let directory = disk.mount();
//! let file = directory.create("greeting")?;
//! file.write_at(&[std::io::IoSlice::new(b"hello")], 0)?;
//! file.sync_data()?;
//! // The content is synced, the name is not.
//! disk.power_loss(Loss::Everything);
//! assert!(disk.mount().open("greeting").is_err());
//! # Ok(())
//! # }
//! ```

mod disk;
mod fault;
mod image;
mod loss;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use parking_lot::{Mutex, MutexGuard};

use self::disk::{Disk, power_is_off};
use super::{File, Files};

pub use self::fault::{Counters, Effect, Fault, Op, When};
pub use self::loss::Loss;

/// A simulated disk with one directory. Clones share the disk. See the [module](self).
#[derive(Clone)]
pub struct CrashFiles {
    disk: Arc<Mutex<Disk>>,
}

impl CrashFiles {
    /// An empty disk. Equal seeds and equal calls give equal outcomes.
    pub fn new(seed: u64) -> Self {
        Self { disk: Arc::new(Mutex::new(Disk::new(seed))) }
    }

    /// The directory as a process sees it that starts now. It lives until the next
    /// [`power_loss`](Self::power_loss) or [`kill`](Self::kill): then it, its files and its lock
    /// are dead, and all they answer is an error, so that what a dead process still does in its
    /// destructors never reaches the disk.
    pub fn mount(&self) -> Arc<dyn Files> {
        let generation = self.disk.lock().generation;
        Arc::new(Mount { disk: Arc::clone(&self.disk), generation })
    }

    /// An independent copy of the disk as it is now, unsynced writes and fault plan included, for
    /// trying several futures of one moment. Content is shared until it is written. The counters
    /// of the copy start at zero.
    pub fn fork(&self, seed: u64) -> Self {
        let mut disk = self.disk.lock().clone();
        disk.rng = Rng::with_seed(seed);
        disk.counters = Counters::default();
        disk.restart();
        Self { disk: Arc::new(Mutex::new(disk)) }
    }

    /// Cuts the power and brings it back: what was not synced fares as `loss` says. The fault plan
    /// stays.
    pub fn power_loss(&self, loss: Loss) {
        self.disk.lock().power_loss(loss);
    }

    /// Kills the process and not the machine: nothing is lost that had been written, though what
    /// was not synced still can be.
    pub fn kill(&self) {
        let mut disk = self.disk.lock();
        disk.counters.kills += 1;
        disk.restart();
    }

    /// Adds a fault to the plan. When several hit one operation, the last one injected wins.
    pub fn inject(&self, fault: Fault) {
        self.disk.lock().faults.push(fault);
    }

    /// Empties the fault plan.
    pub fn heal(&self) {
        self.disk.lock().faults.clear();
    }

    /// Bounds the sum of the file sizes, in bytes. Above it nothing can be created or extended;
    /// overwriting, renaming and removing work. `None` (the default) is no bound.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk.lock().capacity = bytes;
    }

    /// The sum of the file sizes, in bytes.
    pub fn used(&self) -> u64 {
        self.disk.lock().used_bytes()
    }

    /// Lets unsynced pages reach the disk by themselves, as a kernel does after some time: one
    /// page for `one_in` writes on average. `None` (the default) is never. A page that has reached
    /// the disk survives a power loss, and a sync that fails.
    pub fn set_aging(&self, one_in: Option<u32>) {
        self.disk.lock().aging = one_in;
    }

    /// Makes the sector in which a power loss tears a write unreadable until it is written as a
    /// whole, with what had been synced in it before: what a disk does that was writing the sector
    /// when the power went.
    pub fn set_fragile(&self, fragile: bool) {
        self.disk.lock().fragile = fragile;
    }

    /// Fills all unreadable sectors with zeros, as an operator does (`hdparm --repair-sector`,
    /// `dd`). Answers how many there were.
    pub fn repair(&self) -> usize {
        self.disk.lock().repair()
    }

    /// Flips bit `bit` (byte `bit / 8`, counted from the least significant) of a file, in what is
    /// read now and after a power loss. False when the file has no such bit.
    pub fn flip_bit(&self, name: &str, bit: u64) -> bool {
        self.disk.lock().flip(name, bit)
    }

    /// Overwrites a part of an existing file, in what is read now and after a power loss: bit rot
    /// of a whole block, or the write of somebody else. Nothing beyond the end is written.
    pub fn overwrite(&self, name: &str, offset: u64, bytes: &[u8]) {
        self.disk.lock().overwrite(name, offset, bytes);
    }

    /// The names and contents that reads show now, without counting as operations.
    pub fn snapshot(&self) -> Vec<(String, Vec<u8>)> {
        let disk = self.disk.lock();
        let content = |inode: &u64| disk.inodes[inode].seen.to_vec();
        disk.names.iter().map(|(name, inode)| (name.clone(), content(inode))).collect()
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.disk.lock().counters
    }
}

impl fmt::Debug for CrashFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = self.disk.lock();
        f.debug_struct("CrashFiles")
            .field("files", &disk.names.keys())
            .field("powered", &disk.powered)
            .field("counters", &disk.counters)
            .finish_non_exhaustive()
    }
}

/// The directory as one process sees it.
#[derive(Debug)]
struct Mount {
    disk: Arc<Mutex<Disk>>,
    generation: u64,
}

impl Mount {
    fn disk(&self) -> io::Result<MutexGuard<'_, Disk>> {
        live(&self.disk, self.generation)
    }

    fn handle(&self, (inode, alive): (u64, Arc<()>)) -> Arc<dyn File> {
        let (disk, generation) = (Arc::clone(&self.disk), self.generation);
        Arc::new(CrashFile {
            disk,
            generation,
            inode,
            cached_reads: AtomicU64::new(0),
            _alive: alive,
        })
    }
}

impl Files for Mount {
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        let mut disk = self.disk()?;
        if !disk.powered {
            return Err(power_is_off());
        }
        if disk.locked {
            return Err(ErrorKind::WouldBlock.into());
        }
        disk.locked = true;
        Ok(Box::new(Guard { disk: Arc::clone(&self.disk), generation: self.generation }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.disk()?.list()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let opened = self.disk()?.open(name)?;
        Ok(self.handle(opened))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let created = self.disk()?.create(name)?;
        Ok(self.handle(created))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk()?.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk()?.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.disk()?.sync_dir()
    }
}

#[derive(Debug)]
struct CrashFile {
    disk: Arc<Mutex<Disk>>,
    generation: u64,
    inode: u64,
    /// Calls of `read_cached_at` so far.
    cached_reads: AtomicU64,
    _alive: Arc<()>,
}

impl CrashFile {
    fn disk(&self) -> io::Result<MutexGuard<'_, Disk>> {
        live(&self.disk, self.generation)
    }
}

impl File for CrashFile {
    fn len(&self) -> io::Result<u64> {
        self.disk()?.len(self.inode)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk()?.read(self.inode, buf, offset)
    }

    /// Now and then answers `None`, as a page cache does that has dropped a page: decided by the
    /// offset and the number of calls, so that a run can be repeated.
    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        let calls = self.cached_reads.fetch_add(1, Ordering::Relaxed);
        if (calls ^ (offset >> 12)).is_multiple_of(4) {
            return Ok(None);
        }
        // As short as a read can be that meets the end of what is cached.
        let short = if calls.is_multiple_of(3) { buf.len().div_ceil(2) } else { buf.len() };
        self.read_at(&mut buf[..short], offset).map(Some)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let data = bufs.iter().map(|buf| &**buf).collect::<Vec<_>>().concat();
        self.disk()?.write(self.inode, data, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk()?.sync(self.inode)
    }
}

struct Guard {
    disk: Arc<Mutex<Disk>>,
    generation: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut disk = self.disk.lock();
        if disk.generation == self.generation {
            disk.locked = false;
        }
    }
}

/// The disk, unless the process that asks is dead.
fn live(disk: &Mutex<Disk>, generation: u64) -> io::Result<MutexGuard<'_, Disk>> {
    let disk = disk.lock();
    if disk.generation == generation { Ok(disk) } else { Err(power_is_off()) }
}
