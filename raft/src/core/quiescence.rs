//! What a core keeps for its quiescence: who is alive, and whether its group rests.

/// What a core keeps for its quiescence.
#[derive(Debug, Default)]
pub(super) struct Quiescence {
    /// Nodes that are alive, this one included, with their lives. Ascending ids; the caller names
    /// members only.
    alive: Vec<(u64, u64)>,
    /// Invariant: only of a leader, or of a follower that knows one.
    pub(super) quiesced: bool,
    /// When a leader last had something to do.
    pub(super) busy_at: u64,
    /// When a client, here or at another node, last asked something of this node as a leader.
    pub(super) asked_at: Option<u64>,
    /// The latest term in which this node quiesced as the leader; 0 for none.
    pub(super) reign: u64,
    /// The latest term whose leader has said that its leadership is over; 0 for none.
    pub(super) resigned: u64,
}

impl Quiescence {
    pub(super) fn life(&self, node: u64) -> Option<u64> {
        let at = self.alive.binary_search_by_key(&node, |(id, _)| *id).ok()?;
        Some(self.alive[at].1)
    }

    pub(super) fn set_life(&mut self, node: u64, life: Option<u64>) {
        match (self.alive.binary_search_by_key(&node, |(id, _)| *id), life) {
            (Ok(at), Some(life)) => self.alive[at].1 = life,
            (Ok(at), None) => drop(self.alive.remove(at)),
            (Err(at), Some(life)) => self.alive.insert(at, (node, life)),
            (Err(_), None) => {}
        }
    }
}
