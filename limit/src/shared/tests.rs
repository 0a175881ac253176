use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::testing::{MemoryCounter, check_counter};
use crate::{Clock, Quota, TokioClock};

const SECOND: Duration = Duration::from_secs(1);

fn store() -> (Arc<TokioClock>, Arc<MemoryCounter>) {
    let clock = Arc::new(TokioClock::new());
    (Arc::clone(&clock), Arc::new(MemoryCounter::new(clock)))
}

fn down() -> StoreError {
    StoreError::Unreachable("it is down".into())
}

#[tokio::test(start_paused = true)]
async fn the_store_in_memory_conforms() {
    check_counter(&*store().1, "a").await;
}

#[tokio::test(start_paused = true)]
async fn leases_never_exceed_the_bound_and_save_questions() {
    let (clock, counter) = store();
    let quota = Quota::gcra(100, SECOND).burst(50);
    let node = || {
        let config = LeasedConfig {
            lease: 10,
            lease_for: SECOND / 2,
            clock: Arc::new(*clock),
            ..LeasedConfig::default()
        };
        Leased::new(Arc::clone(&counter) as _, quota, config).unwrap()
    };
    let nodes = [node(), node(), node(), node()];
    let mut passed = Vec::new();
    // Nodes by turns greedy and idle, so that shares are carried from window to window.
    for turn in 0..4000_u64 {
        let greedy = (turn / 300) % 4;
        let node = if turn % 10 == 0 { turn / 10 % 4 } else { greedy };
        if nodes[node as usize].check("k", 1).await.is_ok() {
            passed.push(clock.now());
        }
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    for window in [SECOND / 100, SECOND / 2, SECOND] {
        let most = nodes[0].most_in(window, 4);
        let length = window.as_nanos() as u64;
        for from in &passed {
            let within = passed.iter().filter(|at| (*from..from + length).contains(*at)).count();
            assert!(within as u64 <= most, "{within} in {window:?}, at most {most}");
        }
    }
    let granted: u64 = nodes.iter().map(|node| node.stats().granted).sum();
    assert!(granted >= passed.len() as u64 && granted <= quota.most_in(4 * SECOND));
    assert!(counter.asked() < passed.len() as u64, "{} questions", counter.asked());
}

#[tokio::test(start_paused = true)]
async fn without_a_store_it_fails_as_chosen_and_asks_seldom() {
    for (on_outage, passes) in [(OnOutage::Deny, false), (OnOutage::Admit, true)] {
        let (clock, counter) = store();
        let outage = OutageConfig { on_outage, ..OutageConfig::default() };
        let config = LeasedConfig { outage, clock, lease: 2, ..LeasedConfig::default() };
        let leased =
            Leased::new(Arc::clone(&counter) as _, Quota::gcra(5, SECOND).burst(5), config)
                .unwrap();
        assert_eq!(leased.check("k", 1).await.unwrap().source, Source::Store);
        counter.fail(Some(down()));
        assert_eq!(leased.check("k", 1).await.unwrap().source, Source::Lease);
        let before = counter.asked();
        for _ in 0..50 {
            match leased.check("k", 1).await {
                Ok(pass) => assert!(passes && pass.source == Source::Outage),
                Err(SharedError::Store(e)) => {
                    assert!(!passes);
                    assert_eq!(e.outcome(), Outcome::NotApplied);
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(counter.asked(), before + 1, "one question for the whole outage so far");
        counter.fail(None);
        tokio::time::advance(SECOND).await;
        assert_eq!(leased.check("k", 1).await.unwrap().source, Source::Store);
    }
}

#[tokio::test(start_paused = true)]
async fn a_denial_is_remembered_and_keys_are_bounded() {
    let (clock, counter) = store();
    let config = LeasedConfig { keys_max: 2, lease: 1, clock, ..LeasedConfig::default() };
    let leased = Leased::new(Arc::clone(&counter) as _, Quota::gcra(1, SECOND), config).unwrap();
    leased.check("a", 1).await.unwrap();
    leased.check("a", 1).await.unwrap_err();
    let before = counter.asked();
    for _ in 0..20 {
        let SharedError::Denied(denied) = leased.check("a", 1).await.unwrap_err() else { panic!() };
        assert_eq!(denied.retry_after(), Some(SECOND));
    }
    assert_eq!(counter.asked(), before);
    tokio::time::advance(SECOND).await;
    leased.check("a", 1).await.unwrap();
    for key in ["b", "c", "d", "e"] {
        leased.check(key, 1).await.unwrap();
        leased.check(key, 1).await.unwrap_err();
        assert!(leased.stats().keys <= 2);
    }
}

/// A share is spent once and within its time.
#[test]
fn a_share_is_no_more_than_was_granted() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(async {
        let (clock, counter) = store();
        let config = LeasedConfig { lease: 3, clock, ..LeasedConfig::default() };
        let quota = Quota::gcra(1, 1000 * SECOND).burst(5);
        let leased = Leased::new(Arc::clone(&counter) as _, quota, config).unwrap();
        let mut passed = 0;
        for _ in 0..20 {
            passed += u64::from(leased.check("a", 1).await.is_ok());
        }
        assert_eq!(passed, 5);
        leased.check("b", 1).await.unwrap();
        tokio::time::advance(2 * SECOND).await;
        let pass = leased.check("b", 1).await.unwrap();
        assert_eq!((pass.source, leased.stats().lost), (Source::Store, 2));
    });
}

#[test]
fn mutants_of_the_leases_are_caught() {
    use crate::mutant::{Mutant, assert_caught};
    assert_caught(Mutant::LeaseNotCounted, a_share_is_no_more_than_was_granted);
    assert_caught(Mutant::LeaseForEver, a_share_is_no_more_than_was_granted);
}

#[derive(Debug)]
struct Mute;

#[async_trait::async_trait]
impl Counter for Mute {
    fn offers(&self, _: crate::Algorithm) -> bool {
        true
    }

    async fn take(&self, _: &[Take<'_>]) -> Result<Vec<Taken>, StoreError> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_costs_the_time_limit() {
    let strict = Strict::new(Arc::new(Mute), Quota::gcra(1, SECOND), OutageConfig::default());
    let error = strict.unwrap().check("k", 1).await.unwrap_err();
    let SharedError::Store(error) = error else { panic!("{error}") };
    assert_eq!((error.outcome(), error.is_retryable()), (Outcome::Unknown, true));
}
