//! Changes of the membership, scene by scene. Source: Raft §6; thesis §3.10, §4; and the bugs that
//! other implementations have had in them.

mod common;

use common::{Lab, Letter, MS};
use voussoir_raft::core::{Input, Output};
use voussoir_raft::{
    Change, ChangeRejected, EntryKind, FollowerState, Membership, Message, Role, SnapshotMeta,
};

fn change(lab: &mut Lab, id: u64, token: u64, change: Change) {
    lab.step(id, Input::Change { token, change });
}

fn is_config(letter: &Letter) -> bool {
    match &letter.message {
        Message::Append { entries, .. } => {
            entries.iter().any(|entry| entry.kind == EntryKind::Config)
        }
        _ => false,
    }
}

fn voters(lab: &Lab, id: u64) -> Vec<u64> {
    lab.core(id).members().voters().to_vec()
}

/// What became of changes at a node.
fn ends(lab: &Lab, id: u64) -> Vec<Output> {
    lab.seen(id, |output| {
        matches!(
            output,
            Output::Changed { .. } | Output::ChangeRejected { .. } | Output::ChangeLost { .. }
        )
    })
}

fn was_changed(lab: &Lab, id: u64, token: u64) -> bool {
    ends(lab, id).iter().any(|end| matches!(end, Output::Changed { token: t, .. } if *t == token))
}

/// A group that node 1 leads, with some commands in its log.
fn led(voters: u64, joiners: u64) -> Lab {
    let mut lab = Lab::growing(voters, joiners);
    lab.elect(1);
    lab.run(100 * MS);
    (0..20).for_each(|token| lab.propose(1, token, "before"));
    lab.run(100 * MS);
    lab
}

// §4.2.1: a new server first learns, and gets its vote when it has caught up.
#[test]
fn s4_2_1_a_new_voter_learns_before_it_votes() {
    let mut lab = led(3, 1);
    lab.isolate(4);
    change(&mut lab, 1, 70, Change::new().voter(4));
    lab.run(300 * MS);
    let members = lab.core(1).members().clone();
    assert_eq!((members.voters(), members.learners()), (&[1, 2, 3][..], &[4][..]));
    assert!(ends(&lab, 1).is_empty(), "it waits for the learner");
    // The learner is not needed, and not counted: two of three decide.
    lab.isolate(3);
    lab.propose(1, 71, "with two");
    lab.run(100 * MS);
    assert!(lab.commands(2).contains(&"with two".to_owned()));
    lab.heal();
    lab.run(1000 * MS);
    assert!(was_changed(&lab, 1, 70));
    for id in 1..=4 {
        assert_eq!(voters(&lab, id), [1, 2, 3, 4], "node {id}");
        assert_eq!(lab.commands(id), lab.commands(1));
        assert!(lab.status(id).is_voter);
    }
}

// A learner has no vote to ask for, and its acknowledgement commits nothing.
#[test]
fn a_learner_neither_campaigns_nor_counts() {
    let mut lab = led(3, 1);
    change(&mut lab, 1, 70, Change::new().learner(4));
    lab.run(300 * MS);
    assert!(was_changed(&lab, 1, 70) && !lab.status(4).is_voter);
    assert_eq!(lab.commands(4), lab.commands(1), "it has learned");
    lab.isolate(2);
    lab.isolate(3);
    let commit = lab.status(1).commit;
    lab.propose(1, 71, "alone");
    lab.settle();
    assert_eq!(lab.status(4).last, lab.status(1).last);
    assert_eq!(lab.status(1).commit, commit, "a learner commits nothing");
    let term = lab.status(4).term;
    lab.isolate(1);
    lab.run(3000 * MS);
    assert_eq!((lab.status(4).term, lab.status(4).role), (term, Role::Follower));
}

