//! Readers, writers and invalidations of the real cache, interleaved by a seed on one thread.
//!
//! The rows of a "database" only grow. After an invalidation of a key, a tag or everything has
//! returned, no reader that begins is given a value from before it, whatever loads, refreshes and
//! stale values were around. `VOUSSOIR_SEEDS` sets how many seeds run (default 400);
//! `VOUSSOIR_SEED` replays one.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use voussoir_cache::testing::ManualClock;
use voussoir_cache::{
    Cache, Clock, Config, Insert, LoadError, Loaded, OnPanic, Sink, SinkError, Source, SourceError,
    Write, async_trait,
};
use voussoir_sim::{Rng, Situations};

const KEYS: u64 = 4;

static SITUATIONS: [&str; 17] = [
    "a load was overtaken",
    "a load was joined",
    "a key was invalidated during its load",
    "a tag was invalidated during a load that carries it",
    "everything was invalidated during a load",
    "too many tags were invalidated during a load",
    "a stale value was served",
    "a failed load was covered by a stale value",
    "a load failed",
    "a load panicked",
    "a reader was dropped",
    "a reader was held without being polled",
    "a write-through was read",
    "an entry was evicted",
    "a write was overtaken at the sink",
    "a tag of keys was invalidated",
    "a tag of the source was invalidated",
];

/// A future that is pending for so many polls, each of which another task may precede.
struct Pauses(u64);

impl Future for Pauses {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.0 == 0 {
            return Poll::Ready(());
        }
        self.0 -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Polls tasks that were woken, one at a time, in an order that the seed draws. Tasks that the
/// cache spawns run on a tokio runtime of paused time, whose turns are drawn like those of a task.
struct Executor {
    tasks: Vec<Option<(Task, Arc<Woken>)>>,
    background: tokio::runtime::Runtime,
}

impl Executor {
    fn new() -> Self {
        let mut background = tokio::runtime::Builder::new_current_thread();
        let background = background.enable_time().start_paused(true).build().unwrap();
        Self { tasks: Vec::new(), background }
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + 'static) {
        self.tasks.push(Some((Box::pin(task), Arc::new(Woken(AtomicBool::new(true))))));
    }

    fn run(&mut self, chance: &mut Rng) {
        let mut idle_turns = 0;
        // Ends: every task ends, or nothing is woken for a thousand turns, which is a failure.
        while self.tasks.iter().any(Option::is_some) {
            let is_ready = |task: &Option<(Task, Arc<Woken>)>| {
                task.as_ref().is_some_and(|(_, woken)| woken.0.load(Ordering::SeqCst))
            };
            let ready: Vec<usize> =
                (0..self.tasks.len()).filter(|at| is_ready(&self.tasks[*at])).collect();
            let draw = chance.below(ready.len() as u64 + 1) as usize;
            let Some(at) = ready.get(draw) else {
                self.background.block_on(tokio::task::yield_now());
                idle_turns += 1;
                assert!(!ready.is_empty() || idle_turns < 1000, "a task is never woken again");
                continue;
            };
            idle_turns = 0;
            let Some((task, woken)) = &mut self.tasks[*at] else { continue };
            woken.0.store(false, Ordering::SeqCst);
            let waker = Waker::from(Arc::clone(woken));
            let _inside = self.background.enter();
            if task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                self.tasks[*at] = None;
            }
        }
    }
}

/// What a load does, drawn from the seed of the world.
#[derive(Default)]
struct Database {
    rows: Vec<AtomicU64>,
    chance: Mutex<Option<Rng>>,
    /// Keys of the loads under way that have read their row.
    reading: Mutex<Vec<u64>>,
    failures: AtomicU64,
    panics: AtomicU64,
    /// The source gives its values their tags; otherwise they are derived from keys.
    gives_tags: bool,
}

fn tag(key: u64) -> String {
    format!("tag {}", key % 2)
}

impl Database {
    fn below(&self, bound: u64) -> u64 {
        self.chance.lock().as_mut().map_or(0, |chance| chance.below(bound))
    }

    fn row(&self, key: u64) -> u64 {
        self.rows[key as usize].load(Ordering::SeqCst)
    }

