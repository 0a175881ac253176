//! Tests of the tests: each mutant breaks one rule, and the test named beside it must fail then.

use voussoir_breaker::testing::Mutant;

use super::{breaker, policies};

macro_rules! table {
    ($($mutant:ident => $test:path,)*) => {
        [$((Mutant::$mutant, stringify!($test), $test as fn())),*]
    };
}

#[test]
fn every_mutant_is_caught() {
    let table = table! {
        ProbeLeaked => breaker::a_cancelled_probe_gives_its_place_back,
        OneProbeTooMany => breaker::stuck_probes_open_it_again_and_idleness_does_not,
        ProbesRestored => breaker::a_restored_half_open_breaker_probes_anew,
        LateAnswersCount => breaker::an_answer_from_before_a_reset_does_not_count,
        BucketNotEmptied => breaker::a_window_holds_what_happened_lately,
        CallsMinIgnored => breaker::slow_calls_open_it_though_they_succeed,
        OpenWaitNeverGrows =>
            breaker::waits_grow_while_it_stays_sick_and_start_anew_when_it_was_well,
        ForcedOpenAdmits => breaker::by_hand,
        WaitingRetryUncounted => policies::retries_that_wait_count_against_the_budget,
        LoserKept => policies::a_hedge_goes_out_after_the_quantile_and_the_loser_is_dropped,
        LastServedLast => policies::last_come_is_first_served,
        StandingQueuePatient => policies::a_standing_queue_has_little_patience,
        ImportantShedFirst => policies::the_less_important_are_turned_away_first,
        DeadlineKept => policies::an_attempt_learns_its_deadline,
    };
    for mutant in Mutant::ALL {
        let row = table.iter().find(|(broken, ..)| *broken == mutant);
        let (_, name, test) = row.unwrap_or_else(|| panic!("no test for {mutant:?}"));
        assert!(mutant.is_caught_by(test), "{mutant:?} survives {name}");
        println!("{:<24} {name}", format!("{mutant:?}"));
    }
}
