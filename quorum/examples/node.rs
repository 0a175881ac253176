//! Three nodes over TCP, each with a journal in a directory of its own; a table and registers on
//! them; one node that goes and comes back. `cargo run -p voussoir-quorum --example node`

use std::sync::Arc;

use voussoir_journal::{Config as JournalConfig, Journal};
use voussoir_net::{Config as NetConfig, Peers, Tcp};
use voussoir_quorum::paxos::Outcome;
use voussoir_quorum::store::JournalStoreConfig;
use voussoir_quorum::table::TableConfig;
use voussoir_quorum::{JournalStore, Link, NetLink, Node, NodeConfig, RegisterConfig};
use voussoir_quorum::{Registers, StartError, Table};

const NODES: [u64; 3] = [1, 2, 3];
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A node of this process: its transport is closed, and its node ends, when it is dropped.
struct Server {
    node: Node,
    link: Arc<dyn Link>,
    net: Arc<Tcp>,
}

async fn serve(id: u64, dir: &std::path::Path, peers: &Peers) -> Result<Server, Failure> {
    let mut config = JournalConfig::default();
    config.segment_bytes = 8 << 20;
    let journal = Journal::open(dir.join(id.to_string()), config)?;
    let store = Arc::new(JournalStore::open(&journal, 1, JournalStoreConfig::default())?);
    let config = NodeConfig::with_replicas(NODES);
    // Where a cluster is set up, `create`; where a node is started, `start`.
    let node = match Node::create(id, store.clone(), config.clone()).await {
        Err(StartError::Exists { .. }) => Node::start(id, store, config).await?,
        node => node?,
    };
    let address = "127.0.0.1:0".parse()?;
    let net = Tcp::bind(id, address, Arc::new(peers.clone()), NetConfig::new(7)).await?;
    peers.insert(id, net.address());
    let net = Arc::new(net);
    let link: Arc<dyn Link> = NetLink::serve(net.clone(), 1, node.clone())?;
    node.maintain(&link);
    Ok(Server { node, link, net })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let dir = std::env::temp_dir().join(format!("voussoir-quorum-node-{}", std::process::id()));
    let peers = Peers::new();
    let mut servers = Vec::new();
    for id in NODES {
        servers.push(serve(id, &dir, &peers).await?);
    }
    let first = &servers[0];
    let table =
        Table::with_hints(TableConfig::with_replicas(NODES), first.link.clone(), &first.node)?;
    let registers = Registers::new(1, RegisterConfig::with_acceptors(NODES), first.link.clone())?;

    let cart = table.put_blind("cart", "milk").await?;
    table.put("cart", cart.context(), "milk, bread").await?;
    println!("cart: {:?}", table.get("cart").await?.values().collect::<Vec<_>>());

    let gone = servers.pop().ok_or("there are three")?;
    let deadline = voussoir_quorum::Instant::now() + std::time::Duration::from_millis(100);
    gone.net.shutdown(deadline).await;
    gone.node.shutdown().await;
    drop(gone);
    println!("node 3 is gone");
    let outcome = registers.compare_and_set("owner", 0, Some("ann".into())).await?;
    println!("owner, if nobody is: {outcome:?}");
    let outcome = registers.compare_and_set("owner", 0, Some("bob".into())).await?;
    assert!(matches!(outcome, Outcome::NotApplied { version: 1, .. }));
    println!("the same for another: {outcome:?}");

    servers.push(serve(3, &dir, &peers).await?);
    println!("node 3 is back, whole: {}", servers[2].node.is_whole());
    println!("cart: {:?}", table.get("cart").await?.values().collect::<Vec<_>>());
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
