//! What is due when: a heap of small keys over a slab of payloads.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Events in order of time, and of insertion where times are equal.
///
/// The heap moves 24-byte keys; payloads stay where they are, and their places are used again,
/// so that nothing is allocated once the queue has reached its working size.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    heap: BinaryHeap<Reverse<(u64, u64, u32)>>,
    slots: Vec<Option<T>>,
    free: Vec<u32>,
    inserted: u64,
    limit: usize,
}

impl<T> Queue<T> {
    pub(crate) fn new(limit: usize) -> Self {
        Self { heap: BinaryHeap::new(), slots: Vec::new(), free: Vec::new(), inserted: 0, limit }
    }

    /// # Panics
    /// If more than the limit are waiting.
    pub(crate) fn push(&mut self, at: u64, item: T) {
        let slot = self.free.pop().unwrap_or_else(|| {
            assert!(
                self.slots.len() < self.limit,
                "more than {} events are waiting: a node floods the world",
                self.limit
            );
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize] = Some(item);
        self.heap.push(Reverse((at, self.inserted, slot)));
        self.inserted += 1;
    }

    /// Gives every waiting event the time that `time` returns for its time and itself. Events are
    /// visited in order; those that get equal times stay in that order.
    pub(crate) fn retime(&mut self, mut time: impl FnMut(u64, &T) -> u64) {
        let mut keys: Vec<_> = self.heap.drain().map(|Reverse(key)| key).collect();
        keys.sort_unstable();
        for key in &mut keys {
            let (at, inserted, slot) = key;
            if let Some(item) = &self.slots[*slot as usize] {
                *at = time(*at, item);
                // Visited in order, so that the later ones count as inserted later.
                *inserted = self.inserted;
                self.inserted += 1;
            }
        }
        self.heap = keys.into_iter().map(Reverse).collect();
    }

    /// The next event that is due at `until` or before.
    pub(crate) fn pop(&mut self, until: u64) -> Option<(u64, T)> {
        let &Reverse((at, _, slot)) = self.heap.peek()?;
        if at > until {
            return None;
        }
        self.heap.pop();
        self.free.push(slot);
        self.slots[slot as usize].take().map(|item| (at, item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    #[test]
    fn pops_by_time_and_then_by_insertion() {
        let mut rng = Rng::new(5);
        let mut queue = Queue::new(1_000);
        let mut model: Vec<(u64, u64)> = Vec::new();
        for number in 0..20_000_u64 {
            if model.len() < 1_000 && rng.chance(520_000) {
                let at = rng.below(50);
                queue.push(at, number);
                model.push((at, number));
            } else {
                let until = rng.below(50);
                let least = model.iter().min().copied().filter(|&(at, _)| at <= until);
                assert_eq!(queue.pop(until), least);
                model.retain(|&entry| Some(entry) != least);
            }
        }
        assert!(queue.slots.len() <= 1_000);
    }

    #[test]
    #[should_panic(expected = "more than 2 events are waiting")]
    fn is_bounded() {
        let mut queue = Queue::new(2);
        (0..3).for_each(|at| queue.push(at, ()));
    }
}
