//! Nodes in one process that miss writes: what is handed over and repaired.

mod anti_entropy;
mod hints;
mod reads;
mod support;
