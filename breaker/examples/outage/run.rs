//! One run of one policy.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::client::{Client, Kind, Tally};
use crate::server::{Rng, Server};

/// Seconds of a run.
pub(crate) const SECONDS: usize = 150;
/// Users a second.
pub(crate) const RATE: u64 = 200;
/// A user waits no longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) struct Run {
    pub(crate) kind: Kind,
    pub(crate) tally: Arc<Tally>,
    /// Requests that the server worked on, and those of them that nobody waited for.
    pub(crate) served: u64,
    pub(crate) wasted: u64,
}

/// Virtual time, one thread, fixed seeds: the same run each time.
pub(crate) fn run(kind: Kind) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O");
    runtime.block_on(async move {
        let server = Server::new(1);
        let client = Arc::new(Client::new(kind, Arc::clone(&server)));
        let start = Instant::now();
        let mut rng = Rng::new(2);
        let mut at = 0.0;
        while at < SECONDS as f64 {
            sleep_until(start + Duration::from_secs_f64(at)).await;
            let client = Arc::clone(&client);
            tokio::spawn(async move { client.user(at as usize).await });
            // Users come independently of each other.
            at += -(1.0 - rng.unit()).ln() / RATE as f64;
        }
        sleep(Duration::from_secs(30)).await;
        let (served, wasted) = server.totals();
        Run { kind, tally: client.tally(), served, wasted }
    })
}
