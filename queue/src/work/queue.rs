//! The handle of a work queue.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::clock::{Clock, TokioClock};
use super::config::WorkConfig;
use super::core::{Core, Dead, Held, Input, Ledger, Slot};
use super::dead::{self, DeadLetter};
use super::error::WorkError;
use super::shell::{Shared, Waiter};
use super::store::WorkStore;
use crate::error::{OpenError, StoreError};
use crate::format::Record;
use crate::partition::Partition;

/// Bytes of the log that are read at once when a work queue is opened.
const REPLAY_BYTES: usize = 1 << 20;

/// Records of a partition that workers lease, one by one. Clones are the same work queue.
///
/// One store belongs to one work queue: open it once, and clone the handle.
///
/// # Example
/// ```
/// use std::time::Duration;
/// use voussoir_queue::store::MemoryPartition;
/// use voussoir_queue::work::{MemoryWork, WorkConfig, WorkQueue}; // JournalWork keeps its state
/// use voussoir_queue::{BatchBuilder, Config, Durability, Partition, Record};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mails = Partition::open(MemoryPartition::new(64 << 20), Config::default())?;
/// let workers = WorkQueue::open(mails.clone(), MemoryWork::new(), WorkConfig::default())?;
///
/// let mut builder = BatchBuilder::new();
/// builder.push(&Record::new("welcome").key("ada"))?;
/// mails.append(builder.finish()?, Durability::Synced).await?;
///
/// for delivery in workers.receive(10, Duration::from_secs(5)).await? {
///     match send(&delivery.record) {
///         Ok(()) => workers.ack(&delivery.receipt).await?,
///         Err(_) => workers.nack(&delivery.receipt, None).await?, // again, after a back-off
///     }
/// }
/// assert_eq!(workers.stats().floor, 1);
/// # Ok(())
/// # }
/// # fn send(_: &Record) -> Result<(), ()> { Ok(()) }
/// ```
#[derive(Clone)]
pub struct WorkQueue {
    handle: Arc<Handle>,
}

/// Ends the pump with the last clone.
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(pump) = self.shared.pump.lock().take() {
            pump.abort();
        }
    }
}

/// The lease on a record, which a worker names when it settles the record. It is of the work queue
/// that has delivered the record, as it was opened then: any other one answers
/// [`WorkError::LeaseLost`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Receipt {
    /// The opening of a work queue that has given it.
    opening: u64,
    held: Held,
    offset: u64,
}

impl Receipt {
    /// Offset of the record in the source.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

/// A record that is leased to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivery {
    /// The record, with its offset in the source.
    pub record: Record,
    /// How often it has been delivered, this time included; 1 for the first time. Counted from its
    /// redrive on for a redriven dead letter.
    pub deliveries: u32,
    /// Names the lease.
    pub receipt: Receipt,
}

/// How a work queue stands, and what it has done since it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkStats {
    /// All records of the source below this offset are acknowledged or dead letters: the source may
    /// release them.
    pub floor: u64,
    /// Records between the floor and the end of the source, settled ones included.
    pub lag: u64,
    /// Records in memory.
    pub records: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Those that are leased.
    pub leased: usize,
    /// Those that are out of deliveries and wait for room among the dead letters.
    pub dying: usize,
    /// Dead letters, redriven ones included.
    pub dead_letters: usize,
    /// Receivers that wait.
    pub waiting: usize,
    /// Records delivered.
    pub delivered: u64,
    /// Records acknowledged.
    pub acked: u64,
    /// Leases on a record that expired.
    pub expired: u64,
    /// Records that became dead letters.
    pub died: u64,
    /// Offsets that the source no longer had when they were read.
    pub skipped: u64,
}

impl WorkQueue {
    /// Opens the work queue over `source` whose state is in `store`, which may be empty: then it
    /// begins with the first record of the source. Leases of an earlier process have ended, and
    /// their records are delivered again at once, with their counts.
    ///
    /// # Errors
    /// See [`OpenError`]; [`OpenError::Damaged`] also when the source ends before what has been
    /// acknowledged.
    pub fn open(
        source: Partition,
        store: impl WorkStore,
        config: WorkConfig,
    ) -> Result<Self, OpenError> {
        Self::open_with_clock(source, store, config, TokioClock::new())
    }

