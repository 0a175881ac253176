//! Means to test what is built on this crate, and this crate itself. Feature `testing`.

pub use crate::core::Mutant;
