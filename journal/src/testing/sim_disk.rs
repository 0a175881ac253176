//! The disk of a node in a simulated world.

use voussoir_sim::{Crash, DiskFault, Rng};

use crate::files::crash::{CrashFiles, Effect, Fault, Loss, Op, When};
use crate::{Config, Journal, OpenError};

/// Bits are flipped where something was written, found in pieces of so many bytes.
const PAGE_BYTES: usize = 64;

/// What was done to a disk for good. What it holds has to be refused, in whole or in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruin {
    /// A bit has flipped.
    Rotten,
    /// It was replaced by an empty one.
    Lost,
}

/// The disk of a node in a world of `voussoir-sim`, with a journal on it: a
/// [`Node::Disk`](voussoir_sim::Node::Disk). It loses power, fails, fills up, rots and gets lost
/// as the world says.
///
/// # Example
/// The part of a node that is about its disk:
/// ```
/// use bytes::Bytes;
/// use voussoir_journal::testing::SimDisk;
/// use voussoir_journal::{Config, Journal};
/// use voussoir_sim::{Context, Crash, DiskFault, Node, RequestId, Rng};
///
/// struct Counter {
///     journal: Journal,
/// }
///
/// impl Counter {
///     /// For the world's factory: the world tries again later when the disk does not work.
///     fn boot(disk: &mut SimDisk) -> Option<Self> {
///         let journal = disk.open(Config::manual()).ok()?;
///         disk.set_used();
///         Some(Self { journal })
///     }
/// }
///
/// impl Node for Counter {
///     type Disk = SimDisk;
///     # type Event = ();
///     # type Request = ();
///     # type Reply = ();
///     # fn start(&mut self, _: &mut Context<'_, Self>) {}
///     # fn message(&mut self, _: &mut Context<'_, Self>, _: u64, _: Bytes) {}
///     # fn timer(&mut self, _: &mut Context<'_, Self>) {}
///     # fn event(&mut self, _: &mut Context<'_, Self>, (): ()) {}
///     # fn request(&mut self, _: &mut Context<'_, Self>, _: RequestId, (): ()) {}
///     // ...
///     fn crash(self, disk: &mut SimDisk, kind: Crash, _: &mut Rng) {
///         disk.crash(kind, self);
///     }
///     fn disk_fault(disk: &mut SimDisk, fault: DiskFault, rng: &mut Rng) {
///         disk.fault(fault, rng);
///     }
/// }
/// let mut disk = SimDisk::new(1);
/// let counter = Counter::boot(&mut disk).unwrap();
/// counter.crash(&mut disk, Crash::Power, &mut Rng::new(1));
/// assert!(Counter::boot(&mut disk).is_some());
/// ```
#[derive(Debug)]
pub struct SimDisk {
    files: CrashFiles,
    /// Of the last opening; for the one that precedes a flipped bit.
    config: Config,
    is_used: bool,
    ruin: Option<Ruin>,
    /// `ruin` has seemed harmless since.
    is_absolved: bool,
}

impl SimDisk {
    /// An empty disk. What becomes of unsynced writes follows from the seed.
    pub fn new(seed: u64) -> Self {
        let config = Config::manual();
        Self {
            files: CrashFiles::new(seed),
            config,
            is_used: false,
            ruin: None,
            is_absolved: false,
        }
    }

    /// The files, for faults of one's own and for counters.
    pub fn files(&self) -> &CrashFiles {
        &self.files
    }

    /// Opens the journal, or creates it. A lock that an earlier attempt of the same life holds is
    /// broken first.
    ///
    /// # Errors
    /// As [`Journal::open_with`].
    pub fn open(&mut self, config: Config) -> Result<Journal, OpenError> {
        self.files.kill();
        self.config = config.clone();
        Journal::open_with(self.files.mount(), config)
    }

    /// Whether a node has promised something that is on this disk: an empty one is a loss then.
    pub fn is_used(&self) -> bool {
        self.is_used
    }

    /// To be called when a node has opened the disk and may promise something from now on. Before
    /// that the world's bit rot and losses leave the disk alone.
    pub fn set_used(&mut self) {
        self.is_used = true;
    }

