//! Queue of the frames that wait to be written to a connection.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use crate::wire::{Frame, Kind};

/// A piece up to this long is copied beside its neighbours: that costs less than an entry of a
/// vectored write.
const MAX_COPY_BYTES: usize = 1024;
/// Bytes gathered for one write, unless a single frame is longer.
const BATCH_BYTES: usize = 256 * 1024;
/// The most entries of one vectored write.
pub(crate) const MAX_SLICES: usize = 64;

/// The frames that wait, in order, within limits. Each has a place: the number of those before it
/// since the connection began.
#[derive(Debug)]
pub(crate) struct Outbox {
    /// `None`: withdrawn.
    queue: VecDeque<Option<Frame>>,
    /// The place of the next frame.
    next: u64,
    /// Of the frames in the queue and in the batch.
    bytes: usize,
    max_bytes: usize,
    max_frames: usize,
    /// These overtake, and one of each is enough.
    ping: Option<u64>,
    pong: Option<u64>,
}

impl Outbox {
    pub(crate) fn new(max_bytes: usize, max_frames: usize) -> Self {
        let (queue, next, bytes) = (VecDeque::new(), 0, 0);
        Self { queue, next, bytes, max_bytes, max_frames, ping: None, pong: None }
    }

    /// Whether a frame of this length finds room. The first one always does.
    pub(crate) fn has_room(&self, frame_bytes: usize) -> bool {
        self.queue.len() < self.max_frames
            && (self.bytes == 0 || self.bytes + frame_bytes <= self.max_bytes)
    }

    /// Queues a frame, for which the caller has asked whether there is room, and returns its place.
    pub(crate) fn push(&mut self, frame: Frame) -> u64 {
        self.bytes += frame.len();
        self.queue.push_back(Some(frame));
        self.next += 1;
        self.next - 1
    }

    /// Takes the place of a frame that is written without being queued.
    pub(crate) fn pass(&mut self) -> u64 {
        debug_assert!(self.queue.is_empty(), "nothing overtakes");
        self.next += 1;
        self.next - 1
    }

    pub(crate) fn ping(&mut self, id: u64) {
        self.ping = Some(id);
    }

    pub(crate) fn pong(&mut self, id: u64) {
        self.pong = Some(id);
    }

    /// Whether the frame at this place is in the queue. Those in a batch are not: they are to be
    /// put back first.
    pub(crate) fn is_waiting(&self, place: u64) -> bool {
        place >= self.front()
    }

    /// Takes a frame back, if it is in the queue.
    pub(crate) fn withdraw(&mut self, place: u64) -> bool {
        let Some(index) = place.checked_sub(self.front()) else { return false };
        let Some(slot) = self.queue.get_mut(index as usize) else { return false };
        if let Some(frame) = slot.take() {
            self.bytes -= frame.len();
        }
        true
    }

    /// Takes back every frame that still waits, and says how many messages, requests and answers
    /// there were.
    pub(crate) fn withdraw_all(&mut self) -> usize {
        let count = self.len();
        for frame in self.queue.drain(..).flatten() {
            self.bytes -= frame.len();
        }
        count
    }

    fn front(&self) -> u64 {
        self.next - self.queue.len() as u64
    }

    /// The frames that wait, with their places.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (u64, &Frame)> {
        let places = self.front()..;
        places.zip(&self.queue).filter_map(|(place, frame)| Some((place, frame.as_ref()?)))
    }

    /// Nothing waits to be put into a batch.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.ping.is_none() && self.pong.is_none()
    }

    /// How many messages, requests and answers are in the queue.
    pub(crate) fn len(&self) -> usize {
        self.queue.iter().flatten().filter(|frame| !frame.is_signal()).count()
    }

    /// Of all that has not been written.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Moves frames into the batch, until it is full.
    pub(crate) fn fill(&mut self, batch: &mut Batch) {
        for (kind, id) in [(Kind::Ping, self.ping.take()), (Kind::Pong, self.pong.take())] {
            if let Some(id) = id {
                let frame = Frame::bare(kind, id);
                self.bytes += frame.len();
                batch.add_bare(&frame);
            }
        }
        while let Some(slot) = self.queue.front() {
            let frame_bytes = slot.as_ref().map_or(0, Frame::len);
            let is_full = batch.bytes > 0 && batch.bytes + frame_bytes > BATCH_BYTES;
            if is_full || batch.chunks.len() >= MAX_SLICES {
                break;
            }
            let Some(slot) = self.queue.pop_front() else { break };
            batch.add(slot);
        }
        batch.seal();
    }

    /// Takes back the frames of a batch of which no byte has been written: they wait again, at
    /// their places. Only what has been begun stays in the batch.
    pub(crate) fn put_back(&mut self, batch: &mut Batch) {
        while let Some(slot) = batch.waiting.pop_back() {
            self.queue.push_front(slot);
        }
        batch.truncate(batch.bare + batch.begun);
    }

    /// Bytes of the batch were written.
    pub(crate) fn written(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.bytes, "what was written had been counted");
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// The connection is gone: forgets everything, and begins the next one at the same place.
    pub(crate) fn clear(&mut self) {
        self.queue.clear();
        (self.bytes, self.ping, self.pong) = (0, None, None);
    }

    /// A frame was begun outside the queue: counts what is left of it.
    pub(crate) fn begun(&mut self, bytes: usize) {
        self.bytes += bytes;
    }
}

