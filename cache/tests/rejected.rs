//! Rejected writes: what the log says of them is what the cache says, also after a restart, and
//! their log stays small.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use voussoir_cache::{
    Cache, OpenError, PlainCodec, Sink, SinkError, Write, WriteBehind, WriteBehindConfig,
    WriteError, async_trait,
};
use voussoir_journal::{Commit, Config, Error, Journal, MemoryFiles, Work};
use voussoir_sim::{Rng, Situations};

type Texts = Cache<u64, Vec<u8>>;

/// Rejects everything, or fails, while it is told to.
#[derive(Clone, Default)]
struct Gate {
    rejects: Arc<AtomicBool>,
    is_down: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
}

#[async_trait]
impl Sink<u64, Vec<u8>> for Gate {
    async fn write(&self, writes: &[Write<u64, Vec<u8>>]) -> Vec<Result<(), SinkError>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let (rejects, is_down) =
            (self.rejects.load(Ordering::SeqCst), self.is_down.load(Ordering::SeqCst));
        let answer = |_| match (is_down, rejects) {
            (true, _) => Err(SinkError::not_applied("down")),
            (_, true) => Err(SinkError::rejected("shut")),
            _ => Ok(()),
        };
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
        // The flusher has a batch rejected, and hands the move to the other log in, in several
        // commits.
        while records(&journal) < u64::from(round + 1) * KEYS {
            yield_until_idle().await;
            work();
        }
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

/// A journal without threads, whose configuration is changed as the test wants it.
fn manual(files: &Arc<MemoryFiles>, change: impl FnOnce(&mut Config)) -> Journal {
    let mut config = Config::manual();
    config.segment_bytes = 4 << 20;
    config.max_bytes = 64 << 20;
    change(&mut config);
    Journal::open_with(Arc::<MemoryFiles>::clone(files), config).unwrap()
}

/// Does the journal's work for as long as the test lasts.
fn keep_working(journal: &Journal) -> tokio::task::JoinHandle<()> {
    let journal = journal.clone();
    tokio::spawn(async move {
        // Ends: with the test's runtime, or when it is aborted.
        loop {
            while journal.work(0) != Work::Idle {}
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
}

/// Fills the journal with records of a log of its own until it rejects the next one.
fn fill(journal: &Journal, bytes: usize, work: impl Fn()) -> Error {
    let log = journal.log("others", 1).unwrap();
    let (failed, failure) = std::sync::mpsc::channel();
    // Ends: the journal is bounded.
    loop {
        let commit = Commit::new().append(&log, [vec![0_u8; bytes]]);
        let failed = failed.clone();
        let done =
            move |outcome: Result<_, Error>| drop(outcome.map_err(|error| failed.send(error)));
        if let Err(rejected) = journal.submit(commit, done) {
            return rejected.error;
        }
        work();
        if let Ok(error) = failure.try_recv() {
            return error;
        }
    }
}

/// The sink takes a newer value of a key whose older one it had rejected, and the journal has no
/// room for the record that says so. A restart must not bring the rejection back.
#[tokio::test(start_paused = true)]
async fn a_rejection_stays_settled_although_the_journal_was_busy() {
    let files = Arc::new(MemoryFiles::new());
    let gate = Gate::default();
    gate.rejects.store(true, Ordering::SeqCst);
    let open_journal = || manual(&files, |config| config.max_pending_bytes = 64 << 10);
    let journal = open_journal();
    let texts = cache(&journal, &gate);
    let working = keep_working(&journal);
    texts.write(1, b"old".to_vec()).await.unwrap();
    texts.flush().await;
    assert_eq!(rejected(&texts), BTreeMap::from([(1, b"old".to_vec())]));
    working.abort();
    gate.rejects.store(false, Ordering::SeqCst);
    let newer = tokio::spawn({
        let texts = texts.clone();
        async move { texts.write(1, b"new".to_vec()).await }
    });
    yield_until_idle().await;
    while journal.work(0) != Work::Idle {}
    // The write is acknowledged, and the flusher has not been polled since.
    // To the brim: the record is small.
    for bytes in [1000, 1] {
        let error = fill(&journal, bytes, || {});
        assert!(matches!(error, Error::Busy { .. }), "{error}");
    }
    let calls = gate.calls.load(Ordering::SeqCst);
    yield_until_idle().await;
    newer.await.unwrap().unwrap();
    assert_eq!(gate.calls.load(Ordering::SeqCst), calls + 1, "the sink has taken it");
    assert_eq!(texts.stats().flush_failures, 1, "the journal has refused the record");
    let working = keep_working(&journal);
    texts.flush().await;
    assert_eq!(rejected(&texts), BTreeMap::new());
    let closed = texts.close(Duration::from_secs(1)).await;
    assert!(closed.is_complete(), "{closed:?}");
    working.abort();
    journal.close().unwrap();
    drop((texts, journal));
    let journal = open_journal();
    let texts = cache(&journal, &gate);
    assert_eq!(rejected(&texts), BTreeMap::new());
    assert!(!texts.retry_rejected(&1).await.unwrap(), "the old value would replace the new one");
}

/// A write that the sink rejects keeps its record, and all that follow it, in a journal that is
/// full: moving it must be possible there.
#[tokio::test(start_paused = true)]
async fn a_full_journal_lets_rejected_writes_move() {
    let files = Arc::new(MemoryFiles::new());
    let gate = Gate::default();
    gate.is_down.store(true, Ordering::SeqCst);
    let journal = manual(&files, |config| {
        config.segment_bytes = 64 << 10;
        config.max_bytes = 4 * config.segment_bytes;
    });
    let texts = cache(&journal, &gate);
    let working = keep_working(&journal);
    texts.write(1, b"one".to_vec()).await.unwrap();
    texts.write(2, b"two".to_vec()).await.unwrap();
    let error = fill(&journal, 8000, || while journal.work(0) != Work::Idle {});
    assert!(matches!(error, Error::Full { .. }), "{error}");
    let write = texts.write(3, b"three".to_vec()).await;
    assert!(matches!(write, Err(WriteError::Journal(Error::Full { .. }))), "{write:?}");
    gate.rejects.store(true, Ordering::SeqCst);
    gate.is_down.store(false, Ordering::SeqCst);
    let flushed = tokio::time::timeout(Duration::from_secs(60), texts.flush()).await;
    assert!(flushed.is_ok(), "the sink's answer has nowhere to go");
    assert_eq!(rejected(&texts).len(), 2);
    assert_eq!(texts.stats().backlog, 0);
    working.abort();
}

/// 1.3 MB of rejected writes from one call are more than the journal takes at once.
#[tokio::test(start_paused = true)]
async fn what_one_call_rejects_moves_in_several_commits() {
    const KEYS: u64 = 256;
    let gate = Gate::default();
    gate.rejects.store(true, Ordering::SeqCst);
    let journal = manual(&Arc::default(), |config| config.segment_bytes = 4 << 20);
    let mut config = WriteBehindConfig::default();
    config.flush_after = Duration::from_secs(3600);
    let behind = WriteBehind::open(&journal, "texts", PlainCodec, config).unwrap();
    let texts: Texts = Cache::builder().write_behind(behind, gate.clone()).build().unwrap();
    let working = keep_working(&journal);
    for key in 0..KEYS {
        texts.write(key, vec![7; 5000]).await.unwrap();
    }
    texts.flush().await;
    assert_eq!(rejected(&texts).len() as u64, KEYS);
    let calls = gate.calls.load(Ordering::SeqCst);
    assert_eq!(calls, 1, "the sink was asked again for what it had rejected");
    working.abort();
}

/// The record of a rejection is longer than that of its write. The largest write that is accepted
/// can be rejected all the same, and what lies beside it can be moved.
#[tokio::test(start_paused = true)]
async fn the_largest_write_can_be_rejected() {
    // What bounds a record is the batch in the first journal, and the commit in the others.
    for segment_bytes in [8 << 20, 4 << 20, 64 << 10] {
        let files = Arc::new(MemoryFiles::new());
        let gate = Gate::default();
        gate.rejects.store(true, Ordering::SeqCst);
        let open_journal = || manual(&files, |config| config.segment_bytes = segment_bytes);
        let journal = open_journal();
        // A record's length in the journal, version, kind, and the key with its length.
        let largest = journal.max_batch_bytes() as usize - 4 - 2 - 4 - 8;
        let texts = cache(&journal, &gate);
        let working = keep_working(&journal);
        let refused = texts.write(1, vec![1; largest]).await;
        let is_too_large = |error: &WriteError| {
            matches!(error, WriteError::Journal(Error::TooLarge { what: "write", .. }))
        };
        assert!(is_too_large(refused.as_ref().unwrap_err()), "{refused:?}");
        // Without the length of a reason.
        let largest = largest - 4;
        let flushed = async |key| {
            texts.write(key, vec![1; largest]).await.unwrap();
            tokio::time::timeout(Duration::from_secs(60), texts.flush()).await
        };
        assert!(flushed(1).await.is_ok(), "a rejection that fits nowhere");
        for key in 2..21 {
            texts.write(key, vec![1; 10]).await.unwrap();
            texts.flush().await;
        }
        assert_eq!(rejected(&texts).len(), 20);
        // Written anew, beside smaller ones.
        for _ in 0..200 {
            texts.write(4, vec![1; 10]).await.unwrap();
            texts.flush().await;
        }
        assert!(records(&journal) < 150, "{} records", records(&journal));
        let closed = texts.close(Duration::from_secs(10)).await;
        assert!(closed.is_complete(), "{closed:?}");
        working.abort();
        journal.close().unwrap();
        drop((texts, journal));
        let texts = cache(&open_journal(), &gate);
        assert_eq!(texts.rejected_writes().len(), 20);
        let largest_one = texts.rejected_writes().into_iter().find(|write| write.key == 1);
        assert_eq!(
            largest_one.and_then(|write| write.value).map(|value| value.len()),
            Some(largest)
        );
    }
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
