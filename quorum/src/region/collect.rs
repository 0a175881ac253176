//! Collecting tombstones that every replica of every region holds.
//!
//! The four steps are those of one region (`node/tombstones.rs`), over the replicas of all regions:
//! every one holds each tombstone; every one is in a later epoch, twice, so that what was read
//! before is written nowhere any more; every one holds each tombstone again; every one drops it.
//! What one region sends to another carries the receiver's epoch, taken before anything was read,
//! so that a state that was long on its way is refused as one within a region is.
//!
//! Each replica is told in which membership each region was asked, and hears no node of an earlier
//! one from then on: a replica that was removed and does not know it may hold what they drop.
//!
//! Each replica is asked by itself and checks the map: one that has another map may
//! send to a region, or hear one, that this collection does not know of. A region that does not
//! answer holds the collection up, and tombstones stay in all regions. A tombstone that a replica
//! refuses is left where it is, and the others go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::floors::Floors;
use super::handle::{Region, Shared};
use super::outbox::Fate;
use super::wire::{Answer, Question, Reply, Tombstone};
use crate::link::Link;
use crate::membership::{Membership, Stamp};
use crate::pace::Pace;
use crate::version::codec;

/// Tombstones of one message.
const MAX_TOMBSTONES: usize = 100;

/// Why a collection has ended before its last tombstone. Those that it has not dropped stay, and
/// nothing else has changed. Try again later.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegionCollectError {
    /// The node is not whole, or its store has failed; or [`Region::maintain`] was not called.
    #[error("the node itself is not whole")]
    NotWhole,
    /// The replicas of a region are being changed: a new one may not hold what others drop.
    #[error("the replicas of region {region} are being changed")]
    Changing {
        /// The region.
        region: u64,
    },
    /// A replica did not answer, is not whole, or has another map or membership. A region that is
    /// to stay away is taken out by the next map. A tombstone that a replica refuses is left where
    /// it is, and the others go: see
    /// [`TombstoneStats::refused`](crate::TombstoneStats::refused).
    #[error("replica {node} of region {region} does not hold every tombstone")]
    Unacknowledged {
        /// The region.
        region: u64,
        /// The replica; 0: none of the region's nodes answers.
        node: u64,
    },
}

/// A replica of a region.
#[derive(Clone, Copy)]
struct Target {
    region: u64,
    node: u64,
    membership: Stamp,
}

impl Region {
    /// Drops the tombstones that every replica of every region holds, and says how many: 1,000 at a
    /// time, at no more than [`RegionConfig::bytes_per_second`](super::RegionConfig).
    /// [`Region::maintain`] does it by itself, once in the node's
    /// [`collect_every`](crate::NodeConfig::collect_every).
    ///
    /// # Errors
    /// [`RegionCollectError`]. Tombstones may have been dropped before: see
    /// [`Node::tombstone_stats`](crate::Node::tombstone_stats).
    ///
    /// # Cancel safety
    /// Dropping it leaves some tombstones dropped on some replicas. That is safe at any point.
    pub async fn collect_tombstones(&self) -> Result<usize, RegionCollectError> {
        let _collecting = self.shared.collecting.lock().await;
        let (mut after, mut dropped) = (Bytes::new(), 0);
        let (pace, mut bytes) = (Pace::new(self.shared.config.bytes_per_second), 0);
        // Ends: each turn moves on in the order of the keys. What cannot go is not met twice.
        loop {
            let found = self.collect_some(&mut after, &mut bytes).await?;
            let Some(count) = found else { return Ok(dropped) };
            dropped += count;
            pace.keep(bytes).await;
        }
    }

    /// Drops the next tombstones behind a key, and moves the key on. None: there are no more.
    async fn collect_some(
        &self,
        after: &mut Bytes,
        bytes: &mut u64,
    ) -> Result<Option<usize>, RegionCollectError> {
        let wide = self.wide().ok_or(RegionCollectError::NotWhole)?;
        if !self.shared.node.is_whole() {
            return Err(RegionCollectError::NotWhole);
        }
        let tombstones = self.shared.node.next_tombstones(after).await;
        let tombstones = Arc::new(tombstones.ok_or(RegionCollectError::NotWhole)?);
        if tombstones.is_empty() {
            return Ok(None);
        }
        let targets = self.targets(&wide).await?;
        let tombstones = self.hold_everywhere(&wide, &targets, tombstones).await?;
        if tombstones.is_empty() {
            return Ok(Some(0));
        }
        // Read now that all hold them: what is in these epochs or before may not know of it.
        let mut epochs = BTreeMap::new();
        for target in &targets {
            let epoch = epochs.entry(target.region).or_insert(0);
            *epoch = self.raise(&wide, *target, 0).await?.max(*epoch);
        }
        for ahead in [1, 2] {
            for target in &targets {
                self.raise(&wide, *target, epochs[&target.region] + ahead).await?;
            }
        }
        let tombstones = self.hold_everywhere(&wide, &targets, tombstones).await?;
        let dropped = self.forget_everywhere(&wide, &targets, &epochs, &tombstones).await;
        self.shared.node.count_collected(dropped);
        // Each was sent to every replica three times.
        let length = |(key, context): &Tombstone| key.len() + context.len() * codec::DOT_BYTES;
        *bytes += (tombstones.iter().map(length).sum::<usize>() * targets.len() * 3) as u64;
        Ok(Some(dropped))
    }

