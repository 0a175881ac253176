//! A source that is scripted from the outside, for the tests.
#![allow(dead_code, reason = "each test file uses some of this")]

pub(crate) mod faulty;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use voussoir_cache::testing::ManualClock;
use voussoir_cache::{Cache, Clock, Config, Loaded, Source, SourceError, async_trait};

/// How the next loads behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Answers,
    Fails,
    Panics,
    Hangs,
}

#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) rows: Mutex<HashMap<u64, u64>>,
    pub(crate) mood: Mutex<Mood>,
    pub(crate) takes: Mutex<Duration>,
    pub(crate) calls: AtomicUsize,
    pub(crate) keys: AtomicUsize,
    pub(crate) max_batch: usize,
    /// Given to each value.
    pub(crate) tags: Mutex<Vec<String>>,
}

impl Script {
    pub(crate) fn new(max_batch: usize) -> Arc<Self> {
        Arc::new(Self {
            rows: Mutex::new((0..10_000).map(|key| (key, key * 10)).collect()),
            mood: Mutex::new(Mood::Answers),
            takes: Mutex::new(Duration::from_millis(10)),
            calls: AtomicUsize::new(0),
            keys: AtomicUsize::new(0),
            max_batch,
            tags: Mutex::default(),
        })
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    pub(crate) fn write(&self, key: u64, value: u64) {
        self.rows.lock().insert(key, value);
    }
}

pub(crate) struct Scripted(pub(crate) Arc<Script>);

#[async_trait]
impl Source<u64, u64> for Scripted {
    async fn load(&self, keys: &[u64]) -> Vec<Result<Loaded<u64>, SourceError>> {
        let script = &self.0;
        script.calls.fetch_add(1, Ordering::SeqCst);
        script.keys.fetch_add(keys.len(), Ordering::SeqCst);
        let takes = *script.takes.lock();
        // The rows are read first and the answer takes its time, as a slow network does it.
        let rows: Vec<Option<u64>> =
            keys.iter().map(|key| script.rows.lock().get(key).copied()).collect();
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        let mood = *script.mood.lock();
        match mood {
            Mood::Answers => {}
            Mood::Fails => return keys.iter().map(|_| Err(SourceError::new("down"))).collect(),
            Mood::Panics => panic!("the source panics"),
            Mood::Hangs => std::future::pending().await,
        }
        let tags = script.tags.lock().clone();
        let loaded = |row: Option<u64>| {
            let loaded = Loaded::from(row);
            tags.iter().fold(loaded, Loaded::tagged)
        };
        rows.into_iter().map(|row| Ok(loaded(row))).collect()
    }

    fn max_batch(&self) -> usize {
        self.0.max_batch
    }
}

pub(crate) type Numbers = Cache<u64, u64>;

/// A cache over a script, on a clock set by hand.
pub(crate) fn cache(config: Config, script: &Arc<Script>) -> (Numbers, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    let source = Scripted(Arc::clone(script));
    let cache = Cache::builder().config(config).source(source).clock(shared).build().unwrap();
    (cache, clock)
}

/// A configuration without jitter, changed as the test wants it.
pub(crate) fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    config.ttl_jitter = 0.0;
    config.seed = Some(1);
    change(&mut config);
    config
}
