//! A record as a NATS message, and names as the server takes them.
//!
//! The value is the payload, so that clients in other languages read it as it is. The rest is in
//! headers:
//!
//! | header | |
//! |---|---|
//! | `Nats-Msg-Id` | `id:` and the record's own id, or `p:` and one that the producer gives |
//! | `Voussoir-Key` | the key; absent for none |
//! | `Voussoir-Timestamp` | ms since the UNIX epoch; absent for none |
//! | `Voussoir-Tombstone` | `1` for a record without a value |
//! | `Voussoir-Header` | `key=value`, or `key` for a header without a value; as often as there are headers, in order |
//!
//! Keys and values are bytes, headers are text: bytes outside of `!` to `~`, `%` and `=` are
//! written as `%` and two hexadecimal digits. A message of another program is read all the same:
//! what does not decode is taken as it is, and headers that are not in this table are headers of
//! the record.

use async_nats::HeaderMap;
use async_nats::header::{IntoHeaderName, NATS_MESSAGE_ID};
use bytes::Bytes;

use crate::backend::MESSAGE_ID;
use crate::format::{NO_TIMESTAMP, Record, RecordHeader};

const KEY: &str = "Voussoir-Key";
const TIMESTAMP: &str = "Voussoir-Timestamp";
const TOMBSTONE: &str = "Voussoir-Tombstone";
const HEADER: &str = "Voussoir-Header";

const OWN_ID: &str = "id:";

/// Names of streams and consumers that the server takes, in bytes.
pub(super) const MAX_NAME_BYTES: usize = 255;

/// Writes a name of ours as one that the server takes. Different names stay different: letters,
/// digits, `-` and `_` stay, other bytes are `=` and two hexadecimal digits.
pub(super) fn escape_name(name: &str) -> Option<String> {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            out.push(char::from(byte));
        } else {
            push_hex(&mut out, '=', byte);
        }
    }
    (out.len() <= MAX_NAME_BYTES).then_some(out)
}

fn push_hex(out: &mut String, mark: char, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push(mark);
    out.push(char::from(DIGITS[usize::from(byte >> 4)]));
    out.push(char::from(DIGITS[usize::from(byte & 15)]));
}

fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'%' | b'=' => push_hex(&mut out, '%', *byte),
            b'!'..=b'~' => out.push(char::from(*byte)),
            _ => push_hex(&mut out, '%', *byte),
        }
    }
    out
}

fn decode(text: &str) -> Bytes {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    // Ends: each round takes a byte at least.
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (first, byte) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = &after[2..];
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out.into()
}

/// The headers and the payload of a record. `given` is the id of a record that has none.
pub(super) fn to_message(record: &Record, given: impl FnOnce() -> String) -> (HeaderMap, Bytes) {
    let mut headers = HeaderMap::new();
    let own = record.last_header(MESSAGE_ID);
    let id = own.map_or_else(given, |id| format!("{OWN_ID}{}", encode(id)));
    headers.insert(NATS_MESSAGE_ID, id);
    if let Some(key) = &record.key {
        headers.insert(KEY, encode(key));
    }
    if record.timestamp != NO_TIMESTAMP {
        headers.insert(TIMESTAMP, record.timestamp.to_string());
    }
    if record.value.is_none() {
        headers.insert(TOMBSTONE, "1");
    }
    for header in &record.headers {
        let key = encode(header.key().as_bytes());
        let text = match header.value() {
            Some(value) => format!("{key}={}", encode(value)),
            None => key,
        };
        headers.append(HEADER, text);
    }
    (headers, record.value.clone().unwrap_or_default())
}

