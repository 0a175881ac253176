//! What room a store has left.

use crate::store::Room;

/// What the store last said, and what has been written since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    pub(super) room: Room,
    /// The weight of the log up to what was durable then.
    pub(super) weight: u64,
}

impl Left {
    /// Bytes that are left once the log up to `weight` has been written.
    pub(super) fn after(&self, weight: u64) -> u64 {
        self.room.bytes.saturating_sub(weight.saturating_sub(self.weight))
    }
}
