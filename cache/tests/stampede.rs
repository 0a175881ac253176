//! One load for many readers, however they come and go.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use support::{Mood, Script, cache, config};
use voussoir_cache::{Cache, LoadError, Loaded, OnPanic, Source, SourceError, async_trait};

#[tokio::test(start_paused = true)]
async fn ten_thousand_readers_of_one_key_cause_one_load() {
    let script = Script::new(1);
    let (cache, _) = cache(config(|_| {}), &script);
    let readers: Vec<_> = (0..10_000)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.get_or_load(&7).await })
        })
        .collect();
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap(), Some(70));
    }
    assert_eq!(script.calls(), 1);
    let stats = cache.stats();
    assert_eq!((stats.loads, stats.joins, stats.loads_under_way), (1, 9_999, 0));
}

#[tokio::test(start_paused = true)]
async fn misses_of_a_thousand_keys_are_collected_into_few_calls() {
    let script = Script::new(100);
    let (cache, _) = cache(config(|_| {}), &script);
    let readers: Vec<_> = (0..1000)
        .map(|key| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.get_or_load(&key).await })
        })
        .collect();
    for (key, reader) in (0..).zip(readers) {
        assert_eq!(reader.await.unwrap().unwrap(), Some(key * 10));
    }
    assert!(script.calls() <= 20, "{} calls", script.calls());
    assert_eq!(script.keys.load(Ordering::SeqCst), 1000, "no key is asked for twice");
}

/// Takes batches, each in 20 ms, and counts its calls.
#[derive(Clone, Default)]
struct Batches {
    calls: Arc<AtomicUsize>,
    keys: Arc<AtomicUsize>,
}

#[async_trait]
impl Source<u64, u64> for Batches {
    async fn load(&self, keys: &[u64]) -> Vec<Result<Loaded<u64>, SourceError>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.keys.fetch_add(keys.len(), Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(20)).await;
        keys.iter().map(|key| Ok(Loaded::value(key * 10))).collect()
    }

    fn max_batch(&self) -> usize {
        100
    }
}

/// On worker threads the task that collects runs right after the task that spawned it, before the
/// others: it has to let them run.
#[test]
fn misses_of_a_thousand_tasks_on_worker_threads_are_collected_into_few_calls() {
    for threads in [1, 2, 4] {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(threads).enable_time().build().unwrap();
        let source = Batches::default();
        let cache = Cache::builder().source(source.clone()).build().unwrap();
        runtime.block_on(async {
            let start = Arc::new(tokio::sync::Barrier::new(1000));
            let read = |key| {
                let (cache, start) = (cache.clone(), Arc::clone(&start));
                tokio::spawn(async move {
                    start.wait().await;
                    cache.get_or_load(&key).await
                })
            };
            let readers: Vec<_> = (0..1000).map(read).collect();
            for (key, reader) in (0..).zip(readers) {
                assert_eq!(reader.await.unwrap().unwrap(), Some(key * 10));
            }
        });
        let (calls, keys) =
            (source.calls.load(Ordering::SeqCst), source.keys.load(Ordering::SeqCst));
        assert!((10..=20).contains(&calls), "{calls} calls with {threads} threads");
        assert_eq!(keys, 1000, "no key is asked for twice");
    }
}

/// Misses that come while a batch leaves belong to the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn misses_that_come_while_batches_leave_are_answered() {
    let source = Batches::default();
    let cache: Cache<u64, u64> = Cache::builder().source(source.clone()).build().unwrap();
    let reader = |task: u64| {
        let cache = cache.clone();
        tokio::spawn(async move {
            for round in 0..20 {
                let key = task * 1000 + round;
                assert_eq!(cache.get_or_load(&key).await.unwrap(), Some(key * 10));
            }
        })
    };
    for reader in (0..50).map(reader).collect::<Vec<_>>() {
        reader.await.unwrap();
    }
    assert_eq!(source.keys.load(Ordering::SeqCst), 1000);
}

/// Collecting costs no time on the clock, and no reader waits for a call under way.
#[tokio::test(start_paused = true)]
async fn a_lone_miss_does_not_wait_for_others() {
    let source = Batches::default();
    let cache = Cache::builder().source(source.clone()).build().unwrap();
    let start = tokio::time::Instant::now();
    let first = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get_or_load(&1).await }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(cache.get_or_load(&2).await.unwrap(), Some(20));
    assert_eq!(start.elapsed(), Duration::from_millis(30));
    assert!(first.is_finished());
    assert_eq!(source.calls.load(Ordering::SeqCst), 2);
}

/// The runtime whose task was to make the call is shut down: its key fails at once, and readers on
/// other runtimes are served.
#[test]
fn a_runtime_that_is_shut_down_while_it_collects_stops_no_other() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let source = Batches::default();
    let cache: Cache<u64, u64> = Cache::builder().source(source.clone()).build().unwrap();
    let (doomed, other) = (runtime(), runtime());
    let mut orphan = std::pin::pin!(cache.get_or_load(&1));
    doomed.block_on(async { assert!(poll_once(orphan.as_mut()).await.is_none()) });
    drop(doomed);
    other.block_on(async {
        assert!(matches!(orphan.await, Err(LoadError::Panicked)));
        assert_eq!(cache.get_or_load(&2).await.unwrap(), Some(20));
        assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
    });
}

