//! Sagas of five steps in a journal: one client beside as many bare syncs, a thousand at once
//! beside a row for each step in PostgreSQL, and a hundred thousand found again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use voussoir_journal::Journal;
use voussoir_txn::store::{JournalStore, Record, RecordKind, SagaStore};
use voussoir_txn::{Config, Saga, Sagas, Step, StepError};

use crate::bars::{Bars, Side};
use crate::databases::{connect, first};
use crate::report::{Figure, Report};
use crate::{block_on, median};

/// Steps of a saga.
pub const STEPS: u64 = 5;
const ROUNDS: usize = 5;

/// Four compensatable steps in a row and a pivot, which do nothing.
pub fn five() -> Saga<u64> {
    let mut saga = Saga::<u64>::define("five", 1);
    let step = |name, needs| {
        Step::new(name, needs, |_, input: u64, before: u64| async move {
            Ok::<u64, StepError>(input + before)
        })
        .undo(|_, _, _| async { Ok(()) })
    };
    let first =
        Step::new("one", (), |_, input: u64, ()| async move { Ok::<u64, StepError>(input) });
    let one = saga.step(first.undo(|_, _, _| async { Ok(()) }));
    let two = saga.step(step("two", one));
    let three = saga.step(step("three", two));
    let four = saga.step(step("four", three));
    let (saga, _) = saga.pivot(Step::new("five", four, |_, input: u64, before: u64| async move {
        Ok::<u64, StepError>(input + before)
    }));
    saga.build().expect("a definition in order")
}

pub fn config() -> Config {
    let mut config = Config::default();
    config.max_open = 200_000;
    config.max_ended = 1000;
    config
}

pub async fn run(sagas: &Sagas, saga: &Saga<u64>, id: &str) {
    let handle = sagas.start(saga, id, &7).await.expect("it starts");
    assert!(handle.end().await.expect("it ends").is_completed());
}

fn journal(dir: &std::path::Path) -> Journal {
    Journal::open(dir, voussoir_journal::Config::default()).expect("the journal opens")
}

pub fn durable(report: &mut Report, bars: &mut Bars) {
    const SAGAS: u64 = 150;
    let saga = five();
    let dir = tempfile::tempdir_in("target").expect("a folder");
    let journal = journal(dir.path());
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    block_on(async {
        let store = JournalStore::new(&journal, "sagas").expect("a namespace");
        let sagas = Sagas::builder().config(config()).register(&saga).open(store).await;
        let sagas = sagas.expect("it opens");
        let bare = JournalStore::new(&journal, "bare").expect("a namespace");
        bare.open().await.expect("it opens");
        for round in 0..ROUNDS as u64 {
            let (mut times, mut floors) = (Vec::new(), Vec::new());
            for number in 0..SAGAS {
                let id = format!("{round}.{number}");
                let start = Instant::now();
                run(&sagas, &saga, &id).await;
                times.push(start.elapsed().as_nanos() as f64 / 1e3);
                let start = Instant::now();
                for _ in 0..=STEPS {
                    let record = Record::new("bare", RecordKind::Whole, vec![0; 100].into());
                    bare.append(vec![record]).await.expect("it is synced");
                }
                floors.push(start.elapsed().as_nanos() as f64 / 1e3);
            }
            ours.push(median(times));
            theirs.push(median(floors));
        }
    });
    let name = "a durable saga of five steps, p50, to six syncs";
    bars.add_ratio(name, &ours, &theirs, Side::AtMost, 1.3);
    let name = "a durable saga of five steps, p50";
    report.beside(name, Figure::from(ours), "six syncs of the journal", Figure::from(theirs), "us");
}

pub fn flight(report: &mut Report, bars: &mut Bars) {
    const CLIENTS: u64 = 1024;
    const TIME: Duration = Duration::from_secs(2);
    let saga = Arc::new(five());
    let server = first("the row for each step of `flight`");
    let dir = tempfile::tempdir_in("target").expect("a folder");
    let journal = journal(dir.path());
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        ours.push(block_on(async {
            let store = JournalStore::new(&journal, &format!("s{round}")).expect("a namespace");
            let sagas = Sagas::builder().config(config()).register(&saga).open(store).await;
            let sagas = Arc::new(sagas.expect("it opens"));
            let ended: Arc<AtomicU64> = Arc::default();
            let start = Instant::now();
            let client = |client: u64| {
                let (sagas, saga) = (Arc::clone(&sagas), Arc::clone(&saga));
                let ended = Arc::clone(&ended);
                tokio::spawn(async move {
                    for number in 0.. {
                        if start.elapsed() > TIME {
                            return;
                        }
                        run(&sagas, &saga, &format!("{client}.{number}")).await;
                        ended.fetch_add(STEPS, Ordering::Relaxed);
                    }
                })
            };
            let clients: Vec<_> = (0..CLIENTS).map(client).collect();
            for client in clients {
                client.await.expect("a client");
            }
            ended.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
        }));
        if let Some(server) = &server {
            theirs.push(block_on(rows(server, TIME)));
        }
    }
    let name = "steps of 1,024 sagas in flight";
    if theirs.is_empty() {
        report.alone(name, Figure::from(ours), "1/s");
    } else {
        let ratio = "steps/s of 1,024 sagas in flight, to a row a commit";
        bars.add_ratio(ratio, &ours, &theirs, Side::AtLeast, 20.0);
        report.beside(
            name,
            Figure::from(ours),
            "a row a commit, PostgreSQL",
            Figure::from(theirs),
            "1/s",
        );
    }
}

