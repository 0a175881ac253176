//! Bugs that other implementations have had, each class as a test of its own.

mod common;

use common::live::Live;
use common::{Disk, Lab, Letter, MS, entry, scenarios};
use std::time::Duration;

use voussoir_raft::Restored;
use voussoir_raft::core::{Core, FetchError, Input, Output, TransferEnd};
use voussoir_raft::{
    AppendAck, AppendHead, AppendReject, Config, FollowerState, HaltReason, HardState, Message,
    SnapshotMeta,
};

fn append(term: u64, prev: (u64, u64), commit: u64, terms: &[u64]) -> Message {
    let entries = (prev.0 + 1..).zip(terms).map(|(index, term)| entry(index, *term, "new"));
    let (prev_index, prev_term) = prev;
    let head = AppendHead { term, session: 1, prev_index, prev_term, commit, probe: false };
    Message::Append { head, entries: entries.collect() }
}

fn snapshot(index: u64, term: u64) -> SnapshotMeta {
    SnapshotMeta { index, term, members: vec![1, 2, 3].into() }
}

// Commit without a quorum, from a clever structure for progress.
#[test]
fn the_commit_index_is_what_a_majority_holds() {
    let mut lab = Lab::new(5);
    lab.elect(1);
    lab.run(100 * MS);
    (0..40).for_each(|token| lab.propose(1, token, "x"));
    let appends = lab.take(|_| true);
    let session = |to| {
        let head = |message: &Message| match message {
            Message::Append { head, .. } => Some(head.session),
            _ => None,
        };
        appends.iter().find(|l| l.to == to).and_then(|l| head(&l.message)).unwrap()
    };
    let mut matched = [lab.status(1).last, 1, 1, 1, 1];
    for step in 0..60_u64 {
        let to = 2 + (step * 7) % 4;
        let upto = 1 + (step * 13) % 41;
        let slot = &mut matched[to as usize - 1];
        *slot = upto.max(*slot);
        let ack = AppendAck { term: 1, session: session(to), matched: upto, received: 41 };
        lab.send(to, 1, Message::AppendAck(ack));
        let mut sorted = matched;
        sorted.sort_unstable();
        assert_eq!(lab.status(1).commit, sorted[2], "after step {step}: {matched:?}");
    }
}

// An append whose predecessor was released deletes what follows.
#[test]
fn an_append_from_before_the_snapshot_deletes_nothing() {
    let disk = |_| Disk {
        hard: HardState { term: 3, vote: None },
        base: 5,
        entries: (6..=9).map(|index| entry(index, 3, "kept")).collect(),
        snapshot: Some(snapshot(5, 2)),
        ..Disk::default()
    };
    let mut lab = Lab::with_disks(3, |_| {}, disk);
    for (prev, terms) in [((0, 0), vec![1; 3]), ((2, 1), vec![1, 2, 2]), ((3, 1), vec![2, 2, 3, 3])]
    {
        lab.send(2, 1, append(3, prev, 0, &terms));
        assert_eq!(lab.terms(1), [3, 3, 3, 3], "{terms:?} after {prev:?}");
    }
    assert_eq!(lab.node(1).disk.entries.len(), 4);
}

// A read error taken for the end of the log; the same for entries that nobody has released.
#[test]
fn a_read_error_halts_and_so_do_entries_that_vanish() {
    for error in [FetchError::Failed, FetchError::Released] {
        let mut lab = Lab::with(3, |config| config.max_window_bytes = 1);
        lab.elect(1);
        lab.isolate(3);
        for token in 0..9 {
            lab.propose(1, token, "x");
            lab.settle();
        }
        lab.heal();
        lab.run(300 * MS);
        let fetch = lab.seen(1, |output| matches!(output, Output::Fetch { .. }));
        let [Output::Fetch { id, .. }] = fetch[..] else { panic!("{fetch:?}") };
        lab.step(1, Input::Fetched { id, result: Err(error) });
        // It was the core that decides what is released, and it has released nothing.
        assert_eq!(lab.status(1).halted, Some(HaltReason::ReadFailed), "{error}");
        assert!(lab.status(3).last <= 1, "nothing malformed was sent");
    }
}

