//! Golden bytes, round trips, and damaged bytes.

use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::membership::{Change, Membership};
use crate::message::*;
use crate::types::{Entry, EntryKind, HardState, SnapshotMeta};

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

fn entry(term: u64, index: u64, data: &'static [u8]) -> Entry {
    Entry { term, index, kind: EntryKind::Command, data: Bytes::from_static(data) }
}

fn node_beat() -> NodeBeat {
    let beat = Heartbeat { term: 5, round: 77, commit: 8 };
    let reply = HeartbeatReply { term: 6, round: 78, received: 11 };
    NodeBeat {
        life: 0x0102,
        tick: 3,
        seen_life: 0x0304,
        seen_tick: 2,
        resigned: vec![(7, 4)],
        beats: vec![(7, GroupBeat::Heartbeat(beat)), (9, GroupBeat::Reply(reply))],
    }
}

fn samples() -> Vec<(Message, &'static str)> {
    let request = VoteRequest { term: 5, last_index: 9, last_term: 4, transfer: false };
    let head =
        AppendHead { term: 5, session: 2, prev_index: 9, prev_term: 4, commit: 8, probe: true };
    vec![
        (Message::PreVote(request), include_str!("golden/pre_vote.hex")),
        (
            Message::VoteReply(VoteReply { term: 5, granted: true }),
            include_str!("golden/vote_reply.hex"),
        ),
        (
            Message::Append { head, entries: vec![entry(4, 10, b"ab"), entry(5, 11, b"")] },
            include_str!("golden/append.hex"),
        ),
        (
            Message::AppendAck(AppendAck { term: 5, session: 2, matched: 10, received: 11 }),
            include_str!("golden/append_ack.hex"),
        ),
        (
            Message::AppendReject(AppendReject {
                term: 5,
                session: 2,
                prev_index: 9,
                hint_index: 7,
                hint_term: 3,
                is_recovering: false,
            }),
            include_str!("golden/append_reject.hex"),
        ),
        (
            Message::Heartbeat(Heartbeat { term: 5, round: 77, commit: 8 }),
            include_str!("golden/heartbeat.hex"),
        ),
        (
            Message::HeartbeatReply(HeartbeatReply { term: 5, round: 77, received: 11 }),
            include_str!("golden/heartbeat_reply.hex"),
        ),
        (Message::Stale { term: 6 }, include_str!("golden/stale.hex")),
        (
            Message::ReadRequest(ReadRequest { term: 5, nonce: 0x0102_0304, context: 3 }),
            include_str!("golden/read_request.hex"),
        ),
        (
            Message::ReadReply(ReadReply { term: 5, nonce: 1, context: 3, index: Some(8) }),
            include_str!("golden/read_reply.hex"),
        ),
        (
            Message::LogLost(LogLost { term: 5, matched: 9, matched_term: 4 }),
            include_str!("golden/log_lost.hex"),
        ),
        (Message::TimeoutNow { term: 5 }, include_str!("golden/timeout_now.hex")),
        (Message::Removed { term: 5, index: 9 }, include_str!("golden/removed.hex")),
        (
            Message::Quiesce(Quiesce { term: 5, round: 77, commit: 8, life: 0x0102 }),
            include_str!("golden/quiesce.hex"),
        ),
        (Message::Node(Box::new(node_beat())), include_str!("golden/node.hex")),
    ]
}

#[test]
fn messages_have_the_bytes_that_version_1_promised() {
    for (message, golden) in samples() {
        let bytes = encode(0xaa, &message).into_bytes();
        assert_eq!(hex(&bytes), golden.trim(), "{message:?}");
        assert_eq!(decode(bytes), Ok((0xaa, message)));
    }
}

