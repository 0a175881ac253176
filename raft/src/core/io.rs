//! What goes into the core and what comes out.

use std::ops::Range;

use bytes::Bytes;

use crate::error::{ChangeRejected, ProposeRejected, ReadRejected};
use crate::membership::Change;
use crate::message::{AppendHead, Message};
use crate::store::Room;
use crate::types::{Entry, HaltReason, HardState, SnapshotMeta};

/// Something that happened outside.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Input {
    /// Time passed. Due when [`Core::next_deadline`](super::Core::next_deadline) is reached;
    /// harmless at any other time.
    Tick,
    /// The common tick of the groups of one node: a leader sends its heartbeats now, so that those
    /// of all groups go together. Comes every
    /// [`Config::heartbeat_interval`](crate::Config::heartbeat_interval), or never.
    Beat,
    /// What is known of a node, of this one too, has changed: it is alive, or may not be. Groups
    /// quiesce only while their nodes are known to be alive; a caller that never says so has groups
    /// that never do.
    Node {
        /// A member of the group.
        node: u64,
        /// Names the life of its process: each start has another one. `None`: it may be dead, or
        /// is unreachable.
        life: Option<u64>,
    },
    /// The leadership of `from` in `term`, in which its group had quiesced
    /// ([`Core::quiesced_reign`](super::Core::quiesced_reign)), is over. The caller delivers it to
    /// every other member, however often it takes; it may come twice and late.
    Resigned {
        /// Who led.
        from: u64,
        /// The term.
        term: u64,
    },
    /// A message came from a peer.
    Message {
        /// Who sent it, by the transport's word.
        from: u64,
        /// What it said.
        message: Message,
    },
    /// A client wants a command in the log.
    Propose {
        /// The caller's name for it. Consecutive tokens make for fewer outputs.
        token: u64,
        /// The command.
        data: Bytes,
    },
    /// A client wants to read what is true now.
    Read {
        /// The caller's name for it.
        token: u64,
    },
    /// Nobody waits for these reads any more. They are forgotten and not answered; those that have
    /// been answered already are passed over.
    WithdrawReads {
        /// From [`Input::Read`].
        tokens: Vec<u64>,
    },
    /// The write `id` and all before it are durable.
    Persisted {
        /// From [`Persist::id`].
        id: u64,
    },
    /// The write `id` failed, or may have. The core halts.
    PersistFailed {
        /// From [`Persist::id`].
        id: u64,
    },
    /// The state machine has applied everything up to `index`.
    Applied {
        /// The last applied index.
        index: u64,
    },
    /// Entries were read back.
    Fetched {
        /// From [`Output::Fetch`].
        id: u64,
        /// At least one entry, starting at the first index asked for; or why there is none.
        result: Result<Vec<Entry>, FetchError>,
    },
    /// The state machine's snapshot is durable. The log may be cut behind it.
    SnapshotTaken {
        /// What it covers.
        meta: SnapshotMeta,
    },
    /// The snapshot that [`Output::TakeSnapshot`] asked for could not be taken. The core asks
    /// again when as much again has been applied.
    SnapshotFailed,
    /// What room the store has for entries ([`LogStore::room`](crate::LogStore::room)). A caller
    /// whose store has no limit never says so.
    Room {
        /// As the store answered for [`Core::log_bytes`](super::Core::log_bytes).
        room: Room,
    },
    /// A transfer that [`Output::SendSnapshot`] asked for has ended.
    SnapshotSent {
        /// From [`Output::SendSnapshot`].
        id: u64,
        /// How far it came.
        ended: TransferEnd,
    },
    /// A peer's snapshot has arrived here, complete and verified.
    SnapshotReceived {
        /// The leader that sent it.
        from: u64,
        /// The term in which it leads.
        term: u64,
        /// What it covers.
        meta: SnapshotMeta,
    },
    /// The transport lost its connection to a peer; what was under way may be lost.
    Unreachable {
        /// Which peer.
        peer: u64,
    },
    /// The operator wants this node to start an election now, instead of at the next timeout.
    /// Nodes that hear a leader still refuse their votes. A leader ignores it, and so does, where
    /// leases are on, a node that has heard one within `min_election_timeout`.
    Campaign,
    /// The operator wants another membership. Answered with [`Output::Changed`],
    /// [`Output::ChangeRejected`] or [`Output::ChangeLost`], but not before new voters have caught
    /// up, however long that takes: withdraw it to end the wait.
    Change {
        /// The caller's name for it.
        token: u64,
        /// What is to change.
        change: Change,
    },
    /// Nobody waits for this change any more. What has been appended of it stays.
    WithdrawChange {
        /// From [`Input::Change`].
        token: u64,
    },
    /// The operator wants another voter to lead. Until it does, or for the longest election
    /// timeout, this node takes no proposals. Only a leader heeds it. Source: thesis §3.10.
    TransferLeadership {
        /// To whom; `None`: to the voter that is furthest, of those that
        /// answer.
        to: Option<u64>,
    },
    /// The operator wants everything below `upto` out of the log. Clamped to what the current
    /// snapshot covers.
    Compact {
        /// The first index to keep.
        upto: u64,
    },
}

