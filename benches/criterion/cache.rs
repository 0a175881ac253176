//! Hits, misses with and without a load, inserts and invalidations.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use voussoir_cache::{Cache, Config, Insert, Loaded, Source, SourceError, async_trait};

const KEYS: u64 = 100_000;

/// A source that answers at once.
struct Instantly;

#[async_trait]
impl Source<u64, u64> for Instantly {
    async fn load(&self, keys: &[u64]) -> Vec<Result<Loaded<u64>, SourceError>> {
        keys.iter().map(|key| Ok(Loaded::value(*key))).collect()
    }
}

fn cache(config: Config) -> Cache<u64, u64> {
    Cache::builder().config(config).source(Instantly).build().expect("valid")
}

fn plain() -> Config {
    let mut config = Config::default();
    config.max_weight = 2 * KEYS;
    config
}

/// A lifetime and all that is decided at a hit.
fn with_times() -> Config {
    let mut config = plain();
    config.ttl = Some(Duration::from_secs(3_600));
    config.tti = Some(Duration::from_secs(3_600));
    config.refresh_after = Some(Duration::from_secs(3_000));
    config.early_refresh = 1.0;
    config
}

/// The key of a turn: neighbours in time are far apart in the table.
fn scattered(turn: u64) -> u64 {
    (turn.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20) % KEYS
}

fn hits(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    for (name, config) in [("no lifetime", plain()), ("every time rule", with_times())] {
        let cache = cache(config);
        (0..KEYS).for_each(|key| assert!(cache.insert(key, key)));
        let mut turn = 0;
        c.bench_function(&format!("cache/get, hit/{name}"), |b| {
            b.iter(|| {
                turn += 1;
                black_box(cache.get(&scattered(turn)))
            });
        });
        c.bench_function(&format!("cache/get_or_load, hit/{name}"), |b| {
            b.to_async(&runtime).iter(|| {
                turn += 1;
                let key = scattered(turn);
                let cache = &cache;
                async move { black_box(cache.get_or_load(&key).await.expect("a value")) }
            });
        });
    }
}

fn misses(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let cache = cache(plain());
    c.bench_function("cache/get, miss", |b| b.iter(|| black_box(cache.get(&u64::MAX))));
    // Every key is new: the load, its store and, once the cache is full, an eviction.
    let mut key = 0;
    c.bench_function("cache/get_or_load, miss", |b| {
        b.to_async(&runtime).iter(|| {
            key += 1;
            let cache = &cache;
            async move { black_box(cache.get_or_load(&key).await.expect("a value")) }
        });
    });
}

fn writes(c: &mut Criterion) {
    let cache = cache(plain());
    let mut turn = 0;
    c.bench_function("cache/insert", |b| {
        b.iter(|| {
            turn += 1;
            black_box(cache.insert(scattered(turn), turn))
        });
    });
    c.bench_function("cache/insert with a tag", |b| {
        b.iter(|| {
            turn += 1;
            let mut with = Insert::default();
            with.tags = vec![format!("user-{}", turn % 100)];
            black_box(cache.insert_with(scattered(turn), turn, with))
        });
    });
    c.bench_function("cache/invalidate", |b| {
        b.iter(|| {
            turn += 1;
            cache.invalidate(&scattered(turn));
        });
    });
}

criterion_group!(benches, hits, misses, writes);
criterion_main!(benches);
