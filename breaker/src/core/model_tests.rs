//! The machine against a plain model: random histories with interleaved calls must go through the
//! same states, admit the same calls and count the same answers.
//!
//! `PROPTEST_CASES` sets the number of histories (default 1,500 a test here).

use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use voussoir_sim::Situations;

use super::machine::{Machine, Phase, Shift, ShiftCause};
use super::rules::{Thresholds, Trip, millionths};
use super::window::{Sample, WindowKind};

const WIDTH: u64 = 10;

#[derive(Clone, Debug)]
enum Step {
    Admit,
    Answer { call: usize, failed: bool, slow: bool },
    Drop { call: usize },
    Wait { time: u64 },
    Force { to: Phase },
    OpenFor { wait: u64 },
    Tick,
    Reborn,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => Just(Step::Admit),
        10 => (any::<usize>(), any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(call, failed, slow)| Step::Answer { call, failed, slow }),
        2 => any::<usize>().prop_map(|call| Step::Drop { call }),
        6 => prop_oneof![0..5_u64, 0..200_u64].prop_map(|time| Step::Wait { time }),
        1 => prop::sample::select(vec![
            Phase::Closed, Phase::Closed, Phase::ForcedOpen, Phase::ForcedClosed,
            Phase::MetricsOnly, Phase::HalfOpen, Phase::HalfOpen, Phase::Open,
        ]).prop_map(|to| Step::Force { to }),
        1 => (0..200_u64).prop_map(|wait| Step::OpenFor { wait }),
        2 => Just(Step::Tick),
        1 => Just(Step::Reborn),
    ]
}

fn rules() -> impl Strategy<Value = Thresholds> {
    let shape = prop_oneof![
        (1..7_u32, 1..4_u32).prop_map(|(buckets, stripes)| WindowKind::Time {
            width: WIDTH,
            buckets,
            stripes
        }),
        (1..20_u32, 1..4_u32).prop_map(|(calls, stripes)| WindowKind::Count { calls, stripes }),
    ];
    let rate = prop_oneof![Just(None), (1..=10_u32).prop_map(|r| Some(f64::from(r) / 10.0))];
    (
        shape,
        1..6_u64,
        rate.clone(),
        rate,
        prop::option::of(1..5_u64),
        1..5_u16,
        0..4_u16,
        any::<bool>(),
    )
        .prop_map(|(shape, min_calls, failure, slow, run, probes, bad, patient)| Thresholds {
            shape,
            min_calls,
            failure_rate: failure.map(millionths),
            slow_rate: slow.map(millionths),
            consecutive_failures: run,
            open_for: 40,
            max_open_for: 150,
            open_backoff: 2.0,
            open_jitter: 0.0,
            probes,
            max_bad_probes: bad.min(probes - 1),
            max_half_open_for: patient.then_some(60),
            seed: 1,
        })
}

/// Written for the eye: a list of samples, no atomics, no packing.
#[derive(Debug)]
struct Model {
    rules: Thresholds,
    phase: Phase,
    /// Counts changes of state; a call belongs to the one it began in.
    era: usize,
    until: u64,
    /// When patience with a full set of probes ends.
    patient_until: u64,
    openings: u32,
    samples: Vec<(u64, Sample)>,
    run: u64,
    admitted: u16,
    good: u16,
    bad: u16,
    rejected: u64,
    late: u64,
    would_open: u64,
    history: Vec<(Phase, Phase)>,
}

impl Model {
    fn new(rules: Thresholds) -> Self {
        Self {
            rules,
            phase: Phase::Closed,
            era: 0,
            until: 0,
            patient_until: 0,
            openings: 0,
            samples: vec![],
            run: 0,
            admitted: 0,
            good: 0,
            bad: 0,
            rejected: 0,
            late: 0,
            would_open: 0,
            history: vec![],
        }
    }