// §6: while it is joint, elections and commits need a majority of the old and of the new voters.
#[test]
fn s6_a_joint_membership_needs_both_majorities() {
    for cut_off in [vec![2, 3], vec![4, 5, 6]] {
        let mut lab = led(3, 3);
        let joining = (4..=6).fold(Change::new().remove(2).remove(3), Change::voter);
        change(&mut lab, 1, 70, joining);
        until(&mut lab, |lab| lab.status(1).is_joint);
        lab.take(|_| true);
        for id in &cut_off {
            lab.isolate(*id);
        }
        let commit = lab.status(1).commit;
        lab.propose(1, 71, "by one half");
        lab.run(200 * MS);
        let reached = (2..=6).filter(|id| lab.status(*id).last == lab.status(1).last).count();
        assert_eq!((reached, lab.status(1).commit), (5 - cut_off.len(), commit));
        lab.heal();
        lab.run(1000 * MS);
        assert!(was_changed(&lab, 1, 70));
        assert_eq!(voters(&lab, 1), [1, 4, 5, 6]);
        assert!(lab.commands(4).contains(&"by one half".to_owned()));
    }
}

/// Hands over one letter after the other until it is so.
fn until(lab: &mut Lab, is_so: impl Fn(&Lab) -> bool) {
    for _ in 0..10_000 {
        if is_so(lab) {
            return;
        }
        let mut first = true;
        if lab.deliver(|_| std::mem::take(&mut first)) == 0 {
            lab.now += 10 * MS;
            lab.step(1, Input::Tick);
        }
    }
    panic!("it never came to that: {:?}", lab.core(1).members());
}

fn is_joint_end(letter: &Letter) -> bool {
    let Message::Append { entries, .. } = &letter.message else { return false };
    let configs = entries.iter().filter(|entry| entry.kind == EntryKind::Config);
    configs.into_iter().any(|entry| {
        let members = voussoir_raft::codec::decode_members(entry.data.clone()).unwrap();
        !members.is_joint() && members.learners().is_empty()
    })
}

/// Replaces nodes 2 and 3 by 4 and 5 and stops where the joint membership is committed and its end
/// has reached nobody.
fn joint() -> Lab {
    let mut lab = led(3, 2);
    change(&mut lab, 1, 70, Change::new().remove(2).remove(3).voter(4).voter(5));
    for _ in 0..50 {
        lab.settle_without(is_joint_end);
        if lab.wire.iter().any(is_joint_end) {
            break;
        }
        lab.now += 10 * MS;
        lab.step(1, Input::Tick);
    }
    assert!(lab.wire.iter().any(is_joint_end), "{:?}", lab.core(1).members());
    lab.take(|_| true);
    lab
}

// etcd #12136: the joint membership is never left when its leader has gone.
#[test]
fn the_next_leader_leaves_the_joint_membership_by_itself() {
    let mut lab = joint();
    lab.crash(1);
    for id in 2..=5 {
        assert!(lab.status(id).is_joint, "node {id}: {:?}", lab.core(id).members());
    }
    lab.run(3000 * MS);
    let leader = lab.leader().expect("a majority of both is up");
    for id in [leader, 4, 5] {
        assert_eq!(lab.core(id).members(), &Membership::new([1, 4, 5]), "node {id}");
    }
    assert!([4, 5].contains(&leader), "who is left out hands over: {leader}");
    lab.propose(leader, 71, "after");
    lab.run(200 * MS);
    assert!(lab.commands(4).contains(&"after".to_owned()));
}

// camunda #62842: a joint membership that was restored counts one half only.
#[test]
fn a_joint_membership_survives_a_restart_of_everybody() {
    let mut lab = joint();
    lab.crash(1);
    for id in 2..=5 {
        lab.restart(id);
        assert_eq!(lab.core(id).members().outgoing(), [1, 2, 3], "node {id}");
    }
    // All of the new voters that are up, and one of the old ones.
    lab.isolate(2);
    lab.run(3000 * MS);
    assert_eq!(lab.leader(), None);
    lab.heal();
    lab.run(5000 * MS);
    let leader = lab.leader().expect("two of three are there, in both");
    assert_eq!(voters(&lab, leader), [1, 4, 5]);
}

