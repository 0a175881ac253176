//! Latencies of single commits, beside the least that the same device lets anybody have: plain
//! loops of `write` and `fdatasync` in the same rounds.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use voussoir_benches::Spread;
use voussoir_journal::{Commit, Journal, Log};

use crate::bare::Bare;
use crate::{commit_of, fresh, open};

/// Small commits timed in one round of one contender.
const SMALL_PER_ROUND: usize = 400;
/// The pause before each of them.
const PAUSE: Duration = Duration::from_millis(2);
/// A commit of the busy log: 256 records of 1 KiB, and its frame.
const BULK_BYTES: usize = 257 << 10;
/// Busy commits in flight.
const IN_FLIGHT: usize = 32;
/// Records that the idle log keeps.
const IDLE_KEEP: u64 = 64;
/// Rotations timed in one round, of the journal and of the plain loop.
const ROTATIONS: usize = 200;
const PLAIN_ROTATIONS: usize = 40;
const SMALL_SEGMENT: u64 = 1 << 20;
/// A record of 4 KiB and its frame.
const FRAME_BYTES: usize = 4208;

/// Medians and tails of a row, a figure for each round, in microseconds.
#[derive(Debug, Default)]
struct Row {
    name: &'static str,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Row {
    fn new(name: &'static str) -> Self {
        Self { name, ..Self::default() }
    }

    fn add(&mut self, mut times: Vec<Duration>) {
        times.sort_unstable();
        let at = |quantile: f64| {
            let place = (times.len() - 1) as f64 * quantile;
            times[place as usize].as_secs_f64() * 1e6
        };
        self.p50.push(at(0.5));
        self.p99.push(at(0.99));
    }

    fn p50(&self) -> Spread {
        Spread::of(self.p50.iter().copied())
    }

    fn p99(&self) -> Spread {
        Spread::of(self.p99.iter().copied())
    }
}

fn print(case: &str, rows: &[Row]) {
    println!("\n{case} (us; median of {} rounds [min..max])", rows[0].p50.len());
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    for row in rows {
        let (p50, p99, name) = (row.p50(), row.p99(), row.name);
        println!(
            "  {name:width$}  p50 {:7.0} [{:.0}..{:.0}]  p99 {:7.0} [{:.0}..{:.0}]",
            p50.median, p50.min, p50.max, p99.median, p99.min, p99.max
        );
    }
    for row in rows {
        let (p50, p99, name) = (row.p50(), row.p99(), row.name);
        println!(
            "{{\"case\":{case:?},\"name\":{name:?},\"p50_us\":{:.1},\"p99_us\":{:.1}}}",
            p50.median, p99.median
        );
    }
}

/// Median of `ours` over `unit`, round by round.
fn ratio(ours: &[f64], unit: &[f64]) -> f64 {
    Spread::of(ours.iter().zip(unit).map(|(ours, unit)| ours / unit)).median
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

/// Times `work` again and again, with a pause before each time.
fn paused(mut work: impl FnMut()) -> Vec<Duration> {
    (0..SMALL_PER_ROUND)
        .map(|_| {
            std::thread::sleep(PAUSE);
            timed(&mut work)
        })
        .collect()
}

/// Runs `work` while a thread calls `other` over and over.
fn beside<T>(mut other: impl FnMut() + Send, work: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                other();
            }
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        other.join().expect("the other thread");
        done
    })
}

/// Keeps commits in flight until it is told that this is over.
fn saturate(journal: &Journal, log: &Log, over: &AtomicBool) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let batch = vec![vec![7u8; 1024]; 256];
    runtime.block_on(async {
        let mut pending = VecDeque::new();
        while !over.load(Ordering::Relaxed) {
            pending.push_back(journal.commit(commit_of(log, &batch)));
            if pending.len() >= IN_FLIGHT
                && let Some(oldest) = pending.pop_front()
            {
                oldest.await.expect("a commit");
            }
        }
        for rest in pending {
            rest.await.expect("a commit");
        }
    });
}

