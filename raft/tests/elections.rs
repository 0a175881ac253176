//! Elections that other implementations lost, never ended or won twice.

mod common;

use common::live::Live;
use common::{Lab, MS};
use voussoir_raft::core::Input;
use voussoir_raft::{Message, Role, VoteReply, VoteRequest};

// A vote for an adopted leader later counted as granted to a stale candidate.
#[test]
fn votes_of_another_term_or_round_do_not_count() {
    let mut lab = Lab::new(3);
    lab.time_out(1);
    lab.settle_without(|letter| matches!(letter.message, Message::VoteReply(_)));
    lab.take(|_| true);
    for term in [0, 2] {
        let before = lab.status(1).term;
        if term < before {
            lab.send(2, 1, Message::VoteReply(VoteReply { term, granted: true }));
        }
        let early = VoteReply { term: before, granted: true };
        lab.send(2, 1, Message::PreVoteReply(early));
        assert_eq!(lab.status(1).role, Role::Candidate);
    }
    lab.send(9, 1, Message::VoteReply(VoteReply { term: 1, granted: true }));
    assert_eq!(lab.status(1).role, Role::Candidate, "node 9 has no vote");
}

#[test]
fn an_operator_can_ask_a_node_to_campaign() {
    let mut lab = Lab::new(3);
    lab.step(2, Input::Campaign);
    lab.settle();
    assert_eq!((lab.leader(), lab.now), (Some(2), 0), "nobody had to wait");
    lab.step(2, Input::Campaign);
    lab.run(60 * MS);
    lab.step(3, Input::Campaign);
    lab.run(500 * MS);
    assert_eq!((lab.leader(), lab.status(2).term), (Some(2), 1), "who hears a leader refuses");
}

// A vote that waits for its write is pushed out of a full queue by answers to other candidates.
#[test]
fn a_vote_that_waits_for_the_disk_is_not_lost_among_other_answers() {
    let mut lab = Lab::new(5);
    lab.node_mut(2).fast_disk = false;
    let question =
        Message::Vote(VoteRequest { term: 1, last_index: 0, last_term: 0, transfer: false });
    lab.send(1, 2, question.clone());
    for _ in 0..1000 {
        for candidate in 3..=5 {
            lab.send(candidate, 2, question.clone());
        }
    }
    assert!(lab.take(|letter| letter.from == 2).is_empty(), "nothing is promised yet");
    lab.sync(2);
    let answers = lab.take(|letter| letter.from == 2);
    let granted = |to| Message::VoteReply(VoteReply { term: 1, granted: to == 1 });
    let mut told: Vec<u64> = answers.iter().map(|answer| answer.to).collect();
    told.sort_unstable();
    assert_eq!(told, [1, 3, 4, 5], "each candidate gets one answer");
    assert!(answers.iter().all(|answer| answer.message == granted(answer.to)), "{answers:?}");
}

// A single voter begins a new term, and a new write, while its vote is still being written.
#[test]
fn a_single_voter_waits_for_its_disk_to_write_its_vote() {
    for write_ms in [2, 60, 500, 950] {
        let mut lab = Lab::new(1);
        lab.node_mut(1).fast_disk = false;
        let mut turns = 0;
        for _ in 0..write_ms {
            lab.now += MS;
            lab.step(1, Input::Tick);
            turns += u64::from(lab.core(1).next_deadline().unwrap() <= lab.now);
        }
        assert_eq!((lab.status(1).term, lab.node(1).writes.len()), (1, 1), "{write_ms} ms");
        assert_eq!(turns, 0, "its deadline is in the future: nobody spins");
        lab.sync(1);
        assert_eq!(lab.leader(), Some(1), "{write_ms} ms");
    }
}

// A stalled disk of a single voter costs the leadership, which nobody else can take over.
#[test]
fn a_single_voter_outlasts_a_stalled_disk() {
    let mut lab = Lab::new(1);
    lab.run(10 * MS);
    lab.node_mut(1).fast_disk = false;
    lab.propose(1, 1, "x");
    lab.run(10_000 * MS);
    assert!(lab.core(1).next_deadline().unwrap() > lab.now, "nobody spins");
    assert_eq!((lab.leader(), lab.status(1).term), (Some(1), 1));
    lab.sync(1);
    assert_eq!(lab.commands(1), ["x"]);

    // The same before there is a leader.
    lab.restart(1);
    lab.run(10_000 * MS);
    assert_eq!((lab.status(1).term, lab.leader()), (2, None));
    lab.node_mut(1).fast_disk = true;
    lab.sync(1);
    lab.run(500 * MS);
    assert_eq!(lab.leader(), Some(1));
}

