//! A work queue as a pure state machine: no clock, no thread, no I/O.
//!
//! [`Core::step`] takes an input and the time, [`Core::poll_output`] says what to do, and
//! [`Core::next_deadline`] when to step again. One write is on its way at a time, and takes along
//! all that wait; what it says becomes true when it is durable, by the function that replay uses.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::error::StoreError;

pub(crate) mod codec;
mod ledger;
mod window;
mod write;

#[cfg(test)]
mod lives;
#[cfg(test)]
mod tests;

pub(crate) use ledger::{Dead, Ledger, Slot};
use window::{Entry, State, Timer, Window};
use write::{Flight, Op};

/// Bounds and times, in ns.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) max_deliveries: u32,
    pub(crate) min_backoff: u64,
    pub(crate) max_backoff: u64,
    pub(crate) max_delay: u64,
    pub(crate) max_records: usize,
    pub(crate) max_bytes: usize,
    pub(crate) max_dead: usize,
    pub(crate) max_waiting: usize,
    /// Writes between two checkpoints.
    pub(crate) checkpoint_every: u64,
    /// Bytes of events between two checkpoints.
    pub(crate) checkpoint_bytes: u64,
    /// Events of one write.
    pub(crate) max_events: usize,
    /// Bytes of the dead letters of one write. A record beyond this cannot become one, so that a
    /// write with a checkpoint, `max_events` and these always fits into one of the store.
    pub(crate) max_dead_bytes: usize,
}

impl Limits {
    /// Pause after the `count`th delivery has failed: doubles up to `max_backoff`.
    fn backoff(&self, count: u32) -> u64 {
        let doublings = count.saturating_sub(1).min(32);
        self.min_backoff.saturating_mul(1 << doublings).min(self.max_backoff)
    }
}

/// A record of the source.
#[derive(Debug)]
pub(crate) struct Arrived<T> {
    pub(crate) payload: T,
    /// Bytes in memory, and of a copy of it.
    pub(crate) bytes: usize,
    /// Hash of its key, when the order of its key is to be kept.
    pub(crate) key: Option<u64>,
    /// Time before which it is not delivered; 0 for at once. Ignored for a dead letter, whose
    /// redrive is the order to deliver it now.
    pub(crate) deliver_at: u64,
}

/// What a worker holds: a record, and the lease under which it was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Held {
    pub(crate) slot: Slot,
    pub(crate) incarnation: u64,
    pub(crate) lease: u64,
}

/// Why a record is a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    MaxDeliveries,
    Rejected(String),
    ScheduledTooLate,
}

#[derive(Debug)]
pub(crate) enum Input<T> {
    /// The time has come that `next_deadline` gave.
    Tick,
    /// A worker waits for up to `max` records, each leased for `lease_ns` from its delivery on.
    Receive {
        id: u64,
        max: usize,
        lease_ns: u64,
    },
    /// The worker waits no longer. Answered when it still waited, otherwise its delivery is on its
    /// way.
    Cancel {
        id: u64,
    },
    /// A delivery found no worker: its records are given back, uncounted.
    GiveBack {
        lease: u64,
    },
    Ack {
        id: u64,
        held: Held,
    },
    /// The record is delivered again after `delay_ns`, or the back-off.
    Nack {
        id: u64,
        held: Held,
        delay_ns: Option<u64>,
    },
    /// The record becomes a dead letter at once.
    Reject {
        id: u64,
        held: Held,
        reason: String,
    },
    /// The whole lease ends `lease_ns` from now.
    Extend {
        id: u64,
        held: Held,
        lease_ns: u64,
    },
    /// The dead letter, read from the store, is delivered again.
    Redrive {
        id: u64,
        dead: u64,
        record: Arrived<T>,
    },
    /// The dead letter is discarded.
    Purge {
        id: u64,
        dead: u64,
    },
    /// What the source has from `from` on, with the offset of each record, up to `next`.
    Fetched {
        from: u64,
        next: u64,
        records: Vec<(u64, Arrived<T>)>,
        is_end: bool,
    },
    /// The source could not be read.
    FetchFailed {
        from: u64,
    },
    /// The source has grown.
    Grown,
    /// The write has ended.
    Written {
        id: u64,
        result: Result<(), StoreError>,
    },
    /// The write was not begun: its dead letter number `at` cannot be encoded.
    NotEncoded {
        id: u64,
        at: usize,
    },
    /// Nothing more is written.
    Stop {
        error: StoreError,
    },
}

