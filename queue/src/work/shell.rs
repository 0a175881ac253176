//! Drives the core: does what its outputs say, with the lock released, in one thread at a time.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use super::clock::Clock;
use super::config::WorkConfig;
use super::core::{Arrived, Copy, Core, Input, Output, Refusal};
use super::dead;
use super::error::WorkError;
use super::queue::Handed;
use super::schedule;
use super::store::{WorkStore, WorkWrite};
use crate::error::{FetchError, StoreError};
use crate::format::{self, Batch, FormatError, MAX_UNPACKED_BYTES, Record, RecordHeader};
use crate::partition::Partition;
use crate::store::Done;

/// Bytes of the source that are read at once.
const FETCH_BYTES: usize = 256 << 10;

/// Openings of work queues in this process.
static OPENINGS: AtomicU64 = AtomicU64::new(0);

pub(super) struct Shared {
    /// Of [`OPENINGS`]; no other work queue of the process has it, nor this one opened again.
    pub(super) opening: u64,
    pub(super) source: Partition,
    pub(super) store: Arc<dyn WorkStore>,
    pub(super) config: WorkConfig,
    pub(super) clock: Arc<dyn Clock>,
    keys: RandomState,
    /// Tells the pump that it waits for the wrong thing.
    pub(super) changed: Arc<Notify>,
    pub(super) pump: Mutex<Option<JoinHandle<()>>>,
    pub(super) inner: Mutex<Inner>,
}

pub(super) struct Inner {
    pub(super) core: Core<Arc<Record>>,
    waiters: HashMap<u64, Waiter>,
    next_id: u64,
    /// A thread is in `drive`, and looks again before it leaves.
    is_driven: bool,
    /// A fetch that was left for a thread that may wait for a device.
    pending_fetch: Option<Fetch>,
    /// Why the source could not be read.
    source_error: Option<FetchError>,
    /// What the pump waits for: a time, an offset, and whether there is a fetch.
    pub(super) armed: Plan,
}

/// What the pump has to wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) deadline: Option<u64>,
    pub(super) offset: Option<u64>,
    pub(super) has_fetch: bool,
}

#[derive(Clone, Copy, Debug)]
struct Fetch {
    from: u64,
    max_records: usize,
    max_bytes: usize,
}

/// Who waits for an answer.
pub(super) enum Waiter {
    Receive(oneshot::Sender<Result<Handed, WorkError>>),
    Change {
        sender: oneshot::Sender<Result<(), WorkError>>,
        /// Offset of the record, or id of the dead letter.
        about: u64,
    },
}

impl Waiter {
    fn refuse(self, error: WorkError) {
        match self {
            Self::Receive(sender) => drop(sender.send(Err(error))),
            Self::Change { sender, .. } => drop(sender.send(Err(error))),
        }
    }
}

/// Leaves `drive`, also when the store panics.
struct Driving<'a>(&'a Shared);

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        self.0.inner.lock().is_driven = false;
    }
}

impl Inner {
    pub(super) fn plan(&self) -> Plan {
        Plan {
            deadline: self.core.next_deadline(),
            offset: self.core.awaited_offset(),
            has_fetch: self.pending_fetch.is_some(),
        }
    }

    /// Whether the pump would miss something of `plan` that it was not told of.
    fn is_late(&self, plan: Plan) -> bool {
        let sooner = match (plan.deadline, self.armed.deadline) {
            (Some(deadline), Some(armed)) => deadline < armed,
            (deadline, armed) => deadline.is_some() && armed.is_none(),
        };
        let elsewhere = plan.offset.is_some() && plan.offset != self.armed.offset;
        sooner || elsewhere || (plan.has_fetch && !self.armed.has_fetch)
    }
}

