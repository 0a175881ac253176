//! What one region has not been told yet, as a pure state machine.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;

/// What became of a key that was shipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// The other region holds the state that was sent, durably.
    Held,
    /// The other region will refuse it the next time, too: together with what it holds the values
    /// are too long. The regions differ in this key until a client has merged its siblings.
    Refused,
    /// It was not held this time.
    Later,
}

/// The keys that one other region has not been told of, and since when.
///
/// Shipping and comparing go on side by side. The keys of a batch are taken out before their states
/// are read, so that a write that is made meanwhile puts its key in again.
///
/// Times are in ns since an epoch of the caller, and rise.
#[derive(Clone, Debug)]
pub struct Outbox {
    max_pending: usize,
    /// With the time of the first write that was not shipped, in no order of these. Invariant: at
    /// most `max_pending` together with `flight`, each key once.
    queue: VecDeque<(u64, Bytes)>,
    queued: HashSet<Bytes>,
    /// The batch under way.
    flight: Vec<(u64, Bytes)>,
    /// Since when the region may lack what no key names. None: it lacks nothing of that.
    unnamed: Option<u64>,
    /// The same of the comparison under way.
    comparing: Option<u64>,
    /// Whether a comparison is under way.
    is_comparing: bool,
    /// When the next comparison is made that nothing asks for.
    compare_at: u64,
    /// Failures in a row, and until when nothing is sent.
    failures: u32,
    retry_at: u64,
    dropped: u64,
    refused: u64,
}

impl Outbox {
    /// The pause after a first failure, in ns. It doubles with each further one.
    pub const MIN_PAUSE: u64 = 50_000_000;
    /// The longest pause after a failure, in ns.
    pub const MAX_PAUSE: u64 = 3_200_000_000;

    /// An outbox of up to `max_pending` keys. It begins with a comparison: what the process before
    /// this one has not shipped is named nowhere.
    pub fn new(now: u64, max_pending: usize) -> Self {
        Self {
            max_pending: max_pending.max(1),
            queue: VecDeque::new(),
            queued: HashSet::new(),
            flight: Vec::new(),
            unnamed: Some(now),
            comparing: None,
            is_comparing: false,
            compare_at: now,
            failures: 0,
            retry_at: 0,
            dropped: 0,
            refused: 0,
        }
    }

    /// Records a durable write of a key.
    pub fn note(&mut self, now: u64, key: Bytes) {
        if self.queued.contains(&key) {
            return;
        }
        if self.pending() >= self.max_pending {
            self.overflow(now);
        }
        if self.pending() >= self.max_pending {
            // All of it is on its way: the comparison finds the key.
            self.dropped += 1;
            return;
        }
        self.queued.insert(key.clone());
        self.queue.push_back((now, key));
    }

    /// The keys to ship next, up to `max`: their states are to be read now. Empty: there is
    /// nothing, it is not time, or a batch is under way.
    pub fn next_batch(&mut self, now: u64, max: usize) -> Vec<Bytes> {
        if now < self.retry_at || !self.flight.is_empty() {
            return Vec::new();
        }
        let count = max.min(self.queue.len());
        self.flight.extend(self.queue.drain(..count));
        self.flight.iter().for_each(|(_, key)| {
            self.queued.remove(key);
        });
        self.flight.iter().map(|(_, key)| key.clone()).collect()
    }

    /// Ends the batch under way. `fates` are those of its keys, in their order; a key without one
    /// was not sent, and goes first the next time; one that was not held goes last.
    pub fn shipped(&mut self, now: u64, fates: &[Fate]) {
        let flight = std::mem::take(&mut self.flight);
        let (mut unsent, mut later) = (Vec::new(), Vec::new());
        for (at, entry) in flight.into_iter().enumerate() {
            match fates.get(at) {
                Some(Fate::Held) => {}
                Some(Fate::Refused) => self.refused += 1,
                Some(Fate::Later) => later.push(entry),
                None => unsent.push(entry),
            }
        }
        if fates.iter().all(|fate| *fate == Fate::Later) {
            self.pause(now);
        } else {
            self.failures = 0;
            // Not earlier than a comparison that has failed meanwhile has it.
            let pause = if later.is_empty() { 0 } else { Self::MIN_PAUSE };
            self.retry_at = self.retry_at.max(now.saturating_add(pause));
        }
        self.put_back(unsent, later);
    }

