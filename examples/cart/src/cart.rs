//! Shopping carts: items that are added and removed on each side of a partition.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Mutex;
use voussoir_quorum::crdt::codec::{Limits, merge_siblings};
use voussoir_quorum::crdt::{Crdt, OrMap, Set};
use voussoir_quorum::region::{Reach, RegionTable};
use voussoir_quorum::store::JournalStoreConfig;
use voussoir_quorum::table::{Guarantee, Outcome, TableConfig};
use voussoir_quorum::version::{Actor, Dot};
use voussoir_quorum::{Bytes, JournalStore};

use crate::Error;
use crate::cluster::{Server, TIMEOUT};
use crate::own::{Own, encode};

/// Additions that one cart holds. Removing an item makes room for as many as it had.
const MAX_ADDITIONS: usize = 1_000;
/// How many one addition may be.
const MAX_ADDED: u64 = 1_000;

/// A cart as it is stored: under each item, the additions that nobody has removed. An addition is
/// the name of its write and how many were added: 24 bytes and a u64, little-endian.
///
/// Removing an item removes the additions that the remover has seen. One that was made on the other
/// side of a partition survives: it is never lost, and nothing that was removed comes back with it.
type Stored = OrMap<Bytes, Set<Bytes>>;

/// What a cart holds: items, and how many of each.
pub(crate) type Items = BTreeMap<Bytes, u64>;

/// What a change has found and done.
pub(crate) struct Changed {
    /// How many of the item the cart held before.
    pub(crate) before: u64,
    /// How many carts, written without knowing of each other, were merged.
    pub(crate) merged: usize,
}

/// The carts as one node sees them, in a table of its region (LOCAL_QUORUM).
pub(crate) struct Carts {
    table: RegionTable,
    /// The carts as this node has written them last. One change is under way at a time, so that no
    /// two have one name.
    own: Mutex<Own>,
}

impl Carts {
    pub(crate) async fn new(server: &Server) -> Result<Self, Error> {
        let mut config = TableConfig::with_replicas(server.replicas.iter().copied());
        config.timeout = TIMEOUT;
        // Each region goes on without the other: its readers are guaranteed what is written in
        // it, and in the end what is written elsewhere. More would be refused here.
        let (reach, elsewhere) = (Reach::LocalQuorum, Guarantee::Eventual);
        let local = server.local.clone();
        let table = RegionTable::new(config, local, &server.region, reach, elsewhere)?;
        // One node lives in the journal, so every number but its own is free.
        let (id, config) = (server.region.node().id(), JournalStoreConfig::default());
        let store = JournalStore::open(&server.journal, !id, config)?;
        let own = Own::open(id, Arc::new(store)).await?;
        Ok(Self { table, own: Mutex::new(own) })
    }

    /// Puts `n` more of an item into a cart.
    ///
    /// # Errors
    /// The region has no quorum. If the outcome is not known, the addition may be in the cart.
    pub(crate) async fn add(&self, cart: &Bytes, item: &Bytes, n: u64) -> Result<Changed, Error> {
        if !(1..=MAX_ADDED).contains(&n) {
            return Err(format!("{n} is not from 1 to {MAX_ADDED}").into());
        }
        self.change(cart, item, |stored, actor| {
            let additions: usize = stored.get().iter().map(|(_, set)| set.len()).sum();
            if additions >= MAX_ADDITIONS {
                return Err(format!("the cart holds {MAX_ADDITIONS} additions; remove some").into());
            }
            stored.update(actor, |items, dot| {
                items.update(item.clone(), |set| set.add(addition(dot, n), dot))
            });
            Ok(())
        })
        .await
    }

    /// Removes an item from a cart, as far as this region has seen it.
    ///
    /// # Errors
    /// As [`Carts::add`].
    pub(crate) async fn remove(&self, cart: &Bytes, item: &Bytes) -> Result<Changed, Error> {
        self.change(cart, item, |stored, actor| {
            stored.update(actor, |items, _| items.remove(item));
            Ok(())
        })
        .await
    }

    /// What a cart holds, as this region sees it.
    ///
    /// # Errors
    /// The region has no quorum.
    pub(crate) async fn show(&self, cart: &Bytes) -> Result<Items, Error> {
        let siblings = self.table.get(cart.clone()).await?;
        let stored: Stored = merge_siblings(&siblings, &Limits::default())?;
        Ok(items(&stored))
    }

    /// Reads all siblings, merges them with what this node has written, changes the cart, and
    /// replaces what was read.
    async fn change(
        &self,
        cart: &Bytes,
        item: &Bytes,
        change: impl FnOnce(&mut Stored, Actor) -> Result<(), Error>,
    ) -> Result<Changed, Error> {
        let own = self.own.lock().await;
        let siblings = self.table.get(cart.clone()).await?;
        let mut stored: Stored = merge_siblings(&siblings, &Limits::default())?;
        // A change of unknown outcome may be made later, when the next one has long been: that one
        // must know of it, or it would have the same name.
        let written: Stored = own.get(cart).await?;
        stored.merge(&written);
        let before = items(&stored).get(item).copied().unwrap_or(0);
        change(&mut stored, own.actor)?;
        let value = encode(&stored)?;
        own.put(cart, value.clone()).await?;
        let put = self.table.put(cart.clone(), siblings.context(), value).await;
        if let Err(error) = put {
            if error.outcome() == Outcome::NotApplied {
                own.put(cart, encode(&written)?).await?;
            }
            return Err(error.into());
        }
        Ok(Changed { before, merged: siblings.len() })
    }
}

fn addition(dot: Dot, n: u64) -> Bytes {
    let parts = [dot.actor.node, dot.actor.incarnation, dot.counter, n];
    parts.iter().flat_map(|part| part.to_le_bytes()).collect::<Vec<u8>>().into()
}

fn items(stored: &Stored) -> Items {
    let count = |addition: &Bytes| {
        let n = addition.last_chunk::<8>().copied().unwrap_or_default();
        u64::from_le_bytes(n)
    };
    let items = stored.get().iter();
    items.map(|(item, set)| (item.clone(), set.iter().map(count).sum())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One side removes the milk and the other adds some: what the remover had seen is gone, and
    /// what it had not is there.
    #[test]
    fn an_addition_that_the_remover_has_not_seen_survives() {
        let (east, west) = (Actor::new(1, 1), Actor::new(4, 1));
        let milk = Bytes::from_static(b"milk");
        let add = |stored: &mut Stored, actor, n| {
            stored.update(actor, |items, dot| {
                items.update(milk.clone(), |set| set.add(addition(dot, n), dot))
            });
        };
        let mut one = Stored::default();
        add(&mut one, east, 3);
        let mut two = one.clone();
        one.update(east, |items, _| items.remove(&milk));
        add(&mut two, west, 2);
        assert_eq!((items(&one).get(&milk), items(&two).get(&milk)), (None, Some(&5)));
        one.merge(&two);
        two.merge(&one);
        assert_eq!((items(&one).get(&milk), items(&two).get(&milk)), (Some(&2), Some(&2)));
    }
}
