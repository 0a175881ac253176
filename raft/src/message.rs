//! What nodes say to each other. The bytes are specified in [`codec`](crate::codec).

use crate::types::Entry;

/// A message between two nodes of one group. The transport says who sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// "Could I win `term`?" Nobody's term changes. Source: Raft thesis §9.6.
    PreVote(VoteRequest),
    /// The answer to [`PreVote`](Self::PreVote).
    PreVoteReply(VoteReply),
    /// RequestVote. Source: Raft §5.2.
    Vote(VoteRequest),
    /// The answer to [`Vote`](Self::Vote).
    VoteReply(VoteReply),
    /// AppendEntries. Source: Raft §5.3.
    Append {
        /// Everything but the entries.
        head: AppendHead,
        /// Entries at `head.prev_index + 1` and on.
        entries: Vec<Entry>,
    },
    /// The follower's log holds what the leader sent.
    AppendAck(AppendAck),
    /// The follower's log does not hold `prev_index` at `prev_term`.
    AppendReject(AppendReject),
    /// "I still lead." Confirms reads, carries the commit index.
    Heartbeat(Heartbeat),
    /// The answer to [`Heartbeat`](Self::Heartbeat).
    HeartbeatReply(HeartbeatReply),
    /// "Nothing is going on: rest until something happens." The leader's last word before its group
    /// quiesces, and a heartbeat for whoever cannot.
    Quiesce(Quiesce),
    /// "Your term is over": the answer to a leader of an older term.
    Stale {
        /// The term of the node that answers.
        term: u64,
    },
    /// A follower asks the leader for a read index. Source: Raft §8, thesis §6.4.
    ReadRequest(ReadRequest),
    /// The answer to [`ReadRequest`](Self::ReadRequest).
    ReadReply(ReadReply),
    /// "You have acknowledged this entry as durable." A follower whose log does not hold it has
    /// lost its disk, and halts.
    LogLost(LogLost),
    /// "Campaign now": the leader hands over. Source: thesis §3.10.
    TimeoutNow {
        /// The leader's term.
        term: u64,
    },
    /// "The group goes on without you": the answer to a node that asks for votes and is no member
    /// any more.
    Removed {
        /// The term of the node that answers.
        term: u64,
        /// The index of a committed membership that leaves the receiver out.
        index: u64,
    },
    /// What one node tells another about all their groups. It goes to the group
    /// [`NODE_GROUP`](crate::NODE_GROUP), and never to a core.
    Node(Box<NodeBeat>),
}

/// What one node tells another once per tick, and whenever heartbeats are due: that it is alive,
/// and the heartbeats and answers of all groups that both have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeBeat {
    /// Names the life of the sender's process.
    pub life: u64,
    /// Counts the ticks of that life. 0: only heartbeats, between two ticks.
    pub tick: u64,
    /// The life of the receiver that the sender last heard.
    pub seen_life: u64,
    /// The latest tick of that life that the sender has heard of.
    pub seen_tick: u64,
    /// Leaderships of the sender that have ended, by group and term. Repeated until the receiver
    /// has heard of a tick that named them.
    pub resigned: Vec<(u64, u64)>,
    /// Heartbeats and answers to them, by group.
    pub beats: Vec<(u64, GroupBeat)>,
}

/// A message that travels in a [`NodeBeat`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupBeat {
    /// [`Message::Heartbeat`].
    Heartbeat(Heartbeat),
    /// [`Message::HeartbeatReply`].
    Reply(HeartbeatReply),
}

impl From<GroupBeat> for Message {
    fn from(beat: GroupBeat) -> Self {
        match beat {
            GroupBeat::Heartbeat(beat) => Self::Heartbeat(beat),
            GroupBeat::Reply(reply) => Self::HeartbeatReply(reply),
        }
    }
}

/// A leader's last heartbeat before its group quiesces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiesce {
    /// The leader's term.
    pub term: u64,
    /// A round of heartbeats of its own.
    pub round: u64,
    /// The last index of the leader's log, which is committed.
    pub commit: u64,
    /// The life of the leader's node.
    pub life: u64,
}

/// A leader reminds a follower of what it has acknowledged, where it may have lost that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLost {
    /// The leader's term.
    pub term: u64,
    /// What the follower had acknowledged as durable in this term.
    pub matched: u64,
    /// The term of that entry.
    pub matched_term: u64,
}

/// The question in both rounds of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoteRequest {
    /// The term that the candidate would lead.
    pub term: u64,
    /// The candidate's last entry.
    pub last_index: u64,
    /// The term of that entry.
    pub last_term: u64,
    /// The leader has asked for it: whoever hears that leader may vote all the same. Never set in
    /// [`Message::PreVote`].
    pub transfer: bool,
}

