//! Snapshots that leaders take while they send one.

mod common;

use common::{Lab, MS};
use voussoir_raft::core::{Input, Output, TransferEnd};
use voussoir_raft::{Role, SnapshotMeta};

/// Applied entries after which a snapshot is asked for.
const AFTER: u64 = 10;

fn meta(lab: &Lab, index: u64) -> SnapshotMeta {
    let core = lab.core(1);
    SnapshotMeta { index, term: core.term_at(index).unwrap(), members: core.members().clone() }
}

/// Whether node 1 has asked for a snapshot since this was last looked at.
fn is_asked_for(lab: &mut Lab) -> bool {
    let before = lab.node(1).seen.len();
    lab.node_mut(1).seen.retain(|output| !matches!(output, Output::TakeSnapshot));
    lab.node(1).seen.len() < before
}

/// The transfer that node 1 has begun since this was last looked at: its id and snapshot.
fn begun(lab: &mut Lab) -> Option<(u64, SnapshotMeta)> {
    let is_begun = |output: &Output| matches!(output, Output::SendSnapshot { .. });
    let found = lab.seen(1, is_begun).pop();
    lab.node_mut(1).seen.retain(|output| !is_begun(output));
    match found {
        Some(Output::SendSnapshot { id, meta, .. }) => Some((id, *meta)),
        _ => None,
    }
}

fn propose(lab: &mut Lab, count: u64) {
    for token in 0..count {
        lab.propose(1, 1000 + token, "x");
        lab.settle();
    }
}

/// Node 1 leads, and node 3 needs its snapshot: the transfer has begun.
fn sending() -> (Lab, u64, SnapshotMeta) {
    let mut lab = Lab::with(3, |config| {
        (config.snapshot_after_entries, config.keep_entries) = (AFTER, 0);
    });
    lab.elect(1);
    lab.isolate(3);
    propose(&mut lab, AFTER);
    assert!(is_asked_for(&mut lab));
    let taken = meta(&lab, AFTER);
    lab.step(1, Input::SnapshotTaken { meta: taken });
    lab.heal();
    lab.run(300 * MS);
    let (id, sent) = begun(&mut lab).expect("node 3 needs it");
    assert_eq!(sent.index, AFTER);
    (lab, id, sent)
}

/// etcd pauses compaction while snapshots are under way, for the same reason.
#[test]
fn a_leader_takes_no_snapshot_while_it_sends_one() {
    let (mut lab, id, sent) = sending();
    propose(&mut lab, 3 * AFTER);
    assert!(!is_asked_for(&mut lab), "a broken transfer would start over");
    lab.step(1, Input::SnapshotSent { id, ended: TransferEnd::Advanced });
    propose(&mut lab, AFTER);
    assert!(!is_asked_for(&mut lab), "the transfer is to go on");
    lab.run(300 * MS);
    let (id, again) = begun(&mut lab).expect("it goes on");
    assert_eq!(again, sent, "with the same snapshot");
    lab.step(3, Input::SnapshotReceived { from: 1, term: 1, meta: again });
    lab.settle();
    lab.step(1, Input::SnapshotSent { id, ended: TransferEnd::Complete });
    lab.run(300 * MS);
    assert_eq!(begun(&mut lab), None, "what follows is still in the log");
    assert_eq!(lab.status(3).applied, lab.status(1).last, "node 3 has it all");
    propose(&mut lab, 1);
    assert!(is_asked_for(&mut lab), "and the next snapshot is overdue");
}

/// The log does not grow for ever behind a transfer that does not end.
#[test]
fn a_transfer_delays_the_next_snapshot_only_so_far() {
    let (mut lab, _, sent) = sending();
    propose(&mut lab, 8 * AFTER - 5);
    assert!(!is_asked_for(&mut lab));
    propose(&mut lab, 10);
    assert!(is_asked_for(&mut lab));
    let taken = meta(&lab, lab.status(1).applied);
    lab.step(1, Input::SnapshotTaken { meta: taken });
    assert_eq!(lab.status(1).first, sent.index + 1, "what node 3 needs next stays");
}

/// A transfer over a link that is slower than the writes never ends, and the log must.
#[test]
fn a_transfer_keeps_no_entries_for_ever() {
    let (mut lab, _, sent) = sending();
    let mut firsts = Vec::new();
    for _ in 0..3 {
        propose(&mut lab, 8 * AFTER + 5);
        assert!(is_asked_for(&mut lab));
        let taken = meta(&lab, lab.status(1).applied);
        firsts.push((lab.status(1).first, taken.index));
        lab.step(1, Input::SnapshotTaken { meta: taken });
    }
    let (_, first_taken) = firsts[0];
    let (_, second_taken) = firsts[1];
    assert_eq!(firsts[1].0, sent.index + 1, "the first one keeps what node 3 needs next");
    assert_eq!(firsts[2].0, first_taken + 1, "the second does not");
    assert_eq!(lab.status(1).first, second_taken + 1);
}

