//! The demonstration: starts the service as a process of its own, reports views, kills the service
//! twice with `kill -9`, takes the database away, and compares the table with the ledger.

mod edges;
mod servers;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::Error;
use crate::counters::Table;
use crate::http::Numbers;
use edges::{Edges, differences};
use servers::Server;

/// How long the service may take to say where it listens.
const START_WAIT: Duration = Duration::from_secs(20);
/// How long the service may take to end, its flush included.
const END_WAIT: Duration = Duration::from_secs(30);
/// How long the service may take to answer `GET /stats`.
const STATS_WAIT: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Length of the load, in seconds
    #[arg(long, default_value_t = 20, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(8..=50))]
    pub(crate) seconds: u64,
}

/// What happens during the load, and when: in parts of its length.
const EVENTS: [(f64, Event); 4] = [
    (0.20, Event::DatabaseGoes),
    (0.35, Event::Kill),
    (0.50, Event::DatabaseReturns),
    (0.70, Event::Kill),
];

#[derive(Clone, Copy, Debug)]
enum Event {
    DatabaseGoes,
    DatabaseReturns,
    Kill,
}

/// Runs the demonstration.
///
/// # Errors
/// Something could not be started, or a count was lost or doubled.
pub(crate) async fn run(demo: &Demo, url: Option<String>) -> Result<(), Error> {
    let postgres = Server::postgresql(url).await?;
    println!("database: {}", postgres.description());
    let name = format!("write_behind_demo_{}", std::process::id());
    let table = Table::new(postgres.url(), &name)?;
    table.create().await?;
    let folder = tempfile::Builder::new().prefix("write-behind-").tempdir()?;
    let mut stage = Stage { postgres, table, name, process: None, address: None, kills: 0 };
    let outcome = stage.play(demo, folder.path()).await;
    if outcome.is_err() {
        // Its own server is removed with everything in it; a given one must be left as it was.
        let name = &stage.name;
        let drop = format!("DROP TABLE IF EXISTS {name}; DROP TABLE IF EXISTS {name}_away");
        let _ = stage.table.execute(&drop).await;
    }
    stage.postgres.end().await?;
    outcome
}

/// The processes of the demonstration.
struct Stage {
    postgres: Server,
    table: Table,
    name: String,
    /// The service.
    process: Option<Child>,
    address: Option<watch::Sender<SocketAddr>>,
    kills: u32,
}

impl Stage {
    async fn play(&mut self, demo: &Demo, folder: &Path) -> Result<(), Error> {
        let address = self.start_service(folder).await?;
        println!("service: http://{address}, journal in {}", folder.display());
        let (sender, receiver) = watch::channel(address);
        self.address = Some(sender);
        let mut edges = Edges::start(&receiver);
        let (began, length) = (Instant::now(), Duration::from_secs(demo.seconds));
        let mut view = View::new(began);
        for (part, event) in EVENTS {
            view.show_until(began + length.mul_f64(part), &receiver, &mut edges).await?;
            self.cause(event, folder, began).await?;
        }
        view.show_until(began + length, &receiver, &mut edges).await?;
        let (traffic, ledger) = (edges.traffic.clone(), edges.finish().await?);
        view.show(&receiver, &traffic).await;
        self.stop_service().await?;
        let rows = self.table.rows().await?;
        let different = differences(&ledger, &rows);
        let (reports, views) = traffic.lock().acknowledged();
        let in_table: u64 = rows.values().map(|count| count.views).sum();
        println!("\nledger: {views} views in {reports} acknowledged reports");
        println!("table:  {in_table} views in {} rows, after {} kills", rows.len(), self.kills);
        if let Some((key, ours, theirs)) = different.first() {
            return Err(format!(
                "{} counters differ; page {} of edge {}: acknowledged {ours:?}, table {theirs:?}",
                different.len(),
                key.page,
                key.edge,
            )
            .into());
        }
        println!("exact: every counter of the table is what was acknowledged");
        Ok(self.table.execute(&format!("DROP TABLE {}", self.name)).await?)
    }

