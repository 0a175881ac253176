//! A snapshot over a link that breaks: three nodes in this process, a journal on disk each, over
//! TCP on loopback. Everything between node 3 and the others goes through proxies.
//!
//! ```text
//! cargo run --release --features testing --example snapshot -- [MIB] [MIB_PER_SECOND]
//! ```
//! Node 3 needs a snapshot of `MIB` (64 by default, 1 to 4,096). The link to it is reset five times
//! in the middle of a chunk, and stays down for a while. Meanwhile clients write at a third of what
//! the group is capable of, at times that do not depend on the answers. `MIB_PER_SECOND` is
//! `snapshot_bytes_per_second`; 0, the default, is without a limit.
//!
//! Printed are the chunks that left more than once, the bytes that passed the link beyond the
//! snapshot, the latency of the writes while the snapshot is under way and while the link is down,
//! in pairs that follow each other, and the memory of the process. The status is 1 when one of
//! these does not hold:
//!
//! - No chunk that arrived arrives again, and no more bytes pass the link twice than a chunk for
//!   each break.
//! - The 99th percentile of the writes, over all pairs, is below 1.5 times that without the
//!   snapshot and 1 ms more. No write fails.
//! - The memory of the process does not grow by more than [`MAX_GROWTH_BYTES`].
//! - Node 3 ends with the same state as the leader.

#[path = "support/mod.rs"]
#[allow(dead_code, reason = "no example uses all of it")]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::sleep;
use voussoir_journal::{Config as JournalConfig, Journal};
use voussoir_net::testing::{Direction, Fault, Proxy, Rule};
use voussoir_net::{Peers, Tcp};
use voussoir_raft::net::NetTransport;
use voussoir_raft::{
    AttachError, Chunks, Command, Config, Inbox, MAX_CHUNK_BYTES, MachineError, Message, Raft,
    Role, SendError, SnapshotAnswer, SnapshotPart, SnapshotProgress, StateMachine, Transport,
};

pub(crate) use self::support::Folder;
use self::support::{Failure, Lane, open_or_create};

/// How often the link breaks.
pub(crate) const BREAKS: u64 = 5;
/// By how much the memory of the process may grow while the snapshot is under way.
const MAX_GROWTH_BYTES: u64 = 160 << 20;
/// Bytes that may pass the link beside chunks: their heads, heartbeats, greetings.
const MAX_BESIDE_BYTES: u64 = 1 << 20;
/// How long a step may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// After a change of the link, what is sent counts for neither side of a pair.
const MARGIN: Duration = Duration::from_millis(100);
/// Between two bursts of writes.
const TICK: Duration = Duration::from_micros(500);
/// Writes under way at which the group is taken to be overwhelmed.
const MAX_UNDER_WAY: u64 = 65_536;

/// What to do.
#[derive(Clone, Debug)]
pub(crate) struct Trial {
    pub(crate) snapshot_bytes: u64,
    pub(crate) bytes_per_second: Option<u64>,
    /// How long the group's capacity is measured.
    pub(crate) capacity_for: Duration,
    /// How long the link stays down each time.
    pub(crate) down_for: Duration,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Writes per second: of clients that wait for answers, and as they were sent then.
    pub(crate) capacity: f64,
    pub(crate) rate: f64,
    pub(crate) breaks: u64,
    pub(crate) chunks: u64,
    /// Bytes of each chunk that was handed to the transport more than once, those of the first time
    /// excepted.
    pub(crate) resent: BTreeMap<u64, u64>,
    /// Chunks that arrived more than once.
    pub(crate) arrived_again: u64,
    /// Bytes that passed the link while the snapshot was under way, less those of the snapshot.
    pub(crate) beyond: u64,
    pub(crate) transfer: Duration,
    /// The 99th percentile without and with the snapshot under way, for each pair and over all.
    pub(crate) pairs: Vec<(Duration, Duration)>,
    pub(crate) overall: (Duration, Duration),
    pub(crate) failed_writes: u64,
    /// Memory of the process, before and at most.
    pub(crate) memory: (u64, u64),
}

