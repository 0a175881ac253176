//! Idempotent requests through a set that changes every 100 ms, with backends that die.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use voussoir_lb::l7::{HttpConfig, Upstream, UpstreamConfig};
use voussoir_lb::{Clock, EndpointConfig, Monotonic};

use crate::number;
use crate::support::*;

const CLIENTS: u64 = 16;
const PERIOD: Duration = Duration::from_millis(100);
/// The load goes on until the set has changed more often than this.
const MIN_CHANGES: u64 = 5;

/// A body of one frame.
struct Once(Option<Bytes>);

impl Body for Once {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

/// A server of hyper that answers with the path. Dies with its connections when it is aborted.
async fn server() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((tcp, _)) = listener.accept().await {
            tcp.set_nodelay(true).unwrap();
            let service = service_fn(|request: Request<Incoming>| async move {
                let path = Bytes::copy_from_slice(request.uri().path().as_bytes());
                Ok::<_, std::convert::Infallible>(Response::new(Once(Some(path))))
            });
            let server = hyper::server::conn::http1::Builder::new();
            connections.spawn(server.serve_connection(TokioIo::new(tcp), service));
        }
    });
    (address, serving)
}

/// Every 100 ms one backend of six dies, and another joins. In turn, the dying one leaves the set
/// before, or is still in it.
async fn change(
    up: Upstream,
    mut running: Vec<(SocketAddr, JoinHandle<()>)>,
    is_done: Arc<AtomicBool>,
    changes: Arc<AtomicU64>,
) {
    let publish = |running: &[(SocketAddr, JoinHandle<()>)]| {
        let set = running.iter().map(|(address, _)| EndpointConfig::new(address.to_string()));
        up.balancer().update(set, Monotonic.now()).unwrap();
    };
    while !is_done.load(SeqCst) {
        tokio::time::sleep(PERIOD).await;
        running.push(server().await);
        let (_, dying) = running.remove(0);
        if changes.load(SeqCst).is_multiple_of(2) {
            publish(&running);
            dying.abort();
        } else {
            dying.abort();
            let _ = dying.await;
            publish(&running);
        }
        changes.fetch_add(1, SeqCst);
    }
}

/// Sends `requests` together with the other clients, and further ones until the set has changed
/// often enough. Returns how many failed.
async fn client(
    address: SocketAddr,
    next: Arc<AtomicU64>,
    requests: u64,
    changes: Arc<AtomicU64>,
) -> u64 {
    let mut conn = Conn::connect(address).await;
    let mut failed = 0;
    // Ends: `next` grows with each round, and the set goes on changing.
    loop {
        let number = next.fetch_add(1, SeqCst);
        if number >= requests && changes.load(SeqCst) > MIN_CHANGES {
            return failed;
        }
        conn.send(&format!("GET /{number} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        let answer = conn.message().await.expect("the proxy's connection stays open");
        if answer.status() == 200 {
            assert_eq!(answer.text(), format!("/{number}"), "the answer to another request");
        } else {
            println!("{number}: {}", answer.head);
            failed += 1;
        }
    }
}

#[test]
fn no_idempotent_request_fails_while_the_set_changes_every_100_ms() {
    let requests = number("VOUSSOIR_L7_REQUESTS", 20_000);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut config = UpstreamConfig::default();
        config.retry.max_attempts = 6;
        let mut running = Vec::new();
        for _ in 0..6 {
            running.push(server().await);
        }
        let addresses: Vec<_> = running.iter().map(|(address, _)| *address).collect();
        let up = upstream(&addresses, config);
        let (address, proxy) = proxy(up.clone(), HttpConfig::default()).await;
        let is_done = Arc::new(AtomicBool::new(false));
        let changes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&changes);
        let changing = tokio::spawn(change(up.clone(), running, Arc::clone(&is_done), counted));
        let next = Arc::new(AtomicU64::new(0));
        let began = Instant::now();
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            clients.spawn(client(address, Arc::clone(&next), requests, Arc::clone(&changes)));
        }
        let mut failed = 0;
        while let Some(count) = clients.join_next().await {
            failed += count.unwrap();
        }
        let took = began.elapsed();
        is_done.store(true, SeqCst);
        changing.await.unwrap();
        let (changes, stats) = (changes.load(SeqCst), up.stats());
        let requests = next.load(SeqCst);
        println!("{requests} requests, {failed} failed, {changes} changes, {took:?}, {stats:?}");
        assert_eq!((failed, proxy.stats().failed), (0, 0));
        assert!(stats.retries + stats.connect_failures + stats.stale > 0, "nobody noticed a death");
    });
}
