//! Every algorithm against its definition written down plainly, over random histories.

use std::collections::{HashMap, VecDeque};

use proptest::prelude::*;

use super::{Cell, Kind, Receipt, Rules, Verdict, step_all};

/// Reference model of an algorithm: it remembers every admission.
struct Model {
    rules: Rules,
    /// Admitted units with their times.
    taken: Vec<(u64, u64)>,
    /// GCRA: nanoseconds' worth in the bucket, as of a time. Token bucket: tokens, as of a tick.
    level: u64,
    as_of: u64,
}

impl Model {
    fn new(rules: Rules) -> Self {
        let level = if rules.kind == Kind::Gcra { rules.span } else { rules.limit };
        Self { rules, taken: Vec::new(), level, as_of: 0 }
    }

    fn sum(&self, within: impl Fn(u64) -> bool) -> u64 {
        self.taken.iter().filter(|(at, _)| within(*at)).map(|(_, units)| units).sum()
    }

    fn admits(&mut self, now: u64, cost: u64) -> bool {
        let Rules { kind, count, per, limit, interval, span, .. } = self.rules;
        let window = now / per;
        let admitted = match kind {
            Kind::Gcra => {
                self.level = span.min(self.level + (now - self.as_of));
                self.as_of = now;
                self.level >= cost * interval
            }
            Kind::TokenBucket => {
                while self.as_of < window {
                    self.level = limit.min(self.level + count);
                    self.as_of += 1;
                }
                self.level >= cost
            }
            Kind::FixedWindow => self.sum(|at| at / per == window) + cost <= limit,
            Kind::SlidingLog => self.sum(|at| at + per > now) + cost <= limit,
            Kind::SlidingCounter => {
                let before = self.sum(|at| at / per + 1 == window);
                let current = self.sum(|at| at / per == window);
                before * (per - now % per) + (current + cost) * per <= limit * per
            }
        };
        if admitted {
            self.taken.push((now, cost));
            self.level -= match kind {
                Kind::Gcra => cost * interval,
                Kind::TokenBucket => cost,
                _ => 0,
            };
        }
        admitted
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Gcra),
        Just(Kind::TokenBucket),
        Just(Kind::FixedWindow),
        Just(Kind::SlidingCounter),
        Just(Kind::SlidingLog),
    ]
}

fn rules() -> impl Strategy<Value = Rules> {
    (kind(), 1..12_u64, 12..60_u64, 1..10_u64)
        .prop_map(|(kind, count, per, burst)| Rules::new(kind, count, per, burst).unwrap())
}

/// Steps of time and costs: mostly short and cheap, now and then idle or greedy.
fn history() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let pause = prop_oneof![6 => 0..5_u64, 2 => 5..40_u64, 1 => 40..200_u64];
    let cost = prop_oneof![6 => Just(1_u64), 2 => 2..5_u64, 1 => 0..14_u64];
    proptest::collection::vec((pause, cost), 1..120)
}

struct One {
    rules: Rules,
    cells: [Cell; 1],
}

impl One {
    fn new(rules: Rules) -> Self {
        Self { rules, cells: [Cell::new(rules.kind)] }
    }

    fn step(&mut self, now: u64, cost: u64) -> Verdict {
        step_all(&mut self.cells, &[self.rules], now, cost)
    }

    fn fork(&self) -> Self {
        Self { rules: self.rules, cells: self.cells.clone() }
    }
}