impl Outcome {
    /// What does not hold of the transfer itself, whatever the machine has to do besides.
    pub(crate) fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        if self.arrived_again > 0 {
            broken.push(format!("{} chunks arrived again", self.arrived_again));
        }
        if self.beyond > self.breaks * MAX_CHUNK_BYTES as u64 + MAX_BESIDE_BYTES {
            broken.push(format!("{} bytes passed the link twice", self.beyond));
        }
        if self.breaks != BREAKS {
            broken.push(format!("the link broke {} times", self.breaks));
        }
        if self.memory.1 > self.memory.0 + MAX_GROWTH_BYTES {
            broken
                .push(format!("the memory grew from {} to {} bytes", self.memory.0, self.memory.1));
        }
        if self.failed_writes > 0 {
            broken.push(format!("{} writes failed", self.failed_writes));
        }
        broken
    }

    /// Whether writes took longer while the snapshot was under way than they may.
    pub(crate) fn is_slow(&self) -> bool {
        let (without, with) = self.overall;
        with > without.mul_f64(1.5) + Duration::from_millis(1)
    }

    /// Takes what was counted: of the writes in the periods without and with the snapshot under
    /// way, and of its chunks.
    fn count(&mut self, load: &Load, counted: &Counted, without: &[Period], with: &[Period]) {
        self.failed_writes = load.failed.load(Ordering::Relaxed);
        let sent = std::mem::take(&mut *counted.sent.lock());
        let again = |(number, (times, bytes)): (u64, (u64, u64))| (number, (times - 1) * bytes);
        self.resent = sent.into_iter().map(again).filter(|(_, bytes)| *bytes > 0).collect();
        self.arrived_again = counted.arrived.lock().values().map(|times| times - 1).sum();
        let took = std::mem::take(&mut *load.took.lock());
        let both = |a: &[Period], b: &[Period]| (p99(&took, a), p99(&took, b));
        self.pairs = without.iter().zip(with).map(|(a, b)| both(&[*a], &[*b])).collect();
        self.overall = both(without, with);
    }
}

/// Counts commands. Its snapshot is long: a count, and bytes that only this machine makes.
struct Ballast {
    applied: Arc<AtomicU64>,
    snapshot_bytes: u64,
}

/// One chunk after the other, made when it is asked for.
struct Making {
    applied: u64,
    number: u64,
    left: u64,
}

/// The chunk `number`: its first word is `applied`.
fn chunk(number: u64, applied: u64, bytes: u64) -> Bytes {
    let mut chunk = BytesMut::with_capacity(bytes as usize + 8);
    chunk.put_u64_le(applied);
    let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while (chunk.len() as u64) < bytes {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        chunk.put_u64_le(word);
    }
    chunk.truncate(bytes as usize);
    chunk.freeze()
}

#[async_trait]
impl Chunks for Making {
    async fn next(&mut self) -> Result<Option<Bytes>, MachineError> {
        let bytes = self.left.min(MAX_CHUNK_BYTES as u64);
        if bytes == 0 {
            return Ok(None);
        }
        self.left -= bytes;
        self.number += 1;
        tokio::task::yield_now().await;
        Ok(Some(chunk(self.number, self.applied, bytes)))
    }
}

#[async_trait]
impl StateMachine for Ballast {
    async fn apply(&mut self, commands: &[Command]) -> Result<Vec<Bytes>, MachineError> {
        self.applied.fetch_add(commands.len() as u64, Ordering::Relaxed);
        Ok(vec![Bytes::new(); commands.len()])
    }

    async fn snapshot(&mut self) -> Result<Box<dyn Chunks>, MachineError> {
        let applied = self.applied.load(Ordering::Relaxed);
        Ok(Box::new(Making { applied, number: 0, left: self.snapshot_bytes }))
    }

    async fn restore(&mut self, chunks: &mut dyn Chunks) -> Result<(), MachineError> {
        let (mut number, mut bytes, mut applied) = (0, 0, None);
        while let Some(found) = chunks.next().await? {
            number += 1;
            bytes += found.len() as u64;
            let count = found.first_chunk().map(|first| u64::from_le_bytes(*first));
            let count = *applied.get_or_insert(count.ok_or("a chunk is cut")?);
            if found != chunk(number, count, found.len() as u64) {
                return Err(format!("chunk {number} is not as it was made").into());
            }
        }
        if bytes != self.snapshot_bytes {
            return Err(format!("{bytes} bytes of {}", self.snapshot_bytes).into());
        }
        self.applied.store(applied.unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }
}

/// What left, arrived and passed.
#[derive(Default)]
struct Counted {
    /// How often each chunk was handed to the transport, and its length.
    sent: Mutex<BTreeMap<u64, (u64, u64)>>,
    /// How often each chunk arrived.
    arrived: Mutex<BTreeMap<u64, u64>>,
    /// The proxy before node 3.
    proxy: Mutex<Option<Arc<Proxy>>>,
    /// What had passed it when the receiver was told that it has all chunks.
    passed_at_close: AtomicU64,
}

impl Counted {
    fn passed(&self) -> u64 {
        self.proxy.lock().as_ref().map_or(0, |proxy| proxy.stats().bytes_to_target)
    }
}

/// A transport that counts the chunks that leave and arrive.
struct Counting {
    inner: Arc<NetTransport>,
    counted: Arc<Counted>,
}

struct CountingInbox {
    inner: Arc<dyn Inbox>,
    counted: Arc<Counted>,
}

#[async_trait]
impl Transport for Counting {
    fn local(&self) -> u64 {
        self.inner.local()
    }

