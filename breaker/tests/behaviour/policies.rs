//! Retry, hedge, queues, limits and policies as callers see them, on paused time.

use std::cell::RefCell;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use voussoir_breaker::testing::{ManualClock, check_limit_algorithm};
use voussoir_breaker::*;

const MS: Duration = Duration::from_millis(1);

fn plain(max_attempts: u32) -> RetryConfig {
    let mut config = RetryConfig::default();
    config.max_attempts = max_attempts;
    config.backoff.first = 100 * MS;
    config.backoff.growth = Growth::Exponential { factor: 2.0, jitter: Jitter::None };
    config
}

fn again(_: &&str) -> RetryAdvice {
    RetryAdvice::Retry
}

#[tokio::test(start_paused = true)]
async fn waits_between_attempts() {
    let retry = Retry::new(plain(4)).unwrap();
    let (start, times) = (Instant::now(), RefCell::new(vec![]));
    let failed = retry
        .call(
            |_| {
                times.borrow_mut().push(start.elapsed().as_millis());
                async { Err::<(), _>("down") }
            },
            again,
        )
        .await
        .unwrap_err();
    assert_eq!(*times.borrow(), [0, 100, 300, 700]);
    assert_eq!((failed.attempts, failed.stopped), (4, Stop::AttemptsSpent));
}

#[tokio::test(start_paused = true)]
async fn each_error_is_asked_about_and_retry_after_is_kept() {
    let retry = Retry::new(plain(9)).unwrap();
    let decide = |error: &u64| match error {
        0 => RetryAdvice::Stop,
        1 => RetryAdvice::Retry,
        secs => RetryAdvice::RetryAfter(Duration::from_secs(*secs)),
    };
    let run = |errors: &'static [u64]| {
        let retry = &retry;
        async move {
            let start = Instant::now();
            let attempt = |n: u32| async move { Err::<(), _>(errors[n as usize - 1]) };
            let failed = retry.call(attempt, decide).await.unwrap_err();
            (failed.attempts, failed.stopped, start.elapsed().as_millis())
        }
    };
    assert_eq!(run(&[0]).await, (1, Stop::Final, 0));
    assert_eq!(run(&[1, 0]).await, (2, Stop::Final, 100));
    assert_eq!(run(&[7, 0]).await, (2, Stop::Final, 7_000));
    assert_eq!(run(&[31]).await, (1, Stop::RetryAfterTooLong, 0));
    assert_eq!(retry_after_secs(" 120 "), Some(Duration::from_secs(120)));
    assert_eq!(retry_after_secs("Wed, 21 Oct 2015 07:28:00 GMT"), None);
    assert_eq!(retry_after_secs("-1"), None);
}

/// Envoy's flaw: a thousand calls fail at once and all wait in back-off. Here they wait against
/// the budget.
#[tokio::test(start_paused = true)]
pub(super) async fn retries_that_wait_count_against_the_budget() {
    let mut config = RetryBudgetConfig::default();
    config.max_balance = 1_000_000;
    let budget = RetryBudget::new(config).unwrap();
    let retry = Arc::new(Retry::new(plain(2)).unwrap().with_budget(Arc::clone(&budget)));
    let gate = Arc::new(tokio::sync::Barrier::new(1_000));
    let attempts = Arc::new(AtomicU32::new(0));
    let calls: Vec<_> = (0..1_000)
        .map(|_| {
            let (retry, gate) = (Arc::clone(&retry), Arc::clone(&gate));
            let attempts = Arc::clone(&attempts);
            tokio::spawn(async move {
                let attempt = |number| {
                    let (gate, attempts) = (Arc::clone(&gate), Arc::clone(&attempts));
                    async move {
                        if number == 1 {
                            gate.wait().await;
                        }
                        attempts.fetch_add(1, Ordering::Relaxed);
                        Err::<(), _>("down")
                    }
                };
                retry.call(attempt, again).await.unwrap_err().stopped
            })
        })
        .collect();
    let mut rejected = 0;
    for call in calls {
        let stopped = call.await.unwrap();
        rejected += u32::from(stopped == Stop::RetryRejected(RetryRejected::TooManyActive));
    }
    assert!((800..900).contains(&rejected), "{rejected} of 1000");
    assert_eq!(attempts.load(Ordering::Relaxed), 2_000 - rejected);
    let stats = budget.stats();
    assert_eq!((stats.rejected_active, stats.active_extra), (u64::from(rejected), 0));
}

