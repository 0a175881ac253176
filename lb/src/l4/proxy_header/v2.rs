//! Version 2: a signature of 12 bytes, a command, a family, a length, addresses, extension fields.
//! All numbers are big-endian.

use std::net::{IpAddr, SocketAddr};

use super::{Addresses, Decoded, ProxyHeader, ProxyHeaderError, as_v6, both_v4};

pub(super) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const FIXED: usize = 16;
const TYPE_CRC32C: u8 = 0x03;

/// An extension field of version 2.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tlv {
    /// The type, such as 1 (ALPN) or 2 (authority: the server's name).
    pub kind: u8,
    /// The value.
    pub value: Vec<u8>,
}

impl Tlv {
    /// A field.
    pub fn new(kind: u8, value: impl Into<Vec<u8>>) -> Self {
        Self { kind, value: value.into() }
    }
}

fn malformed(rule: &'static str) -> ProxyHeaderError {
    super::malformed(2, rule)
}

pub(super) fn decode(
    bytes: &[u8],
    max_bytes: usize,
) -> Result<Decoded<ProxyHeader>, ProxyHeaderError> {
    let Some(fixed) = bytes.first_chunk::<FIXED>() else {
        let command = bytes.get(12).is_none_or(|&byte| matches!(byte, 0x20 | 0x21));
        return if command { Ok(Decoded::Incomplete) } else { Err(malformed(COMMAND)) };
    };
    let local = match fixed[12] {
        0x20 => true,
        0x21 => false,
        _ => return Err(malformed(COMMAND)),
    };
    let len = FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if len > max_bytes {
        return Err(ProxyHeaderError::TooLong { len, max: max_bytes });
    }
    let Some(whole) = bytes.get(..len) else { return Ok(Decoded::Incomplete) };
    let (addresses, rest) = addresses(fixed[13], &whole[FIXED..])?;
    let tlvs = extensions(whole, rest)?;
    // The receiver of LOCAL must use the connection's own addresses, whatever the header says.
    let addresses = if local { Addresses::Unknown } else { addresses };
    Ok(Decoded::Complete(ProxyHeader { addresses, local, tlvs }, len))
}

const COMMAND: &str = "the version must be 2, and the command LOCAL or PROXY";

/// The addresses, and what follows them.
fn addresses(family: u8, body: &[u8]) -> Result<(Addresses, &[u8]), ProxyHeaderError> {
    let short = || malformed("the length must cover the addresses of the family");
    let (first, rest) = match family {
        0x11 | 0x12 => {
            let (raw, rest) = body.split_first_chunk::<12>().ok_or_else(short)?;
            let [a, b, c, d, e, f, g, h, ..] = *raw;
            (pair([a, b, c, d].into(), [e, f, g, h].into(), &raw[8..]), rest)
        }
        0x21 | 0x22 => {
            let (raw, rest) = body.split_first_chunk::<36>().ok_or_else(short)?;
            let half = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&raw[at..at + 16]);
                IpAddr::from(octets)
            };
            (pair(half(0), half(16), &raw[32..]), rest)
        }
        0x31 | 0x32 => {
            let (source, rest) = body.split_first_chunk::<108>().ok_or_else(short)?;
            let (destination, rest) = rest.split_first_chunk::<108>().ok_or_else(short)?;
            let (source, destination) = (Box::new(*source), Box::new(*destination));
            let datagram = family == 0x32;
            return Ok((Addresses::Unix { source, destination, datagram }, rest));
        }
        // Unspecified, or a family of the future: only the length is known.
        _ => return Ok((Addresses::Unknown, &[])),
    };
    let (source, destination) = first;
    let addresses = if family & 0x0F == 1 {
        Addresses::Tcp { source, destination }
    } else {
        Addresses::Udp { source, destination }
    };
    Ok((addresses, rest))
}

fn pair(source: IpAddr, destination: IpAddr, ports: &[u8]) -> (SocketAddr, SocketAddr) {
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    (SocketAddr::new(source, port(0)), SocketAddr::new(destination, port(2)))
}

/// The extension fields in `rest`, the end of `whole`. A checksum among them is verified.
fn extensions(whole: &[u8], mut rest: &[u8]) -> Result<Vec<Tlv>, ProxyHeaderError> {
    let mut tlvs = Vec::new();
    let mut is_checked = false;
    // Ends: each round takes three bytes or more.
    while !rest.is_empty() {
        let short = || malformed("the length must cover the extension fields");
        let (&[kind, high, low], after) = rest.split_first_chunk::<3>().ok_or_else(short)?;
        let len = usize::from(u16::from_be_bytes([high, low]));
        let (value, after) = after.split_at_checked(len).ok_or_else(short)?;
        if kind == TYPE_CRC32C {
            let at = whole.len() - after.len() - len;
            if is_checked || !is_checksum(whole, at, value) {
                return Err(malformed("the checksum must be that of the header, and only one"));
            }
            is_checked = true;
        } else {
            tlvs.push(Tlv { kind, value: value.to_vec() });
        }
        rest = after;
    }
    Ok(tlvs)
}

/// Whether `value`, which stands at `at`, is the checksum of `whole` with zeros in its place.
fn is_checksum(whole: &[u8], at: usize, value: &[u8]) -> bool {
    let Some(&expected) = value.first_chunk::<4>().filter(|_| value.len() == 4) else {
        return false;
    };
    let crc = crc32c::crc32c(&whole[..at]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &whole[at + 4..]) == u32::from_be_bytes(expected)
}

pub(super) fn encode(header: &ProxyHeader) -> Vec<u8> {
    let mut body = Vec::with_capacity(64);
    let family = match &header.addresses {
        Addresses::Unknown => 0x00,
        Addresses::Tcp { source, destination } => 0x01 | put_ip(&mut body, *source, *destination),
        Addresses::Udp { source, destination } => 0x02 | put_ip(&mut body, *source, *destination),
        Addresses::Unix { source, destination, datagram } => {
            body.extend_from_slice(&source[..]);
            body.extend_from_slice(&destination[..]);
            if *datagram { 0x32 } else { 0x31 }
        }
    };
    // Behind an unspecified family receivers skip everything.
    let tlvs: &[Tlv] = if family == 0 { &[] } else { &header.tlvs };
    for tlv in tlvs {
        let len =
            u16::try_from(tlv.value.len()).expect("an extension field of at most 65535 bytes");
        body.push(tlv.kind);
        body.extend_from_slice(&len.to_be_bytes());
        body.extend_from_slice(&tlv.value);
    }
    let len = u16::try_from(body.len()).expect("addresses and extension fields of 65535 bytes");
    let mut bytes = Vec::with_capacity(FIXED + body.len());
    bytes.extend_from_slice(SIGNATURE);
    bytes.push(if header.local { 0x20 } else { 0x21 });
    bytes.push(family);
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// Writes addresses and ports. Returns the family in the upper four bits.
fn put_ip(body: &mut Vec<u8>, source: SocketAddr, destination: SocketAddr) -> u8 {
    let family = match both_v4(source, destination) {
        Some((source, destination)) => {
            body.extend_from_slice(&source.octets());
            body.extend_from_slice(&destination.octets());
            0x10
        }
        None => {
            body.extend_from_slice(&as_v6(source).octets());
            body.extend_from_slice(&as_v6(destination).octets());
            0x20
        }
    };
    body.extend_from_slice(&source.port().to_be_bytes());
    body.extend_from_slice(&destination.port().to_be_bytes());
    family
}
