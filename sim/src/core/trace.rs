//! The trace: a hash over everything that happened, and the last lines of it.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::hash::Hasher;

use bytes::Bytes;

use crate::FaultClass;
use crate::plan::{Instant, Span};

/// What happened. The discriminants go into the hash and so never change.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    Start = 1,
    Refused = 2,
    Crash = 3,
    Exit = 4,
    Send = 5,
    Lost = 6,
    Deliver = 7,
    Timer = 8,
    Own = 9,
    Request = 10,
    Answer = 11,
    Reply = 12,
    Alarm = 13,
    Fault = 14,
    Mended = 15,
    Quiet = 16,
    Note = 17,
    Absent = 18,
    Poke = 19,
    Hand = 20,
}

#[derive(Clone, Debug)]
struct Line {
    at: u64,
    kind: Kind,
    /// A node for most kinds, a client for `Alarm`, nobody for `Quiet`.
    who: u64,
    a: u64,
    b: u64,
    label: &'static str,
}

/// The hash takes 64-bit words: `h = (rotate_left(h, 5) ^ word) * 0x517c_c1b7_2722_0a95`, and
/// is finished by splitmix64's mixing step.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    lines: VecDeque<Line>,
    capacity: usize,
    /// Lines of this time are kept as well, from and to, in ns.
    window: Option<(u64, u64)>,
    around: Around,
}

/// How many lines are kept of the beginning and of the end of a failure's time.
const AROUND_LINES: usize = 200;

/// The lines of a failure's time.
#[derive(Debug, Default)]
struct Around {
    first: Vec<Line>,
    last: VecDeque<Line>,
    left_out: u64,
}

impl Around {
    fn push(&mut self, line: Line) {
        if self.first.len() < AROUND_LINES {
            return self.first.push(line);
        }
        if self.last.len() == AROUND_LINES {
            self.last.pop_front();
            self.left_out += 1;
        }
        self.last.push_back(line);
    }
}

impl Trace {
    pub(crate) fn new(seed: u64, capacity: usize) -> Self {
        let lines = VecDeque::with_capacity(capacity.min(1 << 16));
        Self { hash: seed, lines, capacity, window: None, around: Around::default() }
    }

    /// Has the lines of this time kept as well.
    pub(crate) fn keep(&mut self, window: Option<(u64, u64)>) {
        self.window = window;
    }

