//! What is recorded of a saga: the format, and what each event means.
//!
//! A record is: version (1 byte, 1), number of events (4 bytes), then the events. An event is: kind
//! (1 byte), step (2 bytes), length of the text (4 bytes) and of the value (4 bytes), number (8
//! bytes), text (UTF-8), value. All numbers are little-endian.
//!
//! | kind | event | step | text | value | number |
//! |---|---|---|---|---|---|
//! | 0 | started | - | name of the definition | input | shape |
//! | 1 | limits | - | - | - | deadline, ns since the UNIX epoch; `u64::MAX`: none |
//! | 2 | intended | the step | - | - | - |
//! | 3 | done | the step | - | output | - |
//! | 4 | attempt failed | the step | why | - | 1: it may have run |
//! | 5 | failed | the step | why | - | 1: it may have run |
//! | 6 | unwinding | the step, or 65,535 | why | - | cause: 0 step, 1 abort, 2 deadline |
//! | 7 | undo intended | the step | - | - | - |
//! | 8 | undone | the step | - | - | - |
//! | 9 | stuck | the step | why | - | 0: its action, 1: its undo |
//! | 10 | resolved | the step | - | - | - |
//! | 11 | ended | - | - | - | 0 completed, 1 undone, 2 given up |
//! | 12 | version | - | - | - | version of the definition |

use bytes::{Buf, BufMut, Bytes};

use super::graph::StepId;

const FORMAT: u8 = 1;
const HEAD_BYTES: usize = 5;
const EVENT_BYTES: usize = 19;

/// Why a saga is undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Step(StepId),
    Abort,
    Deadline,
}

/// Which of a step's two actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// The step itself.
    Act,
    /// Its compensation.
    Undo,
}

/// One thing that has happened to a saga.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Started {
        definition: Box<str>,
        shape: u64,
        input: Bytes,
    },
    Version(u64),
    Deadline(u64),
    /// The step's action may be called from now on.
    Intended(StepId),
    Done(StepId, Bytes),
    AttemptFailed {
        step: StepId,
        may_have_run: bool,
        why: Box<str>,
    },
    /// The step will not be tried again.
    Failed {
        step: StepId,
        may_have_run: bool,
        why: Box<str>,
    },
    Unwinding {
        cause: Cause,
        why: Box<str>,
    },
    UndoIntended(StepId),
    Undone(StepId),
    Stuck {
        step: StepId,
        direction: Direction,
        why: Box<str>,
    },
    /// The stuck step is tried again.
    Resolved(StepId),
    Ended(u64),
}

/// A record that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum EventError {
    #[error("the record has format {0}, which this version does not know")]
    Format(u8),
    #[error("the record has an event of kind {0}, which this version does not know")]
    Kind(u8),
    #[error("the record is cut off or garbled")]
    Garbled,
}

impl Event {
    pub(crate) fn encode(events: &[Self]) -> Bytes {
        let bytes = events.iter().map(|event| EVENT_BYTES + event.len_bytes()).sum::<usize>();
        // Exact: the vector becomes the record as it is.
        let mut out = Vec::with_capacity(HEAD_BYTES + bytes);
        out.put_u8(FORMAT);
        out.put_u32_le(events.len() as u32);
        for event in events {
            event.put(&mut out);
        }
        out.into()
    }

