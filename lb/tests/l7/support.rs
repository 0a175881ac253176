//! Raw connections, scripted backends, and a proxy in front of them.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use voussoir_lb::l7::{HttpConfig, HttpProxy, Route, Router, Upstream, UpstreamConfig};
use voussoir_lb::strategy::RoundRobin;
use voussoir_lb::{Balancer, Config, EndpointConfig};

/// Bound of every wait in these tests; reaching it fails the test.
const PATIENCE: Duration = Duration::from_secs(20);

/// A raw connection, of a client or of a backend.
pub(crate) struct Conn {
    pub(crate) tcp: TcpStream,
    read: Vec<u8>,
}

/// A response or a request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it happens in time")
}

impl Conn {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        tcp.set_nodelay(true).unwrap();
        Self { tcp, read: Vec::new() }
    }

    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).await.unwrap())
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes()).await;
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        soon(self.tcp.write_all(bytes)).await.unwrap();
    }

    /// Reads more; false at the end or after a reset.
    async fn fill(&mut self) -> bool {
        let count = soon(self.tcp.read_buf(&mut self.read)).await.unwrap_or(0);
        count > 0
    }

    /// Up to and with the empty line; `None` if the connection ended before.
    pub(crate) async fn head(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = self.read.drain(..at + 4).collect();
                return Some(String::from_utf8(head).unwrap());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    pub(crate) async fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            assert!(self.fill().await, "ended after {} of {count} bytes", self.read.len());
        }
        self.read.drain(..count).collect()
    }

    pub(crate) async fn line(&mut self) -> String {
        loop {
            if let Some(at) = self.read.windows(2).position(|window| window == b"\r\n") {
                let line: Vec<u8> = self.read.drain(..at + 2).collect();
                return String::from_utf8_lossy(&line[..at]).into_owned();
            }
            assert!(self.fill().await, "ended within a line");
        }
    }

    /// Like `bytes`; `None` if the connection ended before.
    pub(crate) async fn try_bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.read.len() < count {
            if !self.fill().await {
                return None;
            }
        }
        Some(self.read.drain(..count).collect())
    }

    /// Like `line`; `None` if the connection ended before.
    pub(crate) async fn try_line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.read.windows(2).position(|window| window == b"\r\n") {
                let line: Vec<u8> = self.read.drain(..at + 2).collect();
                return Some(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The body of `message`, and whether all of it arrived.
    pub(crate) async fn try_body(&mut self, message: &Message) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        if message.header("transfer-encoding").is_none() {
            let length = message.header("content-length").map_or(0, |len| len.parse().unwrap());
            return match self.try_bytes(length).await {
                Some(bytes) => (bytes, true),
                None => (std::mem::take(&mut self.read), false),
            };
        }
        // Ends with the last chunk, or with the connection.
        loop {
            let Some(line) = self.try_line().await else { return (body, false) };
            let size = usize::from_str_radix(&line, 16).expect("a chunk size");
            let Some(bytes) = self.try_bytes(size).await else { return (body, false) };
            body.extend(bytes);
            if self.try_line().await.is_none() {
                return (body, false);
            }
            if size == 0 {
                return (body, true);
            }
        }
    }

    /// A message whose body has a length, or is chunked.
    pub(crate) async fn message(&mut self) -> Option<Message> {
        let head = self.head().await?;
        let mut message = Message { head, body: Vec::new() };
        if message.header("transfer-encoding").is_some() {
            loop {
                let size = usize::from_str_radix(&self.line().await, 16).expect("a chunk size");
                message.body.extend(self.bytes(size).await);
                assert_eq!(self.line().await, "");
                if size == 0 {
                    return Some(message);
                }
            }
        }
        let length = message.header("content-length").map_or(0, |value| value.parse().unwrap());
        message.body = self.bytes(length).await;
        Some(message)
    }

    /// Sends a request and reads its response.
    pub(crate) async fn ask(&mut self, request: &str) -> Message {
        self.send(request).await;
        self.message().await.expect("a response")
    }

    /// All up to the end of the connection.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.fill().await {}
        std::mem::take(&mut self.read)
    }
}

/// Runs `serve` for each connection, with its number.
pub(crate) async fn backend<F>(serve: impl Fn(Conn, usize) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((tcp, _)) = listener.accept().await else { return };
            tokio::spawn(serve(Conn::new(tcp), number));
        }
    });
    address
}

/// Answers each request with the head and the body that it got, keep-alive.
pub(crate) async fn echo() -> SocketAddr {
    backend(|mut conn, _| async move {
        while let Some(message) = conn.message().await {
            let text = format!("{}{}", message.head, message.text());
            conn.send(&ok(&text)).await;
        }
    })
    .await
}

pub(crate) fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// An address at which nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

pub(crate) fn upstream(addresses: &[SocketAddr], config: UpstreamConfig) -> Upstream {
    let balancer = Balancer::new(RoundRobin::default(), Config::default()).unwrap();
    let endpoints = addresses.iter().map(|address| EndpointConfig::new(address.to_string()));
    balancer.update(endpoints, 1).unwrap();
    Upstream::new("test", balancer, config).unwrap()
}

/// A proxy with one route.
pub(crate) async fn proxy(upstream: Upstream, config: HttpConfig) -> (SocketAddr, HttpProxy) {
    proxy_with(Router::new(vec![Route::new("all", upstream)]).unwrap(), config).await
}

pub(crate) async fn proxy_with(
    router: Router<Upstream>,
    config: HttpConfig,
) -> (SocketAddr, HttpProxy) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = HttpProxy::new(router, config).unwrap();
    let serving = proxy.clone();
    tokio::spawn(async move { serving.serve(listener).await });
    (address, proxy)
}

/// A proxy with default configurations in front of `addresses`.
pub(crate) async fn simple(addresses: &[SocketAddr]) -> (SocketAddr, HttpProxy) {
    proxy(upstream(addresses, UpstreamConfig::default()), HttpConfig::default()).await
}

pub(crate) const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
