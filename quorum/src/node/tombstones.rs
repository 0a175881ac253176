//! Collecting tombstones that every replica holds.
//!
//! A tombstone may be dropped when no value that it covers can come back: every replica holds it,
//! and no operation is left that read a replica before it did. Nothing here trusts a clock:
//!
//! 1. Each tombstone of this replica is merged into every other one. All must say that they hold
//!    it, durably.
//! 2. The epoch is raised at every replica, twice. Operations carry the epoch in which they began,
//!    and replicas refuse those of before the previous epoch: what was read before step 1 ended
//!    can be written nowhere any more.
//! 3. Each tombstone is merged into every replica again: one may have been lost since step 1, and
//!    rebuilt from replicas that did not hold it yet.
//! 4. Each replica drops the tombstone, if the key was not written since.
//!
//! The node's tree knows the keys of the tombstones: a collection reads these, and no other record.
//!
//! A replica that does not answer, or is not whole, holds up the collection for as long: nothing
//! that was deleted comes back, and tombstones stay.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Node;
use crate::caller::{Scope, until_not_busy};
use crate::link::{Class, Link};
use crate::membership::Membership;
use crate::pace::Pace;
use crate::table::{Reply, Request};
use crate::version::codec::{self, Limits};
use crate::version::{Siblings, VersionVector};
use crate::wire::{Answer, Ask};

/// Tombstones that are collected together, in one pair of epochs.
const MAX_COLLECTED: usize = 1_000;
/// Requests of a collection that are on their way at once, to all replicas together; fewer where a
/// node takes few, so that clients find room beside them.
const MAX_REQUESTS: usize = 64;

/// A key and the context that covers what was deleted.
pub(crate) type Tombstone = (Bytes, VersionVector);

/// Why a collection has ended before its last tombstone. Those that it has not dropped stay, and
/// nothing else has changed. Try again later.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CollectError {
    /// A replica did not answer, or is not whole. A tombstone that one refuses is left where it is,
    /// and the others go: see [`TombstoneStats::refused`].
    #[error("replica {replica} does not hold every tombstone")]
    Unacknowledged {
        /// The replica.
        replica: u64,
    },
    /// The replicas are being changed: a new one may not hold what another one drops.
    #[error("the replicas are being changed")]
    Changing,
    /// The node is part of a region, and another region may not hold what this one drops:
    /// [`Region::collect_tombstones`](crate::region::Region::collect_tombstones) asks all of them.
    #[error("the node is part of a region: its region's handle collects, with all regions")]
    Regional,
    /// The node is not whole, or its store has failed.
    #[error("the node itself is not whole")]
    NotWhole,
}

/// The tombstones of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TombstoneStats {
    /// How many the node's store holds. After a start it counts up while the store is being read.
    pub held: usize,
    /// How many the collections of this node have dropped here, since its start.
    pub dropped: u64,
    /// How often a collection has left one where it is because a replica refuses it: together with
    /// what the replica holds its context has too many actors. It goes once a client has merged the
    /// key's siblings.
    pub refused: u64,
    /// How often a collection has left one where it is because its record cannot be read.
    pub unreadable: u64,
}

/// What the collections of a node have done.
#[derive(Debug, Default)]
pub(super) struct Collected {
    dropped: AtomicU64,
    refused: AtomicU64,
    unreadable: AtomicU64,
}

impl Node {
    /// Drops the tombstones of the table that every replica holds, and says how many: 1,000 at a
    /// time, at no more than [`NodeConfig::repair_bytes_per_second`](super::NodeConfig).
    /// [`Node::maintain`] does it by itself.
    ///
    /// # Errors
    /// [`CollectError`]. Tombstones may have been dropped before: see [`Node::tombstone_stats`].
    ///
    /// # Cancel safety
    /// Dropping it leaves some tombstones dropped on some replicas. That is safe at any point.
    pub async fn collect_tombstones(&self, link: &Arc<dyn Link>) -> Result<usize, CollectError> {
        if self.shared.feed.is_some() {
            return Err(CollectError::Regional);
        }
        let (mut after, mut dropped) = (Bytes::new(), 0);
        let (pace, mut bytes) = (Pace::new(self.shared.config.repair_bytes_per_second), 0);
        // Ends: each turn moves on in the order of the keys. What cannot go is not met twice.
        loop {
            let found = self.collect_some(link, &mut after, &mut bytes).await?;
            let Some(count) = found else { return Ok(dropped) };
            dropped += count;
            pace.keep(bytes).await;
        }
    }

