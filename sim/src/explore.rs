//! Bounded exhaustive exploration of a core: every order of its inputs, up to a depth.

use std::collections::HashSet;
use std::fmt::{self, Debug};
use std::hash::Hash;

/// A system whose every run is explored: usually a few cores and the messages between them.
///
/// # Example
/// See [`explore`].
pub trait StateSpace {
    /// A state of the whole system.
    type State: Clone;
    /// What tells states apart. States of the same key must allow the same actions and lead to
    /// states of the same keys; a digest of 128 bits is good enough where a state has no `Hash`.
    type Key: Eq + Hash;
    /// One step: a message arrives or is lost, a timer fires, a node crashes.
    type Action: Clone + Debug;

    /// The states to begin with.
    fn init(&self) -> Vec<Self::State>;

    /// The key of a state.
    fn key(&self, state: &Self::State) -> Self::Key;

    /// Every action that is possible in `state`.
    fn actions(&self, state: &Self::State) -> Vec<Self::Action>;

    /// The state after `action`.
    fn next(&self, state: &Self::State, action: &Self::Action) -> Self::State;

    /// Whether every invariant holds.
    ///
    /// # Errors
    /// What does not hold, for a reader.
    fn check(&self, state: &Self::State) -> Result<(), String>;

    /// Whether a state without actions is an orderly end. The default says no, so that every
    /// state without actions is a deadlock.
    fn is_end(&self, state: &Self::State) -> bool {
        let _ = state;
        false
    }
}

/// Bounds of [`explore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExploreLimits {
    /// Most actions from the beginning. Longer runs are not looked at.
    pub max_depth: usize,
    /// Most states. More are an error: what was looked at proves nothing about the depth.
    pub max_states: usize,
}

/// Every state up to the depth holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Explored {
    /// How many states there are.
    pub states: usize,
    /// How many actions were tried.
    pub actions: u64,
    /// The number of actions to the farthest state.
    pub depth: usize,
    /// Whether no state lies beyond `max_depth`: then the invariants hold for runs of any length.
    pub is_complete: bool,
}

/// Why an exploration failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExploreError<A> {
    /// An invariant does not hold: the core is at fault.
    Violation {
        /// What does not hold.
        text: String,
        /// A shortest run that leads there.
        run: Vec<A>,
    },
    /// No action is possible, and [`StateSpace::is_end`] says that there should be one.
    Deadlock {
        /// A shortest run that leads there.
        run: Vec<A>,
    },
    /// There are more states than allowed within the depth; nothing is shown.
    Undecided {
        /// How many states had been allowed.
        max_states: usize,
        /// Every run of so many actions was looked at.
        depth: usize,
    },
}

impl<A: Debug> fmt::Display for ExploreError<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, run) = match self {
            Self::Violation { text, run } => (text.as_str(), run),
            Self::Deadlock { run } => ("deadlock: no action is possible", run),
            Self::Undecided { max_states, depth } => {
                return write!(
                    f,
                    "not decided: more than {max_states} states; runs of {depth} actions hold. \
                     Allow more states or less depth, or make the system smaller"
                );
            }
        };
        write!(f, "{text}; after {} actions:", run.len())?;
        for (at, action) in run.iter().enumerate() {
            write!(f, "\n{at:>5} {action:?}")?;
        }
        Ok(())
    }
}

impl<A: Debug> std::error::Error for ExploreError<A> {}

