//! Counters, and what they show.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a cache has done since it was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Reads that found a fresh entry, the remembered absence of a value included.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
    /// Reads that were given an entry whose time was over.
    pub stale_served: u64,
    /// Loads begun.
    pub loads: u64,
    /// Loads that failed, timed out or panicked.
    pub load_failures: u64,
    /// Time spent in loads that succeeded, in nanoseconds.
    pub load_nanos: u64,
    /// Reads that joined a load of another reader.
    pub joins: u64,
    /// Loads begun in the background before the entry's end.
    pub refreshes: u64,
    /// Results of loads that were not stored, because the key, a tag or everything was invalidated
    /// while they were under way.
    pub overtaken: u64,
    /// Entries evicted to make room.
    pub evicted: u64,
    /// Entries dropped because their time was over.
    pub expired: u64,
    /// Entries dropped by an invalidation of their key.
    pub invalidated: u64,
    /// Entries in the cache.
    pub entries: u64,
    /// Their total weight.
    pub weight: u64,
    /// Loads under way.
    pub loads_under_way: u64,
    /// Keys whose newest acknowledged value the sink does not have yet.
    pub backlog: u64,
    /// Bytes of these values and their keys, as encoded for the journal, and of writes that are not
    /// yet acknowledged.
    pub backlog_bytes: u64,
    /// Values that the sink has taken from the backlog.
    pub flushed: u64,
    /// Attempts to flush a value that failed.
    pub flush_failures: u64,
    /// Writes that the sink has rejected and that nobody has retried or discarded.
    pub rejected_writes: u64,
}

/// One counter for each field of [`Stats`] that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hits: Striped,
    pub(crate) misses: AtomicU64,
    pub(crate) stale_served: AtomicU64,
    pub(crate) loads: AtomicU64,
    pub(crate) load_failures: AtomicU64,
    pub(crate) load_nanos: AtomicU64,
    pub(crate) joins: AtomicU64,
    pub(crate) refreshes: AtomicU64,
    pub(crate) overtaken: AtomicU64,
    pub(crate) expired: AtomicU64,
    pub(crate) invalidated: AtomicU64,
}

impl Counters {
    pub(crate) fn snapshot(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            hits: self.hits.sum(),
            misses: read(&self.misses),
            stale_served: read(&self.stale_served),
            loads: read(&self.loads),
            load_failures: read(&self.load_failures),
            load_nanos: read(&self.load_nanos),
            joins: read(&self.joins),
            refreshes: read(&self.refreshes),
            overtaken: read(&self.overtaken),
            expired: read(&self.expired),
            invalidated: read(&self.invalidated),
            ..Stats::default()
        }
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Stripes of [`Striped`]: a power of two.
const STRIPES: usize = 16;

/// A counter on several cache lines, because every hit of every thread adds to it.
#[derive(Debug, Default)]
pub(crate) struct Striped([Padded; STRIPES]);

#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded(AtomicU64);

thread_local! {
    /// The stripe that this thread adds to; threads take them in turn.
    static STRIPE: usize = {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) as usize % STRIPES
    };
}

impl Striped {
    pub(crate) fn add(&self) {
        count(&self.0[STRIPE.with(|stripe| *stripe)].0);
    }

    fn sum(&self) -> u64 {
        self.0.iter().map(|stripe| stripe.0.load(Ordering::Relaxed)).sum()
    }
}