// Entries are released for a snapshot while they are being read for a follower.
#[test]
fn an_entry_released_during_its_read_leads_to_a_snapshot() {
    let mut lab = Lab::with(3, |config| {
        config.max_window_bytes = 1;
        config.keep_entries = 0;
    });
    lab.elect(1);
    lab.isolate(3);
    for token in 0..9 {
        lab.propose(1, token, "x");
        lab.settle();
    }
    lab.heal();
    lab.run(300 * MS);
    let fetch = lab.seen(1, |output| matches!(output, Output::Fetch { .. }));
    let [Output::Fetch { id, .. }] = fetch[..] else { panic!("{fetch:?}") };
    lab.step(1, Input::SnapshotTaken { meta: snapshot(10, 1) });
    lab.step(1, Input::Fetched { id, result: Err(FetchError::Released) });
    lab.run(100 * MS);
    let sent = lab.seen(1, |output| matches!(output, Output::SendSnapshot { .. }));
    assert!(matches!(&sent[..], [Output::SendSnapshot { to: 3, .. }]), "{sent:?}");
    assert_eq!((lab.status(1).halted, lab.leader()), (None, Some(1)));
}

// A transfer that fails at once, or whose receiver says that it has everything and asks again.
#[test]
fn transfers_that_bring_a_follower_no_further_back_off() {
    for ended in [TransferEnd::Futile, TransferEnd::Complete] {
        let mut lab = Lab::with(3, |config| config.keep_entries = 0);
        lab.elect(1);
        lab.isolate(3);
        (0..5).for_each(|token| lab.propose(1, token, "x"));
        lab.settle();
        lab.step(1, Input::SnapshotTaken { meta: snapshot(5, 1) });
        lab.heal();
        let mut begun = Vec::new();
        for _ in 0..60_000 {
            lab.run(MS);
            let sending = |output: &Output| matches!(output, Output::SendSnapshot { .. });
            for output in lab.seen(1, sending) {
                if let Output::SendSnapshot { id, .. } = output {
                    begun.push(lab.now / MS);
                    lab.node_mut(1).seen.clear();
                    lab.step(1, Input::SnapshotSent { id, ended });
                }
            }
        }
        let gaps: Vec<u64> = begun.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!((6..16).contains(&begun.len()), "{ended:?}: {gaps:?}");
        assert!(gaps[0] >= 200 && gaps.is_sorted_by(|a, b| *b + 50 >= *a), "{ended:?}: {gaps:?}");
        assert!(*gaps.last().unwrap() >= 12_000, "{ended:?}: {gaps:?}");
    }
}

/// A link that breaks each transfer after some parts: the wait does not grow.
#[test]
fn transfers_that_bring_parts_follow_each_other_at_once() {
    let mut lab = Lab::with(3, |config| config.keep_entries = 0);
    lab.elect(1);
    lab.isolate(3);
    (0..5).for_each(|token| lab.propose(1, token, "x"));
    lab.settle();
    lab.step(1, Input::SnapshotTaken { meta: snapshot(5, 1) });
    lab.heal();
    let mut begun = 0;
    for _ in 0..10_000 {
        lab.run(MS);
        let sending = |output: &Output| matches!(output, Output::SendSnapshot { .. });
        for output in lab.seen(1, sending) {
            if let Output::SendSnapshot { id, .. } = output {
                begun += 1;
                lab.node_mut(1).seen.clear();
                lab.step(1, Input::SnapshotSent { id, ended: TransferEnd::Advanced });
            }
        }
    }
    assert!((20..60).contains(&begun), "{begun} transfers in 10 s");
}

// Reads starve where a round trip is longer than a few heartbeats.
#[test]
fn reads_complete_where_a_round_trip_is_longer_than_many_heartbeats() {
    let mut live = Live::with(3, |config| config.heartbeat_interval = Duration::from_millis(10));
    live.run(4000, |_| 1, |_| 50);
    let leader = live.lab.leader().unwrap();
    for token in 0..45 {
        live.lab.step(leader, Input::Read { token });
        live.run(10, |_| 1, |_| 50);
    }
    live.run(250, |_| 1, |_| 50);
    let ready = live.lab.seen(leader, |output| matches!(output, Output::ReadReady { .. }));
    assert_eq!(ready.len(), 45);
    // A follower's take a round trip more.
    let follower = leader % 3 + 1;
    (0..45).for_each(|token| live.lab.step(follower, Input::Read { token }));
    live.run(400, |_| 1, |_| 50);
    let ready = live.lab.seen(follower, |output| matches!(output, Output::ReadReady { .. }));
    assert_eq!(ready.len(), 45);
}

