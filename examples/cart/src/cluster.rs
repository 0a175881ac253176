//! A node of a region: its journal, its transport, its replica, its part in the region, and a gate
//! before the other nodes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use voussoir_journal::Journal;
use voussoir_net::{Peers, Tcp};
use voussoir_quorum::region::{Region, RegionConfig};
use voussoir_quorum::store::JournalStoreConfig;
use voussoir_quorum::table::CallError;
use voussoir_quorum::{
    Bytes, Class, Instant, JournalStore, Link, NetLink, Node, NodeConfig, async_trait,
};

use crate::args::{Place, Serve};
use crate::{CLUSTER, Error};

/// How long an operation takes at most.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(2);
/// Of the replicas of a region, and of the regions, among the services of the transport.
const IN_THE_REGION: u16 = 1;
const BETWEEN_REGIONS: u16 = 2;
/// The ids of the regions.
const EAST: u64 = 1;
const WEST: u64 = 2;

/// One node of this process.
pub(crate) struct Server {
    pub(crate) journal: Journal,
    pub(crate) region: Region,
    /// The nodes of the own region.
    pub(crate) replicas: Vec<u64>,
    /// To the nodes of the own region, through the gate.
    pub(crate) local: Arc<dyn Link>,
    /// To the nodes of all regions, through the gate. Held for the tasks of the region.
    _wide: Arc<dyn Link>,
    /// The nodes that are cut off.
    pub(crate) cut: Arc<Mutex<BTreeSet<u64>>>,
    net: Arc<Tcp>,
}

fn ids(places: &[Place]) -> Vec<u64> {
    places.iter().map(|(id, _)| *id).collect()
}

impl Server {
    pub(crate) async fn start(args: &Serve) -> Result<Self, Error> {
        let all = || args.east.iter().chain(&args.west);
        let own = all().find(|(id, _)| *id == args.id);
        let (id, address) = *own.ok_or("--id is none of --east and --west")?;
        let is_east = args.east.iter().any(|(east, _)| *east == id);
        let (region, replicas) =
            if is_east { (EAST, ids(&args.east)) } else { (WEST, ids(&args.west)) };

        let mut config = NodeConfig::with_replicas(replicas.iter().copied());
        (config.timeout, config.maintain_every) = (TIMEOUT, Duration::from_millis(200));
        config.repair_every = Some(Duration::from_secs(2));
        config.collect_every = Some(Duration::from_secs(2));
        let regions = [(EAST, ids(&args.east)), (WEST, ids(&args.west))];
        let mut regions = RegionConfig::first(region, regions);
        regions.compare_every = Duration::from_secs(2);
        config.regions = Some(regions);

        let journal = Journal::open(&args.data, voussoir_journal::Config::default())?;
        let store = Arc::new(JournalStore::open(&journal, id, JournalStoreConfig::default())?);
        let node = if args.create {
            Node::create(id, store, config).await?
        } else {
            Node::start(id, store, config).await?
        };
        let peers = Peers::new();
        for (id, address) in all() {
            peers.insert(*id, *address);
        }
        let config = voussoir_net::Config::new(CLUSTER);
        let net = Arc::new(Tcp::prepare(id, address, Arc::new(peers), config).await?);
        let cut = Arc::new(Mutex::default());
        let gate = |link| -> Arc<dyn Link> { Arc::new(Gate { link, cut: Arc::clone(&cut) }) };
        let local = gate(NetLink::serve(net.clone(), IN_THE_REGION, node.clone())?);
        node.maintain(&local);
        let region = Region::new(&node)?;
        let wide = gate(NetLink::serve_region(net.clone(), BETWEEN_REGIONS, region.clone())?);
        region.maintain(&local, &wide);
        // The replica and the region are served: peers may connect.
        net.open();
        Ok(Self { journal, region, replicas, local, _wide: wide, cut, net })
    }

    /// Ends the node: what it has accepted is durable.
    pub(crate) async fn stop(self) {
        self.net.shutdown(Instant::now() + Duration::from_millis(100)).await;
        self.region.node().shutdown().await;
    }
}

/// Lets no call through to some nodes. Two nodes whose gates name each other are as far apart as if
/// the cable between them were cut: that is how the partition of the demonstration is made.
struct Gate {
    link: Arc<dyn Link>,
    cut: Arc<Mutex<BTreeSet<u64>>>,
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
