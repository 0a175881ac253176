//! A turn: the partition writes nothing while it is taken, so that a commit of the journal can
//! append to several partitions at once.

use std::sync::Arc;

use super::append::{self, Flight, Group};
use super::{Appended, Inner, Partition, Shared};
use crate::error::{ProduceError, StoreError};
use crate::format::{Batch, Header};
use crate::store::{Durability, Write};

/// What is called when the turn has come.
pub(super) type Waiting = Box<dyn FnOnce(Result<Turn, StoreError>) + Send>;

/// The right to write to a partition. Dropping it lets the partition go on.
///
/// Whoever takes several turns takes them in the order of the partitions' numbers, so that no two
/// wait for each other.
pub(crate) struct Turn {
    shared: Arc<Shared>,
    /// Staged in the partition.
    batches: Vec<Batch>,
    /// It was landed, and the partition goes on.
    is_over: bool,
}

impl Turn {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        let shared = Arc::clone(shared);
        Self { shared, batches: Vec::new(), is_over: false }
    }

    /// Why the batch cannot be staged.
    pub(crate) fn check(&self, batch: &Batch) -> Option<ProduceError> {
        let inner = self.shared.inner.lock();
        self.shared.check(&inner, batch)
    }

    /// Gives a batch its offset in the write that is being put together. It is not of an
    /// idempotent producer, and was checked.
    pub(crate) fn stage(&mut self, batch: Batch) -> Appended {
        let header: Header = *batch.header();
        debug_assert!(!header.is_idempotent());
        let base_offset = {
            let mut inner = self.shared.inner.lock();
            let Inner { state, queue, .. } = &mut *inner;
            let base_offset = state.offset_behind(&queue.staged);
            let _ = state.stage(&mut queue.staged, &header, self.shared.config.limits());
            base_offset
        };
        let batch = batch.placed(base_offset, 0);
        let last_offset = batch.last_offset();
        self.batches.push(batch);
        Appended { base_offset, last_offset, is_duplicate: false }
    }

    /// What the partition writes; `None` when nothing was staged.
    pub(crate) fn write(&self) -> Option<Write> {
        let batches: Vec<_> = self.batches.iter().map(|batch| batch.bytes().clone()).collect();
        let durability = Durability::Synced;
        (!batches.is_empty()).then(|| Write { batches, durability, ..Write::default() })
    }

    /// Takes what the store says about the write, and ends the turn.
    pub(crate) fn land(mut self, result: Result<(), StoreError>) {
        let batches = std::mem::take(&mut self.batches);
        if batches.is_empty() {
            return;
        }
        let batches = batches.into_iter().map(|batch| (batch, nobody())).collect();
        let group = Group { batches, durability: Some(Durability::Synced), ..Group::default() };
        append::land(&self.shared, Flight::Group(group), result);
        self.is_over = true;
        append::drive(&self.shared);
    }
}

fn nobody() -> append::Answer {
    Box::new(|_| {})
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_over {
            self.shared.inner.lock().queue.give_up_turn();
            append::drive(&self.shared);
        }
    }
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn").field("batches", &self.batches.len()).finish_non_exhaustive()
    }
}

impl Partition {
    /// Calls `then` when no write is on its way; none begins until the turn is over.
    pub(crate) fn take_turn(&self, then: impl FnOnce(Result<Turn, StoreError>) + Send + 'static) {
        append::wait_for_turn(&self.shared, Box::new(then));
    }

    /// As [`append`](Self::append), by a caller that bounds its own bytes, with a callback that is
    /// called without a lock of the partition.
    pub(crate) fn append_then(
        &self,
        batch: Batch,
        durability: Durability,
        then: impl FnOnce(Result<Appended, ProduceError>) + Send + 'static,
    ) {
        append::begin(&self.shared, batch, durability, true, Box::new(then));
    }

    /// Whether it takes no more batches.
    pub(crate) fn is_stopped(&self) -> bool {
        self.shared.inner.lock().stopped.is_some()
    }

    /// The largest batch that an append takes.
    pub(crate) fn max_batch_bytes(&self) -> usize {
        self.shared.max_batch_bytes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::Config;
    use crate::format::{BatchBuilder, Record};
    use crate::store::MemoryPartition;

    fn one(value: &'static str) -> Batch {
        let mut builder = BatchBuilder::new();
        builder.push(&Record::new(value)).unwrap();
        builder.finish().unwrap()
    }

    #[test]
    fn nothing_is_written_while_a_turn_is_taken() {
        let partition = Partition::open(MemoryPartition::new(1 << 20), Config::default()).unwrap();
        let (sender, turns) = mpsc::channel();
        partition.take_turn(move |turn| sender.send(turn).unwrap());
        let mut turn = turns.try_recv().unwrap().unwrap();
        let (sender, answers) = mpsc::channel();
        partition.append_then(one("behind the turn"), Durability::Synced, move |answer| {
            sender.send(answer.map(|appended| appended.base_offset)).unwrap();
        });
        let (sender, next_turns) = mpsc::channel();
        partition.take_turn(move |turn| sender.send(turn.map(|_| ())).unwrap());
        assert_eq!(partition.offsets().end, 0);
        assert!(answers.try_recv().is_err() && next_turns.try_recv().is_err());
        assert_eq!(turn.stage(one("in the turn")).base_offset, 0);
        drop(turn.write());
        turn.land(Ok(()));
        assert_eq!(answers.try_recv().unwrap(), Ok(1), "the append has the offset behind it");
        assert!(next_turns.try_recv().is_ok());
    }
}
