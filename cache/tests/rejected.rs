//! Rejected writes: what the log says of them is what the cache says, also after a restart, and
//! their log stays small.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use voussoir_cache::{
    Cache, OpenError, PlainCodec, Sink, SinkError, Write, WriteBehind, WriteBehindConfig,
    async_trait,
};
use voussoir_journal::{Config, Error, Journal, MemoryFiles, Work};
use voussoir_sim::{Rng, Situations};

type Texts = Cache<u64, Vec<u8>>;

/// Rejects everything while it is told to.
#[derive(Clone, Default)]
struct Gate {
    rejects: Arc<AtomicBool>,
}

#[async_trait]
impl Sink<u64, Vec<u8>> for Gate {
    async fn write(&self, writes: &[Write<u64, Vec<u8>>]) -> Vec<Result<(), SinkError>> {
        let rejects = self.rejects.load(Ordering::SeqCst);
        let answer = |_| if rejects { Err(SinkError::rejected("shut")) } else { Ok(()) };
        writes.iter().map(answer).collect()
    }
}

fn journal(files: &Arc<MemoryFiles>) -> Journal {
    let mut config = Config::default();
    config.segment_bytes = 4 << 20;
    config.max_bytes = 64 << 20;
    Journal::open_with(Arc::<MemoryFiles>::clone(files), config).unwrap()
}

fn open(journal: &Journal) -> Result<WriteBehind<u64, Vec<u8>>, OpenError> {
    let mut config = WriteBehindConfig::default();
    config.flush_after = Duration::ZERO;
    config.seed = Some(1);
    WriteBehind::open(journal, "texts", PlainCodec, config)
}

fn cache(journal: &Journal, gate: &Gate) -> Texts {
    Cache::builder().write_behind(open(journal).unwrap(), gate.clone()).build().unwrap()
}

fn records(journal: &Journal) -> u64 {
    let bounds = journal.log("texts", 1).unwrap().bounds();
    bounds.end - bounds.start
}

fn rejected(cache: &Texts) -> BTreeMap<u64, Vec<u8>> {
    let value = |write: Vec<u8>| write.iter().take(8).copied().collect();
    let all = cache.rejected_writes().into_iter();
    all.map(|write| (write.key, value(write.value.unwrap()))).collect()
}

/// 20 values of 40 KiB are more than one commit of a compaction takes.
#[tokio::test]
async fn a_log_of_large_rejected_writes_is_rewritten() {
    let files = Arc::new(MemoryFiles::new());
    let gate = Gate::default();
    gate.rejects.store(true, Ordering::SeqCst);
    let before = {
        let journal = journal(&files);
        let cache = cache(&journal, &gate);
        let mut most = 0;
        for round in 0..20_u8 {
            for key in 0..20 {
                cache.write(key, vec![round; 40 << 10]).await.unwrap();
            }
            cache.flush().await;
            most = most.max(records(&journal));
        }
        assert!(most < 200, "{most} records for 20 rejected writes");
        let before = rejected(&cache);
        drop(cache);
        journal.close().unwrap();
        before
    };
    assert_eq!(before, (0..20).map(|key| (key, vec![19; 8])).collect());
    let journal = journal(&files);
    assert_eq!(rejected(&cache(&journal, &gate)), before);
}

/// Lets every task run until none can, without the journal's work.
async fn yield_until_idle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// The rewrite of the log takes several commits. Rejections that are settled between two of them
/// are not appended again after the record that says so.
#[tokio::test]
async fn a_rejection_that_is_settled_while_its_log_is_rewritten_stays_settled() {
    const KEYS: u64 = 20;
    let files = Arc::new(MemoryFiles::new());
    let gate = Gate::default();
    gate.rejects.store(true, Ordering::SeqCst);
    let open_journal = || {
        let mut config = Config::manual();
        config.segment_bytes = 4 << 20;
        config.max_bytes = 64 << 20;
        Journal::open_with(Arc::<MemoryFiles>::clone(&files), config).unwrap()
    };
    let journal = open_journal();
    let work = || while journal.work(0) != Work::Idle {};
    let texts = cache(&journal, &gate);
    // 4 * KEYS + 64 records are kept before the log is rewritten.
    let mut rewriting_at = 0;
    for round in 0..8_u8 {
        let writes: Vec<_> = (0..KEYS)
            .map(|key| {
                let texts = texts.clone();
                tokio::spawn(async move { texts.write(key, vec![round; 40 << 10]).await })
            })
            .collect();
        yield_until_idle().await;
        work();
        for write in writes {
            write.await.unwrap().unwrap();
        }
        // The flusher has a batch rejected, and hands the move to the other log in.
        yield_until_idle().await;
        work();
        rewriting_at = records(&journal);
    }
    assert!(rewriting_at > 4 * KEYS + 64, "{rewriting_at} records: the log is being rewritten");
    // The flusher hands in the first commit of the rewrite, and waits for it.
    yield_until_idle().await;
    let discards: Vec<_> = (0..KEYS)
        .map(|key| {
            let texts = texts.clone();
            tokio::spawn(async move { texts.discard_rejected(&key).await })
        })
        .collect();
    yield_until_idle().await;
    // The first commit and all discards are done before the flusher goes on.
    work();
    for discard in discards {
        assert!(discard.await.unwrap().unwrap());
    }
    for _ in 0..5 {
        yield_until_idle().await;
        work();
    }
    let left = records(&journal);
    assert!(left < rewriting_at, "{left} of {rewriting_at} records: the rewrite went on");
    assert_eq!(rejected(&texts), BTreeMap::new());
    drop(texts);
    yield_until_idle().await;
    journal.close().unwrap();
    drop(journal);
    let journal = open_journal();
    assert_eq!(rejected(&cache(&journal, &gate)), BTreeMap::new());
}

