//! The `RateLimit` header fields of the IETF (draft-ietf-httpapi-ratelimit-headers-10), as text.

use std::fmt::Write;
use std::time::Duration;

use crate::core::Standing;
use crate::quota::Quota;

/// The value of `RateLimit-Policy`: each quota's name, units and seconds.
///
/// A period that is not whole seconds is rounded up, at least 1.
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
        let (name, count, window) = (quota.name, quota.count, seconds(quota.per).max(1));
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
    format!("\"{name}\";r={};t={}", standing.remaining(), seconds(standing.reset_after()))
}

fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
