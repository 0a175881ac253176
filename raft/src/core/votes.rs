//! Votes, counted.

use super::roster::OWN;

/// The answers to one round of an election, as sets of places in the [roster](super::roster).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Votes {
    pub(super) granted: u64,
    pub(super) refused: u64,
}

impl Votes {
    /// The votes when only this node's own is given.
    pub(super) fn with_own() -> Self {
        Self { granted: OWN, ..Self::default() }
    }

    /// Whether this node's own vote is among them.
    pub(super) fn has_own(self) -> bool {
        self.granted & OWN != 0
    }

    pub(super) fn answered(self) -> u64 {
        self.granted | self.refused
    }

    pub(super) fn note(&mut self, place: usize, granted: bool) {
        let bit = 1 << place;
        if granted {
            self.granted |= bit;
        } else {
            self.refused |= bit;
        }
    }
}

/// The votes for this node in the current term.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ballot {
    pub(super) votes: Votes,
    /// When it asked for them.
    pub(super) asked_at: u64,
}
