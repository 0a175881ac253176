//! How a node is set up.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use crate::error::ConfigError;
use crate::types::MAX_VOTERS;

/// What is replaced by what the store takes, where that is less.
pub(crate) const DEFAULT_MAX_ENTRY_BYTES: usize = (1 << 20) - 1024;

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
    /// This node. One of `voters`, unless it is to join a group that there is.
    pub id: u64,
    /// The group, for processes that run many. Goes into every message. Default 0.
    pub group: u64,
    /// All voters, in any order, this node included. At most [`MAX_VOTERS`]. Where the membership
    /// may change they matter only to a log that has not been begun: the log knows the members
    /// from then on, and this list may be empty.
    pub voters: Vec<u64>,
    /// Whether the membership may change; the same on every node. A node then listens to whoever
    /// leads, also when it has not heard of that member yet: the transport must let in the nodes
    /// of this cluster only. Default `false`.
    pub dynamic: bool,
    /// Seeds the election timeouts and the nonce of forwarded reads. In simulations derive it
    /// from the seed of the run and the number of the start: two lives of a node must not share
    /// it. Default `None`: drawn from the system when the node or core is made.
    pub seed: Option<u64>,

    /// The shortest silence of the leader after which an election starts. Default 200 ms.
    pub min_election_timeout: Duration,
    /// The longest. Each wait is drawn evenly between the two. Default 400 ms.
    pub max_election_timeout: Duration,
    /// Between heartbeats. Default 50 ms; at least 1 ms and at most half of
    /// `min_election_timeout`.
    pub heartbeat_interval: Duration,
    /// Turns lease reads on: how far the clock of any node may run faster or slower than true time,
    /// in millionths, from 1 to 500,000. The same on every node, as is `min_election_timeout` then:
    /// a leader whose heartbeats a majority has answered reads without asking again for
    /// `min_election_timeout` less twice the drift, since their sending. A clock that differs by
    /// more, or that stands still while its machine is suspended, makes stale reads possible.
    /// Default `None`: every read is confirmed by a round of heartbeats, and depends on no clock.
    pub max_clock_drift_ppm: Option<u32>,
    /// How long writes may be under way without any of them completing. Past it a leader steps
    /// down and a follower starts no election, so that a node with a healthy disk leads. Writes
    /// of up to this duration are tolerated in elections too, whatever the election timeouts
    /// are: votes are asked for and given while the own vote is being written. At least
    /// `max_election_timeout`. Default 1 s.
    pub disk_stall: Duration,
    /// How long clients ask nothing of a leader before its group quiesces: nobody sends heartbeats
    /// or waits for them until something happens. A leader that was asked nothing since its node
    /// started quiesces as soon as all members have what it has. Only where the caller says which
    /// nodes are alive, as [`Node`](crate::Node) does; a [`Raft`](crate::Raft) by itself never
    /// quiesces. All nodes of the group must know of it. `None`: never. Default 1 s; up to 1 h.
    pub quiesce_after: Option<Duration>,
    /// How long the leader waits for an acknowledgement before it asks what has arrived and
    /// sends the rest again. Default 200 ms.
    pub resend_interval: Duration,

    /// The longest command, in bytes; the same on all nodes. Default 1 MiB less 1 KiB, which is
    /// what a journal with segments of at least 4 MiB takes. With the default, a node whose store
    /// takes less ([`LogStore::max_entry_bytes`](crate::LogStore::max_entry_bytes)) has that as
    /// its limit; with any other value that is above it, the node does not start.
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
    /// store. Entries that are not durable yet always stay. It is for each group at work; one at
    /// rest keeps none. Default 16 MiB.
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
    /// Entries before the snapshot that stay in the log for slow followers. Default 10,000. What a
    /// follower lacks that has just received a snapshot stays beyond that, but nothing before the
    /// snapshot that this one replaces.
    pub keep_entries: u64,
    /// The same by weight, in bytes: no more entries than weigh as much, by the average of those
    /// since the snapshot before. Default 64 MiB; may be 0.
    pub keep_bytes: u64,
    /// Snapshots that a leader sends at once. Default 1.
    pub max_snapshots_sending: usize,

    /// The shell: weight of the peers' messages that wait for the node's loop, in bytes. Past it
    /// they are dropped, as a network may do. Default 64 MiB.
    pub max_inbox_bytes: u64,
    /// The shell: how long a proposal may take before its caller is told that its outcome is
    /// unknown. Default 5 s.
    pub proposal_timeout: Duration,
    /// The shell: how many bytes of snapshots a node sends per second, over all followers of the
    /// group; at least 64 KiB. Chunks leave at that pace, one at a time. Default `None`: no limit.
    pub snapshot_bytes_per_second: Option<u64>,
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
            dynamic: false,
            seed: None,
            min_election_timeout: Duration::from_millis(200),
            max_election_timeout: Duration::from_millis(400),
            heartbeat_interval: Duration::from_millis(50),
            max_clock_drift_ppm: None,
            disk_stall: Duration::from_secs(1),
            quiesce_after: Some(Duration::from_secs(1)),
            resend_interval: Duration::from_millis(200),
            max_entry_bytes: DEFAULT_MAX_ENTRY_BYTES,
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
            keep_bytes: 64 << 20,
            max_snapshots_sending: 1,
            max_inbox_bytes: 64 << 20,
            proposal_timeout: Duration::from_secs(5),
            snapshot_bytes_per_second: None,
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

    /// The defaults for a node that is to join a group that there is: it takes part once a leader
    /// has added it ([`Raft::change`](crate::Raft::change)).
    pub fn joining(id: u64) -> Self {
        Self { id, dynamic: true, ..Self::default() }
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
    pub(crate) fn max_election_backoff(&self) -> u64 {
        let (shortest, stall) = (nanos(self.min_election_timeout), nanos(self.disk_stall));
        stall.div_ceil(shortest.max(1)).max(8).next_power_of_two()
    }

    /// The seed, or one from the system.
    pub(crate) fn drawn_seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish())
    }

    fn validate_voters(&self) -> Result<(), ConfigError> {
        let mut sorted = self.voters.clone();
        sorted.sort_unstable();
        sorted.dedup();
        check(&[
            (
                "voters",
                self.dynamic || !sorted.is_empty(),
                "must name at least one node, unless `dynamic` is set",
            ),
            ("voters", sorted.len() <= MAX_VOTERS, "must not name more than `MAX_VOTERS` nodes"),
            ("voters", sorted.len() == self.voters.len(), "must name each node once"),
            (
                "id",
                self.dynamic || sorted.binary_search(&self.id).is_ok(),
                "must be one of `voters`, unless `dynamic` is set",
            ),
        ])
    }

    fn validate_timing(&self) -> Result<(), ConfigError> {
        let longest = Duration::from_secs(3600);
        let within = |duration: Duration| !duration.is_zero() && duration <= longest;
        let heartbeat = self.heartbeat_interval;
        let (shortest_wait, longest_wait) = (self.min_election_timeout, self.max_election_timeout);
        let two_heartbeats = heartbeat.saturating_mul(2);
        check(&[
            ("heartbeat_interval", heartbeat >= Duration::from_millis(1), "must be at least 1 ms"),
            (
                "min_election_timeout",
                shortest_wait >= two_heartbeats,
                "must be at least twice `heartbeat_interval`",
            ),
            (
                "max_election_timeout",
                longest_wait >= shortest_wait,
                "must not be below `min_election_timeout`",
            ),
            ("max_election_timeout", longest_wait <= longest, "must be at most 1 h"),
            (
                "max_clock_drift_ppm",
                self.max_clock_drift_ppm.is_none_or(|ppm| (1..=500_000).contains(&ppm)),
                "must be between 1 and 500,000",
            ),
            (
                "disk_stall",
                self.disk_stall >= longest_wait && self.disk_stall <= longest,
                "must be between `max_election_timeout` and 1 h",
            ),
            (
                "quiesce_after",
                self.quiesce_after.is_none_or(within),
                "must be more than 0 and at most 1 h",
            ),
            (
                "resend_interval",
                self.resend_interval >= heartbeat && self.resend_interval <= longest,
                "must be between `heartbeat_interval` and 1 h",
            ),
            (
                "proposal_timeout",
                within(self.proposal_timeout),
                "must be more than 0 and at most 1 h",
            ),
            (
                "snapshot_timeout",
                within(self.snapshot_timeout),
                "must be more than 0 and at most 1 h",
            ),
        ])
    }

    fn validate_limits(&self) -> Result<(), ConfigError> {
        const SOME: &str = "must be at least 1";
        check(&[
            ("max_entry_bytes", self.max_entry_bytes > 0, SOME),
            ("max_append_entries", self.max_append_entries > 0, SOME),
            ("max_append_bytes", self.max_append_bytes > 0, SOME),
            ("max_inflight_appends", self.max_inflight_appends > 0, SOME),
            ("max_inflight_bytes", self.max_inflight_bytes > 0, SOME),
            ("max_uncommitted_bytes", self.max_uncommitted_bytes > 0, SOME),
            ("max_undecided", self.max_undecided > 0, SOME),
            ("max_persists", self.max_persists > 0, SOME),
            ("max_persist_bytes", self.max_persist_bytes > 0, SOME),
            ("max_window_bytes", self.max_window_bytes > 0, SOME),
            ("max_applying", self.max_applying > 0, SOME),
            ("max_applying_bytes", self.max_applying_bytes > 0, SOME),
            ("max_reads", self.max_reads > 0, SOME),
            ("max_snapshots_sending", self.max_snapshots_sending > 0, SOME),
            ("max_inbox_bytes", self.max_inbox_bytes > 0, SOME),
            ("snapshot_window", self.snapshot_window > 0, SOME),
            (
                "snapshot_bytes_per_second",
                self.snapshot_bytes_per_second.is_none_or(|rate| rate >= 64 << 10),
                "must be at least 64 KiB: a chunk of 1 MiB takes 16 s then",
            ),
            (
                "max_entry_bytes",
                u32::try_from(self.max_entry_bytes).is_ok(),
                "must be below 2^32: the formats keep it in 32 bits",
            ),
            (
                "max_append_entries",
                u16::try_from(self.max_append_entries).is_ok(),
                "must be below 2^16: the message keeps it in 16 bits",
            ),
        ])
    }
}

/// The first rule that does not hold, of (field, whether it holds, rule).
fn check(rules: &[(&'static str, bool, &'static str)]) -> Result<(), ConfigError> {
    match rules.iter().find(|(_, holds, _)| !holds) {
        Some(&(field, _, rule)) => Err(ConfigError { field, rule }),
        None => Ok(()),
    }
}

/// Nanoseconds of a duration that [`Config::validate`] has bounded.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
