//! Groups that rest: when they do, what wakes them, and what other implementations got wrong.

mod common;

use common::{Lab, Letter, MS};
use voussoir_raft::core::{Input, Output};
use voussoir_raft::{Config, Message, Role};

/// The life of a node's process.
fn life(node: u64) -> u64 {
    node * 100
}

fn everybody_knows(lab: &mut Lab, node: u64, life: Option<u64>) {
    for id in lab.ids() {
        lab.step(id, Input::Node { node, life });
    }
}

fn awake(tweak: impl Fn(&mut Config) + 'static) -> Lab {
    let mut lab = Lab::with(3, tweak);
    for node in lab.ids() {
        everybody_knows(&mut lab, node, Some(life(node)));
    }
    lab.elect(1);
    lab.propose(1, 1, "x");
    lab.settle();
    lab
}

/// Three nodes that know each other to be alive and rest, with node 1 as the leader.
fn resting() -> Lab {
    let mut lab = awake(|_| ());
    lab.run(2000 * MS);
    assert_resting(&lab, &[1, 2, 3]);
    lab
}

fn assert_resting(lab: &Lab, ids: &[u64]) {
    for id in ids {
        assert!(lab.status(*id).is_quiesced, "node {id} is awake");
        assert_eq!(lab.core(*id).next_deadline(), None, "node {id} waits for something");
    }
}

fn assert_awake(lab: &Lab, ids: &[u64]) {
    for id in ids {
        assert!(!lab.status(*id).is_quiesced, "node {id} rests");
        assert!(lab.core(*id).next_deadline().is_some(), "node {id} waits for nothing");
    }
}

fn is_quiesce(letter: &Letter) -> bool {
    matches!(letter.message, Message::Quiesce(_))
}

/// Letters that the nodes send within `ns`.
fn letters_in(lab: &mut Lab, ns: u64) -> Vec<Letter> {
    let mut sent = Vec::new();
    let end = lab.now + ns;
    while lab.now < end {
        lab.run_without(MS, |_| true);
        sent.extend(lab.wire.iter().cloned());
        lab.settle();
    }
    sent
}

#[test]
fn a_group_rests_for_hours_and_goes_on_where_it_was() {
    let mut lab = resting();
    let before = [1, 2, 3].map(|id| lab.status(id));
    assert!(letters_in(&mut lab, 5000 * MS).is_empty(), "it is silent");
    lab.now += 7_200_000 * MS;
    // A timer that rings early, or late, changes nothing.
    for id in lab.ids() {
        lab.step(id, Input::Tick);
        lab.step(id, Input::Beat);
    }
    assert!(lab.wire.is_empty());
    assert_eq!([1, 2, 3].map(|id| lab.status(id)), before);
    lab.propose(1, 2, "y");
    assert_awake(&lab, &[1]);
    lab.settle();
    lab.run(300 * MS);
    for id in lab.ids() {
        assert_eq!((lab.commands(id), lab.status(id).term), (vec!["x".into(), "y".into()], 1));
    }
    lab.run(2000 * MS);
    assert_resting(&lab, &[1, 2, 3]);
}

#[test]
fn a_group_never_rests_where_nobody_says_who_is_alive() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.run(10_000 * MS);
    assert_awake(&lab, &[1, 2, 3]);
    // Nor while one of them is not known to be.
    let mut lab = awake(|_| ());
    everybody_knows(&mut lab, 3, None);
    lab.run(10_000 * MS);
    assert_awake(&lab, &[1, 2, 3]);
    everybody_knows(&mut lab, 3, Some(life(3) + 1));
    lab.run(2000 * MS);
    assert_resting(&lab, &[1, 2, 3]);
    let mut lab = awake(|config| config.quiesce_after = None);
    lab.run(10_000 * MS);
    assert_awake(&lab, &[1, 2, 3]);
}

