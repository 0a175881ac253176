//! Plans: which ranges move from which nodes to which.

use std::collections::BTreeMap;
use std::ops::Range;

use super::schedule::schedule;
use crate::config::PlanConfig;
use crate::error::{BuildError, ConfigError, PlanError};
use crate::owners::{MAX_REPLICAS, Owners};
use crate::placement::{HashRange, Placement};

/// The most changed ranges of one plan.
pub const MAX_CHANGES: usize = 1 << 20;

/// The most replicas that a plan keeps: while it runs, a key may be at all its old and all its new
/// nodes, and both fit into one list.
pub const MAX_PLAN_REPLICAS: usize = MAX_REPLICAS / 2;

/// One range whose nodes change.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// The positions.
    pub range: HashRange,
    /// Who holds them before (nodes that are lost left out).
    pub old: Owners,
    /// Who holds them after.
    pub new: Owners,
}

/// One replica of one range on its way from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Move {
    /// The positions.
    pub range: HashRange,
    /// The node that gives its replica up; `None` when a replica is only added.
    pub from: Option<u64>,
    /// The node that gets one; `None` when a replica is only given up.
    pub to: Option<u64>,
    pub(crate) change: u32,
}

/// The moves from one placement to another (ranges, from, to), in steps.
///
/// Carried out by [`Rebalance`](crate::Rebalance). Every step may be carried out, paused in or
/// turned back, and at no moment does a range have fewer replicas than it had or will have,
/// whichever is less.
///
/// # Example
/// ```
/// use voussoir_ring::{HashRing, Node, Plan, PlanConfig, Topology};
/// let before = Topology::new(1, (1..=9).map(Node::new))?;
/// let after = before.with(Node::new(10))?;
/// let (old, new) = (HashRing::new(&before)?, HashRing::new(&after)?);
/// let plan = Plan::new(&old.placement(3), &new.placement(3), &PlanConfig::default())?;
/// assert!(plan.moves().iter().all(|m| m.to == Some(10)), "only the new node gets data");
/// assert!(plan.moved() <= 1.05 * plan.least());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Plan {
    epochs: (u64, u64),
    changes: Vec<Change>,
    moves: Vec<Move>,
    /// The moves of each step.
    steps: Vec<Range<usize>>,
    unrecoverable: Vec<HashRange>,
    /// Ranges that lost nodes and need no move, with whom they have afterwards and whether these
    /// hold them: not where every replica was lost.
    losses: Vec<(HashRange, Owners, bool)>,
    moved: f64,
    least: f64,
    config: PlanConfig,
}

impl Plan {
    /// The moves from one placement to another.
    ///
    /// # Errors
    /// [`PlanError::ReplicasDiffer`], [`PlanError::TooManyChanges`] (ranges that lost nodes count
    /// too), [`PlanError::Config`], and
    /// [`PlanError::Build`] for more replicas than [`MAX_PLAN_REPLICAS`] or none.
    pub fn new(old: &Placement, new: &Placement, config: &PlanConfig) -> Result<Self, PlanError> {
        Self::after_loss(old, new, &[], config)
    }

    /// The moves when some nodes and what they held are lost: nothing is read from these, and what
    /// they alone held is listed as [`unrecoverable`](Plan::unrecoverable).
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn after_loss(
        old: &Placement,
        new: &Placement,
        lost: &[u64],
        config: &PlanConfig,
    ) -> Result<Self, PlanError> {
        check(old, new, config)?;
        let mut plan = Self {
            epochs: (old.epoch(), new.epoch()),
            changes: Vec::new(),
            moves: Vec::new(),
            steps: Vec::new(),
            unrecoverable: Vec::new(),
            losses: Vec::new(),
            moved: 0.0,
            least: 0.0,
            config: config.clone(),
        };
        let mut gains = BTreeMap::new();
        for (range, mut old, new) in overlay(old, new) {
            let before = old.len();
            for &id in lost {
                old.remove(id);
            }
            if old.is_empty() {
                plan.unrecoverable.push(range);
                plan.losses.push((range, new, false));
            } else if !old.same_set(&new) {
                plan.change(range, old, new, &mut gains);
            } else if old.len() < before {
                plan.losses.push((range, new, true));
            }
        }
        let changes = plan.changes.len() + plan.losses.len();
        if changes > MAX_CHANGES {
            return Err(PlanError::TooManyChanges(changes));
        }
        plan.least = gains.values().filter(|&&gain| gain > 0.0).sum();
        let changes = &plan.changes;
        let replicas = |one: &Move| changes[one.change as usize].old.len();
        (plan.moves, plan.steps) = schedule(plan.moves, replicas, config);
        Ok(plan)
    }

