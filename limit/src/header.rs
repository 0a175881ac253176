//! The `RateLimit` header fields of the IETF (draft-ietf-httpapi-ratelimit-headers-10), as text.

use std::fmt::Write;
use std::time::Duration;

use crate::core::Standing;
use crate::quota::Quota;

/// The value of `RateLimit-Policy`: each quota's name, units and seconds.
///
/// A period that is not whole seconds is rounded up, at least 1. Figures above the largest integer
/// of a structured field (10¹⁵ - 1) are given as that.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use voussoir_limit::{Quota, policy_field};
///
/// let quotas = [
///     Quota::gcra(10, Duration::from_secs(1)).named("burst"),
///     Quota::fixed_window(1000, Duration::from_secs(86_400)).named("daily"),
/// ];
/// assert_eq!(policy_field(&quotas), r#""burst";q=10;w=1, "daily";q=1000;w=86400"#);
/// ```
pub fn policy_field(quotas: &[Quota]) -> String {
    let mut text = String::new();
    for quota in quotas {
        let comma = if text.is_empty() { "" } else { ", " };
        let (name, count) = (quota.name, quota.count.min(MAX_INTEGER));
        let window = whole_seconds(quota.per).max(1);
        // Writing to a string does not fail.
        let _ = write!(text, "{comma}\"{name}\";q={count};w={window}");
    }
    text
}

/// The value of `RateLimit`: what is left of the quota that the standing is about, and the seconds
/// until it is whole again.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use voussoir_limit::{Limiter, Quota, standing_field};
///
/// let quota = Quota::gcra(1, Duration::from_secs(1)).burst(5).named("burst");
/// let limiter = Limiter::new(quota)?;
/// let admitted = limiter.check_at(0, 2).expect("a fresh limiter has its burst");
/// assert_eq!(standing_field(&[quota], admitted.standing()), r#""burst";r=3;t=2"#);
/// # Ok::<(), voussoir_limit::ConfigError>(())
/// ```
pub fn standing_field(quotas: &[Quota], standing: &Standing) -> String {
    let name = quotas.get(standing.tier()).map_or("default", |quota| quota.name);
    let remaining = standing.remaining().min(MAX_INTEGER);
    format!("\"{name}\";r={remaining};t={}", whole_seconds(standing.reset_after()))
}

/// The largest integer of a structured field (RFC 9651, section 3.3.1).
const MAX_INTEGER: u64 = 999_999_999_999_999;

/// Whole seconds, rounded up, as header fields have them.
pub(crate) fn whole_seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0)).min(MAX_INTEGER)
}
