//! The writes of a work queue: what is gathered into one, and what it does when it has ended.

use super::codec;
use super::ledger::{Event, Slot};
use super::{Arrived, Copy, Core, Output, Reason, Refusal, Waiting};
use crate::error::StoreError;

/// Pause after a write that found no room, in ns.
const PAUSE: u64 = 100_000_000;
/// Ids of dead letters between the oldest and the next one, in multiples of `max_dead`: what lies
/// between them takes space until the oldest is gone.
const MAX_DEAD_SPAN: u64 = 4;

/// A change that becomes true when its write is durable.
#[derive(Debug)]
pub(super) enum Op<T> {
    Deliver {
        waiting: Waiting,
        slots: Vec<Slot>,
        lease: u64,
    },
    Ack {
        answer: u64,
        slot: Slot,
        lease: u64,
    },
    Nack {
        answer: u64,
        slot: Slot,
        lease: u64,
        until: u64,
    },
    /// With the request and the lease that ask for it, if any does.
    Die {
        answer: Option<(u64, u64)>,
        slot: Slot,
        reason: Reason,
    },
    Return {
        slot: Slot,
    },
    Redrive {
        answer: u64,
        dead: u64,
        record: Arrived<T>,
    },
    Purge {
        answer: u64,
        dead: u64,
    },
    Skip {
        from: u64,
        to: u64,
    },
}

impl<T> Op<T> {
    /// The request that waits for it.
    pub(super) fn answer(&self) -> Option<u64> {
        match self {
            Self::Deliver { waiting, .. } => Some(waiting.id),
            Self::Ack { answer, .. }
            | Self::Nack { answer, .. }
            | Self::Redrive { answer, .. }
            | Self::Purge { answer, .. } => Some(*answer),
            Self::Die { answer, .. } => answer.map(|(id, _)| id),
            Self::Return { .. } | Self::Skip { .. } => None,
        }
    }
}

/// The write on its way.
#[derive(Debug)]
pub(super) struct Flight<T> {
    id: u64,
    pub(super) ops: Vec<Op<T>>,
    events: Vec<Event>,
    event_bytes: u64,
    has_checkpoint: bool,
    release_dead: Option<u64>,
}

/// A write that is being gathered.
struct Gathered<T> {
    ops: Vec<Op<T>>,
    events: Vec<Event>,
    copies: Vec<Copy<T>>,
    copied_bytes: usize,
}

/// Why a record cannot become a dead letter now.
enum NoRoom {
    InThisWrite,
    InTheLog,
}

impl<T: Clone> Core<T> {
    /// Begins a write when none is on its way and something waits for one.
    pub(super) fn write(&mut self) {
        if self.flight.is_some() || self.now < self.paused_until {
            return;
        }
        let mut gathered =
            Gathered { ops: Vec::new(), events: Vec::new(), copies: Vec::new(), copied_bytes: 0 };
        if self.ledger.incarnation < self.incarnation {
            gathered.events.push(Event::Opened { incarnation: self.incarnation });
        }
        self.gather_queued(&mut gathered);
        self.gather_dying(&mut gathered);
        self.gather_deliveries(&mut gathered);
        let Gathered { ops, events, copies, .. } = gathered;
        if ops.is_empty() {
            return;
        }
        let (writes, bytes) = self.since_checkpoint;
        let limits = &self.limits;
        let is_due = writes >= limits.checkpoint_every || bytes >= limits.checkpoint_bytes;
        let checkpoint = is_due.then(|| self.ledger.encode());
        let floor = self.ledger.dead_floor();
        let release_dead = (floor > self.released_dead).then_some(floor);
        let id = self.next_write;
        self.next_write += 1;
        let encoded = codec::encode_events(&events);
        self.flight = Some(Flight {
            id,
            ops,
            events,
            event_bytes: encoded.len() as u64,
            has_checkpoint: is_due,
            release_dead,
        });
        let events = encoded;
        self.outputs.push_back(Output::Write { id, events, checkpoint, copies, release_dead });
    }

    fn gather_queued(&mut self, gathered: &mut Gathered<T>) {
        // Ends: each round takes an operation off the queue, or leaves.
        while gathered.events.len() < self.limits.max_events {
            let Some(op) = self.queued.pop_front() else { break };
            let Op::Die { answer: Some((id, lease)), slot, reason } = op else {
                gathered.events.extend(self.event(&op));
                gathered.ops.push(op);
                continue;
            };
            match self.room_for_death(gathered, slot) {
                Ok(()) => self.gather_death(gathered, Some((id, lease)), slot, reason),
                Err(NoRoom::InThisWrite) => {
                    let answer = Some((id, lease));
                    self.queued.push_front(Op::Die { answer, slot, reason });
                    break;
                }
                // Out of deliveries: it waits among the dying, also after a restart.
                Err(NoRoom::InTheLog) if reason == Reason::MaxDeliveries => {
                    self.window.settle_member(lease);
                    self.window.requeue(self.now, slot, 0);
                    self.answer(id, Ok(()));
                }
                Err(NoRoom::InTheLog) => {
                    self.give_back(slot, lease);
                    self.answer(id, Err(Refusal::DeadLettersFull));
                }
            }
        }
    }

