//! Rendezvous hashing, also called highest random weight.

use std::ops::ControlFlow;

use super::not_empty;
use super::probe::rank;
use crate::error::BuildError;
use crate::hash;
use crate::owners::Owners;
use crate::partitioner::Partitioner;
use crate::spread::{self, Candidates};
use crate::topology::Topology;

/// Highest random weight: each node gets a score for the key, the highest wins. No table, exact
/// weights, the most even load and the least movement on any change; a lookup looks at every node.
///
/// A node's score is its weight divided by `-ln(u)`, where `u` is the SplitMix64 finaliser of the
/// key's hash XOR the hash of the node's id (8 little-endian bytes), scaled to 0..1. The logarithm
/// is computed from IEEE additions, multiplications and divisions only, so every platform agrees.
///
/// Source: Thaler, Ravishankar, "A name-based mapping scheme for rendezvous" (1996); the weights by
/// Schindelhauer, Schomaker, "Weighted distributed hash tables" (SPAA 2005).
#[derive(Clone, Debug)]
pub struct Rendezvous {
    topology: Topology,
    seeds: Box<[u64]>,
}

impl Rendezvous {
    /// Rendezvous hashing over these nodes and weights.
    ///
    /// # Errors
    /// [`BuildError::NoNodes`].
    pub fn new(topology: &Topology) -> Result<Self, BuildError> {
        not_empty(topology)?;
        let seeds = topology.nodes().iter().map(|node| hash::key(&node.id.to_le_bytes())).collect();
        Ok(Self { topology: topology.clone(), seeds })
    }

    /// The score of a node as an integer that orders as the score does.
    fn score(&self, node: usize, hash: u64) -> u64 {
        let random = hash::mix(hash ^ self.seeds[node]);
        if self.topology.members().weights_equal {
            return random;
        }
        let weight = f64::from(self.topology.nodes()[node].weight.as_milli());
        // Bits of positive floats order as the floats do.
        (weight / minus_ln(random)).to_bits()
    }
}

/// `-ln` of a hash scaled to the open interval 0..1, from exactly rounded operations only.
fn minus_ln(random: u64) -> f64 {
    let scaled = ((random >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
    let bits = scaled.to_bits();
    let exponent = ((bits >> 52) as i32) - 1023;
    let mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    // Centred around one, so that values near one keep their precision.
    let (mantissa, exponent) = if mantissa > std::f64::consts::SQRT_2 {
        (mantissa / 2.0, exponent + 1)
    } else {
        (mantissa, exponent)
    };
    // ln m = 2 artanh((m - 1) / (m + 1)), at most 0.172: eight terms leave 1e-14.
    let t = (mantissa - 1.0) / (mantissa + 1.0);
    let square = t * t;
    let mut series = 0.0;
    for odd in [15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = series * square + 1.0 / odd;
    }
    -(2.0 * t * series + f64::from(exponent) * std::f64::consts::LN_2)
}

struct Ranked<'r> {
    rendezvous: &'r Rendezvous,
    hash: u64,
}

impl Candidates for Ranked<'_> {
    fn offer(&self, take: &mut impl FnMut(u16) -> ControlFlow<()>) {
        let nodes = self.rendezvous.topology.len();
        rank(nodes, |node| self.rendezvous.score(node, self.hash), take);
    }
}

impl Partitioner for Rendezvous {
    fn owner(&self, key: &[u8]) -> u64 {
        let hash = hash::key(key);
        let (mut best, mut most) = (0, 0);
        for node in 0..self.seeds.len() {
            let score = self.score(node, hash);
            if score > most {
                (best, most) = (node, score);
            }
        }
        self.topology.members().ids[best]
    }

    fn owners(&self, key: &[u8], n: usize) -> Owners {
        let ranked = Ranked { rendezvous: self, hash: hash::key(key) };
        spread::select(self.topology.members(), n, &ranked)
    }
}

#[cfg(test)]
mod tests {
    use super::minus_ln;

    #[test]
    fn the_logarithm_agrees_with_the_libm_and_is_pinned() {
        for shift in 0..64 {
            for random in [u64::MAX >> shift, 0x9e37_79b9_7f4a_7c15 >> shift] {
                let scaled = ((random >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
                let (ours, libm) = (minus_ln(random), -scaled.ln());
                assert!(ours > 0.0);
                assert!((ours - libm).abs() <= 1e-13 * libm.max(1e-3), "{random:x}: {ours} {libm}");
            }
        }
        // The bits themselves: a platform that rounds otherwise places keys otherwise.
        assert_eq!(minus_ln(0x9e37_79b9_7f4a_7c15).to_bits(), PINNED);
    }

    const PINNED: u64 = 4_602_340_361_502_004_747;
}