impl Shared {
    pub(super) fn new(
        source: Partition,
        store: Arc<dyn WorkStore>,
        config: WorkConfig,
        clock: Arc<dyn Clock>,
        core: Core<Arc<Record>>,
    ) -> Self {
        let inner = Inner {
            core,
            waiters: HashMap::new(),
            next_id: 1,
            is_driven: false,
            pending_fetch: None,
            source_error: None,
            armed: Plan::default(),
        };
        Self {
            opening: OPENINGS.fetch_add(1, Relaxed),
            source,
            store,
            config,
            clock,
            keys: RandomState::new(),
            changed: Arc::new(Notify::new()),
            pump: Mutex::new(None),
            inner: Mutex::new(inner),
        }
    }

    /// Makes a request of the core, which answers through `waiter`. Returns its id.
    pub(super) fn request(
        self: &Arc<Self>,
        waiter: Waiter,
        input: impl FnOnce(u64) -> Input<Arc<Record>>,
    ) -> u64 {
        let id = {
            let mut inner = self.inner.lock();
            let id = inner.next_id;
            inner.next_id += 1;
            inner.waiters.insert(id, waiter);
            id
        };
        self.drive(input(id));
        id
    }

    /// Steps the core, and does what it says. May read the source in this thread.
    pub(super) fn drive(self: &Arc<Self>, input: Input<Arc<Record>>) {
        self.advance(Some(input), true);
    }

    /// Steps the core in a thread of the store, which must not wait for a device.
    fn drive_quickly(self: &Arc<Self>, input: Input<Arc<Record>>) {
        self.advance(Some(input), false);
    }

    fn advance(self: &Arc<Self>, input: Option<Input<Arc<Record>>>, may_read: bool) {
        let now = self.clock.now();
        {
            let mut inner = self.inner.lock();
            if self.source.is_deleted() {
                // Before the input: nothing is delivered or settled any more.
                let error = StoreError::Stopped { why: "the topic was deleted".to_owned() };
                inner.core.step(now, Input::Stop { error });
            }
            if let Some(input) = input {
                inner.core.step(now, input);
            }
            if inner.is_driven {
                return;
            }
            inner.is_driven = true;
        }
        let driving = Driving(self);
        let mut is_late = false;
        // Ends: each round takes outputs, and the core has no more of them when it waits for a
        // write, a worker, a record or a time.
        loop {
            let (outputs, fetch) = {
                let mut inner = self.inner.lock();
                let outputs = Self::take_outputs(&mut inner);
                let fetch = if may_read { inner.pending_fetch.take() } else { None };
                if outputs.is_empty() && fetch.is_none() {
                    let plan = inner.plan();
                    is_late |= inner.is_late(plan);
                    inner.is_driven = false;
                    break;
                }
                (outputs, fetch)
            };
            for action in outputs {
                self.act(action);
            }
            if let Some(fetch) = fetch {
                let fetched = self.fetch(fetch);
                self.inner.lock().core.step(now, fetched);
            }
        }
        std::mem::forget(driving);
        if is_late {
            self.changed.notify_one();
        }
    }

    /// The outputs of the core, each with who waits for it.
    fn take_outputs(inner: &mut Inner) -> Vec<Action> {
        let mut actions = Vec::new();
        // Ends: each round takes an output.
        while let Some(output) = inner.core.poll_output() {
            match output {
                Output::Fetch { from, max_records, max_bytes } => {
                    inner.pending_fetch = Some(Fetch { from, max_records, max_bytes });
                }
                Output::Write { id, events, checkpoint, copies, release_dead } => {
                    let write = Writing { id, events, checkpoint, copies, release_dead };
                    actions.push(Action::Write(write));
                }
                Output::Delivered { id, lease, records } => {
                    let incarnation = inner.core.incarnation();
                    if let Some(waiter) = inner.waiters.remove(&id) {
                        actions.push(Action::Hand { waiter, incarnation, lease, records });
                    }
                }
                Output::Answer { id, result } => {
                    let source = inner.source_error.clone();
                    if let Some(waiter) = inner.waiters.remove(&id) {
                        actions.push(Action::Answer { waiter, result, source });
                    }
                }
            }
        }
        actions
    }

