//! The bytes of messages and snapshots on the wire and of records in the log, for transports and
//! stores of one's own. All integers are little-endian.
//!
//! # Messages, version 1
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u8 | version, 1 |
//! | 1 | u8 | kind |
//! | 2 | u16 | length of header and fields together; what a reader does not know at the end of it is skipped |
//! | 4 | u32 | reserved: written as 0, not looked at |
//! | 8 | u64 | group |
//! | 16 | u64 | term |
//! | 24 | | the fields of the kind |
//!
//! | kind | message | fields after the term |
//! |---|---|---|
//! | 1, 3 | `PreVote`, `Vote` | last_index u64, last_term u64, transfer u8 (0, 1) |
//! | 2, 4 | `PreVoteReply`, `VoteReply` | granted u8 (0, 1) |
//! | 5 | `Append` | session u64, prev_index u64, prev_term u64, commit u64, probe u8 (0, 1), reserved u8, length of an entry head u16, count u32 |
//! | 6 | `AppendAck` | session u64, matched u64, received u64 |
//! | 7 | `AppendReject` | session u64, prev_index u64, hint_index u64, hint_term u64, is_recovering u8 (1; left out where it is 0) |
//! | 8 | `Heartbeat` | round u64, commit u64 |
//! | 9 | `HeartbeatReply` | round u64, received u64 |
//! | 10 | `Stale` | none |
//! | 11 | `ReadRequest` | nonce u64, context u64 |
//! | 12 | `ReadReply` | nonce u64, context u64, index u64, has_index u8 (0, 1) |
//! | 13 | `LogLost` | matched u64, matched_term u64 |
//! | 14 | `TimeoutNow` | none |
//! | 15 | `Removed` | index u64 |
//! | 16 | `Quiesce` | round u64, commit u64, life u64 |
//! | 17 | `Node` | life u64, tick u64, seen_life u64, seen_tick u64, counts of resignations and of beats u32 each; the term is 0 |
//!
//! After the fields of an `Append` come `count` entry heads, and then the payloads, one after
//! the other. Entry `i` has index `prev_index + 1 + i`. An entry head:
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u64 | term |
//! | 8 | u32 | length of the payload |
//! | 12 | u8 | kind: 1 no-op, 2 command, 3 configuration |
//! | 13 | u8, u16 | reserved: written as 0, not looked at |
//!
//! After the fields of a `Node` come its resignations, each a group u64 and a term u64, and then
//! its beats, each a kind u8 (8 or 9, as above), seven bytes reserved, the group u64, and the three
//! fields of the message, u64 each. Its group is `u64::MAX`.
//!
//! # Bundles, version 1
//!
//! Messages of several groups that go to the same node together.
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u8 | version, 1 |
//! | 1 | u8 | kind, 18 |
//! | 2 | u16 | length of header and fields, 12; what a reader does not know there is skipped |
//! | 4 | u32 | reserved: written as 0, not looked at |
//! | 8 | u32 | number of messages |
//!
//! Then for each message its length, u32, and its bytes as above.
//!
//! # Parts of a snapshot's transfer, version 1
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u8 | version, 1 |
//! | 1 | u8 | kind |
//! | 2 | u16 | length of header and fields; what a reader does not know there is skipped |
//! | 4 | u32 | reserved: written as 0, not looked at |
//! | 8 | u64 | group; 0 in answers |
//! | 16 | | the fields of the kind |
//!
//! | kind | what | fields, and what follows them |
//! |---|---|---|
//! | 32 | `Open` | term u64, identity u64, chunks u64; the snapshot as a record, below |
//! | 33 | `Chunk` | identity u64, number u64; the chunk |
//! | 34 | `Close` | identity u64 |
//! | 35 | `Next` | number u64 |
//! | 36 | `Done` | |
//! | 37 | `Rejected` | |
//!
//! # Records, version 1
//!
//! | offset | type | entry | hard state | snapshot |
//! |---|---|---|---|---|
//! | 0 | u8 | version, 1 | version, 1 | version, 1 |
//! | 1 | u8 | kind, as above | 1: the vote counts, 0: none | reserved |
//! | 2 | u16 | length of the head, 24 | the same | the same |
//! | 4 | u32 | reserved | reserved | length of the membership |
//! | 8 | u64 | term | term | index |
//! | 16 | u64 | index | vote | term |
//! | 24 | | payload | | membership |
//!
//! # Memberships, version 1
//!
//! The payload of a configuration entry, and a part of the name of a snapshot.
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u8 | version, 1 |
//! | 1 | u8, u8, u8 | number of voters, of outgoing voters (0 unless joint), of learners |
//! | 4 | u16 | number of addresses |
//! | 6 | u16 | reserved: written as 0, not looked at |
//! | 8 | u64 each | voters, outgoing voters, learners; each list ascending |
//! | | u64, u16, bytes each | addresses, ascending: the member, the length, UTF-8 |
//!
//! Records carry no checksum of their own: the journal's frames do.

