//! The lock service in a real etcd.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::RwLock;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use voussoir_lock::etcd::{Channel, Endpoint, EtcdConfig, EtcdLocks};
use voussoir_lock::testing::{Capabilities, conformance};
use voussoir_lock::*;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// Held to write by the test that counts what is written to etcd, and to read by all others.
static QUIET: RwLock<()> = RwLock::const_new(());

fn channel() -> Channel {
    let url = std::env::var("ETCD_URL").expect("ETCD_URL is set by `cargo xtask test`");
    Endpoint::from_shared(url).expect("an address").connect_lazy()
}

fn prefix(test: &str) -> String {
    format!("test {test} {}/", std::process::id())
}

/// A client of locks of a test's own.
fn locks(test: &str) -> Arc<EtcdLocks> {
    let mut config = EtcdConfig::default();
    config.prefix = prefix(test);
    EtcdLocks::new(channel(), config).expect("a valid configuration")
}

async fn open(test: &str, ttl: Duration) -> Session {
    let mut config = LeaseConfig::default();
    config.ttl = ttl;
    Session::open(locks(test), config, 10 * SECOND).await.expect("the service works")
}

fn by() -> Instant {
    Instant::now() + 5 * SECOND
}

fn ask(session: u64, request: u64, name: &'static str) -> Acquisition {
    Acquisition {
        session,
        request,
        floor: 1,
        name: name.into(),
        mode: Mode::Exclusive,
        wait: true,
        lock_delay: Duration::ZERO,
    }
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn etcd_conforms() {
    let _beside = QUIET.read().await;
    let mut capabilities = Capabilities::default();
    capabilities.has_modes = false;
    capabilities.has_lock_delay = false;
    // Its leases have about two seconds at least, and end within half a second more.
    capabilities.ttl = 2 * SECOND;
    capabilities.slack = 3 * SECOND;
    conformance(async || locks("conforms"), &capabilities).await.assert_passed();
}

/// Regression corpus 47 and 49: whoever has no session gets no place, and does not wait.
#[tokio::test]
#[ignore = "needs etcd"]
async fn a_revoked_lease_gets_no_place_and_ends_a_wait() {
    let _beside = QUIET.read().await;
    let service = locks("revoked");
    let session = service.open_session(60 * SECOND, by()).await.expect("it opens");
    let other = service.open_session(60 * SECOND, by()).await.expect("it opens");
    service.acquire(&ask(other, 1, "a"), by()).await.expect("it is free");
    let waiting = {
        let service = Arc::clone(&service);
        let late = Instant::now() + 60 * SECOND;
        tokio::spawn(async move { service.acquire(&ask(session, 1, "a"), late).await })
    };
    let name = Bytes::from_static(b"a");
    let view = || service.view(&name, None, by());
    // Ends: it waits.
    while view().await.expect("a view").waiters < 1 {
        sleep(5 * MS).await;
    }
    service.close_session(session, by()).await.expect("it ends");
    let ended = timeout(5 * SECOND, waiting).await.expect("the wait ends").expect("no panic");
    assert_eq!(ended, Err(Rejection::NoSession.into()));
    assert_eq!(view().await.expect("a view").waiters, 0);
    for acquisition in [ask(session, 1, "a"), ask(session, 2, "b")] {
        let late = service.acquire(&acquisition, by()).await;
        assert_eq!(late, Err(Rejection::NoSession.into()));
    }
    assert_eq!(view().await.expect("a view").holders[0].session, other);
}

/// Sessions of which the first holds a lock and the others wait for it, in their order.
async fn queue_up(
    service: &Arc<EtcdLocks>,
    count: usize,
) -> (Vec<u64>, Vec<JoinHandle<Result<Acquired, ServiceError>>>) {
    let mut sessions = Vec::new();
    for _ in 0..count {
        sessions.push(service.open_session(60 * SECOND, by()).await.expect("it opens"));
    }
    service.acquire(&ask(sessions[0], 1, "a"), by()).await.expect("it is free");
    let mut waiting = Vec::new();
    for (at, session) in sessions.iter().copied().enumerate().skip(1) {
        let task = Arc::clone(service);
        let late = Instant::now() + 60 * SECOND;
        waiting.push(tokio::spawn(async move { task.acquire(&ask(session, 1, "a"), late).await }));
        // Ends: it waits.
        while service.view(&"a".into(), None, by()).await.expect("a view").waiters < at {
            sleep(5 * MS).await;
        }
    }
    (sessions, waiting)
}

/// Regression corpus 50: a release that is repeated, or meets the acquisition on its way, leaves
/// no key; and one wake for each release, as each watches the one before it.
#[tokio::test]
#[ignore = "needs etcd"]
async fn waiters_leave_and_are_served_in_order() {
    let _beside = QUIET.read().await;
    let service = locks("order");
    let (sessions, waiting) = queue_up(&service, 5).await;
    // The second in the queue leaves: nobody is granted anything for it.
    for _ in 0..2 {
        service.release(sessions[2], 1, by()).await.expect("it leaves");
    }
    sleep(200 * MS).await;
    assert!(waiting.iter().enumerate().all(|(at, task)| at == 1 || !task.is_finished()));
    let mut latest = 0;
    for (at, task) in waiting.into_iter().enumerate() {
        if at == 1 {
            let ended = timeout(5 * SECOND, task).await.expect("it ends").expect("no panic");
            assert_eq!(ended, Err(Rejection::StaleRequest.into()));
            continue;
        }
        let before = if at == 2 { 1 } else { at };
        service.release(sessions[before], 1, by()).await.expect("it is released");
        let granted = timeout(SECOND, task).await.expect("it is woken").expect("no panic");
        let Ok(Acquired::Granted { token }) = granted else { panic!("{granted:?}") };
        assert!(token > latest);
        latest = token;
    }
    for session in sessions {
        service.close_session(session, by()).await.expect("it ends");
    }
    assert_eq!(service.view(&"a".into(), None, by()).await, Ok(LockView::default()));
}

/// Regression corpus 48: what two who believe to hold the lock write is ordered by revisions.
#[tokio::test]
#[ignore = "needs etcd"]
async fn tokens_are_revisions_which_no_deletion_resets() {
    let _beside = QUIET.read().await;
    let mut latest = 0;
    for _ in 0..3 {
        let session = open("tokens", 2 * SECOND).await;
        let guard = session.lock("a").within(5 * SECOND).await.expect("it is free");
        assert!(guard.token().get() > latest);
        latest = guard.token().get();
        assert_eq!(guard.release(SECOND).await, Released::Released);
        session.close(SECOND).await.expect("it ends");
        let view = locks("tokens").view(&"a".into(), None, by()).await;
        assert_eq!(view, Ok(LockView::default()), "the lock is deleted");
    }
}

/// Asks etcd by one of its calls, in messages of the test's own.
async fn call<Q, A>(path: &'static str, ask: Q) -> A
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel());
    grpc.ready().await.expect("it runs");
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    grpc.unary(tonic::Request::new(ask), path, codec).await.expect("an answer").into_inner()
}

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(uint64, tag = "5")]
    raft_index: u64,
}

