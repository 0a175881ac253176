//! The endpoint with the least load.

use std::sync::Arc;

use super::sampler::Sampler;
use super::{Group, HALF_REQUEST, Member, Select, Selection, Strategy};
use crate::context::Context;
use crate::random::{Random, below};

/// The endpoint with the fewest requests in flight for its weight. Among equals, such as idle ones,
/// a random one by weight.
///
/// One request in flight counts as `1 / weight`, so that with few requests in flight an idle
/// endpoint of a small weight gets more than its share, as under nginx's `least_conn`.
///
/// Looks at every endpoint: about 1 ns for each. Above 100 endpoints prefer
/// [`LeastRequest::sampled`] or [`PowerOfTwo`](super::PowerOfTwo).
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct LeastConnections;

/// The endpoint with the least load for its weight, to half a request: an endpoint drawn by weight,
/// unless another one has less load for its weight with half a request more. Shares follow the
/// weights also with few requests in flight, where [`LeastConnections`] prefers idle endpoints.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct LeastRequest {
    /// Endpoints drawn at random to choose from. 0 (the default) is all of them.
    pub choices: u32,
}

impl LeastRequest {
    /// Chooses among `choices` random endpoints.
    pub fn sampled(choices: u32) -> Self {
        Self { choices }
    }
}

#[derive(Debug)]
struct Least {
    sampler: Sampler,
    /// Mean weight / weight of each member; empty when all are equal.
    ratios: Box<[f32]>,
    /// Load that another endpoint must have less than the first one, in requests.
    margin: f32,
    /// Endpoints drawn for a pick; `None` is all.
    choices: Option<u32>,
}

impl Least {
    fn new(group: Group<'_>, margin: f32, choices: u32) -> Self {
        let is_sampled = choices > 0 && (choices as usize) < group.members.len();
        let ratios = super::ratios(group.members);
        let margin = if ratios.is_empty() { 0.0 } else { margin };
        let sampler = Sampler::new(group.members);
        Self { sampler, ratios, margin, choices: is_sampled.then_some(choices) }
    }
}

impl Strategy for LeastConnections {
    fn compile(&self, group: Group<'_>, _: Option<&dyn Select>, _: &Random) -> Arc<dyn Select> {
        Arc::new(Least::new(group, 0.0, 0))
    }
}

impl Strategy for LeastRequest {
    fn compile(&self, group: Group<'_>, _: Option<&dyn Select>, _: &Random) -> Arc<dyn Select> {
        Arc::new(Least::new(group, HALF_REQUEST, self.choices))
    }
}

impl Select for Least {
    fn select(&self, members: &[Member], _: &Context<'_>, now: u64, random: &Random) -> Selection {
        let draw = || self.sampler.draw(random.u64() as u32, random);
        let load = |at: usize, added: f32| {
            (members[at].endpoint.load(now) + added) * self.ratios.get(at).copied().unwrap_or(1.0)
        };
        let least = |best: (usize, f32), at: usize| {
            if load(at, self.margin) < best.1 { (at, load(at, 0.0)) } else { best }
        };
        // Drawn by weight, so that equals share.
        let first = draw();
        let best = (first, load(first, 0.0));
        Selection::new(match self.choices {
            Some(choices) => (1..choices).map(|_| draw()).fold(best, least).0,
            None => {
                // Equal weights: the draw is random enough.
                let is_equal = self.ratios.is_empty();
                let start =
                    if is_equal { first } else { below(random.u64() as u32, members.len()) };
                (start..members.len()).chain(0..start).fold(best, least).0
            }
        })
    }
}