    async fn load(self: Arc<Self>, key: u64) -> Result<Loaded<u64>, LoadError> {
        Pauses(self.below(4)).await;
        let value = self.row(key);
        self.reading.lock().push(key);
        let _reading = Reading(&self, key);
        Pauses(self.below(12)).await;
        match self.below(16) {
            0 => {
                self.panics.fetch_add(1, Ordering::SeqCst);
                // Without the message of a panic.
                std::panic::resume_unwind(Box::new("the loader panics"));
            }
            1 | 2 => {
                self.failures.fetch_add(1, Ordering::SeqCst);
                Err(LoadError::Source(SourceError::new("down")))
            }
            _ => {
                let loaded = Loaded::value(value);
                let loaded = if self.gives_tags { loaded.tagged(tag(key)) } else { loaded };
                let is_versioned = self.below(3) == 0;
                Ok(if is_versioned { loaded.at_version(value) } else { loaded })
            }
        }
    }
}

struct Reading<'a>(&'a Database, u64);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut reading = self.0.reading.lock();
        let at = reading.iter().position(|key| *key == self.1).unwrap();
        reading.swap_remove(at);
    }
}

#[derive(Clone)]
struct Shared(Arc<Database>);

#[async_trait]
impl Source<u64, u64> for Shared {
    async fn load(&self, keys: &[u64]) -> Vec<Result<Loaded<u64>, SourceError>> {
        let mut answers = Vec::new();
        for key in keys {
            let loaded = Arc::clone(&self.0).load(*key).await;
            answers.push(loaded.map_err(|_| SourceError::new("down")));
        }
        answers
    }

    fn max_batch(&self) -> usize {
        3
    }
}

#[async_trait]
impl Sink<u64, u64> for Shared {
    async fn write(&self, writes: &[Write<u64, u64>]) -> Vec<Result<(), SinkError>> {
        Pauses(self.0.below(5)).await;
        let mut answers = Vec::new();
        for write in writes {
            let value = write.value.unwrap_or(0);
            // Rows only grow: another writer was quicker.
            let last = self.0.rows[write.key as usize].fetch_max(value, Ordering::SeqCst);
            answers.push(if last < value { Ok(()) } else { Err(SinkError::not_applied("older")) });
        }
        Pauses(self.0.below(12)).await;
        answers
    }
}

struct World {
    cache: Cache<u64, u64>,
    clock: Arc<ManualClock>,
    database: Arc<Database>,
    /// The value of each key below which no reader may be served that begins now.
    floors: RefCell<[u64; KEYS as usize]>,
    /// Drawn values of rows: they only grow.
    next: Cell<u64>,
    is_batched: bool,
    situations: &'static Situations,
}

fn config(chance: &mut Rng) -> Config {
    let mut config = Config::default();
    config.seed = Some(chance.next_u64());
    config.max_weight = if chance.below(3) == 0 { 3 } else { 1000 };
    config.max_tag_floors = 1 + chance.below(3) as usize;
    if chance.below(4) > 0 {
        config.ttl = Some(Duration::from_secs(10));
        config.stale_while_revalidate = Duration::from_secs(chance.below(2) * 20);
        config.stale_if_error = Duration::from_secs(chance.below(2) * 100);
        config.refresh_after = (chance.below(2) == 0).then(|| Duration::from_secs(6));
    }
    config.tti = (chance.below(4) == 0).then(|| Duration::from_secs(30));
    if chance.below(2) == 0 {
        config.on_panic = OnPanic::RetryOnce;
    }
    config
}

impl World {
    fn new(chance: &mut Rng, situations: &'static Situations) -> Self {
        let database = Arc::new(Database {
            rows: (0..KEYS).map(|_| AtomicU64::new(1)).collect(),
            chance: Mutex::new(Some(Rng::new(chance.next_u64()))),
            gives_tags: chance.below(2) == 0,
            ..Database::default()
        });
        let clock = Arc::new(ManualClock::default());
        let shared = Shared(Arc::clone(&database));
        let mut builder = Cache::builder().config(config(chance)).source(shared.clone());
        if !database.gives_tags {
            builder = builder.tag_keys(|key| vec![tag(*key)]);
        }
        let builder = builder.sink(shared);
        let cache = builder.clock(Arc::<ManualClock>::clone(&clock) as Arc<dyn Clock>);
        Self {
            cache: cache.build().unwrap(),
            clock,
            database,
            floors: RefCell::new([0; KEYS as usize]),
            next: Cell::new(2),
            is_batched: chance.below(2) == 0,
            situations,
        }
    }

