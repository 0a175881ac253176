//! How long a group is without a leader: three nodes in this process, a journal on disk each, over
//! TCP on loopback, with the default timing.
//!
//! ```text
//! cargo run --release --features testing --example failover -- [KILLS] [HANGS]
//! ```
//! `KILLS` times (200 by default) the leader is killed: its runtime ends between two polls, with
//! its connections, and nobody is told. The time counts until a client has a write acknowledged by
//! another leader. `HANGS` times (50 by default) the leader's disk completes nothing any more while
//! a client writes; what counts is the longest time without an acknowledged write, and how long it
//! takes until another node leads.
//!
//! The status is 1 when the 99th percentile of one of these is longer than it may be: twice
//! `max_election_timeout` for a write after a kill and for a write beside a hung disk, and as long
//! after `disk_stall` for the next leader.

#[path = "support/mod.rs"]
#[allow(dead_code, reason = "no example uses all of it")]
mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Builder;
use tokio::time::{sleep, timeout};
use voussoir_journal::{Config as JournalConfig, Journal};
use voussoir_net::{Peers, Tcp};
use voussoir_raft::net::NetTransport;
use voussoir_raft::testing::FaultyStore;
use voussoir_raft::{Config, ProposeError, Raft, Role, Status};

use self::support::{Counter, Failure, Folder, Lane, open_or_create};

/// How long a step may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node, on a runtime of its own.
struct Host {
    raft: Raft,
    store: FaultyStore,
    journal: Journal,
    lane: Lane,
}

impl Host {
    async fn start(id: u64, folder: &Path, peers: &Peers) -> Result<Self, Failure> {
        let mut options = JournalConfig::default();
        options.max_bytes = 1 << 30;
        let journal = Journal::open(folder.join(id.to_string()), options)?;
        let store = FaultyStore::new(Arc::new(open_or_create(&journal, id)?));
        let lane = Lane::new()?;
        let (peers, own) = (peers.clone(), store.clone());
        let start = async move {
            let (resolver, net) = (Arc::new(peers.clone()), voussoir_net::Config::new(1));
            let tcp = Tcp::bind(id, "127.0.0.1:0".parse()?, resolver, net).await?;
            peers.insert(id, tcp.address());
            let transport = Arc::new(NetTransport::new(Arc::new(tcp), 1)?);
            let config = Config::new(id, [1, 2, 3]);
            let raft = Raft::start(config, Arc::new(own), Box::new(Counter(0)), transport).await?;
            Ok::<_, Failure>(raft)
        };
        let raft = lane.handle.spawn(start).await??;
        Ok(Self { raft, store, journal, lane })
    }

    /// Kills the node, and closes what it leaves behind.
    async fn kill(self) -> Result<(), Failure> {
        let Self { raft, store, journal, lane } = self;
        lane.end().await;
        drop((raft, store));
        journal.close()?;
        Ok(())
    }

    fn leads(&self) -> bool {
        self.raft.stopped().is_none() && self.raft.status().borrow().role == Role::Leader
    }
}

/// The nodes, by id less 1.
type Hosts = [Option<Host>; 3];

/// A client: asks one node after the other until its write is acknowledged, at the leader that they
/// name first. Returns who acknowledged it.
async fn write(hosts: &Hosts, mut at: usize) -> Result<usize, Failure> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(host) = &hosts[at] {
            let answer = host.raft.propose(Bytes::from_static(&[7; 100]));
            match timeout(Duration::from_millis(100), answer).await {
                Ok(Ok(_)) => return Ok(at),
                Ok(Err(ProposeError::NotLeader { leader: Some(leader) })) => {
                    let leader = leader as usize - 1;
                    at =
                        if hosts[leader].is_some() && leader != at { leader } else { (at + 1) % 3 };
                }
                Ok(Err(_)) | Err(_) => at = (at + 1) % 3,
            }
        } else {
            at = (at + 1) % 3;
        }
        sleep(Duration::from_millis(1)).await;
    }
    Err("no write is acknowledged".into())
}

