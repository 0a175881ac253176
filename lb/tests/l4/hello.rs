//! The decoder of ClientHellos against messages of OpenSSL, and against a reference of another
//! make.

use proptest::prelude::*;
use voussoir_lb::l4::{ClientHello, ClientHelloError, Decoded};
use voussoir_sim::Situations;

/// Made by OpenSSL 3.0: `Shop.Example.com`, ALPN `h2` and `http/1.1`, TLS 1.3.
pub(crate) const HELLO_H2: &[u8] = include_bytes!("../golden/hello/openssl_tls13_h2.bin");
/// Made by OpenSSL 3.0: no name, ALPN `h2`.
pub(crate) const HELLO_WITHOUT_NAME: &[u8] = include_bytes!("../golden/hello/openssl_no_name.bin");
/// Made by OpenSSL 3.0: `a.example`, no ALPN, TLS 1.2.
const HELLO_TLS12: &[u8] = include_bytes!("../golden/hello/openssl_tls12.bin");

const MAX: usize = 16_384;

fn sized(len: usize, bytes: &[u8], value: &[u8]) -> Vec<u8> {
    let header = (value.len() as u32).to_be_bytes();
    [bytes, &header[4 - len..], value].concat()
}

/// The handshake message of a ClientHello.
pub(crate) fn hello(name: Option<&str>, alpn: &[&[u8]]) -> Vec<u8> {
    let mut extensions = sized(2, &[0, 43], &[2, 3, 4]);
    if let Some(name) = name {
        let list = sized(2, &[], &sized(2, &[0], name.as_bytes()));
        extensions.extend(sized(2, &[0, 0], &list));
    }
    if !alpn.is_empty() {
        let names: Vec<u8> = alpn.iter().flat_map(|name| sized(1, &[], name)).collect();
        extensions.extend(sized(2, &[0, 16], &sized(2, &[], &names)));
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend(sized(1, &[], &[9; 32]));
    body.extend(sized(2, &[], &[0x13, 1, 0x13, 2]));
    body.extend([1, 0]);
    body.extend(sized(2, &[], &extensions));
    sized(3, &[1], &body)
}

/// The message in records of at most `size` bytes.
pub(crate) fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|chunk| sized(2, &[22, 3, 1], chunk)).collect()
}

