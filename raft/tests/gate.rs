//! What no correct peer, store or clock says.

mod common;

use common::{Disk, Lab, MS, entry};
use voussoir_raft::Restored;
use voussoir_raft::core::{Core, Input, Output, PeerFault};
use voussoir_raft::{
    AppendAck, AppendHead, AppendReject, Config, CoreError, HardState, Heartbeat, HeartbeatReply,
    MAX_INDEX, MAX_TERM, MAX_TERM_STEP, Message, ReadReply, SnapshotMeta, Status, VoteReply,
    VoteRequest,
};

fn append(term: u64, prev: (u64, u64), commit: u64, terms: &[u64]) -> Message {
    let entries =
        (prev.0.wrapping_add(1)..).zip(terms).map(|(index, term)| entry(index, *term, "new"));
    let (prev_index, prev_term) = prev;
    let head = AppendHead { term, session: 1, prev_index, prev_term, commit, probe: false };
    Message::Append { head, entries: entries.collect() }
}

fn snapshot(index: u64, term: u64) -> SnapshotMeta {
    SnapshotMeta { index, term, members: vec![1, 2, 3].into() }
}

/// A status but for the count that a refusal changes.
fn without_count(mut status: Status) -> Status {
    status.rejected_inputs = 0;
    status
}

fn heartbeat_reply(term: u64, round: u64, received: u64) -> Message {
    Message::HeartbeatReply(HeartbeatReply { term, round, received })
}

/// Messages that no correct node sends to a group in term 1 with one entry.
fn hostile_messages() -> Vec<Message> {
    let beat = |term, round, commit| Message::Heartbeat(Heartbeat { term, round, commit });
    let ask =
        |term, last_index, last_term| VoteRequest { term, last_index, last_term, transfer: false };
    let mut headless = append(1, (0, 0), 0, &[1]);
    if let Message::Append { head, .. } = &mut headless {
        head.session = 0;
    }
    let mut shifted = append(1, (0, 0), 0, &[1, 1]);
    if let Message::Append { entries, .. } = &mut shifted {
        entries[1].index = 7;
    }
    let ack = |matched, received| AppendAck { term: 1, session: 2, matched, received };
    let reject = AppendReject {
        term: 1,
        session: 2,
        prev_index: u64::MAX,
        hint_index: u64::MAX,
        hint_term: u64::MAX,
        is_recovering: true,
    };
    let reply = ReadReply { term: 1, nonce: 1, context: 1, index: Some(u64::MAX) };
    vec![
        Message::Stale { term: u64::MAX },
        Message::Stale { term: MAX_TERM + 1 },
        Message::Stale { term: MAX_TERM },
        Message::Stale { term: MAX_TERM_STEP + 2 },
        Message::Stale { term: 0 },
        beat(u64::MAX, 1, 0),
        beat(1, 0, 0),
        beat(2, 1, u64::MAX),
        Message::Vote(ask(u64::MAX, 9, 9)),
        Message::Vote(ask(2, u64::MAX, 1)),
        Message::Vote(ask(2, 9, 2)),
        Message::PreVote(ask(u64::MAX, 9, 9)),
        Message::PreVoteReply(VoteReply { term: u64::MAX, granted: false }),
        Message::VoteReply(VoteReply { term: u64::MAX, granted: true }),
        append(1, (0, 0), u64::MAX, &[1]),
        append(1, (u64::MAX, 1), 0, &[]),
        append(1, (MAX_INDEX, 1), 0, &[1]),
        append(1, (0, 0), 0, &[0]),
        append(1, (0, 0), 0, &[2]),
        append(2, (0, 0), 0, &[2, 1]),
        append(1, (3, 2), 0, &[]),
        headless,
        shifted,
        Message::AppendAck(ack(2, 1)),
        Message::AppendAck(ack(1, u64::MAX)),
        Message::AppendAck(ack(2, 2)),
        Message::AppendReject(reject),
        heartbeat_reply(1, 1, u64::MAX),
        heartbeat_reply(1, 1, 2),
        heartbeat_reply(1, u64::MAX, 1),
        Message::ReadReply(reply),
    ]
}

