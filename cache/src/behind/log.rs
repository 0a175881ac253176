//! Where acknowledged writes are until they are flushed: the seam between the backlog and the
//! journal, and the form without a journal.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::WriteError;

/// Called with the position of the first record of [`Change::writes`].
pub(crate) type Done = Box<dyn FnOnce(Result<u64, WriteError>) + Send>;

/// Changes that happen together.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// Records to append to the writes.
    pub(crate) writes: Vec<Vec<u8>>,
    /// Records to append to the rejected writes.
    pub(crate) rejected: Vec<Vec<u8>>,
    /// Writes below this position are no longer needed.
    pub(crate) release: Option<u64>,
    /// Rejected writes below this position are no longer needed.
    pub(crate) release_rejected: Option<u64>,
    /// Nobody has to know when it is durable.
    pub(crate) is_lazy: bool,
}

/// A durable log of writes, and one of rejected writes.
pub(crate) trait WriteLog<K, V>: Send + Sync {
    /// A record of a write. Runs foreign code.
    fn encode(&self, key: &K, value: Option<&V>) -> Vec<u8>;
    /// A record of a rejected write. Runs foreign code.
    fn encode_rejected(&self, key: &K, value: Option<&V>, reason: &str) -> Vec<u8>;
    /// A record that says that a key's rejected write is settled. Runs foreign code.
    fn encode_settled(&self, key: &K) -> Vec<u8>;
    /// Hands a change in without waiting. Changes are applied in the order of the calls. `done` is
    /// not called where this fails.
    fn submit(&self, change: Change, done: Done) -> Result<(), WriteError>;
    /// The bounds of the rejected writes.
    fn rejected_bounds(&self) -> std::ops::Range<u64>;
    /// How many records of writes are kept.
    fn len(&self) -> u64;
}

/// Keeps nothing: what was acknowledged and not flushed is lost with the process.
#[derive(Debug, Default)]
pub(crate) struct NoLog {
    end: AtomicU64,
}

impl<K, V> WriteLog<K, V> for NoLog {
    fn encode(&self, _: &K, _: Option<&V>) -> Vec<u8> {
        Vec::new()
    }

    fn encode_rejected(&self, _: &K, _: Option<&V>, _: &str) -> Vec<u8> {
        Vec::new()
    }

    fn encode_settled(&self, _: &K) -> Vec<u8> {
        Vec::new()
    }

    fn submit(&self, change: Change, done: Done) -> Result<(), WriteError> {
        let count = change.writes.len() as u64;
        done(Ok(self.end.fetch_add(count, Ordering::Relaxed)));
        Ok(())
    }

    fn rejected_bounds(&self) -> std::ops::Range<u64> {
        0..0
    }

    fn len(&self) -> u64 {
        0
    }
}
