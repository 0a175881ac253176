//! A plain sorted ring for placements that others specify: their points decide, not our table.

use crate::error::BuildError;
use crate::owners::{Degraded, MAX_REPLICAS, Owners};

#[derive(Clone, Debug)]
pub(super) struct Points<P> {
    /// Ascending.
    points: Vec<(P, u64)>,
    nodes: usize,
}

impl<P: Ord + Copy> Points<P> {
    /// The points must be sorted.
    pub(super) fn new(points: Vec<(P, u64)>) -> Result<Self, BuildError> {
        if points.is_empty() {
            return Err(BuildError::NoNodes);
        }
        let mut nodes: Vec<u64> = points.iter().map(|&(_, node)| node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        Ok(Self { points, nodes: nodes.len() })
    }

    fn at_or_after(&self, position: P) -> usize {
        let at = self.points.partition_point(|&(point, _)| point < position);
        if at == self.points.len() { 0 } else { at }
    }

    pub(super) fn owner(&self, position: P) -> u64 {
        self.get(position).1
    }

    pub(super) fn get(&self, position: P) -> (P, u64) {
        self.points[self.at_or_after(position)]
    }

    /// The next `n` different nodes around the ring.
    pub(super) fn owners(&self, position: P, n: usize) -> Owners {
        let (wrapped, ahead) = self.points.split_at(self.at_or_after(position));
        let mut owners = Owners::empty();
        let size = n.min(self.nodes).min(MAX_REPLICAS);
        for &(_, node) in ahead.iter().chain(wrapped) {
            if owners.len() == size {
                break;
            }
            if !owners.contains(&node) {
                owners.push(node);
            }
        }
        if owners.len() < n {
            owners.warn(Degraded::FewerNodes { wanted: n, found: owners.len() });
        }
        owners
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (P, u64)> {
        self.points.iter().copied()
    }
}

/// Refuses names and ids that are given twice.
pub(super) fn distinct<'a>(
    servers: impl Iterator<Item = (u64, &'a str)> + Clone,
) -> Result<(), BuildError> {
    let mut ids: Vec<u64> = servers.clone().map(|(id, _)| id).collect();
    ids.sort_unstable();
    if let Some([id, ..]) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(BuildError::Duplicate(format!("node {id}")));
    }
    let mut names: Vec<&str> = servers.map(|(_, name)| name).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some([name, ..]) => Err(BuildError::Duplicate((*name).to_owned())),
        _ => Ok(()),
    }
}
