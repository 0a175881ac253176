//! Reads under a leader's lease: when there is one, and what ends it.
//!
//! Source: Raft thesis §6.4.1. Times of these scenes: heartbeats every 50 ms, elections after
//! 200 ms to 400 ms, clocks that drift by 10 % at most, and so leases of 200 ms · 0.9 / 1.1.

mod common;

use std::time::Duration;

use common::{Lab, Letter, MS};
use voussoir_raft::core::{Input, Output};
use voussoir_raft::{Change, Config, ConfigError, Message, Role, VoteReply, VoteRequest};

const LEASE: u64 = 200 * MS * 9 / 11;
const ELECTION: u64 = 200 * MS;

fn leasing(config: &mut Config) {
    config.max_clock_drift_ppm = Some(100_000);
}

/// Node 1 leads, and a majority has just answered it.
fn led(count: u64, tweak: impl Fn(&mut Config) + 'static) -> Lab {
    let mut lab = Lab::with(count, move |config| {
        leasing(config);
        tweak(config);
    });
    lab.elect(1);
    lab.run(120 * MS);
    assert_eq!(lab.leader(), Some(1));
    lab
}

/// Whether a node answers a read that is asked for now, before any message has come or gone.
fn reads_at_once(lab: &mut Lab, id: u64) -> bool {
    // A read that was answered is seen for good, and the next one has another token.
    let token = 1_000_000 + lab.node(id).seen.len() as u64;
    let under_way = lab.wire.len();
    lab.step(id, Input::Read { token });
    let ready =
        |output: &Output| matches!(output, Output::ReadReady { token: of, .. } if *of == token);
    let is_ready = !lab.seen(id, ready).is_empty();
    if is_ready {
        assert_eq!(lab.wire.len(), under_way, "it asked nobody");
    }
    lab.step(id, Input::WithdrawReads { tokens: vec![token] });
    is_ready
}

fn is_reply(letter: &Letter) -> bool {
    matches!(letter.message, Message::HeartbeatReply(_))
}

/// Sends a round of heartbeats, which nobody has answered yet, and returns when.
fn send_a_round(lab: &mut Lab) -> u64 {
    lab.wire.clear();
    let is_beat = |letter: &Letter| matches!(letter.message, Message::Heartbeat(_));
    // Other deadlines may be nearer.
    while !lab.wire.iter().any(is_beat) {
        assert_eq!(lab.status(1).role, Role::Leader);
        lab.now = lab.core(1).next_deadline().unwrap().max(lab.now);
        lab.step(1, Input::Tick);
    }
    lab.deliver(is_beat);
    assert!(lab.wire.iter().any(is_reply));
    lab.now
}

#[test]
fn s6_4_1_a_leader_with_a_lease_reads_without_asking_anybody() {
    let mut lab = led(3, |_| {});
    assert!(reads_at_once(&mut lab, 1));
    assert_eq!(lab.core(1).lease_reads(), 1);
    lab.propose(1, 1, "x");
    lab.settle();
    lab.step(1, Input::Read { token: 7 });
    let last = lab.status(1).last;
    assert!(lab.node(1).seen.contains(&Output::ReadReady { token: 7, index: last }));
    // A follower asks the leader, and nobody else is asked.
    lab.step(2, Input::Read { token: 8 });
    assert_eq!(lab.deliver(|_| true), 1, "the question");
    let answers = lab.take(|letter| matches!(letter.message, Message::ReadReply(_)));
    assert_eq!((answers.len(), answers[0].to), (1, 2));
    let Letter { from, to, message } = answers[0].clone();
    lab.send(from, to, message);
    assert!(lab.node(2).seen.contains(&Output::ReadReady { token: 8, index: last }));
}

#[test]
fn without_a_bound_on_clocks_every_read_takes_a_round() {
    let mut lab = led(3, |config| config.max_clock_drift_ppm = None);
    assert!(!reads_at_once(&mut lab, 1));
    assert_eq!(lab.core(1).lease_reads(), 0);
}

