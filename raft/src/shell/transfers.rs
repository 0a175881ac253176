//! What the transfers of snapshots of a node share: the rate, and what operators see of them.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::types::SnapshotProgress;

/// How far a transfer may catch up after its timer fired late. Timers are late by about a
/// millisecond, which would otherwise be lost with every chunk.
const CREDIT: Duration = Duration::from_millis(5);

/// The transfers of snapshots that a node sends for one group.
#[derive(Debug)]
pub(crate) struct Transfers {
    /// Over all transfers; `None`: no limit.
    bytes_per_second: Option<u64>,
    /// When the chunks that have been admitted have passed at that rate.
    free_at: Mutex<Option<Instant>>,
    /// By the id of the transfer, with its receiver.
    under_way: Mutex<BTreeMap<u64, (u64, SnapshotProgress)>>,
}

impl Transfers {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(None), under_way: Mutex::default() }
    }

    /// Admits a chunk if the rate allows it to be sent now. `Err`: the time at which to ask again.
    pub(crate) fn admit(&self, bytes: usize) -> Result<(), Instant> {
        let Some(rate) = self.bytes_per_second else { return Ok(()) };
        let now = Instant::now();
        let mut free_at = self.free_at.lock();
        if let Some(at) = free_at.filter(|at| *at > now) {
            return Err(at);
        }
        let nanos = (bytes as u128 * 1_000_000_000).div_ceil(u128::from(rate.max(1)));
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        *free_at = Some(free_at.map_or(now, |at| at.max(earliest)) + takes);
        Ok(())
    }

    /// The progress of the latest transfer to `peer` that is under way.
    pub(crate) fn progress(&self, peer: u64) -> Option<SnapshotProgress> {
        let under_way = self.under_way.lock();
        under_way.values().rev().find(|(to, _)| *to == peer).map(|(_, progress)| *progress)
    }
}

/// A transfer, shown to operators until it is dropped.
pub(crate) struct Shown<'a> {
    transfers: &'a Transfers,
    id: u64,
}

impl<'a> Shown<'a> {
    /// Shows the transfer `id` of the snapshot that covers `index` to the node `to`; `total` counts
    /// its chunks and bytes.
    pub(crate) fn new(
        transfers: &'a Transfers,
        (id, to): (u64, u64),
        index: u64,
        total: (u64, u64),
    ) -> Self {
        let (total_chunks, total_bytes) = total;
        let (acknowledged_chunks, acknowledged_bytes) = (0, 0);
        let progress = SnapshotProgress {
            index,
            acknowledged_chunks,
            total_chunks,
            acknowledged_bytes,
            total_bytes,
        };
        transfers.under_way.lock().insert(id, (to, progress));
        Self { transfers, id }
    }

    /// The receiver has all chunks before `number`, of whatever length.
    pub(crate) fn continues_at(&self, number: u64) {
        self.change(|progress| {
            let (total, chunks) = (u128::from(progress.total_bytes), progress.total_chunks);
            let bytes = total * u128::from(number) / u128::from(chunks.max(1));
            progress.acknowledged_chunks = number;
            progress.acknowledged_bytes = bytes as u64;
        });
    }

    /// The receiver has the next chunk, of `bytes`.
    pub(crate) fn acknowledged(&self, bytes: u64) {
        self.change(|progress| {
            progress.acknowledged_chunks += 1;
            let is_last = progress.acknowledged_chunks == progress.total_chunks;
            let bytes = progress.acknowledged_bytes.saturating_add(bytes);
            progress.acknowledged_bytes =
                if is_last { progress.total_bytes } else { bytes.min(progress.total_bytes) };
        });
    }

    fn change(&self, change: impl FnOnce(&mut SnapshotProgress)) {
        if let Some((_, progress)) = self.transfers.under_way.lock().get_mut(&self.id) {
            change(progress);
        }
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.transfers.under_way.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_ends_at_the_total_whatever_the_lengths_of_the_chunks() {
        let transfers = Transfers::new(None);
        let shown = Shown::new(&transfers, (3, 2), 70, (4, 1000));
        let at = || transfers.progress(2).map(|it| (it.acknowledged_chunks, it.acknowledged_bytes));
        shown.continues_at(1);
        assert_eq!(at(), Some((1, 250)), "the length of what came before is not known");
        shown.acknowledged(100);
        assert_eq!(at(), Some((2, 350)));
        shown.acknowledged(900);
        assert_eq!(at(), Some((3, 1000)), "never beyond the total");
        shown.acknowledged(1);
        assert_eq!(at(), Some((4, 1000)));
        assert_eq!(transfers.progress(4), None, "nothing is on its way there");
        drop(shown);
        assert_eq!(transfers.progress(2), None);
    }
}
