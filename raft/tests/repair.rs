//! A node whose log has lost entries: its peers bring them back, and until it holds again what it
//! had acknowledged it neither votes nor leads.

mod common;

use common::{Lab, Letter, MS, entry};
use voussoir_raft::core::{Core, Input, Output, TransferEnd};
use voussoir_raft::{
    Config, HaltReason, HardState, LogLost, Message, Restored, Role, SnapshotMeta, VoteRequest,
};

/// Three nodes, led by node 1, with entries 1 to `last` committed everywhere.
fn written(last: u64, tweak: impl Fn(&mut Config) + 'static) -> Lab {
    let mut lab = Lab::with(3, tweak);
    lab.elect(1);
    (2..=last).for_each(|token| lab.propose(1, token, "x"));
    lab.run(100 * MS);
    assert_eq!(lab.status(3).commit, last);
    lab
}

/// Each entry waits for the acknowledgement of the one before.
fn one_by_one(config: &mut Config) {
    (config.max_append_entries, config.max_inflight_appends) = (1, 1);
}

fn recovering(lab: &Lab, id: u64) -> Option<u64> {
    lab.status(id).recovering
}

fn asks_for_votes(letter: &Letter) -> bool {
    matches!(letter.message, Message::PreVote(_) | Message::Vote(_))
}

#[test]
fn a_follower_is_repaired_by_the_leader_that_counts_on_it() {
    let mut lab = written(6, |_| {});
    lab.lose(3, 3);
    lab.restart(3);
    assert_eq!((lab.status(3).last, recovering(&lab, 3)), (2, Some(6)));
    lab.run(1000 * MS);
    assert_eq!((lab.terms(3), recovering(&lab, 3)), (vec![1; 6], None));
    assert_eq!((lab.commands(3).len(), lab.node(3).disk.lost), (5, None));
    assert_eq!(lab.seen(1, |output| matches!(output, Output::FollowerLost { .. })), []);
    assert_eq!((lab.leader(), lab.status(1).term, lab.status(1).lost_followers), (Some(1), 1, 0));
    // It counts again: with node 2 gone its acknowledgements commit, and its vote elects.
    lab.isolate(2);
    lab.propose(1, 9, "y");
    lab.run(200 * MS);
    assert_eq!(lab.status(1).commit, 7);
}

#[test]
fn a_leader_whose_log_was_damaged_is_repaired_by_the_next_one() {
    let mut lab = written(6, |_| {});
    lab.propose(1, 7, "only here");
    lab.wire.clear();
    lab.lose(1, 2);
    lab.elect(2);
    lab.restart(1);
    assert_eq!(recovering(&lab, 1), Some(7));
    lab.run(1000 * MS);
    assert_eq!((recovering(&lab, 1), lab.terms(1)), (None, lab.terms(2)));
    assert_eq!(lab.leader(), Some(2));
}

/// Entry 3 is committed by nodes 1 and 3 alone. Were node 3 to vote for node 2 it would be gone.
#[test]
fn a_node_that_has_lost_what_was_committed_thanks_to_it_elects_nobody_without_it() {
    let mut lab = written(2, |_| {});
    lab.isolate(2);
    lab.propose(1, 3, "committed");
    lab.settle();
    assert_eq!(lab.status(1).commit, 3);
    lab.lose(3, 3);
    lab.crash(1);
    lab.restart(3);
    lab.heal();
    lab.run(5000 * MS);
    assert_eq!((lab.leader(), recovering(&lab, 3)), (None, Some(3)), "neither of them may lead");
    assert_eq!(lab.status(3).role, Role::Follower);
    lab.restart(1);
    lab.run(2000 * MS);
    assert_eq!(lab.leader(), Some(1), "the only one that has it");
    assert_eq!(recovering(&lab, 3), None);
    for id in 1..=3 {
        assert_eq!(lab.commands(id).last().unwrap(), "committed", "node {id}");
    }
    // Now its vote counts again, for whoever has the entry.
    lab.crash(1);
    lab.run(2000 * MS);
    assert!(lab.leader().is_some());
}

/// Also not for the one that its leader hands over to, which asks no pre-votes.
#[test]
fn it_votes_for_nobody() {
    let mut lab = written(4, |_| {});
    lab.lose(3, 2);
    lab.restart(3);
    let term = lab.status(3).term + 1;
    let question = VoteRequest { term, last_index: 9, last_term: 1, transfer: true };
    lab.send(2, 3, Message::PreVote(question));
    lab.send(2, 3, Message::Vote(question));
    let refusal = |letter: &Letter| match &letter.message {
        Message::PreVoteReply(reply) | Message::VoteReply(reply) => !reply.granted,
        _ => false,
    };
    let said = lab.take(|letter| letter.from == 3);
    assert!(said.len() == 2 && said.iter().all(refusal), "{said:?}");
    assert_eq!(lab.core(3).hard_state(), HardState { term, vote: None });
}