static SITUATIONS: [&str; 5] = [
    "a rejected write was discarded",
    "a rejected write was retried",
    "a discard met another change of its key",
    "a newer value settled a rejected write",
    "the log was rewritten",
];

async fn life(seed: u64, situations: &Situations) {
    let files = Arc::new(MemoryFiles::new());
    let gate = Gate::default();
    let mut chance = Rng::new(seed);
    let before = {
        let journal = journal(&files);
        let cache = cache(&journal, &gate);
        let mut last = 0;
        for round in 0..300_u64 {
            gate.rejects.store(chance.below(4) > 0, Ordering::SeqCst);
            let key = chance.below(6);
            let had = cache.rejected_writes().iter().any(|write| write.key == key);
            match chance.below(8) {
                0 => {
                    let discarded = cache.discard_rejected(&key).await.unwrap();
                    assert_eq!(discarded, had);
                    situations.add(SITUATIONS[0], u64::from(discarded));
                }
                1 => {
                    let retried = cache.retry_rejected(&key).await.unwrap();
                    situations.add(SITUATIONS[1], u64::from(retried));
                    cache.flush().await;
                }
                2 => {
                    // Both at once: the log ends with what the table says.
                    let value = [round.to_le_bytes(); 300].concat();
                    cache.write(key, value).await.unwrap();
                    let (flushed, discarded) =
                        tokio::join!(cache.flush(), cache.discard_rejected(&key));
                    let () = flushed;
                    situations.add(SITUATIONS[2], u64::from(had && discarded.is_ok()));
                }
                _ => {
                    let value = [round.to_le_bytes(); 300].concat();
                    cache.write(key, value).await.unwrap();
                    cache.flush().await;
                    let has = cache.rejected_writes().iter().any(|write| write.key == key);
                    assert_eq!(has, gate.rejects.load(Ordering::SeqCst));
                    situations.add(SITUATIONS[3], u64::from(had && !has));
                }
            }
            let now = records(&journal);
            situations.add(SITUATIONS[4], u64::from(now < last));
            last = now;
            assert!(now < 200, "{now} records for six keys");
        }
        let before = rejected(&cache);
        drop(cache);
        journal.close().unwrap();
        before
    };
    let journal = journal(&files);
    assert_eq!(rejected(&cache(&journal, &gate)), before, "seed {seed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_finds_the_rejected_writes_that_were_left() {
    let situations = Situations::new(&SITUATIONS);
    for seed in 0..12 {
        life(seed, &situations).await;
    }
    situations.assert_all_reached();
}

fn is_leased(error: &OpenError) -> bool {
    let OpenError::Journal(Error::Leased { namespace }) = error else { return false };
    namespace == "texts"
}

#[tokio::test]
async fn a_namespace_belongs_to_one_cache_at_a_time() {
    let journal = journal(&Arc::default());
    let gate = Gate::default();
    let first = cache(&journal, &gate);
    let error = open(&journal).unwrap_err();
    assert!(is_leased(&error), "{error}");
    first.write(1, vec![1]).await.unwrap();
    first.flush().await;
    drop(first);
    // The flusher ends when it is next polled, and what is on its way to the journal with it.
    let second = loop {
        match open(&journal) {
            Ok(second) => break second,
            Err(error) => assert!(is_leased(&error), "{error}"),
        }
        tokio::task::yield_now().await;
    };
    drop(second);
    assert!(open(&journal).is_ok(), "one that no cache was built with");
}
