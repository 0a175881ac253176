//! Where the traffic goes: keys that get too much of it, ranges to split, merge or replicate.

mod range_load;
mod space_saving;

pub use range_load::{Advice, RangeLoad};
pub use space_saving::{HotKey, HotKeys};
