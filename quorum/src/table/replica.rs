//! The keys of one node.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::{Reply, Request};
use crate::version::codec::Limits;
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
    /// The answer to [`ReplicaOutput::Load`].
    Loaded {
        /// The key.
        key: Bytes,
        /// Its durable state; none if there is no record.
        state: Option<Siblings<Bytes>>,
    },
}

/// What a [`Replica`] wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplicaOutput {
    /// Read the record of a key and report [`ReplicaInput::Loaded`]. Only of a replica that was
    /// made by [`Replica::on_store`].
    Load {
        /// The key.
        key: Bytes,
    },
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
    /// Remove the record of a collected tombstone, sync, and report [`ReplicaInput::Persisted`].
    /// The ids are those of [`ReplicaOutput::Persist`].
    Forget {
        /// Rises by one with each record.
        id: u64,
        /// The key.
        key: Bytes,
    },
    /// Write the epoch that [`Replica::with_epoch`] is given after a restart, sync, and report
    /// [`ReplicaInput::Persisted`]. The ids are those of [`ReplicaOutput::Persist`].
    PersistEpoch {
        /// Rises by one with each record.
        id: u64,
        /// The epoch.
        epoch: u64,
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

/// The replica of a table at one node. Records go to the disk before they are answered, and no
/// read shows what is not durable.
///
/// A replica that was made by [`Replica::recover`] holds all keys in memory. One made by
/// [`Replica::on_store`] holds a key from its request until its record is durable, and asks for
/// the record of any other by [`ReplicaOutput::Load`].
///
/// A failed write of a record stops the replica: drop it, and recover a new one.
#[derive(Clone, Debug)]
pub struct Replica {
    dots: DotSource,
    /// States as they will be when every write has ended. On a store: those that are needed.
    keys: BTreeMap<Bytes, Resident>,
    /// Whether `keys` are all keys.
    holds_all: bool,
    is_whole: bool,
    /// It has met dots of its own store that it has not given out.
    has_amnesia: bool,
    max_merged_bytes: usize,
    /// Requests of an epoch before the previous one are refused. 0: not known, after a loss.
    epoch: u64,
    /// A mark that goes with the next record. Dots below it have been drawn, and none was seen.
    mark: Option<u64>,
    /// The id of the latest record.
    latest: u64,
    /// Every record up to this one is durable. Invariant: at most `latest`.
    durable: u64,
    outputs: VecDeque<ReplicaOutput>,
    /// Requests that wait for the state of their key, by key.
    loading: BTreeMap<Bytes, Vec<(u64, Request)>>,
    /// How many they are.
    waiting: usize,
    /// Answers by the record that must be durable first, and then in the order of the requests.
    gated: BTreeMap<(u64, u64), (u64, Reply)>,
    next_gated: u64,
    /// Keys on a store, with their records, in ascending order of the records.
    to_release: VecDeque<(u64, Bytes)>,
}

/// The state of a key, as it will be when every write has ended.
#[derive(Clone, Debug)]
struct Resident {
    state: Siblings<Bytes>,
    /// The record that holds it; 0 if it is durable.
    record: u64,
}

impl Replica {
    /// Answers that may wait for the disk.
    pub const MAX_WAITING: usize = 65_536;
    /// Values of one key. A write that would exceed it is refused; a merge is not.
    pub const MAX_SIBLINGS: usize = 64;
    /// Length of all values of a key together, in bytes: a write that would exceed it is refused.
    /// One value of this length is what [`codec::Limits`](crate::version::codec::Limits) reads
    /// back by default.
    pub const MAX_VALUE_BYTES: usize = 1 << 20;
    /// Length of all values of a key together, in bytes: a merge that would exceed it is refused,
    /// so that a state fits into a message and a record. The replicas of the key then differ until
    /// a client has merged its siblings.
    pub const MAX_MERGED_BYTES: usize = 8 << 20;
    /// The epoch of a table from which no tombstone was ever collected.
    pub const FIRST_EPOCH: u64 = 1;

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
        let resident = |(key, state)| (key, Resident { state, record: 0 });
        let keys: BTreeMap<Bytes, Resident> = records.into_iter().map(resident).collect();
        let actor = dots.actor();
        let own = keys.values().map(|key| key.state.context().get(actor));
        dots.skip_to(own.max().unwrap_or(0));
        Self { keys, holds_all: true, ..Self::on_store(dots, is_whole) }
    }

    /// A replica whose records stay on the store, which reads them when it is asked to. The mark
    /// of the source must be durable with or before each record that has a dot below it.
    pub fn on_store(dots: DotSource, is_whole: bool) -> Self {
        Self {
            dots,
            keys: BTreeMap::new(),
            holds_all: false,
            is_whole,
            has_amnesia: false,
            max_merged_bytes: Self::MAX_MERGED_BYTES,
            epoch: Self::FIRST_EPOCH,
            mark: None,
            latest: 0,
            durable: 0,
            outputs: VecDeque::new(),
            loading: BTreeMap::new(),
            waiting: 0,
            gated: BTreeMap::new(),
            next_gated: 0,
            to_release: VecDeque::new(),
        }
    }

    /// The replica with the epoch that its disk holds. 0 if that is not known: the disk was lost.
    #[must_use]
    pub fn with_epoch(self, epoch: u64) -> Self {
        Self { epoch, ..self }
    }

    /// The replica with a lower limit than [`Replica::MAX_MERGED_BYTES`]: what its store can write
    /// at once.
    #[must_use]
    pub(crate) fn with_max_merged_bytes(self, max: usize) -> Self {
        Self { max_merged_bytes: max.min(Self::MAX_MERGED_BYTES), ..self }
    }

    /// Whether the replica counts in R and W.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The epoch; 0 if it is not known.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Declares the replica rebuilt: it holds every acknowledged write. The caller has waited for
    /// the table's `timeout` since the replica was recovered, so that every operation has ended
    /// that may have counted an acknowledgement of the lost store, and has then merged all keys of
    /// at least N - W + 1 other whole replicas. A replica that noticed that its own past was lost
    /// is recovered under a new incarnation first: one of its old dots may be where it did not
    /// look. Until then this does nothing, and a restart begins without `is_whole` again.
    pub fn rebuilt(&mut self) {
        self.is_whole |= !self.has_amnesia;
    }

    /// Whether it noticed that its own past was lost, before or after it was whole.
    pub(crate) fn has_amnesia(&self) -> bool {
        self.has_amnesia
    }

    /// The keys in memory and their states, in ascending order, as they will be when every write
    /// has ended.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, &Siblings<Bytes>)> {
        self.keys.iter().map(|(key, resident)| (key, &resident.state))
    }

    /// Takes a request of the replica's own epoch. Its answer comes as [`ReplicaOutput::Reply`]
    /// with the same id.
    ///
    /// # Errors
    /// [`ReplicaRejected`]: too many answers wait for the disk.
    pub fn request(&mut self, id: u64, request: Request) -> Result<(), ReplicaRejected> {
        self.request_at(id, self.epoch, request)
    }

    /// Takes a request of an operation that began in the epoch `epoch`. Its answer comes as
    /// [`ReplicaOutput::Reply`] with the same id; [`Reply::Stale`] if the operation is so old that
    /// it may carry what was deleted and collected since.
    ///
    /// # Errors
    /// [`ReplicaRejected`]: too many answers wait for the disk.
    pub fn request_at(
        &mut self,
        id: u64,
        epoch: u64,
        request: Request,
    ) -> Result<(), ReplicaRejected> {
        if self.gated.len() + self.waiting >= Self::MAX_WAITING {
            return Err(ReplicaRejected { max: Self::MAX_WAITING });
        }
        if let Request::Epoch { epoch } = request {
            self.epoch_request(id, epoch);
            return Ok(());
        }
        if epoch.saturating_add(1) < self.epoch {
            // Who asked goes on in that epoch: it is told when it is durable.
            self.reply(id, self.latest, Reply::Stale { epoch: self.epoch });
            return Ok(());
        }
        let is_merge = matches!(request, Request::Merge { .. });
        if !self.is_whole && (!is_merge || self.epoch == 0) {
            // What a lost store merges before it knows the epoch may have been collected.
            self.reply(id, 0, Reply::NotWhole);
            return Ok(());
        }
        let key = request.key().cloned().unwrap_or_default();
        if self.holds_all || self.keys.contains_key(&key) {
            self.answer(id, &key, request);
            return Ok(());
        }
        self.waiting += 1;
        if let Some(requests) = self.loading.get_mut(&key) {
            requests.push((id, request));
        } else {
            self.loading.insert(key.clone(), vec![(id, request)]);
            self.outputs.push_back(ReplicaOutput::Load { key });
        }
        Ok(())
    }

    /// Takes an input.
    pub fn step(&mut self, input: ReplicaInput) {
        match input {
            ReplicaInput::Persisted { id } => {
                self.durable = self.durable.max(id.min(self.latest));
                self.release();
            }
            ReplicaInput::Loaded { key, state } => {
                let Some(requests) = self.loading.remove(&key) else { return };
                self.waiting -= requests.len();
                let resident = Resident { state: state.unwrap_or_default(), record: 0 };
                self.keys.insert(key.clone(), resident);
                for (id, request) in requests {
                    self.answer(id, &key, request);
                }
                if self.keys.get(&key).is_some_and(|resident| resident.record == 0) {
                    self.keys.remove(&key);
                }
            }
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<ReplicaOutput> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        let (record, _) = *self.gated.first_key_value()?.0;
        if record > self.durable {
            return None;
        }
        let (_, (id, reply)) = self.gated.pop_first()?;
        Some(ReplicaOutput::Reply { id, reply })
    }

    /// Forgets the states that the store holds.
    fn release(&mut self) {
        while let Some((record, _)) = self.to_release.front()
            && *record <= self.durable
        {
            let Some((record, key)) = self.to_release.pop_front() else { return };
            if self.keys.get(&key).is_some_and(|resident| resident.record == record) {
                self.keys.remove(&key);
            }
        }
    }

    /// Answers when the record `record` is durable.
    fn reply(&mut self, id: u64, record: u64, reply: Reply) {
        self.next_gated += 1;
        self.gated.insert((record, self.next_gated), (id, reply));
    }

    /// Answers a request whose key is in memory.
    fn answer(&mut self, id: u64, key: &Bytes, request: Request) {
        let reply = match request {
            Request::Merge { state, .. } => self.merge(key, state),
            _ if !self.is_whole => Reply::NotWhole,
            Request::Get { .. } => Reply::Value { state: self.state(key) },
            Request::Digest { digester, .. } => {
                let state = self.state(key);
                match digester.digest(&state) {
                    Some(digest) => Reply::Digest { digest },
                    None => Reply::Value { state },
                }
            }
            Request::Write { seen, value, .. } => self.write(key, &seen, value),
            Request::Forget { context, .. } => self.forget(key, &context),
            Request::Epoch { .. } => Reply::Refused,
        };
        let record = self.keys.get(key).map_or(0, |resident| resident.record);
        self.reply(id, record, reply);
    }

    fn state(&self, key: &Bytes) -> Siblings<Bytes> {
        self.keys.get(key).map(|resident| resident.state.clone()).unwrap_or_default()
    }

    /// Raises the epoch to one that another replica has. A replica whose disk was lost learns it
    /// from the replicas that it is rebuilt from, before it merges anything.
    pub fn learn_epoch(&mut self, epoch: u64) {
        if epoch > self.epoch && epoch <= Dot::MAX_COUNTER {
            self.epoch = epoch;
            self.latest += 1;
            self.outputs.push_back(ReplicaOutput::PersistEpoch { id: self.latest, epoch });
        }
    }

    fn epoch_request(&mut self, id: u64, epoch: u64) {
        if self.is_whole {
            self.learn_epoch(epoch);
            self.reply(id, self.latest, Reply::Epoch { epoch: self.epoch });
        } else {
            self.reply(id, 0, Reply::NotWhole);
        }
    }

    fn merge(&mut self, key: &Bytes, state: Siblings<Bytes>) -> Reply {
        self.notice_amnesia(&state);
        let empty = Siblings::new();
        let own = self.keys.get(key).map_or(&empty, |resident| &resident.state);
        if !own.includes(&state) {
            let mut merged = own.clone();
            merged.merge(state);
            if bytes_of(&merged) > self.max_merged_bytes || !is_readable(&merged) {
                return Reply::Refused;
            }
            self.persist(key, merged);
        }
        if self.is_whole { Reply::Merged } else { Reply::NotWhole }
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
            self.has_amnesia = true;
            self.dots.skip_to(own);
        }
    }

    fn write(&mut self, key: &Bytes, seen: &VersionVector, value: Option<Bytes>) -> Reply {
        if seen.get(self.dots.actor()) >= self.dots.next_counter() {
            return Reply::Refused;
        }
        if value.as_ref().is_some_and(|value| value.len() > Self::MAX_VALUE_BYTES) {
            return Reply::Refused;
        }
        let mut state = self.state(key);
        match value {
            None => {
                state.delete(seen);
                // Nothing was there that it covers: a record would be no tombstone, and stay.
                if self.keys.get(key).map_or(state == Siblings::new(), |own| own.state == state) {
                    return Reply::Written { state };
                }
            }
            Some(value) => {
                let Some(dot) = self.draw() else { return Reply::Refused };
                let is_put = state.put(seen, dot, value).is_ok();
                let is_short = bytes_of(&state) <= Self::MAX_VALUE_BYTES;
                if !is_put || !is_short || state.len() > Self::MAX_SIBLINGS {
                    return Reply::Refused;
                }
            }
        }
        if !is_readable(&state) {
            return Reply::Refused;
        }
        self.persist(key, state.clone());
        Reply::Written { state }
    }

    /// Drops a tombstone that every replica holds, if the key was not written since.
    fn forget(&mut self, key: &Bytes, context: &VersionVector) -> Reply {
        let state = self.state(key);
        if state.is_tombstone() && state.context() == context {
            self.latest += 1;
            self.outputs.push_back(ReplicaOutput::Forget { id: self.latest, key: key.clone() });
            if self.holds_all {
                self.keys.remove(key);
            } else {
                self.hold(key, Siblings::new());
            }
        }
        Reply::Merged
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

    fn persist(&mut self, key: &Bytes, state: Siblings<Bytes>) {
        self.latest += 1;
        let (id, mark, is_whole) = (self.latest, self.mark.take(), self.is_whole);
        self.hold(key, state.clone());
        let key = key.clone();
        self.outputs.push_back(ReplicaOutput::Persist { id, key, state, mark, is_whole });
    }

    /// The state of the key will be `state` when the latest record is durable.
    fn hold(&mut self, key: &Bytes, state: Siblings<Bytes>) {
        self.keys.insert(key.clone(), Resident { state, record: self.latest });
        if !self.holds_all {
            self.to_release.push_back((self.latest, key.clone()));
        }
    }
}

/// Whether the decoder reads the state back: a record that it refuses would stop the node.
fn is_readable(state: &Siblings<Bytes>) -> bool {
    let Limits { max_actors, max_siblings, max_value_bytes } = Limits::default();
    state.context().len() <= max_actors
        && state.len() <= max_siblings
        && state.values().all(|value| value.len() <= max_value_bytes)
}

/// Length of all values together.
fn bytes_of(state: &Siblings<Bytes>) -> usize {
    state.values().map(Bytes::len).sum()
}
