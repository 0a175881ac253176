//! How long an entry is fresh, and what a reader does with one that is not.

use std::time::Duration;

use super::random::Random;
use crate::config::{Config, nanos};

/// How far ahead of its end an early refresh is considered at all, in multiples of the load's
/// duration times `early_refresh`: `-ln` of the smallest random number is 37.
const EARLY_FACTOR_MAX: f64 = 37.0;

/// The times of one entry, in nanoseconds of the cache's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    /// From here on a reader looks closer. Invariant: `look_at <= refresh_at`.
    pub(crate) look_at: u64,
    /// From here on the entry is loaded again in the background. Invariant: `refresh_at <= end`.
    pub(crate) refresh_at: u64,
    /// The entry is fresh before this time.
    pub(crate) end: u64,
    /// From here on the entry is served to nobody, whatever the windows for stale values are.
    pub(crate) gone_at: u64,
    /// How long the load took that brought the value.
    pub(crate) load_nanos: u64,
}

impl Times {
    /// Those of an entry that is only fresh until its end.
    pub(crate) fn plain(end: u64) -> Self {
        Self { look_at: end, refresh_at: end, end, gone_at: u64::MAX, load_nanos: 0 }
    }

    /// Whether [`Times::plain`] of the end says the same.
    pub(crate) fn is_plain(&self) -> bool {
        // `refresh_at` lies between them, and only before `end` it matters how long the load took.
        self.look_at == self.end && self.gone_at == u64::MAX
    }

    /// The same, but gone at `end`: the windows for stale values do not follow it.
    pub(crate) fn until(self, end: u64) -> Self {
        Self {
            look_at: self.look_at.min(end),
            refresh_at: self.refresh_at.min(end),
            end: self.end.min(end),
            gone_at: self.gone_at.min(end),
            load_nanos: self.load_nanos,
        }
    }
}

/// What a reader does with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// Serve it.
    Fresh,
    /// Serve it, and load it again in the background.
    Refresh,
    /// Its time is over. Serve it and load it again in the background.
    Revalidate,
    /// Its time is over. Load it, and serve it if that fails.
    IfError,
    /// Its time is over. It may be dropped.
    Gone,
}

/// The rules of one cache, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lifetimes {
    ttl: Option<u64>,
    /// No lifetime is longer, whoever gave it.
    longest: Option<u64>,
    jitter: f64,
    negative_ttl: u64,
    refresh_after: Option<u64>,
    early: f64,
    revalidate: u64,
    if_error: u64,
}

impl Lifetimes {
    /// `longest`: the bound of a second level, [`LevelConfig::ttl`](crate::LevelConfig::ttl).
    pub(crate) fn new(config: &Config, longest: Option<Duration>) -> Self {
        Self {
            ttl: config.ttl.map(nanos),
            longest: longest.map(nanos),
            jitter: config.ttl_jitter,
            negative_ttl: nanos(config.negative_ttl),
            refresh_after: config.refresh_after.map(nanos),
            early: config.early_refresh,
            revalidate: nanos(config.stale_while_revalidate),
            if_error: nanos(config.stale_if_error),
        }
    }

    /// Whether the absence of a value is remembered at all.
    pub(crate) fn remembers_absence(&self) -> bool {
        self.negative_ttl > 0
    }

    /// The times of an entry that is stored at `now`. `own_ttl` is the entry's own lifetime, which
    /// goes before the configured one.
    pub(crate) fn times(
        &self,
        now: u64,
        is_absent: bool,
        own_ttl: Option<u64>,
        load_nanos: u64,
        random: &Random,
    ) -> Times {
        let configured = if is_absent { Some(self.negative_ttl) } else { self.ttl };
        let ttl = own_ttl.or(configured);
        let ttl = self.longest.map_or(ttl, |longest| Some(longest.min(ttl.unwrap_or(longest))));
        let end = ttl.map_or(u64::MAX, |ttl| {
            // At least a nanosecond: an entry is never stored only to be gone at once.
            let kept = (ttl as f64 * (1.0 - self.jitter * random.unit())) as u64;
            now.saturating_add(if self.jitter > 0.0 { kept.clamp(1, ttl.max(1)) } else { ttl })
        });
        let refresh_at = self.refresh_after.map_or(end, |after| now.saturating_add(after).min(end));
        let early = (self.early * load_nanos as f64 * EARLY_FACTOR_MAX) as u64;
        let early_at = if self.early > 0.0 && end != u64::MAX {
            end.saturating_sub(early).max(now)
        } else {
            end
        };
        let look_at = refresh_at.min(early_at);
        Times { look_at, refresh_at, end, gone_at: u64::MAX, load_nanos }
    }

    /// What a reader does at `now`.
    ///
    /// Source of the early refresh: Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache
    /// Stampede Prevention" (VLDB 2015), algorithm XFetch.
    pub(crate) fn judge(&self, times: &Times, now: u64, random: &Random) -> Freshness {
        if now < times.look_at {
            return Freshness::Fresh;
        }
        if now < times.end {
            let gap = times.load_nanos as f64 * self.early * -random.unit().ln();
            let early = self.early > 0.0 && now.saturating_add(gap as u64) >= times.end;
            let due = now >= times.refresh_at;
            return if due || early { Freshness::Refresh } else { Freshness::Fresh };
        }
        let late = now - times.end;
        if now >= times.gone_at {
            Freshness::Gone
        } else if late < self.revalidate {
            Freshness::Revalidate
        } else if late < self.if_error {
            Freshness::IfError
        } else {
            Freshness::Gone
        }
    }

