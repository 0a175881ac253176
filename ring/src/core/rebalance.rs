//! The execution of a plan, as a pure state machine.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::plan::Plan;
use crate::owners::Owners;
use crate::placement::HashRange;

/// The name of one operation asked for; its completion carries it back.
///
/// Unique over restarts as long as each [`Rebalance`] of a plan gets an incarnation of its own: a
/// completion that was meant for an earlier process never completes an operation of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId {
    /// The incarnation given to [`Rebalance::new`] or [`Rebalance::restore`].
    pub incarnation: u64,
    /// The number of the operation within the incarnation, from 0.
    pub number: u64,
}

/// Whether a plan is being carried out or undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards the new placement.
    Forward,
    /// Back to the old placement.
    Back,
}

/// State of a range at a node that gives or gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Nothing.
    Absent,
    /// Something, not to be read: a copy or a removal is under way or has failed.
    Partial,
    /// A replica that counts: it is read from, and each acknowledged write is missing from at most
    /// as many nodes like this one as the caller tolerates (see [`Rebalance`]).
    Held,
}

/// Where a rebalancing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Operations are asked for.
    Running,
    /// No more operations are asked for.
    Paused,
    /// All is where the direction says.
    Finished,
}

/// An event for the rebalancing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Input {
    /// Nothing but time. The first one starts the rebalancing.
    Tick,
    /// The operation was carried out.
    Done(OpId),
    /// The operation failed, in part or in whole. It is asked for again after the configured time.
    Failed(OpId),
    /// Ask for no more operations. What is under way goes on.
    Pause,
    /// Ask for operations again.
    Resume,
    /// Go the other way from here: undo what was done, or do again what was undone.
    TurnBack,
}

/// An operation for the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Copy a range to a node. From now on [`Rebalance::route`] sends writes to the target too: let
    /// every write reach it that the copy does not see.
    Copy {
        /// To be given back when done.
        op: OpId,
        /// The range to copy.
        range: HashRange,
        /// All nodes that hold it, the one that gives its replica up first. Each goes on holding
        /// it until this operation is completed. Where writes reach every node of a route, copy
        /// from any one of these; where a write may miss `f` nodes, merge `f + 1` of these.
        sources: Owners,
        /// The node that is to hold it.
        target: u64,
    },
    /// Remove a range from a node. It is no longer read or written there. Never asked for while a
    /// copy of the same range is under way.
    Remove {
        /// To be given back when done.
        op: OpId,
        /// The range to remove.
        range: HashRange,
        /// The node that gives it up.
        node: u64,
    },
    /// All moves of a step are where the direction says. After [`Rebalance::restore`] also for the
    /// steps that were done before, without a pause after them.
    StepDone {
        /// The number of the step, from 0.
        step: usize,
    },
    /// All steps are done: publish the new topology, or go on with the old one after turning back.
    Finished(Direction),
}

/// How far it is. Shares are in multiples of all data.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// State of the rebalancing.
    pub state: State,
    /// Direction of the rebalancing.
    pub direction: Direction,
    /// The step at hand, from 0.
    pub step: usize,
    /// All steps of the plan.
    pub steps: usize,
    /// Moves that are wholly at their new nodes.
    pub moves_done: usize,
    /// All moves of the plan.
    pub moves: usize,
    /// Operations asked for and not completed.
    pub in_flight: usize,
    /// Data copied to its new nodes so far.
    pub moved: f64,
    /// Data that the whole plan copies.
    pub to_move: f64,
    /// Operations that failed so far.
    pub failures: u64,
}

/// Where to read and to write a key while a plan is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Route {
    /// Nodes that hold a replica, those of the placement aimed for first; none where all were lost.
    /// Where a write may miss `f` nodes, a read asks `f + 1` of these.
    pub read: Owners,
    /// Nodes to write to: the readable ones and those being copied to. A write may be acknowledged
    /// when at most `f` of these have not got it.
    pub write: Owners,
}

/// State from which a rebalancing continues in another process. See [`Rebalance::checkpoint`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The epochs of the plan.
    pub epochs: (u64, u64),
    /// Which way it went.
    pub direction: Direction,
    /// For each move what its giving and its getting node hold.
    pub sides: Vec<(Side, Side)>,
}

#[derive(Clone, Copy, Debug)]
struct Moving {
    from: Side,
    to: Side,
    op: Option<Op>,
    retry_at: u64,
}

