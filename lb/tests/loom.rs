//! Every interleaving of the hand-made atomics, on the very files that the crate compiles: the core
//! is included here over the model checker's atomics.
//!
//! Without the test harness, so that the core's own unit tests, which need no checker, stay out.

// The checker's crate uses only a part of what it includes.
#![expect(dead_code, unused_imports, reason = "the included core serves the whole crate")]

#[path = "../src/core/mod.rs"]
mod core;

/// What the core calls `crate::sync`.
mod sync {
    pub(crate) use loom::sync::atomic::AtomicU64;
}

use self::core::{Decaying, Flight};
use loom::sync::Arc;
use loom::thread;

const SECOND: u64 = 1_000_000_000;

/// Runs `body` in two threads at once, `rounds` of it each.
fn two<T: Send + Sync + 'static>(shared: Arc<T>, body: fn(&T, u64)) -> Arc<T> {
    let other = Arc::clone(&shared);
    let thread = thread::spawn(move || body(&other, 1));
    body(&shared, 0);
    thread.join().expect("no panic");
    shared
}

/// Two takers of one place: at least one gets it whenever it is free, never both, and the counts
/// are exact in the end.
fn places_are_never_given_twice() {
    loom::model(|| {
        let shared = Arc::new((Flight::new(), loom::sync::atomic::AtomicUsize::new(0)));
        let shared = two(shared, |(flight, holders), _| {
            if flight.try_take(1) {
                let before = holders.fetch_add(1, loom::sync::atomic::Ordering::Relaxed);
                assert_eq!(before, 0, "two hold one place");
                holders.fetch_sub(1, loom::sync::atomic::Ordering::Relaxed);
                flight.release();
            }
        });
        assert_eq!(shared.0.in_flight(), 0);
        assert!((1..=2).contains(&shared.0.picks()));
        assert!(shared.0.try_take(1), "the place is free again");
    });
}

/// No failure is lost, whoever adds first and whatever `now` each thread has.
fn additions_are_never_lost() {
    loom::model(|| {
        let rate = Decaying::rate(SECOND);
        let shared = two(Arc::new(Decaying::new()), |value, thread| {
            // The threads disagree about the time by less than a tick.
            value.add(10 * SECOND + thread * 1_000, Decaying::rate(SECOND), 1.0);
        });
        assert!((shared.read(10 * SECOND, rate) - 2.0).abs() < 0.01);
        assert!((shared.read(11 * SECOND, rate) - 1.0).abs() < 0.01);
    });
}

/// The higher of two peaks stays, and a reader never sees a value with another's stamp.
fn a_peak_is_never_lost_and_never_torn() {
    loom::model(|| {
        let rate = Decaying::rate(SECOND);
        let average = Arc::new(Decaying::new());
        average.peak(SECOND, rate, 64.0);
        let shared = two(average, |average, thread| {
            let rate = Decaying::rate(SECOND);
            if thread == 0 {
                average.peak(100 * SECOND, rate, 100.0);
            } else {
                // 64 decays to nothing by then; 100 does not.
                let seen = average.read(100 * SECOND, rate);
                assert!(seen < 0.01 || (seen - 100.0).abs() < 0.01, "{seen}");
                average.peak(100 * SECOND, rate, 40.0);
            }
        });
        assert!((shared.read(100 * SECOND, rate) - 100.0).abs() < 0.01);
    });
}

fn main() {
    places_are_never_given_twice();
    additions_are_never_lost();
    a_peak_is_never_lost_and_never_torn();
    // As the harness of other tests closes, for those who count. A failed check ends in a panic.
    println!("test result: ok. 3 passed; 0 failed; 0 ignored");
}
