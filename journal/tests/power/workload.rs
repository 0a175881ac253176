//! Random commits over several logs.

use bytes::Bytes;

use crate::oracle::{Change, Changes, Key, State, World, apply};
use crate::rng::Rng;

/// The logs of every workload.
pub(crate) const KEYS: [Key; 6] = [
    ("raft", 1),
    ("raft", 2),
    ("queue", 1),
    ("queue", 7),
    ("a longer namespace", 0),
    ("x", u64::MAX),
];

/// Above this a log is released rather than fed.
const RECORDS_MAX: usize = 150;

/// Draws commits that fit the state they meet.
#[derive(Debug)]
pub(crate) struct Workload {
    rng: Rng,
    /// Few logs release whole segments, many pin each other's.
    keys: &'static [Key],
    /// The first of `keys` so many are cold: they are hardly ever touched, and never emptied.
    cold: usize,
    /// They are touched once in so many commits.
    touched_one_in: u64,
    /// They are released, truncated and deleted like others, only not so often.
    lukewarm: bool,
    /// Something is to happen to the cold logs soon.
    pub(crate) hurried: bool,
    /// Makes every record unique.
    serial: u64,
    /// The largest payload of a single record, in bytes.
    pub(crate) record_bytes_max: u64,
}

impl Workload {
    pub(crate) fn new(seed: u64, record_bytes_max: u64) -> Self {
        let mut rng = Rng::new(seed);
        let keys = &KEYS[rng.below(KEYS.len() as u64) as usize..];
        let (cold, touched_one_in, lukewarm, hurried) = (0, 40, false, false);
        let serial = seed << 20;
        Self { rng, keys, cold, touched_one_in, lukewarm, hurried, serial, record_bytes_max }
    }

    /// One or two cold logs pin old segments, while one or two others fill and free new ones.
    pub(crate) fn with_cold_logs(seed: u64, record_bytes_max: u64) -> Self {
        let mut workload = Self::new(seed, record_bytes_max);
        workload.cold = 1 + workload.rng.below(2) as usize;
        let hot = 1 + workload.rng.below(2) as usize;
        workload.keys = &KEYS[..workload.cold + hot];
        workload
    }

    /// The cold logs are written every few commits and hardly ever let go, so that they have little
    /// in each segment; once in a while anything may happen to them.
    pub(crate) fn with_lukewarm_logs(seed: u64, record_bytes_max: u64) -> Self {
        let mut workload = Self::with_cold_logs(seed, record_bytes_max);
        (workload.touched_one_in, workload.lukewarm) = (8, true);
        workload
    }

