//! Tests of what the leader of a shard does next.

use std::collections::BTreeSet;

use super::super::map::Split;
use super::*;

fn info(origin: Option<u64>, is_open: bool) -> ShardInfo {
    ShardInfo {
        start: "r/".into(),
        end: None,
        epoch: 1,
        nodes: vec![1, 2, 3],
        founders: vec![1, 2, 3],
        left: BTreeSet::new(),
        origin,
        is_open,
        split: None,
    }
}

#[test]
fn a_member_that_a_withdrawn_move_left_behind_is_taken_out() {
    let exchange = |old, new| Some(Work::Exchange { old, new });
    // `Move 1 to 4` was withdrawn when 4 had become a learner; then `Move 4 to 5`.
    for voters in [[1, 2, 3], [2, 3, 5]] {
        assert_eq!(next_of_members(&[5, 2, 3], &voters, &[4]), Some(Work::Drop { id: 4 }));
    }
    // While 4 is still to come, it is left to catch up.
    assert_eq!(next_of_members(&[4, 2, 3], &[1, 2, 3], &[4]), exchange(1, 4));
    // An exchange that came late has added a fourth voter.
    let late = next_of_members(&[5, 2, 3], &[1, 2, 3, 5], &[]);
    assert_eq!(late, Some(Work::Drop { id: 1 }));
    assert_eq!(next_of_members(&[5, 2, 3], &[1, 2, 3], &[]), exchange(1, 5));
    assert_eq!(next_of_members(&[5, 2, 3], &[2, 3, 5], &[]), None);
}

#[test]
fn a_shard_that_was_split_off_never_opens_empty() {
    let shards = BTreeMap::new();
    let next = |info: &ShardInfo, is_open| next_of_split(&shards, info, is_open, None);
    assert_eq!(next(&info(None, false), false), Some(Work::Open));
    // Also where the map says that it is open: its own log decides.
    for is_open in [false, true] {
        assert_eq!(next(&info(Some(9), is_open), false), Some(Work::Fill { from: 9 }));
    }
    for origin in [None, Some(9)] {
        assert_eq!(next(&info(origin, false), true), Some(Work::Report));
        assert_eq!(next(&info(origin, true), true), None);
    }
}

#[test]
fn a_split_is_forgotten_when_it_is_open_and_taken_back_before_the_seal() {
    let mut left = info(None, true);
    left.split = Some(Split { at: "r/m".into(), to: 7, is_aborted: true });
    let next = |is_open, parting| {
        let shards = BTreeMap::from([(7, info(Some(3), is_open))]);
        next_of_split(&shards, &left, true, parting)
    };
    assert_eq!(next(false, None), Some(Work::Abort { to: 7 }));
    assert_eq!(next(false, Some(7)), None, "sealed: it goes on");
    assert_eq!(next(true, Some(7)), Some(Work::Forget { to: 7 }));
}

#[test]
fn a_frozen_range_does_not_wait_behind_moves() {
    assert!(!Work::Fill { from: 1 }.takes_a_turn());
    assert!(Work::Exchange { old: 1, new: 2 }.takes_a_turn());
}
