//! A breaker's figures, and what of it survives a restart.

use std::time::Duration;

use super::State;
use crate::core::{Counts, Memory, WindowKind};
use crate::error::RestoreError;

/// A breaker's figures at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BreakerStats {
    /// The state.
    pub state: State,
    /// Counts of the window, which starts empty with each state.
    pub window: Counts,
    /// All calls ever counted, those of a restored window included.
    pub lifetime: Counts,
    /// Calls not admitted.
    pub rejected: u64,
    /// Answers that came after the state in which their call had begun was over.
    pub late: u64,
    /// Times that it opened by itself.
    pub openings: u64,
    /// Bad answers at which a metrics-only breaker would have opened.
    pub would_open: u64,
}

impl BreakerStats {
    /// Share of failures in the window, if it holds any call.
    pub fn failure_rate(&self) -> Option<f64> {
        share(self.window.failures, self.window.calls)
    }

    /// Share of slow calls in the window, if it holds any call.
    pub fn slow_rate(&self) -> Option<f64> {
        share(self.window.slow, self.window.calls)
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// A piece of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct WindowPart {
    /// How many buckets, or calls, came after it.
    pub age: u32,
    /// Counts of the bucket.
    pub counts: Counts,
}

/// State of a breaker that survives a restart.
///
/// All times in it are relative to the moment at which it was taken, so it fits any clock; the
/// time between taking and restoring does not count.
///
/// With the feature `serde` it is written field by field under these names. A field that the reader
/// does not know is skipped, one that is missing is empty, and a snapshot of another version is
/// [`RestoreError::VersionUnknown`] when it is restored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
#[non_exhaustive]
pub struct BreakerSnapshot {
    /// The version of this format: [`VERSION`](Self::VERSION).
    pub version: u32,
    /// The state.
    pub state: State,
    /// Rest of the wait of an open breaker.
    pub wait_left: Duration,
    /// Openings since it was last closed, which the back-off goes by.
    pub openings: u32,
    /// Failures since the last success.
    pub consecutive_failures: u64,
    /// Width of a bucket, or `None` for a window over a count of calls.
    pub bucket: Option<Duration>,
    /// The window, oldest part first.
    pub window: Vec<WindowPart>,
}

impl Default for BreakerSnapshot {
    /// Of no version: what a reader of the format starts from. It cannot be restored.
    fn default() -> Self {
        Self {
            version: 0,
            state: State::Closed,
            wait_left: Duration::ZERO,
            openings: 0,
            consecutive_failures: 0,
            bucket: None,
            window: Vec::new(),
        }
    }
}

impl BreakerSnapshot {
    /// Version that this crate writes, and the only version that it restores.
    pub const VERSION: u32 = 1;

    pub(super) fn of(shape: WindowKind, memory: Memory) -> Self {
        let parts = memory.window.into_iter();
        Self {
            version: Self::VERSION,
            state: State::of(memory.phase),
            wait_left: Duration::from_nanos(memory.wait_left),
            openings: memory.openings,
            consecutive_failures: memory.consecutive_failures,
            bucket: bucket(shape),
            window: parts.map(|(age, counts)| WindowPart { age, counts }).collect(),
        }
    }

    pub(super) fn memory(&self, shape: WindowKind) -> Result<Memory, RestoreError> {
        if self.version != Self::VERSION {
            return Err(RestoreError::VersionUnknown { found: self.version });
        }
        if self.bucket != bucket(shape) {
            return Err(RestoreError::WindowMismatch);
        }
        let (WindowKind::Time { buckets: max_parts, .. }
        | WindowKind::Count { calls: max_parts, .. }) = shape;
        let is_sound = |part: &WindowPart| {
            let Counts { calls, failures, slow } = part.counts;
            let max_calls = if self.bucket.is_some() { u64::MAX } else { 1 };
            part.age < max_parts && calls <= max_calls && failures <= calls && slow <= calls
        };
        if self.window.len() > max_parts as usize || !self.window.iter().all(is_sound) {
            return Err(RestoreError::WindowInvalid);
        }
        Ok(Memory {
            phase: self.state.phase(),
            wait_left: crate::config::nanos(self.wait_left),
            openings: self.openings,
            consecutive_failures: self.consecutive_failures,
            window: self.window.iter().map(|part| (part.age, part.counts)).collect(),
        })
    }
}

fn bucket(shape: WindowKind) -> Option<Duration> {
    match shape {
        WindowKind::Time { width, .. } => Some(Duration::from_nanos(width)),
        WindowKind::Count { .. } => None,
    }
}
