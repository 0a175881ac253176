//! The breaker as callers see it.

use std::future::pending;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use voussoir_breaker::testing::ManualClock;
use voussoir_breaker::*;

const MS: Duration = Duration::from_millis(1);

fn config() -> BreakerConfig {
    let mut config = BreakerConfig::default();
    config.consecutive_failures = Some(3);
    config.open_for = 100 * MS;
    config.open_jitter = 0.0;
    config.probes = 2;
    config.max_bad_probes = 0;
    config
}

fn breaker(config: &BreakerConfig) -> (Arc<Breaker>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new());
    let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    (Arc::new(Breaker::with_clock("b", config, shared).expect("valid")), clock)
}

fn fail(breaker: &Breaker, times: usize) {
    for _ in 0..times {
        breaker.try_acquire().expect("admitted").failure();
    }
}

/// 64 callers released together on a breaker whose wait is over, again and again: exactly as many
/// as there are probes are admitted. All admitted ones hold their permit until all have asked.
#[test]
fn exactly_the_probes_of_a_herd_are_admitted() {
    for round in 0..200_u16 {
        let mut config = config();
        config.probes = 1 + round % 7;
        let (breaker, clock) = breaker(&config);
        fail(&breaker, 3);
        clock.advance(100 * MS);
        let (asked, admitted) = (Barrier::new(64), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..64 {
                scope.spawn(|| {
                    asked.wait();
                    let permit = breaker.try_acquire();
                    admitted.fetch_add(u32::from(permit.is_ok()), Ordering::Relaxed);
                    asked.wait();
                    drop(permit);
                });
            }
        });
        assert_eq!(admitted.into_inner(), u32::from(config.probes), "round {round}");
        // And none of the dropped ones has kept its place.
        let again: Vec<_> = (0..64).filter_map(|_| breaker.try_acquire().ok()).collect();
        assert_eq!(again.len(), usize::from(config.probes), "round {round}, again");
    }
}

#[tokio::test(start_paused = true)]
pub(super) async fn a_cancelled_probe_gives_its_place_back() {
    let (breaker, clock) = breaker(&config());
    fail(&breaker, 3);
    clock.advance(100 * MS);
    for _ in 0..10 {
        let hang = breaker.call(pending::<Result<(), ()>>());
        assert!(tokio::time::timeout(MS, hang).await.is_err());
        assert_eq!(breaker.state(), State::HalfOpen);
    }
    for _ in 0..2 {
        breaker.call(async { Ok::<_, ()>(()) }).await.expect("a probe");
    }
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test]
async fn a_panicking_probe_gives_its_place_back_if_panics_are_ignored() {
    let mut config = config();
    config.on_panic = Verdict::Ignored;
    let (breaker, clock) = breaker(&config);
    fail(&breaker, 3);
    clock.advance(100 * MS);
    for _ in 0..5 {
        let breaker = Arc::clone(&breaker);
        let call = async move { breaker.call(async { panic!("in the call") }).await };
        let ended: Result<Result<(), BreakerError<()>>, _> = tokio::spawn(call).await;
        assert!(ended.expect_err("panicked").is_panic());
    }
    let probes: Vec<_> = (0..3).filter_map(|_| breaker.try_acquire().ok()).collect();
    assert_eq!(probes.len(), 2);
}