/// Looks at every state that `space` can reach within the limits, nearest first, each once.
///
/// # Errors
/// [`ExploreError`], with a shortest run to what is wrong.
///
/// # Example
/// Two processes that each add 1 to a shared number, by a read and a write:
/// ```
/// use voussoir_sim::{ExploreError, ExploreLimits, StateSpace, explore};
/// struct Adders;
/// impl StateSpace for Adders {
///     type State = (u8, [Option<u8>; 2], [bool; 2]); // the number, what each read, who is done
///     type Key = Self::State;
///     type Action = usize;
///     fn init(&self) -> Vec<Self::State> {
///         vec![(0, [None; 2], [false; 2])]
///     }
///     fn key(&self, state: &Self::State) -> Self::Key {
///         *state
///     }
///     fn actions(&self, state: &Self::State) -> Vec<usize> {
///         (0..2).filter(|&process| !state.2[process]).collect()
///     }
///     fn next(&self, state: &Self::State, &process: &usize) -> Self::State {
///         let mut next = *state;
///         match state.1[process] {
///             None => next.1[process] = Some(state.0),
///             Some(read) => (next.0, next.2[process]) = (read + 1, true),
///         }
///         next
///     }
///     fn check(&self, state: &Self::State) -> Result<(), String> {
///         let is_lost = state.2 == [true; 2] && state.0 != 2;
///         if is_lost { Err(format!("two additions, and the sum is {}", state.0)) } else { Ok(()) }
///     }
///     fn is_end(&self, state: &Self::State) -> bool {
///         state.2 == [true; 2]
///     }
/// }
/// let limits = ExploreLimits { max_depth: 10, max_states: 1_000 };
/// let Err(ExploreError::Violation { run, .. }) = explore(&Adders, limits) else { panic!() };
/// assert_eq!(run.len(), 4);
/// ```
pub fn explore<S: StateSpace>(
    space: &S,
    limits: ExploreLimits,
) -> Result<Explored, ExploreError<S::Action>> {
    let max_states = limits.max_states;
    let mut search = Search { space, max_states, depth: 0, seen: HashSet::new(), steps: vec![] };
    let mut frontier = Vec::new();
    for state in space.init() {
        search.visit(state, None, &mut frontier)?;
    }
    let mut explored = Explored { states: 0, actions: 0, depth: 0, is_complete: false };
    // Ends: each turn goes one action deeper.
    loop {
        explored.states = search.steps.len();
        search.depth = explored.depth;
        let mut next = Vec::new();
        let is_last = explored.depth == limits.max_depth;
        let mut goes_on = false;
        for (at, state) in &frontier {
            let actions = space.actions(state);
            if actions.is_empty() && !space.is_end(state) {
                return Err(ExploreError::Deadlock { run: search.run_to(*at) });
            }
            goes_on |= !actions.is_empty();
            for action in actions.into_iter().take(if is_last { 0 } else { usize::MAX }) {
                explored.actions += 1;
                search.visit(space.next(state, &action), Some((*at, action)), &mut next)?;
            }
        }
        if is_last || next.is_empty() {
            explored.is_complete = !(is_last && goes_on);
            return Ok(explored);
        }
        frontier = next;
        explored.depth += 1;
    }
}

struct Search<'a, S: StateSpace> {
    space: &'a S,
    max_states: usize,
    /// Every run of so many actions has been looked at.
    depth: usize,
    seen: HashSet<S::Key>,
    /// For each state, the state and the action that led to it first; none at the beginning.
    /// Invariant: at most `max_states` of them.
    steps: Vec<Option<(usize, S::Action)>>,
}

impl<S: StateSpace> Search<'_, S> {
    /// Checks a state that has not been seen, and puts it on the list.
    fn visit(
        &mut self,
        state: S::State,
        by: Option<(usize, S::Action)>,
        list: &mut Vec<(usize, S::State)>,
    ) -> Result<(), ExploreError<S::Action>> {
        if !self.seen.insert(self.space.key(&state)) {
            return Ok(());
        }
        let at = self.steps.len();
        if at >= self.max_states {
            let (max_states, depth) = (self.max_states, self.depth);
            return Err(ExploreError::Undecided { max_states, depth });
        }
        self.steps.push(by);
        if let Err(text) = self.space.check(&state) {
            return Err(ExploreError::Violation { text, run: self.run_to(at) });
        }
        list.push((at, state));
        Ok(())
    }

    fn run_to(&self, mut at: usize) -> Vec<S::Action> {
        let mut run = Vec::new();
        // Ends: each state was reached from an earlier one.
        while let Some((before, action)) = &self.steps[at] {
            run.push(action.clone());
            at = *before;
        }
        run.reverse();
        run
    }
}
