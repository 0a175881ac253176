//! A breaker, by itself and inside a policy, against a dependency that dies and comes back.
//!
//! `cargo run --example breaker-minimal`

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use voussoir_breaker::{
    Breaker, BreakerConfig, Idempotent, Policy, PolicyErrorKind, Retry, RetryBudget,
    RetryBudgetConfig, RetryConfig, Timeout,
};

static IS_UP: AtomicBool = AtomicBool::new(true);

async fn ask() -> std::io::Result<&'static str> {
    tokio::time::sleep(Duration::from_millis(1)).await;
    if IS_UP.load(Ordering::Relaxed) {
        Ok("fresh")
    } else {
        Err(ErrorKind::ConnectionRefused.into())
    }
}

fn show<E: std::fmt::Display>(answer: Result<&str, E>, breaker: &Breaker) {
    match answer {
        Ok(value) => println!("{value}; breaker {}", breaker.state()),
        Err(error) => println!("{error}; breaker {}", breaker.state()),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = BreakerConfig::default();
    config.consecutive_failures = Some(3);
    config.open_for = Duration::from_millis(200);
    config.probes = 2;
    config.max_bad_probes = 0;
    let breaker = Arc::new(Breaker::new("catalogue", &config)?);

    // By itself.
    show(breaker.call(ask()).await, &breaker);

    // Inside a policy, listed from the outside in.
    let budget = RetryBudget::new(RetryBudgetConfig::default())?;
    let policy = Policy::builder()
        .classify(Arc::new(Idempotent))
        .fallback(|error| async move {
            match error {
                PolicyErrorKind::Rejected(_) => Ok("from the cache"),
                other => Err(other),
            }
        })
        .timeout(Timeout::new(Duration::from_secs(1))?)
        .retry(Arc::new(Retry::new(RetryConfig::default())?.with_budget(Arc::clone(&budget))))
        .breaker(Arc::clone(&breaker))
        .timeout(Timeout::new(Duration::from_millis(100))?)
        .build()?;
    println!("{policy}");

    IS_UP.store(false, Ordering::Relaxed);
    for _ in 0..4 {
        show(policy.call(|_attempt| ask()).await, &breaker);
    }
    IS_UP.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..3 {
        show(policy.call(|_attempt| ask()).await, &breaker);
    }
    println!("{:?}", breaker.stats());
    println!("{:?}", budget.stats());
    Ok(())
}
