//! Where acknowledged writes are until they are flushed: the seam between the backlog and the
//! journal, and the form without a journal.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use crate::error::WriteError;

/// Called with the position of the first record of [`Change::writes`].
pub(crate) type Done = Box<dyn FnOnce(Result<u64, WriteError>) + Send>;

/// A call of [`Done`] with its outcome.
pub(crate) type Completion = Box<dyn FnOnce() + Send>;

/// Makes the call that [`WriteLog::submit`] has returned.
pub(crate) fn complete(completion: Option<Completion>) {
    if let Some(completion) = completion {
        completion();
    }
}

/// What a log adds to each record of a commit.
pub(crate) const RECORD_BYTES: usize = 4;

/// Changes that happen together.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// Records to append to the writes.
    pub(crate) writes: Vec<Vec<u8>>,
    /// Records to append to the rejected writes.
    #[cfg_attr(not(feature = "journal"), expect(dead_code, reason = "a log that keeps nothing"))]
    pub(crate) rejected: Vec<Vec<u8>>,
    /// Writes below this position are no longer needed.
    #[cfg_attr(not(feature = "journal"), expect(dead_code, reason = "a log that keeps nothing"))]
    pub(crate) release: Option<u64>,
    /// Rejected writes below this position are no longer needed.
    #[cfg_attr(not(feature = "journal"), expect(dead_code, reason = "a log that keeps nothing"))]
    pub(crate) release_rejected: Option<u64>,
    /// Nobody has to know when it is durable.
    #[cfg_attr(not(feature = "journal"), expect(dead_code, reason = "a log that keeps nothing"))]
    pub(crate) is_lazy: bool,
}

/// The right to use the log. Shared by the backlog, its flusher and every change on its way to the
/// log; the last one to end gives the namespace back.
pub(crate) struct Hold {
    /// Ends before `_ended` does.
    _lease: Option<Box<dyn Send + Sync>>,
    _ended: watch::Sender<()>,
}

impl Hold {
    /// A hold of `lease`, and what is closed when the hold has ended.
    pub(crate) fn new(lease: Option<Box<dyn Send + Sync>>) -> (Self, watch::Receiver<()>) {
        let (ended, receiver) = watch::channel(());
        (Self { _lease: lease, _ended: ended }, receiver)
    }
}

/// A durable log of writes, and one of rejected writes.
pub(crate) trait WriteLog<K, V>: Send + Sync {
    /// A record of a write. Runs foreign code.
    fn encode(&self, key: &K, value: Option<&V>) -> Vec<u8>;
    /// Bytes that the write counts for, see [`WriteBehindConfig::max_bytes`]. Runs foreign code.
    ///
    /// [`WriteBehindConfig::max_bytes`]: crate::WriteBehindConfig::max_bytes
    fn weigh(&self, key: &K, value: Option<&V>, record: &[u8]) -> u64;
    /// A record of a rejected write. Runs foreign code.
    fn encode_rejected(&self, key: &K, value: Option<&V>, reason: &str) -> Vec<u8>;
    /// A record that says that a key's rejected write is settled. Runs foreign code.
    fn encode_settled(&self, key: &K) -> Vec<u8>;
    /// Hands a change in without waiting. Changes are applied in the order of the calls. `done` is
    /// not called where this fails, as it does for a write that is so large that no record could
    /// say that the sink has rejected it. A log that is done at once returns the call of `done`,
    /// for the caller to make after its locks are released. `hold` ends after `done`.
    #[must_use = "the completion, if there is one, is to be called without locks"]
    fn submit(
        &self,
        change: Change,
        hold: Arc<Hold>,
        done: Done,
    ) -> Result<Option<Completion>, WriteError>;
    /// Bytes of the records that one change may append to one of the logs, with [`RECORD_BYTES`]
    /// for each.
    fn max_batch_bytes(&self) -> usize;
    /// The bounds of the rejected writes.
    fn rejected_bounds(&self) -> std::ops::Range<u64>;
    /// How many records of writes are kept.
    fn len(&self) -> u64;
}

/// Says how many bytes a write takes in memory; a deletion has no value.
pub(crate) type WriteWeigher<K, V> = Box<dyn Fn(&K, Option<&V>) -> u64 + Send + Sync>;

/// Keeps nothing: what was acknowledged and not flushed is lost with the process.
pub(crate) struct NoLog<K, V> {
    end: AtomicU64,
    weigher: WriteWeigher<K, V>,
}

impl<K, V> NoLog<K, V> {
    pub(crate) fn new(weigher: WriteWeigher<K, V>) -> Self {
        Self { end: AtomicU64::new(0), weigher }
    }
}

impl<K, V> WriteLog<K, V> for NoLog<K, V> {
    fn weigh(&self, key: &K, value: Option<&V>, _: &[u8]) -> u64 {
        (self.weigher)(key, value)
    }

    fn encode(&self, _: &K, _: Option<&V>) -> Vec<u8> {
        Vec::new()
    }

    fn encode_rejected(&self, _: &K, _: Option<&V>, _: &str) -> Vec<u8> {
        Vec::new()
    }

    fn encode_settled(&self, _: &K) -> Vec<u8> {
        Vec::new()
    }

    fn submit(
        &self,
        change: Change,
        hold: Arc<Hold>,
        done: Done,
    ) -> Result<Option<Completion>, WriteError> {
        let position = self.end.fetch_add(change.writes.len() as u64, Ordering::Relaxed);
        Ok(Some(Box::new(move || {
            done(Ok(position));
            drop(hold);
        })))
    }

    fn max_batch_bytes(&self) -> usize {
        usize::MAX
    }

    fn rejected_bounds(&self) -> std::ops::Range<u64> {
        0..0
    }

    fn len(&self) -> u64 {
        0
    }
}
