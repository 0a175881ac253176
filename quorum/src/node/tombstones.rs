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
//! A replica that does not answer, or is not whole, holds up the collection for as long: nothing
//! that was deleted comes back, and tombstones stay.

use std::sync::Arc;

use super::Node;
use crate::caller::Scope;
use crate::link::{Class, Link};
use crate::membership::Membership;
use crate::table::{Reply, Request};
use crate::version::VersionVector;
use crate::version::codec::{self, Limits};
use crate::wire::{Answer, Ask, Space};

use super::driver::store_key;
use bytes::Bytes;

/// Tombstones that are collected together.
const MAX_COLLECTED: usize = 1_000;

/// Why tombstones were not collected. They stay, and nothing else has changed. Try again later.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CollectError {
    /// A replica did not answer, or is not whole.
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

impl Node {
    /// Drops tombstones of the table that every replica holds, up to 1,000, and says how many.
    /// [`Node::maintain`] does it by itself.
    ///
    /// # Errors
    /// [`CollectError`].
    ///
    /// # Cancel safety
    /// Dropping it leaves some tombstones dropped on some replicas. That is safe at any point.
    pub async fn collect_tombstones(&self, link: &Arc<dyn Link>) -> Result<usize, CollectError> {
        if self.shared.feed.is_some() {
            return Err(CollectError::Regional);
        }
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
        let tombstones = self.own_tombstones().await.ok_or(CollectError::NotWhole)?;
        if tombstones.is_empty() {
            return Ok(0);
        }
        scope.epoch = epoch;
        self.spread(link, &scope, &tombstones).await?;
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
        self.spread(link, &scope, &tombstones).await?;
        for replica in &replicas {
            for (key, context) in &tombstones {
                let (key, context) = (key.clone(), context.clone());
                let request = Request::Forget { key, context };
                // A replica that misses it keeps its tombstone, and collects it another time.
                self.request(link, *replica, &scope, request).await;
            }
        }
        Ok(tombstones.len())
    }

    /// Merges the tombstones into every replica.
    async fn spread(
        &self,
        link: &Arc<dyn Link>,
        scope: &Scope,
        tombstones: &[(Bytes, VersionVector)],
    ) -> Result<(), CollectError> {
        let replicas = scope.membership.ids();
        for replica in &replicas {
            for (key, context) in tombstones {
                let state = crate::version::Siblings::from_parts(context.clone(), [].into());
                let request = Request::Merge { key: key.clone(), state };
                let reply = self.request(link, *replica, scope, request).await;
                if reply != Some(Reply::Merged) {
                    return Err(CollectError::Unacknowledged { replica: *replica });
                }
            }
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
        match self.request(link, replica, &scope, Request::Epoch { epoch }).await {
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

    /// Tombstones of this replica, as they are on its disk.
    pub(super) async fn own_tombstones(&self) -> Option<Vec<(Bytes, VersionVector)>> {
        let mut found = Vec::new();
        let mut after = store_key(Space::Table, &[]);
        // Ends: each turn moves on by a key; the last page is empty.
        loop {
            let prefix = [Space::Table.prefix()];
            let page = self.shared.store.scan(&prefix, &after, 1 << 20).await.ok()?;
            let Some((last, _)) = page.last() else { return Some(found) };
            after = last.clone();
            for (key, record) in page {
                let state = codec::decode_siblings(record, &Limits::default()).ok()?;
                if state.is_tombstone() {
                    found.push((key.slice(1..), state.context().clone()));
                }
                if found.len() >= MAX_COLLECTED {
                    return Some(found);
                }
            }
        }
    }
}
