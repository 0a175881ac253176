//! The promises of [`Transport`] as a suite of checks, for any implementation; and a TCP proxy
//! with faults, for tests of real processes.
//!
//! # Example
//! ```
//! use std::sync::Arc;
//! use voussoir_net::memory::Network;
//! use voussoir_net::testing::{Factory, conformance};
//! use voussoir_net::{Config, Transport, async_trait};
//!
//! struct InMemory;
//!
//! #[async_trait]
//! impl Factory for InMemory {
//!     async fn start(&self, ids: &[u64]) -> Vec<Arc<dyn Transport>> {
//!         let network = Network::new(Config::default()).unwrap();
//!         let join = |&id| Arc::new(network.join(id)) as Arc<dyn Transport>;
//!         ids.iter().map(join).collect()
//!     }
//!
//!     async fn kill(&self, transport: Arc<dyn Transport>) {
//!         drop(transport); // the last handle
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! conformance(&InMemory).await;
//! # }
//! ```

pub mod decoders;
mod proxy;
mod suite;
mod support;

use std::sync::Arc;

use async_trait::async_trait;

use crate::Transport;
pub use proxy::{
    Direction, Fault, Link, MAX_CONNECTIONS, MAX_HELD_BYTES, Proxy, ProxyError, ProxyStats, Rule,
};
pub use support::{Probe, Seen};

/// Makes the transports that the suite checks.
#[async_trait]
pub trait Factory: Send + Sync {
    /// Creates one transport per id in a network of their own, each able to reach all others by
    /// their ids. Messages up to 64 KiB must be accepted on small channels, up to 1 MiB on bulk
    /// ones;
    /// the queue to a peer must hold at most 64 MiB, and calls of a peer under way at most 4,096.
    ///
    /// # Cancel safety
    /// The suite never drops the future.
    async fn start(&self, ids: &[u64]) -> Vec<Arc<dyn Transport>>;

    /// Ends one of the transports, as if its process had been killed.
    ///
    /// # Cancel safety
    /// The suite never drops the future.
    async fn kill(&self, transport: Arc<dyn Transport>);
}

/// Runs every check, one after the other, each with transports of its own.
///
/// # Panics
/// When a promise is not kept; the message says which.
///
/// # Cancel safety
/// Dropping the future ends the checks; the transports are dropped.
pub async fn conformance(factory: &dyn Factory) {
    suite::run(factory).await;
}
