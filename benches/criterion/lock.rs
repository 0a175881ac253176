//! Ids by layout, with the time passed in.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use voussoir_lock::ids::WorkerWindow;
use voussoir_lock::ids::{ShortCodes, Snowflake, SnowflakeConfig, UuidV7, UuidV7Config};

/// 1 January 2026, in ns since the UNIX epoch.
const START: u64 = 1_767_225_600_000_000_000;

fn ids(c: &mut Criterion) {
    let mut group = c.benchmark_group("lock/ids");
    let ids = Snowflake::new(SnowflakeConfig::default(), WorkerWindow::unleased(1, 0));
    let ids = ids.expect("a valid layout");
    // 4 million a second, just below what the layout holds.
    let mut now = START;
    group.bench_function("snowflake", |b| {
        b.iter(|| {
            now += 250;
            black_box(ids.next(now).is_ok())
        });
    });
    let mut ids = UuidV7::new(UuidV7Config::default()).expect("a valid configuration");
    group.bench_function("uuid v7", |b| {
        b.iter(|| {
            now += 250;
            black_box(ids.next(now).is_ok())
        });
    });
    let codes = ShortCodes::new(7, 1).expect("a valid length");
    let mut number = 0;
    group.bench_function("short code", |b| {
        b.iter(|| {
            number += 1;
            black_box(codes.encode(number))
        });
    });
    group.finish();
}

criterion_group!(benches, ids);
criterion_main!(benches);
