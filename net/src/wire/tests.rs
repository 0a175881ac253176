//! Golden bytes, and decoders under arbitrary and mutated input.

use std::ops::Range;

use bytes::{BufMut, Bytes};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use voussoir_sim::Situations;

use super::hello::{Hello, PREFIX_BYTES, Reply, length};
use super::inbox::Inbox;
use super::*;
use crate::{Class, HandshakeError};

const MAX: usize = 4096;

fn bytes_of(frame: &Frame) -> Vec<u8> {
    frame.pieces().flatten().copied().collect()
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

/// Feeds bytes in the given steps and collects frames, up to the first error.
fn feed(inbox: &mut Inbox, bytes: &[u8], step: usize) -> (Vec<Incoming>, Option<Violation>) {
    let mut frames = Vec::new();
    for chunk in bytes.chunks(step.max(1)) {
        inbox.room().put_slice(chunk);
        loop {
            match inbox.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(violation) => return (frames, Some(violation)),
            }
        }
    }
    (frames, None)
}

#[test]
fn golden_frames() {
    let request = Header { kind: Kind::Request, service: 0x0102, id: 0x0a0b, left_ms: 1500 };
    let frame = Frame::new(request, Parts::new("head").with(["body".into()]));
    let golden = "08000000 02 00 0201 0b0a000000000000 dc050000 27ae5b5c 68656164 626f6479";
    assert_eq!(bytes_of(&frame), hex(golden));
    let golden = "00000000 06 00 0000 0700000000000000 00000000 48bb600d";
    assert_eq!(bytes_of(&Frame::bare(Kind::Ping, 7)), hex(golden));
}

fn hello() -> Hello {
    Hello {
        min_version: 1,
        max_version: 3,
        class: Class::Bulk,
        cluster: 0x1122,
        from: 1,
        to: 2,
        nonce: 3,
        max_body_bytes: 1 << 20,
    }
}

fn reply(result: Result<u16, HandshakeError>) -> Reply {
    let (nonce, max_body_bytes, dead_after_ms) = (3, 1 << 20, 3000);
    Reply { result, min_version: 1, max_version: 1, nonce, max_body_bytes, dead_after_ms }
}

#[test]
fn golden_handshake() {
    let golden = "766f7573736f6972 3800 0100 0300 01 000000 22110000000000000000000000000000 \
                  0100000000000000 0200000000000000 0300000000000000 00001000 e094f9e2";
    assert_eq!(hello().encode(), hex(golden));
    let golden = "766f7573736f6972 1c00 0000 0100 0100 0100 0300000000000000 00001000 \
                  b80b0000 dc97e029";
    assert_eq!(reply(Ok(1)).encode(), hex(golden));
    let golden = "766f7573736f6972 1c00 0400 0000 0100 0100 0300000000000000 00001000 \
                  b80b0000 b29e1297";
    assert_eq!(reply(Err(HandshakeError::Cluster)).encode(), hex(golden));
}

fn split(bytes: &[u8]) -> ([u8; PREFIX_BYTES], &[u8]) {
    let (prefix, rest) = bytes.split_at(PREFIX_BYTES);
    (prefix.try_into().unwrap(), rest)
}

#[test]
fn handshakes_come_back_and_bear_later_fields() {
    let bytes = hello().encode();
    let (prefix, rest) = split(&bytes);
    assert_eq!(length(&prefix), Ok(rest.len()));
    assert_eq!(Hello::decode(&prefix, rest), Ok(hello()));
    for result in [Ok(1), Err(HandshakeError::TooMany), Err(HandshakeError::Other(77))] {
        let bytes = reply(result).encode();
        let (prefix, rest) = split(&bytes);
        assert_eq!(Reply::decode(&prefix, rest), Ok(reply(result)));
    }
    // The first replies ended before the time that ends a silent connection.
    let first = "766f7573736f6972 1800 0000 0100 0100 0100 0300000000000000 00001000 ebc9b5f2";
    let bytes = hex(first);
    let (prefix, rest) = split(&bytes);
    assert_eq!(Reply::decode(&prefix, rest), Ok(Reply { dead_after_ms: 0, ..reply(Ok(1)) }));
    // A later version adds a field before the checksum.
    let mut bytes = hello().encode();
    bytes.truncate(bytes.len() - 4);
    bytes.extend_from_slice(b"more");
    bytes[8] += 4;
    let crc = crc32c([&bytes[..]]);
    bytes.extend_from_slice(&crc.to_le_bytes());
    let (prefix, rest) = split(&bytes);
    assert_eq!(length(&prefix), Ok(rest.len()));
    assert_eq!(Hello::decode(&prefix, rest), Ok(hello()));
}