    /// The replicas of all regions.
    async fn targets(&self, wide: &Arc<dyn Link>) -> Result<Vec<Target>, RegionCollectError> {
        let mut targets = Vec::new();
        let own = self.shared.config.own;
        for region in self.shared.config.regions.iter().map(|region| region.id) {
            let membership = if region == own {
                Membership::clone(&self.shared.node.current())
            } else {
                self.membership_of(wide, region).await?
            };
            if membership.is_changing() {
                return Err(RegionCollectError::Changing { region });
            }
            let target = |node| Target { region, node, membership: membership.stamp() };
            targets.extend(membership.ids().into_iter().map(target));
        }
        Ok(targets)
    }

    async fn membership_of(
        &self,
        wide: &Arc<dyn Link>,
        region: u64,
    ) -> Result<Membership, RegionCollectError> {
        match self.ask(wide, region, Question::Hello).await {
            Some(Answer::Welcome { membership, .. }) => Ok(membership),
            _ => Err(RegionCollectError::Unacknowledged { region, node: 0 }),
        }
    }

    /// Asks every replica to hold the tombstones, all replicas at once. Returns those that every
    /// one holds: without those that one refuses.
    async fn hold_everywhere(
        &self,
        wide: &Arc<dyn Link>,
        targets: &[Target],
        tombstones: Arc<Vec<Tombstone>>,
    ) -> Result<Arc<Vec<Tombstone>>, RegionCollectError> {
        let floors: Floors = targets.iter().map(|of| (of.region, of.membership)).collect();
        let mut held = JoinSet::new();
        for target in targets.iter().copied() {
            let (region, wide) = (self.clone(), Arc::clone(wide));
            let (floors, tombstones) = (floors.clone(), Arc::clone(&tombstones));
            held.spawn(async move {
                let mut refused = BTreeSet::new();
                for (at, chunk) in tombstones.chunks(MAX_TOMBSTONES).enumerate() {
                    let (membership, tombstones) = (target.membership, chunk.to_vec());
                    let question =
                        Question::Hold { membership, floors: floors.clone(), tombstones };
                    match region.ask_target(&wide, target, question).await {
                        Some(Answer::Epoch { .. }) => {}
                        Some(Answer::Fates { fates, .. })
                            if fates.len() == chunk.len() && !fates.contains(&Fate::Later) =>
                        {
                            let places = (at * MAX_TOMBSTONES..).zip(fates);
                            let places = places.filter(|(_, fate)| *fate == Fate::Refused);
                            refused.extend(places.map(|(at, _)| at));
                        }
                        _ => return Err(target.unacknowledged()),
                    }
                }
                Ok(refused)
            });
        }
        let mut refused = BTreeSet::new();
        // Ends: each turn takes one of them.
        while let Some(answered) = held.join_next().await {
            refused.extend(answered.map_err(|_| RegionCollectError::NotWhole)??);
        }
        let tombstones = Arc::unwrap_or_clone(tombstones);
        Ok(Arc::new(self.shared.node.without_refused(tombstones, &refused)))
    }

    /// Drops the tombstones at every replica, and says how many this one has dropped. A replica
    /// that misses it keeps its tombstones, and collects them another time.
    async fn forget_everywhere(
        &self,
        wide: &Arc<dyn Link>,
        targets: &[Target],
        epochs: &BTreeMap<u64, u64>,
        tombstones: &Arc<Vec<Tombstone>>,
    ) -> usize {
        let mut told = JoinSet::new();
        for target in targets.iter().copied() {
            let (region, wide) = (self.clone(), Arc::clone(wide));
            let (epoch, tombstones) = (epochs[&target.region] + 2, Arc::clone(tombstones));
            told.spawn(async move {
                let mut dropped = 0;
                for chunk in tombstones.chunks(MAX_TOMBSTONES) {
                    let (membership, tombstones) = (target.membership, chunk.to_vec());
                    let question = Question::Forget { membership, epoch, tombstones };
                    if let Some(Answer::Done) = region.ask_target(&wide, target, question).await {
                        dropped += chunk.len();
                    }
                }
                if target.node == region.shared.node.id() { dropped } else { 0 }
            });
        }
        let mut dropped = 0;
        // Ends: each turn takes one of them.
        while let Some(by_one) = told.join_next().await {
            dropped += by_one.unwrap_or(0);
        }
        dropped
    }

    /// Raises the epoch of a replica, and says what it is then.
    async fn raise(
        &self,
        wide: &Arc<dyn Link>,
        target: Target,
        epoch: u64,
    ) -> Result<u64, RegionCollectError> {
        let question = Question::Raise { membership: target.membership, epoch };
        match self.ask_target(wide, target, question).await {
            Some(Answer::Epoch { epoch: raised }) if raised >= epoch => Ok(raised),
            _ => Err(target.unacknowledged()),
        }
    }

    async fn ask_target(
        &self,
        wide: &Arc<dyn Link>,
        target: Target,
        question: Question,
    ) -> Option<Answer> {
        if target.node != self.shared.node.id() {
            return self.ask_node(wide, target.region, target.node, question).await;
        }
        let envelope = self.envelope(target.region, self.sender(), question);
        let reply = self.answer(envelope.encode()).await?;
        Some(Reply::decode(reply).ok()?.answer)
    }
}

impl Target {
    fn unacknowledged(self) -> RegionCollectError {
        RegionCollectError::Unacknowledged { region: self.region, node: self.node }
    }
}

pub(super) async fn run(shared: Weak<Shared>, every: Duration) {
    // Ends: with the last handle to the region or a link, or when the node ends.
    loop {
        sleep(every).await;
        let Some(shared) = shared.upgrade() else { return };
        let region = Region { shared };
        if region.wide().is_none() || region.shared.node.has_ended() {
            return;
        }
        if let Err(error) = region.collect_tombstones().await {
            tracing::debug!(target: "voussoir::quorum", %error, "not all collected");
        }
    }
}
