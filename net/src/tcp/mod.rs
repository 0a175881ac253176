//! The transport over TCP.

mod accept;
mod link;
mod node;
mod pipe;
mod pump;
mod serve;
#[cfg(feature = "tls")]
mod session;
mod socket;
mod waiting;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use self::node::Node;
use self::socket::Security;
use crate::{
    BindError, CallError, Channel, Class, Config, Events, Handler, Parts, Resolver, SendError,
    ServeError, Stats, Transport,
};

/// How often a shutdown looks whether everything has been written and answered.
const QUIET_POLL: Duration = Duration::from_millis(1);

/// How long a shutdown waits for its tasks once they have been told to end, which each of them does
/// the next time that it is polled. Foreign code that blocks keeps a task from that.
const MAX_ENDING: Duration = Duration::from_secs(1);

/// The transport over TCP. Clones are handles to the same; when the last is dropped, everything
/// ends at once. [`Tcp::shutdown`] is the orderly way.
///
/// Each node dials its own connections, two per peer, one of each class, at the first `send` or
/// `call`; what comes in by the peer's connections goes to the handlers, and answers return by
/// the connection of their request. So no rule is needed for two nodes that dial each other at
/// once. A node takes one connection per peer and class: a newer one ends the older.
///
/// While the first attempt to connect to a peer is under way messages are queued. After it has
/// failed, or when a connection has broken, they are rejected with `Down`, until a later attempt
/// succeeds.
///
/// Plain TCP ([`Tcp::bind`]) authenticates nobody, and nothing is encrypted: whoever reaches the
/// port can say that it is any peer. Use it in a network of which you trust every node. With the
/// feature `tls`, `Tcp::bind_tls` makes both sides prove who they are, and encrypts.
#[derive(Clone)]
pub struct Tcp {
    owner: Arc<Owner>,
}

/// Ends the tasks, which share the node, when the last handle goes.
struct Owner {
    node: Arc<Node>,
    address: SocketAddr,
    /// Until [`Tcp::open`].
    listener: Mutex<Option<TcpListener>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.node.stop();
    }
}

impl Tcp {
    /// Starts a node that listens on `address`; port 0 takes a free one. Must be called in a
    /// tokio runtime with I/O and time enabled, which then runs all that this node does.
    ///
    /// It takes connections at once: a peer that is quick finds services that are not served yet.
    /// [`Tcp::prepare`] leaves time for them.
    ///
    /// # Errors
    /// [`BindError`]; nothing has been started then.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing stays when the future is dropped.
    pub async fn bind(
        local: u64,
        address: SocketAddr,
        resolver: Arc<dyn Resolver>,
        config: Config,
    ) -> Result<Self, BindError> {
        let tcp = Self::prepare(local, address, resolver, config).await?;
        tcp.open();
        Ok(tcp)
    }

    /// As [`Tcp::bind`], but takes no connection before [`Tcp::open`], so that a node that restarts
    /// can serve all its services first. It sends and calls at once. Connections of peers wait in
    /// the backlog of the system meanwhile; to them the node is slow to accept. Their attempts end
    /// after their `handshake_timeout`, and others follow.
    ///
    /// # Errors
    /// [`BindError`]; nothing has been started then.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing stays when the future is dropped.
    pub async fn prepare(
        local: u64,
        address: SocketAddr,
        resolver: Arc<dyn Resolver>,
        config: Config,
    ) -> Result<Self, BindError> {
        Self::start(local, address, resolver, config, Security::default()).await
    }

    /// As [`Tcp::bind`], with TLS 1.3 on every connection: both sides show certificates, and what
    /// is proven by them must be the id that is claimed. A peer that speaks plain TCP is rejected.
    ///
    /// # Errors
    /// [`BindError`]; nothing has been started then. The certificate must be of node `local`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing stays when the future is dropped.
    #[cfg(feature = "tls")]
    pub async fn bind_tls(
        local: u64,
        address: SocketAddr,
        resolver: Arc<dyn Resolver>,
        config: Config,
        tls: crate::Tls,
    ) -> Result<Self, BindError> {
        let tcp = Self::prepare_tls(local, address, resolver, config, tls).await?;
        tcp.open();
        Ok(tcp)
    }

