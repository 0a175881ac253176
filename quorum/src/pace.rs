//! The pace of what is transferred in the background.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Keeps what is transferred below a rate.
pub(crate) struct Pace {
    began: Instant,
    bytes_per_second: u64,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self { began: Instant::now(), bytes_per_second }
    }

    /// Waits until `bytes` may have been transferred since the beginning.
    pub(crate) async fn keep(&self, bytes: u64) {
        let seconds = bytes as f64 / self.bytes_per_second as f64;
        sleep_until(self.began + Duration::from_secs_f64(seconds)).await;
    }
}
