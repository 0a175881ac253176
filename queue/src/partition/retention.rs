//! What a partition need not keep.

use std::sync::Arc;

use super::Shared;
use super::read::{SCAN_BYTES, batches, no_batch};
use crate::config::Retention;
use crate::error::FetchError;
use crate::format::Batch;

impl Shared {
    pub(super) fn retention_offset(
        &self,
        retention: Retention,
        now_ms: i64,
    ) -> Result<u64, FetchError> {
        let mut keep_from = self.inner.lock().state.start_offset;
        if let Some(age) = retention.max_age {
            let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
            let oldest = now_ms.saturating_sub(age);
            keep_from = keep_from.max(self.offset_by_age(oldest)?);
        }
        if let Some(max_bytes) = retention.max_bytes {
            keep_from = keep_from.max(self.offset_by_size(max_bytes)?);
        }
        Ok(keep_from)
    }

    /// The first batch that is not older than `oldest`. A batch without a timestamp has no age: it
    /// stays until it goes by size.
    fn offset_by_age(&self, oldest: i64) -> Result<u64, FetchError> {
        let (generation, mut position, end, next_offset) = {
            let inner = self.inner.lock();
            let (generation, state) = (Arc::clone(&inner.generation), &inner.state);
            (generation, state.first_position, state.next_position, state.next_offset)
        };
        let stays = |batch: &&Batch| {
            let latest = batch.header().max_timestamp;
            latest < 0 || latest >= oldest
        };
        // Ends: each round reads at least one batch, or fails.
        while position < end {
            let batches = batches(generation.log(), position..end, SCAN_BYTES)?;
            if let Some(batch) = batches.iter().find(stays) {
                return Ok(batch.base_offset());
            }
            if batches.is_empty() {
                return Err(no_batch(position));
            }
            position += batches.len() as u64;
        }
        Ok(next_offset)
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
