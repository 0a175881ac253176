//! Votes, counted.

/// The answers to one round of an election, as sets of places in the list of other voters.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Votes {
    pub(super) own: bool,
    granted: u16,
    refused: u16,
}

impl Votes {
    /// The votes when only this node's own is given.
    pub(super) fn with_own() -> Self {
        Self { own: true, ..Self::default() }
    }

    pub(super) fn granted(self) -> usize {
        self.granted.count_ones() as usize + usize::from(self.own)
    }

    pub(super) fn refused(self) -> usize {
        self.refused.count_ones() as usize
    }

    pub(super) fn answered(self) -> u16 {
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