    /// The event of an operation that has exactly one.
    fn event(&self, op: &Op<T>) -> Option<Event> {
        match *op {
            Op::Ack { slot, .. } => Some(Event::Acked { slot }),
            Op::Nack { slot, until, .. } => Some(Event::Delayed { slot, until }),
            Op::Return { slot } => {
                let count = self.window.entries.get(&slot)?.count.saturating_sub(1);
                Some(Event::Returned { slot, count })
            }
            Op::Redrive { dead, .. } => Some(Event::Redriven { dead }),
            Op::Purge { dead, .. } => Some(Event::Purged { dead }),
            Op::Skip { from, to } => Some(Event::Skipped { from, to }),
            Op::Deliver { .. } | Op::Die { .. } => None,
        }
    }

    fn gather_dying(&mut self, gathered: &mut Gathered<T>) {
        // Ends: each round takes a record out of `dying`, or leaves. Dead letters that die again
        // need no room and come last, so one that finds none does not stop those.
        let dying: Vec<Slot> = self.window.dying.iter().copied().collect();
        for slot in dying {
            if gathered.events.len() >= self.limits.max_events {
                break;
            }
            if self.room_for_death(gathered, slot).is_err() {
                continue;
            }
            let is_doomed = self.window.entries.get(&slot).is_some_and(|entry| entry.is_doomed);
            let reason = if is_doomed { Reason::ScheduledTooLate } else { Reason::MaxDeliveries };
            self.window.dying.remove(&slot);
            self.window.set_writing(slot);
            self.gather_death(gathered, None, slot, reason);
        }
    }

    /// Whether the write and the log of dead letters take one more.
    fn room_for_death(&self, gathered: &Gathered<T>, slot: Slot) -> Result<(), NoRoom> {
        if matches!(slot, Slot::Dead(_)) {
            return Ok(());
        }
        let more = gathered.copies.len();
        let max_dead = self.limits.max_dead;
        // Redriven ones do not count: one may be held back by this record, whose key it has.
        let listed = self.ledger.dead.len().saturating_sub(self.redriven) + more;
        let span = self.ledger.next_dead - self.ledger.first_listed() + more as u64;
        if listed >= max_dead || span >= MAX_DEAD_SPAN * max_dead as u64 {
            return Err(NoRoom::InTheLog);
        }
        let bytes = self.window.entries.get(&slot).map_or(0, |entry| entry.bytes);
        let is_over = gathered.copied_bytes + bytes > self.limits.max_dead_bytes;
        if more > 0 && is_over { Err(NoRoom::InThisWrite) } else { Ok(()) }
    }

    fn gather_death(
        &self,
        gathered: &mut Gathered<T>,
        answer: Option<(u64, u64)>,
        slot: Slot,
        reason: Reason,
    ) {
        let Some(entry) = self.window.entries.get(&slot) else { return };
        let dead = match slot {
            Slot::Dead(id) => id,
            Slot::Log(_) => {
                let id = self.ledger.next_dead + gathered.copies.len() as u64;
                let (count, payload) = (entry.count, entry.payload.clone());
                let reason = reason.clone();
                gathered.copies.push(Copy { count, reason, payload });
                gathered.copied_bytes += entry.bytes;
                id
            }
        };
        gathered.events.push(Event::Died { slot, dead });
        gathered.ops.push(Op::Die { answer, slot, reason });
    }

    /// Leases what is ready to those who wait for it, first come, first served.
    fn gather_deliveries(&mut self, gathered: &mut Gathered<T>) {
        // Ends: each round takes a record that is ready and a worker that waits.
        while let Some(first) = self.waiting.front() {
            let room = self.limits.max_events.saturating_sub(gathered.events.len());
            let slots = self.window.take_ready(first.max.min(room));
            if slots.is_empty() {
                break;
            }
            let Some(waiting) = self.waiting.pop_front() else { break };
            for slot in &slots {
                let count = self.window.entries.get(slot).map_or(0, |entry| entry.count);
                gathered.events.push(Event::Delivered { slot: *slot, count: count + 1 });
            }
            let lease = self.next_lease;
            self.next_lease += 1;
            gathered.ops.push(Op::Deliver { waiting, slots, lease });
        }
    }

    /// Takes the end of the write `id`.
    pub(super) fn written(&mut self, id: u64, result: Result<(), StoreError>) {
        let Some(flight) = self.flight.take_if(|flight| flight.id == id) else { return };
        match result {
            Ok(()) => self.land(flight),
            Err(error) => {
                for op in flight.ops {
                    self.revert(op, &error);
                }
                if error.is_retryable() {
                    self.paused_until = self.now.saturating_add(PAUSE);
                } else {
                    self.stop(error);
                }
            }
        }
    }

