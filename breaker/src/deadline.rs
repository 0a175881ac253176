//! Deadlines: the moment after which no caller waits for the answer.

use std::time::Duration;

use tokio::time::Instant;

/// Digits of a `grpc-timeout` value, at most.
const MAX_GRPC_DIGITS: usize = 8;
const MAX_GRPC_VALUE: u128 = 99_999_999;

/// An absolute deadline within this process.
///
/// A deadline is passed from call to call, and between processes as the remaining time in the
/// format of gRPC's `grpc-timeout` header, because the clocks of two machines differ.
///
/// # Example
/// ```
/// use std::time::Duration;
/// use voussoir_breaker::Deadline;
///
/// let deadline = Deadline::after(Duration::from_millis(250));
/// let header = deadline.to_grpc_timeout();
/// let at_the_server = Deadline::from_grpc_timeout(&header).expect("our own format");
/// assert!(at_the_server.remaining() <= Duration::from_millis(250));
/// ```
///
/// Source: "gRPC over HTTP/2", `Timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline this far from now. More than some decades count as that.
    pub fn after(time: Duration) -> Self {
        let now = Instant::now();
        let decades = Duration::from_secs(60 * 60 * 24 * 365 * 30);
        Self(now + time.min(decades))
    }

    /// The deadline at a moment of tokio's clock.
    pub const fn at(moment: Instant) -> Self {
        Self(moment)
    }

    /// The moment on tokio's clock.
    pub const fn instant(self) -> Instant {
        self.0
    }

    /// The remaining time; zero once the deadline has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether it has passed.
    pub fn has_passed(self) -> bool {
        self.remaining().is_zero()
    }

    /// The earlier of this one and the one `time` from now.
    pub fn at_most(self, time: Duration) -> Self {
        self.min(Self::after(time))
    }

    /// The remaining time as the value of a `grpc-timeout` header: at most eight digits and a unit,
    /// rounded down to the finest unit that holds it.
    pub fn to_grpc_timeout(self) -> String {
        let left = self.remaining();
        let units: [(u128, char); 4] = [
            (left.as_nanos(), 'n'),
            (left.as_micros(), 'u'),
            (left.as_millis(), 'm'),
            (u128::from(left.as_secs()), 'S'),
        ];
        let fitting = units.into_iter().find(|(value, _)| *value <= MAX_GRPC_VALUE);
        let (value, unit) = fitting.unwrap_or((MAX_GRPC_VALUE, 'S'));
        format!("{value}{unit}")
    }

    /// Reads a `grpc-timeout` header: 1 to 8 digits and one of `H`, `M`, `S`, `m`, `u`, `n`.
    /// Anything else is `None`.
    pub fn from_grpc_timeout(header: &str) -> Option<Self> {
        let unit = header.chars().next_back().filter(char::is_ascii)?;
        let digits = header.get(..header.len() - 1)?;
        let is_number = digits.bytes().all(|digit| digit.is_ascii_digit());
        if digits.is_empty() || digits.len() > MAX_GRPC_DIGITS || !is_number {
            return None;
        }
        let value: u64 = digits.parse().ok()?;
        let time = match unit {
            'H' => Duration::from_secs(value * 3_600),
            'M' => Duration::from_secs(value * 60),
            'S' => Duration::from_secs(value),
            'm' => Duration::from_millis(value),
            'u' => Duration::from_micros(value),
            'n' => Duration::from_nanos(value),
            _ => return None,
        };
        Some(Self::after(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn headers_go_both_ways() {
        for (millis, header) in
            [(0, "0n"), (7, "7000000n"), (1_500, "1500000u"), (86_400_000, "86400000m")]
        {
            let deadline = Deadline::after(Duration::from_millis(millis));
            assert_eq!(deadline.to_grpc_timeout(), header);
            assert_eq!(Deadline::from_grpc_timeout(header), Some(deadline));
        }
        assert_eq!(Deadline::from_grpc_timeout("2H").unwrap().remaining().as_secs(), 7_200);
        assert_eq!(Deadline::from_grpc_timeout("3M").unwrap().remaining().as_secs(), 180);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_header_is_refused() {
        for header in ["", "S", "12", "-1S", "+1S", "1 S", "123456789S", "1x", "1é", "é", "1.5S"]
        {
            assert_eq!(Deadline::from_grpc_timeout(header), None, "{header:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_passes() {
        let deadline = Deadline::after(Duration::from_millis(10));
        assert!(!deadline.has_passed());
        tokio::time::advance(Duration::from_millis(10)).await;
        assert!(deadline.has_passed());
        assert_eq!(deadline.at_most(Duration::from_secs(1)), deadline);
        assert!(!Deadline::after(Duration::MAX).has_passed());
    }
}
