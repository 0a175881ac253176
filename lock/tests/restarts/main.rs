//! PostgreSQL, etcd and Redis that are killed and started again while they are used: no lock is
//! doubled, none is lost without a word, and what may or may not have happened is told as unknown.
#![cfg(target_os = "linux")]

mod servers;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use voussoir_lock::etcd::{Endpoint, EtcdConfig, EtcdLocks};
use voussoir_lock::postgres::{PostgresConfig, PostgresLocks};
use voussoir_lock::redis::{RedisConfig, RedisLocks};
use voussoir_lock::testing::{Capabilities, restart_conformance};
use voussoir_lock::*;

use servers::Server;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const TTL: Duration = Duration::from_secs(60);

fn postgres(port: u16) -> Arc<PostgresLocks> {
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    let database: tokio_postgres::Config = url.parse().expect("an address");
    PostgresLocks::start(Arc::new(database), PostgresConfig::default()).expect("it is valid")
}

fn etcd(url: String) -> Arc<EtcdLocks> {
    let channel = Endpoint::from_shared(url).expect("an address").connect_lazy();
    EtcdLocks::new(channel, EtcdConfig::default()).expect("it is valid")
}

fn redis(port: u16) -> Arc<RedisLocks> {
    let client = ::redis::Client::open(format!("redis://127.0.0.1:{port}")).expect("an address");
    RedisLocks::new(client, RedisConfig::default()).expect("it is valid")
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

#[tokio::test]
#[ignore = "needs postgresql"]
async fn locks_outlive_restarts_of_postgresql() {
    let mut server = Server::postgres().await;
    let (port, capabilities) = (server.port, Capabilities::default());
    let connect = async || postgres(port);
    restart_conformance(connect, &mut server, &capabilities).await.assert_passed();
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn locks_outlive_restarts_of_etcd() {
    let mut server = Server::etcd().await;
    let url = server.url();
    let mut capabilities = Capabilities::default();
    (capabilities.has_modes, capabilities.has_lock_delay) = (false, false);
    let connect = async || etcd(url.clone());
    restart_conformance(connect, &mut server, &capabilities).await.assert_passed();
}

/// With an append-only file that is synced before each answer; as Redis comes, it loses the latest
/// grants with a crash, which is why its locks are [`Advisory`].
#[tokio::test]
async fn locks_outlive_restarts_of_redis() {
    let Some(mut server) = Server::redis().await else { return };
    let port = server.port;
    let mut capabilities = Capabilities::default();
    (capabilities.grows_tokens, capabilities.serves_in_order) = (false, false);
    (capabilities.has_modes, capabilities.has_lock_delay) = (false, false);
    capabilities.keeps_values = false;
    let connect = async || redis(port);
    restart_conformance(connect, &mut server, &capabilities).await.assert_passed();
}

/// The server is killed while it works on a call: whether it was done is unknown, and it is done
/// once when it is repeated.
#[tokio::test]
#[ignore = "needs postgresql"]
async fn a_call_of_postgresql_that_is_cut_off_is_unknown() {
    let mut server = Server::postgres().await;
    let service = postgres(server.port);
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
