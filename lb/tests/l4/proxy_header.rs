//! The decoder of PROXY headers against the specification's examples and a reference of another
//! make.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use voussoir_lb::l4::*;
use voussoir_sim::Situations;

const MAX: usize = 4_096;
const SIGNATURE: &[u8] = b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A";

fn decode(bytes: &[u8]) -> Result<Decoded<ProxyHeader>, ProxyHeaderError> {
    ProxyHeader::decode(bytes, MAX)
}

fn tcp(source: &str, destination: &str) -> ProxyHeader {
    ProxyHeader::tcp(source.parse().expect("address"), destination.parse().expect("address"))
}

/// The lines that the specification gives for version 1, the longest ones among them.
#[test]
fn the_lines_of_the_specification_are_understood() {
    let v4 = "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n";
    let long = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let v6 = format!("PROXY TCP6 {long} {long} 65535 65535\r\n");
    let unknown = format!("PROXY UNKNOWN {long} {long} 65535 65535\r\n");
    assert_eq!((v4.len(), v6.len(), unknown.len()), (56, 104, 107));
    let cases = [
        (v4.to_owned(), tcp("255.255.255.255:65535", "255.255.255.255:65535")),
        (v6, tcp(&format!("[{long}]:65535"), &format!("[{long}]:65535"))),
        (unknown, ProxyHeader::unknown()),
        ("PROXY UNKNOWN\r\n".to_owned(), ProxyHeader::unknown()),
        (
            "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n".to_owned(),
            tcp("192.168.0.1:56324", "192.168.0.11:443"),
        ),
    ];
    for (line, expected) in cases {
        for rest in ["", "GET / HTTP/1.1\r\nHost: 192.168.0.11\r\n\r\n"] {
            let found = decode(format!("{line}{rest}").as_bytes());
            assert_eq!(found, Ok(Decoded::Complete(expected.clone(), line.len())), "{line}");
        }
        for end in 0..line.len() {
            assert_eq!(decode(&line.as_bytes()[..end]), Ok(Decoded::Incomplete), "{end} of {line}");
        }
    }
}

/// The bytes that HAProxy's `proxy-v2` and its own header files define.
#[test]
fn binary_headers_are_understood_and_made_again() {
    let v4 = [SIGNATURE, &[0x21, 0x11, 0, 12, 10, 0, 0, 1, 10, 0, 0, 2, 0, 80, 1, 187]].concat();
    let mut udp = v4.clone();
    udp[13] = 0x12;
    let [source, destination] =
        ["10.0.0.1:80", "10.0.0.2:443"].map(|text| text.parse().expect("ok"));
    let Ok(Decoded::Complete(header, 28)) = decode(&v4) else { panic!("{:?}", decode(&v4)) };
    assert_eq!(header, tcp("10.0.0.1:80", "10.0.0.2:443"));
    assert_eq!(header.encode(ProxyVersion::V2), v4);
    let Ok(Decoded::Complete(header, 28)) = decode(&udp) else { panic!("{:?}", decode(&udp)) };
    assert_eq!(header.addresses, Addresses::Udp { source, destination });
    assert_eq!(header.encode(ProxyVersion::V2), udp);
    assert_eq!(header.encode(ProxyVersion::V1), b"PROXY UNKNOWN\r\n");
    // An unknown family is skipped by its length.
    let strange = [SIGNATURE, &[0x21, 0x47, 0, 3, 1, 2, 3]].concat();
    assert_eq!(decode(&strange), Ok(Decoded::Complete(ProxyHeader::unknown(), 19)));
}

/// The checksum over the header with zeros in its place; the value is from an implementation bit by
/// bit, below.
#[test]
fn a_checksum_is_verified() {
    let mut header =
        [SIGNATURE, &[0x21, 0x11, 0, 19, 10, 0, 0, 1, 10, 0, 0, 2, 0, 80, 1, 187]].concat();
    header.extend([3, 0, 4, 0, 0, 0, 0]);
    let crc = header.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 }
        })
    });
    header[31..].copy_from_slice(&(!crc).to_be_bytes());
    let Ok(Decoded::Complete(found, 35)) = decode(&header) else { panic!("{:?}", decode(&header)) };
    assert_eq!(found, tcp("10.0.0.1:80", "10.0.0.2:443"));
    // Not what says that there is a checksum: the family, the length, the field's type.
    for at in (12..header.len()).filter(|at| ![13, 14, 15, 28].contains(at)) {
        let mut damaged = header.clone();
        damaged[at] ^= 0x40;
        assert!(decode(&damaged).is_err(), "a change at {at} is not seen");
    }
}

