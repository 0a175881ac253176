//! The delay before another attempt. `run` decides whether there is one.

use crate::config::{Retry, nanos};

/// The delay before the attempt that follows `failed` failed ones, in ns. `failed` is at least 1.
/// At least 1: who fails at once, again and again, waits for its time each time, and lets others
/// run.
pub(crate) fn delay(retry: &Retry, failed: u32, random: &mut fastrand::Rng) -> u64 {
    let doubled = nanos(retry.base).saturating_mul(1 << failed.saturating_sub(1).min(62));
    let full = doubled.min(nanos(retry.max_delay));
    let off = (full as f64 * retry.jitter * random.f64()) as u64;
    (full - off.min(full)).max(1)
}
