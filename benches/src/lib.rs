//! Measuring ours and the rivals' in one run: each case in turn, several rounds, medians with their
//! spread, CPU time beside wall time.

mod compare;
pub mod raft_group;

pub use compare::{Contender, Row, Sample, Spread, compare, contender, process_cpu, time};