/// Small commits of `idle`, which keeps so many records, beside the busy log.
fn beside_busy(journal: &Journal, busy: &Log, idle: &Log, keep: u64) -> Vec<Duration> {
    let over = AtomicBool::new(false);
    let record = [vec![7u8; 100]];
    std::thread::scope(|scope| {
        scope.spawn(|| saturate(journal, busy, &over));
        // A running service: there are as many segments as the load needs.
        let warm = journal.stats().rotations + 2;
        while journal.stats().rotations < warm {
            std::thread::sleep(PAUSE);
        }
        let times = paused(|| {
            let commit = Commit::new().append(idle, record.iter());
            let commit = match idle.end().checked_sub(keep) {
                Some(upto) if upto > idle.first() => commit.release(idle, upto),
                _ => commit,
            };
            journal.commit_blocking(commit).expect("a commit");
        });
        over.store(true, Ordering::Relaxed);
        times
    })
}

/// What the best group commit over one file shows a small commit that comes `PAUSE` after the
/// last one was done: it waits for the large write and sync under way, then for its own.
fn ideal_group_commit(bare: &Bare) -> Vec<Duration> {
    let (large, small) = (vec![7; BULK_BYTES], vec![7; 256]);
    let mut times = Vec::new();
    let mut comes = Instant::now() + PAUSE;
    while times.len() < SMALL_PER_ROUND {
        if Instant::now() < comes {
            bare.append(&large).expect("a write");
        } else {
            bare.append(&small).expect("a write");
            times.push(comes.elapsed());
            comes = Instant::now() + PAUSE;
        }
    }
    times
}

/// One log is idle but for an append every two milliseconds; another one is written as fast as it
/// can be.
pub(crate) fn fairness(folder: &Path, rounds: usize) {
    let folder = fresh(folder);
    let journal = open(folder.path(), |_| {});
    let log = |id| journal.log("bench", id).expect("a log");
    let (busy, idle, keeps_all) = (log(1), log(2), log(3));
    let large = Bare::named(folder.path(), "large", 64 << 20).expect("a file");
    let small = Bare::named(folder.path(), "small", 1 << 20).expect("a file");
    let (bulk, page) = (vec![7; BULK_BYTES], vec![7; 4096]);
    let mut rows = [
        Row::new("journal, idle log"),
        Row::new("journal, idle log that keeps all: every segment is a new file"),
        Row::new("floor: plain loop in one file, the large write under way + own sync"),
        Row::new("a sync of 4 KiB in a second file beside a plain loop of large ones"),
        Row::new("a sync of 4 KiB on the idle device"),
        Row::new("a large write and its sync, alone"),
    ];
    let append = |bare: &Bare, bytes: &[u8]| bare.append(bytes).expect("a write");
    for _ in 0..rounds {
        rows[0].add(beside_busy(&journal, &busy, &idle, IDLE_KEEP));
        rows[1].add(beside_busy(&journal, &busy, &keeps_all, u64::MAX));
        let release = Commit::new().release(&keeps_all, keeps_all.end());
        journal.commit_blocking(release).expect("a commit");
        rows[2].add(ideal_group_commit(&large));
        rows[3].add(beside(|| append(&large, &bulk), || paused(|| append(&small, &page))));
        rows[4].add(paused(|| append(&small, &page)));
        rows[5].add((0..SMALL_PER_ROUND).map(|_| timed(|| append(&large, &bulk))).collect());
    }
    print("an append of 100 B every 2 ms beside 32 commits of 256 KiB in flight", &rows);
    let [ours, _, floor, second, idle, _] = &rows;
    println!(
        "  p99 is {:.2} of the floor's, {:.2} syncs beside the large ones (by their p99), {:.1} by \
         their median, {:.1} syncs of the idle device (by their median)",
        ratio(&ours.p99, &floor.p99),
        ratio(&ours.p99, &second.p99),
        ratio(&ours.p99, &second.p50),
        ratio(&ours.p99, &idle.p50),
    );
    println!("  {:?}", journal.stats());
}

