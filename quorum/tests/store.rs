//! The store on a journal: what was acknowledged survives the loss of power, garbage goes, and
//! damage is told.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use voussoir_journal::files::crash::{CrashFiles, Loss, Op};
use voussoir_journal::testing::HookedFiles;
use voussoir_journal::{Commit, Config, Error, Journal, MemoryFiles};
use voussoir_quorum::store::{Change, JournalStoreConfig, OpenError, StoreError};
use voussoir_quorum::table::{CallError, TableConfig};
use voussoir_quorum::*;
use voussoir_sim::{Rng, Situations};

static SITUATIONS: [&str; 5] = [
    "a record was removed",
    "a value took several records of the log",
    "the log was cleaned",
    "power was lost under a batch",
    "a removed key was written again",
];

fn journal_config() -> Config {
    let mut config = Config::default();
    // A commit holds a quarter of a segment.
    (config.segment_bytes, config.max_bytes) = (8 << 20, 512 << 20);
    config
}

fn open(disk: &CrashFiles) -> (Journal, JournalStore) {
    let journal = Journal::open_with(disk.mount(), journal_config()).unwrap();
    let mut config = JournalStoreConfig::default();
    config.max_garbage_bytes = 64 << 10;
    let store = JournalStore::open(&journal, 1, config).unwrap();
    (journal, store)
}

type Model = BTreeMap<Bytes, Bytes>;

async fn contents(store: &JournalStore) -> Model {
    let (mut found, mut after) = (Model::new(), Bytes::new());
    // Ends: each page moves on.
    loop {
        let page = store.scan(b"", &after, 100_000).await.unwrap();
        let Some((last, _)) = page.last() else { return found };
        after = last.clone();
        found.extend(page);
    }
}

fn batch(rng: &mut Rng, model: &Model, situations: &Situations) -> Vec<Change> {
    let mut batch = Vec::new();
    for _ in 0..=rng.below(6) {
        let key = Bytes::from(format!("k{}", rng.below(40)));
        let len = match rng.below(40) {
            0 => {
                situations.reached("a value took several records of the log");
                (512 << 10) + rng.below(600 << 10)
            }
            1..=4 => rng.below(60 << 10),
            _ => rng.below(300),
        };
        let is_removed = rng.chance(200_000);
        situations.add("a record was removed", is_removed.into());
        if !model.contains_key(&key) && !is_removed {
            situations.reached("a removed key was written again");
        }
        let record = (!is_removed).then(|| Bytes::from(vec![rng.below(256) as u8; len as usize]));
        batch.push(Change { key, record });
        if len > 1 << 19 {
            break; // One long value fits into a commit of these segments.
        }
    }
    batch
}

fn apply(model: &mut Model, batch: &[Change]) {
    for change in batch {
        match &change.record {
            Some(record) => model.insert(change.key.clone(), record.clone()),
            None => model.remove(&change.key),
        };
    }
}

#[tokio::test]
async fn acknowledged_batches_survive_the_loss_of_power() {
    let situations = Situations::new(&SITUATIONS);
    let seeds = std::env::var("VOUSSOIR_SEEDS").map_or(12, |n| n.parse().unwrap());
    for seed in 0..seeds {
        let mut rng = Rng::new(seed);
        let disk = CrashFiles::new(seed);
        let mut model = Model::new();
        let mut released = 0;
        for _ in 0..6 {
            let (journal, store) = open(&disk);
            assert_eq!(contents(&store).await, model, "seed {seed}");
            for _ in 0..rng.below(60) {
                let batch = batch(&mut rng, &model, &situations);
                store.apply(batch.clone()).await.unwrap();
                apply(&mut model, &batch);
                let keys: Vec<Bytes> = batch.iter().map(|change| change.key.clone()).collect();
                let found = store.get(&keys).await.unwrap();
                let wanted: Vec<_> = keys.iter().map(|key| model.get(key).cloned()).collect();
                assert!(found == wanted, "seed {seed}: a read sees the last batch");
            }
            let (total, live) = store.log_bytes();
            let all: usize = model.iter().map(|(key, value)| 8 + key.len() + value.len()).sum();
            assert_eq!(live, all as u64, "seed {seed}");
            // A batch of up to 1 MiB in 256 KiB steps: garbage is a bounded multiple.
            assert!(total <= 2 * live + (4 << 20), "seed {seed}: {total} bytes, {live} live");
            let first = journal.log("quorum.data", 1).unwrap().first();
            situations.add("the log was cleaned", (first > released).into());
            released = first;
            // One more batch, of which nobody is told, while the power goes.
            let last = batch(&mut rng, &model, &situations);
            let write = store.apply(last.clone());
            let is_acknowledged = tokio::select! {
                biased;
                written = write => written.is_ok(),
                () = tokio::task::yield_now() => {
                    situations.reached("power was lost under a batch");
                    false
                }
            };
            disk.power_loss(Loss::Any);
            drop((journal, store));
            let mut with_last = model.clone();
            apply(&mut with_last, &last);
            let (journal, store) = open(&disk);
            let found = contents(&store).await;
            // Which of the two a batch without an acknowledgement fares depends on threads.
            if found != with_last {
                assert!(!is_acknowledged, "seed {seed}: an acknowledged batch is lost");
                assert!(found == model, "seed {seed}: a batch was written in part");
            }
            model = found;
            drop((journal, store));
        }
    }
    println!("{situations}");
    situations.assert_all_reached();
}

