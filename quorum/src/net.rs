//! Requests and answers over `voussoir-net`. Feature `net`.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;
use voussoir_net::{Channel, Handler, Parts, Rejected, ServeError, Transport};

use crate::link::{Class, Link};
use crate::node::Node;
use crate::region::Region;
use crate::table::CallError;

/// Calls nodes over one service of a [`Transport`]; answers for a node of this process, if there is
/// one. When it is dropped the service is withdrawn.
///
/// The limits of the transport must hold [`Class::MAX_SMALL_BYTES`] and [`Class::MAX_BULK_BYTES`];
/// the defaults of [`voussoir_net::Config`] do.
pub struct NetLink {
    net: Arc<dyn Transport>,
    service: u16,
    own: Option<Own>,
}

/// What answers for this process.
#[derive(Clone)]
enum Own {
    Node(Node),
    Region(Region),
}

impl Own {
    fn id(&self) -> u64 {
        match self {
            Self::Node(node) => node.id(),
            Self::Region(region) => region.node().id(),
        }
    }

    async fn answer(&self, request: Bytes) -> Option<Bytes> {
        match self {
            Self::Node(node) => node.answer(request).await,
            Self::Region(region) => region.answer(request).await,
        }
    }
}

impl std::fmt::Debug for NetLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let local = self.net.local();
        f.debug_struct("NetLink").field("local", &local).finish_non_exhaustive()
    }
}

impl NetLink {
    /// The link of a process that has a node: answers the requests of others by the service
    /// `service`, the same number on every node. Calls to the node itself do not leave the process.
    ///
    /// # Errors
    /// [`ServeError`] if the service is taken, or the transport is shut down.
    pub fn serve(
        net: Arc<dyn Transport>,
        service: u16,
        node: Node,
    ) -> Result<Arc<Self>, ServeError> {
        Self::serve_own(net, service, Own::Node(node))
    }

    /// The link between regions of a process that has a node of one: answers the other regions by
    /// the service `service`, the same number on every node, and another one than that of the
    /// link in the region.
    ///
    /// # Errors
    /// As [`NetLink::serve`].
    pub fn serve_region(
        net: Arc<dyn Transport>,
        service: u16,
        region: Region,
    ) -> Result<Arc<Self>, ServeError> {
        Self::serve_own(net, service, Own::Region(region))
    }

    fn serve_own(net: Arc<dyn Transport>, service: u16, own: Own) -> Result<Arc<Self>, ServeError> {
        net.serve(service, Arc::new(Server { own: own.clone() }))?;
        Ok(Arc::new(Self { net, service, own: Some(own) }))
    }

    /// The link of a process that only has clients.
    pub fn client(net: Arc<dyn Transport>, service: u16) -> Arc<Self> {
        Arc::new(Self { net, service, own: None })
    }
}

impl Drop for NetLink {
    fn drop(&mut self) {
        if self.own.is_some() {
            self.net.withdraw(self.service);
        }
    }
}

#[async_trait]
impl Link for NetLink {
    async fn call(
        &self,
        to: u64,
        class: Class,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        if let Some(own) = self.own.as_ref().filter(|own| own.id() == to) {
            let answer = tokio::time::timeout_at(deadline, own.answer(request)).await;
            return answer.ok().flatten().ok_or(CallError::Unknown);
        }
        let class = match class {
            Class::Small => voussoir_net::Class::Small,
            Class::Bulk => voussoir_net::Class::Bulk,
        };
        let channel = Channel { service: self.service, class };
        let answer = self.net.call(to, channel, Parts::new(request), deadline).await;
        answer.map_err(|error| match error.outcome() {
            voussoir_net::Outcome::NotApplied => CallError::NotSent,
            voussoir_net::Outcome::Unknown => CallError::Unknown,
        })
    }
}

struct Server {
    own: Own,
}

#[async_trait]
impl Handler for Server {
    fn message(&self, _from: u64, _class: voussoir_net::Class, _body: Bytes) {}

    async fn call(&self, _from: u64, body: Bytes) -> Result<Parts, Rejected> {
        // A node that halted on the way may have done what it was asked: that is no rejection, and
        // an answer that is none of ours is one of unknown outcome to the caller.
        let answer = self.own.answer(body).await.unwrap_or_default();
        Ok(Parts::new(answer))
    }
}
