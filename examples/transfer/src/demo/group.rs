//! The same coordinator in a group of three processes: the one that leads is killed or paused
//! between the phases and stays away, and another lets go what it has left prepared.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use super::audit::{blocked, compare_banks, prepared, prepared_ids};
use super::blocking::Blocked;
use super::load::numbers;
use super::processes::Service;
use super::rounds::settle;
use super::{RECOVER_EVERY, Stage};
use crate::Error;
use crate::args::CreateNode;
use crate::group::{create, takeover_bound};
use crate::transfers::settle_bound;

/// Nodes of the group, from 1.
const NODES: u64 = 3;
/// Transfers at once in each node: all that lead one after the other share a server's prepared
/// transactions and connections.
const MAX_TRANSFERS: u32 = 8;
/// Between the phases: where something is prepared that only a coordinator can end.
const BETWEEN: [&str; 4] =
    ["before the decision", "decided", "before west commits", "east prepared"];
/// Of so many rounds, the last pauses the leader and lets it go on.
const PAUSE_EVERY: u32 = 4;
/// How long transfers gather at the point.
const GATHER: Duration = Duration::from_millis(300);
/// How long a group may be without a leader that serves, when nobody is killed.
const LEADER_WAIT: Duration = Duration::from_secs(30);
/// How long a node may take to reach a point, before another is looked for that leads.
const POINT_WAIT: Duration = Duration::from_secs(10);
/// How long a node may take to say whether it leads.
const STATS_WAIT: Duration = Duration::from_millis(500);
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// The processes of the group.
pub(super) struct Nodes {
    name: String,
    folder: PathBuf,
    urls: [String; 2],
    /// Where the peers reach each.
    places: Vec<SocketAddr>,
    all: Vec<Node>,
}

struct Node {
    /// `None` while it is dead.
    service: Option<Service>,
    /// Where clients reach it.
    address: SocketAddr,
    is_paused: bool,
}

impl Nodes {
    async fn start(name: &str, folder: &Path, urls: &[String; 2]) -> Result<Self, Error> {
        // All are held until all are chosen, so that none is chosen twice.
        let held: Vec<TcpListener> = (0..NODES)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .collect::<Result<_, _>>()?;
        let places = held.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
        drop(held);
        let (name, folder, urls) = (name.to_owned(), folder.to_owned(), urls.clone());
        let mut nodes = Self { name, folder, urls, places, all: Vec::new() };
        for id in 1..=NODES {
            create(&CreateNode { node: id, data: nodes.data(id) })?;
            let mut service = nodes.run(id)?;
            let (address, _) = service.listening().await?;
            nodes.all.push(Node { service: Some(service), address, is_paused: false });
        }
        Ok(nodes)
    }

    fn data(&self, id: u64) -> PathBuf {
        self.folder.join(format!("node-{id}"))
    }

    fn run(&self, id: u64) -> Result<Service, Error> {
        let mut more = vec![format!("--max-transfers={MAX_TRANSFERS}"), format!("--node={id}")];
        for (peer, place) in (1..).zip(&self.places) {
            more.push(if peer == id {
                format!("--node-listen={place}")
            } else {
                format!("--peer={peer}={place}")
            });
        }
        Service::start(&self.name, &self.data(id), &self.urls, None, &more)
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.all.iter().map(|node| node.address).collect()
    }

    fn service(&mut self, number: usize) -> Result<&mut Service, Error> {
        self.all[number].service.as_mut().ok_or_else(|| "the node does not run".into())
    }

