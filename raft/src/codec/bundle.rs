//! Messages of several groups as one.

use bytes::{BufMut, Bytes};

#[cfg(feature = "net")]
use super::message::node_beat_len;
use super::message::{Frame, Pieces, append_len, decode};
use super::{DecodeError, Reader, VERSION};
use crate::message::Message;

const KIND: u8 = 18;
const HEADER: usize = 12;
/// The length before each message.
const LENGTH: usize = 4;

/// Encodes messages, each with its group, of one node to another. Long payloads are not copied.
pub fn encode_bundle(messages: &[(u64, Message)]) -> Frame {
    let mut pieces = Pieces::with_capacity(HEADER + messages.len() * 128);
    pieces.out.put_u8(VERSION);
    pieces.out.put_u8(KIND);
    pieces.out.put_u16_le(HEADER as u16);
    pieces.out.put_u32_le(0);
    pieces.out.put_u32_le(messages.len() as u32);
    for (group, message) in messages {
        if let Message::Append { entries, .. } = message {
            pieces.out.put_u32_le(append_len(entries) as u32);
            pieces.put(*group, message);
        } else {
            let at = pieces.out.len();
            pieces.out.put_u32_le(0);
            pieces.put(*group, message);
            let length = pieces.out.len() - at - LENGTH;
            pieces.out[at..at + LENGTH].copy_from_slice(&(length as u32).to_le_bytes());
        }
    }
    pieces.finish()
}

/// The most bytes that messages take in a bundle.
#[cfg(feature = "net")]
pub(crate) fn bundle_room(bytes: usize) -> usize {
    bytes.saturating_sub(HEADER)
}

/// The bytes that a message takes in a bundle at most: exactly for those that may be long.
#[cfg(feature = "net")]
pub(crate) fn bundled_len(message: &Message) -> usize {
    match message {
        Message::Node(beat) => LENGTH + node_beat_len(beat),
        Message::Append { entries, .. } => LENGTH + append_len(entries),
        _ => LENGTH + super::message::APPEND_HEAD,
    }
}

/// Whether these bytes are a bundle, if they are anything: else they are one message.
pub fn is_bundle(bytes: &[u8]) -> bool {
    bytes.get(1) == Some(&KIND)
}

/// Decodes a bundle. Payloads share the memory of `bytes`, except those of short messages.
///
/// # Errors
/// [`DecodeError`] when the head is none of a known version. The messages are decoded one by one.
pub fn decode_bundle(bytes: Bytes) -> Result<Unbundled, DecodeError> {
    let mut all = Reader { bytes };
    all.version()?;
    match all.u8()? {
        KIND => {}
        other => return Err(DecodeError::Kind(other)),
    }
    let head_len = usize::from(all.u16()?);
    let left = head_len.checked_sub(4).ok_or(DecodeError::Field("header length"))?;
    let mut fields = Reader { bytes: all.take(left)? };
    fields.u32()?;
    let left = fields.u32()?;
    Ok(Unbundled { all, left })
}

/// The messages of a bundle, each with its group. One that cannot be decoded is an error and does
/// not hide those behind it.
pub struct Unbundled {
    all: Reader,
    left: u32,
}

impl Iterator for Unbundled {
    type Item = Result<(u64, Message), DecodeError>;

    /// Ends: each message takes some of the bytes, or is the last one.
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            let rest = std::mem::take(&mut self.all.bytes);
            return (!rest.is_empty()).then_some(Err(DecodeError::Trailing));
        }
        self.left -= 1;
        let body = self.all.u32().and_then(|length| self.all.take(length as usize));
        if body.is_err() {
            (self.left, self.all.bytes) = (0, Bytes::new());
        }
        Some(body.and_then(decode))
    }
}

impl std::fmt::Debug for Unbundled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unbundled").field("left", &self.left).finish_non_exhaustive()
    }
}
