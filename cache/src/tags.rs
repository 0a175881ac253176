//! Tags: names that many entries carry, so that one call invalidates all of them.
//!
//! An entry holds its tags, and each tag the version below which entries are invalid: invalidating
//! a tag is one store, whatever the number of entries. A tag lives as long as an entry holds it.
//! A tag that no entry holds is kept only while loads are under way that began before its
//! invalidation, because their results may carry it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// One tag.
#[derive(Debug)]
pub(crate) struct Tag {
    name: Box<str>,
    /// Entries of a lower version are invalid.
    floor: AtomicU64,
}

impl Tag {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn floor(&self) -> u64 {
        self.floor.load(Ordering::Acquire)
    }
}

/// All tags of a cache.
#[derive(Debug)]
pub(crate) struct Tags {
    table: Mutex<Table>,
    /// At most this many invalidated tags are kept for loads under way.
    max_kept: usize,
    /// The tag of values whose tags are not known: the invalidation of any tag hits them.
    any: Arc<Tag>,
}

#[derive(Debug, Default)]
struct Table {
    tags: HashMap<Box<str>, Weak<Tag>>,
    /// When the table is next searched for tags that nobody holds: at this size.
    sweep_at: usize,
    /// Invalidated while loads were under way, with the version of the invalidation.
    kept: Vec<(u64, Arc<Tag>)>,
}

impl Tags {
    pub(crate) fn new(max_kept: usize) -> Self {
        let any = Arc::new(Tag { name: Box::default(), floor: AtomicU64::new(0) });
        Self { table: Mutex::default(), max_kept, any }
    }

    /// The tag that the invalidation of any tag invalidates.
    pub(crate) fn any(&self) -> &Arc<Tag> {
        &self.any
    }

    /// The tags of these names, each once, and with `has_any` that of [`any`](Self::any).
    pub(crate) fn intern<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
        has_any: bool,
    ) -> Box<[Arc<Tag>]> {
        let mut tags: Vec<Arc<Tag>> = has_any.then(|| Arc::clone(&self.any)).into_iter().collect();
        let mut table = self.table.lock();
        for name in names {
            if tags[usize::from(has_any)..].iter().all(|tag| tag.name() != name) {
                tags.push(table.tag(name));
            }
        }
        tags.into()
    }

    /// Invalidates what carries the tag and is older than `version`. `oldest_load` says at which
    /// version the oldest load under way began; it is asked while the table is locked, so that a
    /// call which saw no load never drops what another one keeps for a load. Returns false when
    /// too many tags would have to be kept: then the results of all loads under way must not be
    /// stored.
    pub(crate) fn invalidate(
        &self,
        name: &str,
        version: u64,
        oldest_load: impl FnOnce() -> Option<u64>,
    ) -> bool {
        self.any.floor.fetch_max(version, Ordering::AcqRel);
        let mut table = self.table.lock();
        let oldest_load = oldest_load();
        table.kept.retain(|(kept, _)| oldest_load.is_some_and(|oldest| oldest < *kept));
        let Some(_) = oldest_load.filter(|oldest| *oldest < version) else {
            if let Some(tag) = table.tags.get(name).and_then(Weak::upgrade) {
                tag.floor.fetch_max(version, Ordering::AcqRel);
            }
            return true;
        };
        let tag = table.tag(name);
        tag.floor.fetch_max(version, Ordering::AcqRel);
        if table.kept.len() >= self.max_kept {
            table.kept.clear();
            return false;
        }
        table.kept.push((version, tag));
        true
    }

    /// How many tags are in the table, and how many of them are kept for loads under way.
    #[cfg(test)]
    pub(crate) fn sizes(&self) -> (usize, usize) {
        let table = self.table.lock();
        (table.tags.len(), table.kept.len())
    }
}

impl Table {
    fn tag(&mut self, name: &str) -> Arc<Tag> {
        if let Some(tag) = self.tags.get(name).and_then(Weak::upgrade) {
            return tag;
        }
        if self.tags.len() >= self.sweep_at {
            self.tags.retain(|_, tag| tag.strong_count() > 0);
            self.sweep_at = (2 * self.tags.len()).max(64);
        }
        let tag = Arc::new(Tag { name: name.into(), floor: AtomicU64::new(0) });
        self.tags.insert(name.into(), Arc::downgrade(&tag));
        tag
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_that_nobody_holds_is_forgotten() {
        let tags = Tags::new(10);
        for n in 0..10_000 {
            let held = tags.intern(std::iter::once(&*format!("tag {n}")), false);
            assert!(tags.invalidate(&format!("tag {n}"), n + 1, || None));
            assert_eq!(held[0].floor(), n + 1);
        }
        assert!(tags.sizes().0 <= 128, "{:?}", tags.sizes());
    }

    #[test]
    fn an_invalidation_is_kept_only_for_loads_that_began_before_it() {
        let tags = Tags::new(2);
        assert!(tags.invalidate("a", 10, || Some(5)));
        assert_eq!(tags.intern(std::iter::once("a"), false)[0].floor(), 10);
        // All loads under way began after it: the result of none may be too old.
        assert!(tags.invalidate("b", 12, || Some(11)));
        assert_eq!(tags.sizes().1, 1);
        assert_eq!(tags.intern(std::iter::once("a"), false)[0].floor(), 0);
        assert!(tags.invalidate("c", 13, || Some(11)));
        assert!(!tags.invalidate("d", 14, || Some(11)), "too many to keep");
    }
}