/// How many entries the log of etcd's Raft group has had.
async fn entries() -> u64 {
    call::<_, Status>("/etcdserverpb.Maintenance/Status", Nothing {}).await.raft_index
}

/// Whoever waits leaves the log of etcd alone, which renewals of everybody go by: ten thousand that
/// wait would write five thousand entries a second.
#[tokio::test]
#[ignore = "needs etcd"]
async fn those_that_wait_write_nothing() {
    let _alone = QUIET.write().await;
    let service = locks("quiet");
    let (sessions, waiting) = queue_up(&service, 20).await;
    let before = entries().await;
    sleep(5 * SECOND).await;
    let written = entries().await - before;
    // What etcd writes for itself.
    assert!(written < 5, "{written} entries while 19 wait");
    for (at, task) in waiting.into_iter().enumerate() {
        service.release(sessions[at], 1, by()).await.expect("it is released");
        let granted = timeout(SECOND, task).await.expect("it is woken").expect("no panic");
        assert!(matches!(granted, Ok(Acquired::Granted { .. })), "{granted:?}");
    }
    for session in sessions {
        service.close_session(session, by()).await.expect("it ends");
    }
}

/// A counting range, of etcd's `rpc.proto`.
#[derive(Clone, PartialEq, prost::Message)]
struct Range {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    end: Vec<u8>,
    #[prost(bool, tag = "9")]
    count_only: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Counted {
    #[prost(int64, tag = "4")]
    count: i64,
}

/// How many keys the locks of a test have, whatever they are for.
async fn keys(test: &str) -> i64 {
    let key = prefix(test).into_bytes();
    let mut end = key.clone();
    *end.last_mut().expect("a prefix") += 1;
    let ask = Range { key, end, count_only: true };
    call::<_, Counted>("/etcdserverpb.KV/Range", ask).await.count
}

/// A program that tries a held lock every few seconds, for months.
#[tokio::test]
#[ignore = "needs etcd"]
async fn tries_on_a_held_lock_leave_no_keys() {
    let _beside = QUIET.read().await;
    let (holder, session) = (open("tries", 60 * SECOND).await, open("tries", 60 * SECOND).await);
    let held = holder.lock("a").within(5 * SECOND).await.expect("it is free");
    let before = keys("tries").await;
    for _ in 0..300 {
        let tried = session.lock("a").try_within(5 * SECOND).await.expect("an answer");
        assert!(tried.is_none(), "two hold the lock");
    }
    let after = keys("tries").await;
    assert!(after <= before + 2, "{before} keys before, {after} after 300 tries");
    assert_eq!(held.release(5 * SECOND).await, Released::Released);
    for session in [holder, session] {
        session.close(5 * SECOND).await.expect("it ends");
    }
    assert_eq!(keys("tries").await, 0);
}
