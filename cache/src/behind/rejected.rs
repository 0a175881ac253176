//! Writes that the sink has rejected for good: kept apart, so that they pin nothing.

use std::sync::Arc;

use hashbrown::HashMap;
use tokio::sync::oneshot;

use super::Shared;
use super::log::{Change, Completion, complete};
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

pub(crate) struct Rejection<V> {
    value: Arc<Option<V>>,
    reason: Arc<str>,
    /// A record that settles or replaces it is on its way to the log.
    is_settling: bool,
}

/// The rejected write of each key; a newer one of the key takes its place.
pub(crate) struct Rejections<K, V> {
    table: HashMap<K, Rejection<V>, foldhash::fast::RandomState>,
    /// How many are being settled.
    settling: usize,
}

impl<K, V> Default for Rejections<K, V> {
    fn default() -> Self {
        Self { table: HashMap::default(), settling: 0 }
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

    /// Returns what it replaces, to be dropped without the lock.
    pub(crate) fn insert(
        &mut self,
        key: K,
        value: Arc<Option<V>>,
        reason: Arc<str>,
    ) -> Option<Rejection<V>> {
        let replaced = self.table.insert(key, Rejection { value, reason, is_settling: false });
        self.settling -= usize::from(replaced.as_ref().is_some_and(|old| old.is_settling));
        replaced
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.table.contains_key(key)
    }

    /// Returns what is removed, to be dropped without the lock.
    pub(crate) fn remove(&mut self, key: &K) -> Option<(K, Rejection<V>)> {
        let removed = self.table.remove_entry(key)?;
        self.settling -= usize::from(removed.1.is_settling);
        Some(removed)
    }

    /// Begins to settle the rejection of a key. `None`: there is none, or it is being settled.
    pub(crate) fn settle(&mut self, key: &K) -> Option<Arc<Option<V>>> {
        let rejection = self.table.get_mut(key).filter(|rejection| !rejection.is_settling)?;
        rejection.is_settling = true;
        self.settling += 1;
        Some(Arc::clone(&rejection.value))
    }

    /// The rejection could not be settled: it stays.
    pub(crate) fn keep(&mut self, key: &K) {
        if let Some(rejection) = self.table.get_mut(key) {
            self.settling -= usize::from(std::mem::take(&mut rejection.is_settling));
        }
    }

    pub(crate) fn is_settling(&self) -> bool {
        self.settling > 0
    }

    /// Whether this is the value of the key's rejection.
    pub(crate) fn is_current(&self, key: &K, value: &Arc<Option<V>>) -> bool {
        self.table.get(key).is_some_and(|rejection| Arc::ptr_eq(&rejection.value, value))
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

/// The log's answer to a change.
pub(crate) struct Reply {
    receiver: oneshot::Receiver<Result<(), WriteError>>,
    completion: Option<Completion>,
}

impl Reply {
    /// Waits until the log has the change. Called without locks.
    pub(crate) async fn wait(self) -> Result<(), WriteError> {
        complete(self.completion);
        self.receiver.await.unwrap_or(Err(WriteError::Panicked))
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
        // Foreign code: before the locks.
        let record = self.log.encode(key, Option::as_ref(&value));
        let bytes = self.log.weigh(key, Option::as_ref(&value), &record);
        let settled = self.log.encode_settled(key);
        let (acknowledged_key, settled_key) = (key.clone(), key.clone());
        let change = Change { writes: vec![record], rejected: vec![settled], ..Change::default() };
        let (submitted, ticket, reply) = {
            let _order = self.order.lock();
            self.check_admits()?;
            let _rejected_order = self.rejected_order.lock();
            let ticket = {
                let mut state = self.state.lock();
                let mut rejected = self.rejected.lock();
                let is_same = rejected.is_current(key, &value);
                if state.has(key) || !is_same || rejected.settle(key).is_none() {
                    return Ok(false);
                }
                state.begin(key, bytes)
            };
            let (done, reply) =
                self.on_acknowledged(acknowledged_key, ticket, Arc::clone(&value), None);
            let shared = Arc::clone(self);
            let done = move |outcome: Result<u64, WriteError>| {
                shared.settled(&settled_key, &value, outcome.is_ok());
                done(outcome);
            };
            (self.submit(change, Box::new(done)), ticket, reply)
        };
        match submitted {
            Ok(completion) => complete(completion),
            Err(error) => {
                self.state.lock().abandon(key, ticket);
                self.rejected.lock().keep(key);
                return Err(error);
            }
        }
        reply.await.unwrap_or(Err(WriteError::Panicked))?;
        Ok(true)
    }

    /// Forgets a rejected write. False where there is none.
    pub(crate) async fn discard_rejected(self: &Arc<Self>, key: &K) -> Result<bool, WriteError> {
        if !self.rejected.lock().contains(key) {
            return Ok(false);
        }
        // Foreign code: before the locks.
        let (settled, key) = (self.log.encode_settled(key), key.clone());
        let change = Change { rejected: vec![settled], ..Change::default() };
        let (sender, receiver) = oneshot::channel();
        let submitted = {
            let _order = self.rejected_order.lock();
            let Some(value) = self.rejected.lock().settle(&key) else { return Ok(false) };
            let (shared, key) = (Arc::clone(self), key.clone());
            let done = move |outcome: Result<u64, WriteError>| {
                shared.settled(&key, &value, outcome.is_ok());
                // An error here says that the caller has gone.
                let _ = sender.send(outcome.map(|_| ()));
            };
            self.submit(change, Box::new(done))
        };
        match submitted {
            Ok(completion) => complete(completion),
            Err(error) => {
                self.rejected.lock().keep(&key);
                return Err(error);
            }
        }
        receiver.await.unwrap_or(Err(WriteError::Panicked))?;
        Ok(true)
    }

    /// The log has, or has not, the record that settles this value of a key.
    fn settled(&self, key: &K, value: &Arc<Option<V>>, has_record: bool) {
        let removed = {
            let mut rejected = self.rejected.lock();
            if !rejected.is_current(key, value) {
                return;
            }
            if has_record {
                rejected.remove(key)
            } else {
                rejected.keep(key);
                None
            }
        };
        // Foreign code: after the lock.
        drop(removed);
    }

    /// Hands in a change that appends no writes. The caller waits for the reply without locks.
    pub(crate) fn submit_with_reply(&self, change: Change) -> Result<Reply, WriteError> {
        let (sender, receiver) = oneshot::channel();
        let done = Box::new(move |outcome: Result<u64, WriteError>| {
            // An error here says that the caller has gone.
            let _ = sender.send(outcome.map(|_| ()));
        });
        let completion = self.submit(change, done)?;
        Ok(Reply { receiver, completion })
    }
}
