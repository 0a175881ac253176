//! Every message keeps its bytes, and bytes that are none are refused.

use proptest::prelude::*;

use super::*;
use crate::paxos::{Ballot, Record, State};
use crate::table::{Digester, Reply, Request};
use crate::version::{Actor, Dot, Siblings, VersionVector};

fn dot() -> impl Strategy<Value = Dot> {
    let counter = prop_oneof![1..5_u64, Just(Dot::MAX_COUNTER)];
    (0..4_u64, 0..3_u64, counter)
        .prop_map(|(node, incarnation, counter)| Dot::new(Actor::new(node, incarnation), counter))
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn key(max: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 1..max).prop_map(Bytes::from)
}

fn vector() -> impl Strategy<Value = VersionVector> {
    prop::collection::vec(dot(), 0..4).prop_map(VersionVector::from_iter)
}

fn siblings() -> impl Strategy<Value = Siblings<Bytes>> {
    let values = prop::collection::btree_map(dot(), bytes(20), 0..4);
    (vector(), values).prop_map(|(context, values)| Siblings::from_parts(context, values))
}

fn ballot() -> impl Strategy<Value = Ballot> {
    let round = prop_oneof![1..9_u64, Just(Ballot::MAX_ROUND)];
    (round, dot()).prop_map(|(round, session)| Ballot { round, session })
}

fn state() -> impl Strategy<Value = State> {
    let applied = prop::collection::vec(dot(), 0..5);
    let value = prop::option::of(bytes(20));
    (5..99_u64, value, applied).prop_map(|(version, value, applied)| State {
        version,
        value,
        applied,
    })
}

fn ask() -> impl Strategy<Value = Ask> {
    let key = || key(30);
    prop_oneof![
        key().prop_map(|key| Ask::Table(Request::Get { key })),
        (key(), any::<[u8; 16]>(), any::<u32>()).prop_map(|(key, digest_key, min_bytes)| {
            let digester = Digester { key: merkle::HashKey::new(digest_key), min_bytes };
            Ask::Table(Request::Digest { key, digester })
        }),
        (key(), vector(), prop::option::of(bytes(20)))
            .prop_map(|(key, seen, value)| Ask::Table(Request::Write { key, seen, value })),
        (key(), siblings()).prop_map(|(key, state)| Ask::Table(Request::Merge { key, state })),
        (key(), vector()).prop_map(|(key, context)| Ask::Table(Request::Forget { key, context })),
        any::<u64>().prop_map(|epoch| Ask::Table(Request::Epoch { epoch })),
        (key(), ballot()).prop_map(|(key, ballot)| Ask::Register {
            key,
            request: paxos::Request::Prepare { ballot }
        }),
        (key(), ballot(), ballot(), state()).prop_map(|(key, ballot, next, state)| {
            Ask::Register { key, request: paxos::Request::Accept { ballot, state, next } }
        }),
        (any::<bool>(), bytes(30)).prop_map(|(is_table, after)| Ask::Scan {
            space: if is_table { Space::Table } else { Space::Registers },
            after
        }),
        (any::<bool>(), key()).prop_map(|(is_table, key)| Ask::Read {
            space: if is_table { Space::Table } else { Space::Registers },
            key
        }),
        question().prop_map(|question| Ask::Compare { question }),
        prop::option::of(membership()).prop_map(|offer| Ask::Membership { offer }),
    ]
}

fn membership() -> impl Strategy<Value = Membership> {
    let ids = prop::collection::btree_set(1..9_u64, 1..5);
    (ids, any::<bool>(), 0..2_u64).prop_map(|(ids, is_changing, lineage)| {
        let first = Membership::first(ids);
        let change = membership::MemberChange::Add(99);
        let first = first.of_lineage(Lineage::new(lineage));
        let next = first.begin(change, table::Level::Quorum).ok().flatten();
        if is_changing { next.map_or(first, |next| next.drawn()) } else { first }
    })
}

