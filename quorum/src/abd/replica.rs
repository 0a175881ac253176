//! The registers of one node.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::{Reply, Request, Versioned};

/// What happens to a [`Replica`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ReplicaInput {
    /// Everything up to this [`ReplicaOutput::Persist`] is durable.
    Persisted {
        /// The id of the record.
        id: u64,
    },
}

/// What a [`Replica`] wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplicaOutput {
    /// Write the record, sync, and report [`ReplicaInput::Persisted`]. Several may be written with
    /// one sync.
    Persist {
        /// Rises by one with each record.
        id: u64,
        /// The register.
        key: Bytes,
        /// What it holds, which replaces an earlier record.
        versioned: Versioned,
    },
    /// Answer a request.
    Reply {
        /// The request's id, as it was given to [`Replica::request`].
        id: u64,
        /// The answer.
        reply: Reply,
    },
}

/// Too many requests wait for the disk. The request was not looked at; send it again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{max} answers wait for the disk; retry later")]
pub struct ReplicaRejected {
    /// How many may wait.
    pub max: usize,
}

/// The replica of the registers at one node. All are held in memory. A request is answered when
/// every record that it depends on is durable.
///
/// A failed write of a record stops the replica: drop it, and recover a new one.
#[derive(Clone, Debug)]
pub struct Replica {
    /// As they will be when every write has ended.
    registers: BTreeMap<Bytes, Versioned>,
    is_whole: bool,
    /// The id of the latest record.
    latest: u64,
    /// Every record up to this one is durable. Invariant: at most `latest`.
    durable: u64,
    persists: VecDeque<ReplicaOutput>,
    /// Answers, each with the record that must be durable first, in ascending order of records.
    gated: VecDeque<(u64, u64, Reply)>,
}

impl Replica {
    /// Answers that may wait for the disk.
    pub const MAX_WAITING: usize = 65_536;
    /// Length of a value, in bytes. A longer one is discarded, as if the request had been lost.
    pub const MAX_VALUE_BYTES: usize = 1 << 20;

    /// A replica that goes on with the records of its disk. `is_whole` is false if they may miss
    /// anything that the node once acknowledged: the disk is empty on a node that held registers,
    /// was restored from a backup, or is damaged.
    pub fn recover(records: impl IntoIterator<Item = (Bytes, Versioned)>, is_whole: bool) -> Self {
        let registers = records.into_iter().collect();
        let (persists, gated) = (VecDeque::new(), VecDeque::new());
        Self { registers, is_whole, latest: 0, durable: 0, persists, gated }
    }

    /// Whether the replica counts in majorities.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Declares the replica rebuilt. The caller has waited for the registers' `timeout` since the
    /// replica was recovered, so that every operation has ended that may have counted an answer of
    /// the lost disk, has then stored here what at least half of all replicas, rounded up, hold
    /// that are whole, and the records are durable.
    pub fn rebuilt(&mut self) {
        self.is_whole = true;
    }

    /// The registers, in ascending order of keys, as they will be when every write has ended.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, &Versioned)> {
        self.registers.iter()
    }

    /// Takes a request. Its answer comes as [`ReplicaOutput::Reply`] with the same id. A value that
    /// no coordinator sends (an invalid tag, too long) is discarded without an answer.
    ///
    /// # Errors
    /// [`ReplicaRejected`]: too many answers wait for the disk.
    pub fn request(&mut self, id: u64, request: Request) -> Result<(), ReplicaRejected> {
        if self.gated.len() >= Self::MAX_WAITING {
            return Err(ReplicaRejected { max: Self::MAX_WAITING });
        }
        let reply = match request {
            Request::Get { key } => {
                let versioned = self.registers.get(&key).cloned().unwrap_or(Versioned::NONE);
                Reply::Value { versioned }
            }
            Request::Store { key, versioned } => {
                let len = versioned.value.as_ref().map_or(0, Bytes::len);
                if !versioned.tag.is_valid() || len > Self::MAX_VALUE_BYTES {
                    return Ok(());
                }
                self.store(key, versioned);
                Reply::Stored
            }
        };
        let reply = if self.is_whole { reply } else { Reply::NotWhole };
        self.gated.push_back((self.latest, id, reply));
        Ok(())
    }

    /// Takes an input.
    pub fn step(&mut self, input: ReplicaInput) {
        let ReplicaInput::Persisted { id } = input;
        self.durable = self.durable.max(id.min(self.latest));
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<ReplicaOutput> {
        if let Some(persist) = self.persists.pop_front() {
            return Some(persist);
        }
        if self.gated.front()?.0 > self.durable {
            return None;
        }
        let (_, id, reply) = self.gated.pop_front()?;
        Some(ReplicaOutput::Reply { id, reply })
    }

    fn store(&mut self, key: Bytes, versioned: Versioned) {
        let own = self.registers.get(&key).map_or(super::Tag::NONE, |own| own.tag);
        if versioned.tag <= own {
            return;
        }
        self.latest += 1;
        let id = self.latest;
        self.registers.insert(key.clone(), versioned.clone());
        self.persists.push_back(ReplicaOutput::Persist { id, key, versioned });
    }
}
