//! One load of one key, and those who wait for it: a state machine without future or lock.
//!
//! The load belongs to no member: whoever is polled when it can go on polls it. So a member that is
//! held without being polled stops no other. When the last one leaves, the load is abandoned. A
//! flight that was overtaken by an invalidation still answers those who joined before it, stores
//! nothing and takes no new members.

/// Which member may poll the load next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Turn {
    /// The next member that is polled polls the load: the load is new or was woken.
    #[default]
    Due,
    /// A member is polling the load.
    Polled,
    /// A member is polling the load, which was woken since the poll began.
    PolledAndDue,
    /// The load is pending and was not woken.
    Waits,
}

#[derive(Debug, Default)]
pub(crate) struct Flight {
    members: usize,
    turn: Turn,
    overtaken: bool,
    done: bool,
    /// A member is a task that polls the load for as long as it goes on.
    has_task: bool,
}

impl Flight {
    /// Adds a member. Returns false if the flight is done or overtaken, and takes no more members.
    pub(crate) fn join(&mut self) -> bool {
        let joins = !self.done && !self.overtaken;
        self.members += usize::from(joins);
        joins
    }

    /// Removes a member whose future was dropped or has timed out. Returns true if the load has to
    /// be dropped because it has no members left.
    pub(crate) fn leave(&mut self) -> bool {
        self.members -= 1;
        self.is_abandoned()
    }

    /// Called when a member is about to become a task. Returns false if one is there already.
    pub(crate) fn begin_task(&mut self) -> bool {
        !std::mem::replace(&mut self.has_task, true)
    }

    /// Whether members wait beside the one that polls the load.
    pub(crate) fn has_others(&self) -> bool {
        self.members > 1
    }

    /// Whether all members have gone.
    pub(crate) fn is_empty(&self) -> bool {
        self.members == 0
    }

    /// Whether the load has not ended and has no members.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.members == 0 && !self.done
    }

    /// Called when a member is polled. Returns true if that member has to poll the load now.
    pub(crate) fn take_turn(&mut self) -> bool {
        let is_due = self.turn == Turn::Due && !self.done;
        if is_due {
            self.turn = Turn::Polled;
        }
        is_due
    }

    /// Records that the load was woken. Returns true if the members have to be woken. While a
    /// member polls the load, [`end_turn`](Self::end_turn) reports the wake instead.
    pub(crate) fn wake(&mut self) -> bool {
        match self.turn {
            Turn::Waits => self.turn = Turn::Due,
            Turn::Polled => self.turn = Turn::PolledAndDue,
            Turn::Due | Turn::PolledAndDue => {}
        }
        self.turn == Turn::Due
    }

    /// Ends the turn of the member whose poll of the load returned pending. Returns true if the
    /// members have to be woken because the load was woken during the poll.
    pub(crate) fn end_turn(&mut self) -> bool {
        let is_due = self.turn == Turn::PolledAndDue;
        self.turn = if is_due { Turn::Due } else { Turn::Waits };
        is_due
    }

    /// Ends the flight. Returns true if the result of the load may be stored.
    pub(crate) fn finish(&mut self) -> bool {
        self.done = true;
        !self.overtaken
    }

    /// Marks the load as overtaken: its key was written or invalidated, and the load may have read
    /// the older value.
    pub(crate) fn overtake(&mut self) {
        self.overtaken = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Act {
        Join,
        Leave,
        Poll,
        Pend,
        Wake,
        Finish,
        Overtake,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            4 => Just(Act::Join),
            3 => Just(Act::Leave),
            6 => Just(Act::Poll),
            6 => Just(Act::Pend),
            6 => Just(Act::Wake),
            1 => Just(Act::Finish),
            1 => Just(Act::Overtake),
        ];
        prop::collection::vec(act, 0..60)
    }

    proptest! {
        /// In every order of joining, leaving, polling, waking, overtaking and finishing: one
        /// member at a time polls the load, no wake is lost, and an abandoned load is dropped once.
        #[test]
        fn every_wake_is_followed_by_a_turn(acts in acts()) {
            let mut flight = Flight::default();
            let (mut here, mut polls) = (0_usize, false);
            // A wake, or the start, that no poll of the load has followed.
            let mut owed = true;
            // The members were told to poll since.
            let mut told = true;
            let (mut done, mut overtaken) = (false, false);
            for act in acts {
                match act {
                    Act::Join => {
                        let joins = flight.join();
                        prop_assert_eq!(joins, !done && !overtaken);
                        here += usize::from(joins);
                    }
                    // Who polls the load does not leave meanwhile.
                    Act::Leave if here > usize::from(polls) => {
                        here -= 1;
                        prop_assert_eq!(flight.leave(), here == 0 && !done);
                        if here == 0 {
                            return Ok(());
                        }
                    }
                    Act::Poll if here > usize::from(polls) => {
                        let takes = flight.take_turn();
                        prop_assert_eq!(takes, owed && !polls && !done);
                        if takes {
                            (polls, owed, told) = (true, false, false);
                        }
                    }
                    Act::Pend if polls => {
                        polls = false;
                        told |= flight.end_turn();
                    }
                    Act::Wake if !done => {
                        owed = true;
                        told |= flight.wake();
                    }
                    Act::Finish if polls => {
                        polls = false;
                        done = true;
                        prop_assert_eq!(flight.finish(), !overtaken);
                    }
                    Act::Overtake => {
                        flight.overtake();
                        overtaken = true;
                    }
                    Act::Leave | Act::Poll | Act::Pend | Act::Wake | Act::Finish => {}
                }
                prop_assert!(!owed || told || polls || done, "a wake that nobody follows");
            }
        }
    }
}
