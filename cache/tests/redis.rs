//! Redis as bus and as second level: a real server that is stopped, started empty and paused.
//!
//! Needs `redis-server` on `PATH` or in `VOUSSOIR_REDIS_SERVER`; else says what it left out.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use support::{Script, Scripted, config};
use test_support::RedisServer;
use tokio::time::sleep;
use voussoir_cache::testing::{check_bus, check_second_level};
use voussoir_cache::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

type Numbers = Cache<u64, u64>;

fn client(url: &str) -> redis::Client {
    redis::Client::open(url).unwrap()
}

fn level(url: &str) -> RedisLevel {
    RedisLevel::new(client(url), "cache:").unwrap()
}

fn bus(url: &str) -> RedisBus {
    RedisBus::new(client(url), "cache").unwrap()
}

fn bus_config() -> BusConfig {
    let mut config = BusConfig::default();
    (config.heartbeat, config.timeout) = (100 * MS, 400 * MS);
    config.outage_ttl = 200 * MS;
    config
}

/// The bound on what is stale while bus or second level fail: until the silence is noticed, and for
/// as long as an entry of the outage lives.
fn outage_bound() -> Duration {
    let config = bus_config();
    config.timeout + config.outage_ttl + LevelConfig::default().timeout
}

fn cache(url: &str, source: impl Source<u64, u64>) -> Numbers {
    let built = Cache::builder()
        .config(config(|config| config.ttl = Some(1000 * SECOND)))
        .source(source)
        .codec(PlainCodec)
        .bus(bus(url), bus_config())
        .second_level(level(url), LevelConfig::default());
    built.build().unwrap()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < 20 * SECOND, "not within 20 s: {what}");
        sleep(5 * MS).await;
    }
}

#[tokio::test]
async fn redis_keeps_the_promises_of_the_seams() {
    let Some(server) = RedisServer::start(&[]) else { return };
    check_bus(&bus(&server.url())).await;
    check_second_level(&level(&server.url())).await;
}

#[tokio::test]
async fn two_caches_over_one_redis_load_once_and_hear_of_each_other() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let script = Script::new(1);
    *script.takes.lock() = 50 * MS;
    script.tags.lock().push("rows".into());
    let caches = [(); 2].map(|()| cache(&server.url(), Scripted(Arc::clone(&script))));
    let [one, two] = &caches;
    until("the bus is up", async || caches.iter().all(|cache| cache.stats().bus_gaps > 0)).await;
    let (first, second) = tokio::join!(one.get_or_load(&1), two.get_or_load(&1));
    assert_eq!((first.unwrap(), second.unwrap(), script.calls()), (Some(10), Some(10), 1));
    let changes: [fn(&Numbers); 3] =
        [|cache| cache.invalidate(&1), |cache| cache.invalidate_tag("rows"), Cache::clear];
    for (value, change) in (11..).zip(changes) {
        script.write(1, value);
        change(one);
        one.settle().await;
        until("the other one sees it", async || two.get_or_load(&1).await.unwrap() == Some(value))
            .await;
        assert_eq!(one.get_or_load(&1).await.unwrap(), Some(value));
    }
    let figures = (one.stats(), two.stats());
    assert!(figures.0.level_hits + figures.1.level_hits >= 3, "{figures:?}");
    assert_eq!(figures.0.level_failures + figures.1.level_failures, 0, "{figures:?}");
}

/// Redis is killed, and comes back empty. Readers see no error; entries are dropped; what was
/// invalidated meanwhile is sent when it is back.
#[tokio::test]
async fn a_redis_that_comes_back_empty_costs_loads_and_nothing_else() {
    let Some(mut server) = RedisServer::start(&[]) else { return };
    let script = Script::new(1);
    *script.takes.lock() = Duration::ZERO;
    let caches = [(); 2].map(|()| cache(&server.url(), Scripted(Arc::clone(&script))));
    let [one, two] = &caches;
    until("the bus is up", async || caches.iter().all(|cache| cache.stats().bus_gaps > 0)).await;
    two.get_or_load(&1).await.unwrap();
    server.kill();
    until("the loss is noticed", async || two.get(&1).is_none()).await;
    for round in 0..20 {
        script.write(1, 100 + round);
        one.invalidate(&1);
        assert_eq!(one.get_or_load(&1).await.unwrap(), Some(100 + round));
        for key in 2..50 {
            assert_eq!(two.get_or_load(&key).await.unwrap(), Some(key * 10));
        }
        sleep(10 * MS).await;
    }
    let changed_at = Instant::now();
    until("it is seen within the bound", async || two.get_or_load(&1).await.unwrap() == Some(119))
        .await;
    assert!(changed_at.elapsed() <= outage_bound(), "{:?}", changed_at.elapsed());
    assert!(one.stats().unsent > 0);
    server.restart();
    tokio::time::timeout(20 * SECOND, one.settle()).await.expect("what waited is sent");
    let gaps = two.stats().bus_gaps;
    until("the bus is up", async || two.stats().bus_gaps > gaps || two.stats().bus_gaps >= 3).await;
    script.write(2, 7);
    one.invalidate(&2);
    one.settle().await;
    until("it works as before", async || two.get_or_load(&2).await.unwrap() == Some(7)).await;
    until("the second level is used", async || {
        one.invalidate(&3);
        one.settle().await;
        let before = two.stats().level_hits;
        one.get_or_load(&3).await.unwrap();
        until("it is dropped", async || two.get(&3).is_none()).await;
        two.get_or_load(&3).await.unwrap();
        two.stats().level_hits > before
    })
    .await;
}

