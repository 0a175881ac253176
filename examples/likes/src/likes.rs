//! Likes: a counter that goes up and down on each side of a partition, and adds up afterwards.

use std::collections::BTreeMap;

use tokio::sync::Mutex;
use voussoir_quorum::crdt::codec::{Encoded, Limits, merge_siblings};
use voussoir_quorum::crdt::{Crdt, PnCounter};
use voussoir_quorum::table::{Guarantee, Level, Outcome, ReadRepair, TableConfig};
use voussoir_quorum::version::{Actor, Dot};
use voussoir_quorum::{Bytes, Table};

use crate::Error;
use crate::cluster::{Server, TIMEOUT};

/// The counters of one process, in a table that reads and writes at one replica.
///
/// A counter is a PN-counter: what each actor has added, and what it has taken away. Two of them
/// merge without a loss, in any order and repeatedly, so that concurrent writes of a key, which the
/// table keeps as siblings, are one number when they are read.
pub(crate) struct Likes {
    table: Table,
    own: Mutex<Own>,
}

/// What this process has added. One addition is under way at a time, so that no two are based on
/// the same share.
struct Own {
    /// New with each start: what an earlier process had added stays under its own name.
    actor: Actor,
    counters: BTreeMap<Bytes, PnCounter>,
}

impl Likes {
    pub(crate) fn new(server: &Server) -> Result<Self, Error> {
        let id = server.node.id();
        let mut config = TableConfig::with_replicas(server.replicas.iter().copied());
        // Available whoever is away: one replica answers, and that is the own one if it can.
        (config.read, config.write) = (Level::One, Level::One);
        (config.local, config.timeout) = (Some(id), TIMEOUT);
        // The table says what such levels give, and refuses to be built if more is required.
        config.require = Guarantee::Eventual;
        config.read_repair = ReadRepair::Background;
        let table = Table::with_hints(config, server.link.clone(), &server.node)?;
        let drawn = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let incarnation = (drawn.as_nanos() as u64).clamp(1, Dot::MAX_COUNTER);
        let own = Own { actor: Actor::new(id, incarnation), counters: BTreeMap::new() };
        Ok(Self { table, own: Mutex::new(own) })
    }

    /// Adds `n` to a counter, which is durable at one replica then. Returns its value here.
    ///
    /// # Errors
    /// No replica could be written to. If it is not known whether one was, the addition may count.
    pub(crate) async fn add(&self, key: &Bytes, n: i64) -> Result<i128, Error> {
        let mut own = self.own.lock().await;
        let stored = self.table.get(key.clone()).await?;
        let mut counter: PnCounter = merge_siblings(&stored, &Limits::default())?;
        // Another replica may have answered, which has not heard of the latest addition.
        let before = own.counters.get(key).cloned().unwrap_or_default();
        counter.merge(&before);
        let delta = counter.add(own.actor, n)?;
        let mut after = before;
        after.merge(&delta);
        match self.table.put(key.clone(), stored.context(), counter.encode()).await {
            Err(error) if error.outcome() == Outcome::NotApplied => return Err(error.into()),
            written => {
                // What may have been stored stays part of the share.
                own.counters.insert(key.clone(), after);
                written?;
            }
        }
        Ok(counter.value())
    }

    /// The counter as one replica has it.
    ///
    /// # Errors
    /// No replica answers.
    pub(crate) async fn show(&self, key: &Bytes) -> Result<i128, Error> {
        let stored = self.table.get(key.clone()).await?;
        let counter: PnCounter = merge_siblings(&stored, &Limits::default())?;
        Ok(counter.value())
    }
}