#[tokio::test]
async fn a_damaged_store_says_so_until_it_is_cleared() {
    let disk = CrashFiles::new(1);
    let key = Bytes::from_static(b"k");
    let (journal, store) = open(&disk);
    for round in 0..50_u8 {
        let record = Some(Bytes::from(vec![round; 4_000]));
        store.apply(vec![Change { key: key.clone(), record }]).await.unwrap();
    }
    drop((store, journal));
    let segment = disk
        .snapshot()
        .into_iter()
        .map(|(name, _)| name)
        .find(|name| name.starts_with("segment") && name.contains("00000000"));
    let segment = segment.expect("there is a first segment");
    for at in (20_000..60_000).step_by(100) {
        disk.overwrite(&segment, at, &[0xA5; 8]);
    }
    let (_journal, store) = open(&disk);
    let error = store.get(std::slice::from_ref(&key)).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged(_)), "{error}");
    let change = Change { key: key.clone(), record: None };
    let error = store.apply(vec![change]).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged(_)), "{error}");
    store.clear().await.unwrap();
    assert!(contents(&store).await.is_empty());
    let record = Some(Bytes::from_static(b"v"));
    store.apply(vec![Change { key: key.clone(), record: record.clone() }]).await.unwrap();
    assert_eq!(store.get(&[key]).await.unwrap(), [record]);
}

/// A full disk refuses writes and keeps what it has.
#[tokio::test]
async fn a_batch_that_does_not_fit_changes_nothing() {
    let disk = CrashFiles::new(1);
    let (_journal, store) = open(&disk);
    let key = Bytes::from_static(b"k");
    let record = Some(Bytes::from_static(b"v"));
    store.apply(vec![Change { key: key.clone(), record: record.clone() }]).await.unwrap();
    let long = Some(Bytes::from(vec![0; 3 << 20]));
    let error = store.apply(vec![Change { key: key.clone(), record: long }]).await.unwrap_err();
    assert!(matches!(error, StoreError::NotApplied(_)), "{error}");
    assert_eq!(store.get(&[key]).await.unwrap(), [record]);
}

fn large(rng: &mut Rng, keys: u64, bytes: u64) -> Change {
    let key = Bytes::from(format!("k{}", rng.below(keys)));
    let len = bytes / 2 + rng.below(bytes / 2);
    Change { key, record: Some(Bytes::from(vec![rng.below(256) as u8; len as usize])) }
}

/// Each batch makes as much garbage as it is long: it also takes as much away.
#[tokio::test]
async fn large_overwrites_leave_bounded_garbage() {
    let mut rng = Rng::new(1);
    let disk = CrashFiles::new(1);
    let (_journal, store) = open(&disk);
    let cold = Change { key: Bytes::from_static(b"cold"), record: Some(vec![1; 400_000].into()) };
    store.apply(vec![cold.clone()]).await.unwrap();
    let mut most = 0;
    for turn in 0..1_000 {
        let batch = vec![large(&mut rng, 8, 300 << 10), large(&mut rng, 8, 300 << 10)];
        store.apply(batch).await.unwrap();
        let (total, live) = store.log_bytes();
        // `max_garbage_bytes`, and a batch.
        let slack = (64 << 10) + (600 << 10);
        assert!(total <= 2 * live + live / 2 + slack, "turn {turn}: {total} bytes, {live} live");
        most = most.max(total);
    }
    assert!(most > 1 << 20, "there was something to clean");
    assert_eq!(store.get(std::slice::from_ref(&cold.key)).await.unwrap(), [cold.record]);
}

