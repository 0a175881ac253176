//! The serialised form of a snapshot: its bytes, what it skips, and what it refuses.

use std::sync::Arc;
use std::time::Duration;

use voussoir_breaker::testing::ManualClock;
use voussoir_breaker::{Breaker, BreakerConfig, BreakerSnapshot, RestoreError, State, Window};

/// As version 1 has been written ever since there is one.
const GOLDEN: &str = concat!(
    r#"{"version":1,"state":"Open","wait_left":{"secs":3,"nanos":500000000},"openings":1,"#,
    r#""consecutive_failures":0,"bucket":{"secs":1,"nanos":0},"window":[]}"#,
);
const GOLDEN_CLOSED: &str = concat!(
    r#"{"version":1,"state":"Closed","wait_left":{"secs":0,"nanos":0},"openings":0,"#,
    r#""consecutive_failures":1,"bucket":null,"window":["#,
    r#"{"age":1,"counts":{"calls":1,"failures":0,"slow":0}},"#,
    r#"{"age":0,"counts":{"calls":1,"failures":1,"slow":0}}]}"#,
);

fn config() -> BreakerConfig {
    let mut config = BreakerConfig::default();
    config.consecutive_failures = Some(2);
    config.open_jitter = 0.0;
    config
}

fn counting() -> BreakerConfig {
    let mut config = config();
    config.window = Window::Count { calls: 20 };
    config
}

fn restore(config: &BreakerConfig, json: &str) -> Result<Breaker, RestoreError> {
    let snapshot = serde_json::from_str(json).expect("JSON of the right shape");
    Breaker::restore("b", config, Arc::new(ManualClock::new()), &snapshot)
}

#[test]
fn the_bytes_stay_as_they_are_and_come_back() {
    let clock = Arc::new(ManualClock::new());
    let shared: Arc<dyn voussoir_breaker::Clock> = Arc::<ManualClock>::clone(&clock);
    let opened = Breaker::with_clock("b", &config(), shared).expect("valid");
    for _ in 0..2 {
        opened.try_acquire().expect("closed").failure();
    }
    clock.advance(Duration::from_millis(1_500));
    let counted = Breaker::new("b", &counting()).expect("valid");
    counted.try_acquire().expect("closed").success();
    counted.try_acquire().expect("closed").failure();
    for (breaker, config, golden) in
        [(opened, config(), GOLDEN), (counted, counting(), GOLDEN_CLOSED)]
    {
        let snapshot = breaker.snapshot();
        assert_eq!(serde_json::to_string(&snapshot).expect("plain data"), golden);
        assert_eq!(serde_json::from_str::<BreakerSnapshot>(golden).expect("ours"), snapshot);
        assert_eq!(restore(&config, golden).expect("ours").snapshot(), snapshot);
    }
}

#[test]
fn what_is_not_known_yet_is_skipped() {
    let newer = GOLDEN.replacen('{', r#"{"later":[{"x":1}],"#, 1);
    assert_eq!(restore(&config(), &newer).expect("skipped").state(), State::Open);
}

#[test]
fn another_version_is_refused_and_so_is_none() {
    for (json, found) in [
        (GOLDEN.replace(r#""version":1"#, r#""version":2"#), 2),
        (GOLDEN.replace(r#""version":1,"#, ""), 0),
        ("{}".to_owned(), 0),
        (r#"{"version":4294967295,"state":"Open"}"#.to_owned(), u32::MAX),
    ] {
        let refused = restore(&config(), &json).expect_err("refused");
        assert_eq!(refused, RestoreError::VersionUnknown { found });
    }
}

#[test]
fn garbage_is_refused_by_the_format_or_by_the_breaker() {
    for json in ["", "null", "[1", "7", GOLDEN.replace("Open", "Ajar").as_str(), &GOLDEN[..40]] {
        assert!(serde_json::from_str::<BreakerSnapshot>(json).is_err(), "{json}");
    }
    let part = |part: &str| GOLDEN.replace("[]", &format!("[{part}]"));
    for part in [
        part(r#"{"age":10,"counts":{"calls":1,"failures":0,"slow":0}}"#),
        part(r#"{"age":0,"counts":{"calls":1,"failures":2,"slow":0}}"#),
        part(r#"{"age":0,"counts":{"calls":0,"failures":0,"slow":1}}"#),
    ] {
        assert_eq!(restore(&config(), &part).expect_err("refused"), RestoreError::WindowInvalid);
    }
    let other = GOLDEN.replace(r#"{"secs":1,"nanos":0}"#, "null");
    assert_eq!(restore(&config(), &other).expect_err("refused"), RestoreError::WindowMismatch);
}

/// A wait that no breaker of this configuration would begin is cut to its longest.
#[test]
fn no_snapshot_keeps_a_breaker_open_for_ever() {
    let forged = GOLDEN.replace(r#""secs":3"#, r#""secs":18446744073709551615"#);
    let rejected = restore(&config(), &forged).expect("cut").try_acquire().expect_err("open");
    assert_eq!(rejected.retry_after, Some(Duration::from_secs(60)));
}
