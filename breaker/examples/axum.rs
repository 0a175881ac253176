//! An axum server with one route behind a breaker and another behind a whole policy.
//!
//! `cargo run -p voussoir-breaker --features http --example breaker-axum`, then
//! `curl -i localhost:3000/break`, and `curl -i localhost:3000/catalogue` some six times.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use voussoir_breaker::tower::{
    BreakerLayer, HttpAnswers, PolicyLayer, RejectionLayer, SafeRequests,
};
use voussoir_breaker::{
    Breaker, BreakerConfig, Bulkhead, ConfigError, Policy, QueueConfig, Retry, RetryBudget,
    RetryBudgetConfig, RetryConfig, Timeout,
};

type IsDown = Arc<AtomicBool>;

/// What the routes depend on.
async fn catalogue(State(is_down): State<IsDown>) -> (StatusCode, &'static str) {
    if is_down.load(Relaxed) {
        (StatusCode::INTERNAL_SERVER_ERROR, "the catalogue is down\n")
    } else {
        (StatusCode::OK, "42 books\n")
    }
}

fn breaker(name: &str) -> Result<Arc<Breaker>, ConfigError> {
    let mut config = BreakerConfig::default();
    config.consecutive_failures = Some(5);
    Ok(Arc::new(Breaker::new(name, &config)?))
}

pub(crate) fn app() -> Result<Router, ConfigError> {
    let is_down = IsDown::default();

    // A handler never fails, so the classifier says which answers are failures; and a route never
    // fails, so the outer layer turns rejections into answers.
    let guarded = (RejectionLayer, BreakerLayer::new(breaker("catalogue")?).classify(HttpAnswers));

    // A request of axum cannot be cloned: safe ones are copied without a body, others sent once.
    let budget = RetryBudget::new(RetryBudgetConfig::default())?;
    let policy = Policy::builder()
        .classify(Arc::new(HttpAnswers))
        .timeout(Timeout::new(Duration::from_secs(2))?)
        .retry(Arc::new(Retry::new(RetryConfig::default())?.with_budget(budget)))
        .breaker(breaker("search")?)
        .bulkhead(Bulkhead::new(64, QueueConfig::default())?)
        .build()?;
    let policed = (RejectionLayer, PolicyLayer::new(Arc::new(policy)).copy_by(SafeRequests));

    let set =
        |to: bool| move |State(is_down): State<IsDown>| async move { is_down.store(to, Relaxed) };
    Ok(Router::new()
        .route("/catalogue", get(catalogue).layer(guarded))
        .route("/search", get(catalogue).post(catalogue).layer(policed))
        .route("/break", get(set(true)))
        .route("/mend", get(set(false)))
        .with_state(is_down))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let listener = tokio::net::TcpListener::bind(&address).await?;
    println!("http://{}: /catalogue /search /break /mend", listener.local_addr()?);
    axum::serve(listener, app()?).await?;
    Ok(())
}
