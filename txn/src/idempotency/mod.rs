//! Idempotency keys: a request that is sent again has no second effect, and is answered with the
//! first one's result.
//!
//! ```
//! use voussoir_txn::Bytes;
//! use voussoir_txn::idempotency::*;
//! use voussoir_txn::store::MemoryStore; // a JournalStore keeps keys across restarts
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = StoreKeys::open(MemoryStore::new(), 100_000).await?;
//! let keys = Keys::new(store, KeysConfig::default())?;
//! for _ in 0..2 {
//!     // The caller's scope, the key of the request, and what makes the request what it is.
//!     match keys.begin("tenant-7", "3f1c", b"POST /charges 4200").await? {
//!         Begun::New(claim) => claim.finish(Bytes::from("charge 17")).await?,
//!         // An earlier owner died: look whether the charge exists before it is made again.
//!         Begun::Abandoned(claim) => claim.finish(Bytes::from("charge 17")).await?,
//!         Begun::InProgress { .. } => println!("409: try again later"),
//!         Begun::Mismatch => println!("422: the key belongs to another request"),
//!         Begun::Done(result) => assert_eq!(result, "charge 17"),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A key whose owner has died is not run again blindly: [`Begun::Abandoned`] says that the effect
//! may be there. An effect in one PostgreSQL database has a simpler way: note the key with an
//! inbox (feature `postgres`, module `outbox`) in the transaction of the effect.

mod keys;
#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub mod layer;
mod memory;
#[cfg(feature = "postgres")]
mod postgres;
mod store;

pub use keys::{BeginKeyError, Begun, Claim, FinishError, Keys, KeysConfig};
pub use memory::StoreKeys;
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use postgres::PostgresKeys;
pub use store::{Found, KeyStore, NewKey, Settlement};
