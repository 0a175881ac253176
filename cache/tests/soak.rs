//! Memory under write pressure that does not end: the same few keys again and again, new keys, tags
//! that are used once, loads and invalidations between them (moka 590).
//!
//! `VOUSSOIR_SOAK_SECONDS` sets how long each of them lasts (default 3).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use voussoir_cache::{
    Cache, Config, Insert, Loaded, Sink, SinkError, Write, WriteBehind, WriteBehindConfig,
    async_trait,
};
use voussoir_sim::{Rng, Situations};

const VALUE_BYTES: usize = 1024;
const CAPACITY: u64 = 1_000;
/// Values that are being inserted, removed or read by one task, the retired one beside its
/// successor included.
const IN_HAND: u64 = 8;
const HOT: u64 = 8;

fn lasts() -> Duration {
    let seconds = std::env::var("VOUSSOIR_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(3))
}

/// Values that are alive, and the most there have been at one time.
#[derive(Default)]
struct Alive {
    now: AtomicU64,
    most: AtomicU64,
    /// The same while the cache was being cleared.
    most_in_clear: AtomicU64,
    clears_begun: AtomicU64,
    clears_ended: AtomicU64,
}

struct Value {
    alive: Arc<Alive>,
    _bytes: Box<[u8]>,
}

fn value(alive: &Arc<Alive>) -> Arc<Value> {
    let ended = alive.clears_ended.load(Ordering::SeqCst);
    let now = alive.now.fetch_add(1, Ordering::SeqCst) + 1;
    let was_cleared = alive.clears_begun.load(Ordering::SeqCst) != ended;
    let most = if was_cleared { &alive.most_in_clear } else { &alive.most };
    most.fetch_max(now, Ordering::SeqCst);
    Arc::new(Value { alive: Arc::clone(alive), _bytes: vec![1; VALUE_BYTES].into() })
}

impl Drop for Value {
    fn drop(&mut self) {
        self.alive.now.fetch_sub(1, Ordering::SeqCst);
    }
}

type Values = Cache<u64, Arc<Value>>;

/// Bytes of the process that are in memory. `None` where the system does not say.
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

/// Runs the tasks until the time is over. The memory of the process does not grow after the first
/// third of it.
async fn soak<F>(tasks: u64, task: impl Fn(u64, Arc<AtomicBool>) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let is_over = Arc::new(AtomicBool::new(false));
    let running: Vec<_> =
        (0..tasks).map(|number| tokio::spawn(task(number, Arc::clone(&is_over)))).collect();
    tokio::time::sleep(lasts() / 3).await;
    let before = resident();
    let until = Instant::now() + lasts() * 2 / 3;
    let mut most = before;
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
        most = most.max(resident());
    }
    is_over.store(true, Ordering::SeqCst);
    for task in running {
        task.await.unwrap();
    }
    if let (Some(before), Some(most)) = (before, most) {
        let grown = most.saturating_sub(before) >> 10;
        assert!(grown < 8 << 10, "{grown} KiB more than after the first third");
    }
}

static SITUATIONS: [&str; 6] = [
    "a key was inserted again",
    "an entry was evicted",
    "a load was stored",
    "a load was overtaken",
    "a tag was used once and invalidated",
    "everything was dropped",
];

