//! Bugs that other implementations have had, each class as a test of its own.

mod common;

use common::{Disk, Lab, Letter, MS, entry, scenarios};
use voussoir_raft::core::{Core, FetchError, Input, Output, Restored};
use voussoir_raft::{
    AppendAck, AppendHead, Config, HaltReason, HardState, Heartbeat, Message, Role, SnapshotMeta,
    VoteReply,
};

fn append(term: u64, prev: (u64, u64), commit: u64, terms: &[u64]) -> Message {
    let entries = (prev.0 + 1..).zip(terms).map(|(index, term)| entry(index, *term, "new"));
    let (prev_index, prev_term) = prev;
    let head = AppendHead { term, session: 1, prev_index, prev_term, commit, probe: false };
    Message::Append { head, entries: entries.collect() }
}

fn snapshot(index: u64, term: u64) -> SnapshotMeta {
    SnapshotMeta { index, term, voters: vec![1, 2, 3] }
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

// An append whose predecessor was released deletes what follows.
#[test]
fn an_append_from_before_the_snapshot_deletes_nothing() {
    let disk = |_| Disk {
        hard: HardState { term: 3, vote: None },
        base: 5,
        entries: (6..=9).map(|index| entry(index, 3, "kept")).collect(),
        snapshot: Some(snapshot(5, 2)),
    };
    let mut lab = Lab::with_disks(3, |_| {}, disk);
    for (prev, terms) in [((0, 0), vec![1; 3]), ((2, 1), vec![1, 2, 2]), ((3, 1), vec![2, 2, 3, 3])]
    {
        lab.send(2, 1, append(3, prev, 0, &terms));
        assert_eq!(lab.terms(1), [3, 3, 3, 3], "{terms:?} after {prev:?}");
    }
    assert_eq!(lab.node(1).disk.entries.len(), 4);
}

// A read error taken for the end of the log.
#[test]
fn a_read_error_halts_and_a_released_entry_asks_for_a_snapshot() {
    for (error, halts) in [(FetchError::Failed, true), (FetchError::Released, true)] {
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
        assert_eq!(lab.status(1).halted.is_some(), halts, "{error}");
        assert_eq!(lab.status(1).halted, Some(HaltReason::ReadFailed));
        assert!(lab.status(3).last <= 1, "nothing malformed was sent");
    }
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

/// A laboratory in which time passes in steps of 1 ms and nothing is lost.
struct Live {
    lab: Lab,
    letters: Vec<(u64, Letter)>,
    disk_busy_until: [u64; 16],
    /// How many letters have been sent.
    sent: u64,
}

impl Live {
    fn new(voters: u64, seed: u64) -> Self {
        let lab = Lab::with(voters, move |config| config.seed = seed);
        Self { lab, letters: Vec::new(), disk_busy_until: [0; 16], sent: 0 }
    }

    /// A write takes `write_ms(node)` from when the one before it was done, and the nth letter
    /// `link_ms(n)`.
    fn run(&mut self, ms: u64, write_ms: impl Fn(u64) -> u64, link_ms: impl Fn(u64) -> u64) {
        for _ in 0..ms {
            let lab = &mut self.lab;
            lab.now += MS;
            for id in lab.ids() {
                lab.node_mut(id).fast_disk = false;
                let busy_until = &mut self.disk_busy_until[id as usize];
                if lab.node(id).writes.is_empty() {
                    *busy_until = lab.now + write_ms(id) * MS;
                } else if *busy_until <= lab.now {
                    *busy_until = lab.now + write_ms(id) * MS;
                    lab.sync_one(id);
                }
                lab.step(id, Input::Tick);
            }
            for letter in lab.take(|_| true) {
                self.sent += 1;
                self.letters.push((lab.now + link_ms(self.sent) * MS, letter));
            }
            let (due, under_way): (Vec<_>, Vec<_>) =
                self.letters.drain(..).partition(|(at, _)| *at <= lab.now);
            self.letters = under_way;
            for (_, Letter { from, to, message }) in due {
                lab.send(from, to, message);
            }
        }
    }

    fn term(&self) -> u64 {
        let up = self.lab.ids().into_iter().filter(|id| self.lab.node(*id).core.is_some());
        up.map(|id| self.lab.status(id).term).max().unwrap()
    }
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
    // Node 3 asks while entry 2 is in its memory only. All answers are late.
    lab.time_out(3);
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

#[test]
fn an_acknowledgement_of_an_earlier_term_does_not_count() {
    scenarios::stale_ack(|_| {}).unwrap();
}

#[test]
fn an_answer_to_an_earlier_life_is_no_answer() {
    scenarios::read_nonce(|_| {}).unwrap();
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

// A commit index beyond the log panics.
#[test]
fn a_commit_index_beyond_the_log_is_clamped() {
    let mut lab = Lab::with_logs(&[(1, &[1]), (1, &[]), (1, &[])]);
    lab.send(2, 1, Message::Heartbeat(Heartbeat { term: 1, round: 1, commit: u64::MAX }));
    lab.send(2, 1, append(1, (1, 1), u64::MAX, &[]));
    assert_eq!((lab.status(1).commit, lab.status(1).halted), (1, None));
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
