//! Our nodes and their clients.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use voussoir_journal::Journal;
use voussoir_net::{Peers, Tcp};
use voussoir_quorum::store::JournalStoreConfig;
use voussoir_quorum::table::{CallError, TableConfig};
use voussoir_quorum::{
    Bytes, Class, Instant, JournalStore, Lineage, Link, NetLink, Node, NodeConfig, RegisterConfig,
    Registers, Repaired, Table,
};

use crate::Error;
use crate::process::{Process, cpu_of, free, lines, parsed};

pub const NODES: [u64; 3] = [1, 2, 3];
const CLUSTER: u128 = 0x7175_6f72;
const SERVICE: u16 = 1;
/// How much later than the others the slow replica gets each request.
pub const SLOWER: Duration = Duration::from_millis(50);

fn peers(addresses: &[SocketAddr]) -> Arc<Peers> {
    let peers = Peers::new();
    for (id, address) in NODES.iter().zip(addresses) {
        peers.insert(*id, *address);
    }
    Arc::new(peers)
}

/// How a node begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Create,
    Again,
    /// On an empty disk.
    Lost,
}

/// The process of a node: how it begins, its number, its folder, the addresses of all. For each
/// line of standard input it says what it holds (`state`), or compares itself with the others and
/// says what that took (`repair`). Ends with its input.
pub async fn node(args: &[String]) -> Result<(), Error> {
    let [start, id, folder, addresses @ ..] = args else {
        return Err("START ID FOLDER ADDRESS…".into());
    };
    let id: u64 = id.parse()?;
    let addresses = parsed(addresses)?;
    let journal = Journal::open(Path::new(folder), voussoir_journal::Config::default())?;
    let store = Arc::new(JournalStore::open(&journal, 1, JournalStoreConfig::default())?);
    let mut config = NodeConfig::with_replicas(NODES);
    config.lineage = Lineage::new(CLUSTER as u64);
    // `repair` is asked for.
    config.repair_every = None;
    let node = match start.as_str() {
        "create" => Node::create(id, store, config).await?,
        "again" => Node::start(id, store, config).await?,
        _ => Node::start_lost(id, store, config).await?,
    };
    let net = voussoir_net::Config::new(CLUSTER);
    let tcp = Tcp::bind(id, addresses[id as usize - 1], peers(&addresses), net).await?;
    let link: Arc<dyn Link> = NetLink::serve(Arc::new(tcp), SERVICE, node.clone())?;
    node.maintain(&link);
    let mut asked = lines();
    // Ends: the input does.
    while let Some(line) = asked.recv().await {
        if line? == "repair" {
            let repaired = node.repair(&link).await?;
            let Repaired { replicas, differing, repaired, left, bytes, .. } = repaired;
            println!("{replicas} {differing} {repaired} {left} {bytes}");
        } else {
            let keys = node.repair_stats().keys.map_or(0, |keys| keys + 1);
            let hints = node.hint_stats().waiting;
            println!("{} {keys} {hints}", u8::from(node.is_whole()));
        }
    }
    Ok(())
}

/// A client's link to the nodes. `slow`: what is sent to node 3 leaves later.
pub async fn link(
    id: u64,
    addresses: &[SocketAddr],
    is_slow: bool,
) -> Result<Arc<dyn Link>, Error> {
    let net = voussoir_net::Config::new(CLUSTER);
    let tcp = Tcp::bind(id, "127.0.0.1:0".parse()?, peers(addresses), net).await?;
    let link: Arc<dyn Link> = NetLink::client(Arc::new(tcp), SERVICE);
    Ok(if is_slow { Arc::new(Slow { link }) } else { link })
}

struct Slow {
    link: Arc<dyn Link>,
}

#[async_trait]
impl Link for Slow {
    async fn call(
        &self,
        to: u64,
        class: Class,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        if to == NODES[2] {
            tokio::time::sleep(SLOWER).await;
        }
        self.link.call(to, class, request, deadline).await
    }
}

pub fn registers(client: u64, link: &Arc<dyn Link>) -> Result<Registers, Error> {
    let config = RegisterConfig::with_acceptors(NODES);
    Ok(Registers::new(client, config, Arc::clone(link))?)
}

pub fn table(link: &Arc<dyn Link>) -> Result<Table, Error> {
    // R = W = 2.
    Ok(Table::new(TableConfig::with_replicas(NODES), Arc::clone(link))?)
}

/// What a node says of itself.
#[derive(Clone, Copy, Debug)]
pub struct State {
    pub is_whole: bool,
    /// In its table and its registers. None: it still reads its store.
    pub keys: Option<u64>,
    pub hints: u64,
}

/// What a comparison with the others has found and taken.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    pub replicas: u64,
    pub differing: u64,
    pub repaired: u64,
    pub left: u64,
    pub bytes: u64,
}

pub struct Ours {
    folder: tempfile::TempDir,
    pub addresses: Vec<SocketAddr>,
    /// None: killed.
    nodes: Vec<Option<Process>>,
}

impl Ours {
    pub fn start() -> Result<Self, Error> {
        let (folder, addresses) = (tempfile::tempdir()?, free(3)?);
        let mut ours = Self { folder, addresses, nodes: Vec::new() };
        ours.nodes.extend(NODES.map(|_| None));
        for at in 0..NODES.len() {
            ours.restart(at, Start::Create)?;
        }
        Ok(ours)
    }

    /// Starts a node that does not run.
    pub fn restart(&mut self, at: usize, start: Start) -> Result<(), Error> {
        let data = self.folder.path().join(at.to_string());
        if start == Start::Lost {
            std::fs::remove_dir_all(&data)?;
        }
        std::fs::create_dir_all(&data)?;
        let (start, id) = (format!("{start:?}").to_lowercase(), NODES[at].to_string());
        let mut args = vec!["node".into(), start.into(), id.into(), data.into_os_string()];
        args.extend(self.addresses.iter().map(|address| address.to_string().into()));
        self.nodes[at] = Some(Process::start(args)?);
        Ok(())
    }

    pub fn kill(&mut self, at: usize) {
        self.nodes[at] = None;
    }

    fn ask(&mut self, at: usize, what: &str) -> Result<Vec<u64>, Error> {
        self.nodes[at].as_mut().ok_or("the node does not run")?.ask(what)
    }

    pub fn state(&mut self, at: usize) -> Result<State, Error> {
        let [is_whole, keys, hints] = self.ask(at, "state")?[..] else {
            return Err("a node has ended".into());
        };
        Ok(State { is_whole: is_whole == 1, keys: keys.checked_sub(1), hints })
    }

    /// Compares a node with the two others.
    pub fn repair(&mut self, at: usize) -> Result<Compared, Error> {
        let [replicas, differing, repaired, left, bytes] = self.ask(at, "repair")?[..] else {
            return Err("a node has ended".into());
        };
        Ok(Compared { replicas, differing, repaired, left, bytes })
    }

    /// CPU that the nodes have used so far, together.
    pub fn cpu(&self) -> Result<Duration, Error> {
        self.nodes.iter().flatten().map(|node| cpu_of(node.id())).sum()
    }

    /// The most memory that a node has held, in MiB.
    pub fn memory_mib(&self, at: usize) -> Result<f64, Error> {
        let process = self.nodes[at].as_ref().ok_or("the node does not run")?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no VmHWM")?;
        Ok(kib.parse::<f64>()? / 1024.0)
    }
}