/// A row for each step, each in a commit of its own, by 64 connections.
async fn rows(server: &tokio_postgres::Config, time: Duration) -> f64 {
    const CONNECTIONS: usize = 64;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(connect(server).await);
    }
    let create = "CREATE TABLE IF NOT EXISTS bench_steps (id BIGSERIAL PRIMARY KEY, step BYTEA)";
    clients[0].batch_execute(create).await.expect("a table");
    let (rows, start): (Arc<AtomicU64>, _) = (Arc::default(), Instant::now());
    let work = |client: tokio_postgres::Client| {
        let rows = Arc::clone(&rows);
        tokio::spawn(async move {
            let insert = client.prepare("INSERT INTO bench_steps (step) VALUES ($1)").await;
            let insert = insert.expect("a statement");
            while start.elapsed() < time {
                client.execute(&insert, &[&vec![0_u8; 100]]).await.expect("a row");
                rows.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let tasks: Vec<_> = clients.into_iter().map(work).collect();
    for task in tasks {
        task.await.expect("a task");
    }
    let per_second = rows.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    let client = connect(server).await;
    client.batch_execute("DROP TABLE bench_steps").await.expect("it is dropped");
    per_second
}

pub fn recovery(report: &mut Report, bars: &mut Bars) {
    const SAGAS: u64 = 100_000;
    let dir = tempfile::tempdir_in("target").expect("a folder");
    let is_open = Arc::new(AtomicBool::new(false));
    let first_call: Arc<AtomicU64> = Arc::default();
    let started = Instant::now();
    let saga = {
        let (is_open, first_call) = (Arc::clone(&is_open), Arc::clone(&first_call));
        // Never ends in the first process.
        let wait = Step::new("wait", (), move |_, _, ()| {
            let is_open = is_open.load(Ordering::SeqCst);
            if is_open {
                let now = started.elapsed().as_nanos() as u64;
                let _ = first_call.compare_exchange(0, now, Ordering::SeqCst, Ordering::SeqCst);
            }
            async move {
                if !is_open {
                    std::future::pending::<()>().await;
                }
                Ok::<(), StepError>(())
            }
        });
        let (saga, _) = Saga::<u64>::define("waits", 1).pivot(wait);
        saga.build().expect("a definition in order")
    };
    {
        let journal = journal(dir.path());
        block_on(async {
            let store = JournalStore::new(&journal, "sagas").expect("a namespace");
            let sagas = Sagas::builder().config(config()).register(&saga).open(store).await;
            let sagas = Arc::new(sagas.expect("it opens"));
            let saga = Arc::new(saga.clone());
            let starting = |part: u64| {
                let (sagas, saga) = (Arc::clone(&sagas), Arc::clone(&saga));
                tokio::spawn(async move {
                    for number in 0..SAGAS / 1000 {
                        let id = format!("{part}.{number}");
                        sagas.start(&saga, &id, &7).await.expect("it starts");
                    }
                })
            };
            let parts: Vec<_> = (0..1000).map(starting).collect();
            for part in parts {
                part.await.expect("a part");
            }
        });
    }
    is_open.store(true, Ordering::SeqCst);
    let begin = started.elapsed().as_nanos() as u64;
    let journal = journal(dir.path());
    let opened = started.elapsed().as_nanos() as u64;
    block_on(async {
        let store = JournalStore::new(&journal, "sagas").expect("a namespace");
        let sagas = Sagas::builder().config(config()).register(&saga).open(store).await;
        let _sagas = sagas.expect("it opens");
        while first_call.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let first = first_call.load(Ordering::SeqCst);
    let seconds = (first - begin) as f64 / 1e9;
    bars.add("100,000 open sagas, to the first action, in s", seconds, Side::AtMost, 1.0);
    report.alone("100,000 open sagas: first action", seconds * 1e3, "ms");
    report.alone("  of it, to open the journal", (opened - begin) as f64 / 1e6, "ms");
}
