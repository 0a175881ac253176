//! Three nodes with journals on disk and real TCP, one client: the latency of a commit beside its
//! floor, one round trip and the second fastest of three syncs at the same time.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use voussoir_benches::raft_group::Counter;
use voussoir_journal::{Config as JournalConfig, Journal};
use voussoir_net::{Peers, Tcp};
use voussoir_raft::journal::{Identity, JournalStore};
use voussoir_raft::net::NetTransport;
use voussoir_raft::{Config, Raft};

/// Commits, round trips and syncs are measured in turn, so many of each at a stretch...
const STRETCH: usize = 200;
/// ...and so often: a disk that others use too is not the same from one second to the next.
const STRETCHES: usize = 10;

/// Which thread runs what.
#[derive(Clone, Copy, Debug)]
enum Layout {
    /// One current-thread runtime for all three nodes and the client.
    Shared,
    /// A current-thread runtime on a thread of its own for each node.
    Separate,
}

pub(crate) fn run(rounds: usize) {
    let parent = std::env::var_os("VOUSSOIR_BENCH_DIR");
    let parent = parent.map_or_else(std::env::temp_dir, Into::into);
    println!(
        "\n3 nodes, journals on disk, TCP over loopback, 1 client (us, of {} each)",
        STRETCH * STRETCHES
    );
    for round in 1..=rounds {
        for layout in [Layout::Shared, Layout::Separate] {
            let folder = tempfile::tempdir_in(&parent).expect("a temporary folder");
            let [trip, sync, commit] = measure(folder.path(), layout).map(Quantiles::of);
            let floor = trip.p50 + sync.p50;
            println!(
                "  round {round} {layout:?}: round trip {:.0} + sync {:.0} (p99 {:.0}) = floor \
                 {floor:.0}; commit p50 {:.0} p99 {:.0}: {:.2}x the floor",
                trip.p50,
                sync.p50,
                sync.p99,
                commit.p50,
                commit.p99,
                commit.p50 / floor
            );
        }
    }
}

/// In microseconds.
struct Quantiles {
    p50: f64,
    p99: f64,
}

impl Quantiles {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |quantile| times[((times.len() - 1) as f64 * quantile) as usize];
        let us = |quantile| at(quantile).as_secs_f64() * 1e6;
        Self { p50: us(0.5), p99: us(0.99) }
    }
}

/// Round trips, syncs and commits.
fn measure(folder: &Path, layout: Layout) -> [Vec<Duration>; 3] {
    let files: Vec<File> =
        (0..3).map(|number| zeroed(&folder.join(format!("sync-{number}")))).collect();
    let cluster = Cluster::start(folder, layout);
    cluster.commits(100);
    let mut times = [vec![], vec![], vec![]];
    for _ in 0..STRETCHES {
        times[0].extend(round_trips());
        times[1].extend(second_of_three_syncs(&files));
        times[2].extend(cluster.commits(STRETCH));
    }
    times
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// 100 bytes there and back over loopback, both ends on this thread.
fn round_trips() -> Vec<Duration> {
    current_thread().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let mut here = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("up");
        let (mut there, _) = listener.accept().await.expect("a connection");
        here.set_nodelay(true).expect("a socket");
        there.set_nodelay(true).expect("a socket");
        tokio::spawn(async move {
            let mut buf = [0; 100];
            while there.read_exact(&mut buf).await.is_ok() && there.write_all(&buf).await.is_ok() {}
        });
        let mut buf = [7; 100];
        let mut times = Vec::with_capacity(STRETCH);
        for _ in 0..STRETCH {
            let began = Instant::now();
            here.write_all(&buf).await.expect("a connection");
            here.read_exact(&mut buf).await.expect("a connection");
            times.push(began.elapsed());
        }
        times
    })
}

