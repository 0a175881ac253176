//! Is a history linearizable, sequentially or causally consistent, true to its sessions?

mod cache;
mod counter;
mod kv;
mod model;
#[cfg(test)]
mod order_tests;
mod ring;
mod search;
mod sequential;
mod session;
mod store;
#[cfg(test)]
mod tests;
mod zones;
#[cfg(test)]
mod zones_tests;

pub use counter::Counter;
pub use kv::{Kv, KvOp, KvRet, Register};
pub use model::{CheckError, Checked, Model};
pub use search::check;
pub use sequential::check_sequential;
pub use session::{Causality, OrderError, SessionGuarantee, check_causal, check_sessions};
pub use store::{Store, StoreGroup, StoreOp, StoreRet, StoreState};
pub use zones::check_kv;
