//! Work queues over the topics of a queue, in its journal.

mod support;

use std::time::Duration;

use support::{now_or_work, one};
use voussoir_journal::Journal;
use voussoir_journal::files::crash::CrashFiles;
use voussoir_queue::work::{Delivery, WorkConfig, WorkError, WorkQueue};
use voussoir_queue::{Durability, OpenError, Queue, QueueConfig, TopicConfig};

fn open(disk: &CrashFiles) -> (Journal, Queue) {
    let journal = support::journal(disk.mount(), 64);
    let mut config = QueueConfig::default();
    (config.partition.max_producers, config.partition.max_index_entries) = (10, 10);
    let queue = Queue::open(&journal, "shop", config).expect("the queue opens");
    (journal, queue)
}

fn config() -> WorkConfig {
    let mut config = WorkConfig::default();
    (config.max_records, config.max_dead_letters) = (50, 20);
    config
}

fn append(journal: &Journal, queue: &Queue, value: &str) {
    let partition = queue.topic("orders").and_then(|topic| topic.partition(0));
    let partition = partition.expect("a partition");
    let appending = partition.append(one(value), Durability::Synced);
    now_or_work(journal, appending).expect("it is appended");
}

fn receive(journal: &Journal, work: &WorkQueue) -> Vec<Delivery> {
    now_or_work(journal, work.receive(10, Duration::from_secs(60))).expect("it receives")
}

fn values(deliveries: &[Delivery]) -> Vec<&[u8]> {
    deliveries.iter().filter_map(|delivery| delivery.record.value.as_deref()).collect()
}

#[tokio::test(start_paused = true)]
async fn each_group_gets_every_record_and_goes_on_after_a_restart() {
    let disk = CrashFiles::new(1);
    let (journal, queue) = open(&disk);
    let creating = queue.create_topic("orders", TopicConfig::partitions(1));
    now_or_work(&journal, creating).expect("it is created");
    append(&journal, &queue, "a");
    append(&journal, &queue, "b");
    let payment = queue.work_queue("orders", 0, "payment", config()).expect("it opens");
    let stock = queue.work_queue("orders", 0, "stock", config()).expect("it opens");
    let both = receive(&journal, &payment);
    assert_eq!(values(&both), [b"a", b"b"]);
    now_or_work(&journal, payment.ack(&both[0].receipt)).expect("the lease runs");
    let before = journal.stats().commits;
    now_or_work(&journal, payment.reject(&both[1].receipt, "bad")).expect("the lease runs");
    assert_eq!(journal.stats().commits, before + 1, "the dead letter and its settling");
    assert_eq!(values(&receive(&journal, &stock)), [b"a", b"b"]);
    drop((payment, stock, queue, journal));

    disk.kill();
    let (journal, queue) = open(&disk);
    let payment = queue.work_queue("orders", 0, "payment", config()).expect("it opens");
    let stock = queue.work_queue("orders", 0, "stock", config()).expect("it opens");
    append(&journal, &queue, "c");
    assert_eq!(values(&receive(&journal, &payment)), [b"c"]);
    let dead = payment.dead_letters(0, 10).expect("they can be read");
    assert_eq!((dead.len(), dead[0].record.value.as_deref()), (1, Some(&b"b"[..])));
    let again = receive(&journal, &stock);
    assert_eq!(values(&again), [b"a", b"b", b"c"]);
    assert_eq!(again[0].deliveries, 2, "leases end with their process, counts do not");
}

#[tokio::test(start_paused = true)]
async fn a_group_is_open_once_and_belongs_to_one_topic() {
    let disk = CrashFiles::new(2);
    let (journal, queue) = open(&disk);
    let create = || queue.create_topic("orders", TopicConfig::partitions(1));
    now_or_work(&journal, create()).expect("it is created");
    let work = queue.work_queue("orders", 0, "g", config()).expect("it opens");
    let twice = queue.work_queue("orders", 0, "g", config());
    assert!(matches!(twice, Err(OpenError::Store(_))), "{twice:?}");
    let nowhere = queue.work_queue("orders", 1, "g", config());
    let Err(OpenError::Topic(error)) = nowhere else { panic!("{nowhere:?}") };
    assert_eq!(error.to_string(), "the topic \"orders\" has 1 partitions, and none with number 1");
    // The namespace is `shop.work.<n>.<group>`, of 64 bytes at most.
    for group in [String::new(), "g".repeat(53), "g".repeat(249)] {
        let named = queue.work_queue("orders", 0, &group, config());
        let expected = OpenError::InvalidGroup { group, limit: 52 };
        assert_eq!(named.map(drop), Err(expected));
    }
    queue.work_queue("orders", 0, &"g".repeat(52), config()).expect("it is short enough");
    append(&journal, &queue, "a");
    let first = receive(&journal, &work).remove(0);
    now_or_work(&journal, work.ack(&first.receipt)).expect("the lease runs");
    drop(work);

    // A topic of the same name has nothing in common with the one that was deleted.
    now_or_work(&journal, queue.delete_topic("orders")).expect("it is deleted");
    now_or_work(&journal, create()).expect("it is created");
    append(&journal, &queue, "b");
    let work = queue.work_queue("orders", 0, "g", config()).expect("it opens");
    assert_eq!(values(&receive(&journal, &work)), [b"b"]);
}

