//! A node: the replica of a table and the acceptors of registers, on one store.

mod acceptors;
mod config;
mod driver;
mod hints;
mod maintenance;
mod members;
mod meta;
mod rebuild;
mod regional;
mod repair;
mod strangers;
mod tombstones;
mod tree;
mod view;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

pub use self::config::NodeConfig;
use self::driver::{Driver, Job, Told, status_of};
pub use self::hints::HintStats;
use self::hints::Hints;
pub use self::members::ReconfigureError;
use self::meta::Meta;
pub use self::rebuild::RebuildError;
pub use self::repair::{RepairError, RepairStats, Repaired};
pub use self::strangers::{Stranger, Strangers};
use self::tombstones::Collected;
pub(crate) use self::tombstones::Tombstone;
pub use self::tombstones::{CollectError, TombstoneStats};
use self::tree::Tree;
use self::view::View;
use crate::ConfigError;
use crate::caller::Scope;
use crate::membership::{Lineage, Membership};
use crate::region::record::RegionRecord;
use crate::region::{Feed, MapError};
use crate::store::{ReplicaStore, Serving, StoreError};
use crate::table::{Replica, Reply, Request};
use crate::version::codec::DecodeError;
use crate::wire::{Answer, Ask, Envelope, Space};

/// The longest record that a write makes, with its key: values of 1 MiB together, and what names
/// them and their context.
const MIN_BATCH_BYTES: usize = Replica::MAX_VALUE_BYTES + RECORD_HEAD_BYTES;
/// What a record and its key take beside the values at most: 2,048 dots with lengths, 1,024 actors.
const RECORD_HEAD_BYTES: usize = 128 << 10;

/// How much of a store is read and sent at once for another node, in bytes, or one record if that
/// is longer: whatever is asked meanwhile waits for that much.
const PAGE_BYTES: usize = 64 << 10;

/// What a node can do now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// It counts in every quorum.
    Whole,
    /// Its store was lost, restored or damaged: it counts in no quorum until it has been rebuilt.
    NotWhole {
        /// It has met writes of its own that its store does not have. It is rebuilt only after a
        /// restart, which begins a new incarnation.
        is_condemned: bool,
    },
    /// It was removed from the membership, and counts in nothing. Started again, it is empty, and
    /// may be added again as another member.
    Removed {
        /// The epoch in which it was none, or another one.
        epoch: u64,
    },
    /// Its store has failed, and it answers nothing. Start it again.
    Halted(StoreError),
    /// It was shut down, and answers nothing.
    Stopped,
}

