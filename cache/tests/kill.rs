//! A process with write-behind in front of a real PostgreSQL, killed with `kill -9` under load,
//! again and again, and a table that goes away for a while.
//!
//! `VOUSSOIR_KILLS` sets how often it is killed at least (default 3, and on until each situation
//! was there), `VOUSSOIR_SINK_DOWN_SECONDS` for how long the table is away (default 2). The child
//! is this program with `VOUSSOIR_KILL_CHILD` set to the folder of its journal.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};
use voussoir_cache::{
    Cache, Config, Loaded, PlainCodec, Sink, SinkError, Source, SourceError, Write, WriteBehind,
    WriteBehindConfig, async_trait,
};
use voussoir_journal::Journal;
use voussoir_sim::{Rng, Situations};

const KEYS: u64 = 64;
const WRITERS: u64 = 16;
const CHILD: &str = "VOUSSOIR_KILL_CHILD";
const ROUND: &str = "VOUSSOIR_KILL_ROUND";

static SITUATIONS: [&str; 4] = [
    "killed with a backlog",
    "a write of unknown outcome was found",
    "a write of unknown outcome was not found",
    "a value was read before and after a kill",
];

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

async fn connect() -> Client {
    let url = std::env::var("DATABASE_URL").expect("DATABASE_URL is set by `cargo xtask test`");
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A table of counters. The only writer of its rows is the child that runs.
#[derive(Clone)]
struct Rows {
    client: Arc<Client>,
    table: String,
}

impl Rows {
    async fn new(table: &str) -> Self {
        Self { client: Arc::new(connect().await), table: table.to_owned() }
    }
}

#[async_trait]
impl Sink<u64, u64> for Rows {
    async fn write(&self, writes: &[Write<u64, u64>]) -> Vec<Result<(), SinkError>> {
        let keys: Vec<i64> = writes.iter().map(|write| write.key.cast_signed()).collect();
        let values: Vec<i64> =
            writes.iter().map(|write| write.value.unwrap().cast_signed()).collect();
        let statement = format!(
            "INSERT INTO {} SELECT * FROM UNNEST($1::BIGINT[], $2::BIGINT[]) \
             ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value",
            self.table
        );
        let written = self.client.execute(&statement, &[&keys, &values]).await;
        let answer = |_| match &written {
            Ok(_) => Ok(()),
            // The server has said no: nothing was applied.
            Err(error) if error.as_db_error().is_some() => {
                Err(SinkError::not_applied(error.to_string()))
            }
            Err(error) => Err(SinkError::unknown(error.to_string())),
        };
        writes.iter().map(answer).collect()
    }
}

#[async_trait]
impl Source<u64, u64> for Rows {
    async fn load(&self, keys: &[u64]) -> Vec<Result<Loaded<u64>, SourceError>> {
        let asked: Vec<i64> = keys.iter().map(|key| key.cast_signed()).collect();
        let statement = format!("SELECT key, value FROM {} WHERE key = ANY($1)", self.table);
        match self.client.query(&statement, &[&asked]).await {
            Ok(rows) => {
                let found: BTreeMap<u64, u64> = rows
                    .iter()
                    .map(|row| (row.get::<_, i64>(0) as u64, row.get::<_, i64>(1) as u64))
                    .collect();
                keys.iter().map(|key| Ok(Loaded::from(found.get(key).copied()))).collect()
            }
            Err(error) => {
                let error = error.to_string();
                keys.iter().map(|_| Err(SourceError::new(error.clone()))).collect()
            }
        }
    }

    fn max_batch(&self) -> usize {
        16
    }
}

async fn cache(folder: &str, table: &str) -> Cache<u64, u64> {
    let mut journal = voussoir_journal::Config::default();
    journal.segment_bytes = 1 << 20;
    journal.max_bytes = 64 << 20;
    let journal = Journal::open(folder, journal).unwrap();
    let mut behind = WriteBehindConfig::default();
    behind.max_keys = 48;
    behind.max_batch = 16;
    behind.flush_after = Duration::from_millis(5);
    behind.max_backoff = Duration::from_millis(200);
    let behind = WriteBehind::open(&journal, "rows", PlainCodec, behind).unwrap();
    println!("backlog {}", behind.backlog());
    let rows = Rows::new(table).await;
    let mut config = Config::default();
    // Small: entries are evicted all the time, and must not uncover old rows.
    config.max_weight = 8;
    let builder = Cache::builder().config(config).source(rows.clone());
    builder.write_behind(behind, rows).build().unwrap()
}

/// The newest value of each key that was acknowledged or read in this process.
type Seen = Arc<Vec<AtomicU64>>;

async fn read(cache: &Cache<u64, u64>, seen: &Seen, key: u64) -> u64 {
    let least = seen[key as usize].load(Ordering::SeqCst);
    let value = cache.get_or_load(&key).await.unwrap().unwrap_or(0);
    assert!(value >= least, "violation: key {key} read {value} after {least}");
    seen[key as usize].fetch_max(value, Ordering::SeqCst);
    value
}

/// Runs until it is killed. Each line on its standard output is one event: `read KEY VALUE` of the
/// start, `submitted KEY VALUE` before a write and `acknowledged KEY VALUE` after it.
async fn child(folder: String, table: String) {
    // The test harness has begun a line.
    println!();
    let cache = cache(&folder, &table).await;
    let seen: Seen = Arc::new((0..KEYS).map(|_| AtomicU64::new(0)).collect());
    for key in 0..KEYS {
        let value = read(&cache, &seen, key).await;
        println!("read {key} {value}");
    }
    println!("ready 0 0");
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (cache, seen) = (cache.clone(), Arc::clone(&seen));
        tasks.spawn(async move {
            let mut chance = Rng::stream(number(ROUND, 0), writer);
            // Ends: the process is killed.
            loop {
                let key = writer + WRITERS * chance.below(KEYS / WRITERS);
                let value = read(&cache, &seen, key).await + 1;
                println!("submitted {key} {value}");
                cache.write(key, value).await.unwrap();
                seen[key as usize].fetch_max(value, Ordering::SeqCst);
                println!("acknowledged {key} {value}");
                read(&cache, &seen, chance.below(KEYS)).await;
            }
        });
    }
    // A task that fails ends the process, and the parent sees that it was not the kill.
    while let Some(ended) = tasks.join_next().await {
        if ended.is_err() {
            std::process::exit(3);
        }
    }
}