#[test]
fn memberships_have_the_bytes_that_version_1_promised() {
    let three = Membership::new([1, 2, 3]);
    let target = Change::new().remove(2).voter(4).learner(5).address(4, "four");
    let joint = three.joint_to(&target.apply(&three).unwrap());
    let words = |numbers: &[u64]| -> String {
        numbers.iter().map(|number| hex(&number.to_le_bytes())).collect()
    };
    let golden = format!(
        "0103030101000000{}{}0400{}",
        words(&[1, 3, 4, 1, 2, 3, 5]),
        words(&[4]),
        hex(b"four")
    );
    let bytes = encode_members(&joint);
    assert_eq!(hex(&bytes), golden);
    assert_eq!(decode_members(bytes.clone()), Ok(joint));
    for cut in 0..bytes.len() {
        assert!(decode_members(bytes.slice(..cut)).is_err(), "cut at {cut}");
    }
    let refused = [
        (words(&[1, 3, 3, 1, 2, 3, 5]), "a voter twice"),
        (words(&[1, 3, 4, 1, 2, 3, 4]), "a voter that learns"),
        (words(&[1, 3, 5, 1, 2, 3, 6]), "an address of nobody"),
    ];
    for (ids, why) in refused {
        let text = format!("0103030101000000{ids}{}0400{}", words(&[4]), hex(b"four"));
        let bytes: Vec<u8> = (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect();
        assert_eq!(decode_members(bytes.into()), Err(DecodeError::Field("members")), "{why}");
    }
    assert_eq!(
        decode_members(Bytes::from_static(&[1, 255, 0, 0, 0, 0, 0, 0])),
        Err(DecodeError::Field("number of members")),
        "before anything is read"
    );
}

#[test]
fn records_have_the_bytes_that_version_1_promised() {
    let stored = entry(3, 7, b"xyz");
    let bytes = encode_entry(&stored);
    assert_eq!(hex(&bytes), "01021800000000000300000000000000070000000000000078797a");
    assert_eq!(decode_entry(bytes), Ok(stored));

    let voted = HardState { term: 3, vote: Some(2) };
    let bytes = encode_hard_state(voted);
    assert_eq!(hex(&bytes), "010118000000000003000000000000000200000000000000");
    assert_eq!(decode_hard_state(bytes), Ok(voted));

    let meta = SnapshotMeta { index: 7, term: 3, members: vec![1, 2].into() };
    let bytes = encode_snapshot(&meta);
    assert_eq!(
        hex(&bytes),
        "01001800180000000700000000000000030000000000000001020000000000000100000000000000\
         0200000000000000"
    );
    assert_eq!(decode_snapshot(bytes), Ok(meta));
}

#[test]
fn unknown_versions_and_kinds_are_named() {
    let bytes = encode(1, &Message::Stale { term: 6 }).into_bytes();
    let with = |at: usize, value: u8| {
        let mut changed = BytesMut::from(&bytes[..]);
        changed[at] = value;
        decode(changed.freeze())
    };
    assert_eq!(with(0, 2), Err(DecodeError::Version(2)));
    assert_eq!(with(1, 200), Err(DecodeError::Kind(200)));
    assert_eq!(with(2, 3), Err(DecodeError::Field("header length")));
    assert_eq!(decode(Bytes::new()), Err(DecodeError::Truncated));
}

#[test]
fn fields_of_a_later_minor_format_are_skipped() {
    let message = Message::Heartbeat(Heartbeat { term: 5, round: 77, commit: 8 });
    let mut longer = BytesMut::from(&encode(1, &message).into_bytes()[..]);
    let len = longer.len() as u16 + 4;
    longer[2..4].copy_from_slice(&len.to_le_bytes());
    longer.extend_from_slice(b"new!");
    assert_eq!(decode(longer.freeze()), Ok((1, message)));
}

#[test]
fn a_huge_count_allocates_nothing() {
    let head =
        AppendHead { term: 5, session: 2, prev_index: 9, prev_term: 4, commit: 8, probe: false };
    let none: [&Entry; 0] = [];
    let mut bytes = BytesMut::from(&encode_append(1, &head, none).into_bytes()[..]);
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(decode(bytes.freeze()), Err(DecodeError::Truncated));
}

#[test]
fn huge_counts_of_a_node_allocate_nothing() {
    let bytes = encode(1, &Message::Node(Box::default())).into_bytes();
    for at in [8, 4] {
        let mut bytes = BytesMut::from(&bytes[..]);
        let at = bytes.len() - at;
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(decode(bytes.freeze()), Err(DecodeError::Truncated));
    }
}

#[test]
fn long_payloads_are_pieces_of_their_own_and_are_not_copied() {
    let long = Bytes::from(vec![7; 9000]);
    let head =
        AppendHead { term: 1, session: 1, prev_index: 0, prev_term: 0, commit: 0, probe: false };
    let entries = [
        entry(1, 1, b"short"),
        Entry { data: long.clone(), ..entry(1, 2, b"") },
        entry(1, 3, b"tail"),
    ];
    let frame = encode_append(1, &head, &entries);
    assert_eq!(frame.body.len(), 2);
    assert_eq!(frame.body[0].as_ptr(), long.as_ptr());
    let whole = frame.into_bytes();
    let start = whole.as_ptr() as usize;
    let Ok((_, Message::Append { entries: back, .. })) = decode(whole.clone()) else {
        panic!("the frame decodes");
    };
    assert_eq!(back, entries);
    let inside = start..start + whole.len();
    assert!(back.iter().all(|entry| inside.contains(&(entry.data.as_ptr() as usize))));
}

#[test]
fn short_payloads_do_not_keep_what_they_were_received_with() {
    let append = |lengths: &[usize]| {
        let head =
            AppendHead { term: 5, session: 2, prev_index: 9, prev_term: 4, commit: 8, probe: true };
        let entries = (10..).zip(lengths).map(|(index, length)| Entry {
            term: 5,
            index,
            kind: EntryKind::Command,
            data: Bytes::from(vec![7; *length]),
        });
        Message::Append { head, entries: entries.collect() }
    };
    let messages = [(3, append(&[100, 0, 300])), (4, append(&[9000, 10])), (5, append(&[4, 8000]))];
    let received = encode_bundle(&messages).into_bytes();
    let buffer = received.as_ptr_range();
    let mut shares = Vec::new();
    for decoded in decode_bundle(received).unwrap() {
        let decoded = decoded.unwrap();
        assert!(messages.contains(&decoded), "it comes back as it was: {decoded:?}");
        let (group, Message::Append { entries, .. }) = decoded else { panic!("{decoded:?}") };
        let filled = entries.iter().filter(|entry| !entry.data.is_empty());
        let is_shared = |entry: &Entry| buffer.contains(&entry.data.as_ptr());
        shares.push((group, filled.map(is_shared).collect::<Vec<_>>()));
    }
    assert_eq!(shares, [(3, vec![false; 2]), (4, vec![true; 2]), (5, vec![false; 2])]);
}

fn any_entries(prev_index: u64, prev_term: u64) -> impl Strategy<Value = Vec<Entry>> {
    let kind =
        prop_oneof![Just(EntryKind::Noop), Just(EntryKind::Command), Just(EntryKind::Config)];
    vec((0..3_u64, kind, vec(any::<u8>(), 0..600)), 0..8).prop_map(move |parts| {
        let mut term = prev_term.max(1);
        (prev_index + 1..)
            .zip(parts)
            .map(|(index, (step, kind, data))| {
                term += step;
                Entry { term, index, kind, data: data.into() }
            })
            .collect()
    })
}

fn any_append() -> impl Strategy<Value = Message> {
    (0..u64::MAX / 2, 0..u64::MAX / 4, any::<[u64; 2]>(), any::<bool>()).prop_flat_map(
        |(prev_index, prev_term, [session, commit], probe)| {
            any_entries(prev_index, prev_term).prop_map(move |entries| {
                let term = entries.last().map_or(prev_term, |entry| entry.term);
                let head = AppendHead { term, session, prev_index, prev_term, commit, probe };
                Message::Append { head, entries }
            })
        },
    )
}

fn any_message() -> impl Strategy<Value = Message> {
    let small = (0..13_u8, any::<[u64; 5]>(), any::<bool>()).prop_map(|(kind, words, flag)| {
        let [term, a, b, c, d] = words;
        let request = VoteRequest { term, last_index: a, last_term: b, transfer: a % 2 == 1 };
        let reply = VoteReply { term, granted: flag };
        let (received, matched) = (b.max(c), b.min(c));
        match kind {
            0 => Message::PreVote(request),
            1 => Message::PreVoteReply(reply),
            2 => Message::Vote(request),
            3 => Message::VoteReply(reply),
            4 => Message::AppendAck(AppendAck { term, session: a, matched, received }),
            5 => Message::AppendReject(AppendReject {
                term,
                session: a,
                prev_index: b,
                hint_index: c,
                hint_term: d,
                is_recovering: flag,
            }),
            6 => Message::Heartbeat(Heartbeat { term, round: a, commit: b }),
            7 => Message::HeartbeatReply(HeartbeatReply { term, round: a, received: b }),
            8 => Message::Stale { term },
            9 => Message::ReadRequest(ReadRequest { term, nonce: a, context: b }),
            10 => Message::Quiesce(Quiesce { term, round: a, commit: b, life: c }),
            11 => {
                let beat = GroupBeat::Heartbeat(Heartbeat { term, round: a, commit: b });
                let reply = GroupBeat::Reply(HeartbeatReply { term, round: c, received });
                let beats = [(a, beat), (b, reply), (c, beat)][..(d % 4) as usize].to_vec();
                let resigned = vec![(c, d); (a % 3) as usize];
                let (tick, seen_life, seen_tick) = (a, b, c);
                let life = term;
                let beat = NodeBeat { life, tick, seen_life, seen_tick, resigned, beats };
                Message::Node(Box::new(beat))
            }
            _ => {
                let index = flag.then_some(c);
                Message::ReadReply(ReadReply { term, nonce: a, context: b, index })
            }
        }
    });
    prop_oneof![small, any_append()]
}

proptest! {
    #[test]
    fn every_message_comes_back(group: u64, message in any_message()) {
        let frame = encode(group, &message);
        let len = frame.len();
        let bytes = frame.into_bytes();
        prop_assert_eq!(bytes.len(), len);
        prop_assert_eq!(decode(bytes), Ok((group, message)));
    }

    #[test]
    fn no_prefix_of_a_message_is_a_message(message in any_message(), cut: prop::sample::Index) {
        let bytes = encode(1, &message).into_bytes();
        let cut = cut.index(bytes.len());
        prop_assert!(decode(bytes.slice(..cut)).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_read_but_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let _ = decode(bytes.clone());
        let _ = decode_entry(bytes.clone());
        let _ = decode_hard_state(bytes.clone());
        let _ = decode_snapshot(bytes);
    }

    #[test]
    fn what_a_mutated_message_decodes_to_can_be_encoded(
        message in any_message(),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = BytesMut::from(&encode(1, &message).into_bytes()[..]);
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok((group, read)) = decode(bytes.freeze()) {
            prop_assert_eq!(decode(encode(group, &read).into_bytes()), Ok((group, read)));
        }
    }

    #[test]
    fn every_record_comes_back(
        term in 1..u64::MAX,
        index in 1..u64::MAX,
        data in vec(any::<u8>(), 0..300),
        vote: Option<u64>,
        voters in prop::collection::btree_set(any::<u64>(), 0..15),
    ) {
        let stored = Entry { term, index, kind: EntryKind::Command, data: data.into() };
        prop_assert_eq!(decode_entry(encode_entry(&stored)), Ok(stored));
        let hard = HardState { term, vote };
        prop_assert_eq!(decode_hard_state(encode_hard_state(hard)), Ok(hard));
        let meta = SnapshotMeta { index, term, members: Membership::new(voters) };
        prop_assert_eq!(decode_snapshot(encode_snapshot(&meta)), Ok(meta));
    }
}

#[test]
fn a_bundle_has_the_bytes_that_version_1_promised() {
    let beat = Message::Heartbeat(Heartbeat { term: 5, round: 77, commit: 8 });
    let stale = Message::Stale { term: 6 };
    let bytes = encode_bundle(&[(0xaa, beat.clone()), (0xbb, stale.clone())]).into_bytes();
    let single = |group, message: &Message| hex(&encode(group, message).into_bytes());
    let golden = format!(
        "01120c0000000000{}{}{}{}{}",
        "02000000",
        "28000000",
        single(0xaa, &beat),
        "18000000",
        single(0xbb, &stale)
    );
    assert_eq!(hex(&bytes), golden);
    assert!(is_bundle(&bytes) && !is_bundle(&encode(1, &beat).into_bytes()) && !is_bundle(&[]));
    assert!(decode(bytes).is_err(), "it is no message");
}

#[test]
fn a_bundle_gives_back_what_went_in_and_no_more() {
    let mut messages: Vec<(u64, Message)> =
        samples().into_iter().zip(7..).map(|((message, _), group)| (group, message)).collect();
    let head =
        AppendHead { term: 5, session: 2, prev_index: 9, prev_term: 4, commit: 8, probe: false };
    let long = Bytes::from(vec![3; 1000]);
    let data = [long.clone(), Bytes::from_static(b"short"), long, Bytes::new()];
    let entries =
        data.into_iter().zip(10..).map(|(data, index)| Entry { data, ..entry(5, index, b"") });
    messages.insert(2, (1, Message::Append { head, entries: entries.collect() }));
    let frame = encode_bundle(&messages);
    assert!(!frame.body.is_empty(), "long payloads are not copied");
    let bytes = frame.into_bytes();
    let decoded: Result<Vec<_>, _> = decode_bundle(bytes.clone()).unwrap().collect();
    assert_eq!(decoded, Ok(messages.clone()));
    for cut in 0..bytes.len() {
        let Ok(cut) = decode_bundle(bytes.slice(..cut)) else { continue };
        let decoded: Vec<_> = cut.collect();
        assert!(decoded.len() <= messages.len() && decoded.last().unwrap().is_err());
        let whole = decoded.iter().zip(&messages).take(decoded.len() - 1);
        assert!(whole.into_iter().all(|(one, other)| one.as_ref() == Ok(other)));
    }
    let longer = Bytes::from([&bytes[..], b"x"].concat());
    assert_eq!(decode_bundle(longer).unwrap().last(), Some(Err(DecodeError::Trailing)));
    // A count that lies costs nothing: there are no bytes for that many.
    let mut lies = bytes.to_vec();
    lies[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let decoded: Vec<_> = decode_bundle(lies.into()).unwrap().collect();
    assert_eq!(decoded.len(), messages.len() + 1);
    assert_eq!(decoded.last(), Some(&Err(DecodeError::Truncated)));
}

#[test]
fn what_cannot_be_read_of_a_bundle_does_not_hide_the_rest() {
    let stale = |term| (term, Message::Stale { term });
    let mut bytes = encode_bundle(&[stale(1), stale(2), stale(3)]).into_bytes().to_vec();
    // The kind of the second one.
    bytes[12 + 28 + 4 + 1] = 200;
    let decoded: Vec<_> = decode_bundle(bytes.into()).unwrap().collect();
    assert_eq!(decoded, [Ok(stale(1)), Err(DecodeError::Kind(200)), Ok(stale(3))]);
}
