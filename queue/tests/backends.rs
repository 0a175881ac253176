//! The embedded queue as a back end, by the suite that every back end has to pass; and that the
//! suite finds what it is for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use voussoir_journal::files::crash::Op;
use voussoir_journal::testing::HookedFiles;
use voussoir_journal::{Journal, MemoryFiles};
use voussoir_queue::backend::*;
use voussoir_queue::testing::{conformance, some_checks};
use voussoir_queue::{Outcome, Queue, QueueConfig, Record, async_trait};

fn embedded() -> Arc<Embedded> {
    let journal =
        Journal::open_with(Arc::new(MemoryFiles::new()), voussoir_journal::Config::default());
    let queue = Queue::open(&journal.expect("a journal"), "q", QueueConfig::default());
    Arc::new(Embedded::new(queue.expect("a queue")))
}

#[tokio::test]
async fn the_embedded_queue_conforms() {
    let report = conformance(embedded(), "suite").await;
    report.assert_passed();
    assert_eq!(report.refused, ["delivery_counts", "message_ids"]);
}

/// A defect of a back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Defect {
    CommitsNothing,
    CommitsByPolling,
    SendsTwice,
    DropsHeaders,
    IgnoresKeys,
    RewindsNothing,
    AnswersEarly,
    LosesDroppedPolls,
    SendsRefusedResults,
    SaysUnknown,
    CreatesAnything,
    ReturnsTooMany,
    BeginsAgain,
    HearsOnlyWhileItWaits,
    KeepsGroups,
}

/// Which check finds it. Others may, too.
const FOUND_BY: [(Defect, &str); 15] = [
    (Defect::CommitsNothing, "commits_hold"),
    (Defect::CommitsByPolling, "uncommitted_records_come_again"),
    (Defect::SendsTwice, "positions_rise"),
    (Defect::DropsHeaders, "records_come_back"),
    (Defect::IgnoresKeys, "positions_rise"),
    (Defect::RewindsNothing, "a_rewind_goes_back"),
    (Defect::AnswersEarly, "a_poll_waits_and_is_woken"),
    (Defect::LosesDroppedPolls, "a_dropped_poll_loses_nothing"),
    (Defect::SendsRefusedResults, "exactly_once"),
    (Defect::SaysUnknown, "unknown_topics"),
    (Defect::CreatesAnything, "topics_are_created_once"),
    (Defect::ReturnsTooMany, "members_share"),
    (Defect::BeginsAgain, "a_group_begins_once"),
    (Defect::HearsOnlyWhileItWaits, "a_poll_need_not_wait"),
    (Defect::KeepsGroups, "deleted_groups"),
];

/// The embedded queue with a defect.
#[derive(Debug)]
struct Faulty(Arc<Embedded>, Defect);

#[derive(Debug)]
struct FaultyProducer(Arc<dyn Producer>, Defect);

#[derive(Debug)]
struct FaultyConsumer {
    inner: Box<dyn Consumer>,
    producer: Arc<dyn Producer>,
    defect: Defect,
}

#[async_trait]
impl Backend for Faulty {
    fn name(&self) -> &'static str {
        "a faulty queue"
    }

    fn provides(&self, need: Need) -> Result<(), Refused> {
        self.0.provides(need)
    }

    async fn create_topic(&self, topic: &str, partitions: u32) -> Result<(), BackendError> {
        match self.0.create_topic(topic, partitions).await {
            Err(BackendError::Mismatch { .. }) if self.1 == Defect::CreatesAnything => Ok(()),
            answer => answer,
        }
    }

    async fn producer(&self) -> Result<Arc<dyn Producer>, BackendError> {
        Ok(Arc::new(FaultyProducer(self.0.producer().await?, self.1)))
    }

    async fn consumer(
        &self,
        mut subscription: Subscription,
    ) -> Result<Box<dyn Consumer>, BackendError> {
        if self.1 == Defect::ReturnsTooMany {
            subscription.max_poll_records += 1;
        }
        if self.1 == Defect::BeginsAgain {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            // Of a group of its own: nothing is stored for that.
            subscription.group += &NEXT.fetch_add(1, Relaxed).to_string();
        }
        let inner = self.0.consumer(subscription).await?;
        let producer = self.0.producer().await?;
        Ok(Box::new(FaultyConsumer { inner, producer, defect: self.1 }))
    }

    async fn delete_group(&self, group: &str) -> Result<(), BackendError> {
        if self.1 == Defect::KeepsGroups { Ok(()) } else { self.0.delete_group(group).await }
    }
}

