//! The table of a queue: what its log of changes says. The last change of a key wins.
//!
//! The log is kept short by writing live entries again: each write appends a few of the oldest ones
//! anew, and releases the log up to the oldest live entry that remains. So no snapshot is ever as
//! large as the table, and a write stays small however large the table is.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use bytes::Bytes;

use super::entry::{Change, Key, TopicEntry, Value};

/// Records of the log beyond twice the live entries, from which on writes clean it.
const SLACK_RECORDS: u64 = 1_024;
/// Segments of the journal that the log may span: beyond them writes clean it also when it is
/// short, because a segment that holds one record of it cannot be used again. A replicated table,
/// whose log is a partition, has no such limit: it passes 1.
const MAX_EXTENTS: usize = 4;
/// Bytes that a change takes in a partition besides its own: it may be in a batch by itself.
#[cfg(feature = "replicated")]
const RECORD_BYTES: usize = 100;
/// Live entries that a write takes along, besides two for each of its own changes.
const REWRITTEN: usize = 64;

/// The live entries, and where in the log each is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    /// Position in the log, and value.
    entries: BTreeMap<Key, (u64, Bytes)>,
    /// Position: the key. Invariant: one for each of `entries`.
    by_position: BTreeMap<u64, Key>,
    /// First partition number of each topic: its partitions. Invariant: one for each topic of
    /// `entries`, and no two of them overlap.
    topics_by_number: BTreeMap<u32, u32>,
    /// Positions of the log. Invariant: holds all of `by_position`.
    bounds: Range<u64>,
    /// Of `entries`, as changes.
    live_bytes: usize,
}

/// Changes of a write that is being put together.
#[derive(Debug, Default)]
pub(crate) struct StagedChanges {
    latest: HashMap<Key, Option<Bytes>>,
    pub(crate) changes: Vec<Change>,
    /// Topics that end, of `changes`.
    ended: Vec<Key>,
}

impl StagedChanges {
    pub(crate) fn push(&mut self, change: Change) {
        if change.value.is_none() && matches!(change.key, Key::Topic(_)) {
            self.ended.push(change.key.clone());
        }
        self.latest.insert(change.key.clone(), change.value.clone());
        self.changes.push(change);
    }

    /// The keys that are changed.
    pub(crate) fn latest(&self) -> impl Iterator<Item = &Key> {
        self.latest.keys()
    }
}

/// The table as it will be after the staged changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) table: &'a Table,
    pub(crate) staged: &'a StagedChanges,
}

impl View<'_> {
    pub(crate) fn get(&self, key: &Key) -> Option<&Bytes> {
        match self.staged.latest.get(key) {
            Some(staged) => staged.as_ref(),
            None => self.table.get(key),
        }
    }

    /// Whether a topic of the table has the partition of this number, and goes on to have it.
    pub(crate) fn has_partition(&self, number: u32) -> bool {
        let read = |key| self.table.get(key).and_then(|value| TopicEntry::read(value));
        let mut ended = self.staged.ended.iter().filter_map(read);
        self.table.has_partition(number) && !ended.any(|topic| topic.numbers().contains(&number))
    }

    /// How many topics there are, and how many partitions they have.
    pub(crate) fn topics(&self) -> (usize, usize) {
        let mut topics: HashMap<&Key, usize> = HashMap::new();
        let partitions =
            |value: &Bytes| TopicEntry::read(value).map_or(0, |t| t.partitions as usize);
        topics.extend(self.table.topics().map(|(key, topic)| (key, topic.partitions as usize)));
        for (key, value) in &self.staged.latest {
            match (key, value) {
                (Key::Topic(_), Some(value)) => topics.insert(key, partitions(value)),
                (Key::Topic(_), None) => topics.remove(key),
                _ => None,
            };
        }
        (topics.len(), topics.values().sum())
    }
}

