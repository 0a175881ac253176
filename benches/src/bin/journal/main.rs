//! The journal beside the bare system calls and, with the feature `rivals`, okaywal 0.3,
//! raft-engine 0.4 and walrus-rust 0.2. Arguments choose cases: batches, groups, many, sustained,
//! reads, recovery, fairness, rotation; without any, all run.
//!
//! `VOUSSOIR_BENCH_DIR` names the folder whose disk is measured (default: the temporary folder),
//! `VOUSSOIR_BENCH_ROUNDS` says how many rounds count (default 5).

mod bare;
mod latency;
#[cfg(feature = "rivals")]
mod rivals;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bare::Bare;
#[cfg(feature = "rivals")]
use rivals::{RaftEngineLog, okaywal, okaywal_append, raft_engine, walrus, walrus_append};
use voussoir_benches::{Sample, compare, contender, time};
use voussoir_journal::{Commit, Config, Journal, Log};

/// How long one round of one contender goes on.
const ROUND: Duration = Duration::from_millis(700);
/// Records that a log keeps; older ones are released, so that segments are recycled.
const KEEP: u64 = 1 << 14;

fn main() {
    let rounds = number("VOUSSOIR_BENCH_ROUNDS", 5);
    let parent =
        std::env::var_os("VOUSSOIR_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(parent).expect("a temporary folder");
    let chosen: Vec<String> = std::env::args().skip(1).collect();
    let run = |case: &str, work: &dyn Fn(&Path, usize)| {
        if chosen.is_empty() || chosen.iter().any(|chosen| chosen == case) {
            work(folder.path(), rounds);
        }
    };
    run("batches", &|folder, rounds| {
        for (records, bytes) in [(1, 100), (100, 100), (1000, 1024)] {
            batches(folder, rounds, records, bytes, Content::Equal);
        }
        batches(folder, rounds, 1000, 1024, Content::Random);
    });
    run("groups", &groups);
    run("many", &many_logs);
    run("sustained", &sustained);
    run("reads", &reads);
    run("recovery", &recovery);
    run("fairness", &latency::fairness);
    run("rotation", &latency::rotation);
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// A fresh folder of its own for each case.
fn fresh(folder: &Path) -> tempfile::TempDir {
    tempfile::tempdir_in(folder).expect("a temporary folder")
}

fn open(folder: &Path, change: impl FnOnce(&mut Config)) -> Journal {
    let mut options = Config::default();
    change(&mut options);
    Journal::open(folder.join("journal"), options).expect("an empty journal opens")
}

/// An append of all records to `log`, with a release of what is too old.
fn commit_of(log: &Log, records: &[Vec<u8>]) -> Commit {
    let commit = Commit::new().append(log, records.iter());
    match log.end().checked_sub(KEEP) {
        Some(upto) if upto > log.first() + KEEP / 4 => commit.release(log, upto),
        _ => commit,
    }
}

/// Calls `work` until the round is over.
fn until_over(mut work: impl FnMut()) -> u64 {
    let end = Instant::now() + ROUND;
    let mut done = 0;
    while Instant::now() < end {
        work();
        done += 1;
    }
    done
}

/// What records consist of: raft-engine compresses them.
#[derive(Debug, Clone, Copy)]
enum Content {
    /// One byte over and over.
    Equal,
    /// Bytes that no compression makes smaller.
    Random,
}

impl Content {
    fn records(self, records: usize, bytes: usize) -> Vec<Vec<u8>> {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut record = || match self {
            Self::Equal => vec![7; bytes],
            Self::Random => (0..bytes).map(|_| rng.u8(..)).collect(),
        };
        (0..records).map(|_| record()).collect()
    }
}

fn batches(folder: &Path, rounds: usize, records: usize, bytes: usize, content: Content) {
    let folder = fresh(folder);
    let batch = content.records(records, bytes);
    let flat = batch.concat();
    let journal = open(folder.path(), |_| {});
    let log = journal.log("bench", 1).expect("a log");
    let bare = Bare::new(folder.path(), 64 << 20).expect("a file");
    #[cfg(feature = "rivals")]
    let (wal, engine, mut engine_log, walrus) = (
        okaywal(folder.path()).expect("an empty wal opens"),
        raft_engine(folder.path()),
        RaftEngineLog::new(1),
        walrus(folder.path()).expect("an empty walrus opens"),
    );
    let current = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let multi = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build();
    let multi = multi.expect("a runtime");
    let two_in_flight = |runtime: &tokio::runtime::Runtime| {
        time(|| {
            runtime.block_on(async {
                let end = Instant::now() + ROUND;
                let mut done = 0;
                let mut before = journal.commit(commit_of(&log, &batch));
                while Instant::now() < end {
                    let next = journal.commit(commit_of(&log, &batch));
                    before.await.expect("a commit");
                    (before, done) = (next, done + 1);
                }
                before.await.expect("a commit");
                done + 1
            })
        })
    };
    let case = match content {
        Content::Equal => format!("synced batches of {records} x {bytes} B"),
        Content::Random => format!("synced batches of {records} x {bytes} B, random bytes"),
    };
    let contenders = vec![
        contender("journal, blocking caller", || {
            time(|| {
                until_over(|| {
                    journal.commit_blocking(commit_of(&log, &batch)).expect("a commit");
                })
            })
        }),
        contender("journal, two in flight, current-thread", || two_in_flight(&current)),
        contender("journal, two in flight, multi-thread", || two_in_flight(&multi)),
        contender("bare write + fdatasync", || {
            time(|| until_over(|| bare.append(&flat).expect("a write")))
        }),
        #[cfg(feature = "rivals")]
        contender("okaywal 0.3", || {
            time(|| until_over(|| okaywal_append(&wal, &batch).expect("an entry")))
        }),
        #[cfg(feature = "rivals")]
        contender("raft-engine 0.4", || time(|| until_over(|| engine_log.append(&engine, &batch)))),
        #[cfg(feature = "rivals")]
        contender("walrus-rust 0.2", || {
            time(|| until_over(|| walrus_append(&walrus, &batch).expect("a batch")))
        }),
    ];
    compare(&case, rounds, contenders);
}

/// `threads` threads that call `work` with their number until the round is over.
fn with_threads(threads: u64, work: impl Fn(u64) + Sync) -> Sample {
    time(|| {
        let done = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (work, done) = (&work, &done);
                scope.spawn(move || {
                    done.fetch_add(until_over(|| work(thread)), Ordering::Relaxed);
                });
            }
        });
        done.into_inner()
    })
}