/// The record of a message that was stored at `offset`, at `stored_ms`.
pub(super) fn to_record(
    headers: Option<&HeaderMap>,
    payload: &Bytes,
    offset: u64,
    stored_ms: i64,
) -> Record {
    let mut record = Record::new(payload.clone()).timestamp(stored_ms);
    record.offset = offset;
    let Some(headers) = headers else { return record };
    let text = |name: &'static str| headers.get_last(name.into_header_name());
    record.key = text(KEY).map(|key| decode(key.as_str()));
    if let Some(timestamp) = text(TIMESTAMP).and_then(|text| text.as_str().parse().ok()) {
        record.timestamp = timestamp;
    }
    if text(TOMBSTONE).is_some() && payload.is_empty() {
        record.value = None;
    }
    for text in headers.get_all(HEADER.into_header_name()) {
        let (key, value) = match text.as_str().split_once('=') {
            Some((key, value)) => (key, Some(decode(value))),
            None => (text.as_str(), None),
        };
        let key = decode(key);
        record.headers.push(RecordHeader::new(&String::from_utf8_lossy(&key), value));
    }
    let mut foreign: Vec<_> = headers.iter().collect();
    foreign.sort_by_key(|(name, _)| name.to_string());
    for (name, values) in foreign {
        let name = name.to_string();
        let is_known = [KEY, TIMESTAMP, TOMBSTONE, HEADER].contains(&name.as_str());
        if is_known || name.starts_with("Nats-") {
            continue;
        }
        for value in values {
            let value = Bytes::copy_from_slice(value.as_str().as_bytes());
            record.headers.push(RecordHeader::new(&name, Some(value)));
        }
    }
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(record: &Record) -> Record {
        let (headers, payload) = to_message(record, || "p:1".to_owned());
        to_record(Some(&headers), &payload, record.offset, 5)
    }

    #[test]
    fn every_record_comes_back_as_it_was() {
        let all: Vec<u8> = (0..=255).collect();
        let mut record = Record::new(all.clone()).key(all.clone()).timestamp(7);
        record = record.header("a=b %\r\n", all).header("a", "").header("ключ", "2");
        record.headers.push(RecordHeader::new("none", None));
        record.offset = 9;
        assert_eq!(back(&record), record);
        let tombstone = Record::tombstone("key").timestamp(0);
        assert_eq!(back(&tombstone), tombstone);
        assert_eq!(back(&Record::new("").key("")), Record::new("").key("").timestamp(5));
    }

    #[test]
    fn the_message_of_a_record_is_what_is_documented() {
        let mut record = Record::new("v").key("é 1").timestamp(12).header(MESSAGE_ID, "order 7");
        record.headers.push(RecordHeader::new("flag", None));
        let (headers, payload) = to_message(&record, || unreachable!("it has an id"));
        let all = |name: &str| -> Vec<String> {
            let name: async_nats::HeaderName = name.parse().expect("a name");
            headers.get_all(name).map(ToString::to_string).collect()
        };
        assert_eq!(payload, "v");
        assert_eq!(all("Nats-Msg-Id"), ["id:order%207"]);
        assert_eq!(all("Voussoir-Key"), ["%C3%A9%201"]);
        assert_eq!(all("Voussoir-Timestamp"), ["12"]);
        assert_eq!(all("Voussoir-Header"), ["voussoir-message-id=order%207", "flag"]);
        let (headers, _) = to_message(&Record::tombstone("k"), || "p:x-1".to_owned());
        assert_eq!(headers.get(NATS_MESSAGE_ID).expect("an id").as_str(), "p:x-1");
        assert_eq!(headers.get(TOMBSTONE).expect("it is one").as_str(), "1");
    }

    #[test]
    fn a_message_of_another_program_is_read_as_it_is() {
        let payload = Bytes::from_static(b"hello");
        assert_eq!(to_record(None, &payload, 3, 8).value, Some(payload.clone()));
        let mut headers = HeaderMap::new();
        headers.insert("Content-Type", "text/plain");
        headers.insert("Nats-Expected-Stream", "s");
        headers.insert(KEY, "50%");
        headers.insert(TIMESTAMP, "yesterday");
        headers.insert(TOMBSTONE, "1");
        let record = to_record(Some(&headers), &payload, 3, 8);
        assert_eq!(record.key.as_deref(), Some(&b"50%"[..]));
        assert_eq!((record.timestamp, record.value), (8, Some(payload)));
        assert_eq!(record.headers, [RecordHeader::new("Content-Type", Some("text/plain".into()))]);
    }

    #[test]
    fn different_names_stay_different() {
        assert_eq!(escape_name("a.b-c_D").as_deref(), Some("a=2Eb-c_D"));
        assert_eq!(escape_name("a=2Eb").as_deref(), Some("a=3D2Eb"));
        assert_eq!(escape_name(&"é".repeat(124)), None);
    }
}
