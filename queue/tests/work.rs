//! Work queues as their users see them: workers, leases, dead letters, restarts.

mod support;

use std::time::Duration;

use support::{batch, poll};
use tokio::time::{Instant, advance};
use voussoir_queue::format::MAX_BATCH_BYTES;
use voussoir_queue::store::{Done, MemoryPartition};
use voussoir_queue::work::{
    Clock, DeathReason, Delivery, MemoryWork, StoredLetter, TokioClock, WorkConfig, WorkError,
    WorkQueue, WorkStore, WorkWrite,
};
use voussoir_queue::{
    BatchBuilder, Bytes, Config, Durability, OpenError, Outcome, Partition, Record, StoreError,
};

const NO_WAIT: Duration = Duration::ZERO;
const SECOND: Duration = Duration::from_secs(1);

fn config() -> WorkConfig {
    let mut config = WorkConfig::default();
    config.visibility_timeout = Duration::from_secs(10);
    config.max_deliveries = 3;
    config.min_backoff = SECOND;
    config.max_backoff = Duration::from_secs(8);
    config
}

fn source() -> Partition {
    Partition::open(MemoryPartition::new(64 << 20), Config::default()).expect("it opens")
}

fn open(source: &Partition, store: &MemoryWork, config: WorkConfig) -> WorkQueue {
    WorkQueue::open(source.clone(), store.clone(), config).expect("the work queue opens")
}

async fn append(source: &Partition, records: &[Record]) {
    source.append(batch(records, None), Durability::Synced).await.expect("it is appended");
}

async fn receive(work: &WorkQueue, max: usize) -> Vec<Delivery> {
    work.receive(max, NO_WAIT).await.expect("it receives")
}

fn text(delivery: &Delivery) -> &str {
    let value = delivery.record.value.as_deref().unwrap_or_default();
    std::str::from_utf8(value).expect("text")
}

fn texts(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(text).collect()
}

#[tokio::test(start_paused = true)]
async fn a_record_is_delivered_until_it_is_acknowledged() {
    let (source, store) = (source(), MemoryWork::new());
    let work = open(&source, &store, config());
    append(&source, &[Record::new("a"), Record::new("b")]).await;
    let first = receive(&work, 10).await;
    assert_eq!(texts(&first), ["a", "b"]);
    assert!(receive(&work, 10).await.is_empty(), "leased records are nobody else's");
    work.ack(&first[0].receipt).await.expect("the lease runs");
    work.nack(&first[1].receipt, Some(3 * SECOND)).await.expect("the lease runs");
    assert_eq!(work.stats().floor, 1);

    let before = Instant::now();
    let again = work.receive(10, 60 * SECOND).await.expect("it receives");
    assert_eq!((texts(&again), again[0].deliveries), (vec!["b"], 2));
    assert_eq!(before.elapsed().as_secs(), 3, "the delay is over, and wakes the receiver");
    work.ack(&again[0].receipt).await.expect("the lease runs");
    assert_eq!((work.stats().floor, work.stats().lag), (2, 0));
}

/// localstack#12278, spring-cloud-aws#196: an expired receipt settles nothing.
#[tokio::test(start_paused = true)]
async fn a_receipt_that_has_expired_is_a_typed_error() {
    let (source, store) = (source(), MemoryWork::new());
    let work = open(&source, &store, config());
    append(&source, &[Record::new("a")]).await;
    let late = receive(&work, 1).await.remove(0).receipt;
    advance(10 * SECOND).await;
    let lost = Err(WorkError::LeaseLost { offset: 0 });
    assert_eq!(work.ack(&late).await, lost);
    assert_eq!(work.nack(&late, None).await, lost);
    assert_eq!(work.extend(&late, SECOND).await, lost);
    assert_eq!(work.reject(&late, "no").await, lost);
    let again = work.receive(1, 60 * SECOND).await.expect("it receives").remove(0);
    assert_eq!(work.ack(&late).await, lost, "another worker has it now");
    work.ack(&again.receipt).await.expect("the lease runs");
    assert_eq!(work.ack(&again.receipt).await, lost, "it is settled");
    assert_eq!(WorkError::LeaseLost { offset: 0 }.outcome(), Outcome::NotApplied);
}

