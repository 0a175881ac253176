//! The sentences of the Raft paper and thesis that bind this version, one test each, by section.

mod common;

use common::{Lab, MS, entry};
use voussoir_raft::core::{Input, Output, TransferEnd};
use voussoir_raft::{
    AppendHead, Config, Heartbeat, Message, ProposeRejected, Role, VoteReply, VoteRequest,
};

fn append(term: u64, prev: (u64, u64), commit: u64, terms: &[u64]) -> Message {
    let entries = (prev.0 + 1..).zip(terms).map(|(index, term)| entry(index, *term, "new"));
    let (prev_index, prev_term) = prev;
    let head = AppendHead { term, session: 1, prev_index, prev_term, commit, probe: true };
    Message::Append { head, entries: entries.collect() }
}

fn vote(term: u64, last_index: u64, last_term: u64) -> Message {
    Message::Vote(VoteRequest { term, last_index, last_term, transfer: false })
}

/// The answers that node `id` has sent to `to`.
fn answers(lab: &mut Lab, id: u64, to: u64) -> Vec<Message> {
    let letters = lab.take(|letter| letter.from == id && letter.to == to);
    letters.into_iter().map(|letter| letter.message).collect()
}

// §5.1: "If one server's current term is smaller than the other's, then it updates its current
// term to the larger value. If a candidate or leader discovers that its term is out of date, it
// immediately reverts to follower state."
#[test]
fn s5_1_a_larger_term_is_taken_over_and_ends_a_reign() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.send(2, 1, Message::Stale { term: 9 });
    assert_eq!((lab.status(1).role, lab.status(1).term), (Role::Follower, 9));

    lab.send(2, 3, Message::Heartbeat(Heartbeat { term: 12, round: 1, commit: 0 }));
    assert_eq!((lab.status(3).leader, lab.status(3).term), (Some(2), 12));
}

// §5.1: "If a server receives a request with a stale term number, it rejects the request."
#[test]
fn s5_1_requests_of_a_stale_term_are_refused() {
    let mut lab = Lab::with_logs(&[(5, &[1]), (5, &[1]), (5, &[1])]);
    lab.send(2, 1, append(4, (1, 1), 1, &[4]));
    lab.send(2, 1, vote(4, 9, 3));
    let answers = answers(&mut lab, 1, 2);
    let refused = Message::VoteReply(VoteReply { term: 5, granted: false });
    assert_eq!(answers, [Message::Stale { term: 5 }, refused]);
    assert_eq!((lab.status(1).last, lab.status(1).leader), (1, None));
}

// §5.2: "When servers start up, they begin as followers." "Leaders send periodic heartbeats."
#[test]
fn s5_2_nodes_start_as_followers_and_leaders_beat() {
    let mut lab = Lab::new(3);
    assert!(lab.ids().into_iter().all(|id| lab.status(id).role == Role::Follower));
    lab.elect(1);
    for _ in 0..3 {
        lab.now += 50 * MS;
        lab.step(1, Input::Tick);
        let beats = lab.take(|letter| matches!(letter.message, Message::Heartbeat(_)));
        assert_eq!(beats.iter().map(|letter| letter.to).collect::<Vec<_>>(), [2, 3]);
        lab.settle();
    }
}

// §5.2: "To begin an election, a follower increments its current term and transitions to
// candidate state. It then votes for itself and issues RequestVote RPCs in parallel."
#[test]
fn s5_2_a_candidate_votes_for_itself_and_asks_everybody() {
    let mut lab = Lab::new(5);
    lab.time_out(3);
    lab.deliver(|letter| matches!(letter.message, Message::PreVote(_)));
    lab.deliver(|letter| matches!(letter.message, Message::PreVoteReply(_)));
    let status = lab.status(3);
    assert_eq!((status.role, status.term), (Role::Candidate, 1));
    assert_eq!(lab.core(3).hard_state().vote, Some(3));
    let asked = lab.take(|letter| matches!(letter.message, Message::Vote(_)));
    assert_eq!(asked.iter().map(|letter| letter.to).collect::<Vec<_>>(), [1, 2, 4, 5]);
}