    /// As [`open`](Self::open), with a clock, in ns since the UNIX epoch. Delays outlive a restart,
    /// so its epoch must.
    ///
    /// # Errors
    /// See [`open`](Self::open).
    pub fn open_with_clock(
        source: Partition,
        store: impl WorkStore,
        config: WorkConfig,
        clock: impl Clock + 'static,
    ) -> Result<Self, OpenError> {
        config.validate()?;
        let (ledger, replayed) = replay(&store)?;
        let limits = config.limits(store.max_write_bytes(), &ledger)?;
        check(&ledger, &source, &store)?;
        let dead: Vec<(u64, Dead)> = ledger.dead.iter().map(|(id, dead)| (*id, *dead)).collect();
        let core = Core::new(limits, ledger, replayed, clock.now());
        let shared = Arc::new(Shared::new(source, Arc::new(store), config, Arc::new(clock), core));
        for (id, dead) in dead {
            if dead.is_redriven {
                let damaged = |error: WorkError| damaged(0, error.to_string());
                let letter = shared.letter(id, dead).map_err(damaged)?;
                let record = shared.arrived(&letter.record);
                shared.inner.lock().core.restore(id, record);
            }
        }
        Ok(Self { handle: Arc::new(Handle { shared }) })
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// Receives up to `max` records, leased together for
    /// [`visibility_timeout`](WorkConfig::visibility_timeout). Waits up to `max_wait` for the first
    /// one; returns none when none came. Of records of one key it returns the first only.
    ///
    /// When the topic of the source is deleted, whoever waits gets [`WorkError::Deleted`], and so
    /// do all later calls that deliver or settle records.
    ///
    /// The delivery has been counted on stable storage before this returns. That write is waited
    /// for also beyond `max_wait`.
    ///
    /// # Errors
    /// See [`WorkError`].
    ///
    /// # Panics
    /// Outside of a tokio runtime with time, when it has to wait.
    ///
    /// # Cancel safety
    /// Safe: records on their way to a receiver that was dropped are given back at once, and that
    /// delivery is not counted.
    pub async fn receive(
        &self,
        max: usize,
        max_wait: Duration,
    ) -> Result<Vec<Delivery>, WorkError> {
        let lease_ns = nanos(self.shared().config.visibility_timeout);
        let (sender, mut answer) = oneshot::channel();
        let waiter = Waiter::Receive(sender);
        let max = max.max(1);
        let id = self.shared().request(waiter, |id| Input::Receive { id, max, lease_ns });
        let cancel = Cancel { shared: self.shared(), id };
        if let Ok(answered) = answer.try_recv() {
            return answered.map(Handed::take);
        }
        self.shared().ensure_pump();
        let answered = match tokio::time::timeout(max_wait, &mut answer).await {
            Ok(answered) => answered,
            Err(_elapsed) => {
                drop(cancel);
                answer.await
            }
        };
        answered.unwrap_or_else(|_| Err(gone().into())).map(Handed::take)
    }

    /// Settles a record: it is never delivered again.
    ///
    /// # Errors
    /// [`WorkError::LeaseLost`] when the lease has ended: the record is, or will be, delivered to
    /// another worker; or when another work queue has given the receipt. See [`WorkError`] for
    /// others.
    ///
    /// # Cancel safety
    /// Once polled, it happens all the same.
    pub async fn ack(&self, receipt: &Receipt) -> Result<(), WorkError> {
        self.change(receipt, |id, held| Input::Ack { id, held }).wait().await
    }

    /// Settles several records in as few writes as can be; the results are in the same order. As
    /// [`ack`](Self::ack) for each.
    ///
    /// # Cancel safety
    /// Once polled, they happen all the same.
    pub async fn ack_all(&self, receipts: &[Receipt]) -> Vec<Result<(), WorkError>> {
        let begin = |receipt: &Receipt| self.change(receipt, |id, held| Input::Ack { id, held });
        let begun: Vec<_> = receipts.iter().map(begin).collect();
        let mut results = Vec::with_capacity(begun.len());
        for answer in begun {
            results.push(answer.wait().await);
        }
        results
    }

    /// Gives a record back: it is delivered again after `delay`, by default a pause that doubles
    /// with each delivery. After its last delivery it becomes a dead letter.
    ///
    /// # Errors
    /// See [`WorkError`].
    ///
    /// # Cancel safety
    /// Once polled, it happens all the same.
    pub async fn nack(&self, receipt: &Receipt, delay: Option<Duration>) -> Result<(), WorkError> {
        let delay_ns = delay.map(nanos);
        self.change(receipt, |id, held| Input::Nack { id, held, delay_ns }).wait().await
    }

    /// Makes a record a dead letter at once: it will never succeed.
    ///
    /// # Errors
    /// See [`WorkError`].
    ///
    /// # Cancel safety
    /// Once polled, it happens all the same.
    pub async fn reject(&self, receipt: &Receipt, reason: &str) -> Result<(), WorkError> {
        let reason = dead::cut(reason).to_owned();
        self.change(receipt, |id, held| Input::Reject { id, held, reason }).wait().await
    }

    /// Extends the lease to end `lease` from now, for all records that were received together with
    /// this one and are not settled.
    ///
    /// # Errors
    /// [`WorkError::LeaseLost`] when it has ended already.
    ///
    /// # Cancel safety
    /// Once polled, it happens all the same.
    pub async fn extend(&self, receipt: &Receipt, lease: Duration) -> Result<(), WorkError> {
        let lease_ns = nanos(lease);
        self.change(receipt, |id, held| Input::Extend { id, held, lease_ns }).wait().await
    }

    /// The dead letters with ids from `from` on, at most `max`. Reads them in the calling thread.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn dead_letters(&self, from: u64, max: usize) -> Result<Vec<DeadLetter>, WorkError> {
        let dead: Vec<(u64, Dead)> = {
            let inner = self.shared().inner.lock();
            let dead = inner.core.ledger().dead.range(from..).take(max);
            dead.map(|(id, dead)| (*id, *dead)).collect()
        };
        let mut letters = Vec::with_capacity(dead.len());
        for (id, dead) in dead {
            match self.shared().letter(id, dead) {
                // Settled and released meanwhile.
                Err(WorkError::Store(StoreError::Released { .. })) => {}
                letter => letters.push(letter?),
            }
        }
        Ok(letters)
    }

