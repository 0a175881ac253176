//! A log that has lost entries is brought back from its peers.
//!
//! The store says what was lost ([`Restored::set_lost`](super::Restored::set_lost)), and the core
//! starts from what lies before. Up to where the log once reached it may have acknowledged entries,
//! and some of them may be committed only thanks to that. So until it holds them again it votes for
//! nobody, itself included. Nobody then leads who does not hold them: whoever has a majority
//! without this node has a voter that holds each of them. Otherwise it is a follower that is
//! behind, and [`AppendReject::is_recovering`](crate::message::AppendReject::is_recovering) has its
//! leader send again what it took for acknowledged.
//!
//! Source: Alagappan et al., "Protocol-Aware Recovery for Consensus-Based Storage" (2018), whose
//! rule that a leader may be damaged too is not taken over.

use super::Core;

impl Core {
    /// Whether this node is being repaired: it neither votes nor leads.
    pub(super) fn is_recovering(&self) -> bool {
        self.debt.is_some()
    }

    /// Ends the repair once the log is durable and equal to a leader's as far as it ever reached.
    ///
    /// Or up to an entry of a later term than any that was lost: the leader of that term had, when
    /// it was elected, all that was committed before, and whatever else the log had held was not.
    pub(super) fn advance_repair(&mut self) {
        let Some(debt) = self.debt else { return };
        let settled = self.verified.min(self.storage.durable());
        let is_superseded = self.log.term_at(settled).is_some_and(|term| term > debt.term);
        if settled >= debt.until || is_superseded {
            self.debt = None;
            self.storage.repaired();
        }
    }
}
