//! Random choice by weight in constant time.

use std::sync::Arc;

use super::{Group, Member, Select, Selection, Strategy, has_equal_weights};
use crate::context::Context;
use crate::random::{Random, below};

/// Draws positions with probabilities by weight.
///
/// Source: Vose, "A linear algorithm for generating random numbers with a given distribution"
/// (1991): the alias method.
#[derive(Debug)]
pub(super) struct Sampler {
    len: usize,
    /// For each position: the odds, out of 2^32, that it keeps a draw, and who gets it otherwise.
    /// `None` when all weights are equal.
    alias: Option<Box<[(u64, u32)]>>,
}

impl Sampler {
    pub(super) fn new(members: &[Member]) -> Self {
        let len = members.len();
        if has_equal_weights(members) {
            return Self { len, alias: None };
        }
        let total: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
        // Weights scaled so that the mean is `total`.
        let mut scaled: Vec<u64> =
            members.iter().map(|member| u64::from(member.weight) * len as u64).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..len).partition(|&at| scaled[at] < total);
        let mut alias: Vec<(u64, u32)> = (0..len).map(|at| (1 << 32, at as u32)).collect();
        // Ends: each round takes one position out of `small` for good.
        while let (Some(&donor), Some(at)) = (large.last(), small.pop()) {
            let odds = ((u128::from(scaled[at]) << 32) / u128::from(total)) as u64;
            alias[at] = (odds, donor as u32);
            scaled[donor] -= total - scaled[at];
            if scaled[donor] < total {
                large.pop();
                small.push(donor);
            }
        }
        Self { len, alias: Some(alias.into()) }
    }

    /// A position.
    #[inline]
    pub(super) fn draw(&self, bits: u32, random: &Random) -> usize {
        let at = below(bits, self.len);
        let Some(alias) = &self.alias else { return at };
        let (odds, other) = alias[at];
        if (random.u64() >> 32) < odds { at } else { other as usize }
    }

    /// Two positions, different ones unless there is only one or the weights make the same win
    /// twice.
    #[inline]
    pub(super) fn draw_two(&self, random: &Random) -> (usize, usize) {
        let bits = random.u64();
        if self.alias.is_some() {
            return (self.draw(bits as u32, random), self.draw((bits >> 32) as u32, random));
        }
        let first = below(bits as u32, self.len);
        if self.len == 1 {
            return (first, first);
        }
        let second = below((bits >> 32) as u32, self.len - 1);
        (first, if second >= first { second + 1 } else { second })
    }
}

/// Random choice, in proportion to the weights.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct RandomChoice;

#[derive(Debug)]
struct Draws(Sampler);

impl Strategy for RandomChoice {
    fn compile(&self, group: Group<'_>, _: Option<&dyn Select>, _: &Random) -> Arc<dyn Select> {
        Arc::new(Draws(Sampler::new(group.members)))
    }
}

impl Select for Draws {
    #[inline]
    fn select(&self, _: &[Member], _: &Context<'_>, _: u64, random: &Random) -> Selection {
        Selection::new(self.0.draw(random.u64() as u32, random))
    }
}
