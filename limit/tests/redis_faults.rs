//! What goes wrong with a real Redis hits only what it is about.
//!
//! Needs `redis-server` on `PATH` or in `VOUSSOIR_REDIS_SERVER`; else says what it left out.

mod proxy;

use std::sync::Arc;
use std::time::{Duration, Instant};

use proxy::Proxy;
use redis::aio::MultiplexedConnection;
use test_support::RedisServer;
use voussoir_limit::*;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn counter(url: &str, when_lost: WhenLost) -> Arc<RedisCounter> {
    Arc::new(RedisCounter::new(redis::Client::open(url).unwrap(), "limit:", when_lost))
}

/// With the times of the default configuration, but one: tests run side by side on slow machines.
fn strict(counter: &Arc<RedisCounter>, quota: Quota) -> Strict {
    let mut outage = OutageConfig::default();
    outage.timeout = 2 * SECOND;
    Strict::new(Arc::clone(counter) as _, quota, outage).unwrap()
}

async fn connect(url: &str) -> MultiplexedConnection {
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

async fn run(connection: &mut MultiplexedConnection, command: &[&str]) {
    let mut call = redis::cmd(command[0]);
    call.arg(&command[1..]);
    let _: redis::Value = call.query_async(connection).await.unwrap();
}

fn store_error(answer: Result<Pass, SharedError>) -> StoreError {
    match answer {
        Err(SharedError::Store(error)) => error,
        other => panic!("the store is expected to fail: {other:?}"),
    }
}

fn is_rejected(answer: &Result<Pass, SharedError>) -> bool {
    matches!(answer, Err(SharedError::Rejected(_)))
}

#[tokio::test]
async fn a_key_of_another_type_or_format_hits_no_other_and_is_replaced() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let mut redis = connect(&server.url()).await;
    for (when_lost, passes) in [(WhenLost::Fresh, true), (WhenLost::Drained, false)] {
        run(&mut redis, &["FLUSHALL"]).await;
        let counter = counter(&server.url(), when_lost);
        let by_rate = strict(&counter, Quota::gcra(1, HOUR).burst(5));
        let by_window = strict(&counter, Quota::fixed_window(5, HOUR));
        let mut bad = 0;
        for (kind, limiter) in [(":g1", &by_rate), (":w1", &by_window)] {
            let spoil = [
                &["LPUSH", "x"][..],
                &["SET", "nonsense"],
                &["SET", "-1:0"],
                &["SET", "1:99999999999999999999"],
                &["SET", ""],
            ];
            for (number, command) in spoil.into_iter().enumerate() {
                let name = format!("bad-{number}");
                let key = format!("limit:{{{name}}}{kind}");
                run(&mut redis, &[command[0], &key, command[1]]).await;
                let answer = limiter.check(&name, 1).await;
                bad += 1;
                assert_eq!(answer.is_ok(), passes, "{command:?} {kind}: {answer:?}");
                assert!(answer.is_ok() || is_rejected(&answer), "{answer:?}");
                assert_eq!(counter.stats().unreadable, bad);
                // It is replaced by a state that can be read, with a life as long as it matters.
                let again = limiter.check(&name, 1).await;
                assert_eq!(again.is_ok(), passes, "{command:?} {kind}: {again:?}");
                assert_eq!(counter.stats().unreadable, bad);
                let ttl: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut redis).await.unwrap();
                assert!((1..=5 * 3_600_000 + 2).contains(&ttl), "{ttl}");
            }
        }
        // The server is young: a key of a drained start has flowed back by now only at a high rate.
        let other = strict(&counter, Quota::gcra(1000, SECOND));
        assert!(store_is_well(&other, "other").await);
    }
}

async fn store_is_well(limiter: &Strict, key: &str) -> bool {
    !matches!(limiter.check(key, 1).await, Err(SharedError::Store(_)))
}

#[tokio::test]
async fn another_algorithm_or_period_under_one_prefix_hits_nobody() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let counter = counter(&server.url(), WhenLost::Fresh);
    let spend = async |quota: Quota| {
        let limiter = strict(&counter, quota);
        let mut passed = 0;
        while limiter.check("k", 1).await.is_ok() {
            passed += 1;
            assert!(passed <= 100, "no end with {quota:?}");
        }
        passed
    };
    assert_eq!(spend(Quota::gcra(1, HOUR).burst(5)).await, 5);
    // Another algorithm counts anew.
    assert_eq!(spend(Quota::fixed_window(7, HOUR)).await, 7);
    // The old one goes on where it was.
    assert_eq!(spend(Quota::gcra(1, HOUR).burst(5)).await, 0);
    // A larger burst keeps what is used, and so does a smaller one: it is spent, not in debt.
    assert_eq!(spend(Quota::gcra(1, HOUR).burst(8)).await, 3);
    let small = strict(&counter, Quota::gcra(1, HOUR).burst(2));
    let Err(SharedError::Rejected(rejected)) = small.check("k", 1).await else {
        panic!("it is spent")
    };
    assert!(rejected.retry_after().unwrap() <= HOUR, "{rejected}");
    assert_eq!(spend(Quota::gcra(1000, SECOND).burst(2)).await % 100, 0);
    // A longer window after a shorter one, and back: each ends with its own period.
    assert!(spend(Quota::fixed_window(9, 24 * HOUR)).await <= 9);
    let short = strict(&counter, Quota::fixed_window(9, SECOND));
    tokio::time::sleep(SECOND + SECOND / 10).await;
    assert!(short.check("k", 1).await.is_ok(), "the window of a second is over");
}

