//! Tests of a shard's state: what it owns, splits, and requests that are sent again.

use std::sync::Arc;

use voussoir_raft::StateMachine;
use voussoir_raft::testing::conformance;

use super::super::fill::{Piece, Wanted};
use super::super::machine::ShardMachine;
use super::*;
use crate::kv::{Answer, Condition};

/// A write to a place, not to a key: shards know keys only by their places. The value says the
/// epoch, so that a later write differs.
fn put(key: &str, epoch: u64, id: Option<(u64, u64)>) -> Command {
    let write = kv::Command::Put {
        key: key.to_owned().into(),
        value: Bytes::from(format!("{key} under {epoch}")),
        condition: Condition::Always,
    };
    let id = id.map(|(client, number)| RequestId { client, number });
    Command::Write { epoch, id, write }
}

fn open(epoch: u64, start: &str, end: Option<&str>, count: u64) -> Command {
    let (start, end) = (start.to_owned(), end.map(ToOwned::to_owned));
    Command::Step(Step::Open { epoch, start, end, count })
}

fn seal(at: &str, to: u64) -> Command {
    Command::Step(Step::Seal { at: at.to_owned(), to })
}

fn done(version: u64) -> Reply {
    Reply::Written(Answer::Done { version })
}

/// A shard of everything from `r/` on with the keys `r/a` to `r/f`, written at 2 to 7 by client 9.
fn filled() -> Shard {
    let mut shard = Shard::default();
    assert_eq!(shard.apply(1, open(1, "r/", None, 0)), Reply::Done);
    for (index, key) in (2..).zip(["r/a", "r/b", "r/c", "r/d", "r/e", "r/f"]) {
        assert_eq!(shard.apply(index, put(key, 1, Some((9, index)))), done(index));
    }
    shard
}

/// Moves what `left` has sealed for shard 6 into a shard of its own, as the leader of that would.
fn fetched(left: &Shard) -> Shard {
    let mut right = Shard::default();
    let mut index = 0;
    let mut apply = |shard: &mut Shard, command: Command| {
        index += 1;
        let command = Command::decode(command.encode()).unwrap();
        assert_eq!(shard.apply(index, command), Reply::Done);
    };
    loop {
        let last = right.pairs().last_key().map(|key| String::from_utf8_lossy(key).into_owned());
        let piece = Piece::of(left, &Wanted { to: 6, after: last }).unwrap();
        let piece = Piece::decode(piece.encode()).unwrap();
        if !piece.clients.is_empty() {
            apply(&mut right, Command::Clients(piece.clients));
        }
        apply(&mut right, Command::Pairs(piece.chunk));
        if right.pairs().count() as u64 == piece.count {
            apply(&mut right, open(2, "r/d", None, piece.count));
            return right;
        }
    }
}

#[test]
fn a_shard_answers_for_its_own_range_and_epoch_only() {
    let mut shard = Shard::default();
    assert_eq!(shard.apply(1, put("r/a", 1, None)), Reply::Closed);
    let mut shard = filled();
    assert_eq!(shard.apply(8, put("h/a", 1, None)), Reply::Stale { epoch: 1 });
    assert_eq!(shard.apply(9, put("r/a", 2, None)), Reply::Stale { epoch: 1 });
    assert_eq!(shard.get("r/a", 0), Found::Elsewhere(Reply::Stale { epoch: 1 }));
    assert!(matches!(shard.get("r/a", 1), Found::Value(Some(held)) if held.version == 2));
}

