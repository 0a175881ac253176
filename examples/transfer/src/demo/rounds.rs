//! Rounds: the service, a database, or several of them, are killed at a point of the protocol under
//! load; then the banks are compared.

use std::fmt;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::audit::{compare_banks, prepared};
use super::load::numbers;
use super::points::POINTS;
use super::processes::{Service, kill_server};
use super::servers::Server;
use super::{RECOVER_EVERY, SINGLE, Stage};
use crate::Error;
use crate::transfers::settle_bound;

/// A round that kills at no point that we know, but whenever it happens.
const ANYWHERE: &str = "any moment";
/// The point before the decision.
const BEFORE_DECISION: usize = 7;
/// Step of a cycle at which the coordinator is killed before the decision: few rounds from here to
/// the next cycle kill coordinator and banks at the points about the decision.
const COORDINATOR_STEP: usize = 20;
/// How long the service may take to answer `GET /stats`.
const STATS_WAIT: Duration = Duration::from_secs(2);

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Coordinator,
    East,
    West,
    Banks,
    All,
}

const VICTIMS: [Victim; 5] =
    [Victim::Coordinator, Victim::East, Victim::West, Victim::Banks, Victim::All];

impl Victim {
    fn kills_service(self) -> bool {
        matches!(self, Self::Coordinator | Self::All)
    }

    fn kills_bank(self, bank: usize) -> bool {
        match self {
            Self::Coordinator => false,
            Self::East => bank == 0,
            Self::West => bank == 1,
            Self::Banks | Self::All => true,
        }
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Coordinator => "coordinator",
            Self::East => "east",
            Self::West => "west",
            Self::Banks => "both banks",
            Self::All => "all three",
        })
    }
}

/// Point and victim of a round: the coordinator at each point, then the others in turn, in an order
/// that has each at each point after five times as many rounds as there are points.
fn plan(round: usize) -> (&'static str, Victim) {
    let count = POINTS.len() + 1;
    let (cycle, step) = (round / count % VICTIMS.len(), round % count);
    let Some(others) = cycle.checked_sub(1) else {
        let number = (step + count - COORDINATOR_STEP + BEFORE_DECISION) % count;
        return (point(number), Victim::Coordinator);
    };
    let victim = VICTIMS[1 + (step + others) % (VICTIMS.len() - 1)];
    (point((step + BEFORE_DECISION) % count), victim)
}

fn point(number: usize) -> &'static str {
    POINTS.get(number).copied().unwrap_or(ANYWHERE)
}

/// What was killed, and what was found after it.
#[derive(Debug)]
pub(super) struct Kills {
    coordinator: u32,
    databases: u32,
    /// Transactions that were prepared just after a kill, and transfers that were decided and not
    /// applied at a start.
    prepared: i64,
    decided: u64,
    longest: Duration,
    pub(super) bound: Duration,
}

impl Default for Kills {
    fn default() -> Self {
        let bound = settle_bound(RECOVER_EVERY);
        let longest = Duration::ZERO;
        Self { coordinator: 0, databases: 0, prepared: 0, decided: 0, longest, bound }
    }
}

impl fmt::Display for Kills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { coordinator, databases, prepared, decided, longest, bound } = self;
        write!(
            f,
            "kills:  {coordinator} of the coordinator, {databases} of a database; after them \
             {prepared} transactions were prepared, {decided} transfers were decided and not \
             applied; the last was settled within {} ms, the limit is {} ms",
            longest.as_millis(),
            bound.as_millis()
        )
    }
}

