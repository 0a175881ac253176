//! Exploration: Peterson's lock (1981), whole and broken, and what the limits say.

use voussoir_sim::{ExploreError, ExploreLimits, Explored, StateSpace, explore};

/// What is broken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// A process looks at the other's flag before it raises its own.
    LooksFirst,
    /// Nobody gives way: both may wait for ever.
    NobodyGivesWay,
}

struct Peterson(Defect);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
struct State {
    /// What each process does next: 0 and 1 the two steps before the lock, 2 waits, 3 has it.
    at: [u8; 2],
    flags: [bool; 2],
    turn: usize,
}

impl StateSpace for Peterson {
    type State = State;
    type Key = State;
    type Action = usize;

    fn init(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn key(&self, state: &State) -> State {
        *state
    }

    fn actions(&self, state: &State) -> Vec<usize> {
        let may_go = |process: &usize| {
            let other = 1 - process;
            let waits = match self.0 {
                Defect::None => state.flags[other] && state.turn == other,
                Defect::LooksFirst => false,
                Defect::NobodyGivesWay => state.flags[other],
            };
            match (self.0, state.at[*process]) {
                (Defect::LooksFirst, 0) => !state.flags[other],
                (_, 2) => !waits,
                _ => true,
            }
        };
        (0..2).filter(may_go).collect()
    }

    fn next(&self, state: &State, &process: &usize) -> State {
        let mut next = *state;
        next.at[process] = (state.at[process] + 1) % 4;
        match (self.0, state.at[process]) {
            (Defect::LooksFirst, 1) | (Defect::None | Defect::NobodyGivesWay, 0) => {
                next.flags[process] = true;
            }
            (Defect::None, 1) => next.turn = 1 - process,
            (_, 3) => next.flags[process] = false,
            _ => {}
        }
        next
    }

    fn check(&self, state: &State) -> Result<(), String> {
        if state.at == [3, 3] { Err("both have the lock".to_owned()) } else { Ok(()) }
    }
}

const LIMITS: ExploreLimits = ExploreLimits { max_depth: 100, max_states: 10_000 };

#[test]
fn a_right_lock_is_explored_to_the_end() {
    let explored = explore(&Peterson(Defect::None), LIMITS).unwrap();
    assert!(explored.is_complete && explored.states == 20, "{explored:?}");
    assert!(explored.actions >= explored.states as u64, "{explored:?}");
}

#[test]
fn a_broken_lock_gives_a_shortest_run() {
    let broken = Peterson(Defect::LooksFirst);
    let error = explore(&broken, LIMITS).unwrap_err();
    let ExploreError::Violation { text, run } = &error else { panic!("{error}") };
    assert_eq!((text.as_str(), run.len()), ("both have the lock", 6));
    let end = run.iter().fold(State::default(), |state, action| broken.next(&state, action));
    assert!(broken.check(&end).is_err(), "the run leads there");
    assert!(error.to_string().contains("after 6 actions"), "{error}");
}

#[test]
fn a_deadlock_is_found_with_its_run() {
    let error = explore(&Peterson(Defect::NobodyGivesWay), LIMITS).unwrap_err();
    assert!(matches!(&error, ExploreError::Deadlock { run } if run.len() == 4), "{error}");
}

#[test]
fn limits_are_told_apart() {
    let shallow = ExploreLimits { max_depth: 3, ..LIMITS };
    let explored = explore(&Peterson(Defect::LooksFirst), shallow).unwrap();
    assert!(matches!(explored, Explored { is_complete: false, depth: 3, .. }), "{explored:?}");
    // The lock has 20 states: so many are enough, and any fewer are not.
    for max_states in 0..20 {
        let narrow = ExploreLimits { max_states, ..LIMITS };
        let error = explore(&Peterson(Defect::None), narrow).unwrap_err();
        let ExploreError::Undecided { max_states: allowed, depth } = error else {
            panic!("{error}")
        };
        assert_eq!(allowed, max_states);
        let within = ExploreLimits { max_depth: depth, max_states: 20 };
        let states = explore(&Peterson(Defect::None), within).unwrap().states;
        assert!(states <= max_states.max(1), "runs of {depth} actions have {states} states");
    }
    let exact = ExploreLimits { max_states: 20, ..LIMITS };
    assert!(explore(&Peterson(Defect::None), exact).unwrap().is_complete);
}
