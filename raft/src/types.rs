//! The values that the core, the stores and the wire share.

use std::fmt;

use bytes::Bytes;

use crate::membership::Membership;

/// The most voters a group may have. Majorities are computed on the stack over this many.
pub const MAX_VOTERS: usize = 15;

/// The highest term. The values above it are reserved: no node takes one from a peer, from its
/// store or by an election.
pub const MAX_TERM: u64 = u64::MAX >> 1;

/// The highest index of an entry. The values above it are reserved in the same way.
pub const MAX_INDEX: u64 = u64::MAX >> 1;

/// How far ahead of its own a node takes a term from a peer. Terms grow by one with each election,
/// so a greater distance is damage, and taking it would use up the terms for everybody.
pub const MAX_TERM_STEP: u64 = 1 << 32;

/// What an [`Entry`] is for.
///
/// Source: Raft §5.3, §8 (the no-op).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EntryKind {
    /// Appended by a new leader: commits all that earlier terms left behind. It has no payload
    /// and is not given to the state machine as a command.
    Noop,
    /// A command for the state machine.
    Command,
    /// The membership of the group from here on; see [`Membership`]. It is not given to the state
    /// machine. Source: Raft §6.
    Config,
}

/// One entry of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The term of the leader that created it; at least 1.
    pub term: u64,
    /// Its place in the log; the first entry ever has index 1.
    pub index: u64,
    /// What it is for.
    pub kind: EntryKind,
    /// The command. Never copied by the core.
    pub data: Bytes,
}

impl Entry {
    /// Bytes that this entry counts for against every byte limit: the payload and a fixed
    /// overhead, so that empty commands are bounded too.
    pub fn weight(&self) -> u64 {
        self.data.len() as u64 + ENTRY_OVERHEAD
    }
}

/// What each entry counts for beyond its payload, in bytes.
pub const ENTRY_OVERHEAD: u64 = 48;

/// What must be durable before a node speaks in a term.
///
/// Source: Raft figure 2, "persistent state on all servers".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term that this node has seen; 0 before the first.
    pub term: u64,
    /// Whom it voted for in that term.
    pub vote: Option<u64>,
}

/// Names a snapshot: the state after every entry up to and including `index`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last entry that the snapshot covers.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
    /// The members of the group at that entry.
    pub members: Membership,
}

/// What a node is in its term.
///
/// Source: Raft §5.1; `PreCandidate`: Raft thesis §9.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Takes entries from a leader, or waits for one.
    Follower,
    /// Asks whether it could win an election, without disturbing anybody's term.
    PreCandidate,
    /// Asks for votes in a new term.
    Candidate,
    /// Orders commands.
    Leader,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Follower => "follower",
            Self::PreCandidate => "pre-candidate",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
        })
    }
}

/// A moment of a core, for operators and tests.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// This node.
    pub id: u64,
    /// The group it belongs to.
    pub group: u64,
    /// What it is in `term`.
    pub role: Role,
    /// Its current term.
    pub term: u64,
    /// The leader of `term`, as far as this node knows.
    pub leader: Option<u64>,
    /// The first index that the log still holds.
    pub first: u64,
    /// The last index of the log, durable or not.
    pub last: u64,
    /// The last index that is durable here.
    pub durable: u64,
    /// The last index known to be committed.
    pub commit: u64,
    /// The last index that the state machine has reported as applied.
    pub applied: u64,
    /// The last index that the current snapshot covers; 0 without one.
    pub snapshot: u64,
    /// Inputs from peers that the gate refused since the start; see
    /// [`PeerFault`](crate::core::PeerFault).
    pub rejected_inputs: u64,
    /// Followers that have lost entries which they had acknowledged as durable. Only a leader
    /// knows: it counts them for nothing until their log is back.
    pub lost_followers: usize,
    /// The index of the entry that brought the membership that counts here, committed or not; 0
    /// for the one that the log was begun with.
    pub members_index: u64,
    /// Whether this node votes in it.
    pub is_voter: bool,
    /// Whether voters are being exchanged.
    pub is_joint: bool,
    /// Whether the group rests here: nothing is sent and no timer runs until something happens.
    pub is_quiesced: bool,
    /// The index of a committed membership that leaves this node out, once it was told.
    pub removed: Option<u64>,
    /// The disk has lost entries, and the log is being brought back from the other nodes, up to
    /// this index or to an entry of a later term. Until then this node neither votes nor leads.
    pub recovering: Option<u64>,
    /// Set once the node has stopped for good by a fault. One that has stopped, for whatever
    /// reason, shows [`Role::Follower`] and no leader.
    pub halted: Option<HaltReason>,
}

