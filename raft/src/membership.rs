//! Who belongs to a group, and how that changes.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::ChangeRejected;
use crate::types::MAX_VOTERS;

/// The most learners that a group may have.
pub const MAX_LEARNERS: usize = 16;

/// The longest address of a member, in bytes.
pub const MAX_ADDRESS_BYTES: usize = 255;

/// The members of a group: who votes, who only learns, and where they are.
///
/// It is joint while voters are exchanged: elections and commits then need a majority of
/// [`voters`](Self::voters) and one of [`outgoing`](Self::outgoing). Source: Raft §6, thesis §4.3.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Membership {
    /// Ascending, each id once. Invariant: at most `MAX_VOTERS`.
    voters: Vec<u64>,
    /// The voters before the change that is under way; empty unless joint. Ascending.
    outgoing: Vec<u64>,
    /// Ascending. Invariant: at most `MAX_LEARNERS`, none of `voters`.
    learners: Vec<u64>,
    /// Invariant: of members only, at most `MAX_ADDRESS_BYTES` each.
    addresses: BTreeMap<u64, String>,
}

impl Membership {
    /// Voters alone, in any order.
    pub fn new(voters: impl IntoIterator<Item = u64>) -> Self {
        let voters: BTreeSet<u64> = voters.into_iter().collect();
        Self { voters: voters.into_iter().collect(), ..Self::default() }
    }

    /// The voters, ascending; while it is joint, those after the change.
    pub fn voters(&self) -> &[u64] {
        &self.voters
    }

    /// The voters before the change that is under way, ascending; empty unless it is joint.
    pub fn outgoing(&self) -> &[u64] {
        &self.outgoing
    }

    /// Members that take the log and have no vote, ascending.
    pub fn learners(&self) -> &[u64] {
        &self.learners
    }

    /// Whether voters are being exchanged.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether nobody votes: the membership of a node that has not heard of its group yet.
    pub fn is_empty(&self) -> bool {
        self.voters.is_empty()
    }

    /// Whether `id` votes, before or after the change that is under way.
    pub fn is_voter(&self, id: u64) -> bool {
        self.voters.binary_search(&id).is_ok() || self.outgoing.binary_search(&id).is_ok()
    }

    /// Whether `id` votes or learns.
    pub fn contains(&self, id: u64) -> bool {
        self.is_voter(id) || self.learners.binary_search(&id).is_ok()
    }

    /// Every member, ascending.
    pub fn members(&self) -> impl Iterator<Item = u64> {
        let all = self.voters.iter().chain(&self.outgoing).chain(&self.learners);
        all.copied().collect::<BTreeSet<u64>>().into_iter()
    }

    /// Where `id` is, if the change that added it said so.
    pub fn address(&self, id: u64) -> Option<&str> {
        self.addresses.get(&id).map(String::as_str)
    }

    /// Every address, by the id of its member.
    pub fn addresses(&self) -> &BTreeMap<u64, String> {
        &self.addresses
    }

    /// The parts as they were decoded; `None` when they are no membership.
    pub(crate) fn from_parts(
        voters: Vec<u64>,
        outgoing: Vec<u64>,
        learners: Vec<u64>,
        addresses: BTreeMap<u64, String>,
    ) -> Option<Self> {
        let ascends = |ids: &[u64]| ids.windows(2).all(|pair| pair[0] < pair[1]);
        let this = Self { voters, outgoing, learners, addresses };
        let sound = [&this.voters, &this.outgoing, &this.learners].iter().all(|ids| ascends(ids))
            && this.voters.len().max(this.outgoing.len()) <= MAX_VOTERS
            && this.learners.len() <= MAX_LEARNERS
            && this.learners.iter().all(|id| this.voters.binary_search(id).is_err())
            && (!this.voters.is_empty() || this.members().next().is_none())
            && this
                .addresses
                .iter()
                .all(|(id, address)| this.contains(*id) && address.len() <= MAX_ADDRESS_BYTES);
        sound.then_some(this)
    }

