//! How a node is set up.

use std::time::Duration;

use crate::error::ConfigError;
use crate::types::MAX_VOTERS;

/// How a node is set up. Start from [`Config::new`] and change fields; checked by
/// [`Core::new`](crate::core::Core::new).
///
/// The default timing: heartbeats every 50 ms, elections after 200 to 400 ms of silence. A
/// leader's heartbeats never wait for its disk, so a slow sync does not start an election; four
/// heartbeats in a row have to be lost or late. After a crash the first survivor asks for votes
/// within 400 ms of the last heartbeat, so a cluster without a split vote is led again in under
/// half a second, and with one split vote still in under one second on most runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// This node. One of `voters`.
    pub id: u64,
    /// The group, for processes that run many. Goes into every message. Default 0.
    pub group: u64,
    /// All voters, in any order, this node included. At most [`MAX_VOTERS`].
    pub voters: Vec<u64>,
    /// Seeds the election timeouts and the nonce of forwarded reads. Draw a new one at each
    /// start; in simulations derive it from the seed of the run.
    pub seed: u64,

    /// The shortest silence of the leader after which an election starts. Default 200 ms.
    pub election_timeout_min: Duration,
    /// The longest. Each wait is drawn evenly between the two. Default 400 ms.
    pub election_timeout_max: Duration,
    /// Between heartbeats. Default 50 ms; at least 1 ms and at most half of
    /// `election_timeout_min`.
    pub heartbeat_interval: Duration,
    /// How long writes may be under way without any of them completing. Past it a leader steps
    /// down and a follower starts no election, so that a node with a healthy disk leads. Writes
    /// of up to this duration are tolerated in elections too, whatever the election timeouts
    /// are: votes are asked for and given while the own vote is being written. At least
    /// `election_timeout_max`. Default 1 s.
    pub disk_stall: Duration,
    /// How long the leader waits for an acknowledgement before it asks what has arrived and
    /// sends the rest again. Default 200 ms.
    pub resend_interval: Duration,

    /// The longest command, in bytes. Default 1 MiB less 1 KiB, which is what a batch of the
    /// journal holds.
    pub max_entry_bytes: usize,
    /// Entries in one append message. Default 4,096.
    pub max_append_entries: usize,
    /// Weight of the entries in one append message, in bytes; one entry may exceed it.
    /// Default 1 MiB.
    pub max_append_bytes: u64,
    /// Append messages under way to one follower. Default 64.
    pub max_inflight_appends: usize,
    /// Weight of the entries under way to one follower, in bytes. Default 8 MiB.
    pub max_inflight_bytes: u64,
    /// Weight of entries that the leader takes before they are committed and durable, in
    /// bytes. Past it proposals are rejected as [`Busy`](crate::ProposeRejected::Busy).
    /// Default 64 MiB.
    pub max_uncommitted_bytes: u64,
    /// Runs of proposals whose fate is not known yet, those of earlier leaderships of this node
    /// included; a run has consecutive tokens at consecutive indexes of one term. Past it
    /// proposals are refused as [`Busy`](crate::ProposeRejected::Busy). Default 65,536.
    pub max_undecided: usize,
    /// Writes of the log that are under way at once. Default 16.
    pub max_persists: usize,
    /// Weight of the entries in one write of the log, in bytes; one entry may exceed it.
    /// Default 4 MiB.
    pub max_persist_bytes: u64,
    /// Weight of recent entries kept in memory, in bytes. Older ones are read back from the
    /// store. Entries that are not durable yet always stay. Default 16 MiB.
    pub max_window_bytes: u64,
    /// Entries handed to the state machine and not reported as applied. Default 16,384.
    pub max_applying: u64,
    /// Their weight, in bytes; one entry may exceed it. Entries that have left the window do not
    /// count: whoever applies them reads them back from the store, batch by batch. Default 16 MiB.
    pub max_applying_bytes: u64,
    /// Reads that wait for a confirmation. Default 16,384.
    pub max_reads: usize,

    /// A snapshot is asked for when this many entries were applied since the last one; 0 for
    /// never. Default 100,000.
    pub snapshot_after_entries: u64,
    /// The same by weight, in bytes; 0 for never. Default 256 MiB.
    pub snapshot_after_bytes: u64,
    /// Entries before the snapshot that stay in the log for slow followers. Default 10,000.
    pub keep_entries: u64,
    /// Snapshots that a leader sends at once. Default 1.
    pub max_snapshots_sending: usize,

    /// The shell: weight of the peers' messages that wait for the node's loop, in bytes. Past it
    /// they are dropped, as a network may do. Default 64 MiB.
    pub max_inbox_bytes: u64,
    /// The shell: how long a proposal may take before its caller is told that its outcome is
    /// unknown. Default 5 s.
    pub proposal_timeout: Duration,
    /// The shell: chunks of a snapshot under way to one follower. Default 4.
    pub snapshot_window: usize,
    /// The shell: how long a follower may take to store one chunk of a snapshot. Default 5 s.
    pub snapshot_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            id: 0,
            group: 0,
            voters: Vec::new(),
            seed: 0,
            election_timeout_min: Duration::from_millis(200),
            election_timeout_max: Duration::from_millis(400),
            heartbeat_interval: Duration::from_millis(50),
            disk_stall: Duration::from_secs(1),
            resend_interval: Duration::from_millis(200),
            max_entry_bytes: (1 << 20) - 1024,
            max_append_entries: 4096,
            max_append_bytes: 1 << 20,
            max_inflight_appends: 64,
            max_inflight_bytes: 8 << 20,
            max_uncommitted_bytes: 64 << 20,
            max_undecided: 65_536,
            max_persists: 16,
            max_persist_bytes: 4 << 20,
            max_window_bytes: 16 << 20,
            max_applying: 16_384,
            max_applying_bytes: 16 << 20,
            max_reads: 16_384,
            snapshot_after_entries: 100_000,
            snapshot_after_bytes: 256 << 20,
            keep_entries: 10_000,
            max_snapshots_sending: 1,
            max_inbox_bytes: 64 << 20,
            proposal_timeout: Duration::from_secs(5),
            snapshot_window: 4,
            snapshot_timeout: Duration::from_secs(5),
        }
    }
}

