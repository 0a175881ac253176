//! nginx: `hash $key consistent` in an upstream.

use super::points::{Points, distinct};
use crate::error::BuildError;
use crate::hash::{crc32, crc32_begun};
use crate::owners::Owners;
use crate::partitioner::Partitioner;

const POINTS_PER_WEIGHT: u64 = 160;
const MAX_POINTS: u64 = 1 << 24;

/// One `server` line of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The id that lookups answer.
    pub id: u64,
    /// The address as the `server` line has it: `10.0.0.1:443`, `backend`, `[::1]:80`,
    /// `unix:/run/app.sock`. nginx hashes the text, so an omitted port is not the same as `:80`.
    pub address: String,
    /// The weight: at least 1.
    pub weight: u32,
}

impl Server {
    /// A server.
    pub fn new(id: u64, address: impl Into<String>, weight: u32) -> Self {
        Self { id, address: address.into(), weight }
    }

    /// The bytes that nginx hashes: host, a zero byte, port. The path of a Unix socket counts as
    /// the host; a port that is not configured is empty.
    fn hashed_name(&self) -> String {
        let scheme = self.address.split_at_checked("unix:".len());
        if let Some((_, path)) = scheme.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("unix:")) {
            return format!("{path}\0");
        }
        let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
        match self.address.rsplit_once(':') {
            Some((host, port)) if digits(port) => format!("{host}\0{port}"),
            _ => format!("{}\0", self.address),
        }
    }
}

/// The continuum of nginx's consistent hash: 160 points for each unit of weight, each the CRC-32 of
/// host, a zero byte, port, and the point before.
///
/// Source: `ngx_http_upstream_hash_module.c` as observed on nginx 1.22.
#[derive(Clone, Debug)]
pub struct Consistent {
    points: Points<u32>,
}

impl Consistent {
    /// The continuum of these servers, in the order of the configuration.
    ///
    /// # Errors
    /// [`BuildError::NoNodes`]; [`BuildError::Duplicate`] for an id or an address given twice;
    /// [`BuildError::OutOfRange`] for a weight of 0; [`BuildError::TooLarge`].
    pub fn new(servers: &[Server]) -> Result<Self, BuildError> {
        let names: Vec<String> = servers.iter().map(Server::hashed_name).collect();
        let named = servers.iter().zip(&names);
        distinct(named.clone().map(|(server, name)| (server.id, name.as_str())))?;
        if servers.iter().any(|server| server.weight == 0) {
            let (field, max) = ("weight", u32::MAX.into());
            return Err(BuildError::OutOfRange { field, value: 0, min: 1, max });
        }
        let points_of = |server: &Server| u64::from(server.weight) * POINTS_PER_WEIGHT;
        let wanted: u64 = servers.iter().map(points_of).sum();
        if wanted > MAX_POINTS {
            let what = "the continuum";
            return Err(BuildError::TooLarge { what, wanted, max: MAX_POINTS });
        }
        let mut points = Vec::with_capacity(wanted as usize);
        for (server, name) in named {
            let base = crc32_begun(name.as_bytes());
            let mut before = 0_u32;
            for _ in 0..points_of(server) {
                let mut digest = base.clone();
                digest.update(&before.to_le_bytes());
                before = digest.finalize();
                points.push((before, server.id));
            }
        }
        points.sort_by_key(|&(point, _)| point);
        points.dedup_by_key(|&mut (point, _)| point);
        Ok(Self { points: Points::new(points)? })
    }
}

impl Partitioner for Consistent {
    fn owner(&self, key: &[u8]) -> u64 {
        self.points.owner(crc32(key))
    }

    fn owners(&self, key: &[u8], n: usize) -> Owners {
        self.points.owners(crc32(key), n)
    }
}