// A forwarded read is given up while its answer is still on the way, or its question was lost.
#[test]
fn a_forwarded_read_outlasts_slow_links_and_lost_questions() {
    let mut live = Live::new(3, 0);
    live.run(8000, |_| 1, |_| 150);
    let leader = live.lab.leader().unwrap();
    let follower = leader % 3 + 1;
    live.lab.step(follower, Input::Read { token: 1 });
    live.run(1000, |_| 1, |_| 150);
    let answered = |lab: &Lab| lab.seen(follower, |o| matches!(o, Output::ReadReady { .. })).len();
    assert_eq!(answered(&live.lab), 1, "{:?}", live.lab.node(follower).seen);

    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.run(100 * MS);
    lab.step(2, Input::Read { token: 1 });
    assert_eq!(lab.take(|letter| matches!(letter.message, Message::ReadRequest(_))).len(), 1);
    lab.run(1000 * MS);
    assert_eq!(lab.seen(2, |output| matches!(output, Output::ReadReady { .. })).len(), 1);
    // Where nobody ever answers, it is asked for until it is withdrawn.
    let is_question = |letter: &Letter| matches!(letter.message, Message::ReadRequest(_));
    lab.step(2, Input::Read { token: 2 });
    for _ in 0..10 {
        assert_eq!(lab.take(is_question).len(), 1, "once each longest election timeout");
        lab.run_without(400 * MS, is_question);
    }
    lab.take(is_question);
    lab.step(2, Input::WithdrawReads { tokens: vec![2] });
    lab.run_without(2000 * MS, is_question);
    assert!(lab.take(is_question).is_empty(), "nobody waits for it");
    let ended = |o: &Output| matches!(o, Output::ReadRejected { .. });
    assert_eq!(lab.seen(2, ended).len(), 0);
}

// A read fails because an election is under way, though its caller would wait for the leader.
#[test]
fn reads_outlast_elections_and_changes_of_leaders() {
    let mut lab = Lab::new(3);
    let ready = |lab: &Lab, id: u64| {
        let seen = lab.seen(id, |o| matches!(o, Output::ReadReady { .. }));
        seen.iter()
            .filter_map(|o| match o {
                Output::ReadReady { token, .. } => Some(*token),
                _ => None,
            })
            .collect::<Vec<u64>>()
    };
    // Nobody leads. Node 1 will, and answers its own reads and those of the others.
    (1..=3).for_each(|id| lab.step(id, Input::Read { token: id }));
    lab.elect(1);
    lab.run(100 * MS);
    (1..=3).for_each(|id| assert_eq!(ready(&lab, id), [id], "node {id}"));
    // The leader is cut off with a read of its own, and a follower's question is lost with it.
    lab.step(2, Input::Read { token: 20 });
    lab.isolate(1);
    lab.step(1, Input::Read { token: 10 });
    lab.elect(2);
    lab.run(1000 * MS);
    assert_eq!(ready(&lab, 2), [2, 20], "this node leads now and answers itself");
    assert_eq!((lab.status(1).leader, ready(&lab, 1)), (None, vec![1]));
    lab.heal();
    lab.run(1000 * MS);
    assert_eq!(ready(&lab, 1), [1, 10], "the next leader answers it");
    let refused = |o: &Output| matches!(o, Output::ReadRejected { .. });
    (1..=3).for_each(|id| assert!(lab.seen(id, refused).is_empty(), "node {id}"));
}

// Committed entries that the machine has not applied are bounded by count only.
#[test]
fn what_the_machine_has_not_applied_is_bounded_in_bytes() {
    let mut lab = Lab::with(1, |config| config.max_applying_bytes = 10_000);
    lab.node_mut(1).slow_machine = true;
    lab.run(10 * MS);
    let data = "x".repeat(1000);
    (0..100).for_each(|token| lab.propose(1, token, &data));
    let handed = |lab: &Lab| lab.node(1).applied.len();
    assert_eq!((lab.status(1).commit, lab.status(1).applied), (101, 0));
    assert!((9..=10).contains(&handed(&lab)), "{}", handed(&lab));
    for _ in 0..102 {
        lab.machine_catches_up(1);
        let (handed, applied) = (handed(&lab) as u64, lab.status(1).applied);
        assert!(handed <= applied + 10, "{handed} handed, {applied} applied");
    }
    assert_eq!((handed(&lab), lab.status(1).applied), (100, 101));
    // One entry beyond the limit still goes through.
    lab.propose(1, 100, &"y".repeat(50_000));
    lab.machine_catches_up(1);
    assert_eq!(handed(&lab), 101);
}

