//! The handshake: who dials says who it is and whom it means, who accepts agrees or refuses.
//!
//! Both messages have the shape `magic, length, fields, crc`; the README of the crate lists the
//! fields.

use super::{VERSION, array, crc32c};
use crate::{Class, Refusal};

const MAGIC: [u8; 8] = *b"voussoir";
/// Of magic and length.
pub(crate) const PREFIX_BYTES: usize = 10;
const CRC_BYTES: usize = 4;
const HELLO_FIELDS_BYTES: usize = 52;
const REPLY_FIELDS_BYTES: usize = 20;
/// The longest that is read of a handshake, prefix not counted: room for later versions.
const LENGTH_MAX: usize = 1024;

/// The first message, from who dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) version_min: u16,
    pub(crate) version_max: u16,
    pub(crate) class: Class,
    pub(crate) cluster: u128,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) nonce: u64,
    pub(crate) body_bytes_max: u32,
}

/// The answer, from who accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) result: Result<u16, Refusal>,
    pub(crate) version_min: u16,
    pub(crate) version_max: u16,
    pub(crate) nonce: u64,
    pub(crate) body_bytes_max: u32,
}

/// How many bytes follow a prefix.
pub(crate) fn length(prefix: &[u8; PREFIX_BYTES]) -> Result<usize, Refusal> {
    let length = u16::from_le_bytes(array(prefix, 8)) as usize;
    if prefix[..8] != MAGIC || !(CRC_BYTES..=LENGTH_MAX).contains(&length) {
        return Err(Refusal::Malformed);
    }
    Ok(length)
}

/// Checks what follows a prefix and returns its fields.
fn fields<'a>(prefix: &[u8], rest: &'a [u8], known: usize) -> Result<&'a [u8], Refusal> {
    let split = rest.len().checked_sub(CRC_BYTES).ok_or(Refusal::Malformed)?;
    let (fields, crc) = rest.split_at(split);
    let expected = crc32c([prefix, fields]);
    if u32::from_le_bytes(array(crc, 0)) != expected || fields.len() < known {
        return Err(Refusal::Malformed);
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
        fields[0..2].copy_from_slice(&self.version_min.to_le_bytes());
        fields[2..4].copy_from_slice(&self.version_max.to_le_bytes());
        fields[4] = match self.class {
            Class::Small => 0,
            Class::Bulk => 1,
        };
        fields[8..24].copy_from_slice(&self.cluster.to_le_bytes());
        fields[24..32].copy_from_slice(&self.from.to_le_bytes());
        fields[32..40].copy_from_slice(&self.to.to_le_bytes());
        fields[40..48].copy_from_slice(&self.nonce.to_le_bytes());
        fields[48..52].copy_from_slice(&self.body_bytes_max.to_le_bytes());
        seal(&fields)
    }

    /// An unknown class, and nothing else, is `Refusal::Class`.
    pub(crate) fn decode(prefix: &[u8; PREFIX_BYTES], rest: &[u8]) -> Result<Self, Refusal> {
        let fields = fields(prefix, rest, HELLO_FIELDS_BYTES)?;
        Ok(Self {
            version_min: u16::from_le_bytes(array(fields, 0)),
            version_max: u16::from_le_bytes(array(fields, 2)),
            class: match fields.get(4) {
                Some(0) => Class::Small,
                Some(1) => Class::Bulk,
                _ => return Err(Refusal::Class),
            },
            cluster: u128::from_le_bytes(array(fields, 8)),
            from: u64::from_le_bytes(array(fields, 24)),
            to: u64::from_le_bytes(array(fields, 32)),
            nonce: u64::from_le_bytes(array(fields, 40)),
            body_bytes_max: u32::from_le_bytes(array(fields, 48)),
        })
    }

    /// The highest version that both sides speak, or the refusal.
    pub(crate) fn version(&self) -> Result<u16, Refusal> {
        let (min, max) = (self.version_min, self.version_max);
        if (min..=max).contains(&VERSION) {
            Ok(VERSION)
        } else {
            Err(Refusal::Version { min, max })
        }
    }
}

impl Reply {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (code, version) = match self.result {
            Ok(version) => (0, version),
            Err(refusal) => (code(refusal), 0),
        };
        let mut fields = [0; REPLY_FIELDS_BYTES];
        fields[0..2].copy_from_slice(&code.to_le_bytes());
        fields[2..4].copy_from_slice(&version.to_le_bytes());
        fields[4..6].copy_from_slice(&self.version_min.to_le_bytes());
        fields[6..8].copy_from_slice(&self.version_max.to_le_bytes());
        fields[8..16].copy_from_slice(&self.nonce.to_le_bytes());
        fields[16..20].copy_from_slice(&self.body_bytes_max.to_le_bytes());
        seal(&fields)
    }

    pub(crate) fn decode(prefix: &[u8; PREFIX_BYTES], rest: &[u8]) -> Result<Self, Refusal> {
        let fields = fields(prefix, rest, REPLY_FIELDS_BYTES)?;
        let version = u16::from_le_bytes(array(fields, 2));
        let result = match u16::from_le_bytes(array(fields, 0)) {
            0 => Ok(version),
            code => Err(refusal(code)),
        };
        Ok(Self {
            result,
            version_min: u16::from_le_bytes(array(fields, 4)),
            version_max: u16::from_le_bytes(array(fields, 6)),
            nonce: u64::from_le_bytes(array(fields, 8)),
            body_bytes_max: u32::from_le_bytes(array(fields, 16)),
        })
    }
}

fn code(refusal: Refusal) -> u16 {
    match refusal {
        Refusal::Malformed => 1,
        Refusal::TimedOut => 2,
        Refusal::Version { .. } => 3,
        Refusal::Cluster => 4,
        Refusal::Recipient => 5,
        Refusal::SameId => 6,
        Refusal::Class => 7,
        Refusal::TooMany => 8,
        Refusal::Closing => 9,
        Refusal::Other(code) => code,
    }
}

/// The one who is refused knows its own versions.
fn refusal(code: u16) -> Refusal {
    match code {
        1 => Refusal::Malformed,
        2 => Refusal::TimedOut,
        3 => Refusal::Version { min: VERSION, max: VERSION },
        4 => Refusal::Cluster,
        5 => Refusal::Recipient,
        6 => Refusal::SameId,
        7 => Refusal::Class,
        8 => Refusal::TooMany,
        9 => Refusal::Closing,
        other => Refusal::Other(other),
    }
}
