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
const FAREWELL: u8 = 4;
/// Senders that a receiver follows. Past it all are forgotten, which costs a gap for each.
const MAX_PEERS: usize = 4096;

/// The bytes of a message, version 1: `[1, kind, origin u64, sequence u64, payload]`, integers
/// little-endian. Heartbeat and farewell carry the sequence of the sender's last invalidation. The
/// payload of a heartbeat is the time in nanoseconds, u64, after which a sender that is not heard
/// any more is silent; without a payload, as earlier versions send it, its silence says nothing.
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

/// Says up to which number a sender's invalidations were sent, and after how many nanoseconds
/// without a word the sender is silent.
pub(crate) fn heartbeat(origin: u64, sequence: u64, silent_after: u64) -> Vec<u8> {
    message(HEARTBEAT, origin, sequence, &silent_after.to_le_bytes())
}

/// Says that a sender has sent all its invalidations, up to this number, and ends.
pub(crate) fn farewell(origin: u64, sequence: u64) -> Vec<u8> {
    message(FAREWELL, origin, sequence, &[])
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

/// What is known of one sender.
#[derive(Debug)]
struct Peer {
    /// The largest sequence heard.
    sequence: u64,
    heard_at: u64,
    /// When it is silent unless it is heard before. `None`: its silence says nothing.
    silent_after: Option<u64>,
    is_silent: bool,
}

/// A receiver: what it has heard of each sender since its subscription began. Times are nanoseconds
/// since an epoch of the caller.
///
/// A sender that is silent may go on invalidating, unheard. It is remembered for a while, and until
/// it is heard again or forgotten nothing that is stored here may live for long.
#[derive(Debug)]
pub(crate) struct Peers {
    own: u64,
    /// No sender is silent before this time has passed since it was heard.
    timeout: u64,
    /// How long a silent sender is remembered; 0: silence says nothing.
    memory: u64,
    senders: HashMap<u64, Peer>,
    /// How many of the peers are silent.
    silent: usize,
    /// No peer falls silent, or is forgotten, before this time.
    look_at: u64,
}

impl Peers {
    pub(crate) fn new(own: u64, timeout: u64, memory: u64) -> Self {
        Self { own, timeout, memory, senders: HashMap::new(), silent: 0, look_at: u64::MAX }
    }

    /// Takes a message. One from a sender that was not heard of before is a gap, unless it is the
    /// sender's first: what came before it was not heard.
    pub(crate) fn hear(&mut self, now: u64, bytes: &[u8]) -> Heard {
        let Some((kind, origin, sequence, payload)) = parse(bytes) else { return Heard::Gap };
        if origin == self.own {
            return Heard::Own;
        }
        if self.senders.len() >= MAX_PEERS && !self.senders.contains_key(&origin) {
            self.senders.clear();
            self.silent = 0;
        }
        let unheard = || Peer { sequence: 0, heard_at: now, silent_after: None, is_silent: false };
        let peer = self.senders.entry(origin).or_insert_with(unheard);
        let before = peer.sequence;
        peer.sequence = before.max(sequence);
        peer.heard_at = now;
        self.silent -= usize::from(std::mem::take(&mut peer.is_silent));
        if kind == HEARTBEAT && self.memory > 0 {
            let announced = <[u8; 8]>::try_from(payload).ok().map(u64::from_le_bytes);
            peer.silent_after = announced.map(|after| after.max(self.timeout));
        }
        if let Some(after) = peer.silent_after {
            self.look_at = self.look_at.min(now.saturating_add(after));
        }
        if kind == FAREWELL {
            self.senders.remove(&origin);
        }
        let says_last = kind == HEARTBEAT || kind == FAREWELL;
        let expected = if says_last { before } else { before.saturating_add(1) };
        if sequence > expected {
            return Heard::Gap;
        }
        match kind {
            HEARTBEAT | FAREWELL => Heard::Nothing,
            KEY => Heard::Apply(Invalidation::Key(payload.into())),
            TAG => match std::str::from_utf8(payload) {
                Ok(tag) => Heard::Apply(Invalidation::Tag(tag.into())),
                Err(_) => Heard::Gap,
            },
            ALL => Heard::Apply(Invalidation::All),
            _ => Heard::Gap,
        }
    }

    /// When to [`look`](Self::look) again, if nothing is heard before.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        (self.look_at != u64::MAX).then_some(self.look_at)
    }

    /// Notices who has fallen silent, and forgets who has been silent for long. Returns whether
    /// anybody is silent: invalidations may be missing, of which no number tells.
    pub(crate) fn look(&mut self, now: u64) -> bool {
        if now < self.look_at {
            return self.silent > 0;
        }
        let Self { memory, senders, silent, look_at, .. } = self;
        (*silent, *look_at) = (0, u64::MAX);
        senders.retain(|_, peer| {
            let Some(after) = peer.silent_after else { return true };
            let silent_at = peer.heard_at.saturating_add(after);
            let forgotten_at = silent_at.saturating_add(*memory);
            if now >= forgotten_at {
                return false;
            }
            peer.is_silent = now >= silent_at;
            *silent += usize::from(peer.is_silent);
            *look_at = (*look_at).min(if peer.is_silent { forgotten_at } else { silent_at });
            true
        });
        *silent > 0
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

    const SECOND: u64 = 1_000_000_000;

    fn peers(own: u64) -> Peers {
        Peers::new(own, 3 * SECOND, 60 * SECOND)
    }

    #[test]
    fn messages_have_these_bytes() {
        let mut sender = Sender::new(0x0807_0605_0403_0201);
        let key = sender.encode(&Invalidation::Key((*b"k1").into()));
        assert_eq!(key, b"\x01\x01\x01\x02\x03\x04\x05\x06\x07\x08\x01\0\0\0\0\0\0\0k1");
        let tag = sender.encode(&Invalidation::Tag("t".into()));
        assert_eq!(tag, b"\x01\x02\x01\x02\x03\x04\x05\x06\x07\x08\x02\0\0\0\0\0\0\0t");
        let all = sender.encode(&Invalidation::All);
        assert_eq!(all, b"\x01\x03\x01\x02\x03\x04\x05\x06\x07\x08\x03\0\0\0\0\0\0\0");
        let beat = heartbeat(sender.origin(), sender.sequence(), 0x0102);
        let head = b"\x01\x00\x01\x02\x03\x04\x05\x06\x07\x08\x03\0\0\0\0\0\0\0";
        assert_eq!(beat, [&head[..], b"\x02\x01\0\0\0\0\0\0"].concat());
        let end = farewell(sender.origin(), sender.sequence());
        assert_eq!(end, b"\x01\x04\x01\x02\x03\x04\x05\x06\x07\x08\x03\0\0\0\0\0\0\0");
    }

    #[test]
    fn what_cannot_be_understood_is_a_gap_and_an_echo_is_nothing() {
        let mut sender = Sender::new(7);
        let message = sender.encode(&Invalidation::Tag("t".into()));
        assert_eq!(peers(7).hear(0, &message), Heard::Own);
        let mut receiver = peers(8);
        for end in 0..HEAD_BYTES {
            assert_eq!(receiver.hear(0, &message[..end]), Heard::Gap);
        }
        let mut newer = message.clone();
        newer[0] = 2;
        assert_eq!(receiver.hear(0, &newer), Heard::Gap, "a later version");
        let mut other = message.clone();
        other[1] = 9;
        assert_eq!(receiver.hear(0, &other), Heard::Gap, "an unknown kind");
        let mut broken = message;
        broken[HEAD_BYTES] = 0xff;
        assert_eq!(peers(8).hear(0, &broken), Heard::Gap, "no text");
    }

    #[test]
    fn a_crowd_of_senders_is_followed_in_bounded_memory() {
        let mut receiver = peers(0);
        for origin in 1..20_000 {
            assert_eq!(receiver.hear(0, &heartbeat(origin, 0, SECOND)), Heard::Nothing);
            assert!(receiver.senders.len() <= MAX_PEERS);
        }
    }

    /// A sender that ends without a farewell is silent after its time, until it is heard again or
    /// forgotten; one that says farewell is not.
    #[test]
    fn a_sender_that_falls_silent_is_noticed_until_it_is_heard_or_forgotten() {
        let mut receiver = peers(9);
        let beat = |origin, after| heartbeat(origin, 0, after);
        assert_eq!(receiver.hear(0, &beat(1, 3 * SECOND)), Heard::Nothing);
        assert_eq!(receiver.hear(SECOND, &beat(2, 5 * SECOND)), Heard::Nothing);
        // An announced time below the receiver's own counts as that.
        assert_eq!(receiver.hear(SECOND, &beat(3, 1)), Heard::Nothing);
        assert_eq!(receiver.hear(SECOND, &farewell(3, 0)), Heard::Nothing);
        assert_eq!(receiver.hear(SECOND, &message(HEARTBEAT, 4, 0, &[])), Heard::Nothing);
        assert_eq!(receiver.next_deadline(), Some(3 * SECOND));
        assert!(!receiver.look(3 * SECOND - 1));
        assert!(receiver.look(3 * SECOND), "the first one");
        assert_eq!(receiver.next_deadline(), Some(6 * SECOND));
        assert_eq!(receiver.hear(4 * SECOND, &beat(1, 3 * SECOND)), Heard::Nothing);
        assert!(!receiver.look(4 * SECOND), "it is heard again");
        assert!(receiver.look(6 * SECOND), "the second one");
        assert!(receiver.look(7 * SECOND), "both");
        assert!(receiver.look(66 * SECOND - 1) && receiver.look(66 * SECOND), "the first one");
        assert!(!receiver.look(67 * SECOND), "both are forgotten");
        assert_eq!((receiver.next_deadline(), receiver.senders.len()), (None, 1));
        // It was alive, and has invalidated something meanwhile.
        assert_eq!(receiver.hear(90 * SECOND, &heartbeat(1, 1, 3 * SECOND)), Heard::Gap);
        let mut careless = Peers::new(9, 3 * SECOND, 0);
        assert_eq!(careless.hear(0, &beat(1, 3 * SECOND)), Heard::Nothing);
        assert!(!careless.look(u64::MAX - 1), "silence says nothing");
        // Extreme times come over the wire.
        assert_eq!(receiver.hear(u64::MAX - 1, &beat(5, u64::MAX)), Heard::Nothing);
        receiver.look(u64::MAX);
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
            let (mut receiver, mut late) = (peers(99), Vec::new());
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
                        has_gap |= receiver.hear(0, &message) == Heard::Gap;
                        has_gap |= receiver.hear(0, &message) == Heard::Gap;
                    }
                    _ => has_gap |= receiver.hear(0, &message) == Heard::Gap,
                }
            }
            for sender in &senders {
                has_gap |= receiver.hear(0, &heartbeat(sender.origin(), sender.sequence(), 0))
                    == Heard::Gap;
            }
            prop_assert_eq!(has_gap, missing > 0);
            for message in late {
                prop_assert_ne!(receiver.hear(0, &message), Heard::Gap, "it is known by now");
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