// A follower loses its disk and comes back empty in the same term: its refusals are ignored.
#[test]
fn a_follower_that_lost_its_disk_is_reported_and_fenced_off() {
    let lost = |output: &Output| matches!(output, Output::FollowerLost { .. });
    for pending in [false, true] {
        let mut lab = Lab::new(3);
        lab.elect(1);
        (0..5).for_each(|token| lab.propose(1, token, "x"));
        lab.run(200 * MS);
        lab.crash(3);
        lab.node_mut(3).disk = Disk::default();
        lab.restart(3);
        if pending {
            lab.propose(1, 5, "y");
        }
        lab.run(1000 * MS);
        let reports = lab.seen(1, lost);
        assert!(
            matches!(&reports[..], [Output::FollowerLost { peer: 3, matched: 6 }]),
            "{reports:?}"
        );
        assert_eq!(lab.status(3).halted, Some(HaltReason::LogLost));
        assert_eq!(lab.status(1).lost_followers, 1);
        let states: Vec<_> = lab.core(1).followers().map(|f| (f.id, f.state)).collect();
        assert_eq!(states, [(2, FollowerState::Replicating), (3, FollowerState::Lost)]);
        // It is counted for nothing: with node 2 gone there is no majority.
        lab.restart(3);
        lab.isolate(2);
        let before = lab.status(1).commit;
        lab.propose(1, 6, "z");
        lab.step(1, Input::Read { token: 9 });
        lab.run(300 * MS);
        assert_eq!(lab.status(1).commit, before);
        assert_eq!(lab.seen(1, |output| matches!(output, Output::ReadReady { .. })), []);
        assert_eq!(lab.seen(1, lost).len(), 1, "said once");
    }
}

// The same when the leader has released what the follower had acknowledged: the snapshot that it
// is sent then must not cover up the loss.
#[test]
fn a_lost_disk_is_noticed_before_a_snapshot_covers_it() {
    for is_lost in [true, false] {
        let mut lab = Lab::with(3, |config| config.keep_entries = 0);
        lab.elect(1);
        (0..5).for_each(|token| lab.propose(1, token, "x"));
        lab.run(200 * MS);
        lab.crash(3);
        if is_lost {
            lab.node_mut(3).disk = Disk::default();
        }
        (5..9).for_each(|token| lab.propose(1, token, "x"));
        lab.run(100 * MS);
        lab.step(1, Input::SnapshotTaken { meta: snapshot(9, 1) });
        lab.restart(3);
        lab.run(1000 * MS);
        let sent = lab.seen(1, |output| matches!(output, Output::SendSnapshot { .. }));
        assert!(matches!(&sent[..], [Output::SendSnapshot { to: 3, .. }]), "{sent:?}");
        let halted = lab.status(3).halted;
        assert_eq!(halted, is_lost.then_some(HaltReason::LogLost));
    }
}

// The lost disk is put back: its log and its votes are there again.
#[test]
fn a_follower_whose_disk_is_back_counts_again() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.propose(1, 1, "x");
    lab.run(200 * MS);
    lab.crash(3);
    let disk = std::mem::take(&mut lab.node_mut(3).disk);
    lab.restart(3);
    lab.run(1000 * MS);
    assert_eq!(
        (lab.status(1).lost_followers, lab.status(3).halted),
        (1, Some(HaltReason::LogLost))
    );
    lab.crash(3);
    lab.node_mut(3).disk = disk;
    lab.restart(3);
    lab.run(1000 * MS);
    assert_eq!((lab.status(1).lost_followers, lab.status(3).halted), (0, None));
    lab.isolate(2);
    lab.propose(1, 2, "y");
    lab.run(200 * MS);
    assert_eq!(lab.commands(3), ["x", "y"]);
}