    /// The joint membership on the way from `self` to `target`.
    pub(crate) fn joint_to(&self, target: &Self) -> Self {
        let mut addresses = self.addresses.clone();
        addresses.extend(target.addresses.clone());
        let mut joint = Self { outgoing: self.voters.clone(), addresses, ..target.clone() };
        joint.keep_addresses_of_members();
        joint
    }

    /// What a joint membership ends in.
    pub(crate) fn after_joint(&self) -> Self {
        let mut after = Self { outgoing: Vec::new(), ..self.clone() };
        after.keep_addresses_of_members();
        after
    }

    /// The same with the voters of `target` that are no members yet as learners.
    pub(crate) fn with_learners_of(&self, target: &Self) -> Self {
        let mut learners: BTreeSet<u64> = self.learners.iter().copied().collect();
        learners.extend(target.members().filter(|id| !self.contains(*id)));
        let mut addresses = self.addresses.clone();
        addresses.extend(target.addresses.clone());
        let mut with = Self { learners: learners.into_iter().collect(), addresses, ..self.clone() };
        with.keep_addresses_of_members();
        with
    }

    /// How many voters differ between the two.
    pub(crate) fn voters_that_differ(&self, other: &Self) -> usize {
        let only = |a: &Self, b: &Self| {
            a.voters.iter().filter(|id| b.voters.binary_search(id).is_err()).count()
        };
        only(self, other) + only(other, self)
    }

    fn keep_addresses_of_members(&mut self) {
        let members: BTreeSet<u64> = self.members().collect();
        self.addresses.retain(|id, _| members.contains(id));
    }
}

impl From<Vec<u64>> for Membership {
    fn from(voters: Vec<u64>) -> Self {
        Self::new(voters)
    }
}

/// What is to change in a group's membership, as one step for its caller.
///
/// Nodes that become voters learn first: the leader adds them as learners, waits until they have
/// caught up, and only then gives them a vote. More than one voter changes by way of a joint
/// membership, which the leader enters and leaves by itself.
///
/// # Example
/// ```
/// use voussoir_raft::Change;
///
/// // Node 4 takes the place of node 2.
/// let change = Change::new().voter(4).address(4, "10.0.0.4:7000").remove(2);
/// # drop(change);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    voters: BTreeSet<u64>,
    learners: BTreeSet<u64>,
    removed: BTreeSet<u64>,
    addresses: BTreeMap<u64, String>,
}

impl Change {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// `id` becomes a voter, after it has caught up as a learner.
    #[must_use]
    pub fn voter(mut self, id: u64) -> Self {
        self.voters.insert(id);
        self
    }

    /// `id` becomes a learner: it takes the log and has no vote. A voter loses its vote.
    #[must_use]
    pub fn learner(mut self, id: u64) -> Self {
        self.learners.insert(id);
        self
    }

    /// `id` leaves the group. Nothing happens if it is no member.
    #[must_use]
    pub fn remove(mut self, id: u64) -> Self {
        self.removed.insert(id);
        self
    }

    /// Where `id` is: at most [`MAX_ADDRESS_BYTES`], handed to every member's
    /// [`Transport::members`](crate::Transport::members).
    #[must_use]
    pub fn address(mut self, id: u64, address: impl Into<String>) -> Self {
        self.addresses.insert(id, address.into());
        self
    }

    /// Whether the change makes sense, as far as it can be told without waiting for those before.
    pub(crate) fn check(&self, current: &Membership) -> Result<(), ChangeRejected> {
        let twice = self.voters.intersection(&self.learners).next().is_some()
            || self.removed.iter().any(|id| self.voters.contains(id) || self.learners.contains(id));
        let adds_zero = self.voters.contains(&0) || self.learners.contains(&0);
        if twice {
            Err(ChangeRejected::Contradiction)
        } else if adds_zero && !current.contains(0) {
            Err(ChangeRejected::NoId)
        } else {
            Ok(())
        }
    }

