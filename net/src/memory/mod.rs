//! A transport in memory with faults that are set at run time, for tests.
//!
//! The network keeps the guarantees of [`Transport`] and injects faults on demand: delay,
//! partitions in both or one direction, broken connections, stalled peers, nodes that die and come
//! back; and silent loss, which TCP does not have.

mod link;
mod network;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use self::network::Host;
pub use self::network::{FaultCounts, Faults, Network};
use crate::{
    CallError, Channel, Class, Events, Handler, Lost, Parts, SendError, ServeError, Transport,
};

/// A node of a [`Network`]. Clones are handles to the same; when the last is dropped, or at
/// [`Memory::leave`], it ends as if its process had been killed, and its id can join again.
#[derive(Clone)]
pub struct Memory {
    owner: Arc<Owner>,
}

struct Owner {
    network: Network,
    host: Arc<Host>,
    has_left: AtomicBool,
}

impl Owner {
    fn leave(&self) {
        self.has_left.store(true, Ordering::Release);
        self.network.leave(self.host.id, Some(&self.host));
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Memory {
    fn new(network: Network, host: Arc<Host>) -> Self {
        let has_left = AtomicBool::new(false);
        Self { owner: Arc::new(Owner { network, host, has_left }) }
    }

    /// Leaves the network: what is on its way is lost, calls in both directions end, handlers
    /// are dropped, and peers see their connections break.
    pub fn leave(&self) {
        self.owner.leave();
    }

    fn link(&self, peer: u64, channel: Channel) -> Result<Arc<link::Link>, SendError> {
        self.owner.network.link(&self.owner.host, peer, channel.class)
    }
}

#[async_trait]
impl Transport for Memory {
    fn local(&self) -> u64 {
        self.owner.host.id
    }

    fn max_message_bytes(&self, class: Class) -> usize {
        self.owner.network.shared.config.limits(class).max_message_bytes
    }

    fn send(&self, peer: u64, channel: Channel, parts: Parts) -> Result<(), SendError> {
        self.link(peer, channel)?.send(channel.service, parts)
    }

    async fn call(
        &self,
        peer: u64,
        channel: Channel,
        parts: Parts,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        let link = self.link(peer, channel)?;
        if deadline <= Instant::now() {
            return Err(CallError::NotSent(SendError::Expired));
        }
        let (ticket, answer) = link.call(channel.service, parts, deadline)?;
        match timeout_at(deadline, answer).await {
            Ok(answer) => {
                ticket.done();
                answer.unwrap_or(Err(CallError::Unknown(Lost::Closed)))
            }
            Err(_) => Err(CallError::Unknown(Lost::Deadline)),
        }
    }

    fn serve(&self, service: u16, handler: Arc<dyn Handler>) -> Result<(), ServeError> {
        if self.owner.has_left.load(Ordering::Acquire) {
            return Err(ServeError::Closed);
        }
        self.owner.host.services.add(service, handler)
    }

    fn withdraw(&self, service: u16) -> bool {
        self.owner.host.services.remove(service)
    }

    fn events(&self) -> Events {
        self.owner.host.publisher.subscribe()
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").field("local", &self.owner.host.id).finish_non_exhaustive()
    }
}