// A lease that is counted from the answer is longer than the promise by half a round trip.
#[test]
fn a_lease_counts_from_the_sending_of_its_round() {
    let mut lab = led(3, |_| {});
    let sent_at = send_a_round(&mut lab);
    lab.now = sent_at + 100 * MS;
    lab.deliver(is_reply);
    lab.now = sent_at + LEASE - 1;
    assert!(reads_at_once(&mut lab, 1));
    lab.now = sent_at + LEASE;
    assert!(!reads_at_once(&mut lab, 1), "it may be over by the clocks of the others");
}

#[test]
fn a_read_that_finds_the_lease_over_takes_a_round() {
    let mut lab = led(3, |_| {});
    let sent_at = send_a_round(&mut lab);
    lab.deliver(is_reply);
    lab.wire.clear();
    lab.now = sent_at + LEASE + 1;
    lab.step(1, Input::Read { token: 7 });
    let ready = |output: &Output| matches!(output, Output::ReadReady { token: 7, .. });
    assert!(lab.seen(1, ready).is_empty());
    assert!(lab.wire.iter().any(|letter| matches!(letter.message, Message::Heartbeat(_))));
    lab.settle();
    assert_eq!(lab.seen(1, ready).len(), 1);
    assert!(reads_at_once(&mut lab, 1), "the round has brought a lease");
}

// Reads that wait for a round when a lease comes are confirmed by it, and leave no round behind.
#[test]
fn a_lease_confirms_reads_that_wait_for_later_rounds() {
    let mut lab = led(3, |_| {});
    let sent_at = send_a_round(&mut lab);
    let late = lab.take(is_reply);
    lab.now = sent_at + LEASE - 10 * MS;
    for token in 0..20 {
        lab.step(1, Input::Read { token });
    }
    let ready = |output: &Output| matches!(output, Output::ReadReady { token: 0..20, .. });
    let before = lab.seen(1, ready).len();
    for Letter { from, to, message } in late {
        lab.send(from, to, message);
    }
    assert_eq!((before, lab.seen(1, ready).len()), (0, 20));
}

// The time of a round is remembered for 64 rounds. What stands there later is another round's.
#[test]
fn a_round_whose_time_is_forgotten_brings_no_lease() {
    let mut lab = led(3, |config| config.heartbeat_interval = Duration::from_millis(1));
    let sent_at = send_a_round(&mut lab);
    lab.deliver(is_reply);
    let mut over = false;
    while lab.now < sent_at + 300 * MS {
        lab.wire.clear();
        lab.now = lab.core(1).next_deadline().unwrap().max(lab.now);
        lab.step(1, Input::Tick);
        let has_lease = reads_at_once(&mut lab, 1);
        assert!(!(over && has_lease), "a lease came back by itself, {} ns", lab.now - sent_at);
        over |= !has_lease;
    }
    assert_eq!((lab.leader(), over), (Some(1), true), "it still leads");
}

#[test]
fn a_lease_waits_for_an_entry_of_the_own_term() {
    let mut lab = Lab::with(3, leasing);
    let is_ack = |letter: &Letter| matches!(letter.message, Message::AppendAck(_));
    lab.elect_without(1, is_ack);
    lab.run_without(120 * MS, is_ack);
    assert_eq!((lab.leader(), lab.status(1).commit), (Some(1), 0));
    assert!(!reads_at_once(&mut lab, 1), "it does not know what is committed");
    lab.run(300 * MS);
    assert!(reads_at_once(&mut lab, 1));
}

