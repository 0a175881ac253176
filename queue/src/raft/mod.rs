//! Replicated partitions: each is a group of a [`voussoir_raft::Node`].
//!
//! A [`ReplicatedPartition`] is one node's part of it. [`append`](ReplicatedPartition::append)
//! works on the leader, and answers when a majority has the batch on stable storage and this node
//! has applied it. Readers of every node use its [`reader`](ReplicatedPartition::reader), which
//! shows committed batches only; it may be behind, and [`sync`](ReplicatedPartition::sync) waits
//! until it is not.
//!
//! What a partition knows of idempotent producers comes from the batches, so it is replicated with
//! them. After an unknown outcome a producer sends the batch again, with the same sequence, to
//! whoever leads then, and gets the offset that the batch has.
//!
//! A write names the position at which it expects the log to end, and every node rejects it when
//! the log ends elsewhere. So a leader that was replaced cannot write what it decided against an
//! older log, also when its proposal is committed later.
//!
//! Batches are in memory on each node, at most [`ReplicaConfig::max_bytes`] of them, besides in the
//! group's log and snapshots. Release what is not needed by
//! [`lead`](ReplicatedPartition::lead)`(..).await?.release_before(..)`. Topics and groups of
//! consumers over replicated partitions are in `backend::replicated` (feature `replicated`).
//! Batches of transactions and compaction are typed errors.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};
use voussoir_raft::{LogStore, Node, ProposeError, Raft, ReadError, StartError};

use crate::config::Config;
use crate::error::{ConfigError, OpenError, Outcome, ProduceError, StoreError};
use crate::format::Batch;
use crate::partition::{Appended, Partition};
use crate::store::{Durability, PartitionLog};

mod command;
mod machine;
mod store;

use command::PutBatches;
use machine::{Contents, Machine};
use store::{LeaderStore, ReaderStore};

/// How a node takes part in a replicated partition. Start from the default and change fields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReplicaConfig {
    /// The partition. The same on every node.
    pub partition: Config,
    /// The most bytes of batches that the partition holds, in the memory of each node; the leader's
    /// counts. A write beyond it is [`StoreError::Full`]. Default 64 MiB; at least 1 MiB.
    pub max_bytes: u64,
}

impl Default for ReplicaConfig {
    fn default() -> Self {
        Self { partition: Config::default(), max_bytes: 64 << 20 }
    }
}

impl ReplicaConfig {
    /// Checks the fields.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.partition.validate()?;
        if self.max_bytes < 1 << 20 {
            return Err(ConfigError { field: "max_bytes", rule: "must be at least 1 MiB" });
        }
        Ok(())
    }
}

/// Why a node takes no part in a replicated partition. Nothing runs then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaError {
    /// The configuration breaks a rule, or the entries of the group are too small for it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The group does not start.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Why this node does not lead the partition, or could not write to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeadError {
    /// This node does not lead, or another write came before the batch. Nothing happened. Retry at
    /// `leader`, or later when it is unknown.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<u64>,
    },
    /// The leader could not find out in time what is committed. Nothing happened. Retry.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What the group has committed is no partition, or the configuration does not fit.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The batch was not appended, or its outcome is not known: see [`ProduceError::outcome`].
    #[error(transparent)]
    Produce(#[from] ProduceError),
    /// The deadline passed while the batch was on its way: it may be in the log.
    #[error("the batch was not committed before the deadline")]
    TimedOut,
}

impl LeadError {
    /// Whether the batch may be in the log all the same. Then send it again with the same sequence,
    /// to the leader of that time.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Produce(error) => error.outcome(),
            Self::TimedOut => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same call may succeed later, here or at another node. After
    /// [`Outcome::Unknown`] only a batch of an idempotent producer may be sent again.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotLeader { .. } | Self::Read(_) | Self::TimedOut => true,
            Self::Produce(error) => error.is_retryable() || is_failed(error),
            Self::Open(_) => false,
        }
    }

    /// The node to turn to, when this one knows it.
    pub fn leader(&self) -> Option<u64> {
        match self {
            Self::NotLeader { leader } => *leader,
            _ => None,
        }
    }
}

fn is_failed(error: &ProduceError) -> bool {
    matches!(error, ProduceError::Store(StoreError::Failed { .. }))
}