/// A journal that is full of garbage refuses no overwrite: its releases are taken all the same.
#[tokio::test]
async fn overwrites_go_on_in_a_journal_that_is_full_of_garbage() {
    for seed in 0..2 {
        let mut rng = Rng::new(seed);
        let mut config = Config::default();
        (config.segment_bytes, config.max_bytes) = (1 << 20, 12 << 20);
        let journal = Journal::open_with(CrashFiles::new(seed).mount(), config).unwrap();
        let mut config = JournalStoreConfig::default();
        // The second journal is full long before its log is to be cleaned.
        config.max_garbage_bytes = if seed == 0 { 64 << 10 } else { 1 << 40 };
        let store = JournalStore::open(&journal, 1, config).unwrap();
        let (mut model, mut most) = (Model::new(), 0);
        for turn in 0..2_000 {
            let mut batch = vec![large(&mut rng, 20, 100 << 10), large(&mut rng, 20, 100 << 10)];
            if seed == 1 {
                // One after the other: what is oldest is garbage.
                batch.truncate(1);
                batch[0].key = Bytes::from(format!("k{}", turn % 20));
            }
            let written = store.apply(batch.clone()).await;
            assert_eq!(written, Ok(()), "seed {seed}, turn {turn}: {:?}", store.log_bytes());
            apply(&mut model, &batch);
            most = most.max(store.log_bytes().0);
        }
        assert!(contents(&store).await == model);
        assert_eq!(most > 8 << 20, seed == 1, "the journal was full: {most}");
    }
}

/// Whoever writes waits for what is cleaned beside it: the part is read once, in one piece, and not
/// with the whole batch of the journal for each of its records.
#[tokio::test]
async fn cleaning_reads_about_as_much_as_it_cleans() {
    let read = Arc::new(AtomicUsize::new(0));
    let journal = Journal::open_with(counted(&read), journal_config()).unwrap();
    let mut config = JournalStoreConfig::default();
    config.max_garbage_bytes = 64 << 10;
    let store = JournalStore::open(&journal, 1, config).unwrap();
    let change = |key: u64, bytes: usize| {
        let (key, record) = (Bytes::from(format!("k{key}")), Bytes::from(vec![7; bytes]));
        Change { key, record: Some(record) }
    };
    // In batches of 45 KB.
    for first in (0..4_000).step_by(400) {
        store.apply((first..first + 400).map(|key| change(key, 100)).collect()).await.unwrap();
    }
    read.store(0, Ordering::Relaxed);
    let mut longest = 0;
    for _ in 0..2_000 {
        let before = read.load(Ordering::Relaxed);
        store.apply(vec![change(0, 1_000)]).await.unwrap();
        longest = longest.max(read.load(Ordering::Relaxed) - before);
    }
    let (total, live) = store.log_bytes();
    let cleaned = 2_450_000 - total as usize;
    let read = read.load(Ordering::Relaxed);
    println!("{cleaned} bytes cleaned, {read} read, {longest} for one batch");
    assert!(cleaned > live as usize, "all records were moved");
    assert!(read <= 6 * cleaned, "{read} bytes read to clean {cleaned}");
    assert!(longest <= 256 << 10, "{longest} bytes read beside one batch");
}

/// Files in memory that count the bytes that are read.
fn counted(read: &Arc<AtomicUsize>) -> Arc<HookedFiles> {
    let read = Arc::clone(read);
    Arc::new(HookedFiles::new(Arc::new(MemoryFiles::new()), move |call| {
        let length = if call.op == Op::Read { call.length } else { 0 };
        read.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }))
}

