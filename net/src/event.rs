//! Connections coming and going, and what was wrong with them.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::{Class, TlsError};

/// Something happened to a connection.
///
/// `Up`, `Down` and `ConnectRejected` are about this node's own connection to a peer, by which it
/// sends; the other events are about connections that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// This node can send to the peer in this class.
    Up {
        /// The peer.
        peer: u64,
        /// The class of the connection.
        class: Class,
    },
    /// The connection broke: messages that were on their way to the peer may be lost. Further
    /// attempts to connect follow by themselves.
    Down {
        /// The peer.
        peer: u64,
        /// The class of the connection.
        class: Class,
        /// Why.
        reason: DownReason,
    },
    /// A peer rejected this node's handshake, or this node the certificate of the peer. Told once
    /// for as long as the reason stays the same. Further attempts follow by themselves.
    ConnectRejected {
        /// The peer.
        peer: u64,
        /// The class of the connection.
        class: Class,
        /// The peer's reason; `Tls` if it is this node's.
        error: HandshakeError,
    },
    /// This node rejected the handshake of a connection that came in.
    AcceptRejected {
        /// From where it came.
        remote: SocketAddr,
        /// The reason, which the other side was told, unless it does not speak this protocol.
        error: HandshakeError,
    },
    /// A peer broke the protocol after its handshake; its connection was closed. What it had sent
    /// before has been delivered.
    Violation {
        /// The peer.
        peer: u64,
        /// From where it came.
        remote: SocketAddr,
        /// The violation.
        violation: Violation,
    },
    /// The connection of a peer was closed to make room: unfinished frames took
    /// `Config::max_partial_bytes`, and this peer's was the oldest of them. What it had sent before
    /// has been delivered. `Stats` counts it, and the own connections that ended so.
    Overloaded {
        /// The peer.
        peer: u64,
        /// From where it came.
        remote: SocketAddr,
    },
    /// The connection of a peer was closed: certificates were reloaded, and its certificate would
    /// be rejected now. What it had sent before has been delivered. `Stats` counts it, and the own
    /// connections that ended so.
    Revoked {
        /// The peer.
        peer: u64,
        /// From where it came.
        remote: SocketAddr,
        /// Why its certificate would be rejected.
        error: TlsError,
    },
    /// A peer sent to a service that has no handler here: the message was dropped, the call
    /// rejected. Told once per connection; `Stats` counts all.
    UnknownService {
        /// The peer.
        peer: u64,
        /// The service that it named.
        service: u16,
    },
    /// The reader of these events was too slow: this many were dropped. One `Up` for each
    /// connection that stands follows; all others are down.
    Missed {
        /// How many were dropped.
        count: u64,
    },
}

