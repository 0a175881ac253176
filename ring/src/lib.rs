#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod algo;
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
    Assignment, Bounded, BoundedStats, HashRing, Jump, MAGLEV_TABLE_MAX, Maglev, Memento, Modulo,
    POINTS_MAX, Rendezvous, jump,
};
pub use config::{HotKeysConfig, LoadConfig, PlanConfig, RingConfig};
pub use core::{
    CHANGES_MAX, Change, Checkpoint, Direction, Input, Move, OpId, Output, PLAN_REPLICAS_MAX, Plan,
    Progress, Rebalance, Route, Side, State,
};
pub use error::{
    BuildError, GeoError, PlanError, RangeError, SketchError, StaleEpoch, TopologyError,
    WeightError,
};
pub use owners::{Degraded, Owners, REPLICAS_MAX};
pub use partitioner::Partitioner;
pub use placement::{HashRange, Placement, SLOTS_MAX, slot_of};
pub use snapshot::{Published, Reader};
pub use topology::{NODES_MAX, Node, Topology, Weight};
