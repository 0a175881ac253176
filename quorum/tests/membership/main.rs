//! Changing the replicas of running nodes: scenes, and lives with every fault at once.
//!
//! The nodes and clients are the real ones, under virtual time, on a network and on disks that do
//! what the seed says. `VOUSSOIR_LIVES` sets the number of seeds, `VOUSSOIR_SEED` the first one.

mod clients;
#[path = "../disk/mod.rs"]
mod disk;
#[path = "../history/mod.rs"]
mod history;
mod lineage;
mod lives;
mod refusals;
mod scenes;
mod world;
