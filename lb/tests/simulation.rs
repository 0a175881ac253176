//! What the strategies are worth, measured in virtual time.

#[path = "../examples/compare/simulation.rs"]
mod simulation;

use simulation::{MS, Report, STRATEGIES, Scenario, from_1_ms_to_1_s, one_slow_one_failing, run};

fn report(scenario: &Scenario, name: &str, seed: u64) -> Report {
    let strategy = STRATEGIES.into_iter().find(|(known, _)| *known == name).expect("a strategy");
    run(scenario, strategy, seed)
}

/// The strategies that know the load or the latency.
fn smart() -> impl Iterator<Item = &'static str> {
    STRATEGIES[2..].iter().map(|(name, _)| *name)
}

#[test]
fn a_seed_gives_one_report() {
    for (name, _) in STRATEGIES {
        let scenario = one_slow_one_failing();
        let first = report(&scenario, name, 7);
        assert_eq!(first, report(&scenario, name, 7));
        assert_ne!(first.latencies, report(&scenario, name, 8).latencies);
    }
}

/// linkerd2 #11669: an endpoint that fails in 0 ms looks idle and fast.
#[test]
fn an_endpoint_that_fails_in_0_ms_gets_no_more_than_one_and_a_half_shares() {
    let scenario = one_slow_one_failing();
    for name in smart() {
        for seed in 1..=5 {
            let report = report(&scenario, name, seed);
            let share = report.share(9);
            assert!(share <= 1.5, "{name}, seed {seed}: {share:.2} of a fair share");
            assert!(report.picks[9] > 0, "{name}, seed {seed}: it is never tried again");
        }
    }
}

#[test]
fn strategies_that_know_the_load_avoid_the_slow_backend() {
    let scenario = one_slow_one_failing();
    let blind = report(&scenario, "round robin", 1);
    assert!(blind.quantile(990) > 100.0, "one in eight takes 50 to 150 ms");
    for name in smart() {
        let share = report(&scenario, name, 1).share(8);
        assert!(share < 0.6, "{name}: {share:.2} of a fair share");
    }
    let all = report(&scenario, "peak EWMA of all", 1);
    assert!(all.share(8) < 0.1, "{:.2} of a fair share", all.share(8));
    assert!(all.quantile(990) < 0.5 * blind.quantile(990), "{}", all.quantile(990));
}

/// tower #76: with ten endpoints from 1 ms to 1 s the latency decides.
#[test]
fn the_better_informed_strategy_has_the_lower_tail_from_1_ms_to_1_s() {
    let scenario = from_1_ms_to_1_s();
    let of = |name| report(&scenario, name, 1);
    let (blind, load, two) = (of("round robin"), of("power of two"), of("peak EWMA"));
    let all = of("peak EWMA of all");
    assert!(blind.quantile(999) > 900.0, "{}", blind.quantile(999));
    assert!(load.quantile(990) < 0.6 * blind.quantile(990), "{}", load.quantile(990));
    assert!(two.quantile(990) < load.quantile(990), "{}", two.quantile(990));
    assert!(all.quantile(990) < 0.2 * two.quantile(990), "{}", all.quantile(990));
    assert!(all.quantile(999) < 0.5 * blind.quantile(999), "{}", all.quantile(999));
    assert!(two.latencies.len() == scenario.requests && two.latencies[0] < MS);
}

#[test]
fn the_tables_of_the_readme_are_those_of_the_example() {
    let readme = include_str!("../README.md");
    for scenario in [one_slow_one_failing(), from_1_ms_to_1_s()] {
        for strategy in STRATEGIES {
            let report = run(&scenario, strategy, 1);
            let [p50, p99, p999] = [500, 990, 999].map(|per_mille| report.quantile(per_mille));
            let row = format!("| {} | {p50:.1} | {p99:.1} | {p999:.1} |", strategy.0);
            assert!(readme.contains(&row), "{}: the README lacks {row}", scenario.name);
        }
    }
}