#[test]
fn what_is_sealed_is_neither_read_nor_written_here_again() {
    let mut shard = filled();
    assert_eq!(shard.apply(8, seal("r/", 6)), Reply::Refused, "its own start");
    assert_eq!(shard.apply(8, seal("h/x", 6)), Reply::Refused, "not in its range");
    assert_eq!(shard.apply(8, seal("r/d", 6)), Reply::Done);
    let sealed = shard.parting().unwrap().kv.clone();
    for epoch in [1, 2] {
        assert_eq!(shard.apply(9, put("r/d", epoch, None)), Reply::Moved { to: 6 });
        assert_eq!(shard.get("r/f", epoch), Found::Elsewhere(Reply::Moved { to: 6 }));
    }
    assert_eq!(shard.apply(10, put("r/a", 1, None)), Reply::Stale { epoch: 2 });
    assert_eq!(shard.apply(11, put("r/a", 2, None)), done(11));
    assert_eq!(shard.apply(12, seal("r/d", 6)), Reply::Done, "sent again");
    assert_eq!(shard.apply(13, seal("r/b", 7)), Reply::Refused, "while another one waits");
    let parting = shard.parting().unwrap();
    assert_eq!(parting.kv.list(b"", b"", 10), sealed.list(b"", b"", 10), "it never changes");
    assert_eq!((shard.pairs().count(), parting.kv.count()), (3, 3));
    // Forgotten, the key is not here, wherever it is.
    assert_eq!(shard.apply(14, Command::Step(Step::Forget { to: 7 })), Reply::Done);
    assert!(shard.parting().is_some(), "another one's");
    shard.apply(15, Command::Step(Step::Forget { to: 6 }));
    assert_eq!(shard.apply(16, put("r/d", 2, None)), Reply::Stale { epoch: 2 });
}

#[test]
fn a_split_keeps_values_versions_and_answers() {
    let mut left = filled();
    // The log of the new shard is shorter: its indexes are below the versions that come along.
    assert_eq!(left.apply(108, put("r/e", 1, Some((7, 1)))), done(108));
    left.apply(109, seal("r/d", 6));
    let mut right = fetched(&left);
    assert_eq!(right.pairs().count(), 3);
    assert!(matches!(right.get("r/e", 2), Found::Value(Some(held)) if held.version == 108));
    // Sent again after the split: answered as it was, and not applied again.
    assert_eq!(right.apply(20, put("r/e", 2, Some((7, 1)))), done(108));
    assert_eq!(right.apply(21, put("r/f", 2, Some((9, 6)))), Reply::Old);
    assert!(matches!(right.get("r/e", 2), Found::Value(Some(held)) if held.version == 108));
    // Versions go on above those that came along.
    let Reply::Written(Answer::Done { version }) = right.apply(22, put("r/e", 2, Some((7, 2))))
    else {
        panic!("not written");
    };
    assert!(version > 108, "version {version} was given before");
    // What comes late changes nothing.
    let late = Piece::of(&left, &Wanted { to: 6, after: None }).unwrap();
    assert_eq!(right.apply(23, Command::Pairs(late.chunk)), Reply::Refused);
    assert_eq!(right.apply(24, Command::Clients(late.clients)), Reply::Refused);
    assert!(matches!(right.get("r/e", 2), Found::Value(Some(held)) if held.version == version));
}

#[test]
fn a_shard_opens_with_all_pairs_or_not_at_all() {
    let mut left = filled();
    left.apply(8, seal("r/d", 6));
    let mut right = Shard::default();
    assert_eq!(right.apply(1, open(2, "r/d", None, 3)), Reply::Refused);
    assert_eq!(right.apply(2, put("r/d", 2, None)), Reply::Closed);
    let piece = Piece::of(&left, &Wanted { to: 6, after: None }).unwrap();
    right.apply(3, Command::Pairs(piece.chunk));
    assert_eq!(right.apply(4, open(2, "r/d", None, 3)), Reply::Done);
    assert_eq!(Piece::of(&left, &Wanted { to: 7, after: None }), None, "another shard's");
}

#[test]
fn a_large_part_comes_in_pieces_and_goes_on_where_it_ended() {
    let mut left = filled();
    let value = Bytes::from(vec![7; 100_000]);
    for (index, number) in (8..).zip(0..20) {
        let key = Bytes::from(format!("r/x/{number:02}"));
        let write = kv::Command::Put { key, value: value.clone(), condition: Condition::Always };
        left.apply(index, Command::Write { epoch: 1, id: None, write });
    }
    left.apply(100, seal("r/d", 6));
    let right = fetched(&left);
    assert_eq!(right.pairs().count(), 23);
    assert_eq!(right.pairs().list(b"", b"", 99), left.parting().unwrap().kv.list(b"", b"", 99));
}

