//! Snapshots of a partition's state, version 2. All integers are little-endian.
//!
//! version (1 byte), next offset, next position, start offset, first position (8 bytes each),
//! largest timestamp (8), largest forgotten producer id (8), what compaction has done (offset,
//! position, bytes, bytes behind, tombstones, offset of the tombstones that age, and since when: 8
//! each),
//! stride of the index (8), number of its entries (4), entries (position, offset, largest
//! timestamp before: 8 each), number of producers (4), and of each its id (8), epoch (2), number
//! of batches (1) and these (first and last sequence 4 each, offset 8).

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::clean::Clean;
use super::index::Entry;
use super::producers::{Producer, Sent, WINDOW, Window};
use super::state::{Limits, State};

const BAD_PRODUCER: &str =
    "a producer of the snapshot is cut off, or has a wrong number of batches";

const VERSION: u8 = 2;
/// All but the entries and the producers: what precedes the entries, and the number of producers.
const FIXED_BYTES: usize = 121;
const ENTRY_BYTES: usize = 24;
/// Id, epoch and number of batches of a producer.
const PRODUCER_BYTES: usize = 11;
const SENT_BYTES: usize = 16;

impl State {
    /// The state as a snapshot.
    pub(crate) fn encode(&self) -> Bytes {
        let entries = self.index.entries.len() * ENTRY_BYTES;
        let producers = self.producers.len() * (PRODUCER_BYTES + WINDOW * SENT_BYTES);
        let mut out = BytesMut::with_capacity(FIXED_BYTES + entries + producers);
        out.put_u8(VERSION);
        out.put_u64_le(self.next_offset);
        out.put_u64_le(self.next_position);
        out.put_u64_le(self.start_offset);
        out.put_u64_le(self.first_position);
        out.put_i64_le(self.max_timestamp);
        out.put_i64_le(self.producers.forgotten);
        out.put_u64_le(self.clean.offset);
        out.put_u64_le(self.clean.position);
        out.put_u64_le(self.clean.bytes);
        out.put_u64_le(self.clean.dirty_bytes);
        out.put_u64_le(self.clean.tombstones);
        out.put_u64_le(self.clean.aging_offset);
        out.put_i64_le(self.clean.aging_since_ms);
        out.put_u64_le(self.index.stride);
        out.put_u32_le(self.index.entries.len() as u32);
        for entry in &self.index.entries {
            out.put_u64_le(entry.position);
            out.put_u64_le(entry.offset);
            out.put_i64_le(entry.timestamp_before);
        }
        out.put_u32_le(self.producers.len() as u32);
        for (id, producer) in self.producers.iter() {
            out.put_i64_le(id);
            out.put_i16_le(producer.epoch);
            out.put_u8(producer.window.len() as u8);
            for sent in producer.window.iter() {
                out.put_i32_le(sent.first);
                out.put_i32_le(sent.last);
                out.put_u64_le(sent.offset);
            }
        }
        out.freeze()
    }

    /// Reads a snapshot.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub(crate) fn decode(mut input: Bytes) -> Result<Self, &'static str> {
        const CUT_OFF: &str = "the snapshot is cut off";
        let mut state = Self::new();
        if input.try_get_u8().map_err(|_| CUT_OFF)? != VERSION {
            return Err("the snapshot has a version that this build does not know");
        }
        if input.remaining() < FIXED_BYTES - 5 {
            return Err(CUT_OFF);
        }
        state.next_offset = input.get_u64_le();
        state.next_position = input.get_u64_le();
        state.start_offset = input.get_u64_le();
        state.first_position = input.get_u64_le();
        state.max_timestamp = input.get_i64_le();
        state.producers.forgotten = input.get_i64_le();
        state.clean = Clean {
            offset: input.get_u64_le(),
            position: input.get_u64_le(),
            bytes: input.get_u64_le(),
            dirty_bytes: input.get_u64_le(),
            tombstones: input.get_u64_le(),
            aging_offset: input.get_u64_le(),
            aging_since_ms: input.get_i64_le(),
        };
        state.index.stride = input.get_u64_le().max(1);
        let ordered = state.start_offset <= state.next_offset
            && state.first_position <= state.next_position
            && state.clean.offset <= state.next_offset
            && state.clean.position <= state.next_position
            && state.clean.aging_offset <= state.clean.offset
            && i64::try_from(state.next_offset).is_ok();
        if !ordered {
            return Err("the bounds of the snapshot are not in order");
        }
        let entries = input.get_u32_le() as usize;
        if entries > input.remaining() / ENTRY_BYTES {
            return Err(CUT_OFF);
        }
        for _ in 0..entries {
            let entry = Entry {
                position: input.get_u64_le(),
                offset: input.get_u64_le(),
                timestamp_before: input.get_i64_le(),
            };
            let rises = state.index.entries.last().is_none_or(|last| {
                last.position < entry.position
                    && last.offset < entry.offset
                    && last.timestamp_before <= entry.timestamp_before
            });
            let inside =
                state.first_position <= entry.position && entry.position < state.next_position;
            if !rises || !inside {
                return Err("the index of the snapshot is not in order");
            }
            state.index.entries.push(entry);
        }
        for _ in 0..input.try_get_u32_le().map_err(|_| CUT_OFF)? {
            let (id, producer) = decode_producer(&mut input).ok_or(BAD_PRODUCER)?;
            state.producers.restore(id, producer);
        }
        if input.has_remaining() { Err("bytes follow the snapshot") } else { Ok(state) }
    }
}

fn decode_producer(input: &mut Bytes) -> Option<(i64, Producer)> {
    if input.remaining() < PRODUCER_BYTES {
        return None;
    }
    let (id, epoch) = (input.get_i64_le(), input.get_i16_le());
    let count = usize::from(input.get_u8());
    if count == 0 || count > WINDOW || input.remaining() < count * SENT_BYTES {
        return None;
    }
    let mut window = Window::default();
    for _ in 0..count {
        let (first, last) = (input.get_i32_le(), input.get_i32_le());
        window.push_back(Sent { first, last, offset: input.get_u64_le() });
    }
    Some((id, Producer { epoch, window }))
}

/// The largest snapshot under `limits`, in bytes.
pub(crate) fn max_bytes(limits: Limits) -> usize {
    FIXED_BYTES
        + limits.max_index_entries * ENTRY_BYTES
        + limits.max_producers * (PRODUCER_BYTES + WINDOW * SENT_BYTES)
}
