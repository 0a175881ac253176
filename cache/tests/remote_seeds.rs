//! Several caches over one source, one bus and one second level, at random: with and without faults
//! of bus and second level, with tags of the source and of keys, writes through the caches and past
//! them, stale windows, limits below those of the second level and readers that give up.
//!
//! No cache serves a value older than an invalidation that all have acknowledged, or of which the
//! bus lost the word longer than its bound ago; and no fault of bus or second level is an error for
//! a reader. `VOUSSOIR_SEEDS` sets how many seeds run (default 24); `VOUSSOIR_SEED` replays one.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use support::faulty::Faulty;
use support::{Script, Scripted, config};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use voussoir_cache::testing::MemoryLevel;
use voussoir_cache::*;
use voussoir_sim::{Rng, Situations};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const KEYS: u64 = 4;
const HARD: Duration = Duration::from_millis(50);

static SITUATIONS: [&str; 15] = [
    "the second level failed",
    "the second level forgot",
    "the second level hung beyond the hard limit",
    "the second level had the value",
    "a reader gave up",
    "the bus was down",
    "a subscription ended",
    "the bus was away for long while stale values are allowed",
    "a stale value was served",
    "a tag of the source was invalidated",
    "a tag of keys was invalidated",
    "a value was written through a cache",
    "a written value was invalidated by a tag",
    "a write was overtaken at the sink",
    "a refresh brought a value",
];

/// The rows of the script as a sink, which has the row before it answers.
struct Rows(Arc<Script>);

#[async_trait]
impl Sink<u64, u64> for Rows {
    async fn write(&self, writes: &[Write<u64, u64>]) -> Vec<Result<(), SinkError>> {
        for write in writes {
            self.0.write(write.key, write.value.unwrap_or(0));
        }
        sleep(20 * MS).await;
        writes.iter().map(|_| Ok(())).collect()
    }
}

struct World {
    script: Arc<Script>,
    level: MemoryLevel,
    bus: Faulty,
    caches: Vec<Cache<u64, u64>>,
    readers: Vec<JoinHandle<()>>,
    is_tagged_by_key: bool,
    has_stale_windows: bool,
    /// Keys whose last change was a write through a cache.
    written: [bool; KEYS as usize],
    situations: &'static Situations,
}

impl World {
    async fn new(chance: &mut Rng, situations: &'static Situations) -> Self {
        let script = Script::new(1 + chance.below(2) as usize * 3);
        let (level, bus) = (MemoryLevel::default(), Faulty::default());
        let is_tagged_by_key = chance.below(2) == 0;
        if !is_tagged_by_key {
            script.tags.lock().push("rows".into());
        }
        let has_stale_windows = chance.below(2) == 0;
        let config = config(|config| {
            config.hard_timeout = if chance.below(2) == 0 { HARD } else { config.hard_timeout };
            config.ttl = Some(if chance.below(2) == 0 { 3 * SECOND } else { 1000 * SECOND });
            if has_stale_windows {
                config.stale_while_revalidate = 60 * SECOND;
                config.stale_if_error = 600 * SECOND;
            }
            config.refresh_after = (chance.below(2) == 0).then_some(SECOND);
        });
        let build = || {
            let mut built = Cache::builder()
                .config(config.clone())
                .source(Scripted(Arc::clone(&script)))
                .sink(Rows(Arc::clone(&script)))
                .clock(Arc::new(TokioClock::default()))
                .codec(PlainCodec)
                .bus(bus.clone(), BusConfig::default())
                .second_level(level.clone(), LevelConfig::default());
            if is_tagged_by_key {
                built = built.tag_keys(|_| vec!["rows".into()]);
            }
            built.build().unwrap()
        };
        let caches: Vec<_> = (0..3).map(|_| build()).collect();
        sleep(10 * MS).await;
        for key in 0..KEYS {
            script.write(key, 0);
        }
        let (readers, written) = (Vec::new(), [false; KEYS as usize]);
        Self {
            script,
            level,
            bus,
            caches,
            readers,
            is_tagged_by_key,
            has_stale_windows,
            written,
            situations,
        }
    }

    fn any(&self, chance: &mut Rng) -> Cache<u64, u64> {
        self.caches[chance.below(3) as usize].clone()
    }

    fn start_readers(&mut self, chance: &mut Rng) {
        for _ in 0..chance.below(4) {
            let (cache, key) = (self.any(chance), chance.below(KEYS));
            let gives_up = chance.below(3) == 0;
            let situations = self.situations;
            self.readers.push(tokio::spawn(async move {
                let read = cache.get_or_load(&key);
                if !gives_up {
                    read.await.unwrap();
                } else if timeout(8 * MS, read).await.is_err() {
                    situations.reached("a reader gave up");
                }
            }));
        }
    }

    fn break_something(&self, chance: &mut Rng) {
        let situation = match chance.below(14) {
            0 => {
                self.level.set_failing(true);
                0
            }
            1 => {
                self.level.forget();
                1
            }
            2 => {
                self.level.delay(3600 * SECOND);
                2
            }
            3 => {
                self.bus.state.is_down.store(true, Ordering::SeqCst);
                5
            }
            4 => {
                self.bus.state.epoch.fetch_add(1, Ordering::SeqCst);
                6
            }
            _ => return,
        };
        self.situations.reached(SITUATIONS[situation]);
    }

