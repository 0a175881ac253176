//! The decisions: plain functions of a state, a quota and the time. No clock, no thread.
//!
//! Algorithms whose state fits into a 64-bit word are functions from word to word ([`word`]), so
//! that the word can live in an atomic, in a table of a million keys, or in a store.

mod atomic;
mod cell;
mod live;
mod log;
#[cfg(test)]
mod model_tests;
mod pair;
mod rules;
mod slot;
mod verdict;
pub(crate) mod word;

pub(crate) use atomic::AtomicCell;
pub(crate) use cell::{Cell, convert_all, step_all};
pub(crate) use live::LiveRules;
pub(crate) use rules::{Kind, MAX_NOW, Rules};
pub(crate) use slot::{Slot, SlotRef};
pub use verdict::Standing;
pub(crate) use verdict::{NEVER, Receipt, Verdict};
pub(crate) use word::Beyond;
