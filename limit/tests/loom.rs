//! Every interleaving of the limiter's word and its rules, on the very files that the crate
//! compiles: the core is included here over the model checker's atomics.

// The checker's crate uses only a part of what it includes.
#![expect(dead_code, unused_imports, reason = "the included core serves the whole crate")]
#![expect(unreachable_pub, reason = "what the crate re-exports is private to this test")]

#[path = "../src/core/mod.rs"]
mod core;

/// What the core calls `crate::sync`.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU64, fence};
    pub(crate) use loom::thread::yield_now as pause;

    /// The lock of the crate never poisons.
    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().expect("a thread of the model panicked")
        }
    }
}

use self::core::{AtomicCell, Beyond, Kind, LiveRules, Rules, SlotRef};
use self::sync::AtomicU64;
use loom::sync::Arc;
use loom::thread;

const NOW: u64 = 1_000_000;

fn rules(kind: Kind, count: u64, burst: u64) -> Rules {
    Rules::new(kind, count, 1000, burst).expect("the figures fit")
}

/// All interleavings with up to three switches away from a thread that could go on.
fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// A check of one unit as the limiter makes it: the short way first.
fn admits(cell: &AtomicCell, now: u64) -> bool {
    cell.take(now, 1).map_or_else(|| cell.step(now, 1).admitted(), |answer| answer.is_ok())
}

/// Threads that come together take exactly what there is.
fn exactly_the_limit(kind: Kind) {
    check(move || {
        let cell = Arc::new(AtomicCell::new(&rules(kind, 2, 2)));
        let taker = |turns: usize| {
            let cell = Arc::clone(&cell);
            move || (0..turns).filter(|_| admits(&cell, NOW)).count()
        };
        let other = thread::spawn(taker(1));
        let taken = taker(2)() + other.join().expect("it ends");
        assert_eq!(taken, 2, "{kind:?}");
    });
}

/// A decision never mixes an old quota with a converted word: what was taken before a change is
/// what is used after it.
fn a_change_keeps_what_is_used() {
    check(|| {
        let cell = Arc::new(AtomicCell::new(&rules(Kind::Gcra, 10, 3)));
        let taker = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || u64::from(admits(&cell, NOW)))
        };
        cell.set_rules(&rules(Kind::Gcra, 2, 4), NOW);
        let taken = taker.join().expect("it ends");
        assert_eq!(cell.step(NOW, 0).standing.remaining(), 4 - taken);
    });
}

/// Also where the word that the change finds would convert to itself, at a clock that stands still.
fn a_change_at_rest_is_noticed() {
    check(|| {
        let cell = Arc::new(AtomicCell::new(&rules(Kind::Gcra, 10, 3)));
        assert!(cell.step(NOW - 100, 1).admitted());
        let taker = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || assert!(admits(&cell, NOW)))
        };
        cell.set_rules(&rules(Kind::Gcra, 2, 4), NOW);
        taker.join().expect("it ends");
        let worth = cell.step(NOW, 0).standing.reset_after().as_nanos();
        assert_eq!(worth, 500, "the unit is worth what it is by the new quota");
    });
}

/// One who reserves and gives up leaves nothing behind, whoever checks meanwhile.
fn a_reservation_given_up_comes_back() {
    check(|| {
        let cell = Arc::new(AtomicCell::new(&rules(Kind::Gcra, 1, 1)));
        assert!(cell.step(NOW, 1).admitted());
        let checker = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || admits(&cell, NOW + 10))
        };
        let (wait, receipt) =
            cell.reserve(NOW, 1, Beyond::Refused, None).expect("it is affordable");
        cell.refund(&receipt, NOW + 5);
        assert_eq!(wait, 1000);
        assert!(!checker.join().expect("it ends"));
        assert_eq!(cell.step(NOW + 10, 1).wait, 990);
    });
}

/// A slot is given to another key while a thread decides for the one that has it: the decision is
/// made on that key's word or not at all.
fn a_place_is_handed_on_or_kept() {
    check(|| {
        let rules = Arc::new(LiveRules::new(&rules(Kind::Gcra, 1, 1)));
        let slot = Arc::new([AtomicU64::new(1), AtomicU64::new(NOW)]);
        let first = {
            let (rules, slot) = (Arc::clone(&rules), Arc::clone(&slot));
            thread::spawn(move || {
                let slot = SlotRef::at(&slot);
                let take = || rules.take(slot.word, slot.of(1), NOW + 3000, 1);
                take().is_some_and(|answer| answer.is_ok())
            })
        };
        let slot = SlotRef::at(&slot);
        let handed_on = slot.hand_on(NOW, 2, NOW + 1500).is_some();
        let taken = first.join().expect("it ends");
        assert!(!(taken && handed_on), "a unit was taken of a key that has no slot");
        if handed_on {
            assert_eq!(slot.hash(), 2);
            let left = rules.step(slot.word, slot.of(2), NOW + 500, 0).expect("it is its own");
            assert_eq!(left.standing.remaining(), 0, "the other's word is its own");
        }
    });
}

fn main() {
    for kind in [Kind::Gcra, Kind::TokenBucket, Kind::FixedWindow] {
        exactly_the_limit(kind);
    }
    a_change_keeps_what_is_used();
    a_change_at_rest_is_noticed();
    a_reservation_given_up_comes_back();
    a_place_is_handed_on_or_kept();
    // As the harness of other tests closes, for those who count. A failed check ends in a panic.
    println!("test result: ok. 7 passed; 0 failed; 0 ignored");
}