/// Why a request was rejected. Nothing happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    LeaseLost,
    TooManyWaiting,
    NoDeadLetter,
    TooManyRedriven,
    DelayTooLong,
    /// A copy of the record does not fit into a write.
    CannotDie,
    /// There are as many dead letters as there may be.
    DeadLettersFull,
    /// The source cannot be read.
    Source,
    Store(StoreError),
}

/// A dead letter to be stored.
#[derive(Debug)]
pub(crate) struct Copy<T> {
    pub(crate) count: u32,
    pub(crate) reason: Reason,
    pub(crate) payload: T,
}

#[derive(Debug)]
pub(crate) enum Output<T> {
    /// Read the source from `from` on.
    Fetch { from: u64, max_records: usize, max_bytes: usize },
    /// Write a record to the log, with a checkpoint before it that replaces all earlier records,
    /// and dead letters; and let go of dead letters below an id.
    Write {
        id: u64,
        events: Bytes,
        checkpoint: Option<Bytes>,
        copies: Vec<Copy<T>>,
        release_dead: Option<u64>,
    },
    /// Hand records out, with the delivery count of each.
    Delivered { id: u64, lease: u64, records: Vec<(Slot, u32, T)> },
    /// Answer a request.
    Answer { id: u64, result: Result<(), Refusal> },
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    max: usize,
    lease_ns: u64,
}

/// What has happened since the work queue was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) delivered: u64,
    pub(crate) acked: u64,
    pub(crate) expired: u64,
    pub(crate) died: u64,
    pub(crate) skipped: u64,
}

#[derive(Debug)]
pub(crate) struct Core<T> {
    limits: Limits,
    now: u64,
    ledger: Ledger,
    incarnation: u64,
    window: Window<T>,
    waiting: VecDeque<Waiting>,
    /// Offset from which the source is read next.
    next_fetch: u64,
    is_fetching: bool,
    /// The source had nothing at `next_fetch`.
    is_end: bool,
    next_lease: u64,
    /// For the next write.
    queued: VecDeque<Op<T>>,
    /// The write on its way.
    flight: Option<Flight<T>>,
    /// After a write that found no room: when to try again.
    paused_until: u64,
    next_write: u64,
    /// Redriven dead letters in memory, and those about to be.
    redriven: usize,
    /// Their bytes.
    redriven_bytes: usize,
    /// Writes and bytes since the last checkpoint.
    since_checkpoint: (u64, u64),
    /// Dead letters below this id have been released.
    released_dead: u64,
    stopped: Option<StoreError>,
    outputs: VecDeque<Output<T>>,
    pub(crate) counters: Counters,
}

impl<T: Clone> Core<T> {
    /// A core over what the store holds. Give it the redriven dead letters with
    /// [`restore`](Self::restore) before its first step.
    pub(crate) fn new(limits: Limits, ledger: Ledger, replayed: u64, now: u64) -> Self {
        Self {
            now,
            incarnation: ledger.incarnation + 1,
            window: Window::new(limits.max_deliveries),
            waiting: VecDeque::new(),
            next_fetch: ledger.floor,
            is_fetching: false,
            is_end: false,
            next_lease: 1,
            queued: VecDeque::new(),
            flight: None,
            paused_until: 0,
            next_write: 1,
            redriven: 0,
            redriven_bytes: 0,
            since_checkpoint: (replayed, 0),
            released_dead: 0,
            stopped: None,
            outputs: VecDeque::new(),
            counters: Counters::default(),
            limits,
            ledger,
        }
    }

