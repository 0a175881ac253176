//! What changes the table, and what it answers.

use bytes::Bytes;

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// Alone.
    Exclusive,
    /// Together with others that hold it shared.
    Shared,
    /// As one of at most `of` holders: a semaphore. Holders with another `of` exclude each other.
    Slot {
        /// How many may hold it at a time.
        of: u32,
    },
}

/// A change of the table.
///
/// A session numbers its acquisitions: `request` is greater than all of the session before. A
/// command may arrive twice or late, and a retry has the same number.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// A node has begun to lead. Commands that other leaders' timers gave are void from now on.
    BeginReign,
    /// Opens a session.
    OpenSession {
        /// The session ends when it was not renewed for this long, in ms: [`MIN_TTL_MS`] to
        /// [`MAX_TTL_MS`].
        ///
        /// [`MIN_TTL_MS`]: super::MIN_TTL_MS
        /// [`MAX_TTL_MS`]: super::MAX_TTL_MS
        ttl_ms: u64,
    },
    /// Ends a session whose client says that it has stopped using its locks: no lock-delay.
    CloseSession {
        /// The session.
        session: u64,
    },
    /// Ends a session that was not renewed.
    Expire {
        /// The reign whose timer says so.
        reign: u64,
        /// The session.
        session: u64,
    },
    /// Records how long a session has left, for the next leader.
    Checkpoint {
        /// The reign whose timer says so.
        reign: u64,
        /// The session.
        session: u64,
        /// Grows within a reign: of two checkpoints that overtake each other the greater counts.
        number: u64,
        /// What is left, in ms. The session's whole time to live removes the checkpoint.
        remaining_ms: u64,
    },
    /// Takes a lock, or a place in its queue.
    Acquire {
        /// Who wants it.
        session: u64,
        /// The number of the acquisition.
        request: u64,
        /// Requests below this that neither hold nor wait have ended, and are not sent again.
        floor: u64,
        /// The lock.
        name: Bytes,
        /// How it is held.
        mode: Mode,
        /// Whether to wait for it. Otherwise the answer is [`Answer::Busy`].
        wait: bool,
        /// If the session expires while it holds the lock, nobody gets it for this long, in ms, at
        /// most [`MAX_LOCK_DELAY_MS`](super::MAX_LOCK_DELAY_MS).
        lock_delay_ms: u64,
    },
    /// Ends an acquisition: releases what it holds, or takes it out of the queue. An acquisition
    /// that arrives later is refused.
    Release {
        /// Whose it is.
        session: u64,
        /// The number of the acquisition.
        request: u64,
    },
    /// Sets the value of a lock. It stays when the lock is released. An empty value removes it.
    SetValue {
        /// A session that holds the lock.
        session: u64,
        /// The token that it holds the lock by.
        token: u64,
        /// Greater than that of every value which this holder has set before; from 1 on. Others
        /// have arrived late, and change nothing.
        number: u64,
        /// The lock.
        name: Bytes,
        /// At most [`MAX_VALUE_BYTES`](super::MAX_VALUE_BYTES).
        value: Bytes,
    },
    /// Records how long a lock-delay has left, for the next leader.
    CheckpointDelay {
        /// The reign whose timer says so.
        reign: u64,
        /// The lock.
        name: Bytes,
        /// Which delay: the index at which it began.
        since: u64,
        /// What is left, in ms. More than is known to be left changes nothing.
        remaining_ms: u64,
    },
    /// Ends a lock-delay.
    EndDelay {
        /// The reign whose timer says so.
        reign: u64,
        /// The lock.
        name: Bytes,
        /// Which delay: the index at which it began.
        since: u64,
    },
}

/// The answer to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// It was done, or had been done before.
    Done,
    /// The reign has begun.
    Reign {
        /// Its number.
        reign: u64,
    },
    /// The session is open.
    Opened {
        /// Its id, which no other session ever has.
        session: u64,
    },
    /// The lock is held.
    Granted {
        /// The fencing token: greater than that of every earlier grant.
        token: u64,
    },
    /// The acquisition waits. [`Event::Granted`] follows.
    Queued,
    /// The lock is not free. The acquisition has ended.
    Busy,
    /// Nothing was changed.
    Rejected(Rejection),
}

/// Why a command changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// The session has ended, or never was. Final for the session.
    #[error("the session has ended")]
    NoSession,
    /// Another node leads.
    #[error("the reign has ended")]
    StaleReign,
    /// The acquisition has ended before, or its number stands for another lock.
    #[error("the acquisition has ended")]
    StaleRequest,
    /// The session does not hold the lock by this token.
    #[error("the lock is not held by this token")]
    NotHeld,
    /// Too many sessions are open. Retry later.
    #[error("too many sessions are open")]
    TooManySessions,
    /// The session has too many acquisitions. Release some, or raise `floor`.
    #[error("the session has too many acquisitions")]
    TooManyRequests,
    /// Too many wait for the lock. Retry later.
    #[error("too many wait for the lock")]
    QueueFull,
    /// Too many locks exist. Retry later.
    #[error("too many locks exist")]
    TooManyLocks,
    /// A field is out of its range.
    #[error("a field of the command is out of range")]
    OutOfRange,
    /// The back end has no such mode or lock-delay, or its group reads by lease. Final; the table
    /// of this crate answers it never.
    #[error("this back end of the lock service does not support it")]
    Unsupported,
}

/// What a command did to others than its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// An acquisition that waited holds its lock now.
    Granted {
        /// Whose it is.
        session: u64,
        /// The number of the acquisition.
        request: u64,
        /// The fencing token.
        token: u64,
    },
    /// A session has ended, and with it all it held and waited for.
    SessionEnded {
        /// The session.
        session: u64,
    },
    /// The holders or the value of a lock are others than before.
    Changed {
        /// The lock.
        name: Bytes,
    },
    /// A lock-delay has begun. The leader ends it by [`Command::EndDelay`].
    DelayBegan {
        /// The lock.
        name: Bytes,
        /// The index at which it began.
        since: u64,
        /// How long it lasts, in ms.
        delay_ms: u64,
    },
}

/// Bytes that are no command, answer or snapshot of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("these bytes are no {what} of a version that is known here")]
#[non_exhaustive]
pub struct Malformed {
    /// What they should have been.
    pub what: &'static str,
}