// §5.2: "A candidate wins an election if it receives votes from a majority of the servers in the
// full cluster for the same term."
#[test]
fn s5_2_it_takes_a_majority_of_the_full_cluster() {
    for (size, votes_needed) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (7, 3)] {
        for votes in 0..size {
            let mut lab = Lab::new(size);
            lab.time_out(1);
            lab.settle_without(|letter| matches!(letter.message, Message::VoteReply(_)));
            let replies = lab.take(|_| true);
            assert_eq!(replies.len() as u64, size - 1);
            for letter in replies.into_iter().take(votes as usize) {
                lab.send(letter.from, 1, letter.message);
            }
            let won = lab.status(1).role == Role::Leader;
            assert_eq!(won, votes >= votes_needed, "{votes} votes of {size}");
        }
    }
}

// §5.2: "Each server will vote for at most one candidate in a given term, on a
// first-come-first-served basis." A restart does not make it forget.
#[test]
fn s5_2_one_vote_a_term_also_over_a_restart() {
    let mut lab = Lab::new(3);
    lab.send(2, 1, vote(7, 0, 0));
    lab.restart(1);
    lab.send(3, 1, vote(7, 5, 6));
    lab.send(2, 1, vote(7, 0, 0));
    let granted = |granted| Message::VoteReply(VoteReply { term: 7, granted });
    assert_eq!(answers(&mut lab, 1, 3), [granted(false)]);
    assert_eq!(answers(&mut lab, 1, 2), [granted(true), granted(true)]);
}

// Figure 2: persistent state is "updated on stable storage before responding to RPCs".
#[test]
fn figure_2_nothing_is_said_before_it_is_durable() {
    let mut lab = Lab::new(3);
    for id in lab.ids() {
        lab.node_mut(id).fast_disk = false;
    }
    lab.send(2, 1, vote(1, 0, 0));
    assert_eq!(lab.wire, []);
    lab.sync(1);
    assert_eq!(answers(&mut lab, 1, 2).len(), 1);

    lab.send(2, 1, append(1, (0, 0), 0, &[1, 1]));
    let early = answers(&mut lab, 1, 2);
    assert!(matches!(&early[..], [Message::AppendAck(ack)] if ack.matched == 0), "{early:?}");
    lab.sync(1);
    let late = answers(&mut lab, 1, 2);
    assert!(matches!(&late[..], [Message::AppendAck(ack)] if ack.matched == 2), "{late:?}");

    let mut lab = Lab::new(3);
    lab.node_mut(3).fast_disk = false;
    lab.time_out(3);
    lab.settle();
    assert_eq!(lab.status(3).role, Role::Candidate, "its own vote is not durable");
    lab.sync(3);
    lab.settle();
    assert_eq!(lab.status(3).role, Role::Leader);
}

// §5.2: "If the leader's term is at least as large as the candidate's current term, then the
// candidate recognizes the leader as legitimate. If the term is smaller, the candidate rejects
// the RPC and continues in candidate state."
#[test]
fn s5_2_a_candidate_yields_to_a_leader_of_its_term_only() {
    let mut lab = Lab::new(3);
    lab.time_out(1);
    lab.settle_without(|letter| matches!(letter.message, Message::VoteReply(_)));
    lab.take(|_| true);
    assert_eq!((lab.status(1).role, lab.status(1).term), (Role::Candidate, 1));
    lab.send(2, 1, append(0, (0, 0), 0, &[]));
    assert_eq!(lab.status(1).role, Role::Candidate);
    lab.send(2, 1, append(1, (0, 0), 0, &[]));
    assert_eq!((lab.status(1).role, lab.status(1).leader), (Role::Follower, Some(2)));
}