#[tokio::test(start_paused = true)]
async fn a_retry_dropped_anywhere_gives_its_place_back() {
    let budget = RetryBudget::new(RetryBudgetConfig::default()).unwrap();
    let retry = Retry::new(plain(3)).unwrap().with_budget(Arc::clone(&budget));
    // In the first attempt, in the first wait, in the second attempt, in the second wait.
    for millis in [5, 50, 115, 200] {
        let attempt = |_| async {
            sleep(10 * MS).await;
            Err::<(), _>("down")
        };
        assert!(timeout(millis * MS, retry.call(attempt, again)).await.is_err());
        let stats = budget.stats();
        assert_eq!((stats.active_calls, stats.active_extra), (0, 0), "dropped at {millis} ms");
    }
}

fn hedge(budget: Option<&Arc<RetryBudget>>) -> Hedge {
    let mut config = HedgeConfig::default();
    config.max_delay = 500 * MS;
    config.min_samples = 20;
    config.quantile = 0.9;
    let hedge = Hedge::new(config).unwrap();
    match budget {
        Some(budget) => hedge.with_budget(Arc::clone(budget)),
        None => hedge,
    }
}

async fn answer_after(time: Duration) -> Result<u128, &'static str> {
    sleep(time).await;
    Ok(time.as_millis())
}

