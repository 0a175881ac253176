//! A store in memory that can be made to fail, and what every store must do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::core::{Cell, NEVER};
use crate::error::ConfigError;
use crate::quota::Quota;
use crate::shared::{Counter, StoreError, Take, Taken};

/// A [`Counter`] in memory, with every algorithm.
#[derive(Debug)]
pub struct MemoryCounter {
    clock: Arc<dyn Clock>,
    state: Mutex<MemoryState>,
}

#[derive(Debug, Default)]
struct MemoryState {
    cells: HashMap<String, Cell>,
    failing: Option<StoreError>,
    /// Keys on a server of their own, and how takes of them fail.
    failing_keys: HashMap<String, (u64, Option<StoreError>)>,
    asked: u64,
}

impl MemoryCounter {
    /// A store at the clock given.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::default() }
    }

    /// From now on every call fails so; `None`: no more.
    pub fn fail(&self, error: Option<StoreError>) {
        self.state.lock().failing = error;
    }

    /// Puts a key on the server of this number, of which every take from now on fails so; `None`:
    /// no more. Other keys are on server 0.
    pub fn fail_key(&self, key: &str, server: u64, error: Option<StoreError>) {
        self.state.lock().failing_keys.insert(key.into(), (server, error));
    }

    /// Calls answered or failed.
    pub fn asked(&self) -> u64 {
        self.state.lock().asked
    }
}

#[async_trait]
impl Counter for MemoryCounter {
    fn accepts(&self, quota: &Quota) -> Result<(), ConfigError> {
        quota.rules().map(|_| ())
    }

    fn server_of(&self, key: &str) -> u64 {
        self.state.lock().failing_keys.get(key).map_or(0, |(server, _)| *server)
    }

    async fn take(&self, takes: &[Take<'_>]) -> Vec<Result<Taken, StoreError>> {
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.asked += 1;
        let mut answer = |take: &Take<'_>| {
            let of_key = state.failing_keys.get(take.key).and_then(|(_, error)| error.as_ref());
            match state.failing.as_ref().or(of_key) {
                Some(error) => Err(error.clone()),
                None => take_one(&mut state.cells, take, now),
            }
        };
        takes.iter().map(&mut answer).collect()
    }
}

fn take_one(
    cells: &mut HashMap<String, Cell>,
    take: &Take<'_>,
    now: u64,
) -> Result<Taken, StoreError> {
    let rules = take.quota.rules().map_err(|e| StoreError::Refused(e.to_string()))?;
    let cell = cells.entry(take.key.into()).or_insert_with(|| Cell::new(rules.kind));
    let room = cell.judge(&rules, now, 0).standing.remaining();
    let cost = if room >= take.least { room.min(take.most) } else { take.least };
    let verdict = cell.judge(&rules, now, cost);
    if verdict.admitted() {
        cell.charge(&rules, now, cost);
    }
    Ok(Taken {
        granted: if verdict.admitted() { cost } else { 0 },
        remaining: verdict.standing.remaining(),
        retry_after: (verdict.wait != NEVER).then(|| Duration::from_nanos(verdict.wait)),
        reset_after: verdict.standing.reset_after(),
    })
}

/// Checks what every [`Counter`] must do, on keys that begin with `prefix` and are not in use.
/// Takes about two seconds of the store's time.
///
/// # Panics
/// If the store does not keep a rule.
///
/// # Cancel safety
/// Cancel safe: leaves keys behind in the store.
pub async fn check_counter(counter: &dyn Counter, prefix: &str) {
    let quota = Quota::gcra(5, Duration::from_secs(1)).burst(10);
    let key = format!("{prefix}:grants");
    let take = |least, most| Take { key: &key, quota, least, most };
    let first = ask(counter, take(1, 4)).await;
    assert_eq!(first.granted, 4, "a grant is as much as wanted while there is as much");
    let rest = ask(counter, take(1, 100)).await;
    assert!((6..=7).contains(&rest.granted), "then as much as there is: {rest:?}");
    let none = ask(counter, take(2, 100)).await;
    assert_eq!(none.granted, 0, "then nothing: {none:?}");
    let wait = none.retry_after.expect("two units are within the burst");
    assert!(wait <= Duration::from_millis(400) && !wait.is_zero(), "{wait:?} for two units");
    assert_eq!(ask(counter, take(11, 11)).await.retry_after, None, "more than the burst: never");
    tokio::time::sleep(wait + Duration::from_millis(20)).await;
    assert!(ask(counter, take(2, 2)).await.granted == 2, "the wait that was said is enough");

    let other = format!("{prefix}:other");
    let takes = [take(10, 10), Take { key: &other, quota, least: 1, most: 1 }];
    let answers = counter.take(&takes).await;
    let granted: Vec<u64> =
        answers.iter().map(|taken| taken.as_ref().expect("the store answers").granted).collect();
    assert_eq!(granted, [0, 1], "the takes of a batch are independent");

    let quota = Quota::fixed_window(7, Duration::from_secs(3600));
    if counter.accepts(&quota).is_ok() {
        let key = format!("{prefix}:window");
        let take = |most| Take { key: &key, quota, least: 1, most };
        let granted = ask(counter, take(5)).await.granted + ask(counter, take(5)).await.granted;
        assert!(granted == 7 || granted == 10, "one window, or two across its end: {granted}");
    }
}

async fn ask(counter: &dyn Counter, take: Take<'_>) -> Taken {
    let mut answers = counter.take(&[take]).await;
    assert_eq!(answers.len(), 1, "one answer for each take");
    answers.remove(0).expect("the store answers")
}