/// Why entries could not be read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// They were released while the read was under way. The peer gets a snapshot.
    #[error("the entries were released")]
    Released,
    /// The store failed. The core halts.
    #[error("the store could not read them")]
    Failed,
}

/// [`Core::entries`](super::Core::entries) was asked for entries that are not all in memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entries {range:?} are not in memory, which holds {window:?}")]
pub struct NotInMemory {
    /// The indexes that were asked for.
    pub range: Range<u64>,
    /// The indexes whose entries are in memory.
    pub window: Range<u64>,
}

/// How the transfer of a snapshot ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferEnd {
    /// The peer has all of it, durably.
    Complete,
    /// It broke off, but the peer has parts that it did not have when the transfer began, and the
    /// next transfer goes on from there. Worth another try soon.
    Advanced,
    /// It broke off and brought nothing. The wait before the next one grows.
    Futile,
}

/// Something to do outside, in the order given.
///
/// Ranges of the log are valid until the next call of [`Core::step`](super::Core::step): borrow
/// the entries with [`Core::entries`](super::Core::entries) before that.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Write to the log, and answer with [`Input::Persisted`] when it is durable.
    Persist(Persist),
    /// Send a message. It may be lost, delayed or duplicated, but not altered.
    Send {
        /// To whom.
        to: u64,
        /// What.
        message: Message,
    },
    /// Send [`Message::Append`] with this head and the entries of `range`, all of which
    /// [`Core::entries`](super::Core::entries) lends. `range` may be empty.
    Replicate {
        /// To whom.
        to: u64,
        /// The message without its entries.
        head: AppendHead,
        /// The indexes of its entries.
        range: Range<u64>,
    },
    /// Give the state machine these entries, in order, and answer with [`Input::Applied`].
    /// Either [`Core::entries`](super::Core::entries) lends all of them, or all of them are
    /// durable: then read them from the store. When the store has released them, a
    /// [`Restore`](Self::Restore) is on its way that covers them.
    Apply {
        /// The indexes, never empty.
        range: Range<u64>,
    },
    /// Replace the state machine's state by the snapshot `meta`, which is durable here, and
    /// answer with [`Input::Applied`] at its index.
    Restore {
        /// The current snapshot.
        meta: SnapshotMeta,
    },
    /// Take a snapshot at the state machine's next convenience and answer with
    /// [`Input::SnapshotTaken`] or [`Input::SnapshotFailed`].
    TakeSnapshot,
    /// Send the current snapshot to a peer, and answer with [`Input::SnapshotSent`], always,
    /// also after a time-out.
    SendSnapshot {
        /// Names this transfer.
        id: u64,
        /// To whom.
        to: u64,
        /// The leader's term, for the receiver's [`Input::SnapshotReceived`].
        term: u64,
        /// The least that the snapshot has to cover; a newer one is as good. Boxed, as what is
        /// long and rare: each output is moved a few times.
        meta: Box<SnapshotMeta>,
    },
    /// A received snapshot is of no use: it is older than what this node has, or a newer one
    /// came before it was written. Never one that is being installed: a repeated transfer of
    /// that one is passed over in silence.
    DiscardSnapshot {
        /// Which.
        meta: SnapshotMeta,
    },
    /// Read durable entries back from the store and answer with [`Input::Fetched`].
    Fetch {
        /// Names this read.
        id: u64,
        /// The indexes. A prefix of them, at least one entry, is enough.
        range: Range<u64>,
        /// How much is wanted, in bytes; one entry may exceed it.
        max_bytes: u64,
    },
    /// Proposals have a place in the log: `token + i` stands at `index + i`, for `i` below
    /// `count`. If the entry that is applied there is of `term`, it is the proposal.
    Proposed {
        /// The first token.
        token: u64,
        /// How many.
        count: u64,
        /// The index of the first.
        index: u64,
        /// Their term.
        term: u64,
    },
    /// A proposal was refused: it is in no log.
    Rejected {
        /// Its token.
        token: u64,
        /// Why.
        reason: ProposeRejected,
    },
    /// Proposals that once were [`Proposed`](Self::Proposed) will not be applied from here under
    /// their index.
    Lost {
        /// The first token.
        token: u64,
        /// How many.
        count: u64,
        /// `true`: other entries were committed in their place, they will never be applied
        /// anywhere. `false`: a snapshot or a halt hides what became of them.
        superseded: bool,
    },
    /// A read that sees `index` applied here is linearizable.
    ReadReady {
        /// Its token.
        token: u64,
        /// What has to be applied first.
        index: u64,
    },
    /// A read was not confirmed.
    ReadRejected {
        /// Its token.
        token: u64,
        /// Why.
        reason: ReadRejected,
    },
    /// A follower has lost entries which it had acknowledged as durable: its disk was lost or
    /// replaced. It counts for nothing until its log holds them again. Tell an operator.
    FollowerLost {
        /// Which.
        peer: u64,
        /// What it had acknowledged.
        matched: u64,
    },
    /// The membership is as a change wanted it, committed.
    Changed {
        /// From [`Input::Change`].
        token: u64,
        /// The index of the membership.
        index: u64,
    },
    /// A change was refused: nothing of it is in any log.
    ChangeRejected {
        /// From [`Input::Change`].
        token: u64,
        /// Why.
        reason: ChangeRejected,
    },
    /// This node leads no more and had begun a change: the next leader carries on or undoes what
    /// was appended. Look at the membership before asking again.
    ChangeLost {
        /// From [`Input::Change`].
        token: u64,
    },
    /// A committed membership leaves this node out. It asks for no votes until it is added again.
    /// Tell an operator.
    Removed {
        /// The index of the membership.
        index: u64,
    },
    /// The node has stopped for good. Nothing but refusals follows.
    Halted {
        /// Why.
        reason: HaltReason,
    },
}

/// One write of the log: all of it becomes durable, or none.
///
/// The parts apply in the order of the fields. Writes complete in the order of their ids, and a
/// completion covers every earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persist {
    /// Names the write; grows by one from each to the next.
    pub id: u64,
    /// The received snapshot that becomes the node's current one.
    pub snapshot: Option<Box<SnapshotMeta>>,
    /// Entries at and after this index go.
    pub truncate_from: Option<u64>,
    /// Entries before this index go. May lie past the end: the log is then empty and goes on
    /// here.
    pub release: Option<u64>,
    /// The entries to append, all lent by [`Core::entries`](super::Core::entries). May be
    /// empty.
    pub range: Range<u64>,
    /// The term and vote to write.
    pub hard_state: Option<HardState>,
    /// The voters of the group, with the first hard state of a log that knows none.
    pub voters: Option<Vec<u64>>,
    /// The log holds again what the store said to be lost.
    pub repaired: bool,
}
