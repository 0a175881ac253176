//! Counts the bytes of commands and messages that a node keeps alive.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

/// How long what arrives counts as recent: longer than a status is behind.
const RECENT: Duration = Duration::from_millis(3);

/// Bytes that one life of a node keeps alive, counted from outside: every command that is
/// proposed there and every frame that arrives there.
#[derive(Debug, Default)]
pub(crate) struct Held {
    bytes: AtomicU64,
    recent: Mutex<VecDeque<(Instant, u64)>>,
}

struct Counted {
    data: Vec<u8>,
    held: Arc<Held>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.held.bytes.fetch_sub(self.data.len() as u64, Ordering::Relaxed);
    }
}

impl Held {
    /// Bytes that count until the last handle to them is dropped.
    pub(crate) fn count(self: &Arc<Self>, data: Vec<u8>) -> Bytes {
        let (now, bytes) = (Instant::now(), data.len() as u64);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut recent = self.recent.lock();
        recent.retain(|(at, _)| *at + RECENT >= now);
        recent.push_back((now, bytes));
        drop(recent);
        Bytes::from_owner(Counted { data, held: Arc::clone(self) })
    }

    /// How many bytes are alive now.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How many came in the last moments, alive or not: the node may not have handled them.
    pub(crate) fn recent(&self) -> u64 {
        let now = Instant::now();
        let recent = self.recent.lock();
        recent.iter().filter(|(at, _)| *at + RECENT >= now).map(|(_, bytes)| bytes).sum()
    }
}
