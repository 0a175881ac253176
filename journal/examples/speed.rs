//! Measures the journal against a bare loop of write and fdatasync over a recycled file, in
//! turns, and prints the medians and their ratio:
//!
//! ```text
//! cargo run --release --example journal-speed -- [DIR] [SECONDS PER CELL] [PART]
//! ```
//!
//! PART is one of batches, threads, reads, rotation, fairness, recovery; all without it.
//! DIR (default: a folder in the system's temporary directory) should be on the disk in question.

use std::fs::OpenOptions;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use voussoir_journal::{Batch, Commit, Journal, Log, Options};

const ROUNDS: usize = 5;
const FILE_BYTES: u64 = 64 << 20;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().map_or_else(
        || std::env::temp_dir().join(format!("journal-speed-{}", std::process::id())),
        PathBuf::from,
    );
    let seconds: f64 = arguments.next().map_or(Ok(0.3), |text| text.parse())?;
    let cell = Duration::from_secs_f64(seconds);
    let part = arguments.next();
    let wanted = |name: &str| part.as_deref().is_none_or(|part| part == name);
    std::fs::create_dir_all(&dir)?;
    println!("{:<44} {:>12} {:>12} {:>6}", "case", "journal/s", "bare/s", "ratio");
    bare_loop(&dir, 4096, Duration::ZERO)?;
    let journal = Journal::open(dir.join("journal"), Options::default())?;
    let log = journal.log("speed", 0)?;
    if wanted("batches") {
        batches(&journal, &log, &dir, cell)?;
    }
    if wanted("threads") {
        for (writers, logs) in [(8, 1), (8, 1000), (64, 1), (64, 1000)] {
            let name = format!("synced 1 x 100 B, {writers} threads, logs: {logs}");
            report(&name, ROUNDS, || threads(&journal, writers, logs, cell));
        }
    }
    if wanted("reads") {
        reads(&journal, &dir, cell)?;
    }
    if wanted("fairness") {
        fairness(&journal, &log)?;
    }
    println!("{:?}", journal.stats());
    journal.close()?;
    if wanted("rotation") {
        rotation(&dir.join("rotation"))?;
    }
    if wanted("recovery") {
        recovery(&dir)?;
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// Batches of one log, from a blocking caller and with two in flight.
fn batches(journal: &Journal, log: &Log, dir: &Path, cell: Duration) -> Result<(), Failure> {
    warm_up(journal, log)?;
    for (records, bytes) in [(1, 100), (100, 100), (1000, 1024)] {
        let name = format!("synced {records} x {bytes} B, blocking caller");
        compare(&name, records, cell, dir, bytes, || blocking(journal, log, records, bytes, cell))?;
        let name = format!("synced {records} x {bytes} B, two in flight");
        compare(&name, records, cell, dir, bytes, || {
            in_flight(journal, log, records, bytes, cell)
        })?;
    }
    Ok(())
}

/// Writes until segments are recycled and none is created any more.
fn warm_up(journal: &Journal, log: &Log) -> Result<(), Failure> {
    for round in 0..600 {
        journal.commit_blocking(commit(log, 1000, 1024, round))?;
    }
    Ok(())
}

/// Medians of journal and bare loop, in turns; figures are records per second.
fn compare(
    name: &str,
    records: usize,
    cell: Duration,
    dir: &Path,
    bytes: usize,
    mut journal: impl FnMut() -> f64,
) -> Result<(), Failure> {
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bare.push(bare_loop(dir, records * bytes, cell)? * records as f64);
        ours.push(journal());
    }
    let (ours, bare) = (median(ours), median(bare));
    println!("{name:<44} {ours:>12.0} {bare:>12.0} {:>6.2}", ours / bare);
    Ok(())
}