// §4.2.2, etcd #11038: a leader that is removed goes when its removal is committed, and not before;
// the next one takes over without an election time-out.
#[test]
fn s4_2_2_a_removed_leader_steps_down_and_hands_over() {
    let mut lab = led(3, 0);
    change(&mut lab, 1, 70, Change::new().remove(1));
    assert_eq!(voters(&lab, 1), [2, 3], "it counts by what it has appended");
    // Its own acknowledgement does not count: both others are needed.
    lab.isolate(3);
    lab.run(100 * MS);
    assert_eq!(lab.status(1).role, Role::Leader, "not committed yet");
    assert!(ends(&lab, 1).is_empty());
    let turned_away = Output::Rejected {
        token: 71,
        reason: voussoir_raft::ProposeRejected::NotLeader { leader: None },
    };
    lab.propose(1, 71, "too late");
    assert_eq!(lab.seen(1, |output| *output == turned_away).len(), 1);
    lab.heal();
    let asked_at = lab.now;
    while lab.leader().is_none_or(|leader| leader == 1) {
        lab.run(10 * MS);
        assert!(lab.now < asked_at + 250 * MS, "a new leader within a resend, not an election");
    }
    assert!(was_changed(&lab, 1, 70));
    assert_eq!(lab.status(1).role, Role::Follower);
    assert!(lab.status(1).removed.is_some());
    let term = lab.status(1).term;
    lab.run(3000 * MS);
    let leader = lab.leader().unwrap();
    assert_eq!(lab.status(leader).term, term + 1, "the removed node disturbs nobody");
}

// §4.2.3: a removed node does not disturb the others, and hears that it was removed; also when the
// first word of it was lost.
#[test]
fn s4_2_3_a_removed_node_is_told_and_disturbs_nobody() {
    for first_word_is_lost in [false, true] {
        let mut lab = led(3, 0);
        change(&mut lab, 1, 70, Change::new().remove(3));
        if first_word_is_lost {
            lab.isolate(3);
        }
        lab.run(300 * MS);
        assert!(was_changed(&lab, 1, 70));
        lab.heal();
        let term = lab.status(1).term;
        lab.run(5000 * MS);
        assert_eq!((lab.leader(), lab.status(1).term, lab.status(2).term), (Some(1), term, term));
        assert_eq!(lab.status(3).removed, Some(lab.status(1).members_index));
        assert_eq!(lab.seen(3, |output| matches!(output, Output::Removed { .. })).len(), 1);
        lab.take(|_| true);
        lab.run(2000 * MS);
        assert!(!lab.wire.iter().any(|letter| letter.from == 3), "it asks for no votes any more");
        // It is added again, and is a voter like any other.
        change(&mut lab, 1, 71, Change::new().voter(3));
        lab.run(1000 * MS);
        assert!(was_changed(&lab, 1, 71));
        assert_eq!((lab.status(3).removed, lab.status(3).is_voter), (None, true));
    }
}

// A word of a removal that is older than the node's being added again.
#[test]
fn a_late_word_of_a_removal_stops_no_member() {
    let mut lab = led(3, 0);
    change(&mut lab, 1, 70, Change::new().remove(3));
    lab.run_without(300 * MS, |letter| matches!(letter.message, Message::Removed { .. }));
    let late = lab.take(|letter| matches!(letter.message, Message::Removed { .. }));
    assert!(!late.is_empty());
    change(&mut lab, 1, 71, Change::new().voter(3));
    lab.run(1000 * MS);
    for letter in late {
        lab.send(letter.from, letter.to, letter.message);
    }
    assert_eq!(lab.status(3).removed, None);
    lab.crash(1);
    lab.crash(2);
    lab.restart(2);
    lab.run(3000 * MS);
    assert!(lab.leader().is_some(), "it votes and campaigns");
}

// A leader that is cut off is left out by the next one, and hears of that first.
#[test]
fn a_leader_that_a_later_one_has_left_out_steps_down_when_it_is_told() {
    let mut lab = led(3, 0);
    let (term, index) = (lab.status(1).term, lab.status(1).last + 1);
    lab.send(2, 1, Message::Removed { term, index });
    assert_eq!((lab.status(1).role, lab.status(1).removed), (Role::Leader, None), "no later one");
    lab.step(1, Input::Change { token: 70, change: Change::new().voter(4) });
    lab.send(2, 1, Message::Removed { term: term + 1, index: index + 1 });
    let status = lab.status(1);
    assert_eq!((status.role, status.term), (Role::Follower, term + 1));
    assert_eq!((status.leader, status.removed), (None, Some(index + 1)));
    assert!(matches!(ends(&lab, 1)[..], [Output::ChangeLost { token: 70 }]), "it has stepped down");
}