#[async_trait]
impl Producer for FaultyProducer {
    async fn send(
        &self,
        topic: &str,
        mut records: Vec<Record>,
    ) -> Vec<Result<Position, BackendError>> {
        for record in &mut records {
            match self.1 {
                Defect::DropsHeaders => record.headers.clear(),
                Defect::IgnoresKeys => record.key = record.key.take().map(|_| "one".into()),
                _ => {}
            }
        }
        if self.1 == Defect::SendsTwice {
            self.0.send(topic, records.clone()).await;
        }
        let mut answers = self.0.send(topic, records).await;
        if self.1 == Defect::SaysUnknown {
            for answer in answers.iter_mut().filter(|answer| answer.is_err()) {
                *answer = Err(BackendError::Unknown { why: "it failed".to_owned() });
            }
        }
        answers
    }
}

#[async_trait]
impl Consumer for FaultyConsumer {
    async fn poll(&mut self, max_wait: Duration) -> Result<Vec<Received>, BackendError> {
        if self.defect == Defect::HearsOnlyWhileItWaits && max_wait.is_zero() {
            return Ok(Vec::new());
        }
        let max_wait = if self.defect == Defect::AnswersEarly { Duration::ZERO } else { max_wait };
        let polled = self.inner.poll(max_wait).await?;
        match self.defect {
            Defect::CommitsByPolling => self.inner.commit().await?,
            Defect::LosesDroppedPolls => tokio::time::sleep(Duration::from_millis(2)).await,
            _ => {}
        }
        Ok(polled)
    }

    async fn commit(&mut self) -> Result<(), BackendError> {
        if self.defect == Defect::CommitsNothing { Ok(()) } else { self.inner.commit().await }
    }

    async fn commit_with(&mut self, outputs: Vec<Output>) -> Result<(), BackendError> {
        if self.defect == Defect::SendsRefusedResults {
            for output in outputs {
                self.producer.send_one(&output.topic, output.record).await?;
            }
            return self.inner.commit_with(Vec::new()).await;
        }
        self.inner.commit_with(outputs).await
    }

    async fn rewind(&mut self) -> Result<(), BackendError> {
        if self.defect == Defect::RewindsNothing { Ok(()) } else { self.inner.rewind().await }
    }

    async fn close(self: Box<Self>) -> Result<(), BackendError> {
        self.inner.close().await
    }
}

#[tokio::test]
async fn the_suite_finds_each_defect() {
    let mut runs = tokio::task::JoinSet::new();
    for (defect, check) in FOUND_BY {
        runs.spawn(async move {
            // The second one passes: what fails is the defect, not the queue.
            let other = match check {
                "unknown_topics" => "topics_are_created_once",
                _ => "unknown_topics",
            };
            let checks = [check, other];
            let faulty = Arc::new(Faulty(embedded(), defect));
            let report = some_checks(faulty, "suite", &checks).await;
            let failed: Vec<_> = report.failed.iter().map(|(name, _)| *name).collect();
            assert_eq!(failed, [check], "{defect:?}: {report:?}");
        });
    }
    while let Some(ended) = runs.join_next().await {
        ended.expect("the defect is found");
    }
}

