//! The breaker and the policy as `tower` layers.
//!
//! Both judge responses by a classifier, because a bad answer is often an `Ok`: an axum handler
//! never fails. [`BreakerLayer`] takes one of its own, [`PolicyLayer`] uses that of its policy.
//! With the feature `http` there is one for HTTP ([`HttpAnswers`]), and [`RejectionLayer`] turns
//! what a breaker or a policy refuses into an HTTP answer.
//!
//! Neither calls a service that has not said that it is ready. [`BreakerService`] moves the
//! instance that said so into the call and keeps a clone. [`PolicyService`] is always ready itself:
//! it clones the inner service for each attempt and waits until the clone is ready.

mod breaker;
#[cfg(feature = "http")]
mod http;
mod policy;

use std::pin::Pin;

pub use self::breaker::{BreakerLayer, BreakerService};
#[cfg(feature = "http")]
pub use self::http::{
    HttpAnswers, Rejection, RejectionAnswer, RejectionLayer, RejectionService, SafeRequests,
};
pub use self::policy::{Cloned, CopyRequest, Once, PolicyLayer, PolicyService};

type BoxFuture<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;
