//! Is a history linearizable?

mod cache;
mod kv;
mod model;
mod search;
#[cfg(test)]
mod tests;

pub use kv::{Kv, KvOp, KvRet, Register};
pub use model::{CheckError, Checked, Model};
pub use search::check;
