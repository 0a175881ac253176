//! The task of a node: it feeds the cores, and writes what they want written, one batch at a time.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::acceptors::{Acceptors, Output};
use super::meta::Meta;
use super::tree::{Digest, Tree};
use super::view::View;
use super::{NodeConfig, Status};
use crate::caller::Scope;
use crate::membership::Membership;
use crate::paxos::{self, Record};
use crate::region::Feed;
use crate::store::{Change, ReplicaStore, Serving, StoreError};
use crate::table::{Replica, ReplicaInput, ReplicaOutput, Reply, Request, Value};
use crate::version::codec::{self, Limits};
use crate::version::{Actor, DotSource};
use crate::wire::{Answer, Ask, Envelope, Space, decode_record, encode_record};

/// What the task is asked to do.
pub(super) enum Job {
    Answer {
        envelope: Envelope,
        reply: oneshot::Sender<Bytes>,
    },
    /// Merges states of keys that another replica holds into the node's own, as so many requests
    /// of one operation.
    Merge {
        states: Vec<(Bytes, Value)>,
        scope: Scope,
        done: oneshot::Sender<Merged>,
    },
    /// Merges records of other acceptors into a node that is not whole.
    Install {
        records: Vec<(Bytes, Record)>,
        done: oneshot::Sender<()>,
    },
    /// Writes a record of the node itself.
    Keep {
        change: Change,
        done: oneshot::Sender<()>,
    },
    LearnEpoch {
        epoch: u64,
        done: oneshot::Sender<()>,
    },
    /// A read beside the task has found the store damaged.
    Halt(StoreError),
    /// The node has all that a replica of this epoch of the membership must have.
    Rebuilt {
        epoch: u64,
        done: oneshot::Sender<()>,
    },
    /// Serve a later membership.
    Adopt {
        membership: Membership,
        done: oneshot::Sender<()>,
    },
}

/// What became of the states of a [`Job::Merge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merged {
    /// Their merges with those of the node are durable.
    Durable,
    /// Some may not have been looked at: try again.
    Busy,
    /// One was refused.
    Refused,
}

/// A [`Job::Merge`] that is under way.
struct Merging {
    /// How many of its states have no answer.
    left: usize,
    /// What became of the others.
    merged: Merged,
    done: oneshot::Sender<Merged>,
}

/// What the task tells the handles of its node. Both are durable when they are told.
pub(super) struct Told {
    pub(super) status: watch::Sender<Status>,
    pub(super) membership: watch::Sender<Arc<Membership>>,
}

type Write = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;
type Loaded = Result<Vec<(Bytes, Option<Bytes>)>, StoreError>;

/// What a change counts in [`ReplicaStore::max_batch_bytes`] beside its key and record.
const CHANGE_BYTES: usize = 32;

/// Who waits for an answer.
struct Waiter {
    reply: oneshot::Sender<Bytes>,
    max_answer_bytes: usize,
    /// The key that is written, if other regions are to be told.
    told: Option<Bytes>,
}

/// What a batch makes durable.
#[derive(Default)]
struct Batch {
    changes: Vec<Change>,
    bytes: usize,
    /// The latest record of the table.
    record: u64,
    acceptors: Vec<(Bytes, u64)>,
    /// What it writes of the node itself.
    meta: Option<Meta>,
    view: Option<View>,
    done: Vec<oneshot::Sender<()>>,
    /// Of the changes, once they are being written.
    digests: Vec<Digest>,
}

pub(super) struct Driver {
    store: Arc<dyn ReplicaStore>,
    _serving: Serving,
    tree: Arc<Tree>,
    max_batch_bytes: usize,
    /// Values of one record that a batch has room for.
    max_merged_bytes: usize,
    max_requests: usize,
    told: Told,
    /// As it will be when every write has ended, and as the store has it or is being told.
    meta: Meta,
    written_meta: Meta,
    durable_meta: Meta,
    /// As it will be when every write has ended, and as the store has it.
    view: View,
    durable_view: View,
    /// Memberships to serve, once no request of before waits for its record. Until then requests
    /// are answered "busy".
    adopting: Vec<(Membership, oneshot::Sender<()>)>,
    replica: Replica,
    acceptors: Acceptors,
    waiters: HashMap<u64, Waiter>,
    /// By the id that all requests of a job have in common.
    merging: HashMap<u64, Merging>,
    next_id: u64,
    /// Batches that are not yet being written, the first of them next.
    batches: std::collections::VecDeque<Batch>,
    writing: Option<(Write, Batch)>,
    loads: JoinSet<Loaded>,
    to_load: Vec<Bytes>,
    /// Whether the task is to write what it has accepted, and to end.
    stop: watch::Receiver<bool>,
    /// What other regions have not been told.
    feed: Option<Arc<Feed>>,
}

