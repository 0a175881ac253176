//! When the leader of a shard hands it over to the preferred leader.
//!
//! A hand-over refuses writes until it has succeeded or failed, so it is not begun where it is
//! known to fail, and not begun again at once where it has failed. A node whose disk hangs lives
//! and answers heartbeats; only what it acknowledges stands still.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// A node hands a shard to its preferred leader after leading it for so long: a node that has just
/// come back takes up its replicas first.
const SETTLED: Duration = Duration::from_secs(2);
/// Pause after a hand-over that did not make the preferred leader lead.
const PAUSE: Duration = Duration::from_secs(30);

/// What the leader of a shard knows of the preferred leader.
#[derive(Debug, Clone, Copy)]
pub struct Preferred {
    /// Its node is alive, it votes, and entries flow to its replica.
    pub is_there: bool,
    /// Its replica was heard within an election timeout, or the group is at rest, where nobody says
    /// anything.
    pub is_heard: bool,
    /// The last index that is durable there.
    pub matched: u64,
}

/// The shards that this node leads, or has tried to hand over.
#[derive(Default)]
pub struct HandOvers {
    shards: BTreeMap<u64, Shard>,
}

#[derive(Default)]
struct Shard {
    /// Since when this node leads it.
    led_since: Option<Instant>,
    /// What the preferred leader had when it was last looked at.
    matched: Option<u64>,
    /// Until then no hand-over is tried again.
    paused_until: Option<Instant>,
}

impl HandOvers {
    /// This node does not lead the shard; perhaps the preferred leader does.
    pub fn led_by_another(&mut self, shard: u64, is_preferred: bool) {
        if is_preferred {
            self.shards.remove(&shard);
        } else if let Some(shard) = self.shards.get_mut(&shard) {
            (shard.led_since, shard.matched) = (None, None);
        }
    }

    /// This node leads the shard at `now`, and has committed up to `commit`. Returns whether the
    /// shard can be handed over to the preferred leader. To be called in each round.
    pub fn may_begin(
        &mut self,
        shard: u64,
        preferred: Preferred,
        commit: u64,
        now: Instant,
    ) -> bool {
        let shard = self.shards.entry(shard).or_default();
        let Preferred { is_there, is_heard, matched } = preferred;
        let before = shard.matched.replace(matched);
        let keeps_up = matched >= commit || before.is_some_and(|before| matched > before);
        let is_settled = now >= *shard.led_since.get_or_insert(now) + SETTLED;
        let is_paused = shard.paused_until.is_some_and(|until| now < until);
        is_there && is_heard && keeps_up && is_settled && !is_paused
    }

    /// A hand-over of the shard begins at `now`.
    pub fn begins(&mut self, shard: u64, now: Instant) {
        self.shards.entry(shard).or_default().paused_until = Some(now + PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Preferred = Preferred { is_there: true, is_heard: true, matched: 10 };

    /// Shard 1 has been led for long enough.
    fn settled() -> (HandOvers, Instant) {
        let (mut overs, began) = (HandOvers::default(), Instant::now());
        assert!(!overs.may_begin(1, GOOD, 10, began), "it has just begun to lead");
        assert!(!overs.may_begin(1, GOOD, 10, began + SETTLED / 2));
        (overs, began + SETTLED)
    }

    #[test]
    fn a_shard_is_handed_over_to_a_preferred_leader_that_keeps_up() {
        let (mut overs, now) = settled();
        assert!(overs.may_begin(1, GOOD, 10, now));
        for bad in [Preferred { is_there: false, ..GOOD }, Preferred { is_heard: false, ..GOOD }] {
            assert!(!overs.may_begin(1, bad, 10, now), "{bad:?}");
        }
        // Others are ahead of it, but what it has grows.
        let grows = Preferred { matched: 11, ..GOOD };
        assert!(overs.may_begin(1, grows, 20, now));
        assert!(!overs.may_begin(2, GOOD, 10, now), "a shard that it has just begun to lead");
    }

    /// Its node lives, entries flow to it, and it acknowledges nothing.
    #[test]
    fn a_shard_is_not_handed_over_to_a_node_whose_disk_hangs() {
        let (mut overs, now) = settled();
        for commit in 11..100 {
            assert!(!overs.may_begin(1, GOOD, commit, now + PAUSE));
        }
    }

    #[test]
    fn a_hand_over_that_failed_is_not_tried_again_at_once() {
        let (mut overs, now) = settled();
        assert!(overs.may_begin(1, GOOD, 10, now));
        overs.begins(1, now);
        let soon = now + PAUSE / 2;
        assert!(!overs.may_begin(1, GOOD, 10, soon), "writes were refused meanwhile");
        // Also where another one led for a moment.
        overs.led_by_another(1, false);
        assert!(!overs.may_begin(1, GOOD, 10, soon));
        assert!(!overs.may_begin(1, GOOD, 10, soon + SETTLED));
        assert!(overs.may_begin(1, GOOD, 10, now + PAUSE));
        // One that succeeded and came back is as good as any other.
        overs.begins(1, now + PAUSE);
        overs.led_by_another(1, true);
        let back = now + PAUSE * 5 / 4;
        assert!(!overs.may_begin(1, GOOD, 10, back));
        assert!(overs.may_begin(1, GOOD, 10, back + SETTLED));
    }
}
