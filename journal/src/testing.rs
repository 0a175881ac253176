//! Faults for tests: deliberate defects of the journal, and (in `files`) failing disks.

pub use crate::mutant::Mutant;