// An entry that is overwritten takes the membership that it brought with it.
#[test]
fn a_membership_goes_with_its_entry() {
    let mut lab = led(3, 1);
    lab.isolate(1);
    // Not even its learner hears of it.
    change(&mut lab, 1, 70, Change::new().remove(2));
    assert_eq!(voters(&lab, 1), [1, 3]);
    lab.elect(2);
    lab.propose(2, 71, "instead");
    lab.run(100 * MS);
    lab.heal();
    lab.run(500 * MS);
    assert_eq!(voters(&lab, 1), [1, 2, 3]);
    assert!(matches!(ends(&lab, 1)[..], [Output::ChangeLost { token: 70 }]));
    assert_eq!(lab.commands(1), lab.commands(2));
    let index = lab.status(1).members_index;
    lab.restart(1);
    assert_eq!((lab.status(1).members_index, voters(&lab, 1)), (index, vec![1, 2, 3]));
}

// raft-rs #571, etcd-io/raft #349: a node is removed and added again in one term, with nothing in
// between that it has. An acknowledgement of its first membership must not count in its second.
#[test]
fn an_acknowledgement_of_an_earlier_membership_counts_for_nothing() {
    let mut lab = led(3, 0);
    // Node 3 acknowledges, but its letters are long on their way.
    lab.isolate(2);
    (0..9).for_each(|token| lab.propose(1, 100 + token, "acknowledged"));
    lab.run_without(60 * MS, |letter| letter.to == 1);
    let late = lab.take(|letter| letter.to == 1);
    let acks = |letter: &Letter| matches!(&letter.message, Message::AppendAck(_));
    let beats = |letter: &Letter| matches!(&letter.message, Message::HeartbeatReply(_));
    assert!(late.iter().any(acks) && late.iter().any(beats), "{late:?}");
    lab.heal();
    lab.isolate(3);
    lab.run(400 * MS);
    change(&mut lab, 1, 70, Change::new().remove(3));
    lab.run(400 * MS);
    assert!(was_changed(&lab, 1, 70));
    change(&mut lab, 1, 71, Change::new().learner(3));
    lab.run(400 * MS);
    assert!(was_changed(&lab, 1, 71));
    let third = |lab: &Lab| lab.core(1).followers().find(|f| f.id == 3).unwrap();
    let matched = |lab: &Lab| third(lab).matched;
    assert_eq!(matched(&lab), 0, "nothing is known of its second membership");
    let term = lab.status(1).term;
    for letter in late {
        lab.send(letter.from, letter.to, letter.message);
    }
    assert_eq!((matched(&lab), lab.status(1).term), (0, term), "the session has ended");
    // A message that is lost is sent again after twice that time.
    assert_eq!(third(&lab).round_trip_ns, 0, "the way was another one");
    lab.heal();
    lab.run(1000 * MS);
    assert_eq!(matched(&lab), lab.status(1).last);
    assert_eq!(third(&lab).state, FollowerState::Replicating);
}

// The bug of the single-server change (Ongaro, raft-dev 2015): a leader changes the membership on
// top of one that its predecessor did not commit, and two majorities do not overlap.
#[test]
fn a_leader_changes_nothing_before_it_has_committed_an_entry_of_its_own() {
    let mut lab = led(4, 1);
    // Node 1 adds node 5 and reaches nobody.
    lab.isolate(1);
    lab.isolate(5);
    change(&mut lab, 1, 70, Change::new().learner(5));
    // Node 2 leads with 3 and 4, and cannot commit: its change has to wait.
    let holds = |letter: &Letter| matches!(letter.message, Message::AppendAck(_));
    lab.elect_without(2, holds);
    change(&mut lab, 2, 71, Change::new().remove(1));
    lab.settle_without(holds);
    // 3 and 4 answer heartbeats, so that a majority of the end is up: that alone is not enough.
    lab.run_without(300 * MS, holds);
    assert!(lab.status(2).commit < lab.status(2).last);
    assert_eq!(voters(&lab, 2), [1, 2, 3, 4], "nothing is appended yet");
    assert!(!lab.wire.iter().any(is_config));
    lab.run(1000 * MS);
    assert_eq!(voters(&lab, 2), [2, 3, 4]);
    assert!(was_changed(&lab, 2, 71));
}