/// A task's own part of the pressure.
async fn press(
    cache: Values,
    alive: Arc<Alive>,
    situations: Arc<Situations>,
    number: u64,
    is_over: Arc<AtomicBool>,
) {
    let mut chance = Rng::new(number + 1);
    let mut fresh = number << 40;
    while !is_over.load(Ordering::SeqCst) {
        fresh += 1;
        match chance.below(100) {
            // Few keys, again and again.
            0..50 => {
                assert!(cache.insert(chance.below(HOT), value(&alive)));
                situations.add(SITUATIONS[0], 1);
            }
            // Keys and tags that are used once.
            50..70 => {
                let mut with = Insert::default();
                with.tags = vec![format!("once-{fresh}"), format!("few-{}", chance.below(4))];
                cache.insert_with(fresh, value(&alive), with);
                if chance.below(2) == 0 {
                    cache.invalidate_tag(&format!("once-{fresh}"));
                    situations.add(SITUATIONS[4], 1);
                }
            }
            70..90 => {
                let alive = Arc::clone(&alive);
                let tag = format!("load-{fresh}");
                let load = move |_| {
                    let (alive, tag) = (Arc::clone(&alive), tag.clone());
                    async move {
                        tokio::task::yield_now().await;
                        Ok(Loaded::value(value(&alive)).tagged(tag))
                    }
                };
                let key = chance.below(4 * CAPACITY);
                assert!(cache.get_or_load_with(&key, load).await.is_ok());
            }
            90..94 => cache.invalidate(&chance.below(HOT)),
            94..98 => cache.invalidate_tag(&format!("few-{}", chance.below(4))),
            98 => _ = cache.get(&chance.below(HOT)),
            _ if chance.below(100) == 0 => {
                alive.clears_begun.fetch_add(1, Ordering::SeqCst);
                cache.clear();
                alive.clears_ended.fetch_add(1, Ordering::SeqCst);
                situations.add(SITUATIONS[5], 1);
            }
            _ => tokio::task::yield_now().await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_are_inserted_again_and_again_take_bounded_memory() {
    const TASKS: u64 = 6;
    let alive = Arc::new(Alive::default());
    let mut config = Config::default();
    (config.max_weight, config.ttl) = (CAPACITY, Some(Duration::from_secs(60)));
    let cache: Values = Cache::builder().config(config).build().unwrap();
    let situations = Arc::new(Situations::new(&SITUATIONS));
    let task = |number, is_over| {
        press(cache.clone(), Arc::clone(&alive), Arc::clone(&situations), number, is_over)
    };
    soak(TASKS, task).await;
    let stats = cache.stats();
    assert!(stats.weight <= CAPACITY && stats.entries <= CAPACITY, "{stats:?}");
    assert_eq!(stats.loads_under_way, 0);
    let most = alive.most.load(Ordering::SeqCst);
    let bound = CAPACITY + TASKS * IN_HAND;
    assert!(most <= bound, "{most} values were alive at one time, {bound} are in order");
    // `clear` drops what it took out when new entries may come in already.
    let most = alive.most_in_clear.load(Ordering::SeqCst);
    assert!(most <= bound + CAPACITY, "{most} values were alive while the cache was cleared");
    let now = alive.now.load(Ordering::SeqCst);
    assert_eq!(now, stats.entries, "nothing but the entries holds a value");
    situations.add(SITUATIONS[1], stats.evicted);
    situations.add(SITUATIONS[2], cache.load_latency().count() - stats.overtaken);
    situations.add(SITUATIONS[3], stats.overtaken);
    situations.assert_all_reached();
    cache.clear();
    assert_eq!(alive.now.load(Ordering::SeqCst), 0);
}

/// Takes what it is given, slower than it is written.
struct Slow(Arc<AtomicU64>);

#[async_trait]
impl Sink<u64, Arc<Value>> for Slow {
    async fn write(&self, writes: &[Write<u64, Arc<Value>>]) -> Vec<Result<(), SinkError>> {
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.0.fetch_add(writes.len() as u64, Ordering::SeqCst);
        writes.iter().map(|_| Ok(())).collect()
    }
}

/// Redisson 4921: a backlog that outgrew its sink.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_outrun_the_sink_take_bounded_memory() {
    const TASKS: u64 = 6;
    const BACKLOG: usize = 200;
    let alive = Arc::new(Alive::default());
    let mut config = Config::default();
    config.max_weight = CAPACITY;
    let mut behind = WriteBehindConfig::default();
    (behind.max_keys, behind.max_batch) = (BACKLOG, 50);
    behind.flush_after = Duration::from_millis(1);
    let behind = WriteBehind::in_memory(behind, |_, _| VALUE_BYTES as u64).unwrap();
    let taken = Arc::new(AtomicU64::new(0));
    let sink = Slow(Arc::clone(&taken));
    let cache: Values = Cache::builder().config(config).write_behind(behind, sink).build().unwrap();
    let written = Arc::new(AtomicU64::new(0));
    let write = |number: u64, is_over: Arc<AtomicBool>| {
        let (cache, alive) = (cache.clone(), Arc::clone(&alive));
        let written = Arc::clone(&written);
        async move {
            let mut chance = Rng::new(number + 1);
            while !is_over.load(Ordering::SeqCst) {
                let hot = chance.below(2) == 0;
                let key = if hot { chance.below(HOT) } else { chance.below(1 << 40) };
                cache.write(key, value(&alive)).await.unwrap();
                written.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    soak(TASKS, write).await;
    cache.flush().await;
    let (written, taken) = (written.load(Ordering::SeqCst), taken.load(Ordering::SeqCst));
    assert!(taken < written, "{taken} of {written}: writes of one key were coalesced");
    let most = alive.most.load(Ordering::SeqCst);
    // Each value of a batch is in the sink's hands while a newer one of its key is in the backlog.
    let bound = CAPACITY + BACKLOG as u64 + 2 * 50 + TASKS * IN_HAND;
    assert!(most <= bound, "{most} values were alive at one time, {bound} are in order");
    assert_eq!(cache.stats().backlog, 0);
}