#[test]
fn versions() {
    let spoken = |min, max| Hello { min_version: min, max_version: max, ..hello() }.version();
    assert_eq!(spoken(0, 9), Ok(1));
    assert_eq!(spoken(2, 9), Err(HandshakeError::Version { min: 2, max: 9 }));
    assert_eq!(spoken(0, 0), Err(HandshakeError::Version { min: 0, max: 0 }));
    assert_eq!(spoken(9, 0), Err(HandshakeError::Version { min: 9, max: 0 }));
}

#[test]
fn what_a_header_promises_is_not_allocated() {
    let mut inbox = Inbox::new(1 << 30);
    let mut header = Frame::bare(Kind::Message, 0).header;
    header[..4].copy_from_slice(&(1_u32 << 30).to_le_bytes());
    inbox.room().put_slice(&header);
    assert_eq!(inbox.next(), Ok(None));
    assert!(inbox.room().capacity() <= 256 * 1024, "a promise of 1 GiB, 24 bytes of it here");
    for _ in 0..100 {
        inbox.room().put_slice(&[0; 10_000]);
        assert_eq!(inbox.next(), Ok(None));
    }
    assert!(inbox.room().capacity() <= 4 << 20, "1 MB of it here");
}

#[test]
fn oversized_is_seen_in_the_header() {
    let frame = Frame::new(
        Header { kind: Kind::Message, service: 1, id: 0, left_ms: 0 },
        vec![0; MAX + 1].into(),
    );
    let (frames, violation) = feed(&mut Inbox::new(MAX), &frame.header, 100);
    assert!(frames.is_empty());
    let expected = Violation::Oversized { bytes: MAX as u64 + 1, max_bytes: MAX };
    assert_eq!(violation, Some(expected));
}

#[test]
fn flags_of_later_versions() {
    for (flags, is_taken) in [(0x01, true), (0x0f, true), (0x10, false), (0x80, false)] {
        let mut header = Frame::bare(Kind::Ping, 7).header;
        header[5] = flags;
        let crc = crc32c([&header[..20]]);
        header[20..].copy_from_slice(&crc.to_le_bytes());
        let (frames, violation) = feed(&mut Inbox::new(MAX), &header, 100);
        assert_eq!(frames.len(), usize::from(is_taken));
        assert_eq!(violation, (!is_taken).then_some(Violation::Flags(flags)));
    }
}

fn any_frame() -> impl Strategy<Value = (Header, Vec<Bytes>)> {
    let pieces = vec(vec(any::<u8>(), 0..1300).prop_map(Bytes::from), 0..4);
    (1_u8..=8, any::<u16>(), any::<u64>(), any::<u32>(), pieces)
        .prop_filter("within the limit", |(.., pieces)| {
            pieces.iter().map(Bytes::len).sum::<usize>() <= MAX
        })
        .prop_map(|(kind, service, id, left_ms, pieces)| {
            let kind = Kind::from_u8(kind).unwrap();
            (Header { kind, service, id, left_ms }, pieces)
        })
}

/// The bytes of frames, and each frame with its range.
fn stream_of(frames: Vec<(Header, Vec<Bytes>)>) -> (Vec<u8>, Vec<(Range<usize>, Incoming)>) {
    let (mut stream, mut expected) = (Vec::new(), Vec::new());
    for (header, pieces) in frames {
        let parts = Parts::default().with(pieces);
        let body = parts.to_bytes();
        let begin = stream.len();
        stream.extend(bytes_of(&Frame::new(header, parts)));
        expected.push((begin..stream.len(), Incoming { header, body }));
    }
    (stream, expected)
}