    fn attach(&self, group: u64, inbox: Arc<dyn Inbox>) -> Result<(), AttachError> {
        let counted = Arc::clone(&self.counted);
        self.inner.attach(group, Arc::new(CountingInbox { inner: inbox, counted }))
    }

    fn detach(&self, group: u64) {
        self.inner.detach(group);
    }

    fn send(&self, to: u64, group: u64, message: Message) -> Result<(), SendError> {
        self.inner.send(to, group, message)
    }

    fn send_all(&self, to: u64, messages: Vec<(u64, Message)>) -> Result<(), SendError> {
        self.inner.send_all(to, messages)
    }

    async fn snapshot(
        &self,
        to: u64,
        group: u64,
        part: SnapshotPart,
        timeout: Duration,
    ) -> Result<SnapshotAnswer, SendError> {
        if let SnapshotPart::Chunk { number, data, .. } = &part {
            let mut sent = self.counted.sent.lock();
            sent.entry(*number).or_insert((0, data.len() as u64)).0 += 1;
        }
        self.inner.snapshot(to, group, part, timeout).await
    }
}

#[async_trait]
impl Inbox for CountingInbox {
    fn message(&self, from: u64, message: Message) {
        self.inner.message(from, message);
    }

    fn unreachable(&self, peer: u64) {
        self.inner.unreachable(peer);
    }

    async fn snapshot(&self, from: u64, part: SnapshotPart) -> SnapshotAnswer {
        match &part {
            SnapshotPart::Chunk { number, .. } => {
                *self.counted.arrived.lock().entry(*number).or_default() += 1;
            }
            SnapshotPart::Close { .. } => {
                self.counted.passed_at_close.store(self.counted.passed(), Ordering::Relaxed);
            }
            _ => {}
        }
        self.inner.snapshot(from, part).await
    }
}

/// One of the three nodes: what stays when its group is stopped.
struct Host {
    id: u64,
    lane: Lane,
    journal: Journal,
    peers: Peers,
    tcp: Arc<Tcp>,
    transport: Arc<Counting>,
}

impl Host {
    async fn open(id: u64, folder: &Path, counted: &Arc<Counted>) -> Result<Arc<Self>, Failure> {
        let mut options = JournalConfig::default();
        options.max_bytes = 16 << 30;
        let journal = Journal::open(folder.join(id.to_string()), options)?;
        let (lane, peers, counted) = (Lane::new()?, Peers::new(), Arc::clone(counted));
        let (resolver, net) = (Arc::new(peers.clone()), voussoir_net::Config::new(1));
        let opened = lane.handle.spawn(async move {
            let tcp = Arc::new(Tcp::bind(id, "127.0.0.1:0".parse()?, resolver, net).await?);
            let inner = Arc::new(NetTransport::new(Arc::clone(&tcp) as _, 1)?);
            Ok::<_, Failure>((tcp, Arc::new(Counting { inner, counted })))
        });
        let (tcp, transport) = opened.await??;
        Ok(Arc::new(Self { id, lane, journal, peers, tcp, transport }))
    }

