//! The limiter as a user has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use voussoir_limit::*;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A clock that stands still.
#[derive(Debug)]
struct At(u64);

impl Clock for At {
    fn now(&self) -> u64 {
        self.0
    }
}

/// Admitted in the first minute of asking ten times a second.
fn first_minute(quota: Quota) -> u64 {
    let limiter = Limiter::new(quota).unwrap();
    let tries =
        (0..600_u64).map(|turn| limiter.check_at(MINUTE.as_nanos() as u64 + turn * 100_000_000, 1));
    tries.flatten().count() as u64
}

#[test]
fn sixty_a_minute_polled_ten_times_a_second() {
    for strict in [
        Quota::sliding_log(60, MINUTE),
        Quota::gcra(60, MINUTE),
        Quota::leaky_bucket(60, MINUTE),
        Quota::fixed_window(60, MINUTE),
    ] {
        assert_eq!(first_minute(strict), 60, "{strict:?}");
    }
    // What a burst adds is said beforehand.
    let burst = Quota::gcra(60, MINUTE).burst(60);
    assert_eq!((first_minute(burst), burst.most_in(MINUTE)), (119, 119));
}

#[test]
fn the_oracle_agrees() {
    use governor::clock::FakeRelativeClock;
    use std::num::NonZeroU32;

    let one = |n| NonZeroU32::new(n).unwrap();
    for (rate, burst, step_ms) in [(5, 5, 100), (60, 7, 13), (1000, 50, 1), (3, 1, 50)] {
        let clock = FakeRelativeClock::default();
        let quota = governor::Quota::per_second(one(rate)).allow_burst(one(burst));
        let theirs = governor::RateLimiter::direct_with_clock(quota, clock.clone());
        let ours = Limiter::new(Quota::gcra(rate.into(), SECOND).burst(burst.into())).unwrap();
        // The time of one unit is rounded up here and down there: compare where it is whole.
        let whole = 1_000_000_000 % u64::from(rate) == 0;
        let (mut now, mut admitted) = (0, [0_u32; 2]);
        for turn in 0..5000_u64 {
            let step = Duration::from_millis(step_ms * (turn * turn % 5));
            clock.advance(step);
            now += step.as_nanos() as u64;
            let (a, b) = (ours.check_at(now, 1).is_ok(), theirs.check().is_ok());
            assert!(a == b || !whole, "{rate} a second, turn {turn}");
            admitted[0] += u32::from(a);
            admitted[1] += u32::from(b);
        }
        assert!(admitted[0].abs_diff(admitted[1]) <= admitted[1] / 1000 + 1, "{admitted:?}");
    }
}

#[test]
fn a_change_of_quota_holds_at_once() {
    let now = 5_000_000_000;
    let config = LimiterConfig::default();
    let quota = Quota::gcra(10, SECOND).burst(10);
    let limiter = Limiter::with_clock(&[quota], config, Arc::new(At(now))).unwrap();
    limiter.check_n(4).unwrap();
    limiter.set_quotas(&[Quota::gcra(1, SECOND).burst(5)]).unwrap_or_else(|e| panic!("{e}"));
    assert!(limiter.check_n(2).is_err());
    assert!(limiter.check_n(1).is_ok());
    let log = [Quota::sliding_log(1, SECOND)];
    assert_eq!(limiter.set_quotas(&log).unwrap_err().field, "quotas");
}

#[test]
fn what_is_out_of_range_is_refused() {
    let bad = |quota| Limiter::new(quota).unwrap_err().field;
    assert_eq!(bad(Quota::gcra(0, SECOND)), "quota.count");
    assert_eq!(bad(Quota::gcra(1, Duration::ZERO)), "quota.per");
    assert_eq!(bad(Quota::gcra(2_000_000_000, SECOND)), "quota");
    assert_eq!(bad(Quota::gcra(1, MINUTE).burst(u64::MAX)), "quota");
    assert_eq!(bad(Quota::sliding_log(1 << 30, SECOND)), "quota.count");
    assert_eq!(bad(Quota::gcra(1, SECOND).named("a\"b")), "quota.name");
    assert_eq!(Limiter::tiers(&[]).unwrap_err().field, "quotas");
}

