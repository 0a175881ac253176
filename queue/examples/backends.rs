//! The same application on each back end: which one it is stands in one line.
//!
//! `cargo run -p voussoir-queue --example queue-backends --features jetstream -- embedded` (or
//! `jetstream`, with the server's address in `NATS_URL`).

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use voussoir_journal::Journal;
use voussoir_queue::backend::jetstream::{JetStream, JetStreamConfig, async_nats};
use voussoir_queue::backend::{Backend, Embedded, MESSAGE_ID, Need, Subscription};
use voussoir_queue::{Queue, QueueConfig, Record};

type Done<T> = Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Done<()> {
    match std::env::args().nth(1).as_deref().unwrap_or("embedded") {
        "embedded" => bill(embedded()?).await,
        "jetstream" => bill(jetstream().await?).await,
        other => Err(format!("no back end {other:?}: embedded or jetstream").into()),
    }
}

fn embedded() -> Done<Arc<dyn Backend>> {
    let dir = std::env::temp_dir().join("queue-backends");
    let journal = Journal::open(&dir, voussoir_journal::Config::default())?;
    let queue = Queue::open(&journal, "shop", QueueConfig::default())?;
    Ok(Arc::new(Embedded::new(queue)))
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
