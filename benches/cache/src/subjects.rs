//! Ours, the table under it and the rivals, each as it is set up. All hold values in an `Arc`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quick_cache::sync::Cache as Quick;
use voussoir_cache::{Cache, Config, Insert, Loaded, Source, SourceError, async_trait};

use crate::measure::Subject;

pub type Held = Arc<u64>;
pub type Ours = Cache<u64, Held>;

/// How long an entry lives in those that have lifetimes: no entry ends during a run.
const TTL: Duration = Duration::from_secs(3_600);

/// A source that answers at once.
struct Instantly;

#[async_trait]
impl Source<u64, Held> for Instantly {
    async fn load(&self, keys: &[u64]) -> Vec<Result<Loaded<Held>, SourceError>> {
        keys.iter().map(|key| Ok(Loaded::value(Arc::new(*key)))).collect()
    }
}

pub fn ours(capacity: u64, change: impl FnOnce(&mut Config)) -> Ours {
    let mut config = Config::default();
    config.max_weight = capacity;
    config.ttl = Some(TTL);
    change(&mut config);
    Cache::builder().config(config).source(Instantly).build().expect("it is valid")
}

pub fn moka_sync(capacity: u64) -> moka::sync::Cache<u64, Held> {
    moka::sync::Cache::builder().max_capacity(capacity).time_to_live(TTL).build()
}

pub fn moka_future(capacity: u64) -> moka::future::Cache<u64, Held> {
    moka::future::Cache::builder().max_capacity(capacity).time_to_live(TTL).build()
}

/// Polls a future that is ready at once, as an executor does that runs it.
fn poll<T>(future: impl Future<Output = T>) -> T {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut cx) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => unreachable!("the value is there"),
    }
}

/// Those whose hits are compared, all with `count` keys. The first one is the bare table, the
/// second one the layer.
pub fn hits(count: u64) -> Vec<Subject> {
    let mut random = fastrand::Rng::with_seed(1);
    let draws: Arc<[u64]> = (0..1 << 16).map(|_| random.u64(0..count)).collect();
    let key = || {
        let draws = Arc::clone(&draws);
        move |turn: u64| draws[turn as usize & 0xFFFF]
    };
    let capacity = 2 * count;
    let quick = Quick::new(capacity as usize);
    (0..count).for_each(|key| quick.insert(key, Arc::new(key)));
    let of = key();
    let mut subjects = vec![Subject::new("quick_cache", move |turn| quick.get(&of(turn)))];
    let mut add_ours = |name, tags: &[&str], change: fn(&mut Config)| {
        let cache = ours(capacity, change);
        for key in 0..count {
            let mut with = Insert::default();
            with.tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
            assert!(cache.insert_with(key, Arc::new(key), with));
        }
        let of = key();
        subjects.push(Subject::new(name, move |turn| cache.get(&of(turn))));
    };
    add_ours("ours", &[], |_| {});
    add_ours("ours, 1 tag", &["a"], |_| {});
    add_ours("ours, 2 tags", &["a", "b"], |_| {});
    add_ours("ours, 4 tags", &["a", "b", "c", "d"], |_| {});
    add_ours("ours, stale while revalidate", &[], |config| {
        config.stale_while_revalidate = TTL;
        config.stale_if_error = 2 * TTL;
    });
    add_ours("ours, refresh ahead", &[], |config| {
        config.refresh_after = Some(TTL / 2);
        config.early_refresh = 1.0;
    });
    // Every entry is over: each hit serves a stale value.
    add_ours("ours, the entry is stale", &[], |config| {
        (config.ttl, config.ttl_jitter) = (Some(Duration::from_millis(1)), 0.0);
        config.stale_while_revalidate = TTL;
    });
    let (cache, of) = (ours(capacity, |_| {}), key());
    (0..count).for_each(|key| assert!(cache.insert(key, Arc::new(key))));
    subjects.push(Subject::new("ours, get_or_load", move |turn| {
        let key = of(turn);
        poll(cache.get_or_load(&key)).expect("a value")
    }));
    let (moka, of) = (moka_sync(capacity), key());
    (0..count).for_each(|key| moka.insert(key, Arc::new(key)));
    subjects.push(Subject::new("moka, sync", move |turn| moka.get(&of(turn))));
    let (moka, of) = (moka_future(capacity), key());
    in_runtime(async {
        for key in 0..count {
            moka.insert(key, Arc::new(key)).await
        }
    });
    subjects.push(future_hits("moka, future", moka, of));
    // So long that every entry of 1 ms is over.
    std::thread::sleep(Duration::from_millis(20));
    subjects
}

fn future_hits(
    name: &'static str,
    moka: moka::future::Cache<u64, Held>,
    of: impl Fn(u64) -> u64 + Clone + Send + Sync + 'static,
) -> Subject {
    in_one_future(name, move |from, calls| {
        let (moka, of) = (moka.clone(), of.clone());
        async move {
            for turn in from..from + calls {
                black_box(moka.get(&of(turn)).await);
            }
        }
    })
}

thread_local! {
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime starts");
}

pub fn in_runtime<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// Times so many calls in one future of this thread's runtime.
pub fn in_one_future<F: Future<Output = ()>>(
    name: &'static str,
    calls: impl Fn(u64, u64) -> F + Sync + 'static,
) -> Subject {
    let run = move |from: u64, count: u64| {
        let start = Instant::now();
        in_runtime(calls(from, count));
        start.elapsed().as_nanos() as f64 / count as f64
    };
    Subject { name, run: Box::new(run) }
}