    fn go(&mut self, to: Phase, now: u64) {
        if self.phase != to {
            self.history.push((self.phase, to));
        }
        self.phase = to;
        self.era += 1;
        self.samples.clear();
        self.run = 0;
        match to {
            Phase::Open => {
                self.openings += 1;
                let wait = (0..self.openings).fold(20, |wait: u64, _| (wait * 2).min(150));
                self.until = now + wait;
            }
            Phase::HalfOpen => (self.admitted, self.good, self.bad) = (0, 0, 0),
            Phase::ForcedOpen => {}
            Phase::Closed | Phase::ForcedClosed | Phase::MetricsOnly => self.openings = 0,
        }
    }

    fn open_for(&mut self, wait: u64, now: u64) {
        let openings = self.openings;
        self.go(Phase::Open, now);
        (self.openings, self.until) = (openings, now + wait);
    }

    fn is_stuck(&self, now: u64) -> bool {
        self.phase == Phase::HalfOpen
            && self.admitted == self.rules.probes
            && now >= self.patient_until
    }

    fn tick(&mut self, now: u64) {
        if self.is_stuck(now) {
            self.go(Phase::Open, now);
        } else if self.phase == Phase::Open && now >= self.until {
            self.go(Phase::HalfOpen, now);
        }
    }

    fn admit(&mut self, now: u64) -> bool {
        if self.is_stuck(now) {
            self.go(Phase::Open, now);
        }
        if self.phase == Phase::Open && now >= self.until {
            self.go(Phase::HalfOpen, now);
        }
        let yes = match self.phase {
            Phase::Closed | Phase::ForcedClosed | Phase::MetricsOnly => true,
            Phase::Open | Phase::ForcedOpen => false,
            Phase::HalfOpen => self.admitted < self.rules.probes,
        };
        if self.phase == Phase::HalfOpen && yes {
            self.admitted += 1;
            if self.admitted == self.rules.probes {
                let patience = self.rules.max_half_open_for;
                self.patient_until = patience.map_or(u64::MAX, |patience| now + patience);
            }
        }
        self.rejected += u64::from(!yes);
        yes
    }

    fn window(&self, now: u64) -> (u64, u64, u64) {
        let from = match self.rules.shape {
            WindowKind::Time { buckets, .. } => {
                let first = (now / WIDTH + 1).saturating_sub(u64::from(buckets)) * WIDTH;
                self.samples.iter().position(|(at, _)| *at >= first).unwrap_or(self.samples.len())
            }
            WindowKind::Count { calls, .. } => self.samples.len().saturating_sub(calls as usize),
        };
        let held = &self.samples[from..];
        let count = |is: fn(&Sample) -> bool| held.iter().filter(|(_, s)| is(s)).count() as u64;
        (count(|_| true), count(|s| s.failed), count(|s| s.slow))
    }

    fn answer(&mut self, era: usize, now: u64, sample: Sample) {
        if era != self.era {
            self.late += 1;
            return;
        }
        match self.phase {
            Phase::Closed | Phase::MetricsOnly => self.answer_closed(now, sample),
            Phase::HalfOpen => {
                let slow_counts = self.rules.slow_rate.is_some();
                if sample.failed || sample.slow && slow_counts {
                    self.bad += 1;
                } else {
                    self.good += 1;
                }
                if self.bad > self.rules.max_bad_probes {
                    self.go(Phase::Open, now);
                } else if self.good + self.rules.max_bad_probes >= self.rules.probes {
                    self.go(Phase::Closed, now);
                }
            }
            _ => {}
        }
    }

    fn answer_closed(&mut self, now: u64, sample: Sample) {
        self.samples.push((now, sample));
        self.run = if sample.failed { self.run + 1 } else { 0 };
        let (calls, failures, slow) = self.window(now);
        let over = |bad: u64, rate: Option<u64>| {
            bad > 0
                && calls >= self.rules.min_calls
                && rate.is_some_and(|rate| bad as f64 / calls as f64 >= rate as f64 / 1e6 - 1e-9)
        };
        let in_a_row = self.rules.consecutive_failures.is_some_and(|max| self.run >= max);
        let trips = sample.failed && in_a_row
            || over(failures, self.rules.failure_rate)
            || over(slow, self.rules.slow_rate);
        if !(trips && (sample.failed || sample.slow)) {
            return;
        }
        if self.phase == Phase::Closed {
            self.go(Phase::Open, now);
        } else {
            self.would_open += 1;
        }
    }
}