    /// The batch under way failed, or is not known to have arrived: it is shipped again.
    pub fn failed(&mut self, now: u64) {
        self.pause(now);
        let flight = std::mem::take(&mut self.flight);
        self.put_back(flight, Vec::new());
    }

    /// Whether to compare with the region now. If so, the comparison has begun.
    pub fn begin_comparison(&mut self, now: u64) -> bool {
        let is_due = self.unnamed.is_some() || now >= self.compare_at;
        if self.is_comparing || now < self.retry_at || !is_due {
            return false;
        }
        self.is_comparing = true;
        self.comparing = self.unnamed.take();
        true
    }

    /// Ends the comparison under way: what differed when it began is equal by now, unless it was
    /// not made to the end. The next one is made at `compare_at`.
    pub fn compared(&mut self, now: u64, is_complete: bool, compare_at: u64) {
        self.is_comparing = false;
        let since = self.comparing.take();
        if is_complete {
            self.failures = 0;
            self.compare_at = compare_at;
            return;
        }
        self.pause(now);
        // What it was to find may be missing as before.
        self.unnamed = self.unnamed.into_iter().chain(since).min();
        self.compare_at = self.compare_at.max(self.retry_at);
    }

    /// How many keys wait to be shipped, or are on their way.
    pub fn pending(&self) -> usize {
        self.queue.len() + self.flight.len()
    }

    /// For how long the region may lack a write, in ns. 0: it lacks none that this node has made.
    pub fn lag(&self, now: u64) -> u64 {
        let oldest = self.queue.iter().chain(&self.flight).map(|(since, _)| *since);
        let oldest = oldest.chain(self.unnamed).chain(self.comparing).min();
        oldest.map_or(0, |since| now.saturating_sub(since))
    }

    /// Whether the region may lack what no key names, so that it takes a comparison to catch up.
    pub fn needs_comparison(&self) -> bool {
        self.unnamed.is_some() || self.comparing.is_some()
    }

    /// When there may be something to do, in ns. None: only when a key is noted.
    pub fn next_deadline(&self) -> Option<u64> {
        let ships = (self.flight.is_empty() && !self.queue.is_empty()).then_some(self.retry_at);
        let compare_at = if self.unnamed.is_some() { 0 } else { self.compare_at };
        let compares = (!self.is_comparing).then_some(compare_at.max(self.retry_at));
        ships.into_iter().chain(compares).min()
    }

    /// Keys that were left to a comparison because there were too many.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Keys that the region refused.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    fn pause(&mut self, now: u64) {
        let pause = Self::MIN_PAUSE << self.failures.min(6);
        self.retry_at = self.retry_at.max(now.saturating_add(pause.min(Self::MAX_PAUSE)));
        self.failures = self.failures.saturating_add(1);
    }

    /// Puts entries that were not shipped before or behind those that wait.
    fn put_back(&mut self, first: Vec<(u64, Bytes)>, last: Vec<(u64, Bytes)>) {
        // Of a key that was written again meanwhile, the earlier write counts.
        let mut entries = first.iter().chain(&last);
        let is_again = entries.any(|(_, key)| self.queued.contains(key));
        if is_again {
            let keys: HashSet<&Bytes> = first.iter().chain(&last).map(|(_, key)| key).collect();
            self.queue.retain(|(_, queued)| !keys.contains(queued));
        }
        self.queued.extend(first.iter().chain(&last).map(|(_, key)| key.clone()));
        first.into_iter().rev().for_each(|entry| self.queue.push_front(entry));
        self.queue.extend(last);
    }

    /// Leaves what waits to a comparison.
    fn overflow(&mut self, now: u64) {
        let oldest = self.queue.iter().map(|(since, _)| *since).min().unwrap_or(now);
        self.unnamed = self.unnamed.into_iter().chain([oldest]).min();
        self.dropped += self.queue.len() as u64;
        (self.queue, self.queued) = (VecDeque::new(), HashSet::new());
    }
}
