//! What must stay true of the public types: threads, object safety, errors.

use std::sync::Arc;

use voussoir_lock::ids::*;
use voussoir_lock::*;

const fn is_send_sync<T: Send + Sync>() {}

#[cfg(all(feature = "net", feature = "raft"))]
const _: () = {
    is_send_sync::<net::LockServer>();
    is_send_sync::<net::NetLocks>();
    is_send_sync::<raft::LockMachine>();
    is_send_sync::<raft::RaftLocks>();
};

#[cfg(all(feature = "etcd", feature = "postgres", feature = "redis"))]
const _: () = {
    is_send_sync::<etcd::EtcdLocks>();
    is_send_sync::<postgres::PostgresLocks>();
    is_send_sync::<postgres::PostgresFence>();
    is_send_sync::<redis::RedisLocks>();
};

const _: () = {
    is_send_sync::<Fence<u64>>();
    is_send_sync::<FencingToken>();
    is_send_sync::<Election>();
    is_send_sync::<Guard<Advisory>>();
    is_send_sync::<Leadership>();
    is_send_sync::<Lease>();
    is_send_sync::<MemoryLocks>();
    is_send_sync::<Observer>();
    is_send_sync::<Permit<'static>>();
    is_send_sync::<Replica>();
    is_send_sync::<Session>();
    is_send_sync::<LeaseConfig>();
    is_send_sync::<MemoryNumbers>();
    is_send_sync::<core::Leases>();
    is_send_sync::<core::Table>();
    is_send_sync::<ShortCodes>();
    is_send_sync::<Snowflake>();
    is_send_sync::<SnowflakeConfig>();
    is_send_sync::<UuidV7>();
    is_send_sync::<WorkerLease>();
    is_send_sync::<WorkerWindow>();
};

#[tokio::test]
async fn seams_are_object_safe() {
    let numbers: Arc<dyn WorkerNumbers> = Arc::new(MemoryNumbers::new());
    assert_eq!(numbers.acquire(1).await.expect("it is free").epoch, 1);
    let locks: Arc<dyn LockService<Grants = Fenced>> = MemoryLocks::start();
    let by = Instant::now() + std::time::Duration::from_secs(1);
    assert_eq!(locks.view(&"a".into(), None, by).await.expect("it works"), LockView::default());
    let clock: Arc<dyn Clock> = Arc::new(|| 7);
    assert_eq!(clock.now(), 7);
    let clock: Arc<dyn Clock> = Arc::new(WallClock);
    assert!(clock.now() > 1_600_000_000_000_000_000, "ns since the UNIX epoch");
}

#[test]
fn errors_are_errors() {
    fn is_error<E: std::error::Error + Send + Sync + 'static>() {}
    is_error::<BeginError>();
    is_error::<ConfigError>();
    is_error::<LockError>();
    is_error::<OpenError>();
    is_error::<ServiceError>();
    is_error::<SessionLost>();
    is_error::<LeaseEnded>();
    is_error::<StaleToken>();
    is_error::<core::Malformed>();
    is_error::<Rejection>();
    is_error::<IdError>();
    is_error::<LeaseError>();
    is_error::<WorkerError>();
}