#[test]
fn a_split_that_was_taken_back_is_never_sealed() {
    let bar = |to| Command::Step(Step::Bar { to });
    let mut shard = filled();
    assert_eq!(shard.apply(8, bar(6)), Reply::Done);
    assert_eq!(shard.apply(9, bar(5)), Reply::Done, "late");
    assert_eq!(shard.apply(10, seal("r/d", 6)), Reply::Refused);
    assert_eq!(shard.apply(11, put("r/e", 1, None)), done(11), "it is still here");
    assert_eq!(shard.apply(12, seal("r/d", 7)), Reply::Done, "the next one");
    assert_eq!(shard.apply(13, bar(7)), Reply::Refused, "too late");
    // It stands in snapshots too.
    let (mut cut, mut again) = (Cut::new(shard), Shard::default());
    while let Some(chunk) = cut.next_chunk() {
        again.decode_chunk(chunk).unwrap();
    }
    assert_eq!(again.barred(), 6);
}

#[test]
fn bytes_that_are_no_piece_are_refused() {
    let piece =
        Piece { count: 1, clients: Bytes::new(), chunk: Kv::default().encode_chunk(None).1 };
    let bytes = piece.encode();
    assert_eq!(Piece::decode(bytes.clone()), Some(piece));
    for len in 0..bytes.len() {
        assert_eq!(Piece::decode(bytes.slice(..len)), None);
    }
    let mut far = bytes.to_vec();
    far[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Piece::decode(far.into()), None);
}

#[test]
fn commands_and_answers_survive_their_bytes() {
    let step = Step::Open { epoch: 3, start: "a".into(), end: None, count: 9 };
    let commands = [
        put("r/a", 7, Some((1, 2))),
        put("r/a", 7, None),
        Command::Pairs("chunk".into()),
        Command::Clients("clients".into()),
        seal("r/d", 6),
        Command::Step(step),
    ];
    for command in commands {
        let bytes = command.encode();
        assert_eq!(Command::decode(bytes.clone()).unwrap(), command);
        assert!(Command::decode([&[9], &bytes[1..]].concat().into()).is_err(), "another version");
    }
    let replies =
        [done(1), Reply::Moved { to: 2 }, Reply::Stale { epoch: 3 }, Reply::Closed, Reply::Old];
    for reply in replies.into_iter().chain([Reply::Done, Reply::Refused]) {
        assert_eq!(Reply::decode(&reply.encode()).unwrap(), reply);
    }
    assert!(Command::decode(Bytes::new()).is_err() && Reply::decode(&[9, 9]).is_err());
    // The layout of a write, byte by byte.
    let delete = kv::Command::Delete { key: "k".into(), condition: Condition::Always };
    let id = Some(RequestId { client: 2, number: 3 });
    let bytes = Command::Write { epoch: 1, id, write: delete.clone() }.encode();
    assert_eq!(bytes[..10], [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((bytes[10], bytes[18], &bytes[26..]), (2, 3, &delete.encode()[..]));
}

#[tokio::test]
async fn the_machine_keeps_the_contract_of_its_seam() {
    let mut commands = vec![open(1, "", None, 0)];
    for number in 0..40_u64 {
        let key = Bytes::from(format!("r/{}", number % 9));
        let value = Bytes::from(vec![number as u8; number as usize * 9000]);
        let write = kv::Command::Put { key, value, condition: Condition::Always };
        let id = Some(RequestId { client: 1 + number % 3, number });
        commands.push(Command::Write { epoch: 1, id, write });
    }
    commands.push(seal("r/4", 6));
    commands.push(put("r/1", 2, Some((2, 99))));
    let commands: Vec<Bytes> = commands.iter().map(Command::encode).collect();
    let create = || -> Box<dyn StateMachine> { Box::new(ShardMachine::new(Arc::default())) };
    conformance::state_machine(create, &commands).await;
}
