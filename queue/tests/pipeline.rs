//! Two writes of a partition on their way: the second was decided before the first is durable.

mod support;

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use support::{batch, journal, one, partition, poll, read_all, ready, work};
use voussoir_journal::MemoryFiles;
use voussoir_queue::store::{Done, MemoryPartition, PartitionLog, PartitionStore, Write};
use voussoir_queue::{
    AppendFuture, Batch, Bytes, Config, Durability, Outcome, Partition, ProduceError, Record,
    StoreError,
};

/// Holds two writes back until the test lets them go, or fails them.
#[derive(Clone, Debug)]
struct Pipe {
    inner: MemoryPartition,
    held: Arc<Mutex<VecDeque<(Write, Done)>>>,
}

impl Pipe {
    fn open(config: Config) -> (Self, Partition) {
        let pipe = Self { inner: MemoryPartition::new(64 << 20), held: Arc::default() };
        let partition = Partition::open(pipe.clone(), config).expect("it opens");
        (pipe, partition)
    }

    fn take(&self) -> (Write, Done) {
        self.held.lock().pop_front().expect("a write is on its way")
    }

    /// Lets the oldest write go on.
    fn let_go(&self) {
        let (write, done) = self.take();
        self.inner.submit(write, done);
    }

    /// Batches of each write on its way.
    fn on_their_way(&self) -> Vec<usize> {
        self.held.lock().iter().map(|(write, _)| write.batches.len()).collect()
    }
}

impl PartitionStore for Pipe {
    fn log(&self) -> Arc<dyn PartitionLog> {
        self.inner.log()
    }
    fn snapshot(&self) -> Result<Option<Bytes>, StoreError> {
        self.inner.snapshot()
    }
    fn max_write_bytes(&self) -> usize {
        self.inner.max_write_bytes()
    }
    fn max_in_flight(&self) -> usize {
        2
    }
    fn submit(&self, write: Write, done: Done) {
        self.held.lock().push_back((write, done));
    }
}

fn full() -> Result<(), StoreError> {
    Err(StoreError::Full { why: "test".to_owned() })
}

/// The batch of producer 7 with this sequence.
fn sent(epoch: i16, sequence: i32) -> Batch {
    let value = format!("{epoch}/{sequence}");
    batch(&[Record::new(value)], Some((7, epoch, sequence)))
}

fn answer(future: &mut AppendFuture) -> Option<Result<u64, ProduceError>> {
    poll(future).map(|answer| answer.map(|appended| appended.base_offset))
}

fn values(partition: &Partition) -> Vec<String> {
    let text = |record: Record| String::from_utf8(record.value.expect("a value").to_vec());
    read_all(partition, 1).into_iter().map(|record| text(record).expect("text")).collect()
}

#[test]
fn the_next_write_follows_before_the_first_is_answered() {
    let (pipe, partition) = Pipe::open(Config::default());
    let append = |value: &str| partition.append(one(value), Durability::Synced);
    let mut appends = ["a", "b", "c", "d"].map(append);
    assert_eq!(pipe.on_their_way(), [1, 1], "the others share the write after that");
    assert_eq!(partition.offsets(), 0..0, "nothing is shown before it is acknowledged");
    let positions: Vec<_> = pipe.held.lock().iter().map(|(write, _)| write.position).collect();
    assert_eq!(positions, [None, Some(1)]);
    pipe.let_go();
    assert_eq!(appends.each_mut().map(answer), [Some(Ok(0)), None, None, None]);
    assert_eq!(partition.offsets(), 0..1);
    assert_eq!(pipe.on_their_way(), [1, 2]);
    pipe.let_go();
    pipe.let_go();
    let answers = appends[1..].iter_mut().map(|append| answer(append).expect("answered"));
    assert_eq!(answers.collect::<Result<Vec<_>, _>>(), Ok(vec![1, 2, 3]));
    assert_eq!(values(&partition), ["a", "b", "c", "d"]);
    assert_eq!(partition.stats().pending_bytes, 0);
}

/// Otherwise the second batch is in the log without the first, whose retry is then a gap for ever.
#[test]
fn a_write_behind_one_that_fails_fails_too() {
    let (pipe, partition) = Pipe::open(Config::default());
    let mut appends = [0, 1, 2].map(|at| partition.append(sent(0, at), Durability::Synced));
    let (_, first) = pipe.take();
    first.complete(full());
    assert_eq!(pipe.on_their_way(), [1], "nothing begins while a doomed write is on its way");
    pipe.let_go();
    for append in &mut appends[..2] {
        let error = answer(append).expect("answered").expect_err("it failed");
        assert_eq!((error.outcome(), error.is_retryable()), (Outcome::NotApplied, true), "{error}");
    }
    // The third was not decided yet when they failed.
    let gap = ProduceError::OutOfOrder { id: 7, expected: 0, found: 2 };
    assert_eq!(answer(&mut appends[2]), Some(Err(gap)));
    assert_eq!(partition.offsets(), 0..0);
    for at in 0..2 {
        let mut again = partition.append(sent(0, at), Durability::Synced);
        pipe.let_go();
        let appended = poll(&mut again).expect("answered").expect("it is appended");
        assert_eq!((appended.base_offset, appended.is_duplicate), (at as u64, false));
    }
    assert_eq!(values(&partition), ["0/0", "0/1"]);
    assert_eq!(partition.stats().pending_bytes, 0);
}

