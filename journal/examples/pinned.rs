//! One log that never lets go beside one that writes many times the size of the pool: every segment
//! is pinned by little, and space comes back by rewriting alone. Beside it the same load with both
//! logs letting go, and no rewriting.
//!
//! ```text
//! cargo run --release -p voussoir-journal --example journal-pinned -- [DIR] [GIB] [ROUNDS]
//! ```
//!
//! DIR is on the disk that is measured (default: the temporary folder), GIB is how much the busy
//! log writes in a round (default 8), through a pool of 1 GiB. It fails when a record of the cold
//! log is missing, or the pool grows beyond its bound.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use voussoir_journal::{Batch, Commit, Config, Journal, Stats};

const POOL: u64 = 1 << 30;
/// A commit of the busy log.
const COMMIT_BYTES: usize = 256 << 10;
/// The cold log gets a record of 1 KiB with each of so many commits: after 4 MiB.
const COLD_EVERY: u64 = 16;
/// Records of either log that are kept where they are let go.
const KEPT: u64 = 64;

/// What one round came to.
struct Round {
    mib_per_second: f64,
    p50_us: f64,
    p99_us: f64,
    stats: Stats,
    files_most: usize,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let parent = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let mut number =
        |default: u64| arguments.next().map_or(default, |number| number.parse().expect("a number"));
    let (gib, rounds) = (number(8), number(3));
    let folder = parent.join(format!("journal-pinned-{}", std::process::id()));
    println!("{gib} GiB in synced commits of 256 KiB through a pool of 1 GiB");
    let mut ratios = Vec::new();
    for round in 1..=rounds {
        let [without, with] = [false, true].map(|pins| {
            let measured = one_round(&folder, gib, pins);
            std::fs::remove_dir_all(&folder).expect("the folder goes");
            measured
        });
        print("both logs release", round, &without);
        print("one log never releases", round, &with);
        ratios.push(with.mib_per_second / without.mib_per_second);
    }
    ratios.sort_by(f64::total_cmp);
    if let (Some(least), Some(most)) = (ratios.first(), ratios.last()) {
        let median = ratios[ratios.len() / 2];
        println!(
            "throughput beside a log that never releases: {median:.2}x [{least:.2}..{most:.2}]"
        );
    }
}

fn print(name: &str, round: u64, measured: &Round) {
    let Round { mib_per_second, p50_us, p99_us, stats, files_most } = measured;
    println!(
        "round {round}  {name:23} {mib_per_second:6.0} MiB/s  p50 {p50_us:5.0} us  \
         p99 {p99_us:6.0} us  at most {files_most} files of 64 MiB; \
         {} segments rewritten, {} KiB moved",
        stats.segments_rewritten,
        stats.bytes_rewritten >> 10
    );
}

fn one_round(folder: &Path, gib: u64, pins: bool) -> Round {
    let mut config = Config::default();
    config.max_bytes = POOL;
    if !pins {
        config.rewrite_bytes_per_second = 0;
    }
    let journal = Journal::open(folder, config).expect("an empty journal opens");
    let log = |name| journal.log(name, 1).expect("a log");
    let (hot, cold) = (log("hot"), log("cold"));
    let batch = Batch::from(Bytes::from(vec![7u8; COMMIT_BYTES]));
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
    let took = began.elapsed().as_secs_f64();
    check(&journal, commits, files_most, pins);
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    let stats = journal.stats();
    let mib_per_second = (gib << 10) as f64 / took;
    Round { mib_per_second, p50_us: at(0.5), p99_us: at(0.99), stats, files_most }
}

/// The bound was kept, and the cold log has all of its records.
fn check(journal: &Journal, commits: u64, files_most: usize, pins: bool) {
    let most = POOL / (64 << 20) + 3;
    assert!(files_most as u64 <= most, "{files_most} files");
    if pins {
        let cold = journal.log("cold", 1).expect("a log");
        assert_eq!(cold.bounds(), 0..commits.div_ceil(COLD_EVERY));
        for position in 0..cold.end() {
            let record = cold.read(position).expect("a record");
            assert_eq!(record[..8], (position * COLD_EVERY).to_le_bytes());
        }
    }
}
