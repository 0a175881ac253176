//! What many groups cost: three nodes in this process, a journal each, over TCP on loopback.
//!
//! ```text
//! cargo run --release --example groups -- idle GROUPS SECONDS
//! cargo run --release --example groups -- awake GROUPS SECONDS
//! cargo run --release --example groups -- load GROUPS CLIENTS SECONDS
//! ```
//! `idle` prints how long the groups take to be created, to come to rest and to be started again,
//! the memory of one, what all of them use of a processor while nothing happens, and what a
//! rotation of the journal costs beside them. `awake` prints what the heartbeats cost of groups
//! that may not rest. `load` prints how many commands per second `CLIENTS` clients get through,
//! spread over `GROUPS` groups, how long one takes, how much of the processor was in use, and how
//! much of the work went together: turns, messages and writes for a command, writes in a commit of
//! the journals, messages in a write to a connection.
//!
//! Each step is printed when it is done. One that makes no headway for [`PATIENCE`] ends the run
//! with an error that says what is missing, and so does a group that halts.

#[path = "support/mod.rs"]
#[allow(dead_code, reason = "no example uses all of it")]
mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::sleep;
use voussoir_journal::{Commit, Config as JournalConfig, Journal};
use voussoir_raft::journal::{Identity, JournalStore};
use voussoir_raft::net::NetTransport;
use voussoir_raft::{Config, Node, NodeConfig, ProposeError, Raft, Role};

use self::support::{Counter, Failure, Folder};

/// How long a step may go without a group more that is led or at rest: far longer than an election
/// takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// One of the three nodes.
struct Host {
    id: u64,
    node: Node,
    journal: Journal,
    tcp: Arc<voussoir_net::Tcp>,
}

impl Host {
    /// Opens the journal and listens.
    async fn open(id: u64, folder: &Path, peers: &voussoir_net::Peers) -> Result<Self, Failure> {
        let mut options = JournalConfig::default();
        options.max_bytes = 2 << 30;
        let journal = Journal::open(folder.join(id.to_string()), options)?;
        let (listen, net) = ("127.0.0.1:0".parse()?, voussoir_net::Config::new(1));
        let resolver = Arc::new(peers.clone());
        let tcp = Arc::new(voussoir_net::Tcp::bind(id, listen, resolver, net).await?);
        peers.insert(id, tcp.address());
        let transport = NetTransport::new(Arc::clone(&tcp) as _, 1)?;
        let node = Node::start(NodeConfig::default(), Arc::new(transport))?;
        Ok(Self { id, node, journal, tcp })
    }

    fn identity(&self, group: u64) -> Identity {
        Identity { cluster: 1, node: self.id, group }
    }

    /// Starts the groups `1..=groups` from what the journal holds.
    async fn start(&self, groups: u64) -> Result<(), Failure> {
        self.start_with(groups, |_| {}).await
    }

    async fn start_with(&self, groups: u64, tune: fn(&mut Config)) -> Result<(), Failure> {
        for group in 1..=groups {
            let store = JournalStore::open(&self.journal, self.identity(group))?;
            let mut config = Config::new(self.id, [1, 2, 3]);
            config.group = group;
            tune(&mut config);
            self.node.start_group(config, Arc::new(store), Box::new(Counter(0))).await?;
        }
        Ok(())
    }

    async fn close(self) -> Result<(), Failure> {
        self.node.shutdown().await;
        self.tcp.shutdown(tokio::time::Instant::now() + Duration::from_secs(2)).await;
        drop((self.node, self.tcp));
        Ok(self.journal.close()?)
    }
}

async fn open(folder: &Path) -> Result<Vec<Host>, Failure> {
    let (peers, mut hosts) = (voussoir_net::Peers::new(), Vec::new());
    for id in 1..=3 {
        hosts.push(Host::open(id, folder, &peers).await?);
    }
    Ok(hosts)
}

fn create(hosts: &[Host], groups: u64) -> Result<(), Failure> {
    for host in hosts {
        for group in 1..=groups {
            JournalStore::create(&host.journal, host.identity(group))?;
        }
    }
    Ok(())
}

/// Waits until each of `groups` has a leader.
async fn leaders(hosts: &[Host], groups: u64) -> Result<(), Failure> {
    let leads = |raft: &Raft| raft.status().borrow().role == Role::Leader;
    for group in 1..=groups {
        let began = Instant::now();
        let all: Vec<Raft> = hosts.iter().filter_map(|host| host.node.group(group)).collect();
        while !all.iter().any(leads) {
            wait(&all, began, "a leader").await?;
        }
    }
    Ok(())
}

/// Waits until nothing goes on.
async fn rest(hosts: &[Host]) -> Result<(), Failure> {
    for host in hosts {
        for raft in host.node.groups().into_iter().filter_map(|group| host.node.group(group)) {
            let began = Instant::now();
            while !raft.status().borrow().is_quiesced {
                wait(std::slice::from_ref(&raft), began, "rest").await?;
            }
        }
    }
    Ok(())
}

