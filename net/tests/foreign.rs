//! Foreign code that panics, blocks or calls back: handlers and resolvers.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use support::*;
use tokio::sync::mpsc;
use voussoir_net::memory::Network;
use voussoir_net::{
    Class, Config, Event, Handler, Parts, Peers, Rejected, Resolver, SendError, Tcp, Transport,
};

/// A resolver that does what the test says before it answers.
struct Scripted {
    peers: Peers,
    panics: AtomicBool,
    asked: AtomicU64,
    calls_back: Mutex<Option<Tcp>>,
}

impl Scripted {
    fn new(peers: &Peers) -> Arc<Self> {
        let (panics, asked) = (AtomicBool::new(false), AtomicU64::new(0));
        Arc::new(Self { peers: peers.clone(), panics, asked, calls_back: Mutex::default() })
    }
}

impl Resolver for Scripted {
    fn resolve(&self, peer: u64) -> Option<SocketAddr> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panics.load(Ordering::SeqCst), "asked to");
        let back = self.calls_back.lock().take();
        if let Some(tcp) = back {
            // It asks for the same peer again, from within.
            let _ = tcp.send(peer, SMALL, "from the resolver".into());
            assert!(tcp.queues().len() <= 2);
        }
        self.peers.resolve(peer)
    }
}

async fn with_resolver(resolver: &Arc<Scripted>) -> Tcp {
    let mut config = config();
    config.max_backoff = Duration::from_millis(20);
    let any = "127.0.0.1:0".parse().unwrap();
    Tcp::bind(1, any, Arc::clone(resolver) as Arc<dyn Resolver>, config).await.unwrap()
}

