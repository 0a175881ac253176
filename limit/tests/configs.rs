//! Whatever validates works: each public configuration over its whole range, extremes included.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use voussoir_limit::testing::MemoryCounter;
use voussoir_limit::*;
use voussoir_sim::Situations;

/// Times after this are taken as this.
const MAX_NOW: u64 = (1 << 63) - 1;

/// A clock that stands still.
#[derive(Debug)]
struct At(u64);

impl Clock for At {
    fn now(&self) -> u64 {
        self.0
    }
}

/// Small, round, around powers of two, and the largest.
fn figure() -> impl Strategy<Value = u64> {
    let around_a_power = (0..64_u32, 0..3_u64).prop_map(|(bits, off)| (1 << bits) - 1 + off.min(1));
    prop_oneof![
        4 => 0..20_u64,
        2 => (0..20_u32).prop_map(|digits| 10_u64.saturating_pow(digits)),
        3 => around_a_power,
        1 => any::<u64>(),
        1 => Just(u64::MAX),
    ]
}

fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        6 => figure().prop_map(Duration::from_nanos),
        3 => (1..100_000_u64).prop_map(Duration::from_secs),
        1 => Just(Duration::MAX),
    ]
}

fn algorithm() -> impl Strategy<Value = Algorithm> {
    prop_oneof![
        Just(Algorithm::Gcra),
        Just(Algorithm::TokenBucket),
        Just(Algorithm::LeakyBucket),
        Just(Algorithm::FixedWindow),
        Just(Algorithm::SlidingLog),
        Just(Algorithm::SlidingCounter),
    ]
}

fn quota() -> impl Strategy<Value = Quota> {
    (algorithm(), figure(), duration(), figure()).prop_map(|(algorithm, count, per, burst)| {
        let mut quota = Quota::gcra(count, per).burst(burst);
        quota.algorithm = algorithm;
        quota
    })
}