#[derive(Clone, Copy, Debug)]
struct Op {
    id: OpId,
    copies: bool,
    on_to: bool,
    /// False once the direction changed under it: what a copy brings may lack writes by now.
    counts: bool,
}

/// Carries out a [`Plan`]: a pure state machine that says what to copy and what to remove, is told
/// what was done, and can be paused, resumed and turned back at any moment.
///
/// Call [`step`](Rebalance::step) with what happened, then take
/// [`poll_output`](Rebalance::poll_output) until it is empty, and step with [`Input::Tick`] at
/// [`next_deadline`](Rebalance::next_deadline). Times are nanoseconds since an epoch of yours.
///
/// A node gives a range up only after the node that replaces it holds it. A node that is being
/// copied to gets writes from the moment the copy is asked for, and is read from when the copy is
/// done. A copy that was under way when the direction changed is not trusted: it is removed, or
/// made again.
///
/// The caller chooses `f`, how many nodes may miss an acknowledged write, and keeps to it three
/// times: a write is acknowledged when at most `f` nodes of [`Route::write`] (as it is then) lack
/// it, a copy merges `f + 1` of its sources, and a read asks `f + 1` nodes of [`Route::read`]. Then
/// no acknowledged write is lost and no read misses it. A store that writes to all replicas has
/// `f = 0`; one with N replicas and write quorum W has `f = N - W`. A copy from one source under
/// `f > 0` loses acknowledged writes.
#[derive(Clone, Debug)]
pub struct Rebalance {
    plan: Arc<Plan>,
    incarnation: u64,
    moving: Vec<Moving>,
    /// The moves of each change.
    of_change: Vec<Vec<u32>>,
    direction: Direction,
    state: State,
    step: usize,
    step_ready_at: u64,
    /// Whether an operation of the step at hand was asked for.
    has_asked: bool,
    next_op: u64,
    in_flight: usize,
    failures: u64,
    outputs: VecDeque<Output>,
}

impl Rebalance {
    /// Starts at the old placement, running; nothing is asked for before the first step.
    ///
    /// `incarnation` is part of each [`OpId`]: give a number that no other run of this plan had,
    /// such as a count of starts that is stored before use, or 64 random bits.
    pub fn new(plan: Arc<Plan>, incarnation: u64) -> Self {
        let held = |id: Option<u64>| if id.is_some() { Side::Held } else { Side::Absent };
        let sides = plan.moves().iter().map(|one| (held(one.from), Side::Absent)).collect();
        Self::at(plan, incarnation, Direction::Forward, sides)
    }

    /// Goes on from a checkpoint of the same plan, or `None` if it is of another one. What was
    /// under way is asked for again, and completions of it that still arrive are ignored, because
    /// `incarnation` differs from that of every earlier run (as for [`new`](Rebalance::new)).
    pub fn restore(plan: Arc<Plan>, checkpoint: Checkpoint, incarnation: u64) -> Option<Self> {
        let fits = checkpoint.epochs == plan.epochs()
            && checkpoint.sides.len() == plan.moves().len()
            && plan.moves().iter().zip(&checkpoint.sides).all(|(one, &(from, to))| {
                (one.from.is_some() || from == Side::Absent)
                    && (one.to.is_some() || to == Side::Absent)
                    && (one.from.is_none() || one.to.is_none() || [from, to].contains(&Side::Held))
            });
        fits.then(|| Self::at(plan, incarnation, checkpoint.direction, checkpoint.sides))
    }

    fn at(
        plan: Arc<Plan>,
        incarnation: u64,
        direction: Direction,
        sides: Vec<(Side, Side)>,
    ) -> Self {
        let mut of_change = vec![Vec::new(); plan.changes().len()];
        for (number, one) in plan.moves().iter().enumerate() {
            of_change[one.change as usize].push(number as u32);
        }
        let moving = |(from, to)| Moving { from, to, op: None, retry_at: 0 };
        let steps = plan.steps().len();
        Self {
            incarnation,
            moving: sides.into_iter().map(moving).collect(),
            of_change,
            direction,
            state: State::Running,
            step: if direction == Direction::Forward { 0 } else { steps.saturating_sub(1) },
            step_ready_at: 0,
            has_asked: false,
            next_op: 0,
            in_flight: 0,
            failures: 0,
            outputs: VecDeque::new(),
            plan,
        }
    }

