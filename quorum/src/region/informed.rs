//! What a node keeps and learns of the memberships of all regions: see [`floors`](super::floors).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::task::JoinSet;

use super::floors::{self, Floors};
use super::handle::Region;
use super::wire::{Answer, MapStamp, Question, Sender};
use crate::caller::Scope;
use crate::link::Link;
use crate::membership::{Lineage, Stamp};
use crate::table::{Level, Reply, Request};

impl Region {
    pub(super) fn map_stamp(&self) -> MapStamp {
        let (config, key) = (&self.shared.config, self.shared.node.digest_key());
        MapStamp { epoch: config.epoch, digest: config.digest(key) }
    }

    /// The node, as the membership has it that it serves.
    pub(super) fn sender(&self) -> Sender {
        let node = &self.shared.node;
        Sender { node: node.id(), stamp: node.current().stamp() }
    }

    /// Whether all floors are known, and those that are.
    pub(super) fn floors(&self) -> (bool, Floors) {
        let record = self.shared.feed.record.lock();
        (record.is_informed, record.floors.clone())
    }

    /// Whether a node of a region that serves a membership is heard.
    pub(super) fn is_heard(&self, region: u64, stamp: Stamp) -> bool {
        let lineage = self.shared.config.member(region).map(|member| member.lineage);
        let is_named = lineage.is_some_and(Lineage::is_named);
        let record = self.shared.feed.record.lock();
        (!is_named || lineage == Some(stamp.lineage))
            && floors::admits(record.floors.get(&region), stamp)
    }

    /// Adds floors, durably. None: they are not known to be durable.
    pub(super) async fn keep_floors(&self, later: Floors, is_all: bool) -> Option<()> {
        let _keeping = self.shared.keeping.lock().await;
        let before = self.shared.feed.record.lock().clone();
        let (mut floors, config) = (before.floors.clone(), &self.shared.config);
        floors::raise(&mut floors, later);
        let after = before.with_floors(config, floors, before.is_informed || is_all);
        if after != before {
            self.shared.node.keep(&after).await.then_some(())?;
            *self.shared.feed.record.lock() = after;
        }
        Some(())
    }

    /// Learns what is over, if the node does not know it: of a replica of its region, or of a
    /// majority of another region. Returns whether it knows.
    pub(super) async fn learn_floors(&self, wide: &Arc<dyn Link>) -> bool {
        if self.floors().0 {
            return true;
        }
        let (own, current) = (self.shared.config.own, self.shared.node.current());
        let of_own = BTreeSet::from_iter(current.ids());
        for id in of_own.into_iter().filter(|id| *id != self.shared.node.id()) {
            // Whoever serves this membership has been told all that was collected before it, and
            // what is collected in it asks this node, too.
            if let Some((stamp, floors)) = self.floors_of(wide, own, id).await
                && stamp == current.stamp()
            {
                return self.keep_floors(floors, true).await.is_some();
            }
        }
        for region in self.shared.config.others().map(|region| region.id) {
            let Some(Answer::Welcome { membership, .. }) =
                self.ask(wide, region, Question::Hello).await
            else {
                continue;
            };
            let (mut known, mut all) = (BTreeSet::new(), Floors::new());
            for id in membership.ids() {
                if let Some((stamp, floors)) = self.floors_of(wide, region, id).await
                    && stamp == membership.stamp()
                {
                    floors::raise(&mut all, floors);
                    known.insert(id);
                }
            }
            if membership.is_met(Level::Quorum, |id| known.contains(&id)) {
                return self.keep_floors(all, true).await.is_some();
            }
        }
        false
    }

    /// All that a node knows, if it knows all.
    async fn floors_of(
        &self,
        wide: &Arc<dyn Link>,
        region: u64,
        id: u64,
    ) -> Option<(Stamp, Floors)> {
        match self.ask_node(wide, region, id, Question::Hello).await? {
            Answer::Welcome { is_informed: true, floors, membership, .. } => {
                Some((membership.stamp(), floors))
            }
            _ => None,
        }
    }

    /// The epoch of collected tombstones that other regions are told: one that a write quorum of
    /// the region has durably. A lost disk does not take it back, for the replica is rebuilt from
    /// so many others that one of them has it; were it taken back, a state that is sent with it
    /// would pass the next collection. None: no quorum has answered.
    pub(super) async fn told_epoch(&self, scope: &Scope) -> Option<u64> {
        let confirmed = &self.shared.confirmed;
        if confirmed.load(Ordering::Relaxed) >= scope.epoch {
            return Some(scope.epoch);
        }
        let (node, local) = (&self.shared.node, self.local()?);
        let (mut holders, mut asked) = (BTreeSet::from([node.id()]), JoinSet::new());
        for id in scope.membership.ids().into_iter().filter(|id| *id != node.id()) {
            let (node, local, scope) = (node.clone(), Arc::clone(&local), scope.clone());
            asked.spawn(async move {
                let ask = Request::Epoch { epoch: scope.epoch };
                let told = node.request(&local, id, &scope, ask).await;
                matches!(told, Some(Reply::Epoch { epoch }) if epoch >= scope.epoch).then_some(id)
            });
        }
        // Ends: each turn takes one of them.
        loop {
            if scope.membership.is_met(node.write_level(), |id| holders.contains(&id)) {
                confirmed.fetch_max(scope.epoch, Ordering::Relaxed);
                return Some(scope.epoch);
            }
            holders.extend(asked.join_next().await?.ok().flatten());
        }
    }
}
