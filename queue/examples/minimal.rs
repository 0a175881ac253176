//! A topic of three partitions: records are produced with keys, shared by two members of a group,
//! and their offsets are stored. After a restart the group goes on where it was.

use std::time::Duration;

use voussoir_journal::Journal;
use voussoir_queue::{ConsumerConfig, ProducerConfig, Queue, QueueConfig, Record, TopicConfig};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join(format!("queue-minimal-{}", std::process::id()));
    {
        let journal = Journal::open(&dir, voussoir_journal::Config::default())?;
        let queue = Queue::open(&journal, "shop", QueueConfig::default())?;
        let orders = queue.create_topic("orders", TopicConfig::partitions(3)).await?;

        let producer = queue.producer(ProducerConfig::default()).await?;
        for (customer, order) in [("ada", "two seats"), ("grace", "a table"), ("ada", "a coat")] {
            let record = Record::new(order).key(customer);
            let delivered = producer.send(&orders, record).await?;
            println!("{customer}: {order} is at {} {}", delivered.partition, delivered.offset);
        }

        let billing = ConsumerConfig::group("billing", ["orders"]);
        let mut members = [queue.consumer(billing.clone())?, queue.consumer(billing)?];
        // A few polls, in which the second member takes its share of the partitions.
        for round in 0..6 {
            for (number, member) in members.iter_mut().enumerate() {
                let polled = member.poll(Duration::from_millis(10)).await?;
                for read in polled.records {
                    let (key, value) = (read.record.key, read.record.value);
                    println!("round {round}: member {number} bills {key:?} for {value:?}");
                }
            }
        }
        for member in members {
            println!("a member has {} partitions", member.assignment().len());
            member.close().await?;
        }
        drop((producer, orders, queue));
        journal.close()?;
    }
    let journal = Journal::open(&dir, voussoir_journal::Config::default())?;
    let queue = Queue::open(&journal, "shop", QueueConfig::default())?;
    for lag in queue.lag("billing").unwrap_or_default() {
        println!("after a restart: {} read to {} of {}", lag.partition, lag.position, lag.end);
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
