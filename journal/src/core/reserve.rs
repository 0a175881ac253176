//! Which commits may use which prepared segments, so that a full journal can be emptied.

/// Prepared segments that commits which only add records leave.
pub(crate) const RESERVE_SEGMENTS: usize = 3;

/// What a commit does to the space, which decides how much of the reserve it may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It adds records: none of the reserve.
    Adds,
    /// It adds records and says that it frees more space than they take: one segment.
    Frees,
    /// It adds no records: all of it. Two segments serve any number of such commits: nothing pins
    /// the first when the second is begun.
    Controls,
}

impl Claim {
    /// Prepared segments that it leaves to others.
    fn leaves(self) -> usize {
        match self {
            Self::Adds => RESERVE_SEGMENTS,
            Self::Frees => RESERVE_SEGMENTS - 1,
            Self::Controls => 0,
        }
    }
}

/// The prepared segments, as far as claims are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Supply {
    pub(crate) spares: usize,
    /// Segments of the reserve that batches are being moved to, which come back.
    pub(crate) lent: usize,
    /// The journal has not had its reserve yet: it is young.
    pub(crate) is_young: bool,
}

impl Supply {
    /// Whether such a commit may go into the active segment.
    pub(crate) fn admits(self, claim: Claim) -> bool {
        self.is_young || self.spares + self.lent >= claim.leaves()
    }

    /// Whether such a commit may begin the next segment.
    pub(crate) fn has_segment_for(self, claim: Claim) -> bool {
        self.spares > claim.leaves()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_claim_may_begin_it_may_go_on_in() {
        for claim in [Claim::Adds, Claim::Frees, Claim::Controls] {
            for spares in 0..=RESERVE_SEGMENTS + 1 {
                let supply = Supply { spares, lent: 0, is_young: false };
                if supply.has_segment_for(claim) {
                    assert!(Supply { spares: spares - 1, ..supply }.admits(claim));
                }
            }
        }
        // Two segments are left for commits that add nothing.
        let supply = Supply { spares: 2, lent: 0, is_young: false };
        assert!(supply.admits(Claim::Frees) && !supply.has_segment_for(Claim::Frees));
        assert!(!supply.admits(Claim::Adds));
        // One that is lent out does not make the active segment one of the reserve.
        let supply = Supply { lent: 1, ..supply };
        assert!(supply.admits(Claim::Adds) && !supply.has_segment_for(Claim::Adds));
    }
}
