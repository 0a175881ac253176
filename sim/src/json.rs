//! Writing JSON, for histories that leave this crate.

use std::fmt::Write as _;

use bytes::Bytes;

/// Something that can be written as one JSON value.
pub trait ToJson {
    /// Appends the value to `out`, without a line break.
    fn to_json(&self, out: &mut String);
}

/// Appends `text` as a JSON string.
///
/// # Example
/// ```
/// let mut out = String::new();
/// voussoir_sim::json_string("a\"b\n", &mut out);
/// assert_eq!(out, r#""a\"b\n""#);
/// ```
pub fn json_string(text: &str, out: &mut String) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if control < ' ' => {
                let _infallible = write!(out, "\\u{:04x}", u32::from(control));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

macro_rules! by_display {
    ($($kind:ty),*) => {$(
        impl ToJson for $kind {
            fn to_json(&self, out: &mut String) {
                let _infallible = write!(out, "{self}");
            }
        }
    )*};
}

by_display!(bool, u8, u16, u32, u64, usize, i8, i16, i32, i64);

impl ToJson for () {
    fn to_json(&self, out: &mut String) {
        out.push_str("null");
    }
}

impl ToJson for str {
    fn to_json(&self, out: &mut String) {
        json_string(self, out);
    }
}

impl ToJson for String {
    fn to_json(&self, out: &mut String) {
        json_string(self, out);
    }
}

/// A string where the bytes are text, else `{"hex":"…"}`.
impl ToJson for Bytes {
    fn to_json(&self, out: &mut String) {
        if let Ok(text) = std::str::from_utf8(self) {
            return json_string(text, out);
        }
        out.push_str("{\"hex\":\"");
        for byte in self {
            let _infallible = write!(out, "{byte:02x}");
        }
        out.push_str("\"}");
    }
}

impl<T: ToJson + ?Sized> ToJson for &T {
    fn to_json(&self, out: &mut String) {
        (**self).to_json(out);
    }
}

impl<T: ToJson> ToJson for Option<T> {
    fn to_json(&self, out: &mut String) {
        match self {
            Some(value) => value.to_json(out),
            None => out.push_str("null"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(value: &impl ToJson) -> String {
        let mut out = String::new();
        value.to_json(&mut out);
        out
    }

    #[test]
    fn values() {
        assert_eq!(json(&"tab\t\u{1} \\ é"), r#""tab\t\u0001 \\ é""#);
        assert_eq!(json(&Some(7_u64)), "7");
        assert_eq!(json(&None::<String>), "null");
        assert_eq!(json(&Bytes::from_static(b"ok")), r#""ok""#);
        assert_eq!(json(&Bytes::from_static(&[0xff, 1])), r#"{"hex":"ff01"}"#);
    }
}
