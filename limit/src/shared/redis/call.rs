//! A take as the script's call, in figures that the script's doubles hold exactly.

use redis::Cmd;

use super::{RedisCounter, WhenLost};
use crate::core::{Kind, Rules};
use crate::error::ConfigError;
use crate::shared::counter::Take;

/// Whole numbers below this, and the sum of two of them, are exact in the script's doubles.
const EXACT: u64 = 1 << 52;

/// Rounding may lower a rate by at most one part in this.
const LOSS: u64 = 1000;

/// A quota in the script's figures.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Figures {
    kind: &'static str,
    /// GCRA: the burst. Fixed window: the units of a window.
    limit: u64,
    /// GCRA: the time of a unit, in ticks.
    interval: u64,
    /// Ticks in a microsecond: 1000 or 1. They count spans; times of day are stored in microseconds
    /// and nanoseconds, whatever this is.
    ticks: u64,
    /// Fixed window: the period, µs.
    per: u64,
}

impl Figures {
    /// The figures of a quota.
    ///
    /// # Errors
    /// [`ConfigError`] if the script has no such algorithm, or could count the quota
    /// only at a rate that is lower by more than 0.1 %.
    pub(super) fn of(rules: &Rules) -> Result<Self, ConfigError> {
        let figures = match rules.kind {
            Kind::Gcra => Self::gcra(rules),
            Kind::FixedWindow => Self::window(rules),
            _ => {
                return Err(ConfigError::new(
                    "quota",
                    "must be by rate or by fixed window: Redis counts no other",
                ));
            }
        };
        figures.ok_or(ConfigError::new(
            "quota.per",
            "must be a time that Redis can count: neither too fine nor too long",
        ))
    }

    /// In nanoseconds; in microseconds where burst times interval exceeds [`EXACT`] ns, about 52
    /// days.
    fn gcra(rules: &Rules) -> Option<Self> {
        let (interval, ticks) =
            if rules.span < EXACT { (rules.interval, 1000) } else { (micros(rules.interval)?, 1) };
        interval.checked_mul(rules.limit).filter(|span| *span < EXACT)?;
        Some(Self { kind: "gcra", limit: rules.limit, interval, ticks, per: 0 })
    }

    fn window(rules: &Rules) -> Option<Self> {
        let per = micros(rules.per).filter(|per| per.max(&rules.limit) < &EXACT)?;
        Some(Self { kind: "window", limit: rules.limit, interval: 0, ticks: 1, per })
    }

    /// The name that tells the states of one kind from those of another, and from those of a later
    /// version.
    fn suffix(&self) -> &'static str {
        if self.kind == "gcra" { ":g1" } else { ":w1" }
    }
}

/// Whole microseconds, rounded up; `None` if that loses more than one part in [`LOSS`].
fn micros(nanos: u64) -> Option<u64> {
    let micros = nanos.div_ceil(1000);
    let loss = micros.checked_mul(1000)? - nanos;
    (loss.saturating_mul(LOSS) <= nanos).then_some(micros)
}

/// A take's key and figures, from which its calls are made.
pub(super) struct Call {
    key: String,
    figures: Figures,
    least: u64,
    most: u64,
    when_lost: &'static str,
}

impl Call {
    pub(super) fn new(counter: &RedisCounter, take: &Take<'_>) -> Result<Self, ConfigError> {
        let figures = Figures::of(&take.quota.rules()?)?;
        let key = format!("{}{{{}}}{}", counter.prefix, take.key, figures.suffix());
        let when_lost = match counter.when_lost {
            WhenLost::Drained => "drained",
            WhenLost::Fresh => "fresh",
        };
        Ok(Self { key, figures, least: take.least, most: take.most, when_lost })
    }

    /// The key as Redis has it.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// `EVALSHA` with the hash of the script, or `EVAL` with the script itself.
    pub(super) fn command(&self, name: &str, script: &str) -> Cmd {
        let mut command = redis::cmd(name);
        command.arg(script).arg(1).arg(&self.key);
        command.arg(self.figures.kind).arg(self.figures.limit);
        command.arg(self.figures.interval).arg(self.figures.ticks).arg(self.figures.per);
        command.arg(self.least).arg(self.most).arg(self.when_lost);
        command
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::quota::Quota;

    #[test]
    fn figures_are_exact_or_refused() {
        let of = |quota: Quota| Figures::of(&quota.rules().expect("the quota is in range"));
        let gcra = |count, per, burst| of(Quota::gcra(count, per).burst(burst));
        let second = Duration::from_secs(1);
        let day = 86_400 * second;
        let exact = |interval, ticks| Figures { kind: "gcra", limit: 1, interval, ticks, per: 0 };
        // 500 ns, less than a microsecond; then 3333.3 ns, rounded up to whole nanoseconds.
        assert_eq!(gcra(2_000_000, second, 1), Ok(exact(500, 1000)));
        assert_eq!(gcra(300_000, second, 1), Ok(exact(3334, 1000)));
        // A hundred days in nanoseconds exceed `EXACT`: they are counted in microseconds.
        assert_eq!(gcra(1, 100 * day, 1), Ok(exact(100 * 86_400 * 1_000_000, 1)));
        // So does this burst, but 3.334 µs rounded to 4 µs would lower the rate by 17 %: rejected.
        assert!(gcra(300_000, second, 1 << 41).is_err());
        let window = |per| of(Quota::fixed_window(10, per));
        assert!(window(Duration::from_nanos(1500)).is_err());
        assert!(window(Duration::from_micros(2)).is_ok());
        assert!(window(Duration::from_nanos(2_000_001)).is_ok());
        assert!(of(Quota::token_bucket(10, second)).is_err());
    }
}
