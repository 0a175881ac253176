//! The better of two random endpoints.

use std::sync::Arc;
use std::time::Duration;

use super::sampler::Sampler;
use super::{Group, Member, Select, Selection, Strategy};
use crate::context::Context;
use crate::endpoint::Endpoint;
use crate::random::Random;

/// Power of two choices: of two random endpoints the one with the lower load for its weight.
///
/// Source: Mitzenmacher, "The power of two choices in randomized load balancing" (2001).
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct PowerOfTwo;

/// Power of two choices by `latency * (load + 1)`, where the latency is a moving average that
/// follows a rise at once and a fall slowly.
///
/// A failure never lowers the latency and adds to the load, so that an endpoint that fails fast is
/// avoided. An endpoint of unknown latency gets one request at a time.
///
/// Source: Finagle's peak EWMA.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PeakEwma {
    /// Time in which an old latency loses half of its weight. Values below 1 ms or above 1 hour
    /// are cut to these. Default 7 s, which is a time constant of 10 s.
    pub half_life: Duration,
}

impl Default for PeakEwma {
    fn default() -> Self {
        Self { half_life: Duration::from_secs(7) }
    }
}

impl PeakEwma {
    /// A moving average with the given half-life.
    pub fn new(half_life: Duration) -> Self {
        Self { half_life }
    }
}

#[derive(Debug)]
struct TwoChoices {
    sampler: Sampler,
    /// 1 / weight of each member; empty when all are equal.
    inverse: Box<[f32]>,
    cost: Cost,
}

#[derive(Clone, Copy, Debug)]
enum Cost {
    Load,
    Latency,
}

impl Strategy for PowerOfTwo {
    fn compile(&self, group: Group<'_>, _: Option<&dyn Select>, _: &Random) -> Arc<dyn Select> {
        Arc::new(TwoChoices::new(group.members, Cost::Load))
    }
}

impl Strategy for PeakEwma {
    fn compile(&self, group: Group<'_>, _: Option<&dyn Select>, _: &Random) -> Arc<dyn Select> {
        Arc::new(TwoChoices::new(group.members, Cost::Latency))
    }

    fn latency_half_life(&self) -> Option<u64> {
        let (min, max) = (Duration::from_millis(1), Duration::from_secs(3_600));
        Some(self.half_life.clamp(min, max).as_nanos() as u64)
    }
}

impl TwoChoices {
    fn new(members: &[Member], cost: Cost) -> Self {
        let inverse = if super::has_equal_weights(members) {
            Box::default()
        } else {
            members.iter().map(|member| 1.0 / member.weight as f32).collect()
        };
        Self { sampler: Sampler::new(members), inverse, cost }
    }

    #[inline]
    fn cost(&self, at: usize, endpoint: &Endpoint, now: u64) -> f32 {
        let cost = match self.cost {
            Cost::Load => endpoint.load(now) + 1.0,
            Cost::Latency => latency_cost(endpoint, now),
        };
        self.inverse.get(at).map_or(cost, |inverse| cost * inverse)
    }
}

/// Latency in ns times load; see [`PeakEwma`].
#[inline]
fn latency_cost(endpoint: &Endpoint, now: u64) -> f32 {
    /// Cost of each request in flight while the latency is unknown.
    const UNKNOWN: f32 = 1e18;
    let (latency, load) = (endpoint.latency(now), endpoint.load(now));
    if latency > 0.0 {
        latency * (load + 1.0)
    } else if load < 0.5 {
        // Nothing is in flight, and the last failure is a half-life ago: try it.
        0.0
    } else {
        UNKNOWN * load
    }
}

impl Select for TwoChoices {
    #[inline]
    fn select(&self, members: &[Member], _: &Context<'_>, now: u64, random: &Random) -> Selection {
        let (first, second) = self.sampler.draw_two(random);
        let cost = |at: usize| self.cost(at, &members[at].endpoint, now);
        Selection::new(if cost(second) < cost(first) { second } else { first })
    }
}
