//! What a journal tells about one of its logs.

use crate::core::bounds::{LogBounds, UNKNOWN};
use crate::core::view::View;
use crate::engine::log::LogInner;
use crate::error::LogName;

/// What a journal knows about one of its logs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogInfo {
    /// Its name.
    pub name: LogName,
    /// Its first position.
    pub first: u64,
    /// The position after its last.
    pub end: u64,
    /// Bytes of its batches, counted in whole batches.
    pub bytes: u64,
    /// How many segments it keeps alive.
    pub segments: usize,
    /// Whether damage has hit it.
    pub health: Health,
}

/// Whether damage to the disk has hit a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// Nothing is known to be wrong. Each read still verifies what it returns.
    Intact,
    /// Positions are lost, the first at `from` and the last before `until`. All others, also those
    /// in between, are readable and right. The log takes no appends until it has been released
    /// past `until`, truncated to `from`, or deleted.
    Lost {
        /// First lost position.
        from: u64,
        /// Position after the last lost one.
        until: u64,
    },
    /// Changes to the log may have been lost, of any kind. What is readable is what was once
    /// written, but a truncation, a release or newer records may be missing. The log takes no
    /// appends until it has been deleted or released past its end.
    Suspect,
}

/// The records of a log that lie in one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Extent {
    /// Position of the first record.
    pub first: u64,
    /// Position after the last one.
    pub end: u64,
    /// Bytes of the batches, counted in whole batches, also of those released or truncated in part.
    pub bytes: u64,
    /// The segment is full: no records are added to this extent any more.
    pub sealed: bool,
}

pub(crate) fn health_of(bounds: &LogBounds) -> Health {
    match bounds.damage {
        None => Health::Intact,
        Some((_, UNKNOWN)) => Health::Suspect,
        Some((from, until)) => Health::Lost { from, until },
    }
}

pub(crate) fn info(name: &LogName, view: &View) -> LogInfo {
    LogInfo {
        name: name.clone(),
        first: view.bounds.first,
        end: view.bounds.end,
        bytes: view.bytes(),
        segments: view.segments(),
        health: health_of(&view.bounds),
    }
}

pub(crate) fn info_of(log: &LogInner) -> LogInfo {
    info(log.name(), &log.view.read())
}