// A refusal that an acknowledgement has overtaken shows no loss.
#[test]
fn an_overtaken_refusal_is_no_loss() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.run(100 * MS);
    lab.isolate(3);
    (0..3).for_each(|token| lab.propose(1, token, "x"));
    lab.settle();
    lab.heal();
    // The leader probes after entry 4, which node 3 lacks.
    lab.step(1, Input::Unreachable { peer: 3 });
    let session = lab.wire.iter().find_map(|letter| match &letter.message {
        Message::Append { head, .. } if letter.to == 3 => Some(head.session),
        _ => None,
    });
    lab.settle();
    let follower = lab.core(1).followers().find(|follower| follower.id == 3).unwrap();
    assert_eq!((lab.status(3).last, follower.matched), (4, 4));
    let (term, session) = (1, session.unwrap());
    let reject = AppendReject {
        term,
        session,
        prev_index: 4,
        hint_index: 1,
        hint_term: 1,
        is_recovering: false,
    };
    (0..3).for_each(|_| lab.send(3, 1, Message::AppendReject(reject)));
    let follower = lab.core(1).followers().find(|follower| follower.id == 3).unwrap();
    assert_eq!(follower.state, FollowerState::Probing, "it is asked once more");
    lab.run(1000 * MS);
    assert_eq!(lab.seen(1, |output| matches!(output, Output::FollowerLost { .. })), []);
    assert_eq!((lab.status(1).lost_followers, lab.status(3).halted), (0, None));
}

#[test]
fn a_leader_shows_the_progress_of_its_followers() {
    let mut live = Live::new(3, 0);
    live.run(3000, |_| 1, |_| 20);
    let leader = live.lab.leader().unwrap();
    let seen: Vec<_> = live.lab.core(leader).followers().collect();
    assert_eq!(seen.len(), 2);
    for follower in seen {
        assert_eq!((follower.state, follower.matched), (FollowerState::Replicating, 1));
        assert_eq!((follower.next, follower.received, follower.inflight), (2, 1, 0));
        let round_trip = follower.round_trip_ns / MS;
        assert!((40..45).contains(&round_trip), "{round_trip} ms");
        assert!(follower.silent_ns <= 52 * MS);
    }
    assert_eq!(live.lab.core(leader % 3 + 1).followers().count(), 0);
}

#[test]
fn old_entries_are_read_back_for_a_slow_follower() {
    let mut lab = Lab::with(3, |config| config.max_window_bytes = 1);
    lab.elect(1);
    lab.isolate(3);
    for token in 0..9 {
        lab.propose(1, token, "x");
        lab.settle();
    }
    lab.heal();
    for _ in 0..10 {
        lab.run(300 * MS);
        lab.fetched(1);
    }
    assert_eq!(lab.commands(3).len(), 9);
}

// Ten thousand entries of a queue's size are more than a journal holds.
#[test]
fn what_is_kept_behind_a_snapshot_is_bounded_in_bytes() {
    for (entry_bytes, kept) in [(1_000, 5..=10), (1, 20..=20)] {
        let mut lab = Lab::with(3, |config| {
            config.snapshot_after_entries = 100;
            (config.keep_entries, config.keep_bytes) = (20, 10_000);
        });
        lab.elect(1);
        let data = "x".repeat(entry_bytes);
        for token in 0..110 {
            lab.propose(1, token, &data);
            lab.settle();
        }
        for id in 1..=3 {
            assert_eq!(lab.seen(id, |output| *output == Output::TakeSnapshot).len(), 1);
            let index = lab.status(id).applied;
            let term = lab.core(id).term_at(index).unwrap();
            let members = lab.core(id).members().clone();
            lab.step(id, Input::SnapshotTaken { meta: SnapshotMeta { index, term, members } });
            let kept_here = index + 1 - lab.status(id).first;
            assert!(kept.contains(&kept_here), "{kept_here} of {entry_bytes} bytes");
        }
    }
}

// The leader probes a follower whose next entry is no longer in memory: the probe has no entries,
// and a caller that cannot borrow "no entries" from below the window dies with each leader.
#[test]
fn a_probe_from_below_the_window_is_lent_as_empty() {
    let mut lab = Lab::with(3, |config| config.max_window_bytes = 1);
    lab.elect(1);
    lab.isolate(3);
    (0..9).for_each(|token| lab.propose(1, token, "x"));
    lab.settle();
    lab.heal();
    lab.run(300 * MS);
    let window = lab.core(1).entries(1..2).unwrap_err().window;
    let fetch = lab.seen(1, |output| matches!(output, Output::Fetch { .. }));
    let [Output::Fetch { range, .. }] = &fetch[..] else { panic!("{fetch:?}") };
    assert!(range.end <= window.start, "{range:?} was behind the window {window:?}");
    assert_eq!(lab.core(1).entries(range.start..range.start).map(|lent| lent.len()), Ok(0));
    lab.fetched(1);
    lab.run(300 * MS);
    assert_eq!((lab.leader(), lab.commands(3).len()), (Some(1), 9));
}