// §5.2: "Raft uses randomized election timeouts. Election timeouts are chosen randomly from a
// fixed interval." A split vote is resolved by another election.
#[test]
fn s5_2_timeouts_are_spread_over_the_interval() {
    let mut seen: Vec<u64> = Vec::new();
    for seed in 0..200 {
        let mut config = Config::new(1, [1, 2, 3]);
        config.seed = Some(seed);
        let restored = voussoir_raft::Restored::empty();
        let core = voussoir_raft::core::Core::new(config, restored, 0).unwrap();
        seen.push(core.next_deadline().unwrap() / MS);
    }
    assert!(seen.iter().all(|ms| (200..=400).contains(ms)));
    assert!(seen.iter().any(|ms| *ms < 220) && seen.iter().any(|ms| *ms > 380));
}

#[test]
fn s5_2_a_split_vote_is_followed_by_a_new_term() {
    let mut lab = Lab::new(4);
    lab.time_out(1);
    // Neither of the two hears that the other one asks as well.
    lab.take(|letter| letter.to == 2);
    lab.step(2, Input::Tick);
    lab.take(|letter| letter.to == 1);
    lab.settle_without(|letter| matches!(letter.message, Message::Vote(_)));
    lab.deliver(|letter| (letter.from, letter.to) == (1, 3));
    lab.deliver(|letter| (letter.from, letter.to) == (2, 4));
    lab.settle();
    assert_eq!(lab.leader(), None, "two votes each of four");
    lab.run(1500 * MS);
    let leader = lab.leader().unwrap();
    assert!(lab.status(leader).term > 1);
}

// §5.3: "The leader appends the command to its log as a new entry, then issues AppendEntries in
// parallel. When the entry has been safely replicated, the leader applies it."
#[test]
fn s5_3_commands_are_applied_once_a_majority_has_them_durably() {
    for (size, acks_needed) in [(2, 1), (3, 1), (5, 2)] {
        let mut lab = Lab::new(size);
        lab.elect(1);
        lab.propose(1, 7, "x");
        let sent = lab.wire.iter().filter(|letter| letter.from == 1).count() as u64;
        assert_eq!(sent, size - 1, "in parallel");
        for acks in 1..size {
            assert!(lab.commands(1).is_empty() || acks > acks_needed);
            lab.deliver(|letter| letter.to == acks + 1);
            lab.deliver(|letter| letter.from == acks + 1 && letter.to == 1);
        }
        assert_eq!(lab.commands(1), ["x"]);
    }
}

// Not in the paper: the leader itself may be the slow one.
#[test]
fn s5_3_the_leader_counts_itself_only_when_durable() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.node_mut(1).fast_disk = false;
    lab.isolate(3);
    lab.propose(1, 1, "x");
    lab.settle();
    assert_eq!(lab.status(1).commit, 1, "only node 2 has it");
    lab.heal();
    lab.run(300 * MS);
    assert_eq!(lab.status(1).commit, 2, "nodes 2 and 3 have it");
    assert_eq!((lab.commands(1), lab.status(1).durable), (vec!["x".to_owned()], 1));
}

// §5.3: "The leader decides when it is safe to apply; committing an entry also commits all
// preceding entries in the leader's log, including entries created by previous leaders."
#[test]
fn s5_3_a_commit_covers_all_that_precedes() {
    for old in [&[][..], &[1], &[1, 2], &[2, 2, 2]] {
        let logs: Vec<(u64, &[u64])> = vec![(2, old), (2, &[]), (2, &[])];
        let mut lab = Lab::with_logs(&logs);
        lab.elect(1);
        lab.propose(1, 1, "x");
        lab.settle();
        let mut expected = vec!["old"; old.len()];
        expected.push("x");
        assert_eq!(lab.commands(1), expected);
        lab.run(100 * MS);
        assert_eq!(lab.commands(2), expected, "followers learn the commit index");
    }
}

// §5.3: "If the follower does not find an entry in its log with the same index and term, then it
// refuses the new entries."
#[test]
fn s5_3_the_consistency_check() {
    for (prev, fits) in
        [((0, 0), true), ((1, 1), true), ((2, 2), true), ((2, 1), false), ((3, 3), false)]
    {
        let mut lab = Lab::with_logs(&[(2, &[1, 2]), (2, &[]), (2, &[])]);
        lab.send(2, 1, append(3, prev, 0, &[]));
        let answers = answers(&mut lab, 1, 2);
        let took = matches!(answers[..], [Message::AppendAck(_)]);
        let refused = matches!(answers[..], [Message::AppendReject(_)]);
        assert_eq!((took, refused), (fits, !fits), "{prev:?}");
    }
}

