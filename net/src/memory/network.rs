//! A network in memory, and what is done to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use fastrand::Rng;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::Memory;
use super::link::{Link, Path};
use crate::core::backoff::duration_between;
use crate::serving::Services;
use crate::{Class, Config, ConfigError, DownReason, Event, Publisher, SendError};

/// Faults of the path from one node to another. Messages are never duplicated and never reordered,
/// as within every connection.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// The probability that a message is lost without anybody being told, 0 to 1. More than TCP
    /// does to one whose connection stands: what bears this bears the loss of connections.
    pub drop: f64,
    /// The shortest time on the way.
    pub min_delay: Duration,
    /// The longest time on the way. Zero: delivered by the sender itself, before `send` returns.
    pub max_delay: Duration,
}

impl Faults {
    /// No fault.
    pub fn none() -> Self {
        Self::default()
    }

    /// Each message takes this long; the order stays.
    pub fn delay(min: Duration, max: Duration) -> Self {
        Self { drop: 0.0, min_delay: min, max_delay: max }
    }

    /// Each message is lost with this probability.
    pub fn with_drop(mut self, probability: f64) -> Self {
        self.drop = probability;
        self
    }

    pub(super) fn draw(&self, rng: &mut Rng, tally: &Tally) -> Option<Duration> {
        if self.drop > 0.0 && rng.f64() < self.drop {
            tally.dropped.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        if self.max_delay.is_zero() {
            return Some(Duration::ZERO);
        }
        tally.delayed.fetch_add(1, Ordering::Relaxed);
        Some(duration_between(rng, self.min_delay, self.max_delay))
    }
}

/// How often what happened in a [`Network`] since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultCounts {
    /// Messages and requests handed to a handler, or found to have none.
    pub delivered: u64,
    /// Messages, requests and answers lost.
    pub dropped: u64,
    /// Messages, requests and answers that took time.
    pub delayed: u64,
    /// Messages and requests rejected because a queue was full.
    pub full: u64,
    /// Connections that broke.
    pub disconnected: u64,
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) delivered: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) delayed: AtomicU64,
    pub(super) full: AtomicU64,
    pub(super) disconnected: AtomicU64,
}

/// A node of the network, from its `join` to its end.
pub(super) struct Host {
    pub(super) id: u64,
    pub(super) services: Services,
    pub(super) publisher: Publisher,
    network: Weak<Shared>,
}

impl Host {
    /// The path from this node to another.
    pub(super) fn path_to(&self, to: u64) -> Path {
        let network = self.network.upgrade();
        network.map(|shared| shared.inner.read().path(self.id, to)).unwrap_or_default()
    }
}

type LinkKey = (u64, u64, Class);

#[derive(Default)]
struct Inner {
    hosts: BTreeMap<u64, Arc<Host>>,
    /// Every id that ever joined.
    known: BTreeSet<u64>,
    links: BTreeMap<LinkKey, Arc<Link>>,
    /// Links that were broken by their peer's end, and come up when it joins again.
    orphans: BTreeSet<LinkKey>,
    paths: BTreeMap<(u64, u64), Path>,
    all: Faults,
}

impl Inner {
    fn path(&self, from: u64, to: u64) -> Path {
        let other = || Path { faults: self.all.clone(), ..Path::default() };
        self.paths.get(&(from, to)).cloned().unwrap_or_else(other)
    }
}

pub(super) struct Shared {
    pub(super) config: Config,
    tally: Arc<Tally>,
    runtime: Handle,
    inner: RwLock<Inner>,
    /// Held during a change of the network and the delivery of its events.
    changing: Mutex<()>,
}

/// A network in memory whose faults are set at run time. Clones are handles to the same.
///
/// Without delay a message is delivered by its sender, inside of `send`. With a seed in the
/// [`Config`], on a current-thread runtime with paused time, a run is the same each time.
///
/// # Example
/// ```
/// # use voussoir_net::{Config, SendError, Transport, Channel, memory::Network};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let network = Network::new(Config::default()).unwrap();
/// let (one, two) = (network.join(1), network.join(2));
/// one.send(2, Channel::small(7), "vote".into()).unwrap();
/// network.disconnect(1, 2);
/// network.cut(1, 2);
/// # let _ = two;
/// # }
/// ```
#[derive(Clone)]
pub struct Network {
    pub(super) shared: Arc<Shared>,
}

