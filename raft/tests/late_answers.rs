//! Answers and decisions that come after the leadership in which they were asked for.

mod common;

use common::{Lab, MS};
use voussoir_raft::core::{FetchError, Input, Output};
use voussoir_raft::{AppendAck, HaltReason, Message, Role};

/// Node 1 leads with a window of no entries, and reads entries back for node 3.
fn reads_back_for_a_follower() -> (Lab, u64) {
    let mut lab = Lab::with(3, |config| config.max_window_bytes = 1);
    lab.elect(1);
    lab.run(100 * MS);
    lab.isolate(3);
    (0..20).for_each(|token| lab.propose(1, token, "command"));
    lab.run(100 * MS);
    lab.heal();
    lab.run(300 * MS);
    let id = last_fetch(&lab);
    (lab, id)
}

fn last_fetch(lab: &Lab) -> u64 {
    let fetches = lab.seen(1, |output| matches!(output, Output::Fetch { .. }));
    match fetches.last() {
        Some(Output::Fetch { id, .. }) => *id,
        other => panic!("node 1 reads nothing back: {other:?}"),
    }
}

/// Messages of an earlier session still arrive at the follower, and it acknowledges their entries
/// in the name of the present session while the leader reads them back.
#[test]
fn an_acknowledgement_may_overtake_a_read() {
    let (mut lab, id) = reads_back_for_a_follower();
    let fetches = lab.seen(1, |output| matches!(output, Output::Fetch { .. }));
    let Some(Output::Fetch { range, .. }) = fetches.last() else { panic!("{fetches:?}") };
    let (from, log) = (range.start, lab.node(1).disk.entries.clone());
    let entries: Vec<_> = log.into_iter().filter(|entry| range.contains(&entry.index)).collect();
    assert!(entries.len() > 4, "{range:?}");
    let term = lab.status(1).term;
    // Session numbers grow: the present one is below a hundred, and only it is believed.
    for session in 1..100 {
        let ack = AppendAck { term, session, matched: from + 1, received: from + 1 };
        lab.send(3, 1, Message::AppendAck(ack));
    }
    lab.take(|_| true);
    lab.step(1, Input::Fetched { id, result: Ok(entries) });
    assert_eq!(lab.status(1).halted, None);
    let sent = lab.take(|letter| letter.to == 3);
    let next = sent.iter().find_map(|letter| match &letter.message {
        Message::Append { entries, .. } => entries.first().map(|entry| entry.index),
        _ => None,
    });
    assert_eq!(next, Some(from + 2), "{sent:?}");
}

fn depose(lab: &mut Lab) {
    let term = lab.status(1).term + 1;
    lab.send(2, 1, Message::Stale { term });
    assert_eq!(lab.status(1).role, Role::Follower);
}

/// The next leader may have cut the entries, so that the store does not have them any more.
#[test]
fn a_read_for_an_earlier_leadership_may_fail() {
    let (mut lab, id) = reads_back_for_a_follower();
    depose(&mut lab);
    lab.step(1, Input::Fetched { id, result: Err(FetchError::Failed) });
    assert_eq!(lab.status(1).halted, None);
}

#[test]
fn a_read_for_this_leadership_may_not_fail() {
    let (mut lab, id) = reads_back_for_a_follower();
    lab.step(1, Input::Fetched { id, result: Err(FetchError::Failed) });
    assert_eq!(lab.status(1).halted, Some(HaltReason::ReadFailed));
}

/// What an earlier leadership asked for is never taken for the answer to a later one.
#[test]
fn a_later_leadership_uses_other_names() {
    let (mut lab, first) = reads_back_for_a_follower();
    depose(&mut lab);
    lab.elect(1);
    lab.run(300 * MS);
    let second = last_fetch(&lab);
    assert!(second > first, "read {second} of the second leadership, {first} of the first");
}

/// An entry of a later term is committed: no log that holds it has an older entry behind it. The
/// proposals there are decided now, not when other entries are committed in their places. A node
/// that leads again could refuse all proposals for want of room, and so never decide them.
#[test]
fn proposals_behind_a_committed_entry_of_a_later_term_are_superseded() {
    let mut lab = Lab::with(3, |config| config.max_undecided = 4);
    lab.elect(1);
    lab.run(100 * MS);
    lab.isolate(1);
    // Not consecutive: each is a run of its own.
    let tokens = [10, 20, 30, 40];
    for token in tokens {
        lab.propose(1, token, "lost");
    }
    lab.elect(2);
    lab.heal();
    lab.run(1000 * MS);
    let (first, last) = (lab.status(1), lab.status(2));
    assert_eq!((first.commit, first.last), (last.commit, last.last));
    let lost = lab.seen(1, |output| matches!(output, Output::Lost { superseded: true, .. }));
    let lost: Vec<u64> = lost
        .iter()
        .filter_map(|output| match output {
            Output::Lost { token, .. } => Some(*token),
            _ => None,
        })
        .collect();
    assert_eq!(lost, tokens);
    lab.elect(1);
    lab.propose(1, 50, "taken");
    let refused = lab.seen(1, |output| matches!(output, Output::Rejected { token: 50, .. }));
    assert_eq!(refused, [], "there is room again");
}
