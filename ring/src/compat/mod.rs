//! The same answers as systems that are already running: for clients, proxies and migrations that
//! must agree with them key by key.
//!
//! Each is pinned by vectors of the system itself, named in `tests/vectors.rs`.

pub mod cassandra;
pub mod kafka;
pub mod ketama;
pub mod nginx;
mod points;
pub mod redis;
