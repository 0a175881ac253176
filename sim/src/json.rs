//! JSON and EDN, for histories and plans that leave this crate.

use std::fmt::Display;
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

/// EDN: numbers, strings and booleans are as in JSON. Bytes are as `ReadableBytes` has them.
struct Edn;

impl Edn {
    /// Beyond 64 bits with the suffix of integers of any length.
    fn integer<W: io::Write + ?Sized>(
        writer: &mut W,
        value: impl Display,
        is_long: bool,
    ) -> io::Result<()> {
        write!(writer, "{value}{}", if is_long { "N" } else { "" })
    }
}

impl Formatter for Edn {
    fn write_null<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b"nil")
    }

    fn write_u64<W: io::Write + ?Sized>(&mut self, writer: &mut W, value: u64) -> io::Result<()> {
        Self::integer(writer, value, i64::try_from(value).is_err())
    }

    fn write_u128<W: io::Write + ?Sized>(&mut self, writer: &mut W, value: u128) -> io::Result<()> {
        Self::integer(writer, value, i64::try_from(value).is_err())
    }

    fn write_i128<W: io::Write + ?Sized>(&mut self, writer: &mut W, value: i128) -> io::Result<()> {
        Self::integer(writer, value, i64::try_from(value).is_err())
    }

    fn write_byte_array<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        value: &[u8],
    ) -> io::Result<()> {
        if let Ok(text) = std::str::from_utf8(value) {
            return serde_json::to_writer(writer, text).map_err(io::Error::from);
        }
        writer.write_all(b"{\"hex\" \"")?;
        for byte in value {
            write!(writer, "{byte:02x}")?;
        }
        writer.write_all(b"\"}")
    }

    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        is_first: bool,
    ) -> io::Result<()> {
        writer.write_all(if is_first { b"" } else { b" " })
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        is_first: bool,
    ) -> io::Result<()> {
        writer.write_all(if is_first { b"" } else { b", " })
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b" ")
    }
}

/// One line of JSON, without the line break.
///
/// # Panics
/// If `value` cannot be written as JSON: a map with keys that are no strings, or a `Serialize` that
/// fails.
pub(crate) fn json_line(value: &impl Serialize) -> String {
    write(value, ReadableBytes)
}

/// The same value in EDN.
///
/// # Panics
/// As [`json_line`].
pub(crate) fn edn(value: &impl Serialize) -> String {
    write(value, Edn)
}

fn write(value: &impl Serialize, form: impl Formatter) -> String {
    let mut out = Vec::new();
    let written = value.serialize(&mut Serializer::with_formatter(&mut out, form));
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

    #[test]
    fn values_of_edn() {
        assert_eq!(edn(&"tab\t \\ é"), r#""tab\t \\ é""#);
        assert_eq!(edn(&(1_u8, None::<u8>, -7_i64, true, 0.5)), "[1 nil -7 true 0.5]");
        let map = std::collections::BTreeMap::from([("a", vec![1, 2]), ("b", vec![])]);
        assert_eq!(edn(&map), r#"{"a" [1 2], "b" []}"#);
        assert_eq!(edn(&Bytes::from_static(&[0xff, 1])), r#"{"hex" "ff01"}"#);
        assert_eq!(edn(&Bytes::from_static(b"o\"k")), r#""o\"k""#);
        assert_eq!(edn(&(i64::MAX as u64)), "9223372036854775807");
        assert_eq!(edn(&u64::MAX), "18446744073709551615N");
        assert_eq!(edn(&((7_u128 << 64) | 1)), "129127208515966861313N");
        assert_eq!(edn(&i128::MIN), "-170141183460469231731687303715884105728N");
        assert_eq!(edn(&7_u128), "7");
    }
}
