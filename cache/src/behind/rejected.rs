//! Writes that the sink has rejected for good: kept apart, so that they pin nothing.

use std::sync::Arc;

use hashbrown::HashMap;

use super::Shared;
use super::log::Change;
use crate::error::WriteError;
use crate::flights::{Key, Value};

/// A write that the sink has rejected for good.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RejectedWrite<K, V> {
    /// The key.
    pub key: K,
    /// The value; `None` for a deletion.
    pub value: Option<V>,
    /// Why, in the sink's words.
    pub reason: String,
}

struct Rejection<V> {
    value: Arc<Option<V>>,
    reason: Arc<str>,
}

/// The rejected write of each key; a newer one of the key takes its place.
pub(crate) struct Rejections<K, V> {
    table: HashMap<K, Rejection<V>, foldhash::fast::RandomState>,
}

impl<K, V> Default for Rejections<K, V> {
    fn default() -> Self {
        Self { table: HashMap::default() }
    }
}

impl<K: Key, V: Value> Rejections<K, V> {
    #[cfg(feature = "journal")]
    pub(crate) fn recovered(all: impl Iterator<Item = RejectedWrite<K, V>>) -> Self {
        let mut rejections = Self::default();
        for RejectedWrite { key, value, reason } in all {
            rejections.insert(key, Arc::new(value), reason.into());
        }
        rejections
    }

    pub(crate) fn insert(&mut self, key: K, value: Arc<Option<V>>, reason: Arc<str>) {
        self.table.insert(key, Rejection { value, reason });
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.table.contains_key(key)
    }

    pub(crate) fn remove(&mut self, key: &K) -> bool {
        self.table.remove(key).is_some()
    }

    fn value(&self, key: &K) -> Option<Arc<Option<V>>> {
        self.table.get(key).map(|rejection| Arc::clone(&rejection.value))
    }

    /// Everything, to be encoded again.
    pub(crate) fn all(&self) -> Vec<(K, Arc<Option<V>>, Arc<str>)> {
        let one = |(key, rejection): (&K, &Rejection<V>)| {
            (key.clone(), Arc::clone(&rejection.value), Arc::clone(&rejection.reason))
        };
        self.table.iter().map(one).collect()
    }
}

impl<K: Key, V: Value> Shared<K, V> {
    /// A copy of every rejected write.
    pub(crate) fn rejected_writes(&self) -> Vec<RejectedWrite<K, V>> {
        let all = self.rejected.lock().all();
        let public = |(key, value, reason): (K, Arc<Option<V>>, Arc<str>)| RejectedWrite {
            key,
            value: Option::clone(&value),
            reason: reason.as_ref().to_owned(),
        };
        all.into_iter().map(public).collect()
    }

    /// Puts a rejected write back into the backlog. False where there is none, or where the key was
    /// written again since.
    pub(crate) async fn retry_rejected(self: &Arc<Self>, key: &K) -> Result<bool, WriteError> {
        let Some(value) = self.rejected.lock().value(key) else { return Ok(false) };
        let record = self.log.encode(key, Option::as_ref(&value));
        let (settled, bytes) = (self.log.encode_settled(key), record.len() as u64);
        let reply = {
            let _order = self.order.lock();
            let ticket = {
                let mut state = self.state.lock();
                let is_same =
                    self.rejected.lock().value(key).is_some_and(|now| Arc::ptr_eq(&now, &value));
                if state.has(key) || !is_same {
                    return Ok(false);
                }
                state.begin(key, bytes)
            };
            let change =
                Change { writes: vec![record], rejected: vec![settled], ..Change::default() };
            let (done, reply) = self.on_acknowledged(key, ticket, value, false);
            if let Err(error) = self.log.submit(change, done) {
                self.state.lock().abandon(key, ticket);
                return Err(error);
            }
            reply
        };
        reply.await.unwrap_or(Err(WriteError::Panicked))?;
        self.rejected.lock().remove(key);
        Ok(true)
    }

    /// Forgets a rejected write. False where there is none.
    pub(crate) async fn discard_rejected(self: &Arc<Self>, key: &K) -> Result<bool, WriteError> {
        if !self.rejected.lock().contains(key) {
            return Ok(false);
        }
        let change = Change { rejected: vec![self.log.encode_settled(key)], ..Change::default() };
        self.submit_and_wait(change).await?;
        Ok(self.rejected.lock().remove(key))
    }

    /// Hands in a change that appends no writes, and waits until the log has it.
    pub(crate) async fn submit_and_wait(&self, change: Change) -> Result<(), WriteError> {
        let (reply, receiver) = tokio::sync::oneshot::channel();
        let done = Box::new(move |outcome: Result<u64, WriteError>| {
            // An error here says that the caller has gone.
            let _ = reply.send(outcome.map(|_| ()));
        });
        self.log.submit(change, done)?;
        receiver.await.unwrap_or(Err(WriteError::Panicked))
    }
}
