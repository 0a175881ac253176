//! The core in a world of faults. Needs the feature `testing`.
//!
//! `VOUSSOIR_SEEDS` sets how many seeds are played (default 2,000 in CI), `VOUSSOIR_SEED` plays
//! one.
#![cfg(feature = "testing")]

use voussoir_raft::testing::sim::{Options, run};
use voussoir_sim::{FaultSet, Runner};

#[test]
fn all_faults() {
    let command = "cargo test -p voussoir-raft --features testing --test sim all_faults";
    let options = Options::default();
    let summary = Runner::new(command).seeds(2000).run(|seed| run(seed, &options)).unwrap();
    println!("{summary}");
    assert!(summary.silent(FaultSet::ALL).is_empty(), "{}", summary.silent(FaultSet::ALL));
}
