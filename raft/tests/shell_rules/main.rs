//! The rules of the shell, a test each, on paused tokio time. Needs the feature `testing`.

mod callers;
#[path = "../cluster/mod.rs"]
mod cluster;
mod disks;
#[path = "../hooked/mod.rs"]
mod hooked;
mod racing;
mod room;
mod script;
mod snapshots;
