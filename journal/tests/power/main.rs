//! The journal against power losses, failing disks, and flipped bits on the simulated
//! disk; and against `kill -9` on a real one.
#![cfg(feature = "testing")]

mod faults;
mod faulty_victims;
mod flips;
mod index;
mod kill;
mod limits;
mod losses;
mod lost_index;
mod media;
mod moves;
mod old_manifest;
mod oracle;
mod rewriting;
mod rng;
mod rules;
mod run;
mod seal;
mod shortage;
mod threads;
mod workload;