#[test]
fn a_lease_needs_both_halves_of_a_joint_membership() {
    let mut lab = Lab::with(5, |config| {
        leasing(config);
        // Each half is silent for a while, and the leader stays.
        config.max_election_timeout = Duration::from_secs(1);
        config.dynamic = true;
        config.voters.retain(|id| *id <= 3);
        if config.id > 3 {
            config.voters.clear();
        }
    });
    lab.elect(1);
    lab.run(120 * MS);
    let change = Change::new().voter(4).voter(5).remove(2).remove(3);
    lab.step(1, Input::Change { token: 1, change });
    for _ in 0..100 {
        if lab.status(1).is_joint {
            break;
        }
        lab.deliver(|_| true);
    }
    assert!(lab.status(1).is_joint);
    for quiet in [[2, 3], [4, 5]] {
        // The round reaches one half only.
        let sent_at = send_a_round(&mut lab);
        lab.take(|letter| is_reply(letter) && quiet.contains(&letter.from));
        lab.deliver(is_reply);
        lab.now = sent_at + LEASE - 1;
        assert!(!reads_at_once(&mut lab, 1), "without {quiet:?}");
        lab.wire.clear();
    }
    let sent_at = send_a_round(&mut lab);
    lab.deliver(is_reply);
    lab.now = sent_at + LEASE - 1;
    assert!(reads_at_once(&mut lab, 1));
}

// The one who was told to campaign is voted for whatever has been promised, and may be slow to ask.
#[test]
fn a_lease_ends_before_a_node_is_told_to_campaign() {
    let mut lab = led(3, |_| {});
    let is_word = |letter: &Letter| matches!(letter.message, Message::TimeoutNow { .. });
    assert!(reads_at_once(&mut lab, 1));
    lab.step(1, Input::TransferLeadership { to: Some(2) });
    assert_eq!(lab.wire.iter().filter(|letter| is_word(letter)).count(), 1);
    assert!(!reads_at_once(&mut lab, 1));
    // The leader waits no more, and leads on; the word is still under way.
    lab.run_without(1000 * MS, is_word);
    assert_eq!(lab.leader(), Some(1));
    assert!(!reads_at_once(&mut lab, 1));
    lab.step(1, Input::Read { token: 7 });
    lab.settle_without(is_word);
    let ready = |output: &Output| matches!(output, Output::ReadReady { token: 7, .. });
    assert_eq!(lab.seen(1, ready).len(), 1, "a round confirms it");
    lab.deliver(is_word);
    let is_answer = |letter: &Letter| letter.to == 1;
    lab.settle_without(is_answer);
    assert_eq!((lab.status(2).role, lab.status(1).role), (Role::Leader, Role::Leader));
    assert!(!reads_at_once(&mut lab, 1));
    lab.run(120 * MS);
    assert!(reads_at_once(&mut lab, 2) && !reads_at_once(&mut lab, 1));
}

#[test]
fn a_transfer_that_told_nobody_keeps_the_lease() {
    let mut lab = led(3, |_| {});
    lab.isolate(3);
    lab.propose(1, 1, "x");
    lab.settle();
    lab.step(1, Input::TransferLeadership { to: Some(3) });
    assert!(reads_at_once(&mut lab, 1), "node 3 lacks an entry and is not told yet");
    lab.run(1000 * MS);
    assert!(reads_at_once(&mut lab, 1));
}

/// Cuts the leader 1 off and lets time pass, to the end of the next leader's first lease. Never can
/// two nodes read at once.
fn next_leader_after_the_lease(lab: &mut Lab) {
    lab.isolate(1);
    let (end, mut reads) = (lab.now + 3000 * MS, [0, 0]);
    while lab.now < end {
        let old = reads_at_once(lab, 1);
        let others: Vec<u64> = lab.ids().into_iter().filter(|id| *id != 1).collect();
        let leads = others.iter().any(|id| lab.status(*id).role == Role::Leader);
        assert!(!(old && leads), "another one leads at {} while 1 has a lease", lab.now);
        reads[0] += u32::from(old);
        reads[1] += u32::from(others.into_iter().any(|id| reads_at_once(lab, id)));
        lab.wire.retain(|letter| letter.from != 1);
        lab.run(MS);
    }
    assert!(reads[0] > 50 && reads[1] > 50, "{reads:?}");
}

#[test]
fn nobody_leads_before_the_lease_is_over() {
    let mut lab = led(3, |_| {});
    next_leader_after_the_lease(&mut lab);
}