#[test]
fn a_leader_rests_only_when_everybody_has_everything() {
    // One follower's disk is slow: it has received all, and made it durable nowhere.
    let mut lab = awake(|_| ());
    lab.node_mut(3).fast_disk = false;
    lab.propose(1, 2, "y");
    let sent = letters_in(&mut lab, 5000 * MS);
    assert!(!sent.iter().any(is_quiesce), "the leader said that all was done");
    assert_awake(&lab, &[1, 2, 3]);
    assert_eq!(lab.status(1).commit, lab.status(1).last, "a majority has it");
    lab.node_mut(3).fast_disk = true;
    lab.sync(3);
    lab.run(3000 * MS);
    assert_resting(&lab, &[1, 2, 3]);
    // One follower is cut off, though its node is alive.
    lab.cut.insert((1, 3));
    lab.propose(1, 3, "z");
    lab.run_without(100 * MS, |letter| letter.from == 3);
    assert_awake(&lab, &[1, 2]);
    lab.run_without(5000 * MS, |letter| letter.from == 3);
    assert_awake(&lab, &[1, 2]);
}

#[test]
fn a_leader_with_work_in_hand_does_not_rest() {
    // A proposal every 900 ms: it never has nothing to do for a second.
    let mut lab = awake(|_| ());
    for token in 2..12 {
        lab.run(900 * MS);
        assert_awake(&lab, &[1]);
        lab.propose(1, token, "x");
    }
}

#[test]
fn a_follower_that_is_behind_wakes_its_leader() {
    let mut lab = awake(|_| ());
    lab.run(900 * MS);
    // Node 3 has a read of its own that nobody answers, and so cannot rest.
    lab.step(3, Input::Read { token: 5 });
    lab.take(|letter| letter.from == 3);
    lab.run_without(200 * MS, is_quiesce);
    let words = lab.take(is_quiesce);
    assert_eq!(words.len(), 2, "{words:?}");
    assert_resting(&lab, &[1]);
    for Letter { from, to, message } in words {
        lab.send(from, to, message);
    }
    assert!(lab.status(2).is_quiesced && !lab.status(3).is_quiesced);
    lab.settle();
    assert_awake(&lab, &[1, 2, 3]);
    let ready = |output: &Output| matches!(output, Output::ReadReady { token: 5, .. });
    lab.run(1000 * MS);
    assert_eq!(lab.seen(3, ready).len(), 1, "and the read is answered");
}

/// CockroachDB 9372: the group rests, but for one follower.
#[test]
fn a_lost_word_of_rest_costs_an_election_timeout_and_no_term() {
    let mut lab = awake(|_| ());
    lab.run_without(1100 * MS, |letter| is_quiesce(letter) && letter.to == 3);
    assert_resting(&lab, &[1, 2]);
    lab.take(is_quiesce);
    lab.run(500 * MS);
    assert_eq!(lab.status(3).term, 1, "its pre-vote was refused");
    assert_eq!(lab.status(1).role, Role::Leader);
    lab.run(2000 * MS);
    assert_resting(&lab, &[1, 2, 3]);
}

#[test]
fn a_node_that_starts_again_does_not_disturb_a_group_at_rest() {
    let mut lab = resting();
    lab.restart(3);
    for node in lab.ids() {
        lab.step(3, Input::Node { node, life: Some(life(node)) });
    }
    everybody_knows(&mut lab, 3, Some(life(3) + 1));
    lab.run(3000 * MS);
    assert_eq!((lab.status(1).role, lab.status(1).term), (Role::Leader, 1), "not disturbed");
    assert_resting(&lab, &[1, 2, 3]);
}

#[test]
fn a_leader_at_rest_speaks_up_for_a_node_that_is_back() {
    let mut lab = resting();
    lab.restart(3);
    lab.step(1, Input::Node { node: 3, life: Some(life(3) + 1) });
    lab.settle();
    assert_eq!(lab.status(3).leader, Some(1), "at once, and not after an election timeout");
}

#[test]
fn a_follower_asked_by_a_restarted_one_holds_on_to_its_leader() {
    let mut lab = resting();
    lab.restart(3);
    // Its question reaches the other follower only.
    lab.cut.insert((3, 1));
    lab.time_out(3);
    lab.settle();
    let (status, other) = (lab.status(3), lab.status(2));
    assert_eq!((status.term, status.role != Role::Candidate), (1, true), "refused: {status:?}");
    assert_eq!((other.leader, other.is_quiesced), (Some(1), false), "awake, and led");
}

