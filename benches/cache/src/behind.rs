//! What an acknowledgement of write-behind costs beside a bare append to the same kind of journal,
//! and what it gains where the store is slow.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use voussoir_cache::{
    Cache, PlainCodec, Sink, SinkError, Write, WriteBehind, WriteBehindConfig, async_trait,
};
use voussoir_journal::{Commit, Journal};

use crate::Error;
use crate::measure::median;
use crate::report::{Figure, Report};

/// Pairs of rounds, ours and bare in turn.
const PAIRS: usize = 7;
const WRITES: u64 = 2_000;
const KEYS: u64 = 500;
const VALUE_BYTES: usize = 100;
/// The record of a write: 6 bytes of head, the key, the value.
const RECORD_BYTES: usize = 6 + 8 + VALUE_BYTES;

type Values = Cache<u64, Vec<u8>>;

/// A store that takes every write, and so long for a call, on so many connections.
#[derive(Clone)]
struct Slow {
    takes: Duration,
    connections: Arc<Semaphore>,
}

impl Slow {
    fn new(takes: Duration, connections: usize) -> Self {
        Self { takes, connections: Arc::new(Semaphore::new(connections)) }
    }
}

#[async_trait]
impl Sink<u64, Vec<u8>> for Slow {
    async fn write(&self, writes: &[Write<u64, Vec<u8>>]) -> Vec<Result<(), SinkError>> {
        let _connection = self.connections.acquire().await;
        if !self.takes.is_zero() {
            tokio::time::sleep(self.takes).await;
        }
        writes.iter().map(|_| Ok(())).collect()
    }
}

fn behind(journal: &Journal, flush_after: Duration, sink: Slow) -> Result<Values, Error> {
    let mut config = WriteBehindConfig::default();
    config.flush_after = flush_after;
    let behind = WriteBehind::open(journal, "writes", PlainCodec, config)?;
    Ok(Cache::builder().write_behind(behind, sink).build()?)
}

fn journal(folder: &Path) -> Result<Journal, Error> {
    Ok(Journal::open(folder, voussoir_journal::Config::default())?)
}

/// CPU time of all threads of the process, in nanoseconds.
fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// CPU time for each write, and the median latency, in microseconds.
struct Cost {
    cpu: f64,
    p50: f64,
}

/// Writes one after the other.
async fn cost<E>(write: impl AsyncFn(u64) -> Result<(), E>) -> Result<Cost, E> {
    let mut latencies = Vec::with_capacity(WRITES as usize);
    let before = cpu();
    for turn in 0..WRITES {
        let start = Instant::now();
        write(turn).await?;
        latencies.push(start.elapsed().as_nanos() as f64 / 1e3);
    }
    let cpu = (cpu() - before) / 1e3 / WRITES as f64;
    Ok(Cost { cpu, p50: median(latencies).value })
}

/// The rows of an acknowledgement. A flush is far away, so that nothing else is in them.
pub fn acknowledge(report: &mut Report) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let folder = tempfile::tempdir_in(".")?;
    let journal = journal(folder.path())?;
    let log = journal.log("bare", 0)?;
    let record = vec![7; RECORD_BYTES];
    let (mut own, mut bare) = (Vec::new(), Vec::new());
    runtime.block_on(async {
        let cache = behind(&journal, Duration::from_secs(3_600), Slow::new(Duration::ZERO, 1))?;
        let write = async |turn: u64| cache.write(turn % KEYS, vec![7; VALUE_BYTES]).await;
        let append = async |_: u64| {
            let commit = Commit::new().append(&log, [&record]);
            journal.commit(commit).await.map(|_| ())
        };
        // The first pair warms up.
        for pair in 0..=PAIRS {
            let (ours, theirs) = (cost(write).await?, cost(append).await?);
            if pair > 0 {
                own.push(ours);
                bare.push(theirs);
            }
        }
        Ok::<(), Error>(())
    })?;
    let of = |costs: &[Cost], figure: fn(&Cost) -> f64| -> Figure {
        median(costs.iter().map(figure).collect())
    };
    let name = "acknowledgement of write-behind";
    let (ours, theirs) = (of(&own, |cost| cost.cpu), of(&bare, |cost| cost.cpu));
    report.beside(&format!("{name}, CPU"), ours, "bare append", theirs, "us");
    let (ours, theirs) = (of(&own, |cost| cost.p50), of(&bare, |cost| cost.p50));
    report.beside(&format!("{name}, p50"), ours, "bare append", theirs, "us");
    Ok(())
}

/// Writes of so many tasks for half a second, and until the store has all of them: writes in a
/// second.
async fn rate(cache: Values, tasks: u64) -> Result<f64, Error> {
    const TIME: Duration = Duration::from_millis(500);
    let start = Instant::now();
    let mut running = JoinSet::new();
    for task in 0..tasks {
        let cache = cache.clone();
        running.spawn(async move {
            let mut writes = 0_u64;
            while start.elapsed() < TIME {
                let key = (task * 1_000_003 + writes) % 10_000;
                cache.write(key, vec![7; VALUE_BYTES]).await?;
                writes += 1;
            }
            Ok::<u64, voussoir_cache::WriteError>(writes)
        });
    }
    let mut writes = 0;
    while let Some(done) = running.join_next().await {
        writes += done??;
    }
    cache.flush().await;
    Ok(writes as f64 / start.elapsed().as_secs_f64())
}

/// Write-behind beside write-through, to a store that takes 1 ms for a call.
pub fn throughput(report: &mut Report) -> Result<(), Error> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_time().build()?;
    let folder = tempfile::tempdir_in(".")?;
    let journal = journal(folder.path())?;
    for (tasks, connections) in [(1, 1), (64, 1), (64, 8), (64, 64), (1024, 64)] {
        let slow = || Slow::new(Duration::from_millis(1), connections);
        let (mut own, mut through) = (Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            let (ours, theirs) = runtime.block_on(async {
                let cache = behind(&journal, Duration::from_millis(10), slow())?;
                let ours = rate(cache.clone(), tasks).await?;
                let closed = cache.close(Duration::from_secs(10)).await;
                assert!(closed.is_complete(), "{closed:?}");
                let theirs = rate(Cache::builder().sink(slow()).build()?, tasks).await?;
                Ok::<_, Error>((ours, theirs))
            })?;
            own.push(ours);
            through.push(theirs);
        }
        let row = format!("writes, {tasks} tasks, {connections} connections");
        report.beside(&row, median(own), "write-through", median(through), "1/s");
    }
    Ok(())
}
