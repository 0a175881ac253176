//! A second level in memory that can be made to fail.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use crate::core::peers::Invalidation;
use crate::remote::level::{Fetched, LevelError, Put, SecondLevel};

/// A second level in memory, on tokio's clock. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct MemoryLevel(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    values: HashMap<Vec<u8>, (Vec<u8>, Instant)>,
    leases: HashMap<Vec<u8>, (u64, Instant)>,
    floors: HashMap<String, u64>,
    floor: u64,
    version: u64,
    takes: Duration,
    is_failing: bool,
    calls: u64,
}

impl MemoryLevel {
    /// From now on each call takes so long, before it has its effect.
    pub fn delay(&self, takes: Duration) {
        self.0.lock().takes = takes;
    }

    /// From now on each call fails without an effect, or works again.
    pub fn set_failing(&self, is_failing: bool) {
        self.0.lock().is_failing = is_failing;
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.0.lock().calls
    }

    /// Whether there is a value of the key, valid or not.
    pub fn has(&self, key: &[u8]) -> bool {
        self.0.lock().values.contains_key(key)
    }

    /// Puts bytes there, past all rules.
    pub fn put_raw(&self, key: &[u8], bytes: &[u8], ttl: Duration) {
        self.0.lock().values.insert(key.to_vec(), (bytes.to_vec(), Instant::now() + ttl));
    }

    /// The bytes of a key.
    pub fn raw(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.lock().values.get(key).map(|(bytes, _)| bytes.clone())
    }

    /// Forgets everything, as a server does that starts without its data.
    pub fn forget(&self) {
        let mut state = self.0.lock();
        (state.values, state.leases) = (HashMap::new(), HashMap::new());
        (state.floors, state.floor) = (HashMap::new(), 0);
    }

    async fn call<T>(&self, call: impl FnOnce(&mut State) -> T) -> Result<T, LevelError> {
        let takes = {
            let mut state = self.0.lock();
            state.calls += 1;
            state.takes
        };
        if !takes.is_zero() {
            sleep(takes).await;
        }
        let mut state = self.0.lock();
        if state.is_failing { Err(LevelError("failing".into())) } else { Ok(call(&mut state)) }
    }
}

/// Source version and position in the head of what the cache stores.
fn order(bytes: &[u8]) -> (Option<[u8; 8]>, Option<[u8; 8]>) {
    let flags = bytes.get(3).copied().unwrap_or(0);
    let part = |at: usize| bytes.get(at..at + 8).and_then(|part| part.try_into().ok());
    (part(20).filter(|_| flags & 1 != 0), part(28).filter(|_| flags & 2 != 0))
}

impl State {
    fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn has_lease(&self, key: &[u8], lease: u64) -> bool {
        let held = self.leases.get(key);
        held.is_some_and(|(held, until)| *held == lease && Instant::now() < *until)
    }

    fn store(&mut self, put: Put<'_>) -> bool {
        if !self.has_lease(put.key, put.lease) {
            return false;
        }
        self.leases.remove(put.key);
        if let Some((old, until)) = self.values.get(put.key)
            && Instant::now() < *until
        {
            let ((old_version, old_position), (version, position)) = (order(old), order(put.bytes));
            let is_larger = |old: Option<[u8; 8]>, new: Option<[u8; 8]>| {
                old.zip(new).is_some_and(|(old, new)| old > new)
            };
            if is_larger(old_version, version) || is_larger(old_position, position) {
                return false;
            }
        }
        for tag in put.tags {
            self.floors.entry((*tag).to_owned()).or_insert(0);
        }
        let until = Instant::now() + put.ttl;
        self.values.insert(put.key.to_vec(), (put.bytes.to_vec(), until));
        true
    }
}

#[async_trait]
impl SecondLevel for MemoryLevel {
    async fn fetch(&self, key: &[u8]) -> Result<Option<Fetched>, LevelError> {
        let fetch = |state: &mut State| {
            let (bytes, until) = state.values.get(key)?;
            let remaining = until.saturating_duration_since(Instant::now());
            (!remaining.is_zero()).then(|| Fetched::new(bytes.clone(), remaining, state.floor))
        };
        self.call(fetch).await
    }

    async fn floors(&self, tags: &[&str]) -> Result<Vec<Option<u64>>, LevelError> {
        self.call(|state| tags.iter().map(|tag| state.floors.get(*tag).copied()).collect()).await
    }

    async fn lease(
        &self,
        key: &[u8],
        lease: u64,
        lease_for: Duration,
    ) -> Result<Option<u64>, LevelError> {
        let take = |state: &mut State| {
            let now = Instant::now();
            if state.leases.get(key).is_some_and(|(_, until)| now < *until) {
                return None;
            }
            state.leases.insert(key.to_vec(), (lease, now + lease_for));
            Some(state.next_version())
        };
        self.call(take).await
    }

    async fn store(&self, put: Put<'_>) -> Result<bool, LevelError> {
        self.call(|state| state.store(put)).await
    }

    async fn release(&self, key: &[u8], lease: u64) -> Result<(), LevelError> {
        let release = |state: &mut State| {
            if state.has_lease(key, lease) {
                state.leases.remove(key);
            }
        };
        self.call(release).await
    }

    async fn invalidate(&self, invalidations: &[Invalidation]) -> Result<(), LevelError> {
        let invalidate = |state: &mut State| {
            for invalidation in invalidations {
                let version = state.next_version();
                match invalidation {
                    Invalidation::Key(key) => {
                        state.values.remove(&**key);
                        state.leases.remove(&**key);
                    }
                    Invalidation::Tag(tag) => {
                        state.floors.insert(tag.to_string(), version);
                    }
                    Invalidation::All => state.floor = version,
                }
            }
        };
        self.call(invalidate).await
    }
}
