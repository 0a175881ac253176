//! The bytes on a connection, version 1. All numbers are little-endian.
//!
//! The README of the crate describes them: a handshake in each direction ([`hello`]), then
//! frames, which [`inbox`] cuts out of the stream.

pub(crate) mod hello;
pub(crate) mod inbox;
#[cfg(test)]
mod tests;

use bytes::Bytes;

use crate::{Parts, Violation};

/// The version of this module's description; the lowest and the highest that is spoken.
pub(crate) const VERSION: u16 = 1;

pub(crate) const HEADER_BYTES: usize = 24;

/// Reasons of a rejection, in the field `service`.
pub(crate) mod reason {
    pub(crate) const UNKNOWN_SERVICE: u16 = 1;
    pub(crate) const BUSY: u16 = 2;
    pub(crate) const REJECTED: u16 = 3;
    pub(crate) const FAILED: u16 = 4;
    pub(crate) const ANSWER_TOO_LONG: u16 = 5;
    pub(crate) const ANSWER_DROPPED: u16 = 6;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Message = 1,
    Request = 2,
    Response = 3,
    Rejection = 4,
    Cancel = 5,
    Ping = 6,
    Pong = 7,
    Goodbye = 8,
}

impl Kind {
    fn from_u8(kind: u8) -> Result<Self, Violation> {
        Ok(match kind {
            1 => Self::Message,
            2 => Self::Request,
            3 => Self::Response,
            4 => Self::Rejection,
            5 => Self::Cancel,
            6 => Self::Ping,
            7 => Self::Pong,
            8 => Self::Goodbye,
            other => return Err(Violation::Kind(other)),
        })
    }
}

/// The fields of a frame's header but its length and checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) service: u16,
    pub(crate) id: u64,
    pub(crate) left_ms: u32,
}

/// A frame that came in. The body shares the buffer into which it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Incoming {
    pub(crate) header: Header,
    pub(crate) body: Bytes,
}

/// A frame on its way out: its header is made, its pieces are not copied.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) header: [u8; HEADER_BYTES],
    pub(crate) parts: Parts,
    len: usize,
}

/// CRC-32C of pieces one after the other.
pub(crate) fn crc32c<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    pieces.into_iter().for_each(|piece| digest.update(piece));
    digest.finalize() as u32
}

impl Frame {
    /// Computes the checksum, so this is to be done outside of any lock. The caller has checked
    /// that the length is one that the peer takes, hence below 2^32.
    pub(crate) fn new(header: Header, parts: Parts) -> Self {
        let length = parts.len();
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&(length as u32).to_le_bytes());
        bytes[4] = header.kind as u8;
        bytes[6..8].copy_from_slice(&header.service.to_le_bytes());
        bytes[8..16].copy_from_slice(&header.id.to_le_bytes());
        bytes[16..20].copy_from_slice(&header.left_ms.to_le_bytes());
        let crc =
            crc32c(std::iter::once(&bytes[..20]).chain(parts.pieces().map(|piece| &piece[..])));
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        Self { header: bytes, parts, len: HEADER_BYTES + length }
    }

    /// A frame that is only a header.
    pub(crate) fn bare(kind: Kind, id: u64) -> Self {
        Self::new(Header { kind, service: 0, id, left_ms: 0 }, Parts::default())
    }

    /// A rejection without a body.
    pub(crate) fn rejection(id: u64, reason: u16) -> Self {
        let header = Header { kind: Kind::Rejection, service: reason, id, left_ms: 0 };
        Self::new(header, Parts::default())
    }

    /// Whether it belongs to the connection alone, and is neither a message nor part of a call's
    /// outcome.
    pub(crate) fn is_signal(&self) -> bool {
        let signals = [Kind::Cancel, Kind::Ping, Kind::Pong, Kind::Goodbye];
        signals.iter().any(|&kind| kind as u8 == self.header[4])
    }

    /// Of header and body, in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The pieces to write, in order.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&self.header[..])
            .chain(self.parts.pieces().map(|piece| &piece[..]))
            .filter(|piece| !piece.is_empty())
    }
}

/// Reads `N` bytes at an offset; 0 where there are fewer, which no caller lets happen.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    if let Some(found) = bytes.get(at..at + N) {
        array.copy_from_slice(found);
    }
    array
}
