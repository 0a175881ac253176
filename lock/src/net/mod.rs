//! The lock service over `voussoir-net`: a server for any fenced service, and a client that follows
//! the leader.

mod client;
mod server;
mod wire;

pub use self::client::NetLocks;
pub use self::server::LockServer;
pub use self::wire::MAX_HOLDERS_TOLD;
