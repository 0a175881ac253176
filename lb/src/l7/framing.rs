//! Where the requests on a connection of HTTP/1 begin and end, followed beside hyper.
//!
//! hyper removes `Content-Length` when `Transfer-Encoding` stands beside it, and drops a second
//! `Content-Length` of the same value: [`check_request`](super::check_request) cannot see either.
//! RFC 9112 §6.1 allows a server to reject such a request; nginx and Envoy do, and so does this
//! proxy. A line of a head or of trailers must end in CRLF; httparse would also take a lone LF.
//!
//! The follower accepts no head that hyper rejects for another reason: hyper still parses every
//! byte. The follower only adds rejections.

use std::io::BufRead;

/// What hyper reads behind a line that broke a rule: hyper parses a head only when it is complete.
const END: &[u8] = b"\r\n\r\n";

/// Follows the bytes of one connection, in the order in which they arrive.
#[derive(Debug)]
pub(super) struct RequestFraming {
    state: State,
    /// Begin of a line whose end has not arrived.
    line: Vec<u8>,
    /// Bytes of one line that are kept. hyper rejects a longer head by itself.
    max_line_bytes: usize,
    head: Head,
}

/// What a head says about the body.
#[derive(Debug, Default)]
struct Head {
    has_begun: bool,
    length: Option<u64>,
    coding: Option<Coding>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Chunked,
    /// Rejected by hyper or by `check_request`, with the end of the connection.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    /// Bytes of a body with a length that have yet to arrive.
    Body(u64),
    ChunkSize,
    /// Bytes of a chunk, with its CRLF, that have yet to arrive.
    Chunk(u64),
    Trailers,
    /// The connection ends with the request that was read last.
    Last,
    /// A rule was broken: nothing is read any more. Holds how much of [`END`] was handed out.
    Broken(usize),
}

/// A rule that a line broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Violation {
    /// hyper might accept the line.
    Hidden,
    /// hyper rejects the line by itself.
    Plain,
}

impl RequestFraming {
    pub(super) fn new(max_line_bytes: usize) -> Self {
        Self { state: State::Head, line: Vec::new(), max_line_bytes, head: Head::default() }
    }

    /// Once a rule was broken: what is to be parsed in place of the bytes that follow, at most
    /// `max` bytes; empty at the end.
    pub(super) fn end(&mut self, max: usize) -> Option<&'static [u8]> {
        let State::Broken(at) = &mut self.state else { return None };
        let end = &END[*at..(*at + max).min(END.len())];
        *at += end.len();
        Some(end)
    }

    /// Takes the next bytes of the connection. Returns how many of them may be parsed: all, or
    /// those up to a line that breaks a rule. The last byte of that line is then a NUL, for which
    /// hyper answers 400 when the requests before are answered.
    pub(super) fn follow(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        // Ends: each round takes at least one byte, or returns.
        while at < bytes.len() {
            let rest = bytes.len() - at;
            match self.state {
                State::Last => return bytes.len(),
                State::Broken(_) => return at,
                State::Body(left) => {
                    let taken = left.min(rest as u64);
                    at += taken as usize;
                    self.state =
                        if left == taken { State::Head } else { State::Body(left - taken) };
                }
                State::Chunk(left) => {
                    let taken = left.min(rest as u64);
                    at += taken as usize;
                    let is_whole = left == taken;
                    self.state =
                        if is_whole { State::ChunkSize } else { State::Chunk(left - taken) };
                }
                State::Head | State::ChunkSize | State::Trailers => {
                    let line = &bytes[at..];
                    let found = (&mut &*line).skip_until(b'\n').unwrap_or(rest);
                    let end = at + found;
                    if bytes[end - 1] != b'\n' {
                        return self
                            .keep(&bytes[at..])
                            .map_or_else(|| self.break_at(bytes, end), |()| end);
                    }
                    match self.take_line(&bytes[at..end - 1]) {
                        Ok(()) => at = end,
                        Err(Violation::Hidden) => return self.break_at(bytes, end),
                        Err(Violation::Plain) => {
                            self.state = State::Broken(0);
                            return end;
                        }
                    }
                }
            }
        }
        at
    }

    fn break_at(&mut self, bytes: &mut [u8], end: usize) -> usize {
        bytes[end - 1] = 0;
        self.state = State::Broken(0);
        end
    }

    /// Keeps the begin of a line. `None`: the line is too long.
    fn keep(&mut self, begin: &[u8]) -> Option<()> {
        self.line.extend_from_slice(begin);
        (self.line.len() <= self.max_line_bytes).then_some(())
    }

    /// `end` is the line, or its rest, without the LF.
    fn take_line(&mut self, end: &[u8]) -> Result<(), Violation> {
        if self.line.is_empty() {
            return self.line_ended(end);
        }
        let mut line = std::mem::take(&mut self.line);
        line.extend_from_slice(end);
        self.line_ended(&line)
    }

    fn line_ended(&mut self, line: &[u8]) -> Result<(), Violation> {
        let ended = line.strip_suffix(b"\r");
        match self.state {
            State::ChunkSize => {
                // hyper rejects a size that is none, and a lone LF.
                let size = ended.and_then(chunk_size).ok_or(Violation::Plain)?;
                let with_end = size.checked_add(2).ok_or(Violation::Plain)?;
                self.state = if size == 0 { State::Trailers } else { State::Chunk(with_end) };
            }
            State::Trailers => {
                if ended.ok_or(Violation::Hidden)?.is_empty() {
                    self.state = State::Head;
                }
            }
            _ => match ended.ok_or(Violation::Hidden)? {
                b"" if !self.head.has_begun => {}
                b"" => self.head_ended(),
                line if self.head.has_begun => self.head.read(line)?,
                _ => self.head.has_begun = true,
            },
        }
        Ok(())
    }

    fn head_ended(&mut self) {
        let head = std::mem::take(&mut self.head);
        self.state = match (head.coding, head.length) {
            (Some(Coding::Chunked), _) => State::ChunkSize,
            (Some(Coding::Other), _) => State::Last,
            (None, Some(0) | None) => State::Head,
            (None, Some(length)) => State::Body(length),
        };
    }
}

