//! A dependency slows, dies and comes back, and its clients meet it with no policy, with one, and
//! with all of them. Virtual time, one thread, seeded: the same table and picture every time.
//!
//! `cargo run --release -p voussoir-breaker --example outage [picture.svg]`

mod client;
mod picture;
mod server;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use client::{Client, Kind, Tally};
use server::Server;
use tokio::time::{Instant, sleep_until};

/// Seconds of a run.
const SECONDS: usize = 150;
/// Calls a second that users make.
const RATE: u64 = 200;
/// A user waits no longer.
const PATIENCE: Duration = Duration::from_secs(1);

/// One policy's run.
struct Run {
    kind: Kind,
    tally: Arc<Tally>,
    served: u64,
    wasted: u64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runs = Kind::ALL.map(run);
    println!("{SECONDS} s of {RATE} calls/s; slow from 20 s, dead from 40 s, back at 70 s.");
    println!("good: answered within {PATIENCE:?}. wasted: work of the server nobody waited for.");
    println!();
    println!(
        "| policy | good | good, last 60 s | p50 ms | p99 ms | attempts | wasted | fails fast |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for run in &runs {
        let (tally, total) = (&run.tally, (SECONDS as u64 * RATE) as f64);
        let good = tally.good.lock().expect("the run is over");
        let late: u32 = good[SECONDS - 60..].iter().sum();
        println!(
            "| {} | {:.1} % | {:.1} % | {:.0} | {:.0} | {} | {} of {} ({:.0} %) | {:.0} % |",
            run.kind.name(),
            100.0 * f64::from(good.iter().sum::<u32>()) / total,
            100.0 * f64::from(late) / (60 * RATE) as f64,
            tally.quantile(0.5),
            tally.quantile(0.99),
            tally.attempts.load(Relaxed),
            run.wasted,
            run.served,
            100.0 * run.wasted as f64 / run.served.max(1) as f64,
            tally.fast_failures(),
        );
    }
    if let Some(path) = std::env::args().nth(1) {
        let good = |run: &Run| run.tally.good.lock().expect("the run is over").clone();
        let lines: Vec<_> = runs.iter().map(|run| (run.kind, good(run))).collect();
        std::fs::write(&path, picture::draw(&lines))?;
        println!("\npicture in {path}");
    }
    Ok(())
}

fn run(kind: Kind) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O");
    runtime.block_on(async move {
        let server = Server::new(1);
        let client = Arc::new(Client::new(kind, Arc::clone(&server)));
        let start = Instant::now();
        let mut rng = server::Rng::new(2);
        let mut at = 0.0;
        while at < SECONDS as f64 {
            sleep_until(start + Duration::from_secs_f64(at)).await;
            let client = Arc::clone(&client);
            tokio::spawn(async move { client.user(at as usize).await });
            // Users come independently of each other.
            at += -(1.0 - rng.unit()).ln() / RATE as f64;
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
        let (served, wasted) = server.totals();
        Run { kind, tally: client.tally(), served, wasted }
    })
}
