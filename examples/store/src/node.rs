//! One node: a journal on disk, TCP to the peers, raft over both, HTTP in front.

use std::collections::HashMap;
use std::error::Error;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::Instant;
use voussoir_journal::{Journal, Options};
use voussoir_net::{Peers, Tcp};
use voussoir_raft::journal::{Identity, JournalStore, OpenError};
use voussoir_raft::net::NetTransport;
use voussoir_raft::{Config, Raft};

use crate::args::Serve;
use crate::http::{self, App};
use crate::kv::Kv;
use crate::machine::Machine;

/// Keeps the nodes of one store from talking to those of another. **Choose your own.**
const CLUSTER: u128 = 0x766f_7573_736f_6972_2073_746f_7265_0001;
/// The number under which raft's messages travel, the same on every node.
const RAFT_SERVICE: u16 = 1;
/// The raft group. A process can run many, over one journal and one transport.
const GROUP: u64 = 0;

/// Creates the data of a node that has never run. Whoever sets a cluster up calls this once for
/// each node; [`serve`] never does, because it cannot tell a new node from one whose disk was lost.
///
/// # Errors
/// Why there is no new data: the disk failed, or there is data of this node already.
pub fn create(id: u64, data: &Path) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(data)?;
    let journal = Journal::open(data.join("journal"), journal_options())?;
    JournalStore::create(&journal, identity(id))?;
    journal.close()?;
    Ok(())
}

fn identity(node: u64) -> Identity {
    Identity { cluster: CLUSTER, node, group: GROUP }
}

/// Runs a node until it is interrupted or stops by itself.
///
/// Everything of a node runs on one thread: raft's loop, the sockets and the handlers. Below a few
/// cores that halves the latency of a write, because nothing has to wake another thread.
///
/// # Errors
/// Why the node did not start, or why it stopped.
pub fn serve(node: Serve) -> Result<(), Box<dyn Error>> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(node))
}

async fn run(node: Serve) -> Result<(), Box<dyn Error>> {
    if !node.data.join("journal").is_dir() {
        return Err(OpenError::Absent { wanted: identity(node.id) }.into());
    }
    let journal = Journal::open(node.data.join("journal"), journal_options())?;
    let log = JournalStore::open(&journal, identity(node.id))?;

    let peers = Peers::new();
    for peer in &node.peers {
        peers.insert(peer.id, peer.address);
    }
    let tcp = Tcp::bind(node.id, node.listen, Arc::new(peers), voussoir_net::Config::new(CLUSTER))
        .await?;
    let transport = NetTransport::new(Arc::new(tcp.clone()), RAFT_SERVICE)?;

    let voters: Vec<u64> = node.peers.iter().map(|peer| peer.id).chain([node.id]).collect();
    let kv = Arc::new(RwLock::new(Kv::default()));
    let machine = Machine::new(kv.clone());
    let config = Config::new(node.id, voters);
    let raft = Raft::start(config, Arc::new(log), Box::new(machine), Arc::new(transport)).await?;

    let http = TcpListener::bind(node.http).await?;
    let addresses = node.peers.iter().map(|peer| (peer.id, peer.http.to_string()));
    let addresses: HashMap<u64, String> =
        addresses.chain([(node.id, node.http.to_string())]).collect();
    let app =
        App { raft: raft.clone(), journal: journal.clone(), kv, addresses: Arc::new(addresses) };
    tokio::spawn(axum::serve(http, http::router(app)).into_future());
    println!("node {} serves http://{}", node.id, node.http);

    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        () = parent_gone(node.exit_with_parent) => {}
        () = stopped(&raft) => return Err(raft.stopped().map_or("stopped".into(), Into::into)),
    }
    raft.shutdown().await;
    tcp.shutdown(Instant::now() + Duration::from_secs(1)).await;
    journal.close()?;
    Ok(())
}

/// **Change these for a server**: how large the log may become, and in which pieces space comes
/// back.
fn journal_options() -> Options {
    let mut options = Options::default();
    options.segment_bytes = 16 << 20;
    options.max_bytes = 4 << 30;
    options
}

/// Until raft has stopped for good, for example after its disk failed.
async fn stopped(raft: &Raft) {
    let mut status = raft.status();
    while raft.stopped().is_none() && status.changed().await.is_ok() {}
}

/// Until standard input ends, when that is wanted.
async fn parent_gone(wanted: bool) {
    if !wanted {
        return std::future::pending().await;
    }
    let (gone, wait) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = gone.send(());
    });
    let _ = wait.await;
}