/// `tasks` tasks that each commit one record after the other.
fn with_tasks(runtime: &tokio::runtime::Runtime, journal: &Journal, logs: &[Log]) -> Sample {
    time(|| {
        runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for log in logs {
                let (journal, log) = (journal.clone(), log.clone());
                tasks.spawn(async move {
                    let record = vec![vec![7u8; 100]];
                    let end = Instant::now() + ROUND;
                    let mut done = 0;
                    while Instant::now() < end {
                        journal.commit(commit_of(&log, &record)).await.expect("a commit");
                        done += 1;
                    }
                    done
                });
            }
            tasks.join_all().await.into_iter().sum()
        })
    })
}

fn groups(folder: &Path, rounds: usize) {
    let folder = fresh(folder);
    let record = vec![vec![7u8; 100]];
    let journal = open(folder.path(), |_| {});
    let logs: Vec<Log> = (0..64).map(|id| journal.log("bench", id).expect("a log")).collect();
    #[cfg(feature = "rivals")]
    let (wal, engine) =
        (okaywal(folder.path()).expect("an empty wal opens"), raft_engine(folder.path()));
    #[cfg(feature = "rivals")]
    let engine_logs: Vec<parking_lot::Mutex<RaftEngineLog>> =
        (1..=64).map(|region| parking_lot::Mutex::new(RaftEngineLog::new(region))).collect();
    let multi = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build();
    let multi = multi.expect("a runtime");
    let current = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let contenders = vec![
        contender("journal, 64 threads", || {
            with_threads(64, |thread| {
                let commit = commit_of(&logs[thread as usize], &record);
                journal.commit_blocking(commit).expect("a commit");
            })
        }),
        contender("journal, 64 tasks, multi-thread", || with_tasks(&multi, &journal, &logs)),
        contender("journal, 64 tasks, current-thread", || with_tasks(&current, &journal, &logs)),
        #[cfg(feature = "rivals")]
        contender("okaywal 0.3, 64 threads", || {
            with_threads(64, |_| okaywal_append(&wal, &record).expect("an entry"))
        }),
        #[cfg(feature = "rivals")]
        contender("raft-engine 0.4, 64 threads", || {
            with_threads(64, |thread| engine_logs[thread as usize].lock().append(&engine, &record))
        }),
    ];
    compare("single synced appends of 100 B from 64 writers", rounds, contenders);
}

