//! Cutting moves into steps.

use std::collections::HashMap;
use std::ops::Range;

use super::plan::Move;
use crate::config::PlanConfig;

/// The moves in the order of their steps, and the steps. Ranges with the fewest replicas go first.
///
/// A move goes into the first step that has room and in which neither of its nodes has had its
/// number of moves, no earlier than the last moves of these nodes: linear in the number of moves.
pub(super) fn schedule(
    mut moves: Vec<Move>,
    replicas: impl Fn(&Move) -> usize,
    config: &PlanConfig,
) -> (Vec<Move>, Vec<Range<usize>>) {
    moves.sort_by_key(|one| (replicas(one), one.to.is_none()));
    // The step that a node stands at, and its moves in it.
    let mut nodes: HashMap<u64, (usize, usize)> = HashMap::new();
    let mut steps: Vec<Vec<Move>> = Vec::new();
    let mut first_open = 0;
    for one in moves {
        let ends = [one.from, one.to];
        let earliest = |nodes: &HashMap<u64, (usize, usize)>, id: &u64| {
            nodes
                .get(id)
                .map_or(0, |&(step, used)| step + usize::from(used == config.moves_per_node))
        };
        let mut step =
            ends.iter().flatten().map(|id| earliest(&nodes, id)).fold(first_open, usize::max);
        // Ends, as does the next loop: there are finitely many steps.
        while steps.get(step).is_some_and(|full| full.len() == config.moves_per_step) {
            step += 1;
        }
        if step >= steps.len() {
            steps.resize_with(step + 1, Vec::new);
        }
        steps[step].push(one);
        while steps.get(first_open).is_some_and(|full| full.len() == config.moves_per_step) {
            first_open += 1;
        }
        for id in ends.into_iter().flatten() {
            let place = nodes.entry(id).or_insert((step, 0));
            if place.0 < step {
                *place = (step, 0);
            }
            place.1 += 1;
        }
    }
    let mut at = 0;
    let bounds = steps.iter().map(|step| {
        let start = at;
        at += step.len();
        start..at
    });
    let bounds = bounds.collect();
    (steps.into_iter().flatten().collect(), bounds)
}
