//! Cassandra: tokens of the Murmur3 partitioner.

use super::points::Points;
use crate::error::BuildError;
use crate::hash::murmur3_cassandra;
use crate::owners::Owners;
use crate::partitioner::Partitioner;

/// The token of a partition key as `SELECT token(key)` shows it.
///
/// # Example
/// ```
/// use voussoir_ring::compat::cassandra::token;
/// assert_eq!(token(b"123"), -7468325962851647638);
/// assert_eq!(token(b""), i64::MIN); // the minimum token, which no other key has
/// ```
///
/// Source: `Murmur3Partitioner.getToken` of Apache Cassandra.
pub fn token(key: &[u8]) -> i64 {
    if key.is_empty() {
        return i64::MIN;
    }
    match murmur3_cassandra(key) {
        i64::MIN => i64::MAX,
        token => token,
    }
}

/// The ring of a cluster by its tokens: a key belongs to the node of the first token at or after
/// its own, and its replicas are the next different nodes, as `SimpleStrategy` has it.
#[derive(Clone, Debug)]
pub struct TokenRing {
    points: Points<i64>,
}

impl TokenRing {
    /// A ring of tokens and their nodes, in any order.
    ///
    /// # Errors
    /// [`BuildError::NoNodes`], [`BuildError::Duplicate`] for a token given twice.
    pub fn new(tokens: impl IntoIterator<Item = (i64, u64)>) -> Result<Self, BuildError> {
        let mut points: Vec<(i64, u64)> = tokens.into_iter().collect();
        points.sort_unstable();
        if let Some(pair) = points.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(BuildError::Duplicate(format!("token {}", pair[0].0)));
        }
        Ok(Self { points: Points::new(points)? })
    }
}

impl Partitioner for TokenRing {
    fn owner(&self, key: &[u8]) -> u64 {
        self.points.owner(token(key))
    }

    fn owners(&self, key: &[u8], n: usize) -> Owners {
        self.points.owners(token(key), n)
    }
}
