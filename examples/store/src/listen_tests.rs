//! What clients that misbehave cost.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::listen::{Limits, serve};

/// No test waits longer.
const PATIENCE: Duration = Duration::from_secs(20);
const ASK: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

struct Server {
    address: SocketAddr,
    end: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new()
            .route("/", get(|| async { "here" }).put(async |body: Bytes| body.len().to_string()))
            .route("/large", get(|| async { vec![0; 64 << 20] }));
        let (end, ended) = oneshot::channel();
        let serving = tokio::spawn(serve(listener, app, limits, async { drop(ended.await) }));
        Self { address, end, serving }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Asks on a connection of its own; what the server says until it closes it.
    async fn ask(&self, request: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request).await.unwrap();
        said(&mut stream).await
    }
}

async fn said(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    // A connection that is closed with something unread is reset.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("it is not closed");
    String::from_utf8_lossy(&said).into_owned()
}

/// Times that no test waits for, unless it sets them.
fn patient() -> Limits {
    let long = Duration::from_secs(3_600);
    Limits { head: long, spare_head: long, body: long, age: long, ..Limits::default() }
}

#[tokio::test]
async fn connections_that_ask_for_nothing_or_whose_body_drips_are_closed() {
    let short = Duration::from_millis(500);
    let server = Server::start(Limits { head: short, body: short, ..patient() }).await;
    assert_eq!(server.ask(b"").await, "", "it has asked for nothing");
    let mut kept = server.connect().await;
    kept.write_all(ASK).await.unwrap();
    assert!(said(&mut kept).await.ends_with("here"), "it was answered, and then asked no more");
    let put = b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n";
    let whole = [&put[..], b"12345"].concat();
    assert!(server.ask(&whole).await.ends_with('5'));
    let late = server.ask(&[&put[..], b"12"].concat()).await;
    assert!(late.starts_with("HTTP/1.1 400") && late.contains("in time"), "{late}");
}

/// Idle connections hold all places but the spare ones; a probe is answered, and so is a client
/// that comes when all places were taken.
#[tokio::test]
async fn idle_connections_leave_room_for_a_probe() {
    let limits = Limits { connections: 4, spare: 2, ..patient() };
    let server = Server::start(Limits { spare_head: Duration::from_millis(500), ..limits }).await;
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut stream = server.connect().await;
        stream.write_all(ASK).await.unwrap();
        stream.read_exact(&mut [0; 12]).await.unwrap();
        idle.push(stream);
    }
    // Closed after the answer, so that the next one has the place: more of them than there are.
    for _ in 0..5 {
        assert!(server.ask(ASK).await.ends_with("here"));
    }
    // Spare places are not held for long by those that ask for nothing.
    idle.push(server.connect().await);
    idle.push(server.connect().await);
    assert!(server.ask(ASK).await.ends_with("here"));
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_until_one_is_closed() {
    let server = Server::start(Limits { connections: 2, spare: 0, ..patient() }).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = server.connect().await;
        stream.write_all(ASK).await.unwrap();
        stream.read_exact(&mut [0; 12]).await.unwrap();
        open.push(stream);
    }
    let mut third = server.connect().await;
    third.write_all(ASK).await.unwrap();
    let answered = timeout(Duration::from_millis(300), third.read_exact(&mut [0; 12])).await;
    assert!(answered.is_err(), "it has a place beside two others");
    open.pop();
    timeout(PATIENCE, third.read_exact(&mut [0; 12])).await.unwrap().unwrap();
}

/// A client that does not read what it asked for, and one that asks on and on.
#[tokio::test]
async fn no_connection_is_held_for_ever() {
    let short = Duration::from_millis(300);
    let limits = Limits { connections: 1, spare: 0, age: short, last_answer: short, ..patient() };
    let server = Server::start(limits).await;
    let mut deaf = server.connect().await;
    deaf.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut next = server.connect().await;
    let began = Instant::now();
    // Ends: the connection is closed when it is 300 ms old.
    while next.write_all(ASK).await.is_ok() {
        if !matches!(timeout(PATIENCE, next.read(&mut [0; 1024])).await.unwrap(), Ok(1..)) {
            break;
        }
    }
    assert!(began.elapsed() < PATIENCE);
}

#[tokio::test]
async fn what_is_under_way_is_answered_when_the_server_ends() {
    let server = Server::start(patient()).await;
    let mut idle = server.connect().await;
    idle.write_all(ASK).await.unwrap();
    idle.read_exact(&mut [0; 12]).await.unwrap();
    let mut slow = server.connect().await;
    let put = b"PUT / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    slow.write_all(put).await.unwrap();
    // The handler reads the body: the request is under way.
    slow.read_exact(&mut [0; 12]).await.unwrap();
    server.end.send(()).unwrap();
    assert!(said(&mut idle).await.ends_with("here"), "closed, since nothing is under way");
    assert!(!server.serving.is_finished());
    slow.write_all(b"12345").await.unwrap();
    assert!(said(&mut slow).await.ends_with('5'));
    timeout(PATIENCE, server.serving).await.unwrap().unwrap();
}
