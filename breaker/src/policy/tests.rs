//! Policies: what each layer sees of a call, and in which order.

use super::*;
use crate::*;
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

const MS: Duration = Duration::from_millis(1);

fn clock() -> Arc<dyn Clock> {
    Arc::new(TokioClock::new())
}

fn breaker(failures: u32) -> Arc<Breaker> {
    let config = BreakerConfig {
        consecutive_failures: Some(failures),
        open_jitter: 0.0,
        ..Default::default()
    };
    Arc::new(Breaker::with_clock("b", &config, clock()).unwrap())
}

fn retry(max_attempts: u32) -> Arc<Retry> {
    let backoff = Backoff {
        first: 100 * MS,
        growth: Growth::Exponential { factor: 2.0, jitter: Jitter::None },
        ..Default::default()
    };
    Arc::new(Retry::new(RetryConfig { max_attempts, backoff, ..Default::default() }).unwrap())
}

fn timeout(limit: Duration) -> Timeout {
    Timeout::new(limit).unwrap()
}

fn builder() -> PolicyBuilder<u32, &'static str> {
    Policy::builder().classify(Arc::new(Idempotent))
}

#[tokio::test(start_paused = true)]
async fn the_order_is_the_callers() {
    // Breaker inside retry: it sees every attempt, opens, and ends the retries.
    let inside = breaker(2);
    let policy = builder().retry(retry(5)).breaker(Arc::clone(&inside)).build().unwrap();
    let error = policy.call(|_| async { Err("down") }).await.unwrap_err();
    assert!(matches!(error.kind, PolicyErrorKind::Rejected(_)), "{error}");
    assert_eq!((error.attempts, inside.state()), (2, State::Open));
    // Retry inside breaker: it sees one call.
    let outside = breaker(2);
    let policy = builder().breaker(Arc::clone(&outside)).retry(retry(5)).build().unwrap();
    let error = policy.call(|_| async { Err("down") }).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (PolicyErrorKind::Inner("down"), 5));
    assert_eq!(outside.stats().window.failures, 1);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_after_a_timeout_is_still_unknown() {
    let policy =
        builder().retry(retry(3)).breaker(breaker(1)).timeout(timeout(50 * MS)).build().unwrap();
    let error = policy.call(|_| std::future::pending()).await.unwrap_err();
    assert!(matches!(error.kind, PolicyErrorKind::Rejected(_)), "{error}");
    assert_eq!((error.attempts, error.outcome()), (1, Outcome::Unknown));
    let error = policy.call(|_| std::future::pending()).await.unwrap_err();
    assert_eq!((error.attempts, error.outcome()), (0, Outcome::NotApplied));
}

struct Rejecting;

