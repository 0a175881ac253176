//! Which calls are in an order, and the memory of what has been tried.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// A set of small numbers.
#[derive(Clone, Debug)]
pub(super) struct BitSet {
    words: Vec<u32>,
    /// All words from here on are empty.
    top: usize,
}

impl BitSet {
    pub(super) fn new(members: usize) -> Self {
        Self { words: vec![0; members.div_ceil(32)], top: 0 }
    }

    pub(super) fn contains(&self, member: u32) -> bool {
        self.words[member as usize / 32] & 1 << (member % 32) != 0
    }

    pub(super) fn insert(&mut self, member: u32) {
        let word = member as usize / 32;
        self.words[word] |= 1 << (member % 32);
        self.top = self.top.max(word + 1);
    }

    pub(super) fn remove(&mut self, member: u32) {
        let word = member as usize / 32;
        self.words[word] &= !(1 << (member % 32));
        while self.top > 0 && self.words[self.top - 1] == 0 {
            self.top -= 1;
        }
    }
}

/// One point of a search: the calls in the order, and the state they led to.
pub(super) struct Point<'a, S> {
    /// The known calls in the order, as [`Ring::encode`](super::ring::Ring::encode) writes them.
    pub(super) known: &'a [u32],
    pub(super) unknown: &'a BitSet,
    pub(super) state: &'a S,
    /// The state before the last call, where that restricts what may come next.
    pub(super) before: Option<&'a S>,
}

/// Words that are written or compared for one step.
const WORDS_A_STEP: usize = 16;

/// Remembers points that need not be searched again.
///
/// The words of all sets lie in one vector, so that a new entry allocates nothing of its own.
#[derive(Debug)]
pub(super) struct Seen<S> {
    heads: HashMap<u64, u32, BuildHasherDefault<Ready>>,
    entries: Vec<Entry<S>>,
    words: Vec<u32>,
}

#[derive(Debug)]
struct Entry<S> {
    /// Index of its first word. Its words end where those of the next entry begin.
    start: usize,
    /// How many of its words are those of the known calls.
    known: u32,
    /// The previous entry with the same hash, plus one; 0 if there is none.
    next: u32,
    state: S,
    before: Option<S>,
}

impl<S: Hash + Eq + Clone> Seen<S> {
    pub(super) fn new() -> Self {
        Self { heads: HashMap::default(), entries: Vec::new(), words: Vec::new() }
    }

    /// Adds a point; false if it has been added before, or one from which more can follow: the
    /// same known calls and state, but no more of the unknown calls spent, and no more
    /// restricted.
    ///
    /// Adds to `steps` what it cost: one for each entry that was compared, one for a new entry,
    /// and one for every sixteen words of either.
    pub(super) fn insert(&mut self, point: &Point<'_, S>, steps: &mut u64) -> bool {
        let unknown = &point.unknown.words[..point.unknown.top];
        let mut hasher = Mix::default();
        for &word in point.known {
            hasher.write_u32(word);
        }
        point.state.hash(&mut hasher);
        let hash = hasher.finish();

        let head = self.heads.get(&hash).copied().unwrap_or(0);
        let mut at = head;
        while let Some(index) = (at as usize).checked_sub(1) {
            let entry = &self.entries[index];
            let end = self.entries.get(index + 1).map_or(self.words.len(), |next| next.start);
            let words = &self.words[entry.start..end];
            *steps += cost(words.len());
            let (known, spent) = words.split_at(entry.known as usize);
            if known == point.known
                && entry.state == *point.state
                && (entry.before.is_none() || entry.before.as_ref() == point.before)
                && subset(spent, unknown)
            {
                return false;
            }
            at = entry.next;
        }
        *steps += cost(point.known.len() + unknown.len());
        let start = self.words.len();
        self.words.extend_from_slice(point.known);
        self.words.extend_from_slice(unknown);
        self.entries.push(Entry {
            start,
            known: point.known.len() as u32,
            next: head,
            state: point.state.clone(),
            before: point.before.cloned(),
        });
        self.heads.insert(hash, self.entries.len() as u32);
        true
    }
}

fn cost(words: usize) -> u64 {
    1 + (words / WORDS_A_STEP) as u64
}

fn subset(small: &[u32], large: &[u32]) -> bool {
    let spare = small.get(large.len()..).unwrap_or_default();
    small.iter().zip(large).all(|(a, b)| a & !b == 0) && spare.iter().all(|&word| word == 0)
}

/// Takes 64-bit words; not for keys that an attacker picks.
#[derive(Default)]
pub(super) struct Mix(u64);

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

    #[test]
    fn a_point_stands_for_those_from_which_less_can_follow() {
        let mut seen = Seen::new();
        let set = |members: &[u32]| {
            let mut set = BitSet::new(200);
            for &member in members {
                set.insert(member);
            }
            set
        };
        let mut add = |members: &[u32], before: Option<&u8>| {
            let unknown = &set(members);
            seen.insert(&Point { known: &[3, 1], unknown, state: &1, before }, &mut 0)
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
    fn every_comparison_and_every_word_is_a_step() {
        let (mut seen, mut steps) = (Seen::new(), 0);
        // Each set holds one member that no other has: none stands for another.
        for member in 0..100 {
            let mut unknown = BitSet::new(3_200);
            unknown.insert(member * 32);
            let point = Point { known: &[1], unknown: &unknown, state: &1, before: None };
            assert!(seen.insert(&point, &mut steps));
        }
        // Entry `n` has `n + 2` words, and is added once and compared with each later one.
        let expected: u64 = (0..100).map(|n| cost(n + 2) * (100 - n as u64)).sum();
        assert_eq!(steps, expected);
    }
}
