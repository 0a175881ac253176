//! The queue of callers that wait for a permit: in which order they are served, and for how long
//! they may wait.

use std::collections::VecDeque;

/// Who is served next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueOrder {
    /// First come, first served.
    Fifo,
    /// Last come, first served: under a standing queue the newest callers are the ones that are
    /// still waiting for their answer.
    Lifo,
    /// First come, first served until the queue stands, last come first served then.
    ///
    /// Source: B. Maurer, "Fail at Scale" (2015), "adaptive LIFO".
    Adaptive,
}

/// How long a call may wait, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// While the queue has been empty within the last `standing_after`.
    pub(crate) usual: u64,
    /// While the queue is standing: not empty for at least `standing_after`.
    pub(crate) standing: u64,
    pub(crate) standing_after: u64,
}

#[derive(Debug)]
struct Entry<W> {
    id: u64,
    expires: u64,
    waiter: W,
}

/// A bounded queue under controlled delay.
///
/// Source: "Fail at Scale" (2015), after K. Nichols, V. Jacobson, "Controlling Queue Delay"
/// (2012): a queue that has not been empty for a whole interval is a standing one, and its waiters
/// get the short patience.
#[derive(Debug)]
pub(crate) struct WaitQueue<W> {
    entries: VecDeque<Entry<W>>,
    max_len: usize,
    order: QueueOrder,
    patience: Patience,
    empty_at: u64,
    next_id: u64,
}

impl<W> WaitQueue<W> {
    pub(crate) fn new(max_len: usize, order: QueueOrder, patience: Patience, now: u64) -> Self {
        let entries = VecDeque::new();
        Self { entries, max_len, order, patience, empty_at: now, next_id: 0 }
    }

    fn is_standing(&self, now: u64) -> bool {
        now.saturating_sub(self.empty_at) > self.patience.standing_after
    }

    pub(crate) fn is_full(&self) -> bool {
        self.entries.len() >= self.max_len
    }

    /// Adds a waiter. Returns its id and how long it may wait, in ns. The caller must have checked
    /// that the queue is not [full](Self::is_full).
    pub(crate) fn push(&mut self, now: u64, waiter: W) -> (u64, u64) {
        debug_assert!(!self.is_full(), "asked before");
        if self.entries.is_empty() {
            self.empty_at = now;
        }
        let patience = self.patience;
        let wait = if self.is_standing(now) { patience.standing } else { patience.usual };
        let id = self.next_id;
        self.next_id += 1;
        self.entries.push_back(Entry { id, expires: now.saturating_add(wait), waiter });
        (id, wait)
    }

    /// Removes the next waiter to serve. Returns it, and false if its wait is over.
    pub(crate) fn pop(&mut self, now: u64) -> Option<(W, bool)> {
        let is_last_first = match self.order {
            QueueOrder::Fifo => false,
            QueueOrder::Lifo => true,
            QueueOrder::Adaptive => self.is_standing(now),
        };
        let entry = if is_last_first { self.entries.pop_back() } else { self.entries.pop_front() }?;
        self.note_empty(now);
        Some((entry.waiter, now < entry.expires))
    }

    /// Removes the waiter `id`. Returns false if it was served or removed before.
    pub(crate) fn remove(&mut self, id: u64, now: u64) -> bool {
        // Ids only grow from front to back.
        let found = self.entries.binary_search_by_key(&id, |entry| entry.id);
        if let Ok(at) = found {
            self.entries.remove(at);
            self.note_empty(now);
        }
        found.is_ok()
    }

    fn note_empty(&mut self, now: u64) {
        if self.entries.is_empty() {
            self.empty_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { usual: 100, standing: 5, standing_after: 100 };

    fn queue(order: QueueOrder) -> WaitQueue<char> {
        WaitQueue::new(3, order, PATIENCE, 0)
    }

    #[test]
    fn orders() {
        for (order, served) in
            [(QueueOrder::Fifo, "abc"), (QueueOrder::Lifo, "cba"), (QueueOrder::Adaptive, "abc")]
        {
            let mut queue = queue(order);
            for waiter in "abc".chars() {
                queue.push(10, waiter);
            }
            assert!(queue.is_full());
            let got: String = std::iter::from_fn(|| queue.pop(10)).map(|(w, _)| w).collect();
            assert_eq!(got, served);
        }
    }

    #[test]
    fn a_standing_queue_is_impatient_and_turns_round() {
        let mut queue = queue(QueueOrder::Adaptive);
        assert_eq!(queue.push(10, 'a').1, 100);
        assert_eq!(queue.push(110, 'b').1, 100);
        assert_eq!(queue.push(111, 'c').1, 5);
        assert_eq!(queue.pop(112), Some(('c', true)));
        assert_eq!(queue.pop(112), Some(('b', true)));
        assert_eq!(queue.pop(112), Some(('a', false)), "its 100 were over at 110");
        assert_eq!(queue.push(112, 'd').1, 100, "it was empty just now");
    }

    #[test]
    fn whoever_leaves_is_gone() {
        let mut queue = queue(QueueOrder::Fifo);
        let (a, _) = queue.push(1, 'a');
        let (b, _) = queue.push(1, 'b');
        assert!(queue.remove(a, 1));
        assert!(!queue.remove(a, 1));
        assert_eq!(queue.pop(1), Some(('b', true)));
        assert!(!queue.remove(b, 1));
        assert_eq!(queue.pop(1), None);
    }
}
