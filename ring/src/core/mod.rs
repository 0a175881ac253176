//! Plans and their execution: pure state, no clock, no I/O.

mod plan;
mod rebalance;
mod schedule;

pub use plan::{Change, MAX_CHANGES, MAX_PLAN_REPLICAS, Move, Plan};
pub use rebalance::{
    Checkpoint, Direction, Input, OpId, Output, Progress, Rebalance, Route, Side, State,
};
