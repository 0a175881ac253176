//! Who appends, with whose records, and what becomes of the others when it ends early.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::store::{Opened, RecordKind};

const PATIENCE: Duration = Duration::from_secs(60);

/// Appends when it is allowed to, and keeps who was in each append.
struct Gate {
    allowed: Semaphore,
    appends: Mutex<Vec<Vec<String>>>,
    fails: AtomicBool,
    /// Appends for which there is no room.
    full: AtomicUsize,
    panics: AtomicBool,
    max_bytes: usize,
}

#[async_trait]
impl SagaStore for Arc<Gate> {
    async fn open(&self) -> Result<Opened, StoreError> {
        Ok(Opened::default())
    }

    async fn append(&self, records: Vec<Record>) -> Result<(), StoreError> {
        let names = records.iter().map(|record| record.saga.to_string()).collect();
        self.appends.lock().push(names);
        self.allowed.acquire().await.expect("it is never closed").forget();
        assert!(!self.panics.swap(false, SeqCst), "told to panic");
        if self.full.load(SeqCst) > 0 {
            self.full.fetch_sub(1, SeqCst);
            return Err(StoreError::retryable("told to be full"));
        }
        if self.fails.swap(false, SeqCst) { Err(StoreError::new("told to fail")) } else { Ok(()) }
    }

    fn max_append_bytes(&self) -> usize {
        self.max_bytes
    }
}

struct World {
    gate: Arc<Gate>,
    gathered: Gathered,
}

impl World {
    fn new(max_bytes: usize) -> Self {
        let gate = Arc::new(Gate {
            allowed: Semaphore::new(0),
            appends: Mutex::default(),
            fails: AtomicBool::default(),
            full: AtomicUsize::default(),
            panics: AtomicBool::default(),
            max_bytes,
        });
        let gathered = Gathered::new(Arc::new(Arc::clone(&gate)));
        Self { gate, gathered }
    }

    /// Begins an append of one record, up to where it waits.
    async fn begin(&self, saga: &str) -> JoinHandle<Result<(), StoreError>> {
        let record = Record::new(saga, RecordKind::More, Bytes::from_static(b"0123456789"));
        let gathered = self.gathered.clone();
        let task = tokio::spawn(async move { gathered.append(vec![record]).await });
        tokio::task::yield_now().await;
        task
    }

    async fn appends(&self) -> Vec<Vec<String>> {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        self.gate.appends.lock().clone()
    }

    fn allow(&self, appends: usize) {
        self.gate.allowed.add_permits(appends);
    }
}

async fn end(task: JoinHandle<Result<(), StoreError>>) -> Result<(), String> {
    let told = timeout(10 * PATIENCE, task).await.expect("it is told").expect("no panic");
    told.map_err(|error| error.to_string())
}

#[tokio::test(start_paused = true)]
async fn those_that_wait_share_the_next_append() {
    let world = World::new(1 << 20);
    let first = world.begin("first").await;
    let (second, third) = (world.begin("second").await, world.begin("third").await);
    assert_eq!(world.appends().await, [["first"]]);
    world.allow(1);
    assert_eq!(end(first).await, Ok(()));
    assert_eq!(world.appends().await, [vec!["first"], vec!["second", "third"]]);
    assert!(!second.is_finished() && !third.is_finished(), "told before it is durable");
    world.allow(1);
    assert_eq!((end(second).await, end(third).await), (Ok(()), Ok(())));
    // Whoever comes alone then appends at once.
    world.allow(1);
    assert_eq!(end(world.begin("fourth").await).await, Ok(()));
    assert_eq!(world.appends().await.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_to_all_in_its_append_and_to_no_other() {
    let world = World::new(1 << 20);
    world.gate.fails.store(true, SeqCst);
    let first = world.begin("first").await;
    let second = world.begin("second").await;
    world.allow(1);
    assert!(end(first).await.is_err());
    world.appends().await;
    world.gate.fails.store(true, SeqCst);
    let third = world.begin("third").await;
    world.allow(2);
    assert!(end(second).await.is_err());
    assert_eq!(end(third).await, Ok(()));
}

/// Nothing of an append that was not taken is in the store, so all in it go on.
#[tokio::test(start_paused = true)]
async fn a_store_that_has_no_room_for_a_while_fails_nobody() {
    let world = World::new(1 << 20);
    let first = world.begin("first").await;
    let (second, third) = (world.begin("second").await, world.begin("third").await);
    world.gate.full.store(200, SeqCst);
    world.allow(202);
    for task in [first, second, third] {
        assert_eq!(end(task).await, Ok(()));
    }
    let appends = world.appends().await;
    assert!(appends[..201].iter().all(|names| *names == ["first"]), "{appends:?}");
    assert_eq!(appends[201..], [["second", "third"]]);
    // A failure behind it is told as one.
    world.gate.full.store(1, SeqCst);
    world.gate.fails.store(true, SeqCst);
    world.allow(2);
    assert!(end(world.begin("fourth").await).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn records_are_in_the_order_of_the_calls() {
    let world = World::new(1 << 20);
    let record = |saga: &str| vec![Record::new(saga, RecordKind::More, Bytes::new())];
    let first = world.gathered.append(record("first"));
    let second = world.gathered.append(record("second"));
    world.allow(2);
    let second = tokio::spawn(second);
    tokio::task::yield_now().await;
    first.await.expect("it is appended");
    assert_eq!(end(second).await, Ok(()));
    assert_eq!(world.appends().await.concat(), ["first", "second"]);
}

#[tokio::test(start_paused = true)]
async fn an_append_has_no_more_bytes_than_its_store_takes() {
    // Each record counts 19: a name of one byte, ten of events, and 8.
    let world = World::new(2 * 19);
    let mut tasks = Vec::new();
    for saga in ["a", "b", "c", "d"] {
        tasks.push(world.begin(saga).await);
    }
    world.allow(4);
    for task in tasks {
        assert_eq!(end(task).await, Ok(()));
    }
    assert_eq!(world.appends().await, [vec!["a"], vec!["b", "c"], vec!["d"]]);
}

/// Its runtime ends, or the store panics, while it appends with the records of others.
#[tokio::test(start_paused = true)]
async fn a_leader_that_ends_early_stops_nobody_else() {
    for panics in [false, true] {
        let world = World::new(1 << 20);
        let first = world.begin("first").await;
        let (second, third) = (world.begin("second").await, world.begin("third").await);
        world.allow(1);
        assert_eq!(end(first).await, Ok(()));
        assert_eq!(world.appends().await[1], ["second", "third"]);
        let (gone, fourth) = (world.begin("gone").await, world.begin("fourth").await);
        // It waits, and has not been told anything.
        gone.abort();
        if panics {
            world.gate.panics.store(true, SeqCst);
            world.allow(1);
        } else {
            second.abort();
        }
        assert!(timeout(PATIENCE, second).await.expect("it ends").is_err());
        // Its record may be in the store, or not.
        assert!(end(third).await.is_err());
        assert_eq!(world.appends().await[2], ["fourth"]);
        world.allow(1);
        assert_eq!(end(fourth).await, Ok(()));
    }
}
