//! Suites that hold an implementation of a seam against what the seam promises.
//!
//! Each is an async function that panics where a promise is broken: call it from a test.

mod machine;
mod store;
mod transport;

pub use machine::state_machine;
pub use store::{damaged_log_store, log_store};
pub use transport::transport;
