//! Export through the `metrics` facade.
//!
//! Nothing on the path of a read touches the facade: the handles are registered once, and `export`
//! copies the statistics into them, from a timer or when a scrape comes in.

use metrics::{Counter, Gauge, counter, gauge};

use crate::cache::Cache;
use crate::flights::{Key, Value};

/// Handles for one cache, labelled `cache`.
#[derive(Debug)]
pub struct CacheMetrics {
    hits: Counter,
    misses: Counter,
    stale_served: Counter,
    loads: Counter,
    load_failures: Counter,
    load_nanos: Counter,
    load_latency: [Gauge; 2],
    joins: Counter,
    refreshes: Counter,
    overtaken: Counter,
    removed: [Counter; 4],
    entries: Gauge,
    weight: Gauge,
    loads_under_way: Gauge,
    backlog: Gauge,
    backlog_bytes: Gauge,
    flushed: Counter,
    flush_failures: Counter,
    rejected_writes: Gauge,
    level: [Counter; 4],
    bus_heard: Counter,
    bus_gaps: Counter,
    unsent: Gauge,
}

impl CacheMetrics {
    /// Registers the handles with the installed recorder.
    pub fn new(cache: &'static str) -> Self {
        let count = |metric: &'static str| counter!(metric, "cache" => cache);
        let level = |metric: &'static str| gauge!(metric, "cache" => cache);
        let removed = ["capacity", "expired", "idle", "invalidated"];
        let latency = ["0.5", "0.99"];
        Self {
            hits: count("voussoir_cache_hits_total"),
            misses: count("voussoir_cache_misses_total"),
            stale_served: count("voussoir_cache_stale_served_total"),
            loads: count("voussoir_cache_loads_total"),
            load_failures: count("voussoir_cache_load_failures_total"),
            load_nanos: count("voussoir_cache_load_nanoseconds_total"),
            load_latency: latency.map(|quantile| {
                let metric = "voussoir_cache_load_latency_seconds";
                gauge!(metric, "cache" => cache, "quantile" => quantile)
            }),
            joins: count("voussoir_cache_joins_total"),
            refreshes: count("voussoir_cache_refreshes_total"),
            overtaken: count("voussoir_cache_overtaken_total"),
            removed: removed.map(|cause| {
                counter!("voussoir_cache_removed_total", "cache" => cache, "cause" => cause)
            }),
            entries: level("voussoir_cache_entries"),
            weight: level("voussoir_cache_weight"),
            loads_under_way: level("voussoir_cache_loads_under_way"),
            backlog: level("voussoir_cache_backlog"),
            backlog_bytes: level("voussoir_cache_backlog_bytes"),
            flushed: count("voussoir_cache_flushed_total"),
            flush_failures: count("voussoir_cache_flush_failures_total"),
            rejected_writes: level("voussoir_cache_rejected_writes"),
            level: [
                count("voussoir_cache_level_hits_total"),
                count("voussoir_cache_level_misses_total"),
                count("voussoir_cache_level_failures_total"),
                count("voussoir_cache_level_invalid_total"),
            ],
            bus_heard: count("voussoir_cache_bus_heard_total"),
            bus_gaps: count("voussoir_cache_bus_gaps_total"),
            unsent: level("voussoir_cache_unsent"),
        }
    }

    /// Copies the cache's figures into the handles.
    pub fn export<K: Key, V: Value>(&self, cache: &Cache<K, V>) {
        let stats = cache.stats();
        self.hits.absolute(stats.hits);
        self.misses.absolute(stats.misses);
        self.stale_served.absolute(stats.stale_served);
        self.loads.absolute(stats.loads);
        self.load_failures.absolute(stats.load_failures);
        self.load_nanos.absolute(stats.load_nanos);
        self.joins.absolute(stats.joins);
        self.refreshes.absolute(stats.refreshes);
        self.overtaken.absolute(stats.overtaken);
        let removed = [stats.evicted, stats.expired, stats.idle, stats.invalidated];
        self.removed.iter().zip(removed).for_each(|(handle, count)| handle.absolute(count));
        self.entries.set(stats.entries as f64);
        self.weight.set(stats.weight as f64);
        self.loads_under_way.set(stats.loads_under_way as f64);
        self.backlog.set(stats.backlog as f64);
        self.backlog_bytes.set(stats.backlog_bytes as f64);
        self.flushed.absolute(stats.flushed);
        self.flush_failures.absolute(stats.flush_failures);
        self.rejected_writes.set(stats.rejected_writes as f64);
        let counts =
            [stats.level_hits, stats.level_misses, stats.level_failures, stats.level_invalid];
        self.level.iter().zip(counts).for_each(|(handle, count)| handle.absolute(count));
        self.bus_heard.absolute(stats.bus_heard);
        self.bus_gaps.absolute(stats.bus_gaps);
        self.unsent.set(stats.unsent as f64);
        let latency = cache.load_latency();
        for (handle, q) in self.load_latency.iter().zip([0.5, 0.99]) {
            handle.set(latency.quantile(q).unwrap_or_default().as_secs_f64());
        }
    }
}
