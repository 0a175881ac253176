//! A partition in a journal: three records are produced, read by a reader that waits, and are
//! there after a restart. A batch that is sent twice is in the log once.

use std::time::Duration;

use voussoir_journal::Journal;
use voussoir_queue::format::MAX_UNPACKED_BYTES;
use voussoir_queue::store::JournalStore;
use voussoir_queue::{BatchBuilder, Config, Durability, Partition, Record, Seek};

const PRODUCER: i64 = 1;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join(format!("queue-minimal-{}", std::process::id()));
    {
        let journal = Journal::open(&dir, voussoir_journal::Config::default())?;
        let store = JournalStore::new(&journal, "orders")?;
        let orders = Partition::open(store.partition(0)?, Config::default())?;

        let reader = orders.clone();
        let reading = tokio::spawn(async move {
            let from = reader.seek(Seek::Earliest)?;
            reader.fetch_wait(from, 1 << 20, Duration::from_secs(5)).await
        });

        let mut builder = BatchBuilder::new().producer(PRODUCER, 0, 0);
        for order in ["two seats", "a table", "a coat"] {
            builder.push(&Record::new(order).key("ada"))?;
        }
        let batch = builder.finish()?;
        println!("{:?}", orders.append(batch.clone(), Durability::Synced).await?);
        // The answer might have been lost: the same batch again.
        println!("{:?}", orders.append(batch, Durability::Synced).await?);

        for record in reading.await??.records(MAX_UNPACKED_BYTES) {
            let record = record?;
            println!("{} {:?} {:?}", record.offset, record.key, record.value);
        }
        drop(orders);
        journal.close()?;
    }
    let journal = Journal::open(&dir, voussoir_journal::Config::default())?;
    let store = JournalStore::new(&journal, "orders")?;
    let orders = Partition::open(store.partition(0)?, Config::default())?;
    println!("after a restart: offsets {:?}", orders.offsets());
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
