//! A hybrid logical clock.

use std::time::Duration;

use super::Actor;
use crate::ConfigError;

/// When something happened, after everything that its node had seen by then.
///
/// Ordered by physical time, then by the logical counter, then by the actor: no two timestamps of
/// different events are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Wall-clock time, in ns since the UNIX epoch. Range: 0 to [`Timestamp::MAX_PHYSICAL`].
    pub physical: u64,
    /// Orders events of the same physical time.
    pub logical: u32,
    /// Whose clock it was.
    pub actor: Actor,
}

impl Timestamp {
    /// The greatest physical time: 2^62 - 1, in the year 2116. Nothing above it is accepted.
    pub const MAX_PHYSICAL: u64 = (1 << 62) - 1;
}

/// Configuration of an [`Hlc`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HlcConfig {
    /// How far a peer's timestamp may lie ahead of the local wall clock. Timestamps beyond are
    /// refused before they are stored or merged; one that lies in the past never is. From 1 ms to
    /// 1 day. Default 500 ms.
    pub max_drift: Duration,
    /// How far the durable mark is set ahead of the timestamps given out. A restart skips at most
    /// this much time, so at most half of `max_drift`: peers would refuse a clock that has
    /// restarted. From 100 µs. Default 250 ms.
    pub mark_step: Duration,
}

impl Default for HlcConfig {
    fn default() -> Self {
        Self { max_drift: Duration::from_millis(500), mark_step: Duration::from_millis(250) }
    }
}

impl HlcConfig {
    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let low = Duration::from_millis(1);
        if !(low..=Duration::from_secs(86_400)).contains(&self.max_drift) {
            return Err(ConfigError { field: "max_drift", rule: "must be from 1 ms to 1 day" });
        }
        if !(low / 10..=self.max_drift / 2).contains(&self.mark_step) {
            let rule = "must be from 100 µs to half of `max_drift`";
            return Err(ConfigError { field: "mark_step", rule });
        }
        Ok(())
    }
}

/// Why an [`Hlc`] gives no timestamp. No state has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TickError {
    /// The timestamp would not lie below the durable mark. Persist `mark`, report it with
    /// [`Hlc::mark_persisted`], and try again.
    #[error("no timestamp before the mark {mark} ns is durable")]
    MarkNeeded {
        /// The mark to persist, in ns since the UNIX epoch.
        mark: u64,
    },
    /// The clock stands at the end of its range: the local wall clock is wrong.
    #[error("the clock has reached the end of its range; the wall clock is wrong")]
    Exhausted,
}

/// A peer's timestamp was refused, before anything was stored or merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node {node} is {ahead_ns} ns ahead, at most {max_ns} ns are allowed; check its clock")]
#[non_exhaustive]
pub struct ObserveError {
    /// The node whose clock gave the timestamp.
    pub node: u64,
    /// How far the timestamp lies ahead of the local wall clock, in ns.
    pub ahead_ns: u64,
    /// How far it may lie ahead, in ns.
    pub max_ns: u64,
}

/// A hybrid logical clock (Kulkarni et al. 2014): timestamps close to wall-clock time that respect
/// causality.
///
/// It never goes back, also over a restart: no timestamp at or above the durable mark is given out
/// before a higher mark is durable, and after a restart the clock begins at the maximum of the mark
/// and every timestamp that was replayed.
///
/// # Example
/// ```
/// use voussoir_quorum::version::{Actor, Hlc, HlcConfig, TickError, Timestamp};
/// let mut clock = Hlc::recover(Actor::new(1, 1), HlcConfig::default(), 0, []).unwrap();
/// let now = 1_000_000_000;
/// let Err(TickError::MarkNeeded { mark }) = clock.tick(now) else { panic!() };
/// // … write `mark` to the store and sync it …
/// clock.mark_persisted(mark);
/// let peer = Timestamp { physical: now + 7, logical: 3, actor: Actor::new(2, 1) };
/// clock.observe(now, peer).unwrap();
/// assert!(clock.tick(now).unwrap() > peer);
/// ```
#[derive(Clone, Debug)]
pub struct Hlc {
    actor: Actor,
    max_drift_ns: u64,
    mark_step_ns: u64,
    /// Physical time of the latest timestamp given out or observed.
    physical: u64,
    /// The least logical counter that is free at `physical`; above `u32::MAX` none is.
    next_logical: u64,
    /// Timestamps below it may be given out, in ns.
    mark: u64,
    refused: u64,
}