    /// Starts the group from what the journal holds.
    async fn start(
        self: &Arc<Self>,
        trial: &Trial,
        tune: fn(&mut Config),
    ) -> Result<(Raft, Arc<AtomicU64>), Failure> {
        let store = open_or_create(&self.journal, self.id)?;
        let mut config = Config::new(self.id, [1, 2, 3]);
        (config.snapshot_after_entries, config.snapshot_after_bytes) = (0, 0);
        config.snapshot_bytes_per_second = trial.bytes_per_second;
        tune(&mut config);
        let applied = Arc::new(AtomicU64::new(0));
        let machine =
            Ballast { applied: Arc::clone(&applied), snapshot_bytes: trial.snapshot_bytes };
        let transport = Arc::clone(&self.transport);
        let start =
            async move { Raft::start(config, Arc::new(store), Box::new(machine), transport).await };
        Ok((self.lane.handle.spawn(start).await??, applied))
    }
}

/// Waits until `holds`, for [`PATIENCE`].
async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<(), Failure> {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > PATIENCE {
            return Err(format!("this does not come: {what}").into());
        }
        sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

async fn leader(nodes: &[Raft]) -> Result<Raft, Failure> {
    let leads = |raft: &&Raft| raft.status().borrow().role == Role::Leader;
    until("a leader", || nodes.iter().any(|raft| leads(&raft))).await?;
    let leader = nodes.iter().find(leads).cloned().ok_or("the leader is gone")?;
    leader.read(tokio::time::Instant::now() + PATIENCE).await?;
    Ok(leader)
}

/// Commands per second of clients that each wait for their answer.
async fn capacity(raft: &Raft, period: Duration) -> Result<f64, Failure> {
    const CLIENTS: usize = 256;
    let begun = Instant::now();
    let client = || {
        let raft = raft.clone();
        tokio::spawn(async move {
            let mut count = 0_u64;
            while begun.elapsed() < period {
                raft.propose(Bytes::from_static(&[7; 100])).await?;
                count += 1;
            }
            Ok::<_, Failure>(count)
        })
    };
    let clients: Vec<_> = (0..CLIENTS).map(|_| client()).collect();
    let mut count = 0;
    for client in clients {
        count += client.await??;
    }
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

/// Writes at fixed times, whether those before are answered or not.
struct Load {
    begun: Instant,
    ends: AtomicBool,
    /// For each write, when it was to be sent and how long after that it was answered, in us.
    took: Mutex<Vec<(u32, u32)>>,
    under_way: AtomicU64,
    failed: AtomicU64,
}

impl Load {
    fn start(raft: &Raft, rate: f64) -> (Arc<Self>, std::thread::JoinHandle<()>) {
        let load = Arc::new(Self {
            begun: Instant::now(),
            ends: AtomicBool::new(false),
            took: Mutex::default(),
            under_way: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        });
        let (own, raft, clients) = (Arc::clone(&load), raft.clone(), Handle::current());
        (load, std::thread::spawn(move || own.run(&raft, rate, &clients)))
    }

    fn run(self: &Arc<Self>, raft: &Raft, rate: f64, clients: &Handle) {
        let (mut tick, mut sent) = (1, 0);
        while !self.ends.load(Ordering::Relaxed) {
            let due = TICK * tick;
            std::thread::sleep((self.begun + due).saturating_duration_since(Instant::now()));
            let count = (due.as_secs_f64() * rate) as u64 - sent;
            sent += count;
            for _ in 0..count {
                if self.under_way.fetch_add(1, Ordering::Relaxed) >= MAX_UNDER_WAY {
                    self.under_way.fetch_sub(1, Ordering::Relaxed);
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                let (load, raft) = (Arc::clone(self), raft.clone());
                clients.spawn(async move {
                    let answer = raft.propose(Bytes::from_static(&[7; 100])).await;
                    let took = load.begun.elapsed().saturating_sub(due);
                    load.failed.fetch_add(u64::from(answer.is_err()), Ordering::Relaxed);
                    load.took.lock().push((due.as_micros() as u32, took.as_micros() as u32));
                    load.under_way.fetch_sub(1, Ordering::Relaxed);
                });
            }
            tick += 1;
        }
    }
}

/// From when to when, since the load began.
type Period = (Duration, Duration);

/// The 99th percentile of what was sent in `periods`.
fn p99(took: &[(u32, u32)], periods: &[Period]) -> Duration {
    let within = |at: u32| {
        let at = Duration::from_micros(u64::from(at));
        periods.iter().any(|(begin, end)| (*begin + MARGIN..*end).contains(&at))
    };
    let mut all: Vec<u32> = took.iter().filter(|it| within(it.0)).map(|it| it.1).collect();
    all.sort_unstable();
    let at = all.len() * 99 / 100;
    Duration::from_micros(all.get(at).copied().map_or(0, u64::from))
}

/// A line of `/proc/self/status`, in bytes.
fn memory(line: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status.lines().find_map(|it| it.strip_prefix(line));
    let kib = found.and_then(|it| it.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// The proxies between node 3 and the others.
struct Link {
    to_late: Arc<Proxy>,
    others: Vec<Proxy>,
}

impl Link {
    fn down(&self) {
        for proxy in self.others.iter().chain([&*self.to_late]) {
            proxy.cut();
            proxy.disconnect();
        }
    }

    fn up(&self) {
        self.others.iter().chain([&*self.to_late]).for_each(Proxy::heal);
    }
}

async fn link(hosts: &[Arc<Host>], lane: &Lane) -> Result<Link, Failure> {
    let address = |id: u64| hosts[id as usize - 1].tcp.address();
    let addresses = [address(3), address(1), address(2)];
    let proxies = lane.handle.spawn(async move {
        let mut proxies = Vec::new();
        for address in addresses {
            proxies.push(Proxy::start(address).await?);
        }
        Ok::<_, Failure>(proxies)
    });
    let mut proxies = proxies.await??;
    let (others, to_late) = (proxies.split_off(1), Arc::new(proxies.remove(0)));
    for (from, to) in [(1, 2), (2, 1)] {
        hosts[from - 1].peers.insert(to, address(to));
        hosts[from - 1].peers.insert(3, to_late.address());
        hosts[2].peers.insert(to, others[to as usize - 1].address());
    }
    Ok(Link { to_late, others })
}

/// How far the snapshot is on its way to node 3.
fn progress(leader: &Raft) -> Option<SnapshotProgress> {
    leader.followers().into_iter().find(|it| it.id == 3)?.sending
}

/// Has the link break in the middle of the chunk after the first `chunks`, when it next carries
/// the snapshot, from where it is.
fn break_after(link: &Link, acknowledged: u64, chunks: u64) {
    let bytes = MAX_CHUNK_BYTES as u64;
    let after_bytes = (chunks - acknowledged.min(chunks)) * bytes + bytes / 2;
    let rule = Rule { after_bytes, fault: Fault::Reset };
    link.to_late.set_rule(Direction::ToTarget, Some(rule));
}

/// Runs the trial in `folder`, which is empty.
pub(crate) async fn run(trial: &Trial, folder: &Path) -> Result<Outcome, Failure> {
    let counted = Arc::new(Counted::default());
    let mut hosts = Vec::new();
    for id in 1..=3 {
        hosts.push(Host::open(id, folder, &counted).await?);
    }
    let network = Lane::new()?;
    let link = link(&hosts, &network).await?;
    *counted.proxy.lock() = Some(Arc::clone(&link.to_late));
    link.down();
    let mut outcome = Outcome::default();

    // Two lives of nodes 1 and 2: in the first the capacity is measured, in the second they take
    // their snapshots and release their logs.
    let tunes: [fn(&mut Config); 2] =
        [|_| {}, |config| (config.snapshot_after_entries, config.keep_entries) = (1, 0)];
    for (life, tune) in tunes.into_iter().enumerate() {
        let mut nodes = Vec::new();
        for host in &hosts[..2] {
            nodes.push(host.start(trial, tune).await?.0);
        }
        let leader = leader(&nodes).await?;
        if life == 0 {
            capacity(&leader, trial.capacity_for / 4).await?;
            outcome.capacity = capacity(&leader, trial.capacity_for).await?;
            println!("capacity {:.0} writes/s", outcome.capacity);
        } else {
            let has = |raft: &Raft| raft.status().borrow().snapshot > 0;
            until("snapshots of nodes 1 and 2", || nodes.iter().all(has)).await?;
            println!("nodes 1 and 2 have taken snapshots");
        }
        for node in nodes {
            node.shutdown().await;
        }
    }
    transfer(trial, &hosts, &link, &counted, &mut outcome).await?;
    drop(link);
    Ok(outcome)
}

/// The third life, in which node 3 is sent the snapshot.
async fn transfer(
    trial: &Trial,
    hosts: &[Arc<Host>],
    link: &Link,
    counted: &Counted,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    let (mut nodes, mut applied) = (Vec::new(), Vec::new());
    for host in hosts {
        let (raft, count) = host.start(trial, |_| {}).await?;
        nodes.push(raft);
        applied.push(count);
    }
    let (late, leader) = (nodes[2].clone(), leader(&nodes[..2]).await?);
    outcome.rate = outcome.capacity / 3.0;
    let (load, sender) = Load::start(&leader, outcome.rate);
    // Once with the load on, before memory is looked at.
    sleep(trial.down_for).await;
    let _ = fs::write("/proc/self/clear_refs", "5");
    outcome.memory.0 = memory("VmRSS:");
    let chunks = trial.snapshot_bytes.div_ceil(MAX_CHUNK_BYTES as u64);
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let (mut acknowledged, mut passed) = (0, 0);
    for part in 0..=BREAKS {
        let down = load.begun.elapsed();
        sleep(trial.down_for).await;
        without.push((down, load.begun.elapsed()));
        let (met, before) = (link.to_late.stats().rules_met, counted.passed());
        if part < BREAKS {
            break_after(link, acknowledged, chunks * (part + 1) / (BREAKS + 1));
        }
        link.up();
        let broken = || link.to_late.stats().rules_met > met;
        let is_over = || broken() || late.status().borrow().snapshot > 0;
        until("a transfer", || is_over() || progress(&leader).is_some()).await?;
        let up = load.begun.elapsed();
        let end = || {
            acknowledged = progress(&leader).map_or(acknowledged, |it| it.acknowledged_chunks);
            is_over()
        };
        until("the next break, or the end", end).await?;
        let end = load.begun.elapsed();
        with.push((up, end));
        outcome.transfer += end.saturating_sub(up);
        println!("{acknowledged} of {chunks} chunks after {:.1} s", outcome.transfer.as_secs_f64());
        if part < BREAKS {
            link.down();
            outcome.breaks += u64::from(broken());
            passed += counted.passed() - before;
        } else {
            // Nothing where the transfer ended before this part: the break before it came too late.
            let at_close = counted.passed_at_close.load(Ordering::Relaxed);
            passed += at_close.saturating_sub(before);
        }
    }
    outcome.memory.1 = memory("VmHWM:");
    load.ends.store(true, Ordering::Relaxed);
    sender.join().map_err(|_| "the thread that sends has panicked")?;
    until("the answers", || load.under_way.load(Ordering::Relaxed) == 0).await?;
    let leads = Arc::clone(&applied[leader.status().borrow().id as usize - 1]);
    let at = |count: &AtomicU64| count.load(Ordering::Relaxed);
    until("the state at node 3", || at(&applied[2]) == at(&leads)).await?;
    for node in &nodes {
        node.shutdown().await;
    }
    outcome.chunks = chunks;
    outcome.beyond = passed.saturating_sub(trial.snapshot_bytes);
    outcome.count(&load, counted, &without, &with);
    Ok(())
}

#[cfg(not(test))]
fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let word = |at: usize, default: &str| words.get(at).map_or(default, String::as_str).parse();
    let (mib, limit): (u64, u64) = (word(0, "64")?, word(1, "0")?);
    if !(1..=4096).contains(&mib) {
        return Err(format!("the snapshot has 1 to 4,096 MiB, not {mib}").into());
    }
    let trial = Trial {
        snapshot_bytes: mib << 20,
        bytes_per_second: (limit > 0).then_some(limit << 20),
        capacity_for: Duration::from_secs(4),
        down_for: Duration::from_secs(3),
    };
    let folder = Folder::new("snapshot")?;
    let clients = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = clients.block_on(run(&trial, &folder.0))?;
    drop(folder);
    print(&trial, &outcome);
    let mut broken = outcome.broken();
    if outcome.is_slow() {
        broken.push("writes are slower than they may be".to_owned());
    }
    if broken.is_empty() {
        return Ok(());
    }
    for what in &broken {
        println!("broken: {what}");
    }
    std::process::exit(1);
}

#[cfg(not(test))]
fn print(trial: &Trial, outcome: &Outcome) {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "snapshot of {} MiB in {} chunks, {:.1} s under way: {:.0} MiB/s; capacity {:.0} writes/s, \
         {:.0} sent",
        mib(trial.snapshot_bytes),
        outcome.chunks,
        outcome.transfer.as_secs_f64(),
        mib(trial.snapshot_bytes) / outcome.transfer.as_secs_f64(),
        outcome.capacity,
        outcome.rate,
    );
    println!("{} breaks; bytes of chunks that left again: {:?}", outcome.breaks, outcome.resent);
    println!(
        "passed the link beyond the snapshot: {:.3} MiB; chunks that arrived again: {}",
        mib(outcome.beyond),
        outcome.arrived_again,
    );
    for (without, with) in &outcome.pairs {
        println!("p99 without {without:?}, with {with:?}");
    }
    let (without, with) = outcome.overall;
    println!("p99 over all without {without:?}, with {with:?}; failed {}", outcome.failed_writes);
    let (before, most) = outcome.memory;
    println!("memory before {:.0} MiB, at most {:.0} MiB", mib(before), mib(most));
}