/// What the parent has heard of one key.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    submitted: u64,
    acknowledged: u64,
    read: u64,
}

struct Parent {
    known: BTreeMap<u64, Known>,
    situations: Situations,
}

impl Parent {
    fn hear(&mut self, line: &str) {
        let mut words = line.split(' ');
        let (name, mut number) = (words.next().unwrap(), || words.next()?.parse::<u64>().ok());
        let (first, second) = (number(), number());
        if name == "backlog" {
            return self.situations.add(SITUATIONS[0], u64::from(first > Some(0)));
        }
        let (Some(key), Some(value)) = (first, second) else { return };
        let known = self.known.entry(key).or_default();
        match name {
            "submitted" => known.submitted = known.submitted.max(value),
            "acknowledged" => known.acknowledged = known.acknowledged.max(value),
            "read" => {
                let least = known.acknowledged.max(known.read);
                assert!(value >= least, "key {key}: {value} after the restart, {least} before it");
                assert!(value <= known.submitted, "key {key}: {value} was never written");
                if known.submitted > known.acknowledged {
                    let found = value == known.submitted;
                    self.situations.reached(SITUATIONS[if found { 1 } else { 2 }]);
                    known.submitted = value;
                }
                self.situations.add(SITUATIONS[3], u64::from(known.read > 0));
                known.read = value;
            }
            _ => {}
        }
    }
}

fn spawn(folder: &std::path::Path, table: &str, round: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_process_that_is_killed", "--include-ignored", "--nocapture"]);
    command.env(CHILD, folder).env("VOUSSOIR_KILL_TABLE", table).env(ROUND, round.to_string());
    command.stdout(Stdio::piped()).spawn().unwrap()
}

