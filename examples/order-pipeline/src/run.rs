//! The commands: orders from the standard input, and what an operator does with dead letters. The
//! journal is one process's at a time, so `run` takes the operator's commands in its input, too.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use voussoir_queue::work::DeadLetter;

use crate::Error;
use crate::args::Run;
use crate::direct;
use crate::order::Order;
use crate::pipeline::{self, Pipeline, Times};
use crate::services::{NAMES, Service};

/// Workers of each service.
const WORKERS: usize = 8;
/// Bytes of a line of the input. What is longer is cut, and then no order.
const MAX_LINE: u64 = 64 << 10;
/// Lines that were read and not taken yet.
const MAX_LINES: usize = 16;
/// How often `run` looks whether the workers of a service have ended.
const CHECK_PERIOD: Duration = Duration::from_secs(1);
/// How often `run` looks whether everything is done.
const PERIOD: Duration = Duration::from_millis(50);
/// How often `run` releases what every service has done.
const RELEASE_PERIOD: Duration = Duration::from_secs(60);

fn services() -> Vec<Arc<Service>> {
    let service = |name: &&'static str| Arc::new(Service::new(name, Duration::from_millis(5)));
    NAMES.iter().map(service).collect()
}

/// Does orders until the input ends, each before the next is read.
pub(crate) async fn direct() -> Result<(), Error> {
    let services = services();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    // Ends with the input.
    while let Some(line) = lines.next_line().await? {
        let order: Order = serde_json::from_str(&line)?;
        direct::place(&services, &order).await?;
        println!("order {} is done", order.id);
    }
    Ok(())
}

/// Takes orders until the input ends, and returns when each is done or a dead letter.
pub(crate) async fn run(run: &Run) -> Result<(), Error> {
    let pipeline = Pipeline::open(&run.data, &Times::default()).await?;
    let mut workers = Vec::new();
    for (group, service) in services().iter().enumerate() {
        workers.push(pipeline.start(group, service, WORKERS));
    }
    let result = take(&pipeline, &workers).await;
    pipeline.close();
    let taken = result?;
    let dead: usize = pipeline.groups().iter().map(|group| group.stats().dead_letters).sum();
    println!("{taken} orders taken, {dead} dead letters");
    Ok(())
}

/// Takes orders until the input ends and the services have done what they can. Returns how many. A
/// line that is no order and no command is named on the standard error, and nothing else.
async fn take(pipeline: &Pipeline, workers: &[Vec<JoinHandle<()>>]) -> Result<u64, Error> {
    let mut release = tokio::time::interval(RELEASE_PERIOD);
    release.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut checks = tokio::time::interval(CHECK_PERIOD);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut lines, mut number, mut taken) = (read_lines(), 0, 0);
    // Ends with the input.
    loop {
        let line = tokio::select! {
            line = lines.recv() => line,
            _ = release.tick() => {
                pipeline.release().await;
                continue;
            }
            _ = checks.tick() => {
                check(pipeline, workers).await?;
                continue;
            }
        };
        let Some(line) = line else { break };
        number += 1;
        match &*line? {
            "dead-letters" => list_dead_letters(pipeline)?,
            "redrive" => redrive_all(pipeline).await?,
            "purge" => purge_all(pipeline).await?,
            line => match serde_json::from_str::<Order>(line) {
                Ok(order) => {
                    pipeline.place(&order).await?;
                    taken += 1;
                    println!("order {} is taken", order.id);
                }
                Err(error) => eprintln!("line {number} is no order: {error}"),
            },
        }
    }
    // Ends when the services have done what they can: what they cannot becomes a dead letter. With
    // an error when the workers of one have ended, because its work queue has stopped.
    while pipeline.groups().iter().any(|group| {
        let stats = group.stats();
        stats.lag > 0 || stats.records > 0
    }) {
        check(pipeline, workers).await?;
        pipeline.check_room()?;
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            _ = release.tick() => pipeline.release().await,
        }
    }
    pipeline.release().await;
    Ok(taken)
}

/// The lines of the standard input.
fn read_lines() -> mpsc::Receiver<std::io::Result<String>> {
    let (sender, lines) = mpsc::channel(MAX_LINES);
    tokio::spawn(async move {
        let mut input = BufReader::new(tokio::io::stdin());
        // Ends with the input, with an error, or when nobody wants more.
        while let Some(line) = next_line(&mut input).await.transpose() {
            let is_last = line.is_err();
            if sender.send(line).await.is_err() || is_last {
                return;
            }
        }
    });
    lines
}

