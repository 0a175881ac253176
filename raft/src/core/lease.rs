//! Linearizable reads without a round of heartbeats: the leader's lease.
//!
//! A node that hears its leader promises by that to vote for nobody for `min_election_timeout`. A
//! round of heartbeats that a majority has answered therefore keeps every other node from leading
//! for that long, counted from the *sending* of the round: each of the promises began later. The
//! leader takes off what two clocks may differ by. Source: thesis §6.4.1.
//!
//! The promise binds the node and not its term: it outlives the term in which it was made, and a
//! restart, after which the node assumes that it had just made one. Only the leader itself can
//! release voters from it, by [`Message::TimeoutNow`](crate::Message::TimeoutNow). That message may
//! arrive at any time, so a leader that has sent one has no lease until its term is over.

use super::leader::{BEATS, Leader};
use super::{Core, Timing};
use crate::config::{Config, nanos};

/// A million, in which a drift is counted.
const MILLION: u64 = 1_000_000;

/// How long a lease lasts from the sending of its round, by the clock of the leader, in
/// nanoseconds. `None`: leases are off.
///
/// The leader's clock runs slow by `drift` at most and a voter's fast by as much: while the voter's
/// measures `min_election_timeout`, the leader's measures at least this.
pub(super) fn lease_ns(config: &Config) -> Option<u64> {
    // The configuration bounds the product: an hour in nanoseconds, and a drift of a half.
    let drift = u64::from(config.max_clock_drift_ppm?).min(MILLION);
    Some(nanos(config.min_election_timeout) * (MILLION - drift) / (MILLION + drift))
}

/// Until when a node that starts in `term` has promised its vote away, as far as it can know: it
/// may have done so right before it ended. In term 0 nobody has heard a leader.
pub(super) fn promised_at_start(timing: Timing, term: u64) -> u64 {
    if timing.lease.is_some() && term > 0 { timing.min_election } else { 0 }
}

impl Leader {
    /// When a round of heartbeats was sent; `None` for one that is not remembered.
    pub(super) fn round_sent_at(&self, round: u64) -> Option<u64> {
        let remembered = (self.round + 1).saturating_sub(BEATS as u64).max(1)..=self.round;
        remembered.contains(&round).then(|| self.beats[(round % BEATS as u64) as usize])
    }

    /// Whether no other node can lead at `now`, when a majority has answered `round`.
    pub(super) fn has_lease(&self, round: u64, now: u64, lease: Option<u64>) -> bool {
        let (Some(lease), Some(sent_at)) = (lease, self.round_sent_at(round)) else { return false };
        !self.lease_given_up && now < sent_at.saturating_add(lease)
    }
}

impl Core {
    /// Reads that this node has answered by its lease, as a leader, since its start.
    pub fn lease_reads(&self) -> u64 {
        self.lease_reads
    }

    /// The leader of this term has been heard: it may count on this node for a while.
    pub(super) fn promise_no_vote(&mut self) {
        if self.timing.lease.is_some() {
            self.promised_until = self.now.saturating_add(self.timing.min_election);
        }
    }

    /// Whether some leader may count on it that this node votes for nobody.
    pub(super) fn has_promised(&self) -> bool {
        self.now < self.promised_until
    }
}