/// Redis is paused: connections stay open and nobody answers.
#[tokio::test]
async fn a_redis_that_is_paused_keeps_no_reader_waiting_and_nothing_stale() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let script = Script::new(1);
    *script.takes.lock() = Duration::ZERO;
    let caches = [(); 2].map(|()| cache(&server.url(), Scripted(Arc::clone(&script))));
    let [one, two] = &caches;
    until("the bus is up", async || caches.iter().all(|cache| cache.stats().bus_gaps > 0)).await;
    two.get_or_load(&1).await.unwrap();
    for round in 0..2 {
        server.signal("STOP");
        script.write(1, 100 + round);
        one.invalidate(&1);
        let changed_at = Instant::now();
        let (mut slowest, mut seen_after) = (Duration::ZERO, None);
        while changed_at.elapsed() < 3 * SECOND {
            let asked_at = Instant::now();
            let read = two.get_or_load(&1).await.unwrap();
            slowest = slowest.max(asked_at.elapsed());
            match (read == Some(100 + round), seen_after) {
                (true, None) => seen_after = Some(changed_at.elapsed()),
                (false, Some(_)) => panic!("{read:?} after the new value"),
                _ => {}
            }
            sleep(5 * MS).await;
        }
        let seen_after = seen_after.unwrap();
        eprintln!("paused: new value after {seen_after:?}, slowest read {slowest:?}");
        assert!(seen_after <= outage_bound() + 50 * MS, "{seen_after:?}");
        // One call of the second level, and the load.
        assert!(slowest < 250 * MS, "{slowest:?}");
        server.signal("CONT");
        one.settle().await;
        script.write(1, 200 + round);
        one.invalidate(&1);
        one.settle().await;
        until("it works as before", async || {
            two.get_or_load(&1).await.unwrap() == Some(200 + round)
        })
        .await;
    }
}

/// Keys of a server that evicts: floors that are gone make values invalid, and not valid again.
#[tokio::test]
async fn a_floor_that_was_evicted_makes_its_values_invalid() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let script = Script::new(1);
    script.tags.lock().push("rows".into());
    let one = cache(&server.url(), Scripted(Arc::clone(&script)));
    one.get_or_load(&1).await.unwrap();
    let mut connection = client(&server.url()).get_multiplexed_async_connection().await.unwrap();
    let dropped: u64 =
        redis::cmd("DEL").arg("cache:t:rows").query_async(&mut connection).await.unwrap();
    assert_eq!(dropped, 1);
    script.write(1, 11);
    let fresh = cache(&server.url(), Scripted(Arc::clone(&script)));
    assert_eq!(fresh.get_or_load(&1).await.unwrap(), Some(11));
}

#[tokio::test]
async fn all_keys_but_two_expire() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let script = Script::new(1);
    script.tags.lock().push("rows".into());
    let one = cache(&server.url(), Scripted(Arc::clone(&script)));
    for key in 0..50 {
        one.get_or_load(&key).await.unwrap();
    }
    one.invalidate(&1);
    one.invalidate_tag("rows");
    one.invalidate_tag("other");
    one.clear();
    one.settle().await;
    let mut connection = client(&server.url()).get_multiplexed_async_connection().await.unwrap();
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.unwrap();
    assert!(keys.len() > 50, "{keys:?}");
    let mut lasting = Vec::new();
    for key in keys {
        let ttl: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut connection).await.unwrap();
        if ttl < 0 {
            lasting.push(key);
        }
    }
    lasting.sort();
    assert_eq!(lasting, ["cache:g", "cache:s"]);
}

/// A thousand misses at once are written to one connection, and read from it, together.
#[tokio::test]
async fn calls_share_one_connection_and_are_pipelined() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let script = Script::new(1);
    *script.takes.lock() = Duration::ZERO;
    let one = cache(&server.url(), Scripted(Arc::clone(&script)));
    until("the bus is up", async || one.stats().bus_gaps > 0).await;
    one.get_or_load(&5000).await.unwrap();
    let mut connection = client(&server.url()).get_multiplexed_async_connection().await.unwrap();
    let mut stats = async |name: &str| {
        let info: String = redis::cmd("INFO").query_async(&mut connection).await.unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().parse::<u64>().unwrap()
    };
    let (clients, reads, commands) = (
        stats("connected_clients").await,
        stats("total_reads_processed").await,
        stats("total_commands_processed").await,
    );
    let loads = (0..1000).map(|key| {
        let one = one.clone();
        tokio::spawn(async move { one.get_or_load(&key).await.unwrap() })
    });
    for load in loads.collect::<Vec<_>>() {
        load.await.unwrap();
    }
    assert_eq!(one.stats().level_failures, 0);
    assert_eq!(stats("connected_clients").await, clients);
    let reads = stats("total_reads_processed").await - reads;
    let commands = stats("total_commands_processed").await - commands;
    eprintln!("1000 misses: {commands} commands in {reads} reads of the server");
    assert!(commands > 5000 && reads < commands / 5, "{commands} commands in {reads} reads");
}
