//! PostgreSQL and etcd that are killed and started again while they are used: no lock is doubled,
//! none is lost without a word, and what may or may not have happened is told as unknown.
#![cfg(target_os = "linux")]

mod servers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use voussoir_lock::etcd::{Endpoint, EtcdConfig, EtcdLocks};
use voussoir_lock::postgres::{PostgresConfig, PostgresLocks};
use voussoir_lock::*;
use voussoir_sim::Situations;

use servers::Server;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
/// Longer than all restarts together: sessions live through them, whether or not a renewal meets
/// one of the short times between.
const TTL: Duration = Duration::from_secs(60);

fn postgres(server: &Server) -> Arc<PostgresLocks> {
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", server.port);
    let database: tokio_postgres::Config = url.parse().expect("an address");
    PostgresLocks::start(Arc::new(database), PostgresConfig::default()).expect("it is valid")
}

fn etcd(server: &Server) -> Arc<EtcdLocks> {
    let channel = Endpoint::from_shared(server.url()).expect("an address").connect_lazy();
    EtcdLocks::new(channel, EtcdConfig::default()).expect("it is valid")
}

async fn open<S: LockService<Grants = Fenced>>(service: Arc<S>) -> Session {
    let mut config = LeaseConfig::default();
    config.ttl = TTL;
    Session::open(service, config, 20 * SECOND).await.expect("the service works")
}

/// Repeats what the service says may be repeated, as a [`Session`] does, for raw calls.
async fn patiently<T>(
    mut call: impl AsyncFnMut(Instant) -> Result<T, ServiceError>,
) -> Result<T, ServiceError> {
    let by = Instant::now() + 20 * SECOND;
    // Ends: the deadline passes.
    loop {
        let answer = call(by).await;
        let is_retryable = answer.as_ref().is_err_and(ServiceError::is_retryable);
        if !is_retryable || Instant::now() >= by {
            return answer;
        }
        sleep(50 * MS).await;
    }
}

static SITUATIONS: [&str; 3] =
    ["a release that was confirmed", "a release that is unknown", "a service that is not reached"];

/// What those share that take turns at one lock.
struct Turns {
    /// The session that is in its critical section; 0 for none.
    holder: AtomicU64,
    /// The latest token.
    latest: AtomicU64,
    is_over: AtomicBool,
    seen: Situations,
}

impl Turns {
    /// Takes turns, each with a critical section that would see another one.
    async fn take(&self, session: &Session) {
        let id = session.id();
        // Ends: it is over.
        while !self.is_over.load(SeqCst) {
            let guard = match session.lock("turns").within(300 * MS).await {
                Ok(guard) => guard,
                Err(LockError::TimedOut) => continue,
                Err(LockError::Unavailable(_)) => {
                    self.seen.reached("a service that is not reached");
                    continue;
                }
                Err(error) => panic!("the session lives on: {error}"),
            };
            assert_eq!(self.holder.swap(id, SeqCst), 0, "two hold the lock");
            let before = self.latest.swap(guard.token().get(), SeqCst);
            assert!(guard.token().get() > before, "{:?} after {before}", guard.token());
            sleep(20 * MS).await;
            guard.permit().expect("the session lives on");
            assert_eq!(self.holder.swap(0, SeqCst), id, "two hold the lock");
            match guard.release(300 * MS).await {
                Released::Released => self.seen.reached("a release that was confirmed"),
                Released::Unknown(_) => self.seen.reached("a release that is unknown"),
                other => panic!("the session lives on: {other:?}"),
            }
        }
    }

    /// Waits for one more turn.
    async fn one_more(&self) {
        let before = self.latest.load(SeqCst);
        let more = async {
            // Ends: a turn is taken.
            while self.latest.load(SeqCst) == before {
                sleep(5 * MS).await;
            }
        };
        timeout(60 * SECOND, more).await.expect("turns are taken");
    }
}