/// A source may keep a waker for as long as it likes, and tokio does so for a while.
#[tokio::test(start_paused = true)]
async fn a_waker_that_outlives_its_load_keeps_no_value_alive() {
    for readers in [1, 3] {
        let kept = Arc::new(std::sync::Mutex::new(Vec::new()));
        let value = Arc::new(7);
        let cache: Cache<u64, Arc<u64>> = Cache::builder().build().unwrap();
        let load = {
            let (kept, value) = (Arc::clone(&kept), Arc::downgrade(&value));
            move |_| {
                let (kept, value) = (Arc::clone(&kept), value.clone());
                async move {
                    std::future::poll_fn(|cx| {
                        kept.lock().unwrap().push(cx.waker().clone());
                        std::task::Poll::Ready(())
                    })
                    .await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    Ok(Loaded::value(value.upgrade().unwrap()))
                }
            }
        };
        let read = || {
            tokio::spawn({
                let (cache, load) = (cache.clone(), load.clone());
                async move { cache.get_or_load_with(&1, load).await.map(drop) }
            })
        };
        for reader in (0..readers).map(|_| read()).collect::<Vec<_>>() {
            reader.await.unwrap().unwrap();
        }
        assert_eq!(kept.lock().unwrap().len(), 1, "one load, polled to its first wait once");
        assert_eq!(Arc::strong_count(&value), 2, "here, and in the cache");
        cache.invalidate(&1);
        assert_eq!(Arc::strong_count(&value), 1);
    }
}

/// The timer of the hard timeout does not poll the load a second time.
#[tokio::test(start_paused = true)]
async fn a_load_is_polled_once_for_each_time_that_it_was_woken() {
    let polls = Arc::new(AtomicUsize::new(0));
    let cache: Cache<u64, u64> = Cache::builder().build().unwrap();
    let counted = Arc::clone(&polls);
    let load = move |key| {
        let polls = Arc::clone(&counted);
        async move {
            let mut sleep = std::pin::pin!(tokio::time::sleep(Duration::from_millis(1)));
            std::future::poll_fn(|cx| {
                polls.fetch_add(1, Ordering::SeqCst);
                sleep.as_mut().poll(cx)
            })
            .await;
            Ok(Loaded::value(key))
        }
    };
    assert_eq!(cache.get_or_load_with(&1, load).await.unwrap(), Some(1));
    assert_eq!(polls.load(Ordering::SeqCst), 2);
}

/// The reader that began the load goes away; another one goes on with the same load.
#[tokio::test(start_paused = true)]
async fn the_load_goes_on_when_its_first_reader_is_cancelled() {
    let script = Script::new(1);
    let (cache, _) = cache(config(|_| {}), &script);
    for leaving in 1..5 {
        cache.invalidate(&1);
        let before = script.calls();
        let readers: Vec<_> = (0..5)
            .map(|_| {
                let cache = cache.clone();
                tokio::spawn(async move { cache.get_or_load(&1).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(5)).await;
        for reader in &readers[..leaving] {
            reader.abort();
        }
        for reader in readers.into_iter().skip(leaving) {
            assert_eq!(reader.await.unwrap().unwrap(), Some(10));
        }
        assert_eq!(script.calls(), before + 1);
    }
}

/// A task that has begun a load and then awaits something else, as a `select!` with a slow arm
/// does, polls its reader no more: the others go on with the load.
#[tokio::test(start_paused = true)]
async fn a_reader_that_is_not_polled_holds_up_no_other() {
    let script = Script::new(1);
    let (cache, _) = cache(config(|_| {}), &script);
    let mut held: Vec<_> = (0..3).map(|_| Box::pin(cache.get_or_load(&1))).collect();
    for reader in &mut held {
        assert!(poll_once(reader.as_mut()).await.is_none(), "the load takes a while");
    }
    let others: Vec<_> = (0..10)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.get_or_load(&1).await })
        })
        .collect();
    for other in others {
        let answer = tokio::time::timeout(Duration::from_secs(1), other).await;
        assert_eq!(answer.expect("the load goes on").unwrap().unwrap(), Some(10));
    }
    for reader in held {
        assert_eq!(reader.await.unwrap(), Some(10), "they are given the same load's value");
    }
    assert_eq!(script.calls(), 1);
    assert_eq!(cache.stats().loads_under_way, 0);
}

/// Polls a future once.
async fn poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_load_that_nobody_waits_for_is_dropped() {
    let script = Script::new(1);
    let (cache, _) = cache(config(|_| {}), &script);
    let reader = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get_or_load(&1).await }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(cache.stats().loads_under_way, 1);
    reader.abort();
    assert!(reader.await.unwrap_err().is_cancelled());
    assert_eq!(cache.stats().loads_under_way, 0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(cache.get(&1), None, "nothing was stored");
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
}

