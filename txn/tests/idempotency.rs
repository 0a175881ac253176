//! Idempotency keys over each store: the same tests for memory, a journal and PostgreSQL.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use voussoir_txn::Bytes;
use voussoir_txn::StoreError;
use voussoir_txn::idempotency::*;
use voussoir_txn::store::{MemoryStore, Opened, Record, SagaStore};

/// Longer than a test takes on a server's clock, which nobody stops.
const LEASE: Duration = Duration::from_secs(600);
const KEEP: Duration = Duration::from_secs(1800);

fn config() -> KeysConfig {
    let mut config = KeysConfig::default();
    (config.lease, config.keep) = (LEASE, KEEP);
    config
}

/// What is true over every store. `pass` lets time go by.
async fn contract<F: Future<Output = ()>>(keys: &Keys, pass: impl Fn(Duration) -> F) {
    // alphagov/pay-connector PR #4460, idempot-js PR #186: the loser of a race is told.
    let Begun::New(claim) = keys.begin("a", "race", b"x").await.unwrap() else { panic!() };
    let Begun::InProgress { left } = keys.begin("a", "race", b"x").await.unwrap() else { panic!() };
    assert!(left <= LEASE && left > Duration::ZERO, "{left:?}");
    // flexprice PR #2488: neither another request nor another tenant gets the answer.
    assert!(matches!(keys.begin("a", "race", b"y").await.unwrap(), Begun::Mismatch));
    for (scope, key) in [("b", "race"), ("a:race", "x"), ("a", "race:x")] {
        assert!(matches!(keys.begin(scope, key, b"x").await.unwrap(), Begun::New(_)), "{scope}");
    }
    claim.finish(Bytes::from("done")).await.unwrap();
    for _ in 0..2 {
        let Begun::Done(result) = keys.begin("a", "race", b"x").await.unwrap() else { panic!() };
        assert_eq!(result, "done");
    }
    assert!(matches!(keys.begin("a", "race", b"y").await.unwrap(), Begun::Mismatch));
    // What changed nothing frees the key.
    let Begun::New(claim) = keys.begin("a", "free", b"x").await.unwrap() else { panic!() };
    claim.release().await.unwrap();
    let Begun::New(slow) = keys.begin("a", "free", b"y").await.unwrap() else { panic!() };
    // Its owner is too slow: the next one is told that the effect may be there.
    pass(LEASE + Duration::from_millis(50)).await;
    assert!(matches!(keys.begin("a", "free", b"x").await.unwrap(), Begun::Mismatch));
    let Begun::Abandoned(next) = keys.begin("a", "free", b"y").await.unwrap() else { panic!() };
    assert!(matches!(slow.finish(Bytes::from("late")).await, Err(FinishError::Lost)));
    let left = keys.begin("a", "free", b"y").await.unwrap();
    assert!(matches!(left, Begun::InProgress { .. }), "{left:?}");
    next.finish(Bytes::new()).await.unwrap();
    let Begun::Done(result) = keys.begin("a", "free", b"y").await.unwrap() else { panic!() };
    assert!(result.is_empty());
    // What the second owner did not do the first one may have done.
    let Begun::New(_died) = keys.begin("a", "doubt", b"x").await.unwrap() else { panic!() };
    pass(LEASE + Duration::from_millis(50)).await;
    for _ in 0..2 {
        let begun = keys.begin("a", "doubt", b"x").await.unwrap();
        let Begun::Abandoned(next) = begun else { panic!("{begun:?}") };
        next.release().await.unwrap();
    }
    // A key is forgotten in the end, and new then; also one that was abandoned.
    let Begun::New(_gone) = keys.begin("a", "gone", b"x").await.unwrap() else { panic!() };
    pass(KEEP + Duration::from_millis(50)).await;
    assert!(matches!(keys.begin("a", "gone", b"x").await.unwrap(), Begun::New(_)));
    assert!(matches!(keys.begin("a", "free", b"other").await.unwrap(), Begun::New(_)));
    for (scope, key) in [("", "k"), ("s", ""), ("s", "a\0b"), (&*"x".repeat(256), "k")] {
        assert!(matches!(keys.begin(scope, key, b"").await, Err(BeginKeyError::Name)));
    }
    assert!(keys.begin("s", "k", &[0; 1025]).await.is_err());
    let Begun::New(claim) = keys.begin("s", "long", b"").await.unwrap() else { panic!() };
    let long = claim.finish(Bytes::from(vec![0; (256 << 10) + 1])).await;
    assert!(matches!(long, Err(FinishError::TooLong(_))));
}

