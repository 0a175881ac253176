//! Clients of all regions and what they may see: no acknowledged write is missing in the end, and
//! nothing comes back that was replaced or deleted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::sleep;
use voussoir_quorum::region::{Reach, RegionError, RegionTable};
use voussoir_quorum::table::{Guarantee, Value};
use voussoir_quorum::version::{Dot, Siblings, VersionVector};
use voussoir_quorum::*;
use voussoir_sim::{Rng, Situations};

use super::world::World;

pub(crate) const KEYS: u64 = 24;

#[derive(Default)]
struct Key {
    /// What writes and deletes were told to replace, of whatever outcome.
    issued: Vec<VersionVector>,
    /// By region: what acknowledged writes and deletes were told to replace.
    replaced: BTreeMap<u64, VersionVector>,
    /// Acknowledged writes, with the region that took them, and whether each region has.
    written: Vec<(Dot, u64, bool)>,
}

/// What all clients share.
pub(crate) struct Oracle {
    keys: Mutex<BTreeMap<String, Key>>,
    next_value: AtomicU64,
    pub(crate) is_over: AtomicBool,
    pub(crate) done: AtomicU64,
}

impl Oracle {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            keys: Mutex::default(),
            next_value: AtomicU64::new(1),
            is_over: AtomicBool::new(false),
            done: AtomicU64::new(0),
        })
    }

    fn with<T>(&self, key: &str, f: impl FnOnce(&mut Key) -> T) -> T {
        f(self.keys.lock().unwrap().entry(key.to_owned()).or_default())
    }

    /// A region was taken out: what it had not shipped is lost with it, and nobody reads it.
    pub(crate) fn forget_region(&self, region: u64) {
        for key in self.keys.lock().unwrap().values_mut() {
            key.written.retain(|(_, by, is_everywhere)| *by != region || *is_everywhere);
            key.replaced.remove(&region);
        }
    }

    /// Nothing that was replaced in this region before the read began is there.
    fn check_read(key: &str, region: u64, replaced: &VersionVector, state: &Value) {
        for (dot, value) in state.iter() {
            assert!(
                !replaced.contains(dot),
                "{key} in region {region}: {dot} {value:?} was replaced before; {state:?}"
            );
        }
    }

    /// The states that all nodes hold in the end.
    pub(crate) fn check(&self, states: &BTreeMap<Bytes, Siblings<Bytes>>) {
        for (name, key) in self.keys.lock().unwrap().iter() {
            let absent = Siblings::new();
            let state = states.get(name.as_bytes()).unwrap_or(&absent);
            for (region, replaced) in &key.replaced {
                Self::check_read(name, *region, replaced, state);
            }
            for (dot, region, _) in &key.written {
                let is_live = state.iter().any(|(live, _)| live == *dot);
                let is_replaced = key.issued.iter().any(|seen| seen.contains(*dot));
                assert!(
                    is_live || is_replaced,
                    "{name}: {dot}, acknowledged by region {region}, is lost; {state:?}"
                );
            }
        }
    }

    /// Records a write that was acknowledged in a region.
    fn acknowledged(
        &self,
        key: &str,
        region: u64,
        seen: &VersionVector,
        dot: Option<Dot>,
        is_everywhere: bool,
    ) {
        self.done.fetch_add(1, Ordering::Relaxed);
        self.with(key, |key| {
            key.written.extend(dot.map(|dot| (dot, region, is_everywhere)));
            key.replaced.entry(region).or_default().merge(seen);
        });
    }
}

fn dot_of(state: &Value, value: &str) -> Option<Dot> {
    state.iter().find(|(_, found)| found[..] == *value.as_bytes()).map(|(dot, _)| dot)
}

/// A client that lives in a region, and sometimes moves to another one.
pub(crate) struct Client {
    pub(crate) world: Arc<World>,
    pub(crate) oracle: Arc<Oracle>,
    pub(crate) counts: Arc<Situations>,
    pub(crate) rng: Rng,
    pub(crate) region: u64,
    /// With the replicas of when they were made, by region, and the map that they were made under.
    pub(crate) tables: BTreeMap<u64, Table>,
    pub(crate) tables_epoch: u64,
}

