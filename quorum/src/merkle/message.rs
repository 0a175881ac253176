//! What replicas ask each other about their trees, and how much at once.

use bytes::Bytes;

use crate::ConfigError;

/// Configuration of a [`MerkleTree`](super::MerkleTree), the same at all replicas of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MerkleConfig {
    /// Levels below the root, each 16 times as wide as the one above: 16^depth buckets. From 1 to
    /// 6. Default 4: 65,536 buckets, 15 keys each for 1,000,000 keys. The sums of all levels take
    /// 1.1 MiB with a depth of 4, and 273 MiB with 6.
    pub depth: u8,
    /// Nodes of one question, each answered with 256 bytes. From 1 to 4,096. Default 64.
    pub max_nodes: usize,
    /// Entries of one answer, 32 bytes each. From 1 to 65,536. Default 512.
    pub max_entries: usize,
    /// Keys of one question. From 1 to 4,096. Default 64.
    pub max_keys: usize,
    /// Length of a key that a peer may name, in bytes. From 1 to 65,536. Default 4,096.
    pub max_key_bytes: usize,
    /// Differing keys that one [`Exchange`](super::Exchange) collects before it stops. The next one
    /// finds the rest. From 1 to 1,000,000. Default 10,000.
    pub max_differing: usize,
}

impl Default for MerkleConfig {
    fn default() -> Self {
        Self {
            depth: 4,
            max_nodes: 64,
            max_entries: 512,
            max_keys: 64,
            max_key_bytes: 4_096,
            max_differing: 10_000,
        }
    }
}

impl MerkleConfig {
    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let rules = [
            ("depth", (1..=6).contains(&self.depth), "must be from 1 to 6"),
            ("max_nodes", (1..=4_096).contains(&self.max_nodes), "must be from 1 to 4,096"),
            ("max_entries", (1..=65_536).contains(&self.max_entries), "must be from 1 to 65,536"),
            ("max_keys", (1..=4_096).contains(&self.max_keys), "must be from 1 to 4,096"),
            (
                "max_key_bytes",
                (1..=65_536).contains(&self.max_key_bytes),
                "must be from 1 to 65,536",
            ),
            (
                "max_differing",
                (1..=1_000_000).contains(&self.max_differing),
                "must be from 1 to 1,000,000",
            ),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, rule)) => Err(ConfigError { field, rule }),
            None => Ok(()),
        }
    }
}

/// A node of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId {
    /// 0: the root.
    pub level: u8,
    /// Its place in the level: 0 to 16^level - 1.
    pub at: u32,
}

/// A key, by its hash, and the digest of its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// The hash of the key.
    pub id: u128,
    /// The digest of its state.
    pub digest: u128,
}

/// What an [`Exchange`](super::Exchange) asks the peer. Asking again changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Question {
    /// The sums of the children of nodes.
    Sums {
        /// At most `max_nodes`.
        nodes: Vec<NodeId>,
    },
    /// The entries of a bucket.
    Entries {
        /// The bucket.
        bucket: u32,
        /// The id behind which to begin; none: at the first one.
        after: Option<u128>,
    },
    /// The keys of entries that the peer named.
    Keys {
        /// At most `max_keys`.
        ids: Vec<u128>,
    },
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// For each node that was asked for, the sums of its 16 children.
    Sums {
        /// In the order of the question.
        sums: Vec<[u128; 16]>,
    },
    /// Entries of the bucket, strictly ascending by id.
    Entries {
        /// At most `max_entries`.
        entries: Vec<Entry>,
        /// Whether the bucket has none behind these.
        is_last: bool,
    },
    /// For each id that was asked for, the key; none: it is no longer there.
    Keys {
        /// In the order of the question.
        keys: Vec<Option<Bytes>>,
    },
}
