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

    /// Whether the frame at this place still waits: no byte of it has been given to a socket.
    pub(crate) fn is_waiting(&self, place: u64) -> bool {
        place >= self.front()
    }

    /// Takes a frame back, if it still waits.
    pub(crate) fn withdraw(&mut self, place: u64) -> bool {
        let Some(index) = place.checked_sub(self.front()) else { return false };
        let Some(slot) = self.queue.get_mut(index as usize) else { return false };
        if let Some(frame) = slot.take() {
            self.bytes -= frame.len();
        }
        true
    }

    /// Takes back every frame that still waits, and says how many there were.
    pub(crate) fn withdraw_all(&mut self) -> usize {
        let mut count = 0;
        for frame in self.queue.drain(..).flatten() {
            self.bytes -= frame.len();
            count += 1;
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

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
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
                batch.add(&frame);
            }
        }
        while let Some(slot) = self.queue.front() {
            let frame_bytes = slot.as_ref().map_or(0, Frame::len);
            let is_full = batch.bytes > 0 && batch.bytes + frame_bytes > BATCH_BYTES;
            if is_full || batch.chunks.len() >= MAX_SLICES {
                break;
            }
            if let Some(frame) = self.queue.pop_front().flatten() {
                batch.add(&frame);
            }
        }
        batch.seal();
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
}

impl Batch {
    /// Adds a whole frame.
    pub(crate) fn add(&mut self, frame: &Frame) {
        self.add_rest(frame, 0);
    }

    /// Adds a frame without its first bytes, which have been written.
    pub(crate) fn add_rest(&mut self, frame: &Frame, written: usize) {
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

    pub(crate) fn clear(&mut self) {
        self.chunks.clear();
        self.staging.clear();
        self.bytes = 0;
    }
}