/// The second is rejected on the spot, while the first is still on its way and arrives.
#[test]
fn a_write_that_is_rejected_gives_its_offsets_back() {
    let (pipe, partition) = Pipe::open(Config::default());
    let mut first = partition.append(sent(0, 0), Durability::Synced);
    let mut second = partition.append(sent(0, 1), Durability::Synced);
    let (_, rejected) = pipe.held.lock().pop_back().expect("a second write");
    rejected.complete(Err(StoreError::Busy { why: "test".to_owned() }));
    assert!(matches!(answer(&mut second), Some(Err(ProduceError::Store(_)))));
    let mut again = partition.append(sent(0, 1), Durability::Synced);
    assert_eq!(pipe.on_their_way(), [1], "what was staged has not been given up yet");
    pipe.let_go();
    assert_eq!(answer(&mut first), Some(Ok(0)));
    pipe.let_go();
    assert_eq!(answer(&mut again), Some(Ok(1)));
    assert_eq!(values(&partition), ["0/0", "0/1"]);
}

/// A store that breaks its contract: what it wrote is not acknowledged, and nothing follows.
#[test]
fn nothing_is_acknowledged_behind_a_write_that_failed() {
    let (pipe, partition) = Pipe::open(Config::default());
    let mut appends = [0, 1].map(|at| partition.append(sent(0, at), Durability::Synced));
    let (_, first) = pipe.take();
    first.complete(full());
    let (_, second) = pipe.take();
    second.complete(Ok(()));
    let errors = appends.each_mut().map(|append| answer(append).expect("answered").unwrap_err());
    let outcomes = errors.map(|error| error.outcome());
    assert_eq!(outcomes, [Outcome::NotApplied, Outcome::Unknown]);
    assert_eq!(partition.offsets(), 0..0);
    let later = ready(partition.append(one("later"), Durability::Synced));
    assert!(matches!(later, Err(ProduceError::Store(StoreError::Stopped { .. }))), "{later:?}");
}

/// A later write that is answered first must not be taken for the first one.
#[test]
fn answers_in_another_order_stop_the_partition() {
    let (pipe, partition) = Pipe::open(Config::default());
    let mut appends = [0, 1].map(|at| partition.append(sent(0, at), Durability::Synced));
    let (_, second) = pipe.held.lock().pop_back().expect("a second write");
    second.complete(Ok(()));
    let error = answer(&mut appends[1]).expect("answered").expect_err("it is out of order");
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert_eq!(partition.offsets(), 0..0);
}

/// Both are decided by a batch that may still fail.
#[test]
fn duplicates_and_rejections_wait_for_what_they_rest_on() {
    for is_written in [true, false] {
        let (pipe, partition) = Pipe::open(Config::default());
        let mut first = partition.append(sent(1, 0), Durability::Synced);
        let mut repeated = partition.append(sent(1, 0), Durability::Synced);
        let mut fenced = partition.append(sent(0, 0), Durability::Synced);
        assert_eq!((poll(&mut repeated), poll(&mut fenced)), (None, None));
        assert_eq!(pipe.on_their_way(), [1], "there is nothing to write for them");
        let (write, done) = pipe.take();
        if is_written {
            pipe.inner.submit(write, done);
            assert_eq!(answer(&mut first), Some(Ok(0)));
            assert!(ready(&mut repeated).expect("known").is_duplicate);
            assert_eq!(answer(&mut fenced), Some(Err(ProduceError::Fenced { id: 7, current: 1 })));
        } else {
            done.complete(full());
            assert!(answer(&mut first).expect("answered").is_err());
            pipe.let_go();
            assert!(!ready(&mut repeated).expect("appended").is_duplicate);
        }
        assert_eq!(values(&partition), ["1/0"]);
    }
}

