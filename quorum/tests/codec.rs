//! The bytes of versions: pinned, one encoding for each value, and bounded against strangers.

use bytes::Bytes;
use proptest::prelude::*;
use voussoir_quorum::version::codec::{self, DecodeError, Limits};
use voussoir_quorum::version::{Actor, Dot, Siblings, Timestamp, VersionVector};
use voussoir_quorum::{MAX_KEY_BYTES, SessionToken, TokenError};

fn example() -> Siblings<Bytes> {
    let (a, b) = (Actor::new(1, 2), Actor::new(3, 1));
    let mut siblings = Siblings::new();
    siblings.put_blind(Dot::new(a, 5), Bytes::from_static(b"old")).unwrap();
    let seen = siblings.context().clone();
    siblings.put(&seen, Dot::new(b, 2), Bytes::from_static(b"new")).unwrap();
    siblings.put(&seen, Dot::new(a, 6), Bytes::new()).unwrap();
    siblings
}

const GOLDEN: &str = "01010000\
    02000000010000000000000002000000000000000600000000000000\
    030000000000000001000000000000000200000000000000\
    0200000001000000000000000200000000000000060000000000000000000000\
    030000000000000001000000000000000200000000000000030000006e6577";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[test]
fn the_bytes_are_pinned() {
    let bytes = codec::encode_siblings(&example());
    assert_eq!(hex(&bytes), GOLDEN);
    assert_eq!(codec::decode_siblings(bytes, &Limits::default()), Ok(example()));
    let context = codec::encode_context(example().context());
    assert_eq!(hex(&context[..8]), "0102000002000000");
    assert_eq!(
        codec::decode_context(context, &Limits::default()).as_ref(),
        Ok(example().context())
    );
    let timestamp = Timestamp { physical: 258, logical: 3, actor: Actor::new(4, 5) };
    let bytes = codec::encode_timestamp(timestamp);
    assert_eq!(hex(&bytes), "02010000000000000300000004000000000000000500000000000000");
    assert_eq!(codec::decode_timestamp(bytes), Ok(timestamp));
    assert!(codec::decode_timestamp([0xff; 28]).is_err());
}

#[test]
fn every_cut_and_every_addition_is_refused() {
    let bytes = codec::encode_siblings(&example());
    let limits = Limits::default();
    for len in 0..bytes.len() {
        let error = codec::decode_siblings(bytes.slice(..len), &limits).unwrap_err();
        assert_eq!(error, DecodeError::Truncated, "{len} bytes");
    }
    let longer = Bytes::from([&bytes[..], &[0]].concat());
    assert_eq!(codec::decode_siblings(longer, &limits), Err(DecodeError::Trailing));
}

#[test]
fn limits_and_versions_are_named() {
    let bytes = codec::encode_siblings(&example());
    let decode = |limits: &Limits| codec::decode_siblings(bytes.clone(), limits).unwrap_err();
    let mut limits = Limits::default();
    limits.max_actors = 1;
    assert_eq!(decode(&limits), DecodeError::AboveLimit("count of actors"));
    let mut limits = Limits::default();
    limits.max_siblings = 1;
    assert_eq!(decode(&limits), DecodeError::AboveLimit("count of values"));
    let mut limits = Limits::default();
    limits.max_value_bytes = 2;
    assert_eq!(decode(&limits), DecodeError::AboveLimit("length of a value"));
    let with = |at: usize, byte: u8| {
        let mut changed = bytes.to_vec();
        changed[at] = byte;
        codec::decode_siblings(changed.into(), &Limits::default()).unwrap_err()
    };
    assert_eq!(with(0, 2), DecodeError::Version(2));
    assert_eq!(with(1, 2), DecodeError::Kind(2));
    assert_eq!(with(2, 1), DecodeError::Invalid("reserved field"));
    // Actor 1 becomes actor 4, which is not before actor 3.
    assert_eq!(with(8, 4), DecodeError::Invalid("order of actors"));
    // The counter of the first value, 6, becomes 7: the context does not cover it.
    assert_eq!(with(76, 7), DecodeError::Invalid("dot of a value"));
    assert_eq!(with(76, 0), DecodeError::Invalid("counter"));
}

/// The bytes of a token with these keys, of which the session has seen `example()`.
fn token(keys: &[&[u8]]) -> Vec<u8> {
    let seen = codec::encode_context(example().context());
    let mut bytes = vec![b'v', 1, 0, 0];
    bytes.extend((keys.len() as u32).to_le_bytes());
    for key in keys {
        bytes.extend((key.len() as u16).to_le_bytes());
        bytes.extend(*key);
        bytes.extend((seen.len() as u32).to_le_bytes());
        bytes.extend(&seen);
    }
    bytes
}

