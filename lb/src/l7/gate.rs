//! The seam for decisions before a backend is asked: rate limits, breakers, authentication.

use std::fmt;
use std::time::Duration;

use hyper::StatusCode;

use super::router::RequestFacts;
use super::upstream::Upstream;
use crate::endpoint::Outcome;

/// Decides whether a request of a [`Route`](super::Route) is sent to a backend.
///
/// Called once for each request that the route matches, not for each attempt, on the task of the
/// client's connection: it must not block. If it panics, the client's connection is closed.
pub trait Gate: fmt::Debug + Send + Sync {
    /// Admits or rejects a request that is to go to `upstream`, the route's target for it.
    ///
    /// # Errors
    /// The answer that the client gets instead of a backend's.
    fn admit(
        &self,
        facts: &RequestFacts<'_>,
        upstream: &Upstream,
    ) -> Result<GatePermit, GateRejected>;
}

/// A request that a [`Gate`] admitted. The proxy keeps it until the request has ended.
#[must_use = "the request counts as cancelled when the permit is dropped"]
pub struct GatePermit {
    end: Option<Box<dyn FnOnce(Outcome) + Send>>,
}

impl GatePermit {
    /// A permit that tells nobody how the request ended.
    pub fn new() -> Self {
        Self { end: None }
    }

    /// Calls `end` when the request has ended, with what it says about the backends: a failure is a
    /// response of 5xx other than 501, a gRPC status that blames the server, a response that broke
    /// off, or no response. A response that goes on for more than a second counts then, by its
    /// head. `end` is dropped without a call if the client gave up, if healthy endpoints could not
    /// be used, such as for their `max_in_flight`, and if this process had no descriptor or port
    /// for a connection.
    pub fn on_end(end: impl FnOnce(Outcome) + Send + 'static) -> Self {
        Self { end: Some(Box::new(end)) }
    }

    pub(super) fn finish(mut self, outcome: Outcome) {
        if let Some(end) = self.end.take() {
            end(outcome);
        }
    }
}

impl Default for GatePermit {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for GatePermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatePermit").field("reports", &self.end.is_some()).finish()
    }
}

/// The answer to a request that a [`Gate`] rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GateRejected {
    /// Its status. Below 400 it is sent as 500.
    pub status: StatusCode,
    /// The text of its body.
    pub reason: &'static str,
    /// The value of `Retry-After`, rounded up to whole seconds; `None` for no such header.
    pub retry_after: Option<Duration>,
}

impl GateRejected {
    /// A rejection without `Retry-After`.
    pub const fn new(status: StatusCode, reason: &'static str) -> Self {
        Self { status, reason, retry_after: None }
    }

    /// Sets `Retry-After`.
    pub const fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    pub(super) fn status(&self) -> StatusCode {
        if self.status.as_u16() < 400 { StatusCode::INTERNAL_SERVER_ERROR } else { self.status }
    }

    /// Whole seconds, rounded up, at least 1.
    pub(super) fn retry_after_secs(&self) -> Option<u64> {
        let after = self.retry_after?;
        Some(after.as_secs().saturating_add(u64::from(after.subsec_nanos() > 0)).max(1))
    }
}
