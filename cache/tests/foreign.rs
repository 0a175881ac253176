//! Keys and values that call the cache when they are dropped: none is dropped under a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use voussoir_cache::{Cache, Config, Insert, LoadError, Loaded, WriteBehind, WriteBehindConfig};
use voussoir_cache::{Sink, SinkError, Write, async_trait};

type Values = Cache<u64, Arc<Value>>;

/// What every value knows.
#[derive(Default)]
struct World {
    cache: OnceLock<Values>,
    dropped: AtomicU64,
}

struct Value {
    world: Arc<World>,
    key: u64,
}

impl Drop for Value {
    fn drop(&mut self) {
        self.world.dropped.fetch_add(1, Ordering::SeqCst);
        if let Some(cache) = self.world.cache.get() {
            // Each takes the lock of the key that is being changed.
            let _ = cache.get(&self.key);
            let _ = cache.stats();
            cache.invalidate(&self.key);
        }
    }
}

fn value(world: &Arc<World>, key: u64) -> Arc<Value> {
    Arc::new(Value { world: Arc::clone(world), key })
}

/// Runs on a thread of its own: a deadlock fails the test instead of hanging it.
fn without_deadlock(name: &str, run: impl FnOnce() + Send + 'static) {
    let (done, finished) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        run();
        done.send(()).unwrap();
    });
    let outcome = finished.recv_timeout(Duration::from_secs(30));
    assert_ne!(outcome, Err(mpsc::RecvTimeoutError::Timeout), "{name} has locked itself out");
    thread.join().unwrap();
}

fn small(max_weight: u64) -> Config {
    let mut config = Config::default();
    config.max_weight = max_weight;
    config
}

fn world(max_weight: u64) -> (Arc<World>, Values) {
    let world = Arc::new(World::default());
    let cache: Values = Cache::builder().config(small(max_weight)).build().unwrap();
    assert!(world.cache.set(cache.clone()).is_ok());
    (world, cache)
}

#[test]
fn what_is_evicted_or_replaced_is_dropped_without_a_lock() {
    without_deadlock("eviction", || {
        let (world, cache) = world(10);
        for key in 0..1000 {
            cache.insert(key % 20, value(&world, key % 20));
        }
        assert!(cache.stats().evicted > 0);
        let before = world.dropped.load(Ordering::SeqCst);
        cache.insert(5, value(&world, 5));
        cache.insert(5, value(&world, 5));
        assert!(world.dropped.load(Ordering::SeqCst) > before, "the first one was replaced");
    });
}

#[test]
fn what_an_invalidation_or_clear_removes_is_dropped_without_a_lock() {
    without_deadlock("invalidation", || {
        let (world, cache) = world(1000);
        for key in 0..100 {
            cache.insert(key, value(&world, key));
        }
        cache.invalidate(&1);
        assert_eq!(world.dropped.load(Ordering::SeqCst), 1);
        cache.clear();
        assert_eq!(world.dropped.load(Ordering::SeqCst), 100);
        assert_eq!(cache.stats().entries, 0);
    });
}

#[test]
fn what_a_larger_version_of_the_source_keeps_out_is_dropped_without_a_lock() {
    without_deadlock("version", || {
        let (world, cache) = world(1000);
        let at = |version| {
            let mut with = Insert::default();
            with.version = Some(version);
            with
        };
        assert!(cache.insert_with(1, value(&world, 1), at(5)));
        assert!(!cache.insert_with(1, value(&world, 1), at(4)));
        // The one that was kept out has invalidated the other one.
        assert_eq!(world.dropped.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn what_a_load_replaces_or_does_not_store_is_dropped_without_a_lock() {
    without_deadlock("load", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (world, cache) = world(10);
            for key in 0..200_u64 {
                let (loaded_world, overtaken) = (Arc::clone(&world), key % 3 == 0);
                let load = move |key| {
                    let world = Arc::clone(&loaded_world);
                    async move {
                        if overtaken && let Some(cache) = world.cache.get() {
                            cache.invalidate(&key);
                        }
                        Ok(Loaded::value(value(&world, key)))
                    }
                };
                assert!(cache.get_or_load_with(&key, load).await.unwrap().is_some());
            }
            assert!(cache.stats().overtaken > 0 && cache.stats().evicted > 0);
            assert!(world.dropped.load(Ordering::SeqCst) >= 190);
        });
    });
}

struct Accepts;

#[async_trait]
impl Sink<u64, Arc<Value>> for Accepts {
    async fn write(&self, writes: &[Write<u64, Arc<Value>>]) -> Vec<Result<(), SinkError>> {
        let answer = |write: &Write<u64, Arc<Value>>| match write.key {
            3 => Err(SinkError::rejected("key 3")),
            _ => Ok(()),
        };
        writes.iter().map(answer).collect()
    }
}

#[test]
fn what_the_backlog_no_longer_needs_is_dropped_without_a_lock() {
    without_deadlock("backlog", || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let world = Arc::new(World::default());
            let config = WriteBehindConfig::default();
            let behind = WriteBehind::in_memory(config, |_, _| 1).unwrap();
            let builder = Cache::builder().config(small(5)).write_behind(behind, Accepts);
            let cache: Values = builder.build().unwrap();
            assert!(world.cache.set(cache.clone()).is_ok());
            for round in 0..20 {
                for key in 0..10 {
                    cache.write(key, value(&world, key)).await.unwrap();
                    cache.write(key, value(&world, key)).await.unwrap();
                }
                if round % 4 == 3 {
                    cache.flush().await;
                    assert_eq!(cache.rejected_writes().len(), 1);
                }
                if round == 11 {
                    assert!(cache.discard_rejected(&3).await.unwrap());
                }
                if round == 15 {
                    assert!(cache.retry_rejected(&3).await.unwrap());
                }
            }
            assert!(world.dropped.load(Ordering::SeqCst) >= 380);
        });
    });
}

/// Panics when it is cloned.
struct Unclonable;

impl Clone for Unclonable {
    fn clone(&self) -> Self {
        panic!("no clone")
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_cannot_be_cloned_leaves_no_key_stuck() {
    let cache: Cache<u64, Unclonable> = Cache::builder().build().unwrap();
    for _ in 0..2 {
        let read = || {
            let cache = cache.clone();
            let load = |_| async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(Loaded::value(Unclonable))
            };
            tokio::spawn(async move { cache.get_or_load_with(&1, load).await.map(|_| ()) })
        };
        for read in [read(), read(), read()] {
            let read = tokio::time::timeout(Duration::from_secs(60), read).await;
            let read = read.expect("a reader waits for ever").unwrap();
            assert!(matches!(read, Err(LoadError::Panicked)), "{read:?}");
        }
        assert_eq!(cache.stats().loads_under_way, 0);
    }
    let load = |_| async { Ok(Loaded::absent()) };
    assert!(cache.get_or_load_with(&1, load).await.unwrap().is_none());
}