// Values that no correct node sends: the top of each range, terms and indexes that contradict each
// other, strangers.
#[test]
fn hostile_values_are_refused_at_the_gate_and_counted() {
    let hostile = hostile_messages();
    for leads in [true, false] {
        let mut lab = Lab::new(3);
        lab.elect(1);
        lab.run(60 * MS);
        let id = if leads { 1 } else { 3 };
        let before = without_count(lab.status(id));
        for (at, message) in hostile.iter().enumerate() {
            let answer = matches!(message, Message::AppendAck(_) | Message::HeartbeatReply(_));
            let needs_leader = answer && lab.core(id).gate().message(2, message).is_ok();
            let refused = lab.status(id).rejected_inputs;
            lab.send(2, id, message.clone());
            let counted = lab.status(id).rejected_inputs - refused;
            assert_eq!(counted, u64::from(leads || !needs_leader), "{at}: {message:?}");
        }
        for stranger in [0, 99, id, u64::MAX] {
            lab.send(stranger, id, append(9, (0, 0), 0, &[9]));
        }
        let after = without_count(lab.status(id));
        assert_eq!((before, lab.wire.len()), (after, 0), "nothing was taken and nothing said");
        lab.propose(1, 1, "x");
        lab.run(200 * MS);
        assert_eq!(lab.commands(3), ["x"], "the group goes on");
    }
}

// A snapshot from a node that is no voter, or one that cannot be, replaces the machine's state.
#[test]
fn snapshots_pass_the_same_gate_as_messages() {
    let voters =
        |voters: &[u64]| SnapshotMeta { index: 9, term: 2, members: voters.to_vec().into() };
    let cases = [
        (99, 2, snapshot(9, 2), PeerFault::Stranger),
        (1, 2, snapshot(9, 2), PeerFault::Stranger),
        (2, u64::MAX, snapshot(9, 2), PeerFault::Term),
        (2, 0, snapshot(9, 0), PeerFault::Term),
        (2, 2, snapshot(9, 3), PeerFault::Term),
        (2, 2, snapshot(9, 0), PeerFault::Term),
        (2, 2, snapshot(u64::MAX, 2), PeerFault::Index),
        (2, 2, snapshot(0, 2), PeerFault::Index),
        (2, 2, voters(&[1, 2]), PeerFault::Voters),
        (2, 2, voters(&[1, 2, 3, 4]), PeerFault::Voters),
        (2, 2, voters(&[]), PeerFault::Voters),
    ];
    for (from, term, meta, fault) in cases {
        let mut lab = Lab::with_logs(&[(2, &[1, 1]), (2, &[]), (2, &[])]);
        let before = lab.status(1);
        assert_eq!(lab.core(1).gate().snapshot(from, term, &meta), Err(fault));
        lab.step(1, Input::SnapshotReceived { from, term, meta: meta.clone() });
        let discarded = lab.seen(1, |output| matches!(output, Output::DiscardSnapshot { .. }));
        assert_eq!(discarded, [Output::DiscardSnapshot { meta }]);
        let after = lab.status(1);
        assert_eq!((after.rejected_inputs, after.leader), (1, None));
        assert_eq!(without_count(after), before, "{fault}");
    }
}

// The caller's clock jumps: back, far ahead, to the end of its range.
#[test]
fn a_clock_that_jumps_neither_stops_a_node_nor_overflows() {
    for (start, jump) in [(0, u64::MAX), (1 << 60, 5), (u64::MAX - 1, 0), (1 << 40, 1 << 62)] {
        let config = Config::new(1, [1, 2, 3]);
        let mut core = Core::new(config, Restored::empty(), start).unwrap();
        let beats = |core: &mut Core, now: u64| {
            core.step(now, Input::Tick);
            std::iter::from_fn(|| core.poll_output()).count()
        };
        beats(&mut core, jump);
        assert!(core.next_deadline().unwrap() >= jump);
        // Back at the start, time goes on at once.
        let mut asked = 0;
        let mut now = start.min(1 << 61);
        beats(&mut core, now);
        for _ in 0..100 {
            now += 10 * MS;
            asked += beats(&mut core, now);
            let due = core.next_deadline().unwrap();
            assert!(due > now && due <= now + 3200 * MS, "{start} {jump}: due {due} at {now}");
        }
        assert!(asked >= 4, "{start} {jump}: asked {asked} times within a second");
    }
}