/// Else two of three wait for an election beside a leader that rests on, and vote it out.
#[test]
fn a_follower_that_another_one_wakes_wakes_the_leader() {
    let mut lab = resting();
    lab.restart(3);
    lab.cut.insert((3, 1));
    lab.time_out(3);
    lab.run(3000 * MS);
    assert_eq!((lab.status(1).role, lab.status(1).term), (Role::Leader, 1));
    assert!([2, 3].iter().all(|id| lab.status(*id).leader == Some(1)), "{:?}", lab.status(3));
}

#[test]
fn followers_of_a_dead_node_elect_another_leader() {
    let mut lab = resting();
    lab.isolate(1);
    lab.run(5000 * MS);
    assert_resting(&lab, &[2, 3]);
    everybody_knows(&mut lab, 1, None);
    lab.run(1000 * MS);
    let leader = lab.leader().unwrap();
    assert!(leader != 1 && lab.status(leader).term > 1, "{:?}", lab.status(leader));
}

/// Whoever rests under a dead node must not refuse those who found out first: the memory of a
/// leader does not age while nothing is counted.
#[test]
fn who_wakes_first_is_not_refused_by_who_rests_on() {
    let mut lab = resting();
    lab.isolate(1);
    lab.now += 60_000 * MS;
    lab.step(2, Input::Node { node: 1, life: None });
    assert_awake(&lab, &[2]);
    assert_resting(&lab, &[3]);
    lab.run(3000 * MS);
    assert_eq!(lab.status(2).role, Role::Leader, "{:?}", lab.status(3));
}

/// TiKV 18916. Both know that the leader's node is gone: the first question is granted, and not
/// the second.
#[test]
fn the_orphans_of_a_dead_node_grant_votes_at_once() {
    let mut lab = resting();
    lab.isolate(1);
    lab.now += 60_000 * MS;
    everybody_knows(&mut lab, 1, None);
    let first = lab.core(2).next_deadline().unwrap().min(lab.core(3).next_deadline().unwrap());
    lab.run(first - lab.now + MS);
    assert!([2, 3].iter().any(|id| lab.status(*id).role == Role::Leader), "{:?}", lab.status(2));
}

/// TiKV 16429: whoever has to refuse a vote, because its own log is longer, must not rest on.
#[test]
fn who_refuses_for_its_longer_log_asks_itself() {
    let mut lab = resting();
    lab.isolate(2);
    lab.step(1, Input::Node { node: 2, life: None });
    lab.propose(1, 2, "y");
    lab.run(300 * MS);
    assert_eq!(lab.commands(3), ["x", "y"]);
    // Node 1 goes too, and the rest of the group is connected. Only node 2 has found out.
    lab.heal();
    lab.isolate(1);
    lab.step(2, Input::Node { node: 1, life: None });
    lab.run(3000 * MS);
    assert_eq!(lab.status(3).role, Role::Leader, "{:?}", lab.status(2));
}

/// CockroachDB 104212: a lost connection leaves no follower in doubt, and wakes nobody.
#[test]
fn a_broken_connection_does_not_disturb_a_group_at_rest() {
    let mut lab = resting();
    for (id, peer) in [(1, 2), (2, 1), (1, 3), (2, 3)] {
        lab.step(id, Input::Unreachable { peer });
    }
    assert!(lab.wire.is_empty(), "{:?}", lab.wire);
    assert_resting(&lab, &[1, 2, 3]);
    let state = |status: &voussoir_raft::FollowerStatus| status.state;
    let states: Vec<_> = lab.core(1).followers().map(|status| state(&status)).collect();
    assert_eq!(states, [voussoir_raft::FollowerState::Replicating; 2]);
}

/// The leader's node is alive again before anybody missed it, and its replica follows now.
#[test]
fn followers_wake_when_the_leaders_node_has_another_life() {
    let mut lab = resting();
    lab.crash(1);
    everybody_knows(&mut lab, 1, Some(life(1) + 1));
    assert_awake(&lab, &[2, 3]);
    lab.run(1000 * MS);
    assert!(lab.leader().is_some_and(|leader| leader != 1));
}