#[test]
fn it_does_not_campaign_whoever_asks_it_to() {
    let mut lab = written(4, |_| {});
    lab.lose(3, 2);
    lab.restart(3);
    let term = lab.status(3).term;
    lab.step(3, Input::Campaign);
    (0..5).for_each(|_| lab.time_out(3));
    assert_eq!((lab.status(3).role, lab.status(3).term), (Role::Follower, term));
    assert!(!lab.wire.iter().any(asks_for_votes), "{:?}", lab.wire);
    // The leader hands over, and does not know yet.
    lab.wire.clear();
    lab.step(1, Input::Unreachable { peer: 3 });
    lab.settle_without(|letter| letter.from == 3);
    lab.send(1, 3, Message::TimeoutNow { term });
    assert_eq!((lab.status(3).role, lab.status(3).term), (Role::Follower, term));
    assert!(!lab.wire.iter().any(asks_for_votes), "{:?}", lab.wire);
}

/// Received is not enough: what it had acknowledged was durable.
#[test]
fn the_repair_ends_when_the_entries_are_durable() {
    let mut lab = written(6, |_| {});
    lab.lose(3, 3);
    lab.restart(3);
    lab.node_mut(3).fast_disk = false;
    lab.run(1000 * MS);
    assert_eq!((lab.status(3).last, lab.status(3).durable, recovering(&lab, 3)), (6, 2, Some(6)));
    assert_eq!(lab.core(1).followers().find(|peer| peer.id == 3).unwrap().matched, 2);
    lab.sync(3);
    assert_eq!((lab.status(3).durable, recovering(&lab, 3)), (6, None));
    lab.sync(3);
    assert_eq!(lab.node(3).disk.lost, None, "and the store has heard of it");
}

#[test]
fn a_repair_goes_on_after_another_crash() {
    let mut lab = written(9, one_by_one);
    lab.lose(3, 2);
    lab.restart(3);
    // Until it has some of the entries, and not all.
    for _ in 0..1000 {
        if lab.status(3).durable >= 5 {
            break;
        }
        lab.now += MS;
        lab.ids().into_iter().for_each(|id| lab.step(id, Input::Tick));
        lab.deliver(|_| true);
    }
    let has = lab.status(3).durable;
    assert!((5..9).contains(&has), "{has}");
    lab.crash(3);
    lab.wire.clear();
    lab.restart(3);
    assert_eq!((lab.status(3).last, recovering(&lab, 3)), (has, Some(9)), "it still owes the rest");
    lab.run(1000 * MS);
    assert_eq!((lab.status(3).last, recovering(&lab, 3)), (9, None));
}

/// A crash took the word that they are there, and not the entries: two of three that had lost some
/// would elect nobody, although all is there.
#[test]
fn what_was_back_before_a_crash_is_not_waited_for_again() {
    let mut lab = written(6, |_| {});
    lab.lose(3, 3);
    lab.restart(3);
    lab.node_mut(3).fast_disk = false;
    lab.run(1000 * MS);
    while lab.status(3).durable < 6 {
        lab.sync_one(3);
    }
    assert_eq!((recovering(&lab, 3), lab.node(3).disk.lost.is_some()), (None, true));
    lab.crash(3);
    lab.wire.clear();
    lab.node_mut(3).fast_disk = true;
    lab.isolate(1);
    lab.restart(3);
    assert_eq!((lab.status(3).last, recovering(&lab, 3)), (6, None));
    assert_eq!(lab.node(3).disk.lost, None, "the store hears of it");
    lab.run(3000 * MS);
    assert_eq!((lab.status(2).commit, lab.status(3).commit), (7, 7), "one of them leads");
}

/// What it had and nobody committed is not waited for: the next leader's log is shorter.
#[test]
fn a_leader_of_a_later_term_ends_the_wait_for_what_was_never_committed() {
    let mut lab = written(2, |_| {});
    lab.isolate(1);
    (0..5).for_each(|token| lab.propose(1, 10 + token, "never committed"));
    assert_eq!(lab.status(1).durable, 7);
    lab.lose(1, 4);
    lab.elect(2);
    lab.heal();
    lab.restart(1);
    assert_eq!(recovering(&lab, 1), Some(7));
    lab.run(1000 * MS);
    assert_eq!((lab.terms(1), recovering(&lab, 1)), (vec![1, 1, 2], None));
}

