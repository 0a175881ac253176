//! Earliest deadline first: weighted round robin for weights whose cycle is too long to store.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use parking_lot::Mutex;

use super::Member;

/// Virtual time of one pick at weight 1.
const UNIT: u128 = 1 << 64;

/// Each member is due `UNIT / weight` after its last pick; the one due first is picked.
#[derive(Debug)]
pub(super) struct Edf {
    schedule: Mutex<Schedule>,
}

#[derive(Debug)]
struct Schedule {
    /// Deadline, position. Equal deadlines go in the order of positions.
    heap: BinaryHeap<Reverse<(u128, usize)>>,
    /// The deadline of the last pick.
    clock: u128,
    /// Period and endpoint id of each position.
    members: Vec<(u128, u64)>,
}

impl Edf {
    /// A schedule of `members`. An endpoint that `previous` scheduled keeps the share of its
    /// period that is left, so that a new weight takes effect at once and an endpoint is never
    /// far behind. A new endpoint waits a whole period.
    pub(super) fn new(members: &[Member], previous: Option<&Self>) -> Self {
        let mut clock = 0;
        let mut left = HashMap::new();
        if let Some(previous) = previous {
            let schedule = previous.schedule.lock();
            clock = schedule.clock;
            for &Reverse((deadline, at)) in &schedule.heap {
                let (period, id) = schedule.members[at];
                left.insert(id, (deadline.saturating_sub(clock), period));
            }
        }
        let periods: Vec<(u128, u64)> = members
            .iter()
            .map(|member| (UNIT / u128::from(member.weight.max(1)), member.endpoint.id()))
            .collect();
        let deadline = |(at, &(period, id)): (usize, &(u128, u64))| {
            let wait = left.get(&id).map_or(period, |&(left, old)| rescale(left, old, period));
            Reverse((clock + wait, at))
        };
        let heap = periods.iter().enumerate().map(deadline).collect();
        Self { schedule: Mutex::new(Schedule { heap, clock, members: periods }) }
    }

    /// The position that is due first.
    pub(super) fn next(&self) -> usize {
        let mut schedule = self.schedule.lock();
        let Schedule { heap, clock, members } = &mut *schedule;
        // A group is never empty; the position 0 stands for a member that does not exist.
        let Some(mut top) = heap.peek_mut() else { return 0 };
        let Reverse((deadline, at)) = &mut *top;
        *clock = *deadline;
        *deadline += members[*at].0;
        *at
    }
}

/// `left` of the period `old`, as the same share of the period `new`.
fn rescale(left: u128, old: u128, new: u128) -> u128 {
    let share = left.min(old) as f64 / old as f64;
    (new as f64 * share) as u128
}
