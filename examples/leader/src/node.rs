//! Wires one process together: a journal on disk, TCP to the peers, raft over both, the lock
//! service on raft, and a candidate that uses it.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::Instant;
use voussoir_journal::Journal;
use voussoir_lock::net::{LockServer, NetLocks};
use voussoir_lock::raft::{LockMachine, RaftLocks};
use voussoir_lock::{LeaseConfig, Replica};
use voussoir_net::Tcp;
use voussoir_raft::journal::{Identity, JournalStore, OpenError};
use voussoir_raft::net::NetTransport;
use voussoir_raft::{Raft, StopReason};

use crate::Error;
use crate::args::{Create, Serve};
use crate::campaign::{self, Candidate};

/// Keeps the processes of one group from talking to those of another. **Choose your own.**
const CLUSTER: u128 = 0x766f_7573_736f_6972_206c_6561_6465_0001;
/// The numbers under which messages travel, the same in every process.
const RAFT_SERVICE: u16 = 1;
const LOCK_SERVICE: u16 = 2;
/// How long the process waits at its end for its peers to take queued messages.
const GOODBYE: Duration = Duration::from_secs(1);

fn identity(node: u64) -> Identity {
    Identity { cluster: CLUSTER, node, group: 0 }
}

fn open_journal(data: &Path) -> Result<Journal, Error> {
    let folder = data.join("journal");
    let mut config = voussoir_journal::Config::default();
    // The journal allocates whole segments: small ones keep a new process small.
    config.segment_bytes = 4 << 20;
    let opened = Journal::open(&folder, config);
    Ok(opened.map_err(|error| format!("{}: {error}", folder.display()))?)
}

/// Creates the data of a process that has never run. [`serve`] never does, because it cannot tell a
/// new process from one whose disk was lost.
pub(crate) fn create(create: &Create) -> Result<(), Error> {
    let shown = create.data.display();
    std::fs::create_dir_all(&create.data).map_err(|error| format!("{shown}: {error}"))?;
    let journal = open_journal(&create.data)?;
    JournalStore::create(&journal, identity(create.id)).map_err(|error| match error {
        OpenError::Exists { .. } => {
            format!("{shown}: a process was created here before; run it with serve")
        }
        error => format!("{shown}: {error}"),
    })?;
    journal.close()?;
    Ok(())
}

/// Runs a process until SIGTERM, Ctrl-C, or until raft stops by itself. SIGUSR1 makes it resign.
pub(crate) async fn serve(serve: &Serve) -> Result<(), Error> {
    let mut lease = LeaseConfig::default();
    lease.ttl = serve.ttl_ms;
    lease.margin = lease.margin.min(lease.ttl / 10);
    lease.validate()?;
    if !serve.data.join("journal").is_dir() {
        return Err(format!("{}: no data; create it first", serve.data.display()).into());
    }
    let resign = signal(SignalKind::user_defined1())?;
    let journal = open_journal(&serve.data)?;
    let log = JournalStore::open(&journal, identity(serve.id));
    let log = log.map_err(|error| format!("{}: {error}", serve.data.display()))?;

    let addresses = voussoir_net::Peers::new();
    for (id, address) in &serve.peers {
        addresses.insert(*id, *address);
    }
    let config = voussoir_net::Config::new(CLUSTER);
    let tcp = Tcp::prepare(serve.id, serve.listen, Arc::new(addresses), config).await?;
    let transport = NetTransport::new(Arc::new(tcp.clone()), RAFT_SERVICE)?;
    let nodes: Vec<u64> = serve.peers.iter().map(|(id, _)| *id).chain([serve.id]).collect();

    let replica = Replica::new();
    let machine = Box::new(LockMachine::new(replica.clone()));
    let config = voussoir_raft::Config::new(serve.id, nodes.clone());
    let raft = Raft::start(config, Arc::new(log), machine, Arc::new(transport)).await?;
    let group = RaftLocks::start(raft.clone(), replica);
    LockServer::serve(&tcp, LOCK_SERVICE, group.clone())?;
    // Both services are there: peers may connect.
    tcp.open();
    // Every process is a client of whichever leads the group, itself included.
    let locks = NetLocks::with_local(Arc::new(tcp.clone()), LOCK_SERVICE, nodes, group);
    let candidate = Candidate { node: serve.id, ledger: serve.ledger, lease };
    tracing::info!(process = serve.id, "the process serves");

    let end = async {
        tokio::select! {
            () = shutdown_signal() => Ok(()),
            () = parent_exited(serve.exit_with_parent) => Ok(()),
            reason = stopped(&raft) => Err(format!("raft has stopped: {reason}")),
        }
    };
    let ended = campaign::run(locks, candidate, resign, end).await;
    raft.shutdown().await;
    tcp.shutdown(Instant::now() + GOODBYE).await;
    journal.close()?;
    Ok(ended?)
}

/// Returns when raft has stopped for good, for example after its disk failed.
async fn stopped(raft: &Raft) -> StopReason {
    let mut status = raft.status();
    // Ends: raft stops.
    loop {
        if let Some(reason) = raft.stopped() {
            return reason;
        }
        if status.changed().await.is_err() {
            return raft.stopped().unwrap_or(StopReason::ShutDown);
        }
    }
}

/// Returns at SIGTERM or Ctrl-C.
async fn shutdown_signal() {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminated => {}
        interrupted = tokio::signal::ctrl_c() => if interrupted.is_err() {
            std::future::pending::<()>().await;
        },
    }
}

/// Returns when standard input closes, if that is wanted.
async fn parent_exited(is_wanted: bool) {
    if !is_wanted {
        return std::future::pending().await;
    }
    let (gone, wait) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = gone.send(());
    });
    let _ = wait.await;
}
