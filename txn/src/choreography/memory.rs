//! A bus in memory, for tests and for participants of one process that may lose everything with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::bus::{Bus, BusError, Commit, Delivery, Observed, Subscription, Tail};
use super::event::Event;

/// Events that a poll returns at once.
const MAX_POLL: usize = 64;
/// Bytes of a commit, as a bus on a journal takes them.
const MAX_COMMIT_BYTES: usize = 4 << 20;

/// Keeps events in memory. Clones are the same bus. A participant has one subscription at a time:
/// a newer one fences the older.
#[derive(Clone)]
pub struct MemoryBus {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Mutex<Inner>,
    published: Notify,
}

struct Inner {
    /// Events that were published, or dead letters. Invariant: at most `max_events`.
    log: Vec<Observed>,
    max_events: usize,
    groups: HashMap<String, Group>,
}

#[derive(Default)]
struct Group {
    epoch: u64,
    /// Index in the log of the next event to read.
    next: usize,
    state: BTreeMap<Bytes, Bytes>,
}

impl MemoryBus {
    /// An empty bus, which takes at most `max_events` events and dead letters in its life.
    pub fn new(max_events: usize) -> Self {
        let inner = Inner { log: Vec::new(), max_events, groups: HashMap::new() };
        Self { shared: Arc::new(Shared { inner: Mutex::new(inner), published: Notify::new() }) }
    }

    /// All that was published and given up, in order.
    pub fn observed(&self) -> Vec<Observed> {
        self.shared.inner.lock().log.clone()
    }
}

impl Inner {
    fn append(&mut self, all: impl ExactSizeIterator<Item = Observed>) -> Result<(), BusError> {
        if self.log.len() + all.len() > self.max_events {
            return Err(BusError::NotApplied(format!("{} events are kept", self.max_events)));
        }
        self.log.extend(all);
        Ok(())
    }
}

impl fmt::Debug for MemoryBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let events = self.shared.inner.lock().log.len();
        f.debug_struct("MemoryBus").field("events", &events).finish_non_exhaustive()
    }
}

#[async_trait]
impl Bus for MemoryBus {
    async fn publish(&self, events: &[Event]) -> Result<(), BusError> {
        if let Some(field) = events.iter().find_map(Event::misfit) {
            return Err(BusError::Misfit(field));
        }
        self.shared.inner.lock().append(events.iter().cloned().map(Observed::Event))?;
        self.shared.published.notify_waiters();
        Ok(())
    }

    async fn subscribe(&self, participant: &str) -> Result<Box<dyn Subscription>, BusError> {
        let mut inner = self.shared.inner.lock();
        let group = inner.groups.entry(participant.to_owned()).or_default();
        group.epoch += 1;
        let (epoch, next) = (group.epoch, group.next);
        let shared = Arc::clone(&self.shared);
        let name = participant.to_owned();
        let (is_assigned, polled) = (false, Vec::new());
        Ok(Box::new(MemorySubscription { shared, name, epoch, next, polled, is_assigned }))
    }

    async fn tail(&self) -> Result<Box<dyn Tail>, BusError> {
        Ok(Box::new(MemoryTail { shared: Arc::clone(&self.shared), next: 0 }))
    }
}

struct MemorySubscription {
    shared: Arc<Shared>,
    name: String,
    epoch: u64,
    next: usize,
    /// Indexes of the events of the latest poll.
    polled: Vec<usize>,
    is_assigned: bool,
}

impl MemorySubscription {
    fn take(&mut self, is_full: bool) -> Result<Vec<Delivery>, BusError> {
        let mut inner = self.shared.inner.lock();
        let inner = &mut *inner;
        let group = inner.groups.entry(self.name.clone()).or_default();
        if group.epoch != self.epoch {
            return Err(BusError::Fenced);
        }
        let mut deliveries = Vec::new();
        if !std::mem::replace(&mut self.is_assigned, true) {
            let state = group.state.iter().map(|(key, value)| (key.clone(), value.clone()));
            deliveries.push(Delivery::Assigned { partition: 0, state: state.collect() });
        }
        self.polled.clear();
        if is_full {
            return Ok(deliveries);
        }
        let end = inner.log.len().min(self.next + MAX_POLL);
        for (at, observed) in inner.log.iter().enumerate().take(end).skip(self.next) {
            if let Observed::Event(event) = observed {
                deliveries.push(Delivery::Event { partition: 0, event: event.clone() });
                self.polled.push(at);
            }
        }
        self.next = end;
        Ok(deliveries)
    }
}

#[async_trait]
impl Subscription for MemorySubscription {
    async fn poll(
        &mut self,
        max_wait: Duration,
        full: &BTreeSet<u32>,
    ) -> Result<Vec<Delivery>, BusError> {
        let shared = Arc::clone(&self.shared);
        let deadline = tokio::time::sleep(max_wait);
        tokio::pin!(deadline);
        // Ends: with deliveries, or at the deadline.
        loop {
            let published = shared.published.notified();
            tokio::pin!(published);
            published.as_mut().enable();
            let deliveries = self.take(full.contains(&0))?;
            if !deliveries.is_empty() {
                return Ok(deliveries);
            }
            tokio::select! {
                () = published => {}
                () = &mut deadline => return Ok(Vec::new()),
            }
        }
    }

    fn give_back(&mut self, count: usize) -> Result<(), BusError> {
        if count > 0 {
            let first = self.polled.len().saturating_sub(count);
            self.next = self.polled.get(first).copied().unwrap_or(self.next);
            self.polled.clear();
        }
        Ok(())
    }

    async fn commit(&mut self, commit: Commit) -> Result<(), BusError> {
        let bytes = commit.len_bytes();
        if bytes > MAX_COMMIT_BYTES {
            let why = format!("a commit has {bytes} bytes, and at most {MAX_COMMIT_BYTES}");
            return Err(BusError::NotApplied(why));
        }
        let mut inner = self.shared.inner.lock();
        let current = inner.groups.entry(self.name.clone()).or_default().epoch;
        if current != self.epoch {
            return Err(BusError::Fenced);
        }
        let events = commit.publish.into_iter().map(Observed::Event);
        let dead = commit.dead.into_iter().map(Observed::Dead);
        let all: Vec<Observed> = events.chain(dead).collect();
        inner.append(all.into_iter())?;
        let group = inner.groups.entry(self.name.clone()).or_default();
        group.next = self.next;
        for (_, key, value) in commit.state {
            match value {
                Some(value) => drop(group.state.insert(key, value)),
                None => drop(group.state.remove(&key)),
            }
        }
        drop(inner);
        self.shared.published.notify_waiters();
        Ok(())
    }

    fn max_commit_bytes(&self) -> usize {
        MAX_COMMIT_BYTES
    }
}

struct MemoryTail {
    shared: Arc<Shared>,
    next: usize,
}

#[async_trait]
impl Tail for MemoryTail {
    async fn next(&mut self, max_wait: Duration) -> Result<Vec<Observed>, BusError> {
        let deadline = tokio::time::sleep(max_wait);
        tokio::pin!(deadline);
        // Ends: with something, or at the deadline.
        loop {
            let published = self.shared.published.notified();
            tokio::pin!(published);
            published.as_mut().enable();
            let all: Vec<Observed> = self.shared.inner.lock().log[self.next..].to_vec();
            self.next += all.len();
            if !all.is_empty() {
                return Ok(all);
            }
            tokio::select! {
                () = published => {}
                () = &mut deadline => return Ok(Vec::new()),
            }
        }
    }
}