    async fn cause(&mut self, event: Event, folder: &Path, began: Instant) -> Result<(), Error> {
        let name = &self.name;
        let said = match event {
            Event::DatabaseGoes if self.postgres.is_own() => {
                self.postgres.crash().await?;
                "the database is killed"
            }
            Event::DatabaseGoes => {
                let away = format!("ALTER TABLE {name} RENAME TO {name}_away");
                self.table.execute(&away).await?;
                "the table is renamed away: the server of DATABASE_URL is not ours to stop"
            }
            Event::DatabaseReturns if self.postgres.is_own() => {
                self.postgres.restart().await?;
                "the database is back"
            }
            Event::DatabaseReturns => {
                let back = format!("ALTER TABLE {name}_away RENAME TO {name}");
                self.table.execute(&back).await?;
                "the table is back"
            }
            Event::Kill => {
                let mut process = self.process.take().ok_or("the service does not run")?;
                process.kill().await?;
                self.kills += 1;
                let address = self.start_service(folder).await?;
                if let Some(sender) = &self.address {
                    sender.send_replace(address);
                }
                "the service was killed (kill -9) and started again from its journal"
            }
        };
        println!("{:>4.1} s  --- {said}", began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Starts the service on a free port, and returns its address.
    async fn start_service(&mut self, folder: &Path) -> Result<SocketAddr, Error> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["serve", "--exit-with-parent", "--listen", "127.0.0.1:0", "--table", &self.name])
            .arg("--data")
            .arg(folder)
            .env("DATABASE_URL", self.postgres.url())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .process_group(0)
            .spawn()?;
        let stdout = process.stdout.take().ok_or("the service has no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = timeout(START_WAIT, lines.next_line()).await??;
        let address = line.as_deref().and_then(|line| {
            line.strip_prefix("listening on http://")?.split(',').next()?.parse().ok()
        });
        self.process = Some(process);
        address.ok_or_else(|| format!("the service did not start: {line:?}").into())
    }

    /// Closes the standard input of the service, which then flushes and ends.
    async fn stop_service(&mut self) -> Result<(), Error> {
        let mut process = self.process.take().ok_or("the service does not run")?;
        drop(process.stdin.take());
        let status = timeout(END_WAIT, process.wait()).await??;
        if status.success() { Ok(()) } else { Err(format!("the service ended: {status}").into()) }
    }
}

/// The live view: one line a second.
struct View {
    began: Instant,
    next: Instant,
    /// At the line before.
    reports: u64,
    numbers: Numbers,
    lines: u32,
}

impl View {
    fn new(began: Instant) -> Self {
        let next = began + Duration::from_secs(1);
        Self { began, next, reports: 0, numbers: Numbers::default(), lines: 0 }
    }

    /// Shows a line a second until `end`.
    ///
    /// # Errors
    /// A lane has failed.
    async fn show_until(
        &mut self,
        end: Instant,
        address: &watch::Receiver<SocketAddr>,
        edges: &mut Edges,
    ) -> Result<(), Error> {
        // An event may have taken longer than the view's next line could wait.
        self.next = self.next.max(Instant::now());
        // Ends: at `end`, which comes nearer each second.
        while self.next < end {
            tokio::select! {
                () = sleep(self.next.saturating_duration_since(Instant::now())) => {}
                error = edges.failure() => return Err(error),
            }
            self.show(address, &edges.traffic.clone()).await;
            self.next += Duration::from_secs(1);
        }
        tokio::select! {
            () = sleep(end.saturating_duration_since(Instant::now())) => Ok(()),
            error = edges.failure() => Err(error),
        }
    }

    async fn show(
        &mut self,
        address: &watch::Receiver<SocketAddr>,
        traffic: &parking_lot::Mutex<edges::Traffic>,
    ) {
        if self.lines.is_multiple_of(12) {
            println!(
                "  time  acknowledged  ack p50   p99      hits  backlog  rows written  failed  \
                 flush p50   p99      repeats"
            );
        }
        self.lines += 1;
        let address = *address.borrow();
        let (reports, repeats, mut latencies) = {
            let mut traffic = traffic.lock();
            (traffic.reports, traffic.repeats, std::mem::take(&mut traffic.latencies))
        };
        latencies.sort_unstable();
        let quantile = |q: usize| {
            let at = (latencies.len() * q / 100).min(latencies.len().saturating_sub(1));
            latencies.get(at).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
        };
        let Ok(Ok(now)) = timeout(STATS_WAIT, edges::numbers(address)).await else {
            let elapsed = self.began.elapsed().as_secs_f64();
            println!("{elapsed:>4.1} s  the service does not answer");
            return;
        };
        // The counters of a new process begin at zero.
        let since = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        let hits = since(now.hits, self.numbers.hits);
        let misses = since(now.misses, self.numbers.misses);
        println!(
            "{:>4.1} s  {:>10}/s  {:>4.1} ms  {:>6.1} ms  {:>4.1} %  {:>6}  {:>12}  {:>6}  \
             {:>6.1} ms  {:>6.1} ms  {:>6}",
            self.began.elapsed().as_secs_f64(),
            reports - self.reports,
            quantile(50),
            quantile(99),
            100.0 * hits as f64 / (hits + misses).max(1) as f64,
            now.backlog,
            now.flushed,
            now.flush_failures,
            now.flush_p50_ms,
            now.flush_p99_ms,
            repeats,
        );
        (self.reports, self.numbers) = (reports, now);
    }
}