    /// Bytes of its text and value.
    fn len_bytes(&self) -> usize {
        match self {
            Self::Started { definition, input, .. } => definition.len() + input.len(),
            Self::Done(_, value) => value.len(),
            Self::AttemptFailed { why, .. }
            | Self::Failed { why, .. }
            | Self::Unwinding { why, .. }
            | Self::Stuck { why, .. } => why.len(),
            _ => 0,
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        const NONE: &[u8] = &[];
        let flag = u64::from;
        let (kind, step, text, value, number): (u8, StepId, &str, &[u8], u64) = match self {
            Self::Started { definition, shape, input } => (0, 0, definition, input, *shape),
            Self::Deadline(at) => (1, 0, "", NONE, *at),
            Self::Intended(step) => (2, *step, "", NONE, 0),
            Self::Done(step, value) => (3, *step, "", value, 0),
            Self::AttemptFailed { step, may_have_run, why } => {
                (4, *step, why, NONE, flag(*may_have_run))
            }
            Self::Failed { step, may_have_run, why } => (5, *step, why, NONE, flag(*may_have_run)),
            Self::Unwinding { cause, why } => match cause {
                Cause::Step(step) => (6, *step, why, NONE, 0),
                Cause::Abort => (6, StepId::MAX, why, NONE, 1),
                Cause::Deadline => (6, StepId::MAX, why, NONE, 2),
            },
            Self::UndoIntended(step) => (7, *step, "", NONE, 0),
            Self::Undone(step) => (8, *step, "", NONE, 0),
            Self::Stuck { step, direction, why } => {
                (9, *step, why, NONE, flag(*direction == Direction::Undo))
            }
            Self::Resolved(step) => (10, *step, "", NONE, 0),
            Self::Ended(how) => (11, 0, "", NONE, *how),
            Self::Version(version) => (12, 0, "", NONE, *version),
        };
        out.put_u8(kind);
        out.put_u16_le(step);
        out.put_u32_le(text.len() as u32);
        out.put_u32_le(value.len() as u32);
        out.put_u64_le(number);
        out.put_slice(text.as_bytes());
        out.put_slice(value);
    }

    /// Reads the events of a record. Trusts no length in it.
    pub(crate) fn decode(mut record: Bytes) -> Result<Vec<Self>, EventError> {
        if record.len() < HEAD_BYTES {
            return Err(EventError::Garbled);
        }
        let format = record.get_u8();
        if format != FORMAT {
            return Err(EventError::Format(format));
        }
        let count = record.get_u32_le() as usize;
        if count > record.len() / EVENT_BYTES {
            return Err(EventError::Garbled);
        }
        let events = (0..count).map(|_| Self::get(&mut record)).collect::<Result<_, _>>()?;
        if record.has_remaining() { Err(EventError::Garbled) } else { Ok(events) }
    }

    fn get(record: &mut Bytes) -> Result<Self, EventError> {
        if record.len() < EVENT_BYTES {
            return Err(EventError::Garbled);
        }
        let (kind, step) = (record.get_u8(), record.get_u16_le());
        let (text_len, value_len) = (record.get_u32_le() as usize, record.get_u32_le() as usize);
        let number = record.get_u64_le();
        if text_len > record.len() || value_len > record.len() - text_len {
            return Err(EventError::Garbled);
        }
        let text = record.split_to(text_len);
        let text: Box<str> = std::str::from_utf8(&text).map_err(|_| EventError::Garbled)?.into();
        let value = record.split_to(value_len);
        let flag = |number: u64| match number {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(EventError::Garbled),
        };
        Ok(match kind {
            0 => Self::Started { definition: text, shape: number, input: value },
            1 => Self::Deadline(number),
            2 => Self::Intended(step),
            3 => Self::Done(step, value),
            4 => Self::AttemptFailed { step, may_have_run: flag(number)?, why: text },
            5 => Self::Failed { step, may_have_run: flag(number)?, why: text },
            6 => {
                let cause = match number {
                    0 => Cause::Step(step),
                    1 => Cause::Abort,
                    2 => Cause::Deadline,
                    _ => return Err(EventError::Garbled),
                };
                Self::Unwinding { cause, why: text }
            }
            7 => Self::UndoIntended(step),
            8 => Self::Undone(step),
            9 => {
                let direction = if flag(number)? { Direction::Undo } else { Direction::Act };
                Self::Stuck { step, direction, why: text }
            }
            10 => Self::Resolved(step),
            11 if number <= 2 => Self::Ended(number),
            11 => return Err(EventError::Garbled),
            12 => Self::Version(number),
            other => return Err(EventError::Kind(other)),
        })
    }
}