/// Why a node did not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration is not valid, the node is none of its replicas, or its store does not take
    /// batches as long as one record may be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store has failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store is empty. If the node has never run, begin it with [`Node::create`]. If it has
    /// run, its store was lost or another one is mounted: bring it back, or begin again with
    /// [`Node::start_lost`].
    #[error("node {node} has no data here: create it if it has never run, else its data was lost")]
    Absent {
        /// The node.
        node: u64,
    },
    /// [`Node::create`] found data. Use [`Node::start`].
    #[error("the store holds data of node {found} already")]
    Exists {
        /// Whose data it is.
        found: u64,
    },
    /// The store belongs to another node.
    #[error("the store is of node {found}, not of node {node}")]
    WrongNode {
        /// Whose data it is.
        found: u64,
        /// Whose was asked for.
        node: u64,
    },
    /// The store is of another cluster than the configuration says. Nothing was changed. Give the
    /// node its own store; or, if this is a copy of a cluster that is to live beside its original,
    /// give it a name of its own with [`Node::set_lineage`].
    #[error("the store is of the cluster {found}, not of {expected}")]
    OtherCluster {
        /// Of the store.
        found: Lineage,
        /// `NodeConfig::lineage`.
        expected: Lineage,
    },
    /// The store is of a cluster without a name, as versions without lineages made them, and the
    /// configuration has one. Nothing was changed. Stop all nodes and give each store the name with
    /// [`Node::set_lineage`]; or leave `NodeConfig::lineage` out.
    #[error("the store of node {node} is of a cluster without a name, the configuration has one")]
    NoLineage {
        /// The node.
        node: u64,
    },
    /// [`Node::set_lineage`] found the replicas being changed. Nothing was changed. What follows
    /// the joint epoch may be decided, and a cluster with another name would decide it anew: start
    /// the cluster with its old name, and let the change end.
    #[error("the replicas are being changed in epoch {epoch}: let the change end first")]
    Changing {
        /// The joint epoch.
        epoch: u64,
    },
    /// The store's own record cannot be read: it was written by a newer version, or is damaged.
    #[error("the node's own record cannot be read: {0}")]
    Unreadable(#[from] DecodeError),
    /// The store and the regions of the configuration do not go together.
    #[error(transparent)]
    Regions(#[from] MapError),
}

/// The replica of one node: keeps its part of a table and its acceptors of registers, and answers
/// the requests that a [`Link`](crate::Link) brings. Clones are handles to the same; when the last
/// one is dropped the node ends. A link that serves a node holds a handle to it, and so does each
/// table and register over that link.
///
/// Of one table and one set of registers. A process that has several runs a node for each, with a
/// store and a service of its own.
#[derive(Clone, Debug)]
pub struct Node {
    shared: Arc<Shared>,
}

struct Shared {
    id: u64,
    config: NodeConfig,
    store: Arc<dyn ReplicaStore>,
    jobs: mpsc::Sender<Job>,
    /// Tells the task to end.
    stop: watch::Sender<bool>,
    status: watch::Receiver<Status>,
    membership: watch::Receiver<Arc<Membership>>,
    /// No earlier epoch is served: an earlier life of the store has served it.
    floor: u64,
    /// The joint epoch for which the node has copied what it may lack. 0: none.
    caught_up: AtomicU64,
    started: Instant,
    hints: Hints,
    /// What the store holds.
    tree: Arc<Tree>,
    repaired: Mutex<Repaired>,
    collected: Collected,
    /// What other regions have not been told. None: the node is part of no region.
    feed: Option<Arc<Feed>>,
    strangers: strangers::Seen,
    /// Held by whatever rebuilds or collects: one at a time.
    maintaining: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let status = self.status.borrow().clone();
        f.debug_struct("Node")
            .field("id", &self.id)
            .field("status", &status)
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Begins a node that has never run, on an empty store: it counts from the start. Call it from
    /// what sets a cluster up, not from what starts a node: a new disk under an old id looks the
    /// same as a new node.
    ///
    /// # Errors
    /// [`StartError::Exists`] if the store holds data; other variants where the store fails.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    ///
    /// # Cancel safety
    /// Dropping it may leave a created node. Call [`Node::start`] when it answers
    /// [`StartError::Exists`].
    pub async fn create(
        id: u64,
        store: Arc<dyn ReplicaStore>,
        config: NodeConfig,
    ) -> Result<Self, StartError> {
        check(&config, &*store)?;
        check_listed(id, &config)?;
        let serving = store.serve()?;
        if let Some(found) = read_meta(&*store).await? {
            return Err(StartError::Exists { found: found.node });
        }
        if !store.scan(&[], &[], 1).await?.is_empty() {
            return Err(StoreError::Damaged("records without the node's own".to_owned()).into());
        }
        // Durable: another list in the configuration does not change who the replicas are.
        let (meta, view) = (Meta::first(id), View::first(&config.replicas, config.lineage));
        let record = config.regions.as_ref().map(|regions| RegionRecord::of(regions, true));
        let changes = [meta.change(), view.change()].into_iter();
        let changes = changes.chain(record.as_ref().map(RegionRecord::change));
        store.apply(changes.collect()).await?;
        Ok(Self::run((store, serving), config, (meta, view, record), true))
    }

    /// Begins a node that is to be added to a running cluster, on an empty store: it counts for
    /// nothing until [`Node::reconfigure`] has added it and it has copied what it needs, which
    /// [`Node::maintain`] does. `config.replicas` are those of the cluster, or some of them.
    ///
    /// # Errors
    /// [`StartError::Exists`] if the store holds data; other variants where the store fails.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    ///
    /// # Cancel safety
    /// Dropping it may leave a node that has begun. Call [`Node::start`] when it answers
    /// [`StartError::Exists`].
    pub async fn join(
        id: u64,
        store: Arc<dyn ReplicaStore>,
        config: NodeConfig,
    ) -> Result<Self, StartError> {
        check(&config, &*store)?;
        let serving = store.serve()?;
        if let Some(found) = read_meta(&*store).await? {
            return Err(StartError::Exists { found: found.node });
        }
        Self::begin_lost(id, (store, serving), config).await
    }

    /// Starts a node that has run before. If its store is damaged, or was noticed to have lost a
    /// part of its past, the store is cleared and gets a new incarnation, and the node counts in no
    /// quorum until it is rebuilt: see [`Node::status`].
    ///
    /// # Errors
    /// [`StartError::Absent`] if the store is empty; [`StartError::WrongNode`]; other variants
    /// where the store fails.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    ///
    /// # Cancel safety
    /// Dropping it loses nothing: call it again.
    pub async fn start(
        id: u64,
        store: Arc<dyn ReplicaStore>,
        config: NodeConfig,
    ) -> Result<Self, StartError> {
        check(&config, &*store)?;
        let serving = store.serve()?;
        let (view, meta) = match (read_view(&*store).await, read_meta(&*store).await) {
            // Without it nothing says in which epoch the node counts.
            (Err(error @ StartError::Store(StoreError::Damaged(_))), _) => (None, Err(error)),
            (view, meta) => (view?, meta),
        };
        check_lineage(id, &config, view.as_ref(), matches!(&meta, Ok(Some(_))))?;
        match meta {
            Err(StartError::Store(StoreError::Damaged(reason))) => {
                tracing::warn!(target: "voussoir::quorum", node = id, reason, "the store was lost");
                Self::begin_lost(id, (store, serving), config).await
            }
            Err(error) => Err(error),
            Ok(None) => Err(StartError::Absent { node: id }),
            Ok(Some(meta)) if meta.node != id => {
                Err(StartError::WrongNode { found: meta.node, node: id })
            }
            Ok(Some(meta)) if meta.is_condemned => {
                Self::begin_lost(id, (store, serving), config).await
            }
            Ok(Some(meta)) => {
                let record = regional::check(&*store, &config).await?;
                let view = match view {
                    Some(view) => view.or_of_lineage(config.lineage),
                    None if meta.is_whole => {
                        // Of a version that kept no membership.
                        check_listed(id, &config)?;
                        let view = View::first(&config.replicas, Lineage::UNNAMED);
                        store.apply(vec![view.change()]).await?;
                        view
                    }
                    None => View::unknown(Lineage::UNNAMED, 0),
                };
                Ok(Self::run((store, serving), config, (meta, view, record), false))
            }
        }
    }

    /// Starts a node that has run before and whose store was lost, or restored from a backup. What
    /// the store holds is removed: it may hold values whose tombstones were collected since. The
    /// store gets a new incarnation, and the node counts in no quorum until it is rebuilt. It asks
    /// `config.replicas` who the replicas are now.
    ///
    /// # Errors
    /// [`StartError`] where the store fails.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    ///
    /// # Cancel safety
    /// Dropping it may leave an empty store: call it again.
    pub async fn start_lost(
        id: u64,
        store: Arc<dyn ReplicaStore>,
        config: NodeConfig,
    ) -> Result<Self, StartError> {
        check(&config, &*store)?;
        let serving = store.serve()?;
        Self::begin_lost(id, (store, serving), config).await
    }

    async fn begin_lost(
        id: u64,
        (store, serving): (Arc<dyn ReplicaStore>, Serving),
        config: NodeConfig,
    ) -> Result<Self, StartError> {
        // What is left of the store's past may be damaged; what can be read is kept.
        let before = match read_view(&*store).await {
            Ok(before) => before,
            Err(StartError::Store(StoreError::Damaged(_)) | StartError::Unreadable(_)) => None,
            Err(error) => return Err(error),
        };
        let has_name = before.as_ref().is_some_and(|view| view.membership.lineage().is_named());
        check_lineage(id, &config, before.as_ref().filter(|_| has_name), false)?;
        let unknown = View::unknown(config.lineage, 0);
        let view = before.map_or(unknown, |before| before.cleared(config.lineage));
        let record = regional::check_lost(&*store, &config).await?;
        store.clear().await?;
        let meta = Meta::lost(id);
        let changes = [meta.change(), view.change()].into_iter();
        let changes = changes.chain(record.as_ref().map(RegionRecord::change));
        store.apply(changes.collect()).await?;
        Ok(Self::run((store, serving), config, (meta, view, record), true))
    }

    /// Names the cluster of a store whose node does not run, `config.lineage`: of one that has no
    /// name, or of a copy of a cluster that is to live beside its original. On the store of every
    /// node, before any of them is started. What the nodes hold stays.
    ///
    /// # Errors
    /// [`StartError::Config`] without a name; [`StartError::Absent`], [`StartError::WrongNode`];
    /// [`StartError::Changing`] while the replicas are being changed; other variants where the
    /// store fails.
    ///
    /// # Cancel safety
    /// Dropping it may leave the store with its old name or the new one: call it again.
    pub async fn set_lineage(
        id: u64,
        store: &Arc<dyn ReplicaStore>,
        config: &NodeConfig,
    ) -> Result<(), StartError> {
        check(config, &**store)?;
        if !config.lineage.is_named() {
            return Err(ConfigError { field: "lineage", rule: "must be drawn" }.into());
        }
        let _serving = store.serve()?;
        let meta = read_meta(&**store).await?.ok_or(StartError::Absent { node: id })?;
        if meta.node != id {
            return Err(StartError::WrongNode { found: meta.node, node: id });
        }
        let view = match read_view(&**store).await? {
            Some(view) => view,
            None if !meta.is_whole => View::unknown(Lineage::UNNAMED, 0),
            // Of a version that kept no membership.
            None => {
                check_listed(id, config)?;
                View::first(&config.replicas, Lineage::UNNAMED)
            }
        };
        if view.membership.is_changing() {
            return Err(StartError::Changing { epoch: view.membership.epoch() });
        }
        Ok(store.apply(vec![view.of_lineage(config.lineage).change()]).await?)
    }

    fn run(
        (store, serving): (Arc<dyn ReplicaStore>, Serving),
        config: NodeConfig,
        (meta, view, record): (Meta, View, Option<RegionRecord>),
        is_empty: bool,
    ) -> Self {
        let (status, watched) = watch::channel(status_of(&meta, &view));
        let (membership, watched_membership) = watch::channel(Arc::clone(&view.membership));
        let (told, floor) = (Told { status, membership }, view.floor);
        let (jobs, queue) = mpsc::channel(config.max_requests);
        let (stop, is_told) = watch::channel(false);
        let tree = Arc::new(Tree::new(config.digest_key, is_empty, config.regions.is_some()));
        let feed = config.regions.as_ref().zip(record);
        let feed = feed.map(|(regions, record)| Arc::new(Feed::new(regions, record)));
        let driver = Driver::new(
            (Arc::clone(&store), serving),
            Arc::clone(&tree),
            &config,
            (meta, view),
            told,
            is_told,
        )
        .with_feed(feed.clone());
        tokio::spawn(driver.run(queue));
        let hints = Hints::new(config.max_hints);
        let shared = Shared {
            id: meta.node,
            config,
            store,
            jobs,
            stop,
            status: watched,
            membership: watched_membership,
            floor,
            caught_up: AtomicU64::new(0),
            started: Instant::now(),
            hints,
            tree,
            repaired: Mutex::default(),
            collected: Collected::default(),
            feed,
            strangers: strangers::Seen::default(),
            maintaining: tokio::sync::Mutex::new(()),
        };
        let shared = Arc::new(shared);
        if !is_empty {
            tokio::spawn(repair::fill(Arc::downgrade(&shared)));
        }
        Self { shared }
    }

    /// The node's id.
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// What the node can do, now and later.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.clone()
    }

    /// The membership that the node serves, now and later. Its epoch is 0 while it is not known:
    /// the node is new, or its store was lost.
    pub fn membership(&self) -> watch::Receiver<Arc<Membership>> {
        self.shared.membership.clone()
    }

    /// Whether it counts in quorums.
    pub fn is_whole(&self) -> bool {
        *self.shared.status.borrow() == Status::Whole
    }

    /// What the node has refused because it is of another cluster.
    pub fn strangers(&self) -> Strangers {
        self.shared.strangers.stats()
    }

    /// Ends the node: it takes no more requests, and what it has accepted becomes durable. Returns
    /// when its task has ended, to each caller if there are several. The store is free when the
    /// handles are dropped, too.
    ///
    /// # Cancel safety
    /// Once polled, the node ends also when the future is dropped.
    pub async fn shutdown(&self) {
        self.shared.stop.send_replace(true);
        // The task holds the sender of the status until it has ended.
        let mut status = self.status();
        while status.changed().await.is_ok() {}
    }

    /// Answers a request that a link has brought. None: it is no request, or the node has halted;
    /// then nothing is known of what it did.
    ///
    /// # Cancel safety
    /// Dropping the future does not take the request back: it may be carried out.
    pub async fn answer(&self, request: Bytes) -> Option<Bytes> {
        let envelope = Envelope::decode(request)
            .inspect_err(|error| {
                tracing::debug!(target: "voussoir::quorum", %error, "dropped what is no request");
            })
            .ok()?;
        // Before anything else. Who does not know yet of which cluster it is may ask.
        let (asked, current) = (envelope.membership, self.current());
        let is_first_question =
            !asked.lineage.is_named() && matches!(envelope.ask, Ask::Membership { offer: None });
        if !is_first_question && !current.hears(asked) {
            self.shared.strangers.request(self.shared.id, asked.lineage);
            return Some(Answer::OtherCluster { lineage: current.lineage() }.encode(0));
        }
        let is_direct = !matches!(envelope.ask, Ask::Table(_) | Ask::Register { .. });
        if let Ask::Membership { offer } = envelope.ask {
            if let Some(offer) = offer {
                self.adopt(offer).await;
            }
            return Some(self.told().encode(0));
        }
        if is_direct && current.epoch() != 0 && current.stamp() != asked {
            return Some(self.told().encode(0));
        }
        match &envelope.ask {
            Ask::Scan { space, after } => {
                return self.scan(*space, after, envelope.max_answer_bytes).await;
            }
            Ask::Read { space, key } => {
                return self.read(*space, key, envelope.max_answer_bytes).await;
            }
            Ask::Compare { question } => {
                let answer = match self.shared.tree.answer(question) {
                    _ if !self.is_whole() => Answer::Table(Reply::NotWhole),
                    Some(answer) => Answer::Compared(answer),
                    None => Answer::Busy,
                };
                return Some(fitting(&answer, envelope.max_answer_bytes));
            }
            // Dropped only by a collection of all regions.
            Ask::Table(Request::Forget { .. }) if self.shared.feed.is_some() => {
                return Some(Answer::Table(Reply::Refused).encode(0));
            }
            Ask::Table(_) | Ask::Register { .. } | Ask::Membership { .. } => {}
        }
        let (reply, answer) = oneshot::channel();
        match self.shared.jobs.try_send(Job::Answer { envelope, reply }) {
            Ok(()) => answer.await.ok(),
            Err(mpsc::error::TrySendError::Full(_)) => Some(Answer::Busy.encode(0)),
            Err(mpsc::error::TrySendError::Closed(_)) => None,
        }
    }

    async fn scan(&self, space: Space, after: &[u8], max_bytes: usize) -> Option<Bytes> {
        if !self.is_whole() {
            return Some(Answer::Table(Reply::NotWhole).encode(0));
        }
        // With room for the lengths.
        let max_page_bytes = PAGE_BYTES.min(max_bytes / 2);
        let after = driver::store_key(space, after);
        let page = self.shared.store.scan(&[space.prefix()], &after, max_page_bytes).await;
        let page = self.shared.readable(page).await?;
        let page = page.into_iter().map(|(key, record)| (key.slice(1..), record)).collect();
        Some(fitting(&Answer::Page(page), max_bytes))
    }

    /// The durable record of a key, as a page of one record or of none.
    async fn read(&self, space: Space, key: &Bytes, max_bytes: usize) -> Option<Bytes> {
        if !self.is_whole() {
            return Some(Answer::Table(Reply::NotWhole).encode(0));
        }
        let records = self.shared.store.get(&[driver::store_key(space, key)]).await;
        let records = self.shared.readable(records).await?;
        let record = records.into_iter().next().flatten();
        let page = record.map(|record| (key.clone(), record)).into_iter().collect();
        Some(fitting(&Answer::Page(page), max_bytes))
    }

    /// Asks the node itself.
    async fn ask_own(&self, scope: &Scope, ask: Ask) -> Option<Answer> {
        let envelope = scope.envelope(usize::MAX, ask);
        let (reply, answer) = oneshot::channel();
        self.shared.jobs.send(Job::Answer { envelope, reply }).await.ok()?;
        Answer::decode(answer.await.ok()?).ok().map(|(_, answer)| answer)
    }

    /// Gives the node's task something to do and waits until it is durable.
    async fn order(&self, job: impl FnOnce(oneshot::Sender<()>) -> Job) -> bool {
        let (done, is_done) = oneshot::channel();
        self.shared.jobs.send(job(done)).await.is_ok() && is_done.await.is_ok()
    }
}

