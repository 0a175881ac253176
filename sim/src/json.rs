//! JSON, for histories and plans that leave this crate.

use std::io;

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;

/// As the compact format, but bytes are a string where they are text, else `{"hex":"…"}`.
struct ReadableBytes;

impl Formatter for ReadableBytes {
    fn write_byte_array<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        value: &[u8],
    ) -> io::Result<()> {
        if let Ok(text) = std::str::from_utf8(value) {
            return serde_json::to_writer(writer, text).map_err(io::Error::from);
        }
        writer.write_all(b"{\"hex\":\"")?;
        for byte in value {
            write!(writer, "{byte:02x}")?;
        }
        writer.write_all(b"\"}")
    }
}

/// One line of JSON, without the line break.
///
/// # Panics
/// If `value` cannot be written as JSON: a map with keys that are no strings, or a `Serialize` that
/// fails.
pub(crate) fn json_line(value: &impl Serialize) -> String {
    let mut out = Vec::new();
    let written = value.serialize(&mut Serializer::with_formatter(&mut out, ReadableBytes));
    written.expect("the value can be written as JSON");
    String::from_utf8(out).expect("JSON is UTF-8")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn values() {
        assert_eq!(json_line(&"tab\t\u{1} \\ é"), r#""tab\t\u0001 \\ é""#);
        assert_eq!(json_line(&Some(7_u64)), "7");
        assert_eq!(json_line(&None::<String>), "null");
        assert_eq!(json_line(&Bytes::from_static(b"o\"k")), r#""o\"k""#);
        assert_eq!(json_line(&Bytes::from_static(&[0xff, 1])), r#"{"hex":"ff01"}"#);
    }
}
