//! Plans and their execution: pure state, no clock, no I/O.

mod plan;
mod rebalance;
mod schedule;

pub use plan::{CHANGES_MAX, Change, Move, PLAN_REPLICAS_MAX, Plan};
pub use rebalance::{
    Checkpoint, Direction, Input, OpId, Output, Progress, Rebalance, Route, Side, State,
};
