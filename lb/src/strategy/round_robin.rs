//! Round robin, weighted and smooth.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::cycle::smooth_cycle;
use super::edf::Edf;
use super::{Group, Member, Select, Selection, Strategy, has_equal_weights, previous_as};
use crate::context::Context;
use crate::random::Random;

/// Round robin in nginx's smooth weighted sequence: weights 5, 1, 1 give `aabacaa`.
///
/// The cycle is computed once; a pick is one atomic increment. Where the cycle would be longer than
/// 16,384 picks, earliest deadline first serves the same weights behind a lock.
///
/// When the set or the weights change, the position goes on at the same share of the cycle.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RoundRobin {
    /// Whether a new balancer begins at a random position, so that many clients that start
    /// together do not all begin with the first endpoint. Default false.
    pub random_start: bool,
}

impl RoundRobin {
    /// Round robin that begins at a random position.
    pub fn from_random_start() -> Self {
        Self { random_start: true }
    }
}

#[derive(Debug)]
struct Turns {
    order: Order,
    /// Position of the next pick in the cycle, modulo its length.
    cursor: AtomicU64,
    /// Share of a cycle that was lost when a position was rounded down. 0 to 1.
    carried: f64,
}

#[derive(Debug)]
enum Order {
    /// All weights are equal: `0..n`.
    Equal(u64),
    Cycle(Box<[u16]>),
    Deadlines(Edf),
}

impl Order {
    fn len(&self) -> u64 {
        match self {
            Self::Equal(n) => *n,
            Self::Cycle(cycle) => cycle.len() as u64,
            // The schedule has a position of its own; this one stays a share of one round.
            Self::Deadlines(_) => 1 << 20,
        }
    }
}

impl Turns {
    /// The position as a share of the cycle, 0 to 1.
    fn phase(&self) -> f64 {
        let len = self.order.len();
        let share = (self.cursor.load(Relaxed) % len) as f64 / len as f64;
        (share + self.carried).fract()
    }
}

impl Strategy for RoundRobin {
    fn compile(
        &self,
        group: Group<'_>,
        previous: Option<&dyn Select>,
        random: &Random,
    ) -> Arc<dyn Select> {
        let previous = previous_as::<Turns>(previous);
        let weights: Vec<u32> = group.members.iter().map(|member| member.weight).collect();
        let order = if has_equal_weights(group.members) {
            Order::Equal(weights.len() as u64)
        } else if let Some(cycle) = smooth_cycle(&weights) {
            Order::Cycle(cycle)
        } else {
            let schedule = previous.and_then(|turns| match &turns.order {
                Order::Deadlines(schedule) => Some(schedule),
                _ => None,
            });
            Order::Deadlines(Edf::new(group.members, schedule))
        };
        let phase = match previous {
            Some(turns) => turns.phase(),
            None if self.random_start => random.u64() as f64 / 2f64.powi(64),
            None => 0.0,
        };
        let len = order.len();
        // The margin keeps the position of an unchanged cycle through the division above.
        let cursor = ((phase * len as f64 + 1e-6) as u64).min(len - 1);
        let carried = (phase - cursor as f64 / len as f64).max(0.0);
        Arc::new(Turns { order, cursor: AtomicU64::new(cursor), carried })
    }
}

impl Select for Turns {
    #[inline]
    fn select(&self, _: &[Member], _: &Context<'_>, _: u64, _: &Random) -> Selection {
        Selection::new(match &self.order {
            Order::Equal(n) => (self.cursor.fetch_add(1, Relaxed) % n) as usize,
            Order::Cycle(cycle) => {
                let at = self.cursor.fetch_add(1, Relaxed) % cycle.len() as u64;
                usize::from(cycle[at as usize])
            }
            Order::Deadlines(schedule) => schedule.next(),
        })
    }
}
