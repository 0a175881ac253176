//! Is a history linearizable?

mod cache;
mod kv;
mod model;
mod ring;
mod search;
mod store;
#[cfg(test)]
mod tests;

pub use kv::{Kv, KvOp, KvRet, Register};
pub use model::{CheckError, Checked, Model};
pub use search::check;
pub use store::{Store, StoreGroup, StoreOp, StoreRet, StoreState};
