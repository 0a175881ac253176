//! What a node keeps of itself: who it is, and which life of its store this is.
//!
//! The record, version 1, little-endian: version u8, bits u8 (1: whole, 2: condemned), reserved
//! u16, node u64, incarnation u64, mark of the dots u64, epoch u64.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::store::Change;
use crate::table::Replica;
use crate::version::codec::DecodeError;

const VERSION: u8 = 1;
const BYTES: usize = 36;
const WHOLE: u8 = 1;
const CONDEMNED: u8 = 2;

/// The key of the record. The keys of tables and registers begin with another byte.
pub(super) const KEY: &[u8] = b"m";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) node: u64,
    /// Of the store: a new one after each loss.
    pub(super) incarnation: u64,
    /// No dot at or above it has been given out.
    pub(super) mark: u64,
    /// 0 in a store that was lost, until it is known.
    pub(super) epoch: u64,
    pub(super) is_whole: bool,
    /// The store has met writes of its own that it does not have: it was restored from a backup.
    /// The next start begins a new incarnation.
    pub(super) is_condemned: bool,
}

impl Meta {
    pub(super) fn first(node: u64) -> Self {
        let epoch = Replica::FIRST_EPOCH;
        Self { epoch, is_whole: true, ..Self::lost(node) }
    }

    /// Incarnations are drawn: nothing is left that would say what the last one was.
    pub(super) fn lost(node: u64) -> Self {
        let incarnation = fastrand::u64(1..1 << 62);
        Self { node, incarnation, mark: 0, epoch: 0, is_whole: false, is_condemned: false }
    }

    pub(super) fn change(&self) -> Change {
        let mut out = BytesMut::with_capacity(BYTES);
        out.put_u8(VERSION);
        let whole = if self.is_whole { WHOLE } else { 0 };
        out.put_u8(whole | if self.is_condemned { CONDEMNED } else { 0 });
        out.put_u16_le(0);
        out.put_u64_le(self.node);
        out.put_u64_le(self.incarnation);
        out.put_u64_le(self.mark);
        out.put_u64_le(self.epoch);
        Change { key: Bytes::from_static(KEY), record: Some(out.freeze()) }
    }

    pub(super) fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        let version = bytes.first().copied().ok_or(DecodeError::Truncated)?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        if bytes.len() != BYTES {
            return Err(DecodeError::Truncated);
        }
        bytes.advance(1);
        let bits = bytes.get_u8();
        bytes.advance(2);
        Ok(Self {
            node: bytes.get_u64_le(),
            incarnation: bytes.get_u64_le(),
            mark: bytes.get_u64_le(),
            epoch: bytes.get_u64_le(),
            is_whole: bits & WHOLE != 0,
            is_condemned: bits & CONDEMNED != 0,
        })
    }
}
