//! Stores and networks in memory, for tests, examples and benchmarks.

mod network;
mod store;

pub use network::{Network, NetworkNode};
pub use store::MemoryStore;
