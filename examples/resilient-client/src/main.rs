//! An HTTP client behind every policy, against a flaky server that comes with it.
//!
//! `cargo run --release -p resilient-client -- --seconds 20`

mod client;
mod server;
mod view;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use client::Client;
use server::Server;
use view::{PERIOD, Users, View};

/// Number of users that send requests concurrently.
const USERS: u64 = 24;

type Error = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let run = Duration::from_secs(seconds()?);
    let server = Server::new(run);
    let address = server.serve().await?;
    let client = Arc::new(Client::new(format!("http://{address}/news").parse()?)?);
    let users = Arc::new(Users::default());
    println!("{}", client.describe());

    let end = Instant::now() + run;
    let asking: Vec<_> = (0..USERS)
        .map(|user| tokio::spawn(ask(user, end, Arc::clone(&client), Arc::clone(&users))))
        .collect();
    let mut view = View::new(run);
    while Instant::now() < end {
        tokio::time::sleep(PERIOD).await;
        view.look(&users, &client, &server);
    }
    for user in asking {
        user.await?;
    }
    view.sum_up(&client);
    Ok(())
}

fn seconds() -> Result<u64, Error> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (None, ..) => Ok(20),
        (Some("--seconds"), Some(value), None) => match value.parse() {
            Ok(seconds @ 1..=3_600) => Ok(seconds),
            _ => Err("--seconds takes 1 to 3600".into()),
        },
        _ => Err("usage: resilient-client [--seconds N]".into()),
    }
}

async fn ask(user: u64, end: Instant, client: Arc<Client>, users: Arc<Users>) {
    // Users start at different times, so that their requests spread out.
    tokio::time::sleep(Duration::from_millis(user * 2)).await;
    while Instant::now() < end {
        let start = Instant::now();
        let count = match client.get().await {
            Ok(reply) if reply.is_stale => &users.stale,
            Ok(reply) if reply.status.is_success() && !reply.body.is_empty() => &users.fresh,
            Ok(_) | Err(_) => &users.failed,
        };
        count.fetch_add(1, Relaxed);
        let waited = start.elapsed().as_micros() as u64;
        users.waited_us.fetch_add(waited, Relaxed);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