/// The answer in both rounds of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoteReply {
    /// When granted, the term of the question; otherwise the term of the node that answers.
    pub term: u64,
    /// Whether the vote was given.
    pub granted: bool,
}

/// AppendEntries without its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendHead {
    /// The leader's term.
    pub term: u64,
    /// Which stretch of replication to this follower it belongs to. Answers repeat it, so that
    /// one from before a reset is never taken for one after it.
    pub session: u64,
    /// The entry before the first one sent.
    pub prev_index: u64,
    /// The term of that entry.
    pub prev_term: u64,
    /// The leader's commit index.
    pub commit: u64,
    /// The leader waits for this answer before it sends more: answer at once, do not wait for
    /// the disk.
    pub probe: bool,
}

/// A follower took an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendAck {
    /// The term of both.
    pub term: u64,
    /// From the append.
    pub session: u64,
    /// Durable at the follower and equal to the leader's log up to here.
    pub matched: u64,
    /// Equal to the leader's log up to here, durable or not. At least `matched`.
    pub received: u64,
}

/// A follower refused an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendReject {
    /// The term of both.
    pub term: u64,
    /// From the append.
    pub session: u64,
    /// From the append.
    pub prev_index: u64,
    /// The last index at which the logs may still agree.
    pub hint_index: u64,
    /// The follower's term at `hint_index`. Source: Raft §5.3, the fast back-off.
    pub hint_term: u64,
    /// The follower has found that its disk lost entries, also ones that it had acknowledged: it
    /// wants them again, and votes for nobody meanwhile.
    pub is_recovering: bool,
}

/// A leader's sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The leader's term.
    pub term: u64,
    /// Counts the leader's rounds of heartbeats within its term. Never used twice.
    pub round: u64,
    /// The leader's commit index.
    pub commit: u64,
}

/// A follower's answer to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeartbeatReply {
    /// The term of both.
    pub term: u64,
    /// From the heartbeat.
    pub round: u64,
    /// Equal to the leader's log up to here, durable or not.
    pub received: u64,
}

/// A read that is forwarded to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// The asking node's term.
    pub term: u64,
    /// Drawn by the asking node at its start, so that an answer to an earlier life is not
    /// taken for one to this.
    pub nonce: u64,
    /// Counts the asking node's requests. Only ever echoed.
    pub context: u64,
}

/// The leader's answer to a forwarded read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadReply {
    /// The answering node's term.
    pub term: u64,
    /// From the request.
    pub nonce: u64,
    /// From the request.
    pub context: u64,
    /// A read that sees this index applied is linearizable. `None`: refused, ask again.
    pub index: Option<u64>,
}

impl Message {
    /// Whether the receiver relies on the sender not forgetting its term and vote, so that the
    /// message must not leave before they are durable. Questions, refusals of reads and the news
    /// of a later term promise nothing.
    pub(crate) fn is_promise(&self) -> bool {
        matches!(
            self,
            Self::VoteReply(_)
                | Self::HeartbeatReply(_)
                | Self::AppendAck(_)
                | Self::AppendReject(_)
        )
    }

    /// Whether only the leader of its term says it, and has to hear when that is over.
    pub(crate) fn is_of_leader(&self) -> bool {
        matches!(self, Self::Append { .. } | Self::Heartbeat(_) | Self::Quiesce(_))
    }

    /// Whether a node that is no member here may say it: it leads, or wants to, by a membership
    /// that has not arrived here; or it knows that this node is no member.
    pub(crate) fn may_come_from_stranger(&self) -> bool {
        matches!(
            self,
            Self::PreVote(_)
                | Self::Vote(_)
                | Self::Append { .. }
                | Self::Heartbeat(_)
                | Self::Quiesce(_)
                | Self::LogLost(_)
                | Self::TimeoutNow { .. }
                | Self::Removed { .. }
        )
    }

    /// The term that the message carries; 0 for what belongs to no group.
    pub fn term(&self) -> u64 {
        match self {
            Self::PreVote(m) | Self::Vote(m) => m.term,
            Self::PreVoteReply(m) | Self::VoteReply(m) => m.term,
            Self::Append { head, .. } => head.term,
            Self::AppendAck(m) => m.term,
            Self::AppendReject(m) => m.term,
            Self::Heartbeat(m) => m.term,
            Self::HeartbeatReply(m) => m.term,
            Self::Quiesce(m) => m.term,
            Self::Node(_) => 0,
            Self::Stale { term } | Self::TimeoutNow { term } => *term,
            Self::Removed { term, .. } => *term,
            Self::ReadRequest(m) => m.term,
            Self::ReadReply(m) => m.term,
            Self::LogLost(m) => m.term,
        }
    }
}
