//! Every public configuration over its whole range, extremes included: what validates can be built
//! and does what it says, what does not is refused with the field's name, and nothing panics.
//!
//! `PROPTEST_CASES` sets the number of cases of each test (default 600).

use std::num::FpCategory;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use voussoir_breaker::testing::ManualClock;
use voussoir_breaker::*;

fn cases() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig::with_cases(cases.unwrap_or(600))
}

/// Any number at all: the edges of the ranges, subnormal ones, infinities, NaN.
fn any_f64() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => 0.0..2.0_f64,
        2 => prop::sample::select(vec![
            0.0, -0.0, 1.0, 1e-6, 1e-7, 0.5, 0.9999, 10.0, 16.0, 1e6, 1e7, 5e-11, 1e-320,
            f64::MIN_POSITIVE, f64::EPSILON, f64::MAX, f64::INFINITY, f64::NEG_INFINITY, f64::NAN,
        ]),
        1 => any::<f64>(),
    ]
}

fn any_duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        3 => (0..10_000_000_000_u64).prop_map(Duration::from_nanos),
        1 => prop::sample::select(vec![
            Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(1), Duration::MAX,
            Duration::from_nanos(u64::MAX), Duration::new(u64::MAX, 999_999_998),
            Duration::new(u64::MAX, 0), Duration::from_secs(1 << 40),
        ]),
        1 => (any::<u64>(), 0..1_000_000_000_u32).prop_map(|(s, n)| Duration::new(s, n)),
    ]
}

fn any_u32() -> impl Strategy<Value = u32> {
    prop_oneof![3 => 0..100_u32, 1 => prop::sample::select(vec![0, 1, 64, 65, 1_024, 1_025, 65_536,
        65_537, 1_000_000, u32::MAX - 1, u32::MAX]), 1 => any::<u32>()]
}

fn any_usize() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 0..100_usize, 1 => prop::sample::select(vec![0, 1, 1_000_000, 1_000_001,
        u32::MAX as usize, usize::MAX - 1, usize::MAX])]
}

fn any_window() -> impl Strategy<Value = Window> {
    prop_oneof![
        (any_duration(), any_u32()).prop_map(|(span, buckets)| Window::Time { span, buckets }),
        any_u32().prop_map(|calls| Window::Count { calls }),
    ]
}

fn any_verdict() -> impl Strategy<Value = Verdict> {
    prop::sample::select(vec![Verdict::Success, Verdict::Failure, Verdict::Ignored])
}

prop_compose! {
    fn any_breaker_config()(
        (window, min_calls, failure_rate, slow_rate, slow_after) in (
            any_window(), any_u32(), prop::option::of(any_f64()), prop::option::of(any_f64()),
            any_duration(),
        ),
        (consecutive_failures, open_for, open_backoff, max_open_for, open_jitter) in (
            prop::option::of(any_u32()), any_duration(), any_f64(), any_duration(), any_f64(),
        ),
        (probes, max_bad_probes, max_half_open_for, stripes) in (
            prop_oneof![1..9_u16, any::<u16>()], prop_oneof![0..4_u16, any::<u16>()],
            prop::option::of(any_duration()), prop::option::of(any_u32()),
        ),
        (on_drop, on_panic, on_overtaken) in (any_verdict(), any_verdict(), any_verdict()),
        sound in prop::bool::weighted(0.7),
    ) -> BreakerConfig {
        let mut config = BreakerConfig::default();
        (config.window, config.min_calls, config.failure_rate) = (window, min_calls, failure_rate);
        (config.slow_rate, config.slow_after) = (slow_rate, slow_after);
        config.consecutive_failures = consecutive_failures;
        (config.open_for, config.max_open_for) = (open_for, max_open_for);
        (config.open_backoff, config.open_jitter) = (open_backoff, open_jitter);
        (config.probes, config.max_bad_probes) = (probes, max_bad_probes);
        (config.max_half_open_for, config.stripes) = (max_half_open_for, stripes);
        (config.on_drop, config.on_panic) = (on_drop, on_panic);
        config.on_overtaken = on_overtaken;
        if sound {
            mend(&mut config);
        }
        config
    }
}

