//! The store on a journal: what was acknowledged survives the loss of power, garbage goes, and
//! damage is told.

use std::collections::BTreeMap;
use std::future::Future as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use voussoir_journal::files::crash::{CrashFiles, Loss, Op};
use voussoir_journal::testing::HookedFiles;
use voussoir_journal::{Config, Error, Journal, MemoryFiles};
use voussoir_quorum::store::{Change, JournalStoreConfig, StoreError};
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

/// A commit that moves records has released them in the journal before the store knows where they
/// lie now.
#[tokio::test]
async fn what_a_cleaning_moves_can_be_read_meanwhile() {
    let (journal, store) = open(&CrashFiles::new(1));
    let log = journal.log("quorum.data", 1).unwrap();
    let change = |key: u64, byte: u8| {
        let (key, record) = (Bytes::from(format!("k{key:03}")), Bytes::from(vec![byte; 1_000]));
        Change { key, record: Some(record) }
    };
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
        let mut write = Box::pin(store.apply(batch.clone()));
        let is_written = std::future::poll_fn(|context| {
            let is_written = write.as_mut().poll(context).is_ready();
            // The store hears of the end of the commit by the next poll.
            for _ in 0..5 {
                if is_written || log.first() > before {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            match (is_written, log.first() > before) {
                (false, false) => std::task::Poll::Pending,
                _ => std::task::Poll::Ready(is_written),
            }
        });
        if !is_written.await {
            moves += 1;
            assert!(contents(&store).await == model, "turn {turn}");
            write.await.unwrap();
        }
        apply(&mut model, &batch);
        assert!(moves == 0 || contents(&store).await == model, "turn {turn}");
    }
}