#[test]
fn threads_together_take_exactly_the_limit() {
    for quota in [
        Quota::gcra(1, MINUTE).burst(1000),
        Quota::token_bucket(1000, MINUTE),
        Quota::fixed_window(1000, MINUTE),
        Quota::sliding_log(1000, MINUTE),
        Quota::sliding_counter(1000, MINUTE),
    ] {
        let (limiter, admitted) = (Limiter::new(quota).unwrap(), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let ok = (0..1000).filter(|_| limiter.check_at(7, 1).is_ok()).count();
                    admitted.fetch_add(ok, Ordering::Relaxed);
                });
            }
        });
        assert_eq!(admitted.into_inner(), 1000, "{quota:?}");
    }
}

fn paused(quota: Quota, max_waiters: usize) -> Arc<Limiter> {
    let mut config = LimiterConfig::default();
    config.max_waiters = max_waiters;
    let clock = Arc::new(TokioClock::new());
    Arc::new(Limiter::with_clock(&[quota], config, clock).unwrap())
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_served_in_order_and_at_the_rate() {
    for quota in [Quota::gcra(10, SECOND), Quota::sliding_log(10, SECOND)] {
        let limiter = paused(quota, 100);
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let start = tokio::time::Instant::now();
        for turn in 0..25 {
            let (limiter, sender) = (Arc::clone(&limiter), sender.clone());
            tokio::spawn(async move {
                limiter.until_ready().await.unwrap();
                sender.send((turn, start.elapsed())).unwrap();
            });
        }
        drop(sender);
        let mut served = Vec::new();
        while let Some(one) = receiver.recv().await {
            served.push(one);
        }
        assert!(served.iter().map(|(turn, _)| *turn).eq(0..25), "{served:?}");
        let times: Vec<Duration> = served.into_iter().map(|(_, at)| at).collect();
        for from in 0..15 {
            assert!(times[from + 10] >= times[from] + SECOND, "{times:?}");
        }
        assert!(times[24] < SECOND * 5 / 2 + Duration::from_millis(50), "{times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_who_gives_up_takes_nothing() {
    let limiter = paused(Quota::gcra(1, SECOND), 100);
    limiter.until_ready().await.unwrap();
    for _ in 0..10 {
        let wait = tokio::time::timeout(Duration::from_millis(50), limiter.until_ready());
        wait.await.unwrap_err();
        assert_eq!(limiter.waiting(), 0);
    }
    let start = tokio::time::Instant::now();
    limiter.until_ready().await.unwrap();
    assert!(start.elapsed() <= Duration::from_millis(510), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_and_what_never_passes_is_told() {
    let limiter = paused(Quota::gcra(1, SECOND), 1);
    assert_eq!(limiter.until_ready_n(2).await.unwrap_err(), WaitError::TooCostly);
    limiter.until_ready().await.unwrap();
    let waiting = tokio::spawn({
        let limiter = Arc::clone(&limiter);
        async move { limiter.until_ready().await }
    });
    tokio::task::yield_now().await;
    assert_eq!(limiter.until_ready().await.unwrap_err(), WaitError::QueueFull);
    waiting.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn checkers_do_not_starve_one_who_waits() {
    let limiter = paused(Quota::gcra(1, SECOND), 10);
    limiter.check().unwrap();
    let waiting = tokio::spawn({
        let limiter = Arc::clone(&limiter);
        async move { limiter.until_ready().await }
    });
    for _ in 0..3000 {
        let _ = limiter.check();
        tokio::time::advance(Duration::from_millis(1)).await;
        tokio::task::yield_now().await;
        if waiting.is_finished() {
            return;
        }
    }
    panic!("not served in three seconds");
}