/// A later epoch fences a producer once it is in the log, and not when its write has failed.
#[test]
fn a_rejection_waits_for_the_write_that_it_rests_on() {
    for is_written in [true, false] {
        let (pipe, partition) = Pipe::open(Config::default());
        let mut first = partition.append(sent(1, 0), Durability::Synced);
        let mut fenced = partition.append(sent(0, 0), Durability::Synced);
        assert_eq!(poll(&mut fenced), None, "what fences it may fail");
        let (write, done) = pipe.take();
        if is_written {
            pipe.inner.submit(write, done);
            assert_eq!(answer(&mut first), Some(Ok(0)));
            assert_eq!(answer(&mut fenced), Some(Err(ProduceError::Fenced { id: 7, current: 1 })));
        } else {
            done.complete(full());
            assert!(answer(&mut first).expect("answered").is_err());
            pipe.let_go();
            assert_eq!(answer(&mut fenced), Some(Ok(0)));
        }
    }
}

/// A snapshot has the state, in which nothing is that may still fail.
#[test]
fn a_write_with_a_snapshot_is_alone() {
    let mut config = Config::default();
    config.snapshot_every = 3;
    let (pipe, partition) = Pipe::open(config.clone());
    let (mut appends, mut snapshots) = (Vec::new(), 0);
    for at in 0..40 {
        appends.push(partition.append(sent(0, at), Durability::Synced));
        let held: Vec<bool> = pipe.held.lock().iter().map(|(w, _)| w.snapshot.is_some()).collect();
        assert!(held.len() == 1 || !held.contains(&true), "{held:?}");
        snapshots += usize::from(held.contains(&true));
        if at % 3 > 0 && !held.is_empty() {
            pipe.let_go();
        }
        let reopened = Partition::open(pipe.inner.clone(), config.clone()).expect("it opens");
        assert_eq!(reopened.offsets(), partition.offsets());
    }
    while !pipe.on_their_way().is_empty() {
        pipe.let_go();
    }
    let offsets = appends.iter_mut().map(|append| answer(append).expect("answered"));
    assert_eq!(offsets.collect::<Result<Vec<_>, _>>(), Ok((0..40).collect()));
    assert!(snapshots > 5, "{snapshots}");
    let reopened = Partition::open(pipe.inner.clone(), config).expect("it opens again");
    let repeated = ready(reopened.append(sent(0, 39), Durability::Synced)).expect("known");
    assert!(repeated.is_duplicate && repeated.base_offset == 39);
}

/// Which producer is forgotten for another one depends on all before it, and what is admitted next
/// on which.
#[test]
fn nothing_follows_a_write_that_forgets_a_producer() {
    let mut config = Config::default();
    config.max_producers = 1;
    let (pipe, partition) = Pipe::open(config);
    let other = batch(&[Record::new("other")], Some((8, 0, 0)));
    let mut appends =
        [sent(0, 0), other, sent(0, 1)].map(|batch| partition.append(batch, Durability::Synced));
    assert_eq!(pipe.on_their_way(), [1, 1]);
    pipe.let_go();
    assert_eq!(answer(&mut appends[0]), Some(Ok(0)));
    assert_eq!(pipe.on_their_way(), [1], "it waits for the end of the write before it");
    pipe.let_go();
    assert_eq!(answer(&mut appends[1]), Some(Ok(1)));
    let unknown = ProduceError::UnknownProducer { id: 7 };
    assert_eq!(answer(&mut appends[2]), Some(Err(unknown)));
}

/// A journal has room for few: the answers of all batches, in order, are the log.
#[test]
fn a_journal_that_fills_up_keeps_the_order() {
    let journal = journal(Arc::new(MemoryFiles::new()), 8);
    let mut config = Config::default();
    (config.max_producers, config.max_index_entries) = (10, 16);
    let partition = partition(&journal, config);
    let (mut now, mut kept, mut failed_together) = (0, 0, 0);
    for round in 0..100 {
        let sequence = kept;
        let record = || Record::new(vec![b'v'; 3_000]);
        let sent = |at: i32| batch(&[record()], Some((7, 0, sequence + at)));
        let mut appends = [0, 1].map(|at| partition.append(sent(at), Durability::Synced));
        work(&journal, &mut now);
        let answers = appends.each_mut().map(|append| answer(append).expect("answered"));
        match &answers {
            [Ok(first), Ok(second)] => {
                assert_eq!((*first, *second), (kept as u64, kept as u64 + 1), "{round}");
            }
            [Ok(first), Err(error)] => {
                assert_eq!((*first, error.outcome()), (kept as u64, Outcome::NotApplied));
            }
            [Err(first), Err(second)] => {
                assert_eq!([first.outcome(), second.outcome()], [Outcome::NotApplied; 2]);
                failed_together += 1;
            }
            [Err(first), Ok(_)] => panic!("appended behind a batch that was not: {first}"),
        }
        kept += answers.iter().flatten().map(|_| 1).sum::<i32>();
        assert_eq!(partition.offsets(), 0..kept as u64);
    }
    assert!(kept > 20 && failed_together > 5, "{kept} kept, {failed_together} failed");
}
