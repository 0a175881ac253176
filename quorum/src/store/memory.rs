//! Records in memory, for tests and for nodes that need no disk.

use std::collections::BTreeMap;
use std::ops::Bound;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{Change, ReplicaStore, StoreError};

/// Records in memory. They are lost with the process: the node must then be started by
/// [`Node::start_lost`](crate::Node::start_lost).
#[derive(Debug, Default)]
pub struct MemoryStore {
    records: Mutex<BTreeMap<Bytes, Bytes>>,
}

impl MemoryStore {
    /// A store without records.
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl ReplicaStore for MemoryStore {
    async fn get(&self, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let records = self.records.lock();
        Ok(keys.iter().map(|key| records.get(key).cloned()).collect())
    }

    async fn apply(&self, batch: Vec<Change>) -> Result<(), StoreError> {
        let mut records = self.records.lock();
        for Change { key, record } in batch {
            match record {
                Some(record) => records.insert(key, record),
                None => records.remove(&key),
            };
        }
        Ok(())
    }

    async fn scan(
        &self,
        prefix: &[u8],
        after: &[u8],
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let records = self.records.lock();
        let from = if after >= prefix { Bound::Excluded(after) } else { Bound::Included(prefix) };
        let (mut page, mut bytes) = (Vec::new(), 0);
        for (key, record) in records.range::<[u8], _>((from, Bound::Unbounded)) {
            bytes += key.len() + record.len();
            if !key.starts_with(prefix) || (bytes > max_bytes && !page.is_empty()) {
                break;
            }
            page.push((key.clone(), record.clone()));
        }
        Ok(page)
    }

    async fn clear(&self) -> Result<(), StoreError> {
        self.records.lock().clear();
        Ok(())
    }
}
