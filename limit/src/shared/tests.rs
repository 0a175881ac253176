//! Shared limiters over a store in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::testing::{MemoryCounter, check_counter};
use crate::{Clock, Quota, TokioClock};

const SECOND: Duration = Duration::from_secs(1);

fn store() -> (Arc<TokioClock>, Arc<MemoryCounter>) {
    let clock = Arc::new(TokioClock::new());
    (Arc::clone(&clock), Arc::new(MemoryCounter::new(clock)))
}

/// A node that leases ten units for half a second.
fn half_second_leases(
    clock: &Arc<TokioClock>,
    counter: &Arc<MemoryCounter>,
    quota: Quota,
) -> Leased {
    let config = LeasedConfig { lease: 10, lease_for: SECOND / 2, ..LeasedConfig::default() };
    Leased::with_clock(Arc::clone(counter) as _, quota, config, Arc::new(**clock)).unwrap()
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
    let nodes: [Leased; 4] = std::array::from_fn(|_| half_second_leases(&clock, &counter, quota));
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

/// With the default shares the quota can be used, by one process that asks now and then and by many
/// of which each asks little.
#[tokio::test(start_paused = true)]
async fn what_the_quota_allows_is_not_lost_in_shares() {
    let quota = Quota::gcra(60, 60 * SECOND).burst(60);
    for nodes in [1, 2, 20_u64] {
        let (clock, counter) = store();
        let node = |_| {
            let counter = Arc::clone(&counter) as _;
            Leased::with_clock(counter, quota, LeasedConfig::default(), Arc::new(*clock)).unwrap()
        };
        let all: Vec<Leased> = (0..nodes).map(node).collect();
        for node in &all {
            node.check("k", 1).await.expect("the burst is not in one hand");
        }
        let mut passed = 0;
        // Together they ask for twice what flows.
        for turn in 0..1_200_u64 {
            let node = &all[(turn % nodes) as usize];
            passed += u64::from(node.check("k", 1).await.is_ok());
            tokio::time::advance(SECOND / 2).await;
        }
        // 600 flow in that time, and what was left of the burst.
        assert!(passed >= 580 && passed <= quota.most_in(600 * SECOND), "{nodes}: {passed}");
    }
}

/// A request that costs more than is left of a share asks for the rest only: what is left was
/// granted for it too.
#[tokio::test(start_paused = true)]
async fn what_is_left_of_a_share_is_spent_by_a_request_that_costs_more() {
    let (clock, counter) = store();
    let quota = Quota::gcra(1_000, SECOND).burst(400);
    let config = LeasedConfig::default();
    let leased = Leased::with_clock(counter, quota, config, Arc::new(*clock)).unwrap();
    let mut spent = 0;
    // Twice what flows, in costs of which two do not fit into one share.
    for turn in 0..1_200_u64 {
        for cost in [1, 100, 37] {
            spent += if leased.check("k", cost).await.is_ok() { cost } else { 0 };
        }
        tokio::time::advance(SECOND / if turn % 2 == 0 { 20 } else { 10 }).await;
    }
    let stats = leased.stats();
    assert!(spent >= 85_000 && spent <= quota.most_in(90 * SECOND), "{spent}");
    assert!(stats.lost * 20 <= stats.granted, "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn leases_never_exceed_the_bound_when_costs_do_not_fit_into_shares() {
    let (clock, counter) = store();
    let quota = Quota::gcra(100, SECOND).burst(50);
    let nodes: [Leased; 4] = std::array::from_fn(|_| half_second_leases(&clock, &counter, quota));
    let mut passed: Vec<(u64, u64)> = Vec::new();
    // As above; some shares run out of time between two requests, some within the store's time.
    for turn in 0..4_000_u64 {
        let node = if turn % 10 == 0 { turn / 10 % 4 } else { (turn / 300) % 4 };
        let cost = [1, 7, 3, 12, 1, 1, 25][(turn % 7) as usize];
        if nodes[node as usize].check("k", cost).await.is_ok() {
            passed.push((clock.now(), cost));
        }
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    let granted: u64 = nodes.iter().map(|node| node.stats().granted).sum();
    let spent: u64 = passed.iter().map(|(_, cost)| cost).sum();
    assert!(spent <= granted && granted <= quota.most_in(4 * SECOND), "{spent} of {granted}");
    for window in [SECOND / 100, SECOND / 2, SECOND] {
        let most = nodes[0].most_in(window, 4);
        let length = window.as_nanos() as u64;
        for (from, _) in &passed {
            let within = passed.iter().filter(|(at, _)| (*from..from + length).contains(at));
            let within: u64 = within.map(|(_, cost)| cost).sum();
            assert!(within <= most, "{within} in {window:?}, at most {most}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_a_share_stays_when_the_store_grants_no_more() {
    let (clock, counter) = store();
    let quota = Quota::gcra(10, SECOND).burst(40);
    let config = LeasedConfig { lease: 4, ..LeasedConfig::default() };
    let node = Arc::clone(&counter) as _;
    let leased = Leased::with_clock(node, quota, config, Arc::new(*clock)).unwrap();
    let mut spend = 0;
    // Until a share of several units is here.
    while leased.check("k", 1).await.unwrap().remaining < 3 {
        spend += 1;
        assert!(spend < 20, "shares grow with use");
    }
    counter.fail(Some(down()));
    assert!(matches!(leased.check("k", 5).await, Err(SharedError::Store(_))));
    assert_eq!(leased.check("k", 1).await.unwrap().source, Source::Lease);
    counter.fail(None);
    tokio::time::advance(6 * SECOND / 10).await;
    assert!(matches!(leased.check("k", 1_000).await, Err(SharedError::Rejected(_))));
    let pass = leased.check("k", 1).await.unwrap();
    assert_eq!((pass.source, pass.remaining), (Source::Lease, 1));
    assert_eq!(leased.stats().lost, 0);
}

#[tokio::test(start_paused = true)]
async fn without_a_store_it_fails_as_chosen_and_asks_seldom() {
    for (on_outage, passes) in [(OnOutage::Reject, false), (OnOutage::Admit, true)] {
        let (clock, counter) = store();
        let outage = OutageConfig { on_outage, ..OutageConfig::default() };
        let config = LeasedConfig { outage, lease: 2, ..LeasedConfig::default() };
        let leased = Leased::with_clock(
            Arc::clone(&counter) as _,
            Quota::gcra(5, SECOND).burst(16),
            config,
            clock,
        )
        .unwrap();
        for _ in 0..2 {
            assert_eq!(leased.check("k", 1).await.unwrap().source, Source::Store);
        }
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
    let config = LeasedConfig { max_keys: 2, lease: 1, ..LeasedConfig::default() };
    let leased =
        Leased::with_clock(Arc::clone(&counter) as _, Quota::gcra(1, SECOND), config, clock)
            .unwrap();
    leased.check("a", 1).await.unwrap();
    leased.check("a", 1).await.unwrap_err();
    let before = counter.asked();
    for _ in 0..20 {
        let SharedError::Rejected(rejected) = leased.check("a", 1).await.unwrap_err() else {
            panic!()
        };
        assert_eq!(rejected.retry_after(), Some(SECOND));
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
        let config = LeasedConfig { lease: 3, ..LeasedConfig::default() };
        let quota = Quota::gcra(1, 1000 * SECOND).burst(24);
        let leased = Leased::with_clock(Arc::clone(&counter) as _, quota, config, clock).unwrap();
        let mut passed = 0;
        for _ in 0..40 {
            passed += u64::from(leased.check("a", 1).await.is_ok());
        }
        assert_eq!(passed, 24);
        for _ in 0..4 {
            leased.check("b", 1).await.unwrap();
        }
        tokio::time::advance(2 * SECOND).await;
        let pass = leased.check("b", 1).await.unwrap();
        assert_eq!((pass.source, leased.stats().lost), (Source::Store, 2));
        assert_eq!(pass.remaining, 0, "a share that was not spent is followed by a smaller one");
    });
}

#[derive(Debug)]
struct Mute;

#[async_trait::async_trait]
impl Counter for Mute {
    fn accepts(&self, _: &Quota) -> Result<(), crate::ConfigError> {
        Ok(())
    }

    async fn take(&self, _: &[Take<'_>]) -> Vec<Result<Taken, StoreError>> {
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

/// An error about one key affects only that key: other keys are answered, and the key itself as
/// soon as the error is gone.
#[tokio::test(start_paused = true)]
async fn an_error_about_one_key_rests_no_other() {
    let quota = Quota::gcra(1, SECOND).burst(100);
    for error in [
        StoreError::Refused("WRONGTYPE".into()),
        StoreError::NotPermitted("info".into()),
        StoreError::Invalid("nonsense".into()),
    ] {
        let (clock, counter) = store();
        let strict = Strict::new(Arc::clone(&counter) as _, quota, OutageConfig::default());
        let strict = strict.unwrap();
        let config = LeasedConfig::default();
        let leased = Leased::with_clock(Arc::clone(&counter) as _, quota, config, clock).unwrap();
        counter.fail_key("bad", 0, Some(error.clone()));
        for _ in 0..3 {
            for answer in [strict.check("bad", 1).await, leased.check("bad", 1).await] {
                assert_eq!(answer.unwrap_err(), SharedError::Store(error.clone()));
            }
            strict.check("good", 1).await.unwrap();
            leased.check("fine", 1).await.unwrap();
        }
        counter.fail_key("bad", 0, None);
        strict.check("bad", 1).await.unwrap();
    }
}

/// An outage rests the keys of its server, and those of others are asked for.
#[tokio::test(start_paused = true)]
async fn an_outage_rests_the_keys_of_its_server_only() {
    let quota = Quota::gcra(1, SECOND).burst(100);
    let (_, counter) = store();
    let strict = Strict::new(Arc::clone(&counter) as _, quota, OutageConfig::default()).unwrap();
    for key in ["away", "too"] {
        counter.fail_key(key, 7, Some(down()));
    }
    assert_eq!(strict.check("away", 1).await.unwrap_err(), SharedError::Store(down()));
    let asked = counter.asked();
    for key in ["away", "too", "away"] {
        let resting = strict.check(key, 1).await.unwrap_err();
        assert_eq!(resting, SharedError::Store(StoreError::Resting), "{key}");
    }
    assert_eq!(counter.asked(), asked);
    strict.check("here", 1).await.unwrap();
    assert_eq!(counter.asked(), asked + 1);
}

/// Callers that wait for one request to the store all get its failure; none sends a request of its
/// own.
#[tokio::test(start_paused = true)]
async fn callers_of_one_key_share_a_question_that_fails() {
    #[derive(Debug)]
    struct Slow(AtomicUsize);

    #[async_trait::async_trait]
    impl Counter for Slow {
        fn accepts(&self, _: &Quota) -> Result<(), crate::ConfigError> {
            Ok(())
        }

        async fn take(&self, _: &[Take<'_>]) -> Vec<Result<Taken, StoreError>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(SECOND / 20).await;
            vec![Err(StoreError::Refused("OOM".into()))]
        }
    }

    let counter = Arc::new(Slow(AtomicUsize::new(0)));
    let clock = Arc::new(TokioClock::new());
    let config = LeasedConfig::default();
    let leased =
        Leased::with_clock(Arc::clone(&counter) as _, Quota::gcra(1, SECOND), config, clock)
            .unwrap();
    let leased = Arc::new(leased);
    let start = tokio::time::Instant::now();
    let calls = [0; 50].map(|_| {
        let leased = Arc::clone(&leased);
        tokio::spawn(async move { leased.check("k", 1).await })
    });
    for call in calls {
        assert!(matches!(call.await.unwrap(), Err(SharedError::Store(_))));
    }
    assert!(start.elapsed() <= SECOND / 10, "{:?}", start.elapsed());
    assert_eq!(counter.0.load(Ordering::Relaxed), 1);
}
