//! What users rely on without writing it down: thread safety, object safety, cheap clones.

use std::fmt::Debug;
use std::sync::Arc;

use voussoir_ring::compat::{cassandra, ketama, nginx, redis};
use voussoir_ring::geo::{Composite, Geo, Locate};
use voussoir_ring::load::{HotKeys, RangeLoad};
use voussoir_ring::range::RangeMap;
use voussoir_ring::{
    Assignment, Bounded, BuildError, Checkpoint, HashRing, Jump, Maglev, Memento, Modulo, Owners,
    Partitioner, Placement, Plan, PlanError, Published, Reader, Rebalance, Rendezvous, StaleEpoch,
    Topology, TopologyError,
};

fn shared<T: Send + Sync + Debug + 'static>() {}
fn sent<T: Send + Debug + 'static>() {}
fn partitioner<T: Partitioner + Clone + 'static>() {}
fn error<T: std::error::Error + Clone + PartialEq + Send + Sync + 'static>() {}
fn object(_: &dyn Partitioner, _: &dyn Locate) {}

#[test]
fn types_keep_their_promises() {
    shared::<Topology>();
    shared::<Owners>();
    shared::<Placement>();
    shared::<Plan>();
    shared::<Rebalance>();
    shared::<Checkpoint>();
    shared::<Bounded>();
    shared::<Assignment>();
    shared::<Geo>();
    shared::<HotKeys>();
    shared::<RangeLoad>();
    shared::<Published<HashRing>>();
    shared::<Published<Arc<dyn Partitioner>>>();
    sent::<Reader<HashRing>>();
    partitioner::<HashRing>();
    partitioner::<Jump>();
    partitioner::<Maglev>();
    partitioner::<Memento>();
    partitioner::<Modulo>();
    partitioner::<Rendezvous>();
    partitioner::<RangeMap>();
    partitioner::<Composite>();
    partitioner::<ketama::Ketama>();
    partitioner::<nginx::Consistent>();
    partitioner::<cassandra::TokenRing>();
    partitioner::<redis::SlotMap>();
    error::<TopologyError>();
    error::<BuildError>();
    error::<PlanError>();
    error::<StaleEpoch>();
    let _: fn(&dyn Partitioner, &dyn Locate) = object;
}

/// A preference list is returned by value on every lookup.
#[test]
fn a_preference_list_stays_small() {
    assert!(size_of::<Owners>() <= 168, "{}", size_of::<Owners>());
}
