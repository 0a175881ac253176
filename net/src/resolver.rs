//! Where peers are found.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::RwLock;

/// Knows the address of each peer.
///
/// The resolver is asked at each attempt to connect, so an answer may change at any time; open
/// connections stay. An implementation answers from memory: a resolver that depends on DNS or on a
/// registry keeps a map and refreshes it on a task of its own.
///
/// No lock is held while it is asked, so it may use the transport. If it panics in `send`, `call`
/// or `connect`, these fail with `UnknownPeer`; at an attempt to connect, the attempt has failed
/// and others follow.
pub trait Resolver: Send + Sync + 'static {
    /// The address of a peer, or `None` when there is no such peer (any more): attempts to
    /// connect end, and sending to it fails with
    /// [`SendError::UnknownPeer`](crate::SendError::UnknownPeer), unless a connection to it stands.
    /// That one goes on, and `send` and `call` use it, until it ends by itself.
    fn resolve(&self, peer: u64) -> Option<SocketAddr>;
}

/// A map of peers and addresses which can be changed while in use. Clones share it.
///
/// # Example
/// ```
/// use voussoir_net::{Peers, Resolver};
///
/// let peers = Peers::from_iter([(1, "127.0.0.1:7001".parse()?)]);
/// peers.insert(2, "127.0.0.1:7002".parse()?);
/// peers.remove(1);
/// assert_eq!(peers.resolve(1), None);
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Peers {
    map: Arc<RwLock<HashMap<u64, SocketAddr>>>,
}

impl Peers {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the address of a peer and returns the one that it had.
    pub fn insert(&self, peer: u64, address: SocketAddr) -> Option<SocketAddr> {
        self.map.write().insert(peer, address)
    }

    /// Forgets a peer and returns its address.
    pub fn remove(&self, peer: u64) -> Option<SocketAddr> {
        self.map.write().remove(&peer)
    }
}

impl FromIterator<(u64, SocketAddr)> for Peers {
    fn from_iter<I: IntoIterator<Item = (u64, SocketAddr)>>(peers: I) -> Self {
        Self { map: Arc::new(RwLock::new(peers.into_iter().collect())) }
    }
}

impl Resolver for Peers {
    fn resolve(&self, peer: u64) -> Option<SocketAddr> {
        self.map.read().get(&peer).copied()
    }
}
