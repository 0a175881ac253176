//! Generations of the log, each held by those who read from it.

use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::store::{PartitionLog, Retire};

/// Queues the deletion of a generation.
pub(super) type RetireFn = Box<dyn Fn(Retire) + Send + Sync>;

/// A generation of the log. Whoever looks up a position reads from the generation of the look-up:
/// in another one the position may be that of another batch. When the last holder of a replaced one
/// lets go, the store may delete it.
///
/// Never dropped under the partition's lock: the drop queues a write.
pub(super) struct Generation {
    log: Arc<dyn PartitionLog>,
    retire: RetireFn,
    /// The generation that took over, and from which position on it has the same batches. A reader
    /// of this one keeps that one from being retired first.
    successor: OnceLock<(Arc<Self>, u64)>,
}

impl Generation {
    pub(super) fn new(log: Arc<dyn PartitionLog>, retire: RetireFn) -> Self {
        Self { log, retire, successor: OnceLock::new() }
    }

    pub(super) fn log(&self) -> &dyn PartitionLog {
        &*self.log
    }

    pub(super) fn number(&self) -> u64 {
        self.log.generation()
    }

    /// Notes what took over. Only the first call counts: a generation is replaced once.
    pub(super) fn replaced_by(&self, successor: Arc<Self>, end: u64) {
        let _ = self.successor.set((successor, end));
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let Some((successor, end)) = self.successor.take() else { return };
        (self.retire)(Retire { generation: self.number(), end });
        drop(successor);
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("log", &self.log).finish_non_exhaustive()
    }
}