// Writes that are slower than the election timeouts: the candidate's and its voters' follow each
// other, so every election is abandoned before it can be won.
#[test]
fn slow_writes_delay_an_election_and_do_not_prevent_it() {
    for write_ms in [50, 160, 200, 300, 500, 900] {
        let mut live = Live::new(3, 0);
        live.run(4000, |_| write_ms, |_| 1);
        assert!(live.lab.leader().is_some(), "writes of {write_ms} ms");
        let reign = live.term();
        assert!(reign <= 3, "writes of {write_ms} ms: {reign} terms");
        live.lab.propose(live.lab.leader().unwrap(), 1, "x");
        live.run(4000, |_| write_ms, |_| 1);
        assert_eq!(live.term(), reign, "writes of {write_ms} ms: the reign goes on");
        assert_eq!(live.lab.commands(live.lab.leader().unwrap()), ["x"], "writes of {write_ms} ms");
    }
}

// One slow disk among fast ones: a fast node leads.
#[test]
fn slow_voters_elect_a_fast_candidate_and_a_slow_one_does_not_stand_in_the_way() {
    for slow in [&[1_u64][..], &[1, 2]] {
        let mut live = Live::new(3, 0);
        live.run(8000, |id| if slow.contains(&id) { 900 } else { 3 }, |_| 1);
        assert!(live.lab.leader().is_some(), "slow disks: {slow:?}");
    }
}

// Many short writes in a queue are taken for a disk that hangs.
#[test]
fn writes_that_queue_are_no_stall() {
    let mut lab = Lab::with(3, |config| config.max_persists = 16);
    lab.elect(1);
    lab.run(100 * MS);
    lab.node_mut(1).fast_disk = false;
    let mut token = 0;
    for _ in 0..20_000 / 70 {
        while lab.node(1).writes.len() < 16 {
            token += 1;
            lab.propose(1, token, "x");
        }
        lab.run(70 * MS);
        lab.sync_one(1);
        assert_eq!(lab.leader(), Some(1), "a write has completed every 70 ms");
    }
    // Without any completion it is one.
    lab.run(1100 * MS);
    assert_ne!(lab.leader(), Some(1));
}

// Round trips as long as the election timeouts: the next election begins before the answers come.
#[test]
fn long_round_trips_delay_an_election_and_do_not_prevent_it() {
    // Scattered by a fixed sequence: letters overtake each other.
    let scatter = |n: u64, spread: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (spread + 1);
    for (least, spread) in [(0, 0), (50, 100), (100, 0), (150, 100), (200, 0), (0, 400), (400, 0)] {
        let case = format!("one way {least} ms and up to {spread} ms more");
        let mut slowest = 0;
        for seed in 0..40 {
            let mut live = Live::new(3, seed);
            while live.lab.leader().is_none() && live.lab.now < 8000 * MS {
                live.run(100, |_| 2, |n| least + scatter(n, spread));
            }
            assert!(live.lab.leader().is_some(), "{case}, seed {seed}");
            slowest = slowest.max(live.lab.now / MS);
            live.run(3000, |_| 2, |n| least + scatter(n, spread));
            let reign = (live.lab.leader(), live.term());
            live.run(4000, |_| 2, |n| least + scatter(n, spread));
            assert_eq!((live.lab.leader(), live.term()), reign, "{case}, seed {seed}");
        }
        println!("{case}: led after {slowest} ms at most");
    }
}

// Failed elections must not make the next failover slow.
#[test]
fn waits_are_short_again_once_a_leader_is_heard() {
    let mut live = Live::new(3, 0);
    live.run(8000, |_| 2, |_| 300);
    let leader = live.lab.leader().unwrap();
    live.run(1000, |_| 2, |_| 1);
    live.lab.crash(leader);
    let before = live.term();
    live.run(1000, |_| 2, |_| 1);
    assert!(live.lab.leader().is_some() && live.term() > before, "{:?}", live.lab.leader());
}

// Votes count as long as the term lasts. A leader that has stepped down in its term has used them.
#[test]
fn a_late_vote_does_not_make_a_deposed_leader_lead_its_term_again() {
    let mut lab = Lab::new(5);
    lab.time_out(1);
    lab.settle_without(|letter| matches!(letter.message, Message::VoteReply(_)));
    let mut votes = lab.take(|_| true);
    let late = votes.split_off(2);
    for letter in votes {
        lab.send(letter.from, 1, letter.message);
    }
    assert_eq!((lab.leader(), lab.status(1).term), (Some(1), 1));
    lab.isolate(1);
    lab.run(450 * MS);
    assert_ne!(lab.status(1).role, Role::Leader);
    for letter in late {
        lab.send(letter.from, 1, letter.message);
    }
    assert_ne!(lab.status(1).role, Role::Leader);
}

