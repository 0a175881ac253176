//! Whatever validates works, and nothing else does.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use voussoir_lock::ids::*;
use voussoir_lock::{Lease, LeaseConfig};
use voussoir_sim::Situations;

fn figures() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..30_u64,
        (0..64_u32).prop_map(|bits| 1 << bits),
        Just((1 << 48) - 1),
        Just(u64::MAX),
        any::<u64>(),
    ]
}

fn durations() -> impl Strategy<Value = Duration> {
    prop_oneof![
        (0..60_001_u64).prop_map(Duration::from_millis),
        figures().prop_map(Duration::from_nanos),
        Just(Duration::from_secs(60)),
        Just(Duration::MAX),
    ]
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(cases) })
}

#[test]
fn every_valid_snowflake_layout_makes_ids_that_come_apart_again() {
    static SITUATIONS: [&str; 5] = ["valid", "rejected", "made", "refused", "worker too large"];
    let situations = Situations::new(&SITUATIONS);
    let cases = (figures(), (0..26_u32, 0..26_u32), durations(), figures(), 0..5_u32, figures());
    let result = runner(20_000).run(&cases, |(epoch, bits, behind, now, worker, start)| {
        let mut config = SnowflakeConfig::default();
        (config.epoch_ms, config.max_clock_behind) = (epoch, behind);
        (config.worker_bits, config.sequence_bits) = bits;
        let window = WorkerWindow::unleased(worker, start);
        let ids = match (config.validate(), Snowflake::new(config.clone(), window)) {
            (Ok(()), Ok(ids)) => ids,
            (Ok(()), Err(error)) => {
                prop_assert!(error.field == "worker_bits" && worker >= config.workers());
                situations.reached("worker too large");
                return Ok(());
            }
            (Err(error), made) => {
                situations.reached("rejected");
                prop_assert_eq!(made.err(), Some(error));
                prop_assert!(config.parts(1).is_err());
                return Ok(());
            }
        };
        situations.reached("valid");
        let mut last = None;
        for _ in 0..5 {
            let Ok(id) = ids.next(now) else {
                situations.reached("refused");
                break;
            };
            situations.reached("made");
            let parts = config.parts(id).expect("the layout is valid");
            prop_assert_eq!(parts.worker, worker);
            prop_assert!(parts.time_ms >= start && parts.time_ms >= now / 1_000_000);
            prop_assert!(last.is_none_or(|last| id > last) && id >> 63 == 0);
            last = Some(id);
        }
        Ok(())
    });
    result.expect("every case");
    situations.assert_all_reached();
}

#[test]
fn every_valid_uuid_configuration_makes_ids() {
    static SITUATIONS: [&str; 3] = ["valid", "rejected", "behind"];
    let situations = Situations::new(&SITUATIONS);
    let cases = (durations(), any::<Option<u64>>(), figures(), durations());
    let result = runner(5_000).run(&cases, |(behind, seed, now, step)| {
        let mut config = UuidV7Config::default();
        (config.max_clock_behind, config.seed) = (behind, seed);
        let valid = config.validate().is_ok();
        situations.reached(if valid { "valid" } else { "rejected" });
        let Ok(mut ids) = UuidV7::new(config) else {
            prop_assert!(!valid);
            return Ok(());
        };
        let first = ids.next(now).expect("the first id");
        prop_assert!(ids.next(now).expect("the second id") > first);
        let back = now.saturating_sub(u64::try_from(step.as_nanos()).unwrap_or(u64::MAX));
        let is_within = (now / 1_000_000 - back / 1_000_000) <= behind.as_millis() as u64;
        prop_assert_eq!(ids.next(back).is_ok(), is_within);
        if !is_within {
            situations.reached("behind");
        }
        Ok(())
    });
    result.expect("every case");
    situations.assert_all_reached();
}

#[test]
fn every_valid_length_of_short_codes_is_one_to_one() {
    static SITUATIONS: [&str; 2] = ["valid", "rejected"];
    let situations = Situations::new(&SITUATIONS);
    let cases = (0..13_usize, any::<u64>(), any::<u64>());
    let result = runner(3_000).run(&cases, |(length, key, number)| {
        let Ok(codes) = ShortCodes::new(length, key) else {
            situations.reached("rejected");
            prop_assert!(!(1..=10).contains(&length));
            return Ok(());
        };
        situations.reached("valid");
        let number = number % codes.count();
        let code = codes.encode(number).expect("in range");
        prop_assert_eq!(codes.decode(&code), Some(number));
        Ok(())
    });
    result.expect("every case");
    situations.assert_all_reached();
}