#[test]
fn tokens_have_these_bytes() {
    assert_eq!(SessionToken::new().encode()[..], token(&[]));
    let bytes = token(&[b"a", b"b"]);
    let mut decoded = SessionToken::decode(&bytes).unwrap();
    assert_eq!(decoded.encode()[..], bytes);
    assert_eq!((decoded.len(), &decoded.seen(b"b")), (2, example().context()));
    assert_eq!(decoded.seen(b"c"), VersionVector::new());
    let other = SessionToken::decode(&token(&[b"b", b"c"])).unwrap();
    decoded.merge(&other).unwrap();
    assert_eq!(decoded.encode()[..], token(&[b"a", b"b", b"c"]));
}

#[test]
fn tokens_of_others_and_what_is_none_are_refused() {
    let bytes = token(&[b"a", b"b"]);
    // Those of the cache, of the queue, a context of this crate, and the form without a kind.
    for kind in [b'c', b'q', b's', 1] {
        let mut others = bytes.clone();
        others[0] = kind;
        assert_eq!(SessionToken::decode(&others), Err(TokenError::Kind), "{kind}");
    }
    assert_eq!(SessionToken::decode(&[]), Err(TokenError::Kind));
    assert_eq!(SessionToken::decode(b"v\x02later"), Err(TokenError::Version(2)));
    let malformed = |bytes: &[u8]| match SessionToken::decode(bytes) {
        Err(TokenError::Malformed(error)) => error,
        other => panic!("{other:?}"),
    };
    for len in 1..bytes.len() {
        assert_eq!(malformed(&bytes[..len]), DecodeError::Truncated, "{len} bytes");
    }
    assert_eq!(malformed(&[&bytes[..], &[0]].concat()), DecodeError::Trailing);
    assert_eq!(malformed(b"v\x01\x00\x01\0\0\0\0"), DecodeError::Invalid("reserved field"));
    let unordered = DecodeError::Invalid("order of the keys");
    assert_eq!(malformed(&token(&[b"b", b"a"])), unordered);
    assert_eq!(malformed(&token(&[b"a", b"a"])), unordered);
    let long = vec![b'k'; MAX_KEY_BYTES + 1];
    assert_eq!(malformed(&token(&[&long])), DecodeError::AboveLimit("length of a key"));
    // Nothing is trusted with an allocation: neither a count of keys nor a length.
    assert_eq!(SessionToken::decode(b"v\x01\0\0\xff\xff\xff\xff"), Err(TokenError::Full));
    assert_eq!(malformed(b"v\x01\0\0\x01\0\0\0\0\0\xff\xff\xff\xff"), DecodeError::Truncated);
}

#[test]
fn tokens_hold_as_many_keys_as_they_say_and_no_part_of_more() {
    let keys: Vec<_> = (0..=SessionToken::MAX_KEYS as u32).map(u32::to_be_bytes).collect();
    let keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
    let (last, most) = keys.split_last().unwrap();
    let mut most = SessionToken::decode(&token(most)).unwrap();
    assert_eq!(SessionToken::decode(&token(&keys)), Err(TokenError::Full));
    let one_more = SessionToken::decode(&token(&[&[0, 0, 0, 1], last])).unwrap();
    assert_eq!(most.merge(&one_more), Err(TokenError::Full));
    assert_eq!(most.len(), SessionToken::MAX_KEYS, "it is as it was");
    let held = SessionToken::decode(&token(&[&[0, 0, 0, 1]])).unwrap();
    assert_eq!(most.merge(&held), Ok(()), "a key that it holds needs no room");
}

fn siblings() -> impl Strategy<Value = Siblings<Bytes>> {
    let dot = (0..4_u64, 1..3_u64, 1..=20_u64)
        .prop_map(|(node, incarnation, n)| Dot::new(Actor::new(node, incarnation), n));
    let value = proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from);
    let values = proptest::collection::btree_map(dot.clone(), value, 0..6);
    (proptest::collection::vec(dot, 0..6), values).prop_map(|(seen, values)| {
        Siblings::from_parts(seen.into_iter().collect::<VersionVector>(), values)
    })
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(siblings in siblings()) {
        let bytes = codec::encode_siblings(&siblings);
        prop_assert_eq!(codec::decode_siblings(bytes, &Limits::default()), Ok(siblings));
    }

    /// Whatever is accepted has one encoding: digests over the bytes agree where states agree.
    #[test]
    fn changed_bytes_are_refused_or_canonical(
        siblings in siblings(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = codec::encode_siblings(&siblings).to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let bytes = Bytes::from(bytes);
        if let Ok(decoded) = codec::decode_siblings(bytes.clone(), &Limits::default()) {
            prop_assert_eq!(codec::encode_siblings(&decoded), bytes);
        }
    }

    #[test]
    fn random_bytes_are_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let _ = codec::decode_siblings(bytes.clone(), &Limits::default());
        let _ = codec::decode_context(bytes.clone(), &Limits::default());
        if let Ok(token) = SessionToken::decode(&bytes) {
            prop_assert_eq!(token.encode(), bytes);
        }
    }

    /// As for siblings: a token that is accepted has one encoding.
    #[test]
    fn changed_tokens_are_refused_or_canonical(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = token(&[b"a", b"key"]);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(decoded) = SessionToken::decode(&bytes) {
            prop_assert_eq!(&decoded.encode()[..], &bytes[..]);
        }
    }
}
