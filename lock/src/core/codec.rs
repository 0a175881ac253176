//! Bytes of commands and answers: a version, a kind, and fields in little-endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::command::{Answer, Command, Malformed, Mode, Rejection};
use super::{MAX_NAME_BYTES, MAX_VALUE_BYTES};

/// The first byte of each command and answer. Raise it when the layout changes.
const FORMAT: u8 = 1;

impl Command {
    /// The command's bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        out.put_u8(FORMAT);
        match self {
            Self::BeginReign => out.put_u8(1),
            Self::OpenSession { ttl_ms } => put(&mut out, 2, &[*ttl_ms]),
            Self::CloseSession { session } => put(&mut out, 3, &[*session]),
            Self::Expire { reign, session } => put(&mut out, 4, &[*reign, *session]),
            Self::Checkpoint { reign, session, number, remaining_ms } => {
                put(&mut out, 5, &[*reign, *session, *number, *remaining_ms]);
            }
            Self::Acquire { session, request, floor, name, mode, wait, lock_delay_ms } => {
                put(&mut out, 6, &[*session, *request, *floor, *lock_delay_ms]);
                out.put_u8(u8::from(*wait));
                put_mode(&mut out, *mode);
                put_bytes(&mut out, name);
            }
            Self::Release { session, request } => put(&mut out, 7, &[*session, *request]),
            Self::SetValue { session, token, number, name, value } => {
                put(&mut out, 8, &[*session, *token, *number]);
                put_bytes(&mut out, name);
                put_bytes(&mut out, value);
            }
            Self::EndDelay { reign, name, since } => {
                put(&mut out, 9, &[*reign, *since]);
                put_bytes(&mut out, name);
            }
            Self::CheckpointDelay { reign, name, since, remaining_ms } => {
                put(&mut out, 10, &[*reign, *since, *remaining_ms]);
                put_bytes(&mut out, name);
            }
        }
        out.freeze()
    }

    /// The command's bytes, if [`decode`](Self::decode) takes them.
    ///
    /// # Errors
    /// [`Rejection::OutOfRange`]: a name or a value is too long, or a semaphore has no slot.
    #[cfg(feature = "raft")]
    pub(crate) fn encode_checked(&self) -> Result<Bytes, Rejection> {
        let bytes = self.encode();
        if Self::decode(&bytes).as_ref() == Ok(self) {
            Ok(bytes)
        } else {
            Err(Rejection::OutOfRange)
        }
    }

    /// The command of these bytes. Names and values are copied: they do not keep the message alive.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut rest = bytes;
        let command = Self::take(&mut rest).filter(|_| rest.is_empty());
        command.ok_or(Malformed { what: "command" })
    }

    fn take(rest: &mut &[u8]) -> Option<Self> {
        if rest.try_get_u8().ok()? != FORMAT {
            return None;
        }
        Some(match rest.try_get_u8().ok()? {
            1 => Self::BeginReign,
            2 => Self::OpenSession { ttl_ms: number(rest)? },
            3 => Self::CloseSession { session: number(rest)? },
            4 => Self::Expire { reign: number(rest)?, session: number(rest)? },
            5 => Self::Checkpoint {
                reign: number(rest)?,
                session: number(rest)?,
                number: number(rest)?,
                remaining_ms: number(rest)?,
            },
            6 => {
                let (session, request, floor) = (number(rest)?, number(rest)?, number(rest)?);
                let lock_delay_ms = number(rest)?;
                let wait = flag(rest)?;
                let mode = take_mode(rest)?;
                let name = take_bytes(rest, MAX_NAME_BYTES)?;
                Self::Acquire { session, request, floor, name, mode, wait, lock_delay_ms }
            }
            7 => Self::Release { session: number(rest)?, request: number(rest)? },
            8 => Self::SetValue {
                session: number(rest)?,
                token: number(rest)?,
                number: number(rest)?,
                name: take_bytes(rest, MAX_NAME_BYTES)?,
                value: take_bytes(rest, MAX_VALUE_BYTES)?,
            },
            9 => {
                let (reign, since) = (number(rest)?, number(rest)?);
                Self::EndDelay { reign, since, name: take_bytes(rest, MAX_NAME_BYTES)? }
            }
            10 => {
                let (reign, since, remaining_ms) = (number(rest)?, number(rest)?, number(rest)?);
                let name = take_bytes(rest, MAX_NAME_BYTES)?;
                Self::CheckpointDelay { reign, name, since, remaining_ms }
            }
            _ => return None,
        })
    }
}

