//! Why there is no id now.

/// Why a generator made no id. Nothing was used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The clock shows an earlier time than ids that were made before, by this generator or by an
    /// earlier holder of its worker number, and by more than the configured bound. Retry at
    /// `ready_at_ms`.
    #[error("the clock is {behind_ms} ms behind the ids; ready at {ready_at_ms} ms")]
    ClockBehind {
        /// How far the clock is behind, in ms.
        behind_ms: u64,
        /// When the generator is ready, in ms since the UNIX epoch.
        ready_at_ms: u64,
    },
    /// All sequence numbers of the current ms are used up. Retry at `ready_at_ms`, at most 1 ms
    /// plus the configured bound of a clock that is behind away.
    #[error("all ids of this ms are used up; ready at {ready_at_ms} ms")]
    Exhausted {
        /// When the generator is ready, in ms since the UNIX epoch.
        ready_at_ms: u64,
    },
    /// The time has reached the ceiling of the worker number. Retry once the ceiling was raised;
    /// if that does not happen, the place that numbers are leased from cannot be reached.
    #[error("the clock has reached the ceiling of {ceiling_ms} ms, which was not raised in time")]
    CeilingReached {
        /// The ceiling, in ms since the UNIX epoch.
        ceiling_ms: u64,
    },
    /// The worker number belongs to another process now, or was given back. Final.
    #[error("the lease of the worker number is lost")]
    LeaseLost,
    /// The time is beyond what the layout can hold. Final.
    #[error("the time is beyond the last that the layout can hold")]
    LayoutFull,
}

impl IdError {
    /// Whether the same generator can succeed later.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::LeaseLost | Self::LayoutFull)
    }
}