#[tokio::test]
async fn a_panicking_probe_finds_the_dependency_sick() {
    let (breaker, clock) = breaker(&config());
    fail(&breaker, 3);
    clock.advance(100 * MS);
    let call = breaker.try_acquire_owned().map(|permit| {
        tokio::spawn(async move {
            let _permit = permit;
            panic!("in the call");
        })
    });
    let ended: Result<(), _> = call.expect("a probe").await;
    assert!(ended.expect_err("panicked").is_panic());
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn late_answers_do_not_count() {
    let (breaker, clock) = breaker(&config());
    let early: Vec<_> = (0..5).map(|_| breaker.try_acquire().expect("closed")).collect();
    fail(&breaker, 3);
    clock.advance(100 * MS);
    let probe = breaker.try_acquire().expect("half-open");
    for permit in early {
        permit.failure();
    }
    assert_eq!(breaker.state(), State::HalfOpen, "the old failures are not the probes'");
    probe.success();
    breaker.try_acquire().expect("half-open").success();
    assert_eq!(breaker.state(), State::Closed);
    assert_eq!((breaker.stats().late, breaker.stats().window.calls), (5, 0));
}

#[test]
pub(super) fn an_answer_from_before_a_reset_does_not_count() {
    let (breaker, _clock) = breaker(&config());
    let early: Vec<_> = (0..3).map(|_| breaker.try_acquire().expect("closed")).collect();
    breaker.reset();
    for permit in early {
        permit.failure();
    }
    let stats = breaker.stats();
    assert_eq!((stats.state, stats.window.calls, stats.late), (State::Closed, 0, 3));
}

#[test]
pub(super) fn waits_grow_while_it_stays_sick_and_start_anew_when_it_was_well() {
    let mut config = config();
    config.max_open_for = 350 * MS;
    let (breaker, clock) = breaker(&config);
    let retry_after = |breaker: &Breaker| {
        let rejected = breaker.try_acquire().expect_err("open");
        rejected.retry_after.expect("known").as_millis()
    };
    fail(&breaker, 3);
    for wait in [100, 200, 350, 350] {
        assert_eq!(retry_after(&breaker), wait);
        clock.advance(Duration::from_millis(wait as u64 - 1));
        assert_eq!(retry_after(&breaker), 1);
        clock.advance(MS);
        fail(&breaker, 1);
    }
    clock.advance(350 * MS);
    for _ in 0..2 {
        breaker.try_acquire().expect("half-open").success();
    }
    fail(&breaker, 3);
    assert_eq!(retry_after(&breaker), 100);
}

#[test]
fn jitter_spreads_the_waits_within_its_share() {
    let mut waits = vec![];
    for seed in 0..200 {
        let mut config = config();
        config.open_jitter = 0.5;
        config.seed = Some(seed);
        let (breaker, _clock) = breaker(&config);
        fail(&breaker, 3);
        let rejected = breaker.try_acquire().expect_err("open");
        waits.push(rejected.retry_after.expect("known").as_millis());
    }
    let (min, max) = (*waits.iter().min().unwrap(), *waits.iter().max().unwrap());
    assert!((50..60).contains(&min) && (140..=150).contains(&max), "{min} to {max}");
}

#[test]
pub(super) fn slow_calls_open_it_though_they_succeed() {
    let mut config = config();
    config.slow_rate = Some(0.5);
    config.slow_after = 20 * MS;
    config.min_calls = 4;
    let (breaker, clock) = breaker(&config);
    let mut events = breaker.events();
    for millis in [1, 20, 19, 25] {
        let permit = breaker.try_acquire().expect("closed");
        clock.advance(Duration::from_millis(millis));
        permit.success();
    }
    assert_eq!(breaker.state(), State::Open);
    let event = events.try_recv().expect("one");
    assert_eq!((event.cause, event.window.slow, event.window.calls), (Cause::SlowRate, 2, 4));
}

#[test]
pub(super) fn stuck_probes_open_it_again_and_idleness_does_not() {
    let mut config = config();
    config.max_half_open_for = Some(50 * MS);
    let (breaker, clock) = breaker(&config);
    fail(&breaker, 3);
    clock.advance(100 * MS);
    let first = breaker.try_acquire().expect("a probe");
    clock.advance(3_600_000 * MS);
    let second = breaker.try_acquire().expect("a quiet hour is no verdict");
    let rejected = breaker.try_acquire().expect_err("both probes are taken");
    assert_eq!(rejected.state, State::HalfOpen);
    clock.advance(50 * MS);
    let rejected = breaker.try_acquire().expect_err("both probes hang");
    assert_eq!(rejected.state, State::Open);
    first.success();
    second.success();
    assert_eq!((breaker.state(), breaker.stats().late), (State::Open, 2));
}

#[test]
pub(super) fn by_hand() {
    let (breaker, _clock) = breaker(&config());
    breaker.force_open();
    let rejected = breaker.try_acquire().expect_err("forced open");
    assert_eq!((rejected.state, rejected.retry_after), (State::ForcedOpen, None));
    breaker.force_closed();
    fail(&breaker, 50);
    assert_eq!((breaker.state(), breaker.stats().window.calls), (State::ForcedClosed, 0));
    breaker.metrics_only();
    fail(&breaker, 10);
    let stats = breaker.stats();
    assert_eq!((stats.state, stats.window.failures), (State::MetricsOnly, 10));
    assert_eq!((stats.would_open, stats.failure_rate()), (8, Some(1.0)));
    breaker.reset();
    fail(&breaker, 3);
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test]
async fn transitions_are_watched_and_heard_in_order() {
    let (breaker, clock) = breaker(&config());
    let (mut watch, mut events) = (breaker.watch(), breaker.events());
    assert_eq!(*watch.borrow_and_update(), State::Closed);
    fail(&breaker, 3);
    clock.advance(100 * MS);
    fail(&breaker, 1);
    watch.changed().await.expect("alive");
    assert_eq!(*watch.borrow_and_update(), State::Open);
    let mut heard = vec![];
    while let Ok(event) = events.try_recv() {
        heard.push((event.from, event.to, event.cause, event.open_for.map(|d| d.as_millis())));
    }
    assert_eq!(
        heard,
        [
            (State::Closed, State::Open, Cause::ConsecutiveFailures, Some(100)),
            (State::Open, State::HalfOpen, Cause::WaitOver, None),
            (State::HalfOpen, State::Open, Cause::ProbesSick, Some(200)),
        ]
    );
}

#[test]
fn a_snapshot_goes_on_in_another_process() {
    for window in [Window::Time { span: 10_000 * MS, buckets: 10 }, Window::Count { calls: 30 }] {
        let mut config = config();
        config.window = window;
        let (first, clock) = breaker(&config);
        for _ in 0..25 {
            first.try_acquire().expect("closed").success();
        }
        fail(&first, 2);
        let (_, other) = breaker(&config);
        other.advance(777_777 * MS);
        let restore = |snapshot: &BreakerSnapshot| {
            let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&other);
            Breaker::restore("b", &config, clock, snapshot).expect("its own")
        };
        let second = restore(&first.snapshot());
        assert_eq!(second.stats().window, first.stats().window);
        fail(&second, 1);
        assert_eq!(second.state(), State::Open, "two failures before and one after");
        fail(&first, 1);
        clock.advance(60 * MS);
        let third = restore(&first.snapshot());
        let rejected = third.try_acquire().expect_err("open");
        assert_eq!(rejected.retry_after, Some(40 * MS));
        other.advance(40 * MS);
        fail(&third, 1);
        let rejected = third.try_acquire().expect_err("open");
        assert_eq!(rejected.retry_after, Some(200 * MS), "it remembers the first opening");
    }
}

