//! The journal on a real disk: appends by durability and size, and reads.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use voussoir_journal::{Commit, Config, Durability, Journal, Log};

/// Records that stay; older ones are released as new ones come.
const KEEP: u64 = 4096;

fn commit_of(log: &Log, records: &[Vec<u8>], durability: Durability) -> Commit {
    let commit = Commit::new().append(log, records.iter()).durability(durability);
    match log.end().checked_sub(KEEP) {
        Some(upto) if upto > log.first() + KEEP / 4 => commit.release(log, upto),
        _ => commit,
    }
}

fn append(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let journal = Journal::open(folder.path(), Config::default()).expect("an empty journal opens");
    let log = journal.log("bench", 1).expect("a log");
    let mut group = c.benchmark_group("journal/append");
    for (records, bytes) in [(1, 100), (100, 100), (1000, 1024)] {
        let batch = vec![vec![7u8; bytes]; records];
        group.throughput(Throughput::Bytes((records * bytes) as u64));
        for durability in [Durability::Synced, Durability::Written] {
            let id = BenchmarkId::new(format!("{durability:?}"), format!("{records}x{bytes}"));
            group.bench_function(id, |b| {
                b.iter(|| {
                    let commit = commit_of(&log, &batch, durability);
                    journal.commit_blocking(commit).expect("a commit")
                });
            });
        }
    }
    group.finish();
}

fn read(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let journal = Journal::open(folder.path(), Config::default()).expect("an empty journal opens");
    let log = journal.log("bench", 1).expect("a log");
    let mut group = c.benchmark_group("journal/read");
    for bytes in [100, 4 << 10, 64 << 10] {
        let first = log.end();
        let record = [vec![7u8; bytes]];
        for _ in 0..256 {
            let commit = Commit::new().append(&log, record.iter());
            journal.commit_blocking(commit).expect("a commit");
        }
        group.throughput(Throughput::Bytes(bytes as u64));
        let mut position = first;
        group.bench_function(BenchmarkId::from_parameter(bytes), |b| {
            b.iter(|| {
                position = if position + 1 < log.end() { position + 1 } else { first };
                black_box(log.read(position).expect("a record"))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, append, read);
criterion_main!(benches);
