//! The sessions of a group: what was applied, and what it was answered.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::wire::{SessionAnswer, SessionLimits};

/// One session.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    max_pending: u32,
    max_answer_bytes: u64,
    /// Index of the last command of the session.
    used: u64,
    /// Numbers below are answered, and never applied again.
    first_pending: u64,
    /// The numbers that were applied, from `first_pending` on; `None`: the answer was forgotten.
    /// While a command is with the inner machine its number is here already.
    applied: BTreeMap<u64, Option<Bytes>>,
    /// Invariant: the sum of the lengths of the answers in `applied`, at most `max_answer_bytes`.
    answer_bytes: u64,
}

/// What the table says of a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It is to be applied.
    Fresh,
    /// It is not.
    Answer(SessionAnswer),
}

/// All sessions, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    sessions: BTreeMap<u64, Entry>,
    /// The sessions by [`Entry::used`]. Invariant: one for each session; an index occurs once.
    by_use: BTreeMap<u64, u64>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Opens the session `index`, and makes room for it.
    pub(super) fn open(&mut self, index: u64, limits: SessionLimits) {
        // Ends: each turn takes one away.
        while self.sessions.len() >= limits.max_sessions as usize {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.sessions.remove(&oldest);
        }
        let entry = Entry {
            max_pending: limits.max_pending,
            max_answer_bytes: limits.max_answer_bytes,
            used: index,
            first_pending: 1,
            applied: BTreeMap::new(),
            answer_bytes: 0,
        };
        self.sessions.insert(index, entry);
        self.by_use.insert(index, index);
    }

    /// Whether there was such a session.
    pub(super) fn close(&mut self, session: u64) -> bool {
        let closed = self.sessions.remove(&session);
        closed.is_some_and(|entry| self.by_use.remove(&entry.used).is_some())
    }

    /// Whether [`look_up`](Self::look_up) depends on answers: it finds one, or forgets some.
    pub(super) fn needs_answers(&self, session: u64, number: u64, first_pending: u64) -> bool {
        let Some(Entry { applied, .. }) = self.sessions.get(&session) else { return false };
        let forgets = applied.first_key_value().is_some_and(|(lowest, _)| *lowest < first_pending);
        forgets || applied.contains_key(&number)
    }

    /// Looks for a command, at `index` of the log, and notes a fresh one as applied.
    pub(super) fn look_up(
        &mut self,
        session: u64,
        number: u64,
        first_pending: u64,
        index: u64,
    ) -> Found {
        let Some(entry) = self.sessions.get_mut(&session) else {
            return Found::Answer(SessionAnswer::Expired);
        };
        self.by_use.remove(&entry.used);
        self.by_use.insert(index, session);
        entry.used = index;
        entry.advance(first_pending);
        if number < entry.first_pending {
            return Found::Answer(SessionAnswer::Forgotten);
        }
        match entry.applied.get(&number) {
            Some(Some(answer)) => Found::Answer(SessionAnswer::Applied(answer.clone())),
            Some(None) => Found::Answer(SessionAnswer::Forgotten),
            None if number - entry.first_pending >= u64::from(entry.max_pending) => {
                Found::Answer(SessionAnswer::TooFar)
            }
            None => {
                entry.applied.insert(number, None);
                Found::Fresh
            }
        }
    }

    /// The machine has answered a fresh command.
    pub(super) fn store(&mut self, session: u64, number: u64, answer: Bytes) {
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        let Some(place) = entry.applied.get_mut(&number) else { return };
        entry.answer_bytes += answer.len() as u64;
        *place = Some(answer);
        let mut answers = entry.applied.values_mut();
        while entry.answer_bytes > entry.max_answer_bytes {
            let Some(lowest) = answers.next() else { break };
            entry.answer_bytes -= lowest.take().map_or(0, |answer| answer.len() as u64);
        }
    }

    /// The table as bytes: version u8; count u64; for each session id, used, first_pending,
    /// max_answer_bytes u64, max_pending u32, count u32; for each number u64, length u32 and the
    /// answer, length `u32::MAX` for a forgotten one.
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u64_le(self.sessions.len() as u64);
        for (id, entry) in &self.sessions {
            for field in [*id, entry.used, entry.first_pending, entry.max_answer_bytes] {
                out.put_u64_le(field);
            }
            out.put_u32_le(entry.max_pending);
            out.put_u32_le(entry.applied.len() as u32);
            for (number, answer) in &entry.applied {
                out.put_u64_le(*number);
                match answer {
                    Some(answer) => {
                        out.put_u32_le(answer.len() as u32);
                        out.put_slice(answer);
                    }
                    None => out.put_u32_le(u32::MAX),
                }
            }
        }
        out.freeze()
    }

    /// `None` for bytes that [`encode`](Self::encode) cannot have written.
    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        let mut table = Self::default();
        // Each turn takes bytes, so that a count that is too high ends with them.
        for _ in 0..bytes.try_get_u64_le().ok()? {
            let id = bytes.try_get_u64_le().ok()?;
            let entry = Entry::decode(&mut bytes)?;
            let is_new = table.by_use.insert(entry.used, id).is_none();
            if !is_new || table.sessions.insert(id, entry).is_some() {
                return None;
            }
        }
        bytes.is_empty().then_some(table)
    }
}

impl Entry {
    /// The client waits for nothing below `first_pending`. It never goes back.
    fn advance(&mut self, first_pending: u64) {
        if first_pending <= self.first_pending {
            return;
        }
        self.first_pending = first_pending;
        let kept = self.applied.split_off(&first_pending);
        let forgotten = std::mem::replace(&mut self.applied, kept);
        let bytes: u64 = forgotten.values().flatten().map(|answer| answer.len() as u64).sum();
        self.answer_bytes -= bytes;
    }

    fn decode(bytes: &mut Bytes) -> Option<Self> {
        let mut field = || bytes.try_get_u64_le().ok();
        let (used, first_pending, max_answer_bytes) = (field()?, field()?, field()?);
        let max_pending = bytes.try_get_u32_le().ok()?;
        let (mut applied, mut answer_bytes) = (BTreeMap::new(), 0);
        for _ in 0..bytes.try_get_u32_le().ok()? {
            let number = bytes.try_get_u64_le().ok()?;
            let answer = match bytes.try_get_u32_le().ok()? {
                u32::MAX => None,
                len if len as usize > bytes.len() => return None,
                len => Some(bytes.split_to(len as usize)),
            };
            answer_bytes += answer.as_ref().map_or(0, |answer| answer.len() as u64);
            if applied.insert(number, answer).is_some() {
                return None;
            }
        }
        if answer_bytes > max_answer_bytes {
            return None;
        }
        Some(Self { max_pending, max_answer_bytes, used, first_pending, applied, answer_bytes })
    }
}