    /// Takes in what happened. A completion of an operation that is not under way is ignored.
    pub fn step(&mut self, now: u64, input: Input) {
        match input {
            Input::Tick => {}
            Input::Done(op) => self.complete(op, None),
            Input::Failed(op) => {
                self.complete(op, Some(now.saturating_add(nanos(self.plan.config().retry_after))));
            }
            Input::Pause if self.state == State::Running => self.state = State::Paused,
            Input::Resume if self.state == State::Paused => self.state = State::Running,
            Input::Pause | Input::Resume => {}
            Input::TurnBack => self.turn_back(),
        }
        self.advance(now);
    }

    /// The next thing to do, if there is one.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to step again if nothing happens before.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.state != State::Running {
            return None;
        }
        let (mut unfinished, mut deadline) = (false, None::<u64>);
        for number in self.plan.step(self.step) {
            let moving = &self.moving[number];
            if moving.op.is_some() {
                unfinished = true;
            } else if let Some((copies, _)) = self.action(number) {
                unfinished = true;
                if copies || !self.is_read(number) {
                    let at = moving.retry_at.max(self.step_ready_at);
                    deadline = Some(deadline.map_or(at, |earliest| earliest.min(at)));
                }
            }
        }
        // A step that needs nothing is left as soon as it may be.
        if unfinished { deadline } else { Some(self.step_ready_at) }
    }

    fn complete(&mut self, id: OpId, retry_at: Option<u64>) {
        // A step is not left, in either direction, before its operations are complete.
        let mut at_hand = self.plan.step(self.step);
        let Some(number) = at_hand.find(|&n| self.moving[n].op.is_some_and(|op| op.id == id))
        else {
            return;
        };
        let moving = &mut self.moving[number];
        let Some(op) = moving.op.take() else { return };
        self.in_flight -= 1;
        if let Some(at) = retry_at {
            self.failures += 1;
            moving.retry_at = at;
            return;
        }
        let side = if op.on_to { &mut moving.to } else { &mut moving.from };
        match (op.copies, op.counts) {
            (true, true) => *side = Side::Held,
            (true, false) => {}
            (false, _) => *side = Side::Absent,
        }
    }

    fn turn_back(&mut self) {
        self.direction = match self.direction {
            Direction::Forward => Direction::Back,
            Direction::Back => Direction::Forward,
        };
        if self.state == State::Finished {
            self.state = State::Running;
        }
        for moving in &mut self.moving {
            moving.retry_at = 0;
            if let Some(op) = &mut moving.op {
                op.counts = false;
            }
        }
    }

    /// Next operation of a move: whether to copy, and on which side.
    fn action(&self, number: usize) -> Option<(bool, bool)> {
        let (one, moving) = (&self.plan.moves()[number], &self.moving[number]);
        let forward = self.direction == Direction::Forward;
        let (need, need_side, shed_side) = if forward {
            (one.to, moving.to, moving.from)
        } else {
            (one.from, moving.from, moving.to)
        };
        if need.is_some() && need_side != Side::Held {
            Some((true, forward))
        } else if shed_side != Side::Absent {
            Some((false, !forward))
        } else {
            None
        }
    }

    /// Is a copy under way that reads the range of this move? Its sources keep what they hold
    /// until it is completed.
    fn is_read(&self, number: usize) -> bool {
        let change = self.plan.moves()[number].change as usize;
        let mut moves = self.of_change[change].iter().map(|&at| &self.moving[at as usize]);
        moves.any(|moving| moving.op.is_some_and(|op| op.copies))
    }

    fn advance(&mut self, now: u64) {
        // Ends: each turn goes to the next step in the one direction, of which there are finitely
        // many, or finishes.
        while self.state == State::Running && now >= self.step_ready_at {
            let mut unfinished = false;
            for number in self.plan.step(self.step) {
                if self.moving[number].op.is_some() {
                    unfinished = true;
                } else if let Some((copies, on_to)) = self.action(number) {
                    unfinished = true;
                    let ready = copies || !self.is_read(number);
                    if ready && self.moving[number].retry_at <= now {
                        self.ask(number, copies, on_to);
                    }
                }
            }
            if unfinished {
                return;
            }
            self.step_over(now);
        }
    }

    fn step_over(&mut self, now: u64) {
        let steps = self.plan.steps().len();
        if self.step < steps {
            self.outputs.push_back(Output::StepDone { step: self.step });
        }
        let next = match self.direction {
            Direction::Forward => Some(self.step + 1).filter(|&next| next < steps),
            Direction::Back => self.step.checked_sub(1),
        };
        if let Some(next) = next {
            self.step = next;
            // A step that an earlier process has done is no reason to wait.
            if std::mem::take(&mut self.has_asked) {
                self.step_ready_at = now.saturating_add(nanos(self.plan.config().step_pause));
            }
        } else {
            self.state = State::Finished;
            self.outputs.push_back(Output::Finished(self.direction));
        }
    }

    fn ask(&mut self, number: usize, copies: bool, on_to: bool) {
        let one = self.plan.moves()[number];
        let Some(node) = (if on_to { one.to } else { one.from }) else { return };
        let op = OpId { incarnation: self.incarnation, number: self.next_op };
        let range = one.range;
        let output = if copies {
            let giver = if on_to { one.from } else { one.to };
            let sources = self.holders(one.change as usize).read.preferring(giver);
            if sources.is_empty() {
                return;
            }
            Output::Copy { op, range, sources, target: node }
        } else {
            Output::Remove { op, range, node }
        };
        self.next_op += 1;
        self.in_flight += 1;
        self.has_asked = true;
        let moving = &mut self.moving[number];
        moving.op = Some(Op { id: op, copies, on_to, counts: true });
        *(if on_to { &mut moving.to } else { &mut moving.from }) = Side::Partial;
        self.outputs.push_back(output);
    }

    /// Where a position that changes nodes, or that lost some, is read and written now, or `None`
    /// when the plan does not touch it: the old and the new placement agree then.
    ///
    /// Where every replica was lost there is no node to read from, and the nodes to write to are
    /// those of the new placement, also after turning back.
    pub fn route(&self, position: u64) -> Option<Route> {
        if let Some(change) = self.plan.change_at(position) {
            return Some(self.holders(change));
        }
        let (owners, is_held) = self.plan.loss_at(position)?;
        let read = if is_held { *owners } else { Owners::empty() };
        Some(Route { read, write: *owners })
    }

    fn holders(&self, number: usize) -> Route {
        let change = &self.plan.changes()[number];
        let forward = self.direction == Direction::Forward;
        let side_of = |id: u64| {
            let moves = self.of_change[number].iter().map(|&at| at as usize);
            for at in moves {
                let (one, moving) = (&self.plan.moves()[at], &self.moving[at]);
                if one.from == Some(id) {
                    return (moving.from, !forward);
                }
                if one.to == Some(id) {
                    return (moving.to, forward);
                }
            }
            (Side::Held, true)
        };
        let (first, second) =
            if forward { (&change.new, &change.old) } else { (&change.old, &change.new) };
        let mut route = Route { read: Owners::empty(), write: Owners::empty() };
        for &id in first.iter().chain(second.iter().filter(|id| !first.contains(id))) {
            let (side, wanted) = side_of(id);
            if side == Side::Held {
                route.read.push(id);
            }
            if side == Side::Held || (side == Side::Partial && wanted) {
                route.write.push(id);
            }
        }
        route
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let moves = self.plan.moves();
        let mut progress = Progress {
            state: self.state,
            direction: self.direction,
            step: self.step,
            steps: self.plan.steps().len(),
            moves_done: 0,
            moves: moves.len(),
            in_flight: self.in_flight,
            moved: 0.0,
            to_move: self.plan.moved(),
            failures: self.failures,
        };
        for (one, moving) in moves.iter().zip(&self.moving) {
            let arrived = one.to.is_none() || moving.to == Side::Held;
            progress.moves_done += usize::from(arrived && moving.from == Side::Absent);
            if moving.to == Side::Held {
                progress.moved += one.range.share();
            }
        }
        progress
    }

    /// State to store so that another process can continue after this one ends. Take it after
    /// [`poll_output`](Rebalance::poll_output) has returned `None`, and store it durably before
    /// carrying out the polled outputs: then no removal is ever forgotten.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            epochs: self.plan.epochs(),
            direction: self.direction,
            sides: self.moving.iter().map(|moving| (moving.from, moving.to)).collect(),
        }
    }

    /// The plan that is carried out.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