/// Appends of one round, by where they were: in the middle of a segment, or the first and the
/// second in one.
#[derive(Debug, Default)]
struct Appends {
    middle: Vec<Duration>,
    first: Vec<Duration>,
    second: Vec<Duration>,
}

impl Appends {
    /// `append` answers which one of its segment it was, from 0 on.
    fn time(rotations: usize, mut append: impl FnMut() -> usize) -> Self {
        let mut all = Self::default();
        while all.first.len() < rotations {
            let began = Instant::now();
            let place = append();
            let took = began.elapsed();
            match place {
                0 => all.first.push(took),
                1 => all.second.push(took),
                _ => all.middle.push(took),
            }
        }
        all
    }
}

/// A plain loop that goes on in the next of several files, each of which was zeroed and synced
/// before, as soon as one is full.
fn next_file(files: &[Bare], at: &mut usize) -> usize {
    let per_file = SMALL_SEGMENT as usize / FRAME_BYTES;
    let (file, place) = (*at / per_file % files.len(), *at % per_file);
    files[file].append(&[7; FRAME_BYTES]).expect("a write");
    *at += 1;
    place
}

/// Small segments, so that many rotations go by.
pub(crate) fn rotation(folder: &Path, rounds: usize) {
    let folder = fresh(folder);
    let journal = open(folder.path(), |options| {
        options.segment_bytes = SMALL_SEGMENT;
        options.max_bytes = 256 << 20;
    });
    let log = journal.log("bench", 1).expect("a log");
    let record = [vec![7u8; 4096]];
    let files: Vec<Bare> = (0..64)
        .map(|file| Bare::named(folder.path(), &format!("bare-{file}"), SMALL_SEGMENT))
        .collect::<Result<_, _>>()
        .expect("files");
    let (mut rotations, mut place, mut at) = (journal.stats().rotations, 0, 0);
    let mut append = || {
        let commit = Commit::new().append(&log, record.iter());
        let commit = match log.end().checked_sub(4096) {
            Some(upto) if upto > log.first() + 512 => commit.release(&log, upto),
            _ => commit,
        };
        journal.commit_blocking(commit).expect("a commit");
        let before = std::mem::replace(&mut rotations, journal.stats().rotations);
        place = if before == rotations { place + 1 } else { 0 };
        place
    };
    let mut rows = [
        Row::new("journal, appends that rotate"),
        Row::new("journal, the next ones"),
        Row::new("journal, all others"),
        Row::new("plain loop over files, the first append in one"),
        Row::new("plain loop over files, the next ones"),
        Row::new("plain loop over files, all others"),
    ];
    for round in 0..=rounds {
        let rotations = if round == 0 { PLAIN_ROTATIONS } else { ROTATIONS };
        let ours = Appends::time(rotations, &mut append);
        let bare = Appends::time(PLAIN_ROTATIONS, || next_file(&files, &mut at));
        // In the first round segments are created.
        if round > 0 {
            for (row, appends) in rows.iter_mut().zip(
                [ours, bare]
                    .into_iter()
                    .flat_map(|Appends { middle, first, second }| [first, second, middle]),
            ) {
                row.add(appends);
            }
        }
    }
    print("appends of 4 KiB, segments of 1 MiB", &rows);
    let longer = |first: &Row, middle: &Row| {
        Spread::of(first.p50.iter().zip(&middle.p50).map(|(first, middle)| first - middle)).median
    };
    let (ours, bare) = (longer(&rows[0], &rows[2]), longer(&rows[3], &rows[5]));
    let sync = rows[5].p50().median;
    println!(
        "  {ours:.0} us longer in the median, {:.2} syncs; the plain loop {bare:.0} us, {:.2}",
        ours / sync,
        bare / sync
    );
    println!("  {:?}", journal.stats());
}
