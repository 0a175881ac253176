//! Events, letters that nobody could work with, and their bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::digest::digest;

const FORMAT: u8 = 1;
const NO_DEADLINE: u64 = u64::MAX;
/// The longest kind, key, id or name, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 200;
/// The longest body, in bytes.
pub(crate) const MAX_BODY_BYTES: usize = 96 << 10;
/// The kind of the event that stands for a reaction without any: the watcher needs one.
pub(crate) const DONE: &str = "voussoir.done";

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// Unique. The same when a reaction runs again: what duplicates are told by.
    pub id: String,
    /// What has happened: `payment.charged`.
    pub kind: String,
    /// Events are joined by it, and events of one key are in order.
    pub key: String,
    /// The whole that it belongs to: the key of the event that began it.
    pub saga: String,
    /// The id of the event that it is a reaction to. Empty for the first.
    pub cause: String,
    /// The participant and rule whose reaction it is, as `stock/reserve`. Empty for the first.
    pub source: String,
    /// Reactions between the first event and this one.
    pub hops: u32,
    /// When the whole should have ended, in ns since the UNIX epoch.
    pub deadline: Option<u64>,
    /// What it says.
    pub body: Bytes,
}

impl Event {
    /// The first event of a whole. One that is published again under the same `id` has no second
    /// effect.
    pub fn first(id: &str, kind: &str, key: &str, body: impl Into<Bytes>) -> Self {
        Self {
            id: id.to_owned(),
            kind: kind.to_owned(),
            key: key.to_owned(),
            saga: key.to_owned(),
            cause: String::new(),
            source: String::new(),
            hops: 0,
            deadline: None,
            body: body.into(),
        }
    }

    /// When the whole should have ended, in ns since the UNIX epoch: [`Rule::late`] says what
    /// participants do after it.
    ///
    /// [`Rule::late`]: super::Rule::late
    #[must_use]
    pub fn deadline(mut self, at: u64) -> Self {
        self.deadline = Some(at);
        self
    }

    /// Its bytes: version (1 byte, 1), `hops` (4 bytes), `deadline` (8 bytes, all ones for none),
    /// then `id`, `kind`, `key`, `saga`, `cause`, `source` and `body`, each behind its length (4
    /// bytes). Numbers are little-endian.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.len_bytes());
        self.put(&mut out);
        out.freeze()
    }

    /// Reads what [`encode`](Self::encode) wrote. `None` for anything else.
    pub fn decode(mut bytes: Bytes) -> Option<Self> {
        let event = Self::take(&mut bytes)?;
        bytes.is_empty().then_some(event)
    }

    pub(crate) fn put(&self, out: &mut BytesMut) {
        out.put_u8(FORMAT);
        out.put_u32_le(self.hops);
        out.put_u64_le(self.deadline.unwrap_or(NO_DEADLINE));
        for text in [&self.id, &self.kind, &self.key, &self.saga, &self.cause, &self.source] {
            put(out, text.as_bytes());
        }
        put(out, &self.body);
    }

    pub(crate) fn take(bytes: &mut Bytes) -> Option<Self> {
        if bytes.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let hops = bytes.try_get_u32_le().ok()?;
        let deadline = bytes.try_get_u64_le().ok()?;
        let deadline = (deadline != NO_DEADLINE).then_some(deadline);
        let (id, kind, key) = (take_text(bytes)?, take_text(bytes)?, take_text(bytes)?);
        let (saga, cause, source) = (take_text(bytes)?, take_text(bytes)?, take_text(bytes)?);
        let body = take(bytes)?;
        Some(Self { id, kind, key, saga, cause, source, hops, deadline, body })
    }

    /// Bytes of [`encode`](Self::encode).
    pub(crate) fn len_bytes(&self) -> usize {
        let texts = [&self.id, &self.kind, &self.key, &self.saga, &self.cause, &self.source];
        13 + texts.iter().map(|text| 4 + text.len()).sum::<usize>() + 4 + self.body.len()
    }

    /// The first field that is empty or too long.
    pub(crate) fn misfit(&self) -> Option<&'static str> {
        let needed = [("id", &self.id), ("kind", &self.kind), ("key", &self.key)];
        let fits = |text: &str| (1..=MAX_NAME_BYTES).contains(&text.len()) && !text.contains('\0');
        let name = needed.into_iter().find(|(_, text)| !fits(text)).map(|(field, _)| field);
        name.or((self.body.len() > MAX_BODY_BYTES).then_some("body"))
    }
}

/// An event that a reaction publishes. It belongs to the whole of the event that it reacts to, and
/// has its deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewEvent {
    /// What has happened.
    pub kind: String,
    /// What it is joined by. `None`: the key of what it reacts to.
    pub key: Option<String>,
    /// What it says.
    pub body: Bytes,
}

impl NewEvent {
    /// An event with the key of what it reacts to.
    pub fn new(kind: &str, body: impl Into<Bytes>) -> Self {
        Self { kind: kind.to_owned(), key: None, body: body.into() }
    }

    /// Sets another key: a payment's number, by which a bank answers.
    #[must_use]
    pub fn key(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }
}

