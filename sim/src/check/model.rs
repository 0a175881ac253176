//! What a checker needs to know, and what it says.

use std::error::Error;
use std::fmt::{self, Debug};
use std::hash::Hash;

use crate::CallId;

/// A sequential specification: what the answers would be if calls came one after another.
///
/// See [`Kv`](crate::Kv) for one.
pub trait Model {
    /// What a call asks.
    type Op: Eq + Hash + Debug;
    /// What it is answered.
    type Ret: Debug;
    /// Calls of different keys have nothing to do with each other and are checked apart: a
    /// history is linearizable if and only if its part of each key is (Herlihy and Wing 1990,
    /// locality). Use `()` where there is no such partition.
    type Key: Clone + Eq + Hash + Debug;
    /// The state of one key.
    type State: Clone + Eq + Hash + Debug;

    /// The key of a call.
    fn key(&self, op: &Self::Op) -> Self::Key;

    /// The state of `key` before all calls.
    fn init(&self, key: &Self::Key) -> Self::State;

    /// The state after `op`, or `None` if `op` cannot be answered `ret` in `state`. A `ret` of
    /// `None` is an answer that nobody saw: any will do.
    fn step(
        &self,
        state: &Self::State,
        op: &Self::Op,
        ret: Option<&Self::Ret>,
    ) -> Option<Self::State>;

    /// Does `op`, when it is answered `ret`, leave every state as it is? Saying so for what only
    /// reads makes the search much shorter; saying so for anything else makes it wrong. The
    /// default says so for nothing.
    fn is_read(&self, op: &Self::Op, ret: &Self::Ret) -> bool {
        let _ = (op, ret);
        false
    }

    /// How many bytes a state owns on the heap, so that the bound of [`check`](crate::check)
    /// holds for them too. The default is 0; a state that holds a collection of its own says so.
    fn state_bytes(&self, state: &Self::State) -> usize {
        let _ = state;
        0
    }
}

/// A history was found linearizable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checked {
    /// How many calls were checked: all but those that had failed.
    pub calls: u64,
    /// Of these, how many had an unknown outcome.
    pub unknown: u64,
    /// How many keys they had.
    pub keys: u64,
    /// How many of these keys [`check_kv`](crate::check_kv) decided without a search; 0 after
    /// [`check`](crate::check).
    pub register_keys: u64,
    /// How many steps of the model it took.
    pub steps: u64,
}

/// A history was not found linearizable.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckError<K> {
    /// It is not linearizable: the system under test is at fault.
    Violation {
        /// The key whose calls have no order that explains them.
        key: K,
        /// The last calls of the longest order found, at most 16. Empty for a key that
        /// [`check_kv`](crate::check_kv) decided without a search.
        fitting: Vec<CallId>,
        /// The calls that could come next; none of their answers fits. Without a search: the
        /// calls that contradict each other, at most four.
        stuck: Vec<CallId>,
        /// When the stuck calls began first and ended last, in ns.
        span_ns: (u64, u64),
        /// All of it for a reader, with the state reached and the times of the calls.
        text: String,
    },
    /// The search was given up: no violation was found, and nothing is shown. To be treated as a
    /// failure: allow more steps, or let fewer calls end unknown, or spread them over more keys.
    Undecided {
        /// The first key that was not decided.
        key: K,
        /// How many calls it has, without those that failed.
        calls: u64,
        /// How many of these have an unknown outcome.
        unknown: u64,
        /// How many keys were not decided.
        keys: u64,
        /// How many steps had been allowed.
        steps: u64,
    },
}

impl<K> CheckError<K> {
    /// When a violation happened, from and to, in ns as given to the history.
    pub fn span_ns(&self) -> Option<(u64, u64)> {
        match self {
            Self::Violation { span_ns, .. } => Some(*span_ns),
            Self::Undecided { .. } => None,
        }
    }
}

impl<K: Debug> fmt::Display for CheckError<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violation { text, .. } => f.write_str(text),
            Self::Undecided { key, calls, unknown, keys, steps } => write!(
                f,
                "not decided in {steps} steps: {keys} keys, the first of them {key:?}: {calls} \
                 calls, {unknown} of unknown outcome. No violation was found, and nothing is \
                 shown: allow more steps, wait longer for answers so that fewer outcomes are \
                 unknown, or spread the calls over more keys"
            ),
        }
    }
}

impl<K: Debug> Error for CheckError<K> {}
