//! The journal against power losses, failing disks, flipped bits and its own deliberate defects,
//! on the simulated disk; and against `kill -9` on a real one.
#![cfg(feature = "testing")]

mod faults;
mod flips;
mod index;
mod kill;
mod limits;
mod losses;
mod media;
mod mutants;
mod oracle;
mod rng;
mod run;
mod seal;
mod threads;
mod workload;