#[test]
fn a_snapshot_that_does_not_fit_is_refused() {
    let (first, _clock) = breaker(&config());
    fail(&first, 2);
    let restore = |snapshot: &BreakerSnapshot, config: &BreakerConfig| {
        Breaker::restore("b", config, default_clock(), snapshot).map(drop)
    };
    let mut other = config();
    other.window = Window::Count { calls: 30 };
    assert_eq!(restore(&first.snapshot(), &other), Err(RestoreError::WindowMismatch));
    let mut forged = first.snapshot();
    forged.window[0].counts.failures = u64::MAX;
    assert_eq!(restore(&forged, &config()), Err(RestoreError::WindowInvalid));
    let mut forged = first.snapshot();
    forged.window[0].age = 10;
    assert_eq!(restore(&forged, &config()), Err(RestoreError::WindowInvalid));
}

#[test]
pub(super) fn a_restored_half_open_breaker_probes_anew() {
    let config = config();
    let (first, clock) = breaker(&config);
    fail(&first, 3);
    clock.advance(100 * MS);
    let _others = [(); 2].map(|()| first.try_acquire().expect("a probe"));
    let (snapshot, clock) = (first.snapshot(), Arc::new(ManualClock::new()));
    assert_eq!(snapshot.state, State::HalfOpen);
    let second = Breaker::restore("b", &config, clock, &snapshot).expect("its own");
    for _ in 0..2 {
        second.try_acquire().expect("a probe of its own").success();
    }
    assert_eq!(second.state(), State::Closed);
}

#[test]
pub(super) fn a_window_holds_what_happened_lately() {
    let mut config = config();
    config.window = Window::Time { span: 400 * MS, buckets: 4 };
    let (breaker, clock) = breaker(&config);
    for _ in 0..10 {
        fail(&breaker, 2);
        breaker.try_acquire().expect("closed").success();
        let window = breaker.stats().window;
        assert_eq!((window.calls, window.failures), (3, 2));
        clock.advance(400 * MS);
    }
}

#[test]
fn a_dropped_call_counts_as_the_configuration_says() {
    let mut config = config();
    config.on_drop = Verdict::Failure;
    let (breaker, _clock) = breaker(&config);
    for _ in 0..3 {
        drop(breaker.try_acquire().expect("closed"));
    }
    assert_eq!(breaker.state(), State::Open);
}

/// Answers of many threads through many openings: every admitted call is counted once, as an
/// answer of its state, as a late one, or as a probe's.
#[test]
fn nothing_is_lost_between_threads() {
    let mut config = config();
    config.open_for = Duration::from_micros(50);
    config.max_open_for = Duration::from_micros(50);
    let clock = Arc::new(Monotonic);
    let breaker = Breaker::with_clock("b", &config, clock).expect("valid");
    let (admitted, rejected) = (AtomicU32::new(0), AtomicU32::new(0));
    let (done, finished) = mpsc::channel();
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let (breaker, admitted, rejected) = (&breaker, &admitted, &rejected);
            let done = done.clone();
            scope.spawn(move || {
                for call in 0..20_000_u32 {
                    match breaker.try_acquire() {
                        Ok(permit) if (call + thread).is_multiple_of(5) => permit.failure(),
                        Ok(permit) => permit.success(),
                        Err(_) => {
                            rejected.fetch_add(1, Ordering::Relaxed);
                            continue;
                        }
                    }
                    admitted.fetch_add(1, Ordering::Relaxed);
                }
                done.send(()).expect("the test waits");
            });
        }
    });
    assert_eq!(finished.try_iter().count(), 4);
    let stats = breaker.stats();
    assert_eq!(stats.rejected, u64::from(rejected.into_inner()));
    let admitted = u64::from(admitted.into_inner());
    assert!(stats.lifetime.calls + stats.late <= admitted);
    assert!(stats.openings == 0 || stats.rejected > 0);
}