    /// The tombstones that the node holds, and those that it has collected.
    pub fn tombstone_stats(&self) -> TombstoneStats {
        let Collected { dropped, refused, unreadable } = &self.shared.collected;
        TombstoneStats {
            held: self.shared.tree.tombstones(),
            dropped: dropped.load(Ordering::Relaxed),
            refused: refused.load(Ordering::Relaxed),
            unreadable: unreadable.load(Ordering::Relaxed),
        }
    }

    /// Drops the next tombstones behind a key, and moves the key on. None: there are no more.
    async fn collect_some(
        &self,
        link: &Arc<dyn Link>,
        after: &mut Bytes,
        bytes: &mut u64,
    ) -> Result<Option<usize>, CollectError> {
        if self.current().is_changing() {
            // Before the lock, which a node holds for as long as it catches up.
            return Err(CollectError::Changing);
        }
        let _maintaining = self.shared.maintaining.lock().await;
        if !self.is_whole() {
            return Err(CollectError::NotWhole);
        }
        // Each request is of this membership: once a replica serves another one, it refuses.
        let membership = self.current();
        if membership.is_changing() {
            return Err(CollectError::Changing);
        }
        let (replicas, mut scope) = (membership.ids(), Scope::new(&membership, 0));
        let mut epoch = 0;
        for replica in &replicas {
            epoch = epoch.max(self.raise(link, &membership, *replica, 0).await?);
        }
        let found = self.next_tombstones(after).await.ok_or(CollectError::NotWhole)?;
        if found.is_empty() {
            return Ok(None);
        }
        scope.epoch = epoch;
        let tombstones = self.spread(link, &scope, found).await?;
        if tombstones.is_empty() {
            return Ok(Some(0));
        }
        // Another collector may raise it meanwhile: it is read again now that all hold them.
        for replica in &replicas {
            epoch = epoch.max(self.raise(link, &membership, *replica, 0).await?);
        }
        for raised in [epoch + 1, epoch + 2] {
            for replica in &replicas {
                self.raise(link, &membership, *replica, raised).await?;
            }
        }
        scope.epoch = epoch + 2;
        let tombstones = self.spread(link, &scope, tombstones).await?;
        let dropped = self.forget(link, &scope, &tombstones).await;
        self.count_collected(dropped);
        // Each was sent to every replica three times.
        let length = |(key, context): &Tombstone| key.len() + context.len() * codec::DOT_BYTES;
        *bytes += (tombstones.iter().map(length).sum::<usize>() * replicas.len() * 3) as u64;
        Ok(Some(dropped))
    }

    /// Counts tombstones that this node has dropped.
    pub(crate) fn count_collected(&self, dropped: usize) {
        self.shared.collected.dropped.fetch_add(dropped as u64, Ordering::Relaxed);
    }

    /// Merges the tombstones into every replica. Returns those that every one holds: without those
    /// that one refuses, of which another attempt would be refused as well.
    async fn spread(
        &self,
        link: &Arc<dyn Link>,
        scope: &Scope,
        tombstones: Vec<Tombstone>,
    ) -> Result<Vec<Tombstone>, CollectError> {
        let mut refused = BTreeSet::new();
        let merge = |(key, context): &Tombstone| Request::Merge {
            key: key.clone(),
            state: Siblings::from_parts(context.clone(), [].into()),
        };
        let take = |at, replica, reply| match reply {
            Some(Reply::Merged) => Ok(()),
            Some(Reply::Refused) => {
                refused.insert(at);
                Ok(())
            }
            _ => Err(CollectError::Unacknowledged { replica }),
        };
        self.ask_all(link, scope, &tombstones, merge, take).await?;
        Ok(self.without_refused(tombstones, &refused))
    }

    /// The tombstones without those that a replica refuses, named by their places. These are left
    /// where they are, and counted.
    pub(crate) fn without_refused(
        &self,
        mut tombstones: Vec<Tombstone>,
        refused: &BTreeSet<usize>,
    ) -> Vec<Tombstone> {
        let mut at = 0;
        tombstones.retain(|(key, _)| {
            let is_refused = refused.contains(&at);
            at += 1;
            if is_refused {
                self.warn_left(&self.shared.collected.refused, key, "a replica refuses it");
            }
            !is_refused
        });
        tombstones
    }

