//! The demonstration: the same orders in both forms, while one service is slow and one is dead.

mod script;
mod view;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::Error;
use crate::args::Demo;
use crate::direct;
use crate::order::Order;
use crate::pipeline::{Pipeline, Times};
use crate::services::{NAMES, Service};

use script::Script;
use view::{Latencies, View};

/// Time between two orders.
const EVERY: Duration = Duration::from_millis(10);
/// Customers, whose orders are each worked on in order.
const CUSTOMERS: u64 = 500;
/// One in so many orders is for an article that does not exist.
const UNKNOWN_EVERY: u64 = 100;
pub(crate) const UNKNOWN: &str = "unicorn";
/// Workers of each service.
pub(crate) const WORKERS: usize = 16;
/// How long the services may take for what is left when no more orders come in.
const DRAIN: Duration = Duration::from_secs(40);

fn services() -> Vec<Arc<Service>> {
    let service = |(name, delay): (&'static str, Duration)| {
        let service = Service::new(name, delay);
        service.set_unknown(UNKNOWN, name == "stock");
        Arc::new(service)
    };
    NAMES.into_iter().zip(script::DELAYS).map(service).collect()
}

fn order(id: u64) -> Order {
    let is_unknown = id % UNKNOWN_EVERY == UNKNOWN_EVERY - 1;
    let article = if is_unknown { UNKNOWN } else { "teapot" };
    Order { id, customer: format!("customer-{}", id % CUSTOMERS), article: article.to_owned() }
}

pub(crate) async fn run(demo: &Demo) -> Result<(), Error> {
    let folder = tempfile::tempdir()?;
    let times = Times {
        lease: Duration::from_secs(2),
        min_backoff: Duration::from_millis(200),
        max_backoff: Duration::from_secs(1),
        max_deliveries: 100,
    };
    let pipeline = Arc::new(Pipeline::open(folder.path(), &times).await?);
    // Each form has services of its own, so that neither slows the other.
    let (behind, direct) = (services(), services());
    let mut workers: Vec<Vec<JoinHandle<()>>> = Vec::new();
    for (group, service) in behind.iter().enumerate() {
        workers.push(pipeline.start(group, service, WORKERS));
    }
    let mut script = Script::new(Duration::from_secs(demo.seconds));
    let mut view = View::default();
    let began = Instant::now();
    let mut placing = Vec::new();
    let mut ticks = tokio::time::interval(EVERY);
    // Ends after the time of the load.
    while began.elapsed() < Duration::from_secs(demo.seconds) {
        ticks.tick().await;
        script.play(began.elapsed(), &pipeline, [&behind, &direct], &mut workers);
        let order = order(placing.len() as u64);
        tokio::spawn(place_directly(direct.clone(), order.clone(), Arc::clone(&view.waited)));
        placing.push(tokio::spawn(place(Arc::clone(&pipeline), order, Arc::clone(&view.queued))));
        view.look(began.elapsed(), &pipeline, script.now);
    }
    let mut accepted = BTreeSet::new();
    for placed in placing {
        accepted.insert(placed.await??);
    }
    script.end(&pipeline, [&behind, &direct], &mut workers);
    drain(&pipeline, began, &mut view, "the rest is worked on").await?;

    let dead: usize = pipeline.groups().iter().map(|group| group.stats().dead_letters).sum();
    println!("{dead} dead letters at stock, which now sells {UNKNOWN}s: they are delivered again");
    behind[1].set_unknown(UNKNOWN, false);
    for letter in pipeline.groups()[1].dead_letters(0, usize::MAX)? {
        pipeline.groups()[1].redrive(letter.id).await?;
    }
    drain(&pipeline, began, &mut view, "dead letters are delivered again").await?;
    view.sum_up();
    check(&pipeline, &behind, &accepted, dead)
}

/// Places an order in the pipeline: it is answered when it is on stable storage.
async fn place(
    pipeline: Arc<Pipeline>,
    order: Order,
    latencies: Arc<Latencies>,
) -> Result<u64, crate::pipeline::Error> {
    let start = Instant::now();
    let placed = pipeline.place(&order).await;
    latencies.add(start.elapsed(), placed.is_ok());
    placed.map(|()| order.id)
}

/// Places the same order synchronously: it is answered when every service has done it.
async fn place_directly(services: Vec<Arc<Service>>, order: Order, latencies: Arc<Latencies>) {
    let start = Instant::now();
    let placed = direct::place(&services, &order).await;
    latencies.add(start.elapsed(), placed.is_ok());
}

/// Waits until every order is done or a dead letter.
async fn drain(
    pipeline: &Pipeline,
    began: Instant,
    view: &mut View,
    now: &'static str,
) -> Result<(), Error> {
    let until = Instant::now() + DRAIN;
    // Ends when nothing is left, or when the time is over.
    loop {
        let left = pipeline.groups().iter().map(|group| {
            let stats = group.stats();
            stats.lag + stats.records as u64
        });
        let left: u64 = left.sum();
        if left == 0 {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(format!("{left} orders are left after {DRAIN:?}").into());
        }
        tokio::time::sleep(EVERY).await;
        view.look(began.elapsed(), pipeline, now);
    }
}

/// Each service has done exactly the orders that were accepted.
fn check(
    pipeline: &Pipeline,
    services: &[Arc<Service>],
    accepted: &BTreeSet<u64>,
    dead: usize,
) -> Result<(), Error> {
    for (service, group) in services.iter().zip(pipeline.groups()) {
        let (done, again) = service.ledger();
        let stats = group.stats();
        println!(
            "{:>12}: {} orders done, {again} asked for again, {} leases expired, {} dead letters",
            service.name,
            done.len(),
            stats.expired,
            stats.dead_letters
        );
        if done != *accepted || stats.dead_letters > 0 {
            let missing = accepted.difference(&done).count();
            return Err(format!("{} lacks {missing} orders", service.name).into());
        }
    }
    if dead == 0 {
        return Err("no order became a dead letter".into());
    }
    println!("exact: each service has done each of the {} accepted orders", accepted.len());
    Ok(())
}