/// The first window that holds more than the rules allow.
fn overfull(rules: &Rules, taken: &[(u64, u64)]) -> Option<String> {
    let mut taken = taken.to_vec();
    taken.sort_unstable();
    for from in 0..taken.len() {
        let mut units = 0;
        for (at, cost) in &taken[from..] {
            units += cost;
            let window = at - taken[from].0 + 1;
            if units > rules.most_in(window) {
                return Some(format!("{units} units within {window} from {}", taken[from].0));
            }
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn each_algorithm_decides_as_its_definition(rules in rules(), history in history()) {
        let (mut cell, mut model, mut now) = (One::new(rules), Model::new(rules), 0);
        for (pause, cost) in history {
            now += pause;
            let verdict = cell.step(now, cost);
            prop_assert_eq!(verdict.admitted(), model.admits(now, cost), "at {}", now);
        }
    }

    #[test]
    fn no_window_holds_more_than_most_in(rules in rules(), history in history()) {
        let (mut cell, mut now, mut taken) = (One::new(rules), 0, Vec::new());
        for (pause, cost) in history {
            now += pause;
            // A caller whose clock reading is old.
            let late = now.saturating_sub(pause * cost % 7);
            let verdict = cell.step(late, cost);
            if verdict.admitted() {
                prop_assert!(verdict.at >= late);
                taken.push((verdict.at, cost));
            }
        }
        prop_assert_eq!(overfull(&rules, &taken), None);
    }

    #[test]
    fn the_wait_is_exact(rules in rules(), history in history()) {
        let (mut cell, mut now) = (One::new(rules), 0);
        for (pause, cost) in history {
            now += pause;
            let verdict = cell.step(now, cost);
            match verdict.wait {
                0 => {}
                super::NEVER => prop_assert!(cost > rules.limit),
                wait => {
                    prop_assert!(cell.fork().step(now + wait, cost).admitted());
                    prop_assert!(!cell.fork().step(now + wait - 1, cost).admitted());
                }
            }
        }
    }

    #[test]
    fn remaining_and_reset_are_true(rules in rules(), history in history()) {
        let (mut cell, mut now) = (One::new(rules), 0);
        for (pause, cost) in history {
            now += pause;
            let standing = cell.step(now, cost).standing;
            let left = standing.remaining();
            prop_assert!(cell.fork().step(now, left).admitted());
            prop_assert!(!cell.fork().step(now, left + 1).admitted());
            let reset = standing.reset_after().as_nanos() as u64;
            prop_assert!(cell.fork().step(now + reset, rules.limit).admitted());
        }
    }

    #[test]
    fn an_idle_cell_is_as_good_as_new(
        rules in rules(),
        before in history(),
        after in history(),
    ) {
        let (mut used, mut now) = (One::new(rules), 0);
        for (pause, cost) in before {
            now += pause;
            used.step(now, cost);
        }
        now = now.max(used.cells[0].idle_at(&rules));
        let mut fresh = One::new(rules);
        for (pause, cost) in after {
            now += pause;
            prop_assert_eq!(used.step(now, cost).wait, fresh.step(now, cost).wait);
        }
    }

    #[test]
    fn refunds_never_lead_to_more(
        rules in rules(),
        history in proptest::collection::vec((0..20_u64, 1..3_u64, 0..3_u64), 1..100),
    ) {
        let (mut cell, mut now) = (One::new(rules), 0);
        let (mut used, mut unused) = (Vec::new(), VecDeque::new());
        for (pause, cost, fate) in history {
            now += pause;
            let verdict = cell.step(now, cost);
            match fate {
                0 if verdict.admitted() => unused.push_back(Receipt { at: verdict.at, cost }),
                _ if verdict.admitted() => used.push((verdict.at, cost)),
                1 => {
                    if let Some(receipt) = unused.pop_front() {
                        cell.cells[0].refund(&rules, &receipt, now);
                    }
                }
                _ => {}
            }
        }
        prop_assert_eq!(overfull(&rules, &used), None);
    }

    #[test]
    fn tiers_take_from_all_or_none(
        rules in proptest::collection::vec(rules(), 1..4),
        history in history(),
    ) {
        let mut cells: Vec<Cell> = rules.iter().map(|rules| Cell::new(rules.kind)).collect();
        let (mut now, mut taken) = (0, Vec::new());
        for (pause, cost) in history {
            now += pause;
            let alone =
                |cell: &Cell, rules: &Rules| cell.clone().judge(rules, now, cost).admitted();
            let all = cells.iter().zip(&rules).all(|(cell, rules)| alone(cell, rules));
            let left = |cells: &[Cell]| -> Vec<u64> {
                let left = |(cell, rules): (&Cell, &Rules)| {
                    cell.clone().judge(rules, now, 0).standing.remaining()
                };
                cells.iter().zip(&rules).map(left).collect()
            };
            let before = left(&cells);
            let verdict = step_all(&mut cells, &rules, now, cost);
            prop_assert_eq!(verdict.admitted(), all);
            if verdict.admitted() {
                taken.push((now, cost));
            } else {
                prop_assert_eq!(before, left(&cells));
            }
        }
        for rules in &rules {
            prop_assert_eq!(overfull(rules, &taken), None);
        }
    }

    #[test]
    fn a_change_of_quota_keeps_what_is_used(
        old in rules(),
        count in 1..12_u64,
        burst in 1..10_u64,
        history in history(),
    ) {
        let (mut cell, mut now) = (One::new(old), 0);
        for (pause, cost) in history {
            now += pause;
            cell.step(now, cost);
        }
        let used = old.limit - cell.step(now, 0).standing.remaining();
        let new = Rules::new(old.kind, count, old.per, burst).unwrap();
        cell.cells[0].convert(&old, &new, now);
        cell.rules = new;
        let left = cell.step(now, 0).standing.remaining();
        // A part of a unit may round either way under GCRA; never to a unit more.
        let expected = new.limit.saturating_sub(used);
        prop_assert!(left == expected || (old.kind == Kind::Gcra && left == expected + 1
            && used > 0) , "{} left of {:?}, {} used", left, new, used);
    }
}

/// The properties above are able to fail: cells with a defect each are caught.
#[test]
fn broken_cells_are_caught() {
    let rules = Rules::new(Kind::Gcra, 3, 31, 4).unwrap();
    // Rounds the interval down, so that more than the rate passes.
    let fast = Rules { interval: 31 / 3, span: 4 * (31 / 3), ..rules };
    // Forgets a key in debt, as an eviction without looking would.
    let forgetful = |cell: &mut One, turn: u64| {
        if turn % 50 == 49 {
            *cell = One::new(cell.rules);
        }
    };
    let flood = |broken: Rules, defect: fn(&mut One, u64)| {
        let (mut cell, mut taken) = (One::new(broken), Vec::new());
        for now in 0..500 {
            defect(&mut cell, now);
            if cell.step(now, 1).admitted() {
                taken.push((now, 1));
            }
        }
        overfull(&rules, &taken)
    };
    assert_eq!(flood(rules, |_, _| {}), None);
    assert!(flood(fast, |_, _| {}).is_some());
    assert!(flood(rules, forgetful).is_some());
}

/// The bound on admissions is tight: a flood reaches it.
#[test]
fn most_in_is_tight_for_a_flood() {
    let flood = |kind: Kind, from: u64, window: u64| {
        let rules = Rules::new(kind, 4, 40, 3).unwrap();
        let mut cell = One::new(rules);
        let admitted: HashMap<u64, u64> = (from..from + window)
            .map(|now| (now, (0..9).filter(|_| cell.step(now, 1).admitted()).count() as u64))
            .collect();
        (admitted.values().sum::<u64>(), rules.most_in(window))
    };
    for window in [1, 2, 10, 11, 39, 40, 41, 80, 81, 400, 401] {
        for (kind, from) in [
            (Kind::Gcra, 400),
            (Kind::TokenBucket, 439),
            (Kind::FixedWindow, 439),
            (Kind::SlidingLog, 400),
        ] {
            // Windows that a flood from `from` crosses as often as a window of that length can.
            let (admitted, most) = flood(kind, from, window);
            if window > 1 || matches!(kind, Kind::Gcra | Kind::SlidingLog) {
                assert_eq!(admitted, most, "{kind:?} in {window}");
            }
        }
    }
}

#[test]
fn a_unit_of_no_whole_time_never_exceeds_the_rate() {
    let rules = Rules::new(Kind::Gcra, 3, 31, 1).unwrap();
    let mut cell = One::new(rules);
    let admitted = (100..131).filter(|now| cell.step(*now, 1).admitted()).count();
    assert!(admitted <= 3, "{admitted} in a window for 3");
}

#[test]
fn a_refund_gives_nothing_back_that_time_has_given_back() {
    let rules = Rules::new(Kind::Gcra, 1, 10, 4).unwrap();
    let mut cell = One::new(rules);
    let receipt = Receipt { at: cell.step(100, 1).at, cost: 1 };
    assert!(cell.step(140, 4).admitted());
    cell.cells[0].refund(&rules, &receipt, 140);
    assert!(!cell.step(140, 1).admitted(), "a fifth at one moment, of four");
}

#[test]
fn a_tier_that_rejects_keeps_the_others_whole() {
    let rules = [(1, 2), (100, 5)]
        .map(|(count, burst)| Rules::new(Kind::Gcra, count, 1000, burst).unwrap());
    let mut cells = rules.map(|rules| Cell::new(rules.kind));
    for _ in 0..50 {
        step_all(&mut cells, &rules, 1, 1);
    }
    let left = cells[1].judge(&rules[1], 1, 0).standing.remaining();
    assert_eq!(left, 3, "two passed the first tier");
}
