//! Appends of many sagas at once, made as few appends of the store.
//!
//! One saga leads: it appends its own records with those that wait, tells the others, and hands the
//! lead to the first that has come meanwhile. A saga that comes alone appends directly, so a single
//! client pays nothing for it.
//!
//! While the store has no room, the one that leads asks again and the others wait behind it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Record, SagaStore};
use crate::error::StoreError;

/// Callers that share one append.
const MAX_CALLERS: usize = 1_000;
/// Bytes of one append, also of a store that takes more; what one caller appends goes together,
/// however long it is.
const MAX_BYTES: usize = 512 << 10;
/// The first pause before a store that has no room is asked again; it doubles up to `MAX_PAUSE`.
pub(super) const PAUSE: Duration = Duration::from_millis(10);
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Gathers the appends to one store. Clones gather together.
#[derive(Clone)]
pub(crate) struct Gathered {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn SagaStore>,
    max_bytes: usize,
    queue: Mutex<Queue>,
}

/// Bounded by the open sagas: each waits for one append at a time.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// A caller appends, or has been told to. Invariant: true while `waiting` is not empty.
    is_led: bool,
}

struct Waiting {
    records: Vec<Record>,
    turn: oneshot::Sender<Turn>,
}

/// What a caller that waits is told.
enum Turn {
    Appended(Result<(), StoreError>),
    /// It leads now, and has its records back.
    Lead(Lead, Vec<Record>),
}

/// The right to append. Dropped, also by a panic of the store or with the runtime of its caller, it
/// goes to the next that waits.
struct Lead {
    shared: Arc<Shared>,
    /// It went to another caller already.
    is_passed: bool,
}

impl Lead {
    fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), is_passed: false }
    }
}

impl Gathered {
    pub(crate) fn new(store: Arc<dyn SagaStore>) -> Self {
        let max_bytes = store.max_append_bytes().min(MAX_BYTES);
        Self { shared: Arc::new(Shared { store, max_bytes, queue: Mutex::default() }) }
    }

    /// Appends records, all or none of them, alone or with those of others. They are in the order
    /// of the calls, not of the first polls.
    pub(crate) fn append(
        &self,
        records: Vec<Record>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
        let joined = self.shared.join(records);
        async move {
            let (lead, records) = match joined {
                Joined::Leads(lead, records) => (lead, records),
                Joined::Waits(turn) => match turn.await {
                    Ok(Turn::Appended(result)) => return result,
                    Ok(Turn::Lead(lead, records)) => (lead, records),
                    // It was dropped with the records of all in its batch, which may be in the
                    // store.
                    Err(_) => return Err(StoreError::new("the caller that appended has ended")),
                },
            };
            lead.append(records).await
        }
    }
}

enum Joined {
    Leads(Lead, Vec<Record>),
    Waits(oneshot::Receiver<Turn>),
}

impl Shared {
    fn join(self: &Arc<Self>, records: Vec<Record>) -> Joined {
        let mut queue = self.queue.lock();
        if std::mem::replace(&mut queue.is_led, true) {
            let (turn, told) = oneshot::channel();
            queue.waiting.push_back(Waiting { records, turn });
            Joined::Waits(told)
        } else {
            Joined::Leads(Lead::new(self), records)
        }
    }

    /// Appends records, and asks again while the store has no room for them. Nothing of them is in
    /// the store meanwhile, so no saga has to stop for it.
    async fn append(&self, records: Vec<Record>) -> Result<(), StoreError> {
        let mut pause = PAUSE;
        // Ends: when the store takes them, or fails. A saga has to be recorded before it goes on,
        // however long that takes; who starts one may stop waiting.
        loop {
            let error = match self.store.append(records.clone()).await {
                Err(error) if error.is_retryable() => error,
                result => return result,
            };
            if pause == PAUSE {
                tracing::warn!(
                    target: "voussoir::txn", %error, "the sagas wait until their store has room"
                );
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(MAX_PAUSE);
        }
    }

    /// The first of those that wait which fit into one append beside so many bytes.
    fn take(&self, mut bytes: usize) -> Vec<Waiting> {
        let mut queue = self.queue.lock();
        let fits = queue.waiting.iter().take(MAX_CALLERS - 1).take_while(|waiting| {
            bytes += len_bytes(&waiting.records);
            bytes <= self.max_bytes
        });
        let count = fits.count();
        queue.waiting.drain(..count).collect()
    }
}

pub(crate) fn len_bytes(records: &[Record]) -> usize {
    records.iter().map(Record::len_bytes).sum()
}

impl Lead {
    async fn append(self, mut records: Vec<Record>) -> Result<(), StoreError> {
        let mut others = self.shared.take(len_bytes(&records));
        for waiting in &mut others {
            records.append(&mut waiting.records);
        }
        let result = self.shared.append(records).await;
        // Handed over first: the next append begins while the others are told.
        drop(self);
        for waiting in others {
            // A caller that is gone does not hear it.
            let _ = waiting.turn.send(Turn::Appended(result.clone()));
        }
        result
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        // Ends: each turn takes one that waits, and one that joins meanwhile is behind them.
        while !self.is_passed {
            let next = {
                let mut queue = self.shared.queue.lock();
                let next = queue.waiting.pop_front();
                queue.is_led = next.is_some();
                next
            };
            let Some(Waiting { records, turn }) = next else { return };
            self.is_passed = true;
            if let Err(Turn::Lead(mut lead, _)) =
                turn.send(Turn::Lead(Self::new(&self.shared), records))
            {
                // That caller is gone, and its records with it: this lead goes on to the next one.
                lead.is_passed = true;
                self.is_passed = false;
            }
        }
    }
}

#[cfg(test)]
mod tests;