    fn act(self: &Arc<Self>, action: Action) {
        match action {
            Action::Write(writing) => self.write(writing),
            Action::Hand { waiter, incarnation, lease, records } => {
                let handed = Handed::new(Arc::clone(self), incarnation, lease, records);
                if self.source.is_deleted() {
                    return waiter.refuse(WorkError::Deleted);
                }
                // When nobody waits any more, dropping it gives the records back.
                if let Waiter::Receive(sender) = waiter {
                    drop(sender.send(Ok(handed)));
                }
            }
            Action::Answer { waiter, result, source } => match (waiter, result) {
                (Waiter::Receive(sender), Ok(())) => drop(sender.send(Ok(Handed::none()))),
                (Waiter::Change { sender, .. }, Ok(())) => drop(sender.send(Ok(()))),
                (waiter, Err(refusal)) => {
                    let about = match &waiter {
                        Waiter::Change { about, .. } => *about,
                        Waiter::Receive(_) => 0,
                    };
                    let error = self.error(refusal, about, source);
                    waiter.refuse(error);
                }
            },
        }
    }

    fn error(&self, refusal: Refusal, about: u64, source: Option<FetchError>) -> WorkError {
        match refusal {
            Refusal::LeaseLost => WorkError::LeaseLost { offset: about },
            Refusal::TooManyWaiting => WorkError::TooManyWaiting { limit: self.config.max_waiting },
            Refusal::NoDeadLetter => WorkError::NoDeadLetter { id: about },
            Refusal::TooManyRedriven => {
                WorkError::TooManyRedriven { limit: self.config.max_records }
            }
            Refusal::DelayTooLong => WorkError::DelayTooLong,
            Refusal::CannotDie => WorkError::CannotDie { offset: about },
            Refusal::DeadLettersFull => {
                WorkError::DeadLettersFull { limit: self.config.max_dead_letters }
            }
            Refusal::Source => WorkError::Source(source.unwrap_or(FetchError::Closed)),
            Refusal::Store(StoreError::Stopped { .. }) if self.source.is_deleted() => {
                WorkError::Deleted
            }
            Refusal::Store(error) => WorkError::Store(error),
        }
    }

    fn write(self: &Arc<Self>, writing: Writing) {
        let Writing { id, events, checkpoint, copies, release_dead } = writing;
        let now = self.clock.now();
        let encode = |(at, copy): (usize, &Copy<Arc<Record>>)| {
            let letter = dead::encode(&copy.payload, copy.count, &copy.reason, now);
            letter.map_err(|error| (at, error))
        };
        let letters: Result<Vec<_>, _> = copies.iter().enumerate().map(encode).collect();
        match letters {
            Ok(letters) => {
                let shared = Arc::clone(self);
                let done = Done::new(move |result| {
                    shared.drive_quickly(Input::Written { id, result });
                });
                let release_letters = release_dead;
                let write = WorkWrite { checkpoint, events, letters, release_letters };
                self.store.submit(write, done);
            }
            // Not expected: records that do not fit into a batch are never copied.
            Err((at, error)) => {
                let offset = copies.get(at).map_or(0, |copy| copy.payload.offset);
                tracing::error!(
                    target: "voussoir::queue", %error, offset,
                    "a record cannot become a dead letter, it is delivered again"
                );
                self.drive(Input::NotEncoded { id, at });
            }
        }
    }

    fn fetch(&self, fetch: Fetch) -> Input<Arc<Record>> {
        let Fetch { from, .. } = fetch;
        match self.try_fetch(fetch) {
            Ok(fetched) => fetched,
            // Retention has taken what was not acknowledged.
            Err(FetchError::OutOfRange { start, .. }) if start > from => {
                Input::Fetched { from, next: start, records: Vec::new(), is_end: false }
            }
            Err(error) => {
                tracing::warn!(target: "voussoir::queue", %error, from, "a work queue cannot read");
                self.inner.lock().source_error = Some(error);
                Input::FetchFailed { from }
            }
        }
    }

