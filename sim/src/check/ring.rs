//! The known calls that are not in the order yet.

/// Beginnings and ends of the known calls that are not yet in the order, as a linked list in
/// order of recording. Place `n` of the vectors stands for the head.
pub(super) struct Ring {
    next: Vec<u32>,
    prev: Vec<u32>,
    /// For each place: its event's place in the history, the known call, and whether it begins.
    events: Vec<(u64, u32, bool)>,
    /// For each known call: the places of its beginning and its end.
    ends: Vec<[u32; 2]>,
    /// After each call that was taken out: the highest number taken out so far, plus one.
    tops: Vec<u32>,
}

impl Ring {
    /// Calls are numbered in the order in which they began.
    pub(super) fn new(mut events: Vec<(u64, u32, bool)>, calls: usize) -> Self {
        events.sort_unstable();
        let head = events.len() as u32;
        let mut ends = vec![[0; 2]; calls];
        for (place, &(_, call, begins)) in events.iter().enumerate() {
            ends[call as usize][usize::from(!begins)] = place as u32;
        }
        let next = (0..=head).map(|place| if place == head { 0 } else { place + 1 }).collect();
        let prev = (0..=head).map(|place| if place == 0 { head } else { place - 1 }).collect();
        Self { next, prev, events, ends, tops: Vec::new() }
    }

    /// The calls that may come next, all of which have begun before any of those left has ended;
    /// then, if any is left, the event of the first end.
    pub(super) fn candidates(&self) -> Candidates<'_> {
        Candidates { ring: self, place: self.next[self.events.len()] }
    }

    /// The place of a call's end among all events.
    pub(super) fn end_of(&self, call: u32) -> u32 {
        self.ends[call as usize][1]
    }

    pub(super) fn take_out(&mut self, call: u32) {
        for place in self.ends[call as usize] {
            let (prev, next) = (self.prev[place as usize], self.next[place as usize]);
            self.next[prev as usize] = next;
            self.prev[next as usize] = prev;
        }
        let top = self.tops.last().copied().unwrap_or(0);
        self.tops.push(top.max(call + 1));
    }

    /// Undoes the latest `take_out` that has not been undone.
    pub(super) fn put_back(&mut self, call: u32) {
        for place in self.ends[call as usize].into_iter().rev() {
            let (prev, next) = (self.prev[place as usize], self.next[place as usize]);
            self.next[prev as usize] = place;
            self.prev[next as usize] = place;
        }
        self.tops.pop();
    }

    /// Writes which calls have been taken out: the highest of them plus one, then all lower ones
    /// that have not been. No other set of calls gives the same words.
    ///
    /// The latter are candidates: a call is taken out only if it began before the first end of
    /// those left. So there are at most as many words as calls at a time, and one.
    pub(super) fn encode(&self, words: &mut Vec<u32>) {
        let top = self.tops.last().copied().unwrap_or(0);
        words.clear();
        words.push(top);
        words.extend(self.candidates().take_while(|&call| call < top));
    }
}

/// See [`Ring::candidates`].
pub(super) struct Candidates<'a> {
    ring: &'a Ring,
    place: u32,
}

impl Candidates<'_> {
    /// The place in the history of the first end of a call that is left, if the candidates have
    /// been gone through and any call is left.
    pub(super) fn bound(&self) -> Option<u64> {
        self.ring.events.get(self.place as usize).map(|&(event, ..)| event)
    }
}

impl Iterator for Candidates<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let &(_, call, begins) = self.ring.events.get(self.place as usize)?;
        if !begins {
            return None;
        }
        self.place = self.ring.next[self.place as usize];
        Some(call)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use super::*;
    use crate::Rng;

    /// Random intervals of up to so many calls at a time.
    fn events(rng: &mut Rng, calls: u32, at_a_time: usize) -> Vec<(u64, u32, bool)> {
        let (mut events, mut open, mut begun) = (Vec::new(), Vec::new(), 0);
        while begun < calls || !open.is_empty() {
            let event = events.len() as u64;
            let may_begin = begun < calls && open.len() < at_a_time;
            if may_begin && (open.is_empty() || rng.chance(500_000)) {
                open.push(begun);
                events.push((event, begun, true));
                begun += 1;
            } else {
                let call = open.swap_remove(rng.below(open.len() as u64) as usize);
                events.push((event, call, false));
            }
        }
        events
    }

    #[test]
    fn sets_are_told_apart_exactly_and_their_words_are_few() {
        let mut rng = Rng::new(9);
        for at_a_time in [1, 2, 7, 40] {
            let events = events(&mut rng, 300, at_a_time);
            let mut ring = Ring::new(events, 300);
            let (mut order, mut words) = (Vec::new(), Vec::new());
            let mut by_words = HashMap::new();
            for _ in 0..20_000 {
                let candidates: Vec<u32> = ring.candidates().collect();
                match rng.pick(&candidates) {
                    Some(&call) if rng.chance(530_000) => {
                        ring.take_out(call);
                        order.push(call);
                    }
                    _ => {
                        if let Some(call) = order.pop() {
                            ring.put_back(call);
                        }
                    }
                }
                ring.encode(&mut words);
                assert!(words.len() <= at_a_time + 1);
                let set: BTreeSet<u32> = order.iter().copied().collect();
                let known = by_words.entry(words.clone()).or_insert_with(|| set.clone());
                assert_eq!(*known, set, "one encoding of two sets");
            }
            let sets: BTreeSet<_> = by_words.values().collect();
            assert_eq!(sets.len(), by_words.len(), "two encodings of one set");
            assert!(sets.len() > 200);
        }
    }
}
