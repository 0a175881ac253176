//! Who waits for the offsets that a group stores. A commit wakes only those of its groups.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::core::entry::{Change, Key};

/// The groups that somebody waits for, as many as there are waiting futures at most.
#[derive(Debug, Default)]
pub(crate) struct GroupWatches {
    by_group: Mutex<HashMap<Arc<str>, watch::Sender<()>>>,
}

/// A place among those that wait for a group. Dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct GroupWatch<'a> {
    watches: &'a GroupWatches,
    group: Arc<str>,
    pub(crate) changed: watch::Receiver<()>,
}

impl GroupWatches {
    pub(crate) fn watch(&self, group: &str) -> GroupWatch<'_> {
        let group: Arc<str> = group.into();
        let changed = {
            let mut by_group = self.by_group.lock();
            let sender =
                by_group.entry(Arc::clone(&group)).or_insert_with(|| watch::Sender::new(()));
            sender.subscribe()
        };
        GroupWatch { watches: self, group, changed }
    }

    /// The watched groups whose offsets `changes` may change: all of them when a topic goes,
    /// because what was seen of its partitions counts no more.
    pub(crate) fn watched_by(&self, changes: &[Change]) -> BTreeSet<Arc<str>> {
        let by_group = self.by_group.lock();
        let is_deletion =
            |change: &Change| matches!(change, Change { key: Key::Topic(_), value: None });
        if by_group.is_empty() {
            BTreeSet::new()
        } else if changes.iter().any(is_deletion) {
            by_group.keys().cloned().collect()
        } else {
            let group = |change: &Change| match &change.key {
                Key::Offset(group, _) => {
                    Some(Arc::clone(by_group.get_key_value(group.as_str())?.0))
                }
                _ => None,
            };
            changes.iter().filter_map(group).collect()
        }
    }

    /// Wakes those who wait for `groups`.
    pub(crate) fn wake(&self, groups: &BTreeSet<Arc<str>>) {
        let senders: Vec<watch::Sender<()>> = {
            let by_group = self.by_group.lock();
            groups.iter().filter_map(|group| by_group.get(group)).cloned().collect()
        };
        // Without the lock: wakers are foreign code.
        for sender in senders {
            sender.send_replace(());
        }
    }
}

impl Drop for GroupWatch<'_> {
    fn drop(&mut self) {
        let mut by_group = self.watches.by_group.lock();
        // This place is the last one.
        if by_group.get(&self.group).is_some_and(|sender| sender.receiver_count() == 1) {
            by_group.remove(&self.group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(group: &str) -> Change {
        Change::put(Key::Offset(group.to_owned(), 1), &7_u64)
    }

    #[test]
    fn a_commit_wakes_only_those_who_wait_for_its_groups() {
        let watches = GroupWatches::default();
        let (mut first, second) = (watches.watch("a"), watches.watch("a"));
        let mut other = watches.watch("b");
        watches.wake(&watches.watched_by(&[offset("a"), offset("a"), offset("c")]));
        let has_changed = |watch: &GroupWatch<'_>| watch.changed.has_changed().expect("a sender");
        assert!(has_changed(&first) && has_changed(&second) && !has_changed(&other));
        first.changed.mark_unchanged();
        watches.wake(&watches.watched_by(&[Change::put(Key::Topic("t".into()), &7_u64)]));
        assert!(!has_changed(&first) && !has_changed(&other), "a new topic is nobody's");
        watches.wake(&watches.watched_by(&[Change::remove(Key::Topic("t".into()))]));
        assert!(has_changed(&first) && has_changed(&other), "what was seen of it counts no more");
        other.changed.mark_unchanged();
        drop(second);
        assert_eq!(watches.by_group.lock().len(), 2, "another one still waits for the group");
        drop((first, other));
        assert!(watches.by_group.lock().is_empty(), "nobody waits");
    }
}