#[tokio::test]
async fn out_of_memory_hits_what_would_be_written_and_rests_nobody() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let counter = counter(&server.url(), WhenLost::Fresh);
    let limiter = strict(&counter, Quota::gcra(1, HOUR).burst(2));
    limiter.check("spent", 2).await.unwrap();
    let mut redis = connect(&server.url()).await;
    run(&mut redis, &["CONFIG", "SET", "maxmemory", "1"]).await;
    for _ in 0..3 {
        let error = store_error(limiter.check("new", 1).await);
        assert!(matches!(&error, StoreError::Refused(text) if text.contains("OOM")), "{error}");
        assert_eq!((error.outcome(), error.is_outage()), (Outcome::NotApplied, false));
        assert!(is_rejected(&limiter.check("spent", 1).await), "a rejection writes nothing");
    }
    run(&mut redis, &["CONFIG", "SET", "maxmemory", "0"]).await;
    // At once, and nothing was taken before.
    assert_eq!(limiter.check("new", 1).await.unwrap().remaining, 1);
}

#[tokio::test]
async fn a_script_that_the_server_forgot_is_brought_again() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let counter = counter(&server.url(), WhenLost::Drained);
    let limiter = strict(&counter, Quota::gcra(1, HOUR).burst(2));
    let mut redis = connect(&server.url()).await;
    for _ in 0..5 {
        assert!(is_rejected(&limiter.check("k", 1).await), "the server is young");
        run(&mut redis, &["SCRIPT", "FLUSH"]).await;
    }
}

#[tokio::test]
async fn a_user_without_info_is_told_what_to_grant() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let mut redis = connect(&server.url()).await;
    let user = |name, commands: &str| {
        let mut acl = vec!["ACL".to_owned(), "SETUSER".into(), format!("{name}"), "on".into()];
        acl.extend([">secret".into(), "~limit:*".into()]);
        acl.extend(commands.split(' ').map(Into::into));
        acl
    };
    let all = "+evalsha +eval +time +get +set";
    for (name, commands) in [
        ("bare", all.to_owned()),
        ("full", format!("{all} +info")),
        ("useless", "+evalsha +eval +time +get".to_owned()),
    ] {
        let acl = user(name, &commands);
        run(&mut redis, &acl.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    let url = |name| server.url().replace("redis://", &format!("redis://{name}:secret@"));
    let told = |error: StoreError, grant: &str| {
        assert!(
            matches!(&error, StoreError::NotPermitted(text) if text.contains(grant)),
            "{error}"
        );
        assert_eq!((error.outcome(), error.is_outage()), (Outcome::NotApplied, false));
    };

    let bare = counter(&url("bare"), WhenLost::Drained);
    told(bare.verify().await.unwrap_err(), "+info");
    let limiter = strict(&bare, Quota::gcra(1000, SECOND));
    told(store_error(limiter.check("new", 1).await), "+info");
    // Also at the second start, when the key of the first is there.
    told(bare.verify().await.unwrap_err(), "+info");

    // Without that choice the same user is enough, and with INFO both are.
    for (name, when_lost) in
        [("bare", WhenLost::Fresh), ("full", WhenLost::Drained), ("full", WhenLost::Fresh)]
    {
        let counter = counter(&url(name), when_lost);
        counter.verify().await.unwrap_or_else(|error| panic!("{name} {when_lost:?}: {error}"));
        let limiter = strict(&counter, Quota::gcra(1000, SECOND));
        assert!(store_is_well(&limiter, "new").await);
    }
    told(counter(&url("useless"), WhenLost::Fresh).verify().await.unwrap_err(), "+set");
    let other = redis::Client::open(url("full")).unwrap();
    let other = RedisCounter::new(other, "other:", WhenLost::Fresh);
    told(other.verify().await.unwrap_err(), "keys of the prefix");
}

/// A burst is given out in takes of 1000: the rate is what flows back.
#[tokio::test]
async fn rates_finer_than_a_microsecond_are_served() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let counter = counter(&server.url(), WhenLost::Fresh);
    for rate in [2_000_000, 300_000, 1_000_000, 7_000_000] {
        let quota = Quota::gcra(rate, SECOND).burst(rate / 10);
        let key = format!("rate-{rate}");
        let take = Take { key: &key, quota, least: 1, most: u64::MAX };
        let (mut granted, mut first) = (0, None);
        let mut redis = connect(&server.url()).await;
        let mut now = async || {
            let (s, us): (u64, u64) = redis::cmd("TIME").query_async(&mut redis).await.unwrap();
            s * 1_000_000 + us
        };
        let start = Instant::now();
        let (mut before, mut after) = (0, 0);
        while start.elapsed() < SECOND / 2 {
            before = now().await;
            let taken = counter.take(&[take]).await.remove(0).unwrap();
            after = now().await;
            match first {
                None => first = Some((before, after)),
                // What flowed back since the first take, which left nothing.
                Some(_) => granted += taken.granted,
            }
        }
        let (earliest, latest) = first.unwrap();
        let per_us = rate as f64 / 1e6;
        let most = (after - earliest) as f64 * per_us;
        // The time of a unit is rounded up to a whole nanosecond: less than 0.8 % of any of these.
        let least = (before - latest) as f64 * per_us * 0.992 - 1.0;
        assert!((least..=most).contains(&(granted as f64)), "{rate}: {least} {granted} {most}");
    }
    // Finer than that is refused when the limiter is built.
    for quota in
        [Quota::fixed_window(10, Duration::from_nanos(1500)), Quota::sliding_log(1, SECOND)]
    {
        let built = Strict::new(Arc::clone(&counter) as _, quota, OutageConfig::default());
        assert!(matches!(&built, Err(error) if error.field.starts_with("quota")), "{built:?}");
    }
}