fn decoded(bytes: &[u8]) -> ClientHello {
    match ClientHello::decode(bytes, MAX) {
        Ok(Decoded::Complete(hello, len)) => {
            assert_eq!(len, bytes.len());
            hello
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_openssl_sends_is_understood() {
    let hello = decoded(HELLO_H2);
    assert_eq!(hello.server_name.as_deref(), Some("shop.example.com"));
    assert_eq!(hello.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    let hello = decoded(HELLO_TLS12);
    assert_eq!((hello.server_name.as_deref(), hello.alpn.len()), (Some("a.example"), 0));
    let hello = decoded(HELLO_WITHOUT_NAME);
    assert_eq!((hello.server_name, hello.alpn), (None, vec![b"h2".to_vec()]));
}

#[test]
fn each_beginning_of_a_hello_needs_more() {
    for whole in [HELLO_H2, HELLO_TLS12, &records(&hello(Some("a.b"), &[b"x"]), 3)] {
        for end in 0..whole.len() {
            let found = ClientHello::decode(&whole[..end], MAX);
            assert_eq!(found, Ok(Decoded::Incomplete), "{end} of {}", whole.len());
        }
    }
}

#[test]
fn the_bound_holds_for_every_way_of_cutting() {
    let message = hello(Some("a.example"), &[b"h2"]);
    for size in [1, 7, 100, 1_000] {
        let bytes = records(&message, size);
        for max in 6..bytes.len() + 10 {
            let found = ClientHello::decode(&bytes, max);
            if max >= bytes.len() {
                assert!(matches!(found, Ok(Decoded::Complete(..))), "{max} {size}: {found:?}");
            } else {
                assert_eq!(found, Err(ClientHelloError::TooLong { max }), "{size}");
            }
            // What does not fit is refused before more than the bound was read.
            let beginning = ClientHello::decode(&bytes[..max.min(bytes.len())], max);
            assert!(max >= bytes.len() || beginning != Ok(Decoded::Incomplete), "{max} {size}");
        }
    }
}

#[test]
fn names_that_are_none_are_refused() {
    let long = "x".repeat(256);
    for name in ["", ".", "a.", ".a", "a b", "a\0b", "a/b", "ä.example", "[::1]", &long] {
        let found = ClientHello::decode(&records(&hello(Some(name), &[]), 500), MAX);
        assert!(matches!(found, Err(ClientHelloError::Malformed { .. })), "{name}: {found:?}");
    }
}

/// The number of `len` bytes at `from`.
fn at(from: usize, len: usize, bytes: &[u8]) -> Option<usize> {
    let field = bytes.get(from..from + len)?;
    Some(field.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte)))
}

/// A name and protocols.
type Found = (Option<String>, Vec<Vec<u8>>);

/// The same by another way: joins all records first, then walks by offsets. `None` is "not a
/// hello, or not all of one".
fn reference(bytes: &[u8]) -> Option<Found> {
    let (mut message, mut pos) = (Vec::new(), 0);
    let mut need = usize::MAX;
    while message.len() < need {
        if bytes.get(pos..pos + 2)? != [22, 3] {
            return None;
        }
        let len = at(pos + 3, 2, bytes)?;
        if len == 0 || len > 16_384 {
            return None;
        }
        // The last record may bring more than the message, of which nothing need be there.
        let there = &bytes[pos + 5..bytes.len().min(pos + 5 + len)];
        message.extend_from_slice(there);
        if message.first().is_some_and(|kind| *kind != 1) {
            return None;
        }
        if message.len() >= 4 {
            need = 4 + at(1, 3, &message)?;
        }
        if there.len() < len && message.len() < need {
            return None;
        }
        pos += 5 + len;
    }
    if pos > MAX {
        return None;
    }
    reference_body(&message[4..need])
}

fn reference_body(body: &[u8]) -> Option<Found> {
    let session = 34;
    let suites = session + 1 + at(session, 1, body).filter(|len| *len <= 32)?;
    let methods = suites + 2 + at(suites, 2, body).filter(|len| *len > 0 && len % 2 == 0)?;
    let extensions = methods + 1 + at(methods, 1, body).filter(|len| *len > 0)?;
    let (mut name, mut alpn, mut seen) = (None, Vec::new(), Vec::new());
    if extensions == body.len() {
        return Some((name, alpn));
    }
    if extensions + 2 + at(extensions, 2, body)? != body.len() {
        return None;
    }
    let mut pos = extensions + 2;
    while pos < body.len() {
        let (kind, len) = (at(pos, 2, body)?, at(pos + 2, 2, body)?);
        let data = body.get(pos + 4..pos + 4 + len)?;
        pos += 4 + len;
        if kind != 0 && kind != 16 {
            continue;
        }
        if seen.contains(&kind) || at(0, 2, data)? + 2 != len || len == 2 {
            return None;
        }
        seen.push(kind);
        let mut inner = 2;
        while inner < len {
            let prefix = if kind == 0 { 3 } else { 1 };
            let size = at(inner + prefix - if kind == 0 { 2 } else { 1 }, prefix.min(2), data)?;
            let value = data.get(inner + prefix..inner + prefix + size)?;
            let is_host = kind == 0 && data[inner] == 0;
            inner += prefix + size;
            if kind == 16 {
                if value.is_empty() {
                    return None;
                }
                alpn.push(value.to_vec());
            } else if is_host {
                let text = std::str::from_utf8(value).ok()?;
                let fine = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
                let bad = text.is_empty() || text.len() > 255 || !text.chars().all(fine);
                if bad || text.starts_with('.') || text.ends_with('.') || name.is_some() {
                    return None;
                }
                name = Some(text.to_lowercase());
            }
        }
    }
    Some((name, alpn))
}

static SITUATIONS: [&str; 5] = [
    "understood with a name",
    "understood without a name",
    "refused",
    "incomplete",
    "many records",
];

#[test]
fn the_decoder_agrees_with_the_reference_on_hellos_and_on_damaged_ones() {
    let situations = Situations::new(&SITUATIONS);
    let name = prop::option::weighted(0.8, "[a-zA-Z0-9.-]{0,40}");
    let alpn = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6), 0..4);
    let size = prop_oneof![1..8_usize, 8..600_usize];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let cut = prop::option::weighted(0.2, any::<prop::sample::Index>());
    let inputs = ((name, alpn, size), (changes, cut));
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20_000) };
    let mut runner = prop::test_runner::TestRunner::new_with_rng(
        config,
        prop::test_runner::TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha),
    );
    type Parts = (Option<String>, Vec<Vec<u8>>, usize);
    type Damage = (Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>);
    let run = |((name, alpn, size), (changes, cut)): (Parts, Damage)| {
        let alpn: Vec<&[u8]> = alpn.iter().map(Vec::as_slice).collect();
        let mut bytes = records(&hello(name.as_deref(), &alpn), size);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
        let found = match ClientHello::decode(&bytes, MAX) {
            Ok(Decoded::Complete(hello, len)) => {
                assert!(len <= bytes.len());
                let has_name = hello.server_name.is_some();
                situations.reached(if has_name { SITUATIONS[0] } else { SITUATIONS[1] });
                situations.add("many records", u64::from(size < 8));
                Some((hello.server_name, hello.alpn))
            }
            Ok(Decoded::Incomplete) => {
                situations.reached("incomplete");
                None
            }
            Err(_) => {
                situations.reached("refused");
                None
            }
        };
        assert_eq!(found, reference(&bytes), "{bytes:?}");
        Ok(())
    };
    runner.run(&inputs, run).unwrap_or_else(|failure| panic!("{failure}"));
    situations.assert_all_reached();
}
