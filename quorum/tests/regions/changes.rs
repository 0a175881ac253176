//! Changes of the replicas of regions, all along a long life.

use std::time::Duration;

use tokio::time::sleep;
use voussoir_quorum::region::PeerState;
use voussoir_quorum::*;

use super::lives::Life;
use super::world::{REGIONS, Start, nodes_of, region_of};

/// Nodes that may be replicas of a region.
pub(super) fn candidates(region: u64) -> Vec<u64> {
    nodes_of(region).into_iter().chain([201, 202].map(|first| first + 10 * region)).collect()
}

impl Life {
    /// A replica that lost its disk and will never come back.
    pub(super) fn dead(&self) -> Option<u64> {
        self.lost.filter(|_| self.is_dead)
    }

    pub(super) fn is_whole(&self, id: u64) -> bool {
        self.world.host(id).is_some_and(|host| host.node.is_whole())
    }

    /// Whether every replica of a region is whole.
    pub(super) fn is_full(&self, region: u64) -> bool {
        self.world.latest(region).ids().into_iter().all(|id| self.is_whole(id))
    }

    pub(super) fn is_changing(&self, region: u64) -> bool {
        self.world.latest(region).is_changing()
    }

    /// A whole replica of a region, another one than `but`.
    fn whole(&mut self, region: u64, but: u64) -> Option<u64> {
        let mut ids = self.world.latest(region).ids();
        self.rng.shuffle(&mut ids);
        ids.into_iter().find(|id| *id != but && self.is_whole(*id))
    }

    /// A region that is there; that of a dead replica before others.
    fn region(&mut self) -> Option<u64> {
        let regions = REGIONS.into_iter().filter(|region| self.is_there(*region));
        let regions: Vec<u64> = regions.collect();
        let of_dead = self.dead().map(region_of).filter(|region| regions.contains(region));
        of_dead.or_else(|| self.rng.pick(&regions).copied())
    }

    pub(super) fn is_there(&self, region: u64) -> bool {
        self.out != Some(region) && !self.down.contains(&region)
    }

    /// A node that is none of its region's replicas, and runs, so that it can be added.
    async fn spare(&mut self, region: u64) -> Option<u64> {
        let members = self.world.latest(region).ids();
        let mut spares = candidates(region);
        self.rng.shuffle(&mut spares);
        let id = spares.into_iter().find(|id| !members.contains(id) && self.dead() != Some(*id))?;
        self.counts.add("a removed node was added again", self.former.contains(&id).into());
        if let Some(host) = self.world.host(id) {
            if !matches!(*host.node.status().borrow(), Status::Removed { .. }) {
                return Some(id);
            }
            drop(host);
            self.world.crash(id);
        }
        let start = if self.world.has_disk(id) { Start::Again } else { Start::Join };
        self.world.start(id, start).await.unwrap();
        Some(id)
    }

    /// An operator changes the replicas of a region, and waits for it or not.
    pub(super) async fn change(&mut self) {
        let Some(region) = self.region() else { return };
        let members = self.world.latest(region).ids();
        let dead = self.dead().filter(|id| members.contains(id));
        let old = dead.or_else(|| self.rng.pick(&members).copied());
        let wanted = match (self.rng.below(6), old) {
            (0 | 1, _) if members.len() < 5 => self.spare(region).await.map(MemberChange::Add),
            (2 | 3, Some(old)) if self.may_shrink(&members) => Some(MemberChange::Remove(old)),
            (_, Some(old)) => {
                let new = self.spare(region).await;
                new.map(|new| MemberChange::Replace { old, new })
            }
            _ => None,
        };
        if let (Some(wanted), Some(at)) = (wanted, self.whole(region, 0)) {
            let timeout = Duration::from_millis(self.rng.between(50, 4_000));
            self.operate(at, wanted, timeout);
        }
    }

    /// An operator takes a replica out of a region that has enough of them. Returns the region
    /// while it is in the joint epoch.
    pub(super) async fn begin_change(&mut self) -> Option<u64> {
        let is_wide = |region: &u64| {
            let members = self.world.latest(*region).ids();
            self.is_there(*region) && self.is_full(*region) && self.may_shrink(&members)
        };
        let region = REGIONS.into_iter().find(is_wide)?;
        let members = self.world.latest(region).ids();
        let old = self.rng.pick(&members).copied()?;
        let at = self.whole(region, old)?;
        self.operate(at, MemberChange::Remove(old), Duration::from_secs(4));
        // The epoch is decided by a few messages.
        for _ in 0..100 {
            sleep(Duration::from_millis(1)).await;
            self.world.follow();
            if self.is_changing(region) {
                return Some(region);
            }
        }
        None
    }

