//! The same application on each back end: which one it is stands in one line.
//!
//! `cargo run -p voussoir-queue --example queue-backends --all-features -- embedded` (or
//! `replicated`, three nodes in this process, or `jetstream`, with the server's address in
//! `NATS_URL`).

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use voussoir_journal::Journal;
use voussoir_net::{Peers, Tcp, Transport};
use voussoir_queue::backend::jetstream::{JetStream, JetStreamConfig, async_nats};
use voussoir_queue::backend::replicated::{Replicated, ReplicatedConfig};
use voussoir_queue::backend::{Backend, Embedded, MESSAGE_ID, Need, Subscription};
use voussoir_queue::{Queue, QueueConfig, Record};
use voussoir_raft::net::NetTransport;
use voussoir_raft::{Node, NodeConfig};

type Done<T> = Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Done<()> {
    match std::env::args().nth(1).as_deref().unwrap_or("embedded") {
        "embedded" => bill(embedded()?).await,
        "replicated" => {
            let nodes = replicated().await?;
            bill(Arc::new(nodes[0].clone())).await
        }
        "jetstream" => bill(jetstream().await?).await,
        other => Err(format!("no back end {other:?}: embedded, replicated or jetstream").into()),
    }
}

fn embedded() -> Done<Arc<dyn Backend>> {
    let dir = std::env::temp_dir().join("queue-backends");
    let journal = Journal::open(&dir, voussoir_journal::Config::default())?;
    let queue = Queue::open(&journal, "shop", QueueConfig::default())?;
    Ok(Arc::new(Embedded::new(queue)))
}

/// Three nodes over TCP, each with a journal. In production each is a process of its own, with the
/// addresses of the others in `peers`, and was created once.
async fn replicated() -> Done<Vec<Replicated>> {
    let (dir, peers) = (std::env::temp_dir().join("queue-backends-replicated"), Peers::default());
    let mut nodes = Vec::new();
    for id in [1, 2, 3] {
        let (listen, net) = ("127.0.0.1:0".parse()?, voussoir_net::Config::new(1));
        let tcp = Arc::new(Tcp::bind(id, listen, Arc::new(peers.clone()), net).await?);
        peers.insert(id, tcp.address());
        let net: Arc<dyn Transport> = tcp;
        let raft = NetTransport::new(Arc::clone(&net), 1)?;
        let node = Node::start(NodeConfig::default(), Arc::new(raft))?;
        let journal = Journal::open(dir.join(id.to_string()), voussoir_journal::Config::default())?;
        let config = ReplicatedConfig::new(id, [1, 2, 3], 7, 2);
        // Where it has run before, there is data already.
        let _ = Replicated::create(&journal, &config);
        nodes.push(Replicated::start(&node, net, &journal, config).await?);
    }
    Ok(nodes)
}

async fn jetstream() -> Done<Arc<dyn Backend>> {
    let client = async_nats::connect(std::env::var("NATS_URL")?).await?;
    Ok(Arc::new(JetStream::new(client, JetStreamConfig::default())?))
}

/// The application. It knows topics, groups and records, and states what it relies on.
async fn bill(queue: Arc<dyn Backend>) -> Done<()> {
    for need in [Need::SyncedSend, Need::KeyOrder, Need::ExactlyOnce, Need::FencedCommits] {
        match queue.provides(need) {
            Ok(()) => println!("{}: {need:?}", queue.name()),
            Err(refused) => println!("{refused}"),
        }
    }
    queue.create_topic("orders", 3).await?;
    let producer = queue.producer().await?;
    let has_ids = queue.provides(Need::MessageIds(Duration::from_secs(60))).is_ok();
    let order = |number: usize, customer: &str| {
        let record = Record::new(format!("order {number}")).key(customer.to_owned());
        // Where ids are known, an order whose outcome is unknown can be sent again.
        if has_ids { record.header(MESSAGE_ID, format!("order {number}")) } else { record }
    };
    let orders = vec![order(1, "ada"), order(2, "grace"), order(3, "ada")];
    for answer in producer.send("orders", orders).await {
        let at = answer?;
        println!("stored in partition {} at {}", at.partition, at.offset);
    }
    let mut billing = queue.consumer(Subscription::new("billing", ["orders"])).await?;
    let mut billed = 0;
    while billed < 3 {
        for received in billing.poll(Duration::from_secs(1)).await? {
            println!("billing {:?} {:?}", received.record.key, received.record.value);
            billed += 1;
        }
        billing.commit().await?;
    }
    billing.close().await?;
    Ok(())
}
