//! What the table says of groups: their generations, when they were last used, their offsets.

use std::collections::BTreeSet;

use super::entry::{Change, GroupEntry, Key, Value};
use super::table::{Table, View};

/// How exactly it is known when a group was last used, in ms: so seldom that it costs commits
/// nothing.
const USED_EVERY_MS: u64 = 3_600_000;

impl Table {
    /// Names of the groups that have begun a generation or stored an offset, in order.
    pub(crate) fn groups(&self) -> BTreeSet<String> {
        let mut groups = BTreeSet::new();
        for (key, _) in self.from(Key::Group(String::new())) {
            match key {
                Key::Group(name) => drop(groups.insert(name.clone())),
                Key::Offset(name, _) if !groups.contains(name) => drop(groups.insert(name.clone())),
                Key::Offset(..) => {}
                _ => break,
            }
        }
        groups
    }
}

impl View<'_> {
    /// What is stored of a group; one without a generation for a group that there is not.
    pub(crate) fn group(&self, name: &str) -> GroupEntry {
        let entry = self.get(&Key::Group(name.to_owned()));
        entry.and_then(|value| GroupEntry::read(value)).unwrap_or_default()
    }

    /// The group's next generation, which no member of a group of the same name that was deleted
    /// has: none when they are used up. The time of day is in ms.
    pub(crate) fn next_generation(&self, name: &str, now_ms: u64) -> Option<(Change, u32)> {
        let generation = self.group(name).generation.max(self.last_deleted()).checked_add(1)?;
        let entry = GroupEntry { generation, used_at_ms: now_ms };
        Some((Change::put(Key::Group(name.to_owned()), &entry), generation))
    }

    /// Notes that the group is used, where that is not known from a short time ago.
    pub(crate) fn use_group(&self, name: &str, now_ms: u64) -> Option<Change> {
        let entry = self.group(name);
        let is_known = now_ms.saturating_sub(entry.used_at_ms) < USED_EVERY_MS;
        let entry = GroupEntry { used_at_ms: now_ms, ..entry };
        (!is_known).then(|| Change::put(Key::Group(name.to_owned()), &entry))
    }

    /// Whether nobody has used a group for so long; `None` where it is not known since when.
    pub(crate) fn is_unused(&self, name: &str, now_ms: u64, unused_ms: u64) -> Option<bool> {
        let used_at_ms = Some(self.group(name).used_at_ms).filter(|at| *at > 0)?;
        Some(now_ms.saturating_sub(used_at_ms) >= unused_ms)
    }

    /// What deletes a group: a part of about `max_bytes`, and whether nothing is left behind it.
    pub(crate) fn delete_group(&self, name: &str, max_bytes: usize) -> (Vec<Change>, bool) {
        let is_of_group = |key: &&Key| matches!(key, Key::Offset(group, _) if group == name);
        let stored = self.table.from(Key::Offset(name.to_owned(), 0)).map(|(key, _)| key);
        let keys: BTreeSet<&Key> = stored
            .take_while(is_of_group)
            .chain(self.staged.latest().filter(is_of_group))
            .filter(|key| self.get(key).is_some())
            .collect();
        let (mut changes, mut bytes) = (Vec::new(), 0);
        for key in keys {
            if bytes > max_bytes {
                return (changes, false);
            }
            let change = Change::remove(key.clone());
            bytes += change.len_bytes();
            changes.push(change);
        }
        let key = Key::Group(name.to_owned());
        if self.get(&key).is_some() {
            let generation = self.group(name).generation;
            if generation > self.last_deleted() {
                changes.push(Change::put(Key::LastDeleted, &generation));
            }
            changes.push(Change::remove(key));
        }
        (changes, true)
    }

    /// The highest generation of a group that was deleted.
    fn last_deleted(&self) -> u32 {
        self.get(&Key::LastDeleted).and_then(|value| u32::read(value)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::StagedChanges;
    use super::*;

    fn offset(group: &str, number: u32) -> Change {
        Change::put(Key::Offset(group.to_owned(), number), &7_u64)
    }

    fn applied(changes: Vec<Change>, table: &mut Table) {
        for change in changes {
            table.apply(change);
        }
    }

    #[test]
    fn a_deleted_group_leaves_nothing_and_its_generations_are_not_given_again() {
        let (mut table, mut staged) = (Table::new(0), StagedChanges::default());
        let entry = |generation| GroupEntry { generation, used_at_ms: 5 };
        table.apply(Change::put(Key::Group("g".to_owned()), &entry(9)));
        table.apply(Change::put(Key::Group("h".to_owned()), &entry(2)));
        (1..=5).for_each(|number| table.apply(offset("g", number)));
        for other in ["f", "ga"] {
            table.apply(offset(other, 1));
        }
        // Of a commit that is written together with it.
        staged.push(offset("g", 6));
        staged.push(Change::remove(Key::Offset("g".to_owned(), 2)));
        let names = |table: &Table| table.groups().into_iter().collect::<Vec<_>>();
        assert_eq!(names(&table), ["f", "g", "ga", "h"]);
        // In parts: the group is there until the last one.
        let view = View { table: &table, staged: &staged };
        let (part, is_whole) = view.delete_group("g", 30);
        assert!(!is_whole && (1..5).contains(&part.len()), "{part:?}");
        for change in part {
            staged.push(change);
        }
        let view = View { table: &table, staged: &staged };
        assert_eq!(view.group("g"), entry(9));
        let (part, is_whole) = view.delete_group("g", 1 << 20);
        assert!(is_whole);
        for change in part {
            staged.push(change);
        }
        applied(std::mem::take(&mut staged.changes), &mut table);
        let staged = StagedChanges::default();
        assert_eq!(names(&table), ["f", "ga", "h"]);
        let view = View { table: &table, staged: &staged };
        assert_eq!(view.group("g"), GroupEntry::default());
        assert_eq!(view.next_generation("g", 6).map(|(_, generation)| generation), Some(10));
        assert_eq!(view.next_generation("h", 6).map(|(_, generation)| generation), Some(10));
        assert_eq!(view.delete_group("g", 1 << 20), (Vec::new(), true));
    }

    #[test]
    fn a_group_that_is_used_is_noted_once_an_hour() {
        let (mut table, staged) = (Table::new(0), StagedChanges::default());
        let hour = USED_EVERY_MS;
        let view = View { table: &table, staged: &staged };
        assert_eq!(view.is_unused("g", 9 * hour, 0), None, "nobody knows since when");
        let change = view.use_group("g", 9 * hour).expect("it is noted");
        table.apply(change);
        let view = View { table: &table, staged: &staged };
        assert_eq!(view.use_group("g", 10 * hour - 1), None);
        assert!(view.use_group("g", 10 * hour).is_some());
        assert_eq!(view.use_group("g", 0), None, "the clock was set back");
        let unused = |now, ms| view.is_unused("g", now, ms);
        assert_eq!(unused(9 * hour, 0), Some(true));
        assert_eq!(
            (unused(20 * hour, 12 * hour), unused(21 * hour, 12 * hour)),
            (Some(false), Some(true))
        );
        assert_eq!(unused(0, 1), Some(false), "the clock was set back");
    }
}
