//! How soon a change in one process is seen in another one, over a real Redis.
//!
//! A program of its own: cargo runs one test program at a time, so that no other test takes the
//! processor away meanwhile. `VOUSSOIR_CACHE_CHANGES` sets how many changes there are (default
//! 300).

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use test_support::RedisServer;
use tokio::time::sleep;
use voussoir_cache::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn client(url: &str) -> redis::Client {
    redis::Client::open(url).unwrap()
}

fn cache(url: &str, source: impl Source<u64, u64>) -> Cache<u64, u64> {
    let mut bus_config = BusConfig::default();
    (bus_config.heartbeat, bus_config.timeout) = (100 * MS, 400 * MS);
    let mut config = Config::default();
    config.ttl = Some(1000 * SECOND);
    let built = Cache::builder()
        .config(config)
        .source(source)
        .codec(PlainCodec)
        .bus(RedisBus::new(client(url), "cache").unwrap(), bus_config)
        .second_level(RedisLevel::new(client(url), "cache:").unwrap(), LevelConfig::default());
    built.build().unwrap()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < 20 * SECOND, "not within 20 s: {what}");
        sleep(5 * MS).await;
    }
}

/// A source that all processes share: rows in the same Redis, past the cache.
struct Rows(redis::aio::MultiplexedConnection);

#[async_trait]
impl Source<u64, u64> for Rows {
    async fn load(&self, keys: &[u64]) -> Vec<Result<Loaded<u64>, SourceError>> {
        let mut command = redis::cmd("MGET");
        for key in keys {
            command.arg(format!("row:{key}"));
        }
        let rows: Vec<Option<u64>> =
            command.query_async(&mut self.0.clone()).await.expect("the rows' server is up");
        rows.into_iter().map(|row| Ok(row.into())).collect()
    }
}

fn micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}

/// Not a test of its own: the reader that is the other process. For each line of its input, a value
/// of row 1, it says when it saw the value first.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn one_of_the_processes() {
    let Ok(url) = std::env::var("VOUSSOIR_CACHE_TASK") else { return };
    let rows = client(&url).get_multiplexed_async_connection().await.unwrap();
    let cache = cache(&url, Rows(rows));
    until("the bus is up", async || cache.stats().bus_gaps > 0).await;
    cache.get_or_load(&1).await.unwrap();
    println!("ready");
    let mut lines = std::io::stdin().lines();
    while let Some(Ok(line)) = lines.next() {
        let wanted: u64 = line.trim().parse().unwrap();
        let began = Instant::now();
        // Ends: the value is on its way; at the latest when the test gives up.
        while cache.get_or_load(&1).await.unwrap() != Some(wanted) {
            assert!(began.elapsed() < 20 * SECOND, "{wanted} is not seen");
            // A reader that spins would take the processor that the message needs.
            sleep(MS).await;
        }
        println!("seen {}", micros());
    }
}

struct Reader {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Reader {
    fn start(url: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "one_of_the_processes", "--nocapture"])
            .env("VOUSSOIR_CACHE_TASK", url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let mut reader = Self { process, input, output: BufReader::new(output) };
        reader.line("ready");
        reader
    }

    /// What follows `word` in the next line that begins with it.
    fn line(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the other process has ended");
            if let Some((_, rest)) = line.split_once(word) {
                return rest.trim().to_owned();
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A write in one process is seen in the other one: the time from its commit.
#[tokio::test]
async fn a_change_is_seen_by_another_process_within_50_ms() {
    let Some(server) = RedisServer::start(&[]) else { return };
    let url = server.url();
    let mut rows = client(&url).get_multiplexed_async_connection().await.unwrap();
    let cache = cache(&url, Rows(rows.clone()));
    until("the bus is up", async || cache.stats().bus_gaps > 0).await;
    let mut reader = Reader::start(&url);
    let changes = std::env::var("VOUSSOIR_CACHE_CHANGES").map_or(300, |text| text.parse().unwrap());
    let mut took = Vec::new();
    for value in 1..=changes {
        // The reader holds the old value by now.
        sleep(3 * MS).await;
        writeln!(reader.input, "{value}").unwrap();
        let _: () = redis::cmd("SET").arg("row:1").arg(value).query_async(&mut rows).await.unwrap();
        let committed_at = micros();
        cache.invalidate(&1);
        let (back, seen) = tokio::task::spawn_blocking(move || {
            let seen = reader.line("seen ");
            (reader, seen)
        })
        .await
        .unwrap();
        reader = back;
        took.push(seen.parse::<u64>().unwrap().saturating_sub(committed_at));
    }
    took.sort_unstable();
    let at = |share: f64| Duration::from_micros(took[((took.len() - 1) as f64 * share) as usize]);
    let (p50, p99, most) = (at(0.5), at(0.99), at(1.0));
    eprintln!("{changes} changes seen by another process: p50 {p50:?}, p99 {p99:?}, max {most:?}");
    assert!(p99 <= 50 * MS, "p99 {p99:?}");
    let stats = cache.stats();
    assert_eq!((stats.unsent, stats.bus_gaps), (0, 1), "{stats:?}");
}