// §4.1, etcd #12359: voters that have not heard of a change vote for a candidate that they do not
// know, and follow a leader that they do not know; else a group with a majority has no leader.
#[test]
fn s4_1_voters_and_followers_heed_members_that_they_do_not_know() {
    let mut lab = led(3, 2);
    lab.isolate(2);
    change(&mut lab, 1, 70, Change::new().learner(4).learner(5));
    lab.run(500 * MS);
    change(&mut lab, 1, 71, Change::new().voter(4).voter(5));
    // Enough hear of it to commit it: 1, 4, 5 of the new ones, 1 and 3 of the old ones.
    lab.run(1000 * MS);
    assert!(was_changed(&lab, 1, 71));
    assert_eq!((voters(&lab, 2), voters(&lab, 3)), (vec![1, 2, 3], vec![1, 2, 3, 4, 5]));
    lab.crash(1);
    lab.crash(3);
    lab.heal();
    lab.run(5000 * MS);
    let leader = lab.leader().expect("2, 4 and 5 are a majority of five");
    assert!([4, 5].contains(&leader));
    assert_eq!(voters(&lab, 2), [1, 2, 3, 4, 5]);
}

// §4.2.2: a server that its own latest membership leaves out may still be needed to commit it.
#[test]
fn s4_2_2_a_node_that_is_left_out_campaigns_until_that_is_committed() {
    let mut lab = led(2, 1);
    change(&mut lab, 1, 69, Change::new().voter(3).remove(1));
    // The joint membership is committed by everybody; its end is in node 1's log alone.
    for _ in 0..50 {
        lab.settle_without(is_joint_end);
        if lab.wire.iter().any(is_joint_end) {
            break;
        }
        lab.now += 10 * MS;
        lab.step(1, Input::Tick);
    }
    assert_eq!(voters(&lab, 1), [2, 3]);
    assert!(!lab.status(1).is_joint && lab.status(2).is_joint, "{:?}", lab.core(2).members());
    lab.take(|_| true);
    lab.restart(1);
    lab.run(5000 * MS);
    // Node 2 cannot win: it needs node 1's vote, whose log is longer.
    let leader = lab.leader().expect("all are up");
    assert!([2, 3].contains(&leader));
    assert_eq!((voters(&lab, leader), lab.status(1).removed.is_some()), (vec![2, 3], true));
}

// The membership is in the snapshot: of the log that it replaces, of a node's next start.
#[test]
fn snapshots_carry_the_membership() {
    let mut lab = led(3, 2);
    change(&mut lab, 1, 70, Change::new().learner(4).address(4, "four"));
    lab.run(500 * MS);
    let (index, members) = (lab.status(1).applied, lab.core(1).members().clone());
    let meta = SnapshotMeta { index, term: lab.status(1).term, members: members.clone() };
    let term = meta.term;
    // Node 5 gets nothing but the snapshot.
    lab.step(5, Input::SnapshotReceived { from: 1, term, meta: meta.clone() });
    assert_eq!(lab.core(5).members(), &members);
    assert_eq!(lab.core(5).members().address(4), Some("four"));
    lab.restart(5);
    assert_eq!(lab.core(5).members(), &members);
    // One that is not worth installing changes nothing.
    let none = SnapshotMeta { index: 1, members: Membership::new([9]), ..meta };
    lab.step(5, Input::SnapshotReceived { from: 1, term, meta: none });
    assert_eq!(lab.core(5).members(), &members);
}

// thesis §3.10: leadership is handed over without a time-out; nothing is taken meanwhile.
#[test]
fn s3_10_leadership_is_transferred_to_a_node_that_has_all() {
    let mut lab = led(3, 0);
    lab.isolate(3);
    lab.propose(1, 70, "not at 3");
    lab.run(100 * MS);
    lab.step(1, Input::TransferLeadership { to: Some(3) });
    lab.propose(1, 71, "refused");
    let refused = |output: &Output| matches!(output, Output::Rejected { token: 71, .. });
    assert_eq!(lab.seen(1, refused).len(), 1);
    assert!(!lab.wire.iter().any(|l| matches!(l.message, Message::TimeoutNow { .. })));
    // Nobody came: the leader goes on.
    lab.run(450 * MS);
    lab.propose(1, 72, "goes on");
    lab.run(100 * MS);
    assert!(lab.commands(2).contains(&"goes on".to_owned()));
    lab.heal();
    lab.run(500 * MS);
    let before = lab.now;
    lab.step(1, Input::TransferLeadership { to: Some(3) });
    lab.settle();
    assert_eq!((lab.leader(), lab.now), (Some(3), before));
    assert_eq!(lab.commands(3), lab.commands(1));
    // To nobody in particular.
    lab.run(100 * MS);
    lab.step(3, Input::TransferLeadership { to: None });
    lab.settle();
    assert!(lab.leader().is_some_and(|leader| leader != 3));
}

