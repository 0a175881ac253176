//! Gates of routes: what they reject, and what they are told about the end of a request.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use voussoir_lb::l7::{
    Gate, GatePermit, GateRejected, HttpConfig, PathMatch, RequestFacts, Route, Router, Upstream,
    UpstreamConfig,
};
use voussoir_lb::strategy::RoundRobin;
use voussoir_lb::{Balancer, Config, EndpointConfig, Outcome};

use crate::support::*;

/// Rejects paths below `/closed`, and sends the outcome of every other request.
#[derive(Debug)]
struct Recorder {
    ends: mpsc::UnboundedSender<Option<Outcome>>,
    clients: Mutex<Vec<String>>,
}

/// Sends `None` if it is dropped before the request has ended.
struct End(mpsc::UnboundedSender<Option<Outcome>>, bool);

impl Drop for End {
    fn drop(&mut self) {
        if !self.1 {
            let _ = self.0.send(None);
        }
    }
}

impl Gate for Recorder {
    fn admit(
        &self,
        facts: &RequestFacts<'_>,
        upstream: &Upstream,
    ) -> Result<GatePermit, GateRejected> {
        assert_eq!(upstream.name(), "test");
        self.clients.lock().extend(facts.client.map(|client| client.to_string()));
        if facts.path.starts_with("/closed") {
            let rejected = GateRejected::new(StatusCode::TOO_MANY_REQUESTS, "too many");
            return Err(rejected.with_retry_after(Duration::from_millis(1_001)));
        }
        let mut end = End(self.ends.clone(), false);
        Ok(GatePermit::on_end(move |outcome| {
            end.1 = true;
            let _ = end.0.send(Some(outcome));
        }))
    }
}

fn recorder() -> (Arc<Recorder>, mpsc::UnboundedReceiver<Option<Outcome>>) {
    let (ends, received) = mpsc::unbounded_channel();
    (Arc::new(Recorder { ends, clients: Mutex::default() }), received)
}

#[tokio::test]
async fn a_rejected_request_reaches_no_backend_and_leaves_the_connection_usable() {
    let (gate, mut ends) = recorder();
    let up = upstream(&[echo().await], UpstreamConfig::default());
    let free = Route::new("free", up.clone()).with_path(PathMatch::Exact("/closed/free".into()));
    let gated = Route::new("gated", up.clone()).with_gate(gate.clone());
    let router = Router::new(vec![free, gated]).unwrap();
    let (address, proxy) = proxy_with(router, HttpConfig::default()).await;
    let mut client = Conn::connect(address).await;
    let closed = client.ask("GET /closed HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!((closed.status(), closed.header("retry-after")), (429, Some("2")));
    assert!(closed.text().contains("too many"), "{}", closed.text());
    assert_eq!(up.stats().connects, 0, "the backend was not asked");
    assert_eq!(proxy.stats().rejected, 1);
    assert_eq!(client.ask(GET).await.status(), 200);
    assert_eq!(soon(ends.recv()).await, Some(Some(Outcome::Success)));
    let free = client.ask("GET /closed/free HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(free.status(), 200, "another route has no gate");
    assert_eq!(*gate.clients.lock(), ["127.0.0.1", "127.0.0.1"]);
}

#[tokio::test]
async fn a_gate_learns_how_each_request_ended() {
    let (gate, mut ends) = recorder();
    let to = backend(|mut conn, _| async move {
        while let Some(message) = conn.message().await {
            let path = message.head.split(' ').nth(1).unwrap_or_default().to_owned();
            match &*path {
                "/500" => conn.send("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n").await,
                "/cut" => return conn.send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx").await,
                "/wait" => conn.send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx").await,
                _ => conn.send(&ok("fine")).await,
            }
        }
    })
    .await;
    let up = upstream(&[to], UpstreamConfig::default());
    let route = Route::new("gated", up).with_gate(gate);
    let router = Router::new(vec![route]).unwrap();
    let (address, _proxy) = proxy_with(router, HttpConfig::default()).await;
    for (path, expected) in [
        ("/", Some(Outcome::Success)),
        ("/500", Some(Outcome::Failure)),
        ("/cut", Some(Outcome::Failure)),
    ] {
        let mut client = Conn::connect(address).await;
        client.send(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        assert_eq!(soon(ends.recv()).await, Some(expected), "{path}");
    }
    let mut client = Conn::connect(address).await;
    client.send("GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.head().await.expect("the head of the response");
    drop(client);
    assert_eq!(soon(ends.recv()).await, Some(None), "the client gave up");
}

#[tokio::test]
async fn a_request_without_a_backend_is_a_failure_for_its_gate() {
    let (gate, mut ends) = recorder();
    let up = upstream(&[nobody().await], UpstreamConfig::default());
    let route = Route::new("gated", up).with_gate(gate);
    let router = Router::new(vec![route]).unwrap();
    let (address, _proxy) = proxy_with(router, HttpConfig::default()).await;
    assert_eq!(Conn::connect(address).await.ask(GET).await.status(), 502);
    assert_eq!(soon(ends.recv()).await, Some(Some(Outcome::Failure)));
}

/// A breaker would open for all requests because a burst exceeds what the endpoints may have.
#[tokio::test]
async fn a_request_for_which_all_endpoints_are_full_says_nothing_to_its_gate() {
    let (gate, mut ends) = recorder();
    let to = backend(|mut conn, _| async move {
        conn.message().await;
        std::future::pending::<()>().await;
    })
    .await;
    let mut config = Config::default();
    config.max_in_flight = Some(1);
    let balancer = Balancer::new(RoundRobin::default(), config).unwrap();
    balancer.update([EndpointConfig::new(to.to_string())], 1).unwrap();
    let up = Upstream::new("test", balancer.clone(), UpstreamConfig::default()).unwrap();
    let router = Router::new(vec![Route::new("gated", up).with_gate(gate)]).unwrap();
    let (address, _proxy) = proxy_with(router, HttpConfig::default()).await;
    let mut first = Conn::connect(address).await;
    first.send(GET).await;
    while balancer.stats(1).endpoints[0].in_flight == 0 {
        tokio::task::yield_now().await;
    }
    let mut second = Conn::connect(address).await;
    assert_eq!(second.ask(GET).await.status(), 503);
    assert_eq!(soon(ends.recv()).await, Some(None), "the endpoint works");
    assert!(balancer.set_draining(&to.to_string(), true, 2));
    assert_eq!(second.ask(GET).await.status(), 503);
    assert_eq!(soon(ends.recv()).await, Some(Some(Outcome::Failure)), "there is none");
}

/// A stream that never ends would keep the place of a probe in a breaker for ever.
#[tokio::test]
async fn a_stream_without_an_end_counts_by_its_head() {
    let (gate, mut ends) = recorder();
    let to = backend(|mut conn, _| async move {
        if conn.message().await.is_some() {
            conn.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n").await;
            std::future::pending::<()>().await;
        }
    })
    .await;
    let up = upstream(&[to], UpstreamConfig::default());
    let balancer = up.balancer().clone();
    let router = Router::new(vec![Route::new("gated", up).with_gate(gate)]).unwrap();
    let (address, _proxy) = proxy_with(router, HttpConfig::default()).await;
    let mut client = Conn::connect(address).await;
    client.send(GET).await;
    client.head().await.expect("the head of the response");
    assert_eq!(soon(ends.recv()).await, Some(Some(Outcome::Success)));
    let stats = balancer.stats(1);
    assert_eq!((stats.endpoints[0].in_flight, stats.endpoints[0].cancelled), (1, 0));
}
