//! Latencies of both forms, side by side: the same orders, by as many clients, in turn.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::load::quantile;
use super::order;
use super::processes::{ask, orders};
use crate::Error;
use crate::args::Form;

/// Rounds, in which the forms take turns. One before them does not count.
const ROUNDS: usize = 3;
/// Orders of each client in a round.
const ORDERS: usize = 20;

/// # Errors
/// A process could not be started, or an order was not completed.
pub(super) async fn compare(services: SocketAddr) -> Result<(), Error> {
    println!("\n== both, in turn, with nothing killed");
    for clients in [1, 12] {
        let mut found = Vec::new();
        for (form, name) in
            [(Form::Orchestrated, "orchestrated"), (Form::Choreographed, "choreographed")]
        {
            let folder = tempfile::Builder::new().prefix("order-saga-").tempdir()?;
            let process = orders(form, folder.path(), services).await?;
            found.push((name, folder, process, Vec::new()));
        }
        for round in 0..=ROUNDS {
            for (name, _, process, latencies) in &mut found {
                let prefix = format!("{name}-{clients}-{round}");
                let took = by_clients(process.address, clients, &prefix).await?;
                if round > 0 {
                    latencies.extend(took);
                }
            }
        }
        for (name, _folder, process, latencies) in found {
            process.end().await?;
            println!(
                "  {:<10} {name:<13}  p50 {:>6.1} ms   p99 {:>6.1} ms",
                if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") },
                quantile(&latencies, 50),
                quantile(&latencies, 99),
            );
        }
    }
    Ok(())
}

async fn by_clients(
    address: SocketAddr,
    clients: usize,
    prefix: &str,
) -> Result<Vec<Duration>, Error> {
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let prefix = format!("{prefix}-{client}");
        tasks.spawn(async move {
            let body = serde_json::to_value(order())?;
            let mut latencies = Vec::new();
            for number in 0..ORDERS {
                let began = Instant::now();
                let id = format!("{prefix}-{number}");
                let (status, said) = ask(address, "POST", "/orders", &id, &body).await?;
                if status != 200 {
                    return Err(format!("{id}: {status} {said}").into());
                }
                latencies.push(began.elapsed());
            }
            Ok::<_, Error>(latencies)
        });
    }
    let mut all = Vec::new();
    while let Some(took) = tasks.join_next().await {
        all.extend(took??);
    }
    Ok(all)
}