    fn try_fetch(&self, fetch: Fetch) -> Result<Input<Arc<Record>>, FetchError> {
        let Fetch { from, max_records, max_bytes } = fetch;
        let fetched = self.source.fetch(from, max_bytes.min(FETCH_BYTES))?;
        let (mut records, mut bytes) = (Vec::new(), 0);
        let is_full = |records: &Vec<_>, bytes| records.len() >= max_records || bytes >= max_bytes;
        let mut next = fetched.next_offset;
        for batch in fetched.batches.iter().filter(|batch| !batch.header().is_control()) {
            match self.take_batch(batch, from, &mut records, &mut bytes, &is_full) {
                Ok(()) => {}
                // Records that another build can read are not skipped. What is before them is
                // delivered first.
                Err(error @ FormatError::CodecMissing { .. }) if records.is_empty() => {
                    let (offset, next_offset) = (batch.base_offset(), batch.last_offset() + 1);
                    return Err(FetchError::Undecodable { offset, next_offset, error });
                }
                Err(FormatError::CodecMissing { .. }) => {
                    next = batch.base_offset();
                    break;
                }
                // The bytes are those that were appended: they will never be readable.
                Err(error) => tracing::error!(
                    target: "voussoir::queue", %error,
                    offset = batch.base_offset(), next_offset = batch.last_offset() + 1,
                    "a work queue skips the rest of a batch that cannot be unpacked"
                ),
            }
            if is_full(&records, bytes) {
                next = records.last().map_or(next, |(offset, _)| *offset + 1);
                break;
            }
        }
        let is_end = next >= fetched.end_offset;
        Ok(Input::Fetched { from, next, records, is_end })
    }

    /// Adds the records of `batch` from `from` on until `is_full`.
    fn take_batch(
        &self,
        batch: &Batch,
        from: u64,
        records: &mut Vec<(u64, Arrived<Arc<Record>>)>,
        bytes: &mut usize,
        is_full: &impl Fn(&Vec<(u64, Arrived<Arc<Record>>)>, usize) -> bool,
    ) -> Result<(), FormatError> {
        for record in batch.records(MAX_UNPACKED_BYTES)? {
            if is_full(records, *bytes) {
                break;
            }
            let record = record?;
            if record.offset >= from {
                let arrived = self.arrived(&record);
                *bytes += arrived.bytes;
                records.push((record.offset, arrived));
            }
        }
        Ok(())
    }

    /// A record for the core, in memory of its own: the batch that it came from may be large.
    pub(super) fn arrived(&self, record: &Record) -> Arrived<Arc<Record>> {
        let own = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
        let mut copy = record.clone();
        copy.key = record.key.as_ref().map(own);
        copy.value = record.value.as_ref().map(own);
        let headers = record.headers.iter();
        let headers =
            headers.map(|header| RecordHeader::new(header.key(), header.value().map(own)));
        copy.headers = headers.collect();
        let key = record.key.as_ref().filter(|_| self.config.ordered_keys);
        let deliver_at = match schedule::deliver_at(record) {
            0 => 0,
            // The wall clock is read first: the record is rather late than early.
            at => {
                let left = at.saturating_sub(self.clock.wall());
                self.clock.now().saturating_add(left)
            }
        };
        Arrived {
            bytes: format::batch_bytes(record) + dead::OVERHEAD_BYTES,
            key: key.map(|key| self.keys.hash_one(key)),
            deliver_at,
            payload: Arc::new(copy),
        }
    }
}

/// What is to be done with the lock released.
enum Action {
    Write(Writing),
    Hand { waiter: Waiter, incarnation: u64, lease: u64, records: Vec<HandedRecord> },
    Answer { waiter: Waiter, result: Result<(), Refusal>, source: Option<FetchError> },
}

type HandedRecord = (super::core::Slot, u32, Arc<Record>);

struct Writing {
    id: u64,
    events: Bytes,
    checkpoint: Option<Bytes>,
    copies: Vec<Copy<Arc<Record>>>,
    release_dead: Option<u64>,
}