/// The leader's replica is gone, though its node lives.
#[test]
fn an_ended_leadership_wakes_those_who_rest_on_it() {
    let mut lab = resting();
    assert_eq!(lab.core(1).quiesced_reign(), Some(1));
    assert_eq!(lab.core(2).quiesced_reign(), None, "a follower has none");
    lab.crash(1);
    lab.run(5000 * MS);
    assert_resting(&lab, &[2, 3]);
    for id in [2, 3] {
        lab.step(id, Input::Resigned { from: 3, term: 1 });
        lab.step(id, Input::Resigned { from: 1, term: 0 });
    }
    assert_resting(&lab, &[2, 3]);
    for id in [2, 3] {
        lab.step(id, Input::Resigned { from: 1, term: 1 });
    }
    assert_awake(&lab, &[2, 3]);
    lab.run(1000 * MS);
    assert!(lab.leader().is_some_and(|leader| leader != 1));
}

#[test]
fn a_late_word_of_rest_from_an_ended_leadership_is_not_followed() {
    let mut lab = awake(|_| ());
    lab.run_without(1400 * MS, |letter| is_quiesce(letter) && letter.to == 2);
    let late = lab.take(is_quiesce);
    assert!(!late.is_empty());
    lab.step(2, Input::Resigned { from: 1, term: 1 });
    lab.crash(1);
    for Letter { from, to, message } in late {
        lab.send(from, to, message);
    }
    assert_awake(&lab, &[2]);
}

#[test]
fn a_late_word_of_rest_from_an_earlier_life_is_not_followed() {
    let mut lab = awake(|_| ());
    lab.run_without(1400 * MS, |letter| is_quiesce(letter) && letter.to == 2);
    let late = lab.take(is_quiesce);
    assert!(!late.is_empty());
    lab.step(2, Input::Node { node: 1, life: Some(life(1) + 1) });
    for Letter { from, to, message } in late {
        lab.send(from, to, message);
    }
    assert_awake(&lab, &[2]);
}

/// A leader that nobody needed for an hour has been silent to everybody for an hour.
#[test]
fn a_leader_that_wakes_is_not_out_of_touch() {
    let mut lab = resting();
    lab.now += 3_000_000 * MS;
    lab.propose(1, 2, "y");
    lab.step(1, Input::Tick);
    assert_eq!(lab.status(1).role, Role::Leader, "stepped down before anybody could answer");
    lab.settle();
    assert_eq!(lab.commands(1), ["x", "y"]);
}

/// It may have been replaced: it wakes, asks, and steps down.
#[test]
fn a_leader_at_rest_that_loses_the_majority_finds_out() {
    let mut lab = resting();
    lab.isolate(1);
    lab.step(1, Input::Node { node: 2, life: None });
    assert_resting(&lab, &[1]);
    lab.step(1, Input::Node { node: 3, life: None });
    assert_awake(&lab, &[1]);
    lab.run(1000 * MS);
    assert_ne!(lab.status(1).role, Role::Leader, "it steps down");
}

#[test]
fn reads_wake_whoever_they_are_asked_of() {
    for id in [1, 2] {
        let mut lab = resting();
        lab.step(id, Input::Read { token: 4 });
        assert_awake(&lab, &[id]);
        lab.settle();
        let ready = |output: &Output| matches!(output, Output::ReadReady { token: 4, .. });
        assert_eq!(lab.seen(id, ready).len(), 1, "node {id}");
    }
}

/// A lease rests on heartbeats: there is none after a rest.
#[test]
fn a_lease_does_not_outlast_a_rest() {
    let mut lab = awake(|config| config.max_clock_drift_ppm = Some(1000));
    lab.run(3000 * MS);
    assert_resting(&lab, &[1, 2, 3]);
    lab.now += 60_000 * MS;
    let by_lease = lab.core(1).lease_reads();
    lab.step(1, Input::Read { token: 4 });
    assert_eq!(lab.core(1).lease_reads(), by_lease, "answered without asking anybody");
    lab.settle();
    let by_lease = lab.core(1).lease_reads();
    lab.step(1, Input::Read { token: 5 });
    assert_eq!(lab.core(1).lease_reads(), by_lease + 1, "and then it has one again");
}

