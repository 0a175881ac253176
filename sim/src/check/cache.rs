//! Which calls are in an order, and the memory of what has been tried.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// A set of small numbers whose members are mostly the lowest ones.
#[derive(Clone, Debug)]
pub(super) struct BitSet {
    words: Vec<u64>,
    /// All words below are full; all words from `top` on are empty.
    low: usize,
    top: usize,
}

impl BitSet {
    pub(super) fn new(members: usize) -> Self {
        Self { words: vec![0; members.div_ceil(64)], low: 0, top: 0 }
    }

    pub(super) fn contains(&self, member: u32) -> bool {
        self.words[member as usize / 64] & 1 << (member % 64) != 0
    }

    pub(super) fn insert(&mut self, member: u32) {
        let word = member as usize / 64;
        self.words[word] |= 1 << (member % 64);
        self.top = self.top.max(word + 1);
        while self.low < self.top && self.words[self.low] == u64::MAX {
            self.low += 1;
        }
    }

    pub(super) fn remove(&mut self, member: u32) {
        let word = member as usize / 64;
        self.words[word] &= !(1 << (member % 64));
        self.low = self.low.min(word);
        while self.top > 0 && self.words[self.top - 1] == 0 {
            self.top -= 1;
        }
    }

    /// Appends words that no other set of as many members has.
    fn write(&self, out: &mut Vec<u64>) {
        let middle = self.words.get(self.low..self.top).unwrap_or_default();
        out.push((self.low as u64) << 32 | middle.len() as u64);
        out.extend_from_slice(middle);
    }
}

/// One point of a search: the calls in the order, and the state they led to.
pub(super) struct Point<'a, S> {
    pub(super) known: &'a BitSet,
    pub(super) unknown: &'a BitSet,
    pub(super) state: &'a S,
    /// The state before the last call, where that restricts what may come next.
    pub(super) before: Option<&'a S>,
}

/// Remembers points that need not be searched again.
///
/// The words of all sets lie in one vector, so that a new entry allocates nothing of its own.
#[derive(Debug)]
pub(super) struct Seen<S> {
    heads: HashMap<u64, u32, BuildHasherDefault<Ready>>,
    entries: Vec<Entry<S>>,
    words: Vec<u64>,
}

#[derive(Debug)]
struct Entry<S> {
    /// Where its words begin, where those of the unknown calls begin, and where they end.
    words: [usize; 3],
    state: S,
    before: Option<S>,
    next: Option<u32>,
}

impl<S: Hash + Eq + Clone> Seen<S> {
    pub(super) fn new() -> Self {
        Self { heads: HashMap::default(), entries: Vec::new(), words: Vec::new() }
    }

    /// Adds a point; false if it has been added before, or one from which more can follow: the
    /// same known calls and state, but no more of the unknown calls spent, and no more
    /// restricted.
    pub(super) fn insert(&mut self, point: &Point<'_, S>) -> bool {
        let start = self.words.len();
        point.known.write(&mut self.words);
        let middle = self.words.len();
        let used = point.unknown.top;
        self.words.extend_from_slice(&point.unknown.words[..used]);
        let mut hasher = Mix::default();
        for &word in &self.words[start..middle] {
            hasher.write_u64(word);
        }
        point.state.hash(&mut hasher);
        let hash = hasher.finish();

        let head = self.heads.get(&hash).copied();
        let mut at = head;
        while let Some(entry) = at.and_then(|at| self.entries.get(at as usize)) {
            let [from, split, to] = entry.words;
            if self.words[from..split] == self.words[start..middle]
                && entry.state == *point.state
                && (entry.before.is_none() || entry.before.as_ref() == point.before)
                && subset(&self.words[split..to], &self.words[middle..])
            {
                self.words.truncate(start);
                return false;
            }
            at = entry.next;
        }
        self.heads.insert(hash, self.entries.len() as u32);
        self.entries.push(Entry {
            words: [start, middle, self.words.len()],
            state: point.state.clone(),
            before: point.before.cloned(),
            next: head,
        });
        true
    }
}

fn subset(small: &[u64], large: &[u64]) -> bool {
    let spare = small.get(large.len()..).unwrap_or_default();
    small.iter().zip(large).all(|(a, b)| a & !b == 0) && spare.iter().all(|&word| word == 0)
}

/// Takes 64-bit words; not for keys that an attacker picks.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.write_u64(u64::from_le_bytes(last) ^ (rest.len() as u64) << 56);
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(word.into());
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        let mut state = self.0;
        crate::rng::splitmix(&mut state)
    }
}

/// For keys that are hashes already.
#[derive(Default)]
pub(super) struct Ready(u64);

impl Hasher for Ready {
    fn write(&mut self, bytes: &[u8]) {
        let mut mix = Mix(self.0);
        mix.write(bytes);
        self.0 = mix.finish();
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;
    use std::collections::HashSet;

    #[test]
    fn a_point_stands_for_those_from_which_less_can_follow() {
        let mut seen = Seen::new();
        let known = BitSet::new(3);
        let set = |members: &[u32]| {
            let mut set = BitSet::new(200);
            for &member in members {
                set.insert(member);
            }
            set
        };
        let mut add = |members: &[u32], before: Option<&u8>| {
            seen.insert(&Point { known: &known, unknown: &set(members), state: &1, before })
        };
        assert!(add(&[1, 100], Some(&0)));
        assert!(!add(&[1, 2, 100], Some(&0)), "more are spent");
        assert!(add(&[1, 100], Some(&7)), "restricted in another way");
        assert!(add(&[1, 2, 100], None), "not restricted");
        assert!(!add(&[1, 2, 100, 199], Some(&9)));
        assert!(add(&[1], None), "fewer are spent");
        assert!(!add(&[1, 2], Some(&3)));
    }

    #[test]
    fn sets_are_told_apart_exactly() {
        let mut rng = Rng::new(9);
        let mut set = BitSet::new(300);
        let mut model = vec![false; 300];
        let mut seen = Seen::new();
        let mut known = HashSet::new();
        for _ in 0..50_000 {
            // Mostly a prefix, as in a search.
            let first_free = model.iter().position(|&there| !there).unwrap_or(0) as u64;
            let member = (first_free + rng.below(5)).min(299);
            if rng.chance(550_000) {
                set.insert(member as u32);
                model[member as usize] = true;
            } else {
                let member = member.saturating_sub(rng.below(130));
                set.remove(member as u32);
                model[member as usize] = false;
            }
            let state = rng.below(3);
            let new = known.insert((model.clone(), state));
            let none = BitSet::new(0);
            let point = Point { known: &set, unknown: &none, state: &state, before: None };
            assert_eq!(seen.insert(&point), new);
            assert_eq!(set.contains(member as u32), model[member as usize]);
        }
    }
}