    fn mend(&self, chance: &mut Rng) {
        self.level.set_failing(false);
        self.level.delay(MS * chance.below(3) as u32);
        self.bus.state.is_down.store(false, Ordering::SeqCst);
        self.bus.state.loses.store(false, Ordering::SeqCst);
    }

    /// Changes a row past all caches, and tells one of them.
    fn change(&mut self, key: u64, value: u64, cache: &Cache<u64, u64>, chance: &mut Rng) {
        self.script.write(key, value);
        match chance.below(4) {
            0 | 1 => {
                let at = if self.is_tagged_by_key { 10 } else { 9 };
                self.situations.reached(SITUATIONS[at]);
                self.situations.add(SITUATIONS[12], u64::from(self.written[key as usize]));
                cache.invalidate_tag("rows");
            }
            2 => cache.clear(),
            _ => cache.invalidate(&key),
        }
        self.written[key as usize] = false;
    }

    async fn change_somehow(&mut self, key: u64, value: u64, chance: &mut Rng) {
        let cache = self.any(chance);
        match chance.below(4) {
            0 => {
                cache.write(key, value).await.unwrap();
                self.written[key as usize] = true;
                self.situations.reached(SITUATIONS[11]);
            }
            1 => {
                // Another writer comes after this one at the sink.
                let writing = tokio::spawn({
                    let cache = cache.clone();
                    async move { cache.write(key, value - 1).await.unwrap() }
                });
                sleep(10 * MS).await;
                let other = self.any(chance);
                self.change(key, value, &other, chance);
                self.mend(chance);
                other.settle().await;
                sleep(2 * MS).await;
                writing.await.unwrap();
                self.situations.reached(SITUATIONS[13]);
            }
            _ => self.change(key, value, &cache, chance),
        }
        self.mend(chance);
        cache.settle().await;
    }

    async fn check(&self, seed: u64, key: u64, value: u64) {
        for (at, cache) in self.caches.iter().enumerate() {
            let read = cache.get_or_load(&key).await.unwrap();
            assert_eq!(read, Some(value), "seed {seed}, key {key}, cache {at}");
        }
    }

    /// The bus takes everything and carries nothing, or cannot be reached: what it loses is bounded
    /// by its timeout and the lifetime of entries while it is down.
    async fn be_silent(&mut self, seed: u64, key: u64, value: u64, chance: &mut Rng) {
        let is_away = chance.below(2) == 0;
        self.bus.state.loses.store(true, Ordering::SeqCst);
        if is_away {
            self.bus.state.is_down.store(true, Ordering::SeqCst);
            self.bus.state.epoch.fetch_add(1, Ordering::SeqCst);
        }
        sleep(SECOND * chance.below(6) as u32).await;
        for cache in &self.caches {
            cache.get_or_load(&key).await.unwrap();
        }
        let cache = self.any(chance);
        self.change(key, value, &cache, chance);
        if !is_away {
            cache.settle().await;
        }
        let bus = BusConfig::default();
        sleep(bus.timeout + bus.outage_ttl + 100 * MS).await;
        self.situations.add(SITUATIONS[7], u64::from(is_away && self.has_stale_windows));
        self.check(seed, key, value).await;
    }
}

async fn run(seed: u64, situations: &'static Situations) {
    let mut chance = Rng::stream(seed, 1);
    let mut world = World::new(&mut chance, situations).await;
    for round in 1..40 {
        let (key, value) = (chance.below(KEYS), 2 * round);
        *world.script.takes.lock() = MS * chance.below(20) as u32;
        world.level.delay(MS * chance.below(3) as u32);
        world.start_readers(&mut chance);
        if chance.below(12) == 0 {
            world.be_silent(seed, key, value, &mut chance).await;
            world.mend(&mut chance);
            sleep(2 * SECOND).await;
            continue;
        }
        world.break_something(&mut chance);
        world.start_readers(&mut chance);
        sleep(MS * chance.below(200) as u32).await;
        world.change_somehow(key, value, &mut chance).await;
        // A subscription that was over has begun anew by then, and the word has arrived.
        sleep(600 * MS).await;
        world.check(seed, key, value).await;
        if chance.below(4) == 0 {
            sleep(SECOND * (1 + chance.below(3)) as u32).await;
        }
    }
    for reader in std::mem::take(&mut world.readers) {
        reader.await.unwrap();
    }
    for cache in &world.caches {
        let stats = cache.stats();
        situations.add(SITUATIONS[3], stats.level_hits);
        situations.add(SITUATIONS[8], stats.stale_served);
        situations.add(SITUATIONS[14], stats.refreshes);
    }
}

#[tokio::test(start_paused = true)]
async fn no_cache_serves_what_all_have_dropped() {
    static ALL: std::sync::OnceLock<Situations> = std::sync::OnceLock::new();
    let situations = ALL.get_or_init(|| Situations::new(&SITUATIONS));
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let replayed = number("VOUSSOIR_SEED");
    let seeds = match replayed {
        Some(seed) => seed..seed + 1,
        None => 0..number("VOUSSOIR_SEEDS").unwrap_or(24),
    };
    for seed in seeds {
        println!(
            "seed {seed}: VOUSSOIR_SEED={seed} cargo test -p voussoir-cache --all-features \
             --test remote_seeds"
        );
        run(seed, situations).await;
    }
    if replayed.is_none() {
        situations.assert_all_reached();
    }
}