// Figure 2, AppendEntries: "If an existing entry conflicts with a new one, delete the existing
// entry and all that follow it. Append any new entries not already in the log." And: an append
// that is repeated, or overtaken by a longer one, deletes nothing.
#[test]
fn figure_2_conflicting_entries_go_and_nothing_else_does() {
    for (prev, new, expected) in [
        ((2, 2), &[3][..], &[1, 2, 3][..]),
        ((1, 1), &[3, 4], &[1, 3, 4]),
        ((0, 0), &[1], &[1, 2]),
        ((0, 0), &[3], &[3]),
        ((1, 1), &[2], &[1, 2]),
        ((0, 0), &[1, 2, 4], &[1, 2, 4]),
    ] {
        let mut lab = Lab::with_logs(&[(2, &[1, 2]), (2, &[]), (2, &[])]);
        lab.send(2, 1, append(4, prev, 0, new));
        assert_eq!(lab.terms(1), expected, "{new:?} after {prev:?}");
        let on_disk: Vec<u64> = lab.node(1).disk.entries.iter().map(|e| e.term).collect();
        assert_eq!(on_disk, expected, "the disk too");
    }
}

// Figure 2: "If leaderCommit > commitIndex, set commitIndex = min(leaderCommit, index of last new
// entry)": not the end of the own log, which may hold what the leader does not.
#[test]
fn figure_2_the_commit_index_stops_at_the_last_new_entry() {
    let mut lab = Lab::with_logs(&[(2, &[1, 1, 1]), (2, &[]), (2, &[])]);
    lab.send(2, 1, append(2, (1, 1), 3, &[]));
    assert_eq!(lab.status(1).commit, 1);
    lab.send(2, 1, Message::Heartbeat(Heartbeat { term: 2, round: 1, commit: 3 }));
    assert_eq!(lab.status(1).commit, 1);
    lab.send(2, 1, append(2, (1, 1), 3, &[1]));
    assert_eq!(lab.status(1).commit, 2);
}

// §5.3, figure 7: "the leader handles inconsistencies by forcing the followers' logs to duplicate
// its own." The six followers of the figure.
#[test]
fn figure_7_every_follower_ends_with_the_leaders_log() {
    let leader: &[u64] = &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6];
    let followers: [(u64, &[u64]); 6] = [
        (6, &[1, 1, 1, 4, 4, 5, 5, 6, 6]),
        (6, &[1, 1, 1, 4]),
        (6, &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6]),
        (7, &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7]),
        (4, &[1, 1, 1, 4, 4, 4, 4]),
        (3, &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3]),
    ];
    for (term, log) in followers {
        // A third node without a log helps the leader to its majority.
        let mut lab = Lab::with_logs(&[(7, leader), (term, log), (7, &[])]);
        lab.elect(1);
        lab.run(500 * MS);
        assert_eq!(lab.terms(2), lab.terms(1), "{log:?}");
    }
}

// §5.3: "one AppendEntries RPC will be required for each term with conflicting entries, rather
// than one RPC per entry."
#[test]
fn s5_3_the_place_of_agreement_is_found_by_terms() {
    let mut long = vec![1; 100];
    long.extend([3; 100]);
    let mut other = vec![1; 100];
    other.extend([2; 200]);
    let mut lab = Lab::with_logs(&[(3, &long), (2, &other), (3, &[])]);
    lab.isolate(2);
    lab.elect(1);
    lab.heal();
    lab.settle();
    let mut rounds = 0;
    while lab.terms(2) != lab.terms(1) {
        lab.now += 210 * MS;
        lab.step(1, Input::Tick);
        while lab.deliver(|letter| letter.to == 2) > 0 {
            rounds += 1;
            lab.deliver(|letter| letter.to == 1);
        }
        assert!(rounds < 12, "one round for each term, not for each entry");
    }
}

