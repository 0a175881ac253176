//! The handshake: who dials says who it is and whom it means, who accepts agrees or rejects.
//!
//! Both messages have the shape `magic, length, fields, crc`; the README of the crate lists the
//! fields.

use super::{VERSION, array, crc32c};
use crate::{Class, HandshakeError};

pub(crate) const MAGIC: [u8; 8] = *b"voussoir";
/// Of magic and length.
pub(crate) const PREFIX_BYTES: usize = 10;
const CRC_BYTES: usize = 4;
const HELLO_FIELDS_BYTES: usize = 52;
const REPLY_FIELDS_BYTES: usize = 24;
/// Of the fields that every version has. Those behind them are zero where a reply ends before.
const MIN_REPLY_FIELDS_BYTES: usize = 20;
/// The longest that is read of a handshake, prefix not counted: room for later versions.
const MAX_LENGTH: usize = 1024;

/// The first message, from who dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) min_version: u16,
    pub(crate) max_version: u16,
    pub(crate) class: Class,
    pub(crate) cluster: u128,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) nonce: u64,
    pub(crate) max_body_bytes: u32,
}

/// The answer, from who accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) result: Result<u16, HandshakeError>,
    pub(crate) min_version: u16,
    pub(crate) max_version: u16,
    pub(crate) nonce: u64,
    pub(crate) max_body_bytes: u32,
    /// How long the dialler may be silent; 0 where it is not told.
    pub(crate) dead_after_ms: u32,
}

/// The longest record of TLS, with its header.
const MAX_TLS_BYTES: usize = 5 + (1 << 14);

/// How many bytes follow a prefix of a TLS record, as far as TLS allows.
pub(crate) fn rest_of_tls(prefix: &[u8; PREFIX_BYTES]) -> usize {
    let [high, low] = array(prefix, 3);
    let record_bytes = 5 + usize::from(u16::from_be_bytes([high, low]));
    record_bytes.min(MAX_TLS_BYTES).saturating_sub(PREFIX_BYTES)
}

/// How many bytes follow a prefix. A prefix of TLS is `HandshakeError::TlsUnsupported`.
pub(crate) fn length(prefix: &[u8; PREFIX_BYTES]) -> Result<usize, HandshakeError> {
    if prefix[..2] == [0x16, 3] {
        return Err(HandshakeError::TlsUnsupported);
    }
    let length = u16::from_le_bytes(array(prefix, 8)) as usize;
    if prefix[..8] != MAGIC || !(CRC_BYTES..=MAX_LENGTH).contains(&length) {
        return Err(HandshakeError::Malformed);
    }
    Ok(length)
}

/// Checks what follows a prefix and returns its fields.
fn fields<'a>(prefix: &[u8], rest: &'a [u8], known: usize) -> Result<&'a [u8], HandshakeError> {
    let split = rest.len().checked_sub(CRC_BYTES).ok_or(HandshakeError::Malformed)?;
    let (fields, crc) = rest.split_at(split);
    let expected = crc32c([prefix, fields]);
    if u32::from_le_bytes(array(crc, 0)) != expected || fields.len() < known {
        return Err(HandshakeError::Malformed);
    }
    Ok(fields)
}

pub(crate) fn seal(fields: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + fields.len() + CRC_BYTES);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&((fields.len() + CRC_BYTES) as u16).to_le_bytes());
    bytes.extend_from_slice(fields);
    let crc = crc32c([&bytes[..]]);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