    /// What `current` becomes.
    pub(crate) fn apply(&self, current: &Membership) -> Result<Membership, ChangeRejected> {
        self.check(current)?;
        let out = |id: &u64, into: &BTreeSet<u64>| into.contains(id) || self.removed.contains(id);
        let kept = |ids: &[u64], into: &BTreeSet<u64>, other: &BTreeSet<u64>| -> BTreeSet<u64> {
            ids.iter().copied().filter(|id| !out(id, other)).chain(into.iter().copied()).collect()
        };
        let voters = kept(&current.voters, &self.voters, &self.learners);
        let learners = kept(&current.learners, &self.learners, &self.voters);
        let mut addresses = current.addresses.clone();
        addresses.extend(self.addresses.clone());
        let mut target = Membership {
            voters: voters.into_iter().collect(),
            outgoing: Vec::new(),
            learners: learners.into_iter().collect(),
            addresses,
        };
        target.keep_addresses_of_members();
        // While the new voters catch up they are learners too.
        let learning = target.members().filter(|id| !current.is_voter(*id)).count();
        let left = current.learners.iter().filter(|id| !target.contains(**id)).count();
        if target.voters.is_empty() {
            Err(ChangeRejected::NoVoters)
        } else if target.voters.len() > MAX_VOTERS
            || learning + left > MAX_LEARNERS
            || target.learners.len() > MAX_LEARNERS
        {
            Err(ChangeRejected::TooManyMembers)
        } else if target.addresses.values().any(|address| address.len() > MAX_ADDRESS_BYTES) {
            Err(ChangeRejected::AddressTooLong)
        } else {
            Ok(target)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_one_membership_whatever_its_order() {
        let three = Membership::new([3, 1, 2]);
        let replaced = Change::new().remove(2).voter(4).apply(&three).unwrap();
        assert_eq!(replaced.voters(), [1, 3, 4]);
        assert_eq!(three.voters_that_differ(&replaced), 2);
        let joint = three.joint_to(&replaced);
        assert_eq!((joint.voters(), joint.outgoing()), (&[1, 3, 4][..], &[1, 2, 3][..]));
        assert!(joint.is_voter(2) && joint.is_voter(4) && joint.is_joint());
        assert_eq!(joint.after_joint(), replaced);
        let demoted = Change::new().learner(3).apply(&three).unwrap();
        assert_eq!((demoted.voters(), demoted.learners()), (&[1, 2][..], &[3][..]));
        assert!(three.joint_to(&demoted).is_voter(3));
    }

    #[test]
    fn what_makes_no_membership_is_rejected() {
        let one = Membership::new([1]);
        let refused = |change: Change| change.apply(&one).unwrap_err();
        assert_eq!(refused(Change::new().remove(1)), ChangeRejected::NoVoters);
        assert_eq!(refused(Change::new().voter(2).remove(2)), ChangeRejected::Contradiction);
        assert_eq!(refused(Change::new().voter(2).learner(2)), ChangeRejected::Contradiction);
        for zero in
            [Change::new().voter(0), Change::new().learner(0), Change::new().voter(0).voter(2)]
        {
            assert_eq!(refused(zero), ChangeRejected::NoId);
        }
        Change::new().remove(0).apply(&one).expect("who is no member may be removed");
        let begun = Change::new().learner(0).apply(&Membership::new([0, 1])).unwrap();
        assert_eq!(begun.learners(), [0], "a group may have begun with it");
        let many = (2..40).fold(Change::new(), Change::learner);
        assert_eq!(refused(many), ChangeRejected::TooManyMembers);
        let far = Change::new().voter(2).address(2, "x".repeat(MAX_ADDRESS_BYTES + 1));
        assert_eq!(refused(far), ChangeRejected::AddressTooLong);
        let gone = Change::new().address(9, "nowhere").apply(&one).unwrap();
        assert_eq!(gone, one, "who is no member has no address");
    }
}
