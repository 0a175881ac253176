//! A reqwest client that keeps to a rate for each host, by waiting and by being refused, against a
//! server of its own that counts too. Beside reqwest it needs the crate `tower` (its `util`).
//!
//! ```text
//! cargo run -p voussoir-limit --features axum --example limit-reqwest
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use tower::{Layer, Service, ServiceExt};
use voussoir_limit::tower::{ConnectedAddress, HttpLimitLayer, LimitError, LimitLayer};
use voussoir_limit::{Keyed, Quota};

/// The server admits 20 a second, 5 of them at once.
async fn serve() -> std::io::Result<SocketAddr> {
    let quota = Quota::gcra(20, Duration::from_secs(1)).burst(5);
    let limiter = Arc::new(Keyed::new(quota).expect("the quota is valid"));
    let limit = HttpLimitLayer::new(limiter, ConnectedAddress);
    let app = Router::new().route("/", get(async || "hello")).layer(limit);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url: reqwest::Url = format!("http://{}/", serve().await?).parse()?;
    let host = url.host_str().unwrap_or_default().to_owned();
    let client = reqwest::Client::new();
    let start = Instant::now();
    let now = || start.elapsed().as_millis();

    // Without a limit of its own the client runs into that of the server, which says when to come
    // back.
    for call in 1..=7 {
        let response = client.get(url.clone()).send().await?;
        let field = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let (standing, retry) = (field("ratelimit"), field("retry-after"));
        println!("{:4} ms: call {call}: {} {standing:?} {retry:?}", now(), response.status());
    }
    tokio::time::sleep(Duration::from_secs(1)).await;

    // One that waits for its turn is never refused.
    let own = Arc::new(Keyed::<String>::new(Quota::gcra(15, Duration::from_secs(1)).burst(2))?);
    for call in 1..=10 {
        own.until_ready(host.as_str()).await?;
        let status = client.get(url.clone()).send().await?.status();
        println!("{:4} ms: waited for, call {call}: {status}", now());
    }

    // As a tower service a request beyond the limit is refused before it is sent.
    let by_host = |request: &reqwest::Request| request.url().host_str().map(ToOwned::to_owned);
    let mut limited = LimitLayer::new(own, by_host).layer(client);
    for call in 1..=3 {
        let request = reqwest::Request::new(reqwest::Method::GET, url.clone());
        match limited.ready().await?.call(request).await {
            Ok(response) => println!("{:4} ms: sent, call {call}: {}", now(), response.status()),
            Err(LimitError::Rejected(rejected)) => println!("{:4} ms: not sent: {rejected}", now()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
