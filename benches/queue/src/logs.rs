//! Logs that are libraries: commitlog, raft-engine and walrus-rust, and reads of ours.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use commitlog::message::MessageBuf;
use commitlog::{CommitLog, LogOptions};
use raft::eraftpb;
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt};
use rustix::time::{ClockId, clock_gettime};
use voussoir_queue::{Durability, Partition};
use walrus_rust::{FsyncSchedule, ReadConsistency, Walrus};

use crate::bars::{Bars, Side};
use crate::median;
use crate::parts::{PRODUCERS, ROUNDS, TIME};
use crate::report::{Figure, Report};
use crate::subjects::{Sender, Subjects, batch, ours};

/// Batches that wait for the operating system at once; a rival's call returns when it has one.
const UNSYNCED_IN_FLIGHT: usize = 8;
/// Batches of 64 KiB that are read, all of them before those that are in memory.
const READ_BATCHES: u64 = 500;

/// walrus-rust takes its folder from the environment or the current directory: the second is set
/// here. With `SyncEach` it opens its files with `O_SYNC`; the schedule of the first instance holds
/// for the process. It keeps what nobody has read.
fn walrus(folder: &Path, schedule: FsyncSchedule) -> Arc<Walrus> {
    std::env::set_current_dir(folder).expect("the folder is there");
    let consistency = ReadConsistency::AtLeastOnce { persist_every: u32::MAX };
    let walrus = Walrus::with_consistency_and_schedule(consistency, schedule);
    Arc::new(walrus.expect("an empty walrus opens"))
}

/// One batch of walrus's, all or nothing. The call blocks.
fn walrus_append(walrus: &Walrus, topic: &str, records: usize, value: &[u8]) {
    let batch = vec![value; records];
    walrus.batch_append_for_topic(topic, &batch).expect("it is appended");
}

fn commitlog(folder: &Path) -> CommitLog {
    let mut options = LogOptions::new(folder);
    options.segment_max_bytes(64 << 20).message_max_bytes(8 << 20);
    CommitLog::new(options).expect("an empty commitlog opens")
}

fn commitlog_append(log: &mut CommitLog, records: usize, value: &[u8]) {
    let mut buffer = MessageBuf::default();
    for _ in 0..records {
        buffer.push(value).expect("there is room");
    }
    log.append(&mut buffer).expect("it is appended");
}

struct RaftEntry;

impl MessageExt for RaftEntry {
    type Entry = eraftpb::Entry;

    fn index(entry: &eraftpb::Entry) -> u64 {
        entry.index
    }
}

/// us for each synced record of 64 threads of raft-engine, each with a log of its own.
pub fn raft_engine_threads(folder: &Path) -> f64 {
    let mut config = Config::default();
    config.dir = folder.display().to_string();
    config.enable_log_recycle = true;
    let engine = Engine::open(config).expect("an empty raft-engine opens");
    let start = Instant::now();
    let send = |region: u64| {
        let mut next = 1;
        // Ends: after `TIME`.
        while start.elapsed() < TIME {
            let data = vec![b'v'; 100].into();
            let entry = eraftpb::Entry { index: next, term: 1, data, ..Default::default() };
            let mut batch = LogBatch::default();
            batch.add_entries::<RaftEntry>(region, &[entry]).expect("entries in order");
            if next % 1_024 == 0 {
                batch.add_command(region, Command::Compact { index: next });
            }
            engine.write(&mut batch, true).expect("a synced write");
            next += 1;
        }
        next - 1
    };
    let done: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..PRODUCERS).map(|at| scope.spawn(move || send(at as u64 + 1))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread")).sum()
    });
    start.elapsed().as_secs_f64() * 1e6 / done as f64
}

/// Seconds of all processors that this process has used.
pub fn processor_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// us of the clock, and of the processors, for each batch.
async fn time_in_flight(send: &mut Sender, in_flight: usize) -> (f64, f64) {
    let (start, processors) = (Instant::now(), processor_seconds());
    let (mut sent, mut done) = (std::collections::VecDeque::new(), 0);
    // Ends: after a third of `TIME`: a rival fills gigabytes meanwhile.
    while start.elapsed() < TIME / 3 {
        sent.push_back(send());
        done += 1;
        if sent.len() == in_flight
            && let Some(oldest) = sent.pop_front()
        {
            oldest.await;
        }
    }
    for sent in sent {
        sent.await;
    }
    let (clock, processors) = (start.elapsed().as_secs_f64(), processor_seconds() - processors);
    (clock * 1e6 / f64::from(done), processors * 1e6 / f64::from(done))
}

fn blocking(mut send: impl FnMut() + Send + 'static) -> Sender {
    Box::new(move || {
        send();
        Box::pin(std::future::ready(()))
    })
}

/// What is on stable storage when it is answered, beside walrus-rust, which writes each record by
/// itself: it is far from the others' pace, and disturbs them.
pub async fn synced(subjects: &Subjects, report: &mut Report, bars: &mut Bars) {
    let folder = subjects.folder().join("walrus");
    std::fs::create_dir_all(&folder).expect("a folder");
    let walrus = walrus(&folder, FsyncSchedule::SyncEach);
    for bytes in [100, 1_024] {
        for records in [1, 100] {
            let value = vec![b'v'; bytes];
            let partition = partition(subjects, &format!("walrus-{records}-{bytes}")).await;
            let mut send = ours(partition, records, value.clone(), Durability::Synced);
            let walrus = Arc::clone(&walrus);
            let mut other = blocking(move || walrus_append(&walrus, "bench", records, &value));
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for round in 0..=ROUNDS {
                let (us, other) =
                    (time_in_flight(&mut send, 2).await.0, time_in_flight(&mut other, 1).await.0);
                if round > 0 {
                    ours.push(us);
                    theirs.push(other);
                }
            }
            let (rival, name) = ("walrus-rust, O_SYNC", format!("{records} x {bytes} B, synced"));
            report.beside(
                &name,
                Figure::from(ours.clone()),
                rival,
                Figure::from(theirs.clone()),
                "us",
            );
            bars.add_ratio(&format!("{name}, to {rival}"), &theirs, &ours, Side::AtLeast, 1.0);
        }
    }
}

