//! The layer on an axum route, over a real connection: what `curl -i` shows.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use voussoir_limit::tower::*;
use voussoir_limit::*;

async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// Status line, headers and body of an answer to `GET /`, as they came.
async fn curl(address: SocketAddr, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn quota() -> Quota {
    Quota::gcra(1, Duration::from_secs(600)).burst(2).named("per-client")
}

#[tokio::test]
async fn each_answer_tells_where_the_quota_stands_and_a_spent_one_when_to_come_back() {
    let limiter = Arc::new(Keyed::new(quota()).unwrap());
    let limit = HttpLimitLayer::new(Arc::clone(&limiter), ConnectedAddress);
    let handler = get(async |Extension(standing): Extension<Standing>| {
        format!("{} left", standing.remaining())
    });
    let address = serve(Router::new().route("/", handler).layer(limit)).await;
    let policy = "\r\nratelimit-policy: \"per-client\";q=1;w=600\r\n";
    for left in [1, 0] {
        let answer = curl(address, "").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains(policy), "{answer}");
        assert!(answer.contains(&format!("\r\nratelimit: \"per-client\";r={left};t=")), "{answer}");
        assert!(answer.ends_with(&format!("\r\n\r\n{left} left")), "{answer}");
    }
    let answer = curl(address, "").await;
    assert!(answer.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{answer}");
    assert!(answer.contains(policy), "{answer}");
    assert!(answer.contains("\r\nratelimit: \"per-client\";r=0;t=1200\r\n"), "{answer}");
    assert!(answer.contains("\r\nretry-after: 600\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "the body is empty: {answer}");
    // The fields follow a change of the quotas.
    limiter.set_quotas(&[quota().burst(5).named("new")]).unwrap();
    let answer = curl(address, "").await;
    assert!(answer.contains("\r\nratelimit: \"new\";r=2;t="), "{answer}");
}

#[tokio::test]
async fn a_request_without_a_key_gets_the_status_chosen() {
    let key = Header(http::HeaderName::from_static("x-api-key"));
    let limiter = Arc::new(Keyed::new(quota()).unwrap());
    let limit = HttpLimitLayer::new(limiter, key).without_key(StatusCode::UNAUTHORIZED);
    let address = serve(Router::new().route("/", get(async || "hello")).layer(limit)).await;
    assert!(curl(address, "").await.starts_with("HTTP/1.1 401 "));
    assert!(curl(address, "x-api-key: a\r\n").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn layers_on_one_route_add_their_fields() {
    let limit = |name| {
        let limiter = Arc::new(Keyed::new(quota().named(name)).unwrap());
        HttpLimitLayer::new(limiter, ForwardedFor { trusted_hops: 1 })
    };
    let route = Router::new().route("/", get(async || "hello"));
    let address = serve(route.layer(limit("inner")).layer(limit("outer"))).await;
    let answer = curl(address, "x-forwarded-for: 9.9.9.9, [2001:db8::1]\r\n").await;
    for name in ["inner", "outer"] {
        assert!(answer.contains(&format!("\r\nratelimit: \"{name}\";r=1;t=600\r\n")), "{answer}");
    }
}