#[test]
fn a_length_is_refused_before_its_bytes_arrive() {
    let mut header = [SIGNATURE, &[0x21, 0x11, 0xFF, 0xFF]].concat();
    let too_long = ProxyHeaderError::TooLong { len: 65_551, max: MAX };
    assert_eq!(decode(&header), Err(too_long));
    assert_eq!(ProxyHeader::decode(&header, MAX_V2_BYTES), Ok(Decoded::Incomplete));
    header.resize(65_551, 0);
    assert!(matches!(ProxyHeader::decode(&header, MAX_V2_BYTES), Ok(Decoded::Complete(..))));
}

/// What a decoder must say, in words of another make: a line is split by its spaces, and a binary
/// header is read at offsets. The source, and where the header ends; an error is `None`.
fn reference(bytes: &[u8]) -> Option<(Option<SocketAddr>, usize)> {
    if let Some(rest) = bytes.strip_prefix(SIGNATURE) {
        let word =
            |at: usize| Some(usize::from(*rest.get(at)?) << 8 | usize::from(*rest.get(at + 1)?));
        let (command, family, len) = (*rest.first()?, *rest.get(1)?, word(2)?);
        let body = rest.get(4..4 + len).filter(|_| len + 16 <= MAX)?;
        let sizes = [(0x11, 4), (0x12, 4), (0x21, 16), (0x22, 16), (0x31, 108), (0x32, 108)];
        let size = sizes.iter().find(|(code, _)| *code == family).map(|(_, size)| *size);
        let mut at = match size {
            Some(108) => 216,
            Some(size) => 2 * size + 4,
            None => len,
        };
        let mut ends = at <= len;
        while ends && at < len {
            // Checksums need the whole; the other tests look at them.
            let field =
                3 + (usize::from(*body.get(at + 1)?) << 8 | usize::from(*body.get(at + 2)?));
            ends = at + field <= len && body[at] != 3;
            at += field;
        }
        if !ends || !(command == 0x20 || command == 0x21) {
            return None;
        }
        let ip: Option<IpAddr> = match size {
            Some(4) => Some(<[u8; 4]>::try_from(&body[..4]).ok()?.into()),
            Some(16) => Some(<[u8; 16]>::try_from(&body[..16]).ok()?.into()),
            _ => None,
        };
        let port = size
            .filter(|size| *size < 108)
            .map(|size| u16::from(body[2 * size]) << 8 | u16::from(body[2 * size + 1]));
        let source = ip.zip(port).map(SocketAddr::from).filter(|_| command == 0x21);
        return Some((source, 16 + len));
    }
    let text: String = bytes.iter().take(107).map(|&byte| char::from(byte)).collect();
    let (line, _) = text.split_once('\n')?;
    let words: Vec<&str> = line.strip_suffix('\r')?.split(' ').collect();
    match words[..] {
        ["PROXY", "UNKNOWN", ..] if line.is_ascii() && line.matches('\r').count() == 1 => {
            Some((None, line.len() + 1))
        }
        ["PROXY", family, from, to, port, other] => {
            let number = |text: &str| {
                let number: u16 = text.parse().ok()?;
                (number.to_string() == text).then_some(number)
            };
            let addresses = [from.parse::<IpAddr>().ok()?, to.parse::<IpAddr>().ok()?];
            let is_family = |ip: &IpAddr| ip.is_ipv4() == (family == "TCP4");
            let known = family == "TCP4" || family == "TCP6";
            number(other)?;
            (known && addresses.iter().all(is_family))
                .then_some((Some(SocketAddr::new(addresses[0], number(port)?)), line.len() + 1))
        }
        _ => None,
    }
}

static SITUATIONS: [&str; 6] =
    ["version 1", "version 2", "no source", "incomplete", "refused", "extension fields"];