    /// The changes of one commit that is made in state `world`.
    pub(crate) fn commit(&mut self, world: &World) -> Changes {
        if self.cold > 0 {
            return self.commit_with_cold_logs(world);
        }
        let logs = match self.rng.below(24) {
            // Nothing to do is a commit too.
            0 => 0,
            1..=6 => 2 + self.rng.below(2),
            _ => 1,
        };
        let mut keys: Vec<Key> = Vec::new();
        while keys.len() < self.keys.len().min(logs as usize) {
            let key = *self.rng.pick(self.keys);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys.into_iter().flat_map(|key| self.changes(key, world.get(&key))).collect()
    }

    fn commit_with_cold_logs(&mut self, world: &World) -> Changes {
        let (cold, hot) = self.keys.split_at(self.cold);
        let mut changes = Changes::new();
        let untouched = cold.iter().copied().find(|key| !world.contains_key(key));
        let touched_one_in = if self.hurried { 3 } else { self.touched_one_in };
        if untouched.is_some() || self.rng.one_in(touched_one_in) {
            let key = untouched.unwrap_or(*self.rng.pick(cold));
            changes.push((key, self.touch(world.get(&key))));
        }
        let key = *self.rng.pick(hot);
        match world.get(&key) {
            Some(state) if self.rng.one_in(8) => changes.push((key, self.release(state))),
            state => changes.extend(self.changes(key, state)),
        }
        changes
    }

    /// A change of a cold log, which keeps at least one record.
    fn touch(&mut self, state: Option<&State>) -> Change {
        match state {
            Some(state) if self.lukewarm && self.lets_go() => {
                let within = self.rng.below(state.records.len() as u64 + 1);
                match self.rng.below(5) {
                    0 => Change::Delete,
                    1 | 2 => Change::Truncate(state.first + within),
                    _ => Change::Release(state.first + within),
                }
            }
            // Some segments have too much of them to be rewritten.
            _ if self.lukewarm && self.rng.one_in(8) => Change::Append(vec![self.large_record()]),
            _ if self.lukewarm => Change::Append(vec![self.record()]),
            Some(state) if state.records.len() > 1 => Change::Release(state.first + 1),
            _ => Change::Append((0..3).map(|_| self.record()).collect()),
        }
    }

    fn changes(&mut self, key: Key, state: Option<&State>) -> Changes {
        let Some(state) = state else { return vec![(key, self.append())] };
        let crowded = state.records.len() > RECORDS_MAX;
        let drawn = match self.rng.below(20) {
            0 | 1 => vec![self.truncate(state), self.append()],
            2 => vec![self.truncate(state)],
            3 => vec![self.release(state), self.append()],
            4 => vec![Change::Delete],
            5 | 6 => vec![self.release(state)],
            _ if crowded => vec![self.release(state)],
            _ => vec![self.append()],
        };
        drawn.into_iter().map(|change| (key, change)).collect()
    }

    fn append(&mut self) -> Change {
        let count = if self.rng.one_in(8) { 1 + self.rng.below(30) } else { 1 + self.rng.below(3) };
        Change::Append((0..count).map(|_| self.record()).collect())
    }

    fn lets_go(&mut self) -> bool {
        self.rng.one_in(if self.hurried { 2 } else { 40 })
    }

    fn large_record(&mut self) -> Bytes {
        self.serial += 1;
        let mut bytes = self.serial.to_le_bytes().to_vec();
        bytes.resize(12_000, self.rng.next() as u8);
        Bytes::from(bytes)
    }

    /// Unique in its first eight bytes, unless it is shorter.
    fn record(&mut self) -> Bytes {
        self.serial += 1;
        let max = self.record_bytes_max;
        let length = match self.rng.below(10) {
            0 => self.rng.below(9),
            1 => self.rng.below(max + 1),
            2 => self.rng.below(max / 4 + 1),
            _ => 8 + self.rng.below(max.min(80)),
        };
        let mut bytes = self.serial.to_le_bytes().to_vec();
        // Half of them zeros: what is lost must not look like what was written, and the reverse.
        let fill = if self.rng.one_in(2) { 0 } else { self.rng.next() as u8 };
        bytes.resize(length as usize, fill);
        Bytes::from(bytes)
    }

    fn truncate(&mut self, state: &State) -> Change {
        let back = 1 + self.rng.below(4);
        Change::Truncate(state.end().saturating_sub(back).max(state.first))
    }

    fn release(&mut self, state: &State) -> Change {
        let live = state.records.len() as u64;
        Change::Release(match self.rng.below(10) {
            0..=2 => state.end(),
            3 => state.end() + 1 + self.rng.below(5),
            _ => state.first + self.rng.below(live + 1),
        })
    }
}

#[test]
fn commits_fit_the_state_they_meet() {
    let mut workload = Workload::new(1, 500);
    let mut world = World::new();
    let (mut appends, mut truncates, mut releases, mut deletes) = (0, 0, 0, 0);
    for _ in 0..2000 {
        for (key, change) in workload.commit(&world) {
            let state = world.get(&key);
            match &change {
                Change::Append(_) => appends += 1,
                Change::Truncate(from) => {
                    truncates += 1;
                    assert!(state.is_some_and(|state| (state.first..=state.end()).contains(from)));
                }
                Change::Release(upto) => {
                    releases += 1;
                    assert!(state.is_some_and(|state| *upto >= state.first));
                }
                Change::Delete => {
                    deletes += 1;
                    assert!(state.is_some());
                }
            }
            apply(&mut world, key, &change);
        }
    }
    assert!(appends > 500 && truncates > 100 && releases > 100 && deletes > 20);
    assert!(world.values().all(|state| state.records.len() < 2 * RECORDS_MAX));
}