/// The end of the children that a failing test leaves.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The child of the test below; alone it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs postgresql"]
async fn a_process_that_is_killed() {
    if let Ok(folder) = std::env::var(CHILD) {
        child(folder, std::env::var("VOUSSOIR_KILL_TABLE").unwrap()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs postgresql"]
async fn killed_processes_lose_no_acknowledged_write() {
    let kills = number("VOUSSOIR_KILLS", 3);
    let table = format!("voussoir_kill_{}", std::process::id());
    let client = connect().await;
    let create = format!("CREATE TABLE {table} (key BIGINT PRIMARY KEY, value BIGINT NOT NULL)");
    client.execute(&create, &[]).await.unwrap();
    let folder = std::env::temp_dir().join(&table);
    let mut parent = Parent { known: BTreeMap::new(), situations: Situations::new(&SITUATIONS) };
    let mut chance = Rng::new(7);
    let mut round = 0;
    // Where a kill falls is chance. Ends: each situation comes within a few, or never.
    while round < kills || kills >= 3 && round < 100 && !parent.situations.missed().is_empty() {
        round += 1;
        let mut running = Killed(spawn(&folder, &table, round));
        let mut lines = BufReader::new(running.0.stdout.take().unwrap());
        let mut line = String::new();
        let mut kill_at = None;
        // Ends: the child is killed, and its output ends with it.
        while lines.read_line(&mut line).unwrap() > 0 {
            if line == "ready 0 0\n" {
                kill_at = Some(Instant::now() + Duration::from_millis(30 + chance.below(300)));
            }
            // A line that was cut off by the kill says nothing.
            if let Some(whole) = line.strip_suffix('\n') {
                parent.hear(whole);
            }
            line.clear();
            if kill_at.is_some_and(|at| Instant::now() >= at) {
                running.0.kill().unwrap();
                kill_at = None;
            }
        }
        let status = running.0.wait().unwrap();
        assert_eq!(status.code(), None, "the child ended before it was killed");
    }
    // Once more in this process: everything is flushed.
    let cache = cache(folder.to_str().unwrap(), &table).await;
    for key in 0..KEYS {
        let value = cache.get_or_load(&key).await.unwrap().unwrap_or(0);
        parent.hear(&format!("read {key} {value}"));
    }
    cache.flush().await;
    let rows = client.query(&format!("SELECT key, value FROM {table}"), &[]).await.unwrap();
    let rows: BTreeMap<u64, u64> =
        rows.iter().map(|row| (row.get::<_, i64>(0) as u64, row.get::<_, i64>(1) as u64)).collect();
    for (key, known) in &parent.known {
        let row = rows.get(key).copied().unwrap_or(0);
        assert_eq!(row, known.read, "key {key}: {known:?}");
        assert!(row >= known.acknowledged, "key {key}: row {row}, {known:?}");
    }
    drop(cache);
    client.execute(&format!("DROP TABLE {table}"), &[]).await.unwrap();
    let _ = std::fs::remove_dir_all(&folder);
    let acknowledged: u64 = parent.known.values().map(|known| known.acknowledged).sum();
    println!("{round} kills, {acknowledged} acknowledged writes, none lost");
    if kills >= 3 {
        parent.situations.assert_all_reached();
    }
}

fn resident_kib() -> u64 {
    let mut status = String::new();
    std::fs::File::open("/proc/self/status").unwrap().read_to_string(&mut status).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The table is renamed away: each statement fails until it is back.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs postgresql"]
async fn a_table_that_is_away_costs_no_write_and_no_memory() {
    let away = Duration::from_secs(number("VOUSSOIR_SINK_DOWN_SECONDS", 2));
    let table = format!("voussoir_away_{}", std::process::id());
    let client = connect().await;
    let create = format!("CREATE TABLE {table} (key BIGINT PRIMARY KEY, value BIGINT NOT NULL)");
    client.execute(&create, &[]).await.unwrap();
    let folder = std::env::temp_dir().join(&table);
    let cache = cache(folder.to_str().unwrap(), &table).await;
    for key in 0..40 {
        cache.write(key, 0).await.unwrap();
    }
    client.execute(&format!("ALTER TABLE {table} RENAME TO {table}_away"), &[]).await.unwrap();
    let (began, before) = (Instant::now(), resident_kib());
    let mut value = 0;
    while began.elapsed() < away {
        value += 1;
        for key in 0..40 {
            cache.write(key, value).await.unwrap();
        }
        assert_eq!(cache.get(&(value % 40)), Some(value));
        assert!(cache.stats().backlog <= 48);
    }
    let grown = resident_kib().saturating_sub(before);
    assert!(cache.stats().flush_failures > 0 && value > 10, "{value} {:?}", cache.stats());
    assert!(grown < 40_000, "{grown} KiB more after {} writes", value * 40);
    client.execute(&format!("ALTER TABLE {table}_away RENAME TO {table}"), &[]).await.unwrap();
    cache.flush().await;
    let select = format!("SELECT COUNT(*) FROM {table} WHERE value = $1");
    let count: i64 = client.query_one(&select, &[&(value.cast_signed())]).await.unwrap().get(0);
    assert_eq!(count, 40, "each row has the last value, {value}");
    drop(cache);
    client.execute(&format!("DROP TABLE {table}"), &[]).await.unwrap();
    let _ = std::fs::remove_dir_all(&folder);
    println!("{} writes while the table was away, {grown} KiB more memory", value * 40);
}