fn any_header() -> impl Strategy<Value = Vec<u8>> {
    let address = any::<(bool, [u8; 4], [u8; 16], u16)>().prop_map(|(is_v4, four, six, port)| {
        SocketAddr::new(if is_v4 { four.into() } else { six.into() }, port)
    });
    let v1 = (address.clone(), address).prop_flat_map(|(source, destination)| {
        let header = ProxyHeader::tcp(source, destination);
        let versions = [ProxyVersion::V1, ProxyVersion::V2].map(|version| header.encode(version));
        prop::sample::select(versions.to_vec())
    });
    let family = prop::sample::select(vec![0, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32, 0x55]);
    let v2 = (0x1F..0x23_u8, family, prop::collection::vec(any::<u8>(), 0..300)).prop_map(
        |(command, family, body)| {
            let len = (body.len() as u16).to_be_bytes();
            [SIGNATURE, &[command, family, len[0], len[1]], &body].concat()
        },
    );
    let fields = prop::collection::vec((4..9_u8, prop::collection::vec(any::<u8>(), 0..9)), 1..4);
    let v2_fields = fields.prop_map(|fields| {
        let mut header = tcp("[2001:db8::1]:1", "[2001:db8::2]:2");
        let fields = fields.into_iter().map(|(kind, value)| Tlv::new(kind, value));
        header.tlvs = fields.collect();
        header.encode(ProxyVersion::V2)
    });
    prop_oneof![
        v1,
        v2,
        v2_fields,
        "PROXY (UNKNOWN|TCP4|TCP6)[ 0-9a-f:.]{0,40}(\r\n|\n|\r)".prop_map(String::into_bytes)
    ]
}

#[test]
fn the_decoder_agrees_with_the_reference_on_headers_and_on_damaged_ones() {
    let situations = Situations::new(&SITUATIONS);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    let cut = prop::option::weighted(0.2, any::<prop::sample::Index>());
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20_000) };
    let mut runner = prop::test_runner::TestRunner::new_with_rng(
        config,
        prop::test_runner::TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha),
    );
    let inputs = (any_header(), (prop::bool::ANY, changes, cut));
    type Damage = (bool, Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>);
    let run =
        |(mut bytes, (is_damaged, changes, cut)): (Vec<u8>, Damage)| -> Result<(), TestCaseError> {
            for (at, byte) in changes.into_iter().filter(|_| is_damaged) {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
            let found = match decode(&bytes) {
                Ok(Decoded::Complete(header, len)) => {
                    situations.reached(if bytes[0] == b'P' { "version 1" } else { "version 2" });
                    situations.add("no source", u64::from(header.source().is_none()));
                    situations.add("extension fields", u64::from(!header.tlvs.is_empty()));
                    Some((header.source(), len))
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

/// What is encoded is decoded to the same, at any cut.
#[test]
fn a_header_survives_being_encoded() {
    let (unix, other) = (Box::new([7; 108]), Box::new([0; 108]));
    let mut headers = vec![
        ProxyHeader::unknown(),
        tcp("[::ffff:10.0.0.1]:1", "10.0.0.2:2"),
        tcp("10.0.0.1:1", "[2001:db8::2]:2"),
        tcp("[2001:db8::1]:1", "[::]:0"),
    ];
    let mut path = ProxyHeader::unknown();
    path.addresses = Addresses::Unix { source: unix, destination: other, datagram: true };
    path.tlvs = vec![Tlv::new(0xE0, b"x".to_vec()), Tlv::new(2, Vec::new())];
    headers.push(path);
    for header in headers {
        let bytes = header.encode(ProxyVersion::V2);
        assert_eq!(decode(&bytes), Ok(Decoded::Complete(header.clone(), bytes.len())));
        let line = header.encode(ProxyVersion::V1);
        assert!(line.len() <= MAX_V1_BYTES);
        let Ok(Decoded::Complete(found, _)) = decode(&line) else { panic!("{line:?}") };
        assert_eq!(found.source(), header.source());
    }
    // Families are made one, and mapped addresses plain.
    assert_eq!(tcp("[::ffff:10.0.0.1]:1", "10.0.0.2:2").source(), "10.0.0.1:1".parse().ok());
    let mixed = tcp("10.0.0.1:1", "[2001:db8::2]:2").encode(ProxyVersion::V1);
    assert_eq!(mixed, b"PROXY TCP6 ::ffff:10.0.0.1 2001:db8::2 1 2\r\n");
}
