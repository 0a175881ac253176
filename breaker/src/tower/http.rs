//! HTTP: what answers mean, which requests may be repeated, and rejections as answers.

use std::mem;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONTENT_LENGTH, DATE, HeaderName, HeaderValue, RETRY_AFTER, TRANSFER_ENCODING};
use http::{HeaderMap, Request, Response, StatusCode};
use tower_layer::Layer;
use tower_service::Service;

use super::BoxFuture;
use super::policy::CopyRequest;
use crate::breaker::Verdict;
use crate::error::BreakerError;
use crate::policy::{Classify, PolicyError, PolicyErrorKind};
use crate::retry::{RetryAdvice, retry_after_secs};

/// Classifier of HTTP responses: 5xx and 429 are failures, but not 501; all others are successes,
/// for whoever answers 404 works. Not counted are 407, a proxy's own answer, and 408, for a request
/// that did not arrive. 429 and 503 are overload.
///
/// For a policy, every failure is retried, not before its `Retry-After`: repeat only what may be
/// repeated, as [`SafeRequests`] does.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpAnswers;

impl HttpAnswers {
    /// The verdict for a status, for clients whose responses are not `http::Response`.
    pub fn verdict_of(status: StatusCode) -> Verdict {
        match status {
            StatusCode::PROXY_AUTHENTICATION_REQUIRED | StatusCode::REQUEST_TIMEOUT => {
                Verdict::Ignored
            }
            // It works, and does not do this: a next attempt would hear the same.
            StatusCode::NOT_IMPLEMENTED => Verdict::Success,
            StatusCode::TOO_MANY_REQUESTS => Verdict::Failure,
            status if status.is_server_error() => Verdict::Failure,
            _ => Verdict::Success,
        }
    }

    /// How long an answer asks to wait: `Retry-After` in seconds, or as a date, counted from the
    /// answer's own `Date`, so that the clocks of the two machines need not agree. `None` without
    /// it, and for a date without a `Date`.
    ///
    /// Source: RFC 9110 §10.2.3.
    pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let asked = text(RETRY_AFTER)?;
        retry_after_secs(asked).or_else(|| {
            let until = httpdate::parse_http_date(asked.trim()).ok()?;
            let now = httpdate::parse_http_date(text(DATE)?.trim()).ok()?;
            Some(until.duration_since(now).unwrap_or_default())
        })
    }
}

impl<B, E> Classify<Response<B>, E> for HttpAnswers {
    fn verdict(&self, answer: &Result<Response<B>, E>) -> Verdict {
        answer.as_ref().map_or(Verdict::Failure, |response| Self::verdict_of(response.status()))
    }

    fn is_idempotent(&self) -> bool {
        true
    }

    fn advice(&self, answer: &Result<Response<B>, E>) -> RetryAdvice {
        if self.verdict(answer) != Verdict::Failure {
            return RetryAdvice::Stop;
        }
        let wait = answer.as_ref().ok().and_then(|answer| Self::retry_after(answer.headers()));
        wait.map_or(RetryAdvice::Retry, RetryAdvice::RetryAfter)
    }

    fn is_overload(&self, answer: &Result<Response<B>, E>) -> bool {
        let overload = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        answer.as_ref().is_ok_and(|response| overload.contains(&response.status()))
    }
}

/// Copies requests of safe methods (`GET`, `HEAD`, `OPTIONS`, `TRACE`) without a body; all others
/// are sent once.
///
/// Source: RFC 9110 §9.2.1.
#[derive(Clone, Copy, Debug, Default)]
pub struct SafeRequests;

impl<B: Default + http_body::Body> CopyRequest<Request<B>> for SafeRequests {
    fn copy(&self, request: &Request<B>) -> Option<Request<B>> {
        let headers = request.headers();
        let is_empty = headers.get(CONTENT_LENGTH).is_none_or(|length| length == "0");
        let is_announced = !is_empty || headers.contains_key(TRANSFER_ENCODING);
        // The headers alone do not tell: in HTTP/2 a body needs no length.
        let has_body = is_announced || !request.body().is_end_stream();
        if !request.method().is_safe() || has_body {
            return None;
        }
        let mut copy = Request::new(B::default());
        copy.method_mut().clone_from(request.method());
        copy.uri_mut().clone_from(request.uri());
        *copy.version_mut() = request.version();
        copy.headers_mut().clone_from(headers);
        copy.extensions_mut().clone_from(request.extensions());
        Some(copy)
    }
}