/// Node 3 has the snapshot that it was sent, and of the entries behind it none is durable there.
/// The leader hears of it by the follower's own acknowledgement, or by the end of the transfer.
fn catching_up(acknowledges: bool) -> (Lab, SnapshotMeta) {
    let (mut lab, id, sent) = sending();
    propose(&mut lab, 4 * AFTER);
    lab.step(3, Input::SnapshotReceived { from: 1, term: 1, meta: sent.clone() });
    lab.node_mut(3).fast_disk = false;
    if !acknowledges {
        lab.take(|letter| letter.from == 3);
    }
    lab.settle();
    lab.step(1, Input::SnapshotSent { id, ended: TransferEnd::Complete });
    lab.settle();
    let matched = lab.core(1).followers().find(|it| it.id == 3).map(|it| it.matched);
    assert_eq!(matched, Some(sent.index), "it has acknowledged the snapshot and nothing else");
    (lab, sent)
}

/// Else the follower would need the next snapshot as soon as it has this one, for ever.
#[test]
fn a_snapshot_keeps_what_a_follower_needs_that_has_just_received_one() {
    for acknowledges in [false, true] {
        let (mut lab, sent) = catching_up(acknowledges);
        propose(&mut lab, 1);
        assert!(!is_asked_for(&mut lab), "node 3 catches up: {acknowledges}");
        propose(&mut lab, 4 * AFTER + 5);
        assert!(is_asked_for(&mut lab), "but not for ever");
        let taken = meta(&lab, lab.status(1).applied);
        lab.step(1, Input::SnapshotTaken { meta: taken });
        assert_eq!(lab.status(1).first, sent.index + 1, "what node 3 needs next stays");
        lab.node_mut(3).fast_disk = true;
        lab.sync(3);
        lab.run(300 * MS);
        assert_eq!(begun(&mut lab), None, "and it needs no other snapshot");
        assert_eq!(lab.status(3).applied, lab.status(1).last, "node 3 has it all");
        propose(&mut lab, AFTER);
        assert!(is_asked_for(&mut lab), "the next one comes as usual");
    }
}

/// It is overdue then, and what was written last is not there yet.
#[test]
fn the_first_snapshot_after_catching_up_keeps_what_is_under_way() {
    let (mut lab, _) = catching_up(true);
    lab.node_mut(3).fast_disk = true;
    lab.sync(3);
    lab.run(100 * MS);
    let caught_up = lab.status(3).durable;
    assert_eq!(caught_up, lab.status(1).last);
    lab.node_mut(3).fast_disk = false;
    propose(&mut lab, 5);
    assert!(is_asked_for(&mut lab));
    let taken = meta(&lab, lab.status(1).applied);
    lab.step(1, Input::SnapshotTaken { meta: taken });
    assert_eq!(lab.status(1).first, caught_up + 1);
    // From then on the follower is one like any other.
    propose(&mut lab, AFTER);
    assert!(is_asked_for(&mut lab));
    let taken = meta(&lab, lab.status(1).applied);
    lab.step(1, Input::SnapshotTaken { meta: taken });
    assert!(lab.status(1).first > caught_up + 1);
}

/// One that died while it caught up delays nothing.
#[test]
fn a_follower_that_dies_behind_its_snapshot_delays_no_snapshot() {
    let (mut lab, sent) = catching_up(true);
    lab.isolate(3);
    lab.run(500 * MS);
    propose(&mut lab, 1);
    assert!(is_asked_for(&mut lab));
    let taken = meta(&lab, lab.status(1).applied);
    lab.step(1, Input::SnapshotTaken { meta: taken });
    assert!(lab.status(1).first > sent.index + 1, "and keeps nothing");
}

/// A follower that is gone delays nothing.
#[test]
fn a_transfer_that_brings_nothing_delays_no_snapshot() {
    let (mut lab, id, _) = sending();
    lab.step(1, Input::SnapshotSent { id, ended: TransferEnd::Futile });
    lab.run(300 * MS);
    let (id, _) = begun(&mut lab).expect("it is tried again");
    lab.step(1, Input::SnapshotSent { id, ended: TransferEnd::Futile });
    propose(&mut lab, AFTER);
    assert!(is_asked_for(&mut lab));
    assert_eq!(lab.status(1).role, Role::Leader);
}
