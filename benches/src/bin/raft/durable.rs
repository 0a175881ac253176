//! Three nodes with journals on disk and real TCP, one client: the latency of a commit beside its
//! floor, one round trip and the second fastest of three syncs at the same time.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use voussoir_benches::raft_group::Counter;
use voussoir_journal::{Journal, Options};
use voussoir_net::{Peers, Tcp};
use voussoir_raft::journal::{Identity, JournalStore};
use voussoir_raft::net::NetTransport;
use voussoir_raft::{Config, Raft};

/// Commits, round trips and syncs that each figure is the median of.
const COUNT: usize = 2000;

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
        "\n3 nodes, journals on disk, TCP over loopback, 1 client (medians of {COUNT}, in us)"
    );
    for round in 1..=rounds {
        let folder = tempfile::tempdir_in(&parent).expect("a temporary folder");
        let trip = round_trip();
        let sync = second_of_three_syncs(folder.path());
        let floor = trip + sync;
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        for layout in [Layout::Shared, Layout::Separate] {
            let (p50, p99) = commits(folder.path(), layout);
            println!(
                "  round {round} {layout:?}: round trip {:.0} + sync {:.0} = floor {:.0}; \
                 commit p50 {:.0} p99 {:.0}: {:.2}x the floor",
                us(trip),
                us(sync),
                us(floor),
                us(p50),
                us(p99),
                p50.as_secs_f64() / floor.as_secs_f64()
            );
        }
    }
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn quantile(times: &mut [Duration], quantile: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * quantile) as usize]
}

/// 100 bytes there and back over loopback, both ends on this thread.
fn round_trip() -> Duration {
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
        let mut times = Vec::with_capacity(COUNT);
        for _ in 0..COUNT {
            let began = Instant::now();
            here.write_all(&buf).await.expect("a connection");
            here.read_exact(&mut buf).await.expect("a connection");
            times.push(began.elapsed());
        }
        quantile(&mut times, 0.5)
    })
}

/// Three threads write 4 KiB over a zeroed file of their own and sync it, all at once: the time
/// until the second one is through.
fn second_of_three_syncs(folder: &Path) -> Duration {
    let barrier = Arc::new(Barrier::new(3));
    let threads: Vec<_> = (0..3)
        .map(|number| {
            let file = zeroed(&folder.join(format!("sync-{number}")));
            let barrier = barrier.clone();
            std::thread::spawn(move || {
                let mut times = Vec::with_capacity(COUNT);
                for index in 0..COUNT {
                    barrier.wait();
                    let began = Instant::now();
                    let offset = (index % 1024 * 4096) as u64;
                    file.write_all_at(&[7; 4096], offset).expect("a write");
                    file.sync_data().expect("a sync");
                    times.push(began.elapsed());
                }
                times
            })
        })
        .collect();
    let times: Vec<Vec<Duration>> =
        threads.into_iter().map(|thread| thread.join().expect("a thread")).collect();
    let mut second: Vec<Duration> = (0..COUNT)
        .map(|index| {
            let mut three = [times[0][index], times[1][index], times[2][index]];
            three.sort_unstable();
            three[1]
        })
        .collect();
    quantile(&mut second, 0.5)
}

fn zeroed(path: &Path) -> File {
    let mut file = OpenOptions::new().create_new(true).write(true).open(path).expect("a file");
    file.write_all(&vec![0; 4 << 20]).expect("a write");
    file.sync_all().expect("a sync");
    file
}

fn commits(folder: &Path, layout: Layout) -> (Duration, Duration) {
    let folder = tempfile::tempdir_in(folder).expect("a temporary folder");
    let peers = Arc::new(Peers::new());
    let nodes: Vec<Node> = match layout {
        Layout::Shared => {
            let runtime = Arc::new(current_thread());
            (1..=3).map(|id| Node::start(&runtime, id, folder.path(), &peers)).collect()
        }
        Layout::Separate => (1..=3)
            .map(|id| Node::start(&Arc::new(current_thread()), id, folder.path(), &peers))
            .collect(),
    };
    // The runtimes of the others run on threads of their own until they are told to stop.
    let mut stops = Vec::new();
    let mut threads = Vec::new();
    let first = nodes[0].runtime.clone();
    if let Layout::Separate = layout {
        for node in &nodes {
            let (stop, stopped) = oneshot::channel::<()>();
            let runtime = node.runtime.clone();
            stops.push(stop);
            threads.push(std::thread::spawn(move || drop(runtime.block_on(stopped))));
        }
    }
    let rafts: Vec<Raft> = nodes.iter().map(|node| node.raft.clone()).collect();
    wait_for_spares(&nodes);
    let measured = match layout {
        Layout::Shared => first.block_on(measure(rafts.clone())),
        Layout::Separate => {
            let leader = current_thread().block_on(leader(&rafts));
            let handle = nodes[leader as usize - 1].runtime.handle().clone();
            let (done, wait) = std::sync::mpsc::channel();
            // The client shares the leader's thread.
            handle.spawn(async move { done.send(measure(rafts).await) });
            wait.recv().expect("the client ends")
        }
    };
    drop(stops);
    for thread in threads {
        thread.join().expect("a runtime's thread");
    }
    measured
}

/// A journal zeroes its second segment in the background: not while we measure.
fn wait_for_spares(nodes: &[Node]) {
    while nodes.iter().any(|node| node.journal.stats().segments < 2) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

async fn leader(nodes: &[Raft]) -> u64 {
    let mut status = nodes[0].status();
    let known = status.wait_for(|status| status.leader.is_some()).await.expect("a running node");
    known.leader.expect("just seen")
}

async fn measure(nodes: Vec<Raft>) -> (Duration, Duration) {
    let leader = nodes[leader(&nodes).await as usize - 1].clone();
    let command = Bytes::from_static(&[7; 100]);
    for _ in 0..100 {
        leader.propose(command.clone()).await.expect("a committed command");
    }
    let mut times = Vec::with_capacity(COUNT);
    for _ in 0..COUNT {
        let began = Instant::now();
        leader.propose(command.clone()).await.expect("a committed command");
        times.push(began.elapsed());
    }
    (quantile(&mut times, 0.5), quantile(&mut times, 0.99))
}

struct Node {
    // Before the runtime, on which it runs.
    raft: Raft,
    journal: Journal,
    runtime: Arc<Runtime>,
}

impl Node {
    fn start(runtime: &Arc<Runtime>, id: u64, folder: &Path, peers: &Arc<Peers>) -> Self {
        let mut options = Options::default();
        // A run needs a few MB, and waits until they have been zeroed.
        options.segment_bytes = 16 << 20;
        let journal = Journal::open(folder.join(format!("node-{id}")), options);
        let journal = journal.expect("an empty journal opens");
        let raft = runtime.block_on(async {
            let identity = Identity { cluster: 1, node: id, group: 0 };
            let log = JournalStore::open(&journal, identity).expect("an empty store");
            let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
            let config = voussoir_net::Config::new(1);
            let tcp = Tcp::bind(id, any, peers.clone(), config).await.expect("a free port");
            peers.insert(id, tcp.address());
            let transport = NetTransport::new(Arc::new(tcp), 1).expect("a free service");
            let config = Config::new(id, [1, 2, 3]);
            let machine = Box::new(Counter::default());
            Raft::start(config, Arc::new(log), machine, Arc::new(transport)).await
        });
        Self { raft: raft.expect("a node starts"), journal, runtime: runtime.clone() }
    }
}