#[test]
fn a_lease_takes_its_whole_range_of_times() {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let (least, most) = (Duration::from_millis(10), Duration::from_secs(3600));
        let nano = Duration::from_nanos(1);
        let tries = [
            (Duration::from_nanos(9_999_999), false),
            (least, true),
            (most, true),
            (most + nano, false),
            (Duration::ZERO, false),
            (Duration::MAX, false),
        ];
        for (ahead, is_valid) in tries {
            let numbers = std::sync::Arc::new(MemoryNumbers::new());
            for now in [0, u64::MAX] {
                let clock = std::sync::Arc::new(move || now);
                let leased = WorkerLease::acquire(numbers.clone(), 4, ahead, clock).await;
                assert_eq!(leased.is_ok(), is_valid, "{ahead:?}");
            }
        }
    });
}

#[test]
fn every_valid_lease_ends_before_its_time_to_live() {
    static SITUATIONS: [&str; 2] = ["valid", "rejected"];
    let situations = Situations::new(&SITUATIONS);
    let drifts = prop_oneof![0..100_002_u32, any::<u32>()];
    let cases = (durations(), drifts, durations(), figures());
    let result = runner(10_000).run(&cases, |(ttl, drift, margin, sent_at)| {
        let mut config = LeaseConfig::default();
        (config.ttl, config.max_drift_ppm, config.margin) = (ttl, drift, margin);
        let granted = Lease::granted(&config, sent_at, sent_at);
        if config.validate().is_err() {
            situations.reached("rejected");
            prop_assert!(granted.is_err());
            return Ok(());
        }
        if sent_at == u64::MAX {
            prop_assert!(granted.is_err(), "the clock is at its end");
            return Ok(());
        }
        situations.reached("valid");
        let lease = granted.expect("a valid configuration");
        let deadline = lease.deadline().expect("it has begun");
        prop_assert!(deadline > sent_at && deadline - sent_at <= ttl.as_nanos() as u64);
        prop_assert!(lease.check(deadline - 1).is_ok() && lease.check(deadline).is_err());
        Ok(())
    });
    result.expect("every case");
    situations.assert_all_reached();
}

#[cfg(all(feature = "etcd", feature = "postgres", feature = "redis"))]
mod back_ends {
    use std::sync::Arc;

    use voussoir_lock::etcd::{Channel, EtcdConfig, EtcdLocks};
    use voussoir_lock::postgres::{PostgresConfig, PostgresLocks};
    use voussoir_lock::redis::{RedisConfig, RedisLocks};

    use super::*;

    fn texts() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z \"'%{}.]{0,70}",
            any::<String>(),
            (0..600_usize).prop_map(|length| "x".repeat(length)),
        ]
    }

    /// A client is made of each that is valid, without a server; `tests/postgres.rs` uses a schema
    /// with the characters that a name may have.
    #[test]
    fn every_valid_configuration_makes_a_client_and_no_other() {
        static SITUATIONS: [&str; 4] = ["schema", "poll", "prefix", "all valid"];
        let situations = Situations::new(&SITUATIONS);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let _entered = runtime.enter();
        let cases = (texts(), durations());
        let result = runner(4_000).run(&cases, |(text, poll)| {
            let mut postgres = PostgresConfig::default();
            (postgres.schema, postgres.poll_interval) = (text.clone(), poll);
            let is_name = (1..=63).contains(&text.len()) && !text.contains(['\0', '$', '\\']);
            let polls = |least: u64| (least..=60_000).contains(&(poll.as_millis() as u64));
            let in_range = |least| poll <= Duration::from_secs(60) && polls(least);
            let rejected = match (is_name, in_range(10)) {
                (false, _) => Some("schema"),
                (true, false) => Some("poll_interval"),
                (true, true) => None,
            };
            situations.reached(match rejected {
                Some("schema") => "schema",
                Some(_) => "poll",
                None => "all valid",
            });
            let checked = postgres.validate().err().map(|error| error.field);
            prop_assert_eq!(checked, rejected);
            let made = PostgresLocks::start(Arc::new(tokio_postgres::Config::new()), postgres);
            prop_assert_eq!(made.err().map(|error| error.field), rejected);

            let mut redis = RedisConfig::default();
            (redis.prefix, redis.poll_interval) = (text.clone(), poll);
            let is_valid = text.len() <= 256 && in_range(1);
            let client = redis::Client::open("redis://127.0.0.1").expect("an address");
            prop_assert_eq!(redis.validate().is_ok(), is_valid);
            prop_assert_eq!(RedisLocks::new(client, redis).is_ok(), is_valid);

            let mut etcd = EtcdConfig::default();
            etcd.prefix = text.clone();
            let channel = Channel::from_static("http://127.0.0.1:1").connect_lazy();
            prop_assert_eq!(etcd.validate().is_ok(), text.len() <= 256);
            prop_assert_eq!(EtcdLocks::new(channel, etcd).is_ok(), text.len() <= 256);
            if text.len() > 256 {
                situations.reached("prefix");
            }
            Ok(())
        });
        result.expect("every case");
        situations.assert_all_reached();
    }
}
