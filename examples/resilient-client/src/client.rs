//! The part to copy: one HTTP call, the classification of its answers, and the policy around it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, Uri};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use voussoir_breaker::tower::HttpAnswers;
use voussoir_breaker::{
    AdaptiveLimit, Attempt, Breaker, BreakerConfig, Classify, ConfigError, Gradient2,
    Gradient2Config, Hedge, HedgeConfig, Outcome, Policy, PolicyError, QueueConfig, Retry,
    RetryAdvice, RetryBudget, RetryBudgetConfig, RetryConfig, ShedConfig, Shedder, Timeout,
    Verdict,
};

/// The longest body that is read.
const MAX_BODY: usize = 1 << 20;

/// An answer, from the server or from the fallback.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
    /// The answer comes from the fallback and may be out of date.
    pub(crate) is_stale: bool,
}

/// A failed call: no answer, or an answer with an error status.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("no connection")]
    Connect(#[source] hyper_util::client::legacy::Error),
    #[error("connection lost")]
    Exchange(#[source] hyper_util::client::legacy::Error),
    #[error("body lost or too long")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("answered {status}")]
    Status { status: StatusCode, retry_after: Option<Duration> },
}

/// Classifies HTTP answers for the policies.
struct Answers;

impl Classify<Reply, HttpError> for Answers {
    fn verdict(&self, answer: &Result<Reply, HttpError>) -> Verdict {
        answer.as_ref().map_or(Verdict::Failure, |reply| HttpAnswers::verdict_of(reply.status))
    }

    /// Every call here is a GET, so it may be repeated.
    fn is_idempotent(&self) -> bool {
        true
    }

    fn advice(&self, answer: &Result<Reply, HttpError>) -> RetryAdvice {
        match answer {
            Err(HttpError::Status { retry_after: Some(time), .. }) => {
                RetryAdvice::RetryAfter(*time)
            }
            Err(_) => RetryAdvice::Retry,
            Ok(_) => RetryAdvice::Stop,
        }
    }

    fn outcome(&self, error: &HttpError) -> Outcome {
        match error {
            HttpError::Connect(_) => Outcome::NotApplied,
            _ => Outcome::Unknown,
        }
    }

    fn is_overload(&self, answer: &Result<Reply, HttpError>) -> bool {
        matches!(answer, Err(HttpError::Status { status, .. })
            if [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS].contains(status))
    }
}

/// A client of one server.
pub(crate) struct Client {
    http: Http<HttpConnector, Empty<Bytes>>,
    uri: Uri,
    policy: Policy<Reply, HttpError>,
    pub(crate) breaker: Arc<Breaker>,
    pub(crate) limit: AdaptiveLimit,
    pub(crate) budget: Arc<RetryBudget>,
    pub(crate) hedge: Arc<Hedge>,
}

impl Client {
    pub(crate) fn new(uri: Uri) -> Result<Self, ConfigError> {
        let mut opening = BreakerConfig::default();
        opening.window =
            voussoir_breaker::Window::Time { span: Duration::from_secs(3), buckets: 10 };
        opening.slow_rate = Some(0.9);
        opening.slow_after = Duration::from_millis(250);
        opening.open_for = Duration::from_millis(500);
        opening.max_open_for = Duration::from_secs(4);
        let breaker = Arc::new(Breaker::new("server", &opening)?);

        let budget = RetryBudget::new(RetryBudgetConfig::default())?;
        let retry = Retry::new(RetryConfig::default())?.with_budget(Arc::clone(&budget));
        let mut hedging = HedgeConfig::default();
        hedging.window = Duration::from_secs(10);
        let hedge = Arc::new(Hedge::new(hedging)?.with_budget(Arc::clone(&budget)));

        let algorithm = Box::new(Gradient2::new(Gradient2Config::default()));
        let mut queue = QueueConfig::default();
        queue.max_len = 64;
        let limit = AdaptiveLimit::new(algorithm, queue)?;
        let shedder = Shedder::new(Arc::new(limit.clone()), ShedConfig::default())?;

        let policy = Policy::builder()
            .classify(Arc::new(Answers))
            .fallback(|_error| async { Ok(Reply::stale()) })
            .timeout(Timeout::new(Duration::from_secs(1))?)
            .shed(Arc::new(shedder))
            .retry(Arc::new(retry))
            .hedge(Arc::clone(&hedge))
            .breaker(Arc::clone(&breaker))
            .adaptive(limit.clone())
            .timeout(Timeout::new(Duration::from_millis(400))?)
            .build()?;
        let http = Http::builder(TokioExecutor::new()).build_http();
        Ok(Self { http, uri, policy, breaker, limit, budget, hedge })
    }

    /// The stages of the policy, from the outside in.
    pub(crate) fn describe(&self) -> String {
        self.policy.to_string()
    }

    pub(crate) async fn get(&self) -> Result<Reply, PolicyError<HttpError>> {
        self.policy.call(|attempt| self.exchange(attempt)).await
    }

    /// Sends one attempt. The deadline goes along in `grpc-timeout`, so that the server can stop
    /// working when nobody waits any more.
    async fn exchange(&self, attempt: Attempt) -> Result<Reply, HttpError> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.uri.clone();
        if let Some(deadline) = attempt.deadline
            && let Ok(left) = deadline.to_grpc_timeout().parse()
        {
            request.headers_mut().insert("grpc-timeout", left);
        }
        let response = self.http.request(request).await.map_err(|error| {
            if error.is_connect() { HttpError::Connect(error) } else { HttpError::Exchange(error) }
        })?;
        let retry_after = HttpAnswers::retry_after(response.headers());
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        let body = body.map_err(HttpError::Body)?.to_bytes();
        if HttpAnswers::verdict_of(status) == Verdict::Failure {
            return Err(HttpError::Status { status, retry_after });
        }
        Ok(Reply { status, body, is_stale: false })
    }
}

impl Reply {
    /// The answer that a cache would hold.
    fn stale() -> Self {
        let body = Bytes::from_static(b"yesterday's news");
        Self { status: StatusCode::OK, body, is_stale: true }
    }
}