    fn next(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    /// What was acknowledged: no reader that begins now is given an older value.
    fn raise(&self, key: u64, value: u64) {
        let floor = &mut self.floors.borrow_mut()[key as usize];
        *floor = value.max(*floor);
    }

    async fn read(self: Rc<Self>, mut chance: Rng) {
        for _ in 0..12 {
            let key = chance.below(KEYS);
            Pauses(chance.below(6)).await;
            let least = self.floors.borrow()[key as usize];
            if chance.below(3) == 0 {
                let value = self.cache.get(&key);
                assert!(value.is_none_or(|value| value >= least), "{key}: {value:?} < {least}");
                continue;
            }
            let is_leaving = chance.below(5) == 0;
            let is_held = !is_leaving && chance.below(5) == 0;
            let failed_before = self.cache.stats().load_failures;
            let mut read = Box::pin(self.ask(key));
            if is_leaving || is_held {
                let early = poll_few_times(read.as_mut(), chance.below(4)).await;
                let name = if is_held { SITUATIONS[11] } else { SITUATIONS[10] };
                if let Some(value) = early {
                    assert!(value.is_none_or(|value| value >= least), "{key}: {value:?}");
                    continue;
                }
                self.situations.reached(name);
                if is_leaving {
                    continue;
                }
                Pauses(chance.below(30)).await;
            }
            let value = read.await;
            assert!(
                value.is_none_or(|value| value >= least),
                "key {key}: {value:?} was served after {least} was acknowledged"
            );
            let has_failed = self.cache.stats().load_failures > failed_before;
            let is_old = value.is_some_and(|value| value < self.database.row(key));
            self.situations.add(SITUATIONS[7], u64::from(has_failed && is_old));
        }
    }

    /// `None` where the load failed.
    async fn ask(&self, key: u64) -> Option<u64> {
        let answer = if self.is_batched {
            self.cache.get_or_load(&key).await
        } else {
            let database = Arc::clone(&self.database);
            let load = move |key| Arc::clone(&database).load(key);
            self.cache.get_or_load_with(&key, load).await
        };
        answer.ok().flatten()
    }

    /// Writes the rows of one key, or with `None` of any, and tells the cache in one of its ways.
    async fn write(self: Rc<Self>, key: Option<u64>, mut chance: Rng) {
        for _ in 0..10 {
            Pauses(chance.below(10)).await;
            let (key, value) = (key.unwrap_or_else(|| chance.below(KEYS)), self.next());
            match chance.below(10) {
                0 | 2 => {
                    if self.cache.write(key, value).await.is_ok() {
                        self.raise(key, value);
                        let is_overtaken = self.database.row(key) > value;
                        self.situations.add(SITUATIONS[14], u64::from(is_overtaken));
                        self.situations.add(SITUATIONS[12], self.cache.get(&key).map_or(0, |_| 1));
                    }
                    continue;
                }
                1 => {
                    self.database.rows[key as usize].fetch_max(value, Ordering::SeqCst);
                    let mut with = Insert::default();
                    if self.database.gives_tags {
                        with.tags.push(tag(key));
                    }
                    self.cache.insert_with(key, value, with);
                    self.raise(key, value);
                    continue;
                }
                _ => self.database.rows[key as usize].fetch_max(value, Ordering::SeqCst),
            };
            Pauses(chance.below(3)).await;
            self.invalidate(key, &mut chance);
        }
    }

    fn invalidate(&self, key: u64, chance: &mut Rng) {
        let is_read = |hit: &dyn Fn(u64) -> bool| {
            u64::from(self.database.reading.lock().iter().any(|key| hit(*key)))
        };
        let hit: Box<dyn Fn(u64) -> bool> = match chance.below(6) {
            0 => {
                self.situations.add(SITUATIONS[4], is_read(&|_| true));
                self.cache.clear();
                Box::new(|_| true)
            }
            1 | 2 => {
                let hit = move |other: u64| other % 2 == key % 2;
                self.situations.add(SITUATIONS[3], is_read(&hit));
                let at = if self.database.gives_tags { 16 } else { 15 };
                self.situations.reached(SITUATIONS[at]);
                self.cache.invalidate_tag(&tag(key));
                if chance.below(3) == 0 {
                    // Others follow, more than are remembered.
                    (0..4).for_each(|n| self.cache.invalidate_tag(&format!("other {n}")));
                    self.situations.add(SITUATIONS[5], is_read(&hit));
                }
                Box::new(hit)
            }
            _ => {
                let hit = move |other: u64| other == key;
                self.situations.add(SITUATIONS[2], is_read(&hit));
                self.cache.invalidate(&key);
                Box::new(hit)
            }
        };
        for key in (0..KEYS).filter(|key| hit(*key)) {
            self.raise(key, self.database.row(key));
        }
    }

    async fn pass_time(self: Rc<Self>, mut chance: Rng) {
        for _ in 0..20 {
            Pauses(chance.below(12)).await;
            self.clock.advance(Duration::from_secs(chance.below(9)));
        }
    }
}

/// Polls a future so many times and once more.
async fn poll_few_times<F: Future>(mut future: Pin<&mut F>, times: u64) -> Option<F::Output> {
    for _ in 0..=times {
        let polled = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        Pauses(1).await;
    }
    None
}

fn life(seed: u64, situations: &'static Situations) {
    let mut chance = Rng::new(seed);
    let mut executor = Executor::new();
    let world = {
        let _inside = executor.background.enter();
        Rc::new(World::new(&mut chance, situations))
    };
    for reader in 0..4 {
        executor.spawn(Rc::clone(&world).read(Rng::stream(seed, reader)));
    }
    for key in 0..KEYS {
        executor.spawn(Rc::clone(&world).write(Some(key), Rng::stream(seed, 100 + key)));
    }
    for other in 0..2 {
        executor.spawn(Rc::clone(&world).write(None, Rng::stream(seed, 150 + other)));
    }
    executor.spawn(Rc::clone(&world).pass_time(Rng::stream(seed, 200)));
    executor.run(&mut chance);
    let stats = world.cache.stats();
    situations.add(SITUATIONS[0], stats.overtaken);
    situations.add(SITUATIONS[1], stats.joins);
    situations.add(SITUATIONS[6], stats.stale_served);
    situations.add(SITUATIONS[8], world.database.failures.load(Ordering::SeqCst));
    situations.add(SITUATIONS[9], world.database.panics.load(Ordering::SeqCst));
    situations.add(SITUATIONS[13], stats.evicted);
    // Refreshes go on without a reader, and end.
    for _ in 0..500 {
        executor.background.block_on(tokio::task::yield_now());
    }
    assert_eq!(world.cache.stats().loads_under_way, 0, "a load stays behind");
}

#[test]
fn no_seed_serves_a_value_older_than_its_acknowledged_invalidation() {
    static ALL: std::sync::OnceLock<Situations> = std::sync::OnceLock::new();
    let situations = ALL.get_or_init(|| Situations::new(&SITUATIONS));
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let replayed = number("VOUSSOIR_SEED");
    let seeds = match replayed {
        Some(seed) => seed..seed + 1,
        None => 0..number("VOUSSOIR_SEEDS").unwrap_or(400),
    };
    for seed in seeds {
        println!(
            "seed {seed}: VOUSSOIR_SEED={seed} cargo test -p voussoir-cache --all-features \
             --test seeds"
        );
        life(seed, situations);
    }
    if replayed.is_none() {
        situations.assert_all_reached();
    }
}

/// Two runs of one seed take the same turns.
#[test]
fn a_seed_decides_everything() {
    static ALL: std::sync::OnceLock<Situations> = std::sync::OnceLock::new();
    let situations = ALL.get_or_init(|| Situations::new(&SITUATIONS));
    let counts = || SITUATIONS.map(|name| situations.count(name));
    for seed in 1000..1010 {
        let before = counts();
        life(seed, situations);
        let between = counts();
        life(seed, situations);
        let after = counts();
        for at in 0..SITUATIONS.len() {
            let (first, second) = (between[at] - before[at], after[at] - between[at]);
            assert_eq!(first, second, "seed {seed}: {}", SITUATIONS[at]);
        }
    }
}
