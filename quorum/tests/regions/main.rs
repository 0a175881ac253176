//! Regions: shipping, catching up, tombstones, maps, configurations; scenes, and lives with every
//! fault at once.
//!
//! The nodes and their regions are the real ones, under virtual time, on a network and on disks
//! that do what the seed says. `VOUSSOIR_LIVES` sets the number of seeds, `VOUSSOIR_SEED` the first
//! one.

mod changes;
mod clients;
mod collections;
mod configs;
#[path = "../disk/mod.rs"]
mod disk;
mod lives;
mod members;
mod outbox;
mod scenes;
mod world;
