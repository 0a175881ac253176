//! The one gate for what comes from a peer: who may speak, and which values can be true.

use crate::codec;
use crate::config::Config;
use crate::membership::Membership;
use crate::message::{AppendHead, Message};
use crate::types::{Entry, EntryKind, MAX_INDEX, MAX_TERM, SnapshotMeta};

/// Why an input from a peer was refused. Nothing was taken from it, as if it had been lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerFault {
    /// The sender is no other voter of the group.
    #[error("the sender is no other voter of the group")]
    Stranger,
    /// A term is 0 where one has begun, above [`MAX_TERM`](crate::MAX_TERM), above the term of the
    /// message, or more than [`MAX_TERM_STEP`](crate::MAX_TERM_STEP) ahead of this node's.
    #[error("a term is out of range")]
    Term,
    /// An index is above [`MAX_INDEX`](crate::MAX_INDEX), 0 where an entry is meant, or beyond
    /// what it is compared with.
    #[error("an index is out of range")]
    Index,
    /// Entries do not follow on each other, or a term falls along them.
    #[error("the entries do not follow on each other")]
    Entries,
    /// A session or a round of heartbeats that the receiver never began.
    #[error("a session or round that never began")]
    Round,
    /// A membership that this group cannot have: a fixed one of other voters, or one without any.
    #[error("a membership that this group cannot have")]
    Voters,
}

/// Checks what comes from peers against the configuration, without a look at the state of the
/// core, so that a shell can ask it on any thread, before it stages anything.
///
/// [`Core::step`](super::Core::step) asks it too: whoever drives a core directly is safe without.
#[derive(Clone, Debug)]
pub struct Gate {
    id: u64,
    /// Ascending.
    voters: Vec<u64>,
    /// The membership may change, so that whoever the transport lets in may speak.
    dynamic: bool,
}

impl Gate {
    /// The gate of the node that `config` describes.
    pub fn new(config: &Config) -> Self {
        let mut voters = config.voters.clone();
        voters.sort_unstable();
        Self { id: config.id, voters, dynamic: config.dynamic }
    }

    /// Checks that `from` is another voter or, where the membership may change, another node: the
    /// core then looks whether it is a member.
    ///
    /// # Errors
    /// [`PeerFault::Stranger`].
    pub fn sender(&self, from: u64) -> Result<(), PeerFault> {
        let known = self.dynamic || self.voters.binary_search(&from).is_ok();
        let known = known && from != self.id;
        if known { Ok(()) } else { Err(PeerFault::Stranger) }
    }

    /// Checks a message.
    ///
    /// # Errors
    /// [`PeerFault`] when no correct node can have sent it.
    pub fn message(&self, from: u64, message: &Message) -> Result<(), PeerFault> {
        self.sender(from)?;
        let term = message.term();
        check(term <= MAX_TERM, PeerFault::Term)?;
        // Only an answer may come from a node that has seen no term yet.
        let is_reply = matches!(message, Message::PreVoteReply(_) | Message::ReadReply(_));
        let is_common = matches!(message, Message::Node(_));
        check(term > 0 || is_reply || is_common, PeerFault::Term)?;
        match message {
            Message::PreVote(m) | Message::Vote(m) => {
                check(m.last_term < m.term, PeerFault::Term)?;
                index(m.last_index)
            }
            Message::Append { head, entries } => {
                append(head, entries)?;
                let configs = entries.iter().filter(|entry| entry.kind == EntryKind::Config);
                for entry in configs {
                    let members = codec::decode_members(entry.data.clone());
                    let sound = members.is_ok_and(|members| !members.is_empty());
                    check(self.dynamic && sound, PeerFault::Voters)?;
                }
                Ok(())
            }
            Message::AppendAck(m) => {
                check(m.matched <= m.received, PeerFault::Index)?;
                check(m.session > 0, PeerFault::Round)?;
                index(m.received)
            }
            Message::AppendReject(m) => {
                check(m.hint_term <= m.term, PeerFault::Term)?;
                check(m.session > 0, PeerFault::Round)?;
                index(m.prev_index.max(m.hint_index))
            }
            Message::Heartbeat(m) => {
                check(m.round > 0, PeerFault::Round)?;
                index(m.commit)
            }
            Message::HeartbeatReply(m) => index(m.received),
            Message::Quiesce(m) => {
                check(m.round > 0, PeerFault::Round)?;
                index(m.commit)
            }
            // For the nodes, not for one of their groups.
            Message::Node(_) => Err(PeerFault::Stranger),
            Message::ReadReply(m) => index(m.index.unwrap_or(0)),
            Message::LogLost(m) => {
                check(m.matched > 0, PeerFault::Index)?;
                check((1..=m.term).contains(&m.matched_term), PeerFault::Term)?;
                index(m.matched)
            }
            Message::Removed { index: at, .. } => index(*at),
            Message::PreVoteReply(_)
            | Message::TimeoutNow { .. }
            | Message::VoteReply(_)
            | Message::Stale { .. }
            | Message::ReadRequest(_) => Ok(()),
        }
    }