// The same for the question what has arrived, to a follower that waits for its disk while the
// leader's window moves on.
#[test]
fn a_resent_question_from_below_the_window_is_lent_as_empty() {
    let mut lab = Lab::with(3, |config| {
        config.max_window_bytes = 1;
        config.max_inflight_appends = 1;
    });
    lab.elect(1);
    lab.run(100 * MS);
    lab.node_mut(3).fast_disk = false;
    for token in 0..9 {
        lab.propose(1, token, "x");
        lab.settle();
    }
    assert_eq!((lab.status(3).last, lab.status(1).commit), (2, 10));
    // An answer to a heartbeat says that the entry has arrived, though it is not durable.
    lab.run(60 * MS);
    lab.now += 201 * MS;
    lab.step(1, Input::Tick);
    let questions = lab.take(|letter| match &letter.message {
        Message::Append { head, entries } => head.prev_index == 2 && entries.is_empty(),
        _ => false,
    });
    assert_eq!(questions.len(), 1, "entry 3 is not in memory: {:?}", lab.wire);
    lab.node_mut(3).fast_disk = true;
    lab.sync(3);
    for _ in 0..10 {
        lab.run(300 * MS);
        lab.fetched(1);
    }
    assert_eq!((lab.leader(), lab.commands(3).len()), (Some(1), 9));
}

// Two reads with one context, and a late acknowledgement of the first.
#[test]
fn a_late_heartbeat_reply_confirms_no_newer_read() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.run(100 * MS);
    lab.step(1, Input::Read { token: 1 });
    lab.deliver(|letter| matches!(letter.message, Message::Heartbeat(_)));
    let late = lab.take(|_| true);
    lab.isolate(1);
    lab.step(1, Input::Read { token: 2 });
    for letter in late.into_iter().cycle().take(6) {
        lab.send(letter.from, letter.to, letter.message);
    }
    let ready = lab.seen(1, |output| matches!(output, Output::ReadReady { .. }));
    assert_eq!(ready, [Output::ReadReady { token: 1, index: 1 }]);
}

// Acknowledgements of an earlier stretch of replication.
#[test]
fn an_acknowledgement_of_an_earlier_session_does_not_count() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.run(100 * MS);
    lab.propose(1, 1, "x");
    lab.deliver(|letter| letter.to == 2);
    let late = lab.take(|_| true);
    // The connection breaks: what was under way may be lost, and replication starts over.
    lab.step(1, Input::Unreachable { peer: 2 });
    lab.take(|_| true);
    let before = lab.status(1).commit;
    for letter in late.into_iter().filter(|letter| letter.from == 2) {
        lab.send(2, 1, letter.message);
    }
    assert_eq!(lab.status(1).commit, before);
    lab.run(500 * MS);
    assert_eq!(lab.status(1).commit, before + 1);
}

// The answer to a probe says that an entry has arrived and is not durable yet. The one that says
// that it is durable is lost, and nobody proposes anything.
#[test]
fn a_lost_acknowledgement_is_asked_for_where_a_probe_found_the_entry() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.run(100 * MS);
    lab.isolate(3);
    lab.node_mut(2).fast_disk = false;
    lab.propose(1, 1, "x");
    lab.settle();
    lab.step(1, Input::Unreachable { peer: 2 });
    lab.settle();
    let before = lab.status(1).commit;
    lab.sync(2);
    lab.node_mut(2).fast_disk = true;
    let is_ack = |letter: &Letter| matches!(letter.message, Message::AppendAck(_));
    assert_eq!(lab.take(is_ack).len(), 1);
    lab.run(500 * MS);
    assert_eq!(lab.status(1).commit, before + 1);
}

#[test]
fn an_acknowledgement_of_an_earlier_term_does_not_count() {
    scenarios::stale_ack(false).unwrap();
}

#[test]
fn an_acknowledgement_of_an_earlier_term_does_not_count_after_a_restart() {
    scenarios::stale_ack(true).unwrap();
}

#[test]
fn an_answer_to_an_earlier_life_is_no_answer() {
    scenarios::read_nonce().unwrap();
}

