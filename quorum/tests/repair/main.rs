//! Nodes in one process that miss writes: what is handed over, repaired and rebuilt.

mod anti_entropy;
mod damaged;
mod hints;
mod reads;
mod rebuild;
mod support;
mod tried;
