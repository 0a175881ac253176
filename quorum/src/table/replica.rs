//! The keys of one node.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::{Reply, Request};
use crate::version::{Dot, DotError, DotSource, Siblings, VersionVector};

/// What happens to a [`Replica`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ReplicaInput {
    /// Everything up to this [`ReplicaOutput::Persist`] is durable.
    Persisted {
        /// The id of the write.
        id: u64,
    },
}

/// What a [`Replica`] wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplicaOutput {
    /// Write the record and the mark together, sync, and report [`ReplicaInput::Persisted`].
    /// Several may be written with one sync.
    Persist {
        /// Rises by one with each record.
        id: u64,
        /// The key.
        key: Bytes,
        /// Its whole state, which replaces an earlier record.
        state: Siblings<Bytes>,
        /// A new mark for the dots of this store.
        mark: Option<u64>,
        /// Whether the replica is whole. Kept with the record: [`Replica::recover`] is given what
        /// the latest one says, so that a restart does not forget a loss that was noticed.
        is_whole: bool,
    },
    /// Answer a request.
    Reply {
        /// The request's id, as it was given to [`Replica::request`].
        id: u64,
        /// The answer.
        reply: Reply,
    },
}

/// Too many requests wait for the disk. The request was not looked at; retry later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{max} answers wait for the disk; retry later")]
pub struct ReplicaRejected {
    /// How many may wait.
    pub max: usize,
}

/// The replica of a table at one node. All keys are held in memory; records go to the disk before
/// they are answered, and no read shows what is not durable.
///
/// A failed write of a record stops the replica: drop it, and recover a new one.
#[derive(Clone, Debug)]
pub struct Replica {
    dots: DotSource,
    /// As they will be when every write has ended.
    keys: BTreeMap<Bytes, Siblings<Bytes>>,
    is_whole: bool,
    /// A mark that goes with the next record. Dots below it have been drawn, and none was seen.
    mark: Option<u64>,
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
    /// Values of one key. A write that would exceed it is refused; a merge is not.
    pub const MAX_SIBLINGS: usize = 64;
    /// Length of a value, in bytes: what [`codec::Limits`](crate::version::codec::Limits) reads
    /// back by default. A longer one is refused.
    pub const MAX_VALUE_BYTES: usize = 1 << 20;

    /// A replica that goes on with the records of its disk, and with the dots of a source that was
    /// recovered from the durable mark. The dots of the records are noted here.
    ///
    /// `is_whole` is false if the store may miss anything that it once acknowledged: it is empty on
    /// a node that was part of the table, restored from a backup, or damaged. The source's actor
    /// must then have a new incarnation.
    pub fn recover(
        mut dots: DotSource,
        records: impl IntoIterator<Item = (Bytes, Siblings<Bytes>)>,
        is_whole: bool,
    ) -> Self {
        let keys: BTreeMap<_, _> = records.into_iter().collect();
        let actor = dots.actor();
        let own = keys.values().map(|state: &Siblings<Bytes>| state.context().get(actor));
        dots.skip_to(own.max().unwrap_or(0));
        let (persists, gated) = (VecDeque::new(), VecDeque::new());
        Self { dots, keys, is_whole, mark: None, latest: 0, durable: 0, persists, gated }
    }

    /// Whether the replica counts in R and W.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Declares the replica rebuilt: it holds every acknowledged write. The caller has waited for
    /// the table's `timeout` since the replica was recovered, so that every operation has ended
    /// that may have counted an acknowledgement of the lost store, and has then merged all keys of
    /// at least N - W + 1 other whole replicas. A replica that noticed that its own past was lost
    /// is recovered under a new incarnation first: one of its old dots may be where it did not
    /// look. Until then a restart begins without `is_whole` again.
    pub fn rebuilt(&mut self) {
        self.is_whole = true;
    }

    /// The keys and their states, in ascending order, as they will be when every write has ended.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, &Siblings<Bytes>)> {
        self.keys.iter()
    }

    /// Takes a request. Its answer comes as [`ReplicaOutput::Reply`] with the same id.
    ///
    /// # Errors
    /// [`ReplicaRejected`]: too many answers wait for the disk.
    pub fn request(&mut self, id: u64, request: Request) -> Result<(), ReplicaRejected> {
        if self.gated.len() >= Self::MAX_WAITING {
            return Err(ReplicaRejected { max: Self::MAX_WAITING });
        }
        let reply = match request {
            Request::Merge { key, state } => {
                self.notice_amnesia(&state);
                let own = self.keys.get(&key);
                if !own.is_some_and(|own| own.includes(&state)) {
                    let mut merged = own.cloned().unwrap_or_default();
                    merged.merge(state);
                    self.persist(key, merged);
                }
                if self.is_whole { Reply::Merged } else { Reply::NotWhole }
            }
            _ if !self.is_whole => Reply::NotWhole,
            Request::Get { key } => {
                Reply::Value { state: self.keys.get(&key).cloned().unwrap_or_default() }
            }
            Request::Write { key, seen, value } => self.write(key, &seen, value),
        };
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

    /// A dot of this store that it has not given out: the store has lost a part of its past and
    /// kept its incarnation. It no longer counts, and gives out none of those dots again.
    fn notice_amnesia(&mut self, state: &Siblings<Bytes>) {
        // The dot of a value was drawn by a replica; an entry of the context may be a client's
        // word.
        let actor = self.dots.actor();
        let own = state.iter().map(|(dot, _)| dot).filter(|dot| dot.actor == actor);
        let own = own.map(|dot| dot.counter).max().unwrap_or(0);
        if own >= self.dots.next_counter() {
            self.is_whole = false;
            self.dots.skip_to(own);
        }
    }

    fn write(&mut self, key: Bytes, seen: &VersionVector, value: Option<Bytes>) -> Reply {
        if seen.get(self.dots.actor()) >= self.dots.next_counter() {
            return Reply::Refused;
        }
        if value.as_ref().is_some_and(|value| value.len() > Self::MAX_VALUE_BYTES) {
            return Reply::Refused;
        }
        let mut state = self.keys.get(&key).cloned().unwrap_or_default();
        match value {
            None => state.delete(seen),
            Some(value) => {
                let Some(dot) = self.draw() else { return Reply::Refused };
                if state.put(seen, dot, value).is_err() || state.len() > Self::MAX_SIBLINGS {
                    return Reply::Refused;
                }
            }
        }
        self.persist(key, state.clone());
        Reply::Written { state }
    }

    fn draw(&mut self) -> Option<Dot> {
        match self.dots.draw() {
            Ok(dot) => Some(dot),
            Err(DotError::MarkNeeded { mark }) => {
                // The mark becomes durable with the write's record, before anyone sees the dot.
                self.mark = Some(mark);
                self.dots.mark_persisted(mark);
                self.dots.draw().ok()
            }
            Err(DotError::Exhausted) => None,
        }
    }

    fn persist(&mut self, key: Bytes, state: Siblings<Bytes>) {
        self.latest += 1;
        let (id, mark, is_whole) = (self.latest, self.mark.take(), self.is_whole);
        self.keys.insert(key.clone(), state.clone());
        self.persists.push_back(ReplicaOutput::Persist { id, key, state, mark, is_whole });
    }
}
