//! Cuts a stream of bytes into frames.

use bytes::{Buf, BytesMut};

use super::{HEADER_BYTES, Header, Incoming, Kind, array, crc32c};
use crate::Violation;

/// Bytes asked for by a read when the length of the next frame is unknown.
const CHUNK_BYTES: usize = 64 * 1024;
/// Bytes that each connection may hold outside the limit shared by all connections.
const OWN_BYTES: usize = 2 * CHUNK_BYTES;
/// A new buffer is begun when less room than this is left behind the bytes read.
const ROOM_BYTES_MIN: usize = 4 * 1024;

/// The receiving end of a connection: bytes in, frames out.
///
/// Its memory is bounded by what has arrived, not by what a header promises: at most twice the
/// bytes of the unfinished frame, and one chunk.
#[derive(Debug)]
pub(crate) struct Inbox {
    buffer: BytesMut,
    max_body_bytes: usize,
}

impl Inbox {
    pub(crate) fn new(max_body_bytes: usize) -> Self {
        Self { buffer: BytesMut::new(), max_body_bytes }
    }

    /// The capacity that the buffer has after the next `room`.
    fn next_capacity(&self) -> usize {
        let have = self.buffer.len();
        let missing = self.announced().map_or(0, |whole| whole.saturating_sub(have));
        let spare = self.buffer.capacity() - have;
        if missing > spare {
            have + missing.min(have.max(CHUNK_BYTES))
        } else if missing == 0 && spare < ROOM_BYTES_MIN {
            have + CHUNK_BYTES
        } else {
            self.buffer.capacity()
        }
    }

    /// How many bytes the unfinished frame takes after the next `room`, above what every
    /// connection has. They count towards `Config::max_partial_bytes`.
    pub(crate) fn wanted(&self) -> usize {
        self.next_capacity().saturating_sub(OWN_BYTES)
    }

    /// The buffer to read into, with room behind what it holds.
    pub(crate) fn room(&mut self) -> &mut BytesMut {
        let capacity = self.next_capacity();
        if capacity > self.buffer.capacity() {
            // `reserve` may allocate twice as much.
            let mut grown = BytesMut::with_capacity(capacity);
            grown.extend_from_slice(&self.buffer);
            self.buffer = grown;
        }
        &mut self.buffer
    }

    /// Whether the bytes end within a frame.
    pub(crate) fn is_partial(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The length of the first frame with its header, when its header is there and is valid.
    fn announced(&self) -> Option<usize> {
        let length = u32::from_le_bytes(array(self.buffer.get(..HEADER_BYTES)?, 0)) as usize;
        (length <= self.max_body_bytes).then_some(HEADER_BYTES + length)
    }

    /// The next whole frame, if it is there. After an error the stream has no meaning any more.
    pub(crate) fn next(&mut self) -> Result<Option<Incoming>, Violation> {
        let Some(bytes) = self.buffer.get(..HEADER_BYTES) else { return Ok(None) };
        let length = u32::from_le_bytes(array(bytes, 0));
        if length as usize > self.max_body_bytes {
            let max_bytes = self.max_body_bytes;
            return Err(Violation::Oversized { bytes: u64::from(length), max_bytes });
        }
        let header = parse(bytes)?;
        let Some(body) = self.buffer.get(HEADER_BYTES..HEADER_BYTES + length as usize) else {
            return Ok(None);
        };
        let crc = crc32c([&bytes[..20], body]);
        if crc != u32::from_le_bytes(array(bytes, 20)) {
            return Err(Violation::Checksum);
        }
        self.buffer.advance(HEADER_BYTES);
        let body = self.buffer.split_to(length as usize).freeze();
        Ok(Some(Incoming { header, body }))
    }
}

/// The fields of a header. The checksum is not looked at: it needs the body.
fn parse(bytes: &[u8]) -> Result<Header, Violation> {
    let [kind, flags] = array(bytes, 4);
    let kind = Kind::from_u8(kind)?;
    if flags & 0xf0 != 0 {
        return Err(Violation::Flags(flags));
    }
    Ok(Header {
        kind,
        service: u16::from_le_bytes(array(bytes, 6)),
        id: u64::from_le_bytes(array(bytes, 8)),
        left_ms: u32::from_le_bytes(array(bytes, 16)),
    })
}
