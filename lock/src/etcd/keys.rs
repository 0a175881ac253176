//! The names of the keys.

use std::fmt::Write as _;

/// Below one prefix: `s/` sessions, `r/` requests, `e/` those that have ended, `l/` locks, `v/`
/// values.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// There as long as the session is; its value is the floor of its requests.
    pub(super) fn session(&self, session: i64) -> Vec<u8> {
        format!("{}s/{session:016x}", self.prefix).into()
    }

    /// There while a request holds or waits; its value is the name of the lock.
    pub(super) fn request(&self, session: i64, request: u64) -> Vec<u8> {
        format!("{}r/{session:016x}/{request:016x}", self.prefix).into()
    }

    /// There once a request has ended, until it is below the floor.
    pub(super) fn ended(&self, session: i64, request: u64) -> Vec<u8> {
        format!("{}e/{session:016x}/{request:016x}", self.prefix).into()
    }

    /// A place at a lock. The one that was created first holds it.
    pub(super) fn place(&self, name: &[u8], session: i64, request: u64) -> Vec<u8> {
        format!("{}{session:016x}/{request:016x}", self.lock(name)).into()
    }

    /// The prefix of all places at a lock, and its end.
    pub(super) fn places(&self, name: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (first, mut end) = (self.lock(name).into_bytes(), self.lock(name).into_bytes());
        // It ends in `/`.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        (first, end)
    }

    pub(super) fn value(&self, name: &[u8]) -> Vec<u8> {
        format!("{}v/{}", self.prefix, escaped(name)).into()
    }

    fn lock(&self, name: &[u8]) -> String {
        format!("{}l/{}/", self.prefix, escaped(name))
    }
}

/// Whose place it is: session and request.
pub(super) fn parse_place(key: &[u8]) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(key).ok()?;
    let mut parts = text.rsplit('/');
    let request = u64::from_str_radix(parts.next()?, 16).ok()?;
    Some((u64::from_str_radix(parts.next()?, 16).ok()?, request))
}

/// A name without `/`, to be read in etcd's own tools.
fn escaped(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len());
    for &byte in name {
        if byte.is_ascii_alphanumeric() || b"-_.:@ ".contains(&byte) {
            out.push(byte.into());
        } else {
            // Writing to a string does not fail.
            let _ = write!(out, "%{byte:02x}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_apart_and_names_do_not_mix() {
        let keys = Keys::new("p/");
        for name in [&b""[..], b"a", b"a/", b"%2f", b"\0\xff"] {
            let (first, end) = keys.places(name);
            let key = keys.place(name, 7, u64::MAX);
            assert!(first < key && key < end);
            assert_eq!(parse_place(&key), Some((7, u64::MAX)));
            for other in [&b"b"[..], b"a/b", b"/", b"a%2f"] {
                let key = keys.place(other, 7, 1);
                assert!(key < first || key >= end, "{name:?} and {other:?}");
            }
        }
        assert_eq!(parse_place(b"\xff"), None);
    }
}
