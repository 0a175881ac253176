//! Counters, and what they show.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

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
    /// Entries dropped because their lifetime was over. Counted when they are next read.
    pub expired: u64,
    /// Entries dropped because they were not read for [`Config::tti`](crate::Config::tti). Counted
    /// when they are next read.
    pub idle: u64,
    /// Entries dropped by an invalidation of their key, tag or everything, or by the source's word
    /// that there is no value. Those of a tag are counted when they are next read.
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
    /// Loads that were answered by the second level.
    pub level_hits: u64,
    /// Loads for which the second level had no valid value.
    pub level_misses: u64,
    /// Loads for which the second level gave no answer.
    pub level_failures: u64,
    /// Bytes in the second level that were no value of their key.
    pub level_invalid: u64,
    /// Invalidations of other processes.
    pub bus_heard: u64,
    /// How often everything was dropped because an invalidation may have been missed: when the bus
    /// comes up, at its start too, when it goes down, and when a number is missing.
    pub bus_gaps: u64,
    /// Invalidations that the second level or the bus does not have yet.
    pub unsent: u64,
}

/// Counters of a cache with a bus or a second level.
#[derive(Debug, Default)]
pub(crate) struct RemoteCounters {
    pub(crate) level_hits: AtomicU64,
    pub(crate) level_misses: AtomicU64,
    pub(crate) level_failures: AtomicU64,
    pub(crate) level_invalid: AtomicU64,
    pub(crate) bus_heard: AtomicU64,
    pub(crate) bus_gaps: AtomicU64,
}

impl RemoteCounters {
    pub(crate) fn add_to(&self, stats: &mut Stats) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        stats.level_hits = read(&self.level_hits);
        stats.level_misses = read(&self.level_misses);
        stats.level_failures = read(&self.level_failures);
        stats.level_invalid = read(&self.level_invalid);
        stats.bus_heard = read(&self.bus_heard);
        stats.bus_gaps = read(&self.bus_gaps);
    }
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
    pub(crate) idle: AtomicU64,
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
            idle: read(&self.idle),
            invalidated: read(&self.invalidated),
            ..Stats::default()
        }
    }
}

/// Buckets of [`LoadLatency`] for each doubling of the latency.
const PER_DOUBLING: u32 = 4;
const BUCKETS: usize = 64 * PER_DOUBLING as usize;

/// The bucket of a latency: the position of its highest bit, and the two bits below it.
fn bucket(nanos: u64) -> usize {
    let nanos = nanos.max(PER_DOUBLING.into());
    let doublings = nanos.ilog2();
    let within = (nanos >> (doublings - PER_DOUBLING.ilog2())) as usize % PER_DOUBLING as usize;
    doublings as usize * PER_DOUBLING as usize + within
}

/// The largest latency of a bucket, in nanoseconds.
fn bucket_end(bucket: usize) -> u64 {
    let (doublings, within) = (bucket / PER_DOUBLING as usize, bucket % PER_DOUBLING as usize);
    let parts = u128::from(PER_DOUBLING) + within as u128 + 1;
    let end = (parts << doublings) / u128::from(PER_DOUBLING) - 1;
    u64::try_from(end).unwrap_or(u64::MAX)
}

/// Latencies of loads, counted in buckets.
#[derive(Debug)]
pub(crate) struct Latencies(Box<[AtomicU64]>);

