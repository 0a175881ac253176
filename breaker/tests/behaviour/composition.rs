//! Stages nested in each other: accounts, races, deadlines, panics.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use voussoir_breaker::*;

const MS: Duration = Duration::from_millis(1);

/// 4xx are the caller's mistakes, 5xx the dependency's failures.
struct Http;

impl Classify<u16, &'static str> for Http {
    fn is_idempotent(&self) -> bool {
        true
    }

    fn verdict(&self, answer: &Result<u16, &'static str>) -> Verdict {
        match answer {
            Ok(500..) | Err(_) => Verdict::Failure,
            Ok(400..) => Verdict::Ignored,
            Ok(_) => Verdict::Success,
        }
    }
}

type Builder = PolicyBuilder<u16, &'static str>;

fn builder() -> Builder {
    Policy::builder().classify(Arc::new(Http))
}

fn breaker() -> Arc<Breaker> {
    let clock = Arc::new(TokioClock::new());
    Arc::new(Breaker::with_clock("b", &BreakerConfig::default(), clock).expect("valid"))
}

fn timeout(limit: Duration) -> Timeout {
    Timeout::new(limit).expect("above zero")
}

fn retry() -> Retry {
    let mut config = RetryConfig::default();
    config.backoff.first = 10 * MS;
    config.backoff.growth = Growth::Constant;
    Retry::new(config).expect("valid")
}

fn hedge(delay: Duration) -> Hedge {
    let mut config = HedgeConfig::default();
    config.max_delay = delay;
    config.min_samples = u64::MAX;
    Hedge::new(config).expect("valid")
}

struct Final;

impl Classify<u16, &'static str> for Final {
    fn advice(&self, _answer: &Result<u16, &'static str>) -> RetryAdvice {
        RetryAdvice::Stop
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_out_is_not_retried_without_the_classifiers_word() {
    let policy = Policy::builder()
        .classify(Arc::new(Final))
        .retry(Arc::new(retry()))
        .timeout(timeout(10 * MS))
        .build()
        .expect("valid");
    let error = policy.call(|_| pending()).await.expect_err("hangs");
    assert_eq!(error.attempts, 1);
}

#[tokio::test(start_paused = true)]
async fn retries_and_hedges_of_one_call_have_one_account() {
    let mut config = RetryBudgetConfig::default();
    (config.per_sec, config.max_balance, config.min_active) = (0.0, 10, u32::MAX);
    let budget = RetryBudget::new(config).expect("valid");
    let policy = builder()
        .retry(Arc::new(retry().with_budget(Arc::clone(&budget))))
        .hedge(Arc::new(hedge(20 * MS).with_budget(Arc::clone(&budget))))
        .build()
        .expect("valid");
    let attempts = AtomicU32::new(0);
    for _ in 0..1_000 {
        let call = policy.call(|_| async {
            attempts.fetch_add(1, Relaxed);
            sleep(30 * MS).await;
            Err("down")
        });
        call.await.expect_err("down");
    }
    assert_eq!(budget.stats().calls, 1_000);
    let attempts = attempts.into_inner();
    assert!(attempts <= 1_000 + 10 + 200, "{attempts} attempts for 1,000 calls");
}

#[tokio::test(start_paused = true)]
async fn a_final_answer_ends_the_race() {
    let policy = builder().hedge(Arc::new(hedge(100 * MS))).build().expect("valid");
    let start = Instant::now();
    let answer = policy
        .call(|attempt| async move {
            if attempt.hedge == 0 {
                sleep(150 * MS).await;
                return Ok(404);
            }
            sleep(10_000 * MS).await;
            Ok(503)
        })
        .await;
    assert_eq!((answer, start.elapsed()), (Ok(404), 150 * MS));
}

/// Without an answer that ends the race the dependency's own failure goes first, whatever comes
/// after it: here a time-out of this process.
#[tokio::test(start_paused = true)]
async fn the_dependencys_own_failure_goes_before_our_time_out() {
    let hedge = Arc::new(hedge(100 * MS));
    let policy = builder().hedge(hedge).timeout(timeout(200 * MS)).build().expect("valid");
    let error = policy
        .call(|attempt| async move {
            if attempt.hedge > 0 {
                return pending().await;
            }
            sleep(150 * MS).await;
            Err("down")
        })
        .await
        .expect_err("neither is good");
    assert_eq!(error.kind, PolicyErrorKind::Inner("down"));
}

/// Nested by hand: the account goes along.
#[tokio::test(start_paused = true)]
async fn an_account_goes_along_by_hand() {
    let (mine, other) = (RetryBudgetConfig::default(), RetryBudgetConfig::default());
    let budget = RetryBudget::new(mine).expect("valid");
    let other = RetryBudget::new(other).expect("valid");
    let retry = retry().with_budget(Arc::clone(&budget));
    let hedges = [
        hedge(5 * MS).with_budget(Arc::clone(&budget)),
        hedge(5 * MS).with_budget(Arc::clone(&other)),
    ];
    for hedge in &hedges {
        let account = budget.begin();
        let attempt = |_| hedge.call_within(&account, |_| async { Err::<(), _>("down") });
        let failed = retry.call_within(&account, attempt, |_| RetryAdvice::Retry).await;
        assert_eq!(failed.expect_err("down").attempts, 3);
    }
    assert_eq!((budget.stats().calls, other.stats().calls), (2, 3));
    assert_eq!(budget.stats().active_calls, 0);
}

#[tokio::test(start_paused = true)]
async fn short_deadlines_of_callers_say_nothing_about_a_healthy_dependency() {
    for own_limit_inside in [false, true] {
        let breaker = breaker();
        let mut policy = builder().timeout(timeout(1_000 * MS)).breaker(Arc::clone(&breaker));
        if own_limit_inside {
            policy = policy.timeout(timeout(500 * MS));
        }
        let policy = policy.build().expect("valid");
        for _ in 0..25 {
            let deadline = Some(Deadline::after(MS));
            let call = policy.call_by(deadline, Priority::default(), |_| async {
                sleep(10 * MS).await;
                Ok(200)
            });
            call.await.expect_err("1 ms is too short");
        }
        let window = breaker.stats().window;
        assert_eq!((breaker.state(), window.failures), (State::Closed, 0), "{policy}");
    }
}

#[tokio::test(start_paused = true)]
async fn first_attempts_that_hang_are_seen_though_hedges_answer() {
    let breaker = breaker();
    let policy = builder()
        .hedge(Arc::new(hedge(100 * MS)))
        .breaker(Arc::clone(&breaker))
        .build()
        .expect("valid");
    let mut hung = 0;
    for _ in 0..100 {
        let call = policy.call(|attempt| async move {
            if attempt.hedge == 0 {
                return pending().await;
            }
            sleep(MS).await;
            Ok(200)
        });
        if call.await.is_err() {
            break;
        }
        hung += 1;
    }
    assert!(hung < 100, "100 hung calls and the breaker is {}", breaker.state());
}

#[tokio::test]
async fn a_panicking_call_is_a_failure() {
    let breaker = breaker();
    for _ in 0..3 {
        let breaker = Arc::clone(&breaker);
        let call = async move { breaker.call(async { panic!("in the call") }).await };
        let ended: Result<Result<(), BreakerError<()>>, _> = tokio::spawn(call).await;
        assert!(ended.expect_err("panicked").is_panic());
    }
    assert_eq!(breaker.stats().window.failures, 3);
}