    /// Whether an entry may be served at `now` in any way.
    pub(crate) fn may_serve(&self, times: &Times, now: u64) -> bool {
        let stale = self.revalidate.max(self.if_error);
        now < times.gone_at && (now < times.end || now - times.end < stale)
    }

    /// Whether an entry whose load failed may be served at `now`.
    pub(crate) fn may_serve_on_error(&self, times: &Times, now: u64) -> bool {
        now < times.gone_at && (now < times.end || now - times.end < self.if_error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn lifetimes(change: impl FnOnce(&mut Config)) -> Lifetimes {
        let mut config = Config { ttl_jitter: 0.0, ..Config::default() };
        change(&mut config);
        config.validate().unwrap();
        Lifetimes::new(&config, None)
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn an_entry_goes_from_fresh_to_gone_through_each_stage() {
        let rules = lifetimes(|config| {
            config.ttl = Some(Duration::from_secs(10));
            config.refresh_after = Some(Duration::from_secs(6));
            config.stale_while_revalidate = Duration::from_secs(5);
            config.stale_if_error = Duration::from_secs(20);
        });
        let random = Random::new(1);
        let times = rules.times(100 * SECOND, false, None, SECOND, &random);
        let at = |seconds: u64| rules.judge(&times, (100 + seconds) * SECOND, &random);
        assert_eq!((at(0), at(5)), (Freshness::Fresh, Freshness::Fresh));
        assert_eq!((at(6), at(9)), (Freshness::Refresh, Freshness::Refresh));
        assert_eq!((at(10), at(14)), (Freshness::Revalidate, Freshness::Revalidate));
        assert_eq!((at(15), at(29)), (Freshness::IfError, Freshness::IfError));
        assert_eq!(at(30), Freshness::Gone);
    }

    /// While nobody would tell of an invalidation, an entry is served for so long and no longer.
    #[test]
    fn an_entry_that_is_gone_is_served_in_no_window() {
        let rules = lifetimes(|config| {
            config.ttl = Some(Duration::from_secs(10));
            config.stale_while_revalidate = Duration::from_secs(5);
            config.stale_if_error = Duration::from_secs(20);
        });
        let random = Random::new(1);
        let times = rules.times(0, false, None, SECOND, &random).until(3 * SECOND);
        assert!(!times.is_plain());
        let at = |nanos: u64| {
            (rules.judge(&times, nanos, &random), rules.may_serve_on_error(&times, nanos))
        };
        assert_eq!(at(3 * SECOND - 1), (Freshness::Fresh, true));
        assert_eq!(at(3 * SECOND), (Freshness::Gone, false));
        let later = rules.times(0, false, None, SECOND, &random).until(12 * SECOND);
        assert_eq!(rules.judge(&later, 11 * SECOND, &random), Freshness::Revalidate);
        assert_eq!(rules.judge(&later, 12 * SECOND, &random), Freshness::Gone);
    }

    #[test]
    fn early_refreshes_grow_likelier_towards_the_end() {
        let rules = lifetimes(|config| {
            config.ttl = Some(Duration::from_secs(100));
            config.early_refresh = 1.0;
        });
        let random = Random::new(7);
        let times = rules.times(0, false, None, SECOND, &random);
        let share = |at: u64| {
            let refreshes =
                (0..10_000).filter(|_| rules.judge(&times, at, &random) == Freshness::Refresh);
            refreshes.count()
        };
        // The chance at a distance of d load times from the end is e^-d.
        let (far, near, nearer) = (share(97 * SECOND), share(99 * SECOND), share(100 * SECOND - 1));
        assert!((400..600).contains(&far), "{far}");
        assert!((3500..3900).contains(&near), "{near}");
        assert_eq!(nearer, 10_000);
        assert_eq!(share(times.look_at.saturating_sub(1)), 0);
    }

    proptest! {
        #[test]
        fn times_are_in_order_and_jitter_only_shortens(
            now in prop_oneof![0..u64::MAX, Just(u64::MAX)],
            ttl in 1..=u64::MAX / 4,
            jitter in 0.0..=1.0_f64,
            early in 0.0..=100.0_f64,
            load in any::<u64>(),
            seed in any::<u64>(),
        ) {
            let mut rules = lifetimes(|_| {});
            (rules.jitter, rules.early) = (jitter, early);
            let random = Random::new(seed);
            let times = rules.times(now, false, Some(ttl), load, &random);
            prop_assert!(times.look_at <= times.refresh_at && times.refresh_at <= times.end);
            prop_assert!(times.end <= now.saturating_add(ttl));
            prop_assert!(times.end > now || now == u64::MAX);
            for at in [0, now, times.look_at, times.end, u64::MAX] {
                let judged = rules.judge(&times, at, &random);
                prop_assert!(at >= times.look_at || judged == Freshness::Fresh);
                let fresh = matches!(judged, Freshness::Fresh | Freshness::Refresh);
                prop_assert_eq!(at < times.end, fresh);
            }
        }
    }
}
