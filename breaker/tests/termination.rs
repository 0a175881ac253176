//! Every loop over atomics, under threads that change what it reads: all of them come to an end.
//!
//! The reason for each stands at the loop. `TERMINATION_MS` sets for how long at least each test
//! hammers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use voussoir_breaker::*;
use voussoir_sim::Situations;

fn span() -> Duration {
    let millis = std::env::var("TERMINATION_MS").ok().and_then(|text| text.parse().ok());
    Duration::from_millis(millis.unwrap_or(1_500))
}

/// The longest that roles go on when the span is over and a situation is still missing.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs all of `roles` at once, each again and again, until the span is over and `is_enough`; a
/// call that does not come back within 30 s fails the test. How often threads meet depends on what
/// else the machine does, so that a span alone promises no situation.
fn hammer(roles: Vec<Box<dyn Fn(u64) + Send>>, is_enough: impl Fn() -> bool) {
    let (done, finished) = mpsc::channel();
    let (count, end) = (roles.len(), Instant::now() + span());
    let is_over = Arc::new(AtomicBool::new(false));
    for role in roles {
        let (done, is_over) = (done.clone(), Arc::clone(&is_over));
        std::thread::spawn(move || {
            let mut round = 0;
            while !is_over.load(Relaxed) {
                role(round);
                round += 1;
            }
            let _ = done.send(round);
        });
    }
    drop(done);
    while Instant::now() < end || (!is_enough() && Instant::now() < end + PATIENCE) {
        std::thread::sleep(Duration::from_millis(10));
    }
    is_over.store(true, Relaxed);
    for _ in 0..count {
        let rounds = finished.recv_timeout(Duration::from_secs(30));
        assert!(rounds.expect("a thread hangs or has panicked") > 0);
    }
}

fn config(window: Window) -> BreakerConfig {
    let mut config = BreakerConfig::default();
    config.window = window;
    config.min_calls = 2;
    config.slow_rate = Some(0.5);
    config.consecutive_failures = Some(2);
    config.open_for = Duration::from_nanos(100);
    config.max_open_for = Duration::from_nanos(200);
    config.probes = 2;
    config.max_bad_probes = 1;
    config.max_half_open_for = Some(Duration::from_nanos(300));
    config.stripes = Some(1);
    config
}

#[test]
fn a_breaker_whose_state_never_rests() {
    static NAMES: [&str; 6] =
        ["admitted", "rejected open", "rejected half-open", "probe lost", "late", "listener heard"];
    let windows =
        [Window::Time { span: Duration::from_millis(2), buckets: 2 }, Window::Count { calls: 9 }];
    for window in windows {
        let situations: &'static Situations = Box::leak(Box::new(Situations::new(&NAMES)));
        let clock = Arc::new(Monotonic);
        let breaker = Breaker::with_clock("b", &config(window), clock).expect("valid");
        let breaker: &'static Breaker = Box::leak(Box::new(breaker));
        let mut roles: Vec<Box<dyn Fn(u64) + Send>> = Vec::new();
        for seed in 0..4 {
            roles.push(Box::new(move |round| match breaker.try_acquire() {
                Ok(permit) => {
                    situations.reached("admitted");
                    match (round + seed) % 4 {
                        0 => permit.success(),
                        1 => permit.failure(),
                        2 => permit.abandon(),
                        _ => {
                            situations
                                .add("probe lost", u64::from(breaker.state() == State::HalfOpen));
                        }
                    }
                }
                Err(rejected) => match rejected.state {
                    State::Open => situations.reached("rejected open"),
                    State::HalfOpen => situations.reached("rejected half-open"),
                    _ => {}
                },
            }));
        }
        let hand: [fn(&Breaker); 8] = [
            |breaker| breaker.force_half_open(),
            |breaker| breaker.reset(),
            |breaker| breaker.open_for(Duration::from_nanos(50)),
            |breaker| breaker.force_open(),
            |breaker| breaker.metrics_only(),
            |breaker| breaker.reset(),
            |breaker| breaker.tick(),
            |breaker| drop((breaker.stats(), breaker.snapshot(), breaker.next_deadline())),
        ];
        roles.push(Box::new(move |round| {
            hand[round as usize % hand.len()](breaker);
            std::thread::sleep(Duration::from_micros(20));
        }));
        let events = std::sync::Mutex::new(breaker.events());
        roles.push(Box::new(move |_| {
            let heard = events.lock().expect("one listener").try_recv();
            situations.add("listener heard", u64::from(heard.is_ok()));
        }));
        // The breaker itself counts what is late.
        let is_late = || breaker.stats().late > 0;
        hammer(roles, || is_late() && situations.missed() == ["late"]);
        situations.add("late", breaker.stats().late);
        situations.assert_all_reached();
        breaker.reset();
        breaker.try_acquire().expect("it works as before").success();
        assert_eq!(breaker.stats().window.calls, 1);
    }
}

