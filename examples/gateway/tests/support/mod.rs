//! Backends within the test, a client of HTTP/1.1, and waits with an end.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

/// Bound of every wait; reaching it fails the test.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A backend that answers with its name and the path.
#[derive(Clone)]
pub struct Backend {
    pub address: SocketAddr,
    state: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    /// Status of every answer; of `/health` too.
    status: AtomicU64,
    /// Requests other than for `/health`.
    requests: AtomicU64,
    checks: AtomicU64,
}

impl Backend {
    pub async fn start(name: &'static str) -> Self {
        Self::start_at(name, SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    pub async fn start_at(name: &'static str, address: SocketAddr) -> Self {
        let (status, requests, checks) =
            (AtomicU64::new(200), AtomicU64::new(0), AtomicU64::new(0));
        let state = Arc::new(Shared { name, status, requests, checks });
        let app = Router::new()
            .route("/health", get(health))
            .fallback(answer)
            .with_state(Arc::clone(&state));
        let listener = TcpListener::bind(address).await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, state }
    }

    pub fn set_status(&self, status: u64) {
        self.state.status.store(status, SeqCst);
    }

    pub fn requests(&self) -> u64 {
        self.state.requests.load(SeqCst)
    }

    pub fn checks(&self) -> u64 {
        self.state.checks.load(SeqCst)
    }
}

fn status(shared: &Shared) -> StatusCode {
    StatusCode::from_u16(shared.status.load(SeqCst) as u16).expect("a status")
}

async fn health(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.checks.fetch_add(1, SeqCst);
    status(&shared)
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri) -> (StatusCode, String) {
    shared.requests.fetch_add(1, SeqCst);
    if uri.path().starts_with("/slow") {
        sleep(Duration::from_millis(1_000)).await;
    }
    (status(&shared), format!("{} {}", shared.name, uri.path()))
}

/// An answer: its status, its head, its body.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// `GET path` on a connection of its own; `headers` are lines that end in `\r\n`.
pub async fn ask(address: SocketAddr, path: &str, headers: &str) -> std::io::Result<Answer> {
    let mut tcp = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}\r\n");
    tcp.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    timeout(PATIENCE, tcp.read_to_end(&mut bytes)).await??;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok(Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
}

/// The same, where an answer is expected.
pub async fn get_ok(address: SocketAddr, path: &str) -> String {
    let answer = ask(address, path, "").await.expect("an answer");
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.body
}

/// Waits until `holds` does.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "it does not come: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}