/// Holders, those that wait, and those that take turns, while the server is killed and started
/// again three times.
async fn locks_outlive<S: LockService<Grants = Fenced>>(
    mut server: Server,
    connect: impl Fn(&Server) -> Arc<S>,
) {
    let (one, two) = (open(connect(&server)).await, open(connect(&server)).await);
    let held = one.lock("held").within(5 * SECOND).await.expect("it is free");
    let other = two.clone();
    let waiting = tokio::spawn(async move { other.lock("held").within(120 * SECOND).await });
    let service = connect(&server);
    let name = Bytes::from_static(b"held");
    let view =
        async || patiently(async |by| service.view(&name, None, by).await).await.expect("a view");
    // Ends: it waits.
    while view().await.waiters < 1 {
        sleep(5 * MS).await;
    }
    let turns = Arc::new(Turns {
        holder: AtomicU64::new(0),
        latest: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
        seen: Situations::new(&SITUATIONS),
    });
    let mut takers = JoinSet::new();
    for _ in 0..4 {
        let (session, turns) = (open(connect(&server)).await, Arc::clone(&turns));
        takers.spawn(async move { turns.take(&session).await });
    }
    for number in 0..3 {
        let mine = one.lock(format!("mine {number}")).within(5 * SECOND).await.expect("it is free");
        turns.one_more().await;
        server.kill();
        // Nobody can have heard of this release, and its holder is told so.
        let released = mine.release(100 * MS).await;
        assert!(matches!(released, Released::Unknown(_)), "{released:?}");
        turns.seen.reached("a release that is unknown");
        // Longer than turns wait.
        sleep(SECOND).await;
        server.start().await;
        // What is held is held, and what is unknown comes free by itself.
        let seen = view().await;
        assert_eq!(seen.holders.len(), 1, "{seen:?}");
        assert_eq!((seen.holders[0].session, seen.waiters), (one.id(), 1), "{seen:?}");
        assert_eq!(seen.holders[0].token, held.token().get());
        held.permit().expect("the session lives on");
        let free = two.lock(format!("mine {number}")).within(20 * SECOND).await;
        drop(free.expect("it is released in the background"));
    }
    turns.one_more().await;
    turns.is_over.store(true, SeqCst);
    while let Some(taker) = takers.join_next().await {
        taker.expect("no panic");
    }
    let first = held.token();
    held.release(10 * SECOND).await;
    let next = timeout(20 * SECOND, waiting).await.expect("it is woken").expect("no panic");
    assert!(next.expect("its turn has come").token() > first);
    turns.seen.assert_all_reached();
}

#[tokio::test]
#[ignore = "needs postgresql"]
async fn locks_outlive_restarts_of_postgresql() {
    locks_outlive(Server::postgres().await, postgres).await;
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn locks_outlive_restarts_of_etcd() {
    locks_outlive(Server::etcd().await, etcd).await;
}

/// The server is killed while it works on a call: whether it was done is unknown, and it is done
/// once when it is repeated.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn a_call_of_postgresql_that_is_cut_off_is_unknown() {
    let mut server = Server::postgres().await;
    let service = postgres(&server);
    let by = || Instant::now() + 20 * SECOND;
    // It may be starting still.
    let opened = patiently(async |by| service.open_session(TTL, by).await).await;
    let session = opened.expect("it opens");
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", server.port);
    let admin = async || {
        let (client, connection) =
            tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("it runs");
        tokio::spawn(connection);
        client
    };
    let (locking, looking) = (admin().await, admin().await);
    let lock = "BEGIN; LOCK TABLE voussoir_lock.requests IN ACCESS EXCLUSIVE MODE";
    locking.batch_execute(lock).await.expect("it is locked");
    let asked = Acquisition {
        session,
        request: 1,
        floor: 1,
        name: "a".into(),
        mode: Mode::Exclusive,
        wait: true,
        lock_delay: Duration::ZERO,
    };
    let calling = {
        let (service, asked) = (Arc::clone(&service), asked.clone());
        tokio::spawn(async move { service.acquire(&asked, by()).await })
    };
    let works = "SELECT count(*) FROM pg_stat_activity \
                 WHERE wait_event_type = 'Lock' AND query LIKE '%acquire(%'";
    // Ends: the server works on it.
    while looking.query_one(works, &[]).await.expect("an answer").get::<_, i64>(0) == 0 {
        sleep(5 * MS).await;
    }
    server.kill();
    let cut = timeout(10 * SECOND, calling).await.expect("it is told").expect("no panic");
    assert_eq!(cut.as_ref().map_err(ServiceError::outcome), Err(Outcome::Unknown), "{cut:?}");
    server.start().await;
    let again = async || patiently(async |by| service.acquire(&asked, by).await).await;
    let granted = again().await.expect("it is repeated");
    assert_eq!(again().await, Ok(granted), "it is done once");
}