fn many_logs(folder: &Path, rounds: usize) {
    let folder = fresh(folder);
    let record = vec![vec![7u8; 100]];
    let journal = open(folder.path(), |_| {});
    let one = journal.log("one", 0).expect("a log");
    let many: Vec<Log> = (0..1000).map(|id| journal.log("many", id).expect("a log")).collect();
    let turn = AtomicU64::new(0);
    let contenders = vec![
        contender("64 threads over 1,000 logs", || {
            with_threads(64, |_| {
                let log = &many[(turn.fetch_add(1, Ordering::Relaxed) % 1000) as usize];
                journal.commit_blocking(commit_of(log, &record)).expect("a commit");
            })
        }),
        contender("64 threads over one log", || {
            with_threads(64, |_| {
                journal.commit_blocking(commit_of(&one, &record)).expect("a commit");
            })
        }),
    ];
    compare("single synced appends of 100 B, many logs or one", rounds, contenders);
}

/// From an empty folder, so that every segment is created and zeroed in the time that counts.
fn sustained(folder: &Path, rounds: usize) {
    const POOL: u64 = 256 << 20;
    let batch = vec![vec![7u8; 1024]; 1000];
    let flat = batch.concat();
    let commits = POOL * 4 / flat.len() as u64;
    let contenders = vec![
        contender("journal, zeroing counted", || {
            let folder = fresh(folder);
            time(|| {
                let journal = open(folder.path(), |options| {
                    options.segment_bytes = 16 << 20;
                    options.max_bytes = POOL;
                });
                let log = journal.log("bench", 1).expect("a log");
                for _ in 0..commits {
                    journal.commit_blocking(commit_of(&log, &batch)).expect("a commit");
                }
                commits
            })
        }),
        contender("bare loop over a zeroed file, zeroing counted", || {
            let folder = fresh(folder);
            time(|| {
                let bare = Bare::new(folder.path(), POOL).expect("a file");
                for _ in 0..commits {
                    bare.append(&flat).expect("a write");
                }
                commits
            })
        }),
    ];
    compare("sustained: 1 GiB in 1000 x 1 KiB over a pool of 256 MiB", rounds, contenders);
}

fn reads(folder: &Path, rounds: usize) {
    const BATCH: usize = 64 << 10;
    const COUNT: u64 = 2048;
    let folder = fresh(folder);
    let journal = open(folder.path(), |_| {});
    let log = journal.log("bench", 1).expect("a log");
    let bare = Bare::new(folder.path(), COUNT * BATCH as u64).expect("a file");
    let record = [vec![7u8; BATCH - 64]];
    for _ in 0..COUNT {
        journal.commit_blocking(Commit::new().append(&log, record.iter())).expect("a commit");
    }
    let contenders = vec![
        contender("journal, checked", || {
            time(|| {
                for position in log.first()..log.end() {
                    std::hint::black_box(log.read(position).expect("a record"));
                }
                COUNT
            })
        }),
        contender("bare pread", || {
            let mut buf = vec![0; BATCH];
            time(|| {
                for index in 0..COUNT {
                    bare.read(&mut buf, index * BATCH as u64).expect("bytes");
                    std::hint::black_box(&buf);
                }
                COUNT
            })
        }),
    ];
    compare("reads of 64 KiB batches, page cache warm", rounds, contenders);
}

/// The whole tail is scanned: nothing was sealed, as after a crash.
fn recovery(folder: &Path, rounds: usize) {
    const BYTES: u64 = 512 << 20;
    let folder = fresh(folder);
    let change = |options: &mut Config| options.segment_bytes = 1 << 30;
    let frames = BYTES / (16 << 10);
    {
        let journal = open(folder.path(), change);
        let log = journal.log("bench", 1).expect("a log");
        let record = [vec![7u8; (16 << 10) - 128]];
        let mut last = None;
        for _ in 0..frames {
            last = Some(journal.commit_blocking(Commit::new().append(&log, record.iter())));
        }
        last.expect("a commit").expect("a commit");
    }
    let bare = Bare::new(folder.path(), BYTES).expect("a file");
    let contenders = vec![
        contender("journal, open", || time(|| drop_open(folder.path(), change, frames))),
        contender("bare pread of 1 MiB with CRC-32C", || {
            let mut buf = vec![0; 1 << 20];
            time(|| {
                for offset in (0..BYTES).step_by(buf.len()) {
                    bare.read(&mut buf, offset).expect("bytes");
                    std::hint::black_box(crc_fast::crc32_iscsi(&buf));
                }
                frames
            })
        }),
    ];
    compare("recovery scan of 512 MiB in frames of 16 KiB", rounds, contenders);
}

fn drop_open(folder: &Path, change: impl FnOnce(&mut Config), frames: u64) -> u64 {
    let journal = open(folder, change);
    assert_eq!(journal.log("bench", 1).expect("a log").end(), frames, "recovered all");
    frames
}