    /// Counts a tombstone that is left where it is, and says so the first, second, fourth time and
    /// so on.
    fn warn_left(&self, counter: &AtomicU64, key: &Bytes, why: &str) {
        let count = counter.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            let node = self.shared.id;
            tracing::warn!(target: "voussoir::quorum", node, count, ?key, why, "left a tombstone");
        }
    }

    /// Drops the tombstones at every replica, and says how many this one has dropped: none if
    /// another collector has raised the epoch meanwhile. A replica that misses it keeps its
    /// tombstone, and collects it another time.
    async fn forget(&self, link: &Arc<dyn Link>, scope: &Scope, tombstones: &[Tombstone]) -> usize {
        let forget = |(key, context): &Tombstone| Request::Forget {
            key: key.clone(),
            context: context.clone(),
        };
        let mut dropped = 0;
        let own = self.shared.id;
        let take = |_, replica, reply| {
            dropped += usize::from(replica == own && reply == Some(Reply::Merged));
            Ok(())
        };
        // What was not asked has not answered.
        let _: Result<(), CollectError> = self.ask_all(link, scope, tombstones, forget, take).await;
        dropped
    }

    /// Asks every replica about each tombstone, several at once. `take` gets the place of the
    /// tombstone, the replica and its reply, and may end it. A link that panics ends it, too.
    async fn ask_all(
        &self,
        link: &Arc<dyn Link>,
        scope: &Scope,
        tombstones: &[Tombstone],
        request: impl Fn(&Tombstone) -> Request,
        mut take: impl FnMut(usize, u64, Option<Reply>) -> Result<(), CollectError>,
    ) -> Result<(), CollectError> {
        let max_requests = MAX_REQUESTS.min(self.shared.config.max_requests / 2);
        let mut asked = JoinSet::new();
        for (at, tombstone) in tombstones.iter().enumerate() {
            for replica in scope.membership.ids() {
                if asked.len() >= max_requests
                    && let Some(answered) = asked.join_next().await
                {
                    let (at, replica, reply) = answered.map_err(|_| CollectError::NotWhole)?;
                    take(at, replica, reply)?;
                }
                let (node, link, scope) = (self.clone(), Arc::clone(link), scope.clone());
                let request = request(tombstone);
                asked.spawn(async move {
                    (at, replica, node.request_again(&link, replica, &scope, request).await)
                });
            }
        }
        // Ends: each turn takes one of them.
        while let Some(answered) = asked.join_next().await {
            let (at, replica, reply) = answered.map_err(|_| CollectError::NotWhole)?;
            take(at, replica, reply)?;
        }
        Ok(())
    }

    /// Raises the epoch of a replica, and says what it is then.
    async fn raise(
        &self,
        link: &Arc<dyn Link>,
        membership: &Arc<Membership>,
        replica: u64,
        epoch: u64,
    ) -> Result<u64, CollectError> {
        let scope = Scope::new(membership, epoch);
        match self.request_again(link, replica, &scope, Request::Epoch { epoch }).await {
            Some(Reply::Epoch { epoch: raised }) if raised >= epoch => Ok(raised),
            _ => Err(CollectError::Unacknowledged { replica }),
        }
    }

    /// Asks a replica, this node's or another one, on the bulk connection.
    pub(crate) async fn request(
        &self,
        link: &Arc<dyn Link>,
        to: u64,
        scope: &Scope,
        request: Request,
    ) -> Option<Reply> {
        let (ask, timeout) = (Ask::Table(request), self.shared.config.timeout);
        match self.ask(link, to, Class::Bulk, scope, ask, timeout).await? {
            Answer::Table(reply) => Some(reply),
            _ => None,
        }
    }

    /// As [`Node::request`], and again while the replica is busy, as long as a request may take.
    async fn request_again(
        &self,
        link: &Arc<dyn Link>,
        to: u64,
        scope: &Scope,
        request: Request,
    ) -> Option<Reply> {
        let (ask, timeout) = (Ask::Table(request), self.shared.config.timeout);
        let ask = || self.ask(link, to, Class::Bulk, scope, ask.clone(), timeout);
        match until_not_busy(Instant::now() + timeout, ask).await? {
            Answer::Table(reply) => Some(reply),
            _ => None,
        }
    }

    /// The next tombstones of this replica behind a key, as they are on its disk; moves the key on.
    /// Empty: there are no more. None: the store has failed.
    pub(crate) async fn next_tombstones(&self, after: &mut Bytes) -> Option<Vec<Tombstone>> {
        let mut found = Vec::new();
        // Ends: each turn moves on by a key.
        while found.is_empty() {
            let keys = self.shared.tree.tombstones_after(after, MAX_COLLECTED);
            let Some(last) = keys.last() else { break };
            *after = last.clone();
            let records = self.shared.store.get(&keys).await;
            let records = self.shared.readable(records).await?;
            for (key, record) in keys.into_iter().zip(records) {
                // Removed or written anew since.
                let Some(record) = record else { continue };
                let Ok(state) = codec::decode_siblings(record, &Limits::default()) else {
                    self.warn_left(&self.shared.collected.unreadable, &key, "it cannot be read");
                    continue;
                };
                if state.is_tombstone() {
                    found.push((key.slice(1..), state.context().clone()));
                }
            }
        }
        Some(found)
    }
}