// §5.3: "A leader never overwrites or deletes entries in its log."
#[test]
fn s5_3_a_leader_only_appends() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.propose(1, 1, "x");
    let before = lab.terms(1);
    lab.send(2, 1, append(1, (0, 0), 0, &[1]));
    assert_eq!((lab.terms(1), lab.status(1).role), (before, Role::Leader));
}

// §5.4.1: "the voter denies its vote if its own log is more up-to-date than that of the
// candidate": the later last term wins, then the longer log.
#[test]
fn s5_4_1_votes_go_to_logs_that_are_at_least_as_up_to_date() {
    let cases: [(&[u64], u64, u64, bool); 7] = [
        (&[1], 1, 1, true),
        (&[1], 1, 2, true),
        (&[1, 1], 1, 1, false),
        (&[1], 2, 1, true),
        (&[2], 1, 1, false),
        (&[2], 2, 1, false),
        (&[1, 1], 1, 2, true),
    ];
    for (log, last_index, last_term, granted) in cases {
        let mut lab = Lab::with_logs(&[(2, log), (2, &[]), (2, &[])]);
        lab.send(2, 1, vote(3, last_index, last_term));
        let expected = Message::VoteReply(VoteReply { term: 3, granted });
        assert_eq!(answers(&mut lab, 1, 2), [expected], "{log:?} {last_index} {last_term}");
        let question = VoteRequest { term: 4, last_index, last_term, transfer: false };
        lab.send(3, 1, Message::PreVote(question));
        let term = if granted { 4 } else { 3 };
        let expected = Message::PreVoteReply(VoteReply { term, granted });
        assert_eq!(answers(&mut lab, 1, 3), [expected], "the same before the vote");
    }
}

// §5.4.2: "Raft never commits log entries from previous terms by counting replicas."
#[test]
fn s5_4_2_figure_8() {
    common::scenarios::figure_8().unwrap();
}

// §5.5: "Raft handles these failures by retrying indefinitely"; "Raft RPCs are idempotent".
#[test]
fn s5_5_lost_and_repeated_messages_do_no_harm() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    for token in 0..20 {
        lab.propose(1, token, "x");
        let sent = lab.wire.clone();
        if token % 3 == 0 {
            lab.take(|letter| letter.to == 2);
        }
        lab.settle();
        for letter in sent.into_iter().rev() {
            lab.send(letter.from, letter.to, letter.message);
        }
        lab.settle();
    }
    lab.run(1000 * MS);
    for id in lab.ids() {
        assert_eq!(lab.commands(id).len(), 20);
    }
}

// §7: "the leader must send snapshots to followers that lag behind"; "if the snapshot describes a
// prefix of the follower's log, entries covered by it are deleted but entries following it are
// retained"; otherwise "the follower discards its entire log".
#[test]
fn s7_followers_that_lag_behind_the_log_get_a_snapshot() {
    let mut lab = Lab::with(3, |config| config.keep_entries = 0);
    lab.elect(1);
    lab.isolate(3);
    (0..10).for_each(|token| lab.propose(1, token, "x"));
    lab.settle();
    let meta = voussoir_raft::SnapshotMeta { index: 8, term: 1, members: vec![1, 2, 3].into() };
    lab.step(1, Input::SnapshotTaken { meta: meta.clone() });
    assert_eq!(lab.status(1).first, 9);
    lab.heal();
    lab.run(1000 * MS);
    let asked = lab.seen(1, |output| matches!(output, Output::SendSnapshot { .. }));
    let [Output::SendSnapshot { id, to: 3, term, meta: sent }] = &asked[..] else {
        panic!("{asked:?}");
    };
    assert_eq!(**sent, meta);
    let (id, from, term) = (*id, 1, *term);
    lab.step(3, Input::SnapshotReceived { from, term, meta });
    lab.step(1, Input::SnapshotSent { id, ended: TransferEnd::Complete });
    lab.run(500 * MS);
    let status = lab.status(3);
    assert_eq!((status.snapshot, status.first, status.commit), (8, 9, lab.status(1).commit));
    assert_eq!(lab.terms(3), lab.terms(1));
}