    /// Takes up a dead letter that was being redriven.
    pub(crate) fn restore(&mut self, id: u64, record: Arrived<T>) {
        self.redriven += 1;
        self.redriven_bytes += record.bytes;
        self.take_up(Slot::Dead(id), record);
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Records in memory, their bytes, those handed out, those that wait to become dead letters.
    pub(crate) fn sizes(&self) -> (usize, usize, usize, usize) {
        let leased = |entry: &&Entry<T>| matches!(entry.state, State::Leased(_));
        let leased = self.window.entries.values().filter(leased).count();
        (self.window.entries.len(), self.window.bytes, leased, self.window.dying.len())
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Offset at which the source is expected to grow, when nothing is left to fetch.
    pub(crate) fn awaited_offset(&self) -> Option<u64> {
        (self.is_end && !self.waiting.is_empty()).then_some(self.next_fetch)
    }

    /// When to step again, if nothing else happens before.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        if self.stopped.is_some() {
            return None;
        }
        let is_wanted = !self.waiting.is_empty() && self.window.has_ready();
        let has_work = is_wanted || !self.queued.is_empty() || !self.window.dying.is_empty();
        let is_paused = has_work && self.flight.is_none() && self.paused_until > self.now;
        let paused = is_paused.then_some(self.paused_until);
        self.window.next_deadline().into_iter().chain(paused).min()
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output<T>> {
        self.outputs.pop_front()
    }

    /// Takes an input. Time that goes back is taken for the latest time so far.
    pub(crate) fn step(&mut self, now: u64, input: Input<T>) {
        self.now = self.now.max(now);
        self.expire();
        match input {
            Input::Tick => {}
            Input::Receive { id, max, lease_ns } => self.receive(id, max, lease_ns),
            Input::Cancel { id } => {
                let before = self.waiting.len();
                self.waiting.retain(|waiting| waiting.id != id);
                if self.waiting.len() < before {
                    self.answer(id, Ok(()));
                }
            }
            Input::GiveBack { lease } => {
                for slot in self.window.end_lease(lease) {
                    self.queued.push_back(Op::Return { slot });
                }
            }
            Input::Ack { id, held } => {
                self.settle(id, held, |lease, slot| Op::Ack { answer: id, slot, lease });
            }
            Input::Nack { id, held, delay_ns } => self.nack(id, held, delay_ns),
            Input::Reject { id, held, reason } => self.reject(id, held, reason),
            Input::Extend { id, held, lease_ns } => self.extend(id, held, lease_ns),
            Input::Redrive { id, dead, record } => self.redrive(id, dead, record),
            Input::Purge { id, dead } => match self.listed(dead) {
                Ok(()) => self.queued.push_back(Op::Purge { answer: id, dead }),
                Err(refusal) => self.answer(id, Err(refusal)),
            },
            Input::Fetched { from, next, records, is_end } => {
                self.fetched(from, next, records, is_end);
            }
            Input::FetchFailed { from } => {
                // Not again before the source grows or a worker asks: it may fail for long.
                self.fetched(from, from, Vec::new(), true);
                for waiting in std::mem::take(&mut self.waiting) {
                    self.answer(waiting.id, Err(Refusal::Source));
                }
            }
            Input::Grown => self.is_end = false,
            Input::Written { id, result } => self.written(id, result),
            Input::NotEncoded { id, at } => self.not_encoded(id, at),
            Input::Stop { error } => self.stop(error),
        }
        if self.stopped.is_none() {
            self.fetch();
            self.write();
        }
    }

    fn answer(&mut self, id: u64, result: Result<(), Refusal>) {
        self.outputs.push_back(Output::Answer { id, result });
    }

    /// Ends leases and delays whose time has come.
    fn expire(&mut self) {
        let now = self.now;
        // Ends: each round takes a timer off, and none is added that is due: back-off of 0 makes a
        // record ready without one.
        while let Some(due) = self.window.pop_due(now) {
            let Timer::Lease(lease) = due else { continue };
            for slot in self.window.end_lease(lease) {
                self.counters.expired += 1;
                self.retry(slot);
            }
        }
    }

    /// Makes a record that was handed out deliverable again, after its back-off.
    fn retry(&mut self, slot: Slot) {
        let Some(entry) = self.window.entries.get(&slot) else { return };
        let until = self.now.saturating_add(self.limits.backoff(entry.count));
        self.window.requeue(self.now, slot, until);
    }

    fn receive(&mut self, id: u64, max: usize, lease_ns: u64) {
        if let Some(error) = &self.stopped {
            let refusal = Refusal::Store(error.clone());
            return self.answer(id, Err(refusal));
        }
        if self.waiting.len() >= self.limits.max_waiting {
            return self.answer(id, Err(Refusal::TooManyWaiting));
        }
        self.is_end = false;
        self.waiting.push_back(Waiting { id, max, lease_ns });
    }

    /// Checks that `held` is the current lease of its record.
    fn check(&self, held: Held) -> Result<(), Refusal> {
        if let Some(error) = &self.stopped {
            return Err(Refusal::Store(error.clone()));
        }
        let is_held =
            held.incarnation == self.incarnation && self.window.is_leased(held.slot, held.lease);
        if is_held { Ok(()) } else { Err(Refusal::LeaseLost) }
    }

    fn settle(&mut self, id: u64, held: Held, op: impl FnOnce(u64, Slot) -> Op<T>) {
        match self.check(held) {
            Err(refusal) => self.answer(id, Err(refusal)),
            Ok(()) => {
                self.window.set_writing(held.slot);
                self.queued.push_back(op(held.lease, held.slot));
            }
        }
    }

    fn nack(&mut self, id: u64, held: Held, delay_ns: Option<u64>) {
        let Some(entry) = self.window.entries.get(&held.slot) else {
            return self.answer(id, Err(Refusal::LeaseLost));
        };
        if delay_ns.is_some_and(|delay| delay > self.limits.max_delay) {
            return self.answer(id, Err(Refusal::DelayTooLong));
        }
        let is_last = entry.count >= self.limits.max_deliveries && entry.can_die;
        let delay = delay_ns.unwrap_or(self.limits.backoff(entry.count));
        let until = self.now.saturating_add(delay);
        self.settle(id, held, |lease, slot| {
            if is_last {
                Op::Die { answer: Some((id, lease)), slot, reason: Reason::MaxDeliveries }
            } else {
                Op::Nack { answer: id, slot, lease, until }
            }
        });
    }

    fn reject(&mut self, id: u64, held: Held, reason: String) {
        let entry = self.window.entries.get(&held.slot);
        if entry.is_some_and(|entry| !entry.can_die) && self.check(held).is_ok() {
            return self.answer(id, Err(Refusal::CannotDie));
        }
        self.settle(id, held, |lease, slot| {
            let reason = Reason::Rejected(reason);
            Op::Die { answer: Some((id, lease)), slot, reason }
        });
    }

    fn extend(&mut self, id: u64, held: Held, lease_ns: u64) {
        let result = self.check(held);
        if result.is_ok() {
            let until = self.now.saturating_add(lease_ns);
            self.window.extend(held.lease, until);
        }
        self.answer(id, result);
    }

    /// Whether `dead` is a dead letter that nothing is being done about.
    fn listed(&self, dead: u64) -> Result<(), Refusal> {
        if let Some(error) = &self.stopped {
            return Err(Refusal::Store(error.clone()));
        }
        let is_listed = self.ledger.dead.get(&dead).is_some_and(|dead| !dead.is_redriven);
        let of_it = |op: &Op<T>| match op {
            Op::Redrive { dead: other, .. } | Op::Purge { dead: other, .. } => *other == dead,
            _ => false,
        };
        let flying = self.flight.iter().flat_map(|flight| &flight.ops);
        let is_busy = self.queued.iter().chain(flying).any(of_it);
        if is_listed && !is_busy { Ok(()) } else { Err(Refusal::NoDeadLetter) }
    }

    fn redrive(&mut self, id: u64, dead: u64, record: Arrived<T>) {
        let mut result = self.listed(dead);
        let bytes = self.redriven_bytes.saturating_add(record.bytes);
        // One is taken whatever its size, or it could never be redriven.
        let is_over = self.redriven > 0 && bytes > self.limits.max_bytes;
        if result.is_ok() && (self.redriven >= self.limits.max_records || is_over) {
            result = Err(Refusal::TooManyRedriven);
        }
        match result {
            Err(refusal) => self.answer(id, Err(refusal)),
            Ok(()) => {
                self.redriven += 1;
                self.redriven_bytes = bytes;
                self.queued.push_back(Op::Redrive { answer: id, dead, record });
            }
        }
    }

    /// Asks for more of the source while there is room.
    fn fetch(&mut self) {
        let room = self.limits.max_records.saturating_sub(self.window.entries.len());
        let is_full = room == 0 || self.window.bytes >= self.limits.max_bytes;
        if self.is_fetching || self.is_end || is_full {
            return;
        }
        // Not for every record that is settled: each fetch unpacks a batch from its beginning.
        let is_little = room < self.limits.max_records.div_ceil(4)
            || self.window.bytes > self.limits.max_bytes / 4 * 3;
        if is_little && self.window.has_ready() {
            return;
        }
        self.is_fetching = true;
        self.next_fetch = self.ledger.next_unsettled(self.next_fetch);
        let max_bytes = self.limits.max_bytes - self.window.bytes;
        let from = self.next_fetch;
        self.outputs.push_back(Output::Fetch { from, max_records: room, max_bytes });
    }

    fn fetched(&mut self, from: u64, next: u64, records: Vec<(u64, Arrived<T>)>, is_end: bool) {
        self.is_fetching = false;
        self.is_end = is_end;
        debug_assert_eq!(from, self.next_fetch, "one fetch at a time");
        let mut expected = from;
        for (offset, record) in records {
            if offset < expected || offset >= next {
                continue;
            }
            self.skip(expected, offset);
            expected = offset + 1;
            if !self.ledger.is_settled(offset) {
                self.take_up(Slot::Log(offset), record);
            }
        }
        self.skip(expected, next);
        self.next_fetch = self.next_fetch.max(next);
    }

    /// Settles offsets at which the source has no records.
    fn skip(&mut self, from: u64, to: u64) {
        for (from, to) in self.ledger.unsettled(from, to) {
            self.queued.push_back(Op::Skip { from, to });
        }
    }

    fn take_up(&mut self, slot: Slot, record: Arrived<T>) {
        let (mark, rank) = match slot {
            Slot::Log(offset) => (self.ledger.mark(offset), offset),
            // As if it had been appended now.
            Slot::Dead(id) => {
                let mark = self.ledger.dead.get(&id).map(|dead| dead.mark);
                (mark.unwrap_or_default(), self.next_fetch)
            }
        };
        let latest = self.now.saturating_add(self.limits.max_delay);
        // The clock may have been set back since the delay was written.
        let until = mark.until.min(latest);
        let is_log = matches!(slot, Slot::Log(_));
        let scheduled = if is_log && mark.count == 0 { record.deliver_at } else { 0 };
        let entry = Entry {
            bytes: record.bytes,
            key: record.key,
            count: mark.count,
            until: until.max(scheduled),
            rank,
            is_doomed: scheduled > latest,
            can_die: record.bytes <= self.limits.max_dead_bytes || !is_log,
            state: State::Writing,
            payload: record.payload,
        };
        self.window.insert(self.now, slot, entry);
    }

    fn stop(&mut self, error: StoreError) {
        self.stopped.get_or_insert_with(|| error.as_stopped());
        let refusal = Refusal::Store(self.stopped.clone().unwrap_or(error));
        for waiting in std::mem::take(&mut self.waiting) {
            self.answer(waiting.id, Err(refusal.clone()));
        }
        for op in std::mem::take(&mut self.queued) {
            if let Some(id) = op.answer() {
                self.answer(id, Err(refusal.clone()));
            }
        }
    }
}
