//! Nodes on loopback, a handler that records, and a peer made of bare bytes.
//!
//! The bytes are made here by hand, from the description in the README, not by the crate.

#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use voussoir_net::{
    Channel, Class, Config, Event, Events, Handler, Instant, Parts, Peers, Rejected, SendError,
    Tcp, Transport,
};

pub(crate) const CLUSTER: u128 = 0xc1;
pub(crate) const SERVICE: u16 = 1;
pub(crate) const SMALL: Channel = Channel::small(SERVICE);
pub(crate) const BULK: Channel = Channel::bulk(SERVICE);

pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = timeout(Duration::from_secs(20), future).await;
    waited.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

pub(crate) fn later() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub(crate) async fn until(events: &mut Events, what: &str, fits: impl Fn(&Event) -> bool) -> Event {
    soon(what, async {
        loop {
            let event = events.next().await.expect("the transport lives");
            if fits(&event) {
                return event;
            }
        }
    })
    .await
}

/// Echoes calls (`never` is never answered) and passes messages on.
pub(crate) struct Echo(pub(crate) mpsc::UnboundedSender<(u64, Bytes)>);

#[async_trait]
impl Handler for Echo {
    fn message(&self, from: u64, _class: Class, body: Bytes) {
        let _ = self.0.send((from, body));
    }

    async fn call(&self, _from: u64, body: Bytes) -> Result<Parts, Rejected> {
        if &*body == b"never" {
            std::future::pending::<()>().await;
        }
        Ok(Parts::new(body))
    }
}

pub(crate) struct Node {
    pub(crate) tcp: Tcp,
    pub(crate) got: mpsc::UnboundedReceiver<(u64, Bytes)>,
}

pub(crate) fn config() -> Config {
    let mut config = Config::new(CLUSTER);
    config.seed = Some(1);
    config
}

pub(crate) async fn node_at(id: u64, address: &str, peers: &Peers, config: Config) -> Node {
    let resolver = Arc::new(peers.clone());
    let tcp = Tcp::bind(id, address.parse().unwrap(), resolver, config).await.unwrap();
    peers.insert(id, tcp.address());
    let (sender, got) = mpsc::unbounded_channel();
    tcp.serve(SERVICE, Arc::new(Echo(sender))).unwrap();
    Node { tcp, got }
}

pub(crate) async fn node(id: u64, peers: &Peers) -> Node {
    node_at(id, "127.0.0.1:0", peers, config()).await
}

/// Fails unless the node answers a call of a fresh peer: it serves others.
pub(crate) async fn still_serves(node: &Node) {
    let peers = Peers::from_iter([(node.tcp.local(), node.tcp.address())]);
    let other = Tcp::bind(77, "127.0.0.1:0".parse().unwrap(), Arc::new(peers), config());
    let other = other.await.unwrap();
    let answer = other.call(node.tcp.local(), SMALL, "still there?".into(), later()).await;
    assert_eq!(answer.as_deref(), Ok(&b"still there?"[..]), "others are served");
}

