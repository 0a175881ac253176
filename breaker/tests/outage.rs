//! What the outage simulation shows, held fast: the same worlds as in `examples/outage`.

#![expect(dead_code, reason = "the example's table shows more than is asserted here")]

#[path = "../examples/outage/client.rs"]
mod client;
#[path = "../examples/outage/run.rs"]
mod run;
#[path = "../examples/outage/server.rs"]
mod server;

use client::Kind;
use run::run;

#[test]
fn a_retry_storm_outlives_its_cause_and_a_budget_prevents_it() {
    let naive = run(Kind::NaiveRetry);
    let budgeted = run(Kind::BudgetedRetry);
    let storm = naive.tally.good_from(90);
    assert!(storm < 5.0, "without a budget the server never recovers, yet {storm} % were good");
    assert!(naive.wasted * 2 > naive.served, "most of its work is for nobody");
    let calm = budgeted.tally.good_from(90);
    assert!(calm > 99.0, "with a budget only {calm} % were good after the outage");
}

#[test]
fn all_of_them_fail_fast_waste_little_and_recover() {
    let nothing = run(Kind::Nothing);
    let all = run(Kind::All);
    assert!(all.tally.good_from(90) > 99.0);
    assert!(all.tally.fast_failures() > 90.0);
    assert!(all.wasted * 2 < nothing.wasted, "{} against {}", all.wasted, nothing.wasted);
    assert!(all.tally.quantile(0.99) < nothing.tally.quantile(0.99) / 2.0);
}