/// Many at once, over the same few keys: each key has one owner.
async fn race(keys: &Keys) {
    let winners = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for attempt in 0..64 {
        let (keys, winners) = (keys.clone(), Arc::clone(&winners));
        tasks.spawn(async move {
            let key = format!("race{}", attempt % 4);
            match keys.begin("many", &key, b"").await.unwrap() {
                Begun::New(claim) => {
                    winners.fetch_add(1, Ordering::Relaxed);
                    claim.finish(Bytes::from(key)).await.unwrap();
                }
                Begun::InProgress { .. } => {}
                Begun::Done(result) => assert_eq!(result, key),
                other => panic!("{other:?}"),
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(winners.load(Ordering::Relaxed), 4);
}

/// A clock that the test sets.
#[derive(Clone, Default)]
struct Hand(Arc<AtomicU64>);

impl voussoir_txn::Clock for Hand {
    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Hand {
    fn pass(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_nanos()).unwrap(), Ordering::Relaxed);
    }
}

#[tokio::test]
async fn keys_in_memory_keep_the_contract() {
    let clock = Hand::default();
    let store = StoreKeys::open_with_clock(MemoryStore::new(), 1000, clock.clone()).await.unwrap();
    let keys = Keys::new(store, config()).unwrap();
    contract(&keys, async |time| clock.pass(time)).await;
    race(&keys).await;
}

#[cfg(feature = "journal")]
#[tokio::test]
async fn keys_in_a_journal_survive_a_restart() {
    use voussoir_journal::Journal;
    use voussoir_txn::store::JournalStore;
    let folder = std::env::temp_dir().join(format!("voussoir-keys-{}", std::process::id()));
    let clock = Hand::default();
    let journal = Journal::open(&folder, voussoir_journal::Config::default()).unwrap();
    let open = async |journal: &Journal| {
        let store = JournalStore::new(journal, "keys").unwrap();
        let store = StoreKeys::open_with_clock(store, 1000, clock.clone()).await.unwrap();
        Keys::new(store, config()).unwrap()
    };
    let keys = open(&journal).await;
    contract(&keys, async |time| clock.pass(time)).await;
    race(&keys).await;
    let Begun::New(done) = keys.begin("r", "done", b"x").await.unwrap() else { panic!() };
    done.finish(Bytes::from("kept")).await.unwrap();
    let Begun::New(died) = keys.begin("r", "died", b"x").await.unwrap() else { panic!() };
    let Begun::New(freed) = keys.begin("r", "freed", b"x").await.unwrap() else { panic!() };
    freed.release().await.unwrap();
    // As a process that ends: what it holds stays, and reaches the journal no more.
    journal.close().unwrap();
    let journal = Journal::open(&folder, voussoir_journal::Config::default()).unwrap();
    let next = open(&journal).await;
    let Begun::Done(result) = next.begin("r", "done", b"x").await.unwrap() else { panic!() };
    assert_eq!(result, "kept");
    assert!(matches!(next.begin("r", "died", b"x").await.unwrap(), Begun::InProgress { .. }));
    assert!(matches!(next.begin("r", "freed", b"x").await.unwrap(), Begun::New(_)));
    // The earlier process records nothing any more.
    assert!(matches!(died.finish(Bytes::new()).await, Err(FinishError::Store(_))));
    clock.pass(LEASE);
    assert!(matches!(next.begin("r", "died", b"x").await.unwrap(), Begun::Abandoned(_)));
    drop((keys, next));
    journal.close().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Keys that are forgotten make room; until then a full store claims no new key.
#[tokio::test]
async fn a_full_store_claims_no_new_key_until_some_are_forgotten() {
    let clock = Hand::default();
    let store = StoreKeys::open_with_clock(MemoryStore::new(), 2, clock.clone()).await.unwrap();
    let keys = Keys::new(store, config()).unwrap();
    for key in ["a", "b"] {
        let Begun::New(claim) = keys.begin("s", key, b"").await.unwrap() else { panic!() };
        claim.finish(Bytes::new()).await.unwrap();
    }
    assert!(matches!(keys.begin("s", "c", b"").await, Err(BeginKeyError::Store(_))));
    assert!(matches!(keys.begin("s", "a", b"").await.unwrap(), Begun::Done(_)));
    clock.pass(KEEP);
    assert!(matches!(keys.begin("s", "c", b"").await.unwrap(), Begun::New(_)));
}

/// A forgotten key leaves the store with the next claim, whatever was answered in between.
#[tokio::test]
async fn a_forgotten_key_leaves_the_store() {
    let (clock, records) = (Hand::default(), MemoryStore::new());
    let store = StoreKeys::open_with_clock(records.clone(), 2, clock.clone()).await;
    // The handle that opened it must stay the last one: the clone is opened at the end.
    let keys = Keys::new(store.unwrap(), config()).unwrap();
    for key in ["first", "second"] {
        let Begun::New(claim) = keys.begin("s", key, b"").await.unwrap() else { panic!() };
        claim.finish(Bytes::new()).await.unwrap();
        clock.pass(KEEP / 2);
    }
    // The first is forgotten, the second is not.
    assert!(matches!(keys.begin("s", "second", b"").await.unwrap(), Begun::Done(_)));
    assert!(matches!(keys.begin("s", "second", b"x").await.unwrap(), Begun::Mismatch));
    assert!(matches!(keys.begin("s", "third", b"").await.unwrap(), Begun::New(_)));
    assert!(matches!(keys.begin("s", "third", b"").await.unwrap(), Begun::InProgress { .. }));
    let left = records.open().await.unwrap().records;
    let mut left: Vec<&str> = left.iter().map(|record| &*record.saga).collect();
    left.sort_unstable();
    assert_eq!(left, ["1:s:second", "1:s:third"]);
}

/// A store whose first append after it was told to hang never ends.
struct Hangs(MemoryStore, Arc<std::sync::atomic::AtomicBool>);

#[voussoir_txn::async_trait]
impl SagaStore for Hangs {
    async fn open(&self) -> Result<Opened, StoreError> {
        self.0.open().await
    }

    async fn append(&self, records: Vec<Record>) -> Result<(), StoreError> {
        if self.1.swap(false, Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        self.0.append(records).await
    }
}

/// A store that takes nothing while it is full.
struct Fills {
    records: MemoryStore,
    /// No room, or a failure of which nobody knows what it left.
    refuses: Arc<Mutex<Option<StoreError>>>,
}

#[voussoir_txn::async_trait]
impl SagaStore for Fills {
    async fn open(&self) -> Result<Opened, StoreError> {
        self.records.open().await
    }

    async fn append(&self, records: Vec<Record>) -> Result<(), StoreError> {
        let refused = self.refuses.lock().unwrap().clone();
        if let Some(error) = refused {
            return Err(error);
        }
        self.records.append(records).await
    }
}

/// A key is taken by a claim that is in the store, or may be there, and by no other: what the claim
/// replaced stands again, also where its caller has gone.
#[tokio::test(start_paused = true)]
async fn a_claim_that_the_store_refuses_takes_no_key() {
    for is_dropped in [false, true] {
        let refuses: Arc<Mutex<Option<StoreError>>> = Arc::default();
        let store = Fills { records: MemoryStore::new(), refuses: Arc::clone(&refuses) };
        let clock = Hand::default();
        let store = StoreKeys::open_with_clock(store, 1000, clock.clone()).await.unwrap();
        let keys = Keys::new(store, config()).unwrap();
        let Begun::New(_died) = keys.begin("s", "died", b"x").await.unwrap() else { panic!() };
        clock.pass(LEASE);
        let full = StoreError::retryable("no room");
        *refuses.lock().unwrap() = Some(full);
        for key in ["new", "died"] {
            let claim = keys.begin("s", key, b"x");
            // The store is asked again for 5 s.
            let patience = Duration::from_secs(if is_dropped { 1 } else { 60 });
            match tokio::time::timeout(patience, claim).await {
                Ok(refused) => assert!(matches!(refused, Err(BeginKeyError::Store(_)))),
                Err(_) => assert!(is_dropped),
            }
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        *refuses.lock().unwrap() = None;
        let begun = keys.begin("s", "new", b"other").await.unwrap();
        assert!(matches!(begun, Begun::New(_)), "{is_dropped} {begun:?}");
        let begun = keys.begin("s", "died", b"x").await.unwrap();
        assert!(matches!(begun, Begun::Abandoned(_)), "{is_dropped} {begun:?}");
        *refuses.lock().unwrap() = Some(StoreError::new("who knows"));
        assert!(keys.begin("s", "unknown", b"x").await.is_err());
        *refuses.lock().unwrap() = None;
        let begun = keys.begin("s", "unknown", b"x").await.unwrap();
        assert!(matches!(begun, Begun::InProgress { .. }), "{is_dropped} {begun:?}");
    }
}

/// The result is in the store, and a retry is told of it.
#[tokio::test]
async fn a_result_whose_caller_has_gone_is_known() {
    let store = StoreKeys::open(MemoryStore::new(), 1000).await.unwrap();
    let keys = Keys::new(store, config()).unwrap();
    let Begun::New(claim) = keys.begin("s", "k", b"x").await.unwrap() else { panic!() };
    let mut finish = Box::pin(claim.finish(Bytes::from("done")));
    let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(finish.as_mut().poll(cx))).await;
    assert!(polled.is_pending());
    drop(finish);
    let ended = async {
        // Ends: the append ends.
        loop {
            match keys.begin("s", "k", b"x").await.unwrap() {
                Begun::Done(result) => return result,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    let result = tokio::time::timeout(Duration::from_secs(5), ended).await;
    assert_eq!(result.expect("the result is known"), "done");
}

/// The runtime whose task appends may end: in the middle of an append, or before the task began.
#[test]
fn a_runtime_that_ends_leaves_no_later_append_waiting() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for begins in [true, false] {
        let hangs: Arc<std::sync::atomic::AtomicBool> = Arc::default();
        let first = runtime();
        let store = Hangs(MemoryStore::new(), Arc::clone(&hangs));
        let store = first.block_on(StoreKeys::open(store, 1000)).unwrap();
        let keys = Keys::new(store, config()).unwrap();
        hangs.store(begins, Ordering::Relaxed);
        first.block_on(async {
            let mut claim = std::pin::pin!(keys.begin("s", "first", b""));
            // Polled once: the task that appends is there, and has not run.
            let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(claim.as_mut().poll(cx)));
            assert!(polled.await.is_pending());
            if begins {
                tokio::task::yield_now().await;
            }
        });
        drop(first);
        let begun = runtime().block_on(async {
            let claim = keys.begin("s", "second", b"");
            tokio::time::timeout(Duration::from_secs(5), claim).await
        });
        let begun = begun.expect("the second runtime appends").unwrap();
        assert!(matches!(begun, Begun::New(_)), "{begins} {begun:?}");
    }
}

/// Claims that wait together fit into a journal with small segments.
#[cfg(feature = "journal")]
#[tokio::test]
async fn claims_that_wait_together_fit_into_small_segments() {
    use voussoir_journal::{Journal, MemoryFiles};
    use voussoir_txn::store::JournalStore;
    let mut small = voussoir_journal::Config::default();
    small.segment_bytes = 64 << 10;
    let journal = Journal::open_with(Arc::new(MemoryFiles::new()), small).unwrap();
    let store = JournalStore::new(&journal, "keys").unwrap();
    let store = StoreKeys::open(store, 1000).await.unwrap();
    let keys = Keys::new(store, KeysConfig::default()).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..500 {
        let keys = keys.clone();
        tasks.spawn(async move {
            let Begun::New(claim) = keys.begin("s", &format!("k{number}"), b"").await? else {
                panic!("a new key")
            };
            claim.finish(Bytes::from(vec![0; 500])).await.map_err(|error| error.to_string())?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
}

#[test]
fn whatever_validates_works_and_nothing_else_does() {
    let edges = [Duration::ZERO, Duration::from_millis(1), Duration::from_secs(60), Duration::MAX];
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (mut accepted, mut rejected) = (0, 0);
    for lease in edges {
        for keep in edges.into_iter().chain([Duration::from_secs(100 * 365 * 86_400)]) {
            for bytes in [0, 64 << 10, 16 << 20, usize::MAX] {
                let mut config = KeysConfig::default();
                (config.lease, config.keep) = (lease, keep);
                (config.max_fingerprint_bytes, config.max_result_bytes) = (bytes, bytes);
                let valid = config.validate().is_ok();
                runtime.block_on(async {
                    let store = StoreKeys::open(MemoryStore::new(), usize::MAX).await.unwrap();
                    let keys = Keys::new(store, config);
                    assert_eq!(keys.is_ok(), valid);
                    let Ok(keys) = keys else { return };
                    let begun = keys.begin("s", "k", b"").await.unwrap();
                    let Begun::New(claim) = begun else { panic!("{begun:?}") };
                    claim.finish(Bytes::new()).await.unwrap();
                });
                if valid { accepted += 1 } else { rejected += 1 }
            }
        }
    }
    assert!(accepted > 5 && rejected > 20, "{accepted} {rejected}");
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs postgresql"]
async fn keys_in_postgresql_keep_the_contract() {
    let url = std::env::var("DATABASE_URL").expect("DATABASE_URL is set by `cargo xtask test`");
    let config_of: tokio_postgres::Config = url.parse().unwrap();
    let schema = format!("keys_{}", std::process::id());
    let store = PostgresKeys::open(config_of.clone(), &schema).await.unwrap();
    let keys = Keys::new(store.clone(), config()).unwrap();
    // The server's clock goes as it likes: time passes in the table.
    let mover = voussoir_txn::postgres::Connect::connect(&config_of).await.unwrap();
    let pass = async |time: Duration| {
        let earlier = format!(
            "UPDATE {schema}.voussoir_keys SET lease_until = lease_until - \
             make_interval(secs => $1), forgotten_at = forgotten_at - make_interval(secs => $1)"
        );
        mover.execute(&earlier, &[&time.as_secs_f64()]).await.unwrap();
    };
    contract(&keys, &pass).await;
    race(&keys).await;
    pass(KEEP + Duration::from_millis(50)).await;
    assert_eq!(store.forget_expired(3).await.unwrap(), 3);
    assert!(store.forget_expired(1000).await.unwrap() > 3);
    assert_eq!(store.forget_expired(1000).await.unwrap(), 0);
    // A connection that the server has ended is opened again.
    let client = voussoir_txn::postgres::Connect::connect(&config_of).await.unwrap();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE $1 \
               AND pid <> pg_backend_pid()";
    client.execute(end, &[&format!("%{schema}%")]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(matches!(keys.begin("after", "k", b"").await.unwrap(), Begun::New(_)));
    client.batch_execute(&format!("DROP SCHEMA {schema} CASCADE")).await.unwrap();
}

/// A database that hands out connections to a server, counted, or never answers.
#[cfg(feature = "postgres")]
struct Counted(Option<tokio_postgres::Config>, Arc<AtomicU64>);

#[cfg(feature = "postgres")]
#[voussoir_txn::async_trait]
impl voussoir_txn::postgres::Connect for Counted {
    async fn connect(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        self.1.fetch_add(1, Ordering::Relaxed);
        match &self.0 {
            Some(config) => voussoir_txn::postgres::Connect::connect(config).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(feature = "postgres")]
#[tokio::test(start_paused = true)]
async fn a_database_that_never_answers_is_an_error() {
    let open = PostgresKeys::open(Counted(None, Arc::default()), "public");
    let opened = tokio::time::timeout(Duration::from_secs(60), open).await;
    let error = opened.expect("an answer").unwrap_err();
    assert!(error.to_string().contains("within 10s"), "{error}");
}

/// A statement that is not answered, here for a lock on the table, ends with its time; the next one
/// has a connection of its own.
#[cfg(feature = "postgres")]
#[tokio::test]
#[ignore = "needs postgresql"]
async fn a_statement_that_is_not_answered_ends_with_its_time() {
    let url = std::env::var("DATABASE_URL").expect("DATABASE_URL is set by `cargo xtask test`");
    let server: tokio_postgres::Config = url.parse().unwrap();
    let schema = format!("keys_hang_{}", std::process::id());
    let connected: Arc<AtomicU64> = Arc::default();
    let counted = Counted(Some(server.clone()), Arc::clone(&connected));
    let store = PostgresKeys::open(counted, &schema).await.unwrap();
    let keys = Keys::new(store.clone(), config()).unwrap();
    let mut client = voussoir_txn::postgres::Connect::connect(&server).await.unwrap();
    let Begun::New(claim) = keys.begin("s", "held", b"").await.unwrap() else { panic!() };
    let lock = client.transaction().await.unwrap();
    lock.batch_execute(&format!("LOCK TABLE {schema}.voussoir_keys")).await.unwrap();
    // With nothing to do but to wait for the server, tokio's time jumps to the limit.
    tokio::time::pause();
    let begun = tokio::time::timeout(Duration::from_secs(60), keys.begin("s", "k", b"")).await;
    assert!(matches!(begun, Ok(Err(BeginKeyError::Store(_)))), "{begun:?}");
    tokio::time::resume();
    let others = connected.load(Ordering::Relaxed);
    assert_eq!(others, 1);
    lock.rollback().await.unwrap();
    claim.finish(Bytes::new()).await.unwrap();
    assert_eq!(connected.load(Ordering::Relaxed), 2);
    assert!(matches!(keys.begin("s", "held", b"").await.unwrap(), Begun::Done(_)));
    client.batch_execute(&format!("DROP SCHEMA {schema} CASCADE")).await.unwrap();
}
