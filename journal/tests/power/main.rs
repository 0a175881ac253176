//! The journal against power losses.
#![cfg(feature = "testing")]

mod oracle;
mod rng;
mod workload;