// A voter that restarts has forgotten whom it heard, and the lease still rests on it.
#[test]
fn a_restarted_voter_keeps_the_promise_that_it_may_have_made() {
    let mut lab = led(3, |_| {});
    // Node 3 has not heard the leader for long, and asks for votes all the time.
    for other in [1, 2] {
        lab.cut.extend([(3, other), (other, 3)]);
    }
    lab.run(2000 * MS);
    assert_eq!(lab.leader(), Some(1));
    lab.cut.remove(&(3, 2));
    lab.cut.remove(&(2, 3));
    lab.restart(2);
    let restarted_at = lab.now;
    lab.cut.extend([(1, 2), (2, 1)]);
    // Both ask: node 3 as ever, and node 2 on the word of an operator.
    lab.step(2, Input::Campaign);
    lab.step(3, Input::Campaign);
    while lab.now < restarted_at + ELECTION - MS {
        lab.run(MS);
        lab.step(3, Input::Campaign);
        lab.settle();
        assert_eq!(
            (lab.status(2).role, lab.status(3).role == Role::Leader),
            (Role::Follower, false)
        );
    }
    lab.run(1500 * MS);
    assert_ne!(lab.leader(), Some(1));
}

#[test]
fn a_node_that_has_never_run_promises_nothing() {
    let mut lab = Lab::with(3, leasing);
    lab.step(2, Input::Campaign);
    lab.settle();
    assert_eq!((lab.leader(), lab.now), (Some(2), 0), "nobody had to wait");
}

// A voter learns of a term from a node that does not lead it, and has voted for nobody there.
#[test]
fn a_promise_outlives_the_term_in_which_it_was_made() {
    let mut lab = led(3, |_| {});
    lab.isolate(1);
    let term = lab.status(2).term + 1;
    let heard_at = send_a_beat_to(&mut lab, 2);
    lab.send(3, 2, Message::PreVoteReply(VoteReply { term, granted: false }));
    assert_eq!((lab.status(2).term, lab.status(2).leader), (term, None));
    let last = lab.status(2).last;
    let last_term = lab.core(2).term_at(last).unwrap();
    let question = VoteRequest { term, last_index: last, last_term, transfer: false };
    let votes = |lab: &mut Lab| {
        lab.send(3, 2, Message::Vote(question));
        let answers = lab.take(|letter| matches!(letter.message, Message::VoteReply(_)));
        answers.iter().any(|letter| {
            matches!(letter.message, Message::VoteReply(VoteReply { granted: true, .. }))
        })
    };
    lab.now = heard_at + ELECTION - 1;
    assert!(!votes(&mut lab));
    lab.now = heard_at + ELECTION;
    assert!(votes(&mut lab));
}

/// A heartbeat of node 1 reaches a node. Returns when.
fn send_a_beat_to(lab: &mut Lab, to: u64) -> u64 {
    let term = lab.status(1).term;
    let beat = voussoir_raft::Heartbeat { term, round: 1, commit: 0 };
    lab.send(1, to, Message::Heartbeat(beat));
    lab.wire.clear();
    lab.now
}

#[test]
fn an_operator_cannot_make_a_voter_break_its_promise() {
    let mut lab = led(3, |_| {});
    // Node 3 would vote for it at once.
    lab.cut.extend([(1, 3)]);
    lab.run(250 * MS);
    lab.cut.extend([(2, 1)]);
    let heard_at = send_a_beat_to(&mut lab, 2);
    lab.now = heard_at + ELECTION - 1;
    lab.step(2, Input::Campaign);
    assert_eq!(lab.take(|letter| letter.from == 2).len(), 0, "it asks nobody");
    lab.now = heard_at + ELECTION;
    lab.step(2, Input::Campaign);
    assert_ne!(lab.take(|letter| letter.from == 2).len(), 0);
}

#[test]
fn a_bound_on_clocks_is_a_share_of_a_half_at_most() {
    for ppm in [0, 500_001, u32::MAX] {
        let mut config = Config::new(1, [1]);
        config.max_clock_drift_ppm = Some(ppm);
        let ConfigError { field, rule, .. } = config.validate().unwrap_err();
        assert_eq!((field, rule), ("max_clock_drift_ppm", "must be between 1 and 500,000"));
    }
}