impl Hello {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut fields = [0; HELLO_FIELDS_BYTES];
        fields[0..2].copy_from_slice(&self.min_version.to_le_bytes());
        fields[2..4].copy_from_slice(&self.max_version.to_le_bytes());
        fields[4] = match self.class {
            Class::Small => 0,
            Class::Bulk => 1,
        };
        fields[8..24].copy_from_slice(&self.cluster.to_le_bytes());
        fields[24..32].copy_from_slice(&self.from.to_le_bytes());
        fields[32..40].copy_from_slice(&self.to.to_le_bytes());
        fields[40..48].copy_from_slice(&self.nonce.to_le_bytes());
        fields[48..52].copy_from_slice(&self.max_body_bytes.to_le_bytes());
        seal(&fields)
    }

    /// An unknown class, and nothing else, is `HandshakeError::Class`.
    pub(crate) fn decode(prefix: &[u8; PREFIX_BYTES], rest: &[u8]) -> Result<Self, HandshakeError> {
        let fields = fields(prefix, rest, HELLO_FIELDS_BYTES)?;
        Ok(Self {
            min_version: u16::from_le_bytes(array(fields, 0)),
            max_version: u16::from_le_bytes(array(fields, 2)),
            class: match fields.get(4) {
                Some(0) => Class::Small,
                Some(1) => Class::Bulk,
                _ => return Err(HandshakeError::Class),
            },
            cluster: u128::from_le_bytes(array(fields, 8)),
            from: u64::from_le_bytes(array(fields, 24)),
            to: u64::from_le_bytes(array(fields, 32)),
            nonce: u64::from_le_bytes(array(fields, 40)),
            max_body_bytes: u32::from_le_bytes(array(fields, 48)),
        })
    }

    /// The highest version that both sides speak, or the rejection.
    pub(crate) fn version(&self) -> Result<u16, HandshakeError> {
        let (min, max) = (self.min_version, self.max_version);
        if (min..=max).contains(&VERSION) {
            Ok(VERSION)
        } else {
            Err(HandshakeError::Version { min, max })
        }
    }
}

impl Reply {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (code, version) = match self.result {
            Ok(version) => (0, version),
            Err(error) => (code(error), 0),
        };
        let mut fields = [0; REPLY_FIELDS_BYTES];
        fields[0..2].copy_from_slice(&code.to_le_bytes());
        fields[2..4].copy_from_slice(&version.to_le_bytes());
        fields[4..6].copy_from_slice(&self.min_version.to_le_bytes());
        fields[6..8].copy_from_slice(&self.max_version.to_le_bytes());
        fields[8..16].copy_from_slice(&self.nonce.to_le_bytes());
        fields[16..20].copy_from_slice(&self.max_body_bytes.to_le_bytes());
        fields[20..24].copy_from_slice(&self.dead_after_ms.to_le_bytes());
        seal(&fields)
    }

    pub(crate) fn decode(prefix: &[u8; PREFIX_BYTES], rest: &[u8]) -> Result<Self, HandshakeError> {
        let fields = fields(prefix, rest, MIN_REPLY_FIELDS_BYTES)?;
        let version = u16::from_le_bytes(array(fields, 2));
        let result = match u16::from_le_bytes(array(fields, 0)) {
            0 => Ok(version),
            code => Err(error_of(code)),
        };
        Ok(Self {
            result,
            min_version: u16::from_le_bytes(array(fields, 4)),
            max_version: u16::from_le_bytes(array(fields, 6)),
            nonce: u64::from_le_bytes(array(fields, 8)),
            max_body_bytes: u32::from_le_bytes(array(fields, 16)),
            dead_after_ms: u32::from_le_bytes(array(fields, 20)),
        })
    }
}

fn code(error: HandshakeError) -> u16 {
    match error {
        HandshakeError::Malformed => 1,
        HandshakeError::TimedOut => 2,
        HandshakeError::Version { .. } => 3,
        HandshakeError::Cluster => 4,
        HandshakeError::Recipient => 5,
        HandshakeError::SameId => 6,
        HandshakeError::Class => 7,
        HandshakeError::TooMany => 8,
        HandshakeError::Closing => 9,
        HandshakeError::TlsRequired => 10,
        HandshakeError::TlsUnsupported => 11,
        HandshakeError::Identity | HandshakeError::Tls(_) => 12,
        HandshakeError::Superseded => 13,
        HandshakeError::Other(code) => code,
    }
}

/// The one who is rejected knows its own versions.
fn error_of(code: u16) -> HandshakeError {
    match code {
        1 => HandshakeError::Malformed,
        2 => HandshakeError::TimedOut,
        3 => HandshakeError::Version { min: VERSION, max: VERSION },
        4 => HandshakeError::Cluster,
        5 => HandshakeError::Recipient,
        6 => HandshakeError::SameId,
        7 => HandshakeError::Class,
        8 => HandshakeError::TooMany,
        9 => HandshakeError::Closing,
        10 => HandshakeError::TlsRequired,
        11 => HandshakeError::TlsUnsupported,
        12 => HandshakeError::Identity,
        13 => HandshakeError::Superseded,
        other => HandshakeError::Other(other),
    }
}