    /// Delivers a dead letter again, with a new count of deliveries. It stays a dead letter until
    /// it is acknowledged, so that it is never copied twice and none can go round in a circle:
    /// when it runs out of deliveries again, it is listed as before, under the same id.
    ///
    /// # Errors
    /// See [`WorkError`].
    ///
    /// # Cancel safety
    /// Once polled, it happens all the same.
    pub async fn redrive(&self, id: u64) -> Result<(), WorkError> {
        let dead = self.shared().inner.lock().core.ledger().dead.get(&id).copied();
        let dead = dead.filter(|dead| !dead.is_redriven).ok_or(WorkError::NoDeadLetter { id })?;
        let letter = self.shared().letter(id, dead).map_err(|error| match error {
            // Settled by another caller since it was looked up.
            WorkError::Store(StoreError::Released { .. }) => WorkError::NoDeadLetter { id },
            other => other,
        })?;
        let record = self.shared().arrived(&letter.record);
        self.begin(id, |request| Input::Redrive { id: request, dead: id, record }).wait().await
    }

    /// Discards a dead letter.
    ///
    /// # Errors
    /// See [`WorkError`].
    ///
    /// # Cancel safety
    /// Once polled, it happens all the same.
    pub async fn purge(&self, id: u64) -> Result<(), WorkError> {
        self.begin(id, |request| Input::Purge { id: request, dead: id }).wait().await
    }

    /// Sizes and counters.
    pub fn stats(&self) -> WorkStats {
        self.shared().drive(Input::Tick);
        let end = self.shared().source.offsets().end;
        let inner = self.shared().inner.lock();
        let core = &inner.core;
        let (records, bytes, leased, dying) = core.sizes();
        let counters = core.counters;
        WorkStats {
            floor: core.ledger().floor,
            lag: end.saturating_sub(core.ledger().floor),
            records,
            bytes,
            leased,
            dying,
            dead_letters: core.ledger().dead.len(),
            waiting: core.waiting(),
            delivered: counters.delivered,
            acked: counters.acked,
            expired: counters.expired,
            died: counters.died,
            skipped: counters.skipped,
        }
    }

    /// The partition that the records are in.
    pub fn source(&self) -> &Partition {
        &self.shared().source
    }

    /// Delivers and settles nothing more: who waits gets an error, a write on its way is still
    /// answered.
    pub fn close(&self) {
        let error = StoreError::Stopped { why: "the work queue is closed".to_owned() };
        self.shared().drive(Input::Stop { error });
    }

    /// Begins a change of a leased record, which does not need to be polled.
    fn change(
        &self,
        receipt: &Receipt,
        input: impl FnOnce(u64, Held) -> Input<Arc<Record>>,
    ) -> Answer {
        if receipt.opening != self.shared().opening {
            let (sender, answer) = oneshot::channel();
            drop(sender.send(Err(WorkError::LeaseLost { offset: receipt.offset })));
            return Answer(answer);
        }
        let held = receipt.held;
        self.begin(receipt.offset, move |id| input(id, held))
    }

