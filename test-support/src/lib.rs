//! What the tests of several crates share and is no crate's trade: servers that they start, the
//! inputs that the fuzzers found, and transcripts. Part of no library: only tests depend on it.
//!
//! Everything here panics where a test would unwrap.

pub mod corpus;
mod nginx;
mod redis;
pub mod transcripts;

use std::net::TcpListener;
use std::path::PathBuf;

pub use nginx::{Nginx, Requests};
pub use redis::RedisServer;

/// The program that `variable` names, else the one on `PATH` or in `/usr/sbin`; `None`, and a line
/// on standard error, where there is none.
fn program(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let found = folders.map(|folder| folder.join(name)).find(|file| file.is_file());
    if found.is_none() {
        eprintln!("left out: no {name} on PATH or in {variable}");
    }
    found
}

/// A loopback port that nobody listens on. Another process may take it before the caller does.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}
