//! The faults of a soak: one at a time, drawn from a shuffled deck, so that all kinds are equally
//! frequent.

use std::collections::BTreeMap;
use std::error::Error;
use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use tokio::time::{Instant, sleep};
use voussoir_net::testing::{Direction, Proxy};
use voussoir_sim::Situations;

use crate::client::{Answered, Client};
use crate::cluster::Cluster;

/// How long a node may take to fall behind what the others keep.
const MAX_LAG: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    KillLeader,
    KillFollower,
    KillAll,
    StopLeader,
    StopFollower,
    CutLeader,
    Mute,
    Deafen,
    CutPair,
    Reset,
    SlowLink,
    Lag,
    End,
}

impl Fault {
    pub(super) const ALL: [Self; 13] = [
        Self::KillLeader,
        Self::KillFollower,
        Self::KillAll,
        Self::StopLeader,
        Self::StopFollower,
        Self::CutLeader,
        Self::Mute,
        Self::Deafen,
        Self::CutPair,
        Self::Reset,
        Self::SlowLink,
        Self::Lag,
        Self::End,
    ];
}

/// Injects faults, with a proxy for each connection from one node to another.
pub(super) struct Faults {
    /// The proxies, by connecting node and target.
    links: BTreeMap<(u64, u64), Proxy>,
    deck: Vec<Fault>,
    random: fastrand::Rng,
    /// The leader that was seen last.
    leader: Option<u64>,
    /// Snapshots taken and received by each node, as it counted when it was seen last.
    snapshots: BTreeMap<u64, (u64, u64)>,
}

impl Faults {
    /// Puts proxies between the nodes of a cluster that has not been started yet.
    pub(super) async fn new(cluster: &mut Cluster, seed: u64) -> Result<Self, Box<dyn Error>> {
        let mut links = BTreeMap::new();
        for from in cluster.ids() {
            for to in cluster.ids().into_iter().filter(|to| *to != from) {
                let target = cluster.peer_address(to).ok_or("no such node")?;
                let proxy = Proxy::start(target).await?;
                cluster.set_link(from, to, proxy.address());
                links.insert((from, to), proxy);
            }
        }
        let random = fastrand::Rng::with_seed(seed);
        let (deck, snapshots) = (Vec::new(), BTreeMap::new());
        Ok(Self { links, deck, random, leader: None, snapshots })
    }