impl Status {
    /// The node has stopped. Whoever waits for it to lead must not find that it does. Returns
    /// whether it was said to lead, or to know who does.
    pub(crate) fn leads_nobody(&mut self) -> bool {
        let before = (self.role, self.leader);
        (self.role, self.leader) = (Role::Follower, None);
        before != (self.role, self.leader)
    }
}

/// How entries flow from a leader to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FollowerState {
    /// The leader looks for the place where the logs agree, one message at a time.
    Probing,
    /// Entries follow each other without waiting for answers.
    Replicating,
    /// The follower needs entries that are gone, and is sent a snapshot.
    Snapshot,
    /// The follower has lost entries that it had acknowledged as durable. It counts for nothing
    /// until its log holds them again.
    Lost,
}

impl fmt::Display for FollowerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Probing => "probing",
            Self::Replicating => "replicating",
            Self::Snapshot => "snapshot",
            Self::Lost => "lost",
        })
    }
}

/// What a leader knows of one follower, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FollowerStatus {
    /// The follower.
    pub id: u64,
    /// Whether it votes; else it only learns.
    pub is_voter: bool,
    /// How entries flow to it.
    pub state: FollowerState,
    /// Durable at the follower and equal to the leader's log up to here.
    pub matched: u64,
    /// Received by the follower, durable or not, by its latest word.
    pub received: u64,
    /// The next index to send.
    pub next: u64,
    /// Append messages under way.
    pub inflight: usize,
    /// Their weight, in bytes.
    pub inflight_bytes: u64,
    /// Nanoseconds since the follower was last heard, or since the reign began.
    pub silent_ns: u64,
    /// The round trip of heartbeats, in nanoseconds; 0 before the first answer. Follows longer
    /// ones at once and shorter ones slowly.
    pub round_trip_ns: u64,
    /// How far the snapshot has come that is being sent to it. `None` while none is, also between a
    /// transfer that broke and the next one. Only the shell sends snapshots: a
    /// [`Core`](crate::core::Core) by itself says `None`.
    pub sending: Option<SnapshotProgress>,
}

/// How far a snapshot has come that is being sent to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotProgress {
    /// The last index that the snapshot covers.
    pub index: u64,
    /// Chunks that the follower has acknowledged, those of earlier transfers included.
    pub acknowledged_chunks: u64,
    /// Chunks of the snapshot.
    pub total_chunks: u64,
    /// Length of the acknowledged chunks, in bytes. Those of earlier transfers are taken to be of
    /// average length.
    pub acknowledged_bytes: u64,
    /// Length of the snapshot, in bytes.
    pub total_bytes: u64,
}

/// Why a node has stopped. It neither votes nor leads nor acknowledges until it has been
/// restarted, and after damage until it has been rebuilt from its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum HaltReason {
    /// A write to the log failed. What of it became durable is unknown until a restart, so
    /// nothing may follow it: an index must never be used twice in one term.
    #[error("a write to the log failed")]
    PersistFailed,
    /// The log or the vote could not be restored.
    #[error("the log is damaged")]
    Damaged,
    /// A stored entry could not be read, or came back different from what was written.
    #[error("a stored entry could not be read")]
    ReadFailed,
    /// A leader contradicted an entry that is committed here. Either some node has lost durable
    /// data or a peer does not speak Raft.
    #[error("a peer contradicted a committed entry")]
    Inconsistent,
    /// The leader knows that this node had acknowledged entries which its log does not hold. Its
    /// disk was lost or replaced by an older one, and with it perhaps votes: it must not take part
    /// until its own disk is back. A restart with this disk ends in the same way.
    #[error("this node has lost entries that it had acknowledged")]
    LogLost,
    /// The state machine failed. The core never says so; a shell does. A restart rebuilds the
    /// machine from the log.
    #[error("the state machine failed")]
    MachineFailed,
}
