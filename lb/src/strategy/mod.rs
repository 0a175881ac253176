//! Which endpoint of a group is next.
//!
//! A [`Strategy`] compiles a group of endpoints into a [`Select`], which answers picks without a
//! lock. The balancer compiles again when the set, its weights or its health change, and hands over
//! the previous `Select`, so that positions and counts go on.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::context::Context;
use crate::endpoint::{Endpoint, Pick};
use crate::random::Random;

mod cycle;
mod edf;
mod hash;
mod least;
#[cfg(feature = "ring")]
mod ring;
mod round_robin;
mod sampler;
mod two_choices;

pub use hash::{IpHash, KeyHash};
pub use least::{LeastConnections, LeastRequest};
#[cfg(feature = "ring")]
pub use ring::{BoundedHash, MaglevHash};
pub use round_robin::RoundRobin;
pub use sampler::RandomChoice;
pub use two_choices::{PeakEwma, PowerOfTwo};

/// An endpoint that a strategy may choose, and its weight.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Member {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Its weight after slow start, at least 1. Only the ratios of weights matter.
    pub weight: u32,
}

/// An endpoint of the group, whether it may be chosen now or not.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Slot {
    /// The configured weight, at least 1.
    pub weight: u32,
    /// Its index in [`Group::members`], if it may be chosen.
    pub member: Option<usize>,
}

/// Endpoints among which a strategy chooses.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Group<'a> {
    /// The endpoints that may be chosen, in the order of the set. Never empty.
    pub members: &'a [Member],
    /// All endpoints of the group, unhealthy and ejected ones included, in the order of the set.
    pub slots: &'a [Slot],
}

/// Compiles a group.
pub trait Strategy: fmt::Debug + Send + Sync {
    /// Compiles `group`. `previous` is what this strategy compiled for the group before.
    ///
    /// No lock is held. Two calls of one balancer never overlap; a change that comes meanwhile is
    /// compiled next. If this panics, the balancer keeps its old table until the next change.
    fn compile(
        &self,
        group: Group<'_>,
        previous: Option<&dyn Select>,
        random: &Random,
    ) -> Arc<dyn Select>;

    /// Half-life in ns of the latencies that endpoints should record. `None` records none.
    fn latency_half_life(&self) -> Option<u64> {
        None
    }

    /// Whether the choice follows the key or the client of the context. Then the share of traffic
    /// that overflows into other zones and priorities follows it, too.
    fn is_keyed(&self) -> bool {
        false
    }
}

/// Chooses among the members of the group it was compiled for.
pub trait Select: Any + fmt::Debug + Send + Sync {
    /// Chooses one of `members`, which are those of the group. Must not block.
    fn select(&self, members: &[Member], ctx: &Context<'_>, now: u64, random: &Random)
    -> Selection;

    /// Chooses another member for a request whose choice is full or excluded. `is_open` says of
    /// the member at an index that it is neither. Must not block.
    ///
    /// `None`, or a choice that is not open, leaves the request to the balancer, which draws one
    /// of the open members by `weight / (load + 1)`: never the same neighbour for all requests.
    ///
    /// The default asks [`select`](Select::select) again, up to four times. Override it where the
    /// choice follows the request: hash once more, or go on along the ring.
    fn select_other(
        &self,
        members: &[Member],
        ctx: &Context<'_>,
        now: u64,
        random: &Random,
        is_open: &dyn Fn(usize) -> bool,
    ) -> Option<Selection> {
        let mut again = (0..4).map(|_| self.select(members, ctx, now, random));
        again.find(|selection| is_open(selection.index))
    }
}

/// The choice of a [`Select`].
#[derive(Debug)]
pub struct Selection {
    pub(crate) index: usize,
    /// The load that a bounded consistent hash counts for this choice. In a box, so that all other
    /// choices are returned in registers.
    #[cfg(feature = "ring")]
    assignment: Option<Box<voussoir_ring::Assignment>>,
}

impl Selection {
    /// Chooses the member at `index`. If that is out of range, or its member is full or excluded,
    /// [`Select::select_other`] is asked next.
    pub fn new(index: usize) -> Self {
        Self {
            index,
            #[cfg(feature = "ring")]
            assignment: None,
        }
    }

    /// Chooses the member at `index`, for which a bounded hash counts load until the pick ends.
    #[cfg(feature = "ring")]
    fn assigned(index: usize, assignment: voussoir_ring::Assignment) -> Self {
        Self { index, assignment: Some(Box::new(assignment)) }
    }

    /// Hands what was counted for the choice to its pick.
    #[inline]
    pub(crate) fn end_with(self, pick: Pick) -> Pick {
        match self {
            #[cfg(feature = "ring")]
            Self { assignment: Some(assignment), .. } => pick.assigned(*assignment),
            Self { .. } => pick,
        }
    }
}

/// `previous`, if the strategy compiled it as a `T`.
fn previous_as<T: 'static>(previous: Option<&dyn Select>) -> Option<&T> {
    let any: &dyn Any = previous?;
    any.downcast_ref()
}

/// Half of a request: what the load of an endpoint is rounded by when others of other weights are
/// compared with it. With weights 1 and 10 a heavy endpoint with one request in flight has less
/// than its share, and one with 20 more.
const HALF_REQUEST: f32 = 0.5;

/// Mean weight / weight of each member; empty when all are equal.
fn ratios(members: &[Member]) -> Box<[f32]> {
    if has_equal_weights(members) {
        return Box::default();
    }
    let sum: f64 = members.iter().map(|member| f64::from(member.weight)).sum();
    let mean = sum / members.len() as f64;
    members.iter().map(|member| (mean / f64::from(member.weight)) as f32).collect()
}

/// Whether all members have one weight.
fn has_equal_weights(members: &[Member]) -> bool {
    members.iter().all(|member| member.weight == members[0].weight)
}