/// The followers' promises outlast the news that the leader's node is gone: it may be wrong.
#[test]
fn a_promise_outlasts_the_news_of_the_leaders_death() {
    let mut lab = awake(|config| {
        config.max_clock_drift_ppm = Some(1000);
        config.quiesce_after = Some(std::time::Duration::from_millis(60));
    });
    lab.run(150 * MS);
    assert_resting(&lab, &[1, 2, 3]);
    for id in [2, 3] {
        lab.step(id, Input::Node { node: 1, life: None });
    }
    lab.step(2, Input::Campaign);
    lab.settle();
    assert_eq!((lab.status(2).term, lab.status(1).role), (1, Role::Leader));
    let by_lease = lab.core(1).lease_reads();
    lab.step(1, Input::Read { token: 4 });
    assert!(lab.core(1).lease_reads() > by_lease, "the lease is still good, and so has to be true");
}

/// A learner cannot campaign, and so has to ask: its leader may only rest.
#[test]
fn a_learner_that_missed_a_word_finds_its_leader_at_rest() {
    let mut lab = Lab::growing(3, 1);
    for node in lab.ids() {
        everybody_knows(&mut lab, node, Some(life(node)));
    }
    lab.elect(1);
    let change = voussoir_raft::Change::new().learner(4);
    lab.step(1, Input::Change { token: 1, change });
    lab.run(3000 * MS);
    assert_resting(&lab, &[1, 2, 3, 4]);
    // Its question is lost.
    lab.step(4, Input::Read { token: 7 });
    lab.take(|letter| letter.from == 4);
    lab.run(1000 * MS);
    let ready = |output: &Output| matches!(output, Output::ReadReady { token: 7, .. });
    assert_eq!(lab.seen(4, ready).len(), 1, "{:?}", lab.status(4));
    // It starts again, in the same life of its node.
    lab.run(3000 * MS);
    lab.restart(4);
    for node in lab.ids() {
        lab.step(4, Input::Node { node, life: Some(life(node)) });
    }
    lab.run(1000 * MS);
    assert_eq!(lab.status(4).leader, Some(1), "{:?}", lab.status(4));
    lab.run(2000 * MS);
    assert_resting(&lab, &[1, 2, 3, 4]);
}

/// Answers come a heartbeat late, every time.
#[test]
fn a_group_with_long_round_trips_rests_too() {
    let mut lab = awake(|_| ());
    lab.run_without(20 * MS, |_| true);
    let mut under_way = std::collections::VecDeque::new();
    for _ in 0..150 {
        under_way.push_back(lab.take(|_| true));
        if under_way.len() > 3 {
            for Letter { from, to, message } in under_way.pop_front().unwrap() {
                lab.send(from, to, message);
            }
        }
        lab.run_without(20 * MS, |_| true);
    }
    assert_resting(&lab, &[1, 2, 3]);
}

/// A disk that stalls at rest takes the leadership when somebody needs it.
#[test]
fn a_leader_that_wakes_on_a_hung_disk_steps_down() {
    let mut lab = resting();
    lab.node_mut(1).fast_disk = false;
    lab.now += 60_000 * MS;
    lab.propose(1, 2, "y");
    lab.run(1500 * MS);
    assert_ne!(lab.status(1).role, Role::Leader);
    assert_eq!(lab.core(1).quiesced_reign(), None, "and the reign that rested is over");
    lab.run(1500 * MS);
    assert!(lab.leader().is_some_and(|leader| leader != 1));
}

#[test]
fn a_change_of_the_membership_wakes_the_group_and_lets_it_rest_again() {
    let mut lab = Lab::growing(3, 1);
    for node in lab.ids() {
        everybody_knows(&mut lab, node, Some(life(node)));
    }
    lab.elect(1);
    lab.run(2500 * MS);
    assert_resting(&lab, &[1, 2, 3]);
    let change = voussoir_raft::Change::new().voter(4).remove(2);
    lab.step(1, Input::Change { token: 1, change });
    assert_awake(&lab, &[1]);
    lab.run(4000 * MS);
    assert_eq!(lab.core(1).members().voters(), [1, 3, 4]);
    assert_resting(&lab, &[1, 3, 4]);
}

