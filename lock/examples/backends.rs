//! The same code on each back end: which one it is stands in one line.
//!
//! `cargo run -p voussoir-lock --example lock-backends --all-features -- memory` (or `postgres`,
//! `etcd`, `redis`, with the address in `DATABASE_URL`, `ETCD_URL`, `REDIS_URL`).

use std::env;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use voussoir_lock::etcd::{Endpoint, EtcdConfig, EtcdLocks};
use voussoir_lock::postgres::{PostgresConfig, PostgresLocks};
use voussoir_lock::redis::{RedisConfig, RedisLocks};
use voussoir_lock::{Election, Fence, GrantKind, LeaseConfig, LockService, MemoryLocks, Session};

type Done = Result<(), Box<dyn Error>>;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Done {
    let address = |variable: &str| env::var(variable).map_err(|_| format!("{variable} is not set"));
    match env::args().nth(1).as_deref().unwrap_or("memory") {
        "memory" => pay(&open(MemoryLocks::start()).await?).await,
        "postgres" => {
            let database: tokio_postgres::Config = address("DATABASE_URL")?.parse()?;
            let locks = PostgresLocks::start(Arc::new(database), PostgresConfig::default())?;
            pay(&open(locks).await?).await
        }
        "etcd" => {
            let channel = Endpoint::from_shared(address("ETCD_URL")?)?.connect_lazy();
            pay(&open(EtcdLocks::new(channel, EtcdConfig::default())?).await?).await
        }
        "redis" => {
            let client = redis::Client::open(address("REDIS_URL")?)?;
            // `pay` does not compile with its session: it asks for tokens.
            report(&open(RedisLocks::new(client, RedisConfig::default())?).await?).await
        }
        other => Err(format!("no back end `{other}`").into()),
    }
}

async fn open<S: LockService>(service: Arc<S>) -> Result<Session<S::Grants>, Box<dyn Error>> {
    Ok(Session::open(service, LeaseConfig::default(), 5 * SECOND).await?)
}

/// Work whose effect is guarded by the token, on any back end that gives one.
async fn pay(session: &Session) -> Done {
    let mut ledger = Fence::new(Vec::new());
    let guard = session.lock("ledger").within(5 * SECOND).await?;
    ledger.enter(guard.permit()?.token())?.push("100 to Alice");
    println!("paid under token {}", guard.token().get());
    guard.release(SECOND).await;
    report(session).await
}

/// Work that is only saved by the lock: two who do it at once do no harm.
async fn report<K: GrantKind>(session: &Session<K>) -> Done {
    let election = Election::new(session, "nightly report");
    let mut observer = election.observe();
    let work = election
        .run_while_leader("this process", 5 * SECOND, async |_| observer.next(SECOND).await);
    let leader = work.await??.ok_or("nobody leads")?;
    println!("reported, led by {}", String::from_utf8_lossy(&leader.value));
    session.close(SECOND).await?;
    Ok(())
}
