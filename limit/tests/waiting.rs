//! Those that wait notice what changes while they sleep.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use voussoir_limit::*;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn clock() -> Arc<TokioClock> {
    Arc::new(TokioClock::new())
}

fn limiter(quotas: &[Quota]) -> Arc<Limiter> {
    Arc::new(Limiter::with_clock(quotas, LimiterConfig::default(), clock()).unwrap())
}

fn keyed(quotas: &[Quota]) -> Arc<Keyed<u32>> {
    Arc::new(Keyed::with_clock(quotas, KeyedConfig::default(), clock()).unwrap())
}

/// Each shape of state, slow and fast.
fn slow_and_fast() -> Vec<(Vec<Quota>, Vec<Quota>)> {
    let one = |slow, fast| (vec![slow], vec![fast]);
    vec![
        one(Quota::gcra(1, HOUR), Quota::gcra(1000, SECOND)),
        one(Quota::leaky_bucket(1, HOUR), Quota::leaky_bucket(1000, SECOND)),
        one(Quota::token_bucket(1, HOUR), Quota::token_bucket(1000, SECOND)),
        one(Quota::fixed_window(1, HOUR), Quota::fixed_window(1000, SECOND)),
        one(Quota::sliding_log(1, HOUR), Quota::sliding_log(1000, SECOND)),
        one(Quota::sliding_counter(1, HOUR), Quota::sliding_counter(1000, SECOND)),
        (
            vec![Quota::gcra(1, HOUR), Quota::sliding_log(1, HOUR)],
            vec![Quota::gcra(1000, SECOND), Quota::sliding_log(1000, SECOND)],
        ),
    ]
}