#[tokio::test(start_paused = true)]
async fn each_reader_gets_the_outcome_of_the_load_it_joined() {
    let script = Script::new(1);
    let (cache, _) = cache(config(|_| {}), &script);
    script.set(Mood::Fails);
    let failed: Vec<_> = (0..10)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.get_or_load(&1).await })
        })
        .collect();
    for reader in failed {
        let error = reader.await.unwrap().unwrap_err();
        assert!(matches!(error, LoadError::Source(_)), "{error}");
    }
    assert_eq!(script.calls(), 1);
    script.set(Mood::Answers);
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10), "a failure is not remembered");
}

#[tokio::test(start_paused = true)]
async fn a_panicking_load_fails_its_readers_and_no_other() {
    let script = Script::new(1);
    let (cache, _) = cache(config(|_| {}), &script);
    script.set(Mood::Panics);
    let readers: Vec<_> = (0..10)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.get_or_load(&1).await })
        })
        .collect();
    for reader in readers {
        assert!(matches!(reader.await.unwrap(), Err(LoadError::Panicked)));
    }
    script.set(Mood::Answers);
    assert_eq!(cache.get_or_load(&1).await.unwrap(), Some(10));
    assert_eq!(cache.stats().loads_under_way, 0);
}

#[tokio::test(start_paused = true)]
async fn a_panicking_load_is_started_once_more_where_that_is_configured() {
    let tries = Arc::new(AtomicUsize::new(0));
    let config = config(|config| config.on_panic = OnPanic::RetryOnce);
    let cache: Cache<u64, u64> = Cache::builder().config(config).build().unwrap();
    let load = |panics: usize| {
        let tries = Arc::clone(&tries);
        move |key: u64| {
            let attempt = tries.fetch_add(1, Ordering::SeqCst);
            async move {
                assert!(attempt >= panics, "the loader panics");
                Ok(Loaded::value(key))
            }
        }
    };
    assert_eq!(cache.get_or_load_with(&5, load(1)).await.unwrap(), Some(5));
    assert_eq!(tries.swap(0, Ordering::SeqCst), 2);
    let failed = cache.get_or_load_with(&6, load(9)).await;
    assert!(matches!(failed, Err(LoadError::Panicked)));
    assert_eq!(tries.load(Ordering::SeqCst), 2, "once more, not for ever");
}

#[tokio::test(start_paused = true)]
async fn loads_are_bounded_in_number_and_time() {
    let script = Script::new(1);
    let bounds = config(|config| {
        config.max_loads = 2;
        config.hard_timeout = Duration::from_millis(50);
    });
    let (cache, _) = cache(bounds, &script);
    script.set(Mood::Hangs);
    let hanging: Vec<_> = (0..2)
        .map(|key| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.get_or_load(&key).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(matches!(cache.get_or_load(&3).await, Err(LoadError::Busy)));
    for reader in hanging {
        assert!(matches!(reader.await.unwrap(), Err(LoadError::TimedOut)));
    }
    script.set(Mood::Answers);
    assert_eq!(cache.get_or_load(&3).await.unwrap(), Some(30));
}

/// Readers of few keys on real threads: loads fail, panic and take no time at all, readers are
/// cancelled, keys are invalidated. No key stays stuck and no load stays behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_stays_stuck_under_failing_panicking_and_cancelled_loads() {
    let operations: u64 =
        std::env::var("VOUSSOIR_OPERATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(60_000);
    let cache: Cache<u64, u64> = Cache::builder().config(config(|_| {})).build().unwrap();
    let chance = voussoir_sim::Rng::new(7);
    let mut workers = Vec::new();
    for worker in 0..8_u64 {
        let (cache, mut chance) = (cache.clone(), chance.clone());
        (0..worker).for_each(|_| _ = chance.next_u64());
        workers.push(tokio::spawn(async move {
            for _ in 0..operations / 8 {
                let (key, mood) = (chance.below(16), chance.below(10));
                let read = cache.get_or_load_with(&key, move |key| async move {
                    if mood < 6 {
                        tokio::task::yield_now().await;
                    }
                    assert_ne!(mood, 0, "the loader panics");
                    if mood == 1 { Err(LoadError::TimedOut) } else { Ok(Loaded::value(key)) }
                });
                match chance.below(4) {
                    0 => {
                        tokio::select! {
                            biased;
                            () = tokio::task::yield_now() => {}
                            _ = read => {}
                        }
                    }
                    1 => cache.invalidate(&key),
                    _ => {
                        if let Ok(Some(value)) = read.await {
                            assert_eq!(value, key);
                        }
                    }
                }
            }
        }));
    }
    for worker in workers {
        worker.await.unwrap();
    }
    assert_eq!(cache.stats().loads_under_way, 0);
    for key in 0..16 {
        let read = cache.get_or_load_with(&key, |key| async move { Ok(Loaded::value(key)) });
        assert_eq!(read.await.unwrap(), Some(key));
    }
}
