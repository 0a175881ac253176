//! The half-open state: patience, retry hints, and what ends it.

use std::sync::Arc;
use std::time::Duration;

use voussoir_breaker::testing::ManualClock;
use voussoir_breaker::*;

const SECOND: Duration = Duration::from_secs(1);

/// A breaker whose open wait has just ended; everything but the opening is at its default.
fn waited_out(change: impl FnOnce(&mut BreakerConfig)) -> (Arc<Breaker>, Arc<ManualClock>) {
    let mut config = BreakerConfig::default();
    config.consecutive_failures = Some(1);
    config.open_jitter = 0.0;
    change(&mut config);
    let clock = Arc::new(ManualClock::new());
    let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    let breaker = Breaker::with_clock("b", &config, shared).expect("valid");
    breaker.try_acquire().expect("closed").failure();
    clock.advance(config.open_for);
    (Arc::new(breaker), clock)
}

#[test]
pub(super) fn patience_runs_from_the_moment_all_probes_are_under_way() {
    let (breaker, clock) = waited_out(|_| ());
    for _ in 0..3 {
        breaker.try_acquire().expect("a probe").success();
        clock.advance(12 * SECOND);
    }
    // 36 s after half-open began, three callers come at once.
    let probes = [(); 2].map(|()| breaker.try_acquire().expect("a probe"));
    let rejected = breaker.try_acquire().expect_err("all five probes are taken");
    assert_eq!(rejected.state, State::HalfOpen);
    clock.advance(29 * SECOND);
    assert_eq!(breaker.try_acquire().expect_err("still").state, State::HalfOpen);
    for probe in probes {
        probe.success();
    }
    // The fourth good answer closes it; the fifth comes after that.
    assert_eq!((breaker.state(), breaker.stats().late), (State::Closed, 1));
}

#[test]
fn looking_whether_it_would_admit_takes_nothing() {
    let (breaker, _clock) = waited_out(|_| ());
    for _ in 0..10 {
        assert!(breaker.would_admit(), "its wait is over");
    }
    assert_eq!(breaker.state(), State::Open, "and nobody has asked");
    let _probes = [(); 5].map(|()| breaker.try_acquire().expect("a probe"));
    assert!(!breaker.would_admit());
    assert_eq!(breaker.stats().rejected, 0);
    breaker.reset();
    assert!(breaker.would_admit());
    breaker.force_open();
    assert!(!breaker.would_admit());
}

#[test]
fn a_probe_given_back_begins_patience_anew() {
    let (breaker, clock) = waited_out(|config| {
        config.probes = 1;
        config.max_bad_probes = 0;
    });
    breaker.try_acquire().expect("a probe").record(Verdict::Ignored);
    clock.advance(31 * SECOND);
    let probe = breaker.try_acquire().expect("the place of the ignored one");
    let rejected = breaker.try_acquire().expect_err("one probe at a time");
    assert_eq!(rejected.state, State::HalfOpen);
    probe.success();
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn probes_that_hang_open_it_after_the_patience_and_not_before() {
    let (breaker, clock) = waited_out(|_| ());
    let _probes = [(); 5].map(|()| {
        clock.advance(7 * SECOND);
        breaker.try_acquire().expect("a probe")
    });
    clock.advance(Duration::new(29, 999_999_999));
    assert_eq!(breaker.try_acquire().expect_err("patient").state, State::HalfOpen);
    clock.advance(Duration::from_nanos(1));
    assert_eq!(breaker.try_acquire().expect_err("stuck").state, State::Open);
}

/// The probes' answers may come at any moment: the end of the patience is no time to come back at.
#[test]
fn nobody_is_told_to_wait_for_the_end_of_the_patience() {
    let (breaker, _clock) = waited_out(|_| ());
    let _probes = [(); 5].map(|()| breaker.try_acquire().expect("a probe"));
    let sixth = breaker.try_acquire().expect_err("all probes are taken");
    assert_eq!((sixth.state, sixth.retry_after), (State::HalfOpen, None));
}