    /// The node that leads and serves, and how many transactions are active there.
    async fn leader(&self, wait: Duration) -> Result<(usize, usize), Error> {
        let until = Instant::now() + wait;
        // Ends: one leads, or after `wait`.
        while Instant::now() < until {
            for (number, node) in self.all.iter().enumerate() {
                if node.service.is_none() || node.is_paused {
                    continue;
                }
                if let Ok(Ok(numbers)) = timeout(STATS_WAIT, numbers(node.address)).await {
                    if numbers.heuristics > 0 {
                        let count = numbers.heuristics;
                        return Err(format!("{count} heuristic outcomes").into());
                    }
                    return Ok((number, numbers.active));
                }
            }
            sleep(LOOK_PAUSE).await;
        }
        Err(format!("no node leads within {} s", wait.as_secs()).into())
    }

    /// Has the leader stop all transactions at a point; returns who it is.
    async fn hold(&mut self, point: &str) -> Result<usize, Error> {
        let until = Instant::now() + LEADER_WAIT;
        // Ends: it is reached, or after `LEADER_WAIT`. A leader may be replaced just then.
        loop {
            let (number, _) = self.leader(LEADER_WAIT).await?;
            let service = self.service(number)?;
            service.order(&format!("hold 0 {point}")).await?;
            match timeout(POINT_WAIT, service.passed(point)).await {
                Ok(passed) => return passed.map(|()| number),
                Err(_) => service.order("free").await?,
            }
            if Instant::now() > until {
                return Err(format!("the point `{point}` was not reached").into());
            }
        }
    }

    async fn take_away(&mut self, number: usize, pauses: bool) -> Result<(), Error> {
        if pauses {
            self.all[number].is_paused = true;
            return self.service(number)?.signal("-STOP").await;
        }
        let service = self.all[number].service.take().ok_or("the node does not run")?;
        service.kill().await
    }

    async fn bring_back(&mut self, number: usize) -> Result<(), Error> {
        if std::mem::take(&mut self.all[number].is_paused) {
            let service = self.service(number)?;
            service.signal("-CONT").await?;
            // What it had stopped goes on, and finds that it was replaced.
            return service.order("free").await;
        }
        let mut service = self.run(number as u64 + 1)?;
        self.all[number].address = service.listening().await?.0;
        self.all[number].service = Some(service);
        Ok(())
    }

    pub(super) async fn end(self) -> Result<(), Error> {
        for service in self.all.into_iter().filter_map(|node| node.service) {
            service.end().await?;
        }
        Ok(())
    }
}

/// What was found in all rounds.
#[derive(Default)]
struct Found {
    kills: u32,
    pauses: u32,
    branches: usize,
    accounts: i64,
    longest: Duration,
}

fn bound() -> Duration {
    takeover_bound() + settle_bound(RECOVER_EVERY)
}