/// Waits until everybody follows one leader and has what it has committed.
async fn settled(hosts: &Hosts) -> Result<usize, Failure> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let all: Vec<_> =
            hosts.iter().flatten().map(|host| host.raft.status().borrow().clone()).collect();
        let leader = hosts.iter().position(|host| host.as_ref().is_some_and(Host::leads));
        if let Some(leader) = leader.filter(|_| all.len() == 3) {
            let of = &all[leader];
            let agrees = |it: &Status| {
                it.leader == Some(of.id) && it.term == of.term && it.durable >= of.commit
            };
            if all.iter().all(agrees) {
                return Ok(leader);
            }
        }
        sleep(Duration::from_millis(5)).await;
    }
    Err("the nodes do not settle".into())
}

/// Times in ascending order: the median, the 99th percentile and the longest.
fn summary(times: &mut [Duration]) -> [Duration; 3] {
    times.sort_unstable();
    let at = |of: usize| times.get(of).copied().unwrap_or_default();
    [at(times.len() / 2), at(times.len() * 99 / 100), at(times.len().saturating_sub(1))]
}

async fn kills(
    hosts: &mut Hosts,
    count: u64,
    folder: &Path,
    peers: &Peers,
) -> Result<Vec<Duration>, Failure> {
    let mut times = Vec::new();
    for kill in 0..count {
        let leader = settled(hosts).await?;
        write(hosts, leader).await?;
        // The kill comes at ever other times between two heartbeats.
        sleep(Duration::from_millis(100 + kill * 37 % 50)).await;
        let Some(host) = hosts[leader].take() else { continue };
        let begun = Instant::now();
        let (killed, written) = tokio::join!(host.kill(), async {
            (write(hosts, (leader + 1) % 3).await, begun.elapsed())
        });
        killed?;
        written.0?;
        times.push(written.1);
        hosts[leader] = Some(Host::start(leader as u64 + 1, folder, peers).await?);
    }
    Ok(times)
}

/// The longest time without an acknowledged write, and the time until another node leads.
async fn hangs(hosts: &Hosts, count: u64) -> Result<(Vec<Duration>, Vec<Duration>), Failure> {
    let (mut gaps, mut replaced) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let leader = settled(hosts).await?;
        let Some(host) = &hosts[leader] else { continue };
        host.store.stall();
        let (begun, mut last, mut gap) = (Instant::now(), Instant::now(), Duration::ZERO);
        let mut by = leader;
        while by == leader {
            by = write(hosts, by).await?;
            gap = gap.max(last.elapsed());
            last = Instant::now();
            if begun.elapsed() > PATIENCE {
                return Err("a leader with a hung disk is not replaced".into());
            }
            sleep(Duration::from_millis(1)).await;
        }
        gaps.push(gap);
        replaced.push(begun.elapsed());
        host.store.resume();
    }
    Ok((gaps, replaced))
}

async fn run(counts: (u64, u64), folder: &Path) -> Result<bool, Failure> {
    let peers = Peers::new();
    let mut hosts: Hosts = [None, None, None];
    for (id, host) in (1..).zip(&mut hosts) {
        *host = Some(Host::start(id, folder, &peers).await?);
    }
    let config = Config::default();
    let bound = config.max_election_timeout * 2;
    let mut holds = true;
    let mut show = |what: &str, mut times: Vec<Duration>, bound: Duration| {
        let [median, p99, most] = summary(&mut times);
        println!(
            "{what}, {} times: p50 {median:.1?}, p99 {p99:.1?}, most {most:.1?}; at most {bound:?}",
            times.len()
        );
        holds &= p99 <= bound;
    };
    show("kill to acknowledged write", kills(&mut hosts, counts.0, folder, &peers).await?, bound);
    let (gaps, replaced) = hangs(&hosts, counts.1).await?;
    show("hung disk, longest time without a write", gaps, bound);
    show("hung disk to the next leader", replaced, config.disk_stall + bound);
    for host in hosts.into_iter().flatten() {
        host.raft.shutdown().await;
        host.kill().await?;
    }
    Ok(holds)
}

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let word = |at: usize, default: &str| words.get(at).map_or(default, String::as_str).parse();
    let counts = (word(0, "200")?, word(1, "50")?);
    let folder = Folder::new("failover")?;
    let clients = Builder::new_current_thread().enable_all().build()?;
    let holds = clients.block_on(run(counts, &folder.0))?;
    drop(folder);
    if holds { Ok(()) } else { std::process::exit(1) }
}