#[test]
fn a_bulkhead_whose_limit_never_rests() {
    static NAMES: [&str; 5] = ["at once", "after a wait", "refused", "gave up", "limit raised"];
    static SITUATIONS: std::sync::LazyLock<Situations> =
        std::sync::LazyLock::new(|| Situations::new(&NAMES));
    let mut queue = QueueConfig::default();
    queue.max_len = 3;
    queue.max_wait = Duration::from_millis(2);
    queue.max_standing_wait = Duration::from_micros(500);
    let bulkhead = Bulkhead::new(1, queue).expect("valid");
    let mut roles: Vec<Box<dyn Fn(u64) + Send>> = Vec::new();
    for seed in 0..5 {
        let bulkhead = bulkhead.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("a runtime");
        roles.push(Box::new(move |round| {
            runtime.block_on(async {
                if bulkhead.try_acquire().is_ok() {
                    SITUATIONS.reached("at once");
                }
                let patience = Duration::from_micros(300 + (round * 7 + seed) % 900);
                match tokio::time::timeout(patience, bulkhead.acquire()).await {
                    Ok(Ok(_place)) => {
                        SITUATIONS.reached("after a wait");
                        tokio::time::sleep(Duration::from_millis(round % 2)).await;
                    }
                    Ok(Err(GateError::Full { .. })) => SITUATIONS.reached("refused"),
                    Ok(Err(_)) | Err(_) => SITUATIONS.reached("gave up"),
                }
            });
        }));
    }
    let changed = bulkhead.clone();
    roles.push(Box::new(move |round| {
        changed.set_limit(round as usize % 4).expect("in range");
        SITUATIONS.reached("limit raised");
        std::thread::sleep(Duration::from_micros(100));
    }));
    hammer(roles, || SITUATIONS.missed().is_empty());
    bulkhead.set_limit(2).expect("in range");
    let stats = bulkhead.stats();
    assert_eq!((stats.running, stats.waiting), (0, 0), "nothing is lost or left behind");
    let places = [(); 2].map(|()| bulkhead.try_acquire().expect("both places are there"));
    assert!(bulkhead.try_acquire().is_err());
    drop(places);
    SITUATIONS.assert_all_reached();
}

#[test]
fn a_budget_that_all_pay_into_and_draw_from() {
    static GRANTED: AtomicU64 = AtomicU64::new(0);
    static CALLS: AtomicU64 = AtomicU64::new(0);
    static STARTED: AtomicBool = AtomicBool::new(false);
    let mut config = RetryBudgetConfig::default();
    (config.ratio, config.per_sec, config.max_balance) = (0.5, 0.0, 5);
    config.min_active = u32::MAX;
    let budget = RetryBudget::new(config).expect("valid");
    let mut roles: Vec<Box<dyn Fn(u64) + Send>> = Vec::new();
    for _ in 0..4 {
        let budget = Arc::clone(&budget);
        roles.push(Box::new(move |_| {
            STARTED.store(true, Relaxed);
            CALLS.fetch_add(1, Relaxed);
            let _account = budget.begin();
            GRANTED.fetch_add(u64::from(budget.try_extra().is_ok()), Relaxed);
        }));
    }
    hammer(roles, || true);
    let (granted, calls) = (GRANTED.load(Relaxed), CALLS.load(Relaxed));
    assert!(STARTED.load(Relaxed) && granted <= calls / 2 + 5, "{granted} for {calls} calls");
    // Nor fewer: each call asks for one, so what was paid in is used up, but for a full balance.
    assert!(granted + 6 >= calls / 2, "{granted} for {calls} calls");
    let stats = budget.stats();
    assert_eq!((stats.calls, stats.granted, stats.active_extra), (calls, granted, 0));
}

#[test]
fn a_registry_whose_keys_never_rest() {
    static ROOM: AtomicU64 = AtomicU64::new(0);
    let registry: &'static Registry<u64> =
        Box::leak(Box::new(Registry::new(config(Window::Count { calls: 9 }), 8).expect("valid")));
    let mut roles: Vec<Box<dyn Fn(u64) + Send>> = Vec::new();
    for seed in 0..4 {
        roles.push(Box::new(move |round| {
            if let Ok(breaker) = registry.get(&((round * 31 + seed) % 64)) {
                ROOM.fetch_add(1, Relaxed);
                match breaker.try_acquire() {
                    Ok(permit) if round % 3 == 0 => permit.failure(),
                    Ok(permit) => permit.success(),
                    Err(_) => breaker.reset(),
                }
            }
        }));
    }
    hammer(roles, || true);
    assert!(ROOM.load(Relaxed) > 0 && registry.len() <= 8);
}