/// spring-cloud-aws#196: the rest of a batch must not expire while its first record is worked on.
#[tokio::test(start_paused = true)]
async fn the_leases_of_a_batch_are_extended_together() {
    let (source, store) = (source(), MemoryWork::new());
    let work = open(&source, &store, config());
    append(&source, &[Record::new("a"), Record::new("b"), Record::new("c")]).await;
    let batch = receive(&work, 3).await;
    for _ in 0..5 {
        advance(9 * SECOND).await;
        work.extend(&batch[0].receipt, 10 * SECOND).await.expect("the lease runs");
    }
    let receipts: Vec<_> = batch.iter().map(|delivery| delivery.receipt).collect();
    assert_eq!(work.ack_all(&receipts).await, [Ok(()), Ok(()), Ok(())]);
    assert_eq!((work.stats().floor, work.stats().expired), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_delay_beyond_the_longest_is_refused_and_the_lease_goes_on() {
    let (source, store) = (source(), MemoryWork::new());
    let mut config = config();
    config.max_delay = 60 * SECOND;
    let work = open(&source, &store, config);
    append(&source, &[Record::new("a")]).await;
    let receipt = receive(&work, 1).await.remove(0).receipt;
    for too_long in [60 * SECOND + Duration::from_nanos(1), Duration::MAX] {
        assert_eq!(work.nack(&receipt, Some(too_long)).await, Err(WorkError::DelayTooLong));
    }
    assert!(receive(&work, 1).await.is_empty(), "it is leased");
    work.nack(&receipt, Some(60 * SECOND)).await.expect("the lease runs");
    advance(59 * SECOND).await;
    assert!(receive(&work, 1).await.is_empty());
    assert_eq!(work.receive(1, 2 * SECOND).await.expect("it receives").len(), 1);
}

/// kafka#20286, #21092: counts are raised at delivery, so a record that kills its process ends.
#[tokio::test(start_paused = true)]
async fn a_record_that_crashes_its_process_becomes_a_dead_letter() {
    let (source, store) = (source(), MemoryWork::new());
    append(&source, &[Record::new("poison"), Record::new("good")]).await;
    for life in 1..=3 {
        let work = open(&source, &store, config());
        let first = receive(&work, 1).await.remove(0);
        assert_eq!((text(&first), first.deliveries), ("poison", life));
        // The process dies with the record in its hands.
    }
    let work = open(&source, &store, config());
    let next = receive(&work, 1).await.remove(0);
    assert_eq!(text(&next), "good");
    let dead = work.dead_letters(0, 10).expect("they can be read");
    assert_eq!(
        (dead.len(), dead[0].deliveries, &dead[0].reason),
        (1, 3, &DeathReason::MaxDeliveries)
    );
}

/// pulsar#23181: the copy has everything of the record.
#[tokio::test(start_paused = true)]
async fn a_dead_letter_has_key_headers_timestamp_and_origin() {
    let (source, store) = (source(), MemoryWork::new());
    let work = open(&source, &store, config());
    append(&source, &[Record::new("filler")]).await;
    let record = Record::new("bad").key("ada").timestamp(17).header("trace", "x-1");
    append(&source, std::slice::from_ref(&record)).await;
    let both = receive(&work, 2).await;
    work.reject(&both[1].receipt, "no such customer").await.expect("the lease runs");
    drop(work);
    let work = open(&source, &store, config());
    let letter = work.dead_letters(0, 10).expect("they can be read").remove(0);
    let mut expected = record;
    expected.offset = 1;
    assert_eq!(letter.record, expected);
    let why = "no such customer".to_owned();
    assert_eq!(
        (letter.id, letter.deliveries, letter.reason),
        (0, 1, DeathReason::Rejected { why })
    );
    assert!(letter.died_at > 1_600_000_000_000_000_000, "ns since 1970");
}

/// celery#9867: a dead letter that dies again is the same dead letter, and never a second copy.
#[tokio::test(start_paused = true)]
async fn a_redriven_dead_letter_cannot_go_round_in_a_circle() {
    let (source, store) = (source(), MemoryWork::new());
    let work = open(&source, &store, config());
    append(&source, &[Record::new("poison").key("k")]).await;
    let first = receive(&work, 1).await.remove(0);
    work.reject(&first.receipt, "broken").await.expect("the lease runs");
    for _ in 0..4 {
        work.redrive(0).await.expect("it is listed");
        assert_eq!(work.redrive(0).await, Err(WorkError::NoDeadLetter { id: 0 }), "only once");
        assert_eq!(work.purge(0).await, Err(WorkError::NoDeadLetter { id: 0 }), "not now");
        for deliveries in 1..=3 {
            let again = work.receive(1, 60 * SECOND).await.expect("it receives").remove(0);
            assert_eq!((again.deliveries, again.receipt.offset()), (deliveries, 0));
            work.nack(&again.receipt, None).await.expect("the lease runs");
        }
        assert_eq!((work.stats().dead_letters, store.letters()), (1, 0..1));
    }
    // In another process, the redrive goes on where it was.
    work.redrive(0).await.expect("it is listed");
    drop(work);
    let work = open(&source, &store, config());
    let again = receive(&work, 1).await.remove(0);
    assert_eq!((text(&again), again.deliveries), ("poison", 1));
    work.ack(&again.receipt).await.expect("the lease runs");
    assert_eq!(work.dead_letters(0, 10), Ok(Vec::new()));
    assert_eq!(work.purge(0).await, Err(WorkError::NoDeadLetter { id: 0 }));
}

/// rabbitmq#5312: as many dead letters as there is room for, and nothing lost beyond.
#[tokio::test(start_paused = true)]
async fn dead_letters_are_bounded_and_none_is_lost() {
    let (source, store) = (source(), MemoryWork::new());
    let mut config = config();
    (config.max_deliveries, config.max_dead_letters) = (1, 2);
    let work = open(&source, &store, config);
    let records: Vec<Record> = (0..5).map(|at| Record::new(format!("r{at}"))).collect();
    append(&source, &records).await;
    let all = receive(&work, 5).await;
    for delivery in &all[..4] {
        work.nack(&delivery.receipt, None).await.expect("the lease runs");
    }
    let refused = work.reject(&all[4].receipt, "bad").await;
    assert_eq!(refused, Err(WorkError::DeadLettersFull { limit: 2 }));
    let stats = work.stats();
    assert_eq!((stats.dead_letters, stats.dying, stats.leased), (2, 2, 1));
    work.ack(&all[4].receipt).await.expect("its lease goes on");
    for id in 0..4 {
        work.purge(id).await.expect("it is listed");
    }
    assert_eq!((work.stats().floor, work.stats().died, work.stats().dead_letters), (5, 4, 0));
}

#[tokio::test(start_paused = true)]
async fn the_largest_record_can_become_a_dead_letter() {
    let (source, store) = (source(), MemoryWork::new());
    let work = open(&source, &store, config());
    let fits = |bytes: &usize| BatchBuilder::new().has_room(&Record::new("x".repeat(*bytes)));
    let largest = (MAX_BATCH_BYTES - 100..MAX_BATCH_BYTES).rev().find(fits).expect("a size");
    append(&source, &[Record::new("x".repeat(largest))]).await;
    let delivery = receive(&work, 1).await.remove(0);
    work.reject(&delivery.receipt, &"y".repeat(2_000)).await.expect("there is room");
    let letter = work.dead_letters(0, 1).expect("it can be read").remove(0);
    assert_eq!(letter.record.value.map(|value| value.len()), Some(largest));
    assert_eq!(letter.reason, DeathReason::Rejected { why: "y".repeat(1_024) });
}

/// pulsar#26236, #15397: a due record is delivered though nothing else happens.
#[tokio::test(start_paused = true)]
async fn a_scheduled_record_is_delivered_at_its_time() {
    let (source, store) = (source(), MemoryWork::new());
    let work = open(&source, &store, config());
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now_ms = now_ms.expect("after 1970").as_millis() as u64;
    let far = 40 * 24 * 3_600_000;
    let records = [
        Record::new("later").deliver_at(now_ms + 5_000),
        Record::new("never").deliver_at(now_ms + far),
        Record::new("now").header(voussoir_queue::work::DELIVER_AT, "soon"),
    ];
    append(&source, &records).await;
    assert_eq!(texts(&receive(&work, 10).await), ["now"]);
    let begun = Instant::now();
    let later = work.receive(10, 60 * SECOND).await.expect("it receives");
    assert_eq!(texts(&later), ["later"]);
    assert!((4..=6).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let dead = work.dead_letters(0, 10).expect("they can be read").remove(0);
    assert_eq!((dead.reason, dead.deliveries), (DeathReason::ScheduledTooLate, 0));
}

/// A letter that was scheduled too late is delivered by its redrive: that is the order to.
#[tokio::test(start_paused = true)]
async fn a_redrive_does_not_wait_for_the_schedule_of_the_record() {
    let (source, store) = (source(), MemoryWork::new());
    let work = open(&source, &store, config());
    append(&source, &[Record::new("far").deliver_at(u64::MAX)]).await;
    assert!(receive(&work, 1).await.is_empty());
    work.redrive(0).await.expect("it is listed");
    assert_eq!(texts(&receive(&work, 1).await), ["far"]);
    // Also when another process goes on with the redrive before the first delivery.
    let store = MemoryWork::new();
    let work = open(&source, &store, config());
    assert!(receive(&work, 1).await.is_empty());
    work.redrive(0).await.expect("it is listed");
    drop(work);
    let work = open(&source, &store, config());
    assert_eq!(texts(&receive(&work, 1).await), ["far"]);
}

/// A clock whose time of day was set after it was made.
struct SetClock {
    inner: TokioClock,
    wall: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl Clock for SetClock {
    fn now(&self) -> u64 {
        self.inner.now()
    }

    fn wall(&self) -> u64 {
        self.wall.load(std::sync::atomic::Ordering::Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn a_schedule_means_the_time_of_day_at_which_its_record_is_read() {
    let (source, store) = (source(), MemoryWork::new());
    let inner = TokioClock::new();
    let ms = inner.now() / 1_000_000;
    let hour = 3_600_000;
    let wall = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let clock = SetClock { inner, wall: std::sync::Arc::clone(&wall) };
    let work = WorkQueue::open_with_clock(source.clone(), store, config(), clock);
    let work = work.expect("it opens");
    // The time of day was set an hour back, and then an hour ahead, of the clock of the leases.
    for (set, value) in [(ms - hour, "back"), (ms + hour, "ahead")] {
        wall.store(set * 1_000_000, std::sync::atomic::Ordering::Relaxed);
        append(&source, &[Record::new(value).deliver_at(set + 5_000)]).await;
        assert!(receive(&work, 1).await.is_empty(), "{value}");
        let begun = Instant::now();
        let later = work.receive(1, 60 * SECOND).await.expect("it receives");
        assert_eq!((texts(&later), begun.elapsed().as_secs()), (vec![value], 5));
    }
}

/// pulsar#10762, #7553: per-key order holds through redelivery; other keys go on.
#[tokio::test(start_paused = true)]
async fn a_key_has_one_owner_until_its_acknowledgement() {
    let (source, store) = (source(), MemoryWork::new());
    let work = open(&source, &store, config());
    let record = |value: &str, key: &str| Record::new(value.to_owned()).key(key.to_owned());
    append(&source, &[record("a1", "a"), record("a2", "a"), record("b1", "b")]).await;
    let first = receive(&work, 10).await;
    assert_eq!(texts(&first), ["a1", "b1"]);
    work.nack(&first[0].receipt, Some(5 * SECOND)).await.expect("the lease runs");
    work.ack(&first[1].receipt).await.expect("the lease runs");
    append(&source, &[record("b2", "b"), Record::new("free")]).await;
    assert_eq!(texts(&receive(&work, 10).await), ["b2", "free"], "a2 waits behind a1");
    let again = work.receive(10, 60 * SECOND).await.expect("it receives");
    assert_eq!(texts(&again), ["a1"]);
    work.ack(&again[0].receipt).await.expect("the lease runs");
    assert_eq!(texts(&receive(&work, 10).await), ["a2"]);

    let mut config = config();
    config.ordered_keys = false;
    let work = open(&source, &MemoryWork::new(), config);
    assert_eq!(texts(&receive(&work, 10).await), ["a1", "a2", "b1", "b2", "free"]);
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_dropped_gives_its_records_back_uncounted() {
    let (source, store) = (source(), HeldStore::default());
    let work = WorkQueue::open(source.clone(), store.clone(), config()).expect("it opens");
    append(&source, &[Record::new("a")]).await;
    for _ in 0..10 {
        // Dropped while its delivery is being written.
        let mut receiving = Box::pin(work.receive(1, 60 * SECOND));
        assert!(poll(&mut receiving).is_none());
        drop(receiving);
        store.answer_all(&Ok(()));
        // Dropped after the delivery has been written, and before it was polled.
        let mut receiving = Box::pin(work.receive(1, 60 * SECOND));
        assert!(poll(&mut receiving).is_none());
        store.answer_all(&Ok(()));
        drop(receiving);
        store.answer_all(&Ok(()));
    }
    let mut receiving = Box::pin(work.receive(1, 60 * SECOND));
    assert!(poll(&mut receiving).is_none());
    store.answer_all(&Ok(()));
    let delivery = poll(&mut receiving).expect("it is written").expect("it receives").remove(0);
    assert_eq!((text(&delivery), delivery.deliveries), ("a", 1));
    // A receiver that waited and was dropped takes nothing.
    drop(Box::pin(work.receive(1, 60 * SECOND)));
    assert_eq!((work.stats().waiting, work.stats().leased), (0, 1));
}

/// A store that is full when the return is written does not make the delivery count.
#[tokio::test(start_paused = true)]
async fn a_record_that_nobody_got_does_not_die_when_its_return_fails() {
    let (source, store) = (source(), HeldStore::default());
    let mut config = config();
    config.max_deliveries = 1;
    let work = WorkQueue::open(source.clone(), store.clone(), config).expect("it opens");
    append(&source, &[Record::new("a"), Record::new("b")]).await;
    let mut receiving = Box::pin(work.receive(2, 60 * SECOND));
    assert!(poll(&mut receiving).is_none());
    drop(receiving);
    store.answer_first(Ok(()));
    for _ in 0..3 {
        assert!(!store.is_idle(), "the return is being written");
        store.answer_first(Err(StoreError::Full { why: "test".into() }));
        assert!(store.is_idle(), "it pauses");
        advance(SECOND).await;
        work.stats();
    }
    store.answer_all(&Ok(()));
    let mut receiving = Box::pin(work.receive(2, 60 * SECOND));
    assert!(poll(&mut receiving).is_none());
    store.answer_all(&Ok(()));
    let both = poll(&mut receiving).expect("it is written").expect("it receives");
    assert_eq!((texts(&both), both[0].deliveries), (vec!["a", "b"], 1));
    assert_eq!(work.stats().died, 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_handed_out_or_settled_before_it_is_durable() {
    let (source, store) = (source(), HeldStore::default());
    let work = WorkQueue::open(source.clone(), store.clone(), config()).expect("it opens");
    append(&source, &[Record::new("a"), Record::new("b")]).await;
    let mut receiving = Box::pin(work.receive(2, NO_WAIT));
    assert!(poll(&mut receiving).is_none(), "the count is not durable");
    advance(SECOND).await;
    assert!(poll(&mut receiving).is_none(), "a write is waited for beyond max_wait");
    store.answer_all(&Ok(()));
    let both = receiving.await.expect("it receives");
    let mut acking = Box::pin(work.ack(&both[0].receipt));
    assert!(poll(&mut acking).is_none());
    assert_eq!(work.stats().floor, 0);
    // The lease ends while the acknowledgement is being written: it was in time.
    advance(20 * SECOND).await;
    assert_eq!(work.stats().expired, 1);
    store.answer_all(&Ok(()));
    assert_eq!((acking.await, work.stats().floor), (Ok(()), 1));
}

#[tokio::test(start_paused = true)]
async fn a_full_store_changes_nothing_and_a_failed_one_stops() {
    let (source, store) = (source(), HeldStore::default());
    let work = WorkQueue::open(source.clone(), store.clone(), config()).expect("it opens");
    append(&source, &[Record::new("a")]).await;
    let full = Err(StoreError::Full { why: "test".into() });
    let mut receiving = Box::pin(work.receive(1, NO_WAIT));
    assert!(poll(&mut receiving).is_none());
    store.answer_all(&full);
    let error = receiving.await.expect_err("the store is full");
    assert!(error.is_retryable() && error.outcome() == Outcome::NotApplied, "{error}");

    // It tries again by itself after a pause.
    let mut receiving = Box::pin(work.receive(1, 60 * SECOND));
    assert!(poll(&mut receiving).is_none() && store.is_idle());
    tokio::time::sleep(SECOND).await;
    assert!(!store.is_idle());
    store.answer_all(&Ok(()));
    let first = receiving.await.expect("it receives").remove(0);
    assert_eq!(first.deliveries, 1, "the delivery that was not written does not count");
    let mut acking = Box::pin(work.ack(&first.receipt));
    assert!(poll(&mut acking).is_none());
    store.answer_all(&full);
    assert!(acking.await.expect_err("the store is full").is_retryable());

    advance(SECOND).await;
    let mut acking = Box::pin(work.ack(&first.receipt));
    assert!(poll(&mut acking).is_none(), "the lease goes on");
    let mut waiting = Box::pin(work.receive(1, 60 * SECOND));
    assert!(poll(&mut waiting).is_none());
    store.answer_all(&Err(StoreError::Failed { why: "test".into() }));
    assert_eq!(acking.await.expect_err("it failed").outcome(), Outcome::Unknown);
    assert!(matches!(waiting.await, Err(WorkError::Store(StoreError::Stopped { .. }))));
    let error = work.receive(1, NO_WAIT).await.expect_err("it has stopped");
    assert!(!error.is_retryable());
}

#[tokio::test(start_paused = true)]
async fn a_stopped_worker_bounds_the_memory() {
    let (source, store) = (source(), MemoryWork::new());
    let mut config = config();
    (config.max_records, config.max_bytes) = (100, 20_000);
    let work = open(&source, &store, config);
    for _ in 0..50 {
        let records: Vec<Record> = (0..100).map(|_| Record::new("x".repeat(200))).collect();
        append(&source, &records).await;
    }
    let held = receive(&work, 1_000).await;
    let stats = work.stats();
    assert!(held.len() < 100 && stats.records <= 100 && stats.bytes < 25_000, "{stats:?}");
    assert!(receive(&work, 1_000).await.is_empty(), "nothing is read beyond");
    let receipts: Vec<_> = held.iter().map(|delivery| delivery.receipt).collect();
    assert!(work.ack_all(&receipts).await.iter().all(Result::is_ok));
    assert_eq!(receive(&work, 1_000).await[0].record.offset, held.len() as u64);
}

/// nats-server#3996: acknowledgements beyond the end of the stream are damage, and reported.
#[tokio::test(start_paused = true)]
async fn a_floor_beyond_the_source_is_damage() {
    let (full, store) = (source(), MemoryWork::new());
    append(&full, &[Record::new("a"), Record::new("b")]).await;
    let work = open(&full, &store, config());
    for delivery in receive(&work, 2).await {
        work.ack(&delivery.receipt).await.expect("the lease runs");
    }
    drop(work);
    let error = WorkQueue::open(source(), store, config()).expect_err("records are lost");
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn records_that_retention_took_are_skipped_and_counted() {
    let (source, store) = (source(), MemoryWork::new());
    let work = open(&source, &store, config());
    for value in ["a", "b", "c"] {
        append(&source, &[Record::new(value)]).await;
    }
    source.release_before(2).await.expect("it is released");
    let rest = receive(&work, 10).await;
    assert_eq!(texts(&rest), ["c"]);
    assert_eq!((work.stats().skipped, work.stats().floor), (2, 2));
    work.ack(&rest[0].receipt).await.expect("the lease runs");
    assert_eq!(work.stats().floor, 3);
}

#[tokio::test(start_paused = true)]
async fn many_workers_share_the_records_and_each_is_done_once() {
    let (source, store) = (source(), MemoryWork::new());
    let work = open(&source, &store, config());
    let worker = |work: WorkQueue| async move {
        let mut done = Vec::new();
        loop {
            let deliveries = work.receive(3, 5 * SECOND).await.expect("it receives");
            if deliveries.is_empty() {
                return done;
            }
            for delivery in deliveries {
                tokio::time::sleep(Duration::from_millis(10)).await;
                work.ack(&delivery.receipt).await.expect("the lease runs");
                done.push(delivery.record.offset);
            }
        }
    };
    let workers: Vec<_> = (0..8).map(|_| tokio::spawn(worker(work.clone()))).collect();
    for at in 0..200 {
        append(&source, &[Record::new(format!("{at}"))]).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let mut done = Vec::new();
    for worker in workers {
        let part = worker.await.expect("it ends");
        assert!(!part.is_empty(), "a worker got nothing");
        done.extend(part);
    }
    done.sort_unstable();
    assert_eq!(done, (0..200).collect::<Vec<u64>>());
}

#[tokio::test(start_paused = true)]
async fn receivers_are_bounded_and_closing_answers_them() {
    let (source, store) = (source(), MemoryWork::new());
    let mut config = config();
    config.max_waiting = 1;
    let work = open(&source, &store, config);
    let mut waiting = Box::pin(work.receive(1, 60 * SECOND));
    assert!(poll(&mut waiting).is_none());
    let refused = work.receive(1, NO_WAIT).await;
    assert_eq!(refused, Err(WorkError::TooManyWaiting { limit: 1 }));
    work.close();
    assert!(matches!(waiting.await, Err(WorkError::Store(StoreError::Stopped { .. }))));
    assert!(matches!(work.purge(0).await, Err(WorkError::Store(StoreError::Stopped { .. }))));
}

/// A store whose writes are answered by hand.
#[derive(Clone, Debug, Default)]
struct HeldStore {
    inner: MemoryWork,
    held: std::sync::Arc<std::sync::Mutex<Vec<(WorkWrite, Done)>>>,
}

impl HeldStore {
    /// Whether no write waits for its answer.
    fn is_idle(&self) -> bool {
        self.held.lock().expect("no panic").is_empty()
    }

    /// Answers the write that waits.
    fn answer_first(&self, result: Result<(), StoreError>) {
        let (write, done) = self.held.lock().expect("no panic").remove(0);
        match result {
            Ok(()) => self.inner.submit(write, done),
            Err(error) => done.complete(Err(error)),
        }
    }

    /// Answers all writes, those too that the answers lead to.
    fn answer_all(&self, result: &Result<(), StoreError>) {
        // Ends: the work queue has nothing more to write at some point; asserted.
        for _ in 0..100 {
            let held = std::mem::take(&mut *self.held.lock().expect("no panic"));
            if held.is_empty() {
                return;
            }
            for (write, done) in held {
                match result {
                    Ok(()) => self.inner.submit(write, done),
                    Err(error) => done.complete(Err(error.clone())),
                }
            }
        }
        panic!("it writes for ever");
    }
}

impl WorkStore for HeldStore {
    fn bounds(&self) -> std::ops::Range<u64> {
        self.inner.bounds()
    }

    fn read(&self, range: std::ops::Range<u64>, max: usize) -> Result<Vec<Bytes>, StoreError> {
        self.inner.read(range, max)
    }

    fn letters(&self) -> std::ops::Range<u64> {
        self.inner.letters()
    }

    fn letter(&self, id: u64) -> Result<StoredLetter, StoreError> {
        self.inner.letter(id)
    }

    fn max_write_bytes(&self) -> usize {
        self.inner.max_write_bytes()
    }

    fn submit(&self, write: WorkWrite, done: Done) {
        self.held.lock().expect("no panic").push((write, done));
    }
}

/// A store that panics in its second write.
#[derive(Debug, Default)]
struct PanickingStore {
    inner: MemoryWork,
    writes: std::sync::atomic::AtomicU64,
}

impl WorkStore for PanickingStore {
    fn bounds(&self) -> std::ops::Range<u64> {
        self.inner.bounds()
    }

    fn read(&self, range: std::ops::Range<u64>, max: usize) -> Result<Vec<Bytes>, StoreError> {
        self.inner.read(range, max)
    }

    fn letters(&self) -> std::ops::Range<u64> {
        self.inner.letters()
    }

    fn letter(&self, id: u64) -> Result<StoredLetter, StoreError> {
        self.inner.letter(id)
    }

    fn max_write_bytes(&self) -> usize {
        self.inner.max_write_bytes()
    }

    fn submit(&self, write: WorkWrite, done: Done) {
        let before = self.writes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        assert!(before == 0, "this store panics");
        self.inner.submit(write, done);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_stops_the_work_queue_and_answers_everybody() {
    let source = source();
    let work = WorkQueue::open(source.clone(), PanickingStore::default(), config());
    let work = work.expect("it opens");
    append(&source, &[Record::new("a")]).await;
    let first = receive(&work, 1).await.remove(0);
    let mut waiting = Box::pin(work.receive(1, 60 * SECOND));
    assert!(poll(&mut waiting).is_none());
    let acking = std::panic::AssertUnwindSafe(|| {
        let mut acking = Box::pin(work.ack(&first.receipt));
        poll(&mut acking)
    });
    std::panic::catch_unwind(acking).expect_err("the panic is the caller's");
    let error = work.ack(&first.receipt).await.expect_err("it has stopped");
    assert!(matches!(error, WorkError::Store(StoreError::Stopped { .. })), "{error}");
    assert!(matches!(waiting.await, Err(WorkError::Store(StoreError::Stopped { .. }))));
}