impl Default for Latencies {
    fn default() -> Self {
        Self((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Latencies {
    pub(crate) fn record(&self, nanos: u64) {
        count(&self.0[bucket(nanos)]);
    }

    pub(crate) fn snapshot(&self) -> LoadLatency {
        LoadLatency(self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect())
    }
}

/// How long loads took that succeeded: a histogram whose buckets are at most 25 % wide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadLatency(Box<[u64]>);

impl LoadLatency {
    /// How many loads succeeded.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The latency that a share `q` (0 to 1) of the loads did not exceed, at most 25 % too large.
    /// `None` before the first load.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let rank = ((self.count() as f64 * q).ceil() as u64).max(1);
        let mut counted = 0;
        let bucket = self.0.iter().position(|count| {
            counted += count;
            counted >= rank
        });
        bucket.map(|bucket| Duration::from_nanos(bucket_end(bucket)))
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Lanes of [`Striped`] that one thread has for itself.
const LANES: usize = 32;
/// The lane of threads that have none of their own.
const SHARED: usize = LANES;
/// This thread has not asked for a lane yet.
const UNKNOWN: usize = LANES + 1;

/// A counter on several cache lines, because every hit of every thread adds to it. A thread that
/// has a lane of its own is the only one that writes it, and needs no locked instruction.
#[derive(Debug, Default)]
pub(crate) struct Striped {
    own: [Padded; LANES],
    shared: Padded,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded(AtomicU64);

/// Lanes that no thread has. A lane that is given back is taken under the same lock, so its next
/// thread sees what the one before has written.
static FREE: Mutex<Lanes> = Mutex::new(Lanes { next: 0, returned: Vec::new() });

struct Lanes {
    next: usize,
    returned: Vec<usize>,
}

/// A thread's hold on its lane, which ends with the thread.
struct Lane(usize);

impl Lane {
    fn take() -> Self {
        let mut lanes = FREE.lock();
        let lane = lanes.returned.pop().unwrap_or_else(|| {
            let next = lanes.next.min(SHARED);
            lanes.next = next + 1;
            next
        });
        Self(lane.min(SHARED))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Other values of this thread that are dropped later may still add.
        LANE.set(SHARED);
        if self.0 < LANES {
            FREE.lock().returned.push(self.0);
        }
    }
}

thread_local! {
    static LANE: Cell<usize> = const { Cell::new(UNKNOWN) };
    static HOLD: Lane = Lane::take();
}

impl Striped {
    #[inline]
    pub(crate) fn add(&self) {
        match self.own.get(LANE.get()) {
            Some(Padded(count)) => {
                count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            }
            None => self.add_without_lane(),
        }
    }

    #[cold]
    fn add_without_lane(&self) {
        if LANE.get() == UNKNOWN {
            // Fails only where the thread is ending.
            LANE.set(HOLD.try_with(|lane| lane.0).unwrap_or(SHARED));
            if LANE.get() < LANES {
                return self.add();
            }
        }
        count(&self.shared.0);
    }

    fn sum(&self) -> u64 {
        let all = self.own.iter().chain(std::iter::once(&self.shared));
        all.map(|lane| lane.0.load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More threads at one time than there are lanes, and more over time.
    #[test]
    fn threads_that_come_and_go_lose_no_count() {
        const THREADS: u64 = 3 * LANES as u64;
        let counter = Striped::default();
        for _ in 0..4 {
            let barrier = std::sync::Barrier::new(THREADS as usize);
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        counter.add();
                        // Each thread has its lane, or none, before the first one ends.
                        barrier.wait();
                        (0..1_000).for_each(|_| counter.add());
                    });
                }
            });
        }
        assert_eq!(counter.sum(), 4 * THREADS * 1_001);
        let own: u64 = counter.own.iter().map(|lane| lane.0.load(Ordering::Relaxed)).sum();
        assert!(own > 0 && counter.shared.0.load(Ordering::Relaxed) > 0, "both were used");
    }

    #[test]
    fn no_lane_has_two_threads() {
        let held: Vec<Lane> = (0..2 * LANES).map(|_| Lane::take()).collect();
        let mut own: Vec<usize> = held.iter().map(|lane| lane.0).filter(|n| *n < LANES).collect();
        own.sort_unstable();
        let count = own.len();
        own.dedup();
        assert!(count > 0 && own.len() == count, "{count} lanes are held, {own:?}");
        drop(held);
        assert!(Lane::take().0 < LANES, "what was given back is taken again");
    }

    #[test]
    fn each_latency_lies_in_a_bucket_that_is_at_most_a_quarter_wide() {
        for nanos in (0..64).flat_map(|bit| [(1_u64 << bit) - 1, 1 << bit, (1 << bit) + 1]) {
            let end = bucket_end(bucket(nanos));
            assert!(end >= nanos, "{nanos} above {end}");
            assert!(nanos < 8 || end - nanos <= nanos / 4, "{nanos} in a bucket up to {end}");
        }
        assert!(bucket_end(bucket(u64::MAX)) == u64::MAX);
        let latencies = Latencies::default();
        assert_eq!(latencies.snapshot().quantile(0.5), None);
        (0..99).for_each(|_| latencies.record(1_000));
        latencies.record(1_000_000);
        let snapshot = latencies.snapshot();
        let micros = |q| snapshot.quantile(q).map(|latency| latency.as_nanos() / 100);
        assert!(micros(0.99).is_some_and(|nanos| (10..=12).contains(&nanos)), "{snapshot:?}");
        assert!(micros(1.0).is_some_and(|nanos| (10_000..=12_500).contains(&nanos)));
        assert_eq!(snapshot.count(), 100);
    }
}