impl Stage<'_> {
    /// Shows that a group lets go what its leader leaves behind, beside what a single coordinator
    /// has kept blocked.
    pub(super) async fn show_group(&mut self, rounds: u32, single: &Blocked) -> Result<(), Error> {
        {
            let _paused = self.clients.pause().await;
            // In order: its name moves to no group, so nothing may be left to it.
            let address = self.addresses.borrow()[0];
            settle(&self.urls, address, Instant::now(), self.kills.bound).await?;
            self.service.take().ok_or("the service does not run")?.end().await?;
            let name = format!("{}_group", self.name);
            let nodes = Nodes::start(&name, &self.folder, &self.urls).await?;
            nodes.leader(LEADER_WAIT).await?;
            self.addresses.send_replace(nodes.addresses());
            self.group = Some(nodes);
        }
        println!(
            "\na group of {NODES} coordinators, whose leader is taken away between the phases:"
        );
        println!(
            "  time  at                   the leader is   prepared  blocked  freed by another"
        );
        let mut found = Found::default();
        for round in 0..rounds {
            self.group_round(round, &mut found).await.map_err(|error| {
                let error = crate::chain(&*error);
                format!("round {round} of the group: {error}")
            })?;
        }
        let Blocked { branches, accounts, time } = single;
        println!(
            "\nsingle: {branches} branches and {accounts} accounts blocked for {:.1} s: as long as \
             it was dead",
            time.as_secs_f64()
        );
        let Found { kills, pauses, branches, accounts, longest } = found;
        println!(
            "group:  {kills} leaders killed and {pauses} paused, {branches} branches and \
             {accounts} accounts blocked; the last was free within {} ms while its leader stayed \
             away, the limit is {} ms",
            longest.as_millis(),
            bound().as_millis()
        );
        Ok(())
    }

    async fn group_round(&mut self, round: u32, found: &mut Found) -> Result<(), Error> {
        self.clients.check()?;
        let mut nodes = self.group.take().ok_or("the group does not run")?;
        let point = BETWEEN[(round / PAUSE_EVERY + round) as usize % BETWEEN.len()];
        let pauses = round % PAUSE_EVERY == PAUSE_EVERY - 1;
        let leader = nodes.hold(point).await?;
        sleep(GATHER).await;
        let (held, (accounts, _)) = (prepared_ids(&self.urls).await?, blocked(&self.urls).await?);
        if held.is_empty() {
            return Err(format!("nothing is prepared at `{point}`").into());
        }
        nodes.take_away(leader, pauses).await?;
        let away = Instant::now();
        let freed = freed(&self.urls, &held, away).await?;
        if !pauses {
            self.await_transfer(away + bound()).await?;
        }
        nodes.bring_back(leader).await?;
        self.addresses.send_replace(nodes.addresses());
        let money = {
            let _paused = self.clients.pause().await;
            settled(&self.urls, &nodes).await?;
            compare_banks(&self.urls).await?
        };
        let how = if pauses { "paused" } else { "killed" };
        println!(
            "{:>4.1} s  {point:<19}  {how:<14}  {:>8}  {accounts:>7}  {:>4} ms; {money} conserved",
            self.began.elapsed().as_secs_f64(),
            held.len(),
            freed.as_millis(),
        );
        *(if pauses { &mut found.pauses } else { &mut found.kills }) += 1;
        found.branches += held.len();
        found.accounts += accounts;
        found.longest = found.longest.max(freed);
        self.group = Some(nodes);
        Ok(())
    }

    /// Waits for a transfer by the next leader, while the one before is dead. Of a paused one the
    /// clients still wait for its answers.
    async fn await_transfer(&self, until: Instant) -> Result<(), Error> {
        let done = || self.clients.ledger.lock().done.len();
        let before = done();
        // Ends: with a transfer, or after the limit.
        while done() == before {
            if Instant::now() > until {
                return Err("nothing was transferred while the leader was away".into());
            }
            sleep(LOOK_PAUSE).await;
        }
        Ok(())
    }
}

/// Waits until none of these transactions is prepared any more. Returns the time since `away`.
///
/// # Errors
/// It takes longer than the limit.
async fn freed(
    urls: &[String; 2],
    held: &HashSet<String>,
    away: Instant,
) -> Result<Duration, Error> {
    // Ends: when they are gone, or after the limit.
    loop {
        let left = prepared_ids(urls).await?.intersection(held).count();
        let time = away.elapsed();
        if left == 0 {
            return Ok(time);
        }
        if time > bound() {
            return Err(
                format!("{left} branches are prepared after {} ms", time.as_millis()).into()
            );
        }
        sleep(LOOK_PAUSE).await;
    }
}

/// Waits until nothing is prepared and nothing under way, with all nodes up and no load.
///
/// # Errors
/// It takes longer than the limit.
async fn settled(urls: &[String; 2], nodes: &Nodes) -> Result<(), Error> {
    let up = Instant::now();
    // Ends: when it is settled, or after the limit.
    loop {
        let (_, active) = nodes.leader(LEADER_WAIT).await?;
        let left = prepared(urls).await?;
        if left == 0 && active == 0 {
            return Ok(());
        }
        if up.elapsed() > bound() {
            return Err(format!("{left} transactions are prepared and {active} active").into());
        }
        sleep(LOOK_PAUSE).await;
    }
}
