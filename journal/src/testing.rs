//! Faults for tests: deliberate defects of the journal, and (in `files`) failing disks.

pub mod decoders;

pub use crate::mutant::Mutant;