// With an even number of voters half of them are enough to refuse.
#[test]
fn half_of_an_even_group_refuses_an_election() {
    for (voters, refusals) in [(2, 1), (3, 2), (4, 2), (5, 3), (6, 3)] {
        let mut lab = Lab::new(voters);
        lab.time_out(1);
        lab.settle_without(|letter| matches!(letter.message, Message::Vote(_)));
        lab.take(|_| true);
        for from in 2..2 + refusals {
            assert_eq!(lab.status(1).role, Role::Candidate, "{voters} voters");
            lab.send(from, 1, Message::VoteReply(VoteReply { term: 1, granted: false }));
        }
        assert_eq!(lab.status(1).role, Role::Follower, "{voters} voters, {refusals} refusals");
    }
}

// The question for votes leaves before the own vote is durable. After a crash the node may ask in
// the same term again, with a shorter log, and the answers to its earlier life arrive.
#[test]
fn votes_given_to_an_earlier_life_do_not_elect_a_shorter_log() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.run(100 * MS);
    lab.node_mut(3).fast_disk = false;
    lab.propose(1, 1, "committed");
    lab.settle();
    lab.run(60 * MS);
    assert_eq!((lab.status(1).commit, lab.status(2).commit, lab.status(3).last), (2, 2, 2));
    lab.isolate(1);
    lab.take(|_| true);
    // Node 3 asks while entry 2 is in its memory only, after it has let faster disks go first. All
    // answers are late.
    lab.time_out(3);
    lab.time_out(3);
    assert_eq!(lab.status(3).role, Role::PreCandidate);
    lab.deliver(|letter| letter.to == 2);
    let mut late = lab.take(|letter| letter.from == 2);
    late.iter().cloned().for_each(|letter| lab.send(2, 3, letter.message));
    lab.deliver(|letter| letter.to == 2);
    late.extend(lab.take(|letter| letter.from == 2));
    // It dies, comes back without the entry, and asks again.
    lab.restart(3);
    lab.node_mut(3).fast_disk = true;
    assert_eq!((lab.status(3).last, lab.status(3).term), (1, 1));
    lab.time_out(3);
    for letter in late {
        lab.send(2, 3, letter.message);
    }
    assert_ne!(lab.status(3).role, Role::Leader, "it lacks a committed entry");
    lab.heal();
    lab.run(2000 * MS);
    assert!(lab.ids().into_iter().all(|id| lab.commands(id) == ["committed"]));
}

// PreVote and stickiness together leave a cluster without a leader though a majority is up.
#[test]
fn a_majority_always_finds_a_leader() {
    for dead in 1..=5 {
        for partner in 1..=5 {
            let mut lab = Lab::new(5);
            lab.elect(dead);
            lab.propose(dead, 1, "x");
            lab.run(77 * MS);
            lab.crash(dead);
            lab.isolate(partner);
            lab.run(2500 * MS);
            let leader = lab.leader().unwrap();
            assert_ne!(lab.status(leader).term, 1);
        }
    }
}

// A follower that only one side can hear must neither depose the leader nor starve.
#[test]
fn one_way_links_do_not_end_a_reign() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.cut.insert((1, 3));
    lab.run(3000 * MS);
    assert_eq!((lab.leader(), lab.status(1).term), (Some(1), 1), "node 3 hears nothing");
    lab.heal();
    lab.cut.insert((2, 1));
    lab.cut.insert((3, 1));
    lab.run(3000 * MS);
    let leader = lab.leader().unwrap();
    assert!(leader != 1 && lab.status(leader).term > 1, "node 1 hears nothing and steps down");
}

// The leader's disk hangs without an error.
#[test]
fn a_leader_whose_disk_stalls_makes_room() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.node_mut(1).fast_disk = false;
    lab.propose(1, 1, "x");
    lab.run(900 * MS);
    assert_eq!((lab.leader(), lab.status(1).commit), (Some(1), 2), "the others are fast enough");
    lab.run(1200 * MS);
    assert!(lab.leader().is_some_and(|leader| leader != 1), "{:?}", lab.leader());
}

/// The next one need not wait until it misses the old one.
#[test]
fn a_leader_whose_disk_stalls_hands_over() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.node_mut(1).fast_disk = false;
    lab.propose(1, 1, "x");
    lab.run(990 * MS);
    assert_eq!(lab.leader(), Some(1), "a write may take a second");
    lab.run(50 * MS);
    assert!(lab.leader().is_some_and(|leader| leader != 1), "{:?}", lab.leader());
    // Without a peer that hears it there is nobody to hand over to.
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.isolate(1);
    lab.run(1000 * MS);
    assert!(lab.leader().is_some_and(|leader| leader != 1), "{:?}", lab.leader());
}
