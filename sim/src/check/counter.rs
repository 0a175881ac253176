//! The specification of a source of numbers.

use super::Model;

/// A counter: each call is answered the next number, from 0. What ids, sequences and fencing
/// tokens without gaps are held against.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counter;

impl Model for Counter {
    type Op = ();
    type Ret = u64;
    type Key = ();
    type State = u64;

    fn key(&self, (): &()) {}

    fn init(&self, (): &()) -> u64 {
        0
    }

    fn step(&self, state: &u64, (): &(), ret: Option<&u64>) -> Option<u64> {
        ret.is_none_or(|ret| ret == state).then(|| state + 1)
    }
}