fn question() -> impl Strategy<Value = merkle::Question> {
    let node = (0..4_u8, 0..1_u32).prop_map(|(level, at)| merkle::NodeId { level, at });
    prop_oneof![
        prop::collection::vec(node, 0..4).prop_map(|nodes| merkle::Question::Sums { nodes }),
        (0..65_536_u32, prop::option::of(any::<u128>()))
            .prop_map(|(bucket, after)| merkle::Question::Entries { bucket, after }),
        prop::collection::vec(any::<u128>(), 0..4).prop_map(|ids| merkle::Question::Keys { ids }),
    ]
}

fn compared() -> impl Strategy<Value = merkle::Answer> {
    let entries = prop::collection::btree_map(any::<u128>(), any::<u128>(), 0..4);
    prop_oneof![
        prop::collection::vec(any::<[u128; 16]>(), 0..3)
            .prop_map(|sums| merkle::Answer::Sums { sums }),
        (entries, any::<bool>()).prop_map(|(entries, is_last)| merkle::Answer::Entries {
            entries: entries.into_iter().map(|(id, digest)| merkle::Entry { id, digest }).collect(),
            is_last
        }),
        prop::collection::vec(prop::option::of(bytes(30)), 0..4)
            .prop_map(|keys| merkle::Answer::Keys { keys }),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    let accepted = prop::option::of((ballot(), state()));
    prop_oneof![
        siblings().prop_map(|state| Answer::Table(Reply::Value { state })),
        siblings().prop_map(|state| Answer::Table(Reply::Written { state })),
        any::<u128>().prop_map(|digest| Answer::Table(Reply::Digest { digest })),
        Just(Answer::Table(Reply::Merged)),
        Just(Answer::Table(Reply::Refused)),
        Just(Answer::Table(Reply::NotWhole)),
        Just(Answer::Busy),
        any::<u64>().prop_map(|epoch| Answer::Table(Reply::Epoch { epoch })),
        any::<u64>().prop_map(|epoch| Answer::Table(Reply::Stale { epoch })),
        (ballot(), accepted).prop_map(|(ballot, accepted)| Answer::Register(
            paxos::Reply::Promise { ballot, accepted }
        )),
        ballot().prop_map(|ballot| Answer::Register(paxos::Reply::Accepted { ballot })),
        (ballot(), ballot()).prop_map(|(ballot, promised)| Answer::Register(
            paxos::Reply::Rejected { ballot, promised }
        )),
        ballot().prop_map(|ballot| Answer::Register(paxos::Reply::NotWhole { ballot })),
        prop::collection::vec((key(9), bytes(30)), 0..4).prop_map(Answer::Page),
        any::<bool>().prop_map(|is_written| Answer::TooLong { is_written }),
        compared().prop_map(Answer::Compared),
        any::<u64>().prop_map(|name| Answer::OtherCluster { lineage: Lineage::new(name) }),
        (membership(), any::<bool>(), any::<bool>()).prop_map(
            |(membership, is_whole, is_ready)| {
                Answer::Membership { membership, is_whole, is_ready }
            }
        ),
    ]
}

const UNNAMED: Stamp = Stamp { lineage: Lineage::UNNAMED, epoch: 1, branch: 0 };

fn stamp() -> impl Strategy<Value = Stamp> {
    (0..3_u64, 1..4_u64, any::<u64>()).prop_map(|(name, epoch, branch)| {
        let branch = if name == 0 { 0 } else { branch };
        Stamp { lineage: Lineage::new(name), epoch, branch }
    })
}

/// Cuts the bytes, appends to them, or changes one of them.
fn damaged(bytes: &Bytes, at: usize, by: u8) -> Bytes {
    let mut bytes = bytes.to_vec();
    match by % 3 {
        0 => bytes.truncate(at % bytes.len()),
        1 => bytes.push(by),
        _ => {
            let at = at % bytes.len();
            bytes[at] ^= by.max(1);
        }
    }
    bytes.into()
}

proptest! {
    #[test]
    fn requests_keep_their_bytes(
        ask in ask(), epoch: u64, max: u32, membership in stamp(), at: usize, by: u8,
    ) {
        let envelope = Envelope { max_answer_bytes: max as usize, epoch, membership, ask };
        let bytes = envelope.encode();
        prop_assert_eq!(Envelope::decode(bytes.clone()), Ok(envelope));
        // What is accepted after damage is a request with exactly these bytes.
        let bytes = damaged(&bytes, at, by);
        if let Ok(envelope) = Envelope::decode(bytes.clone()) {
            prop_assert_eq!(envelope.encode(), bytes);
        }
    }

    #[test]
    fn answers_keep_their_bytes(answer in answer(), epoch: u64, at: usize, by: u8) {
        let bytes = answer.encode(epoch);
        prop_assert_eq!(Answer::decode(bytes.clone()), Ok((epoch, answer)));
        let bytes = damaged(&bytes, at, by);
        if let Ok((epoch, answer)) = Answer::decode(bytes.clone()) {
            prop_assert_eq!(answer.encode(epoch), bytes);
        }
    }

    #[test]
    fn records_keep_their_bytes(
        promised in ballot(), accepted in prop::option::of((ballot(), state())), at: usize, by: u8,
    ) {
        let record = Record { promised, accepted };
        let bytes = encode_record(&record);
        prop_assert_eq!(decode_record(bytes.clone()), Ok(record));
        let bytes = damaged(&bytes, at, by);
        if let Ok(record) = decode_record(bytes.clone()) {
            prop_assert_eq!(encode_record(&record), bytes);
        }
    }
}

#[test]
fn lengths_from_the_wire_are_bounded() {
    let long = Bytes::from(vec![0; MAX_KEY_BYTES + 1]);
    let ask = Ask::Table(Request::Get { key: long });
    let envelope = Envelope { max_answer_bytes: 0, epoch: 1, membership: UNNAMED, ask };
    let error = DecodeError::AboveLimit("length of a key");
    assert_eq!(Envelope::decode(envelope.encode()), Err(error));
    let mut page = BytesMut::from(&Answer::Page(Vec::new()).encode(1)[..]);
    page.truncate(12);
    page.put_u32_le(u32::MAX);
    assert_eq!(Answer::decode(page.freeze()), Err(DecodeError::Truncated));
}

/// Nor in a page: a record that is read by no scan would stay behind.
#[test]
fn no_request_and_no_page_has_an_empty_key() {
    let (key, dot) = (Bytes::new(), Dot::new(Actor::new(1, 1), 1));
    let ballot = Ballot { round: 1, session: dot };
    let (seen, state) = (VersionVector::new(), Siblings::new());
    let digester = Digester { key: merkle::HashKey::new([0; 16]), min_bytes: 0 };
    let accepted = State { version: 0, value: None, applied: Vec::new() };
    let accept = paxos::Request::Accept { ballot, next: ballot, state: accepted };
    let register = |request| Ask::Register { key: key.clone(), request };
    let asks = [
        Ask::Table(Request::Get { key: key.clone() }),
        Ask::Table(Request::Digest { key: key.clone(), digester }),
        Ask::Table(Request::Write { key: key.clone(), seen: seen.clone(), value: None }),
        Ask::Table(Request::Merge { key: key.clone(), state }),
        Ask::Table(Request::Forget { key: key.clone(), context: seen }),
        register(paxos::Request::Prepare { ballot }),
        register(accept),
        Ask::Read { space: Space::Table, key: key.clone() },
    ];
    let error = DecodeError::Invalid("length of a key");
    let decode = |ask| {
        let envelope = Envelope { max_answer_bytes: 0, epoch: 1, membership: UNNAMED, ask };
        Envelope::decode(envelope.encode())
    };
    for ask in asks {
        assert_eq!(decode(ask.clone()), Err(error), "{ask:?}");
    }
    let page = Answer::Page(vec![(key.clone(), Bytes::new())]);
    assert_eq!(Answer::decode(page.encode(1)), Err(error));
    // A scan begins before the first key.
    assert!(decode(Ask::Scan { space: Space::Table, after: key }).is_ok());
}
