//! An axum route with ten requests a minute for each client, five of them at once.
//!
//! ```text
//! cargo run -p voussoir-limit --features axum --example limit-axum
//! curl -i http://127.0.0.1:3000/      # five times: 200, and how many are left
//! curl -i http://127.0.0.1:3000/      # then: 429, and after how many seconds to come back
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use voussoir_limit::tower::{ConnectedAddress, HttpLimitLayer};
use voussoir_limit::{Keyed, Quota};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let quota = Quota::gcra(10, Duration::from_secs(60)).burst(5).named("per-client");
    let limiter = Arc::new(Keyed::new(quota)?);

    // Behind proxies of your own: `ForwardedFor { trusted_hops: 1 }` in place of
    // `ConnectedAddress`.
    let limit = HttpLimitLayer::new(limiter, ConnectedAddress);
    let app = Router::new().route("/", get(async || "hello\n")).layer(limit);

    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let listener = tokio::net::TcpListener::bind(&address).await?;
    println!("curl -i http://{}/", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