impl Classify<u32, &'static str> for Rejecting {
    fn is_idempotent(&self) -> bool {
        true
    }

    fn outcome(&self, error: &&'static str) -> Outcome {
        if *error == "refused" { Outcome::NotApplied } else { Outcome::Unknown }
    }

    fn verdict(&self, answer: &Result<u32, &'static str>) -> Verdict {
        match answer {
            Ok(500..) | Err(_) => Verdict::Failure,
            Ok(400..) => Verdict::Ignored,
            Ok(_) => Verdict::Success,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_classifier_knows_harmless_errors_and_bad_values() {
    let policy = builder().classify(Arc::new(Rejecting)).retry(retry(3)).build().unwrap();
    let error = policy.call(|_| async { Err("refused") }).await.unwrap_err();
    assert_eq!((error.attempts, error.outcome()), (3, Outcome::NotApplied));
    let mixed = |attempt: Attempt| async move {
        Err(if attempt.number == 2 { "reset" } else { "refused" })
    };
    assert_eq!(policy.call(mixed).await.unwrap_err().outcome(), Outcome::Unknown);
    // A bad value is retried, and returned when there are no more attempts.
    let values = |attempt: Attempt| async move { Ok(500 + attempt.number) };
    assert_eq!(policy.call(values).await, Ok(503));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_goes_all_the_way_down() {
    let policy =
        builder().timeout(timeout(250 * MS)).retry(retry(9)).timeout(timeout(100 * MS)).build();
    let policy = policy.unwrap();
    let seen = Mutex::new(vec![]);
    let start = Instant::now();
    let error = policy
        .call(|attempt| {
            let left = attempt.deadline.expect("there are two").remaining();
            seen.lock().unwrap().push(left.as_millis());
            std::future::pending()
        })
        .await
        .unwrap_err();
    // 100 ms, a wait of 100, and what is left. No third wait fits.
    assert_eq!(*seen.lock().unwrap(), [100, 50]);
    assert_eq!(start.elapsed(), 250 * MS);
    assert!(matches!(error.kind, PolicyErrorKind::TimedOut(_)));
    let passed = Deadline::after(Duration::ZERO);
    let error = policy.call_by(Some(passed), Priority::default(), |_| async { Ok(1) }).await;
    assert_eq!(error.unwrap_err().kind, PolicyErrorKind::DeadlinePassed);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_outside_the_breaker_is_seen_as_a_failure_all_the_same() {
    let breaker = breaker(3);
    let policy = builder().timeout(timeout(50 * MS)).breaker(Arc::clone(&breaker)).build().unwrap();
    for _ in 0..3 {
        let error = policy.call(|_| std::future::pending()).await.unwrap_err();
        assert!(matches!(error.kind, PolicyErrorKind::TimedOut(_)));
    }
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_call_says_nothing_and_keeps_nothing() {
    let breaker = breaker(1);
    let bulkhead = Bulkhead::new(1, QueueConfig::default()).unwrap();
    let policy = builder()
        .timeout(timeout(50 * MS))
        .breaker(Arc::clone(&breaker))
        .bulkhead(bulkhead.clone())
        .build()
        .unwrap();
    let call = policy.call(|_| std::future::pending());
    assert!(tokio::time::timeout(10 * MS, call).await.is_err());
    assert_eq!(breaker.state(), State::Closed);
    assert_eq!(bulkhead.stats().running, 0);
}

#[tokio::test(start_paused = true)]
async fn rejections_of_our_own_are_neither_retried_nor_held_against_the_dependency() {
    let breaker = breaker(1);
    let bulkhead = Bulkhead::new(1, QueueConfig::default()).unwrap();
    let policy = builder()
        .retry(retry(5))
        .breaker(Arc::clone(&breaker))
        .bulkhead(bulkhead.clone())
        .build()
        .unwrap();
    let place = bulkhead.try_acquire().unwrap();
    let start = Instant::now();
    let error = policy.call(|_| async { Ok(1) }).await.unwrap_err();
    assert_eq!(error.kind, PolicyErrorKind::Gate(GateError::Full { limit: 1, queue: 0 }));
    assert!(error.is_retryable() && error.kind.is_local() && error.attempts == 0);
    assert_eq!((start.elapsed(), breaker.state()), (Duration::ZERO, State::Closed));
    drop(place);
    assert_eq!(policy.call(|_| async { Ok(1) }).await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn a_fallback_sees_the_error_and_may_keep_it() {
    let policy = builder()
        .fallback(|error| async move {
            match error {
                PolicyErrorKind::Inner("gone") => Ok(7),
                other => Err(other),
            }
        })
        .build()
        .unwrap();
    assert_eq!(policy.call(|_| async { Err("gone") }).await, Ok(7));
    let kept = policy.call(|_| async { Err("else") }).await.unwrap_err();
    assert_eq!(kept.kind, PolicyErrorKind::Inner("else"));
}

#[tokio::test(start_paused = true)]
async fn priorities_reach_the_shedder_and_the_call() {
    let bulkhead = Bulkhead::new(10, QueueConfig::default()).unwrap();
    let shedder = Shedder::new(Arc::new(bulkhead.clone()), ShedConfig::default()).unwrap();
    let shedder = Arc::new(shedder);
    let policy = builder().shed(Arc::clone(&shedder)).bulkhead(bulkhead.clone()).build().unwrap();
    let _busy: Vec<_> = (0..9).map(|_| bulkhead.try_acquire().unwrap()).collect();
    let call = |priority| policy.call_by(None, priority, |a| async move { Ok(a.priority as u32) });
    let shed = call(Priority::Sheddable).await.unwrap_err();
    assert_eq!(shed.kind, PolicyErrorKind::Gate(GateError::Shed { load_percent: 90 }));
    assert_eq!(call(Priority::Critical).await, Ok(Priority::Critical as u32));
    assert_eq!(shedder.shed(Priority::Sheddable), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_of_a_policy_takes_the_first_good_answer() {
    let config = HedgeConfig { max_delay: 100 * MS, ..Default::default() };
    let hedge = Arc::new(Hedge::new(config).unwrap());
    let policy = builder().classify(Arc::new(Rejecting)).hedge(Arc::clone(&hedge)).build().unwrap();
    let start = Instant::now();
    let answer = policy
        .call(|attempt| async move {
            // The first is slow and good, the second quick and bad.
            let (time, value) = if attempt.hedge == 0 { (300, 200) } else { (50, 503) };
            tokio::time::sleep(time * MS).await;
            Ok(value)
        })
        .await;
    assert_eq!((answer, start.elapsed()), (Ok(200), 300 * MS));
    assert_eq!((hedge.stats().hedges, hedge.stats().won), (1, 0));
}

/// The queue of the own process is full of others' calls: that opens no breaker of the dependency,
/// also when a hedge passes it.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_a_hedge_overtakes_in_a_queue_says_nothing() {
    for sends_first in [false, true] {
        let queue = QueueConfig { max_len: 9, order: QueueOrder::Lifo, ..Default::default() };
        let bulkhead = Bulkhead::new(1, queue).unwrap();
        let config = HedgeConfig { max_delay: 10 * MS, ..Default::default() };
        let hedge = Arc::new(Hedge::new(config).unwrap());
        let breaker = breaker(1);
        let policy = builder()
            .hedge(Arc::clone(&hedge))
            .breaker(Arc::clone(&breaker))
            .bulkhead(bulkhead.clone())
            .build()
            .unwrap();
        let place = bulkhead.try_acquire().unwrap();
        let call = policy.call(|attempt| async move { Ok(attempt.hedge) });
        let freed = async {
            // Before the hedge is due, or when both attempts wait.
            tokio::time::sleep(if sends_first { 5 * MS } else { 20 * MS }).await;
            drop(place);
        };
        let (answer, ()) = tokio::join!(call, freed);
        assert_eq!(answer, Ok(u32::from(!sends_first)), "the last in the queue is served first");
        let window = breaker.stats().window;
        assert_eq!((window.calls, window.failures, breaker.state()), (1, 0, State::Closed));
        assert_eq!(hedge.stats().hedges, u64::from(!sends_first));
        assert_eq!(bulkhead.stats().running, 0);
    }
}

/// A breaker around the hedge sees the call as sent, whichever attempt was.
#[tokio::test(start_paused = true)]
async fn what_any_attempt_of_a_race_has_sent_counts_around_it() {
    let hedge = || {
        let config = HedgeConfig { max_delay: 10 * MS, ..Default::default() };
        Arc::new(Hedge::new(config).unwrap())
    };
    let breaker = breaker(1);
    let policy = builder()
        .timeout(timeout(50 * MS))
        .breaker(Arc::clone(&breaker))
        .hedge(hedge())
        .build()
        .unwrap();
    let error = policy.call(|_| std::future::pending()).await.unwrap_err();
    assert!(matches!(error.kind, PolicyErrorKind::TimedOut(_)));
    assert_eq!(breaker.state(), State::Open);
}

/// Without a word about it only what proves to have done nothing is sent again.
#[tokio::test(start_paused = true)]
async fn nothing_is_sent_twice_without_the_users_word() {
    struct Proofs;
    impl Classify<u32, &'static str> for Proofs {
        fn outcome(&self, error: &&'static str) -> Outcome {
            if *error == "refused" { Outcome::NotApplied } else { Outcome::Unknown }
        }
    }
    let policy = Policy::builder().classify(Arc::new(Proofs)).retry(retry(3)).build().unwrap();
    for (error, attempts) in [("refused", 3), ("lost", 1)] {
        let failed = policy.call(|_| async move { Err(error) }).await.unwrap_err();
        assert_eq!(failed.attempts, attempts, "{error}");
    }
    // Of one call among idempotent ones, by its caller.
    let policy = builder().retry(retry(3)).build().unwrap();
    let once = CallOptions { once: true, ..Default::default() };
    let failed = policy.call_with(once, |_| async { Err("lost") }).await.unwrap_err();
    assert_eq!(failed.attempts, 1);
    // And a stage that sends again is not built without a word.
    let silent = || Policy::<u32, &'static str>::builder();
    let hedge = || Arc::new(Hedge::new(HedgeConfig::default()).unwrap());
    assert!(silent().retry(retry(2)).build().is_err());
    assert!(silent().hedge(hedge()).build().is_err());
    assert!(silent().classify(Arc::new(Proofs)).hedge(hedge()).build().is_err());
    assert!(silent().classify(Arc::new(Idempotent)).hedge(hedge()).build().is_ok());
}

#[test]
fn what_multiplies_attempts_is_refused() {
    assert!(builder().retry(retry(2)).retry(retry(2)).build().is_err());
    let full = (0..33).fold(builder(), |b, _| b.timeout(timeout(MS)));
    assert!(full.build().is_err());
}