/// The keys of a page lie in many batches, and many of them in each: a batch is read once for all
/// of them, by scans and by reads of many keys.
#[tokio::test]
async fn a_page_reads_each_batch_of_the_journal_once() {
    let read = Arc::new(AtomicUsize::new(0));
    let journal = Journal::open_with(counted(&read), journal_config()).unwrap();
    let store = JournalStore::open(&journal, 1, JournalStoreConfig::default()).unwrap();
    let (mut rng, mut model) = (Rng::new(1), Model::new());
    // In batches of 45 KB, and one value that takes several records of the log.
    let mut keys: Vec<u64> = (0..4_000).collect();
    for at in (1..keys.len()).rev() {
        keys.swap(at, rng.below(at as u64 + 1) as usize);
    }
    let change = |key: &u64| {
        let len = if *key == 777 { 600 << 10 } else { 50 + (*key % 100) as usize };
        let (key, record) = (Bytes::from(format!("k{key:04}")), vec![*key as u8; len]);
        Change { key, record: Some(record.into()) }
    };
    for keys in keys.chunks(400) {
        let batch: Vec<Change> = keys.iter().map(change).collect();
        store.apply(batch.clone()).await.unwrap();
        apply(&mut model, &batch);
    }
    let (total, _) = store.log_bytes();
    read.store(0, Ordering::Relaxed);
    assert!(contents(&store).await == model);
    let scanned = read.swap(0, Ordering::Relaxed);
    let keys: Vec<Bytes> = model.keys().cloned().collect();
    let found = store.get(&keys).await.unwrap();
    assert!(found.into_iter().eq(model.values().cloned().map(Some)));
    let got = read.load(Ordering::Relaxed);
    println!("{total} bytes in the log, {scanned} read by pages of 100 kB, {got} at once");
    assert!(scanned <= 10 * total as usize, "{scanned} bytes read for {total}");
    assert!(got <= 3 * total as usize, "{got} bytes read for {total}");
}

/// Two stores would write between each other's lines, and two nodes give one number to two writes.
#[tokio::test]
async fn a_journal_has_one_store_of_an_id_and_a_store_one_node() {
    let files = Arc::new(MemoryFiles::new());
    let journal = Journal::open_with(files, journal_config()).unwrap();
    let open = |id| JournalStore::open(&journal, id, JournalStoreConfig::default());
    let store = open(1).unwrap();
    let second = open(1).unwrap_err();
    let leased = |namespace: &str| Error::Leased { namespace: namespace.to_owned() };
    assert_eq!(second.to_string(), leased("quorum.data/1").to_string());
    drop(open(2).unwrap());
    let config = NodeConfig::with_replicas([1]);
    let again = Arc::new(store.clone());
    let node = Node::create(1, Arc::new(store), config.clone()).await.unwrap();
    let in_use = Err(StartError::Store(StoreError::InUse));
    for attempt in 0..4 {
        let (store, config) = (again.clone(), config.clone());
        let refused = match attempt {
            0 => Node::create(1, store, config).await,
            1 => Node::start(1, store, config).await,
            2 => Node::join(1, store, config).await,
            _ => Node::start_lost(1, store, config).await,
        };
        assert_eq!(refused.map(drop), in_use, "{attempt}");
    }
    let mut named = config.clone();
    named.lineage = Lineage::draw();
    let shared: Arc<dyn ReplicaStore> = again.clone();
    assert_eq!(Node::set_lineage(1, &shared, &named).await, in_use);
    node.shutdown().await;
    // It holds the store still, and serves no longer.
    let next = Node::start(1, again.clone(), config.clone()).await.unwrap();
    assert!(next.is_whole() && open(1).is_err());
    next.shutdown().await;
    drop((node, next, again, shared));
    let store = open(1).unwrap();
    assert!(Node::start(1, Arc::new(store), config).await.unwrap().is_whole());
}

fn change(key: u64, byte: u8) -> Change {
    let (key, record) = (Bytes::from(format!("k{key:03}")), Bytes::from(vec![byte; 1_000]));
    Change { key, record: Some(record) }
}

/// A journal whose syncs can be held.
struct Held {
    journal: Journal,
    /// The next sync is held.
    is_armed: Arc<AtomicBool>,
    /// One is held.
    reached: Receiver<()>,
    leave: Sender<()>,
}

impl Held {
    fn new() -> Self {
        let is_armed: Arc<AtomicBool> = Arc::default();
        let ((reaches, reached), (leave, left)) = (channel(), channel());
        let (reaches, left, armed) = (Mutex::new(reaches), Mutex::new(left), is_armed.clone());
        let files = HookedFiles::new(Arc::new(MemoryFiles::new()), move |call| {
            if call.op == Op::Sync && armed.swap(false, Ordering::SeqCst) {
                reaches.lock().unwrap().send(()).unwrap();
                left.lock().unwrap().recv().unwrap();
            }
            Ok(())
        });
        let journal = Journal::open_with(Arc::new(files), journal_config()).unwrap();
        Self { journal, is_armed, reached, leave }
    }