impl Config {
    /// The defaults for node `id` of the group formed by `voters`.
    pub fn new(id: u64, voters: impl Into<Vec<u64>>) -> Self {
        Self { id, voters: voters.into(), ..Self::default() }
    }

    /// Checks every field against its range and against the others.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that no core can run with.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_voters()?;
        self.validate_timing()?;
        self.validate_limits()
    }

    /// The largest factor by which elections that fail one after the other stretch the election
    /// timeouts: a power of two, at least 8, with which the shortest of them covers a write that
    /// takes `disk_stall`.
    pub(crate) fn election_backoff_max(&self) -> u64 {
        let (shortest, stall) = (nanos(self.election_timeout_min), nanos(self.disk_stall));
        stall.div_ceil(shortest.max(1)).max(8).next_power_of_two()
    }

    fn validate_voters(&self) -> Result<(), ConfigError> {
        let mut sorted = self.voters.clone();
        sorted.sort_unstable();
        sorted.dedup();
        let problem = if sorted.is_empty() {
            "there are none"
        } else if sorted.len() > MAX_VOTERS {
            "there are too many"
        } else if sorted.len() != self.voters.len() {
            "one is listed twice"
        } else if sorted.binary_search(&self.id).is_err() {
            "this node is not among them"
        } else {
            return Ok(());
        };
        Err(ConfigError::Voters(problem))
    }

    fn validate_timing(&self) -> Result<(), ConfigError> {
        let longest = Duration::from_secs(3600);
        let problem = if self.heartbeat_interval < Duration::from_millis(1) {
            "heartbeat_interval is less than 1 ms"
        } else if self.election_timeout_min < self.heartbeat_interval.saturating_mul(2) {
            "election_timeout_min is less than two heartbeats"
        } else if self.election_timeout_max < self.election_timeout_min {
            "election_timeout_max is less than election_timeout_min"
        } else if self.election_timeout_max > longest {
            "election_timeout_max is more than an hour"
        } else if self.disk_stall < self.election_timeout_max || self.disk_stall > longest {
            "disk_stall is less than election_timeout_max or more than an hour"
        } else if self.resend_interval < self.heartbeat_interval || self.resend_interval > longest {
            "resend_interval is less than a heartbeat or more than an hour"
        } else if self.proposal_timeout.is_zero() || self.proposal_timeout > longest {
            "proposal_timeout is zero or more than an hour"
        } else if self.snapshot_timeout.is_zero() || self.snapshot_timeout > longest {
            "snapshot_timeout is zero or more than an hour"
        } else {
            return Ok(());
        };
        Err(ConfigError::Timing(problem))
    }

    fn validate_limits(&self) -> Result<(), ConfigError> {
        let zero = [
            (self.max_entry_bytes == 0, "max_entry_bytes is zero"),
            (self.max_append_entries == 0, "max_append_entries is zero"),
            (self.max_append_bytes == 0, "max_append_bytes is zero"),
            (self.max_inflight_appends == 0, "max_inflight_appends is zero"),
            (self.max_inflight_bytes == 0, "max_inflight_bytes is zero"),
            (self.max_uncommitted_bytes == 0, "max_uncommitted_bytes is zero"),
            (self.max_undecided == 0, "max_undecided is zero"),
            (self.max_persists == 0, "max_persists is zero"),
            (self.max_persist_bytes == 0, "max_persist_bytes is zero"),
            (self.max_window_bytes == 0, "max_window_bytes is zero"),
            (self.max_applying == 0, "max_applying is zero"),
            (self.max_applying_bytes == 0, "max_applying_bytes is zero"),
            (self.max_reads == 0, "max_reads is zero"),
            (self.max_snapshots_sending == 0, "max_snapshots_sending is zero"),
            (self.max_inbox_bytes == 0, "max_inbox_bytes is zero"),
            (self.snapshot_window == 0, "snapshot_window is zero"),
            (u32::try_from(self.max_entry_bytes).is_err(), "max_entry_bytes exceeds 32 bits"),
            (u16::try_from(self.max_append_entries).is_err(), "max_append_entries exceeds 16 bits"),
        ];
        match zero.into_iter().find(|(broken, _)| *broken) {
            Some((_, problem)) => Err(ConfigError::Limit(problem)),
            None => Ok(()),
        }
    }
}

/// Nanoseconds of a duration that [`Config::validate`] has bounded.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
