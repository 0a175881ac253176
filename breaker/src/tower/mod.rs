//! The breaker and the policy as `tower` layers.
//!
//! Both take a classifier of responses, for in a service a bad answer is often an `Ok`: an axum
//! handler never fails. With the feature `http` there is one for HTTP ([`HttpAnswers`]), and
//! [`RejectionLayer`] turns what a breaker or a policy refuses into an HTTP answer.
//!
//! Both drive the very instance of the inner service that said it was ready, as the contract of
//! `tower_service::Service` demands: a clone need not be ready.

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