impl Hlc {
    /// A clock that goes on after the durable `mark` (0 for none) and after every replayed
    /// timestamp, of whatever actor.
    ///
    /// # Errors
    /// [`ConfigError`]: the configuration is not valid.
    pub fn recover(
        actor: Actor,
        config: HlcConfig,
        mark: u64,
        replayed: impl IntoIterator<Item = Timestamp>,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        let mut clock = Self {
            actor,
            max_drift_ns: config.max_drift.as_nanos() as u64,
            mark_step_ns: config.mark_step.as_nanos() as u64,
            physical: mark,
            next_logical: 0,
            mark,
            refused: 0,
        };
        replayed.into_iter().for_each(|timestamp| clock.merge(timestamp));
        Ok(clock)
    }

    /// The timestamp of a local event. `now` is the wall clock, in ns since the UNIX epoch; it may
    /// jump.
    ///
    /// # Errors
    /// [`TickError::MarkNeeded`] until a higher mark is durable; [`TickError::Exhausted`].
    pub fn tick(&mut self, now: u64) -> Result<Timestamp, TickError> {
        let (physical, logical) = self.next(now);
        if physical > Timestamp::MAX_PHYSICAL {
            return Err(TickError::Exhausted);
        }
        if physical >= self.mark {
            return Err(TickError::MarkNeeded { mark: physical + self.step(now, physical) });
        }
        (self.physical, self.next_logical) = (physical, u64::from(logical) + 1);
        Ok(Timestamp { physical, logical, actor: self.actor })
    }

    /// Moves the clock past a timestamp of a peer, so that later local events are ordered after it.
    ///
    /// # Errors
    /// [`ObserveError`]: it lies too far in the future. The caller must not store what carries it.
    pub fn observe(&mut self, now: u64, timestamp: Timestamp) -> Result<(), ObserveError> {
        let ahead_ns = timestamp.physical.saturating_sub(now);
        // Only the future is bounded: hints and backlogs carry old timestamps.
        if ahead_ns > self.max_drift_ns || timestamp.physical > Timestamp::MAX_PHYSICAL {
            self.refused += 1;
            let (node, max_ns) = (timestamp.actor.node, self.max_drift_ns);
            return Err(ObserveError { node, ahead_ns, max_ns });
        }
        self.merge(timestamp);
        Ok(())
    }

    /// The mark that should be persisted ahead of need: half of the current one is used up.
    pub fn next_mark(&self, now: u64) -> Option<u64> {
        let (physical, _) = self.next(now);
        let is_low = self.mark.saturating_sub(physical) < self.mark_step_ns / 2;
        let step = self.step(now, physical);
        // A step that was cut short is written when it is needed, and not ahead of each tick.
        let is_worth_it = step >= self.mark_step_ns / 2;
        (is_low && is_worth_it && physical <= Timestamp::MAX_PHYSICAL).then(|| physical + step)
    }

    /// Records that `mark` is durable. An older mark than the current one changes nothing.
    pub fn mark_persisted(&mut self, mark: u64) {
        self.mark = self.mark.max(mark);
    }

    /// How many timestamps of peers were refused.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// How far the mark is set ahead of `physical`. A restart begins at the mark, so it stays
    /// within `max_drift` of the wall clock: restarts in a row do not run away from it.
    fn step(&self, now: u64, physical: u64) -> u64 {
        let room = now.saturating_add(self.max_drift_ns).saturating_sub(physical);
        room.clamp(1, self.mark_step_ns)
    }

    /// Physical and logical time of the next local event.
    fn next(&self, now: u64) -> (u64, u32) {
        if now > self.physical {
            return (now, 0);
        }
        // An exhausted counter borrows the next nanosecond.
        u32::try_from(self.next_logical)
            .map_or((self.physical.saturating_add(1), 0), |logical| (self.physical, logical))
    }

    fn merge(&mut self, timestamp: Timestamp) {
        let above = u64::from(timestamp.logical) + 1;
        if timestamp.physical > self.physical {
            (self.physical, self.next_logical) = (timestamp.physical, above);
        } else if timestamp.physical == self.physical {
            self.next_logical = self.next_logical.max(above);
        }
    }
}