    /// As [`Tcp::bind_tls`], but takes no connection before [`Tcp::open`].
    ///
    /// # Errors
    /// [`BindError`]; nothing has been started then. The certificate must be of node `local`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing stays when the future is dropped.
    #[cfg(feature = "tls")]
    pub async fn prepare_tls(
        local: u64,
        address: SocketAddr,
        resolver: Arc<dyn Resolver>,
        config: Config,
        tls: crate::Tls,
    ) -> Result<Self, BindError> {
        if tls.id() != local {
            return Err(crate::TlsConfigError::Id { id: tls.id(), expected: local }.into());
        }
        Self::start(local, address, resolver, config, Security { tls: Some(tls) }).await
    }

    async fn start(
        local: u64,
        address: SocketAddr,
        resolver: Arc<dyn Resolver>,
        config: Config,
        security: Security,
    ) -> Result<Self, BindError> {
        config.validate()?;
        let failed = |source| BindError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let node = Node::new(local, config, resolver, security, Handle::current());
        let listener = Mutex::new(Some(listener));
        Ok(Self { owner: Arc::new(Owner { node, address, listener }) })
    }

    /// Takes connections from now on. Does nothing after the first time, or after a shutdown.
    pub fn open(&self) {
        if let Some(listener) = self.owner.listener.lock().take() {
            let node = &self.owner.node;
            node.spawn(accept::listen(Arc::clone(node), listener));
        }
    }

    /// The address that this node listens on.
    pub fn address(&self) -> SocketAddr {
        self.owner.address
    }

    /// Begins to connect to a peer, in both classes, without sending anything.
    ///
    /// # Errors
    /// `UnknownPeer`, `ToSelf` and `Closed` as for `send`.
    pub fn connect(&self, peer: u64) -> Result<(), SendError> {
        for class in Class::ALL {
            self.owner.node.link(peer, class)?;
        }
        Ok(())
    }

    /// Counters of this node since its start.
    pub fn stats(&self) -> Stats {
        self.owner.node.counters.snapshot()
    }

    /// How many bytes of unfinished frames all connections hold now, beyond the 128 KiB that each
    /// of them may have; at most [`Config::max_partial_bytes`].
    pub fn partial_bytes(&self) -> usize {
        self.owner.node.partials.held()
    }

    /// Lengths of the send queues of all peers, in no order.
    pub fn queues(&self) -> Vec<Queue> {
        let mut queues: HashMap<(u64, Class), Queue> = HashMap::new();
        for link in self.owner.node.links() {
            let (peer, class) = (link.peer, link.class);
            let empty = Queue { peer, class, messages: 0, bytes: 0, calls: 0 };
            let queue = queues.entry((peer, class)).or_insert(empty);
            let (messages, bytes, calls) = link.pipe.queued();
            queue.messages += messages;
            queue.bytes += bytes;
            queue.calls += calls;
        }
        queues.into_values().collect()
    }

