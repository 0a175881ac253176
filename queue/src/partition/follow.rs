//! Following a log that others write: the view of a replica's readers.

use super::{Covered, Partition, Tail, recover};
use crate::error::OpenError;
use crate::format::Batch;

/// Bytes that are read at once.
const READ_BYTES: usize = 1 << 20;

impl Partition {
    /// Takes over what the store shows beyond what this partition knows, and wakes the readers that
    /// wait for it. For a partition that writes nothing itself.
    ///
    /// # Errors
    /// The store holds what cannot follow, or cannot be read.
    pub(crate) fn catch_up(&self) -> Result<(), OpenError> {
        let shared = &self.shared;
        let readers = {
            let mut inner = shared.inner.lock();
            let inner = &mut *inner;
            let log = shared.store.log();
            let bounds = log.bounds();
            if !(bounds.start..=bounds.end).contains(&inner.state.next_position) {
                // A snapshot of the group has taken the place of the log.
                let (state, covered, bytes_behind) = recover(&*shared.store, &shared.config)?;
                inner.tail = Tail::new(shared.config.tail_cache_bytes, state.next_position);
                (inner.state, inner.covered, inner.bytes_behind) = (state, covered, bytes_behind);
            }
            // Ends: each round applies at least one batch, or leaves with an error.
            while inner.state.next_position < bounds.end {
                let position = inner.state.next_position;
                let damaged = |why: &str| OpenError::Damaged { position, why: why.to_owned() };
                let read = log.read(position..bounds.end, READ_BYTES)?;
                if read.is_empty() {
                    return Err(damaged("the store ends before its bounds"));
                }
                for bytes in read {
                    let batch = Batch::from_store(bytes);
                    let batch = batch.map_err(|error| damaged(&error.to_string()))?;
                    let applied = inner.state.apply(batch.header(), shared.config.limits());
                    applied.map_err(damaged)?;
                    inner.tail.push(batch);
                    inner.appended += 1;
                }
            }
            if bounds.start > inner.state.first_position {
                let start_offset = match log.read(bounds.start..bounds.end, 1)?.into_iter().next() {
                    Some(bytes) => {
                        let header = super::header_of(bytes).map_err(|error| {
                            let (position, why) = (bounds.start, error.to_string());
                            OpenError::Damaged { position, why }
                        })?;
                        header.base_offset as u64
                    }
                    None => inner.state.next_offset,
                };
                inner.state.release(bounds.start, start_offset.min(inner.state.next_offset));
                inner.tail.release(bounds.start);
                inner.covered = Covered::by(&inner.state);
            }
            inner.synced_offset = inner.state.next_offset;
            inner.waiters.take_below(inner.state.next_offset)
        };
        readers.into_iter().for_each(std::task::Waker::wake);
        Ok(())
    }

    /// The position that the next batch gets.
    pub(crate) fn next_position(&self) -> u64 {
        self.shared.inner.lock().state.next_position
    }
}