impl Driver {
    pub(super) fn new(
        (store, serving): (Arc<dyn ReplicaStore>, Serving),
        tree: Arc<Tree>,
        config: &NodeConfig,
        (meta, view): (Meta, View),
        told: Told,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let max_batch_bytes = config.max_batch_bytes.min(store.max_batch_bytes());
        let max_merged_bytes = store.max_batch_bytes().saturating_sub(super::RECORD_HEAD_BYTES);
        Self {
            store,
            _serving: serving,
            tree,
            max_batch_bytes,
            max_merged_bytes,
            max_requests: config.max_requests,
            told,
            meta,
            written_meta: meta,
            durable_meta: meta,
            durable_view: view.clone(),
            view,
            adopting: Vec::new(),
            replica: replica_of(&meta, max_merged_bytes),
            acceptors: Acceptors::default(),
            waiters: HashMap::new(),
            merging: HashMap::new(),
            next_id: 0,
            batches: std::collections::VecDeque::new(),
            writing: None,
            loads: JoinSet::new(),
            to_load: Vec::new(),
            stop,
            feed: None,
        }
    }

    /// Records what is written for the other regions.
    pub(super) fn with_feed(self, feed: Option<Arc<Feed>>) -> Self {
        Self { feed, ..self }
    }

    /// Ends when every handle to the node is gone, when the store fails, or when it is told to
    /// stop. The sender of the status is dropped last.
    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut taken = Vec::with_capacity(256);
        let (mut is_stopping, mut is_drained) = (false, false);
        loop {
            let event = tokio::select! {
                biased;
                result = written(&mut self.writing) => Event::Written(result),
                Some(loaded) = self.loads.join_next() => Event::Loaded(loaded.unwrap_or_else(
                    |_| Err(StoreError::Unknown("a read was abandoned".to_owned())))),
                true = is_told(&mut self.stop), if !is_stopping => Event::Stop,
                count = jobs.recv_many(&mut taken, 256), if !is_drained => Event::Jobs(count),
            };
            let result = match event {
                Event::Stop => {
                    // What is in the queue is carried out; nothing more comes into it.
                    jobs.close();
                    is_stopping = true;
                    Ok(())
                }
                Event::Jobs(0) if is_stopping => {
                    is_drained = true;
                    Ok(())
                }
                Event::Jobs(0) => return,
                Event::Jobs(_) => taken.drain(..).try_for_each(|job| self.job(job)),
                Event::Loaded(loaded) => loaded.and_then(|loaded| self.loaded(loaded)),
                Event::Written(result) => self.end_write(result),
            };
            if let Err(error) = result.and(self.pump().await) {
                let node = self.meta.node;
                tracing::error!(target: "voussoir::quorum", node, %error, "halted");
                self.told.status.send_replace(Status::Halted(error));
                return;
            }
            if is_drained
                && self.writing.is_none()
                && self.batches.is_empty()
                && self.loads.is_empty()
            {
                let status = self.told.status.clone();
                // The store is let go before the callers are told.
                drop((self, jobs));
                status.send_replace(Status::Stopped);
                return;
            }
        }
    }

    fn job(&mut self, job: Job) -> Result<(), StoreError> {
        match job {
            Job::Halt(error) => return Err(error),
            Job::Answer { envelope, reply } => self.answer(envelope, reply),
            Job::Merge { states, scope, done } => self.merge(states, &scope, done),
            Job::Keep { change, done } => self.add(change).done.push(done),
            Job::LearnEpoch { epoch, done } => {
                self.replica.learn_epoch(epoch);
                self.drain_replica();
                self.batch(0).done.push(done);
            }
            Job::Adopt { membership, done } => self.adopting.push((membership, done)),
            Job::Rebuilt { epoch, done } => {
                // What was copied as a replica of another epoch is not enough for this one.
                let is_same = self.view.membership.epoch() == epoch && self.adopting.is_empty();
                let is_member = self.view.joined != 0 && !self.view.is_removed(self.meta.node);
                if is_same && is_member && !self.meta.is_condemned && self.replica.epoch() > 0 {
                    self.replica.rebuilt();
                    self.meta.is_whole = self.replica.is_whole();
                    self.write_meta();
                }
                self.batch(0).done.push(done);
            }
            Job::Install { records, done } => {
                // Not whole: no acceptor of the node is in use, so the store is what counts.
                if !self.replica.is_whole() {
                    for (key, record) in records {
                        let change = Change {
                            key: store_key(Space::Registers, &key),
                            record: Some(encode_record(&record)),
                        };
                        self.add(change);
                    }
                }
                self.batch(0).done.push(done);
            }
        }
        Ok(())
    }

    fn answer(&mut self, envelope: Envelope, reply: oneshot::Sender<Bytes>) {
        let Envelope { max_answer_bytes, epoch, membership, ask } = envelope;
        if reply.is_closed() && is_beginning(&ask) {
            return; // Work for those that somebody waits for goes before it.
        }
        self.next_id += 1;
        let id = self.next_id;
        let is_full = self.waiters.len() >= self.max_requests;
        // What was merged is told by the region that has written it: there are no loops.
        let told = match &ask {
            Ask::Table(Request::Write { key, .. }) if self.feed.is_some() => Some(key.clone()),
            _ => None,
        };
        self.waiters.insert(id, Waiter { reply, max_answer_bytes, told });
        if is_full || !self.adopting.is_empty() {
            return self.reply(id, &Answer::Busy);
        }
        if self.view.membership.epoch() != 0 && self.view.membership.stamp() != membership {
            let membership = Membership::clone(&self.view.membership);
            let answer = Answer::Membership { membership, is_whole: false, is_ready: false };
            return self.reply(id, &answer);
        }
        match ask {
            Ask::Table(_) if self.view.is_removed(self.meta.node) => {
                self.reply(id, &Answer::Table(Reply::NotWhole));
            }
            Ask::Table(request) => {
                if self.replica.request_at(id, epoch, request).is_err() {
                    self.reply(id, &Answer::Busy);
                }
            }
            Ask::Register { request, .. } if !self.is_whole() => {
                let (paxos::Request::Prepare { ballot } | paxos::Request::Accept { ballot, .. }) =
                    request;
                self.reply(id, &Answer::Register(paxos::Reply::NotWhole { ballot }));
            }
            Ask::Register { request, .. } if !request.is_valid() => {
                self.reply(id, &Answer::Busy);
            }
            Ask::Register { key, request } => {
                if !self.acceptors.request(id, key, request) {
                    self.reply(id, &Answer::Busy);
                }
            }
            // Answered by the node's handle.
            Ask::Scan { .. } | Ask::Read { .. } | Ask::Compare { .. } | Ask::Membership { .. } => {
                self.reply(id, &Answer::Busy);
            }
        }
    }

    /// As so many requests to merge a state, with the same checks.
    fn merge(&mut self, states: Vec<(Bytes, Value)>, scope: &Scope, done: oneshot::Sender<Merged>) {
        let (own, asked) = (&self.view.membership, scope.membership.stamp());
        let is_of_another = own.epoch() != 0 && own.stamp() != asked;
        let refused = match &self.adopting[..] {
            [_, ..] => Some(Merged::Busy),
            [] if is_of_another || self.view.is_removed(self.meta.node) => Some(Merged::Refused),
            [] if states.is_empty() => Some(Merged::Durable),
            [] => None,
        };
        if let Some(refused) = refused {
            // Who asked may have gone.
            let _ = done.send(refused);
            return;
        }
        self.next_id += 1;
        let id = self.next_id;
        self.merging.insert(id, Merging { left: states.len(), merged: Merged::Durable, done });
        for (key, state) in states {
            let request = Request::Merge { key, state };
            if self.replica.request_at(id, scope.epoch, request).is_err() {
                self.merged(id, Merged::Busy);
            }
        }
    }

    /// One state of a job has been dealt with.
    fn merged(&mut self, id: u64, merged: Merged) {
        let std::collections::hash_map::Entry::Occupied(mut entry) = self.merging.entry(id) else {
            return;
        };
        let merging = entry.get_mut();
        merging.left -= 1;
        if merging.merged != Merged::Refused && merged != Merged::Durable {
            merging.merged = merged;
        }
        if merging.left == 0 {
            let Merging { merged, done, .. } = entry.remove();
            let _ = done.send(merged);
        }
    }

    fn reply(&mut self, id: u64, answer: &Answer) {
        let Some(waiter) = self.waiters.remove(&id) else {
            // A node that is not whole says so when what it merged is durable.
            let is_merged = matches!(answer, Answer::Table(Reply::NotWhole | Reply::Merged));
            return self.merged(id, if is_merged { Merged::Durable } else { Merged::Refused });
        };
        if let (Answer::Table(Reply::Written { .. }), Some(key), Some(feed)) =
            (answer, &waiter.told, &self.feed)
        {
            // Durable by now, and not yet acknowledged.
            feed.note(key);
        }
        // An epoch that a crash can take back is told nobody.
        let epoch = self.durable_meta.epoch;
        let mut bytes = answer.encode(epoch);
        if bytes.len() > waiter.max_answer_bytes {
            let is_written = matches!(answer, Answer::Table(Reply::Written { .. }));
            bytes = Answer::TooLong { is_written }.encode(epoch);
        }
        // Who asked may have gone.
        let _ = waiter.reply.send(bytes);
    }

    /// Carries out what the cores want until they want nothing more.
    async fn pump(&mut self) -> Result<(), StoreError> {
        // Ends: a turn without loads that were in memory is the last one.
        loop {
            self.drain_replica();
            self.drain_acceptors();
            if !self.load().await? {
                break;
            }
        }
        if !self.adopting.is_empty() && self.loads.is_empty() {
            self.adopt();
        }
        if self.meta != self.written_meta {
            self.write_meta();
        }
        if self.writing.is_none()
            && let Some(mut batch) = self.batches.pop_front()
        {
            let (store, changes) = (Arc::clone(&self.store), std::mem::take(&mut batch.changes));
            batch.digests = changes.iter().filter_map(|change| self.tree.digest(change)).collect();
            let write =
                async move { if changes.is_empty() { Ok(()) } else { store.apply(changes).await } };
            self.writing = Some((Box::pin(write), batch));
        }
        Ok(())
    }

    fn drain_replica(&mut self) {
        while let Some(output) = self.replica.poll_output() {
            match output {
                ReplicaOutput::Load { key } => self.to_load.push(store_key(Space::Table, &key)),
                ReplicaOutput::Persist { id, key, state, mark, .. } => {
                    let key = store_key(Space::Table, &key);
                    let record = Some(codec::encode_siblings(&state));
                    if let Some(mark) = mark {
                        // In the same batch as the record, or an earlier one.
                        self.meta.mark = mark;
                        self.write_meta();
                    }
                    self.add(Change { key, record }).record = id;
                }
                ReplicaOutput::Forget { id, key } => {
                    let key = store_key(Space::Table, &key);
                    self.add(Change { key, record: None }).record = id;
                }
                ReplicaOutput::PersistEpoch { id, epoch } => {
                    self.meta.epoch = epoch;
                    self.write_meta().record = id;
                }
                ReplicaOutput::Reply { id, reply } => self.reply(id, &Answer::Table(reply)),
            }
        }
        if self.replica.has_amnesia() && !self.meta.is_condemned {
            // It has met its own future. Only a new incarnation is whole again.
            self.meta.is_whole = false;
            self.meta.is_condemned = true;
            self.told.status.send_replace(Status::NotWhole { is_condemned: true });
        }
    }

    fn drain_acceptors(&mut self) {
        let mut outputs = Vec::new();
        self.acceptors.drain(|output| outputs.push(output));
        for output in outputs {
            match output {
                Output::Load { key } => self.to_load.push(store_key(Space::Registers, &key)),
                Output::Reply { id, reply } => self.reply(id, &Answer::Register(reply)),
                Output::Persist { key, id, record } => {
                    let record = Some(encode_record(&record));
                    let change = Change { key: store_key(Space::Registers, &key), record };
                    self.add(change).acceptors.push((key, id));
                }
            }
        }
    }

    fn write_meta(&mut self) -> &mut Batch {
        let meta = self.meta;
        self.written_meta = meta;
        let batch = self.add(meta.change());
        batch.meta = Some(meta);
        batch
    }

    /// Serves the latest of the memberships that were offered. Every request of an earlier epoch
    /// has been refused, or its record is in a batch that is written no later than this one: who
    /// reads the store once the membership is durable reads all that was ever acknowledged before.
    fn adopt(&mut self) {
        let adopting = std::mem::take(&mut self.adopting);
        let (offers, done): (Vec<_>, Vec<_>) = adopting.into_iter().unzip();
        let served = Arc::clone(&self.view.membership);
        let offers = offers.into_iter().filter(|offer| self.view.can_lead_to(offer));
        if let Some(latest) = offers.max_by_key(Membership::epoch)
            && latest.epoch() > served.epoch()
        {
            let (node, epoch) = (self.meta.node, latest.epoch());
            tracing::info!(target: "voussoir::quorum", node, epoch, "serves another membership");
            self.view = self.view.followed_by(latest, node);
            if self.view.is_removed(node) {
                // What it holds counts for nothing, also when the node is added again.
                self.meta.is_whole = false;
                self.meta.is_condemned = true;
                self.write_meta();
            }
            self.write_view();
        }
        self.batch(0).done.extend(done);
    }

    fn write_view(&mut self) {
        let view = self.view.clone();
        let batch = self.add(view.change());
        batch.view = Some(view);
    }

    fn is_whole(&self) -> bool {
        self.replica.is_whole() && !self.view.is_removed(self.meta.node)
    }

    /// Adds a change to the last batch, or to a new one if that has no room.
    fn add(&mut self, change: Change) -> &mut Batch {
        let record_bytes = change.record.as_ref().map_or(0, Bytes::len);
        let bytes = change.key.len() + record_bytes + CHANGE_BYTES;
        let batch = self.batch(bytes);
        batch.bytes += bytes;
        batch.changes.push(change);
        batch
    }

    fn batch(&mut self, bytes: usize) -> &mut Batch {
        let max = self.max_batch_bytes;
        if self.batches.back().is_none_or(|batch| batch.bytes > 0 && batch.bytes + bytes > max) {
            self.batches.push_back(Batch::default());
        }
        self.batches.back_mut().expect("a batch was pushed if there was none")
    }

    /// Reads what the cores asked for. Returns true if it was in memory and they have it.
    async fn load(&mut self) -> Result<bool, StoreError> {
        if self.to_load.is_empty() {
            return Ok(false);
        }
        let (store, keys) = (Arc::clone(&self.store), std::mem::take(&mut self.to_load));
        let mut read: Pin<Box<dyn Future<Output = Loaded> + Send>> = Box::pin(async move {
            let records = store.get(&keys).await?;
            Ok(keys.into_iter().zip(records).collect())
        });
        let now = std::future::poll_fn(|context| {
            std::task::Poll::Ready(match read.as_mut().poll(context) {
                std::task::Poll::Ready(loaded) => Some(loaded),
                std::task::Poll::Pending => None,
            })
        });
        if let Some(loaded) = now.await {
            self.loaded(loaded?)?;
            return Ok(true);
        }
        self.loads.spawn(read);
        Ok(false)
    }

    fn loaded(&mut self, loaded: Vec<(Bytes, Option<Bytes>)>) -> Result<(), StoreError> {
        for (store_key, record) in loaded {
            let key = store_key.slice(1..);
            let is_table = store_key.first() == Some(&Space::Table.prefix());
            let unreadable = |error: codec::DecodeError| {
                StoreError::Damaged(format!("the record of {key:?} cannot be read: {error}"))
            };
            if is_table {
                let decode = |bytes| codec::decode_siblings(bytes, &Limits::default());
                let state = record.map(decode).transpose().map_err(unreadable)?;
                self.replica.step(ReplicaInput::Loaded { key, state });
            } else {
                let record = record.map(decode_record).transpose().map_err(unreadable)?;
                self.acceptors.loaded(key, record);
            }
        }
        Ok(())
    }

    fn end_write(&mut self, result: Result<(), StoreError>) -> Result<(), StoreError> {
        let Some((_, batch)) = self.writing.take() else { return Ok(()) };
        match result {
            Ok(()) => {}
            Err(StoreError::NotApplied(reason)) => {
                self.begin_again(&reason);
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        self.tree.written(batch.digests);
        let is_told = batch.meta.is_some() || batch.view.is_some();
        let membership = batch.view.as_ref().map(|view| Arc::clone(&view.membership));
        self.durable_view = batch.view.unwrap_or_else(|| self.durable_view.clone());
        self.durable_meta = batch.meta.unwrap_or(self.durable_meta);
        if is_told {
            // A loss counts from when it is noticed, and not from when it is written.
            let (meta, is_condemned) = (self.durable_meta, self.meta.is_condemned);
            let meta = Meta { is_condemned, is_whole: meta.is_whole && !is_condemned, ..meta };
            let status = status_of(&meta, &self.durable_view);
            self.told.status.send_if_modified(|told| {
                let is_new = *told != status;
                *told = status;
                is_new
            });
        }
        // Last: who sees the membership sees what the node is in it.
        if let Some(membership) = membership {
            self.told.membership.send_replace(membership);
        }
        if batch.record > 0 {
            self.replica.step(ReplicaInput::Persisted { id: batch.record });
        }
        for (key, id) in batch.acceptors {
            self.acceptors.persisted(key, id);
        }
        for done in batch.done {
            let _ = done.send(());
        }
        Ok(())
    }

    /// Nothing of a batch was written: the disk is full. What waits for it is answered "busy",
    /// and the cores go on with what the store holds. Dots that were drawn are not drawn again.
    fn begin_again(&mut self, reason: &str) {
        tracing::warn!(target: "voussoir::quorum", node = self.meta.node, reason, "write refused");
        let Meta { is_condemned, .. } = self.meta;
        self.meta = self.durable_meta;
        self.meta.is_condemned |= is_condemned;
        self.meta.is_whole &= !is_condemned;
        self.written_meta = self.durable_meta;
        self.view = self.durable_view.clone();
        self.adopting.clear();
        self.batches.clear();
        self.to_load.clear();
        self.loads = JoinSet::new();
        self.acceptors = Acceptors::default();
        self.replica = replica_of(&self.meta, self.max_merged_bytes);
        let waiting: Vec<u64> = self.waiters.keys().copied().collect();
        for id in waiting {
            self.reply(id, &Answer::Busy);
        }
        for (_, merging) in self.merging.drain() {
            let _ = merging.done.send(Merged::Busy);
        }
    }
}

/// Whether a request begins an operation. Any other one finishes what others have a part of.
fn is_beginning(ask: &Ask) -> bool {
    let Ask::Table(request) = ask else {
        return matches!(ask, Ask::Register { request: paxos::Request::Prepare { .. }, .. });
    };
    matches!(request, Request::Get { .. } | Request::Digest { .. } | Request::Write { .. })
}

enum Event {
    Stop,
    Jobs(usize),
    Loaded(Loaded),
    Written(Result<(), StoreError>),
}

/// The end of the write under way; never if there is none.
async fn written(writing: &mut Option<(Write, Batch)>) -> Result<(), StoreError> {
    match writing {
        Some((write, _)) => write.await,
        None => std::future::pending().await,
    }
}

/// Waits until the node is told to stop. False: every handle is gone.
async fn is_told(stop: &mut watch::Receiver<bool>) -> bool {
    stop.wait_for(|is_told| *is_told).await.is_ok()
}

fn replica_of(meta: &Meta, max_merged_bytes: usize) -> Replica {
    let actor = Actor::new(meta.node, meta.incarnation);
    let dots = DotSource::recover(actor, meta.mark, []);
    let replica = Replica::on_store(dots, meta.is_whole).with_epoch(meta.epoch);
    replica.with_max_merged_bytes(max_merged_bytes)
}

pub(super) fn status_of(meta: &Meta, view: &View) -> Status {
    if view.is_removed(meta.node) {
        return Status::Removed { epoch: view.membership.epoch() };
    }
    if meta.is_whole { Status::Whole } else { Status::NotWhole { is_condemned: meta.is_condemned } }
}

pub(super) fn store_key(space: Space, key: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(1 + key.len());
    out.push(space.prefix());
    out.extend_from_slice(key);
    out.into()
}