// A voter that died when nothing was being written has all that the others have.
#[test]
fn leadership_goes_to_nobody_in_particular_who_is_dead() {
    for dead in 2..=5 {
        let mut lab = led(5, 0);
        lab.run(200 * MS);
        lab.isolate(dead);
        lab.run(500 * MS);
        let before = lab.now;
        lab.step(1, Input::TransferLeadership { to: None });
        lab.settle();
        assert!(lab.leader().is_some_and(|leader| ![1, dead].contains(&leader)), "{dead}");
        assert_eq!(lab.now, before, "nobody waited for a time-out");
    }
}

// A follower that has put reads to its leader takes over from it: the reads are its own from then
// on, and a late answer of the old leader is passed over.
#[test]
fn reads_that_wait_at_the_next_leader_are_answered_once() {
    let mut lab = led(3, 0);
    lab.step(2, Input::Read { token: 7 });
    let asked = |letter: &Letter| matches!(letter.message, Message::ReadRequest(_));
    let question = lab.take(asked);
    lab.step(1, Input::TransferLeadership { to: Some(2) });
    lab.wire.extend(question);
    let answers = |letter: &Letter| matches!(letter.message, Message::ReadReply(_));
    lab.settle_without(|letter| answers(letter) || letter.to == 3);
    let late = lab.take(answers);
    lab.settle();
    assert_eq!(lab.leader(), Some(2));
    for letter in late {
        lab.send(letter.from, letter.to, letter.message);
    }
    lab.run(100 * MS);
    let ready = |output: &Output| matches!(output, Output::ReadReady { token: 7, .. });
    assert_eq!(lab.seen(2, ready).len(), 1);
}

// A vote that a leader asked for is not a way round the lease for anybody else.
#[test]
fn a_member_that_hears_a_leader_still_refuses_other_candidates() {
    let mut lab = led(3, 0);
    let term = lab.status(1).term;
    lab.step(3, Input::Campaign);
    lab.settle();
    assert_eq!((lab.leader(), lab.status(2).term), (Some(1), term));
    // Only the leader's own word counts.
    lab.send(2, 3, Message::TimeoutNow { term });
    lab.settle();
    assert_eq!((lab.leader(), lab.status(2).term), (Some(1), term));
}

#[test]
fn a_change_that_cannot_be_is_refused_whatever_it_would_wait_for() {
    let mut lab = Lab::growing(3, 0);
    lab.elect_without(1, |letter| matches!(letter.message, Message::AppendAck(_)));
    let status = lab.status(1);
    assert!(status.commit < status.last, "it has committed nothing of its own");
    for (token, adds, reason) in [
        (1, Change::new().voter(4).learner(4), ChangeRejected::Contradiction),
        (2, Change::new().voter(0), ChangeRejected::NoId),
        (3, Change::new().learner(0), ChangeRejected::NoId),
    ] {
        change(&mut lab, 1, token, adds);
        let refused = Some(Output::ChangeRejected { token, reason });
        assert_eq!(ends(&lab, 1).last().cloned(), refused);
    }
}

