//! The PROXY protocol, versions 1 and 2: the addresses of a connection that a proxy has forwarded.
//!
//! Source: "The PROXY protocol, versions 1 & 2", HAProxy, revision of 2020-03-05.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

mod v1;
mod v2;

pub use v2::Tlv;

/// The longest header of version 1, with its line end.
pub const MAX_V1_BYTES: usize = 107;
/// The longest header of version 2: 16 bytes, and as many as its length field can say.
pub const MAX_V2_BYTES: usize = 16 + u16::MAX as usize;

/// What the header says of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Addresses {
    /// Nothing: a health check of the proxy (`LOCAL`), or a family that it does not know.
    Unknown,
    /// Source and destination of one family, over TCP.
    Tcp {
        /// The client.
        source: SocketAddr,
        /// The address that the client connected to.
        destination: SocketAddr,
    },
    /// Source and destination of one family, over UDP. Only version 2 knows it.
    Udp {
        /// The client.
        source: SocketAddr,
        /// The address that the client sent to.
        destination: SocketAddr,
    },
    /// Paths of UNIX sockets, padded with zeros. Only version 2 knows them.
    Unix {
        /// The client's path.
        source: Box<[u8; 108]>,
        /// The path that the client connected to.
        destination: Box<[u8; 108]>,
        /// Whether the socket is a datagram socket.
        datagram: bool,
    },
}

/// A header of either version.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProxyHeader {
    /// The addresses. [`Addresses::Unknown`] stands for those of the connection itself.
    pub addresses: Addresses,
    /// Whether the proxy opened the connection for itself (`LOCAL`, a health check). Version 1
    /// does not tell.
    pub local: bool,
    /// Extension fields of version 2, without the checksum.
    pub tlvs: Vec<Tlv>,
}

/// The version in which a header is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyVersion {
    /// One line of text.
    V1,
    /// Binary.
    #[default]
    V2,
}

/// A header that is not one. The connection must be closed: what follows cannot be located.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyHeaderError {
    /// The connection begins with something else.
    #[error("the connection does not begin with a PROXY header")]
    Missing,
    /// The header breaks a rule of its version.
    #[error("PROXY header of version {version}: {rule}")]
    Malformed {
        /// 1 or 2.
        version: u8,
        /// The rule.
        rule: &'static str,
    },
    /// The header is longer than the receiver accepts.
    #[error("the PROXY header has {len} bytes, at most {max} are accepted")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
}

/// How far a decoder got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded<T> {
    /// The bytes are a proper beginning, and more are needed.
    Incomplete,
    /// The value, and how many bytes at the beginning it took.
    Complete(T, usize),
}

fn malformed(version: u8, rule: &'static str) -> ProxyHeaderError {
    ProxyHeaderError::Malformed { version, rule }
}

impl ProxyHeader {
    /// A header for a TCP connection. Addresses of different families are both written as IPv6,
    /// the IPv4 one mapped; an IPv4 address that is mapped to IPv6 is written as IPv4.
    pub fn tcp(source: SocketAddr, destination: SocketAddr) -> Self {
        let (source, destination) = one_family(source, destination);
        Self { addresses: Addresses::Tcp { source, destination }, local: false, tlvs: Vec::new() }
    }

    /// A header that says nothing of the connection.
    pub fn unknown() -> Self {
        Self { addresses: Addresses::Unknown, local: false, tlvs: Vec::new() }
    }

    /// The client, if the header names one by an IP address.
    pub fn source(&self) -> Option<SocketAddr> {
        match self.addresses {
            Addresses::Tcp { source, .. } | Addresses::Udp { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Decodes the header at the beginning of `bytes`, which may be followed by anything.
    ///
    /// `max_bytes` bounds a header of version 2; one of version 1 has at most [`MAX_V1_BYTES`].
    /// A decoder that is called for each arrival of bytes does little work twice: version 1 is at
    /// most 107 bytes, and version 2 tells its length in the first 16.
    ///
    /// # Errors
    /// As soon as the bytes cannot be the beginning of a header.
    pub fn decode(bytes: &[u8], max_bytes: usize) -> Result<Decoded<Self>, ProxyHeaderError> {
        if bytes.is_empty() {
            return Ok(Decoded::Incomplete);
        }
        if is_beginning(bytes, v2::SIGNATURE) {
            v2::decode(bytes, max_bytes)
        } else if is_beginning(bytes, v1::PREFIX) {
            v1::decode(bytes)
        } else {
            Err(ProxyHeaderError::Missing)
        }
    }

    /// The bytes of the header. Version 1 writes what it cannot express as `UNKNOWN`.
    ///
    /// # Panics
    /// If version 2 is asked to carry more than 65,535 bytes of extension fields.
    pub fn encode(&self, version: ProxyVersion) -> Vec<u8> {
        match version {
            ProxyVersion::V1 => v1::encode(self),
            ProxyVersion::V2 => v2::encode(self),
        }
    }
}

/// Whether one of the two is the beginning of the other.
fn is_beginning(bytes: &[u8], whole: &[u8]) -> bool {
    let len = bytes.len().min(whole.len());
    bytes[..len] == whole[..len]
}

fn one_family(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    let (from, to) = (source.ip().to_canonical(), destination.ip().to_canonical());
    let (from, to) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V6(to)) => (from.to_ipv6_mapped().into(), to.into()),
        (IpAddr::V6(from), IpAddr::V4(to)) => (from.into(), to.to_ipv6_mapped().into()),
        same => same,
    };
    (SocketAddr::new(from, source.port()), SocketAddr::new(to, destination.port()))
}

/// Both addresses if they are of version 4.
fn both_v4(source: SocketAddr, destination: SocketAddr) -> Option<(Ipv4Addr, Ipv4Addr)> {
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Some((source, destination)),
        _ => None,
    }
}

/// The address as one of version 6.
fn as_v6(address: SocketAddr) -> Ipv6Addr {
    match address.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}
