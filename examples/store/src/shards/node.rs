//! Wires one node of a sharded store together: a journal on disk, TCP to the peers, a multi-raft
//! node over both, HTTP in front.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use voussoir_raft::net::NetTransport;
use voussoir_raft::{Node, NodeConfig, Raft, StopReason};

use super::host::{Host, MAP_GROUP};
use super::http::{self, App};
use super::machine::MapMachine;
use super::reconcile;
use crate::args::Serve;
use crate::listen;
use crate::members::{AddressBook, Connecting};
use crate::node::{self, Ending, GOODBYE, RAFT_SERVICE, Signals, Stopped};
use crate::traffic::Traffic;

/// Between two looks whether the replica of a shard has stopped.
const LOOK: Duration = Duration::from_millis(500);

/// Runs a node until SIGTERM, Ctrl-C, or until its copy of the shard map or the replica of a shard
/// stops by itself.
///
/// # Errors
/// [`Stopped`], or what the runtime, the network or raft reported at the start.
pub fn serve(node: Serve) -> Result<(), Box<dyn Error>> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(node))
}

async fn run(serve: Serve) -> Result<(), Box<dyn Error>> {
    let mut signals = Signals::listen()?;
    let listener = TcpListener::bind(serve.http).await;
    let listener = listener.map_err(|source| node::cannot_listen("--http", serve.http, source))?;
    let http = listener.local_addr()?;
    let (journal, map_log) = node::open_store(&serve)?;
    let book = Arc::new(AddressBook::default());
    for peer in &serve.peers {
        book.insert(peer.id, Some(peer.address), peer.http.clone());
    }
    book.insert(serve.id, None, http.to_string());
    let (tcp, _peers) = node::connect(&serve, &book).await?;
    let peers = tcp.address();
    let transport = NetTransport::new(Arc::new(tcp.clone()), RAFT_SERVICE)?;
    let transport = Arc::new(Connecting { transport, book: book.clone() });

    let mut config = NodeConfig::default();
    config.heartbeat_interval = serve.timing.heartbeat;
    config.suspect_after = config.suspect_after.max(3 * serve.timing.heartbeat);
    let groups = Node::start(config, transport)?;
    let (machine, routes) = MapMachine::new();
    let mut config = serve.raft();
    config.group = MAP_GROUP;
    let map = groups.start_group(config, Arc::new(map_log), Box::new(machine)).await;
    let map = map.map_err(|error| Stopped::at_start(&serve.data, error))?;
    // Group 0 takes messages, and the others are started by its map: peers may connect.
    tcp.open();

    let (id, drain_time) = (serve.id, serve.drain);
    let (data, exits) = (serve.data.clone(), serve.exit_with_parent);
    let host = Host::new(serve, groups.clone(), journal.clone(), book, map.clone(), routes);
    let host = Arc::new(host);
    let mut tasks = JoinSet::new();
    tasks.spawn(reconcile::run(host.clone()));
    let app = Arc::new(App { host: host.clone(), traffic: Traffic::default() });
    let (drain, drained) = oneshot::channel::<()>();
    let (router, connections) = (http::router(app.clone()), listen::Limits::default());
    let server = listen::serve(listener, router, connections, async { drop(drained.await) });
    let server = tokio::spawn(server);
    tracing::info!(node = id, %http, %peers, "the node serves");

    let ended = tokio::select! {
        () = signals.recv() => Ok(()),
        () = node::parent_exited(exits) => Ok(()),
        reason = node::stopped(&map) => Err(reason),
        reason = a_shard_stopped(&host) => Err(reason),
    };
    tasks.shutdown().await;
    let mut ending = Ending { until: Instant::now() + drain_time, signals };
    if ended.is_ok() {
        ending.drain_and_hand_over(&app.traffic, hand_over(&host)).await;
    }
    groups.shutdown().await;
    tcp.shutdown(Instant::now() + GOODBYE).await;
    drop(drain);
    ending.wait(server).await;
    let closed = journal.close();
    match ended {
        Ok(()) => Ok(closed?),
        Err(reason) if node::must_be_rebuilt(&reason) => {
            Err(Stopped::Damaged { folder: data.display().to_string(), reason }.into())
        }
        Err(reason) => Err(Stopped::Halted { reason, disk: None }.into()),
    }
}

/// Returns when the replica of a shard has stopped for good: its part of the data is down here
/// until the process starts anew, and nobody else would say so.
async fn a_shard_stopped(host: &Host) -> StopReason {
    loop {
        tokio::time::sleep(LOOK).await;
        for (shard, replica) in host.replicas() {
            // One that is told to is on its way to be deleted.
            let stopped = replica.raft.stopped();
            if let Some(reason) = stopped.filter(|reason| *reason != StopReason::ShutDown) {
                tracing::error!(shard, %reason, "the replica of a shard has stopped");
                return reason;
            }
        }
    }
}

/// Lets other nodes lead the shards that this one leads, all at once.
async fn hand_over(host: &Host) {
    let led = host.replicas().into_iter().filter(|(_, replica)| replica.leads());
    let mut handing: JoinSet<()> = JoinSet::new();
    let groups: Vec<Raft> = led.map(|(_, replica)| replica.raft.clone()).collect();
    for raft in groups.into_iter().chain([host.map.clone()]) {
        let until = Instant::now() + GOODBYE;
        // One that nobody can take over, or that another node leads, is elected anew.
        handing.spawn(async move { drop(raft.transfer_leadership(None, until).await) });
    }
    while handing.join_next().await.is_some() {}
}
