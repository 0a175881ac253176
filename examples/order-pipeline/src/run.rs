//! The commands: orders from the standard input, and what an operator does with dead letters.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
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

/// Takes orders until the input ends and the services have done what they can. Returns how many.
async fn take(pipeline: &Pipeline, workers: &[Vec<JoinHandle<()>>]) -> Result<u64, Error> {
    let mut release = tokio::time::interval(RELEASE_PERIOD);
    release.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut taken = 0;
    // Ends with the input.
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line?,
            _ = release.tick() => {
                check(pipeline, workers).await?;
                pipeline.release().await;
                continue;
            }
        };
        let Some(line) = line else { break };
        let order: Order = serde_json::from_str(&line)?;
        pipeline.place(&order).await?;
        taken += 1;
        println!("order {} is taken", order.id);
    }
    // Ends when the services have done what they can: what they cannot becomes a dead letter. With
    // an error when the workers of one have ended, because its work queue has stopped.
    while pipeline.groups().iter().any(|group| {
        let stats = group.stats();
        stats.lag > 0 || stats.records > 0
    }) {
        check(pipeline, workers).await?;
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            _ = release.tick() => pipeline.release().await,
        }
    }
    pipeline.release().await;
    Ok(taken)
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
    let pipeline = Pipeline::open(&run.data, &Times::default()).await?;
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
    let pipeline = Pipeline::open(&run.data, &Times::default()).await?;
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
