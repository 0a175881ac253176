//! A reqwest client behind a breaker, and one behind a whole policy.
//!
//! `cargo run -p voussoir-breaker --features http --example breaker-reqwest -- URL`, against the
//! server of the example `breaker-axum` for instance: `http://localhost:3000/catalogue`.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, Error, Request, Response, StatusCode};
use tower_layer::Layer;
use tower_service::Service;
use voussoir_breaker::tower::{BreakerLayer, CopyRequest, HttpAnswers, PolicyLayer};
use voussoir_breaker::{
    Breaker, BreakerConfig, BreakerError, Classify, Outcome, Policy, PolicyError, Retry,
    RetryAdvice, RetryBudget, RetryBudgetConfig, RetryConfig, Timeout, Verdict,
};

/// What answers mean: as in HTTP, and no answer is a failure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answers;

impl Classify<Response, Error> for Answers {
    fn verdict(&self, answer: &Result<Response, Error>) -> Verdict {
        answer.as_ref().map_or(Verdict::Failure, |r| HttpAnswers::verdict_of(r.status()))
    }

    /// Of what can be copied: see [`Safe`].
    fn is_idempotent(&self) -> bool {
        true
    }

    fn advice(&self, answer: &Result<Response, Error>) -> RetryAdvice {
        if self.verdict(answer) != Verdict::Failure {
            return RetryAdvice::Stop;
        }
        let wait = answer.as_ref().ok().and_then(|r| HttpAnswers::retry_after(r.headers()));
        wait.map_or(RetryAdvice::Retry, RetryAdvice::RetryAfter)
    }

    fn is_overload(&self, answer: &Result<Response, Error>) -> bool {
        answer.as_ref().is_ok_and(|r| r.status() == StatusCode::SERVICE_UNAVAILABLE)
    }

    fn outcome(&self, error: &Error) -> Outcome {
        if error.is_connect() { Outcome::NotApplied } else { Outcome::Unknown }
    }
}

/// Requests of safe methods may be sent again, others are sent once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Safe;

impl CopyRequest<Request> for Safe {
    fn copy(&self, request: &Request) -> Option<Request> {
        request.method().is_safe().then(|| request.try_clone()).flatten()
    }
}

pub(crate) type Answer<E> = Result<Response, E>;

/// A client behind a breaker alone.
pub(crate) async fn through_a_breaker(
    client: Client,
    breaker: Arc<Breaker>,
    request: Request,
) -> Answer<BreakerError<Error>> {
    let mut service = BreakerLayer::new(breaker).classify(Answers).layer(client);
    std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
    service.call(request).await
}

/// A client behind a policy.
pub(crate) async fn through_a_policy(
    client: Client,
    policy: Arc<Policy<Response, Error>>,
    request: Request,
) -> Answer<PolicyError<Error>> {
    let mut service = PolicyLayer::new(policy).copy_by(Safe).layer(client);
    std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
    service.call(request).await
}

pub(crate) fn policy(
    breaker: Arc<Breaker>,
) -> Result<Policy<Response, Error>, Box<dyn std::error::Error>> {
    let budget = RetryBudget::new(RetryBudgetConfig::default())?;
    let retry = Retry::new(RetryConfig::default())?.with_budget(budget);
    let policy = Policy::builder()
        .classify(Arc::new(Answers))
        .timeout(Timeout::new(Duration::from_secs(2))?)
        .retry(Arc::new(retry))
        .breaker(breaker)
        .timeout(Timeout::new(Duration::from_millis(500))?)
        .build()?;
    Ok(policy)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "http://localhost:3000/search".to_owned());
    let mut config = BreakerConfig::default();
    config.consecutive_failures = Some(5);
    let breaker = Arc::new(Breaker::new("server", &config)?);
    let policy = Arc::new(policy(Arc::clone(&breaker))?);
    let client = Client::new();
    let request = client.get(&url).build()?;
    let answer = through_a_breaker(client.clone(), Arc::clone(&breaker), request).await;
    println!("by the breaker alone: {:?}", answer.map(|response| response.status()));
    println!("{policy}");
    for _ in 0..10 {
        let request = client.get(&url).build()?;
        match through_a_policy(client.clone(), Arc::clone(&policy), request).await {
            Ok(response) => println!("{}; breaker {}", response.status(), breaker.state()),
            Err(error) => println!("{error}; breaker {}", breaker.state()),
        }
    }
    Ok(())
}