    /// Takes back the write `id`, whose dead letter number `at` cannot be encoded. That record is
    /// delivered on; one that no write takes must not end the delivery of all others.
    pub(super) fn not_encoded(&mut self, id: u64, at: usize) {
        let Some(flight) = self.flight.as_ref().filter(|flight| flight.id == id) else { return };
        let copied = flight.ops.iter().filter_map(|op| match op {
            Op::Die { slot: slot @ Slot::Log(_), .. } => Some(*slot),
            _ => None,
        });
        let slot = copied.into_iter().nth(at);
        if let Some(entry) = slot.and_then(|slot| self.window.entries.get_mut(&slot)) {
            entry.can_die = false;
        }
        let why = "a dead letter of the same write cannot be encoded".to_owned();
        self.written(id, Err(StoreError::Busy { why }));
    }

    fn land(&mut self, flight: Flight<T>) {
        let (writes, bytes) = self.since_checkpoint;
        let before = if flight.has_checkpoint { (0, 0) } else { (writes, bytes) };
        self.since_checkpoint = (before.0 + 1, before.1 + flight.event_bytes);
        self.released_dead = flight.release_dead.unwrap_or(self.released_dead);
        for event in &flight.events {
            if let Err(why) = self.ledger.apply(event) {
                debug_assert!(false, "{event:?}: {why}");
                self.stop(StoreError::Failed { why: why.to_owned() });
            }
        }
        for op in flight.ops {
            self.land_op(op);
        }
    }

    fn land_op(&mut self, op: Op<T>) {
        let now = self.now;
        match op {
            Op::Deliver { waiting, slots, lease } => {
                self.counters.delivered += slots.len() as u64;
                let until = now.saturating_add(waiting.lease_ns);
                self.window.grant(lease, until, slots.clone());
                let entries = &self.window.entries;
                let record = |slot: Slot| {
                    entries.get(&slot).map(|entry| (slot, entry.count, entry.payload.clone()))
                };
                let records = slots.into_iter().filter_map(record).collect();
                self.outputs.push_back(Output::Delivered { id: waiting.id, lease, records });
            }
            Op::Ack { answer, slot, lease } => {
                self.counters.acked += 1;
                self.window.settle_member(lease);
                self.remove(slot);
                self.answer(answer, Ok(()));
            }
            Op::Nack { answer, slot, lease, until } => {
                self.window.settle_member(lease);
                self.window.requeue(now, slot, until);
                self.answer(answer, Ok(()));
            }
            Op::Die { answer, slot, .. } => {
                self.counters.died += 1;
                self.remove(slot);
                if let Some((id, lease)) = answer {
                    self.window.settle_member(lease);
                    self.answer(id, Ok(()));
                }
            }
            Op::Return { slot } => {
                if let Some(entry) = self.window.entries.get_mut(&slot) {
                    entry.count = entry.count.saturating_sub(1);
                }
                self.window.requeue(now, slot, 0);
            }
            Op::Redrive { answer, dead, record } => {
                self.take_up(Slot::Dead(dead), record);
                self.answer(answer, Ok(()));
            }
            Op::Purge { answer, .. } => self.answer(answer, Ok(())),
            Op::Skip { from, to } => self.counters.skipped += to - from,
        }
    }

    fn remove(&mut self, slot: Slot) {
        if matches!(slot, Slot::Dead(_)) {
            self.redriven -= 1;
            self.redriven_bytes -= self.window.entries.get(&slot).map_or(0, |entry| entry.bytes);
        }
        self.window.remove(self.now, slot);
    }

    /// Puts a record back under its lease, or ends what that left of it.
    fn give_back(&mut self, slot: Slot, lease: u64) {
        if !self.window.restore_lease(slot, lease) {
            self.retry(slot);
        }
    }

    /// The write has failed: everything is as before it, in memory too.
    fn revert(&mut self, op: Op<T>, error: &StoreError) {
        let answer = op.answer();
        match op {
            Op::Deliver { slots, .. } => {
                for slot in slots {
                    self.window.requeue(self.now, slot, 0);
                }
            }
            Op::Ack { slot, lease, .. }
            | Op::Nack { slot, lease, .. }
            | Op::Die { answer: Some((_, lease)), slot, .. } => self.give_back(slot, lease),
            Op::Die { answer: None, slot, .. } => self.window.requeue(self.now, slot, 0),
            Op::Redrive { record, .. } => {
                self.redriven -= 1;
                self.redriven_bytes -= record.bytes;
            }
            Op::Purge { .. } => {}
            // A record that nobody got stays out of reach until its count is lowered: with the
            // raised count it may become a dead letter that was never handed out.
            Op::Return { .. } | Op::Skip { .. } => self.queued.push_front(op),
        }
        if let Some(id) = answer {
            self.answer(id, Err(Refusal::Store(error.clone())));
        }
    }
}