    /// Ends in an orderly way, in two steps. First it takes nothing new from peers, tells every
    /// peer so, and waits until the calls of peers are answered: `send` and `call` go on, since the
    /// handlers may need them. Then it takes nothing new at all, lets what is queued be written and
    /// this node's calls be answered, and waits until each peer has read everything. All of it
    /// takes at most until the deadline; then everything ends. Tasks that a handler or a resolver
    /// blocks at that moment have a second more, and are left behind: each ends when that code
    /// returns.
    ///
    /// From its beginning peers send no messages either. A handler whose answer depends on messages
    /// of peers, as one that waits for a commit of raft does, waits in vain: shut such a protocol
    /// down first, so that it gives its callers their errors.
    ///
    /// Peers go to where their resolver says that this node is from the beginning of the
    /// shutdown. So a node moves without a lost call when its new instance serves and the peers
    /// are told of its address before the old one is shut down, with a deadline beyond those of
    /// its calls.
    ///
    /// Returns whether nothing was cut off or left behind. A peer that crashes between the last
    /// write and its reading looks as one that has read: only the answer to a call says that it was
    /// handled.
    ///
    /// # Cancel safety
    /// Dropping the future leaves a transport that takes nothing new from peers, or nothing at all.
    /// Calling this again goes on.
    pub async fn shutdown(&self, deadline: Instant) -> bool {
        let node = &self.owner.node;
        drop(self.owner.listener.lock().take());
        node.leave();
        let dropped = node.counters.dropped.get();
        let has_answered = self.until(deadline, || node.arrivals.is_quiet()).await;
        node.close();
        let is_quiet = self.until(deadline, || self.is_quiet()).await;
        for link in node.links() {
            link.pipe.goodbye();
        }
        let is_written = self.until(deadline, || self.is_quiet()).await;
        // A socket that is closed before drops what the kernel has not sent, if there is anything
        // in it that was not read.
        let is_read = self.until(deadline, || self.has_ended()).await;
        node.stop();
        let has_ended = timeout(MAX_ENDING, node.ended()).await.is_ok();
        if !has_ended {
            tracing::warn!(target: "voussoir::net", "a handler or resolver blocks a task");
        }
        let is_whole = has_answered && is_quiet && is_written && is_read && has_ended;
        is_whole && node.counters.dropped.get() == dropped
    }

    /// Whether no connection stands.
    fn has_ended(&self) -> bool {
        let node = &self.owner.node;
        node.links().iter().all(|link| !link.pipe.is_up()) && node.arrivals.is_empty()
    }

    fn is_quiet(&self) -> bool {
        let node = &self.owner.node;
        node.links().iter().all(|link| link.pipe.is_quiet()) && node.arrivals.is_quiet()
    }

    async fn until(&self, deadline: Instant, is_reached: impl Fn() -> bool) -> bool {
        while !is_reached() {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(QUIET_POLL).await;
        }
        true
    }
}

/// Length of the send queue of one peer in one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Queue {
    /// The peer.
    pub peer: u64,
    /// The class.
    pub class: Class,
    /// Messages and requests that no byte has been written of.
    pub messages: usize,
    /// Bytes that have not been written.
    pub bytes: usize,
    /// Calls that wait for their answer.
    pub calls: usize,
}

#[async_trait]
impl Transport for Tcp {
    fn local(&self) -> u64 {
        self.owner.node.local
    }

    fn max_message_bytes(&self, class: Class) -> usize {
        self.owner.node.config.limits(class).max_message_bytes
    }

    fn send(&self, peer: u64, channel: Channel, parts: Parts) -> Result<(), SendError> {
        self.owner.node.link(peer, channel.class)?.pipe.send(channel.service, parts)
    }

    async fn call(
        &self,
        peer: u64,
        channel: Channel,
        parts: Parts,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        let link = self.owner.node.link(peer, channel.class)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(CallError::NotSent(SendError::Expired));
        }
        // Rounded up: the peer may be a little late, but never gives up before its caller.
        let left_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).saturating_add(1);
        let (ticket, answer) = link.pipe.call(channel.service, left_ms, parts)?;
        match timeout_at(deadline, answer).await {
            Ok(answer) => {
                ticket.done();
                answer.unwrap_or_else(waiting::lost)
            }
            Err(_) => Err(ticket.expire()),
        }
    }

    fn serve(&self, service: u16, handler: Arc<dyn Handler>) -> Result<(), ServeError> {
        if self.owner.node.is_leaving() {
            return Err(ServeError::Closed);
        }
        self.owner.node.services.add(service, handler)
    }

    fn withdraw(&self, service: u16) -> bool {
        self.owner.node.services.remove(service)
    }

    fn events(&self) -> Events {
        self.owner.node.publisher.subscribe()
    }
}

impl std::fmt::Debug for Tcp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tcp")
            .field("local", &self.owner.node.local)
            .field("address", &self.owner.address)
            .finish_non_exhaustive()
    }
}
