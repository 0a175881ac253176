//! Means to test what is built on this crate, and this crate itself. Feature `testing`.

pub mod sim;

pub use crate::core::Mutant;