#[test]
fn frames_come_back_however_they_are_cut() {
    static NAMES: [&str; 4] =
        ["read ends in a header", "read ends in a body", "several frames in a read", "empty body"];
    let situations = Situations::new(&NAMES);
    let strategy = (vec(any_frame(), 0..8), prop_oneof![1_usize..60, 1_usize..5000]);
    let mut runner = TestRunner::new(ProptestConfig::default());
    let outcome = runner.run(&strategy, |(frames, step)| {
        let (stream, expected) = stream_of(frames);
        for at in (step..stream.len()).step_by(step) {
            for (range, _) in &expected {
                let header = range.start + HEADER_BYTES;
                let in_header = (range.start + 1..header).contains(&at);
                situations.add("read ends in a header", u64::from(in_header));
                let in_body = (header..range.end).contains(&at);
                situations.add("read ends in a body", u64::from(in_body));
            }
        }
        let joined = expected.windows(2).any(|pair| pair[1].0.end / step == pair[0].0.start / step);
        situations.add("several frames in a read", u64::from(joined));
        let empty = expected.iter().filter(|(_, frame)| frame.body.is_empty()).count();
        situations.add("empty body", empty as u64);
        let (found, violation) = feed(&mut Inbox::new(MAX), &stream, step);
        prop_assert_eq!(violation, None);
        prop_assert_eq!(found, expected.into_iter().map(|(_, frame)| frame).collect::<Vec<_>>());
        Ok(())
    });
    outcome.unwrap();
    situations.assert_all_reached();
}

#[test]
fn a_mutated_stream_yields_only_what_was_sent() {
    static NAMES: [&str; 6] = [
        "length changed",
        "checksum changed",
        "body changed",
        "stream ends within a frame",
        "frames before the damage",
        "no damage before the end",
    ];
    let situations = Situations::new(&NAMES);
    let index = any::<prop::sample::Index>;
    let strategy = (vec(any_frame(), 1..6), index(), 1_u8.., index(), 1_usize..5000);
    let mut runner = TestRunner::new(ProptestConfig::default());
    let outcome = runner.run(&strategy, |(frames, at, change, cut, step)| {
        let (mut stream, expected) = stream_of(frames);
        // Half of the changes hit a header, which is short beside most bodies.
        let at = at.index(2 * stream.len());
        let at =
            if at < stream.len() { at } else { expected[at % expected.len()].0.start + at % 24 };
        stream[at] ^= change;
        stream.truncate(cut.index(stream.len() + 1));
        if let Some((range, _)) = expected.iter().find(|(range, _)| range.contains(&at))
            && at < stream.len()
        {
            match at - range.start {
                0..4 => situations.reached("length changed"),
                20..24 => situations.reached("checksum changed"),
                24.. => situations.reached("body changed"),
                _ => {}
            }
            situations.add("frames before the damage", u64::from(range.start > 0));
        } else {
            situations.reached("no damage before the end");
        }
        let is_cut =
            expected.iter().any(|(range, _)| (range.start + 1..range.end).contains(&stream.len()));
        situations.add("stream ends within a frame", u64::from(is_cut));
        let (found, _) = feed(&mut Inbox::new(MAX), &stream, step);
        let whole = expected
            .iter()
            .take_while(|(range, _)| range.end <= stream.len() && !range.contains(&at));
        prop_assert_eq!(found, whole.map(|(_, frame)| frame.clone()).collect::<Vec<_>>());
        Ok(())
    });
    outcome.unwrap();
    situations.assert_all_reached();
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..3000), step in 1_usize..3000) {
        let (frames, _) = feed(&mut Inbox::new(MAX), &bytes, step);
        prop_assert!(frames.is_empty(), "no checksum fits by chance");
        if let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_BYTES>() {
            prop_assert!(Hello::decode(prefix, rest).is_err());
            prop_assert!(Reply::decode(prefix, rest).is_err());
        }
    }

    #[test]
    fn mutated_handshakes_are_rejected(
        at in any::<prop::sample::Index>(),
        change in 1_u8..,
    ) {
        for bytes in [hello().encode(), reply(Ok(1)).encode()] {
            let mut bytes = bytes;
            let at = at.index(bytes.len());
            bytes[at] ^= change;
            let (prefix, rest) = split(&bytes);
            prop_assert!(Hello::decode(&prefix, rest).is_err());
            prop_assert!(Reply::decode(&prefix, rest).is_err());
        }
    }
}
