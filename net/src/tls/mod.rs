//! Certificates of nodes: what a node shows, whom it trusts, and how both change.

mod error;
#[cfg(feature = "tls")]
mod handle;
#[cfg(feature = "tls")]
mod revocation;
#[cfg(feature = "tls")]
mod verify;

#[cfg(feature = "tls")]
pub use error::TlsConfigError;
pub use error::TlsError;
#[cfg(feature = "tls")]
pub use handle::{Name, Tls, TlsConfig};
#[cfg(feature = "tls")]
pub(crate) use {handle::Loaded, handle::PROTOCOL, verify::Role, verify::error_of};
