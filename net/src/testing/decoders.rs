//! Entry points for fuzzers: what a peer may send, as bytes. The targets under `fuzz/` and
//! `tests/corpus.rs` call them.

use bytes::Bytes;

use crate::wire::hello::{self, Hello, PREFIX_BYTES, Reply};
use crate::wire::inbox::Inbox;
use crate::wire::{Frame, HEADER_BYTES, crc32c};
use crate::{HandshakeError, Parts};

/// The largest body that [`frames`] accepts, in bytes.
const MAX_BODY_BYTES: usize = 1 << 16;

/// Cuts `bytes` into frames as the receiving end of a connection does: as they are, and with the
/// lengths and checksums of all frames put right, so that what lies behind these is reached.
///
/// # Panics
/// When a decoded frame does not survive being encoded again, or when the buffer outgrows its
/// bound.
pub fn frames(bytes: &[u8]) {
    receive(bytes, bytes);
    let mut sealed = bytes.to_vec();
    seal_frames(&mut sealed);
    receive(&sealed, bytes);
}

/// Feeds a stream in pieces whose sizes come from `sizes`.
fn receive(stream: &[u8], sizes: &[u8]) {
    let mut inbox = Inbox::new(MAX_BODY_BYTES);
    let mut sizes = sizes.iter().cycle();
    let mut rest = stream;
    while !rest.is_empty() {
        let size = 1 + 7 * usize::from(sizes.next().copied().unwrap_or(0));
        let (piece, left) = rest.split_at(size.min(rest.len()));
        rest = left;
        inbox.room().extend_from_slice(piece);
        loop {
            match inbox.next() {
                Ok(Some(frame)) => {
                    let again = Frame::new(frame.header, Parts::new(frame.body.clone()));
                    let mut second = Inbox::new(MAX_BODY_BYTES);
                    again.pieces().for_each(|piece| second.room().extend_from_slice(piece));
                    assert_eq!(second.next().ok().flatten(), Some(frame), "a frame changed");
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// Puts right the length and the checksum of each frame in `stream`.
fn seal_frames(stream: &mut [u8]) {
    let mut rest = stream;
    while rest.len() >= HEADER_BYTES {
        let most = (rest.len() - HEADER_BYTES).min(MAX_BODY_BYTES) as u32;
        let claimed = u32::from_le_bytes([rest[0], rest[1], 0, 0]).min(most);
        rest[..4].copy_from_slice(&claimed.to_le_bytes());
        let end = HEADER_BYTES + claimed as usize;
        let crc = crc32c([&rest[..20], &rest[HEADER_BYTES..end]]);
        rest[20..24].copy_from_slice(&crc.to_le_bytes());
        rest = &mut rest[end..];
    }
}

/// Decodes `bytes` as both messages of the handshake: as they are, and with magic, length and
/// checksum put right.
///
/// # Panics
/// When a decoded message does not survive being encoded again, or when more would be read of a
/// peer that speaks TLS than a record holds.
pub fn handshake(bytes: &[u8]) {
    decode_handshake(bytes);
    let fields = &bytes[..bytes.len().min(512)];
    decode_handshake(&hello::seal(fields));
}

fn decode_handshake(bytes: &[u8]) {
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_BYTES>() else { return };
    let length = match hello::length(prefix) {
        Ok(length) => length,
        Err(HandshakeError::TlsUnsupported) => {
            assert!(hello::rest_of_tls(prefix) < 1 << 15, "no more is read than TLS allows");
            return;
        }
        Err(_) => return,
    };
    let rest = &rest[..length.min(rest.len())];
    let split = |bytes: &Bytes| {
        let prefix: [u8; PREFIX_BYTES] = bytes[..PREFIX_BYTES].try_into().unwrap_or_default();
        (prefix, bytes.slice(PREFIX_BYTES..))
    };
    if let Ok(decoded) = Hello::decode(prefix, rest) {
        let (prefix, rest) = split(&decoded.encode().into());
        assert_eq!(Hello::decode(&prefix, &rest), Ok(decoded), "a hello changed");
    }
    if let Ok(decoded) = Reply::decode(prefix, rest) {
        let (prefix, rest) = split(&decoded.encode().into());
        assert_eq!(Reply::decode(&prefix, &rest), Ok(decoded), "a reply changed");
    }
}
