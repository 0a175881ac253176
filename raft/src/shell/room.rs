//! Looks how much room the store has for entries, and tells the core.

use crate::core::{Core, Input};
use crate::store::{LogStore, SMALL_LOG};

/// Between two looks while entries come in, or while the room is short, in nanoseconds.
const INTERVAL: u64 = 100_000_000;
/// Weight of entries after which it is looked again before that.
const WEIGHT: u64 = 256 << 10;
/// Between two looks of a group that is at rest and could release something, in nanoseconds:
/// another group of the store may need the room.
const AT_REST: u64 = 5_000_000_000;
/// The same of a group with a small log: many of them may hold all the room.
const AT_REST_WHEN_SMALL: u64 = 60_000_000_000;
/// The same while less than a quarter of the store is left.
const AT_REST_WHEN_LOW: u64 = 1_000_000_000;

/// When the store was last asked.
#[derive(Debug, Default)]
pub(crate) struct RoomWatch {
    /// Nothing more is asked: the store has no limit.
    is_unlimited: bool,
    asked_at: Option<u64>,
    /// The weight of the log then.
    weight: u64,
    is_short: bool,
    is_low: bool,
}

impl RoomWatch {
    /// When to look again, if nothing else happens before.
    pub(crate) fn deadline(&self, core: &Core) -> Option<u64> {
        let asked_at = self.asked_at.filter(|_| !self.is_unlimited)?;
        if self.is_short {
            return Some(asked_at.saturating_add(INTERVAL));
        }
        let wait = match core.log_bytes() {
            0 => return None,
            // With less it is not asked for a snapshot because others wait.
            bytes if bytes < SMALL_LOG / 2 => AT_REST_WHEN_SMALL,
            _ => self.at_rest(),
        };
        Some(asked_at.saturating_add(wait))
    }

    fn at_rest(&self) -> u64 {
        if self.is_low { AT_REST_WHEN_LOW } else { AT_REST }
    }

    /// Asks the store, where that is due, and tells the core.
    pub(crate) fn look(&mut self, core: &mut Core, log: &dyn LogStore, now: u64) {
        let weight = core.total_weight();
        let is_due = self.asked_at.is_none_or(|at| {
            let passed = now.saturating_sub(at);
            let is_other = weight != self.weight || self.is_short || passed >= self.at_rest();
            (passed >= INTERVAL && is_other) || weight.abs_diff(self.weight) >= WEIGHT
        });
        if self.is_unlimited || !is_due {
            return;
        }
        let Some(room) = log.room() else {
            self.is_unlimited = true;
            return;
        };
        (self.asked_at, self.weight) = (Some(now), weight);
        core.step(now, Input::Room { room });
        self.is_low = room.bytes < room.max_bytes / 4;
        let is_short = core.is_short_of_room();
        if is_short != self.is_short {
            let (node, group) = (core.config().id, core.config().group);
            let (bytes, max_bytes) = (room.bytes, room.max_bytes);
            if is_short {
                tracing::warn!(
                    target: "voussoir::raft", node, group, bytes, max_bytes,
                    "the store is short of room: no more entries until a snapshot has been taken"
                );
            } else {
                tracing::info!(
                    target: "voussoir::raft", node, group, bytes, max_bytes,
                    "the store has room for entries again"
                );
            }
        }
        self.is_short = is_short;
    }
}