/// The first bytes of the next line; `None` at the end.
async fn next_line(input: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<String>> {
    let mut line = Vec::new();
    let mut is_first = true;
    // Ends with the line or the input: each turn reads up to `MAX_LINE` bytes of the line.
    loop {
        let mut part = Vec::new();
        (&mut *input).take(MAX_LINE).read_until(b'\n', &mut part).await?;
        let is_whole = part.len() < MAX_LINE as usize || part.ends_with(b"\n");
        if is_first {
            line = part;
        }
        if is_whole {
            break;
        }
        is_first = false;
    }
    let text = || String::from_utf8_lossy(&line).trim().to_owned();
    Ok((!line.is_empty()).then(text))
}

/// Checks that all workers run: they end only when their work queue has stopped, or by a panic.
async fn check(pipeline: &Pipeline, workers: &[Vec<JoinHandle<()>>]) -> Result<(), Error> {
    for ((service, group), workers) in NAMES.iter().zip(pipeline.groups()).zip(workers) {
        if workers.iter().any(JoinHandle::is_finished) {
            let why = match group.receive(1, Duration::ZERO).await {
                Err(error) => error.to_string(),
                Ok(_) => "one has panicked".to_owned(),
            };
            return Err(pipeline::Error::WorkersEnded { service, why }.into());
        }
    }
    Ok(())
}

pub(crate) async fn dead_letters(run: &Run) -> Result<(), Error> {
    list_dead_letters(&Pipeline::open(&run.data, &Times::default()).await?)
}

fn list_dead_letters(pipeline: &Pipeline) -> Result<(), Error> {
    for (name, group) in NAMES.iter().zip(pipeline.groups()) {
        for letter in group.dead_letters(0, usize::MAX)? {
            println!("{name}: {}", describe(&letter));
        }
    }
    Ok(())
}

fn describe(letter: &DeadLetter) -> String {
    let what = match Order::read(&letter.record) {
        Ok(order) => format!("order {}", order.id),
        // A worker rejected it for that.
        Err(_) => format!("the record at offset {}, which is no order,", letter.record.offset),
    };
    format!("{what} after {} deliveries: {:?}", letter.deliveries, letter.reason)
}

pub(crate) async fn redrive(run: &Run) -> Result<(), Error> {
    redrive_all(&Pipeline::open(&run.data, &Times::default()).await?).await
}

async fn redrive_all(pipeline: &Pipeline) -> Result<(), Error> {
    let mut redriven = 0;
    for group in pipeline.groups() {
        for letter in group.dead_letters(0, usize::MAX)? {
            if !letter.is_redriven {
                group.redrive(letter.id).await?;
                redriven += 1;
            }
        }
    }
    println!("{redriven} dead letters are delivered again");
    Ok(())
}

pub(crate) async fn purge(run: &Run) -> Result<(), Error> {
    purge_all(&Pipeline::open(&run.data, &Times::default()).await?).await
}

/// Discards the dead letters that are not being delivered again.
async fn purge_all(pipeline: &Pipeline) -> Result<(), Error> {
    let mut purged = 0;
    for group in pipeline.groups() {
        for letter in group.dead_letters(0, usize::MAX)? {
            if !letter.is_redriven {
                group.purge(letter.id).await?;
                purged += 1;
            }
        }
    }
    println!("{purged} dead letters are discarded");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(id: u64) -> Order {
        Order { id, customer: "ada".to_owned(), article: "teapot".to_owned() }
    }

    #[tokio::test]
    async fn workers_that_have_ended_are_an_error_and_not_a_wait_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let pipeline = Pipeline::open(folder.path(), &Times::default()).await.unwrap();
        let services = services();
        let start = |group: usize| pipeline.start(group, &services[group], 1);
        let workers: Vec<_> = (0..NAMES.len()).map(start).collect();
        check(&pipeline, &workers).await.unwrap();
        pipeline.groups()[1].close();
        // Ends: a worker whose work queue is closed ends.
        while !workers[1][0].is_finished() {
            tokio::task::yield_now().await;
        }
        let error = check(&pipeline, &workers).await.unwrap_err().to_string();
        assert!(error.contains("the workers of stock have ended: "), "{error}");
        assert!(error.contains("the work queue is closed"), "{error}");
        pipeline.close();
    }

    #[tokio::test]
    async fn a_dead_letter_that_is_no_order_is_listed() {
        let folder = tempfile::tempdir().unwrap();
        let pipeline = Pipeline::open(folder.path(), &Times::default()).await.unwrap();
        pipeline.place(&order(7)).await.unwrap();
        let mut batch = voussoir_queue::BatchBuilder::new();
        batch.push(&voussoir_queue::Record::new("{}")).unwrap();
        let group = &pipeline.groups()[0];
        let durability = voussoir_queue::Durability::Synced;
        group.source().append(batch.finish().unwrap(), durability).await.unwrap();
        for delivery in group.receive(2, Duration::ZERO).await.unwrap() {
            group.reject(&delivery.receipt, "bad").await.unwrap();
        }
        let letters = group.dead_letters(0, usize::MAX).unwrap();
        let lines: Vec<String> = letters.iter().map(describe).collect();
        assert!(lines[0].starts_with("order 7 after 1 deliveries: "), "{lines:?}");
        assert!(lines[1].starts_with("the record at offset 1, which is no order, after 1 "));
        purge_all(&pipeline).await.unwrap();
        assert!(group.dead_letters(0, usize::MAX).unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_long_line_is_cut_and_the_next_one_is_whole() {
        let long = "x".repeat(3 * MAX_LINE as usize);
        let text = format!("one\n{long}\n\nthree");
        let mut input = text.as_bytes();
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut input).await.unwrap() {
            lines.push(line);
        }
        let cut = &long[..MAX_LINE as usize];
        assert_eq!(lines, ["one", cut, "", "three"]);
    }

    #[tokio::test]
    async fn what_every_service_has_done_is_released() {
        let folder = tempfile::tempdir().unwrap();
        let pipeline = Pipeline::open(folder.path(), &Times::default()).await.unwrap();
        for id in 0..3 {
            pipeline.place(&order(id)).await.unwrap();
        }
        for (group, done) in pipeline.groups().iter().zip([3, 2, 3, 3]) {
            for _ in 0..done {
                let next = group.receive(1, Duration::ZERO).await.unwrap().remove(0);
                group.ack(&next.receipt).await.unwrap();
            }
        }
        pipeline.release().await;
        assert_eq!(pipeline.groups()[0].source().offsets(), 2..3);
    }
}
