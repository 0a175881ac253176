//! Rebuilding a node whose store was lost, from the other replicas.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::driver::{Job, store_key};
use super::{Node, Status};
use crate::caller::call;
use crate::link::{Class, Link};
use crate::paxos::Record;
use crate::store::StoreError;
use crate::table::{Reply, Request};
use crate::version::codec::{self, Limits};
use crate::wire::{Answer, Ask, Space, decode_record, encode_record};

/// How long one page may take to arrive.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Merges of one page that are under way at once.
const MERGES: usize = 256;

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
    /// The node has met its own future. Start it again: that begins a new incarnation.
    #[error("the node must be started again first: its store was restored from a backup")]
    Condemned,
    /// The node's own store has failed.
    #[error("the node's own store has failed")]
    Halted,
}

impl Node {
    /// Copies what the other replicas hold into a node that is not whole, and declares it whole.
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
            Status::Halted(_) | Status::Stopped => return Err(RebuildError::Halted),
        }
        let config = &self.shared.config;
        sleep_until(self.shared.started + config.timeout).await;
        let peers = config.replicas.iter().copied().filter(|peer| *peer != self.shared.id);
        let peers: Vec<u64> = peers.collect();
        let needed = config.sources();
        let epochs = self.epochs(link, &peers).await;
        if epochs.len() < needed {
            return Err(RebuildError::TooFewReplicas { read: epochs.len(), needed });
        }
        let epoch = epochs.values().copied().max().unwrap_or(0);
        if !self.order(|done| Job::LearnEpoch { epoch, done }).await {
            return Err(RebuildError::Halted);
        }
        let mut read = 0;
        for peer in epochs.into_keys() {
            let is_read = self.copy(link, peer, epoch, Space::Table).await?
                && self.copy(link, peer, epoch, Space::Registers).await?;
            read += usize::from(is_read);
        }
        if read < needed {
            return Err(RebuildError::TooFewReplicas { read, needed });
        }
        if !self.order(|done| Job::Rebuilt { done }).await {
            return Err(RebuildError::Halted);
        }
        if !self.is_whole() {
            return Err(RebuildError::Condemned);
        }
        tracing::info!(target: "voussoir::quorum", node = self.shared.id, read, "rebuilt");
        Ok(())
    }

    /// The epochs of those that are whole.
    async fn epochs(&self, link: &Arc<dyn Link>, peers: &[u64]) -> BTreeMap<u64, u64> {
        let mut epochs = BTreeMap::new();
        for peer in peers {
            let deadline = Instant::now() + self.shared.config.timeout;
            let ask = Ask::Table(Request::Epoch { epoch: 0 });
            let answer = call(link, *peer, Class::Small, 0, ask, deadline).await;
            if let Ok((_, Answer::Table(Reply::Epoch { epoch }))) = answer {
                epochs.insert(*peer, epoch);
            }
        }
        epochs
    }

    /// Merges all that a replica holds. False: it failed on the way, or is not whole itself.
    async fn copy(
        &self,
        link: &Arc<dyn Link>,
        peer: u64,
        epoch: u64,
        space: Space,
    ) -> Result<bool, RebuildError> {
        let mut after = Bytes::new();
        // Ends: each turn moves on by a key; the last page is empty.
        loop {
            let deadline = Instant::now() + PAGE_TIMEOUT;
            let ask = Ask::Scan { space, after: after.clone() };
            let answer = call(link, peer, Class::Bulk, epoch, ask, deadline).await;
            let Ok((_, Answer::Page(page))) = answer else { return Ok(false) };
            let Some((last, _)) = page.last() else { return Ok(true) };
            if *last <= after && !after.is_empty() {
                return Ok(false); // A peer that goes in circles.
            }
            after = last.clone();
            let bytes: usize = page.iter().map(|(key, record)| key.len() + record.len()).sum();
            let rate = self.shared.config.rebuild_bytes_per_second as f64;
            let pause = Instant::now() + Duration::from_secs_f64(bytes as f64 / rate);
            let is_copied = match space {
                Space::Table => self.merge(page, epoch).await,
                Space::Registers => self.install(page).await.map_err(|_| RebuildError::Halted)?,
            };
            if !is_copied {
                return Ok(false);
            }
            sleep_until(pause).await;
        }
    }

    /// Merges states of keys into the node. False: one cannot be read, or was not merged.
    async fn merge(&self, page: Vec<(Bytes, Bytes)>, epoch: u64) -> bool {
        let mut merges = tokio::task::JoinSet::new();
        for (key, record) in page {
            let Ok(state) = codec::decode_siblings(record, &Limits::default()) else {
                return false;
            };
            if merges.len() >= MERGES && !merges.join_next().await.is_some_and(is_merged) {
                return false;
            }
            let node = self.clone();
            let ask = Ask::Table(Request::Merge { key, state });
            merges.spawn(async move { node.ask_own(epoch, ask).await });
        }
        // Ends: each turn takes one of them.
        while let Some(merge) = merges.join_next().await {
            if !is_merged(merge) {
                return false;
            }
        }
        true
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

/// A node that is not whole says so when what it merged is durable.
fn is_merged(merge: Result<Option<Answer>, tokio::task::JoinError>) -> bool {
    matches!(merge, Ok(Some(Answer::Table(Reply::NotWhole | Reply::Merged))))
}
