//! The bytes of commands and answers of sessions. All integers are little-endian.
//!
//! | kind | command | fields |
//! |---|---|---|
//! | 1 | plain | the user's command |
//! | 2 | open | max_sessions u32, max_pending u32, max_answer_bytes u64 |
//! | 3 | of a session | session u64, number u64, first_pending u64; the user's command |
//! | 4 | close | session u64 |
//!
//! | kind | answer | fields |
//! |---|---|---|
//! | 1 | applied | the machine's answer |
//! | 2 | opened | session u64 |
//! | 3 | closed | |
//! | 4 | expired | |
//! | 5 | forgotten | |
//! | 6 | too far | |
//! | 7 | malformed | |
//!
//! Each begins with a version, 1, and the kind.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::SessionError;

pub(super) const VERSION: u8 = 1;

/// What bounds the memory of sessions. The limits stand in the command that opens a session, so
/// that every node keeps the same ones, whatever its own configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SessionLimits {
    /// Sessions of the group, this one included: past it the least recently used ones expire when
    /// this one is opened. At least 1. Default 10,000.
    pub max_sessions: u32,
    /// Commands of this session under way at once: numbers from the first one that is not
    /// [`answered`](super::Session::answered). At least 1. Default 1,024.
    pub max_pending: u32,
    /// Bytes of answers kept for this session. Past it the answers of the lowest numbers are
    /// forgotten: a retry is then told [`SessionAnswer::Forgotten`]. Default 1 MiB.
    pub max_answer_bytes: u64,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { max_sessions: 10_000, max_pending: 1024, max_answer_bytes: 1 << 20 }
    }
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionAnswer {
    /// It was applied, now or by an earlier attempt: what the machine answered.
    Applied(Bytes),
    /// The session with this id was opened.
    Opened(u64),
    /// The session was closed.
    Closed,
    /// There is no such session any more. The command is not applied by this attempt, nor by one
    /// after it; whether an earlier attempt was is not known.
    Expired,
    /// The command is not applied by this attempt, nor by one after it. Either an earlier attempt
    /// was applied, and its answer is gone past [`SessionLimits::max_answer_bytes`]; or the client
    /// had said that it waits for it no more ([`Session::answered`](super::Session::answered)),
    /// and then it may never have been applied.
    Forgotten,
    /// The command was not applied: its number is [`SessionLimits::max_pending`] or more above the
    /// first one that is not answered.
    TooFar,
    /// The command was not applied: it is none of a session.
    Malformed,
}

impl SessionAnswer {
    /// Reads what a proposal was answered.
    ///
    /// # Errors
    /// [`SessionError::Malformed`] where the bytes are no answer of [`Sessions`](super::Sessions).
    pub fn decode(mut bytes: Bytes) -> Result<Self, SessionError> {
        let head = [bytes.try_get_u8().ok(), bytes.try_get_u8().ok()];
        let [Some(VERSION), Some(kind)] = head else { return Err(SessionError::Malformed) };
        Ok(match kind {
            1 => Self::Applied(bytes),
            2 => Self::Opened(bytes.try_get_u64_le().map_err(|_| SessionError::Malformed)?),
            3 => Self::Closed,
            4 => Self::Expired,
            5 => Self::Forgotten,
            6 => Self::TooFar,
            7 => Self::Malformed,
            _ => return Err(SessionError::Malformed),
        })
    }

    pub(super) fn encode(&self) -> Bytes {
        let (kind, rest): (u8, &[u8]) = match self {
            Self::Applied(answer) => (1, answer),
            Self::Opened(session) => return framed(2, &[*session], &[]),
            Self::Closed => (3, &[]),
            Self::Expired => (4, &[]),
            Self::Forgotten => (5, &[]),
            Self::TooFar => (6, &[]),
            Self::Malformed => (7, &[]),
        };
        framed(kind, &[], rest)
    }
}

fn framed(kind: u8, fields: &[u64], rest: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(2 + fields.len() * 8 + rest.len());
    out.put_u8(VERSION);
    out.put_u8(kind);
    for field in fields {
        out.put_u64_le(*field);
    }
    out.put_slice(rest);
    out.freeze()
}

/// A command, as the log holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request<B> {
    Plain(B),
    Open(SessionLimits),
    Command { session: u64, number: u64, first_pending: u64, data: B },
    Close(u64),
}

impl Request<&[u8]> {
    pub(super) fn encode(&self) -> Bytes {
        match self {
            Self::Plain(data) => framed(1, &[], data),
            Self::Open(SessionLimits { max_sessions, max_pending, max_answer_bytes }) => {
                let counts = u64::from(*max_sessions) | u64::from(*max_pending) << 32;
                framed(2, &[counts, *max_answer_bytes], &[])
            }
            Self::Command { session, number, first_pending, data } => {
                framed(3, &[*session, *number, *first_pending], data)
            }
            Self::Close(session) => framed(4, &[*session], &[]),
        }
    }
}

impl Request<Bytes> {
    /// `None` for bytes that are no command of a session, which includes the ranges of its fields.
    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.try_get_u8().ok()? != VERSION {
            return None;
        }
        let request = match bytes.try_get_u8().ok()? {
            1 => return Some(Self::Plain(bytes)),
            2 => {
                let (max_sessions, max_pending) =
                    (bytes.try_get_u32_le().ok()?, bytes.try_get_u32_le().ok()?);
                let max_answer_bytes = bytes.try_get_u64_le().ok()?;
                if max_sessions == 0 || max_pending == 0 {
                    return None;
                }
                Self::Open(SessionLimits { max_sessions, max_pending, max_answer_bytes })
            }
            3 => {
                let session = bytes.try_get_u64_le().ok()?;
                let number = bytes.try_get_u64_le().ok()?;
                let first_pending = bytes.try_get_u64_le().ok()?;
                if first_pending > number {
                    return None;
                }
                return Some(Self::Command { session, number, first_pending, data: bytes });
            }
            4 => Self::Close(bytes.try_get_u64_le().ok()?),
            _ => return None,
        };
        bytes.is_empty().then_some(request)
    }
}