/// A receiver that waits, records in memory, and leases: none of them outlives the topic.
#[tokio::test(start_paused = true)]
async fn workers_of_a_deleted_topic_are_told() {
    let disk = CrashFiles::new(4);
    let (journal, queue) = open(&disk);
    let create = || queue.create_topic("orders", TopicConfig::partitions(1));
    now_or_work(&journal, create()).expect("it is created");
    let work = queue.work_queue("orders", 0, "g", config()).expect("it opens");
    for value in ["a", "b", "c"] {
        append(&journal, &queue, value);
    }
    let leased = now_or_work(&journal, work.receive(2, Duration::ZERO)).expect("it receives");
    assert_eq!((values(&leased), work.stats().records), (vec![&b"a"[..], b"b"], 3));
    // One without records, and without an end.
    let idle = queue.work_queue("orders", 0, "idle", config()).expect("it opens");
    let all = receive(&journal, &idle);
    let receipts: Vec<_> = all.iter().map(|delivery| delivery.receipt).collect();
    assert!(now_or_work(&journal, idle.ack_all(&receipts)).iter().all(Result::is_ok));
    let waiting = tokio::spawn({
        let idle = idle.clone();
        async move { idle.receive(10, Duration::MAX).await }
    });
    tokio::task::yield_now().await;
    assert_eq!(idle.stats().waiting, 1);

    now_or_work(&journal, queue.delete_topic("orders")).expect("it is deleted");
    now_or_work(&journal, create()).expect("it is created");
    append(&journal, &queue, "new");
    assert_eq!(waiting.await.expect("it ends"), Err(WorkError::Deleted));
    let deleted = Err(WorkError::Deleted);
    assert_eq!(work.receive(10, Duration::MAX).await, deleted, "\"c\" is gone");
    let receipt = &leased[0].receipt;
    let deleted = Err(WorkError::Deleted);
    assert_eq!(work.ack(receipt).await, deleted);
    assert_eq!(work.nack(receipt, None).await, deleted);
    assert_eq!(work.reject(receipt, "bad").await, deleted);
    assert_eq!(work.extend(receipt, Duration::from_secs(1)).await, deleted);
    drop((work, idle));
    let work = queue.work_queue("orders", 0, "g", config()).expect("it opens");
    assert_eq!(values(&receive(&journal, &work)), [b"new"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn workers_in_many_threads_do_each_record_once() {
    let mut config = voussoir_journal::Config::default();
    (config.segment_bytes, config.max_bytes) = (4 << 20, 64 << 20);
    let disk = CrashFiles::new(3);
    let journal = Journal::open_with(disk.mount(), config).expect("the journal opens");
    let queue = Queue::open(&journal, "shop", QueueConfig::default()).expect("the queue opens");
    let topic = queue.create_topic("orders", TopicConfig::partitions(1)).await;
    let orders = topic.and_then(|topic| topic.partition(0)).expect("a partition");
    let mut config = WorkConfig::default();
    (config.max_records, config.max_dead_letters) = (200, 100);
    let work = queue.work_queue("orders", 0, "g", config).expect("it opens");
    let worker = |work: WorkQueue| async move {
        let mut done = Vec::new();
        // Ends when nothing comes for a second.
        loop {
            let received = work.receive(7, Duration::from_secs(1)).await.expect("it receives");
            if received.is_empty() {
                return done;
            }
            let receipts: Vec<_> = received.iter().map(|delivery| delivery.receipt).collect();
            let results = work.ack_all(&receipts).await;
            assert!(results.iter().all(Result::is_ok), "{results:?}");
            done.extend(receipts.iter().map(voussoir_queue::work::Receipt::offset));
        }
    };
    let workers: Vec<_> = (0..8).map(|_| tokio::spawn(worker(work.clone()))).collect();
    for at in 0..2_000 {
        let appending = orders.append(one(&format!("{at}")), Durability::Synced);
        if at % 50 == 0 {
            appending.await.expect("it is appended");
        }
    }
    let mut done = Vec::new();
    for worker in workers {
        done.extend(worker.await.expect("it ends"));
    }
    done.sort_unstable();
    assert_eq!(done, (0..2_000).collect::<Vec<u64>>());
    assert_eq!((work.stats().floor, work.stats().expired), (2_000, 0));
}
