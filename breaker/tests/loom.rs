//! Every interleaving of the breaker's atomics, on the very files that the crate compiles: the
//! core is included here over the model checker's atomics.
//!
//! Without the test harness, so that the core's own unit tests, which need no checker, stay out.

// The checker's crate uses only a part of what it includes.
#![expect(dead_code, unused_imports, reason = "the included core serves the whole crate")]
#![expect(unreachable_pub, reason = "what the crate re-exports is private to this test")]

#[path = "../src/core/mod.rs"]
mod core;

/// What the core calls `crate::sync`.
mod sync {
    use std::cell::Cell;

    pub(crate) use loom::sync::atomic::{AtomicU64, fence};

    loom::thread_local!(static NUMBER: Cell<usize> = Cell::new(0));

    /// All threads share one stripe, but those that have asked for one of their own.
    pub(crate) fn thread_number() -> usize {
        NUMBER.with(Cell::get)
    }

    pub(crate) fn set_thread_number(number: usize) {
        NUMBER.with(|own| own.set(number));
    }

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

use self::core::{Machine, Phase, Sample, Shift, Thresholds, WindowKind};
use loom::sync::Arc;
use loom::thread;

const OK: Sample = Sample { failed: false, slow: false };
const BAD: Sample = Sample { failed: true, slow: true };

fn rules(shape: WindowKind) -> Thresholds {
    Thresholds {
        shape,
        min_calls: 1,
        failure_rate: None,
        slow_rate: None,
        consecutive_failures: Some(1),
        open_for: 10,
        max_open_for: 10,
        open_backoff: 1.0,
        open_jitter: 0.0,
        probes: 1,
        max_bad_probes: 0,
        max_half_open_for: None,
        seed: 1,
    }
}

fn time() -> WindowKind {
    WindowKind::Time { width: 100, buckets: 1, stripes: 2 }
}

fn machine(rules: Thresholds) -> Arc<Machine> {
    Arc::new(Machine::new(rules, 0, Box::new(|_| ())))
}

/// Every schedule of up to `preemptions` forced switches (all there are, if `None`).
fn explore(preemptions: Option<usize>, f: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = preemptions;
    model.check(f);
}

fn half_open_admits_exactly_its_probes() {
    explore(Some(3), || {
        let machine = machine(rules(time()));
        let ticket = machine.admit(|| 0).expect("closed");
        machine.record(ticket, 0, BAD);
        assert_eq!(machine.phase(), Phase::Open);
        let callers: Vec<_> = (0..2)
            .map(|_| {
                let machine = Arc::clone(&machine);
                thread::spawn(move || machine.admit(|| 50).is_ok())
            })
            .collect();
        let own = machine.admit(|| 50).is_ok();
        let others: Vec<bool> = callers.into_iter().map(|c| c.join().expect("ran")).collect();
        let admitted = others.into_iter().chain([own]).filter(|admitted| *admitted).count();
        assert_eq!(admitted, 1);
    });
}

fn a_cancelled_probe_is_one_probe_again() {
    explore(Some(3), || {
        let machine = machine(rules(time()));
        let ticket = machine.admit(|| 0).expect("closed");
        machine.record(ticket, 0, BAD);
        let probe = machine.admit(|| 50).expect("the wait is over");
        let canceller = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.cancel(probe))
        };
        let early = machine.admit(|| 50).is_ok();
        canceller.join().expect("ran");
        let late = machine.admit(|| 50).is_ok();
        assert!(early != late, "one place: {early} and {late}");
    });
}

const COUNT: WindowKind = WindowKind::Count { calls: 2, stripes: 2 };

/// Nothing opens it.
fn calm(shape: WindowKind) -> Thresholds {
    Thresholds { consecutive_failures: None, ..rules(shape) }
}

fn a_late_answer_never_counts_in_a_later_state() {
    for shape in [time(), COUNT] {
        explore(Some(3), move || {
            let machine = machine(calm(shape));
            let old = machine.admit(|| 0).expect("closed");
            let answerer = {
                let machine = Arc::clone(&machine);
                thread::spawn(move || machine.record(old, 0, BAD))
            };
            machine.force(Phase::ForcedOpen, 0);
            machine.force(Phase::Closed, 0);
            answerer.join().expect("ran");
            let counts = machine.counts(0);
            assert_eq!((counts.calls, counts.failures, counts.slow), (0, 0, 0));
        });
    }
}