// What a store gives back contradicts itself or the configuration.
#[test]
fn a_start_from_contradictory_parts_is_refused() {
    let start = |hard: (u64, Option<u64>), snapshot: Option<SnapshotMeta>, first, terms: &[u64]| {
        let hard = HardState { term: hard.0, vote: hard.1 };
        let mut restored = Restored::new(hard, snapshot, first);
        for (index, term) in (first..).zip(terms) {
            restored.push(entry(index, *term, "x"))?;
        }
        assert_eq!((restored.first(), restored.hard_state()), (Some(first), hard));
        assert_eq!(restored.last(), Some(first + terms.len() as u64 - 1));
        assert_eq!(restored.term_at(first), terms.first().copied());
        Core::new(Config::new(1, [3, 1, 2]), restored, 0).map(drop)
    };
    let other = SnapshotMeta { index: 4, term: 2, members: vec![1, 2, 4].into() };
    for (hard, snapshot, first, terms) in [
        ((1, None), None, 1, &[2][..]),
        ((1, None), Some(snapshot(4, MAX_TERM + 1)), 5, &[]),
        ((2, Some(4)), None, 1, &[]),
        ((0, Some(1)), None, 1, &[]),
        ((2, None), Some(other), 5, &[]),
        ((2, None), Some(snapshot(0, 1)), 1, &[]),
        ((2, None), Some(snapshot(4, 0)), 5, &[]),
        ((u64::MAX, None), None, 1, &[]),
        ((MAX_TERM + 1, None), None, 1, &[]),
        ((2, None), Some(snapshot(MAX_INDEX + 1, 2)), 5, &[]),
        ((2, None), Some(snapshot(MAX_INDEX, 2)), MAX_INDEX + 1, &[2]),
        ((2, None), None, 3, &[2]),
        ((2, None), None, 1, &[0]),
    ] {
        let result = start(hard, snapshot.clone(), first, terms);
        assert!(matches!(result, Err(CoreError::Restored(_))), "{hard:?} {snapshot:?} {terms:?}");
    }
    start((2, Some(3)), Some(snapshot(4, 2)), 5, &[2, 2]).unwrap();
    start((MAX_TERM, None), Some(snapshot(MAX_INDEX, MAX_TERM)), MAX_INDEX + 1, &[]).unwrap();
}

// A machine is ahead of a slow disk: its snapshot is durable, and neither the term nor the entries.
#[test]
fn a_snapshot_that_outran_the_disk_brings_its_term() {
    for entries in [0, 3] {
        let hard = HardState { term: 1, vote: Some(3) };
        let mut restored = Restored::new(hard, Some(snapshot(4, 2)), 1);
        (1..=entries).for_each(|index| restored.push(entry(index, 1, "x")).unwrap());
        let mut core = Core::new(Config::new(1, [1, 2, 3]), restored, 0).unwrap();
        let term = HardState { term: 2, vote: Some(1) };
        assert_eq!((core.hard_state(), core.status().last), (term, 4));
        core.step(0, Input::Tick);
        let written = std::iter::from_fn(|| core.poll_output()).find_map(|output| match output {
            Output::Persist(persist) => persist.hard_state,
            _ => None,
        });
        assert_eq!(written, Some(term), "before an entry of the term is");
    }
}

// At the end of its range a node neither overflows nor campaigns, and follows as before.
#[test]
fn the_ends_of_the_ranges_are_reached_without_a_panic() {
    for (term, index) in [(MAX_TERM, 5), (5, MAX_INDEX), (MAX_TERM, MAX_INDEX)] {
        let mut lab = Lab::with_disks(
            3,
            |_| {},
            move |_| Disk {
                hard: HardState { term, vote: None },
                base: index,
                entries: Vec::new(),
                snapshot: Some(snapshot(index, 5)),
                ..Disk::default()
            },
        );
        lab.run(5000 * MS);
        assert_eq!((lab.leader(), lab.status(1).term), (None, term));
        lab.send(2, 1, append(term, (index, 5), index, &[]));
        assert_eq!((lab.status(1).leader, lab.status(1).commit), (Some(2), index));
    }
}

// A commit index beyond the log panics.
#[test]
fn a_commit_index_beyond_the_log_is_clamped() {
    let mut lab = Lab::with_logs(&[(1, &[1]), (1, &[]), (1, &[])]);
    lab.send(2, 1, Message::Heartbeat(Heartbeat { term: 1, round: 1, commit: MAX_INDEX }));
    lab.send(2, 1, append(1, (1, 1), MAX_INDEX, &[]));
    assert_eq!((lab.status(1).commit, lab.status(1).halted), (1, None));
}
