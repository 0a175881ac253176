//! How far groups and consumers are behind.

use std::ops::Range;
use std::sync::Arc;

use crate::core::entry::{Key, Value};
use crate::queue::{Queue, TopicPartition};

/// How far a consumer or a group is behind in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lag {
    /// The partition.
    pub partition: TopicPartition,
    /// Offset of the next record to be read.
    pub position: u64,
    /// Offset after the last record.
    pub end: u64,
}

impl Lag {
    /// Offsets between the two; more than records where offsets are missing.
    pub fn offsets(&self) -> u64 {
        self.end.saturating_sub(self.position)
    }
}

impl Queue {
    /// How far a group is behind: in each partition of which it has stored an offset, and in those
    /// that its members read now. Of the latter all records that are kept count where nothing is
    /// stored yet. `None` for a group that has stored nothing and whose members read nothing, one
    /// of a misspelt name, say: nothing is known about it, and it has not caught up.
    pub fn lag(&self, group: &str) -> Option<Vec<Lag>> {
        let given = self.shared.groups.given(group);
        let mut lags = Vec::new();
        for topic in self.topics() {
            let name: Arc<str> = topic.name().into();
            for (partition, slot) in topic.opened_slots() {
                let key = Key::Offset(group.to_owned(), slot.number);
                let stored = self.shared.writer.read(|table| u64::read(table.get(&key)?));
                let Range { start, end } = slot.partition.offsets();
                let place = (Arc::clone(&name), partition);
                let position = stored.or_else(|| given.contains(&place).then_some(start));
                let (topic, partition) = place;
                let partition = TopicPartition { topic, partition };
                lags.extend(position.map(|position| Lag { partition, position, end }));
            }
        }
        (!lags.is_empty()).then_some(lags)
    }

    /// Names of the groups that have stored an offset of a topic that there is, in order.
    pub fn groups(&self) -> Vec<String> {
        self.shared.writer.read(|table| {
            let mut groups: Vec<String> = Vec::new();
            let mut from = Key::Offset(String::new(), 0);
            // Ends: each round goes to the next offset or the next name.
            while let Some((Key::Offset(group, number), _)) = table.from(from).next() {
                from = match number.checked_add(1) {
                    // A queue that an earlier build has written may have some of deleted topics.
                    Some(next) if !table.has_partition(*number) => Key::Offset(group.clone(), next),
                    _ => {
                        groups.push(group.clone());
                        Key::behind_offsets(group)
                    }
                };
            }
            groups
        })
    }
}
