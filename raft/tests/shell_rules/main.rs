//! The rules of the shell, on paused tokio time: one test each, and a deliberately broken shell
//! that the test has to catch. Needs the feature `testing`.

mod callers;
#[path = "../cluster/mod.rs"]
mod cluster;
mod disks;
mod racing;
mod script;
mod snapshots;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;

use voussoir_raft::testing::ShellMutant;

type Rule = Pin<Box<dyn Future<Output = ()>>>;

/// Plays a rule from its beginning to its end; a rule that does not hold panics.
fn play(rule: Rule) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(rule);
}

macro_rules! rules {
    ($($file:ident::$rule:ident catches $mutant:ident;)+) => {
        $(
            #[test]
            fn $rule() {
                play(Box::pin($file::$rule(None)));
            }
        )+

        fn rule_against(mutant: ShellMutant) -> Option<(&'static str, Rule)> {
            match mutant {
                $(ShellMutant::$mutant => Some((
                    stringify!($rule),
                    Box::pin($file::$rule(Some(mutant))),
                )),)+
                _ => None,
            }
        }
    };
}

rules! {
    callers::what_is_answered_is_applied catches AnswerBeforeApply;
    callers::what_is_unknown_is_not_sent_again catches ProposeAgain;
    callers::the_answer_of_who_has_gone_is_for_nobody_else catches ReuseToken;
    callers::a_read_waits_until_its_index_is_applied catches ReadBeforeApply;
    callers::what_is_not_decided_in_time_is_unknown catches NeverGiveUp;
    callers::a_new_leader_beats_from_the_start catches ForgetNearerDeadline;
    callers::room_comes_back_with_every_answer catches KeepRoom;
    disks::a_write_vouches_for_itself_alone catches VouchForLatest;
    disks::a_leader_whose_write_fails_halts_and_the_others_go_on catches TakeFailedForDone;
    snapshots::a_disk_that_fails_under_a_snapshot_stops_the_node catches TrustFailedDisk;
    disks::a_node_that_has_halted_is_out_of_reach catches StayAttached;
    disks::the_log_is_cut_behind_a_stored_snapshot_only catches CompactBeforeSnapshot;
    snapshots::what_a_snapshot_includes_is_not_applied_to_it catches ApplyTwice;
    snapshots::half_a_snapshot_is_not_taken catches CloseHalf;
    snapshots::a_snapshot_counts_when_it_is_durable catches CloseUnsynced;
    snapshots::chunks_are_stored_once_and_in_order catches TakeAnyChunk;
    snapshots::two_snapshots_of_the_same_entries_are_not_mixed catches MixSnapshots;
}

#[test]
fn every_broken_shell_is_caught() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut survivors = Vec::new();
    for mutant in ShellMutant::ALL {
        let name = format!("{mutant:?}");
        let Some((rule, broken)) = rule_against(mutant) else {
            survivors.push(name);
            continue;
        };
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| play(broken))) else {
            survivors.push(name);
            continue;
        };
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
        println!("{name:<22} {rule}: {:.90}", text.lines().next().unwrap_or_default());
    }
    drop(std::panic::take_hook());
    assert!(survivors.is_empty(), "not caught: {survivors:?}");
}