/// Fills the queue to a peer that reads nothing, and the buffers of both sockets, until no more
/// is taken for 100 ms.
pub(crate) async fn fill(tcp: &Tcp, peer: u64, channel: Channel, bytes: usize) {
    let body = Bytes::from(vec![1; bytes]);
    let mut rejected_since = Instant::now();
    while rejected_since.elapsed() < Duration::from_millis(100) {
        match tcp.send(peer, channel, body.clone().into()) {
            Ok(()) => rejected_since = Instant::now(),
            Err(SendError::Full) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

pub(crate) fn crc(bytes: &[u8]) -> [u8; 4] {
    crc_fast::crc32_iscsi(bytes).to_le_bytes()
}

pub(crate) const REPLY_BYTES: usize = 38;

pub(crate) struct RawHello {
    pub(crate) versions: (u16, u16),
    pub(crate) class: u8,
    pub(crate) cluster: u128,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) max_body_bytes: u32,
}

impl RawHello {
    pub(crate) fn to(node: &Node) -> Self {
        let to = node.tcp.local();
        let (versions, max_body_bytes) = ((1, 1), 1 << 20);
        Self { versions, class: 0, cluster: CLUSTER, from: 9, to, max_body_bytes }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"voussoir\x38\0".to_vec();
        bytes.extend(self.versions.0.to_le_bytes());
        bytes.extend(self.versions.1.to_le_bytes());
        bytes.extend([self.class, 0, 0, 0]);
        bytes.extend(self.cluster.to_le_bytes());
        bytes.extend(self.from.to_le_bytes());
        bytes.extend(self.to.to_le_bytes());
        bytes.extend(0x4e_u64.to_le_bytes());
        bytes.extend(self.max_body_bytes.to_le_bytes());
        bytes.extend(crc(&bytes));
        bytes
    }
}

pub(crate) fn frame(
    kind: u8,
    flags: u8,
    service: u16,
    id: u64,
    left_ms: u32,
    body: &[u8],
) -> Vec<u8> {
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(service.to_le_bytes());
    bytes.extend(id.to_le_bytes());
    bytes.extend(left_ms.to_le_bytes());
    let crc = crc(&[&bytes, body].concat());
    bytes.extend(crc);
    bytes.extend(body);
    bytes
}

pub(crate) fn message(body: &[u8]) -> Vec<u8> {
    frame(1, 0, SERVICE, 0, 0, body)
}

pub(crate) fn request(id: u64, body: &[u8]) -> Vec<u8> {
    frame(2, 0, SERVICE, id, 10_000, body)
}

/// A connection to a node by bare bytes.
pub(crate) struct Raw(pub(crate) TcpStream);

impl Raw {
    pub(crate) async fn connect(node: &Node) -> Self {
        Self(TcpStream::connect(node.tcp.address()).await.unwrap())
    }

    /// A connection that has been accepted.
    pub(crate) async fn welcome(node: &Node, hello: &RawHello) -> Self {
        let mut raw = Self::connect(node).await;
        assert_eq!(raw.greet(hello).await, 0, "welcome");
        raw
    }

    /// Sends a hello and returns the code of the reply.
    pub(crate) async fn greet(&mut self, hello: &RawHello) -> u16 {
        self.write(&hello.bytes()).await;
        self.reply().await
    }

    /// Reads a reply to a hello and returns its code.
    pub(crate) async fn reply(&mut self) -> u16 {
        let mut reply = [0; REPLY_BYTES];
        soon("a reply", self.0.read_exact(&mut reply)).await.expect("a whole reply");
        assert_eq!(&reply[..10], b"voussoir\x1c\0");
        assert_eq!(reply[34..], crc(&reply[..34]));
        u16::from_le_bytes([reply[10], reply[11]])
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("the node takes it");
    }

    /// Reads frames until one of this kind; returns its service, id and body.
    pub(crate) async fn read(&mut self, kind: u8) -> (u16, u64, Vec<u8>) {
        loop {
            let mut header = [0; 24];
            soon("a frame", self.0.read_exact(&mut header)).await.expect("a whole header");
            let length = u32::from_le_bytes(header[..4].try_into().unwrap());
            let mut body = vec![0; length as usize];
            soon("a body", self.0.read_exact(&mut body)).await.expect("a whole body");
            assert_eq!(header[20..], crc(&[&header[..20], &body].concat()));
            if header[4] == kind {
                let id = u64::from_le_bytes(header[8..16].try_into().unwrap());
                return (u16::from_le_bytes([header[6], header[7]]), id, body);
            }
        }
    }

    /// Waits until the node closes the connection.
    pub(crate) async fn closed(&mut self) {
        soon("the end of the connection", async {
            let mut buffer = [0; 1024];
            while !matches!(self.0.read(&mut buffer).await, Ok(0) | Err(_)) {}
        })
        .await;
    }
}

/// A peer that accepts a handshake by bare bytes and does what the test says then.
pub(crate) async fn accept(listener: &tokio::net::TcpListener) -> (Raw, u8) {
    let (mut stream, _) = soon("a connection", listener.accept()).await.unwrap();
    let mut hello = [0; 66];
    soon("a hello", stream.read_exact(&mut hello)).await.expect("a whole hello");
    // As the first nodes of this version replied: without the time that ends a silent connection.
    let mut reply = b"voussoir\x18\0\0\0\x01\0\x01\0\x01\0".to_vec();
    reply.extend(&hello[50..58]);
    reply.extend((1_u32 << 30).to_le_bytes());
    reply.extend(crc(&reply));
    stream.write_all(&reply).await.unwrap();
    (Raw(stream), hello[14])
}
