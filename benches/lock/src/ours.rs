//! Our nodes and their clients.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use voussoir_journal::Journal;
use voussoir_lock::net::{LockServer, NetLocks};
use voussoir_lock::raft::{LockMachine, RaftLocks};
use voussoir_lock::{BootClock, Clock as _, LeaseConfig, Replica, Session};
use voussoir_net::{Peers, Tcp};
use voussoir_raft::journal::{Identity, JournalStore, OpenError};
use voussoir_raft::net::NetTransport;
use voussoir_raft::{Config, Raft, Role, Status};

use crate::Error;
use crate::process::{Process, cpu_of, free, parsed};

pub const NODES: [u64; 3] = [1, 2, 3];
const CLUSTER: u128 = 0x6c6f_636b;
const RAFT: u16 = 1;
const LOCKS: u16 = 2;

fn peers(addresses: &[SocketAddr]) -> Arc<Peers> {
    let peers = Peers::new();
    for (id, address) in NODES.iter().zip(addresses) {
        peers.insert(*id, *address);
    }
    Arc::new(peers)
}

/// The process of a node: its number, its folder, the addresses of all. Answers each line on
/// standard input by a line with its [`State`], until it is killed.
pub async fn node(args: &[String]) -> Result<(), Error> {
    let [id, folder, addresses @ ..] = args else { return Err("ID FOLDER ADDRESS…".into()) };
    let (id, folder) = (id.parse()?, Path::new(folder));
    let addresses = parsed(addresses)?;
    let (raft, _locks) = start(id, folder, &addresses).await?;
    let elected_at = Arc::new(AtomicU64::new(0));
    let (asked, elected) = (raft.clone(), Arc::clone(&elected_at));
    std::thread::spawn(move || {
        for _ in std::io::stdin().lines() {
            let at = elected.load(Relaxed);
            let Status { role, last, applied, .. } = *asked.status().borrow();
            println!("{} {last} {applied} {at}", u8::from(role == Role::Leader));
        }
    });
    let (mut status, mut led) = (raft.status(), false);
    // Ends: the node is killed, or stops by itself.
    loop {
        let leads = status.borrow_and_update().role == Role::Leader;
        if leads && !led {
            elected_at.store(BootClock.now(), Relaxed);
        }
        led = leads;
        status.changed().await?;
    }
}

/// Starts a node in this process.
pub async fn start(
    id: u64,
    folder: &Path,
    addresses: &[SocketAddr],
) -> Result<(Raft, Arc<RaftLocks>), Error> {
    let mut config = voussoir_journal::Config::default();
    config.segment_bytes = 16 << 20;
    let journal = Journal::open(folder.join("journal"), config)?;
    let identity = || Identity { cluster: CLUSTER, node: id, group: 0 };
    let store = match JournalStore::create(&journal, identity()) {
        Err(OpenError::Exists { .. }) => JournalStore::open(&journal, identity())?,
        created => created?,
    };
    let net = voussoir_net::Config::new(CLUSTER);
    let tcp = Tcp::bind(id, addresses[id as usize - 1], peers(addresses), net).await?;
    let transport = Arc::new(NetTransport::new(Arc::new(tcp.clone()), RAFT)?);
    let replica = Replica::new();
    let machine = Box::new(LockMachine::new(replica.clone()));
    let raft = Raft::start(Config::new(id, NODES), Arc::new(store), machine, transport).await?;
    let locks = RaftLocks::start(raft.clone(), replica);
    LockServer::serve(&tcp, LOCKS, locks.clone())?;
    Ok((raft, locks))
}

/// A client of the nodes, under a number of its own.
pub async fn client(id: u64, addresses: &[SocketAddr]) -> Result<Arc<NetLocks>, Error> {
    let net = voussoir_net::Config::new(CLUSTER);
    let tcp = Tcp::bind(id, "127.0.0.1:0".parse()?, peers(addresses), net).await?;
    Ok(NetLocks::new(Arc::new(tcp), LOCKS, NODES))
}

pub async fn session(locks: &Arc<NetLocks>) -> Result<Session, Error> {
    let within = Duration::from_secs(20);
    Ok(Session::open(Arc::clone(locks), LeaseConfig::default(), within).await?)
}

/// A node as it says.
#[derive(Clone, Copy, Debug)]
pub struct State {
    pub leads: bool,
    /// The last index of its log.
    pub last: u64,
    pub applied: u64,
    /// When it was last elected, in ns of the [`BootClock`].
    pub elected_at: u64,
}

struct Node(Process);

impl Node {
    fn start(id: u64, folder: &Path, addresses: &[SocketAddr]) -> Result<Self, Error> {
        let data = folder.join(id.to_string());
        std::fs::create_dir_all(&data)?;
        let mut args = vec!["node".into(), id.to_string().into(), data.into_os_string()];
        args.extend(addresses.iter().map(|address| address.to_string().into()));
        Ok(Self(Process::start(args)?))
    }

    fn state(&mut self) -> Result<State, Error> {
        let [leads, last, applied, elected_at] = self.0.ask("")?[..] else {
            return Err("a node has ended".into());
        };
        Ok(State { leads: leads == 1, last, applied, elected_at })
    }
}

pub struct Ours {
    folder: tempfile::TempDir,
    pub addresses: Vec<SocketAddr>,
    /// `None` while it is killed.
    nodes: Vec<Option<Node>>,
    pub locks: Arc<NetLocks>,
    /// A client with a connection of its own.
    pub waiters: Arc<NetLocks>,
}

impl Ours {
    pub async fn start() -> Result<Self, Error> {
        let (folder, addresses) = (tempfile::tempdir()?, free(3)?);
        let start = |id: &u64| Node::start(*id, folder.path(), &addresses).map(Some);
        let nodes = NODES.iter().map(start).collect::<Result<_, _>>()?;
        let (locks, waiters) = (client(100, &addresses).await?, client(101, &addresses).await?);
        Ok(Self { folder, addresses, nodes, locks, waiters })
    }

    pub async fn session(&self) -> Result<Session, Error> {
        session(&self.locks).await
    }

    /// The states of the nodes that run.
    pub fn states(&mut self) -> Result<Vec<State>, Error> {
        self.nodes.iter_mut().flatten().map(Node::state).collect()
    }

    /// CPU that the nodes have used so far, each.
    pub fn cpu(&self) -> Result<Vec<Duration>, Error> {
        self.nodes.iter().flatten().map(|node| cpu_of(node.0.id())).collect()
    }

    /// Kills the node that leads.
    pub fn kill_leader(&mut self) -> Result<(), Error> {
        for node in &mut self.nodes {
            if let Some(running) = node
                && running.state()?.leads
            {
                *node = None;
                return Ok(());
            }
        }
        Err("no node leads".into())
    }

    /// Starts the node that was killed, and waits until all have applied the same.
    pub async fn restart(&mut self) -> Result<(), Error> {
        for (at, node) in self.nodes.iter_mut().enumerate() {
            if node.is_none() {
                *node = Some(Node::start(NODES[at], self.folder.path(), &self.addresses)?);
            }
        }
        // Ends: they agree, or half a minute has passed.
        for _ in 0..3_000 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let states = self.states()?;
            let agree = |state: &State| state.applied == states[0].last;
            if states.iter().all(agree) && states.iter().any(|state| state.leads) {
                return Ok(());
            }
        }
        Err("the nodes do not agree".into())
    }
}
