//! Limits shared by processes, on a real Redis that is killed and comes back empty.
//!
//! Needs `redis-server` on `PATH` or in `VOUSSOIR_REDIS_SERVER`; else says what it left out.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use test_support::RedisServer;
use voussoir_limit::testing::check_counter;
use voussoir_limit::*;

const PROCESSES: u64 = 4;
const RUN: Duration = Duration::from_millis(2500);
const LEASE: u64 = 20;

/// The burst is large beside what flows back in a run: giving it out twice would show.
fn quota() -> Quota {
    Quota::gcra(200, Duration::from_secs(1)).burst(600)
}

fn counter(url: &str, when_lost: WhenLost) -> Arc<dyn Counter> {
    Arc::new(RedisCounter::new(redis::Client::open(url).unwrap(), "limit:", when_lost))
}

#[tokio::test]
async fn redis_conforms() {
    let Some(server) = RedisServer::start(&[]) else { return };
    check_counter(&*counter(&server.url(), WhenLost::Fresh), "a").await;
}

/// Also where the server has forgotten the script.
#[tokio::test]
async fn a_batch_is_one_round_trip() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let counter = counter(&server.url(), WhenLost::Fresh);
    let names: Vec<String> = (0..50).map(|key| format!("user-{key}")).collect();
    let quota = Quota::gcra(1, Duration::from_secs(3600)).burst(5);
    let takes: Vec<Take<'_>> =
        names.iter().map(|key| Take { key, quota, least: 1, most: 2 }).collect();
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut reads = async || {
        let info = redis::cmd("INFO").arg("stats").query_async::<String>(&mut connection).await;
        let info = info.unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("total_reads_processed:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    for (granted, max_reads) in [(2, 200), (2, 8), (1, 8), (0, 8)] {
        let before = reads().await;
        let taken = counter.take(&takes).await;
        let granted = |taken: &Result<Taken, _>| taken.as_ref().unwrap().granted == granted;
        assert!(taken.iter().all(granted), "{taken:?}");
        let more = reads().await - before;
        assert!(more <= max_reads, "{more} reads for a batch of 50");
    }
    let mut other = client.get_multiplexed_async_connection().await.unwrap();
    let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut other).await.unwrap();
    let taken = counter.take(&takes[..2]).await;
    assert!(taken.len() == 2 && taken.iter().all(Result::is_ok), "{taken:?}");
}

/// Not a test of its own: what the processes of the others do.
#[tokio::test]
async fn one_of_the_processes() {
    let Ok(task) = std::env::var("VOUSSOIR_LIMIT_TASK") else { return };
    let (mode, url) = task.split_once(' ').unwrap();
    let when_lost = if mode == "fresh" { WhenLost::Fresh } else { WhenLost::Drained };
    let counter = counter(url, when_lost);
    let mut outage = OutageConfig::default();
    outage.rest = Duration::from_millis(20);
    let mut config = LeasedConfig::default();
    (config.lease, config.lease_for, config.outage) = (LEASE, Duration::from_millis(300), outage);
    let strict = Strict::new(Arc::clone(&counter), quota(), outage).unwrap();
    let leased = Leased::new(counter, quota(), config).unwrap();
    let (start, mut passed, mut failed) = (Instant::now(), 0, 0);
    while start.elapsed() < RUN {
        let answer = match mode {
            "leased" => leased.check("k", 1).await,
            _ => strict.check("k", 1).await,
        };
        match answer {
            Ok(_) => passed += 1,
            Err(SharedError::Store(_)) => failed += 1,
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    println!("result {passed} {failed}");
}

fn process(mode: &str, url: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "one_of_the_processes", "--nocapture"])
        .env("VOUSSOIR_LIMIT_TASK", format!("{mode} {url}"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Admitted by all, questions that failed, and the time in which.
fn run(mode: &str, kill: bool) -> Option<(u64, u64, Duration)> {
    let mut server = RedisServer::start(&[])?;
    let start = Instant::now();
    let processes: Vec<Child> = (0..PROCESSES).map(|_| process(mode, &server.url())).collect();
    if kill {
        std::thread::sleep(RUN / 2);
        server.kill();
        std::thread::sleep(RUN / 10);
        server.restart();
    }
    let (mut passed, mut failed) = (0, 0);
    for process in processes {
        let output = process.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find_map(|line| line.split_once("result ")).unwrap_or_else(|| {
            panic!("a process without a result: {text}");
        });
        let mut figures = line.1.split(' ').map(|n| n.trim().parse::<u64>().unwrap());
        passed += figures.next().unwrap();
        failed += figures.next().unwrap();
    }
    eprintln!("{mode}: {passed} passed in {:?}, {failed} failed", start.elapsed());
    Some((passed, failed, start.elapsed()))
}

#[test]
fn strict_never_admits_more_from_four_processes() {
    let Some((passed, _, time)) = run("fresh", false) else { return };
    assert!(passed <= quota().most_in(time), "{passed} in {time:?}");
    assert!(passed >= 600 + 200, "the burst and a second's worth pass: {passed}");
}

#[test]
fn strict_never_admits_more_across_a_restart_without_data() {
    let Some((passed, failed, time)) = run("drained", true) else { return };
    // The server is new, so that it never has a burst to give.
    let most = quota().burst(1).most_in(time);
    assert!(passed <= most, "{passed} in {time:?}, at most {most}");
    assert!(passed > 0 && failed > 0, "{passed} passed, {failed} failed");
}

/// That the test above can fail: a store that starts fresh gives the burst twice.
#[test]
fn a_fresh_start_gives_the_burst_twice() {
    let Some((passed, failed, time)) = run("fresh", true) else { return };
    assert!(failed > 0 && passed > quota().most_in(time), "{passed} in {time:?}");
}

#[test]
fn leased_keeps_its_bound_across_a_restart() {
    let Some((passed, failed, time)) = run("leased", true) else { return };
    let most = quota().burst(1).most_in(time) + PROCESSES * LEASE;
    assert!(passed <= most, "{passed} in {time:?}, at most {most}");
    assert!(passed > 0 && failed > 0, "{passed} passed, {failed} failed");
}
