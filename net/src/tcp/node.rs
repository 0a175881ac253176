//! State shared by all connections of one transport.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::accept::Arrivals;
use super::link::Link;
use super::pump::PumpContext;
use super::socket::Security;
use crate::core::partials::Partials;
use crate::serving::Services;
use crate::stats::Counters;
use crate::{Class, Config, Publisher, Resolver, SendError};

pub(crate) struct Node {
    pub(crate) local: u64,
    pub(crate) config: Config,
    pub(crate) resolver: Arc<dyn Resolver>,
    pub(crate) services: Services,
    pub(crate) publisher: Publisher,
    pub(crate) counters: Arc<Counters>,
    pub(crate) partials: Arc<Partials>,
    pub(crate) arrivals: Arrivals,
    pub(crate) security: Security,
    links: RwLock<Links>,
    runtime: Handle,
    is_leaving: AtomicBool,
    is_closing: AtomicBool,
    stop: watch::Sender<bool>,
    /// Each task holds a receiver, so that the end of the last one can be awaited.
    tasks: watch::Sender<()>,
}

#[derive(Default)]
struct Links {
    /// Those that `send` and `call` take.
    current: HashMap<(u64, Class), Arc<Link>>,
    /// Those whose peer has said goodbye: calls of them may still be under way. Each stays until
    /// its connection ends, whether or not its peer is still known then.
    leaving: Vec<Arc<Link>>,
}

/// Whether a peer is known could not be found out.
#[derive(Debug)]
pub(crate) struct ResolverPanicked;

impl Node {
    pub(crate) fn new(
        local: u64,
        mut config: Config,
        resolver: Arc<dyn Resolver>,
        security: Security,
        runtime: Handle,
    ) -> Arc<Self> {
        config.seed = Some(config.draw_seed());
        Arc::new(Self {
            local,
            publisher: Publisher::new(config.max_events),
            counters: Arc::default(),
            partials: Partials::new(config.max_partial_bytes),
            arrivals: Arrivals::default(),
            links: RwLock::default(),
            services: Services::default(),
            is_leaving: AtomicBool::new(false),
            is_closing: AtomicBool::new(false),
            stop: watch::Sender::new(false),
            tasks: watch::Sender::new(()),
            config,
            resolver,
            security,
            runtime,
        })
    }

    /// Starts a task. One that is started after [`Node::stop`] ends at its first `await`.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let alive = self.tasks.subscribe();
        let task = self.runtime.spawn(async move {
            task.await;
            drop(alive);
        });
        task.abort_handle()
    }

    /// Returns when no task is left.
    pub(crate) async fn ended(&self) {
        self.tasks.closed().await;
    }

    pub(crate) fn pump_context(&self) -> PumpContext {
        PumpContext {
            keep_alive: self.config.keep_alive,
            dead_after: self.config.dead_after,
            counters: Arc::clone(&self.counters),
            partials: Arc::clone(&self.partials),
        }
    }

    /// Becomes true when every task is to end.
    pub(crate) fn stopped(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Whether nothing new is taken from peers.
    pub(crate) fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Acquire)
    }

    /// Takes nothing new from peers from now on, and tells them so. This node's own messages and
    /// calls are still taken: handlers may need them for their answers.
    pub(crate) fn leave(&self) {
        self.is_leaving.store(true, Ordering::Release);
        self.arrivals.goodbye();
    }

    /// Whether nothing new is taken at all.
    pub(crate) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// Takes nothing new from now on.
    pub(crate) fn close(&self) {
        self.is_leaving.store(true, Ordering::Release);
        self.is_closing.store(true, Ordering::Release);
        for link in self.links() {
            link.pipe.close();
        }
    }

    /// Ends every task.
    pub(crate) fn stop(&self) {
        self.close();
        self.stop.send_replace(true);
        self.services.clear();
    }

    /// All links: of one peer and class one at most that takes anything new, and those that leave.
    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        let links = self.links.read();
        links.current.values().chain(&links.leaving).cloned().collect()
    }

    /// Asks the resolver, which is foreign code: no lock is held, and a panic ends nothing.
    pub(crate) fn resolve(&self, peer: u64) -> Result<Option<SocketAddr>, ResolverPanicked> {
        catch_unwind(AssertUnwindSafe(|| self.resolver.resolve(peer))).map_err(|_| {
            tracing::error!(target: "voussoir::net", peer, "the resolver panicked");
            ResolverPanicked
        })
    }

    /// The link to a peer, begun if there is none yet.
    pub(crate) fn link(self: &Arc<Self>, peer: u64, class: Class) -> Result<Arc<Link>, SendError> {
        if let Some(link) = self.links.read().current.get(&(peer, class)) {
            return Ok(Arc::clone(link));
        }
        if peer == self.local {
            return Err(SendError::ToSelf);
        }
        if !matches!(self.resolve(peer), Ok(Some(_))) {
            return Err(SendError::UnknownPeer);
        }
        let mut links = self.links.write();
        // Under the lock: `close` finds either the flag set here or the link in the map.
        if self.is_closing() {
            return Err(SendError::Closed);
        }
        match links.current.entry((peer, class)) {
            Entry::Occupied(entry) => Ok(Arc::clone(entry.get())),
            Entry::Vacant(entry) => {
                let link = Arc::new(Link::new(self, peer, class));
                entry.insert(Arc::clone(&link));
                self.spawn(super::link::run(Arc::clone(self), Arc::clone(&link)));
                Ok(link)
            }
        }
    }

    /// Puts a new link in the place of one whose peer has said goodbye: what it has under way may
    /// take as long as it likes, and new calls do not wait for that. Dropping what is returned
    /// beside the new link forgets the old one.
    pub(crate) fn succeed(self: &Arc<Self>, link: &Arc<Link>) -> (Arc<Link>, Leaving) {
        let next = Arc::new(Link::after(self, link));
        let leaving = Leaving { node: Arc::clone(self), link: Arc::clone(link) };
        let mut links = self.links.write();
        links.current.insert((link.peer, link.class), Arc::clone(&next));
        links.leaving.push(Arc::clone(link));
        // Under the lock: `close` finds either the flag set here or the link in the map.
        if self.is_closing() {
            next.pipe.close();
        }
        (next, leaving)
    }

    /// Forgets a link whose peer is unknown now.
    pub(crate) fn unlink(&self, link: &Link) {
        self.links.write().current.remove(&(link.peer, link.class));
    }

    /// A peer has come in: it can be reached, so links to it need not wait.
    pub(crate) fn poke(&self, peer: u64) {
        let links = self.links.read();
        for class in Class::ALL {
            if let Some(link) = links.current.get(&(peer, class)) {
                link.poke.notify_waiters();
            }
        }
    }
}

/// Keeps a link whose peer has said goodbye among those of the node.
pub(crate) struct Leaving {
    node: Arc<Node>,
    link: Arc<Link>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.node.links.write().leaving.retain(|link| !Arc::ptr_eq(link, &self.link));
    }
}