    #[inline]
    fn word(&mut self, word: u64) {
        self.hash = (self.hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    /// Adds words to the hash and no line.
    pub(crate) fn words(&mut self, words: [u64; 5]) {
        for word in words {
            self.word(word);
        }
    }

    #[inline]
    pub(crate) fn event(&mut self, at: u64, kind: Kind, who: u64, a: u64, b: u64) {
        self.labelled(at, kind, who, a, b, "");
    }

    pub(crate) fn labelled(
        &mut self,
        at: u64,
        kind: Kind,
        who: u64,
        a: u64,
        b: u64,
        label: &'static str,
    ) {
        for word in [at, kind as u64, who, a, b] {
            self.word(word);
        }
        if !label.is_empty() {
            self.bytes(label.as_bytes());
        }
        if self.lines.len() == self.capacity {
            self.lines.pop_front();
        }
        let line = Line { at, kind, who, a, b, label };
        if let Some((from, to)) = self.window
            && (from..=to).contains(&at)
        {
            self.around.push(line.clone());
        }
        self.lines.push_back(line);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.word(u64::from_le_bytes(last));
        self.word(bytes.len() as u64);
    }

    pub(crate) fn body(&mut self, body: &Bytes) {
        self.bytes(body);
    }

    pub(crate) fn hash(&self) -> u64 {
        let mut state = self.hash;
        crate::rng::splitmix(&mut state)
    }

    /// The last lines.
    pub(crate) fn text(&self) -> String {
        text(self.lines.iter())
    }

    /// The lines of the time given to `keep`.
    pub(crate) fn around(&self) -> String {
        let Around { first, last, left_out } = &self.around;
        let gap =
            if *left_out > 0 { format!("{left_out} lines left out\n") } else { String::new() };
        text(first.iter()) + &gap + &text(last.iter())
    }
}

/// Takes values into the hash, without a line. Each integer is one word, so that the hash does not
/// depend on the platform's byte order or pointer width.
impl Hasher for Trace {
    fn write(&mut self, bytes: &[u8]) {
        self.bytes(bytes);
    }

    fn write_u8(&mut self, number: u8) {
        self.word(number.into());
    }

    fn write_u16(&mut self, number: u16) {
        self.word(number.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.word(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.word(number);
    }

    fn write_u128(&mut self, number: u128) {
        self.word(number as u64);
        self.word((number >> 64) as u64);
    }

    fn write_usize(&mut self, number: usize) {
        self.word(number as u64);
    }

    fn finish(&self) -> u64 {
        self.hash()
    }
}

fn text<'a>(lines: impl Iterator<Item = &'a Line>) -> String {
    let mut text = String::new();
    for line in lines {
        let _infallible = writeln!(text, "{line}");
    }
    text
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, kind, who, a, b, label } = self;
        write!(f, "{:>17} ", Instant(*at).to_string())?;
        match kind {
            Kind::Start => write!(f, "node {who} starts, incarnation {a}"),
            Kind::Refused => write!(f, "node {who} cannot start, incarnation {a}"),
            Kind::Crash => write!(f, "node {who} {label}"),
            Kind::Exit => write!(f, "node {who} exits"),
            Kind::Send => write!(f, "node {who} sends {b} bytes to {a}"),
            Kind::Lost => write!(f, "node {who} sends to {a}, lost by {label}"),
            Kind::Deliver => write!(f, "node {who} receives {b} bytes from {a}"),
            Kind::Timer => write!(f, "node {who} timer"),
            Kind::Own => write!(f, "node {who} own event"),
            Kind::Request => write!(f, "node {who} request {b} of client {a}"),
            Kind::Answer => write!(f, "node {who} answers request {b} of client {a}"),
            Kind::Reply => write!(f, "client {a} gets the answer to request {b} from node {who}"),
            Kind::Alarm => write!(f, "alarm {a}"),
            Kind::Fault if *who == u64::MAX => write!(f, "fault {label} for {}", Span(*a)),
            Kind::Fault => write!(f, "fault {label} at node {who} for {}", Span(*a)),
            Kind::Mended => write!(f, "fault {label} ends"),
            Kind::Quiet => write!(f, "faults end"),
            Kind::Note => write!(f, "node {who} notes {label} {a} {b}"),
            Kind::Absent => write!(f, "node {who} is down, {label} lost"),
            Kind::Poke => write!(f, "node {who} is acted on from outside"),
            Kind::Hand if *who == u64::MAX => write!(f, "by hand: {label}"),
            Kind::Hand => write!(f, "by hand: node {who}: {label} {a} {b}"),
        }
    }
}

/// Who a fault of the whole world strikes.
pub(crate) const EVERYBODY: u64 = u64::MAX;

impl Trace {
    pub(crate) fn fault(&mut self, at: u64, class: FaultClass, who: u64, for_ns: u64) {
        self.labelled(at, Kind::Fault, who, for_ns, 0, class.name());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_pinned_and_sees_every_part() {
        let hash = |at, who, label, body: &'static [u8]| {
            let mut trace = Trace::new(1, 4);
            trace.labelled(at, Kind::Note, who, 3, 4, label);
            trace.body(&Bytes::from_static(body));
            trace.hash()
        };
        let base = hash(1, 2, "x", b"body");
        for other in [
            hash(0, 2, "x", b"body"),
            hash(1, 0, "x", b"body"),
            hash(1, 2, "y", b"body"),
            hash(1, 2, "x", b"bodz"),
            hash(1, 2, "x", b"body\0"),
        ] {
            assert_ne!(base, other);
        }
        assert_eq!(base, 4_045_843_874_374_160_772);
    }

    #[test]
    fn keeps_the_last_lines() {
        let mut trace = Trace::new(1, 2);
        for node in 0..5 {
            trace.event(1_500_000, Kind::Timer, node, 0, 0);
        }
        assert_eq!(
            trace.text(),
            "       1.500000ms node 3 timer\n       1.500000ms node 4 timer\n"
        );
    }
}