impl Client {
    pub(crate) async fn run(mut self) {
        while !self.oracle.is_over.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(self.rng.below(60))).await;
            if self.is_in() {
                self.step().await;
            }
        }
    }

    /// Whether the client's region is one of the map: one that was taken out still answers.
    fn is_in(&self) -> bool {
        self.world.with(|state| state.map.regions.iter().any(|region| region.id == self.region))
    }

    /// The table of a region. One that was made under an earlier map may be of a region that has
    /// begun anew.
    fn table(&mut self, region: u64) -> Table {
        if self.tables_epoch != self.epoch() {
            self.tables.clear();
            self.tables_epoch = self.epoch();
        }
        self.tables.entry(region).or_insert_with(|| self.world.table(region)).clone()
    }

    async fn step(&mut self) {
        let key = format!("cart-{}", self.rng.below(KEYS));
        let table = self.table(self.region);
        let Some(state) = self.read(&table, &key, self.region).await else {
            return;
        };
        if state.len() > 1 {
            self.counts.reached("siblings were read");
        }
        let mut dots = state.iter().map(|(dot, _)| super::world::region_of(dot.actor.node));
        if let Some(first) = dots.next()
            && dots.any(|region| region != first)
        {
            self.counts.reached("siblings of two regions");
        }
        let seen = state.context().clone();
        match self.rng.below(10) {
            0 | 1 => self.put(&key, &VersionVector::new()).await,
            2..=4 => self.delete(&key, &seen).await,
            5 => self.put_everywhere(&key, &seen).await,
            6 => {
                // With what was read elsewhere.
                let regions: Vec<u64> = self
                    .world
                    .with(|state| state.map.regions.iter().map(|region| region.id).collect());
                self.region = *self.rng.pick(&regions).unwrap();
                self.counts.reached("a client moved to another region");
                // The replicas there may all be others since it was there last.
                self.tables.remove(&self.region);
                self.put(&key, &seen).await;
            }
            _ => self.put(&key, &seen).await,
        }
    }

    async fn read(&self, table: &Table, key: &str, region: u64) -> Option<Value> {
        let epoch = self.epoch();
        let replaced =
            self.oracle.with(key, |key| key.replaced.get(&region).cloned().unwrap_or_default());
        let state = table.get(key.to_owned()).await.ok()?;
        if self.epoch() == epoch {
            Oracle::check_read(key, region, &replaced, &state);
        }
        Some(state)
    }

    /// Of the map. What ends in another epoch than it began in may be of a region that was taken
    /// out meanwhile, and lost with it.
    fn epoch(&self) -> u64 {
        self.world.with(|state| state.map.epoch)
    }

    async fn put(&mut self, key: &str, seen: &VersionVector) {
        let value = self.oracle.next_value.fetch_add(1, Ordering::Relaxed).to_string();
        self.oracle.with(key, |key| key.issued.push(seen.clone()));
        let epoch = self.epoch();
        let put = self.table(self.region).put(key.to_owned(), seen, value.clone()).await;
        if let Ok(state) = put
            && self.epoch() == epoch
            && self.is_in()
        {
            let dot = dot_of(&state, &value);
            self.oracle.acknowledged(key, self.region, seen, dot, false);
        }
    }

    async fn delete(&mut self, key: &str, seen: &VersionVector) {
        self.oracle.with(key, |key| key.issued.push(seen.clone()));
        let epoch = self.epoch();
        let table = self.table(self.region);
        let is_deleted = table.delete(key.to_owned(), seen).await.is_ok();
        if is_deleted && !seen.is_empty() && self.epoch() == epoch && self.is_in() {
            self.counts.reached("a key was deleted");
            let is_cut = self.world.is_cut();
            self.counts.add("a key was deleted while regions were cut", is_cut.into());
            self.oracle.acknowledged(key, self.region, seen, None, false);
        }
    }

    /// EACH_QUORUM: once it is acknowledged, a read in any region sees it.
    async fn put_everywhere(&mut self, key: &str, seen: &VersionVector) {
        let config = self.world.table_config(self.region);
        let ids = self.world.latest(self.region).ids();
        let hosts = ids.into_iter().filter_map(|id| self.world.host(id));
        let Some(host) = hosts.into_iter().find(|host| host.node.is_whole()) else { return };
        let table = RegionTable::new(
            config,
            Arc::clone(&host.local),
            &host.region,
            Reach::EachQuorum,
            Guarantee::Intersecting,
        );
        let epoch = host.region.config().epoch;
        let value = self.oracle.next_value.fetch_add(1, Ordering::Relaxed).to_string();
        self.oracle.with(key, |key| key.issued.push(seen.clone()));
        let put = table.unwrap().put(key.to_owned(), seen, value.clone()).await;
        drop(host);
        // A region that the node does not know of, or that was added meanwhile, need not have it.
        if self.epoch() != epoch {
            return;
        }
        match put {
            Ok(state) => {
                self.counts.reached("a write reached each region");
                let dot = dot_of(&state, &value);
                self.oracle.acknowledged(key, self.region, seen, dot, true);
                let Some(dot) = dot else { return };
                let regions: Vec<u64> = self
                    .world
                    .with(|state| state.map.regions.iter().map(|region| region.id).collect());
                let other = *self.rng.pick(&regions).unwrap();
                let table = self.table(other);
                if let Some(read) = self.read(&table, key, other).await {
                    let is_replaced =
                        |key: &mut Key| key.issued.iter().any(|seen| seen.contains(dot));
                    assert!(
                        read.iter().any(|(live, _)| live == dot)
                            || self.oracle.with(key, is_replaced)
                            || self.epoch() != epoch,
                        "{key}: region {other} does not see {dot}, which each region has: {read:?}"
                    );
                }
            }
            Err(RegionError::Elsewhere { state, .. }) => {
                self.counts.reached("a write did not reach each region in time");
                self.oracle.acknowledged(key, self.region, seen, dot_of(&state, &value), false);
            }
            Err(_) => {}
        }
    }
}