/// Moves most fields into their ranges, so that many cases validate, at the edges too.
fn mend(config: &mut BreakerConfig) {
    let into = |rate: f64| if (1e-6..=1.0).contains(&rate) { rate } else { 1.0 };
    config.failure_rate = config.failure_rate.map(into);
    config.slow_rate = config.slow_rate.map(into);
    config.slow_after = config.slow_after.max(Duration::from_nanos(1));
    config.consecutive_failures = config.consecutive_failures.map(|n| n.clamp(1, (1 << 24) - 1));
    if config.failure_rate.is_none() && config.slow_rate.is_none() {
        config.consecutive_failures = Some(1);
    }
    config.min_calls = config.min_calls.clamp(1, 500);
    config.window = match config.window {
        Window::Time { span, buckets } => {
            let buckets = buckets.clamp(1, MAX_BUCKETS);
            Window::Time { span: span.max(MIN_BUCKET * buckets), buckets }
        }
        Window::Count { calls } => {
            Window::Count { calls: calls.clamp(config.min_calls, MAX_WINDOW_CALLS) }
        }
        other => other,
    };
    config.open_for = config.open_for.max(Duration::from_nanos(1));
    config.max_open_for = config.max_open_for.max(config.open_for);
    if !(1.0..=16.0).contains(&config.open_backoff) {
        config.open_backoff = 16.0;
    }
    if !(0.0..=1.0).contains(&config.open_jitter) {
        config.open_jitter = 1.0;
    }
    config.probes = config.probes.max(1);
    config.max_bad_probes = config.max_bad_probes.min(config.probes - 1);
    config.max_half_open_for = config.max_half_open_for.map(|t| t.max(Duration::from_nanos(1)));
    // Both at their largest is one case below: judging each failure reads the whole window.
    let is_long = matches!(config.window, Window::Time { buckets: 64.., .. });
    let max_stripes = if is_long { 2 } else { 64 };
    config.stripes = Some(config.stripes.unwrap_or(1).clamp(1, max_stripes));
}

#[test]
fn the_largest_windows_work() {
    let span = Duration::from_secs(3_600);
    for window in
        [Window::Time { span, buckets: MAX_BUCKETS }, Window::Count { calls: MAX_WINDOW_CALLS }]
    {
        let mut config = BreakerConfig::default();
        (config.window, config.stripes) = (window, Some(64));
        let breaker = Breaker::new("b", &config).expect("valid");
        for _ in 0..config.min_calls {
            breaker.try_acquire().expect("closed").failure();
        }
        assert_eq!(breaker.state(), State::Open);
    }
}

/// What the strategies above must lead to, or the tests below say little.
#[test]
fn the_strategies_reach_both_sides_of_every_range() {
    static NAMES: [&str; 10] = [
        "valid",
        "refused",
        "longest open wait valid",
        "widest bucket valid",
        "count window valid",
        "tiny trickle valid",
        "tiny ratio valid",
        "no number refused",
        "longest back-off valid",
        "smallest rate valid",
    ];
    let situations = voussoir_sim::Situations::new(&NAMES);
    let mut runner = TestRunner::deterministic();
    let breakers = any_breaker_config();
    let budgets = (any_f64(), any_f64());
    for _ in 0..3_000 {
        let config = breakers.new_tree(&mut runner).expect("unfiltered").current();
        let is_valid = config.validate().is_ok();
        let count = |name, is_so: bool| situations.add(name, u64::from(is_so));
        count(if is_valid { "valid" } else { "refused" }, true);
        count(
            "longest open wait valid",
            is_valid && config.open_for > Duration::from_secs(1 << 39),
        );
        let is_wide = |span: Duration| span > Duration::from_secs(1 << 39);
        let window = config.window;
        let is_widest = matches!(window, Window::Time { span, buckets: 1 } if is_wide(span));
        count("widest bucket valid", is_valid && is_widest);
        count("count window valid", is_valid && matches!(window, Window::Count { .. }));
        count("smallest rate valid", is_valid && config.failure_rate == Some(1e-6));
        let (ratio, per_sec) = budgets.new_tree(&mut runner).expect("unfiltered").current();
        let mut budget = RetryBudgetConfig::default();
        (budget.ratio, budget.per_sec) = (ratio, per_sec);
        let is_valid = budget.validate().is_ok();
        count("tiny trickle valid", is_valid && per_sec > 0.0 && per_sec < 1e-10);
        count("tiny ratio valid", is_valid && ratio > 0.0 && ratio < 1e-6);
        count("no number refused", !is_valid && (ratio.is_nan() || per_sec.is_nan()));
        let mut backoff = Backoff::default();
        backoff.max = any_duration().new_tree(&mut runner).expect("unfiltered").current();
        count("longest back-off valid", backoff.validate().is_ok() && is_wide(backoff.max));
    }
    situations.assert_all_reached();
}