#[test]
fn changes_that_cannot_be_are_rejected() {
    let rejected = |lab: &Lab, id: u64| match ends(lab, id).last() {
        Some(Output::ChangeRejected { reason, .. }) => Some(*reason),
        _ => None,
    };
    let mut fixed = Lab::new(3);
    fixed.elect(1);
    change(&mut fixed, 1, 1, Change::new().remove(3));
    assert_eq!(rejected(&fixed, 1), Some(ChangeRejected::Fixed));
    let mut lab = led(3, 1);
    change(&mut lab, 2, 1, Change::new().remove(3));
    assert_eq!(rejected(&lab, 2), Some(ChangeRejected::NotLeader { leader: Some(1) }));
    change(&mut lab, 1, 2, Change::new().remove(1).remove(2).remove(3));
    assert_eq!(rejected(&lab, 1), Some(ChangeRejected::NoVoters));
    // One at a time; and one that is withdrawn makes room.
    lab.isolate(4);
    change(&mut lab, 1, 3, Change::new().voter(4));
    lab.run(200 * MS);
    change(&mut lab, 1, 4, Change::new().remove(3));
    assert_eq!(rejected(&lab, 1), Some(ChangeRejected::InProgress));
    lab.step(1, Input::WithdrawChange { token: 3 });
    change(&mut lab, 1, 5, Change::new().remove(4).remove(3));
    lab.run(300 * MS);
    assert!(was_changed(&lab, 1, 5) && !was_changed(&lab, 1, 3));
    assert_eq!(lab.core(1).members(), &Membership::new([1, 2]));
    // What is so already needs no entry.
    let last = lab.status(1).last;
    change(&mut lab, 1, 6, Change::new().voter(2).remove(9));
    assert!(was_changed(&lab, 1, 6));
    assert_eq!(lab.status(1).last, last);
}

// Reads are confirmed by both majorities too, and by no learner.
#[test]
fn reads_are_confirmed_by_voters_alone() {
    let mut lab = led(3, 2);
    change(&mut lab, 1, 70, Change::new().learner(4).learner(5));
    lab.run(500 * MS);
    lab.isolate(2);
    lab.isolate(3);
    lab.step(1, Input::Read { token: 1 });
    lab.settle();
    let ready = |output: &Output| matches!(output, Output::ReadReady { .. });
    assert!(lab.seen(1, ready).is_empty(), "two learners confirm nothing");
    // A learner may ask.
    lab.heal();
    lab.run(100 * MS);
    lab.step(4, Input::Read { token: 2 });
    lab.settle();
    assert_eq!((lab.seen(1, ready).len(), lab.seen(4, ready).len()), (1, 1));
}

// A change whose end has no majority that is up would never be committed, and wedge the group:
// etcd refuses it too (strict-reconfig-check).
#[test]
fn a_change_waits_for_a_majority_of_its_end() {
    let mut lab = led(3, 0);
    lab.isolate(3);
    lab.run(1000 * MS);
    change(&mut lab, 1, 70, Change::new().remove(2));
    lab.run(1000 * MS);
    assert_eq!(voters(&lab, 1), [1, 2, 3], "1 and 3 could commit nothing");
    lab.propose(1, 71, "goes on");
    lab.run(100 * MS);
    assert!(lab.commands(2).contains(&"goes on".to_owned()));
    lab.heal();
    lab.run(1000 * MS);
    assert!(was_changed(&lab, 1, 70));
    assert_eq!(voters(&lab, 1), [1, 3]);
    // The one that is down may leave at any time.
    let mut lab = led(3, 0);
    lab.isolate(3);
    lab.run(1000 * MS);
    change(&mut lab, 1, 70, Change::new().remove(3));
    lab.run(100 * MS);
    assert!(was_changed(&lab, 1, 70));
}

// The silence of a voter counts from its last answer to this leader, not from the election.
#[test]
fn a_new_leader_changes_nothing_on_the_word_of_voters_that_it_has_not_heard() {
    let mut lab = Lab::growing(3, 0);
    lab.isolate(3);
    lab.elect(1);
    assert!(lab.status(1).commit > 0);
    change(&mut lab, 1, 70, Change::new().remove(2));
    lab.run(1000 * MS);
    assert_eq!((lab.leader(), voters(&lab, 1)), (Some(1), vec![1, 2, 3]));
    lab.heal();
    lab.run(1000 * MS);
    assert!(was_changed(&lab, 1, 70));
}

