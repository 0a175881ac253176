//! What can be tuned, with the limits that bound everything that grows.

use std::time::Duration;

use crate::core::reserve::RESERVE_SEGMENTS;
use crate::error::ConfigError;
use crate::format;

/// The configuration of a journal. `Default` suits a server with a disk of its own.
///
/// # Example
/// ```
/// let mut config = voussoir_journal::Config::default();
/// config.segment_bytes = 16 << 20;
/// config.max_bytes = 1 << 30;
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// Bytes of one segment file; 64 KiB to 1 GiB, a multiple of 4096. Default 64 MiB.
    ///
    /// Space comes back in whole segments, and a commit has to fit into a quarter of one.
    /// May be changed between openings: segments that exist keep their size until they are
    /// recycled.
    pub segment_bytes: u64,
    /// The most bytes that the segment files may take which are open to all commits; at least four
    /// segments, and never more than 3,997 of them. Default 16 GiB. At the limit appends are
    /// rejected with [`Error::Full`](crate::Error::Full) while releases, truncations and deletes go
    /// on, in a reserve of three segments beside these. The reserve is made ready while the first
    /// segment fills, so that it is there when the disk is full.
    pub max_bytes: u64,
    /// The most logs that may exist. Default 65,536. Every segment begins with a table of all
    /// logs (about 64 bytes each), which may take at most a quarter of a segment.
    pub max_logs: u32,
    /// Bytes of commits that have been accepted and not yet written. Default 32 MiB. At the
    /// limit [`submit`](crate::Journal::submit) answers [`Error::Busy`](crate::Error::Busy), and
    /// [`commit`](crate::Journal::commit) waits. One commit is accepted whatever its size when
    /// nothing else is pending.
    pub max_pending_bytes: usize,
    /// Commits that may wait for room under `max_pending_bytes`. Default 16,384. Beyond it they
    /// fail with [`Error::Busy`](crate::Error::Busy).
    pub max_waiting: usize,
    /// Bytes of large commits that one group takes as long as there have been small ones lately;
    /// four times as much otherwise, and always at least one commit. Default 256 KiB. Smaller
    /// favours the latency of small commits, larger the throughput of large ones.
    pub bulk_share_bytes: usize,
    /// After this time without commits what was only written is synced, and a mark is written
    /// that everything is durable. Default 100 ms.
    pub idle_mark: Duration,
    /// Memory for the batch indexes of sealed segments. Default 16 MiB. The index of one log in
    /// one segment stays whole, also when it is larger.
    pub index_cache_bytes: usize,
    /// The rate at which new segment files are filled with zeros ahead of need, bytes per
    /// second. Default 256 MiB/s. Ignored while a commit waits for a segment.
    pub prepare_bytes_per_second: u64,
    /// The rate at which batches are moved out of full segments that are pinned by little, bytes
    /// per second; 0 for never. Default 64 MiB/s. A segment is such a victim when at most half of
    /// it still counts. It starts when three quarters of the segments are in use. Ignored while
    /// appends wait for room.
    pub rewrite_bytes_per_second: u64,
    /// The identity of a journal that is created by this opening; `None` (the default) draws a
    /// random one. Set it for runs that must be deterministic.
    pub identity: Option<u128>,
    pub(crate) manual: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            max_bytes: 16 << 30,
            max_logs: 65_536,
            max_pending_bytes: 32 << 20,
            max_waiting: 16_384,
            bulk_share_bytes: 256 << 10,
            idle_mark: Duration::from_millis(100),
            index_cache_bytes: 16 << 20,
            prepare_bytes_per_second: 256 << 20,
            rewrite_bytes_per_second: 64 << 20,
            identity: None,
            manual: false,
        }
    }
}

impl Config {
    /// For a journal without threads of its own, which moves only when somebody calls
    /// [`Journal::work`](crate::Journal::work) or
    /// [`Journal::commit_blocking`](crate::Journal::commit_blocking): deterministic, for
    /// simulations and tests.
    pub fn manual() -> Self {
        Self { manual: true, ..Self::default() }
    }

    /// How many segment files `max_bytes` allows.
    pub(crate) fn max_segments(&self) -> usize {
        let segments = self.max_bytes / self.segment_bytes;
        let most = format::SEGMENTS_MAX - RESERVE_SEGMENTS;
        usize::try_from(segments).unwrap_or(usize::MAX).min(most)
    }

    /// How many files a journal of this size has open: one for each segment, the manifest and the
    /// two of the lock.
    pub(crate) fn descriptors(&self) -> u64 {
        (self.max_segments() + RESERVE_SEGMENTS + 3) as u64
    }

    /// Bytes of the largest commit frame: a quarter of a segment, at most 16 MiB and a bit.
    pub(crate) fn max_frame_bytes(&self) -> u64 {
        (self.segment_bytes / 4).min(format::COMMIT_BYTES_MAX)
    }

    /// Bytes per second; no limit in a manual journal, which has no clock to wait for.
    pub(crate) fn prepare_rate(&self) -> u64 {
        if self.manual { u64::MAX } else { self.prepare_bytes_per_second }
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let check = |valid: bool, field, rule| {
            if valid { Ok(()) } else { Err(ConfigError { field, rule }) }
        };
        let sizes = format::SEGMENT_BYTES_MIN..=format::SEGMENT_BYTES_MAX;
        let segment_bytes = self.segment_bytes;
        let is_whole = segment_bytes.is_multiple_of(format::BLOCK);
        check(sizes.contains(&segment_bytes), "segment_bytes", "must be 64 KiB to 1 GiB")?;
        check(is_whole, "segment_bytes", "must be a multiple of 4096")?;
        check(self.max_segments() >= 4, "max_bytes", "must be at least four `segment_bytes`")?;
        check(self.max_logs > 0, "max_logs", "must be at least 1")?;
        check(self.max_pending_bytes > 0, "max_pending_bytes", "must be at least 1")?;
        check(self.max_waiting > 0, "max_waiting", "must be at least 1")?;
        check(self.bulk_share_bytes > 0, "bulk_share_bytes", "must be at least 1")?;
        let rate = self.prepare_bytes_per_second;
        check(rate > 0, "prepare_bytes_per_second", "must be at least 1")
    }
}

/// When a commit is acknowledged. What the acknowledgement means is the only difference: all
/// commits of a log are written and recovered in one order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Durability {
    /// When the journal has accepted it in memory: lost when the process dies, the journal stops or
    /// there is no room before it is written. It is readable once written, and synced with the next
    /// synced commit or when the journal has been idle for [`Config::idle_mark`].
    ///
    /// A commit that is lost while the process lives is counted in
    /// [`Stats::buffered_lost`](crate::Stats::buffered_lost) and reported as a `tracing` event
    /// with the error; the positions in its receipt are then given again. To know that none was
    /// lost, compare the count before and after a synced commit, which is written after all
    /// buffered ones of the same logs.
    Buffered,
    /// When the operating system has it: survives the death of the process, not of the machine.
    /// Synced later as for `Buffered`. When it shares its group with a synced commit it waits
    /// for that sync.
    Written,
    /// When it is on stable storage, as far as the device tells the truth.
    #[default]
    Synced,
}