    fn open(&self) -> Result<JournalStore, OpenError> {
        let mut config = JournalStoreConfig::default();
        config.max_garbage_bytes = 64 << 10;
        JournalStore::open(&self.journal, 1, config)
    }

    async fn open_at_last(&self) -> JournalStore {
        // Ends: what was handed in ends.
        loop {
            match self.open() {
                Ok(store) => return store,
                Err(error) => assert!(matches!(error, OpenError::Journal(Error::Leased { .. }))),
            }
            tokio::task::yield_now().await;
        }
    }

    /// Hands a write in, and holds a sync. What it answered, if it ended before one was held.
    async fn hold<F: Future>(&self, mut write: Pin<&mut F>) -> Option<F::Output> {
        self.is_armed.store(true, Ordering::SeqCst);
        // Ends: the write ends, or a sync is held.
        loop {
            let polled = poll_fn(|context| Poll::Ready(write.as_mut().poll(context))).await;
            if let Poll::Ready(answer) = polled {
                if !self.is_armed.swap(false, Ordering::SeqCst) {
                    self.reached.recv().unwrap();
                    self.leave.send(()).unwrap();
                }
                return Some(answer);
            }
            if self.reached.try_recv().is_ok() {
                return None;
            }
            tokio::task::yield_now().await;
        }
    }
}

/// A node that is dropped drops its write. What was handed in is part of the store all the same:
/// for who goes on with a clone, and for who opens it again.
#[tokio::test]
async fn a_write_whose_caller_has_gone_is_part_of_the_store() {
    let held = Held::new();
    let log = held.journal.log("quorum.data", 1).unwrap();
    let mut store = held.open().unwrap();
    let mut model = Model::new();
    for key in 0..100 {
        let batch = vec![change(key, key as u8)];
        store.apply(batch.clone()).await.unwrap();
        apply(&mut model, &batch);
    }
    let (mut moves, mut turn) = (0, 0_u64);
    // Ends: each turn makes garbage, and garbage is cleaned.
    while moves < 10 {
        turn += 1;
        assert!(turn < 5_000, "{moves} moves were seen");
        let (before, batch) = (log.first(), vec![change(turn % 7, turn as u8)]);
        let mut write = Box::pin(store.apply(batch.clone()));
        let is_held = held.hold(write.as_mut()).await.is_none();
        drop(write);
        if is_held && moves % 2 == 0 {
            drop(store);
            let refused = held.open().map(drop);
            held.leave.send(()).unwrap();
            store = held.open_at_last().await;
            assert!(refused.is_err() || log.first() == before, "opened under a commit: {turn}");
        } else if is_held {
            held.leave.send(()).unwrap();
        }
        // It comes behind what was handed in.
        store.apply(Vec::new()).await.unwrap();
        let found = contents(&store).await;
        moves += u64::from(is_held && log.first() > before);
        let mut with = model.clone();
        apply(&mut with, &batch);
        let is_there = found.get(&batch[0].key) == batch[0].record.as_ref();
        assert!(is_there || is_held, "turn {turn}");
        model = if is_there { with } else { model };
        assert!(found == model, "turn {turn}");
    }
}

/// Reaches one node.
struct Own(Node);

#[async_trait]
impl Link for Own {
    async fn call(
        &self,
        _to: u64,
        _class: Class,
        request: Bytes,
        _deadline: Instant,
    ) -> Result<Bytes, CallError> {
        self.0.answer(request).await.ok_or(CallError::Unknown)
    }
}

