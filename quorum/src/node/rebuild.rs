//! Rebuilding a node whose store was lost, from the other replicas.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};

use super::driver::{Job, Merged, store_key};
use super::{Node, Status};
use crate::caller::Scope;
use crate::link::{Class, Link};
use crate::membership::{Lack, Membership, Seen, Sources, sources_of};
use crate::pace::Pace;
use crate::paxos::Record;
use crate::store::StoreError;
use crate::table::{Reply, Request};
use crate::version::codec::{self, Limits};
use crate::wire::{Answer, Ask, Space, decode_record, encode_record};

/// How long one page may take to arrive.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of the time until a page has arrived counts as work of its source. What is beyond it is
/// the way of the messages.
const READING: Duration = Duration::from_millis(10);
/// States that are handed to the task of the node at once. It answers nobody else while it looks at
/// them.
const STATES: usize = 64;
/// When a merge is tried again that the busy node has refused.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// Why a node was not rebuilt. It counts for nothing as before; what was copied stays. Try again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RebuildError {
    /// Too few of the other replicas are whole and were read to the end.
    #[error("{read} whole replicas were read, {needed} are needed")]
    TooFewReplicas {
        /// How many were read.
        read: usize,
        /// How many must be.
        needed: usize,
    },
    /// The node is no replica: it waits to be added, or was removed.
    #[error("node {node} is no replica in epoch {epoch}")]
    NotAMember {
        /// The node.
        node: u64,
        /// The latest epoch that it has heard of.
        epoch: u64,
    },
    /// No replica that was reached serves this epoch or a later one, and the store has served it
    /// before it was cleared. They may be those of before a change, or an old copy.
    #[error("no replica serves epoch {floor} or a later one, which the node has served before")]
    BelowFloor {
        /// The epoch.
        floor: u64,
    },
    /// The node has met its own future. Start it again: that begins a new incarnation.
    #[error("the node must be started again first: its store was restored from a backup")]
    Condemned,
    /// The node's own store has refused a write, and all that was under way was given up. Retry.
    #[error("the node's own store has refused a write")]
    Refused,
    /// The node's own store has failed, or the node was stopped.
    #[error("the node's own store has failed, or the node was stopped")]
    Halted,
}

impl Node {
    /// Copies what the other replicas hold into a node that is not whole, a new one or one that was
    /// lost, and declares it whole.
    /// Does nothing if it is. [`Node::maintain`] does it by itself.
    ///
    /// It first waits until the longest operation has ended that may have counted the lost store,
    /// and it reads so many replicas that each acknowledged write, and each promise that a quorum
    /// of acceptors has given, is on one of them.
    ///
    /// # Errors
    /// [`RebuildError`].
    ///
    /// # Cancel safety
    /// Dropping it leaves the node as it is: not whole, with what was copied.
    pub async fn rebuild(&self, link: &Arc<dyn Link>) -> Result<(), RebuildError> {
        let _maintaining = self.shared.maintaining.lock().await;
        match &*self.shared.status.borrow() {
            Status::Whole => return Ok(()),
            Status::NotWhole { is_condemned: true } => return Err(RebuildError::Condemned),
            Status::NotWhole { .. } => {}
            Status::Removed { epoch } => {
                return Err(RebuildError::NotAMember { node: self.shared.id, epoch: *epoch });
            }
            Status::Halted(_) | Status::Stopped => return Err(RebuildError::Halted),
        }
        let config = &self.shared.config;
        sleep_until(self.shared.started + config.timeout).await;
        let (membership, sources) = self.sources(link).await?;
        let read = self.copy_all(link, &membership, sources, true).await?;
        let epoch = membership.epoch();
        if !self.order(|done| Job::Rebuilt { epoch, done }).await {
            return Err(self.dropped());
        }
        match &*self.shared.status.borrow() {
            Status::Whole => {}
            Status::NotWhole { is_condemned: true } => return Err(RebuildError::Condemned),
            // The replicas have changed meanwhile.
            _ => return Err(RebuildError::TooFewReplicas { read: 0, needed: read }),
        }
        tracing::info!(target: "voussoir::quorum", node = self.shared.id, read, "rebuilt");
        Ok(())
    }

