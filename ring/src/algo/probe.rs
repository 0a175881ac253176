//! Preference lists for algorithms that map one hash to one node.

use std::ops::ControlFlow;

use crate::hash;
use crate::spread::Candidates;
use crate::topology::Members;

/// Derived hashes tried before the rest of the nodes are ranked. Each zone or rack that a list
/// still needs is met in a few tries unless it is small; the ranking makes the list exact then.
const MAX_PROBES: u64 = 64;

/// First the node of the hash itself, then those of hashes derived from it, then all nodes in the
/// order of their rank for this hash.
pub(crate) struct Probes<'m, F> {
    pub(crate) members: &'m Members,
    pub(crate) hash: u64,
    pub(crate) locate: F,
}

impl<F: Fn(u64) -> u16> Candidates for Probes<'_, F> {
    fn offer(&self, take: &mut impl FnMut(u16) -> ControlFlow<()>) {
        let derived = (1..MAX_PROBES).map(|attempt| hash::retry(self.hash, attempt));
        for hash in std::iter::once(self.hash).chain(derived) {
            if take((self.locate)(hash)).is_break() {
                return;
            }
        }
        let ids = &self.members.ids;
        rank(ids.len(), |node| hash::mix(self.hash ^ hash::mix(ids[node])), take);
    }
}

/// Offers all nodes by falling score, the lower index first among equals, without allocating: each
/// next one takes a pass over all.
pub(crate) fn rank(
    nodes: usize,
    score: impl Fn(usize) -> u64,
    take: &mut impl FnMut(u16) -> ControlFlow<()>,
) {
    let mut last = None;
    for _ in 0..nodes {
        let mut best: Option<(u64, usize)> = None;
        for node in 0..nodes {
            let score = score(node);
            let remains = last.is_none_or(|(worst, at)| (worst, node) > (score, at));
            if remains && best.is_none_or(|(most, _)| score > most) {
                best = Some((score, node));
            }
        }
        let Some((_, node)) = best else { return };
        last = best;
        if take(node as u16).is_break() {
            return;
        }
    }
}
