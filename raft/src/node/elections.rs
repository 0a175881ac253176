//! How many groups of a node campaign at the same time.
//!
//! When many groups lose their leader at once, as when all nodes start, an election of each at the
//! same moment takes longer than the election timeouts, and the timeouts begin further elections:
//! the node is then busy with elections that nobody wins. So a node lets some campaign and the
//! others wait for their turn. Each election that ends lets the next one begin, whatever the speed
//! of the processor, the disk and the network. Groups of which a majority of the nodes is alive go
//! first: elections of the others take their time and are seldom won.
//!
//! Plain state: no clock, no task, no I/O.

use std::collections::{BTreeMap, HashSet, VecDeque};

/// The groups that campaign, and those that wait for their turn.
#[derive(Debug)]
pub(crate) struct Elections {
    /// At least 1.
    max: usize,
    /// How long a group may keep its place, in ns: one whose peers do not answer must not keep
    /// others from campaigning.
    longest: u64,
    /// When each of them began to campaign, by group. Invariant: at most `max`, none of `waiting`.
    under_way: BTreeMap<u64, u64>,
    /// Those that can win, and those that can hardly, each in the order in which they asked.
    /// Invariant: each group once in one of them.
    queues: [VecDeque<u64>; 2],
    /// Those in `queues`.
    waiting: HashSet<u64>,
    /// Nobody is admitted now.
    paused: bool,
}

impl Elections {
    pub(crate) fn new(max: usize, longest: u64) -> Self {
        let (under_way, queues, waiting) = (BTreeMap::new(), Default::default(), HashSet::new());
        Self { max, longest, under_way, queues, waiting, paused: false }
    }

    /// Whether those whose election is due have to wait, all of them. They are admitted with the
    /// next [`admit`](Self::admit) after that.
    pub(crate) fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Asks for a place for `group`, whose election is due. Returns whether it may campaign now;
    /// else it waits, and is among those that [`end`](Self::end) or [`expire`](Self::expire)
    /// returns later. A group whose election has not succeeded goes behind those that wait.
    /// `can_win`: a majority of its nodes is alive.
    pub(crate) fn ask(&mut self, group: u64, can_win: bool, now: u64) -> bool {
        if self.waiting.contains(&group) {
            return false;
        }
        self.under_way.remove(&group);
        let is_first = self.queues[0].is_empty() && (can_win || self.queues[1].is_empty());
        if is_first && !self.paused && self.under_way.len() < self.max {
            self.under_way.insert(group, now);
            return true;
        }
        self.queues[usize::from(!can_win)].push_back(group);
        self.waiting.insert(group);
        false
    }

    /// `group` campaigns no more, or is gone. Returns those whose turn has come.
    pub(crate) fn end(&mut self, group: u64, now: u64) -> Vec<u64> {
        self.under_way.remove(&group);
        if self.waiting.remove(&group) {
            self.queues.iter_mut().for_each(|queue| queue.retain(|waiting| *waiting != group));
        }
        self.admit(now)
    }

    /// Takes the places of those that have had one for too long. Returns those whose turn has come.
    pub(crate) fn expire(&mut self, now: u64) -> Vec<u64> {
        let longest = self.longest;
        self.under_way.retain(|_, since| now.saturating_sub(*since) < longest);
        self.admit(now)
    }

    /// Gives the free places to those that have waited longest, those that can win first.
    pub(crate) fn admit(&mut self, now: u64) -> Vec<u64> {
        let mut admitted = Vec::new();
        while !self.paused
            && self.under_way.len() < self.max
            && let Some(group) = self.queues.iter_mut().find_map(VecDeque::pop_front)
        {
            self.waiting.remove(&group);
            self.under_way.insert(group, now);
            admitted.push(group);
        }
        admitted
    }

    /// How many campaign, and how many wait.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.under_way.len(), self.waiting.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_gets_its_turn_in_the_order_of_asking() {
        let mut elections = Elections::new(2, 100);
        let asked: Vec<bool> = (1..=5).map(|group| elections.ask(group, true, 0)).collect();
        assert_eq!(asked, [true, true, false, false, false]);
        assert!(!elections.ask(4, true, 1), "it waits once");
        assert_eq!(elections.counts(), (2, 3));
        assert_eq!(elections.end(1, 2), [3]);
        assert_eq!(elections.end(4, 3), Vec::<u64>::new(), "one that is gone");
        assert_eq!(elections.end(3, 4), [5]);
        assert_eq!(elections.end(2, 4), Vec::<u64>::new());
        assert_eq!(elections.end(5, 4), Vec::<u64>::new());
        assert_eq!(elections.counts(), (0, 0));
    }

    #[test]
    fn an_election_that_fails_makes_way_for_others() {
        let mut elections = Elections::new(1, 100);
        assert!(elections.ask(1, true, 0));
        assert!(elections.ask(1, true, 10), "nobody else wants to");
        assert!(!elections.ask(2, true, 20));
        assert!(!elections.ask(1, true, 30), "now it is the turn of 2");
        assert_eq!(elections.admit(30), [2]);
        assert_eq!(elections.end(2, 40), [1]);
    }

    /// Thousands of groups whose other nodes are dead wait before the one that could have a leader.
    #[test]
    fn who_can_win_does_not_wait_for_those_that_cannot() {
        let mut elections = Elections::new(1, 100);
        assert!(elections.ask(1, false, 0));
        for group in 2..1_000 {
            assert!(!elections.ask(group, false, 0));
        }
        assert!(!elections.ask(1_000, true, 1));
        assert_eq!(elections.expire(100), [1_000]);
        assert_eq!(elections.end(1_000, 101), [2]);
    }

    #[test]
    fn a_place_is_not_kept_for_ever() {
        let mut elections = Elections::new(1, 100);
        assert!(elections.ask(1, true, 0) && !elections.ask(2, true, 0));
        assert!(elections.expire(99).is_empty());
        assert_eq!(elections.expire(100), [2]);
        assert_eq!(elections.end(1, 101), Vec::<u64>::new(), "its place is taken already");
        assert_eq!(elections.counts(), (1, 0));
    }
}
