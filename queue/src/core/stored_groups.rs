//! What the table says of groups: their generations, when they were last used, their offsets.

use std::collections::BTreeSet;
use std::ops::Range;

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
        self.delete_group_after(name, max_bytes, &mut self.last_deleted())
    }

    /// As [`delete_group`](Self::delete_group), when `last_deleted` is the highest generation of a
    /// group that was deleted, which it raises.
    fn delete_group_after(
        &self,
        name: &str,
        max_bytes: usize,
        last_deleted: &mut u32,
    ) -> (Vec<Change>, bool) {
        let (mut changes, is_whole) = removal(self.offsets_of(name), max_bytes);
        if !is_whole {
            return (changes, false);
        }
        let key = Key::Group(name.to_owned());
        if self.get(&key).is_some() {
            let generation = self.group(name).generation;
            if generation > *last_deleted {
                *last_deleted = generation;
                changes.push(Change::put(Key::LastDeleted, &generation));
            }
            changes.push(Change::remove(key));
        }
        (changes, true)
    }

    /// What removes all that groups have stored about these partitions of a topic: a part of about
    /// `max_bytes`, and whether nothing is left behind it. A group that has stored nothing else is
    /// deleted with it, unless it has members.
    pub(crate) fn forget_partitions(
        &self,
        numbers: &Range<u32>,
        max_bytes: usize,
        has_members: impl Fn(&str) -> bool,
    ) -> (Vec<Change>, bool) {
        let (mut changes, mut bytes) = (Vec::new(), 0);
        let mut last_deleted = self.last_deleted();
        for group in self.groups_at(numbers) {
            if bytes > max_bytes {
                return (changes, false);
            }
            let is_about = |key: &&Key| matches!(key, Key::Offset(_, at) if numbers.contains(at));
            let is_live = |key: &&Key| matches!(key, Key::Offset(_, at) if self.has_partition(*at));
            let offsets = self.offsets_of(&group);
            let has_others = offsets.iter().any(|key| !is_about(key) && is_live(key));
            let left = max_bytes - bytes;
            let (part, is_whole) = if has_others || has_members(&group) {
                removal(offsets.into_iter().filter(is_about), left)
            } else {
                self.delete_group_after(&group, left, &mut last_deleted)
            };
            bytes += part.iter().map(Change::len_bytes).sum::<usize>();
            changes.extend(part);
            if !is_whole {
                return (changes, false);
            }
        }
        (changes, true)
    }

    /// The offsets that a group has stored, in order.
    fn offsets_of(&self, name: &str) -> BTreeSet<&Key> {
        let is_of_group = |key: &&Key| matches!(key, Key::Offset(group, _) if group == name);
        let stored = self.table.from(Key::Offset(name.to_owned(), 0)).map(|(key, _)| key);
        let stored = stored.take_while(is_of_group);
        let staged = self.staged.latest().filter(is_of_group);
        stored.chain(staged).filter(|key| self.get(key).is_some()).collect()
    }

    /// The groups that may have stored an offset of one of these partitions.
    fn groups_at(&self, numbers: &Range<u32>) -> BTreeSet<String> {
        let mut groups = BTreeSet::new();
        for key in self.staged.latest() {
            if let Key::Offset(group, number) = key
                && numbers.contains(number)
            {
                groups.insert(group.clone());
            }
        }
        let mut from = Key::Offset(String::new(), 0);
        // Ends: each round goes on in the group, or to the next one.
        while let Some((Key::Offset(group, number), _)) = self.table.from(from).next() {
            if *number < numbers.start {
                from = Key::Offset(group.clone(), numbers.start);
                continue;
            }
            if numbers.contains(number) {
                groups.insert(group.clone());
            }
            from = Key::behind_offsets(group);
        }
        groups
    }

    /// The highest generation of a group that was deleted.
    fn last_deleted(&self) -> u32 {
        self.get(&Key::LastDeleted).and_then(|value| u32::read(value)).unwrap_or(0)
    }
}

/// What removes these keys: a part of about `max_bytes`, and whether it is all of them.
fn removal<'a>(keys: impl IntoIterator<Item = &'a Key>, max_bytes: usize) -> (Vec<Change>, bool) {
    let (mut changes, mut bytes) = (Vec::new(), 0);
    for key in keys {
        if bytes > max_bytes {
            return (changes, false);
        }
        let change = Change::remove(key.clone());
        bytes += change.len_bytes();
        changes.push(change);
    }
    (changes, true)
}

#[cfg(test)]
mod tests {
    use super::super::entry::TopicEntry;
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
    fn what_is_stored_about_a_deleted_topic_goes() {
        let mut table = Table::new(0);
        let entry = |generation| GroupEntry { generation, used_at_ms: 5 };
        for (name, first_number) in [("gone", 4), ("kept", 1)] {
            let topic = TopicEntry {
                first_number,
                partitions: 3,
                max_bytes: u64::MAX,
                max_age_ms: u64::MAX,
                min_lag_ms: u64::MAX,
                min_tombstone_age_ms: u64::MAX,
            };
            table.apply(Change::put(Key::Topic(name.to_owned()), &topic));
        }
        for (group, generation) in [("a", 9), ("b", 2), ("both", 3), ("member", 4)] {
            table.apply(Change::put(Key::Group(group.to_owned()), &entry(generation)));
            table.apply(offset(group, 4));
            table.apply(offset(group, 6));
        }
        table.apply(offset("both", 1));
        table.apply(offset("other", 3));
        // Of a topic that was deleted before: it keeps no group.
        table.apply(offset("b", 7));
        // Of a commit that is written together with it.
        let mut staged = StagedChanges::default();
        staged.push(offset("late", 5));
        let has_members = |group: &str| group == "member";
        let mut rounds = 0;
        // Ends: each round removes something.
        loop {
            let view = View { table: &table, staged: &staged };
            let (part, is_whole) = view.forget_partitions(&(4..7), 40, has_members);
            assert!(is_whole || !part.is_empty());
            for change in part {
                staged.push(change);
            }
            rounds += 1;
            if is_whole {
                break;
            }
        }
        assert!(rounds > 2, "{rounds}");
        staged.push(Change::remove(Key::Topic("gone".to_owned())));
        let view = View { table: &table, staged: &staged };
        let there: Vec<u32> = (0..9).filter(|number| view.has_partition(*number)).collect();
        assert_eq!(there, [1, 2, 3], "before it is written");
        applied(std::mem::take(&mut staged.changes), &mut table);
        let staged = StagedChanges::default();
        let view = View { table: &table, staged: &staged };
        assert_eq!(table.groups().into_iter().collect::<Vec<_>>(), ["both", "member", "other"]);
        assert_eq!(view.group("both"), entry(3));
        let left = |group| view.offsets_of(group).len();
        assert_eq!((left("both"), left("member"), left("other")), (1, 0, 1));
        assert_eq!(view.next_generation("b", 6).map(|(_, generation)| generation), Some(10));
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