    /// Adds a change, joined to the one before where they touch and agree.
    fn change(
        &mut self,
        range: HashRange,
        old: Owners,
        new: Owners,
        gains: &mut BTreeMap<u64, f64>,
    ) {
        let added = new.iter().filter(|id| !old.contains(id));
        let dropped = old.iter().filter(|id| !new.contains(id));
        for &id in added.clone() {
            self.moved += range.share();
            *gains.entry(id).or_insert(0.0) += range.share();
        }
        for &id in dropped.clone() {
            *gains.entry(id).or_insert(0.0) -= range.share();
        }
        if let Some(last) = self.changes.last_mut()
            && last.range.end.checked_add(1) == Some(range.start)
            && last.old.same_set(&old)
            && last.new.same_set(&new)
        {
            last.range.end = range.end;
            let change = self.changes.len() as u32 - 1;
            for one in self.moves.iter_mut().rev().take_while(|one| one.change == change) {
                one.range.end = range.end;
            }
            return;
        }
        let change = self.changes.len() as u32;
        let (mut from, mut to) = (dropped.copied(), added.copied());
        // Ends: both iterators are finite.
        loop {
            let (from, to) = (from.next(), to.next());
            if from.is_none() && to.is_none() {
                break;
            }
            self.moves.push(Move { range, from, to, change });
        }
        self.changes.push(Change { range, old, new });
    }

    /// The epochs before and after.
    pub fn epochs(&self) -> (u64, u64) {
        self.epochs
    }

    /// The ranges whose nodes change, in the order of positions.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// All moves in the order of the steps.
    pub fn moves(&self) -> &[Move] {
        &self.moves
    }

    /// The moves of each step.
    pub fn steps(&self) -> impl ExactSizeIterator<Item = &[Move]> {
        self.steps.iter().map(|step| &self.moves[step.clone()])
    }

    /// Amount of data that the plan copies, as a multiple of all data (0.1 is a tenth of one
    /// replica of all keys).
    pub fn moved(&self) -> f64 {
        self.moved
    }

    /// The least that any plan between the same shares of the nodes must copy, in the same unit:
    /// every node must be given what it holds more of after than before.
    pub fn least(&self) -> f64 {
        self.least
    }

    /// Ranges of which every replica was lost.
    pub fn unrecoverable(&self) -> &[HashRange] {
        &self.unrecoverable
    }

    pub(crate) fn config(&self) -> &PlanConfig {
        &self.config
    }

    pub(crate) fn step(&self, number: usize) -> Range<usize> {
        self.steps.get(number).cloned().unwrap_or_default()
    }

    /// The number of the change whose range holds the position.
    pub(crate) fn change_at(&self, position: u64) -> Option<usize> {
        let at = self.changes.partition_point(|change| change.range.end < position);
        self.changes.get(at).filter(|change| change.range.contains(position)).map(|_| at)
    }

    /// Whom a range has that lost nodes and needs no move, and whether they hold it.
    pub(crate) fn loss_at(&self, position: u64) -> Option<(&Owners, bool)> {
        let at = self.losses.partition_point(|(range, ..)| range.end < position);
        let found = self.losses.get(at).filter(|(range, ..)| range.contains(position));
        found.map(|(_, owners, is_held)| (owners, *is_held))
    }
}

fn check(old: &Placement, new: &Placement, config: &PlanConfig) -> Result<(), PlanError> {
    if old.replicas() != new.replicas() {
        return Err(PlanError::ReplicasDiffer { from: old.replicas(), to: new.replicas() });
    }
    if !(1..=MAX_PLAN_REPLICAS).contains(&old.replicas()) {
        return Err(PlanError::Build(BuildError::OutOfRange {
            field: "replicas",
            value: old.replicas() as u64,
            min: 1,
            max: MAX_PLAN_REPLICAS as u64,
        }));
    }
    let limits =
        [("moves_per_step", config.moves_per_step), ("moves_per_node", config.moves_per_node)];
    match limits.iter().find(|(_, limit)| *limit == 0) {
        Some((name, _)) => Err(ConfigError::new(name, "must be at least 1").into()),
        None => Ok(()),
    }
}

/// Both placements cut at the ends of either.
fn overlay<'p>(
    old: &'p Placement,
    new: &'p Placement,
) -> impl Iterator<Item = (HashRange, Owners, Owners)> + 'p {
    let (mut old, mut new) = (old.ranges().peekable(), new.ranges().peekable());
    let mut start = 0;
    std::iter::from_fn(move || {
        let ((ours, before), (theirs, after)) = (*old.peek()?, *new.peek()?);
        let end = ours.end.min(theirs.end);
        let range = HashRange { start, end };
        if ours.end == end {
            old.next();
        }
        if theirs.end == end {
            new.next();
        }
        start = end.wrapping_add(1);
        Some((range, before, after))
    })
}