    /// What was done to the disk for good, unless that has turned out to be harmless.
    pub fn ruin(&self) -> Option<Ruin> {
        self.ruin.filter(|_| !self.is_absolved)
    }

    /// Forgets what was done to the disk: the journal has opened, and all of it is intact.
    pub fn absolve(&mut self) {
        self.is_absolved = true;
    }

    /// Takes an absolution back: the journal has found damage. An opening
    /// believes the index of a full segment, so that what it calls intact may be found rotten by a
    /// later one, which has to look at the frames.
    pub fn accuse(&mut self) {
        self.is_absolved = false;
    }

    /// Ends the life of `process`, which holds the journal. The disk goes first, so that nothing
    /// that the process does while it is dropped reaches it.
    pub fn crash<P>(&mut self, kind: Crash, process: P) {
        match kind {
            Crash::Power => self.files.power_loss(Loss::Any),
            _ => self.files.kill(),
        }
        drop(process);
    }

    /// Changes the health of the disk, or ruins it. Time is the world's matter
    /// ([`Context::disk_delay`](voussoir_sim::Context::disk_delay)).
    pub fn fault(&mut self, fault: DiskFault, rng: &mut Rng) {
        let effects = [
            (Op::Any, When::From(0), Effect::Fail),
            (Op::Write, When::From(0), Effect::Fail),
            (Op::Sync, When::From(0), Effect::DropDirty),
            (Op::Sync, When::Nth(rng.below(8)), Effect::DropDirty),
            (Op::Write, When::OneIn(3), Effect::Short),
        ];
        match fault {
            DiskFault::Fail => {
                if let Some((op, when, effect)) = rng.pick(&effects) {
                    self.files.inject(Fault::new(*op, *when, *effect));
                }
            }
            DiskFault::Full => {
                for op in [Op::Write, Op::Create] {
                    self.files.inject(Fault::new(op, When::From(0), Effect::NoSpace));
                }
            }
            DiskFault::Healed => self.files.heal(),
            DiskFault::Rot if self.is_used => self.rot(rng),
            DiskFault::Lost if self.is_used => {
                self.files = CrashFiles::new(rng.next_u64());
                (self.ruin, self.is_absolved) = (Some(Ruin::Lost), false);
            }
            _ => {}
        }
    }

    /// Flips a bit in each place where `bytes` stand: a record that nobody can read any more. To be
    /// called while no journal is open. Returns whether there was such a place.
    pub fn rot_record(&mut self, bytes: &[u8]) -> bool {
        if bytes.is_empty() || !self.close() {
            return false;
        }
        let mut is_struck = false;
        for (name, content) in self.files.snapshot() {
            let places = content.windows(bytes.len()).enumerate();
            for (at, _) in places.filter(|(_, found)| *found == bytes) {
                is_struck |= self.files.flip_bit(&name, at as u64 * 8);
            }
        }
        if is_struck {
            (self.ruin, self.is_absolved) = (Some(Ruin::Rotten), false);
        }
        is_struck
    }

    /// Closes the journal in good order, so that all of it is known to be durable: then nothing may
    /// take damage for a torn tail. Returns whether that worked.
    fn close(&self) -> bool {
        self.files.kill();
        let opened = Journal::open_with(self.files.mount(), self.config.clone());
        let is_closed = opened.is_ok_and(|journal| journal.close().is_ok());
        self.files.kill();
        is_closed
    }

    /// Flips some bit of the journal.
    fn rot(&mut self, rng: &mut Rng) {
        if !self.close() {
            return;
        }
        let mut written = Vec::new();
        for (name, content) in self.files.snapshot() {
            let pages = content.chunks(PAGE_BYTES).enumerate();
            let pages = pages.filter(|(_, page)| page.iter().any(|byte| *byte != 0));
            written.extend(pages.map(|(at, _)| (name.clone(), at as u64)));
        }
        if let Some((name, page)) = rng.pick(&written) {
            let page_bits = PAGE_BYTES as u64 * 8;
            if self.files.flip_bit(name, page * page_bits + rng.below(page_bits)) {
                (self.ruin, self.is_absolved) = (Some(Ruin::Rotten), false);
            }
        }
    }
}