/// A member that is made to give up a partition whose records it has not committed makes nothing of
/// them: the member that was given the partition does.
#[tokio::test]
async fn results_of_records_that_moved_to_another_member_are_not_stored() {
    const MS: Duration = Duration::from_millis(1);
    let backend: Arc<dyn Backend> = embedded();
    for topic in ["in", "out"] {
        backend.create_topic(topic, 2).await.expect("a topic");
    }
    let producer = backend.producer().await.expect("a producer");
    let records =
        (0..20).map(|number: u32| Record::new(number.to_string()).key(number.to_string()));
    assert!(producer.send("in", records.collect()).await.iter().all(Result::is_ok));
    let subscription = Subscription::new("movers", ["in"]).delivery(Delivery::ExactlyOnce);
    let mut slow = backend.consumer(subscription.clone()).await.expect("a member");
    let held = slow.poll(1_000 * MS).await.expect("it works");
    assert_eq!(held.len(), 20);
    let copies = |held: &[Received]| {
        held.iter().map(|read| Output::new("out", read.record.clone())).collect::<Vec<_>>()
    };
    let mut other = backend.consumer(subscription).await.expect("a member");
    let (mut moved, mut rounds) = (0, 0);
    while moved == 0 {
        rounds += 1;
        assert!(rounds < 100, "the other member is never given a partition");
        // It goes on, rather than to commit first as it is given time to.
        assert_eq!(slow.poll(20 * MS).await.expect("it works"), []);
        let came = other.poll(20 * MS).await.expect("it works");
        moved += came.len();
        other.commit_with(copies(&came)).await.expect("they are its own");
    }
    let error = slow.commit_with(copies(&held)).await.expect_err("some are another member's");
    assert!(matches!(error, BackendError::Lost { .. }), "{error}");
    while moved < 20 {
        rounds += 1;
        assert!(rounds < 100, "{moved} of 20 were moved");
        for member in [&mut slow, &mut other] {
            let came = member.poll(20 * MS).await.expect("it works");
            moved += came.len();
            member.commit_with(copies(&came)).await.expect("they are its own");
        }
    }
    let mut reader = backend.consumer(Subscription::new("readers", ["out"])).await.expect("one");
    let mut values: Vec<u32> = Vec::new();
    let mut came = reader.poll(1_000 * MS).await.expect("it works");
    // Ends: at the end of the topic.
    while !came.is_empty() {
        let value = |read: &Received| -> Option<u32> {
            std::str::from_utf8(read.record.value.as_deref()?).ok()?.parse().ok()
        };
        values.extend(came.iter().filter_map(value));
        came = reader.poll(200 * MS).await.expect("it works");
    }
    values.sort_unstable();
    assert_eq!(values, (0..20).collect::<Vec<_>>(), "each was moved once");
}

/// When the disk fails under a send, nobody knows whether the record is there; when it had failed
/// before, it is not. A commit says the same.
#[tokio::test]
async fn a_failed_disk_is_an_unknown_outcome() {
    let fails = Arc::new(AtomicBool::new(false));
    let files = {
        let fails = Arc::clone(&fails);
        HookedFiles::new(Arc::new(MemoryFiles::new()), move |call| match call.op {
            // The first, in which all of this is written. Another one may be prepared meanwhile,
            // and the journal would have failed before the commit.
            Op::Sync if call.name == "segment-00000000" && fails.load(Relaxed) => {
                Err(std::io::Error::other("broken"))
            }
            _ => Ok(()),
        })
    };
    let mut config = voussoir_journal::Config::default();
    // Else the journal may sync by itself, and have failed before the commit.
    config.idle_mark = Duration::from_secs(3600);
    let journal = Journal::open_with(Arc::new(files), config);
    let queue = Queue::open(&journal.expect("a journal"), "q", QueueConfig::default());
    let backend: Arc<dyn Backend> = Arc::new(Embedded::new(queue.expect("a queue")));
    backend.create_topic("t", 1).await.expect("a topic");
    let producer = backend.producer().await.expect("a producer");
    producer.send_one("t", Record::new("1")).await.expect("it is stored");
    let subscription = Subscription::new("g", ["t"]).delivery(Delivery::ExactlyOnce);
    let mut consumer = backend.consumer(subscription).await.expect("a consumer");
    while consumer.poll(Duration::from_millis(100)).await.expect("it works").is_empty() {}
    fails.store(true, Relaxed);
    let output = Output::new("t", Record::new("2"));
    let error = consumer.commit_with(vec![output]).await.expect_err("the disk fails");
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    let error = producer.send_one("t", Record::new("3")).await.expect_err("it has failed");
    assert_eq!((error.outcome(), error.is_retryable()), (Outcome::NotApplied, false), "{error}");
}