    /// Injects one fault and ends it. Returns its description.
    pub(super) async fn one(
        &mut self,
        cluster: &mut Cluster,
        client: &Client,
        situations: &Situations,
    ) -> Result<String, Box<dyn Error>> {
        let led = cluster.leader(client).await?.id;
        let followers: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != led).collect();
        let follower = followers[self.random.u64(..followers.len() as u64) as usize];
        let pause = Duration::from_millis(300 + self.random.u64(..2200));
        let fault = self.draw();
        let ms = pause.as_millis();
        let said = match fault {
            Fault::KillLeader | Fault::KillFollower => {
                let is_leader = fault == Fault::KillLeader;
                let id = if is_leader { led } else { follower };
                situations.reached(if is_leader { "leader killed" } else { "follower killed" });
                self.look(client, situations).await;
                cluster.kill(id).await?;
                sleep(pause).await;
                cluster.start(id)?;
                format!("kill -9 of node {id}, back after {ms} ms")
            }
            Fault::KillAll => {
                situations.reached("every node killed");
                self.look(client, situations).await;
                for id in cluster.ids() {
                    cluster.kill(id).await?;
                }
                sleep(pause).await;
                cluster.start_all()?;
                format!("kill -9 of every node, back after {ms} ms")
            }
            Fault::StopLeader | Fault::StopFollower => {
                let is_leader = fault == Fault::StopLeader;
                let id = if is_leader { led } else { follower };
                let role = if is_leader { "leader" } else { "follower" };
                situations.reached(&format!("{role} stopped (SIGSTOP)"));
                cluster.pause(id)?;
                sleep(pause).await;
                cluster.resume(id)?;
                format!("SIGSTOP of node {id}, the {role}, for {ms} ms")
            }
            Fault::End => {
                situations.reached("node ended (SIGTERM)");
                let id = if self.random.u64(..2) == 0 { led } else { follower };
                self.look(client, situations).await;
                cluster.end(id).await?;
                sleep(pause).await;
                cluster.start(id)?;
                format!("SIGTERM to node {id}, back after {ms} ms")
            }
            Fault::Lag => {
                let behind = self.lag(cluster, client, follower, situations).await?;
                format!("node {follower} down until {behind} entries behind it were released")
            }
            _ => self.network(fault, led, follower, pause, situations).await,
        };
        Ok(said)
    }

    /// Injects one fault of the network and ends it.
    async fn network(
        &mut self,
        fault: Fault,
        led: u64,
        follower: u64,
        pause: Duration,
        situations: &Situations,
    ) -> String {
        let ms = pause.as_millis();
        let said = match fault {
            Fault::CutLeader => {
                situations.reached("leader cut off");
                self.of(led).for_each(|(_, proxy)| proxy.cut());
                format!("node {led}, the leader, cut off for {ms} ms")
            }
            Fault::Mute | Fault::Deafen => {
                // A node sends on the connections that it makes, and answers on the others.
                let is_mute = fault == Fault::Mute;
                let (own, other) = match is_mute {
                    true => (Direction::ToTarget, Direction::FromTarget),
                    false => (Direction::FromTarget, Direction::ToTarget),
                };
                let id = if self.random.u64(..2) == 0 { led } else { follower };
                for ((from, _), proxy) in self.of(id) {
                    proxy.cut_one_way(if from == id { own } else { other });
                }
                let name = if is_mute { "node heard by nobody" } else { "node that hears nobody" };
                situations.reached(name);
                format!("node {id}: {name} for {ms} ms")
            }
            Fault::CutPair => {
                situations.reached("two nodes cut off from each other");
                let pair = [(led, follower), (follower, led)];
                pair.iter().filter_map(|pair| self.links.get(pair)).for_each(Proxy::cut);
                format!("nodes {led} and {follower} cut off from each other for {ms} ms")
            }
            Fault::SlowLink => {
                situations.reached("slow link");
                let delay = Duration::from_millis(5 + self.random.u64(..45));
                for (_, proxy) in self.of(follower) {
                    for direction in Direction::BOTH {
                        proxy.set_delay(direction, delay);
                        proxy.set_bytes_per_second(direction, NonZeroU64::new(300_000));
                    }
                }
                let delay = delay.as_millis();
                format!("node {follower} at 300 kB/s and {delay} ms later, for {ms} ms")
            }
            _ => {
                situations.reached("connections reset");
                self.links.values().for_each(Proxy::disconnect);
                "every connection reset".to_owned()
            }
        };
        sleep(pause).await;
        for proxy in self.links.values() {
            proxy.heal();
            for direction in Direction::BOTH {
                proxy.set_delay(direction, Duration::ZERO);
                proxy.set_bytes_per_second(direction, None);
            }
        }
        said
    }

    /// Keeps a follower down until the others have released entries that it lacks, so that only a
    /// snapshot helps it. Returns how many.
    async fn lag(
        &mut self,
        cluster: &mut Cluster,
        client: &Client,
        follower: u64,
        situations: &Situations,
    ) -> Result<u64, Box<dyn Error>> {
        self.look(client, situations).await;
        let known = cluster.statuses(client).await;
        let status = known.into_iter().find(|(id, _)| *id == follower).and_then(|(_, s)| s);
        let has = status.ok_or("the follower does not say how far it is")?.last;
        cluster.kill(follower).await?;
        let end = Instant::now() + MAX_LAG;
        let behind = loop {
            let first = cluster.leader(client).await?.first;
            if first > has + 1 {
                break first - has - 1;
            }
            if Instant::now() >= end {
                return Err("the leader has released nothing, so there were no snapshots".into());
            }
            sleep(Duration::from_millis(50)).await;
        };
        situations.reached("follower down until its entries were released");
        cluster.start(follower)?;
        Ok(behind)
    }

    /// Counts snapshots and changes of leader since the last call.
    pub(super) async fn look(&mut self, client: &Client, situations: &Situations) {
        for (id, node) in (1..).zip(client.nodes()) {
            let deadline = Instant::now() + Duration::from_millis(500);
            let sent =
                client.send_to(*node, &Method::GET, "/metrics", None, Bytes::new(), deadline);
            let Ok(Answered::Reply(reply)) = sent.await else { continue };
            let text = String::from_utf8_lossy(&reply.body);
            let value = |name: &str| -> u64 {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0)
            };
            let taken = value("store_snapshots_taken_total ");
            let received = value("store_snapshots_received_total ");
            let (taken_before, received_before) =
                self.snapshots.insert(id, (taken, received)).unwrap_or_default();
            // The counters of a restarted node begin at 0.
            let since = |now: u64, before: u64| if now >= before { now - before } else { now };
            situations.add("snapshot taken", since(taken, taken_before));
            situations.add("snapshot received", since(received, received_before));
            if value("store_is_leader ") == 1 {
                if self.leader.is_some_and(|leader| leader != id) {
                    situations.reached("leader changed");
                }
                self.leader = Some(id);
            }
        }
    }

    /// The links from and to a node.
    fn of(&self, id: u64) -> impl Iterator<Item = ((u64, u64), &Proxy)> {
        let touches = move |((from, to), _): &(&(u64, u64), &Proxy)| *from == id || *to == id;
        self.links.iter().filter(touches).map(|(pair, proxy)| (*pair, proxy))
    }

    fn draw(&mut self) -> Fault {
        if self.deck.is_empty() {
            self.deck = Fault::ALL.to_vec();
        }
        let at = self.random.u64(..self.deck.len() as u64) as usize;
        self.deck.swap_remove(at)
    }
}
