//! When to ask a peer for a sign of life, and when to give it up.

use std::time::Duration;

/// Looked at once per tick, so that a frame costs no reading of a clock. Times in nanoseconds.
#[derive(Debug)]
pub(crate) struct Liveness {
    dead_after: u64,
    heard_at: u64,
    heard: bool,
    read_bytes: usize,
    written_bytes: usize,
    /// In one tick this many bytes of an unfinished frame show that its sender is alive. Fewer do
    /// not: a peer that trickles bytes may not hold a connection for ever.
    progress_bytes: usize,
}

/// Per second. A rate, so that a line is not too slow because ticks are short.
const PROGRESS_RATE: u128 = 128 * 1024;
/// The most that is asked for in one tick, however long.
const MAX_PROGRESS_BYTES: u128 = 64 * 1024;

impl Liveness {
    pub(crate) fn new(now: u64, tick: Duration, dead_after: Duration) -> Self {
        let progress_bytes = PROGRESS_RATE * tick.as_nanos() / 1_000_000_000;
        Self {
            dead_after: dead_after.as_nanos() as u64,
            heard_at: now,
            heard: false,
            read_bytes: 0,
            written_bytes: 0,
            progress_bytes: progress_bytes.clamp(1, MAX_PROGRESS_BYTES) as usize,
        }
    }

    /// A whole frame came in.
    pub(crate) fn heard(&mut self) {
        self.heard = true;
    }

    /// Bytes came in.
    pub(crate) fn read(&mut self, bytes: usize) {
        self.read_bytes += bytes;
    }

    /// The peer's side took bytes. Only to be told of a connection of long messages, where an
    /// answer to a ping may be far behind; few bytes prove nothing, since buffers take them.
    pub(crate) fn written(&mut self, bytes: usize) {
        self.written_bytes += bytes;
    }

    /// Whether the peer is to be given up.
    pub(crate) fn tick(&mut self, now: u64) -> bool {
        let progress = self.read_bytes.max(self.written_bytes) >= self.progress_bytes;
        if self.heard || progress {
            self.heard_at = now;
        }
        (self.heard, self.read_bytes, self.written_bytes) = (false, 0, 0);
        now.saturating_sub(self.heard_at) >= self.dead_after
    }
}