// A learner that had caught up and has died since: in an idle group its log is still complete.
#[test]
fn a_learner_that_has_died_gets_no_vote() {
    let mut lab = led(1, 1);
    change(&mut lab, 1, 70, Change::new().learner(2));
    lab.run(500 * MS);
    lab.isolate(2);
    lab.run(1000 * MS);
    change(&mut lab, 1, 71, Change::new().voter(2));
    lab.run(1000 * MS);
    assert_eq!(voters(&lab, 1), [1], "1 alone could commit nothing in [1, 2]");
    lab.propose(1, 72, "goes on");
    lab.run(100 * MS);
    assert!(lab.commands(1).contains(&"goes on".to_owned()));
    lab.heal();
    lab.run(1000 * MS);
    assert!(was_changed(&lab, 1, 71));
    // So in a joint membership: its new half has to be there.
    let mut lab = led(3, 2);
    change(&mut lab, 1, 70, Change::new().learner(4).learner(5));
    lab.run(500 * MS);
    lab.isolate(4);
    lab.isolate(5);
    lab.run(1000 * MS);
    let exchange = Change::new().voter(4).voter(5).remove(2).remove(3);
    change(&mut lab, 1, 71, exchange);
    lab.run(1000 * MS);
    assert!(!lab.status(1).is_joint && voters(&lab, 1) == [1, 2, 3]);
    lab.heal();
    lab.run(1000 * MS);
    assert!(was_changed(&lab, 1, 71));
}

// A node that restarts has forgotten what was committed: the entry that removes it may be in its
// log, and the word that it is committed is news to it.
#[test]
fn a_removed_node_that_restarts_is_told_again() {
    let mut lab = led(3, 0);
    change(&mut lab, 1, 70, Change::new().remove(1));
    lab.run(500 * MS);
    assert!(was_changed(&lab, 1, 70));
    lab.restart(1);
    assert_eq!((lab.status(1).removed, voters(&lab, 1)), (None, vec![2, 3]));
    lab.run(5000 * MS);
    assert_eq!(lab.status(1).removed, Some(lab.status(1).members_index));
    lab.take(|_| true);
    lab.run(5000 * MS);
    assert!(!lab.wire.iter().any(|letter| letter.from == 1), "it asks for no votes any more");
    let told = lab.seen(1, |output| matches!(output, Output::Removed { .. }));
    assert_eq!(told.len(), 2, "once in each life");
}

// A word of a removal at an index that no log ever reaches must not silence a voter for good.
#[test]
fn a_word_of_a_removal_ends_with_the_next_membership_that_contains_the_node() {
    let mut lab = led(3, 1);
    let term = lab.status(1).term;
    lab.send(2, 3, Message::Removed { term, index: voussoir_raft::MAX_INDEX });
    assert_eq!(lab.status(3).removed, Some(voussoir_raft::MAX_INDEX));
    change(&mut lab, 1, 70, Change::new().learner(4));
    lab.run(500 * MS);
    assert_eq!((lab.status(3).removed, lab.status(3).is_voter), (None, true));
    lab.crash(1);
    lab.isolate(4);
    lab.time_out(3);
    lab.run(3000 * MS);
    assert!(lab.leader().is_some());
}

// A follower follows whoever leads, also one that it does not know; then it hears its answers too.
#[test]
fn a_leader_that_is_no_known_member_is_heard_in_all_that_it_says() {
    let mut lab = led(3, 2);
    let term = lab.status(2).term + 1;
    lab.isolate(1);
    lab.isolate(3);
    let beat = voussoir_raft::Heartbeat { term, round: 1, commit: 0 };
    lab.send(5, 2, Message::Heartbeat(beat));
    assert_eq!(lab.status(2).leader, Some(5));
    lab.wire.clear();
    lab.step(2, Input::Read { token: 7 });
    let asked = lab.take(|letter| matches!(letter.message, Message::ReadRequest(_)));
    let [Letter { to: 5, message: Message::ReadRequest(request), .. }] = &asked[..] else {
        panic!("{asked:?}")
    };
    let voussoir_raft::ReadRequest { nonce, context, .. } = *request;
    let reply = voussoir_raft::ReadReply { term, nonce, context, index: Some(1) };
    // Not from anybody else who is no member.
    lab.send(4, 2, Message::ReadReply(reply));
    let ready = |output: &Output| matches!(output, Output::ReadReady { token: 7, .. });
    assert_eq!(lab.seen(2, ready).len(), 0);
    lab.send(5, 2, Message::ReadReply(reply));
    assert_eq!(lab.seen(2, ready).len(), 1);
    lab.send(5, 2, Message::Stale { term: term + 1 });
    assert_eq!((lab.status(2).term, lab.status(2).leader), (term + 1, None));
}
