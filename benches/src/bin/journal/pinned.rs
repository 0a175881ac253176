//! One log that never lets go beside one that writes many times the size of the pool: with it every
//! segment is pinned by little, and space comes back by rewriting alone.
//!
//! `VOUSSOIR_BENCH_GIB` says how much the busy log writes in one round of one contender (default 2).

use std::path::Path;
use std::time::{Duration, Instant};

use voussoir_benches::Spread;
use voussoir_journal::{Batch, Commit, Journal, Stats};

use crate::{fresh, number, open};

const POOL: u64 = 1 << 30;
/// A commit of the busy log.
const COMMIT_BYTES: usize = 256 << 10;
/// The cold log gets a record of 1 KiB with each of so many commits: after 4 MiB.
const COLD_EVERY: u64 = 16;
/// Records of either log that are kept, where they are let go.
const KEPT: u64 = 64;

/// What one round of one contender came to.
struct Round {
    mib_per_second: f64,
    p50: f64,
    p99: f64,
    stats: Stats,
    files_most: usize,
}

pub(crate) fn pinned(folder: &Path, rounds: usize) {
    let gib = number("VOUSSOIR_BENCH_GIB", 2) as u64;
    let names = ["both logs release, no rewriting", "one log never releases"];
    let mut all: [Vec<Round>; 2] = [Vec::new(), Vec::new()];
    for round in 0..=rounds {
        for (pins, done) in [false, true].into_iter().zip(&mut all) {
            let measured = one_round(&fresh(folder).path().join("pinned"), gib, pins);
            // The first round warms up.
            if round > 0 {
                done.push(measured);
            }
        }
    }
    println!("\n{gib} GiB through a pool of 1 GiB (median of {rounds} rounds [min..max])");
    for (name, rounds) in names.iter().zip(&all) {
        let spread = |of: fn(&Round) -> f64| Spread::of(rounds.iter().map(of));
        let (rate, p50, p99) = (spread(|r| r.mib_per_second), spread(|r| r.p50), spread(|r| r.p99));
        let most = rounds.iter().map(|round| round.files_most).max().unwrap_or(0);
        println!(
            "  {name:32} {:6.0} MiB/s [{:.0}..{:.0}]  p50 {:5.0} us  p99 {:6.0} us [{:.0}..{:.0}]  \
             at most {most} files",
            rate.median, rate.min, rate.max, p50.median, p99.median, p99.min, p99.max
        );
        for Round { stats, .. } in rounds.iter().take(1) {
            println!(
                "  {:32} {} segments came back by rewriting, which wrote {} KiB",
                "",
                stats.segments_rewritten,
                stats.bytes_rewritten >> 10
            );
        }
        println!(
            "{{\"case\":\"pinned\",\"name\":{name:?},\"mib_per_second\":{:.1},\"p99_us\":{:.1}}}",
            rate.median, p99.median
        );
    }
    let ratio = Spread::of(
        all[1]
            .iter()
            .zip(&all[0])
            .map(|(with, without)| with.mib_per_second / without.mib_per_second),
    );
    println!("  throughput: {:.2} [{:.2}..{:.2}] of without", ratio.median, ratio.min, ratio.max);
}

fn one_round(folder: &Path, gib: u64, pins: bool) -> Round {
    let journal = open(folder, |config| {
        config.max_bytes = POOL;
        if !pins {
            config.rewrite_bytes_per_second = 0;
        }
    });
    let (hot, cold) =
        (journal.log("hot", 1).expect("a log"), journal.log("cold", 1).expect("a log"));
    let batch = Batch::from(bytes::Bytes::from(vec![7u8; COMMIT_BYTES]));
    let commits = (gib << 30) / COMMIT_BYTES as u64;
    let mut times: Vec<Duration> = Vec::with_capacity(commits as usize);
    let mut files_most = 0;
    let began = Instant::now();
    for number in 0..commits {
        let mut commit = Commit::new().append_batch(&hot, batch.clone());
        commit = commit.release(&hot, hot.end().saturating_sub(KEPT));
        if number % COLD_EVERY == 0 {
            commit = commit.append(&cold, [number.to_le_bytes().repeat(128)]);
            if !pins {
                commit = commit.release(&cold, cold.end().saturating_sub(KEPT));
            }
            files_most = files_most.max(journal.stats().files);
        }
        let start = Instant::now();
        journal.commit_blocking(commit).expect("there is room");
        times.push(start.elapsed());
    }
    let took = began.elapsed();
    check(&journal, commits, pins);
    times.sort_unstable();
    let at = |quantile: f64| times[((times.len() - 1) as f64 * quantile) as usize].as_secs_f64();
    Round {
        mib_per_second: (gib << 10) as f64 / took.as_secs_f64(),
        p50: at(0.5) * 1e6,
        p99: at(0.99) * 1e6,
        stats: journal.stats(),
        files_most,
    }
}

/// The bound was kept, and the cold log has all of its records.
fn check(journal: &Journal, commits: u64, pins: bool) {
    let cold = journal.log("cold", 1).expect("a log");
    let segments = POOL / (64 << 20) + 3;
    assert!(journal.stats().files as u64 <= segments, "{:?}", journal.stats());
    if pins {
        assert_eq!(cold.bounds(), 0..commits.div_ceil(COLD_EVERY));
        for position in 0..cold.end() {
            let record = cold.read(position).expect("a record");
            assert_eq!(record[..8], (position * COLD_EVERY).to_le_bytes());
        }
    }
}