impl Head {
    /// Reads one header.
    fn read(&mut self, line: &[u8]) -> Result<(), Violation> {
        let Some(colon) = line.iter().take(20).position(|byte| *byte == b':') else {
            return Ok(());
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            if self.length.is_some() || self.coding.is_some() {
                return Err(Violation::Hidden);
            }
            let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let number = str::from_utf8(value).ok().filter(|_| is_number);
            let length = number.and_then(|number| number.parse().ok());
            self.length = Some(length.ok_or(Violation::Hidden)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.length.is_some() || self.coding.is_some() {
                return Err(Violation::Hidden);
            }
            let is_chunked = value.eq_ignore_ascii_case(b"chunked");
            self.coding = Some(if is_chunked { Coding::Chunked } else { Coding::Other });
        }
        Ok(())
    }
}

/// The size that a line before a chunk states, without extensions (RFC 9112 §7.1).
fn chunk_size(line: &[u8]) -> Option<u64> {
    let size = line.split(|byte| *byte == b';').next()?.trim_ascii_end();
    if size.is_empty() || !size.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(str::from_utf8(size).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is let through of `text` when it arrives in pieces of `sizes` bytes.
    fn follow(text: &[u8], sizes: &[usize]) -> Vec<u8> {
        let mut framing = RequestFraming::new(1 << 10);
        let (mut kept, mut rest) = (Vec::new(), text);
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            if framing.end(0).is_some() {
                kept.extend_from_slice(framing.end(3).unwrap());
                kept.extend_from_slice(framing.end(3).unwrap());
                assert_eq!(framing.end(3), Some(&b""[..]));
                break;
            }
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            let mut piece = piece.to_vec();
            let count = framing.follow(&mut piece);
            kept.extend_from_slice(&piece[..count]);
            rest = after;
        }
        kept
    }

    const GOOD: [&str; 6] = [
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n\n\n\r\n\0",
        "POST / HTTP/1.1\r\ntransfer-encoding: chunked\t\r\n\r\n3\r\na\nb\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n1 ;x=y\r\n\n\r\n0\r\na: b\r\n\r\n",
        "PUT / HTTP/1.0\r\ncontent-length: 0\r\nx: content-length: 7\r\n\r\n",
    ];
    /// What follows the good requests, and how much of it is let through.
    const BAD: [(&str, &str); 7] = [
        (
            "POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\0",
        ),
        (
            "POST / HTTP/1.1\r\nTransfer-Encoding: x\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: x\r\nContent-Length: 3\r\0",
        ),
        (
            "POST / HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc",
            "POST / HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 3\r\0",
        ),
        ("GET / HTTP/1.1\nhost: a\r\n\r\n", "GET / HTTP/1.1\0"),
        ("GET / HTTP/1.1\r\nhost: a\n\n", "GET / HTTP/1.1\r\nhost: a\0"),
        (
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nx\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
        ),
        (
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: b\nc: d\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: b\0",
        ),
    ];

    proptest! {
        #[test]
        fn requests_are_followed_at_every_cut(
            good in prop::collection::vec(prop::sample::select(&GOOD[..]), 0..6),
            bad in prop::option::of(prop::sample::select(&BAD[..])),
            sizes in prop::collection::vec(1_usize..40, 1..8),
        ) {
            let good = good.concat();
            let (sent, kept) = bad.unwrap_or_default();
            let end = if sent.is_empty() { "" } else { "\r\n\r\n" };
            // Bytes behind the bad line, so that there is something that is not let through.
            let all = format!("{good}{sent}{}", "x".repeat(end.len() * 10));
            let expected = format!("{good}{kept}{end}");
            let followed = follow(all.as_bytes(), &sizes);
            prop_assert_eq!(String::from_utf8(followed).unwrap(), expected);
        }

        #[test]
        fn any_bytes_are_followed_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            sizes in prop::collection::vec(1_usize..40, 1..8),
        ) {
            prop_assert!(follow(&bytes, &sizes).len() <= bytes.len() + END.len());
        }
    }

    #[test]
    fn a_line_without_an_end_is_not_kept_forever() {
        let mut framing = RequestFraming::new(100);
        let mut kept = 0;
        for _ in 0..10 {
            kept += framing.follow(&mut [b'x'; 30]);
        }
        assert!(framing.end(0).is_some() && kept <= 130, "{kept}");
    }
}
