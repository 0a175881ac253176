//! What processes tell each other over a bus: invalidations, numbered by their sender so that a
//! receiver notices what it has missed.

use std::collections::HashMap;

/// An invalidation as it travels between processes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Invalidation {
    /// The entry of a key, as the cache's codec encodes it.
    Key(Box<[u8]>),
    /// All entries with a tag, or of a group of keys that is made by `tag_keys`.
    Tag(Box<str>),
    /// Everything: a new generation.
    All,
}

/// The version of the messages' form.
const VERSION: u8 = 1;
/// Version, kind, origin and sequence.
const HEAD_BYTES: usize = 18;
const HEARTBEAT: u8 = 0;
const KEY: u8 = 1;
const TAG: u8 = 2;
const ALL: u8 = 3;
/// Senders that a receiver follows. Past it all are forgotten, which costs a gap for each.
const MAX_PEERS: usize = 4096;

/// The bytes of a message, version 1: `[1, kind, origin u64, sequence u64, payload]`, integers
/// little-endian. A heartbeat carries the sequence of the sender's last invalidation.
fn message(kind: u8, origin: u64, sequence: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + payload.len());
    bytes.extend_from_slice(&[VERSION, kind]);
    bytes.extend_from_slice(&origin.to_le_bytes());
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A sender of numbered messages.
#[derive(Debug)]
pub(crate) struct Sender {
    origin: u64,
    /// The sequence of the last invalidation.
    sequence: u64,
}

impl Sender {
    /// `origin` must differ from that of every other sender: draw it at random.
    pub(crate) fn new(origin: u64) -> Self {
        Self { origin, sequence: 0 }
    }

    pub(crate) fn encode(&mut self, invalidation: &Invalidation) -> Vec<u8> {
        self.sequence += 1;
        let (kind, payload) = match invalidation {
            Invalidation::Key(key) => (KEY, &**key),
            Invalidation::Tag(tag) => (TAG, tag.as_bytes()),
            Invalidation::All => (ALL, &[][..]),
        };
        message(kind, self.origin, self.sequence, payload)
    }

    pub(crate) fn origin(&self) -> u64 {
        self.origin
    }

    /// The number of the last invalidation.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }
}

/// Says up to which number a sender's invalidations were sent.
pub(crate) fn heartbeat(origin: u64, sequence: u64) -> Vec<u8> {
    message(HEARTBEAT, origin, sequence, &[])
}

/// What a message means for its receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// An echo of one's own.
    Own,
    /// Nothing that was not known.
    Nothing,
    Apply(Invalidation),
    /// Something was missed, or cannot be understood: everything may be stale.
    Gap,
}

/// A receiver: what it has heard of each sender since its subscription began.
#[derive(Debug)]
pub(crate) struct Peers {
    own: u64,
    /// The largest sequence heard from each sender.
    heard: HashMap<u64, u64>,
}

impl Peers {
    pub(crate) fn new(own: u64) -> Self {
        Self { own, heard: HashMap::new() }
    }

    /// Takes a message. One from a sender that was not heard of before is a gap, unless it is the
    /// sender's first: what came before it was not heard.
    pub(crate) fn hear(&mut self, bytes: &[u8]) -> Heard {
        let Some((kind, origin, sequence, payload)) = parse(bytes) else { return Heard::Gap };
        if origin == self.own {
            return Heard::Own;
        }
        if self.heard.len() >= MAX_PEERS && !self.heard.contains_key(&origin) {
            self.heard.clear();
        }
        let last = self.heard.entry(origin).or_insert(0);
        let before = *last;
        *last = before.max(sequence);
        let expected = if kind == HEARTBEAT { before } else { before.saturating_add(1) };
        if sequence > expected {
            return Heard::Gap;
        }
        match kind {
            HEARTBEAT => Heard::Nothing,
            KEY => Heard::Apply(Invalidation::Key(payload.into())),
            TAG => match std::str::from_utf8(payload) {
                Ok(tag) => Heard::Apply(Invalidation::Tag(tag.into())),
                Err(_) => Heard::Gap,
            },
            ALL => Heard::Apply(Invalidation::All),
            _ => Heard::Gap,
        }
    }
}

