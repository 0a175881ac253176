//! Advisory locks in a real Redis, which is killed, loses its data, and evicts keys.
//!
//! Needs `redis-server` on `PATH` or in `VOUSSOIR_REDIS_SERVER`; else says what it left out.

#[path = "support/relay.rs"]
mod relay;

use std::sync::Arc;
use std::time::Duration;

use test_support::RedisServer;
use tokio::time::{sleep, timeout};
use voussoir_lock::redis::{MAX_HELD, RedisConfig, RedisLocks};
use voussoir_lock::testing::{Capabilities, conformance};
use voussoir_lock::*;

const SECOND: Duration = Duration::from_secs(1);

fn locks(url: &str) -> Arc<RedisLocks> {
    let client = ::redis::Client::open(url).expect("an address");
    RedisLocks::new(client, RedisConfig::default()).expect("a valid configuration")
}

async fn open(url: &str) -> Session<Advisory> {
    open_for(SECOND, url).await
}

async fn open_for(ttl: Duration, url: &str) -> Session<Advisory> {
    let mut config = LeaseConfig::default();
    config.ttl = ttl;
    Session::open(locks(url), config, 5 * SECOND).await.expect("the service works")
}

#[tokio::test]
async fn redis_conforms() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let mut capabilities = Capabilities::default();
    (capabilities.ttl, capabilities.slack) = (2 * SECOND, 2 * SECOND);
    capabilities.grows_tokens = false;
    capabilities.serves_in_order = false;
    capabilities.has_modes = false;
    capabilities.has_lock_delay = false;
    capabilities.keeps_values = false;
    conformance(async || locks(&server.url()), &capabilities).await.assert_passed();
}

/// Regression corpus 60: only who holds a lock deletes it.
#[tokio::test]
async fn a_late_release_deletes_no_lock_of_another() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let service = locks(&server.url());
    let by = || Instant::now() + 5 * SECOND;
    let ask = |session, request| Acquisition {
        session,
        request,
        floor: 1,
        name: "a".into(),
        mode: Mode::Exclusive,
        wait: true,
        lock_delay: Duration::ZERO,
    };
    let old = service.open_session(2 * SECOND, by()).await.expect("it opens");
    service.acquire(&ask(old, 1), by()).await.expect("it is free");
    let new = service.open_session(60 * SECOND, by()).await.expect("it opens");
    let granted = service.acquire(&ask(new, 1), by()).await;
    assert!(matches!(granted, Ok(Acquired::Granted { .. })), "{granted:?}");
    let _ = service.release(old, 1, by()).await;
    service.close_session(old, by()).await.expect("it has ended");
    let holder = async || {
        let view = service.view(&"a".into(), None, by()).await.expect("a view");
        view.holders.first().map(|hold| hold.session)
    };
    assert_eq!(holder().await, Some(new));
    // Of a session that lives, and whose lock has vanished.
    let client = ::redis::Client::open(server.url()).expect("an address");
    let mut connection = client.get_multiplexed_async_connection().await.expect("it runs");
    let key = "voussoir:lock:lock:a";
    let deleted: u64 = ::redis::cmd("DEL").arg(key).query_async(&mut connection).await.unwrap();
    assert_eq!(deleted, 1, "the key has another name");
    let third = service.open_session(60 * SECOND, by()).await.expect("it opens");
    service.acquire(&ask(third, 1), by()).await.expect("nobody holds it");
    service.release(new, 1, by()).await.expect("it has ended");
    assert_eq!(holder().await, Some(third));
    service.acquire(&ask(new, 2), Instant::now() + SECOND / 10).await.expect("it waits");
    service.close_session(new, by()).await.expect("it ends");
    assert_eq!(holder().await, Some(third));
}