    fn begin(&self, about: u64, input: impl FnOnce(u64) -> Input<Arc<Record>>) -> Answer {
        let (sender, answer) = oneshot::channel();
        self.shared().request(Waiter::Change { sender, about }, input);
        Answer(answer)
    }
}

impl fmt::Debug for WorkQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkQueue").field("source", self.source()).finish_non_exhaustive()
    }
}

impl Shared {
    /// Reads a dead letter.
    fn letter(&self, id: u64, dead: Dead) -> Result<DeadLetter, WorkError> {
        let stored = self.store.letter(id)?;
        let letter = dead::decode(id, dead.is_redriven, stored);
        letter.map_err(|why| WorkError::DeadLetterDamaged { id, why })
    }
}

/// The answer to a change that has begun.
struct Answer(oneshot::Receiver<Result<(), WorkError>>);

impl Answer {
    async fn wait(self) -> Result<(), WorkError> {
        self.0.await.unwrap_or_else(|_| Err(gone().into()))
    }
}

/// Takes a receiver off the queue, unless it has been answered.
struct Cancel<'a> {
    shared: &'a Arc<Shared>,
    id: u64,
}

impl Drop for Cancel<'_> {
    fn drop(&mut self) {
        self.shared.drive(Input::Cancel { id: self.id });
    }
}

/// Records on their way to a receiver. Dropping them gives them back.
pub(super) struct Handed {
    deliveries: Vec<Delivery>,
    back: Option<(Arc<Shared>, u64)>,
}

impl Handed {
    pub(super) fn none() -> Self {
        Self { deliveries: Vec::new(), back: None }
    }

    pub(super) fn new(
        shared: Arc<Shared>,
        incarnation: u64,
        lease: u64,
        records: Vec<(Slot, u32, Arc<Record>)>,
    ) -> Self {
        let opening = shared.opening;
        let delivery = |(slot, deliveries, record): (Slot, u32, Arc<Record>)| {
            let held = Held { slot, incarnation, lease };
            let receipt = Receipt { opening, held, offset: record.offset };
            Delivery { record: (*record).clone(), deliveries, receipt }
        };
        let deliveries = records.into_iter().map(delivery).collect();
        Self { deliveries, back: Some((shared, lease)) }
    }

    fn take(mut self) -> Vec<Delivery> {
        self.back = None;
        std::mem::take(&mut self.deliveries)
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        if let Some((shared, lease)) = self.back.take() {
            shared.drive(Input::GiveBack { lease });
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn gone() -> StoreError {
    StoreError::Failed { why: "the work queue is gone".to_owned() }
}

fn damaged(position: u64, why: impl Into<String>) -> OpenError {
    OpenError::Damaged { position, why: why.into() }
}

/// The ledger that the store holds, and the number of records that made it.
fn replay(store: &dyn WorkStore) -> Result<(Ledger, u64), OpenError> {
    let bounds = store.bounds();
    let (mut ledger, mut position) = (Ledger::default(), bounds.start);
    // Ends: each round applies at least one record.
    while position < bounds.end {
        let read = store.read(position..bounds.end, REPLAY_BYTES)?;
        if read.is_empty() {
            return Err(damaged(position, "the store ends before its bounds"));
        }
        for record in read {
            ledger.replay(record).map_err(|why| damaged(position, why))?;
            position += 1;
        }
    }
    Ok((ledger, bounds.end - bounds.start))
}

/// Whether the source and the dead letters have what the ledger speaks of.
fn check(ledger: &Ledger, source: &Partition, store: &dyn WorkStore) -> Result<(), OpenError> {
    let end = source.offsets().end;
    let settled = ledger.settled.values().next_back().copied().unwrap_or(0).max(ledger.floor);
    if settled > end {
        let why = format!("offset {settled} is acknowledged, the source ends at {end}");
        return Err(damaged(store.bounds().end, why));
    }
    let letters = store.letters();
    if ledger.next_dead != letters.end || ledger.dead_floor() < letters.start {
        let why = format!(
            "the dead letters {}..{} are not those that are stored, {letters:?}",
            ledger.dead_floor(),
            ledger.next_dead
        );
        return Err(damaged(store.bounds().end, why));
    }
    Ok(())
}