impl Shared {
    /// What the store was asked for. None: it could not be read, which is logged. Damage halts the
    /// node, whoever finds it: a store that has lost a record counts in no quorum.
    async fn readable<T>(&self, result: Result<T, StoreError>) -> Option<T> {
        let error = match result {
            Ok(found) => return Some(found),
            Err(error) => error,
        };
        tracing::warn!(target: "voussoir::quorum", node = self.id, %error, "store not read");
        if matches!(error, StoreError::Damaged(_)) {
            // An error: it has ended already.
            let _ = self.jobs.send(Job::Halt(error)).await;
        }
        None
    }
}

/// An answer without an effect, unless it is longer than its caller takes.
fn fitting(answer: &Answer, max_bytes: usize) -> Bytes {
    let answer = answer.encode(0);
    if answer.len() > max_bytes {
        return Answer::TooLong { is_written: false }.encode(0);
    }
    answer
}

fn check(config: &NodeConfig, store: &dyn ReplicaStore) -> Result<(), ConfigError> {
    config.validate()?;
    if store.max_batch_bytes() < MIN_BATCH_BYTES {
        return Err(ConfigError { field: "store", rule: "must take batches of 1,152 KiB" });
    }
    Ok(())
}

/// The first membership is that of the configuration, and has the node.
fn check_listed(id: u64, config: &NodeConfig) -> Result<(), ConfigError> {
    if config.replicas.contains(&id) {
        return Ok(());
    }
    Err(ConfigError { field: "replicas", rule: "must contain the node itself" })
}