impl Answer {
    /// The answer's bytes.
    pub fn encode(self) -> Bytes {
        let (kind, number) = match self {
            Self::Done => (1, 0),
            Self::Reign { reign } => (2, reign),
            Self::Opened { session } => (3, session),
            Self::Granted { token } => (4, token),
            Self::Queued => (5, 0),
            Self::Busy => (6, 0),
            Self::Rejected(rejection) => (7, code(rejection)),
        };
        let mut out = BytesMut::with_capacity(10);
        out.put_u8(FORMAT);
        put(&mut out, kind, &[number]);
        out.freeze()
    }

    /// The answer of these bytes.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut rest = bytes;
        let answer = Self::take(&mut rest).filter(|_| rest.is_empty());
        answer.ok_or(Malformed { what: "answer" })
    }

    fn take(rest: &mut &[u8]) -> Option<Self> {
        if rest.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let (kind, number) = (rest.try_get_u8().ok()?, number(rest)?);
        Some(match kind {
            1 => Self::Done,
            2 => Self::Reign { reign: number },
            3 => Self::Opened { session: number },
            4 => Self::Granted { token: number },
            5 => Self::Queued,
            6 => Self::Busy,
            7 => Self::Rejected(*REJECTIONS.get(usize::try_from(number).ok()?)?),
            _ => return None,
        })
    }
}

/// Their place is their code, which never changes.
const REJECTIONS: [Rejection; 10] = [
    Rejection::NoSession,
    Rejection::StaleReign,
    Rejection::StaleRequest,
    Rejection::NotHeld,
    Rejection::TooManySessions,
    Rejection::TooManyRequests,
    Rejection::QueueFull,
    Rejection::TooManyLocks,
    Rejection::OutOfRange,
    Rejection::Unsupported,
];

fn code(rejection: Rejection) -> u64 {
    REJECTIONS.iter().position(|known| *known == rejection).map_or(u64::MAX, |at| at as u64)
}

/// A kind and its numbers.
pub(crate) fn put(out: &mut BytesMut, kind: u8, numbers: &[u64]) {
    out.put_u8(kind);
    for number in numbers {
        out.put_u64_le(*number);
    }
}

pub(crate) fn put_mode(out: &mut BytesMut, mode: Mode) {
    let (kind, of) = match mode {
        Mode::Exclusive => (0, 0),
        Mode::Shared => (1, 0),
        Mode::Slot { of } => (2, of),
    };
    out.put_u8(kind);
    out.put_u32_le(of);
}

/// At most 64 KiB.
pub(crate) fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u16_le(bytes.len() as u16);
    out.put_slice(bytes);
}

pub(crate) fn number(rest: &mut &[u8]) -> Option<u64> {
    rest.try_get_u64_le().ok()
}

pub(crate) fn flag(rest: &mut &[u8]) -> Option<bool> {
    match rest.try_get_u8().ok()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

pub(crate) fn take_mode(rest: &mut &[u8]) -> Option<Mode> {
    let (kind, of) = (rest.try_get_u8().ok()?, rest.try_get_u32_le().ok()?);
    match (kind, of) {
        (0, 0) => Some(Mode::Exclusive),
        (1, 0) => Some(Mode::Shared),
        (2, 1..) => Some(Mode::Slot { of }),
        _ => None,
    }
}

pub(crate) fn take_bytes(rest: &mut &[u8], most: usize) -> Option<Bytes> {
    let len = usize::from(rest.try_get_u16_le().ok()?);
    if len > most {
        return None;
    }
    let (bytes, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(Bytes::copy_from_slice(bytes))
}
