//! Which share of the traffic each priority and each zone gets.

/// The weights of one priority, draining endpoints left out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LevelHealth {
    pub(crate) healthy: u64,
    /// Weight of the endpoints that are known to be healthy or not. Those that wait for their first
    /// check get no traffic, and their coming must not push away what the others serve.
    pub(crate) known: u64,
    /// Invariant: healthy <= known <= total.
    pub(crate) total: u64,
}

/// What one priority gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PrioritySplit {
    /// Share of the traffic, 0 to 1. All shares sum up to 1, or to 0 if there is no weight.
    pub(crate) share: f64,
    /// Whether the priority panics.
    pub(crate) panics: bool,
}

/// Splits the traffic over priorities. A priority can take `healthy / known * overprovisioning` of
/// it, at most all; the next one takes what is left. When all together cannot take everything,
/// those below `threshold` panic and the traffic is divided by what each can take.
///
/// Source: Envoy, "Priority levels" and "Panic threshold", with
/// `ignore_new_hosts_until_first_hc`.
pub(crate) fn split_priorities(
    levels: &[LevelHealth],
    overprovisioning: f64,
    threshold: f64,
) -> Vec<PrioritySplit> {
    let healthy_share = |level: &LevelHealth| {
        if level.known == 0 { 0.0 } else { level.healthy as f64 / level.known as f64 }
    };
    let capacity = |level| (healthy_share(level) * overprovisioning).min(1.0);
    let sum: f64 = levels.iter().map(capacity).sum();
    if sum >= 1.0 - 1e-9 {
        let mut left: f64 = 1.0;
        let take = |level| {
            let share = left.min(capacity(level));
            left -= share;
            // Rounding leaves crumbs that no traffic should follow.
            let share = if share < 1e-9 { 0.0 } else { share };
            PrioritySplit { share, panics: false }
        };
        return levels.iter().map(take).collect();
    }
    // Endpoints that wait for their first check are no sign that the checks are wrong.
    let panics = |level: &LevelHealth| {
        level.known > 0 && (level.healthy as f64) < threshold * level.known as f64
    };
    // With nothing healthy anywhere, the first priority that has endpoints takes everything.
    let first = levels.iter().position(|level| level.total > 0);
    let share = |at: usize, level| match sum {
        sum if sum > 0.0 => capacity(level) / sum,
        _ => f64::from(u8::from(first == Some(at))),
    };
    let split = |(at, level)| PrioritySplit { share: share(at, level), panics: panics(level) };
    levels.iter().enumerate().map(split).collect()
}

/// The share of a priority's traffic that stays in the caller's zone.
///
/// `local` and `all` are the weights of the zone and of all zones. The zone keeps everything
/// while its healthy share times `overprovisioning` is at least 1, and with `callers_share` no
/// more than its healthy weight's share divided by that of the callers.
///
/// Source: Envoy, "Zone aware routing".
pub(crate) fn split_zone(
    local: LevelHealth,
    all_healthy: u64,
    overprovisioning: f64,
    callers_share: Option<f64>,
) -> f64 {
    if local.healthy == 0 {
        return 0.0;
    }
    if local.healthy == all_healthy {
        return 1.0;
    }
    let by_health = local.healthy as f64 / local.known as f64 * overprovisioning;
    let by_callers =
        callers_share.map_or(1.0, |callers| local.healthy as f64 / all_healthy as f64 / callers);
    by_health.min(by_callers).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(levels: &[(u64, u64)]) -> Vec<(i64, bool)> {
        let levels: Vec<_> = levels
            .iter()
            .map(|&(healthy, total)| LevelHealth { healthy, known: total, total })
            .collect();
        let percent = |split: &PrioritySplit| ((split.share * 100.0).round() as i64, split.panics);
        split_priorities(&levels, 1.4, 0.5).iter().map(percent).collect()
    }

    /// The table of Envoy's documentation, "Priority levels".
    #[test]
    fn overflow_follows_envoys_table() {
        assert_eq!(split(&[(100, 100), (100, 100)]), [(100, false), (0, false)]);
        assert_eq!(split(&[(72, 100), (72, 100)]), [(100, false), (0, false)]);
        assert_eq!(split(&[(71, 100), (71, 100)]), [(99, false), (1, false)]);
        assert_eq!(split(&[(50, 100), (50, 100)]), [(70, false), (30, false)]);
        assert_eq!(split(&[(25, 100), (100, 100)]), [(35, false), (65, false)]);
        assert_eq!(split(&[(25, 100), (25, 100)]), [(50, true), (50, true)]);
        assert_eq!(split(&[(0, 100), (0, 100)]), [(100, true), (0, true)]);
        assert_eq!(split(&[(0, 0), (0, 10)]), [(0, false), (100, true)]);
        assert_eq!(split(&[(0, 0)]), [(0, false)]);
    }

    #[test]
    fn a_zone_keeps_what_it_can_serve() {
        let zone = |healthy, total, all, callers| {
            let local = LevelHealth { healthy, known: total, total };
            (split_zone(local, all, 1.4, callers) * 100.0).round() as i64
        };
        assert_eq!(zone(10, 10, 30, None), 100);
        assert_eq!(zone(5, 10, 25, None), 70);
        assert_eq!(zone(0, 10, 20, None), 0);
        assert_eq!(zone(1, 10, 1, None), 100);
        assert_eq!(zone(2, 2, 20, Some(0.5)), 20);
        assert_eq!(zone(10, 10, 20, Some(0.5)), 100);
    }
}