    /// Whether three replicas are left, also if every operator that is still at work takes one out.
    fn may_shrink(&self, members: &[u64]) -> bool {
        members.len() > 3 + self.operators.len()
    }

    fn operate(&mut self, at: u64, wanted: MemberChange, timeout: Duration) {
        let Some((node, link, mut is_gone)) = self.world.operator(at) else { return };
        let counts = self.counts.clone();
        self.operators.push(tokio::spawn(async move {
            let changed = tokio::select! {
                biased;
                changed = node.reconfigure(&link, wanted, timeout) => changed,
                _ = is_gone.wait_for(|gone| *gone) => return,
            };
            let (added, removed, situation) = match wanted {
                MemberChange::Add(new) => (Some(new), None, "a replica was added"),
                MemberChange::Remove(old) => (None, Some(old), "a replica was removed"),
                MemberChange::Replace { old, new } => {
                    (Some(new), Some(old), "a replica was replaced")
                }
                other => panic!("{other:?}"),
            };
            match changed {
                Ok(after) => {
                    assert!(!after.is_changing() && added.is_none_or(|id| after.contains(id)));
                    assert!(!removed.is_some_and(|id| after.contains(id)), "{wanted:?} {after:?}");
                    counts.reached(situation);
                }
                Err(ReconfigureError::Rejected(_)) => counts.reached("a change was refused"),
                Err(_) => counts.reached("a change was not in time"),
            }
        }));
    }

    /// A replica is replaced that reaches nobody of its region, but the other regions: it does not
    /// know that it was replaced when tombstones are collected without it.
    pub(super) async fn strand(&mut self) {
        let Some(region) = self.region() else { return };
        if self.lost.is_some() || self.is_changing(region) || !self.is_full(region) {
            return;
        }
        let members = self.world.latest(region).ids();
        let Some(old) = self.rng.pick(&members).copied() else { return };
        let Some(new) = self.spare(region).await else { return };
        self.heal();
        self.restart().await;
        self.world.with(|state| state.alone.insert(old));
        if let Some(at) = self.whole(region, old) {
            self.operate(at, MemberChange::Replace { old, new }, Duration::from_secs(4));
        }
        sleep(Duration::from_secs(6)).await;
    }

    /// Notices what has become of the replicas.
    pub(super) fn look_at_replicas(&mut self) {
        for region in REGIONS {
            let latest = self.world.latest(region);
            for id in candidates(region) {
                let Some(host) = self.world.host(id) else { continue };
                if matches!(*host.node.status().borrow(), Status::Removed { .. }) {
                    self.former.insert(id);
                }
                let is_own = PeerState::Over { is_own: true };
                let is_over = host.region.stats().into_iter().any(|peer| peer.state == is_own);
                let is_told = !latest.contains(id) && host.node.is_whole() && is_over;
                self.counts.add("a removed replica was told by another region", is_told.into());
            }
        }
        let Some(lost) = self.lost else { return };
        let latest = self.world.latest(region_of(lost));
        if !latest.contains(lost) && !latest.is_changing() {
            self.counts.add("a dead replica was replaced", self.is_dead.into());
            (self.lost, self.is_dead) = (None, false);
        } else if self.is_whole(lost) {
            self.counts.reached("a lost disk was rebuilt");
            self.lost = None;
        }
    }

    /// Nodes that know that they were removed start again, empty.
    pub(super) fn end_removed(&mut self) {
        for id in self.world.running() {
            let Some(host) = self.world.host(id) else { continue };
            let is_removed = matches!(*host.node.status().borrow(), Status::Removed { .. });
            drop(host);
            if is_removed {
                self.world.crash(id);
            }
        }
    }

    /// The dead replica is replaced, or removed.
    pub(super) async fn replace_dead(&mut self) {
        let Some(dead) = self.dead() else { return };
        let region = region_of(dead);
        if self.is_changing(region) {
            return;
        }
        let change = match self.spare(region).await {
            Some(new) => MemberChange::Replace { old: dead, new },
            // All nodes of the region are replicas.
            None => MemberChange::Remove(dead),
        };
        if let Some(at) = self.whole(region, dead) {
            self.operate(at, change, Duration::from_secs(5));
        }
    }

    /// Whether no change is left in a region, and all its replicas are whole and know it.
    pub(super) fn is_settled(&self, region: u64) -> bool {
        let latest = self.world.latest(region);
        let serves = |id| {
            let host = self.world.host(id);
            host.is_some_and(|host| {
                host.node.is_whole() && host.node.membership().borrow().epoch() == latest.epoch()
            })
        };
        !latest.is_changing() && latest.ids().into_iter().all(serves)
    }
}
