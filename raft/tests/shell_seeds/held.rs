//! Counts the bytes of commands and messages that a node keeps alive.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

/// Bytes that one life of a node keeps alive, counted from outside: every command that is
/// proposed there and every frame that arrives there.
#[derive(Debug, Default)]
pub(crate) struct Held(AtomicU64);

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
        self.held.0.fetch_sub(self.data.len() as u64, Ordering::Relaxed);
    }
}

impl Held {
    /// Bytes that count until the last handle to them is dropped.
    pub(crate) fn count(self: &Arc<Self>, data: Vec<u8>) -> Bytes {
        self.0.fetch_add(data.len() as u64, Ordering::Relaxed);
        Bytes::from_owner(Counted { data, held: Arc::clone(self) })
    }

    /// How many bytes are alive now.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
