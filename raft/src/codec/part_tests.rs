//! Tests of the bytes of a snapshot's transfer.

use std::fmt::Write;

use bytes::Bytes;
use proptest::prelude::*;

use super::{DecodeError, decode_answer, decode_part, encode_answer, encode_part};
use crate::store::SnapshotName;
use crate::transport::{SnapshotAnswer, SnapshotPart};
use crate::types::SnapshotMeta;

fn open() -> SnapshotPart {
    let meta = SnapshotMeta { index: 7, term: 3, members: vec![1, 2, 3].into() };
    SnapshotPart::Open { term: 4, name: SnapshotName { meta, identity: 9 }, chunks: 2 }
}

fn chunk(data: &'static str) -> SnapshotPart {
    SnapshotPart::Chunk { identity: 9, number: 1, data: Bytes::from_static(data.as_bytes()) }
}

fn all() -> [SnapshotPart; 3] {
    [open(), chunk("state"), SnapshotPart::Close { identity: 9 }]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[test]
fn bytes_of_version_1_stay_as_they_are() {
    let golden = [
        "0120280000000000050000000000000004000000000000000900000000000000\
         0200000000000000\
         01001800200000000700000000000000030000000000000001030000000000000100000000000000\
         0200000000000000\
         0300000000000000",
        "012120000000000005000000000000000900000000000000010000000000000073746174\
         65",
        "0122180000000000050000000000000009000000000000\
         00",
    ];
    for (part, golden) in all().into_iter().zip(golden) {
        assert_eq!(hex(&encode_part(5, part).into_bytes()), golden);
    }
    let answer = encode_answer(SnapshotAnswer::Next { number: 6 });
    assert_eq!(hex(&answer), "012318000000000000000000000000000600000000000000");
}

#[test]
fn parts_and_answers_survive_their_bytes() {
    for part in all() {
        let bytes = encode_part(5, part.clone()).into_bytes();
        assert_eq!(decode_part(bytes), Ok((5, part)));
    }
    let answers =
        [SnapshotAnswer::Next { number: 6 }, SnapshotAnswer::Done, SnapshotAnswer::Rejected];
    for answer in answers {
        assert_eq!(decode_answer(encode_answer(answer)), Ok(answer));
    }
}

#[test]
fn what_is_wrong_is_refused() {
    let whole = encode_part(5, open()).into_bytes();
    for cut in 0..whole.len() {
        assert!(decode_part(whole.slice(..cut)).is_err(), "cut at {cut}");
    }
    assert_eq!(decode_part(Bytes::from_static(&[2, 32])), Err(DecodeError::Version(2)));
    let answer = encode_answer(SnapshotAnswer::Done);
    assert!(matches!(decode_part(answer), Err(DecodeError::Kind(_) | DecodeError::Truncated)));
    assert!(decode_part(encode_part(5, chunk("")).into_bytes()).is_err(), "an empty chunk");
}

proptest! {
    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let _ = decode_part(bytes.clone());
        let _ = decode_answer(bytes);
    }

    #[test]
    fn mutated_parts_are_read_or_refused(
        which in 0usize..3,
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = encode_part(5, all()[which].clone()).into_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok((_, part)) = decode_part(bytes.into()) {
            let again = encode_part(5, part.clone()).into_bytes();
            prop_assert_eq!(decode_part(again), Ok((5, part)));
        }
    }
}