static NAMES: [&str; 15] = [
    "opened by failures in a row",
    "opened by the failure rate",
    "opened by slowness",
    "half-open after the wait",
    "probes healthy",
    "probes sick",
    "probes stuck",
    "set by hand",
    "restored open",
    "restored half-open",
    "restored closed with a window",
    "probe given back",
    "probe given back from a full set",
    "answered late",
    "moved on by a tick",
];
static SITUATIONS: LazyLock<Situations> = LazyLock::new(|| Situations::new(&NAMES));

type Seen = Arc<Mutex<Vec<(Phase, Phase)>>>;

fn observer(seen: &Seen) -> Box<dyn Fn(Shift) + Send + Sync> {
    let seen = Arc::clone(seen);
    Box::new(move |shift| {
        SITUATIONS.reached(match shift.cause {
            ShiftCause::Tripped(Trip::ConsecutiveFailures) => "opened by failures in a row",
            ShiftCause::Tripped(Trip::FailureRate) => "opened by the failure rate",
            ShiftCause::Tripped(Trip::SlowRate) => "opened by slowness",
            ShiftCause::WaitOver => "half-open after the wait",
            ShiftCause::ProbesHealthy => "probes healthy",
            ShiftCause::ProbesSick => "probes sick",
            ShiftCause::ProbesStuck => "probes stuck",
            ShiftCause::ByHand => "set by hand",
            ShiftCause::Restored => "restored open",
        });
        seen.lock().push((shift.from, shift.to));
    })
}

/// Each open call as both sides know it.
type Calls = Vec<(super::Ticket, usize)>;

struct Pair {
    model: Model,
    machine: Machine,
    seen: Seen,
    calls: Calls,
    now: u64,
}

impl Pair {
    fn apply(&mut self, step: &Step) {
        let Self { model, machine, calls, now, .. } = self;
        match *step {
            Step::Admit => {
                let ticket = machine.admit(|| *now);
                assert_eq!(ticket.is_ok(), model.admit(*now), "admission");
                if let Err(denied) = ticket {
                    assert!(denied.retry_after != Some(0), "no wait of nothing");
                }
                calls.extend(ticket.ok().map(|ticket| (ticket, model.era)));
            }
            Step::Answer { call, failed, slow } if !calls.is_empty() => {
                let (ticket, era) = calls.swap_remove(call % calls.len());
                let sample = Sample { failed, slow };
                SITUATIONS.add("answered late", u64::from(era != model.era));
                machine.record(ticket, *now, sample);
                model.answer(era, *now, sample);
            }
            Step::Drop { call } if !calls.is_empty() => {
                let (ticket, era) = calls.swap_remove(call % calls.len());
                machine.cancel(ticket);
                if era == model.era && model.phase == Phase::HalfOpen {
                    SITUATIONS.reached("probe given back");
                    let is_full = model.admitted == model.rules.probes;
                    SITUATIONS.add("probe given back from a full set", u64::from(is_full));
                    model.admitted -= 1;
                }
            }
            Step::Answer { .. } | Step::Drop { .. } => {}
            Step::Wait { time } => *now += time,
            Step::Force { to } => {
                machine.force(to, *now);
                model.go(to, *now);
            }
            Step::OpenFor { wait } => {
                machine.open_for(wait, *now);
                model.open_for(wait, *now);
            }
            Step::Tick => {
                let would_admit = machine.would_admit(|| *now);
                let before = model.phase;
                machine.tick(*now);
                model.tick(*now);
                SITUATIONS.add("moved on by a tick", u64::from(model.phase != before));
                // Stuck probes are found by the tick, and by the call that comes instead of it.
                if machine.phase() != Phase::Open {
                    assert_eq!(
                        would_admit,
                        machine.would_admit(|| *now),
                        "looking changes nothing"
                    );
                }
            }
            Step::Reborn => self.reborn(),
        }
    }

