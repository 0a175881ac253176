//! What a partition need not keep.

use std::sync::Arc;

#[cfg(feature = "journal")]
use super::Partition;
use super::Shared;
use super::generation::Generation;
use super::read::{SCAN_BYTES, batches, no_batch};
use crate::config::Retention;
use crate::error::FetchError;

/// A search for the first offset that stays.
struct Search {
    /// What stays whatever its age.
    kept_by_size: u64,
    /// For the first batch that is not older than `max_age`, if there is such a limit.
    by_age: Option<ByAge>,
}

impl Search {
    /// Reads on. Returns the offset once it is found.
    fn step(&mut self) -> Result<Option<u64>, FetchError> {
        let Some(by_age) = &mut self.by_age else { return Ok(Some(self.kept_by_size)) };
        let found = by_age.step()?;
        Ok(found.map(|offset| offset.max(self.kept_by_size)))
    }
}

/// A search for the first batch that its age does not let go.
struct ByAge {
    generation: Arc<Generation>,
    position: u64,
    end: u64,
    next_offset: u64,
    /// The batch that stays unless one behind it is too old: it says that it is of the future.
    doubtful: Option<u64>,
    /// What is older goes, in ms since the UNIX epoch.
    oldest: i64,
    /// What is younger than this is of a clock that is wrong.
    youngest: i64,
}

impl ByAge {
    /// Reads on. Returns the offset once it is found.
    fn step(&mut self) -> Result<Option<u64>, FetchError> {
        if self.position >= self.end {
            return Ok(Some(self.doubtful.unwrap_or(self.next_offset)));
        }
        let batches = batches(self.generation.log(), self.position..self.end, SCAN_BYTES)?;
        if batches.is_empty() {
            return Err(no_batch(self.position));
        }
        for batch in &batches {
            let latest = batch.header().max_timestamp;
            if latest > self.youngest {
                self.doubtful.get_or_insert(batch.base_offset());
            } else if latest < 0 || latest >= self.oldest {
                return Ok(Some(self.doubtful.unwrap_or(batch.base_offset())));
            } else {
                // What is before it was appended before it, and is too old as well.
                self.doubtful = None;
            }
        }
        self.position += batches.len() as u64;
        Ok(None)
    }
}

#[cfg(feature = "journal")]
impl Partition {
    /// As [`retention_offset`](Self::retention_offset), for a task: lets others run between two
    /// reads. All that is too old is read, which may be much.
    pub(crate) async fn retention_offset_in_task(
        &self,
        retention: Retention,
        now_ms: i64,
    ) -> Result<u64, FetchError> {
        let mut search = self.shared.search(retention, now_ms)?;
        // Ends: each turn reads at least one batch, or fails.
        loop {
            if let Some(offset) = search.step()? {
                return Ok(offset);
            }
            tokio::task::yield_now().await;
        }
    }
}

impl Shared {
    pub(super) fn retention_offset(
        &self,
        retention: Retention,
        now_ms: i64,
    ) -> Result<u64, FetchError> {
        let mut search = self.search(retention, now_ms)?;
        // Ends: each turn reads at least one batch, or fails.
        loop {
            if let Some(offset) = search.step()? {
                return Ok(offset);
            }
        }
    }

    /// A batch without a timestamp has no age: it stays until it goes by size. One that is further
    /// in the future than `max_age` is as old as what was appended behind it.
    fn search(&self, retention: Retention, now_ms: i64) -> Result<Search, FetchError> {
        let start_offset = self.inner.lock().state.start_offset;
        let kept_by_size = match retention.max_bytes {
            Some(max_bytes) => start_offset.max(self.offset_by_size(max_bytes)?),
            None => start_offset,
        };
        let by_age = retention.max_age.map(|age| {
            let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
            let inner = self.inner.lock();
            ByAge {
                generation: Arc::clone(&inner.generation),
                position: inner.state.first_position,
                end: inner.state.next_position,
                next_offset: inner.state.next_offset,
                doubtful: None,
                oldest: now_ms.saturating_sub(age),
                youngest: now_ms.saturating_add(age),
            }
        });
        Ok(Search { kept_by_size, by_age })
    }

    /// The first offset behind the oldest extents without which `max_bytes` are left.
    fn offset_by_size(&self, max_bytes: u64) -> Result<u64, FetchError> {
        let generation = Arc::clone(&self.inner.lock().generation);
        let extents = generation.log().extents();
        let mut left: u64 = extents.iter().map(|extent| extent.bytes).sum();
        let mut position = None;
        for extent in extents {
            if left - extent.bytes < max_bytes {
                break;
            }
            left -= extent.bytes;
            position = Some(extent.end);
        }
        match position {
            Some(position) => self.offset_at(&generation, position),
            None => Ok(0),
        }
    }
}
