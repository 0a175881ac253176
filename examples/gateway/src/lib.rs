//! An HTTP gateway: listeners, routes and pools from a TOML file that is reloaded while it runs.
//!
//! [`config`] reads the file, [`gateway`] runs what it says, [`pool`] is a group of backends with
//! its checks, [`gates`] are limits and breakers, [`reload`] watches the file, [`admin`] answers
//! operators, [`serve`] is the process, [`view`] the live table. `demo` is the run without
//! arguments.

pub mod admin;
pub mod args;
pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
pub mod gates;
pub mod gateway;
mod listen;
pub mod pool;
pub mod reload;
pub mod serve;
pub mod view;