mod bundle;
mod members;
mod message;
mod part;
mod record;

use bytes::{Buf, Bytes};
use thiserror::Error;

pub use self::bundle::{Unbundled, decode_bundle, encode_bundle, is_bundle};
#[cfg(feature = "net")]
pub(crate) use self::bundle::{bundle_room, bundled_len};
pub use self::members::{decode_members, encode_members};
pub(crate) use self::message::{BEAT, NODE_BEAT_HEAD, RESIGNATION};
pub use self::message::{Frame, decode, encode, encode_append};
pub use self::part::{decode_answer, decode_part, encode_answer, encode_part};
pub use self::record::{
    ENTRY_HEAD_BYTES, decode_entry, decode_hard_state, decode_snapshot, encode_entry,
    encode_entry_head, encode_hard_state, encode_snapshot,
};
use crate::types::EntryKind;

/// The version of messages and records that this crate writes, and the only one it reads.
pub const VERSION: u8 = 1;

/// Bytes that are no message or record. Nothing was taken from them. A message like this is
/// dropped, as if it had been lost; a record like this means that the log is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Written by a version that this one does not know.
    #[error("version {0} is unknown")]
    Version(u8),
    /// A kind of message or entry that this version does not know.
    #[error("kind {0} is unknown")]
    Kind(u8),
    /// The bytes end too early.
    #[error("the bytes end too early")]
    Truncated,
    /// Bytes follow where the end should be.
    #[error("bytes follow the end")]
    Trailing,
    /// The named field has a value that it cannot have.
    #[error("{0} is out of range")]
    Field(&'static str),
}

impl EntryKind {
    const fn code(self) -> u8 {
        match self {
            Self::Noop => 1,
            Self::Command => 2,
            Self::Config => 3,
        }
    }

    const fn from_code(code: u8) -> Result<Self, DecodeError> {
        match code {
            1 => Ok(Self::Noop),
            2 => Ok(Self::Command),
            3 => Ok(Self::Config),
            other => Err(DecodeError::Kind(other)),
        }
    }
}

/// Reads fields off the front, never past the end.
struct Reader {
    bytes: Bytes,
}

impl Reader {
    fn take(&mut self, len: usize) -> Result<Bytes, DecodeError> {
        if len > self.bytes.len() {
            return Err(DecodeError::Truncated);
        }
        Ok(self.bytes.split_to(len))
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.bytes.try_get_u8().map_err(|_| DecodeError::Truncated)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.bytes.try_get_u16_le().map_err(|_| DecodeError::Truncated)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.bytes.try_get_u32_le().map_err(|_| DecodeError::Truncated)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.bytes.try_get_u64_le().map_err(|_| DecodeError::Truncated)
    }

    fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Field(field)),
        }
    }

    fn version(&mut self) -> Result<(), DecodeError> {
        match self.u8()? {
            VERSION => Ok(()),
            other => Err(DecodeError::Version(other)),
        }
    }
}

#[cfg(test)]
mod part_tests;
#[cfg(test)]
mod tests;
