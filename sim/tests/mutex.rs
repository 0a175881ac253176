//! The toy core of the examples: right over many seeds, found guilty when it is broken.

#[allow(dead_code, reason = "its main is not used here")]
#[path = "../examples/mutex.rs"]
mod mutex;

use voussoir_sim::{FaultClass, FaultSet, Runner};

#[test]
fn lamports_mutex_excludes() {
    let summary = Runner::new("cargo test -p voussoir-sim --test mutex").seeds(100);
    let summary = summary.run(|seed| mutex::run(seed, false)).unwrap();
    assert!(summary.figure("numbers") > 5_000, "{summary}");
    let faults = FaultSet::NONE.with(FaultClass::Delay).with(FaultClass::Pause);
    assert!(summary.silent(faults).is_empty(), "{summary}");
}

#[test]
fn a_mutex_that_does_not_wait_is_found_guilty() {
    let runner = Runner::new("cargo test -p voussoir-sim --test mutex").seeds(20);
    let broken = runner.run(|seed| mutex::run(seed, true)).unwrap_err();
    let message = broken.failure.message();
    assert!(
        message.contains("longest order found"),
        "a violation, not a liveness failure: {message}"
    );
}