/// Runs a property over as many cases as `VOUSSOIR_CASES` says, at fixed seeds.
fn check<S: Strategy>(strategy: S, cases: u32, property: impl Fn(S::Value)) {
    let cases = std::env::var("VOUSSOIR_CASES").map_or(cases, |n| n.parse().expect("a number"));
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = proptest::test_runner::TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let outcome = runner.run(&strategy, |value| {
        property(value);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

static OF_QUOTAS: [&str; 12] = [
    "refused",
    "Gcra built",
    "TokenBucket built",
    "LeakyBucket built",
    "FixedWindow built",
    "SlidingLog built",
    "SlidingCounter built",
    "limit above 2^32",
    "period above a year",
    "clock at its end",
    "waited for exactly",
    "changed to another",
];

/// A quota that validates gives exactly its limit at one moment, rejects the next unit for exactly
/// as long as it says, gives it back when refunded, and survives a change to any other.
#[test]
fn each_quota_that_validates_gives_what_it_says() {
    let situations = Situations::new(&OF_QUOTAS);
    let now =
        prop_oneof![Just(0), Just(1), Just(MAX_NOW), Just(u64::MAX), any::<u64>(), 0..1_u64 << 60];
    check((quota(), now, quota(), figure()), 20_000, |(quota, now, other, cost)| {
        let config = LimiterConfig::default();
        let Ok(limiter) = Limiter::with_clock(&[quota], config.clone(), Arc::new(At(now))) else {
            return situations.reached("refused");
        };
        situations.reached(&format!("{:?} built", quota.algorithm));
        if quota.per > Duration::from_secs(366 * 86_400) {
            situations.reached("period above a year");
        }
        if now >= MAX_NOW {
            situations.reached("clock at its end");
        }
        let limit = limiter.check_n(0).unwrap().standing().limit();
        situations.add("limit above 2^32", u64::from(limit > 1 << 32));
        assert!(limit >= 1 && quota.most_in(Duration::from_nanos(1)) >= limit);
        assert_eq!(limiter.check_n(0).unwrap().remaining(), limit);
        if let Some(above) = limit.checked_add(1) {
            assert_eq!(limiter.check_n(above).unwrap_err().retry_after(), None);
        }
        let admitted = limiter.check_n(limit).unwrap();
        assert_eq!(admitted.remaining(), 0);
        let rejected = limiter.check().unwrap_err();
        let wait =
            rejected.retry_after().expect("one unit is within every limit").as_nanos() as u64;
        assert!(rejected.retry_after_secs().unwrap() >= 1);
        for text in [policy_field(&[quota]), standing_field(&[quota], rejected.standing())] {
            let numbers = text.split(|c: char| !c.is_ascii_digit());
            assert!(numbers.map(str::len).max().unwrap() <= 15, "{text} is no structured field");
        }
        limiter.refund(admitted);
        let unit = limiter.check().unwrap();
        limiter.refund(unit);
        // A second limiter, for `refund` may not bring all back.
        let again = Limiter::with_clock(&[quota], config, Arc::new(At(now))).unwrap();
        again.check_n(limit).unwrap();
        if let Some(then) = now.checked_add(wait).filter(|then| *then <= MAX_NOW) {
            situations.reached("waited for exactly");
            if matches!(quota.algorithm, Algorithm::Gcra | Algorithm::LeakyBucket) {
                // The stated rounding: the time of a unit, up to whole nanoseconds.
                assert_eq!(u128::from(wait), quota.per.as_nanos().div_ceil(quota.count.into()));
            }
            assert!(again.check_at(then - 1, 1).is_err(), "a nanosecond early");
            assert!(again.check_at(then, 1).is_ok(), "the wait that was said is enough");
        }
        let _ = again.check_n(cost);
        if again.set_quotas(&[other]).is_ok() {
            situations.reached("changed to another");
            let standing = *again.check_n(0).unwrap().standing();
            assert!(standing.remaining() <= standing.limit());
            let _ = (again.check_n(cost), again.check_at(u64::MAX, cost), again.check_at(0, 1));
        }
    });
    situations.assert_all_reached();
}

static OF_TIERS: [&str; 3] = ["refused", "one word", "several cells"];

/// Keyed limiters of any room and any quotas count for each key, or say that they cannot be built.
#[test]
fn each_keyed_limiter_that_validates_counts_by_key() {
    let situations = Situations::new(&OF_TIERS);
    let room = prop_oneof![0..130_usize, Just(1 << 20), Just(1 << 32), Just(usize::MAX)];
    let small = (algorithm(), 1..100_u64, 1..1_000_000_000_u64, 1..50_u64);
    let small = small.prop_map(|(algorithm, count, per, burst)| {
        let mut quota = Quota::gcra(count, Duration::from_nanos(per + count)).burst(burst);
        quota.algorithm = algorithm;
        quota
    });
    let one = quota().prop_map(|quota| vec![quota]);
    let quotas = prop_oneof![
        1 => proptest::collection::vec(quota(), 0..MAX_TIERS + 2),
        2 => proptest::collection::vec(small, 2..MAX_TIERS + 1),
        5 => one
    ];
    let when_full =
        prop_oneof![Just(WhenFull::Share), Just(WhenFull::Reject), Just(WhenFull::Admit)];
    let config = (room, when_full, figure(), any::<u64>());
    check((quotas, config), 1500, |(quotas, (max_keys, when_full, max_waiters, now))| {
        let mut config = KeyedConfig::default();
        (config.max_keys, config.when_full) = (max_keys, when_full);
        config.max_waiters = max_waiters as usize;
        let limiter = match Keyed::<u64>::with_clock(&quotas, config, Arc::new(At(now))) {
            Ok(limiter) => limiter,
            Err(error) if error.field == "max_keys" && (1..=1 << 32).contains(&max_keys) => {
                // Only for a table that a machine may really lack the memory for.
                assert!(max_keys >= 1 << 26, "no memory for {max_keys} keys");
                return situations.reached("refused");
            }
            Err(_) => return situations.reached("refused"),
        };
        let kind = if quotas.len() == 1 { "one word" } else { "several cells" };
        situations.reached(kind);
        let limit = limiter.check_n(&0, 0).unwrap().standing().limit();
        // The first key has a place whatever the room; the standing is about the tightest tier.
        let least = quotas.iter().map(|quota| match quota.algorithm {
            Algorithm::Gcra | Algorithm::TokenBucket => quota.burst,
            Algorithm::LeakyBucket => 1,
            _ => quota.count,
        });
        let least = least.min().unwrap();
        assert!(limit >= least);
        let admitted = limiter.check_n(&0, least).unwrap();
        assert!(limiter.check(&0).is_err(), "a key has its limit and no more");
        for key in 1..70 {
            let _ = (limiter.check(&key), limiter.check_at(&key, u64::MAX, 1));
        }
        limiter.refund(&0, admitted);
        assert!(limiter.len() <= max_keys.saturating_mul(2).max(64 * 8));
        limiter.set_quotas(&quotas).unwrap();
        limiter.reclaim();
        let _ = (limiter.stats(), limiter.check_n(&0, u64::MAX));
    });
    situations.assert_all_reached();
}

static OF_SHARED: [&str; 5] = ["refused", "passes", "rejected", "not asked", "more than the limit"];

/// Shared limiters of any lease and any times spend what the store grants, and end.
#[test]
fn each_shared_limiter_that_validates_spends_what_is_granted() {
    let situations = Situations::new(&OF_SHARED);
    let config = (figure(), duration(), figure(), duration(), duration(), any::<bool>());
    check((quota(), config, figure()), 4000, |(quota, config, cost)| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let clock: Arc<dyn Clock> = Arc::new(TokioClock::new());
            let counter = Arc::new(MemoryCounter::new(Arc::clone(&clock)));
            let (lease, lease_for, max_keys, timeout, rest, open) = config;
            let mut outage = OutageConfig::default();
            (outage.timeout, outage.rest) = (timeout, rest);
            outage.on_outage = if open { OnOutage::Admit } else { OnOutage::Reject };
            let mut config = LeasedConfig::default();
            (config.lease, config.lease_for) = (lease, lease_for);
            (config.max_keys, config.outage) = (max_keys as usize, outage);
            let strict = Strict::new(Arc::clone(&counter) as _, quota, outage);
            let leased = Leased::with_clock(Arc::clone(&counter) as _, quota, config, clock);
            let Ok(leased) = leased else { return situations.reached("refused") };
            let strict = strict.expect("it asks for less than the other");
            for (key, cost) in [("a", 1), ("a", cost), ("b", cost), ("b", u64::MAX)] {
                for answer in [leased.check(key, cost).await, strict.check(key, cost).await] {
                    match answer {
                        Ok(pass) => {
                            assert_ne!(pass.source, Source::Outage);
                            situations.reached("passes");
                        }
                        Err(SharedError::Rejected(rejected)) => {
                            let never = !rejected.is_retryable();
                            assert_eq!(never, cost > rejected.standing().limit());
                            situations.add("more than the limit", never.into());
                            situations.reached("rejected");
                        }
                        Err(other) => panic!("the store is well: {other}"),
                    }
                }
            }
            counter.fail(Some(StoreError::Unreachable("it is down".into())));
            for _ in 0..2 {
                let answer = strict.check("c", 1).await;
                assert_eq!(answer.is_ok(), open, "{answer:?}");
            }
            situations.add("not asked", u64::from(!rest.is_zero()));
            assert!(leased.stats().granted >= leased.stats().lost);
            assert!(leased.most_in(Duration::MAX, u64::MAX) > 0);
        });
    });
    situations.assert_all_reached();
}
