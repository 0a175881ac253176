//! Sagas beside a queue on one journal, in one namespace by mistake.

use std::sync::Arc;

use voussoir_journal::{Error, Journal, MemoryFiles};
use voussoir_queue::work::WorkConfig;
use voussoir_queue::{ProducerConfig, Queue, QueueConfig, Record, TopicConfig};
use voussoir_txn::idempotency::StoreKeys;
use voussoir_txn::store::JournalStore;
use voussoir_txn::{Saga, Sagas, Step, StepError};

fn journal(files: &Arc<MemoryFiles>) -> Journal {
    let files: Arc<MemoryFiles> = Arc::clone(files);
    Journal::open_with(files, voussoir_journal::Config::default()).expect("a journal")
}

fn saga() -> Saga<u64> {
    let saga = Saga::<u64>::define("one", 1);
    let act = |_, input: u64, ()| async move { Ok::<u64, StepError>(input) };
    let (saga, _) = saga.pivot(Step::new("pivot", (), act));
    saga.build().expect("a definition")
}

async fn open(journal: &Journal, namespace: &str) -> Result<Sagas, String> {
    let store = JournalStore::new(journal, namespace).map_err(|error| error.to_string())?;
    let sagas = Sagas::builder().register(&saga()).open(store).await;
    sagas.map_err(|error| error.to_string())
}

/// All logs of the journal, as they are.
fn logs(journal: &Journal) -> String {
    format!("{:#?}", journal.logs())
}

async fn fill(queue: &Queue) {
    let topic = queue.create_topic("orders", TopicConfig::default()).await.expect("a topic");
    let producer = queue.producer(ProducerConfig::default()).await.expect("a producer");
    for _ in 0..10 {
        producer.send(&topic, Record::new("x")).await.expect("it is sent");
    }
    let work = queue.work_queue("orders", 0, "g", WorkConfig::default()).expect("a work queue");
    let taken = work.receive(1, std::time::Duration::from_secs(1)).await.expect("records");
    for delivery in &taken {
        work.ack(&delivery.receipt).await.expect("it is settled");
    }
}

#[tokio::test]
async fn a_namespace_is_of_sagas_or_of_a_queue() {
    let journal = journal(&Arc::new(MemoryFiles::new()));
    let queue = Queue::open(&journal, "shop", QueueConfig::default()).expect("a queue");
    let refused = JournalStore::new(&journal, "shop").expect_err("the queue has it");
    assert!(matches!(&refused, Error::Leased { namespace } if namespace == "shop"), "{refused}");
    fill(&queue).await;
    let sagas = open(&journal, "sagas").await.expect("another namespace");
    let refused = Queue::open(&journal, "sagas", QueueConfig::default()).map(drop);
    let refused = refused.expect_err("the sagas have it").to_string();
    assert!(refused.contains("another user of the journal has the namespace \"sagas\""));
    let ended = sagas.start(&saga(), "s", &1).await;
    assert!(ended.is_err(), "the definition was built again");
}

#[tokio::test]
async fn sagas_leave_the_namespace_of_a_queue_as_it_is() {
    let files = Arc::new(MemoryFiles::new());
    {
        let journal = journal(&files);
        let queue = Queue::open(&journal, "shop", QueueConfig::default()).expect("a queue");
        fill(&queue).await;
        drop(queue);
        journal.close().expect("it closes");
    }
    let journal = journal(&files);
    let before = logs(&journal);
    let namespaces: Vec<String> =
        journal.logs().into_iter().map(|log| log.name.namespace).collect();
    assert!(namespaces.iter().any(|namespace| namespace != "shop"), "{namespaces:?}");
    for namespace in &namespaces {
        let refused = open(&journal, namespace).await.expect_err("it is a queue's");
        assert!(refused.contains("belongs to something else"), "{refused}");
        let store = JournalStore::new(&journal, namespace).expect("nobody has it");
        assert!(StoreKeys::open(store, 10).await.is_err(), "it is a queue's");
        assert_eq!(logs(&journal), before, "{namespace}");
    }
    let queue = Queue::open(&journal, "shop", QueueConfig::default()).expect("it is whole");
    let topic = queue.topic("orders").expect("its topic");
    assert_eq!(topic.partition(0).expect("its partition").offsets(), 0..10);
    queue.work_queue("orders", 0, "g", WorkConfig::default()).expect("its work queue is whole");
}

#[tokio::test]
async fn a_queue_leaves_the_namespace_of_sagas_as_it_is() {
    let files = Arc::new(MemoryFiles::new());
    for started in [0, 1] {
        let journal = journal(&files);
        let definition = saga();
        let store = JournalStore::new(&journal, "shop").expect("nobody has it");
        let sagas = Sagas::builder().register(&definition).open(store).await.expect("sagas open");
        for number in 0..started {
            let handle = sagas.start(&definition, "s", &number).await.expect("it starts");
            assert!(handle.end().await.expect("it ends").is_completed());
        }
        sagas.drain().await;
        drop(sagas);
        let before = logs(&journal);
        let refused = Queue::open(&journal, "shop", QueueConfig::default());
        assert!(refused.is_err(), "it is of sagas");
        assert_eq!(logs(&journal), before);
        let sagas = open(&journal, "shop").await.expect("they are whole");
        assert_eq!(sagas.list().len(), started as usize);
        sagas.drain().await;
        drop(sagas);
        journal.close().expect("it closes");
    }
}
