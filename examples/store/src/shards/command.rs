//! The commands in the log of a shard's group, their answers, and the bytes of both.
//!
//! A command is a version byte, 1, a kind, and what the kind says; integers are little-endian:
//!
//! | kind | command | rest |
//! |---|---|---|
//! | 1 | write | epoch, client, number (u64 each), a [`kv::Command`] |
//! | 2 | fill with pairs | a chunk of [`Kv`](crate::kv::Kv) |
//! | 3 | fill with clients | [`Clients`](super::clients::Clients) |
//! | 4 | a step of a split | [`Step`] as JSON |

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::clients::RequestId;
use crate::kv::{self, Answer};

/// Version of the layout.
const FORMAT: u8 = 1;

/// A command of a shard's group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A client's write. It names the epoch under which the client believes the key to be here.
    Write {
        epoch: u64,
        id: Option<RequestId>,
        write: kv::Command,
    },
    /// Pairs for a shard that is not open yet.
    Pairs(Bytes),
    /// Clients for a shard that is not open yet.
    Clients(Bytes),
    Step(Step),
}

/// A step of a split, or the opening of a first shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// To the shard that is split: from now on it owns nothing from `at` on, which goes to `to`.
    Seal { at: String, to: u64 },
    /// To a new shard: it holds `count` pairs, and owns its range from now on.
    Open { epoch: u64, start: String, end: Option<String>, count: u64 },
    /// To the shard that was split: what went to `to` is served there.
    Forget { to: u64 },
    /// To the shard that was to be split: nothing is sealed for `to` from now on.
    Bar { to: u64 },
}

/// The answer to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The write was applied, now or when it came first.
    Written(Answer),
    /// Not applied: the key has gone to this shard.
    Moved { to: u64 },
    /// Not applied: the shard has another epoch, this one.
    Stale { epoch: u64 },
    /// Not applied: the shard does not own anything yet.
    Closed,
    /// Not applied: the client has had the answer to a later request.
    Old,
    /// The step is done, now or earlier.
    Done,
    /// The step does not fit: nothing was changed.
    Refused,
}

/// Bytes that are no command or answer of this version.
#[derive(Debug, thiserror::Error)]
#[error("not a {0} of a shard that this version of the store can read")]
pub struct Malformed(pub &'static str);

impl Command {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(FORMAT);
        match self {
            Self::Write { epoch, id, write } => {
                out.put_u8(1);
                out.put_u64_le(*epoch);
                // No client has the number 0.
                out.put_u64_le(id.map_or(0, |id| id.client));
                out.put_u64_le(id.map_or(0, |id| id.number));
                out.put_slice(&write.encode());
            }
            Self::Pairs(chunk) => {
                out.put_u8(2);
                out.put_slice(chunk);
            }
            Self::Clients(clients) => {
                out.put_u8(3);
                out.put_slice(clients);
            }
            Self::Step(step) => {
                out.put_u8(4);
                out.put_slice(&serde_json::to_vec(step).unwrap_or_default());
            }
        }
        out.freeze()
    }

    /// # Errors
    /// [`Malformed`] where the bytes are no command of this version.
    pub fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        Self::parse(bytes).ok_or(Malformed("command"))
    }

    fn parse(mut bytes: Bytes) -> Option<Self> {
        if bytes.try_get_u8().ok()? != FORMAT {
            return None;
        }
        match bytes.try_get_u8().ok()? {
            1 => {
                let epoch = bytes.try_get_u64_le().ok()?;
                let client = bytes.try_get_u64_le().ok()?;
                let number = bytes.try_get_u64_le().ok()?;
                let id = (client > 0).then_some(RequestId { client, number });
                Some(Self::Write { epoch, id, write: kv::Command::decode(bytes).ok()? })
            }
            2 => Some(Self::Pairs(bytes)),
            3 => Some(Self::Clients(bytes)),
            4 => Some(Self::Step(serde_json::from_slice(&bytes).ok()?)),
            _ => None,
        }
    }
}

impl Reply {
    pub fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(10);
        let (kind, number) = match self {
            Self::Written(answer) => {
                out.put_u8(1);
                out.put_slice(&answer.encode());
                return out.freeze();
            }
            Self::Moved { to } => (2, to),
            Self::Stale { epoch } => (3, epoch),
            Self::Closed => (4, 0),
            Self::Old => (5, 0),
            Self::Done => (6, 0),
            Self::Refused => (7, 0),
        };
        out.put_u8(kind);
        out.put_u64_le(number);
        out.freeze()
    }

    /// # Errors
    /// [`Malformed`] where the bytes are no answer of this version.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let malformed = || Malformed("answer");
        let kind = bytes.try_get_u8().map_err(|_| malformed())?;
        if kind == 1 {
            return Answer::decode(bytes).map(Self::Written).map_err(|_| malformed());
        }
        let number = bytes.try_get_u64_le().map_err(|_| malformed())?;
        match kind {
            2 => Ok(Self::Moved { to: number }),
            3 => Ok(Self::Stale { epoch: number }),
            4 => Ok(Self::Closed),
            5 => Ok(Self::Old),
            6 => Ok(Self::Done),
            7 => Ok(Self::Refused),
            _ => Err(malformed()),
        }
    }
}
