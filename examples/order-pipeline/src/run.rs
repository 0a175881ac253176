//! The commands: orders from the standard input, and what an operator does with dead letters.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::Error;
use crate::args::Run;
use crate::direct;
use crate::order::Order;
use crate::pipeline::{Pipeline, Times};
use crate::services::{NAMES, Service};

/// Workers of each service.
const WORKERS: usize = 8;
/// How often `run` looks whether everything is done.
const PERIOD: Duration = Duration::from_millis(50);

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
    for (group, service) in services().iter().enumerate() {
        pipeline.start(group, service, WORKERS);
    }
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut taken = 0;
    // Ends with the input.
    while let Some(line) = lines.next_line().await? {
        let order: Order = serde_json::from_str(&line)?;
        pipeline.place(&order).await?;
        taken += 1;
        println!("order {} is taken", order.id);
    }
    // Ends when the services have done what they can: what they cannot becomes a dead letter.
    while pipeline.groups().iter().any(|group| {
        let stats = group.stats();
        stats.lag > 0 || stats.records > 0
    }) {
        tokio::time::sleep(PERIOD).await;
    }
    pipeline.close();
    let dead: usize = pipeline.groups().iter().map(|group| group.stats().dead_letters).sum();
    println!("{taken} orders taken, {dead} dead letters");
    Ok(())
}

pub(crate) async fn dead_letters(run: &Run) -> Result<(), Error> {
    let pipeline = Pipeline::open(&run.data, &Times::default()).await?;
    for (name, group) in NAMES.iter().zip(pipeline.groups()) {
        for letter in group.dead_letters(0, usize::MAX)? {
            let order = Order::read(&letter.record)?;
            println!(
                "{name}: order {} after {} deliveries: {:?}",
                order.id, letter.deliveries, letter.reason
            );
        }
    }
    Ok(())
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
