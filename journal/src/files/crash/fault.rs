//! What can be made to go wrong, and the count of what did.

use std::fmt;

use fastrand::Rng;

/// A kind of operation on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Op {
    /// Every operation but taking the lock.
    Any,
    /// `File::read_at`.
    Read,
    /// `File::write_at`.
    Write,
    /// `File::sync_data`.
    Sync,
    /// `File::len`.
    Len,
    /// `Files::list`.
    List,
    /// `Files::open`.
    Open,
    /// `Files::create`.
    Create,
    /// `Files::rename`.
    Rename,
    /// `Files::remove`.
    Remove,
    /// `Files::sync_dir`.
    SyncDir,
}

/// Which of the operations a fault hits. Operations are counted from 0, beginning when the fault
/// is injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum When {
    /// This one only.
    Nth(u64),
    /// This one and all that follow.
    From(u64),
    /// Each with the probability 1 in `n`.
    OneIn(u32),
}

/// What a fault does to the operation it hits. An effect that has no meaning for an operation
/// (a short `sync_data`) is the same as [`Effect::Fail`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Effect {
    /// The operation fails with an I/O error. A write may have left a prefix; a failed sync keeps
    /// its pages dirty, so that a later sync can still succeed honestly.
    Fail,
    /// The operation fails for want of space. A write may have left a prefix.
    NoSpace,
    /// A read or write transfers only a part of the bytes (at least one) and says so.
    Short,
    /// The sync fails, and every write since the last good one is forgotten by the disk, though
    /// reads still show it: what Linux does after an error in writeback. The next sync succeeds.
    DropDirty,
    /// The sync reports success and does nothing: a disk with a volatile cache that ignores
    /// flushes. What was written stays as unsynced as it was.
    LieSync,
    /// The write reports success and reads show it, but on the disk it lands elsewhere: at
    /// another offset or in another file.
    Misdirect,
    /// The read returns one flipped bit; the disk is intact.
    FlipRead,
    /// The power goes at this operation: a write may leave a prefix, all else does nothing, and
    /// every later operation fails until `power_loss` or `kill` brings the disk back.
    PowerOff,
}

/// One entry of the fault plan.
///
/// ```
/// # use voussoir_journal::files::crash::{CrashFiles, Effect, Fault, Op, When};
/// let disk = CrashFiles::new(7);
/// disk.inject(Fault::new(Op::Sync, When::Nth(3), Effect::DropDirty));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    op: Op,
    when: When,
    effect: Effect,
    seen: u64,
}

impl Fault {
    /// `effect` on those of the operations `op` that `when` names.
    pub fn new(op: Op, when: When, effect: Effect) -> Self {
        Self { op, when, effect, seen: 0 }
    }

    /// Counts an operation; the effect if this fault hits it.
    pub(super) fn fires(&mut self, op: Op, rng: &mut Rng) -> Option<Effect> {
        if self.op != Op::Any && self.op != op {
            return None;
        }
        let index = self.seen;
        self.seen += 1;
        let hit = match self.when {
            When::Nth(n) => index == n,
            When::From(n) => index >= n,
            When::OneIn(n) => rng.u32(..n.max(1)) == 0,
        };
        hit.then_some(self.effect)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// How often each thing happened on a [`CrashFiles`](super::CrashFiles): runs in which a
        /// class of faults never fired prove nothing about it. `Display` prints one line.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Adds the counts of another disk.
            pub fn merge(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }
        }

        impl fmt::Display for Counters {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut first = true;
                $(
                    if !std::mem::take(&mut first) {
                        f.write_str(", ")?;
                    }
                    write!(f, "{} {}", stringify!($name).replace('_', " "), self.$name)?;
                )*
                Ok(())
            }
        }
    };
}

counters! {
    /// Operations of any kind, rejected ones included.
    operations,
    /// Power losses.
    power_losses,
    /// Process crashes: nothing lost but the handles.
    kills,
    /// Unsynced writes that a power loss kept whole.
    writes_kept,
    /// Unsynced writes that a power loss dropped.
    writes_lost,
    /// Unsynced writes of which a power loss kept a part.
    writes_torn,
    /// Files in which a power loss kept a write and dropped an earlier one.
    files_reordered,
    /// Files whose size got ahead of their data, zeros between.
    sizes_ahead,
    /// Files whose size got ahead of their data, another file's old bytes between.
    stale_shown,
    /// Unsynced creates, renames and removes that a power loss kept.
    entries_kept,
    /// Unsynced creates, renames and removes that a power loss dropped.
    entries_lost,
    /// Operations failed with an I/O error.
    failed,
    /// Operations failed for want of space, by fault or by capacity.
    no_space,
    /// Short reads and writes.
    short,
    /// Syncs that failed and dropped their dirty pages.
    dirty_dropped,
    /// Syncs that reported success and did nothing.
    lied,
    /// Pages that reached the disk by themselves.
    aged,
    /// Sectors that became unreadable because a write to them was torn.
    unreadable,
    /// Writes that landed elsewhere.
    misdirected,
    /// Bits flipped, in reads or on the disk.
    flips,
}