/// An entry of the term that it had reached itself ends nothing: in that term it may have
/// acknowledged what is behind it.
#[test]
fn an_earlier_entry_of_the_same_term_ends_nothing() {
    let mut lab = written(6, one_by_one);
    lab.lose(3, 3);
    lab.restart(3);
    let term = lab.status(1).term;
    for last in 2..=5 {
        let follower = lab.core(1).followers().find(|peer| peer.id == 3).unwrap();
        assert_eq!((recovering(&lab, 3), lab.status(3).term), (Some(6), term), "{follower:?}");
        for _ in 0..100 {
            if lab.status(3).last > last {
                break;
            }
            lab.now += 10 * MS;
            lab.ids().into_iter().for_each(|id| lab.step(id, Input::Tick));
            lab.deliver(|_| true);
        }
    }
}

#[test]
fn a_snapshot_takes_the_place_of_what_was_lost() {
    let mut lab = written(6, |config| config.keep_entries = 0);
    lab.lose(3, 3);
    let meta = SnapshotMeta { index: 6, term: 1, members: lab.ids().into() };
    lab.step(1, Input::SnapshotTaken { meta: meta.clone() });
    lab.propose(1, 9, "behind it");
    lab.restart(3);
    lab.run(1000 * MS);
    let sent = lab.seen(1, |output| matches!(output, Output::SendSnapshot { to: 3, .. }));
    let Some(Output::SendSnapshot { id, term, .. }) = sent.first().cloned() else {
        panic!("entries 3 to 6 are gone: {sent:?}")
    };
    assert_eq!(recovering(&lab, 3), Some(6));
    lab.step(3, Input::SnapshotReceived { from: 1, term, meta });
    assert_eq!(recovering(&lab, 3), None);
    lab.step(1, Input::SnapshotSent { id, ended: TransferEnd::Complete });
    lab.run(1000 * MS);
    assert_eq!((lab.status(3).snapshot, lab.status(3).last), (6, 7));
}

/// A snapshot that ends before what was lost does not end the repair.
#[test]
fn a_snapshot_of_less_than_was_lost_ends_nothing() {
    let mut lab = written(6, |_| {});
    lab.isolate(3);
    lab.lose(3, 2);
    lab.restart(3);
    let meta = SnapshotMeta { index: 4, term: 1, members: lab.ids().into() };
    lab.step(3, Input::SnapshotReceived { from: 1, term: 1, meta });
    assert_eq!((lab.status(3).last, recovering(&lab, 3)), (4, Some(6)));
    lab.heal();
    lab.run(1000 * MS);
    assert_eq!((lab.status(3).last, recovering(&lab, 3)), (6, None));
}

#[test]
fn the_reminder_of_what_it_had_acknowledged_does_not_halt_it() {
    let mut lab = written(6, |_| {});
    lab.lose(3, 3);
    lab.restart(3);
    let lost = LogLost { term: 1, matched: 6, matched_term: 1 };
    lab.send(1, 3, Message::LogLost(lost));
    assert_eq!(lab.status(3).halted, None, "it knows, and says so");
    lab.run(1000 * MS);
    assert_eq!((lab.status(3).halted, recovering(&lab, 3)), (None, None));
}

/// What an earlier life acknowledged and was long under way counts for nothing once the follower
/// has said what it lacks.
#[test]
fn a_late_acknowledgement_of_what_was_lost_counts_for_nothing() {
    let mut lab = written(2, |_| {});
    lab.isolate(2);
    lab.propose(1, 3, "acknowledged");
    lab.deliver(|letter| letter.to == 3);
    let late = lab.take(|letter| matches!(letter.message, Message::AppendAck(_)));
    assert_eq!(late.len(), 1);
    lab.lose(3, 3);
    lab.restart(3);
    lab.node_mut(3).fast_disk = false;
    lab.run(1000 * MS);
    assert_eq!(lab.status(3).durable, 2);
    for letter in late {
        lab.send(letter.from, letter.to, letter.message);
    }
    assert_eq!(lab.status(1).commit, 2, "node 1 alone has it");
    lab.sync(3);
    lab.settle();
    assert_eq!(lab.status(1).commit, 3);
}

/// Nobody could repair it.
#[test]
fn the_only_voter_halts() {
    let mut restored = Restored::new(HardState { term: 2, vote: Some(1) }, None, 1);
    restored.push(entry(1, 1, "readable")).unwrap();
    restored.set_lost(4, 2);
    assert_eq!(restored.lost_until(), Some(4));
    let mut core = Core::new(Config::new(1, [1]), restored, 0).unwrap();
    core.step(900 * MS, Input::Tick);
    assert_eq!(core.poll_output(), Some(Output::Halted { reason: HaltReason::Damaged }));
}