/// Why nobody worked with an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeadReason {
    /// What it was to be joined with did not come in time, or it was the oldest of too many.
    #[error("what it was to be joined with did not come")]
    Unmatched,
    /// There are more open joins than [`max_waits`](super::ChoreographyConfig::max_waits).
    #[error("there are too many open joins")]
    Full,
    /// Publishing it would be one reaction too many: it is in a loop, or `max_hops` is too low.
    #[error("it is {hops} reactions away from the first event, and at most {max}")]
    TooManyHops {
        /// Its reactions.
        hops: u32,
        /// [`max_hops`](super::ChoreographyConfig::max_hops).
        max: u32,
    },
    /// All attempts of a rule failed.
    #[error("the rule `{rule}` failed {attempts} times: {why}")]
    Failed {
        /// The rule.
        rule: String,
        /// Attempts.
        attempts: u32,
        /// Why the last one failed.
        why: String,
    },
    /// A reaction published what is no event: a name is empty or too long, or the body is.
    #[error("`{field}` of the event is empty or too long")]
    Misfit {
        /// The field.
        field: String,
    },
}

/// An event that a participant gave up, for a person to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The event.
    pub event: Event,
    /// The participant.
    pub participant: String,
    /// Why.
    pub why: DeadReason,
}

impl DeadLetter {
    pub(crate) fn new(event: Event, participant: &str, why: DeadReason) -> Self {
        Self { event, participant: participant.to_owned(), why }
    }

    /// Its bytes: version (1 byte, 1), the reason (1 byte, 0 to 4 in the order of [`DeadReason`]),
    /// two numbers of it (4 bytes each), two texts of it and the participant, each behind its
    /// length (4 bytes), and the event. Numbers are little-endian.
    pub fn encode(&self) -> Bytes {
        let (kind, one, two, name, text) = match &self.why {
            DeadReason::Unmatched => (0, 0, 0, "", ""),
            DeadReason::Full => (1, 0, 0, "", ""),
            DeadReason::TooManyHops { hops, max } => (2, *hops, *max, "", ""),
            DeadReason::Failed { rule, attempts, why } => (3, *attempts, 0, &**rule, &**why),
            DeadReason::Misfit { field } => (4, 0, 0, &**field, ""),
        };
        let mut out = BytesMut::new();
        out.put_u8(FORMAT);
        out.put_u8(kind);
        out.put_u32_le(one);
        out.put_u32_le(two);
        for part in [name, text, &self.participant] {
            put(&mut out, part.as_bytes());
        }
        self.event.put(&mut out);
        out.freeze()
    }

    /// Length of [`encode`](Self::encode).
    pub(crate) fn len_bytes(&self) -> usize {
        let (name, text) = match &self.why {
            DeadReason::Failed { rule, why, .. } => (rule.len(), why.len()),
            DeadReason::Misfit { field } => (field.len(), 0),
            _ => (0, 0),
        };
        10 + 3 * 4 + name + text + self.participant.len() + self.event.len_bytes()
    }

    /// Reads what [`encode`](Self::encode) wrote. `None` for anything else.
    pub fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let kind = bytes.try_get_u8().ok()?;
        let (one, two) = (bytes.try_get_u32_le().ok()?, bytes.try_get_u32_le().ok()?);
        let (name, text) = (take_text(&mut bytes)?, take_text(&mut bytes)?);
        let participant = take_text(&mut bytes)?;
        let event = Event::take(&mut bytes)?;
        let why = match kind {
            0 => DeadReason::Unmatched,
            1 => DeadReason::Full,
            2 => DeadReason::TooManyHops { hops: one, max: two },
            3 => DeadReason::Failed { rule: name, attempts: one, why: text },
            4 => DeadReason::Misfit { field: name },
            _ => return None,
        };
        bytes.is_empty().then_some(Self { event, participant, why })
    }

    /// The event for another try: publish it when the cause is mended. It has a new id, since
    /// participants have seen the old one; those that worked with it work with it again.
    pub fn revived(&self) -> Event {
        let id = digest(&["revived", &self.participant, &self.event.id]);
        Event { id, ..self.event.clone() }
    }
}

fn put(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

fn take(bytes: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(bytes.try_get_u32_le().ok()?).ok()?;
    (length <= bytes.len()).then(|| bytes.split_to(length))
}

fn take_text(bytes: &mut Bytes) -> Option<String> {
    String::from_utf8(take(bytes)?.into()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_and_letters_are_read_back_and_garbled_ones_are_none() {
        let mut event = Event::first("i", "k", "ke", "body").deadline(9);
        event.hops = 3;
        let golden = [
            &[1, 3, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0][..],
            b"\x01\0\0\0i\x01\0\0\0k\x02\0\0\0ke\x02\0\0\0ke\0\0\0\0\0\0\0\0\x04\0\0\0body",
        ]
        .concat();
        assert_eq!(event.encode(), golden);
        assert_eq!(event.len_bytes(), golden.len());
        let reasons = [
            DeadReason::Unmatched,
            DeadReason::Full,
            DeadReason::TooManyHops { hops: 1, max: 2 },
            DeadReason::Failed { rule: "r".into(), attempts: 4, why: "w".into() },
            DeadReason::Misfit { field: "kind".into() },
        ];
        for why in reasons {
            let letter = DeadLetter::new(event.clone(), "stock", why);
            let bytes = letter.encode();
            assert_eq!(letter.len_bytes(), bytes.len());
            assert_eq!(DeadLetter::decode(bytes.clone()).as_ref(), Some(&letter));
            for end in 0..bytes.len() {
                assert_eq!(DeadLetter::decode(bytes.slice(..end)), None, "{end}");
            }
        }
        for end in 0..golden.len() {
            assert_eq!(Event::decode(Bytes::copy_from_slice(&golden[..end])), None, "{end}");
        }
        assert_eq!(Event::decode(golden.into()), Some(event));
        let huge = [&[1][..], &[0; 12], &[255; 4], b"abc"].concat();
        assert_eq!(Event::decode(huge.into()), None);
    }
}
