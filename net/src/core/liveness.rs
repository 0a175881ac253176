//! When to ask a peer for a sign of life, and when to give it up.

/// Looked at once per tick, so that a frame costs no reading of a clock. Times in nanoseconds.
#[derive(Debug)]
pub(crate) struct Liveness {
    dead_after: u64,
    heard_at: u64,
    heard: bool,
    read_bytes: usize,
    written_bytes: usize,
}

/// In one tick this many bytes of an unfinished frame show that its sender is alive. Fewer do
/// not: a peer that trickles bytes may not hold a connection for ever.
const PROGRESS_BYTES: usize = 64 * 1024;

impl Liveness {
    pub(crate) fn new(now: u64, dead_after: u64) -> Self {
        Self { dead_after, heard_at: now, heard: false, read_bytes: 0, written_bytes: 0 }
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
        let progress = self.read_bytes.max(self.written_bytes) >= PROGRESS_BYTES;
        if self.heard || progress {
            self.heard_at = now;
        }
        (self.heard, self.read_bytes, self.written_bytes) = (false, 0, 0);
        now.saturating_sub(self.heard_at) >= self.dead_after
    }
}