fn shared(clock: &Arc<ManualClock>) -> Arc<dyn Clock> {
    Arc::<ManualClock>::clone(clock)
}

/// Failures until it opens, if ever within `most`: exactly as many as the configuration says.
fn failures_to_open(config: &BreakerConfig, most: u32) -> Option<u32> {
    // All calls fail, so a failure rate is reached as soon as the window holds enough of them. None
    // is slow: the clock stands still.
    let by_rate = config.failure_rate.map(|_| config.min_calls);
    let first = [by_rate, config.consecutive_failures].into_iter().flatten().min();
    first.filter(|first| *first <= most)
}

/// Makes it half-open; false if its wait is longer than the clock reaches.
fn wait_out(breaker: &Breaker, clock: &ManualClock) -> bool {
    let Some(due) = breaker.next_deadline() else { return false };
    clock.advance(Duration::from_nanos(due.saturating_sub(clock.now())));
    breaker.tick();
    breaker.state() == State::HalfOpen
}

proptest! {
    #![proptest_config(cases())]

    /// It opens at exactly the failure that the configuration names, rejects while its wait lasts
    /// and no longer than `max_open_for`, admits exactly its probes, and closes by them.
    #[test]
    fn a_breaker_that_validates_works(config in any_breaker_config()) {
        let clock = Arc::new(ManualClock::new());
        let breaker = match Breaker::with_clock("b", &config, shared(&clock)) {
            Ok(breaker) => breaker,
            Err(error) => {
                prop_assert_eq!(config.validate().expect_err("the same answer"), error);
                return Ok(());
            }
        };
        prop_assert!(config.validate().is_ok());
        let expected = failures_to_open(&config, 600);
        let mut failures = 0;
        while breaker.state() == State::Closed && failures < 600 {
            breaker.try_acquire().expect("closed").failure();
            failures += 1;
        }
        prop_assert_eq!((breaker.state() == State::Open).then_some(failures), expected);
        if expected.is_none() {
            breaker.open_for(config.open_for);
        }
        let due = breaker.next_deadline();
        if let Err(rejected) = breaker.try_acquire() {
            let wait = rejected.retry_after.expect("an open wait is known");
            prop_assert!(wait <= config.max_open_for.max(config.open_for), "{:?}", wait);
        } else {
            prop_assert!(due.is_some_and(|due| due <= clock.now()), "a wait of nothing");
        }
        breaker.force_half_open();
        let asked = (0..config.probes).map(|_| breaker.try_acquire());
        let probes: Vec<_> = asked.filter_map(Result::ok).collect();
        prop_assert_eq!(probes.len(), usize::from(config.probes));
        prop_assert_eq!(breaker.try_acquire().expect_err("all taken").state, State::HalfOpen);
        for probe in probes {
            probe.success();
        }
        prop_assert_eq!(breaker.state(), State::Closed);
        // Another life of it goes on where this one is.
        breaker.open_for(Duration::MAX);
        let other = Breaker::restore("b", &config, shared(&clock), &breaker.snapshot());
        let left = other.expect("its own").next_deadline().map_or(0, |due| due - clock.now());
        prop_assert!(u128::from(left) <= config.max_open_for.as_nanos().max(1));
    }

    #[test]
    fn a_breakers_waits_grow_to_the_longest_and_no_further(config in any_breaker_config()) {
        let clock = Arc::new(ManualClock::new());
        let Ok(breaker) = Breaker::with_clock("b", &config, shared(&clock)) else { return Ok(()) };
        breaker.force_half_open();
        for opening in 0..70_i32 {
            for _ in 0..=config.max_bad_probes {
                if let Ok(probe) = breaker.try_acquire() {
                    probe.failure();
                }
            }
            prop_assert_eq!(breaker.state(), State::Open);
            let due = breaker.next_deadline().unwrap_or(u64::MAX);
            let wait = due.saturating_sub(clock.now()) as f64;
            let grown = config.open_for.as_nanos() as f64 * config.open_backoff.powi(opening);
            let longest = (config.max_open_for.as_nanos() as f64).min(u64::MAX as f64);
            let usual = grown.min(longest);
            let slack = 1.0 + usual * 1e-9;
            prop_assert!(wait >= usual * (1.0 - config.open_jitter) - slack || due == u64::MAX);
            prop_assert!(wait <= (usual * (1.0 + config.open_jitter)).min(longest) + slack);
            if config.max_bad_probes > 20 || !wait_out(&breaker, &clock) {
                return Ok(());
            }
        }
    }

    /// At any ratio, trickle and balance: never more than it says, nor fewer by more than the
    /// rounding it states.
    #[test]
    fn a_retry_budget_that_validates_grants_what_it_says(
        (ratio, max_balance, per_sec) in (any_f64(), any_u32(), any_f64()),
        (active_ratio, min_active) in (any_f64(), any_u32()),
        rounds in 1..60_u32,
        step in prop_oneof![0..5_000_u64, Just(u64::MAX / 100_000_000)],
    ) {
        let mut config = RetryBudgetConfig::default();
        (config.ratio, config.max_balance, config.per_sec) = (ratio, max_balance, per_sec);
        (config.active_ratio, config.min_active) = (active_ratio, min_active);
        let clock = Arc::new(ManualClock::new());
        let budget = match RetryBudget::with_clock(config, shared(&clock)) {
            Ok(budget) => budget,
            Err(error) => {
                prop_assert_eq!(config.validate().expect_err("the same answer"), error);
                return Ok(());
            }
        };
        let (asks, mut granted) = (12, 0_u64);
        let places = 1_u64.max(u64::from(min_active)).min(asks);
        for _ in 0..rounds {
            let _account = budget.begin();
            let held: Vec<_> = (0..asks).filter_map(|_| budget.try_extra().ok()).collect();
            prop_assert!(held.len() as u64 <= u64::from(min_active).max(active_ratio as u64));
            granted += held.len() as u64;
            clock.advance(Duration::from_millis(step));
        }
        let seconds = f64::from(rounds - 1) * step as f64 / 1e3;
        let most = ratio * f64::from(rounds) + f64::from(max_balance) + per_sec * (seconds + 1.0);
        prop_assert!(granted as f64 <= most + 1.0 + 1e-6 * most, "{} of {}", granted, most);
        // With a place free, the first ask of all takes from a full balance.
        if min_active > 0 && max_balance > 0 {
            prop_assert!(granted >= u64::from(max_balance).min(places));
        }
    }

    #[test]
    fn a_backoff_that_validates_waits_within_its_bounds(
        (first, max) in (any_duration(), any_duration()),
        factor in any_f64(),
        growth in 0..5_u8,
        seed in any::<u64>(),
    ) {
        let mut backoff = Backoff::default();
        (backoff.first, backoff.max) = (first, max);
        let jitter = [Jitter::None, Jitter::Equal, Jitter::Full][usize::from(growth) % 3];
        backoff.growth = match growth {
            0 => Growth::Constant,
            1 => Growth::Decorrelated,
            _ => Growth::Exponential { factor, jitter },
        };
        let mut config = RetryConfig::default();
        config.backoff = backoff;
        prop_assert_eq!(Retry::new(config).is_ok(), backoff.validate().is_ok());
        if backoff.validate().is_err() {
            return Ok(());
        }
        for wait in backoff.waits(seed).take(300) {
            prop_assert!(wait <= max);
            if matches!(backoff.growth, Growth::Constant | Growth::Decorrelated) {
                prop_assert!(wait >= first);
            }
        }
    }

    /// The longest waits are begun, and given up, without a panic.
    #[test]
    fn a_retry_and_a_hedge_that_validate_work(
        (max_attempts, max_retry_after, asked) in (any_u32(), any_duration(), any_duration()),
        (first, max) in (any_duration(), any_duration()),
        (quantile, min_delay, max_delay) in (any_f64(), any_duration(), any_duration()),
        (min_samples, window, max_hedges) in (any::<u64>(), any_duration(), any_u32()),
    ) {
        let mut retries = RetryConfig::default();
        (retries.max_attempts, retries.max_retry_after) = (max_attempts, max_retry_after);
        (retries.backoff.first, retries.backoff.max) = (first, max);
        let mut hedges = HedgeConfig::default();
        (hedges.quantile, hedges.min_delay, hedges.max_delay) = (quantile, min_delay, max_delay);
        (hedges.min_samples, hedges.window, hedges.max_hedges) = (min_samples, window, max_hedges);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            if let Ok(retry) = Retry::new(retries) {
                let decide = |_: &u8| RetryAdvice::RetryAfter(asked);
                let call = retry.call(|_| async { Err::<(), _>(1_u8) }, decide);
                let hour = Duration::from_secs(3_600);
                if let Ok(Err(error)) = tokio::time::timeout(hour, call).await {
                    prop_assert!(error.attempts >= 1 && error.attempts <= max_attempts);
                }
            }
            prop_assert_eq!(hedges.validate().is_ok(), Hedge::new(hedges).is_ok());
            if let Ok(hedge) = Hedge::new(hedges) {
                for _ in 0..3 {
                    let answer = hedge.call(|number| async move { Ok::<_, ()>(number) }).await;
                    prop_assert!(answer.is_ok_and(|number| number <= max_hedges));
                    prop_assert!((min_delay..=max_delay).contains(&hedge.delay()));
                }
            }
            Ok(())
        })?;
    }

    /// A bulkhead admits exactly its limit, 0 included.
    #[test]
    fn a_bulkhead_that_validates_admits_its_limit(
        (limit, max_len) in (any_usize(), any_usize()),
        (max_wait, max_standing_wait) in (any_duration(), any_duration()),
        order in prop::sample::select(vec![
            QueueOrder::Fifo, QueueOrder::Lifo, QueueOrder::Adaptive,
        ]),
    ) {
        let mut queue = QueueConfig::default();
        (queue.max_len, queue.order) = (max_len, order);
        (queue.max_wait, queue.max_standing_wait) = (max_wait, max_standing_wait);
        let built = Bulkhead::new(limit, queue);
        prop_assert_eq!(built.is_ok(), queue.validate().is_ok() && limit <= 1_000_000);
        let Ok(bulkhead) = built else { return Ok(()) };
        let asked = limit.min(200) + 1;
        let places: Vec<_> = (0..asked).filter_map(|_| bulkhead.try_acquire().ok()).collect();
        prop_assert_eq!(places.len(), limit.min(asked));
        drop(places);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let second = Duration::from_secs(1);
            let answer = tokio::time::timeout(second, bulkhead.acquire()).await;
            match answer {
                Ok(Ok(_place)) => prop_assert!(limit > 0),
                Ok(Err(GateError::Full { .. })) => prop_assert!(limit == 0 && max_len == 0),
                Ok(Err(GateError::QueueTimeout(wait))) => {
                    prop_assert!(limit == 0 && wait <= max_wait);
                }
                Ok(Err(other)) => prop_assert!(false, "{}", other),
                Err(_) => prop_assert!(limit == 0 && max_wait >= second),
            }
            Ok(())
        })?;
        prop_assert_eq!((bulkhead.stats().running, bulkhead.stats().waiting), (0, 0));
    }

    /// The algorithms take any configuration, at its nearest sound value, and stay within bounds.
    #[test]
    fn limit_algorithms_stay_within_their_bounds(
        (initial, min, max) in (any_usize(), any_usize(), any_usize()),
        (backoff, tolerance, smoothing) in (any_f64(), any_f64(), any_f64()),
        (long_window, queue, probe_after) in (any_u32(), any_usize(), any_u32()),
        max_latency in prop::option::of(any::<u64>()),
        samples in prop::collection::vec(
            (any::<u64>(), any::<u64>(), any_usize(), any::<bool>()), 1..80,
        ),
    ) {
        let mut aimd = AimdConfig::default();
        (aimd.initial, aimd.min, aimd.max) = (initial, min, max);
        (aimd.backoff, aimd.max_latency) = (backoff, max_latency);
        let mut vegas = VegasConfig::default();
        (vegas.initial, vegas.min, vegas.max) = (initial, min, max);
        vegas.probe_after = probe_after;
        let mut gradient = Gradient2Config::default();
        (gradient.initial, gradient.min, gradient.max) = (initial, min, max);
        (gradient.tolerance, gradient.smoothing) = (tolerance, smoothing);
        (gradient.long_window, gradient.queue) = (long_window, queue);
        gradient.probe_after = probe_after;
        let algorithms: [Box<dyn LimitAlgorithm>; 3] = [
            Box::new(Aimd::new(aimd)),
            Box::new(Vegas::new(vegas)),
            Box::new(Gradient2::new(gradient)),
        ];
        // Bounds as documented: at least 1, and the upper one not below the lower.
        let (least, most) = (min.max(1), max.max(min.max(1)));
        for mut algorithm in algorithms {
            let initial = algorithm.initial() as f64;
            prop_assert!((least as f64..=most as f64).contains(&initial));
            for (now, latency, running, is_overload) in &samples {
                let sample = LimitSample::new(*now, *latency, *running, *is_overload);
                let limit = algorithm.update(&sample);
                // The limit is kept in floating point, which rounds the largest integers.
                let (low, high) = (least as f64, most as f64);
                prop_assert!((low..=high).contains(&(limit as f64)), "{}", limit);
            }
        }
    }

    #[test]
    fn a_shedder_that_validates_sheds_by_its_bounds(
        bounds in prop::array::uniform4(any_f64()),
        load in any_f64(),
    ) {
        #[derive(Debug)]
        struct Load(f64);
        impl LoadSource for Load {
            fn load(&self) -> f64 {
                self.0
            }
        }
        let mut config = ShedConfig::default();
        config.max_sheddable = bounds[0];
        config.max_sheddable_plus = bounds[1];
        config.max_critical = bounds[2];
        config.max_critical_plus = bounds[3];
        let built = Shedder::new(Arc::new(Load(load)), config);
        let is_rising = bounds.windows(2).all(|pair| pair[0] <= pair[1]);
        prop_assert_eq!(built.is_ok(), is_rising && bounds[0] >= 0.0);
        let Ok(shedder) = built else { return Ok(()) };
        let priorities = [
            Priority::Sheddable,
            Priority::SheddablePlus,
            Priority::Critical,
            Priority::CriticalPlus,
        ];
        for (priority, bound) in priorities.into_iter().zip(bounds) {
            // A load that is no number is no reason to admit.
            let is_number = load.classify() != FpCategory::Nan;
            prop_assert_eq!(shedder.check(priority).is_ok(), is_number && load < bound);
        }
    }

    #[test]
    fn time_limits_and_deadlines_of_any_length_work(
        limit in any_duration(), left in any_duration(), header in "[0-9]{0,9}[HMSmunx]?",
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let timeout = Timeout::new(limit);
            prop_assert_eq!(timeout.is_ok(), !limit.is_zero());
            let deadline = Deadline::after(left);
            let there = Deadline::from_grpc_timeout(&deadline.to_grpc_timeout());
            prop_assert!(there.is_some_and(|there| there.remaining() <= left));
            let _ = Deadline::from_grpc_timeout(&header).map(|deadline| deadline.at_most(left));
            let Ok(timeout) = timeout else { return Ok(()) };
            prop_assert_eq!(timeout.call(async { Ok::<_, ()>(1) }).await, Ok(1));
            let answer = timeout.call_by(deadline, async { Ok::<_, ()>(1) }).await;
            prop_assert_eq!(answer.is_ok(), !left.is_zero());
            let policy = Policy::<u8, ()>::builder().timeout(timeout).timeout(timeout).build();
            prop_assert_eq!(policy.expect("two limits").call(|_| async { Ok(1) }).await, Ok(1));
            Ok(())
        })?;
    }

    #[test]
    fn a_registry_that_validates_keeps_to_its_capacity(
        config in any_breaker_config(), capacity in any_usize(),
    ) {
        let registry = Registry::new(config.clone(), capacity);
        prop_assert_eq!(registry.is_ok(), config.validate().is_ok() && capacity > 0);
        let Ok(registry) = registry else { return Ok(()) };
        let is_big = matches!(config.window, Window::Time { buckets: 100.., .. })
            || matches!(config.window, Window::Count { calls: 10_000.. });
        for key in 0..if is_big { 3 } else { 40 } {
            registry.get(&key).expect("nobody holds one").try_acquire().expect("new").success();
            prop_assert!(registry.len() <= capacity);
        }
    }
}