/// Answers of two threads, of one stripe and of two.
fn no_answer_is_lost_or_doubled() {
    for (shape, number, other, failures) in [
        (time(), 0, OK, 1),
        (time(), 1, BAD, 2),
        (COUNT, 0, OK, 1),
        (COUNT, 0, BAD, 2),
        (COUNT, 1, OK, 1),
        (COUNT, 1, BAD, 2),
    ] {
        explore(Some(3), move || {
            let machine = machine(calm(shape));
            let tickets = [0, 1].map(|_| machine.admit(|| 0).expect("closed"));
            let answerer = {
                let machine = Arc::clone(&machine);
                thread::spawn(move || {
                    sync::set_thread_number(number);
                    machine.record(tickets[0], 0, BAD);
                })
            };
            machine.record(tickets[1], 0, other);
            answerer.join().expect("ran");
            let counts = machine.counts(0);
            assert_eq!((counts.calls, counts.failures, counts.slow), (2, failures, failures));
        });
    }
}

fn a_breaker_opens_once() {
    explore(Some(3), || {
        let machine = machine(rules(time()));
        let tickets = [0, 1].map(|_| machine.admit(|| 0).expect("closed"));
        let answerer = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.record(tickets[0], 0, BAD))
        };
        machine.record(tickets[1], 0, BAD);
        answerer.join().expect("ran");
        assert_eq!(machine.phase(), Phase::Open);
        assert_eq!(machine.totals().openings, 1, "openings");
    });
}

fn a_rejection_names_the_wait_of_its_own_state() {
    explore(Some(3), || {
        let machine = machine(Thresholds { max_half_open_for: Some(1_000), ..rules(time()) });
        let ticket = machine.admit(|| 0).expect("closed");
        machine.record(ticket, 0, BAD);
        let mover = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.admit(|| 10).is_ok())
        };
        if let Err(denied) = machine.admit(|| 9) {
            let expected = (denied.phase == Phase::Open).then_some(1);
            assert_eq!(denied.retry_after, expected, "{:?}", denied.phase);
        }
        mover.join().expect("ran");
    });
}

/// A full set of probes is stuck only when patience has passed since the last place was taken,
/// whoever looks while it is being taken.
fn a_full_set_of_probes_gets_its_patience() {
    explore(Some(3), || {
        let machine = machine(Thresholds { max_half_open_for: Some(100), ..rules(time()) });
        machine.force(Phase::HalfOpen, 0);
        let other = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                // Another set, given back: its patience must not count.
                if let Ok(ticket) = machine.admit(|| 500) {
                    machine.cancel(ticket);
                }
            })
        };
        let _ = machine.admit(|| 510);
        assert_eq!(machine.phase(), Phase::HalfOpen);
        machine.tick(599);
        assert_eq!(machine.phase(), Phase::HalfOpen);
        other.join().expect("ran");
    });
}

/// Every change of state is heard once and in order, whoever announces it.
fn changes_are_heard_once_and_in_order() {
    explore(Some(3), || {
        let heard = Arc::new(loom::sync::Mutex::new(vec![Phase::Closed]));
        let machine = {
            let heard = Arc::clone(&heard);
            let observer = move |shift: Shift| {
                let mut heard = heard.lock().expect("no panic");
                assert_eq!(heard.last(), Some(&shift.from), "out of order");
                heard.push(shift.to);
            };
            Arc::new(Machine::new(rules(time()), 0, Box::new(observer)))
        };
        let other = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.force(Phase::ForcedOpen, 0))
        };
        machine.force(Phase::MetricsOnly, 0);
        other.join().expect("ran");
        assert_eq!(heard.lock().expect("no panic").len(), 3);
    });
}

fn main() {
    let checks: [(&str, fn()); 8] = [
        ("half_open_admits_exactly_its_probes", half_open_admits_exactly_its_probes),
        ("a_cancelled_probe_is_one_probe_again", a_cancelled_probe_is_one_probe_again),
        (
            "a_late_answer_never_counts_in_a_later_state",
            a_late_answer_never_counts_in_a_later_state,
        ),
        ("no_answer_is_lost_or_doubled", no_answer_is_lost_or_doubled),
        ("a_breaker_opens_once", a_breaker_opens_once),
        (
            "a_rejection_names_the_wait_of_its_own_state",
            a_rejection_names_the_wait_of_its_own_state,
        ),
        ("a_full_set_of_probes_gets_its_patience", a_full_set_of_probes_gets_its_patience),
        ("changes_are_heard_once_and_in_order", changes_are_heard_once_and_in_order),
    ];
    for (name, check) in checks {
        check();
        println!("{name} ... ok");
    }
    // As the harness of other tests closes, for those who count. A failed check ends in a panic.
    println!("test result: ok. {} passed; 0 failed; 0 ignored", checks.len());
}