/// Waits a little for what the replicas of a group lack since `began`.
async fn wait(replicas: &[Raft], began: Instant, what: &str) -> Result<(), Failure> {
    for raft in replicas {
        let status = raft.status().borrow().clone();
        if let Some(reason) = status.halted {
            return Err(format!("a group has halted at node {}: {reason}", status.id).into());
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("no {what} after {PATIENCE:?}: {status:?}").into());
        }
    }
    sleep(Duration::from_millis(5)).await;
    Ok(())
}

async fn idle(folder: &Path, groups: u64, seconds: u64) -> Result<(), Failure> {
    let hosts = open(folder).await?;
    let before = resident();
    let began = Instant::now();
    create(&hosts, groups)?;
    println!("{groups} groups created on 3 nodes in {:?}", began.elapsed());
    let began = Instant::now();
    for host in &hosts {
        host.start(groups).await?;
    }
    leaders(&hosts, groups).await?;
    println!("started and led after {:?}", began.elapsed());
    rest(&hosts).await?;
    println!("at rest after {:?}", began.elapsed());
    let bytes = resident().saturating_sub(before);
    println!(
        "memory: {} MiB for {} replicas, {} bytes each",
        bytes >> 20,
        groups * 3,
        bytes / (groups * 3)
    );
    sleep(Duration::from_secs(2)).await;
    let (cpu, at, sent) = (cpu_time(), Instant::now(), hosts[0].node.stats().messages_sent);
    sleep(Duration::from_secs(seconds)).await;
    let used = cpu_time().saturating_sub(cpu).as_secs_f64() / at.elapsed().as_secs_f64();
    let sent = hosts[0].node.stats().messages_sent - sent;
    println!("idle: {:.2} % of a core for all three, {sent} messages of a node", used * 100.0);
    rotate(&hosts[0].journal)?;
    for host in hosts {
        host.close().await?;
    }
    let began = Instant::now();
    let hosts = open(folder).await?;
    let opened = began.elapsed();
    let began = Instant::now();
    hosts[0].start(groups).await?;
    println!(
        "again: three journals opened in {opened:?}, one node started in {:?}",
        began.elapsed()
    );
    for host in &hosts[1..] {
        host.start(groups).await?;
    }
    println!("all nodes started after {:?}", began.elapsed());
    leaders(&hosts, groups).await?;
    println!("all groups led after {:?}", began.elapsed());
    rest(&hosts).await?;
    println!("all groups at rest after {:?}", began.elapsed());
    for host in hosts {
        host.close().await?;
    }
    Ok(())
}

async fn awake(folder: &Path, groups: u64, seconds: u64) -> Result<(), Failure> {
    let hosts = open(folder).await?;
    create(&hosts, groups)?;
    for host in &hosts {
        host.start_with(groups, |config| config.quiesce_after = None).await?;
    }
    leaders(&hosts, groups).await?;
    sleep(Duration::from_secs(2)).await;
    let (cpu, began, before) = (cpu_time(), Instant::now(), beats(&hosts));
    sleep(Duration::from_secs(seconds)).await;
    let (cpu, wall) = (cpu_time().saturating_sub(cpu).as_secs_f64(), began.elapsed().as_secs_f64());
    let sent = (beats(&hosts) - before) as f64;
    println!(
        "{groups} groups awake: {:.1} % of a core for all three, {:.0} heartbeats and answers/s, \
         {:.2} us of processor each",
        cpu / wall * 100.0,
        sent / wall,
        cpu * 1e6 / sent
    );
    for host in hosts {
        host.close().await?;
    }
    Ok(())
}

/// What a commit costs that moves on to the next segment, beside the others.
fn rotate(journal: &Journal) -> Result<(), Failure> {
    let log = journal.log("filler", 0)?;
    let record = Bytes::from(vec![7; 512 << 10]);
    let (mut took, mut bytes) = (Vec::new(), 0);
    // Five segments of 64 MiB, and what fills up the first one.
    while bytes < 5 * (64_u64 << 20) {
        let commit = Commit::new().append(&log, [record.clone()]);
        let began = Instant::now();
        journal.commit_blocking(commit)?;
        took.push(began.elapsed());
        bytes += record.len() as u64;
    }
    took.sort_unstable();
    let slowest: Vec<_> = took.iter().rev().take(5).collect();
    println!(
        "a commit of 512 KiB: median {:?}; the five slowest, rotations among them: {slowest:?}",
        took[took.len() / 2]
    );
    Ok(())
}

