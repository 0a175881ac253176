//! The client's end of a session.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::wire::{Request, SessionAnswer, SessionLimits};

/// Why an answer is none that a session can go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The bytes are no answer of [`Sessions`](super::Sessions). Nothing is known of the command.
    #[error("the answer is none of a machine with sessions: is the machine wrapped in `Sessions`?")]
    Malformed,
    /// The proposal did not open a session.
    #[error("no session was opened: both `max_sessions` and `max_pending` must be at least 1")]
    NotOpened,
}

/// One client's session: it numbers commands, so that the group applies each of them once.
///
/// A session belongs to one client and lives as long as that client's memory. A client that
/// restarts opens another one: it no longer knows which numbers it has given. For the same reason a
/// session cannot be cloned.
#[derive(Debug, PartialEq, Eq)]
pub struct Session {
    id: u64,
    /// The number of the next command.
    next: u64,
    /// Numbers that were given and are waited for. Invariant: all are below `next`.
    pending: BTreeSet<u64>,
}

impl Session {
    /// The command that opens a session; its answer goes to [`opened`](Self::opened). Proposed
    /// again after an unknown outcome it may open a second session, which nobody uses. That one
    /// takes a place of [`SessionLimits::max_sessions`] until it expires, after all that were used
    /// before it was opened and not since: leave room for them, as many as clients may open again
    /// while the group has no leader.
    pub fn open(limits: SessionLimits) -> Bytes {
        Request::Open(limits).encode()
    }

    /// The session that [`open`](Self::open) was answered with.
    ///
    /// # Errors
    /// [`SessionError`] where the answer is another one.
    pub fn opened(answer: Bytes) -> Result<Self, SessionError> {
        match SessionAnswer::decode(answer)? {
            SessionAnswer::Opened(id) => Ok(Self { id, next: 1, pending: BTreeSet::new() }),
            _ => Err(SessionError::NotOpened),
        }
    }

    /// A command outside any session: one that may be applied twice when it is retried.
    pub fn plain(command: &[u8]) -> Bytes {
        Request::Plain(command).encode()
    }

    /// The session's id, unique in its group for good.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Gives `command` a number. The bytes may be proposed as often as it takes, to any node that
    /// leads, until there is an answer; then say so by [`answered`](Self::answered). Commands under
    /// way at the same time may be applied in any order.
    pub fn command(&mut self, command: &[u8]) -> (u64, Bytes) {
        let number = self.next;
        self.next += 1;
        self.pending.insert(number);
        let first_pending = self.first_pending();
        let data = command;
        (number, Request::Command { session: self.id, number, first_pending, data }.encode())
    }

    /// The command `number` is waited for no more: its answer is known, or given up. The group
    /// forgets the answer with the next command, and never applies this one from then on.
    pub fn answered(&mut self, number: u64) {
        self.pending.remove(&number);
    }

    /// Commands that are waited for.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The command that closes the session. Its commands are never applied afterwards: a retry is
    /// told [`SessionAnswer::Expired`].
    pub fn close(&self) -> Bytes {
        Request::Close(self.id).encode()
    }

    fn first_pending(&self) -> u64 {
        self.pending.first().copied().unwrap_or(self.next)
    }
}