/// A node's part of a replicated partition. Clones are the same part.
#[derive(Clone)]
pub struct ReplicatedPartition {
    shared: Arc<Shared>,
}

struct Shared {
    raft: Raft,
    contents: Arc<Contents>,
    reader: Partition,
    config: ReplicaConfig,
    max_entry_bytes: usize,
    runtime: Handle,
    leading: Arc<Leading>,
}

/// What appends go to, and the term in which this node opened it.
type Leading = Mutex<Option<(u64, Partition)>>;

/// Ends what this node opened as the leader: its readers and writers are told.
fn close(leading: &mut Option<(u64, Partition)>) {
    if let Some((_, replaced)) = leading.take() {
        replaced.close();
    }
}

impl Shared {
    /// The term in which this node leads, as far as it knows. What keeps a replaced leader from
    /// writing is the position in each write.
    fn term(&self) -> Result<u64, LeadError> {
        let status = self.raft.status();
        let status = status.borrow();
        if status.leader == Some(status.id) {
            Ok(status.term)
        } else {
            Err(LeadError::NotLeader { leader: status.leader })
        }
    }

    /// Waits until all that this node has proposed in its term is decided: a command that changes
    /// nothing stands behind it in the log.
    async fn settle(&self, deadline: Instant) -> Result<(), LeadError> {
        let nothing = PutBatches::nowhere().encode();
        match timeout_at(deadline, self.raft.propose(nothing)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(ProposeError::NotLeader { leader })) => Err(LeadError::NotLeader { leader }),
            Ok(Err(ProposeError::Stopped(reason))) => Err(ReadError::Stopped(reason).into()),
            Ok(Err(_)) | Err(_) => Err(ReadError::TimedOut.into()),
        }
    }
}

impl ReplicatedPartition {
    /// Starts this node's part of the group [`voussoir_raft::Config::group`] from what `log` holds.
    ///
    /// # Errors
    /// See [`ReplicaError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    ///
    /// # Cancel safety
    /// A dropped future has started nothing.
    pub async fn start(
        node: &Node,
        group: voussoir_raft::Config,
        log: Arc<dyn LogStore>,
        config: ReplicaConfig,
    ) -> Result<Self, ReplicaError> {
        config.validate().map_err(OpenError::from)?;
        let max_entry_bytes = group.max_entry_bytes;
        let contents = Arc::<Contents>::default();
        let store = ReaderStore { contents: Arc::clone(&contents), max_entry_bytes };
        let reader = Partition::open(store, config.partition.clone())?;
        let leading = Arc::new(Mutex::new(None));
        let machine = Machine {
            contents: Arc::clone(&contents),
            reader: reader.clone(),
            leading: Arc::downgrade(&leading),
        };
        let raft = node.start_group(group, log, Box::new(machine)).await?;
        let runtime = Handle::current();
        let shared = Shared { raft, contents, reader, config, max_entry_bytes, runtime, leading };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// This node's part of the group: who leads, how far it has come, changes of the membership.
    pub fn raft(&self) -> &Raft {
        &self.shared.raft
    }

    /// Who leads, as far as this node knows.
    #[cfg(feature = "replicated")]
    pub(crate) fn leader(&self) -> Option<u64> {
        self.shared.raft.status().borrow().leader
    }

    /// This node.
    #[cfg(feature = "replicated")]
    pub(crate) fn node(&self) -> u64 {
        self.shared.raft.status().borrow().id
    }

    /// The batches that are committed, as far as this node has applied them. It wakes its readers
    /// as others come, and stays the same when the leader changes. Its appends and releases are
    /// rejected. A node that has just started shows less than it did before, until it has learnt
    /// again what is committed: [`sync`](Self::sync) first, or offsets seem to be out of range.
    ///
    /// It is closed when the node stops: who waits is told [`FetchError::Closed`], and what it
    /// holds can still be read. A node that was removed from the group stands still without being
    /// stopped: watch `raft().status()`, whose `removed` says so.
    ///
    /// [`FetchError::Closed`]: crate::FetchError::Closed
    ///
    /// A client that wrote at the leader reads its own write here after
    /// [`wait_for`](Partition::wait_for) the offset that it was given.
    pub fn reader(&self) -> &Partition {
        &self.shared.reader
    }

    /// Waits until the [`reader`](Self::reader) shows everything that was acknowledged anywhere
    /// before the call. Works on every node.
    ///
    /// # Errors
    /// [`ReadError`]. Nothing was changed.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn sync(&self, deadline: Instant) -> Result<(), ReadError> {
        self.shared.raft.read(deadline).await.map(|_| ())
    }

