//! The records of a work queue's log, version 1. All integers are little-endian.
//!
//! A record begins with its version (1 byte) and its kind (1 byte).
//!
//! Kind 0, the events of one write: of each its tag (1 byte) and its fields. A slot is 0 or 1 (1
//! byte) for the source or the dead letters, and its offset or id (8). Tag 1 opened: incarnation
//! (8). Tag 2 delivered: slot, count (4). Tag 3 returned: slot, count (4). Tag 4 acknowledged:
//! slot. Tag 5 delayed: slot, time (8, ns since the UNIX epoch). Tag 6 died: slot, id of the dead
//! letter (8). Tag 7 redriven, tag 8 purged: id (8). Tag 9 skipped: first offset, end (8 each).
//!
//! Kind 1, a checkpoint of all that the events before it did: incarnation, floor, next id of a dead
//! letter (8 each); number of settled ranges (4), of each its first offset and end (8 each); number
//! of marked records (4), of each offset (8), count (4), time (8); number of dead letters (4), of
//! each id, offset (8 each), count (4), time (8) and whether it is redriven (1).

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::ledger::{Dead, Event, Ledger, Mark, Slot};

const VERSION: u8 = 1;
const EVENTS: u8 = 0;
const CHECKPOINT: u8 = 1;
const CUT_OFF: &str = "the record is cut off";

/// Bytes of the largest event.
pub(crate) const EVENT_BYTES: usize = 18;
/// Bytes of a record's head.
pub(crate) const HEAD_BYTES: usize = 2;
const RANGE_BYTES: usize = 16;
const MARK_BYTES: usize = 20;
const DEAD_BYTES: usize = 29;

/// The largest checkpoint, in bytes.
pub(crate) fn max_checkpoint_bytes(max_records: usize, max_dead: usize) -> usize {
    let fixed = HEAD_BYTES + 3 * 8 + 3 * 4;
    fixed + (max_records + 1) * RANGE_BYTES + max_records * MARK_BYTES + max_dead * DEAD_BYTES
}

fn put_slot(out: &mut BytesMut, slot: Slot) {
    let (kind, number) = match slot {
        Slot::Log(offset) => (0, offset),
        Slot::Dead(id) => (1, id),
    };
    out.put_u8(kind);
    out.put_u64_le(number);
}

fn get_slot(input: &mut Bytes) -> Result<Slot, &'static str> {
    let kind = input.try_get_u8().map_err(|_| CUT_OFF)?;
    let number = get_u64(input)?;
    match kind {
        0 => Ok(Slot::Log(number)),
        1 => Ok(Slot::Dead(number)),
        _ => Err("a slot has an unknown kind"),
    }
}

fn get_u64(input: &mut Bytes) -> Result<u64, &'static str> {
    input.try_get_u64_le().map_err(|_| CUT_OFF)
}

fn get_u32(input: &mut Bytes) -> Result<u32, &'static str> {
    input.try_get_u32_le().map_err(|_| CUT_OFF)
}

/// The record of one write.
pub(crate) fn encode_events(events: &[Event]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEAD_BYTES + events.len() * EVENT_BYTES);
    out.put_u8(VERSION);
    out.put_u8(EVENTS);
    for event in events {
        put_event(&mut out, event);
    }
    out.freeze()
}

fn put_event(out: &mut BytesMut, event: &Event) {
    let (tag, slot) = match *event {
        Event::Opened { .. } => (1, None),
        Event::Delivered { slot, .. } => (2, Some(slot)),
        Event::Returned { slot, .. } => (3, Some(slot)),
        Event::Acked { slot } => (4, Some(slot)),
        Event::Delayed { slot, .. } => (5, Some(slot)),
        Event::Died { slot, .. } => (6, Some(slot)),
        Event::Redriven { .. } => (7, None),
        Event::Purged { .. } => (8, None),
        Event::Skipped { .. } => (9, None),
    };
    out.put_u8(tag);
    if let Some(slot) = slot {
        put_slot(out, slot);
    }
    match *event {
        Event::Opened { incarnation } => out.put_u64_le(incarnation),
        Event::Delivered { count, .. } | Event::Returned { count, .. } => out.put_u32_le(count),
        Event::Acked { .. } => {}
        Event::Delayed { until, .. } => out.put_u64_le(until),
        Event::Died { dead, .. } | Event::Redriven { dead } | Event::Purged { dead } => {
            out.put_u64_le(dead);
        }
        Event::Skipped { from, to } => {
            out.put_u64_le(from);
            out.put_u64_le(to);
        }
    }
}

