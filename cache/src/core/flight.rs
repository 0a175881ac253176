//! One load of one key, and those who wait for it: a state machine without future or lock.
//!
//! Exactly one member drives the load. A member that leaves while it drives passes the baton to
//! the one that has waited longest; when the last one leaves, the load is abandoned. A flight that
//! was overtaken by an invalidation still answers those who joined before it, stores nothing and
//! takes no new members.

use std::collections::VecDeque;

/// A member of a flight.
pub(crate) type Member = u64;

/// What is to be done outside after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Nothing,
    /// The member drives the load from now on: wake it.
    Wake(Member),
    /// Nobody is left: drop the load.
    Abandon,
}

/// How a member that joins takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// It drives the load.
    Driver(Member),
    /// It waits.
    Waiter(Member),
}

#[derive(Debug, Default)]
pub(crate) struct Flight {
    next: Member,
    /// Who drives. Invariant: `None` only before the first member, after the last one has left, or
    /// when the flight is done.
    driver: Option<Member>,
    /// Those who wait, in the order in which they joined. Invariant: never holds `driver`.
    waiting: VecDeque<Member>,
    overtaken: bool,
    done: bool,
}

impl Flight {
    /// A new member. `None` when the flight takes no more: it is done or was overtaken.
    pub(crate) fn join(&mut self) -> Option<Joined> {
        if self.done || self.overtaken {
            return None;
        }
        let member = self.next;
        self.next += 1;
        if self.driver.is_none() {
            self.driver = Some(member);
            return Some(Joined::Driver(member));
        }
        self.waiting.push_back(member);
        Some(Joined::Waiter(member))
    }

    /// A member goes, because its future was dropped or its own time is up.
    pub(crate) fn leave(&mut self, member: Member) -> Action {
        if self.done {
            return Action::Nothing;
        }
        if self.driver != Some(member) {
            self.waiting.retain(|waiting| *waiting != member);
            return Action::Nothing;
        }
        self.driver = self.waiting.pop_front();
        self.driver.map_or(Action::Abandon, Action::Wake)
    }

    /// The load has ended. Whether its result may be stored.
    pub(crate) fn finish(&mut self) -> bool {
        self.done = true;
        self.driver = None;
        self.waiting.clear();
        !self.overtaken
    }

    /// The key was written or invalidated: the load may have read what was there before.
    pub(crate) fn overtake(&mut self) {
        self.overtaken = true;
    }

    pub(crate) fn is_driven(&self) -> bool {
        self.driver.is_some()
    }

    pub(crate) fn drives(&self, member: Member) -> bool {
        self.driver == Some(member)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Act {
        Join,
        Leave(prop::sample::Index),
        Finish,
        Overtake,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            5 => Just(Act::Join),
            4 => any::<prop::sample::Index>().prop_map(Act::Leave),
            1 => Just(Act::Finish),
            1 => Just(Act::Overtake),
        ];
        prop::collection::vec(act, 0..40)
    }

    proptest! {
        /// In every order of joining, leaving, overtaking and finishing: while somebody is there
        /// and the load has not ended, exactly one member drives; the baton goes to the member that
        /// waited longest and is never lost.
        #[test]
        fn somebody_drives_for_as_long_as_somebody_is_there(acts in acts()) {
            let mut flight = Flight::default();
            let mut here: BTreeSet<Member> = BTreeSet::new();
            let (mut done, mut overtaken, mut abandoned) = (false, false, false);
            for act in acts {
                match act {
                    Act::Join if abandoned => {}
                    Act::Join => match flight.join() {
                        None => prop_assert!(done || overtaken),
                        Some(Joined::Driver(member)) => {
                            prop_assert!(here.is_empty() && !done && !overtaken);
                            here.insert(member);
                        }
                        Some(Joined::Waiter(member)) => {
                            prop_assert!(!here.is_empty() && here.insert(member));
                        }
                    },
                    Act::Leave(which) if !here.is_empty() => {
                        let member = *which.get(&here.iter().copied().collect::<Vec<_>>());
                        let drove = flight.drives(member);
                        here.remove(&member);
                        let expected = match here.first() {
                            _ if done || !drove => Action::Nothing,
                            Some(oldest) => Action::Wake(*oldest),
                            None => Action::Abandon,
                        };
                        prop_assert_eq!(flight.leave(member), expected);
                        abandoned |= expected == Action::Abandon;
                    }
                    Act::Finish if !done && !here.is_empty() => {
                        prop_assert_eq!(flight.finish(), !overtaken);
                        done = true;
                    }
                    Act::Overtake => {
                        flight.overtake();
                        overtaken = true;
                    }
                    Act::Leave(_) | Act::Finish => {}
                }
                let drivers = here.iter().filter(|member| flight.drives(**member)).count();
                prop_assert_eq!(drivers, usize::from(!here.is_empty() && !done));
            }
        }
    }
}
