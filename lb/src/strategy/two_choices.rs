//! The best of some random endpoints, two as a rule.

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

/// Power of two choices, or more, by `latency * (load + 1)`, where the latency is a moving average
/// that follows a rise at once and a fall slowly.
///
/// A failure never lowers the latency and adds to the load, so that an endpoint that fails fast is
/// avoided. A request that was cancelled raises the latency to the time that it had lasted, so that
/// an endpoint that hangs is avoided. An endpoint of unknown latency gets one request at a time.
///
/// Source: Finagle's peak EWMA.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PeakEwma {
    /// Time in which an old latency loses half of its weight. Values below 1 ms or above 1 hour
    /// are cut to these. Default 7 s, which is a time constant of 10 s.
    pub half_life: Duration,
    /// Endpoints drawn at random to choose from; 0 is all of them. Default 2. Of `n` endpoints two
    /// draws give the worst pair `2 / (n * (n - 1))` of the picks, which among ten is 2 %: for few
    /// endpoints of very different latencies take all, at about 3 ns for each.
    pub choices: u32,
}

impl Default for PeakEwma {
    fn default() -> Self {
        Self { half_life: Duration::from_secs(7), choices: 2 }
    }
}

impl PeakEwma {
    /// A moving average with the given half-life.
    pub fn new(half_life: Duration) -> Self {
        Self { half_life, ..Self::default() }
    }

    /// Sets how many endpoints are drawn to choose from; 0 is all of them.
    pub fn with_choices(mut self, choices: u32) -> Self {
        self.choices = choices;
        self
    }
}

/// Chooses by load, or by latency times load if `LATENCY`: compiled for each.
#[derive(Debug)]
struct FewChoices<const LATENCY: bool> {
    sampler: Sampler,
    /// 1 / weight of each member; empty when all are equal.
    inverse: Box<[f32]>,
    /// Endpoints drawn for a pick, at least 1; `None` is all.
    choices: Option<u32>,
}

impl Strategy for PowerOfTwo {
    fn compile(&self, group: Group<'_>, _: Option<&dyn Select>, _: &Random) -> Arc<dyn Select> {
        Arc::new(FewChoices::<false>::new(group.members, 2))
    }
}

impl Strategy for PeakEwma {
    fn compile(&self, group: Group<'_>, _: Option<&dyn Select>, _: &Random) -> Arc<dyn Select> {
        Arc::new(FewChoices::<true>::new(group.members, self.choices))
    }

    fn latency_half_life(&self) -> Option<u64> {
        let (min, max) = (Duration::from_millis(1), Duration::from_secs(3_600));
        Some(self.half_life.clamp(min, max).as_nanos() as u64)
    }
}

impl<const LATENCY: bool> FewChoices<LATENCY> {
    fn new(members: &[Member], choices: u32) -> Self {
        let inverse = if super::has_equal_weights(members) {
            Box::default()
        } else {
            members.iter().map(|member| 1.0 / member.weight as f32).collect()
        };
        let is_sampled = choices == 2 || (1..members.len()).contains(&(choices as usize));
        let choices = is_sampled.then_some(choices);
        Self { sampler: Sampler::new(members), inverse, choices }
    }

    #[inline]
    fn cost(&self, at: usize, endpoint: &Endpoint, now: u64) -> f32 {
        let cost = if LATENCY { latency_cost(endpoint, now) } else { endpoint.load(now) + 1.0 };
        self.inverse.get(at).map_or(cost, |inverse| cost * inverse)
    }
}

/// Latency in ns times load; see [`PeakEwma`].
#[inline]
fn latency_cost(endpoint: &Endpoint, now: u64) -> f32 {
    /// Cost of each request in flight while the latency is unknown.
    const UNKNOWN: f32 = 1e18;
    let (latency, load) = (endpoint.latency(now), endpoint.load(now));
    // Without a success the latency is a lower bound, which a request that was cancelled at once
    // leaves near 0. If nothing is in flight, and the last failure is a half-life ago: try it.
    let is_known = latency > 0.0 && endpoint.measured_latency() > 0.0;
    if is_known || load < 0.5 {
        latency * (load + 1.0)
    } else {
        UNKNOWN * load
    }
}

impl<const LATENCY: bool> Select for FewChoices<LATENCY> {
    #[inline]
    fn select(&self, members: &[Member], _: &Context<'_>, now: u64, random: &Random) -> Selection {
        let cost = |at: usize| self.cost(at, &members[at].endpoint, now);
        if self.choices == Some(2) {
            let (first, second) = self.sampler.draw_two(random);
            return Selection::new(if cost(second) < cost(first) { second } else { first });
        }
        let lower = |best: (usize, f32), at: usize| {
            let cost = cost(at);
            if cost < best.1 { (at, cost) } else { best }
        };
        let draw = || self.sampler.draw(random.u64() as u32, random);
        let first = draw();
        let best = (first, cost(first));
        Selection::new(match self.choices {
            Some(choices) => (1..choices).map(|_| draw()).fold(best, lower).0,
            // From a random one on, so that equals share.
            None => (first + 1..members.len()).chain(0..first).fold(best, lower).0,
        })
    }
}
