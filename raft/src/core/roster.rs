//! The membership as this node counts it: the only place that knows what a majority is.

use crate::membership::Membership;
use crate::types::MAX_VOTERS;

/// The bit of this node itself in a set of places.
pub(super) const OWN: u64 = 1 << 63;

/// The other members by place, and the sets of places whose majorities decide.
#[derive(Clone, Debug, Default)]
pub(super) struct Roster {
    /// The other members, ascending. Invariant: at most 46, so that places fit a set.
    pub(super) others: Vec<u64>,
    /// The voters, and the outgoing voters of a joint membership, as sets of places and [`OWN`].
    halves: [u64; 2],
}

fn majority(of: u64) -> u32 {
    of.count_ones() / 2 + 1
}

impl Roster {
    pub(super) fn new(own: u64, members: &Membership) -> Self {
        let others: Vec<u64> = members.members().filter(|id| *id != own).collect();
        let bit = |id: &u64| match others.binary_search(id) {
            Ok(place) => 1 << place,
            Err(_) => OWN,
        };
        let set = |ids: &[u64]| ids.iter().map(bit).fold(0, |set, bit| set | bit);
        let halves = [set(members.voters()), set(members.outgoing())];
        Self { others, halves }
    }

    /// The place of another member.
    pub(super) fn place(&self, id: u64) -> Option<usize> {
        self.others.binary_search(&id).ok()
    }

    /// The places of all voters, this node's own bit included where it votes.
    pub(super) fn voters(&self) -> u64 {
        self.halves[0] | self.halves[1]
    }

    /// Whether this node votes.
    pub(super) fn votes(&self) -> bool {
        self.voters() & OWN != 0
    }

    /// Whether this node votes, and nobody else does.
    pub(super) fn is_sole_voter(&self) -> bool {
        self.voters() == OWN
    }

    fn deciding(&self) -> impl Iterator<Item = u64> {
        self.halves.into_iter().filter(|half| *half != 0)
    }

    /// Whether the places of `granted` hold a majority of each half. Nobody has won where nobody
    /// votes.
    pub(super) fn has_won(&self, granted: u64) -> bool {
        let won = |half: u64| (granted & half).count_ones() >= majority(half);
        self.voters() != 0 && self.deciding().all(won)
    }

    /// Whether those who have not refused are no majority of some half.
    pub(super) fn is_lost(&self, refused: u64) -> bool {
        self.deciding().any(|half| (half & !refused).count_ones() < majority(half))
    }

    /// The value that a majority of each half has reached, where this node has reached `own` and
    /// the member at a place has reached `of(place)`. 0 where nobody votes.
    pub(super) fn reached(&self, own: u64, of: impl Fn(usize) -> u64) -> u64 {
        let reached = |half: u64| {
            let (mut values, mut count, mut rest) = ([0; MAX_VOTERS], 0, half);
            while rest != 0 {
                let bit = rest & rest.wrapping_neg();
                values[count] = if bit == OWN { own } else { of(bit.trailing_zeros() as usize) };
                (rest, count) = (rest & !bit, count + 1);
            }
            let values = &mut values[..count];
            values.sort_unstable();
            values[count - majority(half) as usize]
        };
        self.deciding().map(reached).min().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joint_membership_needs_both_majorities() {
        let old = Membership::new([1, 2, 3]);
        let joint = old.joint_to(&Membership::new([1, 4, 5]));
        let roster = Roster::new(1, &joint);
        assert_eq!(roster.others, [2, 3, 4, 5]);
        let set = |ids: &[u64]| {
            let bit = |id: &u64| roster.place(*id).map_or(OWN, |place| 1 << place);
            ids.iter().map(bit).sum::<u64>()
        };
        assert!(!roster.has_won(set(&[1, 2, 3])), "only the old ones");
        assert!(!roster.has_won(set(&[1, 4, 5])), "only the new ones");
        assert!(!roster.has_won(set(&[2, 3, 4])));
        assert!(roster.has_won(set(&[1, 2, 4])));
        assert!(roster.has_won(set(&[2, 3, 4, 5])));
        assert!(roster.is_lost(set(&[4, 5])) && roster.is_lost(set(&[2, 3])));
        assert!(!roster.is_lost(set(&[2, 4])));
        // Places 0..4 are the nodes 2..=5.
        assert_eq!(roster.reached(9, |place| [9, 9, 0, 0][place]), 0);
        assert_eq!(roster.reached(9, |place| [0, 8, 0, 5][place]), 5);
        assert_eq!(roster.reached(0, |place| [7, 6, 5, 4][place]), 4);
    }

    #[test]
    fn learners_and_outsiders_count_for_nothing() {
        let target = Membership::new([2, 3, 4]);
        let with_learner = Membership::new([2, 3]).with_learners_of(&target);
        let roster = Roster::new(4, &with_learner);
        assert!(!roster.votes() && !roster.is_sole_voter());
        assert!(!roster.has_won(OWN) && !roster.is_lost(OWN));
        assert_eq!(roster.reached(9, |_| 3), 3);
        let nobody = Roster::new(4, &Membership::default());
        assert!(!nobody.has_won(u64::MAX) && !nobody.is_sole_voter());
        assert_eq!(nobody.reached(9, |_| 9), 0);
        assert!(Roster::new(4, &Membership::new([4])).is_sole_voter());
    }
}