#[tokio::test]
async fn a_resolver_that_panics_ends_nothing() {
    let peers = Peers::new();
    let mut two = node(2, &peers).await;
    let resolver = Scripted::new(&peers);
    let one = with_resolver(&resolver).await;
    resolver.panics.store(true, Ordering::SeqCst);
    assert_eq!(one.send(2, SMALL, "x".into()), Err(SendError::UnknownPeer));
    let called = one.call(2, SMALL, "x".into(), later()).await;
    assert_eq!(called.unwrap_err(), SendError::UnknownPeer.into());
    resolver.panics.store(false, Ordering::SeqCst);
    let mut events = one.events();
    one.send(2, SMALL, "one".into()).unwrap();
    assert_eq!(soon("the message", two.got.recv()).await.unwrap().1, "one");
    // At attempts to connect: the peer dies, and comes back only after some of them.
    resolver.panics.store(true, Ordering::SeqCst);
    let address = two.tcp.address();
    two.tcp.shutdown(voussoir_net::Instant::now()).await;
    let asked = resolver.asked.load(Ordering::SeqCst);
    soon("attempts to connect", async {
        while resolver.asked.load(Ordering::SeqCst) < asked + 5 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(one.send(2, SMALL, "x".into()), Err(SendError::Down), "not queued for ever");
    resolver.panics.store(false, Ordering::SeqCst);
    let mut two = node_at(2, &address.to_string(), &peers, config()).await;
    let up = Event::Up { peer: 2, class: Class::Small };
    until(&mut events, "the first connection", |event| *event == up).await;
    until(&mut events, "the connection after the panics", |event| *event == up).await;
    one.send(2, SMALL, "two".into()).unwrap();
    assert_eq!(soon("the message", two.got.recv()).await.unwrap().1, "two");
}

#[tokio::test]
async fn a_resolver_may_use_the_transport() {
    let peers = Peers::new();
    let mut two = node(2, &peers).await;
    let resolver = Scripted::new(&peers);
    let one = with_resolver(&resolver).await;
    *resolver.calls_back.lock() = Some(one.clone());
    one.send(2, SMALL, "outer".into()).unwrap();
    assert_eq!(soon("a message", two.got.recv()).await.unwrap().1, "from the resolver");
    assert_eq!(soon("a message", two.got.recv()).await.unwrap().1, "outer");
}

/// Holds up whoever asks it, from when it is told to until it may go on.
struct Slow {
    peers: Peers,
    holds: AtomicBool,
    entered: mpsc::UnboundedSender<()>,
    open: Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Resolver for Slow {
    fn resolve(&self, peer: u64) -> Option<SocketAddr> {
        if self.holds.load(Ordering::SeqCst) {
            self.entered.send(()).unwrap();
            // Ends with the test at the latest, which drops the other end.
            let _ = tokio::task::block_in_place(|| self.open.lock().recv());
        }
        self.peers.resolve(peer)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_shutdown_ends_although_a_resolver_blocks() {
    let peers = Peers::new();
    let two = node(2, &peers).await;
    let (entered, mut has_entered) = mpsc::unbounded_channel();
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let (holds, gate) = (AtomicBool::new(false), Mutex::new(gate));
    let resolver = Arc::new(Slow { peers, holds, entered, open: gate });
    let any = "127.0.0.1:0".parse().unwrap();
    let one = Tcp::bind(1, any, resolver.clone(), config()).await.unwrap();
    assert_eq!(one.call(2, SMALL, "x".into(), later()).await.unwrap(), "x");
    resolver.holds.store(true, Ordering::SeqCst);
    // The link asks where its peer is now.
    drop(two);
    soon("the resolver to be asked", has_entered.recv()).await.unwrap();
    let deadline = voussoir_net::Instant::now() + Duration::from_millis(100);
    let is_whole = soon("the end of the shutdown", one.shutdown(deadline)).await;
    assert!(!is_whole, "a task is left behind");
    drop(open);
}

/// Panics when its future is dropped, and at messages.
struct Grenade(mpsc::UnboundedSender<()>);

struct Pin;

impl Drop for Pin {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "asked to, in a drop");
    }
}

#[async_trait]
impl Handler for Grenade {
    fn message(&self, _from: u64, _class: Class, body: Bytes) {
        assert!(&*body != b"panic", "asked to");
        let _ = self.0.send(());
    }

    async fn call(&self, _from: u64, body: Bytes) -> Result<Parts, Rejected> {
        if &*body == b"hold" {
            let _pin = Pin;
            std::future::pending::<()>().await;
        }
        Ok(Parts::new("fine"))
    }
}

#[tokio::test]
async fn a_handler_that_panics_at_a_message_or_when_dropped_harms_no_other() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let two = node(2, &peers).await;
    let (sender, mut got) = mpsc::unbounded_channel();
    two.tcp.serve(9, Arc::new(Grenade(sender))).unwrap();
    let channel = voussoir_net::Channel::small(9);
    one.tcp.send(2, channel, "panic".into()).unwrap();
    one.tcp.send(2, channel, "after".into()).unwrap();
    soon("the message after the panic", got.recv()).await.unwrap();
    // Dropped at its deadline.
    let deadline = voussoir_net::Instant::now() + Duration::from_millis(50);
    assert!(one.tcp.call(2, channel, "hold".into(), deadline).await.is_err());
    // Dropped because the caller gives up.
    let held = one.tcp.call(2, channel, "hold".into(), later());
    assert!(tokio::time::timeout(Duration::from_millis(50), held).await.is_err());
    soon("an answer", async {
        while one.tcp.call(2, channel, "x".into(), later()).await != Ok("fine".into()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    still_serves(&two).await;
}

/// Uses the transport from within: it sends, takes its own place away, and makes another.
struct Reentrant {
    transport: Mutex<Option<Arc<dyn Transport>>>,
    done: mpsc::UnboundedSender<bool>,
}

#[async_trait]
impl Handler for Reentrant {
    fn message(&self, from: u64, _class: Class, _body: Bytes) {
        let Some(transport) = self.transport.lock().take() else { return };
        let was_served = transport.withdraw(SERVICE);
        let (sender, _) = mpsc::unbounded_channel();
        let again = transport.serve(SERVICE, Arc::new(Echo(sender)));
        let _events = transport.events();
        // To a peer that may not be connected yet: what matters is that it returns.
        let _ = transport.send(from, SMALL, "back".into());
        let _ = self.done.send(was_served && again.is_ok());
    }
}

async fn reenters(one: Arc<dyn Transport>, two: Arc<dyn Transport>) {
    let (done, mut is_done) = mpsc::unbounded_channel();
    let transport = Mutex::new(Some(Arc::clone(&two)));
    two.serve(SERVICE, Arc::new(Reentrant { transport, done })).unwrap();
    soon("the message to be taken", async {
        while one.send(2, SMALL, "x".into()).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(soon("the handler", is_done.recv()).await, Some(true));
    let answer = one.call(2, SMALL, "echo".into(), later()).await;
    assert_eq!(answer.unwrap(), "echo", "by the handler that the first one registered");
}

#[tokio::test]
async fn a_handler_may_use_the_transport() {
    let peers = Peers::new();
    let one = node(1, &peers).await;
    let any = "127.0.0.1:0".parse().unwrap();
    let two = Tcp::bind(2, any, Arc::new(peers.clone()), config()).await.unwrap();
    peers.insert(2, two.address());
    reenters(Arc::new(one.tcp.clone()), Arc::new(two)).await;
    let network = Network::new(Config::default()).unwrap();
    reenters(Arc::new(network.join(1)), Arc::new(network.join(2))).await;
}
