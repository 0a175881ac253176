//! The seam to the peers.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::membership::Membership;
use crate::message::Message;
use crate::store::SnapshotName;

/// Carries messages of any number of groups between nodes.
///
/// Messages may be lost, delayed, repeated and reordered (order makes for speed, not for safety),
/// but not altered, and the sender must be who it is said to be.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// This node.
    fn local(&self) -> u64;

    /// The longest message that it carries, in bytes. A node whose configuration allows a longer
    /// one does not start: a message that no peer ever gets stops all that come behind it.
    /// Unlimited by default; a transport around another one passes the question on.
    fn max_message_bytes(&self) -> usize {
        usize::MAX
    }

    /// The longest message that is no [`Message::Append`], in bytes: at least 1 KiB, which holds
    /// any but [`Message::Node`]. What a [`Node`](crate::Node) says of many groups is made no
    /// longer than this. As [`max_message_bytes`](Self::max_message_bytes) by default; a transport
    /// around another one passes the question on.
    fn max_small_message_bytes(&self) -> usize {
        self.max_message_bytes()
    }

    /// From now on hands what arrives for `group` to `inbox`.
    ///
    /// # Errors
    /// [`AttachError`]; nothing changed.
    fn attach(&self, group: u64, inbox: Arc<dyn Inbox>) -> Result<(), AttachError>;

    /// Ends that. What arrives for the group afterwards is dropped.
    fn detach(&self, group: u64);

    /// These are the members of `group` from now on, with the addresses that their changes gave
    /// them: connect to those that are new. Called at the start and whenever the membership that
    /// counts at this node changes, before anything is sent to a new member, from the node's loop:
    /// it must not block. Does nothing by default, for transports that know every node.
    ///
    /// Messages also go to nodes that are not listed, so keep reaching those that are listed no
    /// more, and the nodes that a node which joins was told of beforehand: a removed node is told
    /// that it is, and a leader or candidate that this node has not heard of yet is answered.
    fn members(&self, group: u64, members: &Membership) {
        let _ = (group, members);
    }

    /// Sends a message and forgets it. Never blocks and never waits for the peer: what cannot
    /// be sent or queued now is dropped.
    ///
    /// # Errors
    /// [`SendError`] says that it was dropped, for statistics; the core does without.
    fn send(&self, to: u64, group: u64, message: Message) -> Result<(), SendError>;

    /// Sends messages of several groups, each with its group, to one peer, as one where that saves
    /// something. What [`Node`](crate::Node) sends goes this way where it may wait for the others
    /// of the same turn. A transport around another one passes the call on as it is; one to which
    /// it makes no difference sends them one by one.
    ///
    /// # Errors
    /// [`SendError`] of one that was dropped; the others may have gone.
    fn send_all(&self, to: u64, messages: Vec<(u64, Message)>) -> Result<(), SendError>;

    /// Sends a part of a snapshot and waits for the answer, at most `timeout`. Several are under
    /// way at once; they should arrive in the order in which they were first polled.
    ///
    /// # Errors
    /// [`SendError`] when no answer came, for whatever reason. The peer may have the part.
    ///
    /// # Cancel safety
    /// After a dropped future the peer may have the part or not; both are fine.
    async fn snapshot(
        &self,
        to: u64,
        group: u64,
        part: SnapshotPart,
        timeout: Duration,
    ) -> Result<SnapshotAnswer, SendError>;
}

/// Where a transport puts what arrives for one group. Implemented by the node.
#[async_trait]
pub trait Inbox: Send + Sync + 'static {
    /// A message came. Does not block; past the limit it is dropped.
    fn message(&self, from: u64, message: Message);

    /// What was on its way to `peer` may be lost.
    fn unreachable(&self, peer: u64);

    /// A part of a snapshot came.
    ///
    /// # Cancel safety
    /// After a dropped future the part may have been taken or not; the sender asks again.
    async fn snapshot(&self, from: u64, part: SnapshotPart) -> SnapshotAnswer;
}

/// What the sender of a snapshot says. Source: Raft §7 (InstallSnapshot), with chunks numbered
/// so that several can be under way.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotPart {
    /// "I have this snapshot for you. From where on do you need it?"
    Open {
        /// The term in which the sender leads.
        term: u64,
        /// Which snapshot.
        name: SnapshotName,
        /// How many chunks it has.
        chunks: u64,
    },
    /// One chunk.
    Chunk {
        /// [`SnapshotName::identity`].
        identity: u64,
        /// Its number, from 0.
        number: u64,
        /// Its bytes.
        data: Bytes,
    },
    /// "That was all. Make it durable and use it."
    Close {
        /// [`SnapshotName::identity`].
        identity: u64,
    },
}

/// What the receiver of a snapshot answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotAnswer {
    /// The chunk to go on with.
    Next {
        /// Its number; the number of chunks when all are here.
        number: u64,
    },
    /// The snapshot is durable here, or something newer is.
    Done,
    /// Not now: another snapshot is coming in, the sender's term is over, the store failed. Try
    /// again from [`SnapshotPart::Open`] later.
    Rejected,
}

/// A message or part was not delivered, as far as the transport knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The queue to the peer is full. Dropped; Raft sends it again by itself.
    #[error("the queue to the peer is full")]
    Full,
    /// No connection to the peer stands. Dropped; Raft sends it again by itself.
    #[error("the peer is not connected")]
    Down,
    /// The message is longer than the transport carries. Dropped, and a repetition will be too:
    /// raise the transport's limit or lower [`Config::max_append_bytes`](crate::Config) and
    /// [`Config::max_entry_bytes`](crate::Config).
    #[error("the message is longer than the transport carries")]
    TooLarge,
    /// Nothing is known of this peer, or it does not host the group. Dropped.
    #[error("unknown peer")]
    UnknownPeer,
    /// No answer came in time, or one that could not be understood.
    #[error("no answer")]
    NoAnswer,
    /// The transport is shut down.
    #[error("the transport is shut down")]
    Closed,
}

/// A group was not attached to a transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// Another node of the same group runs on this transport. Shut that one down first.
    #[error("group {group} is attached already")]
    Attached {
        /// Which group.
        group: u64,
    },
    /// The transport is shut down. A retry will fail the same way.
    #[error("the transport is shut down")]
    Closed,
}
