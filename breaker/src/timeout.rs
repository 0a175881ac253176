//! Time limits.

use std::time::Duration;

use crate::deadline::Deadline;
use crate::error::{ConfigError, TimeoutError};

/// A time limit for each call, cut short by the caller's deadline.
///
/// # Example
/// ```
/// use std::time::Duration;
/// use voussoir_breaker::{Timeout, TimeoutError};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let timeout = Timeout::new(Duration::from_millis(5)).expect("above zero");
/// let answer = timeout.call(std::future::pending::<Result<(), &str>>()).await;
/// assert_eq!(answer, Err(TimeoutError::TimedOut(Duration::from_millis(5))));
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Timeout {
    limit: Duration,
}

impl Timeout {
    /// A limit for each call.
    ///
    /// # Errors
    /// A limit of zero.
    pub fn new(limit: Duration) -> Result<Self, ConfigError> {
        if limit.is_zero() {
            return Err(ConfigError::new("timeout", "must be above 0"));
        }
        Ok(Self { limit })
    }

    /// The limit.
    pub const fn limit(&self) -> Duration {
        self.limit
    }

    /// Runs a future for no longer than the limit.
    ///
    /// # Errors
    /// No answer in time, or the future's own error.
    ///
    /// # Cancel safety
    /// Dropping it drops the future and nothing else.
    pub async fn call<T, E>(
        &self,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, TimeoutError<E>> {
        within(self.limit, future).await
    }

    /// Runs a future for no longer than the limit and not past the deadline. After the deadline
    /// it is not even begun.
    ///
    /// # Errors
    /// No answer in time, no time left, or the future's own error.
    ///
    /// # Cancel safety
    /// Dropping it drops the future and nothing else.
    pub async fn call_by<T, E>(
        &self,
        deadline: Deadline,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, TimeoutError<E>> {
        let left = deadline.remaining();
        if left.is_zero() {
            return Err(TimeoutError::DeadlinePassed);
        }
        if left < self.limit {
            let answer = tokio::time::timeout_at(deadline.instant(), future).await;
            return match answer {
                Ok(answer) => answer.map_err(TimeoutError::Inner),
                Err(_) => Err(TimeoutError::CutByDeadline(left)),
            };
        }
        within(self.limit, future).await
    }
}

async fn within<T, E>(
    limit: Duration,
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, TimeoutError<E>> {
    match tokio::time::timeout(limit, future).await {
        Ok(answer) => answer.map_err(TimeoutError::Inner),
        Err(_) => Err(TimeoutError::TimedOut(limit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_earlier_end_counts() {
        let timeout = Timeout::new(Duration::from_secs(1)).unwrap();
        let deadline = Deadline::after(Duration::from_millis(300));
        let hang = std::future::pending::<Result<(), ()>>();
        let answer = timeout.call_by(deadline, hang).await;
        assert_eq!(answer, Err(TimeoutError::CutByDeadline(Duration::from_millis(300))));
        assert!(deadline.has_passed());
        let later = Deadline::after(Duration::from_secs(2));
        let answer = timeout.call_by(later, std::future::pending::<Result<(), ()>>()).await;
        assert_eq!(answer, Err(TimeoutError::TimedOut(Duration::from_secs(1))));
        let answer = timeout.call_by(deadline, async { panic!("must not be begun") }).await;
        assert_eq!(answer, Err::<(), _>(TimeoutError::<()>::DeadlinePassed));
    }

    #[test]
    fn zero_is_refused() {
        assert!(Timeout::new(Duration::ZERO).is_err());
    }
}