    /// Copies what a whole replica may lack before the new set of a joint epoch stands alone.
    /// Returns that epoch.
    pub(super) async fn catch_up(&self, link: &Arc<dyn Link>) -> Result<u64, RebuildError> {
        let (membership, sources) = self.sources(link).await?;
        self.copy_all(link, &membership, sources, false).await?;
        if self.current().epoch() == membership.epoch() && self.is_whole() {
            return Ok(membership.epoch());
        }
        Err(RebuildError::TooFewReplicas { read: 0, needed: 1 })
    }

    /// Who the replicas are now, and which of them the node copies from.
    async fn sources(
        &self,
        link: &Arc<dyn Link>,
    ) -> Result<(Arc<Membership>, Sources), RebuildError> {
        let config = &self.shared.config;
        // Ends: each turn but the last serves a later membership.
        loop {
            let membership = self.current();
            let ids = membership.ids();
            let is_known = membership.epoch() > 0;
            let seen = self.survey(link, if is_known { &ids } else { &config.replicas }).await;
            let latest = self.current();
            if latest.epoch() > membership.epoch() {
                continue;
            }
            if !is_known && self.shared.floor > 0 {
                return Err(RebuildError::BelowFloor { floor: self.shared.floor });
            }
            if !is_known {
                let needed = sources_of(config.replicas.len(), config.write);
                return Err(RebuildError::TooFewReplicas { read: 0, needed });
            }
            return self.sources_of(latest, &seen);
        }
    }

    fn sources_of(
        &self,
        membership: Arc<Membership>,
        seen: &std::collections::BTreeMap<u64, Seen>,
    ) -> Result<(Arc<Membership>, Sources), RebuildError> {
        let (node, epoch) = (self.shared.id, membership.epoch());
        if !membership.contains(node) {
            return Err(RebuildError::NotAMember { node, epoch });
        }
        match membership.sources(node, seen, self.shared.config.levels()) {
            Ok(sources) => Ok((membership, sources)),
            Err(Lack { found, needed }) => {
                Err(RebuildError::TooFewReplicas { read: found, needed })
            }
        }
    }

    /// Copies what the sources hold, of registers only if this node's acceptors are not in use.
    /// Returns how many were read to the end: enough.
    async fn copy_all(
        &self,
        link: &Arc<dyn Link>,
        membership: &Arc<Membership>,
        sources: Sources,
        has_registers: bool,
    ) -> Result<usize, RebuildError> {
        let Sources { from, needed } = sources;
        let (mut whole, mut scope) = (Vec::new(), Scope::new(membership, 0));
        for peer in from {
            let ask = Request::Epoch { epoch: 0 };
            if let Some(Reply::Epoch { epoch }) = self.request(link, peer, &scope, ask).await {
                whole.push((peer, epoch));
            }
        }
        if whole.len() < needed {
            return Err(RebuildError::TooFewReplicas { read: whole.len(), needed });
        }
        let epoch = whole.iter().map(|(_, epoch)| *epoch).max().unwrap_or(0);
        if !self.order(|done| Job::LearnEpoch { epoch, done }).await {
            return Err(self.dropped());
        }
        scope.epoch = epoch;
        let mut read = 0;
        for (peer, _) in whole {
            let is_read = self.copy(link, peer, &scope, Space::Table).await?
                && (!has_registers || self.copy(link, peer, &scope, Space::Registers).await?);
            read += usize::from(is_read);
        }
        if read < needed {
            return Err(RebuildError::TooFewReplicas { read, needed });
        }
        Ok(read)
    }

    /// Why the node has dropped what it was to do.
    fn dropped(&self) -> RebuildError {
        match &*self.shared.status.borrow() {
            Status::Halted(_) | Status::Stopped => RebuildError::Halted,
            _ => RebuildError::Refused,
        }
    }

