//! What a log is apart from its records, and what each change does to it.

use crate::commit::Change;
use crate::error::{Error, LogName};
use crate::format::frame::SectionKind;

/// The highest position to which a release may move the end of a log. From there a log has as many
/// positions again, so a release never leaves one that takes no records.
pub(crate) const MAX_POSITION: u64 = 1 << 62;

/// Until where suspicion reaches when it is unknown what has been lost.
pub(crate) const UNKNOWN: u64 = u64::MAX;

/// A log's number, bounds and damage. `number` is 0 while the log does not exist. Invariant:
/// first <= end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LogBounds {
    pub(crate) number: u64,
    pub(crate) first: u64,
    pub(crate) end: u64,
    /// Positions that are lost, or from where on nothing is certain (until [`UNKNOWN`]).
    pub(crate) damage: Option<(u64, u64)>,
}

/// The section to be written for one change of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// The log is created first.
    pub(crate) creates: bool,
    pub(crate) number: u64,
    /// The section, unless the creation is all.
    pub(crate) section: Option<(SectionKind, u64)>,
}

impl LogBounds {
    pub(crate) fn exists(&self) -> bool {
        self.number != 0
    }

    /// Changes of any kind may be missing, so that what is there may be outdated.
    pub(crate) fn is_suspect(&self) -> bool {
        self.damage.is_some_and(|(_, until)| until == UNKNOWN)
    }

    /// Applies a change of a caller; `None` when it has no effect.
    pub(crate) fn apply(
        &mut self,
        change: &Change,
        name: &LogName,
        next_number: &mut u64,
    ) -> Result<Option<Step>, Error> {
        match change {
            Change::Append(batch) => {
                if self.damage.is_some() && batch.position.is_none() {
                    return Err(Error::Damaged { log: name.clone() });
                }
                let creates = self.create(next_number);
                let position = batch.position.map_or(self.end, |position| position.max(self.end));
                let end = position.checked_add(batch.len() as u64);
                self.end = end.ok_or_else(|| above_max(name, u64::MAX))?;
                Ok(Some(self.step(creates, SectionKind::Append, position)))
            }
            Change::Truncate(from) => self.truncate_checked(*from, name),
            Change::Release(upto) => {
                if *upto <= self.first {
                    return Ok(None);
                }
                if *upto > self.end.max(MAX_POSITION) {
                    return Err(above_max(name, *upto));
                }
                let creates = self.create(next_number);
                self.release(*upto);
                Ok(Some(self.step(creates, SectionKind::Release, *upto)))
            }
            Change::Delete if self.exists() => {
                let step = self.step(false, SectionKind::Delete, 0);
                *self = Self::default();
                Ok(Some(step))
            }
            // A log that may have been lost with its name: the owner now knows, and the journal
            // has to remember that.
            Change::Delete if self.damage.is_some() => {
                self.damage = None;
                self.create(next_number);
                Ok(Some(Step { creates: true, number: self.number, section: None }))
            }
            Change::Delete => Ok(None),
        }
    }

    fn truncate_checked(&mut self, from: u64, name: &LogName) -> Result<Option<Step>, Error> {
        let (first, end) = (self.first, self.end);
        if from < first || from > end {
            return Err(Error::OutOfRange { log: name.clone(), position: from, first, end });
        }
        let heals = self.damage.is_none_or(|(at, until)| from <= at && until != UNKNOWN);
        if !heals {
            return Err(Error::Damaged { log: name.clone() });
        }
        if from == end {
            return Ok(None);
        }
        self.truncate(from);
        Ok(Some(self.step(false, SectionKind::Truncate, from)))
    }

    fn step(&self, creates: bool, kind: SectionKind, position: u64) -> Step {
        Step { creates, number: self.number, section: Some((kind, position)) }
    }

    fn create(&mut self, next_number: &mut u64) -> bool {
        if self.exists() {
            return false;
        }
        self.number = *next_number;
        *next_number += 1;
        true
    }

    /// Drops positions from `from` on.
    pub(crate) fn truncate(&mut self, from: u64) {
        self.end = from;
        if self.damage.is_some_and(|(at, until)| from <= at && until != UNKNOWN) {
            self.damage = None;
        }
    }

    /// Drops positions below `upto`.
    pub(crate) fn release(&mut self, upto: u64) {
        let emptied = upto >= self.end;
        self.first = self.first.max(upto);
        self.end = self.end.max(upto);
        self.damage = match self.damage {
            // Of an empty log everything is known.
            Some(_) if emptied => None,
            Some((_, until)) if upto >= until => None,
            Some((at, until)) => Some((at.max(upto), until)),
            None => None,
        };
    }

    /// Adds lost positions.
    pub(crate) fn hurt(&mut self, from: u64, until: u64) {
        self.damage = Some(match self.damage {
            Some((at, to)) => (at.min(from), to.max(until)),
            None => (from, until),
        });
    }
}

fn above_max(name: &LogName, position: u64) -> Error {
    Error::PositionTooLarge { log: name.clone(), position, max: MAX_POSITION }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::Batch;

    fn name() -> LogName {
        LogName { namespace: "n".to_owned(), id: 1 }
    }

    #[test]
    fn a_release_past_the_end_moves_the_log() {
        let mut next = 5;
        let mut bounds = LogBounds::default();
        let step = bounds.apply(&Change::Release(10), &name(), &mut next).unwrap().unwrap();
        assert!(step.creates && step.number == 5 && next == 6);
        let batch = Batch::from(bytes::Bytes::from_static(b"x"));
        let step = bounds.apply(&Change::Append(batch), &name(), &mut next).unwrap().unwrap();
        assert_eq!(step.section, Some((SectionKind::Append, 10)));
        assert_eq!((bounds.first, bounds.end), (10, 11));
        assert!(bounds.apply(&Change::Truncate(9), &name(), &mut next).is_err());
        assert_eq!(bounds.apply(&Change::Truncate(11), &name(), &mut next), Ok(None));
    }

    #[test]
    fn damage_heals_only_when_nothing_lost_is_left() {
        let mut next = 2;
        let whole = LogBounds { number: 1, first: 0, end: 10, damage: None };
        let mut bounds = whole;
        bounds.hurt(4, 6);
        let batch = Change::Append(Batch::from(bytes::Bytes::new()));
        assert!(matches!(bounds.apply(&batch, &name(), &mut next), Err(Error::Damaged { .. })));
        let mut released = bounds;
        released.release(5);
        assert_eq!(released.damage, Some((5, 6)));
        released.release(6);
        assert_eq!(released.damage, None);
        let mut truncated = bounds;
        assert!(truncated.apply(&Change::Truncate(5), &name(), &mut next).is_err());
        assert!(truncated.apply(&Change::Truncate(4), &name(), &mut next).is_ok());
        assert_eq!(truncated.damage, None);

        let mut suspect = whole;
        suspect.hurt(10, UNKNOWN);
        suspect.release(9);
        assert_eq!(suspect.damage, Some((10, UNKNOWN)));
        assert!(suspect.apply(&Change::Truncate(9), &name(), &mut next).is_err());
        suspect.release(10);
        assert_eq!(suspect.damage, None);
    }
}
