//! Means to test what is built on this crate, and this crate itself. Feature `testing`.

pub mod conformance;
pub mod decoders;
mod faults;
#[cfg(feature = "journal")]
#[cfg_attr(docsrs, doc(cfg(feature = "journal")))]
pub mod sim;

pub use self::faults::FaultyStore;
