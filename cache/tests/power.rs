//! Write-behind under power losses, on the journal's crash-simulating files.
//!
//! `VOUSSOIR_POWER_LOSSES` sets how many there are (default 300); `VOUSSOIR_SEED` replays one life.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use voussoir_cache::{
    Cache, Loaded, Outcome, PlainCodec, Sink, SinkError, Source, SourceError, Write, WriteBehind,
    WriteBehindConfig, async_trait,
};
use voussoir_journal::files::crash::{CrashFiles, Loss};
use voussoir_journal::{Config, Journal};
use voussoir_sim::Situations;

const KEYS: u64 = 12;
const LOSSES_A_LIFE: u64 = 10;

static SITUATIONS: [&str; 6] = [
    "power lost with a backlog",
    "power lost during a write",
    "power lost during a flush",
    "a write of unknown outcome was found",
    "a write was flushed again",
    "a rejected write survived",
];

/// A table on another machine: it keeps what it has taken. Values of a key only grow.
struct Table {
    rows: Mutex<HashMap<u64, u64>>,
    rng: Mutex<fastrand::Rng>,
    again: AtomicU64,
    calls_under_way: AtomicU64,
}

#[derive(Clone)]
struct Shared(Arc<Table>);

struct UnderWay<'a>(&'a AtomicU64);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Sink<u64, u64> for Shared {
    async fn write(&self, writes: &[Write<u64, u64>]) -> Vec<Result<(), SinkError>> {
        let table = &self.0;
        table.calls_under_way.fetch_add(1, Ordering::SeqCst);
        let _under_way = UnderWay(&table.calls_under_way);
        let mut answers = Vec::new();
        for write in writes {
            let (fails, pauses) = {
                let mut rng = table.rng.lock();
                (rng.u8(0..10), rng.bool())
            };
            if pauses {
                tokio::task::yield_now().await;
            }
            // Rows of an odd value of key 0 break a constraint.
            let value = write.value.expect("the test deletes nothing");
            if write.key == 0 && value % 2 == 1 {
                answers.push(Err(SinkError::rejected("odd")));
                continue;
            }
            if fails == 0 {
                answers.push(Err(SinkError::not_applied("down")));
                continue;
            }
            let before = table.rows.lock().insert(write.key, value);
            assert!(before.is_none_or(|before| before <= value), "{before:?} then {value}");
            table.again.fetch_add(u64::from(before == Some(value)), Ordering::SeqCst);
            answers.push(if fails == 1 { Err(SinkError::unknown("lost answer")) } else { Ok(()) });
        }
        answers
    }
}

#[async_trait]
impl Source<u64, u64> for Shared {
    async fn load(&self, keys: &[u64]) -> Vec<Result<Loaded<u64>, SourceError>> {
        let found = |key: &u64| Ok(Loaded::from(self.0.rows.lock().get(key).copied()));
        keys.iter().map(found).collect()
    }
}

/// What the callers know about one key.
#[derive(Clone, Copy, Default)]
struct Known {
    submitted: u64,
    acknowledged: u64,
    /// The largest value that a reader has seen.
    read: u64,
}

fn config(seed: u64) -> WriteBehindConfig {
    let mut config = WriteBehindConfig::default();
    config.seed = Some(seed);
    config.max_batch = 4;
    config.flush_after = std::time::Duration::from_micros(300);
    config.min_backoff = std::time::Duration::from_millis(1);
    config.max_backoff = std::time::Duration::from_millis(4);
    config
}

/// Opens journal and cache as a process does that starts.
fn open(disk: &CrashFiles, table: &Arc<Table>, seed: u64) -> (Journal, Cache<u64, u64>) {
    let mut options = Config::manual();
    options.segment_bytes = 64 << 10;
    options.max_bytes = 16 * options.segment_bytes;
    options.identity = Some(7);
    let journal = Journal::open_with(disk.mount(), options).unwrap();
    let behind = WriteBehind::open(&journal, "behind", PlainCodec, config(seed)).unwrap();
    let shared = Shared(Arc::clone(table));
    let mut cache = voussoir_cache::Config::default();
    // Small: entries are evicted all the time.
    cache.max_weight = 3;
    let builder = Cache::builder().config(cache).source(shared.clone());
    (journal, builder.write_behind(behind, shared).build().unwrap())
}

