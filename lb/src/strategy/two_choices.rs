//! The best of some random endpoints, two as a rule.

use std::sync::Arc;
use std::time::Duration;

use super::sampler::Sampler;
use super::{Group, HALF_REQUEST, Member, Select, Selection, Strategy};
use crate::context::Context;
use crate::endpoint::Endpoint;
use crate::random::Random;

/// Power of two choices: of two endpoints, drawn by weight, the one with the lower load for its
/// weight. Idle endpoints get shares by their weights.
///
/// Source: Mitzenmacher, "The power of two choices in randomized load balancing" (2001).
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct PowerOfTwo;

/// Power of two choices, or more, by `latency * (load + 1)`, where the latency is a moving average
/// that follows a rise at once and a fall slowly, and the load is for the mean weight. Idle
/// endpoints of one latency get shares by their weights.
///
/// A failure never lowers the latency and adds to the load, so that an endpoint that fails fast is
/// avoided. A request that was cancelled raises the latency to the time that it had lasted, so that
/// an endpoint that hangs is avoided. An endpoint of unknown latency gets one request at a time. A
/// latency that is not measured fades, until the endpoint is tried again, but to no less than the
/// lowest one that was measured among the endpoints compared.
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
    /// Mean weight / weight of each member; empty when all are equal.
    ratios: Box<[f32]>,
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
        let ratios = super::ratios(members);
        let is_sampled = choices == 2 || (1..members.len()).contains(&(choices as usize));
        let choices = is_sampled.then_some(choices);
        Self { sampler: Sampler::new(members), ratios, choices }
    }

    #[inline]
    fn ratio(&self, at: usize) -> f32 {
        self.ratios.get(at).copied().unwrap_or(1.0)
    }

    #[inline]
    fn look(members: &[Member], at: usize, now: u64) -> Candidate {
        let endpoint = &*members[at].endpoint;
        let load = endpoint.load(now);
        let (latency, measured) =
            if LATENCY { latency(endpoint, load, now) } else { (1.0, UNMEASURED) };
        Candidate { at, latency, measured, load }
    }

    /// Whether a request should rather go to `new`. `floor` is the lowest measured latency of all
    /// that are compared.
    #[inline]
    fn is_better(&self, new: &Candidate, old: &Candidate, floor: f32) -> bool {
        let cost = |of: &Candidate| of.latency(floor) * (1.0 + of.load * self.ratio(of.at));
        if self.ratios.is_empty() {
            return cost(new) < cost(old);
        }
        // The draw follows the weights already, so that idle endpoints of one latency are equals;
        // and one request less on a light endpoint is no reason to leave a heavy one that has room.
        let margin = HALF_REQUEST * new.latency(floor) * self.ratio(new.at);
        cost(new) < old.latency(floor) || cost(new) + margin < cost(old)
    }
}

/// An endpoint to choose from.
#[derive(Clone, Copy)]
struct Candidate {
    at: usize,
    /// In ns, faded; 1 if latencies do not matter.
    latency: f32,
    /// The latency at the last success, which does not fade; [`UNMEASURED`] if there was none.
    measured: f32,
    load: f32,
}

const UNMEASURED: f32 = f32::INFINITY;

impl Candidate {
    /// The latency, which fades no further than to the lowest measured one: that nothing was
    /// measured for a while makes an endpoint worth a try, and no faster than the others.
    #[inline]
    fn latency(&self, floor: f32) -> f32 {
        if self.measured < UNMEASURED { self.latency.max(floor) } else { self.latency }
    }
}

/// The faded and the measured latency in ns; see [`PeakEwma`].
#[inline]
fn latency(endpoint: &Endpoint, load: f32, now: u64) -> (f32, f32) {
    /// While the latency is unknown and a request is in flight.
    const UNKNOWN: f32 = 1e18;
    let measured = endpoint.measured_latency();
    if measured > 0.0 {
        (endpoint.latency(now), measured)
    } else if load < 0.5 {
        // Nothing is in flight, and the last failure is a half-life ago: try it, unless a request
        // that was cancelled or failed took longer than others do.
        (endpoint.latency(now), UNMEASURED)
    } else {
        (UNKNOWN, UNMEASURED)
    }
}

impl<const LATENCY: bool> Select for FewChoices<LATENCY> {
    #[inline]
    fn select(&self, members: &[Member], _: &Context<'_>, now: u64, random: &Random) -> Selection {
        let look = |at: usize| Self::look(members, at, now);
        if self.choices == Some(2) {
            let (first, second) = self.sampler.draw_two(random);
            let (first, second) = (look(first), look(second));
            let floor = first.measured.min(second.measured);
            let is_second = self.is_better(&second, &first, floor);
            return Selection::new(if is_second { second.at } else { first.at });
        }
        let draw = || self.sampler.draw(random.u64() as u32, random);
        let first = look(draw());
        let better = |(best, floor): (Candidate, f32), at: usize| {
            let new = look(at);
            let floor = new.measured.min(floor);
            (if self.is_better(&new, &best, floor) { new } else { best }, floor)
        };
        let (best, _) = match self.choices {
            Some(choices) => (1..choices).map(|_| draw()).fold((first, first.measured), better),
            None => {
                let measured = members.iter().map(|member| member.endpoint.measured_latency());
                let known = measured.filter(|_| LATENCY).filter(|&latency| latency > 0.0);
                let floor = known.fold(UNMEASURED, f32::min);
                // From a random one on, so that equals share.
                (first.at + 1..members.len()).chain(0..first.at).fold((first, floor), better)
            }
        };
        Selection::new(best.at)
    }
}