/// Regression corpus 56: a lock that vanishes is a session that is lost, and its holder is told.
#[tokio::test]
async fn a_vanished_lock_is_a_lost_session() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let session = open(&server.url()).await;
    let guard = session.lock("a").within(SECOND).await.expect("it is free");
    let kept = session.lock("b").within(SECOND).await.expect("it is free");
    let client = ::redis::Client::open(server.url()).expect("an address");
    let mut connection = client.get_multiplexed_async_connection().await.expect("it runs");
    let deleted: u64 =
        ::redis::cmd("DEL").arg("voussoir:lock:lock:a").query_async(&mut connection).await.unwrap();
    assert_eq!(deleted, 1, "the key has another name");
    timeout(SECOND, session.lost()).await.expect("the next renewal tells it");
    guard.permit().expect_err("others may hold it");
    kept.permit().expect_err("the session is lost as a whole");
    // Another way to learn it: the acquisition is asked for again.
    let service = locks(&server.url());
    let by = Instant::now() + 5 * SECOND;
    let session = service.open_session(60 * SECOND, by).await.expect("it opens");
    let ask = Acquisition {
        session,
        request: 1,
        floor: 1,
        name: "c".into(),
        mode: Mode::Exclusive,
        wait: true,
        lock_delay: Duration::ZERO,
    };
    service.acquire(&ask, by).await.expect("it is free");
    let _: u64 =
        ::redis::cmd("DEL").arg("voussoir:lock:lock:c").query_async(&mut connection).await.unwrap();
    assert_eq!(service.acquire(&ask, by).await, Err(Rejection::NoSession.into()));
}

/// What Redis cannot give: after it has lost its data two hold a lock for as long as the first is
/// not told. That is why its grants are advisory.
#[tokio::test]
async fn data_that_is_lost_ends_the_sessions() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let session = open(&server.url()).await;
    let guard = session.lock("a").within(SECOND).await.expect("it is free");
    let client = ::redis::Client::open(server.url()).expect("an address");
    let mut connection = client.get_multiplexed_async_connection().await.expect("it runs");
    let _: () = ::redis::cmd("FLUSHALL").query_async(&mut connection).await.unwrap();
    let _: () = ::redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut connection).await.unwrap();
    let other = open(&server.url()).await;
    let _second = other.lock("a").within(SECOND).await.expect("nobody holds it, as Redis knows");
    timeout(SECOND, session.lost()).await.expect("the next renewal tells it");
    guard.permit().expect_err("another holds it");
    sleep(2 * SECOND).await;
    other.check().expect("it is renewed");
}

/// The server lost its power, or a firewall forgot the flow: nobody says that the connection is
/// gone.
#[tokio::test]
async fn a_silent_connection_costs_no_session() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let relay = relay::Relay::start(([127, 0, 0, 1], server.port()).into()).await;
    let mut config = LeaseConfig::default();
    config.ttl = 6 * SECOND;
    let service = locks(&format!("redis://{}", relay.address));
    let session = Session::open(service, config, 5 * SECOND).await.expect("the service works");
    let guard = session.lock("a").within(SECOND).await.expect("it is free");
    for name in ["b", "c"] {
        relay.forget();
        let further = session.lock(name).within(20 * SECOND).await.expect("by another connection");
        assert_eq!(further.release(SECOND).await, Released::Released);
        // One time to live, which a lost connection may take a part of.
        sleep(6 * SECOND).await;
        guard.permit().expect("it is renewed by another connection");
    }
    assert_eq!(guard.release(SECOND).await, Released::Released);
}

/// A limit is a typed answer, and a renewal goes through as many locks as a session may hold.
#[tokio::test]
async fn a_session_holds_so_many_locks_and_renews_them_all() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let ttl = 6 * SECOND;
    let session = open_for(ttl, &server.url()).await;
    let mut guards = Vec::new();
    let refused = loop {
        let name = format!("lock {}", guards.len());
        match session.lock(name).within(ttl).await {
            Ok(guard) => guards.push(guard),
            Err(error) => break error,
        }
        assert!(guards.len() <= MAX_HELD, "no limit");
    };
    assert_eq!(refused, LockError::Rejected(Rejection::TooManyRequests));
    assert!(guards.len() > MAX_HELD - 5, "{} locks", guards.len());
    sleep(2 * ttl).await;
    for guard in &guards {
        guard.permit().expect("it is renewed");
    }
    let other = open(&server.url()).await;
    for number in [0, 500, guards.len() - 1] {
        let name = format!("lock {number}");
        assert!(other.lock(name).try_within(ttl).await.expect("an answer").is_none());
    }
}
