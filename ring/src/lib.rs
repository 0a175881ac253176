#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod algo;
#[cfg(feature = "compat")]
pub mod compat;
mod config;
mod core;
mod error;
pub mod geo;
pub mod hash;
pub mod load;
mod owners;
mod partitioner;
mod placement;
pub mod range;
mod snapshot;
mod spread;
#[cfg(feature = "testing")]
pub mod testing;
mod topology;

pub use algo::{
    Assignment, Bounded, BoundedStats, HashRing, Jump, MAX_MAGLEV_TABLE, MAX_POINTS, Maglev,
    Memento, Modulo, Rendezvous, jump,
};
pub use config::{HotKeysConfig, LoadConfig, PlanConfig, RingConfig};
pub use core::{
    Change, Checkpoint, Direction, Input, MAX_CHANGES, MAX_PLAN_REPLICAS, Move, OpId, Output, Plan,
    Progress, Rebalance, Route, Side, State,
};
pub use error::{
    BuildError, ConfigError, GeoError, PlanError, RangeError, SketchesDiffer, StaleEpoch,
    TopologyError, WeightError,
};
pub use owners::{Degraded, MAX_REPLICAS, Owners};
pub use partitioner::Partitioner;
pub use placement::{HashRange, MAX_SLOTS, Placement, slot_of};
pub use snapshot::{Published, Reader};
pub use topology::{MAX_NODES, Node, Topology, Weight};
