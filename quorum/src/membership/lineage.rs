//! Which cluster a membership is of, and which of its pasts.
//!
//! Ids of nodes and numbers of epochs repeat: another cluster has a node 1 and an epoch 1, too, and
//! a cluster that was copied with its disks goes on from the same epoch as its original. So a
//! membership carries two names beside its number:
//!
//! - the **lineage** of its cluster, drawn once when the cluster is set up, and
//! - the **branch** of each of its last 32 epochs, drawn by whoever proposed what was then decided.
//!   Two successors of one epoch never have the same one (PostgreSQL's timelines are alike).
//!
//! Each request carries lineage, epoch and branch, and a node looks at them before anything else.

use super::Membership;

/// The name of a cluster, for the whole of its life: drawn by [`Lineage::draw`] when it is set up,
/// and the same on all of its nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lineage(u64);

impl Lineage {
    /// No name. In a node's configuration when it is created: a cluster without one, which is not
    /// told apart from another one without one that has nodes of the same ids. Everywhere else: the
    /// name is not known yet.
    pub const UNNAMED: Self = Self(0);

    /// A new one. Random: two are the same once in 2^64.
    pub fn draw() -> Self {
        Self(fastrand::u64(1..))
    }

    /// One that was drawn before. 0 is [`Lineage::UNNAMED`].
    pub const fn new(name: u64) -> Self {
        Self(name)
    }

    /// As a number, for configuration files.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whether there is a name.
    pub const fn is_named(self) -> bool {
        self.0 != 0
    }
}

/// 16 hexadecimal digits.
impl std::fmt::Display for Lineage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What names one epoch of one cluster, in each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) lineage: Lineage,
    pub(crate) epoch: u64,
    /// 0 in the first epoch, and in a cluster without a name.
    pub(crate) branch: u64,
}

impl Membership {
    /// How many branches a membership remembers.
    pub(super) const MAX_BRANCHES: usize = 32;

    /// The membership of the first epoch of a cluster with a name.
    #[must_use]
    pub fn of_lineage(mut self, lineage: Lineage) -> Self {
        self.lineage = lineage;
        self.branches = vec![0; self.count_of_branches()];
        self
    }

    /// The name of the cluster.
    pub fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// How many branches a membership of this epoch has.
    pub(super) fn count_of_branches(&self) -> usize {
        let later = usize::try_from(self.epoch.saturating_sub(Self::FIRST_EPOCH));
        let count = later.unwrap_or(usize::MAX).min(Self::MAX_BRANCHES);
        if self.lineage.is_named() { count } else { 0 }
    }

    /// The branches of the membership that follows this one; its own is not drawn yet.
    pub(super) fn branches_behind(&self) -> Vec<u64> {
        if !self.lineage.is_named() {
            return Vec::new();
        }
        let from = (self.branches.len() + 1).saturating_sub(Self::MAX_BRANCHES);
        self.branches[from..].iter().copied().chain([0]).collect()
    }

    /// This membership, as one proposer proposes it.
    #[must_use]
    pub(crate) fn drawn(&self) -> Self {
        let mut drawn = self.clone();
        if let Some(own) = drawn.branches.last_mut() {
            *own = fastrand::u64(1..);
        }
        drawn
    }

    /// Whether another membership is the same but for who proposed it.
    pub(crate) fn is_same_change(&self, other: &Self) -> bool {
        let is_same_set = self.members == other.members && self.next == other.next;
        is_same_set && (self.lineage, self.epoch) == (other.lineage, other.epoch)
    }

    /// The branch of an epoch up to this one. None: it is not remembered.
    fn branch_of(&self, epoch: u64) -> Option<u64> {
        if epoch <= Self::FIRST_EPOCH {
            return Some(0);
        }
        let back = usize::try_from(self.epoch.checked_sub(epoch)?).ok()?;
        let at = self.branches.len().checked_sub(back + 1)?;
        self.branches.get(at).copied()
    }

    pub(crate) fn stamp(&self) -> Stamp {
        let branch = self.branches.last().copied().unwrap_or(0);
        Stamp { lineage: self.lineage, epoch: self.epoch, branch }
    }

    /// Whether who serves this membership may hear what carries `stamp`: it is of the same cluster,
    /// and of no other past of it, as far as both are remembered here. A later epoch is heard: what
    /// led to it is seen once it is offered.
    pub(crate) fn hears(&self, stamp: Stamp) -> bool {
        if self.epoch == 0 && !self.lineage.is_named() {
            return true; // It counts for nothing, and has to learn of which cluster it is.
        }
        let is_same_past = stamp.epoch > self.epoch
            || self.branch_of(stamp.epoch).is_none_or(|branch| branch == stamp.branch);
        self.lineage == stamp.lineage && is_same_past
    }

    /// Whether two memberships are of one cluster, and the earlier one in the past of the later, as
    /// far as that is remembered. Who knows of none yet is kin to all.
    pub(crate) fn is_kin(&self, other: &Self) -> bool {
        let is_later = other.epoch >= self.epoch;
        if is_later { self.is_in_past_of(other) } else { other.is_in_past_of(self) }
    }

    /// Whether `later` is of the same cluster, and has this epoch in its past.
    pub(crate) fn is_in_past_of(&self, later: &Self) -> bool {
        if self.epoch == 0 {
            return !self.lineage.is_named() || self.lineage == later.lineage;
        }
        let own = self.stamp();
        let is_same_past = later.branch_of(self.epoch).is_none_or(|branch| branch == own.branch);
        self.lineage == later.lineage && is_same_past
    }
}
