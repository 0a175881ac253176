//! Endpoints, clients and proxies on loopback.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use voussoir_lb::l4::{Route, TcpConfig, TcpProxy};
use voussoir_lb::strategy::{RoundRobin, Strategy};
use voussoir_lb::{Balancer, Clock, Config, EndpointConfig, Monotonic};

/// Longer than anything takes that works.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Fails the test when the future does not end.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("it ends within 20 s")
}

/// Waits until a condition that tasks bring about holds.
pub(crate) async fn until(mut holds: impl FnMut() -> bool) {
    soon(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// A server whose connections are given to `handler`. It ends when it is dropped.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Backend {
    pub(crate) async fn new<F>(handler: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Self::on(listener, handler)
    }

    pub(crate) fn on<F>(
        listener: TcpListener,
        handler: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let address = listener.local_addr().expect("bound");
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(handler(stream));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, task }
    }

    /// Sends back what it gets, and ends when the client does.
    pub(crate) async fn echo() -> Self {
        Self::new(echo).await
    }

    /// Sends its letter to each connection, then sends back what it gets.
    pub(crate) async fn letter(letter: u8) -> Self {
        Self::new(move |mut stream| async move {
            if stream.write_all(&[letter]).await.is_ok() {
                echo(stream).await;
            }
        })
        .await
    }

    /// Hands each connection to the test.
    pub(crate) async fn handed() -> (Self, tokio::sync::mpsc::UnboundedReceiver<TcpStream>) {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let backend = Self::new(move |stream| {
            let _ = sender.send(stream);
            std::future::ready(())
        });
        (backend.await, receiver)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) async fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(len) = stream.read(&mut buffer).await {
        if len == 0 || stream.write_all(&buffer[..len]).await.is_err() {
            return;
        }
    }
}

/// An address at which nobody listens.
pub(crate) async fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound")
}

/// An address at which connecting takes for ever: its queue is full.
pub(crate) struct BlackHole {
    pub(crate) address: SocketAddr,
    _listener: TcpListener,
    _filling: Vec<TcpStream>,
}

impl BlackHole {
    pub(crate) async fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let listener = socket.listen(1).expect("listens");
        let address = listener.local_addr().expect("bound");
        let mut filling = Vec::new();
        let short = Duration::from_millis(100);
        while let Ok(stream) = tokio::time::timeout(short, TcpStream::connect(address)).await {
            filling.push(stream.expect("the queue has room or drops"));
            assert!(filling.len() < 100, "a queue of one takes all");
        }
        Self { address, _listener: listener, _filling: filling }
    }
}

pub(crate) fn balancer_with(
    strategy: impl Strategy + 'static,
    config: Config,
    addresses: &[SocketAddr],
) -> Balancer {
    let balancer = Balancer::new(strategy, config).expect("valid");
    set(&balancer, addresses);
    balancer
}

pub(crate) fn balancer(addresses: &[SocketAddr]) -> Balancer {
    balancer_with(RoundRobin::default(), Config::default(), addresses)
}

pub(crate) fn set(balancer: &Balancer, addresses: &[SocketAddr]) {
    let endpoints = addresses.iter().map(|address| EndpointConfig::new(address.to_string()));
    balancer.update(endpoints, Monotonic.now()).expect("a set");
}

/// A proxy that serves on loopback.
pub(crate) struct Running {
    pub(crate) proxy: TcpProxy,
    pub(crate) address: SocketAddr,
    pub(crate) serving: JoinHandle<()>,
}

pub(crate) async fn run(route: impl Route + 'static, config: TcpConfig) -> Running {
    run_on("127.0.0.1:0", route, config).await
}

pub(crate) async fn run_on(
    address: &str,
    route: impl Route + 'static,
    config: TcpConfig,
) -> Running {
    let proxy = TcpProxy::new(route, config).expect("valid");
    let listener = TcpListener::bind(address).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let serving = tokio::spawn({
        let proxy = proxy.clone();
        async move { proxy.serve(listener).await }
    });
    Running { proxy, address, serving }
}

impl Running {
    pub(crate) async fn client(&self) -> TcpStream {
        soon(TcpStream::connect(self.address)).await.expect("the proxy accepts")
    }

    /// A client that has got a byte through to an echo and back.
    pub(crate) async fn connected(&self) -> TcpStream {
        let mut client = self.client().await;
        assert_eq!(exchange(&mut client, b"?").await.expect("an echo"), b"?");
        client
    }

    /// Waits until no connection is open.
    pub(crate) async fn idle(&self) {
        until(|| self.proxy.stats().active == 0).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Sends bytes and reads as many.
pub(crate) async fn exchange(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    soon(async {
        stream.write_all(bytes).await?;
        let mut answer = vec![0; bytes.len()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    })
    .await
}

/// Reads to the end.
pub(crate) async fn rest(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    soon(stream.read_to_end(&mut bytes)).await?;
    Ok(bytes)
}

/// Waits until the connection is reset.
pub(crate) async fn assert_reset(stream: &mut TcpStream) {
    let error = rest(stream).await.expect_err("a reset, not an end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// Ends the connection with a reset.
pub(crate) fn reset(stream: TcpStream) {
    stream.set_zero_linger().expect("a socket");
}

/// Bytes that differ at every place in 251.
pub(crate) fn pattern(len: usize) -> Arc<[u8]> {
    (0..len).map(|at| (at % 251) as u8).collect()
}