/// A group of one has nobody to tell.
#[test]
fn a_group_of_one_rests_too() {
    let mut lab = Lab::new(1);
    lab.step(1, Input::Node { node: 1, life: Some(5) });
    lab.run(3000 * MS);
    assert_resting(&lab, &[1]);
    lab.propose(1, 1, "x");
    assert_eq!(lab.commands(1), ["x"]);
}

/// The common tick takes the place of each group's own.
#[test]
fn the_common_tick_sends_the_heartbeats() {
    let mut lab = awake(|_| ());
    let beats =
        |lab: &Lab| lab.wire.iter().filter(|l| matches!(l.message, Message::Heartbeat(_))).count();
    // No entries stand for them any more.
    lab.run(100 * MS);
    for _ in 0..10 {
        lab.step(1, Input::Beat);
        lab.step(2, Input::Beat);
        assert_eq!(beats(&lab), 2, "one to each follower, of the leader only");
        lab.settle();
        lab.run_without(50 * MS, |letter| matches!(letter.message, Message::Heartbeat(_)));
        assert_eq!(beats(&lab), 0, "none of its own between two ticks");
    }
    lab.run_without(50 * MS, |letter| matches!(letter.message, Message::Heartbeat(_)));
    assert_eq!(beats(&lab), 2, "unless the tick stays away");
}

/// Ten thousand new leaders need not beat for a second each.
#[test]
fn a_leader_that_nobody_has_asked_anything_rests_at_once() {
    let mut lab = Lab::new(3);
    for node in lab.ids() {
        everybody_knows(&mut lab, node, Some(life(node)));
    }
    lab.elect(1);
    lab.run(300 * MS);
    assert_resting(&lab, &[1, 2, 3]);
    assert_eq!(lab.status(3).commit, lab.status(1).last, "and everybody has its first entry");
    // Once it was asked, by a follower too, it waits for more.
    lab.step(2, Input::Read { token: 5 });
    lab.settle();
    lab.run(900 * MS);
    assert_awake(&lab, &[1]);
    lab.run(1000 * MS);
    assert_resting(&lab, &[1, 2, 3]);
}

/// When this node asks for pre-votes, within `ns`.
fn elections_in(lab: &mut Lab, id: u64, ns: u64) -> Vec<u64> {
    let (mut asked, end) = (Vec::new(), lab.now + ns);
    while lab.now < end {
        lab.run_without(MS, |_| true);
        let is_question =
            |letter: &Letter| letter.from == id && matches!(letter.message, Message::PreVote(_));
        if !lab.take(is_question).is_empty() {
            asked.push(lab.now);
        }
        lab.wire.clear();
    }
    asked
}

#[test]
fn a_node_that_hears_no_majority_of_nodes_seldom_campaigns() {
    let mut lab = Lab::new(3);
    let few = |asked: &[u64]| (2..=8).contains(&asked.len());
    lab.step(1, Input::Node { node: 1, life: Some(life(1)) });
    let asked = elections_in(&mut lab, 1, 10_000 * MS);
    assert!(few(&asked), "{asked:?}");
    // It need not wait for its late turn once there is somebody to ask.
    let heard_at = lab.now;
    lab.step(1, Input::Node { node: 3, life: Some(life(3)) });
    let asked = elections_in(&mut lab, 1, 2000 * MS);
    assert!(asked[0] - heard_at <= 402 * MS && asked.len() >= 5, "{asked:?} after {heard_at}");
    lab.step(1, Input::Node { node: 3, life: None });
    let asked = elections_in(&mut lab, 1, 10_000 * MS);
    assert!(few(&asked), "{asked:?}");
    // Where nobody says who is alive, anybody may be.
    lab.restart(1);
    let asked = elections_in(&mut lab, 1, 2000 * MS);
    assert!(asked.len() >= 5, "{asked:?}");
}
