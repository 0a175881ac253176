//! The journal against power losses.
mod oracle;
mod rng;
mod workload;