/// A service that is dropped in the middle of a write, and begins again in the same process: over
/// the store that it had, or over one that it opens.
#[tokio::test]
async fn a_node_that_was_dropped_in_a_write_starts_again_with_all_it_acknowledged() {
    let held = Held::new();
    let log = held.journal.log("quorum.data", 1).unwrap();
    let mut config = NodeConfig::with_replicas([1]);
    (config.repair_every, config.collect_every) = (None, None);
    let mut store = held.open().unwrap();
    drop(Node::create(1, Arc::new(store.clone()), config.clone()).await.unwrap());
    let (mut moves, mut turn, mut reached) = (0, 0_u64, [false; 2]);
    let mut acknowledged = BTreeMap::new();
    // Ends: each turn makes garbage, and garbage is cleaned.
    while moves < 6 {
        // Ends: the task of the node before ends, and its write.
        let node = loop {
            match Node::start(1, Arc::new(store.clone()), config.clone()).await {
                Ok(node) => break node,
                Err(error) => assert_eq!(error, StartError::Store(StoreError::InUse)),
            }
            tokio::task::yield_now().await;
        };
        assert!(node.is_whole(), "turn {turn}");
        let link: Arc<dyn Link> = Arc::new(Own(node.clone()));
        let table = Table::with_hints(TableConfig::with_replicas([1]), link, &node).unwrap();
        for (key, value) in &acknowledged {
            let found = table.get(format!("k{key}")).await.unwrap();
            assert!(found.values().any(|found| found == value), "turn {turn} {key}");
        }
        // Ends: a write is held.
        let before = loop {
            turn += 1;
            assert!(turn < 20_000, "{moves} moves were seen");
            let (key, value) = (turn % 40, Bytes::from(vec![turn as u8; 1_000]));
            let seen = table.get(format!("k{key}")).await.unwrap();
            let before = log.first();
            let mut put = Box::pin(table.put(format!("k{key}"), seen.context(), value.clone()));
            // Garbage is cleaned with the next batch.
            let (total, live) = store.log_bytes();
            let is_last = total - live > 64 << 10;
            let put = if is_last { held.hold(put.as_mut()).await } else { Some(put.await) };
            let Some(put) = put else {
                acknowledged.remove(&key);
                break before;
            };
            put.unwrap();
            acknowledged.insert(key, value);
        };
        drop((table, node));
        // The task of the node ends.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        let opens = moves % 2 == 0;
        let refused = if opens {
            drop(store);
            let refused = held.open().map(drop).map_err(|error| error.to_string());
            held.leave.send(()).unwrap();
            store = held.open_at_last().await;
            refused
        } else {
            let started = Node::start(1, Arc::new(store.clone()), config.clone()).await;
            held.leave.send(()).unwrap();
            started.map(drop).map_err(|error| error.to_string())
        };
        held.journal.commit(Commit::new()).await.unwrap();
        if log.first() > before {
            assert!(refused.is_err(), "turn {turn}");
            (moves, reached[usize::from(opens)]) = (moves + 1, true);
        }
    }
    assert_eq!(reached, [true; 2]);
}

/// A commit that moves records has released them in the journal before the store knows where they
/// lie now.
#[tokio::test]
async fn what_a_cleaning_moves_can_be_read_meanwhile() {
    let held = Held::new();
    let (log, other) = (held.journal.log("quorum.data", 1).unwrap(), held.journal.log("other", 1));
    let (store, other) = (held.open().unwrap(), other.unwrap());
    let mut model = Model::new();
    for key in 0..100 {
        let batch = vec![change(key, key as u8)];
        store.apply(batch.clone()).await.unwrap();
        apply(&mut model, &batch);
    }
    let (mut moves, mut turn) = (0, 0_u64);
    // Ends: each turn makes garbage, and garbage is cleaned.
    while moves < 5 {
        turn += 1;
        assert!(turn < 20_000, "{moves} moves were seen");
        let (before, batch) = (log.first(), vec![change(0, turn as u8)]);
        let append = || Commit::new().append(&other, [b"x"]);
        held.is_armed.store(true, Ordering::SeqCst);
        held.journal.submit(append(), |_| ()).unwrap();
        held.reached.recv().unwrap();
        // In one group behind the sync that is held: the journal tells of the first commit, and
        // waits, when the second one has been applied.
        let ((tells, told), (goes, goes_on)) = (channel(), channel::<()>());
        let tell = move |_| {
            tells.send(()).unwrap();
            goes_on.recv().unwrap();
        };
        held.journal.submit(append(), tell).unwrap();
        let mut write = Box::pin(store.apply(batch.clone()));
        let pending = held.journal.stats().pending_bytes;
        // Ends: the batch is handed in.
        while held.journal.stats().pending_bytes == pending {
            let polled = poll_fn(|context| Poll::Ready(write.as_mut().poll(context))).await;
            assert!(polled.is_pending());
            tokio::task::yield_now().await;
        }
        held.leave.send(()).unwrap();
        told.recv().unwrap();
        if log.first() > before {
            moves += 1;
            assert!(contents(&store).await == model, "turn {turn}");
        }
        goes.send(()).unwrap();
        write.await.unwrap();
        apply(&mut model, &batch);
        assert!(moves == 0 || contents(&store).await == model, "turn {turn}");
    }
}