/// Runs what waits until it can go on only with time.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_raised_quota_wakes_those_that_wait() {
    for (slow, fast) in slow_and_fast() {
        let limiter = limiter(&slow);
        limiter.check().unwrap();
        let waiting = [0; 3].map(|_| {
            let limiter = Arc::clone(&limiter);
            tokio::spawn(async move { limiter.until_ready().await })
        });
        settle().await;
        let start = Instant::now();
        limiter.set_quotas(&fast).unwrap();
        for one in waiting {
            one.await.unwrap().unwrap();
        }
        assert!(start.elapsed() <= 10 * MILLISECOND, "{:?} with {fast:?}", start.elapsed());
        assert_eq!(limiter.waiting(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_raised_quota_wakes_those_that_wait_for_keys() {
    for (slow, fast) in slow_and_fast() {
        let limiter = keyed(&slow);
        let waiting = [1, 1, 2].map(|key| {
            let _ = limiter.check(&key);
            let limiter = Arc::clone(&limiter);
            tokio::spawn(async move { limiter.until_ready(&key).await })
        });
        settle().await;
        let start = Instant::now();
        limiter.set_quotas(&fast).unwrap();
        for one in waiting {
            one.await.unwrap().unwrap();
        }
        assert!(start.elapsed() <= 10 * MILLISECOND, "{:?} with {fast:?}", start.elapsed());
        assert_eq!(limiter.waiting(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refund_wakes_the_first_that_waits() {
    for (slow, _) in slow_and_fast() {
        let (limiter, keys) = (limiter(&slow), keyed(&slow));
        let (taken, taken_of_key) = (limiter.check().unwrap(), keys.check(&7).unwrap());
        let waiting = {
            let (limiter, keys) = (Arc::clone(&limiter), Arc::clone(&keys));
            tokio::spawn(async move { tokio::join!(limiter.until_ready(), keys.until_ready(&7)) })
        };
        settle().await;
        let start = Instant::now();
        limiter.refund(taken);
        keys.refund(&7, taken_of_key);
        let (one, of_key) = waiting.await.unwrap();
        one.unwrap();
        of_key.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO, "with {slow:?}");
        assert_eq!((limiter.waiting(), keys.waiting()), (0, 0));
        // The unit was given once: what came back is used.
        assert!(limiter.check().is_err() && keys.check(&7).is_err());
    }
}

/// A lower quota holds for those that wait already, and one that can never be served is told.
#[tokio::test(start_paused = true)]
async fn a_lowered_quota_holds_for_those_that_wait() {
    let limiter = limiter(&[Quota::gcra(1, SECOND).burst(5)]);
    limiter.check_n(5).unwrap();
    let ask = |cost| {
        let limiter = Arc::clone(&limiter);
        tokio::spawn(async move { limiter.until_ready_n(cost).await })
    };
    let (one, five) = (ask(1), ask(5));
    settle().await;
    let start = Instant::now();
    limiter.set_quotas(&[Quota::gcra(1, HOUR).burst(4)]).unwrap();
    one.await.unwrap().unwrap();
    // Four of the five used are kept, the most that the new quota can know of.
    assert!((HOUR..HOUR + SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!(five.await.unwrap().unwrap_err(), WaitError::TooCostly);
}

/// One that cannot be served is not queued behind those that wait.
#[tokio::test(start_paused = true)]
async fn what_never_passes_is_told_at_once() {
    let quota = [Quota::gcra(1, HOUR)];
    let (limiter, keys) = (limiter(&quota), keyed(&quota));
    limiter.check().unwrap();
    keys.check(&1).unwrap();
    let waiting = {
        let (limiter, keys) = (Arc::clone(&limiter), Arc::clone(&keys));
        tokio::spawn(async move { tokio::join!(limiter.until_ready(), keys.until_ready(&1)) })
    };
    settle().await;
    let start = Instant::now();
    assert_eq!(limiter.until_ready_n(2).await.unwrap_err(), WaitError::TooCostly);
    assert_eq!(keys.until_ready_n(&1, 2).await.unwrap_err(), WaitError::TooCostly);
    assert_eq!(start.elapsed(), Duration::ZERO);
    waiting.abort();
}

/// Each await point: a caller that gives up while it waits, has been woken, or stands in line
/// leaves nothing taken and nobody asleep.
#[tokio::test(start_paused = true)]
async fn one_that_gives_up_after_a_change_takes_nothing() {
    for turns in 0..6 {
        let limiter = limiter(&[Quota::gcra(1, HOUR).burst(2)]);
        let first = limiter.check().unwrap();
        limiter.check().unwrap();
        let ask = || {
            let limiter = Arc::clone(&limiter);
            tokio::spawn(async move { limiter.until_ready().await })
        };
        let (gives_up, stays) = (ask(), ask());
        settle().await;
        limiter.refund(first);
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        gives_up.abort();
        let served = gives_up.await.is_ok();
        let start = Instant::now();
        stays.await.unwrap().unwrap();
        let expected = if served { HOUR } else { Duration::ZERO };
        assert!(start.elapsed() <= expected + 2 * MILLISECOND, "{:?}", start.elapsed());
        assert!(limiter.check().is_err(), "two units in use and none left");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cost_above_the_limit_is_waited_for_in_debt() {
    let limiter = limiter(&[Quota::gcra(10, SECOND).burst(5)]);
    assert_eq!(limiter.until_ready_n(25).await.unwrap_err(), WaitError::TooCostly);
    let start = Instant::now();
    let mut expected = Duration::ZERO;
    // Five are there at first; all that follow pay their whole cost.
    for (cost, wait_ms) in [(25, 2000), (25, 2500), (3, 300), (1, 100)] {
        limiter.until_ready_in_debt(cost).await.unwrap();
        expected += wait_ms * MILLISECOND;
        let late = start.elapsed().checked_sub(expected).unwrap_or_else(|| panic!("{cost} early"));
        assert!(late <= 8 * MILLISECOND, "{cost} units {late:?} late");
    }
}

/// While the quota owes, everybody else waits, and is told exactly how long.
#[tokio::test(start_paused = true)]
async fn a_debt_is_paid_before_others_pass_and_comes_back_when_given_up() {
    let limiter = limiter(&[Quota::gcra(10, SECOND).burst(5)]);
    let ask = || {
        let limiter = Arc::clone(&limiter);
        tokio::spawn(async move { limiter.until_ready_in_debt(25).await })
    };
    let waiting = ask();
    settle().await;
    let wait = limiter.check().unwrap_err().retry_after().unwrap();
    assert_eq!(wait, 2100 * MILLISECOND);
    waiting.abort();
    assert!(waiting.await.is_err());
    limiter.check_n(5).unwrap();
    // A raised rate lets a debtor that waits already go on sooner.
    let waiting = ask();
    settle().await;
    let start = Instant::now();
    limiter.set_quotas(&[Quota::gcra(1000, SECOND).burst(5)]).unwrap();
    waiting.await.unwrap().unwrap();
    assert!(start.elapsed() <= 30 * MILLISECOND, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn only_a_single_quota_by_rate_can_owe() {
    let per_second = Quota::gcra(10, SECOND);
    for quotas in [&[Quota::fixed_window(10, SECOND)][..], &[per_second, per_second]] {
        let limiter = limiter(quotas);
        assert_eq!(limiter.until_ready_in_debt(1).await.unwrap_err(), WaitError::NoDebt);
    }
    // Debts are bounded: 73 years.
    let limiter = limiter(&[per_second]);
    for cost in [u64::MAX, 1 << 40, 1 << 35] {
        let answer = limiter.until_ready_in_debt(cost).await;
        assert_eq!(answer.unwrap_err(), WaitError::TooCostly);
    }
    limiter.check().unwrap();
}
