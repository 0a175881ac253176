//! A node of the cluster: its journal, its transport, its replica, and a gate before the others.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use voussoir_journal::Journal;
use voussoir_net::{Peers, Tcp};
use voussoir_quorum::store::JournalStoreConfig;
use voussoir_quorum::table::CallError;
use voussoir_quorum::{
    Bytes, Class, Instant, JournalStore, Link, NetLink, Node, NodeConfig, async_trait,
};

use crate::args::Serve;
use crate::{CLUSTER, Error};

/// How long an operation takes at most.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(500);
/// Of the replicas, among the services of the transport.
const SERVICE: u16 = 1;

/// One node of this process.
pub(crate) struct Server {
    pub(crate) journal: Journal,
    pub(crate) node: Node,
    /// All nodes.
    pub(crate) replicas: Vec<u64>,
    /// To all nodes, through the gate.
    pub(crate) link: Arc<dyn Link>,
    pub(crate) gate: Arc<Gate>,
    net: Arc<Tcp>,
}

impl Server {
    pub(crate) async fn start(args: &Serve) -> Result<Self, Error> {
        let own = args.nodes.iter().find(|(id, _)| *id == args.id);
        let (id, address) = *own.ok_or("--id is none of --nodes")?;
        let journal = Journal::open(&args.data, voussoir_journal::Config::default())?;
        let store = Arc::new(JournalStore::open(&journal, id, JournalStoreConfig::default())?);
        let replicas: Vec<u64> = args.nodes.iter().map(|(id, _)| *id).collect();
        let mut config = NodeConfig::with_replicas(replicas.iter().copied());
        (config.timeout, config.maintain_every) = (TIMEOUT, Duration::from_millis(200));
        // What neither a hint nor a read has repaired is found by a comparison.
        config.repair_every = Some(Duration::from_secs(2));
        let node = if args.create {
            Node::create(id, store, config).await?
        } else {
            Node::start(id, store, config).await?
        };
        let peers = Peers::new();
        for (id, address) in &args.nodes {
            peers.insert(*id, *address);
        }
        let config = voussoir_net::Config::new(CLUSTER);
        let net = Arc::new(Tcp::prepare(id, address, Arc::new(peers), config).await?);
        let link: Arc<dyn Link> = NetLink::serve(net.clone(), SERVICE, node.clone())?;
        let gate = Arc::new(Gate { link, cut: Mutex::default() });
        let link: Arc<dyn Link> = gate.clone();
        node.maintain(&link);
        // The replica is served: peers may connect.
        net.open();
        Ok(Self { journal, node, replicas, link, gate, net })
    }

    /// Ends the node: what it has accepted is durable.
    pub(crate) async fn stop(self) {
        self.net.shutdown(Instant::now() + Duration::from_millis(100)).await;
        self.node.shutdown().await;
    }
}

/// Lets no call through to some nodes. Two nodes whose gates name each other are as far apart as if
/// the cable between them were cut: that is how the partition of the demonstration is made.
pub(crate) struct Gate {
    link: Arc<dyn Link>,
    cut: Mutex<BTreeSet<u64>>,
}

impl Gate {
    /// No call reaches these nodes from now on, and every other one is reached.
    pub(crate) fn cut(&self, nodes: BTreeSet<u64>) {
        *self.cut.lock() = nodes;
    }
}

#[async_trait]
impl Link for Gate {
    async fn call(
        &self,
        to: u64,
        class: Class,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        if self.cut.lock().contains(&to) {
            return Err(CallError::NotSent);
        }
        let answer = self.link.call(to, class, request, deadline).await;
        // The answer of a node that was cut off meanwhile is lost as well.
        if self.cut.lock().contains(&to) { Err(CallError::Unknown) } else { answer }
    }
}
