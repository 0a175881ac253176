//! A table of several regions, as its clients use it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Fate, Region};
use crate::ConfigError;
use crate::client::{Table, TableError};
use crate::link::Link;
use crate::table::{Guarantee, Level, Outcome, TableConfig, Value};
use crate::version::VersionVector;

/// Which regions a write waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reach {
    /// LOCAL_QUORUM: replicas of the own region, as many as the table's level says. The other
    /// regions are told afterwards: a write that a region has acknowledged is lost if all of that
    /// region's disks are lost before it was shipped.
    LocalQuorum,
    /// EACH_QUORUM: as many replicas of each region.
    EachQuorum,
}

impl Reach {
    /// What readers in the other regions are guaranteed of a write with this reach, where `table`
    /// is the configuration in all regions. Readers in the own region are guaranteed
    /// [`TableConfig::guarantee`].
    ///
    /// [`Guarantee::Intersecting`] at most: while a write is on its way, a read in a region that
    /// has it may be followed by one in a region that does not.
    pub fn guarantee_elsewhere(self, table: &TableConfig) -> Guarantee {
        // Regions have different numbers of replicas: what intersects in each of them counts.
        let intersects = match (table.read, table.write) {
            (Level::All, _) | (_, Level::All) => true,
            (read, write) => read == Level::Quorum && write == Level::Quorum,
        };
        if self == Self::EachQuorum && intersects {
            Guarantee::Intersecting
        } else {
            Guarantee::Eventual
        }
    }
}

/// How a write with [`Reach::EachQuorum`], or any other operation, failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// The operation failed in the own region.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The write is acknowledged in the own region, and not known to be in these in time. It is
    /// shipped on, and will be there: do not repeat it.
    #[error("written in the own region; regions {regions:?} have not acknowledged it in time")]
    Elsewhere {
        /// The regions.
        regions: Vec<u64>,
        /// The key's state in the own region.
        state: Value,
    },
}

impl RegionError {
    /// Whether the operation has had an effect.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Table(error) => error.outcome(),
            Self::Elsewhere { .. } => Outcome::Unknown,
        }
    }

    /// Whether the same operation may be tried again and cannot have a second effect.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Table(error) => error.is_retryable(),
            Self::Elsewhere { .. } => false,
        }
    }
}

/// A table in the process of a node that is part of a region. Clones are handles to the same.
///
/// Reads ask the own region. A process without a node takes a [`Table`] over its region's nodes,
/// whose writes have [`Reach::LocalQuorum`].
#[derive(Clone, Debug)]
pub struct RegionTable {
    table: Table,
    region: Region,
    reach: Reach,
}

impl RegionTable {
    /// A table whose writes have a reach. `elsewhere` is what readers in other regions must be
    /// guaranteed; readers in the own region are given `config.require`. `config.replicas` are
    /// those of the own region.
    ///
    /// # Errors
    /// [`ConfigError`]: a field is out of range, or levels and reach cannot give what is required.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(
        config: TableConfig,
        local: Arc<dyn Link>,
        region: &Region,
        reach: Reach,
        elsewhere: Guarantee,
    ) -> Result<Self, ConfigError> {
        // What is shipped is merged into as many replicas as the nodes' level says.
        let shipped = TableConfig { write: region.node().write_level(), ..config.clone() };
        if reach.guarantee_elsewhere(&shipped) < elsewhere {
            return Err(ConfigError {
                field: "elsewhere",
                rule: "cannot be given: `Intersecting` takes `EachQuorum` and quorums of reads and \
                       of the nodes' writes, `Monotonic` is given in one region only",
            });
        }
        let table = Table::with_hints(config, local, region.node())?;
        Ok(Self { table, region: region.clone(), reach })
    }

    /// The table of the own region.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The node's part in its region.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Reads a key in the own region.
    ///
    /// # Errors
    /// [`RegionError`]; nothing has changed.
    ///
    /// # Cancel safety
    /// Dropping the future ends the read.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Value, RegionError> {
        Ok(self.table.get(key).await?)
    }

    /// Writes a value that replaces what `seen` covers, as [`Table::put`] does.
    ///
    /// # Errors
    /// [`RegionError`]; see [`RegionError::outcome`].
    ///
    /// # Cancel safety
    /// Once polled, the write goes on when the future is dropped, and is shipped: its outcome is
    /// unknown.
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        seen: &VersionVector,
        value: impl Into<Bytes>,
    ) -> Result<Value, RegionError> {
        let key = key.into();
        let state = self.table.put(key.clone(), seen, value).await?;
        self.reach_all(key, state).await
    }

    /// Writes a value without having read the key: it becomes a sibling of what is there.
    ///
    /// # Errors
    /// As [`RegionTable::put`].
    ///
    /// # Cancel safety
    /// As [`RegionTable::put`].
    pub async fn put_blind(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Value, RegionError> {
        self.put(key, &VersionVector::new(), value).await
    }

    /// Deletes what `seen` covers.
    ///
    /// # Errors
    /// As [`RegionTable::put`].
    ///
    /// # Cancel safety
    /// As [`RegionTable::put`].
    pub async fn delete(
        &self,
        key: impl Into<Bytes>,
        seen: &VersionVector,
    ) -> Result<Value, RegionError> {
        let key = key.into();
        let state = self.table.delete(key.clone(), seen).await?;
        self.reach_all(key, state).await
    }

    /// Waits until the other regions hold a write, if it is to reach them.
    async fn reach_all(&self, key: Bytes, state: Value) -> Result<Value, RegionError> {
        if self.reach == Reach::LocalQuorum {
            return Ok(state);
        }
        let deadline = Instant::now() + self.region.config().timeout;
        let mut tasks = JoinSet::new();
        for other in self.region.config().others().map(|region| region.id) {
            let (table, key, seen) = (self.clone(), key.clone(), state.context().clone());
            tasks.spawn(async move {
                let told = timeout_at(deadline, table.tell(other, key, &seen)).await;
                told.is_err().then_some(other)
            });
        }
        let mut regions = Vec::new();
        // Ends: each turn takes one of them.
        while let Some(told) = tasks.join_next().await {
            regions.extend(told.ok().flatten());
        }
        if regions.is_empty() {
            return Ok(state);
        }
        regions.sort_unstable();
        Err(RegionError::Elsewhere { regions, state })
    }

    /// Ends when a region holds the key's state with all that `seen` covers.
    async fn tell(&self, other: u64, key: Bytes, seen: &VersionVector) {
        let read = self.table.config().read;
        // Ends: when it is told, or with its future by the deadline.
        loop {
            if let Some(wide) = self.region.wide()
                && let Some(epoch) = self.region.epoch_of(&wide, other).await
                // Read after the epoch was taken: the state may have been long on its way.
                && let Ok(state) = self.table.get_at(key.clone(), read, seen).await
                && let Some(fates) =
                    self.region.send(&wide, other, epoch, vec![(key.clone(), state)]).await
                && fates == [Fate::Held]
            {
                return;
            }
            sleep(std::time::Duration::from_nanos(super::Outbox::MIN_PAUSE)).await;
        }
    }
}
