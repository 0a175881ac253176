//! What an outbox costs a transaction, beside plain commits of the same connections.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, Config};
use voussoir_txn::async_trait;
use voussoir_txn::outbox::*;

use crate::bars::{Bars, Side};
use crate::databases::{connect, first};
use crate::report::{Figure, Report};
use crate::{block_on, median};

const TIME: Duration = Duration::from_secs(2);

/// When each body was committed, and how long it took to the sink.
#[derive(Default)]
struct Times {
    committed: Mutex<HashMap<String, Instant>>,
    arrived: Mutex<HashMap<String, Instant>>,
}

#[async_trait]
impl Sink for Times {
    async fn deliver(&self, messages: &[Message]) -> Result<(), SinkError> {
        let now = Instant::now();
        let mut arrived = self.arrived.lock().expect("no panic");
        for message in messages {
            arrived.insert(String::from_utf8_lossy(&message.body).into_owned(), now);
        }
        Ok(())
    }
}

/// Commits per second of so many writers.
async fn commits(
    server: &Config,
    writers: usize,
    outbox: Option<&Outbox>,
    times: &Arc<Times>,
) -> f64 {
    let mut clients = Vec::new();
    for _ in 0..writers {
        clients.push(connect(server).await);
    }
    let (done, start): (Arc<AtomicU64>, _) = (Arc::default(), Instant::now());
    let write = |(writer, mut client): (usize, Client)| {
        let (done, outbox, times) = (Arc::clone(&done), outbox.cloned(), Arc::clone(times));
        tokio::spawn(async move {
            let update = "UPDATE bench_rows SET n = n + 1 WHERE id = $1";
            let update = client.prepare(update).await.expect("a statement");
            for number in 0.. {
                if start.elapsed() > TIME {
                    return;
                }
                let body = format!("{writers} {writer} {number} {start:?}");
                let transaction = client.transaction().await.expect("a transaction");
                transaction.execute(&update, &[&(writer as i64)]).await.expect("a row");
                if let Some(outbox) = &outbox {
                    let message = NewMessage::new("t", &writer.to_string(), body.clone());
                    outbox.put(&transaction, &[message]).await.expect("it is put");
                }
                transaction.commit().await.expect("it commits");
                if let Some(outbox) = &outbox {
                    times.committed.lock().expect("no panic").insert(body, Instant::now());
                    outbox.wake();
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let tasks: Vec<_> = clients.into_iter().enumerate().map(write).collect();
    for task in tasks {
        task.await.expect("a writer");
    }
    done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
}

pub fn outbox(report: &mut Report, bars: &mut Bars) {
    let Some(server) = first("outbox") else { return };
    block_on(async {
        let client = connect(&server).await;
        let tables = "DROP TABLE IF EXISTS bench_rows; \
                      CREATE TABLE bench_rows (id BIGINT PRIMARY KEY, n BIGINT); \
                      INSERT INTO bench_rows SELECT id, 0 FROM generate_series(0, 63) id";
        client.batch_execute(tables).await.expect("tables");
        let mut own = OutboxConfig::default();
        own.schema = "voussoir_bench".to_owned();
        let outbox = Outbox::open(server.clone(), own).await.expect("it opens");
        let times: Arc<Times> = Arc::default();
        let relay = RelayConfig::default();
        let relay = Relay::start(&outbox, times.clone(), relay).expect("it starts");
        for writers in [8, 16, 32] {
            let (mut with, mut plain) = (Vec::new(), Vec::new());
            for _ in 0..5 {
                with.push(commits(&server, writers, Some(&outbox), &times).await);
                // The plain ones alone: nothing is left to be relayed.
                while outbox.waiting(&client).await.expect("it is asked") > 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                plain.push(commits(&server, writers, None, &times).await);
            }
            let name = format!("commits/s with an outbox to plain ones, {writers} writers");
            bars.add_ratio(&name, &with, &plain, Side::AtLeast, 0.8);
            let name = format!("commits with an outbox, {writers} writers");
            report.beside(&name, Figure::from(with), "plain commits", Figure::from(plain), "1/s");
        }
        let (committed, arrived) = (times.committed.lock(), times.arrived.lock());
        let (committed, arrived) = (committed.expect("no panic"), arrived.expect("no panic"));
        let took = |(body, at): (&String, &Instant)| {
            let arrived = arrived.get(body)?;
            Some(arrived.saturating_duration_since(*at).as_secs_f64() * 1e3)
        };
        let took: Vec<f64> = committed.iter().filter_map(took).collect();
        let took = median(took);
        bars.add("commit to sink, p50 under that load, in ms", took, Side::AtMost, 5.0);
        report.alone("commit to sink under that load, p50", took, "ms");
        drop((committed, arrived));
        relay.stop().await;
        let drop = "DROP TABLE bench_rows; DROP SCHEMA voussoir_bench CASCADE";
        client.batch_execute(drop).await.expect("they are dropped");
    });
}
