//! Where `now` comes from in the parts that do I/O. The decisions are given `now` by their callers.

use std::fmt;
use std::sync::OnceLock;
use std::time::Instant;

/// A monotonic clock.
///
/// Returns nanoseconds since an epoch of its own, which must not change while a balancer lives: the
/// clock of a proxy is the one that its balancers are given `now` from. Any closure that returns
/// nanoseconds is one, and the same closure serves every crate of this family.
pub trait Clock: Send + Sync {
    /// Nanoseconds since the clock's epoch.
    fn now(&self) -> u64;
}

impl fmt::Debug for dyn Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

impl<F: Fn() -> u64 + Send + Sync> Clock for F {
    fn now(&self) -> u64 {
        self()
    }
}

/// The clock of `std::time::Instant`: full resolution, about 25 ns a reading. The default.
///
/// Its epoch is 1 s before the first reading, and fixed for the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Monotonic;

impl Clock for Monotonic {
    fn now(&self) -> u64 {
        static EPOCH: OnceLock<Instant> = OnceLock::new();
        let now = Instant::now();
        let since = now.duration_since(*EPOCH.get_or_init(|| now));
        (since.as_secs() + 1) * 1_000_000_000 + u64::from(since.subsec_nanos())
    }
}