/// The write in progress: long pieces as they are, short ones copied together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    chunks: VecDeque<Bytes>,
    staging: BytesMut,
    bytes: usize,
    /// Of the ping and the pong, which come first.
    bare: usize,
    /// What is left of a frame of which a part has been written; comes first too.
    begun: usize,
    /// The slots of the queue from the first frame on of which no byte has been written.
    /// Invariants: `bytes` is `bare`, `begun` and the lengths of these; the first is a frame.
    waiting: VecDeque<Option<Frame>>,
}

impl Batch {
    /// Adds a ping or a pong.
    fn add_bare(&mut self, frame: &Frame) {
        self.copy(frame, 0);
        self.bare += frame.len();
    }

    /// Adds a slot of the queue.
    fn add(&mut self, slot: Option<Frame>) {
        match &slot {
            Some(frame) => self.copy(frame, 0),
            None if self.waiting.is_empty() => return,
            None => {}
        }
        self.waiting.push_back(slot);
    }

    /// Adds a frame without its first bytes, which have been written.
    pub(crate) fn add_rest(&mut self, frame: &Frame, written: usize) {
        self.copy(frame, written);
        self.begun += frame.len() - written;
    }

    fn copy(&mut self, frame: &Frame, written: usize) {
        let mut skip = written.min(frame.header.len());
        self.staging.extend_from_slice(&frame.header[skip..]);
        skip = written - skip;
        for piece in frame.parts.pieces() {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            if piece.len() - skipped <= MAX_COPY_BYTES {
                self.staging.extend_from_slice(&piece[skipped..]);
            } else {
                self.seal();
                self.chunks.push_back(piece.slice(skipped..));
            }
        }
        self.bytes += frame.len() - written;
    }

    /// Makes what has been copied a chunk.
    pub(crate) fn seal(&mut self) {
        if !self.staging.is_empty() {
            self.chunks.push_back(self.staging.split().freeze());
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether a part of a frame has been written, and the rest has not.
    pub(crate) fn is_in_a_frame(&self) -> bool {
        self.begun > 0
    }

    /// Fills the slices of a vectored write and says how many it filled.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; MAX_SLICES]) -> usize {
        let mut count = 0;
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            *slice = IoSlice::new(chunk);
            count += 1;
        }
        count
    }

    /// These bytes have been written.
    pub(crate) fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        self.count_written(written);
        while written > 0 {
            let Some(chunk) = self.chunks.front_mut() else {
                debug_assert_eq!(written, 0, "no more is written than there was");
                return;
            };
            if chunk.len() > written {
                chunk.advance(written);
                return;
            }
            written -= chunk.len();
            self.chunks.pop_front();
        }
    }

    fn count_written(&mut self, mut written: usize) {
        for front in [&mut self.bare, &mut self.begun] {
            let of_front = written.min(*front);
            *front -= of_front;
            written -= of_front;
        }
        // Ends: each turn takes a slot out.
        while written > 0
            && let Some(slot) = self.waiting.pop_front()
        {
            let frame_bytes = slot.as_ref().map_or(0, Frame::len);
            let of_frame = written.min(frame_bytes);
            written -= of_frame;
            self.begun = frame_bytes - of_frame;
        }
        // Ends: each turn takes a slot out.
        while let Some(None) = self.waiting.front() {
            self.waiting.pop_front();
        }
        debug_assert_eq!(written, 0, "no more is written than there was");
    }

    /// Keeps the first bytes only.
    fn truncate(&mut self, bytes: usize) {
        let mut kept = 0;
        let is_kept = |chunk: &mut Bytes| {
            chunk.truncate(bytes - kept);
            kept += chunk.len();
            !chunk.is_empty()
        };
        self.chunks.retain_mut(is_kept);
        self.bytes = bytes;
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}
