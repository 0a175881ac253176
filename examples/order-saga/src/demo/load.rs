//! The load: clients that order, ask again with the same key until they are told the end, and keep
//! a ledger.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::processes::ask;
use super::{order, refused_at};
use crate::Error;
use crate::order::Order;
use crate::saga::STEPS;
use crate::services::Totals;

const CLIENTS: u64 = 12;
/// The pause of a client after each order.
const PAUSE: Duration = Duration::from_millis(10);
/// The pause before a client asks again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// An order whose end is not known within this time ends the demonstration with an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// What clients were told.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Orders, and whether they were completed.
    orders: Vec<(String, Order, bool)>,
    pub(super) completed: usize,
    pub(super) undone: usize,
    pub(super) repeats: u64,
    latencies: Vec<Duration>,
}

impl Ledger {
    /// In milliseconds.
    pub(super) fn quantile(&self, q: usize) -> f64 {
        quantile(&self.latencies, q)
    }

    /// Compares what the services hold with what the clients were told.
    ///
    /// # Errors
    /// An order is done by half, or its client was told otherwise.
    pub(super) fn compare(&self, before: &Totals, after: &Totals) -> Result<(), Error> {
        let mut all = STEPS.map(str::to_owned).to_vec();
        all.sort_unstable();
        let (mut cents, mut pieces, mut done) = (0, 0, before.done.len());
        for (id, order, is_completed) in &self.orders {
            let mut found = after.done.get(id).cloned().unwrap_or_default();
            found.sort_unstable();
            let wanted: &[String] = if *is_completed { &all } else { &[] };
            if found != wanted {
                return Err(format!("{id}: done at {found:?}, told {is_completed}").into());
            }
            if *is_completed {
                (cents, pieces, done) = (cents + order.cents, pieces + order.quantity, done + 1);
            }
        }
        let found = (after.charged_cents, after.reserved, after.shipped, after.done.len());
        let wanted =
            (before.charged_cents + cents, before.reserved + pieces, before.shipped + pieces, done);
        if found != wanted {
            return Err(format!("the services hold {found:?}, not {wanted:?}").into());
        }
        Ok(())
    }
}

/// In milliseconds.
pub(super) fn quantile(latencies: &[Duration], q: usize) -> f64 {
    let mut latencies = latencies.to_vec();
    latencies.sort_unstable();
    let at = (latencies.len() * q / 100).min(latencies.len().saturating_sub(1));
    latencies.get(at).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
}

/// Running clients.
pub(super) struct Clients {
    tasks: JoinSet<Result<(), Error>>,
    stop: watch::Sender<bool>,
    ledger: Arc<Mutex<Ledger>>,
}

impl Clients {
    /// Starts clients whose orders have ids that begin with `name`.
    pub(super) fn start(address: &watch::Receiver<SocketAddr>, seed: u64, name: &str) -> Self {
        let (stop, ledger) = (watch::Sender::new(false), Arc::<Mutex<Ledger>>::default());
        let mut tasks = JoinSet::new();
        for number in 0..CLIENTS {
            let random = fastrand::Rng::with_seed(seed ^ (number << 32));
            let (address, ledger) = (address.clone(), Arc::clone(&ledger));
            let name = format!("{name}-{number}");
            tasks.spawn(run(name, random, address, ledger, stop.subscribe()));
        }
        Self { tasks, stop, ledger }
    }

    /// Orders that have ended.
    pub(super) fn ended(&self) -> usize {
        self.ledger.lock().orders.len()
    }

    /// Returns an error if a client has failed.
    pub(super) fn check(&mut self) -> Result<(), Error> {
        match self.tasks.try_join_next() {
            None => Ok(()),
            Some(Ok(Err(error))) => Err(error),
            Some(ended) => Err(format!("a client ended before it was stopped: {ended:?}").into()),
        }
    }

    /// Waits until the end of every order is known.
    pub(super) async fn finish(mut self) -> Result<Ledger, Error> {
        self.stop.send_replace(true);
        while let Some(client) = self.tasks.join_next().await {
            client??;
        }
        Ok(std::mem::take(&mut self.ledger.lock()))
    }
}

async fn run(
    name: String,
    mut random: fastrand::Rng,
    address: watch::Receiver<SocketAddr>,
    ledger: Arc<Mutex<Ledger>>,
    stop: watch::Receiver<bool>,
) -> Result<(), Error> {
    let mut count = 0_u64;
    // Ends: when it is stopped, or with an error.
    while !*stop.borrow() {
        let id = format!("{name}-{count}");
        count += 1;
        // Every third one is refused somewhere.
        let mut order = match random.usize(0..12) {
            step @ 0..4 => refused_at(STEPS[step]),
            _ => order(),
        };
        (order.quantity, order.cents) = (random.u64(1..=9), random.u64(1..=50_000));
        bring_about(id, order, &address, &ledger).await?;
        sleep(PAUSE).await;
    }
    Ok(())
}

async fn bring_about(
    id: String,
    order: Order,
    address: &watch::Receiver<SocketAddr>,
    ledger: &Mutex<Ledger>,
) -> Result<(), Error> {
    let began = Instant::now();
    let body = serde_json::to_value(&order)?;
    // Ends: with an answer, or after `PATIENCE`.
    loop {
        let to = *address.borrow();
        let answer = ask(to, "POST", "/orders", &id, &body).await;
        let is_completed = match &answer {
            Ok((200, _)) => Some(true),
            Ok((409, said)) if said["state"] == "undone" => Some(false),
            // Not ended, drained, or the orchestrator was killed.
            Ok((202 | 503, _)) | Err(_) => None,
            Ok((status, said)) => return Err(format!("{id}: {status} {said}").into()),
        };
        if let Some(is_completed) = is_completed {
            let mut ledger = ledger.lock();
            ledger.latencies.push(began.elapsed());
            ledger.completed += usize::from(is_completed);
            ledger.undone += usize::from(!is_completed);
            ledger.orders.push((id, order, is_completed));
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            let seconds = PATIENCE.as_secs();
            return Err(format!("{id}: no end within {seconds} s: {answer:?}").into());
        }
        ledger.lock().repeats += 1;
        sleep(RETRY_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_by_half_and_sums_that_differ_are_found() {
        let mut ledger = Ledger::default();
        ledger.orders.push(("a".into(), order(), true));
        ledger.orders.push(("b".into(), order(), false));
        let mut after =
            Totals { charged_cents: 4_200, reserved: 2, shipped: 2, ..Totals::default() };
        after.done.insert("a".into(), STEPS.map(str::to_owned).to_vec());
        let none = Totals::default();
        ledger.compare(&none, &after).unwrap();
        let fails = |after: &Totals| ledger.compare(&none, after).unwrap_err().to_string();
        let mut half = after.clone();
        half.done.get_mut("a").unwrap().pop();
        assert!(fails(&half).starts_with("a: done at"));
        let mut left = after.clone();
        left.done.insert("b".into(), vec!["stock".into()]);
        assert!(fails(&left).starts_with("b: done at"));
        let mut unknown = after.clone();
        unknown.done.insert("c".into(), vec!["stock".into()]);
        assert!(fails(&unknown).contains("the services hold"));
        let dear = Totals { charged_cents: 4_201, ..after };
        assert!(fails(&dear).contains("the services hold"));
    }
}