impl Table {
    /// An empty table over a log whose first record is at `first`.
    pub(crate) fn new(first: u64) -> Self {
        Self { bounds: first..first, ..Self::default() }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Bytes> {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// The entries from `key` on, in order.
    pub(crate) fn from(&self, key: Key) -> impl Iterator<Item = (&Key, &Bytes)> {
        self.entries.range(key..).map(|(key, (_, value))| (key, value))
    }

    /// Whether a topic has the partition of this number.
    pub(crate) fn has_partition(&self, number: u32) -> bool {
        let topic = self.topics_by_number.range(..=number).next_back();
        topic.is_some_and(|(first, partitions)| number - first < *partitions)
    }

    /// Whether an entry still says something: offsets of a partition that is gone do not.
    fn is_live(&self, key: &Key) -> bool {
        match key {
            Key::Offset(_, number) => self.has_partition(*number),
            _ => true,
        }
    }

    /// All topics, in the order of their names.
    pub(crate) fn topics(&self) -> impl Iterator<Item = (&Key, TopicEntry)> {
        let topics = self.from(Key::Topic(String::new()));
        let topics = topics.take_while(|(key, _)| matches!(key, Key::Topic(_)));
        topics.filter_map(|(key, value)| Some((key, TopicEntry::read(value)?)))
    }

    #[cfg(test)]
    pub(crate) fn bounds(&self) -> Range<u64> {
        self.bounds.clone()
    }

    /// Applies the record at the end of the log.
    pub(crate) fn apply(&mut self, change: Change) {
        let position = self.bounds.end;
        self.bounds.end += 1;
        if let Key::Topic(_) = &change.key {
            let read = |value: &Bytes| TopicEntry::read(value);
            if let Some(topic) = self.get(&change.key).and_then(read) {
                self.topics_by_number.remove(&topic.first_number);
            }
            if let Some(topic) = change.value.as_ref().and_then(read) {
                self.topics_by_number.insert(topic.first_number, topic.partitions);
            }
        }
        let key_bytes = change.key.len_bytes();
        let old = match change.value {
            Some(value) => {
                self.live_bytes += key_bytes + value.len();
                self.by_position.insert(position, change.key.clone());
                self.entries.insert(change.key, (position, value))
            }
            None => self.entries.remove(&change.key),
        };
        if let Some((old, value)) = old {
            self.live_bytes -= key_bytes + value.len();
            self.by_position.remove(&old);
        }
    }

    /// Bytes that the log takes at most, as [`clean`](Self::clean) keeps it, in a partition.
    #[cfg(feature = "replicated")]
    pub(crate) fn log_bytes(&self) -> u64 {
        (self.live_bytes + RECORD_BYTES * self.entries.len()) as u64 * 5 / 2
    }

    /// Lets go of the records before `first`.
    pub(crate) fn release(&mut self, first: u64) {
        debug_assert!(self.by_position.first_key_value().is_none_or(|(at, _)| *at >= first));
        self.bounds.start = self.bounds.start.max(first);
    }

    /// What a write of `staged` takes along to keep the log short: adds live entries to `staged`,
    /// and returns the position before which nothing is live then.
    ///
    /// A round over the log takes fewer changes than half of the live entries, so that the log has
    /// at most about two and a half records for each of them. Offsets of partitions that are gone
    /// are removed. Takes about `max_bytes` along at most. The log spans `extents`
    /// segments of the journal.
    pub(crate) fn clean(
        &self,
        staged: &mut StagedChanges,
        max_bytes: usize,
        extents: usize,
    ) -> Option<u64> {
        let fresh = staged.changes.len();
        let records = self.bounds.end - self.bounds.start + fresh as u64;
        let is_short = records <= 2 * self.entries.len() as u64 + SLACK_RECORDS;
        if is_short && extents <= MAX_EXTENTS {
            return None;
        }
        let (mut room, mut bytes) = (2 * fresh + REWRITTEN, 0);
        // Ends: goes through the entries once.
        for (position, key) in &self.by_position {
            if staged.latest.contains_key(key) {
                continue;
            }
            if room == 0 || bytes > max_bytes {
                return Some(*position);
            }
            room -= 1;
            let value = self.get(key).filter(|_| self.is_live(key)).cloned();
            let change = Change { key: key.clone(), value };
            bytes += change.len_bytes();
            staged.push(change);
        }
        Some(self.bounds.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(value: u8) -> Bytes {
        Bytes::copy_from_slice(&[value])
    }

    #[test]
    fn a_number_is_found_among_the_topics() {
        let mut table = Table::new(0);
        let topic = |first_number, partitions| TopicEntry {
            first_number,
            partitions,
            max_bytes: u64::MAX,
            max_age_ms: u64::MAX,
            min_lag_ms: u64::MAX,
            min_tombstone_age_ms: u64::MAX,
        };
        let put = |name: &str, entry| Change::put(Key::Topic(name.into()), &entry);
        for change in [put("z", topic(1, 2)), put("a", topic(5, 3)), put("m", topic(3, 1))] {
            table.apply(change);
        }
        let found = |table: &Table| (0..10).filter(|at| table.has_partition(*at)).collect();
        let numbers: Vec<u32> = found(&table);
        assert_eq!(numbers, [1, 2, 3, 5, 6, 7]);
        table.apply(Change::remove(Key::Topic("a".into())));
        table.apply(Change::remove(Key::Topic("z".into())));
        table.apply(put("z", topic(8, 2)));
        let numbers: Vec<u32> = found(&table);
        assert_eq!(numbers, [3, 8, 9], "a topic of the same name has numbers of its own");
    }

    /// A log of changes beside the table: what is released goes.
    #[test]
    fn the_log_stays_short_and_says_the_same() {
        for seed in 0..40 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut log: BTreeMap<u64, Change> = BTreeMap::new();
            let mut table = Table::new(0);
            let mut model = BTreeMap::new();
            let keys = random.u32(1..400);
            for _ in 0..2_000 {
                let mut staged = StagedChanges::default();
                for _ in 0..random.usize(1..5) {
                    let key = Key::Topic(format!("t{}", random.u32(..keys)));
                    let value = (random.u8(..8) > 0).then(|| counter(random.u8(..)));
                    match &value {
                        Some(value) => model.insert(key.clone(), value.clone()),
                        None => model.remove(&key),
                    };
                    staged.push(Change { key, value });
                }
                let release = table.clean(&mut staged, 1 << 20, 1);
                for change in staged.changes {
                    log.insert(table.bounds().end, change.clone());
                    table.apply(change);
                }
                if let Some(first) = release {
                    log = log.split_off(&first);
                    table.release(first);
                }
                assert!(log.len() as u64 <= 3 * u64::from(keys) + SLACK_RECORDS + 80, "{seed}");
            }
            let first = log.first_key_value().map_or(0, |(first, _)| *first);
            let mut replayed = Table::new(first);
            for change in log.into_values() {
                replayed.apply(change);
            }
            assert_eq!(replayed, table, "seed {seed}");
            let live = table.entries.iter().map(|(key, (_, value))| (key.clone(), value.clone()));
            assert_eq!(live.collect::<BTreeMap<_, _>>(), model, "seed {seed}");
        }
    }
}