fn report(name: &str, rounds: usize, mut run: impl FnMut() -> f64) {
    let figures = (0..rounds).map(|_| run()).collect();
    println!("{name:<44} {:>12.0}", median(figures));
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn bare_loop(dir: &Path, bytes: usize, cell: Duration) -> Result<f64, Failure> {
    let path = dir.join("bare");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    if file.metadata()?.len() < FILE_BYTES {
        let zeros = vec![0; 1 << 20];
        for at in 0..FILE_BYTES >> 20 {
            file.write_all_at(&zeros, at << 20)?;
        }
        file.sync_all()?;
    }
    let buffer = vec![7; bytes];
    let (start, mut rounds, mut at) = (Instant::now(), 0u64, 0u64);
    while start.elapsed() < cell {
        if at + bytes as u64 > FILE_BYTES {
            at = 0;
        }
        file.write_all_at(&buffer, at)?;
        file.sync_data()?;
        at += bytes as u64;
        rounds += 1;
    }
    Ok(rounds as f64 / start.elapsed().as_secs_f64())
}

/// A batch is at most 1 MiB with its table.
fn commit(log: &Log, records: usize, bytes: usize, round: u64) -> Commit {
    let record = vec![round as u8; bytes];
    let mut builder = log.batch(records * (bytes + 4));
    for _ in 0..records {
        builder.push(black_box(&record));
    }
    // Keep about 100 MiB, so that segments are recycled.
    let keep = (100 << 20) / bytes as u64;
    Commit::new().append_batch(log, builder.finish()).release(log, log.end().saturating_sub(keep))
}

fn blocking(journal: &Journal, log: &Log, records: usize, bytes: usize, cell: Duration) -> f64 {
    let (start, mut rounds) = (Instant::now(), 0u64);
    while start.elapsed() < cell {
        journal.commit_blocking(commit(log, records, bytes, rounds)).expect("a commit");
        rounds += 1;
    }
    (rounds * records as u64) as f64 / start.elapsed().as_secs_f64()
}

fn in_flight(journal: &Journal, log: &Log, records: usize, bytes: usize, cell: Duration) -> f64 {
    let (done, outcomes) = mpsc::channel();
    let submit = |round| {
        let done = done.clone();
        let commit = commit(log, records, bytes, round);
        journal.submit(commit, move |outcome| drop(done.send(outcome))).expect("room");
    };
    let (start, mut rounds) = (Instant::now(), 1u64);
    submit(0);
    while start.elapsed() < cell {
        submit(rounds);
        rounds += 1;
        outcomes.recv().expect("an outcome").expect("a commit");
    }
    outcomes.recv().expect("an outcome").expect("a commit");
    (rounds * records as u64) as f64 / start.elapsed().as_secs_f64()
}

fn threads(journal: &Journal, writers: u64, logs: u64, cell: Duration) -> f64 {
    let start = Instant::now();
    let commits: u64 = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..writers)
            .map(|writer| {
                scope.spawn(move || {
                    let logs: Vec<Log> = (0..logs.div_ceil(writers))
                        .map(|log| journal.log("threads", (log * writers + writer) % logs))
                        .collect::<Result<_, _>>()
                        .expect("logs");
                    let mut rounds = 0;
                    while start.elapsed() < cell {
                        let log = &logs[rounds as usize % logs.len()];
                        let commit = Commit::new().append(log, [[1u8; 100]]);
                        let commit = commit.release(log, log.end().saturating_sub(1000));
                        journal.commit_blocking(commit).expect("a commit");
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().expect("a writer")).sum()
    });
    commits as f64 / start.elapsed().as_secs_f64()
}

fn reads(journal: &Journal, dir: &Path, cell: Duration) -> Result<(), Failure> {
    const BATCH: u64 = 64 << 10;
    let reads = journal.log("reads", 0)?;
    for _ in 0..512 {
        let batch = Batch::from(bytes::Bytes::from(vec![3; BATCH as usize]));
        journal.commit_blocking(Commit::new().append_batch(&reads, batch))?;
    }
    let file = OpenOptions::new().read(true).open(dir.join("bare"))?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (start, mut count) = (Instant::now(), 0u64);
        let mut buffer = vec![0; BATCH as usize];
        while start.elapsed() < cell {
            file.read_exact_at(&mut buffer, count % 512 * BATCH)?;
            black_box(&buffer);
            count += 1;
        }
        bare.push(count as f64 / start.elapsed().as_secs_f64());
        let (start, mut count) = (Instant::now(), 0u64);
        while start.elapsed() < cell {
            black_box(reads.read(count % 512)?);
            count += 1;
        }
        ours.push(count as f64 / start.elapsed().as_secs_f64());
    }
    let (ours, bare) = (median(ours), median(bare));
    println!("{:<44} {ours:>12.0} {bare:>12.0} {:>6.2}", "checked reads of 64 KiB", ours / bare);
    journal.commit_blocking(Commit::new().delete(&reads))?;
    Ok(())
}

/// Small segments, so that many rotations go by.
fn rotation(dir: &Path) -> Result<(), Failure> {
    let mut options = Options::default();
    options.segment_bytes = 1 << 20;
    let journal = Journal::open(dir, options)?;
    let log = journal.log("rotation", 0)?;
    let (mut plain, mut rotating) = (Vec::new(), Vec::new());
    let mut rotations = journal.stats().rotations;
    while rotating.len() < 100 {
        let commit = Commit::new().append(&log, [[7u8; 4096]]);
        let commit = commit.release(&log, log.end().saturating_sub(1000));
        let start = Instant::now();
        journal.commit_blocking(commit)?;
        let took = start.elapsed().as_secs_f64() * 1e6;
        let before = std::mem::replace(&mut rotations, journal.stats().rotations);
        if before == rotations { plain.push(took) } else { rotating.push(took) }
    }
    let (plain, rotating) = (median(plain), median(rotating));
    println!("4 KiB appends: {plain:.0} µs in the median, {rotating:.0} µs when they rotate");
    journal.close()?;
    Ok(())
}

/// One log appends now and then while another one keeps 32 commits of 256 KiB in flight.
fn fairness(journal: &Journal, busy: &Log) -> Result<(), Failure> {
    let idle = journal.log("idle", 0)?;
    let (done, outcomes) = mpsc::channel();
    let (stop, stopped) = mpsc::channel::<()>();
    let mut times: Vec<f64> = std::thread::scope(|scope| {
        scope.spawn(move || {
            for round in 0u64.. {
                if stopped.try_recv() != Err(mpsc::TryRecvError::Empty) {
                    break;
                }
                let done = done.clone();
                let commit = commit(busy, 256, 1020, round);
                journal.submit(commit, move |outcome| drop(done.send(outcome))).expect("room");
                if round >= 32 {
                    outcomes.recv().expect("an outcome").expect("a commit");
                }
            }
        });
        let warm = journal.stats().rotations + 8;
        while journal.stats().rotations < warm {
            std::thread::sleep(Duration::from_millis(10));
        }
        let times = (0..1000).map(|_| {
            std::thread::sleep(Duration::from_millis(2));
            let start = Instant::now();
            // Whoever releases nothing pins every segment, and then each one is a new file.
            let commit = Commit::new().append(&idle, [[1u8; 100]]);
            let commit = commit.release(&idle, idle.end().saturating_sub(10));
            journal.commit_blocking(commit).expect("a commit");
            start.elapsed().as_secs_f64() * 1e6
        });
        let times = times.collect();
        drop(stop);
        times
    });
    times.sort_unstable_by(f64::total_cmp);
    let (p50, p99) = (times[500], times[990]);
    println!("an idle log beside a busy one: p50 {p50:.0} µs, p99 {p99:.0} µs");
    Ok(())
}

/// Opening after a crash: the newest segment is full of 16 KiB frames.
fn recovery(dir: &Path) -> Result<(), Failure> {
    let dir = dir.join("recovery");
    let mut options = Options::default();
    options.segment_bytes = 256 << 20;
    let journal = Journal::open(&dir, options.clone())?;
    let log = journal.log("recovery", 0)?;
    let mut bytes = 0u64;
    while bytes < 240 << 20 {
        let batch = Batch::from(bytes::Bytes::from(vec![3; 16 << 10]));
        journal.commit_blocking(Commit::new().append_batch(&log, batch))?;
        bytes += 16 << 10;
    }
    journal.close()?;
    let mut ours = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let journal = Journal::open(&dir, options.clone())?;
        ours.push(bytes as f64 / start.elapsed().as_secs_f64());
        journal.close()?;
    }
    let file = OpenOptions::new().read(true).open(dir.join("segment-00000000"))?;
    let mut bare = Vec::new();
    for _ in 0..ROUNDS {
        let (start, mut at) = (Instant::now(), 0);
        let mut buffer = vec![0; 1 << 20];
        while at < bytes {
            file.read_exact_at(&mut buffer, at)?;
            black_box(crc_fast::crc32_iscsi(&buffer));
            at += 1 << 20;
        }
        bare.push(bytes as f64 / start.elapsed().as_secs_f64());
    }
    let (ours, bare) = (median(ours) / 1e6, median(bare) / 1e6);
    println!("{:<44} {ours:>12.0} {bare:>12.0} {:>6.2}", "recovery scan, MB/s", ours / bare);
    Ok(())
}