// An entry that a failed disk may hold is reused under the same index and term.
#[test]
fn after_a_failed_write_nothing_follows() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.node_mut(1).fast_disk = false;
    lab.propose(1, 1, "may be durable");
    let id = lab.node(1).writes[0].0.id;
    lab.step(1, Input::PersistFailed { id });
    assert_eq!(lab.status(1).halted, Some(HaltReason::PersistFailed));
    let lost = Output::Lost { token: 1, count: 1, superseded: false };
    assert!(lab.node(1).seen.contains(&lost), "{:?}", lab.node(1).seen);
    lab.take(|_| true);
    lab.propose(1, 2, "y");
    lab.step(1, Input::Read { token: 3 });
    lab.send(2, 1, Message::Stale { term: 9 });
    lab.step(1, Input::Tick);
    assert_eq!((lab.wire.len(), lab.core(1).next_deadline()), (0, None));
    lab.run(1000 * MS);
    assert!(lab.leader().is_some_and(|leader| leader != 1));
}

// The completion of a write vouches for entries that were replaced since.
#[test]
fn a_completion_does_not_vouch_for_what_replaced_its_entries() {
    let mut lab = Lab::new(3);
    lab.node_mut(1).fast_disk = false;
    lab.send(2, 1, append(1, (0, 0), 0, &[1, 1, 1]));
    // Another leader replaces two of them while the first write is under way.
    lab.send(3, 1, append(2, (1, 1), 0, &[2, 2]));
    let first = lab.node(1).writes[0].0.id;
    lab.step(1, Input::Persisted { id: first });
    assert_eq!(lab.status(1).durable, 1, "entries 2 and 3 of the first write are gone");
    let acks = lab.take(|letter| letter.from == 1);
    let matched = acks.iter().filter_map(|letter| match &letter.message {
        Message::AppendAck(ack) => Some(ack.matched),
        _ => None,
    });
    assert!(matched.max().unwrap_or(0) <= 1, "{acks:?}");
    lab.step(1, Input::Persisted { id: first });
    lab.sync(1);
    assert_eq!(lab.status(1).durable, 3);
}

// A snapshot covers a part of what a deposed leader had proposed in one go.
#[test]
fn a_snapshot_hides_some_proposals_and_the_others_are_decided() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.run(100 * MS);
    lab.isolate(1);
    (1..=3).for_each(|token| lab.propose(1, token, "x"));
    assert_eq!(lab.status(1).last, 4);
    lab.step(1, Input::SnapshotReceived { from: 2, term: 5, meta: snapshot(3, 5) });
    lab.send(2, 1, append(5, (3, 5), 4, &[5]));
    let lost = lab.seen(1, |output| matches!(output, Output::Lost { .. }));
    let hidden = Output::Lost { token: 1, count: 2, superseded: false };
    assert_eq!(lost, [hidden, Output::Lost { token: 3, count: 1, superseded: true }]);
    assert_eq!(lab.status(1).commit, 4);
}

// Snapshots: at or below the commit index; equal to the log; conflicting with it.
#[test]
fn snapshots_that_are_not_needed_change_nothing() {
    let received = |lab: &mut Lab, meta| {
        lab.step(1, Input::SnapshotReceived { from: 2, term: 3, meta });
        lab.seen(1, |output| matches!(output, Output::DiscardSnapshot { .. })).len()
    };
    let mut lab = Lab::with_logs(&[(3, &[1, 1, 2, 2]), (3, &[]), (3, &[])]);
    lab.send(2, 1, append(3, (2, 1), 2, &[]));
    assert_eq!(lab.status(1).commit, 2);
    assert_eq!(received(&mut lab, snapshot(1, 1)), 1, "older than the commit index");
    assert_eq!(received(&mut lab, snapshot(2, 9)), 2, "contradicts what is committed");
    assert_eq!(received(&mut lab, snapshot(3, 2)), 3, "the log has it all");
    assert_eq!((lab.status(1).commit, lab.terms(1)), (3, vec![1, 1, 2, 2]));
    assert_eq!(received(&mut lab, snapshot(4, 3)), 3, "the log has another entry there");
    let status = lab.status(1);
    assert_eq!((status.first, status.last, status.commit, status.snapshot), (5, 4, 4, 4));
    lab.restart(1);
    assert_eq!((lab.status(1).commit, lab.status(1).last), (4, 4));
}