    /// Checks the name of a snapshot that `from` sends as the leader of `term`.
    ///
    /// # Errors
    /// [`PeerFault`] when no correct leader can have sent it.
    pub fn snapshot(&self, from: u64, term: u64, meta: &SnapshotMeta) -> Result<(), PeerFault> {
        self.sender(from)?;
        check((1..=MAX_TERM).contains(&term), PeerFault::Term)?;
        check((1..=term).contains(&meta.term), PeerFault::Term)?;
        check(meta.index > 0, PeerFault::Index)?;
        index(meta.index)?;
        check(self.may_have(&meta.members), PeerFault::Voters)
    }

    /// Whether the group can have these members.
    pub(super) fn may_have(&self, members: &Membership) -> bool {
        if self.dynamic {
            return !members.is_empty();
        }
        *members == Membership::new(self.voters.iter().copied())
    }

    /// Whether a log that was begun with `began` may be started with the voters of the
    /// configuration. Where the membership may change, these matter only to a log that has not been
    /// begun: a node that is behind cannot tell the present voters from wrong ones.
    pub(super) fn may_start(&self, began: &[u64]) -> bool {
        let mut began = began.to_vec();
        began.sort_unstable();
        self.dynamic || began == self.voters
    }

    /// The node's own vote, if it may have one.
    pub(super) fn own_vote(&self) -> Option<u64> {
        Some(self.id).filter(|id| self.may_be_voter(*id))
    }

    /// Whether the membership may change.
    pub(super) fn is_dynamic(&self) -> bool {
        self.dynamic
    }

    /// The voters of the configuration, ascending.
    pub(super) fn voters(&self) -> &[u64] {
        &self.voters
    }

    /// Whether a vote may have gone to `id`.
    pub(super) fn may_be_voter(&self, id: u64) -> bool {
        self.dynamic || self.voters.binary_search(&id).is_ok()
    }
}

fn check(holds: bool, otherwise: PeerFault) -> Result<(), PeerFault> {
    if holds { Ok(()) } else { Err(otherwise) }
}

fn index(index: u64) -> Result<(), PeerFault> {
    check(index <= MAX_INDEX, PeerFault::Index)
}

fn append(head: &AppendHead, entries: &[Entry]) -> Result<(), PeerFault> {
    check(head.session > 0, PeerFault::Round)?;
    check(head.prev_term <= head.term, PeerFault::Term)?;
    index(head.commit)?;
    index(head.prev_index)?;
    index(head.prev_index + entries.len() as u64)?;
    let mut least = head.prev_term.max(1);
    for (index, entry) in (head.prev_index + 1..).zip(entries) {
        check(entry.index == index, PeerFault::Entries)?;
        check((least..=head.term).contains(&entry.term), PeerFault::Entries)?;
        least = entry.term;
    }
    Ok(())
}