    /// Merges all that a replica holds. False: it failed on the way, or is not whole itself.
    async fn copy(
        &self,
        link: &Arc<dyn Link>,
        peer: u64,
        scope: &Scope,
        space: Space,
    ) -> Result<bool, RebuildError> {
        let mut after = Bytes::new();
        // Ends: each turn moves on by a key; the last page is empty.
        loop {
            let ask = Ask::Scan { space, after: after.clone() };
            let asked = Instant::now();
            let answer = self.ask(link, peer, Class::Bulk, scope, ask, PAGE_TIMEOUT).await;
            let reading = asked.elapsed().min(READING);
            let Some(Answer::Page(page)) = answer else { return Ok(false) };
            let Some((last, _)) = page.last() else { return Ok(true) };
            if *last <= after && !after.is_empty() {
                return Ok(false); // A peer that goes in circles.
            }
            after = last.clone();
            let bytes: usize = page.iter().map(|(key, record)| key.len() + record.len()).sum();
            let pace = Pace::new(self.shared.config.rebuild_bytes_per_second);
            let began = Instant::now();
            let copied = match space {
                Space::Table => self.merge(page, scope).await,
                Space::Registers => self.install(page).await,
            };
            if !copied.map_err(|_| self.dropped())? {
                return Ok(false);
            }
            // As long as it took, here and at the source: the processors and the disks that they
            // share with others, whatever they can do, are theirs at least half of the time.
            let rested = Instant::now() + reading + began.elapsed();
            pace.keep(bytes as u64).await;
            sleep_until(rested).await;
        }
    }

    /// Merges states of keys into the node. False: one cannot be read, or was not merged.
    async fn merge(&self, page: Vec<(Bytes, Bytes)>, scope: &Scope) -> Result<bool, StoreError> {
        let keys: Vec<Bytes> = page.iter().map(|(key, _)| store_key(Space::Table, key)).collect();
        let own = self.shared.store.get(&keys).await?;
        let mut lacking = Vec::new();
        for (theirs, own) in page.into_iter().zip(own) {
            if own.as_ref() != Some(&theirs.1) {
                lacking.push(theirs); // Few of the second source: the first one had the same.
            }
        }
        let ends = Instant::now() + PAGE_TIMEOUT;
        // Ends: by the deadline, or when the node is less busy.
        loop {
            match self.merge_states(&lacking, scope).await {
                Some(Merged::Durable) => return Ok(true),
                Some(Merged::Busy) if Instant::now() < ends => sleep(BUSY_PAUSE).await,
                _ => return Ok(false),
            }
        }
    }

    /// Hands states to the task of the node, which answers others in between, and waits until their
    /// merges are durable. None: one cannot be read, or the node has halted.
    async fn merge_states(&self, records: &[(Bytes, Bytes)], scope: &Scope) -> Option<Merged> {
        let (mut merged, mut merging) = (Merged::Durable, Vec::new());
        for records in records.chunks(STATES) {
            let state = |(key, record): &(Bytes, Bytes)| {
                let state = codec::decode_siblings(record.clone(), &Limits::default()).ok()?;
                Some((key.clone(), state))
            };
            let states = records.iter().map(state).collect::<Option<Vec<_>>>()?;
            let (done, is_done) = oneshot::channel();
            self.shared.jobs.send(Job::Merge { states, scope: scope.clone(), done }).await.ok()?;
            merging.push(is_done);
            tokio::task::yield_now().await;
        }
        for is_done in merging {
            let of_some = is_done.await.ok()?;
            merged = if merged == Merged::Durable { of_some } else { merged };
        }
        Some(merged)
    }

    /// Merges records of acceptors into the store of the node, whose own are not in use.
    async fn install(&self, page: Vec<(Bytes, Bytes)>) -> Result<bool, StoreError> {
        let keys: Vec<_> = page.iter().map(|(key, _)| store_key(Space::Registers, key)).collect();
        let own = self.shared.store.get(&keys).await?;
        let mut records = Vec::new();
        for ((key, record), own) in page.into_iter().zip(own) {
            let Ok(record) = decode_record(record.clone()) else { return Ok(false) };
            let own = own.map_or(Ok(Record::EMPTY), decode_record);
            let own = own.map_err(|error| StoreError::Damaged(error.to_string()))?;
            let merged = own.clone().merge(record);
            if encode_record(&merged) != encode_record(&own) {
                records.push((key, merged));
            }
        }
        if records.is_empty() {
            return Ok(true);
        }
        if self.order(|done| Job::Install { records, done }).await {
            Ok(true)
        } else {
            Err(StoreError::Unknown("the node has halted".to_owned()))
        }
    }
}