fn get_event(input: &mut Bytes) -> Result<Event, &'static str> {
    let tag = input.try_get_u8().map_err(|_| CUT_OFF)?;
    Ok(match tag {
        1 => Event::Opened { incarnation: get_u64(input)? },
        2 => Event::Delivered { slot: get_slot(input)?, count: get_u32(input)? },
        3 => Event::Returned { slot: get_slot(input)?, count: get_u32(input)? },
        4 => Event::Acked { slot: get_slot(input)? },
        5 => Event::Delayed { slot: get_slot(input)?, until: get_u64(input)? },
        6 => Event::Died { slot: get_slot(input)?, dead: get_u64(input)? },
        7 => Event::Redriven { dead: get_u64(input)? },
        8 => Event::Purged { dead: get_u64(input)? },
        9 => Event::Skipped { from: get_u64(input)?, to: get_u64(input)? },
        _ => return Err("an event has an unknown tag"),
    })
}

impl Ledger {
    /// The ledger as a checkpoint.
    pub(crate) fn encode(&self) -> Bytes {
        let bytes = max_checkpoint_bytes(self.settled.len().max(self.marks.len()), self.dead.len());
        let mut out = BytesMut::with_capacity(bytes);
        out.put_u8(VERSION);
        out.put_u8(CHECKPOINT);
        out.put_u64_le(self.incarnation);
        out.put_u64_le(self.floor);
        out.put_u64_le(self.next_dead);
        out.put_u32_le(self.settled.len() as u32);
        for (from, to) in &self.settled {
            out.put_u64_le(*from);
            out.put_u64_le(*to);
        }
        out.put_u32_le(self.marks.len() as u32);
        for (offset, mark) in &self.marks {
            out.put_u64_le(*offset);
            out.put_u32_le(mark.count);
            out.put_u64_le(mark.until);
        }
        out.put_u32_le(self.dead.len() as u32);
        for (id, dead) in &self.dead {
            out.put_u64_le(*id);
            out.put_u64_le(dead.offset);
            out.put_u32_le(dead.mark.count);
            out.put_u64_le(dead.mark.until);
            out.put_u8(u8::from(dead.is_redriven));
        }
        out.freeze()
    }

    /// Applies a record of the log: the events of a write, or a checkpoint.
    ///
    /// # Errors
    /// What is wrong with the record.
    pub(crate) fn replay(&mut self, mut input: Bytes) -> Result<(), &'static str> {
        if input.try_get_u8().map_err(|_| CUT_OFF)? != VERSION {
            return Err("the record has a version that this build does not know");
        }
        match input.try_get_u8().map_err(|_| CUT_OFF)? {
            EVENTS => {
                // Ends: each round takes an event off the input.
                while input.has_remaining() {
                    let event = get_event(&mut input)?;
                    self.apply(&event)?;
                }
                Ok(())
            }
            CHECKPOINT => {
                *self = decode(&mut input)?;
                if input.has_remaining() { Err("bytes follow the checkpoint") } else { Ok(()) }
            }
            _ => Err("the record has an unknown kind"),
        }
    }
}

fn decode(input: &mut Bytes) -> Result<Ledger, &'static str> {
    let mut ledger = Ledger {
        incarnation: get_u64(input)?,
        floor: get_u64(input)?,
        next_dead: get_u64(input)?,
        ..Ledger::default()
    };
    let mut above = ledger.floor;
    for _ in 0..get_u32(input)? {
        let (from, to) = (get_u64(input)?, get_u64(input)?);
        if from <= above || to <= from {
            return Err("the settled ranges of the checkpoint are not in order");
        }
        ledger.settled.insert(from, to);
        above = to;
    }
    for _ in 0..get_u32(input)? {
        let offset = get_u64(input)?;
        let mark = Mark { count: get_u32(input)?, until: get_u64(input)? };
        if ledger.is_settled(offset) {
            return Err("the checkpoint marks a settled record");
        }
        ledger.marks.insert(offset, mark);
    }
    for _ in 0..get_u32(input)? {
        let (id, offset) = (get_u64(input)?, get_u64(input)?);
        let mark = Mark { count: get_u32(input)?, until: get_u64(input)? };
        let is_redriven = match input.try_get_u8().map_err(|_| CUT_OFF)? {
            0 => false,
            1 => true,
            _ => return Err("a dead letter of the checkpoint is in an unknown state"),
        };
        if id >= ledger.next_dead {
            return Err("a dead letter of the checkpoint has an id that was not given out");
        }
        ledger.dead.insert(id, Dead { offset, mark, is_redriven });
    }
    Ok(ledger)
}