    /// Another process takes over from a snapshot: open calls are lost, and a half-open breaker
    /// is an open one whose wait is over.
    fn reborn(&mut self) {
        let Self { model, machine, seen, calls, now } = self;
        let memory = machine.memory(*now);
        let is_half_open = model.phase == Phase::HalfOpen;
        let has_window = model.phase == Phase::Closed && !memory.window.is_empty();
        SITUATIONS.add("restored half-open", u64::from(is_half_open));
        SITUATIONS.add("restored closed with a window", u64::from(has_window));
        *machine = Machine::restore(model.rules.clone(), *now, &memory, observer(seen));
        calls.clear();
        if model.phase != Phase::Closed {
            model.era += 1;
            let to = if model.phase == Phase::HalfOpen { Phase::Open } else { model.phase };
            if model.phase == Phase::HalfOpen {
                model.until = *now;
            }
            // An opening by hand may be longer than a snapshot keeps it open.
            model.until = model.until.clamp(*now, *now + model.rules.max_open_for);
            model.phase = to;
            model.history.push((Phase::Closed, to));
        }
        (model.rejected, model.late, model.would_open) = (0, 0, 0);
    }

    fn check(&self) {
        let Self { model, machine, seen, now, .. } = self;
        assert_eq!(machine.phase(), model.phase, "state");
        assert_eq!(*seen.lock(), model.history, "history");
        let due = match model.phase {
            Phase::Open => Some(model.until),
            Phase::HalfOpen if model.admitted == model.rules.probes => Some(model.patient_until),
            _ => None,
        };
        assert_eq!(machine.next_deadline(), due.filter(|due| *due != u64::MAX), "deadline");
        let counts = machine.counts(*now);
        assert_eq!((counts.calls, counts.failures, counts.slow), model.window(*now), "window");
        let totals = machine.totals();
        let (rejected, late, would_open) = (totals.rejected, totals.late, totals.would_open);
        assert_eq!((rejected, late), (model.rejected, model.late), "rejected and late");
        assert_eq!(would_open, model.would_open, "would have opened");
    }
}

fn cases() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    ProptestConfig::with_cases(cases.unwrap_or(1_500))
}

#[test]
fn every_history_follows_the_table() {
    let history = (rules(), prop::collection::vec(step(), 1..120));
    let follows = |(rules, steps): (Thresholds, Vec<Step>)| {
        let seen = Seen::default();
        let machine = Machine::new(rules.clone(), 5_000, observer(&seen));
        let mut pair = Pair { model: Model::new(rules), machine, seen, calls: vec![], now: 5_000 };
        for step in &steps {
            pair.apply(step);
            pair.check();
        }
        Ok(())
    };
    TestRunner::new(cases()).run(&history, follows).unwrap_or_else(|error| panic!("{error}"));
    SITUATIONS.assert_all_reached();
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn nothing_is_counted_twice_or_lost(
        rules in rules(),
        answers in prop::collection::vec((any::<bool>(), any::<bool>(), 0..30_u64), 1..200),
    ) {
        let machine = Machine::new(rules, 0, Box::new(|_| ()));
        machine.force(Phase::MetricsOnly, 0);
        let mut now = 0;
        for (failed, slow, wait) in &answers {
            now += wait;
            let ticket = machine.admit(|| now).expect("metrics only admits all");
            machine.record(ticket, now, Sample { failed: *failed, slow: *slow });
        }
        let lifetime = machine.totals().answers;
        prop_assert_eq!(lifetime.calls, answers.len() as u64);
        prop_assert_eq!(lifetime.failures, answers.iter().filter(|a| a.0).count() as u64);
        prop_assert_eq!(lifetime.slow, answers.iter().filter(|a| a.1).count() as u64);
    }
}