impl Stage<'_> {
    pub(super) async fn run_rounds(&mut self, first: u32, rounds: u32) -> Result<(), Error> {
        println!(
            "  time  kill at                           who          prepared  settled   \
             transfers   p50       p99        money"
        );
        for round in first..first.saturating_add(rounds) {
            let (point, mut victim) = plan(round as usize);
            if !self.servers.iter().all(Server::is_own) {
                // A server that is not ours is not killed.
                victim = Victim::Coordinator;
            }
            self.round(point, victim).await.map_err(|error| {
                let error = crate::chain(&*error);
                format!("round {round}, {victim} at `{point}`: {error}")
            })?;
        }
        Ok(())
    }

    async fn round(&mut self, point: &str, victim: Victim) -> Result<(), Error> {
        self.clients.check()?;
        self.reach(point).await?;
        if victim.kills_service() {
            self.kill_service().await?;
        }
        let killed: Vec<usize> =
            (0..self.servers.len()).filter(|bank| victim.kills_bank(*bank)).collect();
        let mut ended = JoinSet::new();
        for bank in &killed {
            ended.spawn(kill_server(self.servers[*bank].url().to_owned()));
            self.kills.databases += 1;
        }
        while let Some(ended) = ended.join_next().await {
            ended??;
        }
        let service_first = self.random.bool();
        if victim.kills_service() && service_first {
            self.start_service(None)?;
        }
        if !victim.kills_service() {
            self.service()?.order("go").await?;
        }
        let [east, west] = [0, 1].map(|bank| killed.contains(&bank));
        restart(self.servers, east, west).await?;
        // What the databases hold before anybody goes on with it, where nobody does yet.
        let left = prepared(&self.urls).await?;
        self.kills.prepared += left;
        if victim.kills_service() && !service_first {
            self.start_service(None)?;
        }
        if victim.kills_service() {
            self.await_service().await?;
        }
        self.compare(point, victim, left).await
    }

    /// Runs until the service stops at the point.
    async fn reach(&mut self, point: &str) -> Result<(), Error> {
        match point {
            ANYWHERE => {
                sleep(Duration::from_millis(self.random.u64(20..200))).await;
                Ok(())
            }
            // At its start.
            "opened" => {
                sleep(Duration::from_millis(self.random.u64(20..200))).await;
                self.kill_service().await?;
                self.start_service(Some(point))?;
                self.service()?.stopped_at(point).await
            }
            _ => {
                let most = if point.ends_with("listed") { 1 } else { 8 };
                let passes = self.random.u32(0..=most);
                self.service()?.stop_at(point, passes).await
            }
        }
    }

    pub(super) async fn kill_service(&mut self) -> Result<(), Error> {
        let service = self.service.take().ok_or("the service does not run")?;
        service.kill().await?;
        self.kills.coordinator += 1;
        Ok(())
    }

    pub(super) fn start_service(&mut self, stop_at: Option<&str>) -> Result<(), Error> {
        let service =
            Service::start(&self.name, &self.folder.join(SINGLE), &self.urls, stop_at, &[])?;
        self.service = Some(service);
        Ok(())
    }

    pub(super) async fn await_service(&mut self) -> Result<(), Error> {
        let (address, decided) = self.service()?.listening().await?;
        self.kills.decided += decided;
        self.addresses.send_replace(vec![address]);
        Ok(())
    }

    /// All processes run again: waits until nothing is prepared, and compares the banks.
    async fn compare(&mut self, point: &str, victim: Victim, left: i64) -> Result<(), Error> {
        let up = Instant::now();
        if point == "opened" && !victim.kills_service() {
            // It has gone on to its start.
            self.await_service().await?;
        }
        let (settled, money) = {
            let _paused = self.clients.pause().await;
            let address = self.addresses.borrow()[0];
            let settled = settle(&self.urls, address, up, self.kills.bound).await?;
            (settled, compare_banks(&self.urls).await?)
        };
        self.kills.longest = self.kills.longest.max(settled);
        self.show(point, victim, left, settled, money);
        Ok(())
    }

    fn show(&self, point: &str, victim: Victim, left: i64, settled: Duration, money: i64) {
        let (done, mut latencies) = {
            let mut ledger = self.clients.ledger.lock();
            (ledger.done.len(), std::mem::take(&mut ledger.latencies))
        };
        latencies.sort_unstable();
        let quantile = |q: usize| {
            let at = (latencies.len() * q / 100).min(latencies.len().saturating_sub(1));
            latencies.get(at).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
        };
        println!(
            "{:>4.1} s  {point:<32}  {:<11}  {left:>8}  {:>4} ms  {done:>9}  {:>5.1} ms  \
             {:>6.1} ms  {money} conserved",
            self.began.elapsed().as_secs_f64(),
            victim.to_string(),
            settled.as_millis(),
            quantile(50),
            quantile(99),
        );
    }
}

/// Starts the servers that were killed, at the same time.
async fn restart(servers: &mut [Server], east: bool, west: bool) -> Result<(), Error> {
    let mut servers = servers.iter_mut();
    let (first, second) = (servers.next(), servers.next());
    tokio::try_join!(start(first, east), start(second, west)).map(|_| ())
}

async fn start(server: Option<&mut Server>, is_dead: bool) -> Result<(), Error> {
    match server {
        Some(server) if is_dead => server.restart().await,
        _ => Ok(()),
    }
}

/// Waits until nothing is prepared and nothing under way. Returns the time since `up`.
///
/// # Errors
/// It takes longer than the bound.
pub(super) async fn settle(
    urls: &[String; 2],
    address: std::net::SocketAddr,
    up: Instant,
    bound: Duration,
) -> Result<Duration, Error> {
    // Ends: when it is settled, or after the bound.
    loop {
        let left = prepared(urls).await?;
        let settled = up.elapsed();
        let stats = timeout(STATS_WAIT, numbers(address)).await;
        let active = match stats {
            Ok(Ok(numbers)) if numbers.heuristics > 0 => {
                return Err(format!("{} heuristic outcomes", numbers.heuristics).into());
            }
            Ok(Ok(numbers)) => Some(numbers.active),
            _ => None,
        };
        if settled > bound {
            let bound = bound.as_millis();
            return Err(format!(
                "{left} transactions are prepared and {active:?} active after {bound} ms"
            )
            .into());
        }
        if left == 0 && active == Some(0) {
            return Ok(settled);
        }
        sleep(Duration::from_millis(5)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_point_meets_every_victim() {
        let points = POINTS.len() + 1;
        let first: HashSet<&str> = (0..points).map(|round| plan(round).0).collect();
        assert_eq!(first.len(), points);
        assert!((0..points).all(|round| plan(round).1 == Victim::Coordinator));
        let all: HashSet<_> = (0..5 * points).map(|round| format!("{:?}", plan(round))).collect();
        assert_eq!(all.len(), 5 * points);
        let about =
            ["before the decision", "decided", "before east commits", "before west commits"];
        for first in [COORDINATOR_STEP, points] {
            assert!((first..first + about.len()).map(|round| plan(round).0).eq(about));
        }
    }
}