impl Network {
    /// A network without nodes and without faults. Of the configuration the limits, `dead_after`,
    /// `seed` and `max_events` have a meaning here.
    ///
    /// # Errors
    /// [`ConfigError`] when a field is out of its range.
    ///
    /// # Panics
    /// Outside of a tokio runtime, which delayed messages and unfinished calls need.
    pub fn new(mut config: Config) -> Result<Self, ConfigError> {
        config.validate()?;
        config.seed = Some(config.draw_seed());
        let shared = Shared {
            config,
            tally: Arc::default(),
            runtime: Handle::current(),
            inner: RwLock::default(),
            changing: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Adds a node. One of the same id that is still there ends, as if its process had been
    /// killed.
    pub fn join(&self, id: u64) -> Memory {
        self.leave(id, None);
        let _change = self.shared.changing.lock();
        let host = Arc::new(Host {
            id,
            services: Services::default(),
            publisher: Publisher::new(self.shared.config.max_events),
            network: Arc::downgrade(&self.shared),
        });
        let orphans: Vec<LinkKey> = {
            let mut inner = self.shared.inner.write();
            inner.known.insert(id);
            inner.hosts.insert(id, Arc::clone(&host));
            let back = inner.orphans.iter().filter(|(_, to, _)| *to == id).copied().collect();
            inner.orphans.retain(|(_, to, _)| *to != id);
            back
        };
        for (from, to, class) in orphans {
            let origin = self.shared.inner.read().hosts.get(&from).cloned();
            if let Some(origin) = origin {
                // A peer that is cut off is told when it is not.
                let _ = self.link(&origin, to, class);
            }
        }
        Memory::new(self.clone(), host)
    }

    /// Removes a node: this one, or whichever has the id.
    pub(super) fn leave(&self, id: u64, which: Option<&Arc<Host>>) {
        let change = self.shared.changing.lock();
        let (host, links) = {
            let mut inner = self.shared.inner.write();
            let Some(host) = inner.hosts.get(&id) else { return };
            if which.is_some_and(|which| !Arc::ptr_eq(which, host)) {
                return;
            }
            let host = inner.hosts.remove(&id);
            let is_of = |key: &LinkKey| key.0 == id || key.1 == id;
            let keys: Vec<LinkKey> = inner.links.keys().copied().filter(is_of).collect();
            let links: Vec<_> =
                keys.iter().filter_map(|key| Some((*key, inner.links.remove(key)?))).collect();
            inner.orphans.extend(keys.iter().filter(|key| key.1 == id));
            inner.orphans.retain(|key| key.0 != id);
            (host, links)
        };
        for ((from, ..), link) in links {
            let reason = if from == id { DownReason::Local } else { DownReason::Closed };
            link.disconnect(reason, true);
        }
        // A handler that goes may take the last handle to a node with it, which comes here again.
        drop(change);
        if let Some(host) = host {
            host.services.clear();
        }
    }

    /// The link of a node to a peer, begun if there is none.
    pub(super) fn link(
        &self,
        from: &Arc<Host>,
        to: u64,
        class: Class,
    ) -> Result<Arc<Link>, SendError> {
        let key = (from.id, to, class);
        {
            let inner = self.shared.inner.read();
            if let Some(link) = inner.links.get(&key)
                && Arc::ptr_eq(&link.from, from)
            {
                return Ok(Arc::clone(link));
            }
        }
        let link = {
            let mut inner = self.shared.inner.write();
            let is_here = inner.hosts.get(&from.id).is_some_and(|host| Arc::ptr_eq(host, from));
            if !is_here {
                return Err(SendError::Closed);
            }
            if to == from.id {
                return Err(SendError::ToSelf);
            }
            if !inner.known.contains(&to) {
                return Err(SendError::UnknownPeer);
            }
            let Some(peer) = inner.hosts.get(&to).cloned() else {
                inner.orphans.insert(key);
                return Err(SendError::Down);
            };
            if let Some(link) = inner.links.get(&key) {
                return Ok(Arc::clone(link));
            }
            let rest = (Arc::clone(&self.shared.tally), self.shared.runtime.clone());
            let ends = (Arc::clone(from), peer);
            let path = inner.path(from.id, to);
            let link = Arc::new(Link::new(ends, class, path, &self.shared.config, rest));
            inner.links.insert(key, Arc::clone(&link));
            link
        };
        if link.is_up() {
            link.tell(Event::Up { peer: to, class });
        }
        Ok(link)
    }

    fn change(&self, from: u64, to: u64, change: impl Fn(&mut Path)) {
        let changing = self.shared.changing.lock();
        let (path, links) = {
            let mut inner = self.shared.inner.write();
            let mut path = inner.path(from, to);
            change(&mut path);
            inner.paths.insert((from, to), path.clone());
            (path, inner.links_between(from, to))
        };
        for link in &links {
            link.set_path(path.clone());
        }
        // Handlers run in here.
        drop(changing);
        for link in links {
            link.drain();
        }
    }

    /// Sets the faults of the path from one node to another.
    pub fn set_faults(&self, from: u64, to: u64, faults: Faults) {
        self.change(from, to, |path| path.faults = faults.clone());
    }

    /// Sets the faults of every path, also of nodes that join later.
    pub fn set_all_faults(&self, faults: Faults) {
        let paths = {
            let mut inner = self.shared.inner.write();
            inner.all = faults.clone();
            let known: Vec<u64> = inner.known.iter().copied().collect();
            pairs(&known, &known)
        };
        for (from, to) in paths {
            self.set_faults(from, to, faults.clone());
        }
    }

    /// Cuts the path from one node to another, in this direction alone: what is sent by it is
    /// lost, and after `Config::dead_after` the sender learns that the connection is down. (Over
    /// TCP a cut in one direction soon ends the connection of the other direction as well; here
    /// it stays, which is the harder case.)
    pub fn cut(&self, from: u64, to: u64) {
        let now = Instant::now();
        self.change(from, to, |path| path.cut = path.cut.or(Some(now)));
        let (network, links) = (self.clone(), self.shared.inner.read().links_between(from, to));
        let dead_after = self.shared.config.dead_after;
        self.shared.runtime.spawn(async move {
            tokio::time::sleep(dead_after).await;
            if network.shared.inner.read().path(from, to).cut == Some(now) {
                for link in links {
                    link.disconnect(DownReason::Silent, true);
                }
            }
        });
    }

    /// Undoes [`Network::cut`]. A connection that went down comes up.
    pub fn mend(&self, from: u64, to: u64) {
        self.change(from, to, |path| path.cut = None);
    }

    /// Cuts every path between the two groups, in both directions.
    pub fn partition(&self, one: &[u64], other: &[u64]) {
        for (a, b) in pairs(one, other) {
            self.cut(a, b);
            self.cut(b, a);
        }
    }

    /// Cuts a node off from every id that has joined so far, in both directions. Nodes that join
    /// later reach it.
    pub fn isolate(&self, id: u64) {
        let known: Vec<u64> = self.shared.inner.read().known.iter().copied().collect();
        self.partition(&[id], &known);
    }

    /// Mends and releases every path. Probabilities and delays stay.
    pub fn heal(&self) {
        let paths: Vec<(u64, u64)> = self.shared.inner.read().paths.keys().copied().collect();
        for (from, to) in paths {
            self.change(from, to, |path| (path.cut, path.is_held) = (None, false));
        }
    }

    /// Stops the path from one node to another, as a peer that has stalled does. Messages and
    /// requests wait in the queue of the sender until it is full. Answers that would take the path
    /// are lost.
    pub fn hold(&self, from: u64, to: u64) {
        self.change(from, to, |path| path.is_held = true);
    }

    /// Undoes [`Network::hold`]: the messages and requests that have waited are delivered.
    pub fn release(&self, from: u64, to: u64) {
        self.change(from, to, |path| path.is_held = false);
    }

    /// Breaks the connections of one node to another, which are made again at once: what was on
    /// its way is lost, and both events are told.
    pub fn disconnect(&self, from: u64, to: u64) {
        let _change = self.shared.changing.lock();
        let links = self.shared.inner.read().links_between(from, to);
        for link in links {
            let stays_down = !link.is_up();
            link.disconnect(DownReason::Closed, stays_down);
        }
    }

    /// Numbers of faults so far.
    pub fn counts(&self) -> FaultCounts {
        let tally = &self.shared.tally;
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        FaultCounts {
            delivered: get(&tally.delivered),
            dropped: get(&tally.dropped),
            delayed: get(&tally.delayed),
            full: get(&tally.full),
            disconnected: get(&tally.disconnected),
        }
    }
}

impl Inner {
    fn links_between(&self, from: u64, to: u64) -> Vec<Arc<Link>> {
        let find = |class| self.links.get(&(from, to, class)).cloned();
        Class::ALL.into_iter().filter_map(find).collect()
    }
}

fn pairs(one: &[u64], other: &[u64]) -> Vec<(u64, u64)> {
    let all = one.iter().flat_map(|&a| other.iter().map(move |&b| (a, b)));
    all.filter(|(a, b)| a != b).collect()
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = self.shared.inner.read();
        f.debug_struct("Network")
            .field("nodes", &inner.hosts.keys().collect::<Vec<_>>())
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}
