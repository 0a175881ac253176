//! libketama: the consistent hashing of memcached clients.

use super::points::{Points, distinct};
use crate::error::BuildError;
use crate::hash::md5;
use crate::owners::Owners;
use crate::partitioner::Partitioner;

const MAX_SERVERS: usize = 65_535;

/// One line of `ketama.servers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The id that lookups answer.
    pub id: u64,
    /// The address as libketama hashes it, such as `10.0.1.1:11211`.
    pub address: String,
    /// The memory, in any unit, as libketama weighs it: at least 1.
    pub memory: u32,
}

impl Server {
    /// A server.
    pub fn new(id: u64, address: impl Into<String>, memory: u32) -> Self {
        Self { id, address: address.into(), memory }
    }
}

/// The continuum of libketama: point for point, and key for key.
///
/// Each server gets `floor(memory share * 40 * servers)` MD5 digests of `address-number`, four
/// points of four little-endian bytes each. The share is computed in single precision, as there.
///
/// Source: `libketama/ketama.c` of RJ/ketama.
#[derive(Clone, Debug)]
pub struct Ketama {
    points: Points<u32>,
}

/// The position of a key: the first four bytes of its MD5, little-endian.
pub fn hash(key: &[u8]) -> u32 {
    four(&md5(key), 0)
}

fn four(digest: &[u8; 16], nth: usize) -> u32 {
    let at = 4 * nth;
    u32::from_le_bytes([digest[at], digest[at + 1], digest[at + 2], digest[at + 3]])
}

impl Ketama {
    /// The continuum of these servers, in the order of their file.
    ///
    /// # Errors
    /// [`BuildError::NoNodes`]; [`BuildError::Duplicate`] for an id or an address given twice;
    /// [`BuildError::OutOfRange`] for a memory of 0; [`BuildError::TooLarge`].
    pub fn new(servers: &[Server]) -> Result<Self, BuildError> {
        if servers.len() > MAX_SERVERS {
            let (wanted, max) = (servers.len() as u64, MAX_SERVERS as u64);
            return Err(BuildError::TooLarge { what: "the list of servers", wanted, max });
        }
        distinct(servers.iter().map(|server| (server.id, server.address.as_str())))?;
        if servers.iter().any(|server| server.memory == 0) {
            let (field, max) = ("memory", u32::MAX.into());
            return Err(BuildError::OutOfRange { field, value: 0, min: 1, max });
        }
        let total: u64 = servers.iter().map(|server| u64::from(server.memory)).sum();
        let mut points = Vec::with_capacity(servers.len() * 160);
        for server in servers {
            let share = server.memory as f32 / total as f32;
            // `pct * 40.0 * (float)servers` is a double that floorf takes as a float.
            let digests = (f64::from(share) * 40.0 * servers.len() as f64) as f32;
            for number in 0..digests.floor() as u32 {
                let digest = md5(format!("{}-{number}", server.address).as_bytes());
                points.extend((0..4).map(|nth| (four(&digest, nth), server.id)));
            }
        }
        points.sort_by_key(|&(point, _)| point);
        Ok(Self { points: Points::new(points)? })
    }

    /// The point of the continuum that a key falls to, and its server.
    pub fn point(&self, key: &[u8]) -> (u32, u64) {
        self.points.get(hash(key))
    }

    /// The points in order, with their servers.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u32, u64)> {
        self.points.iter()
    }
}

impl Partitioner for Ketama {
    fn owner(&self, key: &[u8]) -> u64 {
        self.points.owner(hash(key))
    }

    fn owners(&self, key: &[u8], n: usize) -> Owners {
        self.points.owners(hash(key), n)
    }
}