/// The primary becomes a replica of its replica, and the address leads to the new one.
#[tokio::test]
async fn a_failover_is_followed_and_what_was_replicated_counts() {
    let (Some(old), Some(new)) = (RedisServer::start(&[]), RedisServer::start(&[])) else { return };
    let proxy = Proxy::start(old.port()).await;
    let counter = counter(&proxy.url(), WhenLost::Fresh);
    let limiter = strict(&counter, Quota::gcra(1, HOUR).burst(5));
    let (mut redis, mut replica) = (connect(&old.url()).await, connect(&new.url()).await);
    run(&mut replica, &["REPLICAOF", "127.0.0.1", &old.port().to_string()]).await;
    assert_eq!(limiter.check("k", 2).await.unwrap().remaining, 3);
    // WAIT counts the replicas that have the last write of its own connection.
    run(&mut redis, &["SET", "mark", "1"]).await;
    let start = Instant::now();
    while redis::cmd("WAIT").arg(1).arg(100).query_async::<u64>(&mut redis).await.unwrap() == 0 {
        assert!(start.elapsed() < 20 * SECOND, "the replica does not follow");
    }
    run(&mut replica, &["REPLICAOF", "NO", "ONE"]).await;
    run(&mut redis, &["REPLICAOF", "127.0.0.1", &new.port().to_string()]).await;
    proxy.lead_to(new.port());
    // The old connection leads to a replica now: it says so, nothing was taken, and the next
    // attempt connects anew.
    let error = store_error(limiter.check("k", 1).await);
    assert_eq!((error.outcome(), error.is_outage()), (Outcome::NotApplied, true), "{error}");
    let start = Instant::now();
    let pass = loop {
        match limiter.check("k", 1).await {
            Err(SharedError::Store(StoreError::Resting)) => {}
            answer => break answer.unwrap(),
        }
        assert!(start.elapsed() < 5 * SECOND, "it rests too long");
        tokio::time::sleep(SECOND / 50).await;
    };
    assert_eq!(pass.remaining, 2);
}

/// A connection whose other end is gone without a word is replaced, though no caller waits as long
/// as TCP does.
#[tokio::test]
async fn a_silent_connection_is_replaced() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let proxy = Proxy::start(server.port()).await;
    let counter = counter(&proxy.url(), WhenLost::Fresh);
    // The default time limit, which is shorter than any that the connection has.
    let limiter =
        Strict::new(counter, Quota::gcra(1, HOUR).burst(100), OutageConfig::default()).unwrap();
    let start = Instant::now();
    while limiter.check("k", 1).await.is_err() {
        assert!(start.elapsed() < 10 * SECOND, "no first answer");
        tokio::time::sleep(SECOND / 50).await;
    }
    proxy.silence();
    let start = Instant::now();
    let mut errors = 0;
    while let Err(error) = limiter.check("k", 1).await {
        errors += 1;
        assert!(start.elapsed() < 4 * SECOND, "still {error} after {errors} errors");
        tokio::time::sleep(SECOND / 50).await;
    }
    assert!(errors > 0 && proxy.accepted() >= 2);
}

/// A connection may take longer than the limiter waits for an answer: it comes about all the same,
/// and once for all who wait.
#[tokio::test]
async fn a_slow_connection_comes_about_and_only_once() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let proxy = Proxy::start(server.port()).await;
    proxy.delay(SECOND / 2);
    let counter = counter(&proxy.url(), WhenLost::Fresh);
    let mut outage = OutageConfig::default();
    outage.rest = SECOND / 100;
    let limiter = Strict::new(counter, Quota::gcra(1, HOUR).burst(100), outage).unwrap();
    let start = Instant::now();
    while let Err(error) = limiter.check("k", 1).await {
        assert!(start.elapsed() < 10 * SECOND, "still {error}");
        tokio::time::sleep(SECOND / 100).await;
    }
    assert!(start.elapsed() >= SECOND / 2);
    assert_eq!(proxy.accepted(), 1);
}