/// A rejection as an HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RejectionAnswer {
    /// 503 for a call that was not admitted, 504 for one that the policy's time limit or the
    /// deadline has ended.
    pub status: StatusCode,
    /// Whole seconds for a `Retry-After` header, where they are known.
    pub retry_after: Option<u64>,
    /// A line for people.
    pub text: String,
}

/// An error that is either a rejection by a breaker or policy, or the inner service's own.
pub trait Rejection {
    /// The inner service's error.
    type Inner;

    /// The rejection as an answer.
    ///
    /// # Errors
    /// The inner service's own error.
    fn into_answer(self) -> Result<RejectionAnswer, Self::Inner>;
}

impl<E> Rejection for BreakerError<E> {
    type Inner = E;

    fn into_answer(self) -> Result<RejectionAnswer, E> {
        match self {
            Self::Rejected(rejected) => Ok(RejectionAnswer {
                status: StatusCode::SERVICE_UNAVAILABLE,
                retry_after: rejected.retry_after_header(),
                text: rejected.to_string(),
            }),
            Self::Inner(error) => Err(error),
        }
    }
}

impl<E> Rejection for PolicyError<E> {
    type Inner = E;

    fn into_answer(self) -> Result<RejectionAnswer, E> {
        let answer = |status, retry_after, text| Ok(RejectionAnswer { status, retry_after, text });
        match self.kind {
            PolicyErrorKind::Rejected(rejected) => {
                let retry_after = rejected.retry_after_header();
                answer(StatusCode::SERVICE_UNAVAILABLE, retry_after, rejected.to_string())
            }
            PolicyErrorKind::Gate(error) => {
                answer(StatusCode::SERVICE_UNAVAILABLE, None, error.to_string())
            }
            PolicyErrorKind::TimedOut(limit) => {
                answer(StatusCode::GATEWAY_TIMEOUT, None, format!("no answer within {limit:?}"))
            }
            PolicyErrorKind::CutByDeadline(_) | PolicyErrorKind::DeadlinePassed => {
                answer(StatusCode::GATEWAY_TIMEOUT, None, "the deadline has passed".to_owned())
            }
            PolicyErrorKind::Inner(error) => Err(error),
        }
    }
}

/// Turns rejections into HTTP answers, so that the only errors left are those of the inner service:
/// an axum route, which is infallible, stays so. Put it outside of a
/// [`BreakerLayer`](super::BreakerLayer) or a [`PolicyLayer`](super::PolicyLayer).
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use voussoir_breaker::tower::{BreakerLayer, HttpAnswers, RejectionLayer};
/// use voussoir_breaker::{Breaker, BreakerConfig};
///
/// let breaker = Arc::new(Breaker::new("catalogue", &BreakerConfig::default())?);
/// // Of two layers in a tuple the first is the outer one: `router.layer(guarded)`.
/// let guarded = (RejectionLayer, BreakerLayer::new(breaker).classify(HttpAnswers));
/// # let _ = guarded;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct RejectionLayer;

impl<S> Layer<S> for RejectionLayer {
    type Service = RejectionService<S>;

    fn layer(&self, inner: S) -> RejectionService<S> {
        RejectionService { inner }
    }
}

/// A service whose rejections are answers. See [`RejectionLayer`].
#[derive(Clone, Debug)]
pub struct RejectionService<S> {
    inner: S,
}

impl<R, S, B> Service<R> for RejectionService<S>
where
    S: Service<R, Response = Response<B>> + Clone,
    S::Error: Rejection,
    S::Future: Send + 'static,
    B: From<String> + Send + 'static,
{
    type Response = Response<B>;
    type Error = <S::Error as Rejection>::Inner;
    type Future = BoxFuture<Response<B>, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // A rejection is reported as ready: breaker and policy allow the call that follows, and
        // reject it the same way unless they have become ready.
        match self.inner.poll_ready(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(error.into_answer().map(drop)),
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }

    fn call(&mut self, request: R) -> Self::Future {
        let fresh = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, fresh);
        let call = inner.call(request);
        Box::pin(async move {
            match call.await {
                Ok(response) => Ok(response),
                Err(error) => error.into_answer().map(response),
            }
        })
    }
}

fn response<B: From<String>>(answer: RejectionAnswer) -> Response<B> {
    let RejectionAnswer { status, retry_after, text } = answer;
    let mut response = Response::new(B::from(text + "\n"));
    *response.status_mut() = status;
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
