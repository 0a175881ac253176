//! States set by hand and by time, and who hears of them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{advance, timeout};
use voussoir_breaker::testing::ManualClock;
use voussoir_breaker::*;

const SECOND: Duration = Duration::from_secs(1);

fn manual() -> (Arc<Breaker>, Arc<ManualClock>) {
    let mut config = BreakerConfig::default();
    config.open_jitter = 0.0;
    config.consecutive_failures = Some(1);
    (config.probes, config.max_bad_probes) = (2, 0);
    let clock = Arc::new(ManualClock::new());
    let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    (Arc::new(Breaker::with_clock("b", &config, shared).expect("valid")), clock)
}

fn wait(breaker: &Breaker) -> Option<Duration> {
    breaker.try_acquire().expect_err("open").retry_after
}

/// For longer than any wait of its own, and without making the next one longer.
#[test]
fn it_is_opened_for_a_time() {
    let (breaker, clock) = manual();
    breaker.open_for(600 * SECOND);
    assert_eq!((breaker.state(), wait(&breaker)), (State::Open, Some(600 * SECOND)));
    clock.advance(599 * SECOND);
    assert_eq!(wait(&breaker), Some(SECOND));
    clock.advance(SECOND);
    for _ in 0..2 {
        breaker.try_acquire().expect("half-open").success();
    }
    assert_eq!((breaker.state(), breaker.stats().openings), (State::Closed, 0));
    breaker.open_until(clock.now() + 5);
    breaker.open_until(clock.now() + 7_000_000_000);
    assert_eq!(wait(&breaker), Some(7 * SECOND));
    clock.advance(7 * SECOND);
    breaker.try_acquire().expect("half-open").failure();
    assert_eq!(wait(&breaker), Some(5 * SECOND), "the first opening of its own");
    // A moment that has passed, and from a state set by hand.
    breaker.force_open();
    breaker.open_until(1);
    assert!(breaker.try_acquire().is_ok());
}

#[test]
fn it_is_made_half_open_by_hand() {
    let (breaker, _clock) = manual();
    for closing in [true, false] {
        breaker.force_open();
        breaker.force_half_open();
        let probes = [(); 2].map(|()| breaker.try_acquire().expect("a probe"));
        assert_eq!(breaker.try_acquire().expect_err("two probes").state, State::HalfOpen);
        for probe in probes {
            if closing { probe.success() } else { probe.failure() }
        }
        assert_eq!(breaker.state(), if closing { State::Closed } else { State::Open });
    }
}

#[test]
fn time_alone_moves_it_on_with_a_tick() {
    let (breaker, clock) = manual();
    breaker.try_acquire().expect("closed").failure();
    assert_eq!(breaker.next_deadline(), Some(clock.now() + 5_000_000_000));
    clock.advance(Duration::new(4, 999_999_999));
    breaker.tick();
    assert_eq!(breaker.state(), State::Open, "not yet");
    clock.advance(Duration::from_nanos(1));
    breaker.tick();
    assert_eq!((breaker.state(), breaker.next_deadline()), (State::HalfOpen, None));
    let _probes = [(); 2].map(|()| breaker.try_acquire().expect("a probe"));
    assert_eq!(breaker.next_deadline(), Some(clock.now() + 30_000_000_000));
    breaker.tick_at(clock.now() + 29_999_999_999);
    assert_eq!(breaker.state(), State::HalfOpen);
    clock.advance(30 * SECOND);
    breaker.tick();
    assert_eq!(breaker.state(), State::Open, "both probes are stuck");
}

/// Nobody calls: the listeners hear of the end of the wait when it comes, again and again.
#[tokio::test(start_paused = true)]
async fn it_keeps_time_by_itself() {
    let mut config = BreakerConfig::default();
    config.open_jitter = 0.0;
    (config.consecutive_failures, config.probes, config.max_bad_probes) = (Some(1), 1, 0);
    let clock = Arc::new(TokioClock::new());
    let breaker = Arc::new(Breaker::with_clock("b", &config, clock).expect("valid"));
    let keeper = tokio::spawn(breaker.keep_time());
    let mut state = breaker.watch();
    for wait in [5, 10, 20] {
        breaker.try_acquire().expect("closed or half-open").failure();
        assert_eq!(*state.borrow_and_update(), State::Open);
        let early = timeout((wait - 1) * SECOND, state.changed()).await;
        assert!(early.is_err(), "after {wait} s and no earlier");
        timeout(2 * SECOND, state.changed()).await.expect("in time").expect("alive");
        assert_eq!(*state.borrow_and_update(), State::HalfOpen);
    }
    // A probe that hangs opens it after the patience; one look a patience is enough to see it.
    let hung = breaker.try_acquire().expect("the probe");
    timeout(61 * SECOND, state.wait_for(|state| *state == State::Open))
        .await
        .expect("within two patiences")
        .expect("alive");
    drop(hung);
    // It ends with the breaker.
    drop(breaker);
    timeout(SECOND, keeper).await.expect("it ends").expect("no panic");
}

/// One event for each change of state; none for calls, and none for a state that it is in already.
#[test]
fn nothing_is_heard_but_changes() {
    let (breaker, _clock) = manual();
    let (mut events, mut watch) = (breaker.events(), breaker.watch());
    breaker.try_acquire().expect("closed").success();
    breaker.reset();
    assert!(!watch.has_changed().expect("alive"));
    breaker.try_acquire().expect("closed").failure();
    breaker.open_for(SECOND);
    breaker.open_for(SECOND);
    breaker.force_half_open();
    breaker.force_half_open();
    let heard: Vec<_> =
        std::iter::from_fn(|| events.try_recv().ok()).map(|e| (e.from, e.to)).collect();
    assert_eq!(heard, [(State::Closed, State::Open), (State::Open, State::HalfOpen)]);
    assert_eq!(*watch.borrow_and_update(), State::HalfOpen);
}

/// Nobody comes in while it is closed; those who wait come in when it is opened again.
#[tokio::test(start_paused = true)]
async fn a_bulkhead_is_closed_by_a_limit_of_zero() {
    let mut queue = QueueConfig::default();
    (queue.max_len, queue.max_wait) = (2, 10 * SECOND);
    let bulkhead = Bulkhead::new(2, queue).expect("valid");
    let running = bulkhead.try_acquire().expect("free");
    bulkhead.set_limit(0).expect("in range");
    drop(running);
    assert!(bulkhead.try_acquire().is_err());
    assert!(bulkhead.load() >= 1.0, "those who shed by it shed");
    let waiting = {
        let bulkhead = bulkhead.clone();
        tokio::spawn(async move { bulkhead.acquire().await.map(drop) })
    };
    advance(SECOND).await;
    tokio::task::yield_now().await;
    assert_eq!((bulkhead.stats().waiting, bulkhead.stats().running), (1, 0));
    bulkhead.set_limit(1).expect("in range");
    waiting.await.expect("no panic").expect("let in");
    let closed = Bulkhead::new(0, QueueConfig::default()).expect("valid");
    let refused = closed.acquire().await.expect_err("closed");
    assert_eq!(refused, GateError::Full { limit: 0, queue: 0 });
}