/// Three threads write 4 KiB over a zeroed file of their own and sync it, all at once: the time
/// until the second one is through.
fn second_of_three_syncs(files: &[File]) -> Vec<Duration> {
    let barrier = Barrier::new(files.len());
    let sync = |file: &File, index: usize| {
        barrier.wait();
        let began = Instant::now();
        file.write_all_at(&[7; 4096], (index * 4096) as u64).expect("a write");
        file.sync_data().expect("a sync");
        began.elapsed()
    };
    let all = |file| (0..STRETCH).map(|index| sync(file, index)).collect::<Vec<_>>();
    let times: Vec<Vec<Duration>> = std::thread::scope(|scope| {
        let threads: Vec<_> = files.iter().map(|file| scope.spawn(move || all(file))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread")).collect()
    });
    let second = |index: usize| {
        let mut three: Vec<Duration> = times.iter().map(|times| times[index]).collect();
        three.sort_unstable();
        three[1]
    };
    (0..STRETCH).map(second).collect()
}

fn zeroed(path: &Path) -> File {
    let mut file = OpenOptions::new().create_new(true).write(true).open(path).expect("a file");
    file.write_all(&vec![0; 4 << 20]).expect("a write");
    file.sync_all().expect("a sync");
    file
}

/// Three nodes, on the threads that the layout says.
struct Cluster {
    nodes: Vec<Node>,
    leader: usize,
    threads: Vec<Thread>,
}

/// A current-thread runtime that runs until it is dropped.
struct Thread {
    runtime: Handle,
    /// Dropped, it ends.
    stop: Option<oneshot::Sender<()>>,
    joined: Option<JoinHandle<()>>,
}

impl Thread {
    fn start() -> Self {
        let runtime = current_thread();
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || drop(runtime.block_on(stopped)));
        Self { runtime: handle, stop: Some(stop), joined: Some(thread) }
    }

    /// Does something there, and waits for it.
    fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let (done, wait) = std::sync::mpsc::channel();
        self.runtime.spawn(async move { done.send(work.await) });
        wait.recv().expect("it ends")
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.joined.take().map(JoinHandle::join);
    }
}

impl Cluster {
    fn start(folder: &Path, layout: Layout) -> Self {
        let threads: Vec<Thread> = match layout {
            Layout::Shared => vec![Thread::start()],
            Layout::Separate => (0..3).map(|_| Thread::start()).collect(),
        };
        let peers = Arc::new(Peers::new());
        let on = threads.iter().cycle();
        let node = |(id, on): (u64, &Thread)| {
            on.run(Node::start(id, folder.join(format!("node-{id}")), Arc::clone(&peers)))
        };
        let nodes: Vec<Node> = (1..=3).zip(on).map(node).collect();
        // A journal zeroes its second segment in the background: not while we measure.
        while nodes.iter().any(|node| node.journal.stats().segments < 2) {
            std::thread::yield_now();
        }
        let mut status = nodes[0].raft.status();
        let leader = threads[0].run(async move {
            let known = status.wait_for(|status| status.leader.is_some()).await;
            known.expect("a running node").leader.expect("just seen")
        });
        Self { nodes, leader: leader as usize - 1, threads }
    }

    /// Latencies of that many commits, one after the other, by a client on the leader's thread.
    fn commits(&self, count: usize) -> Vec<Duration> {
        let thread = &self.threads[self.leader % self.threads.len()];
        thread.run(commits(self.nodes[self.leader].raft.clone(), count))
    }
}

async fn commits(leader: Raft, count: usize) -> Vec<Duration> {
    let command = Bytes::from_static(&[7; 100]);
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        leader.propose(command.clone()).await.expect("a committed command");
        times.push(began.elapsed());
    }
    times
}

struct Node {
    raft: Raft,
    journal: Journal,
}

impl Node {
    async fn start(id: u64, folder: PathBuf, peers: Arc<Peers>) -> Self {
        let mut options = JournalConfig::default();
        // A run needs a few MB, and waits until they have been zeroed.
        options.segment_bytes = 16 << 20;
        let journal = Journal::open(folder, options).expect("an empty journal opens");
        let identity = Identity { cluster: 1, node: id, group: 0 };
        let log = JournalStore::create(&journal, identity).expect("an empty store");
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let config = voussoir_net::Config::new(1);
        let tcp = Tcp::bind(id, any, peers.clone(), config).await.expect("a free port");
        peers.insert(id, tcp.address());
        let transport = NetTransport::new(Arc::new(tcp), 1).expect("a free service");
        let config = Config::new(id, [1, 2, 3]);
        let machine = Box::new(Counter { bytes: 0, quick: true });
        let raft = Raft::start(config, Arc::new(log), machine, Arc::new(transport)).await;
        Self { raft: raft.expect("a node starts"), journal }
    }
}