fn parse(bytes: &[u8]) -> Option<(u8, u64, u64, &[u8])> {
    let (head, payload) = bytes.split_at_checked(HEAD_BYTES)?;
    let [VERSION, kind, numbers @ ..] = head else { return None };
    let (origin, sequence) = numbers.split_at_checked(8)?;
    let number = |bytes: &[u8]| Some(u64::from_le_bytes(bytes.try_into().ok()?));
    Some((*kind, number(origin)?, number(sequence)?, payload))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use voussoir_sim::Situations;

    use super::*;

    #[test]
    fn messages_have_these_bytes() {
        let mut sender = Sender::new(0x0807_0605_0403_0201);
        let key = sender.encode(&Invalidation::Key((*b"k1").into()));
        assert_eq!(key, b"\x01\x01\x01\x02\x03\x04\x05\x06\x07\x08\x01\0\0\0\0\0\0\0k1");
        let tag = sender.encode(&Invalidation::Tag("t".into()));
        assert_eq!(tag, b"\x01\x02\x01\x02\x03\x04\x05\x06\x07\x08\x02\0\0\0\0\0\0\0t");
        let all = sender.encode(&Invalidation::All);
        assert_eq!(all, b"\x01\x03\x01\x02\x03\x04\x05\x06\x07\x08\x03\0\0\0\0\0\0\0");
        let beat = heartbeat(sender.origin(), sender.sequence());
        assert_eq!(beat, b"\x01\x00\x01\x02\x03\x04\x05\x06\x07\x08\x03\0\0\0\0\0\0\0");
    }

    #[test]
    fn what_cannot_be_understood_is_a_gap_and_an_echo_is_nothing() {
        let mut sender = Sender::new(7);
        let message = sender.encode(&Invalidation::Tag("t".into()));
        assert_eq!(Peers::new(7).hear(&message), Heard::Own);
        let mut peers = Peers::new(8);
        for end in 0..HEAD_BYTES {
            assert_eq!(peers.hear(&message[..end]), Heard::Gap);
        }
        let mut newer = message.clone();
        newer[0] = 2;
        assert_eq!(peers.hear(&newer), Heard::Gap, "a later version");
        let mut other = message.clone();
        other[1] = 9;
        assert_eq!(peers.hear(&other), Heard::Gap, "an unknown kind");
        let mut broken = message;
        broken[HEAD_BYTES] = 0xff;
        assert_eq!(Peers::new(8).hear(&broken), Heard::Gap, "no text");
    }

    #[test]
    fn a_crowd_of_senders_is_followed_in_bounded_memory() {
        let mut peers = Peers::new(0);
        for origin in 1..20_000 {
            assert_eq!(peers.hear(&heartbeat(origin, 0)), Heard::Nothing);
            assert!(peers.heard.len() <= MAX_PEERS);
        }
    }

    static SITUATIONS: [&str; 4] = ["lost", "twice", "late", "all arrived"];

    /// Messages are lost, doubled and overtaken. A receiver that was not given one of them has
    /// heard of a gap at the latest with the next heartbeat; one that was given all, in order, has
    /// not.
    #[test]
    fn what_was_missed_is_noticed() {
        let situations = Situations::new(&SITUATIONS);
        let fates = prop::collection::vec((0..3_u64, 0..10_u8), 0..20);
        let config =
            ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) };
        let run = prop::test_runner::TestRunner::new(config).run(&fates, |fates| {
            let mut senders: Vec<Sender> = (0..3).map(|origin| Sender::new(origin + 1)).collect();
            let (mut peers, mut late) = (Peers::new(99), Vec::new());
            let (mut missing, mut has_gap) = (0, false);
            for (origin, fate) in &fates {
                let message = senders[*origin as usize].encode(&Invalidation::All);
                match fate {
                    0 => {
                        situations.reached("lost");
                        missing += 1;
                    }
                    1 => {
                        situations.reached("late");
                        missing += 1;
                        late.push(message);
                    }
                    2 => {
                        situations.reached("twice");
                        has_gap |= peers.hear(&message) == Heard::Gap;
                        has_gap |= peers.hear(&message) == Heard::Gap;
                    }
                    _ => has_gap |= peers.hear(&message) == Heard::Gap,
                }
            }
            for sender in &senders {
                has_gap |= peers.hear(&heartbeat(sender.origin(), sender.sequence())) == Heard::Gap;
            }
            prop_assert_eq!(has_gap, missing > 0);
            for message in late {
                prop_assert_ne!(peers.hear(&message), Heard::Gap, "it is known by now");
            }
            if missing == 0 {
                situations.reached("all arrived");
            }
            Ok(())
        });
        run.unwrap();
        situations.assert_all_reached();
    }
}