#[tokio::test(start_paused = true)]
pub(super) async fn a_hedge_goes_out_after_the_quantile_and_the_loser_is_dropped() {
    let hedge = hedge(None);
    assert_eq!(hedge.delay(), 500 * MS, "too few samples");
    for n in 1..=100 {
        hedge.call(|_| answer_after(n * MS)).await.unwrap();
    }
    let delay = hedge.delay();
    assert!((84..=97).contains(&delay.as_millis()), "{delay:?}");
    let before = hedge.stats();
    let dropped = Arc::new(());
    let start = Instant::now();
    let answer = hedge
        .call(|number| {
            let held = Arc::clone(&dropped);
            async move {
                let answer = answer_after(if number == 0 { 5_000 * MS } else { 20 * MS }).await;
                drop(held);
                answer
            }
        })
        .await;
    assert_eq!(answer, Ok(20));
    // Timers are right to a millisecond.
    let (took, due) = (start.elapsed(), delay + 20 * MS);
    assert!(took >= due && took <= due + 2 * MS, "{took:?}, not {due:?}");
    assert_eq!(Arc::strong_count(&dropped), 1, "the slow one is gone");
    let (hedges, won) = (hedge.stats().hedges - before.hedges, hedge.stats().won - before.won);
    assert_eq!((hedges, won), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_failure_waits_for_the_hedge_and_ends_the_call_without_one() {
    let hedge = hedge(None);
    let start = Instant::now();
    assert_eq!(hedge.call(|_| async { Err::<(), _>("down") }).await, Err("down"));
    assert_eq!(start.elapsed(), Duration::ZERO);
    let answer = hedge
        .call(|number| async move {
            if number == 0 {
                sleep(600 * MS).await;
                return Err("late and bad");
            }
            answer_after(300 * MS).await
        })
        .await;
    assert_eq!((answer, start.elapsed()), (Ok(300), 800 * MS));
}

#[tokio::test(start_paused = true)]
async fn hedges_and_retries_share_one_budget() {
    let mut config = RetryBudgetConfig::default();
    (config.ratio, config.per_sec, config.max_balance) = (0.0, 0.0, 3);
    let budget = RetryBudget::new(config).unwrap();
    let hedge = hedge(Some(&budget));
    for _ in 0..2 {
        hedge.call(|n| answer_after(if n == 0 { 900 * MS } else { MS })).await.unwrap();
    }
    let retry = Retry::new(plain(9)).unwrap().with_budget(Arc::clone(&budget));
    let failed = retry.call(|_| async { Err::<(), _>("down") }, again).await.unwrap_err();
    assert_eq!(failed.attempts, 2, "one token was left");
    assert_eq!(failed.stopped, Stop::RetryRejected(RetryRejected::Spent));
    assert_eq!(hedge.call(|_| answer_after(900 * MS)).await, Ok(900));
    assert_eq!(hedge.stats().rejected, 1);
}

/// When everything becomes slow at once, losers must not be forgotten: the delay has to follow.
#[tokio::test(start_paused = true)]
async fn the_delay_follows_a_dependency_that_became_slow() {
    let mut config = HedgeConfig::default();
    (config.min_samples, config.max_delay) = (20, 5_000 * MS);
    let hedge = Hedge::new(config).unwrap();
    for _ in 0..100 {
        hedge.call(|_| answer_after(10 * MS)).await.unwrap();
    }
    for _ in 0..200 {
        hedge.call(|_| answer_after(400 * MS)).await.unwrap();
    }
    assert!(hedge.delay() >= 350 * MS, "{:?}", hedge.delay());
}

#[test]
fn every_algorithm_keeps_the_contract() {
    let (min, max) = (2, 500);
    let mut aimd = AimdConfig::default();
    (aimd.min, aimd.max) = (min, max);
    check_limit_algorithm(min, max, || Box::new(Aimd::new(aimd)));
    let mut vegas = VegasConfig::default();
    (vegas.min, vegas.max) = (min, max);
    check_limit_algorithm(min, max, || Box::new(Vegas::new(vegas)));
    let mut gradient = Gradient2Config::default();
    (gradient.min, gradient.max) = (min, max);
    check_limit_algorithm(min, max, || Box::new(Gradient2::new(gradient)));
}

/// A server with 20 workers of 10 ms each, which queues what is more than that. The limit must
/// come to lie near 20: enough to keep it busy, without a long queue.
#[test]
fn every_algorithm_finds_the_size_of_a_server() {
    let algorithms: [(&str, Box<dyn LimitAlgorithm>); 3] = [
        ("aimd", {
            let mut config = AimdConfig::default();
            config.max_latency = Some(15_000_000);
            Box::new(Aimd::new(config))
        }),
        ("vegas", Box::new(Vegas::new(VegasConfig::default()))),
        ("gradient2", Box::new(Gradient2::new(Gradient2Config::default()))),
    ];
    for (name, mut algorithm) in algorithms {
        let (workers, service) = (20_u64, 10_000_000_u64);
        let mut limit = 5;
        let (mut now, mut sum, mut count) = (0, 0_u64, 0_u64);
        for round in 0..200_000_u64 {
            // As many as are allowed are under way: each waits for its turn among them.
            let turns = (limit as u64).div_ceil(workers);
            let latency = service * (limit as u64).max(workers) / workers;
            now += latency / limit as u64;
            limit = algorithm.update(&LimitSample::new(now, latency, limit, false));
            assert!(turns < 10, "{name}: {limit} after {round}");
            if round >= 100_000 {
                sum += limit as u64;
                count += 1;
            }
        }
        let mean = sum / count;
        assert!((15..=50).contains(&mean), "{name} settled at {mean}, the server takes {workers}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_limit_follows_its_calls() {
    let mut config = AimdConfig::default();
    config.initial = 10;
    let clock = Arc::new(ManualClock::new());
    let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    let limit =
        AdaptiveLimit::with_clock(Box::new(Aimd::new(config)), QueueConfig::default(), shared);
    let limit = limit.unwrap();
    let permits: Vec<_> = (0..10).map(|_| limit.try_acquire().unwrap()).collect();
    assert!(limit.try_acquire().is_err());
    clock.advance(5 * MS);
    for permit in permits {
        permit.overload();
    }
    assert_eq!((limit.stats().limit, limit.stats().running), (9, 0));
    drop(limit.try_acquire().unwrap());
    assert_eq!(limit.stats().limit, 9, "a dropped permit tells nothing");
    assert!(limit.load() < 0.01);
}

/// Every future dropped at every one of its await points: nothing stays taken.
#[tokio::test(start_paused = true)]
async fn a_policy_dropped_at_any_time_keeps_nothing() {
    let budget = RetryBudget::new(RetryBudgetConfig::default()).unwrap();
    let bulkhead = Bulkhead::new(4, QueueConfig::default()).unwrap();
    let breaker = Arc::new(Breaker::new("b", &BreakerConfig::default()).unwrap());
    let mut hedges = HedgeConfig::default();
    hedges.max_delay = 30 * MS;
    let hedge = Hedge::new(hedges).unwrap().with_budget(Arc::clone(&budget));
    let policy = Policy::builder()
        .classify(Arc::new(Idempotent))
        .timeout(Timeout::new(450 * MS).unwrap())
        .retry(Arc::new(Retry::new(plain(3)).unwrap().with_budget(Arc::clone(&budget))))
        .hedge(Arc::new(hedge))
        .breaker(Arc::clone(&breaker))
        .bulkhead(bulkhead.clone())
        .timeout(Timeout::new(70 * MS).unwrap())
        .build()
        .unwrap();
    for millis in (0..460).step_by(5) {
        let call = policy.call(|_| pending::<Result<(), &str>>());
        let _ = timeout(millis * MS, call).await;
        let stats = budget.stats();
        assert_eq!((stats.active_calls, stats.active_extra), (0, 0), "at {millis} ms");
        assert_eq!(bulkhead.stats().running, 0, "at {millis} ms");
        breaker.reset();
    }
}

#[tokio::test(start_paused = true)]
pub(super) async fn last_come_is_first_served() {
    let mut queue = QueueConfig::default();
    (queue.max_len, queue.order) = (3, QueueOrder::Lifo);
    let bulkhead = Bulkhead::new(1, queue).unwrap();
    let place = bulkhead.try_acquire().unwrap();
    let (served, mut order) = tokio::sync::mpsc::unbounded_channel();
    for caller in 0..3 {
        let (bulkhead, served) = (bulkhead.clone(), served.clone());
        tokio::spawn(async move {
            let _place = bulkhead.acquire().await.unwrap();
            served.send(caller).unwrap();
        });
        tokio::task::yield_now().await;
    }
    drop((place, served));
    let mut callers = vec![];
    while let Some(caller) = order.recv().await {
        callers.push(caller);
    }
    assert_eq!(callers, [2, 1, 0]);
}

#[tokio::test(start_paused = true)]
pub(super) async fn a_standing_queue_has_little_patience() {
    let mut queue = QueueConfig::default();
    queue.max_len = 3;
    let bulkhead = Bulkhead::new(1, queue).unwrap();
    let _place = bulkhead.try_acquire().unwrap();
    let wait = |after: Duration| {
        let bulkhead = bulkhead.clone();
        async move {
            sleep(after).await;
            bulkhead.acquire().await.unwrap_err()
        }
    };
    // The second keeps the queue from becoming empty when the first has gone.
    let refused = tokio::join!(wait(Duration::ZERO), wait(60 * MS), wait(120 * MS));
    let after = |millis: u32| GateError::QueueTimeout(millis * MS);
    assert_eq!(refused, (after(100), after(100), after(5)));
}

#[test]
pub(super) fn the_less_important_are_turned_away_first() {
    let bulkhead = Bulkhead::new(10, QueueConfig::default()).unwrap();
    let shedder = Shedder::new(Arc::new(bulkhead.clone()), ShedConfig::default()).unwrap();
    let _busy: Vec<_> = (0..9).map(|_| bulkhead.try_acquire().unwrap()).collect();
    let kept =
        [Priority::Sheddable, Priority::SheddablePlus, Priority::Critical, Priority::CriticalPlus]
            .map(|priority| shedder.check(priority).is_ok());
    assert_eq!(kept, [false, false, true, true]);
}

#[tokio::test(start_paused = true)]
pub(super) async fn an_attempt_learns_its_deadline() {
    let policy = Policy::builder()
        .timeout(Timeout::new(250 * MS).unwrap())
        .timeout(Timeout::new(80 * MS).unwrap())
        .build()
        .unwrap();
    let left = policy
        .call(|attempt| async move { Ok::<_, &str>(attempt.deadline.map(Deadline::remaining)) });
    assert_eq!(left.await, Ok(Some(80 * MS)));
}

/// A time limit that cuts a call off in the queue behind the breaker tells nothing of the
/// dependency, which was not asked, in whatever stages the queue stands.
#[tokio::test(start_paused = true)]
async fn a_call_that_was_never_sent_is_no_failure_for_the_breaker() {
    let mut queue = QueueConfig::default();
    (queue.max_len, queue.max_wait) = (100, Duration::from_secs(1));
    let bulkhead = Bulkhead::new(1, queue).unwrap();
    let breaker = Arc::new(Breaker::new("b", &BreakerConfig::default()).unwrap());
    let outside = || {
        let limit = Timeout::new(50 * MS).unwrap();
        Policy::builder().classify(Arc::new(Idempotent)).timeout(limit).breaker(breaker.clone())
    };
    let retry = Arc::new(Retry::new(plain(3)).unwrap());
    let policies = [
        outside().bulkhead(bulkhead.clone()).build().unwrap(),
        outside().retry(retry).bulkhead(bulkhead.clone()).build().unwrap(),
    ];
    for policy in policies {
        let place = bulkhead.try_acquire().unwrap();
        for _ in 0..50 {
            let error = policy.call(|_| async { Err::<(), _>("down") }).await.unwrap_err();
            assert_eq!((error.attempts, error.outcome()), (0, Outcome::NotApplied));
        }
        assert_eq!(
            (breaker.state(), breaker.stats().window.failures),
            (State::Closed, 0),
            "{policy}"
        );
        drop(place);
        // One that was sent and cut off is one.
        let sent = policy.call(|_| pending::<Result<(), &str>>()).await.unwrap_err();
        assert_eq!(sent.attempts, 1);
        assert_eq!(breaker.stats().window.failures, 1, "{policy}");
        breaker.reset();
    }
}