// A repeated transfer throws away the snapshot that is being installed.
#[test]
fn a_repeated_snapshot_does_not_disturb_the_first() {
    let mut lab = Lab::with(3, |config| config.max_persists = 1);
    lab.node_mut(1).fast_disk = false;
    lab.send(2, 1, append(3, (0, 0), 0, &[1]));
    let received = |lab: &mut Lab, index| {
        let meta = snapshot(index, 3);
        lab.step(1, Input::SnapshotReceived { from: 2, term: 3, meta });
        lab.seen(1, |output| matches!(output, Output::DiscardSnapshot { .. }))
    };
    assert_eq!(received(&mut lab, 5), []);
    assert_eq!(received(&mut lab, 5), [], "it still waits for the write before it");
    let replaced = Output::DiscardSnapshot { meta: snapshot(5, 3) };
    assert_eq!(received(&mut lab, 8), [replaced]);
    lab.sync(1);
    lab.sync(1);
    assert_eq!((lab.status(1).snapshot, lab.status(1).applied), (8, 8));
    assert_eq!(lab.node(1).disk.snapshot, Some(snapshot(8, 3)));
}

// A snapshot transfer that never ends blocks the others.
#[test]
fn a_hanging_transfer_holds_up_nobody_else() {
    let mut lab = Lab::with(3, |config| config.keep_entries = 0);
    lab.elect(1);
    lab.isolate(3);
    (0..5).for_each(|token| lab.propose(1, token, "x"));
    lab.settle();
    lab.step(1, Input::SnapshotTaken { meta: snapshot(5, 1) });
    lab.heal();
    lab.run(1000 * MS);
    assert_eq!(lab.seen(1, |output| matches!(output, Output::SendSnapshot { .. })).len(), 1);
    lab.propose(1, 9, "y");
    lab.run(5000 * MS);
    assert_eq!(lab.commands(2).len(), 6);
    assert_eq!(lab.leader(), Some(1));
}

// A damaged log must neither vote nor lead.
#[test]
fn a_damaged_node_says_nothing() {
    let config = Config::new(1, [1, 2, 3]);
    let mut core = Core::new(config, Restored::damaged(), 0).unwrap();
    core.step(0, Input::Message { from: 2, message: append(5, (0, 0), 0, &[1]) });
    core.step(900 * MS, Input::Tick);
    assert_eq!(core.poll_output(), Some(Output::Halted { reason: HaltReason::Damaged }));
    assert_eq!((core.poll_output(), core.next_deadline()), (None, None));
}

// A leader that contradicts what is committed: somebody has lost data. Nobody panics.
#[test]
fn a_contradiction_of_a_committed_entry_halts() {
    let mut lab = Lab::with_logs(&[(2, &[1, 1]), (2, &[]), (2, &[])]);
    lab.send(2, 1, append(2, (2, 1), 2, &[]));
    assert_eq!(lab.status(1).commit, 2);
    lab.send(3, 1, append(3, (0, 0), 0, &[3]));
    assert_eq!(lab.status(1).halted, Some(HaltReason::Inconsistent));
    assert_eq!(lab.node(1).disk.entries.len(), 2, "nothing was deleted");
}

// A follower restarts without anybody noticing, and nothing new is proposed.
#[test]
fn a_follower_that_restarts_learns_the_commit_index() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.propose(1, 1, "x");
    lab.run(100 * MS);
    lab.restart(2);
    lab.run(500 * MS);
    assert_eq!((lab.status(2).commit, lab.commands(2)), (2, vec!["x".to_owned()]));
}

// Callers stranded by a change of leader.
#[test]
fn proposals_learn_their_fate_after_the_loss_of_leadership() {
    let mut lab = Lab::new(3);
    lab.elect(1);
    lab.run(100 * MS);
    lab.isolate(1);
    lab.propose(1, 5, "lost");
    lab.propose(1, 6, "lost too");
    lab.run(1000 * MS);
    let leader = lab.leader().unwrap();
    assert_ne!(leader, 1);
    lab.propose(leader, 7, "won");
    lab.settle();
    lab.heal();
    lab.run(1000 * MS);
    let lost = Output::Lost { token: 5, count: 2, superseded: true };
    assert_eq!(lab.seen(1, |output| matches!(output, Output::Lost { .. })), [lost]);
    assert_eq!(lab.commands(1), ["won"]);
}