/// The store is of the cluster that the configuration names, if it names one. `has_run`: without a
/// view, the store is of a version that had none.
fn check_lineage(
    node: u64,
    config: &NodeConfig,
    view: Option<&View>,
    has_run: bool,
) -> Result<(), StartError> {
    let expected = config.lineage;
    let found = view.map(|view| view.membership.lineage());
    match found {
        _ if !expected.is_named() => Ok(()),
        Some(found) if found == expected => Ok(()),
        Some(found) if found.is_named() => Err(StartError::OtherCluster { found, expected }),
        // It has been of none so far.
        Some(_) if view.is_some_and(|view| view.membership.epoch() == 0) => Ok(()),
        Some(_) => Err(StartError::NoLineage { node }),
        None if has_run => Err(StartError::NoLineage { node }),
        None => Ok(()),
    }
}

async fn read_view(store: &dyn ReplicaStore) -> Result<Option<View>, StartError> {
    let records = store.get(&[Bytes::from_static(view::KEY)]).await?;
    let record = records.into_iter().next().flatten();
    Ok(record.map(View::decode).transpose()?)
}

async fn read_meta(store: &dyn ReplicaStore) -> Result<Option<Meta>, StartError> {
    let records = store.get(&[Bytes::from_static(meta::KEY)]).await?;
    let record = records.into_iter().next().flatten();
    Ok(record.map(Meta::decode).transpose()?)
}