    /// The partition to append to and to release from, while this node leads: after it has applied
    /// all that earlier leaders have committed. It stops when another leader has written, or when
    /// the outcome of a write is not known; then ask again. It does not notice that another node
    /// leads before its next write or the next call of this, so read from
    /// [`reader`](Self::reader).
    ///
    /// # Errors
    /// See [`LeadError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn lead(&self, deadline: Instant) -> Result<Partition, LeadError> {
        self.reign(deadline).await.map(|(_, partition)| partition)
    }

    /// As [`lead`](Self::lead), with the term in which this node leads. Another partition than at
    /// an earlier call of the same term holds writes whose outcome was not known.
    pub(crate) async fn reign(&self, deadline: Instant) -> Result<(u64, Partition), LeadError> {
        let shared = &self.shared;
        // Before the lock, which another call may hold for long while it asks the group.
        if let Err(error) = shared.term() {
            if let Ok(mut leading) = shared.leading.try_lock() {
                close(&mut leading);
            }
            return Err(error);
        }
        let Ok(mut leading) = timeout_at(deadline, shared.leading.lock()).await else {
            return Err(ReadError::TimedOut.into());
        };
        let term = shared.term().inspect_err(|_| close(&mut leading))?;
        match &*leading {
            Some((opened_in, partition)) if *opened_in == term => {
                if !partition.is_stopped() {
                    return Ok((term, partition.clone()));
                }
                // A write of this term whose outcome is not known may be committed later, and what
                // is opened without it would never learn of a release.
                shared.settle(deadline).await?;
            }
            _ => {}
        }
        let synced = self.sync(deadline).await;
        synced.inspect_err(|_| {
            if shared.raft.stopped().is_some() {
                close(&mut leading);
            }
        })?;
        close(&mut leading);
        let end = Arc::<AtomicU64>::default();
        let store = LeaderStore {
            contents: Arc::clone(&shared.contents),
            raft: shared.raft.clone(),
            runtime: shared.runtime.clone(),
            end: Arc::clone(&end),
            max_bytes: shared.config.max_bytes,
            max_entry_bytes: shared.max_entry_bytes,
        };
        let config = shared.config.partition.clone();
        let partition = shared.contents.while_unchanged(|| Partition::open(store, config))?;
        end.store(partition.next_position(), Relaxed);
        *leading = Some((term, partition.clone()));
        Ok((term, partition))
    }

    /// Appends a batch, as [`Partition::append`] does, and answers when it is committed and applied
    /// here. Only the leader does.
    ///
    /// # Errors
    /// See [`LeadError`], whose [`outcome`](LeadError::outcome) says whether the batch may be in
    /// the log.
    ///
    /// # Cancel safety
    /// A batch that has been queued may be appended all the same.
    pub async fn append(&self, batch: Batch, deadline: Instant) -> Result<Appended, LeadError> {
        let partition = self.lead(deadline).await?;
        match timeout_at(deadline, partition.append(batch, Durability::Synced)).await {
            Ok(Ok(appended)) => Ok(appended),
            Ok(Err(ProduceError::Store(StoreError::Stopped { .. }))) => {
                let leader = self.shared.raft.status().borrow().leader;
                Err(LeadError::NotLeader { leader })
            }
            Ok(Err(error @ ProduceError::OutOfOrder { .. })) => {
                // A leader that was replaced without knowing lacks the batches between. Other
                // rejections stay the same however much has been appended.
                self.sync(deadline).await?;
                if self.shared.contents.bounds().end == partition.next_position() {
                    return Err(error.into());
                }
                let leader = self.shared.raft.status().borrow().leader;
                Err(LeadError::NotLeader { leader })
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_elapsed) => Err(LeadError::TimedOut),
        }
    }
}

impl fmt::Debug for ReplicatedPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { raft, reader, .. } = &*self.shared;
        f.debug_struct("ReplicatedPartition")
            .field("raft", raft)
            .field("reader", reader)
            .finish_non_exhaustive()
    }
}
