//! The endpoint with the least load.

use std::sync::Arc;

use super::sampler::Sampler;
use super::{Group, Member, Select, Selection, Strategy};
use crate::context::Context;
use crate::random::{Random, below};

/// The endpoint with the fewest requests in flight for its weight. Among equals a random one.
///
/// Looks at every endpoint: about 1 ns for each. Above 100 endpoints prefer
/// [`LeastRequest::sampled`] or [`PowerOfTwo`](super::PowerOfTwo).
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct LeastConnections;

/// The endpoint with the least `(load + 1) / weight`, the load after the request: with weights it
/// fills idle endpoints in proportion, where [`LeastConnections`] calls all idle ones equal.
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
    inverse: Box<[f32]>,
    /// What is added to a load before it is divided by the weight.
    added: f32,
    sampled: Option<(Sampler, u32)>,
}

impl Least {
    fn new(group: Group<'_>, added: f32, choices: u32) -> Self {
        let inverse = group.members.iter().map(|member| 1.0 / member.weight as f32).collect();
        let is_sampled = choices > 0 && (choices as usize) < group.members.len();
        let sampled = is_sampled.then(|| (Sampler::new(group.members), choices));
        Self { inverse, added, sampled }
    }
}

impl Strategy for LeastConnections {
    fn compile(&self, group: Group<'_>, _: Option<&dyn Select>, _: &Random) -> Arc<dyn Select> {
        Arc::new(Least::new(group, 0.0, 0))
    }
}

impl Strategy for LeastRequest {
    fn compile(&self, group: Group<'_>, _: Option<&dyn Select>, _: &Random) -> Arc<dyn Select> {
        Arc::new(Least::new(group, 1.0, self.choices))
    }
}

impl Select for Least {
    fn select(&self, members: &[Member], _: &Context<'_>, now: u64, random: &Random) -> Selection {
        let cost = |at: usize| (members[at].endpoint.load(now) + self.added) * self.inverse[at];
        let least = |best: (usize, f32), at: usize| {
            let cost = cost(at);
            if cost < best.1 { (at, cost) } else { best }
        };
        if let Some((sampler, choices)) = &self.sampled {
            let first = sampler.draw(random.u64() as u32, random);
            let others = (1..*choices).map(|_| sampler.draw(random.u64() as u32, random));
            return Selection::new(others.fold((first, cost(first)), least).0);
        }
        // A random start, so that equals share.
        let start = below(random.u64() as u32, members.len());
        let order = (start..members.len()).chain(0..start);
        Selection::new(order.fold((start, f32::INFINITY), least).0)
    }
}
