//! A dependency slows, dies and comes back, and its clients meet it with no policy, with one, and
//! with all of them. Virtual time, one thread, seeded: the same table and picture every time.
//!
//! `cargo run --release -p voussoir-breaker --example outage [picture.svg]`

mod client;
mod picture;
mod run;
mod server;

use std::sync::atomic::Ordering::Relaxed;

use client::Kind;
use run::{PATIENCE, RATE, Run, SECONDS, run};

fn main() -> std::io::Result<()> {
    println!(
        "{SECONDS} s of {RATE} users/s; slow from 20 s, dead from 40 s, cold from 70 to 75 s."
    );
    println!("good: answered within {PATIENCE:?}. wasted: server's work that nobody waited for.");
    println!();
    println!(
        "| policy | good | good after 90 s | p50 ms | p99 ms | attempts | wasted | fails fast |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let runs = Kind::ALL.map(run);
    for Run { kind, tally, served, wasted } in &runs {
        println!(
            "| {} | {:.1} % | {:.1} % | {:.0} | {:.0} | {} | {wasted} of {served} ({:.0} %) \
             | {:.0} % |",
            kind.name(),
            tally.good_from(0),
            tally.good_from(90),
            tally.quantile(0.5),
            tally.quantile(0.99),
            tally.attempts.load(Relaxed),
            100.0 * *wasted as f64 / (*served).max(1) as f64,
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