// §8: "each leader commits a blank no-op entry into the log at the start of its term."
#[test]
fn s8_a_term_begins_with_a_no_op() {
    let mut lab = Lab::with_logs(&[(2, &[1, 2]), (2, &[1, 2]), (2, &[1])]);
    lab.elect(1);
    assert_eq!(lab.terms(1), [1, 2, 3]);
    assert_eq!((lab.status(1).commit, lab.commands(1).len()), (3, 2));
}

// §8: "a leader must check whether it has been deposed before processing a read-only request" by
// exchanging heartbeats with a majority; and it must have committed its no-op.
#[test]
fn s8_reads_wait_for_the_no_op_and_for_a_majority() {
    let mut lab = Lab::new(3);
    lab.elect_without(1, |letter| matches!(letter.message, Message::Append { .. }));
    lab.step(1, Input::Read { token: 5 });
    let ready = |lab: &Lab| lab.seen(1, |output| matches!(output, Output::ReadReady { .. }));
    lab.settle();
    assert_eq!(ready(&lab), [], "the no-op is not committed");
    lab.run(300 * MS);
    assert_eq!(ready(&lab), [Output::ReadReady { token: 5, index: 1 }]);

    lab.propose(1, 1, "x");
    lab.settle();
    lab.step(1, Input::Read { token: 6 });
    assert_eq!(ready(&lab).len(), 1, "nobody was asked yet");
    lab.deliver(|letter| letter.to == 2);
    lab.deliver(|letter| letter.to == 1);
    assert_eq!(ready(&lab)[1..], [Output::ReadReady { token: 6, index: 2 }]);
}

// §8: "If the client's first choice is not the leader, that server will reject the client's
// request and supply information about the most recent leader it has heard from."
#[test]
fn s8_followers_name_the_leader() {
    let mut lab = Lab::new(3);
    lab.propose(2, 1, "x");
    lab.elect(1);
    lab.propose(2, 2, "x");
    let refused =
        |token, leader| Output::Rejected { token, reason: ProposeRejected::NotLeader { leader } };
    let seen = lab.seen(2, |output| matches!(output, Output::Rejected { .. }));
    assert_eq!(seen, [refused(1, None), refused(2, Some(1))]);
}

// Thesis §9.6: a candidate that could not win disturbs nobody.
#[test]
fn t9_6_a_node_that_was_cut_off_does_not_disturb_the_leader() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.isolate(3);
    lab.run(3000 * MS);
    assert_eq!((lab.status(3).term, lab.status(3).role), (1, Role::PreCandidate));
    lab.heal();
    lab.run(1000 * MS);
    assert_eq!((lab.leader(), lab.status(1).term, lab.status(3).leader), (Some(1), 1, Some(1)));
}

// Thesis §6.2: "a leader steps down if an election timeout elapses without a successful round of
// heartbeats to a majority of its cluster."
#[test]
fn t6_2_a_leader_without_a_majority_steps_down() {
    let mut lab = Lab::new(5);
    lab.elect(1);
    lab.run(200 * MS);
    (2..=3).for_each(|id| lab.isolate(id));
    lab.run(1000 * MS);
    assert_eq!(lab.leader(), Some(1), "three of five are a majority");
    lab.isolate(4);
    lab.run(450 * MS);
    assert_eq!(lab.leader(), None);
}

// Thesis §4.2.3: "if a server receives a RequestVote request within the minimum election timeout
// of hearing from a current leader, it does not update its term or grant its vote."
#[test]
fn t4_2_3_who_hears_a_leader_does_not_vote() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.send(3, 2, vote(9, 9, 8));
    assert_eq!((lab.status(2).term, answers(&mut lab, 2, 3)), (1, vec![]));
    lab.now += 201 * MS;
    lab.send(3, 2, vote(9, 9, 8));
    assert_eq!(lab.status(2).term, 9);
}