/// What the operating system has when it is answered.
pub async fn unsynced(subjects: &Subjects, report: &mut Report, bars: &mut Bars) {
    for bytes in [100, 1_024] {
        for records in [1, 100, 1_000] {
            let name = format!("unsynced-{records}-{bytes}");
            let partition = partition(subjects, &name).await;
            let value = vec![b'v'; bytes];
            let folder = subjects.folder().join(&name);
            std::fs::create_dir_all(&folder).expect("a folder");
            let mut log = commitlog(&folder.join("commitlog"));
            let walrus = walrus(&folder, FsyncSchedule::NoFsync);
            let (of_log, of_walrus) = (value.clone(), value.clone());
            let mut senders = [
                (ours(partition, records, value, Durability::Written), UNSYNCED_IN_FLIGHT),
                (blocking(move || commitlog_append(&mut log, records, &of_log)), 1),
                (blocking(move || walrus_append(&walrus, "bench", records, &of_walrus)), 1),
            ];
            let mut rounds = vec![(Vec::new(), Vec::new()); senders.len()];
            for round in 0..=ROUNDS {
                for ((send, in_flight), rounds) in senders.iter_mut().zip(&mut rounds) {
                    let (clock, processors) = time_in_flight(send, *in_flight).await;
                    if round > 0 {
                        rounds.0.push(clock);
                        rounds.1.push(processors);
                    }
                }
            }
            drop(senders);
            std::fs::remove_dir_all(&folder).expect("it was made here");
            let (ours, rivals) = (rounds.remove(0), rounds);
            for (rival, theirs) in ["commitlog", "walrus-rust, NoFsync"].into_iter().zip(rivals) {
                let name = format!("a batch of {records} x {bytes} B, unsynced");
                let pairs = [("us", &ours.0, theirs.0), ("CPU us", &ours.1, theirs.1)];
                for (unit, ours, theirs) in pairs {
                    report.beside(
                        &name,
                        Figure::from(ours.clone()),
                        rival,
                        Figure::from(theirs.clone()),
                        unit,
                    );
                    let target = if rival == "commitlog" { 1.3 } else { 1.0 };
                    if unit == "CPU us" && records > 1 {
                        let name = format!("{records} x {bytes} B per CPU second to {rival}");
                        bars.add_ratio(&name, &theirs, ours, Side::AtLeast, target);
                    }
                }
            }
        }
    }
}

async fn partition(subjects: &Subjects, topic: &str) -> Partition {
    let topic = subjects.topic(topic, 1).await;
    topic.partition(0).expect("a partition").clone()
}

/// us for each call during a round.
fn time_calls(mut call: impl FnMut(u64)) -> f64 {
    let (start, mut done) = (Instant::now(), 0);
    // Ends: after `TIME`.
    while start.elapsed() < TIME {
        for _ in 0..16 {
            call(done);
            done += 1;
        }
    }
    start.elapsed().as_secs_f64() * 1e6 / done as f64
}

/// Batches of 64 KiB, one a call, from the page cache and from the partition's tail.
pub async fn reads(subjects: &Subjects, report: &mut Report, bars: &mut Bars) {
    const RECORDS: usize = 63;
    let partition = partition(subjects, "reads").await;
    let mut append = ours(partition.clone(), RECORDS, vec![b'v'; 1_024], Durability::Written);
    for _ in 0..READ_BATCHES + 32 {
        append().await;
    }
    let end = partition.offsets().end;
    let stored = batch(RECORDS, &[b'v'; 1_024]);
    let log = subjects.bare_log(stored.bytes(), READ_BATCHES).await;
    let (mut ours, mut bare, mut tail) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let seen = [
            time_calls(|at| {
                let offset = at % READ_BATCHES * RECORDS as u64;
                let fetched = partition.fetch(offset, 64 << 10).expect("it can be read");
                assert_eq!(fetched.next_offset, offset + RECORDS as u64);
            }),
            time_calls(|at| {
                let position = at % READ_BATCHES;
                let read = log.read_range(position..position + 1, 1).expect("it can be read");
                assert_eq!(read.len(), 1);
            }),
            time_calls(|_| {
                let fetched = partition.fetch(end - 1, 1).expect("it can be read");
                assert_eq!(fetched.next_offset, end);
            }),
        ];
        if round > 0 {
            [&mut ours, &mut bare, &mut tail].into_iter().zip(seen).for_each(|(a, us)| a.push(us));
        }
    }
    let name = "a read of 64 KiB behind the tail";
    let rival = "the journal's checked read";
    report.beside(name, Figure::from(ours.clone()), rival, Figure::from(bare.clone()), "us");
    bars.add_ratio("a read of 64 KiB to the journal's", &bare, &ours, Side::AtLeast, 0.95);
    report.alone("a read of 64 KiB from the tail", median(tail), "us");
}