/// Why a connection of this node to a peer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DownReason {
    /// The peer or the network between closed or reset it.
    #[error("closed or reset")]
    Closed,
    /// The peer shut down in an orderly way.
    #[error("the peer shut down")]
    Goodbye,
    /// Nothing was heard from the peer for `Config::dead_after`.
    #[error("nothing heard for too long")]
    Silent,
    /// The peer broke the protocol.
    #[error("{0}")]
    Violation(#[source] Violation),
    /// Unfinished frames took `Config::max_partial_bytes`, and the peer's answer was the oldest.
    #[error("no room for unfinished frames")]
    Overloaded,
    /// Certificates were reloaded, and the certificate of the peer would be rejected now.
    #[error("after a reload: {0}")]
    Revoked(#[source] TlsError),
    /// This node shut down.
    #[error("this transport shut down")]
    Local,
}

/// Why a handshake was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The received bytes are not a handshake of this protocol, or are damaged.
    #[error("not a voussoir-net handshake")]
    Malformed,
    /// The handshake was not complete in time, or had to make room for others.
    #[error("the handshake took too long")]
    TimedOut,
    /// The two sides have no protocol version in common.
    #[error("protocol versions {min} to {max} are not spoken here")]
    Version {
        /// The lowest version of the rejected side.
        min: u16,
        /// Its highest version.
        max: u16,
    },
    /// The two sides belong to different clusters.
    #[error("another cluster")]
    Cluster,
    /// The rejected side meant to reach another node.
    #[error("another node than the one that was meant")]
    Recipient,
    /// The rejected side calls itself by the id of the rejecting one.
    #[error("the id is taken by this node")]
    SameId,
    /// The class of the connection is not known.
    #[error("unknown class")]
    Class,
    /// `Config::max_connections` connections are open.
    #[error("too many connections")]
    TooMany,
    /// The rejecting side is shutting down.
    #[error("shutting down")]
    Closing,
    /// The rejecting side takes TLS only, and the rejected one spoke plain TCP.
    #[error("TLS is required")]
    TlsRequired,
    /// The rejecting side speaks plain TCP only, and the rejected one began with TLS.
    #[error("TLS is not spoken here")]
    TlsUnsupported,
    /// The certificate of the rejected side proves another id than it claims.
    #[error("another id than the certificate proves")]
    Identity,
    /// A later connection of the same node and class came in while this one waited for the end of
    /// an older one.
    #[error("a later connection of the same node has come")]
    Superseded,
    /// TLS rejected the other side; `TlsError::Alert` is the reason of the other side.
    #[error("{0}")]
    Tls(#[source] TlsError),
    /// A reason that this version does not know.
    #[error("rejected for reason {0}")]
    Other(u16),
}

/// Violation of the protocol by a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A frame is longer than this side takes in this class. Seen from its header; nothing was
    /// allocated for it.
    #[error("a frame of {bytes} bytes, more than {max_bytes}")]
    Oversized {
        /// The length that the header gives.
        bytes: u64,
        /// The longest that is taken.
        max_bytes: usize,
    },
    /// The checksum of a frame does not fit.
    #[error("a frame with a wrong checksum")]
    Checksum,
    /// A kind of frame that is unknown, or that may not come from this side of a connection.
    #[error("a frame of kind {0} in the wrong place")]
    Kind(u8),
    /// A flag that must be understood and is not.
    #[error("a frame with unknown flags {0:#04x}")]
    Flags(u8),
    /// A request by the id of one that is still under way.
    #[error("a second call by the id of one under way")]
    DuplicateCall,
    /// The connection ended within a frame.
    #[error("the connection ended within a frame")]
    Truncated,
    /// TLS was violated, or the connection ended without the end that TLS prescribes.
    #[error("{0}")]
    Tls(#[source] TlsError),
    /// Nothing was heard for `Config::dead_after`, or a frame came too slowly.
    #[error("nothing heard for too long")]
    Silent,
}

type Standing = BTreeSet<(u64, Class)>;

struct Shared {
    sender: broadcast::Sender<Event>,
    standing: Mutex<Standing>,
}

impl Shared {
    fn snapshot(&self) -> (broadcast::Receiver<Event>, VecDeque<Event>) {
        let standing = self.standing.lock();
        let ups = standing.iter().map(|&(peer, class)| Event::Up { peer, class }).collect();
        (self.sender.subscribe(), ups)
    }
}

/// The side of a transport that tells of events. For those who write a transport.
///
/// # Example
/// ```
/// use voussoir_net::{Class, Event, Publisher};
///
/// let publisher = Publisher::new(16);
/// publisher.publish(Event::Up { peer: 7, class: Class::Small });
/// let mut events = publisher.subscribe();
/// assert_eq!(events.try_next(), Some(Event::Up { peer: 7, class: Class::Small }));
/// assert_eq!(events.try_next(), None);
/// ```
#[derive(Clone)]
pub struct Publisher {
    shared: Arc<Shared>,
}

impl Publisher {
    /// A publisher whose readers may each be up to `capacity` events (at least 1) behind.
    pub fn new(capacity: usize) -> Self {
        let (sender, _) = broadcast::channel(capacity.max(1));
        Self { shared: Arc::new(Shared { sender, standing: Mutex::default() }) }
    }

    /// Tells every reader. Never blocks.
    pub fn publish(&self, event: Event) {
        // Under the lock, so that a new reader sees each change exactly once: in its snapshot or
        // as an event.
        let mut standing = self.shared.standing.lock();
        match event {
            Event::Up { peer, class } => {
                standing.insert((peer, class));
            }
            Event::Down { peer, class, .. } => {
                standing.remove(&(peer, class));
            }
            _ => {}
        }
        // An error only says that there is no reader.
        let _ = self.shared.sender.send(event);
    }

    /// A new reader: one `Up` for each connection that stands, then all that follows.
    pub fn subscribe(&self) -> Events {
        let (receiver, backlog) = self.shared.snapshot();
        Events { receiver, backlog, shared: Arc::downgrade(&self.shared) }
    }
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("standing", &*self.shared.standing.lock()).finish()
    }
}

/// A reader of events.
pub struct Events {
    receiver: broadcast::Receiver<Event>,
    backlog: VecDeque<Event>,
    shared: std::sync::Weak<Shared>,
}

impl Events {
    /// The next event, or `None` when the transport is gone.
    ///
    /// # Cancel safety
    /// Cancel safe: an event is taken only when it is returned.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.backlog.pop_front() {
                return Some(event);
            }
            match self.receiver.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Closed) => return None,
                Err(broadcast::error::RecvError::Lagged(count)) => self.catch_up(count),
            }
        }
    }

    /// The next event if there is one now.
    pub fn try_next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.backlog.pop_front() {
                return Some(event);
            }
            match self.receiver.try_recv() {
                Ok(event) => return Some(event),
                Err(broadcast::error::TryRecvError::Lagged(count)) => self.catch_up(count),
                Err(_) => return None,
            }
        }
    }

    fn catch_up(&mut self, count: u64) {
        self.backlog.push_back(Event::Missed { count });
        if let Some(shared) = self.shared.upgrade() {
            // Events left in the old queue are part of the new snapshot: they count as missed.
            let behind = self.receiver.len() as u64;
            let (receiver, ups) = shared.snapshot();
            self.backlog.clear();
            self.backlog.push_back(Event::Missed { count: count + behind });
            self.backlog.extend(ups);
            self.receiver = receiver;
        }
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("waiting", &self.receiver.len()).finish_non_exhaustive()
    }
}