async fn life(seed: u64, situations: &Situations) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let disk = CrashFiles::new(seed);
    let table = Arc::new(Table {
        rows: Mutex::default(),
        rng: Mutex::new(fastrand::Rng::with_seed(!seed)),
        again: AtomicU64::new(0),
        calls_under_way: AtomicU64::new(0),
    });
    let known = Arc::new(Mutex::new([Known::default(); KEYS as usize]));
    let mut now = 0;
    for _ in 0..LOSSES_A_LIFE {
        let (journal, cache) = open(&disk, &table, rng.u64(..));
        check_recovered(&cache, &known, situations).await;
        let mut writers = tokio::task::JoinSet::new();
        let under_way = Arc::new(AtomicU64::new(0));
        for _ in 0..rng.usize(20..120) {
            match rng.u8(0..10) {
                0..4 => {
                    let key = rng.u64(0..KEYS);
                    let (cache, known) = (cache.clone(), Arc::clone(&known));
                    let under_way = Arc::clone(&under_way);
                    writers.spawn(write(cache, known, key, under_way));
                }
                4..6 => {
                    let key = rng.u64(0..KEYS);
                    read(&cache, &known, key).await;
                }
                6..8 => {
                    now += 1_000_000;
                    journal.work(now);
                }
                8 => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
                _ => tokio::task::yield_now().await,
            }
        }
        let count = |name, happens: bool| situations.add(name, u64::from(happens));
        count("power lost with a backlog", cache.stats().backlog > 0);
        count("power lost during a write", under_way.load(Ordering::SeqCst) > 0);
        count("power lost during a flush", table.calls_under_way.load(Ordering::SeqCst) > 0);
        disk.power_loss(Loss::Any);
        // The process dies with its tasks. None of them runs again.
        writers.shutdown().await;
        drop((cache, journal));
        tokio::task::yield_now().await;
    }
    // A last life, in which everything is flushed.
    let (journal, cache) = open(&disk, &table, seed);
    check_recovered(&cache, &known, situations).await;
    let pump = async {
        // Ends: with the flush beside it.
        loop {
            now += 1_000_000;
            journal.work(now);
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = cache.flush() => {}
        () = pump => {}
    }
    let rows = table.rows.lock().clone();
    let known = *known.lock();
    for key in 1..KEYS {
        let (row, known) = (rows.get(&key).copied().unwrap_or(0), known[key as usize]);
        assert!(
            (known.acknowledged..=known.submitted).contains(&row),
            "key {key} is {row}, acknowledged {}",
            known.acknowledged
        );
    }
    situations.add("a write was flushed again", table.again.load(Ordering::SeqCst));
}

/// Values of a key are written one after the other, each larger than the one before.
async fn write(
    cache: Cache<u64, u64>,
    known: Arc<Mutex<[Known; KEYS as usize]>>,
    key: u64,
    under_way: Arc<AtomicU64>,
) {
    under_way.fetch_add(1, Ordering::SeqCst);
    // Drawn in the same step in which the write is handed in: nothing yields in between.
    let value = {
        let mut known = known.lock();
        known[key as usize].submitted += 1;
        known[key as usize].submitted
    };
    match cache.write(key, value).await {
        Ok(()) => {
            let mut known = known.lock();
            let known = &mut known[key as usize];
            known.acknowledged = known.acknowledged.max(value);
        }
        Err(error) => assert_eq!(error.outcome(), Outcome::Unknown, "{error}"),
    }
    under_way.fetch_sub(1, Ordering::SeqCst);
}

/// No read goes back behind what was acknowledged, or read before.
async fn read(cache: &Cache<u64, u64>, known: &Mutex<[Known; KEYS as usize]>, key: u64) {
    let before = known.lock()[key as usize];
    let value = cache.get_or_load(&key).await.unwrap().unwrap_or(0);
    if key == 0 {
        // Some of its values are rejected after they were acknowledged.
        return;
    }
    let least = before.acknowledged.max(before.read);
    assert!(value >= least, "key {key}: read {value} after {least}");
    let mut known = known.lock();
    let known = &mut known[key as usize];
    known.read = known.read.max(value);
}

async fn check_recovered(
    cache: &Cache<u64, u64>,
    known: &Mutex<[Known; KEYS as usize]>,
    situations: &Situations,
) {
    situations.add("a rejected write survived", cache.rejected_writes().len() as u64);
    for key in 0..KEYS {
        read(cache, known, key).await;
        let known = known.lock()[key as usize];
        let found = key > 0 && known.read > known.acknowledged;
        situations.add("a write of unknown outcome was found", u64::from(found));
    }
}

#[test]
fn power_losses_lose_no_acknowledged_write() {
    let situations = Situations::new(&SITUATIONS);
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = match number("VOUSSOIR_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("VOUSSOIR_POWER_LOSSES").unwrap_or(300).div_ceil(LOSSES_A_LIFE),
    };
    let is_replay = seeds.end - seeds.start == 1;
    for seed in seeds {
        println!(
            "seed {seed}: VOUSSOIR_SEED={seed} cargo test -p voussoir-cache --all-features \
                  --test power"
        );
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(life(seed, &situations));
    }
    if !is_replay {
        situations.assert_all_reached();
    }
}