async fn load(folder: &Path, groups: u64, clients: u64, seconds: u64) -> Result<(), Failure> {
    let hosts = open(folder).await?;
    let began = Instant::now();
    create(&hosts, groups)?;
    println!("{groups} groups created on 3 nodes in {:?}", began.elapsed());
    let began = Instant::now();
    for host in &hosts {
        host.start(groups).await?;
    }
    leaders(&hosts, groups).await?;
    println!("started and led after {:?}", began.elapsed());
    sleep(Duration::from_secs(1)).await;
    let (before, beats, work) = (terms(&hosts, groups), beats(&hosts), work(&hosts));
    let together = together(&hosts);
    let (cpu, began) = (cpu_time(), Instant::now());
    let until = began + Duration::from_secs(seconds);
    let mut tasks = Vec::new();
    for client in 0..clients {
        let group = client % groups + 1;
        let replicas: Vec<Raft> = hosts.iter().filter_map(|host| host.node.group(group)).collect();
        tasks.push(tokio::spawn(call(replicas, until)));
    }
    let mut took: Vec<u32> = Vec::new();
    for task in tasks {
        took.append(&mut task.await?);
    }
    let done = took.len() as u64;
    let elections = terms(&hosts, groups) - before;
    let beats = self::beats(&hosts) - beats;
    let each = |at: usize| (self::work(&hosts)[at] - work[at]) as f64 / done as f64;
    let (wall, cpu) = (began.elapsed().as_secs_f64(), cpu_time().saturating_sub(cpu));
    println!(
        "{groups} groups, {clients} clients: {:.0} commands/s, {:.1} us of processor each, \
         {:.0} heartbeats and answers/s, {elections} terms begun",
        done as f64 / wall,
        cpu.as_secs_f64() * 1e6 / done as f64,
        beats as f64 / wall
    );
    took.sort_unstable();
    let at = |share: usize| {
        f64::from(took.get(took.len() * share / 100).copied().unwrap_or_default()) / 1e3
    };
    println!(
        "  {:.2} processors in use; p50 {:.1} ms, p99 {:.1} ms",
        cpu.as_secs_f64() / wall,
        at(50),
        at(99)
    );
    println!(
        "  for each command {:.2} turns, {:.2} messages, {:.2} writes; {} sends failed",
        each(0),
        each(1),
        each(2),
        self::work(&hosts)[3] - work[3]
    );
    let now = self::together(&hosts);
    let [commits, groups, writes] = [0, 1, 2].map(|at| (now[at] - together[at]) as f64);
    println!(
        "  {:.1} writes in a commit of a journal, {:.1} messages in a write to a connection",
        commits / groups,
        (self::work(&hosts)[1] - work[1]) as f64 / writes
    );
    for host in hosts {
        host.close().await?;
    }
    Ok(())
}

/// One client: the next command when the last one has been answered, at whichever node leads.
/// Returns how many microseconds each took that was applied.
async fn call(replicas: Vec<Raft>, until: Instant) -> Vec<u32> {
    let (mut at, mut took, mut now) = (0, Vec::new(), Instant::now());
    while now < until {
        let began = now;
        let answer = replicas[at].propose(Bytes::from_static(&[7; 100])).await;
        now = Instant::now();
        let leader = match answer {
            Ok(_) => {
                took.push((now - began).as_micros() as u32);
                continue;
            }
            Err(ProposeError::NotLeader { leader }) => leader,
            Err(_) => None,
        };
        at = match leader {
            Some(id) => (id - 1) as usize,
            None => {
                // A thousand clients that ask all the while would keep the processor from the
                // election that they wait for.
                sleep(Duration::from_millis(20)).await;
                (at + 1) % replicas.len()
            }
        };
    }
    took
}

/// The terms of all groups together.
fn terms(hosts: &[Host], groups: u64) -> u64 {
    let all = (1..=groups).filter_map(|group| hosts[0].node.group(group));
    all.map(|raft| raft.status().borrow().term).sum()
}

/// The heartbeats and answers that all nodes have sent.
fn beats(hosts: &[Host]) -> u64 {
    hosts.iter().map(|host| host.node.stats().beats_sent).sum()
}

/// Turns, messages, writes and failed sends of all replicas together.
fn work(hosts: &[Host]) -> [u64; 4] {
    let mut sum = [0, 0, 0, 0];
    for host in hosts {
        sum[3] += host.node.stats().sends_failed;
        for raft in host.node.groups().into_iter().filter_map(|group| host.node.group(group)) {
            let stats = raft.stats();
            let counts = [stats.turns, stats.messages_sent, stats.writes, stats.sends_failed];
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
    }
    sum
}

/// Writes of all groups, the commits in which the journals wrote them, and writes to connections.
fn together(hosts: &[Host]) -> [u64; 3] {
    let mut sum = [0; 3];
    for host in hosts {
        let journal = host.journal.stats();
        let counts = [journal.commits, journal.groups, host.tcp.stats().writes];
        sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    sum
}

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| {
        words.get(at).map_or(Ok(default), |word| word.parse()).map_err(Failure::from)
    };
    let folder = Folder::new("groups")?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match words.first().map(String::as_str) {
        Some("load") => {
            runtime.block_on(load(&folder.0, number(1, 1000)?, number(2, 1000)?, number(3, 10)?))
        }
        Some("awake") => runtime.block_on(awake(&folder.0, number(1, 1000)?, number(2, 10)?)),
        _ => runtime.block_on(idle(&folder.0, number(1, 1000)?, number(2, 10)?)),
    }
}

/// Bytes of memory that this process holds, by the kernel's count.
fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

/// User and system time of this process so far.
fn cpu_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|it| it.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}
