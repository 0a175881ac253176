//! One saga on its way: what is recorded, what is called, and when.
//!
//! Each effect follows its record: `Output::Call` comes only after the record of the intent was
//! reported durable. A result and the intents that follow from it are one record.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::event::{Cause, Direction, Event, EventError};
use super::graph::{Graph, Kind, StepId};
use super::progress::{Misplaced, Phase, State, Status};
use super::retry::delay;
use crate::config::nanos;

/// What is asked of a step's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Act,
    /// Whether an attempt of unknown outcome has run.
    Probe,
    Undo,
}

/// How an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Refused for good, without effect.
    Domain(String),
    /// Without effect, and may succeed later.
    Transient(String),
    /// It may have had its effect.
    Unknown(String),
}

impl Failure {
    fn why(&self) -> &str {
        match self {
            Self::Domain(why) | Self::Transient(why) | Self::Unknown(why) => why,
        }
    }
}

/// What has happened outside.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// The records up to this one are durable.
    Persisted(u64),
    Acted {
        step: StepId,
        attempt: u64,
        result: Result<Bytes, Failure>,
    },
    /// `Some`: it has run, with this output. `None`: it has not and will not.
    Probed {
        step: StepId,
        attempt: u64,
        result: Result<Option<Bytes>, Failure>,
    },
    Undone {
        step: StepId,
        attempt: u64,
        result: Result<(), Failure>,
    },
    /// Ignored past the pivot's intent: see [`Run::may_abort`].
    Abort(String),
    /// Time has passed.
    Tick,
}

/// What is to be done outside.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Output {
    /// Append these, in one record, after those before.
    Persist {
        id: u64,
        events: Vec<Event>,
    },
    Call {
        step: StepId,
        attempt: u64,
        call: Call,
    },
    /// The attempt's time is over: its answer counts no more.
    Cancel {
        attempt: u64,
    },
    Ended(End),
}

/// How a saga ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Completed,
    Undone { cause: Cause, why: Box<str> },
    GivenUp,
}

/// What an operator decides about a stuck step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resolution {
    Retry,
    /// Of an undo: take it for undone.
    Skip,
    /// Of an action: it has run, with this output.
    Replace(Bytes),
    /// Of the pivot: it has not run and will not. The saga is undone.
    NotRun,
}

/// Why a record is no saga of this definition, or a resolution does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    Event(#[from] EventError),
    #[error(transparent)]
    Misplaced(#[from] Misplaced),
    #[error("the definition of the saga has changed since it began")]
    Changed,
    #[error("the step is not stuck, or this resolution does not fit it")]
    NotStuck,
}

/// What a step is doing now, in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    Idle,
    /// The call follows once the record is durable.
    Gated {
        record: u64,
        call: Call,
    },
    Running {
        attempt: u64,
        until: u64,
        call: Call,
    },
    BackingOff {
        until: u64,
        call: Call,
    },
}

/// One saga on its way.
#[derive(Debug)]
pub(crate) struct Run {
    state: State,
    activities: Box<[Activity]>,
    /// An earlier process may have called the action, and how that ended is not known.
    inherited: Box<[bool]>,
    batch: Vec<Event>,
    next_record: u64,
    durable: u64,
    next_attempt: u64,
    /// The record that holds the end. `Some` until the end was put out.
    end_record: Option<u64>,
    /// Attempts that run come to their end, and no other begins.
    drains: bool,
    random: fastrand::Rng,
    outputs: VecDeque<Output>,
}

impl Run {
    /// A saga that begins now. `deadline` is when it is undone, if the pivot has not begun.
    pub(crate) fn start(
        graph: Arc<Graph>,
        input: Bytes,
        deadline: Option<u64>,
        seed: u64,
        now: u64,
    ) -> Self {
        let mut run = Self::new(State::new(graph, input), seed);
        run.state.deadline = deadline;
        run.batch = run.state.events();
        run.advance(now);
        run
    }

    /// A saga that an earlier process began. Its events are durable.
    pub(crate) fn recover(
        graph: Arc<Graph>,
        events: &[Event],
        seed: u64,
        now: u64,
    ) -> Result<Self, RunError> {
        let mut events = (0..).zip(events);
        let Some((_, Event::Started { definition, shape, input })) = events.next() else {
            return Err(Misplaced { at: 0 }.into());
        };
        let Some((_, Event::Version(version))) = events.next() else {
            return Err(Misplaced { at: 1 }.into());
        };
        let is_same = *definition == graph.name
            && *version == u64::from(graph.version)
            && *shape == graph.shape();
        if !is_same {
            return Err(RunError::Changed);
        }
        let mut state = State::new(graph, input.clone());
        for (at, event) in events {
            state.apply(event).map_err(|()| Misplaced { at })?;
        }
        let mut run = Self::new(state, seed);
        for (inherited, step) in run.inherited.iter_mut().zip(&run.state.steps) {
            *inherited = step.status == Status::Intended;
        }
        run.advance(now);
        Ok(run)
    }

    fn new(state: State, seed: u64) -> Self {
        let steps = state.graph.len();
        Self {
            activities: vec![Activity::Idle; steps].into(),
            inherited: vec![false; steps].into(),
            state,
            batch: Vec::new(),
            next_record: 1,
            durable: 0,
            next_attempt: 1,
            end_record: None,
            drains: false,
            random: fastrand::Rng::with_seed(seed),
            outputs: VecDeque::new(),
        }
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The last record that was put out. 0 if there is none.
    pub(crate) fn last_record(&self) -> u64 {
        self.next_record - 1
    }

    /// The records up to this one are durable.
    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    /// Has no attempt begin any more: the next process begins those that are left.
    pub(crate) fn drain(&mut self) {
        self.drains = true;
    }

    /// Whether [`Input::Abort`] would have an effect.
    pub(crate) fn may_abort(&self) -> bool {
        self.state.phase == Phase::Forward && !self.state.is_past_return()
    }

    /// Whether it can only go on when an operator resolves a stuck step.
    pub(crate) fn is_stuck(&self) -> bool {
        let is_idle = self.activities.iter().all(|activity| *activity == Activity::Idle);
        is_idle && self.state.steps.iter().any(|step| step.stuck.is_some())
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to [`Tick`](Input::Tick), in ns.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let timers = self.activities.iter().filter_map(|activity| match activity {
            Activity::Running { until, .. } => Some(*until),
            Activity::BackingOff { until, .. } if !self.drains => Some(*until),
            _ => None,
        });
        timers.chain(self.state.deadline.filter(|_| self.may_abort() && !self.drains)).min()
    }

    pub(crate) fn step(&mut self, now: u64, input: Input) {
        match input {
            Input::Persisted(record) => self.durable = self.durable.max(record),
            Input::Acted { step, attempt, result } => {
                if self.ends(step, attempt, Call::Act) {
                    match result {
                        Ok(output) => self.record(Event::Done(step, output)),
                        Err(failure) => self.act_failed(step, &failure, now),
                    }
                }
            }
            Input::Probed { step, attempt, result } => {
                if self.ends(step, attempt, Call::Probe) {
                    self.probed(step, result, now);
                }
            }
            Input::Undone { step, attempt, result } => {
                if self.ends(step, attempt, Call::Undo) {
                    match result {
                        Ok(()) => self.record(Event::Undone(step)),
                        Err(failure) => self.undo_failed(step, &failure, now),
                    }
                }
            }
            Input::Abort(why) => {
                if self.may_abort() {
                    self.record(Event::Unwinding { cause: Cause::Abort, why: why.into() });
                }
            }
            Input::Tick => {}
        }
        self.advance(now);
    }

    /// Ends the wait for an operator.
    pub(crate) fn resolve(
        &mut self,
        step: StepId,
        resolution: Resolution,
        now: u64,
    ) -> Result<(), RunError> {
        let known = self.state.steps.get(usize::from(step)).ok_or(RunError::NotStuck)?;
        let Some((direction, _)) = known.stuck else { return Err(RunError::NotStuck) };
        let is_pivot = self.state.graph.node(step).kind == Kind::Pivot;
        let fits = match (&resolution, direction) {
            (Resolution::Retry, _)
            | (Resolution::Skip, Direction::Undo)
            | (Resolution::Replace(_), Direction::Act) => true,
            (Resolution::NotRun, Direction::Act) => is_pivot,
            _ => false,
        };
        if !fits {
            return Err(RunError::NotStuck);
        }
        self.record(Event::Resolved(step));
        match resolution {
            Resolution::Retry => {}
            Resolution::Skip => self.record(Event::Undone(step)),
            Resolution::Replace(output) => self.record(Event::Done(step, output)),
            Resolution::NotRun => {
                self.fail(step, false, "an operator says that it has not run".into());
            }
        }
        self.advance(now);
        Ok(())
    }

    /// Ends the saga as it is. An operator's last word.
    pub(crate) fn give_up(&mut self, now: u64) {
        if matches!(self.state.phase, Phase::Ended(_)) {
            return;
        }
        for activity in &mut self.activities {
            if let Activity::Running { attempt, .. } = *activity {
                self.outputs.push_back(Output::Cancel { attempt });
            }
            *activity = Activity::Idle;
        }
        self.record(Event::Ended(2));
        self.advance(now);
    }

    /// Whether this attempt was running. An answer that comes after its time counts for nothing.
    fn ends(&mut self, step: StepId, attempt: u64, call: Call) -> bool {
        let Some(activity) = self.activities.get_mut(usize::from(step)) else { return false };
        let runs = matches!(
            *activity,
            Activity::Running { attempt: running, call: asked, .. }
                if running == attempt && asked == call
        );
        if runs {
            *activity = Activity::Idle;
        }
        runs
    }

    /// Changes the state by an event that will be recorded.
    fn record(&mut self, event: Event) {
        // Every event here was checked against the state; recovery checks them again.
        let applied = self.state.apply(&event);
        debug_assert!(applied.is_ok(), "{event:?} in {:?}", self.state);
        if applied.is_ok() {
            self.batch.push(event);
        }
    }

    fn act_failed(&mut self, step: StepId, failure: &Failure, now: u64) {
        let unknown = matches!(failure, Failure::Unknown(_));
        let inherited = self.inherited[usize::from(step)];
        let known = self.state.step(step);
        let may_have_run = unknown || inherited || known.may_have_run;
        let failures = known.failures + 1;
        let node = self.state.graph.node(step);
        let (kind, has_probe) = (node.kind, node.has_probe);
        let max_attempts = node.retry.max_attempts;
        let backoff = delay(&node.retry, failures, &mut self.random);
        let why: Box<str> = failure.why().into();
        self.record(Event::AttemptFailed { step, may_have_run: unknown, why: why.clone() });
        let is_final = matches!(failure, Failure::Domain(_)) || failures >= max_attempts;
        if self.state.phase == Phase::Unwinding {
            return self.fail(step, may_have_run, why);
        }
        let call = if unknown && has_probe { Call::Probe } else { Call::Act };
        if !is_final {
            return self.back_off(step, now.saturating_add(backoff), call);
        }
        match kind {
            Kind::Compensatable { .. } => self.fail(step, may_have_run, why),
            // A pivot that refuses has not run: a peer without keys needs a probe.
            Kind::Pivot if matches!(failure, Failure::Domain(_)) || !may_have_run => {
                self.fail(step, false, why);
            }
            Kind::Pivot | Kind::Retriable => {
                self.record(Event::Stuck { step, direction: Direction::Act, why });
            }
        }
    }

    fn fail(&mut self, step: StepId, may_have_run: bool, why: Box<str>) {
        self.record(Event::Failed { step, may_have_run, why: why.clone() });
        if self.state.phase == Phase::Forward {
            self.record(Event::Unwinding { cause: Cause::Step(step), why });
        }
    }

    fn probed(&mut self, step: StepId, result: Result<Option<Bytes>, Failure>, now: u64) {
        match result {
            Ok(Some(output)) => self.record(Event::Done(step, output)),
            Ok(None) => {
                self.inherited[usize::from(step)] = false;
                if self.state.phase == Phase::Unwinding {
                    self.fail(step, false, "it has not run".into());
                } else {
                    self.back_off(step, now, Call::Act);
                }
            }
            Err(failure) => {
                let node = self.state.graph.node(step);
                let failures = self.state.step(step).failures + 1;
                let is_final = failures >= node.retry.max_attempts;
                let is_compensatable = matches!(node.kind, Kind::Compensatable { .. });
                let backoff = delay(&node.retry, failures, &mut self.random);
                let why: Box<str> = failure.why().into();
                self.record(Event::AttemptFailed { step, may_have_run: true, why: why.clone() });
                if is_compensatable && (is_final || self.state.phase != Phase::Forward) {
                    self.fail(step, true, why);
                } else if is_final {
                    self.record(Event::Stuck { step, direction: Direction::Act, why });
                } else {
                    self.back_off(step, now.saturating_add(backoff), Call::Probe);
                }
            }
        }
    }

    fn undo_failed(&mut self, step: StepId, failure: &Failure, now: u64) {
        let node = self.state.graph.node(step);
        let failures = self.state.step(step).failures + 1;
        let is_final =
            failures >= node.undo_retry.max_attempts || matches!(failure, Failure::Domain(_));
        let backoff = delay(&node.undo_retry, failures, &mut self.random);
        let why: Box<str> = failure.why().into();
        self.record(Event::AttemptFailed { step, may_have_run: true, why: why.clone() });
        if is_final {
            self.record(Event::Stuck { step, direction: Direction::Undo, why });
        } else {
            self.back_off(step, now.saturating_add(backoff), Call::Undo);
        }
    }

    fn back_off(&mut self, step: StepId, until: u64, call: Call) {
        self.activities[usize::from(step)] = Activity::BackingOff { until, call };
    }

    /// Does all that can be done at `now`.
    fn advance(&mut self, now: u64) {
        self.end_attempts(now);
        if self.may_abort() && self.state.deadline.is_some_and(|at| at <= now) {
            let why = "the saga's time is over".into();
            self.record(Event::Unwinding { cause: Cause::Deadline, why });
        }
        match self.state.phase {
            Phase::Forward => self.go_forward(now),
            Phase::Unwinding => self.unwind(now),
            Phase::Ended(_) => {}
        }
        if !self.batch.is_empty() {
            let id = self.next_record;
            self.next_record += 1;
            if matches!(self.state.phase, Phase::Ended(_)) {
                self.end_record = Some(id);
            }
            let events = std::mem::take(&mut self.batch);
            self.outputs.push_back(Output::Persist { id, events });
        }
        self.call_what_is_due(now);
        if self.end_record.is_some_and(|record| record <= self.durable) {
            self.end_record = None;
            self.outputs.extend(self.end().map(Output::Ended));
        }
    }

    /// How it ended, if it has.
    pub(crate) fn end(&self) -> Option<End> {
        match self.state.phase {
            Phase::Ended(0) => Some(End::Completed),
            Phase::Ended(1) => {
                let (cause, why) = self.state.cause.clone()?;
                Some(End::Undone { cause, why })
            }
            Phase::Ended(_) => Some(End::GivenUp),
            Phase::Forward | Phase::Unwinding => None,
        }
    }

    /// Cancels attempts whose time is over. Their outcome is unknown.
    fn end_attempts(&mut self, now: u64) {
        for step in self.state.graph.ids() {
            let Activity::Running { attempt, until, call } = self.activities[usize::from(step)]
            else {
                continue;
            };
            if until > now {
                continue;
            }
            self.activities[usize::from(step)] = Activity::Idle;
            self.outputs.push_back(Output::Cancel { attempt });
            let failure = Failure::Unknown("the attempt's time is over".into());
            match call {
                Call::Act => self.act_failed(step, &failure, now),
                Call::Probe => self.probed(step, Err(failure), now),
                Call::Undo => self.undo_failed(step, &failure, now),
            }
        }
    }

    fn go_forward(&mut self, now: u64) {
        for step in self.state.graph.ids() {
            let known = self.state.step(step);
            let idle = self.activities[usize::from(step)] == Activity::Idle;
            match known.status {
                Status::Waiting if self.is_ready(step) => {
                    self.record(Event::Intended(step));
                    self.gate(step, Call::Act);
                }
                // Recovered, or resolved by an operator.
                Status::Intended if idle && known.stuck.is_none() => {
                    let node = self.state.graph.node(step);
                    let asks =
                        node.has_probe && (self.inherited[usize::from(step)] || known.may_have_run);
                    let call = if asks { Call::Probe } else { Call::Act };
                    if known.failures == 0 {
                        self.gate(step, call);
                    } else {
                        let backoff = delay(&node.retry, known.failures, &mut self.random);
                        self.back_off(step, now.saturating_add(backoff), call);
                    }
                }
                _ => {}
            }
        }
        if self.state.steps.iter().all(|step| step.status == Status::Done) {
            self.record(Event::Ended(0));
        }
    }

    fn is_ready(&self, step: StepId) -> bool {
        let is_done = |id: StepId| self.state.step(id).status == Status::Done;
        let node = self.state.graph.node(step);
        let phase_is_ready = match node.kind {
            Kind::Compensatable { .. } => true,
            Kind::Pivot => (0..step).all(is_done),
            Kind::Retriable => self.state.graph.pivot().is_none_or(is_done),
        };
        phase_is_ready && node.after.iter().copied().all(is_done)
    }

    fn unwind(&mut self, now: u64) {
        for step in self.state.graph.ids() {
            let at = usize::from(step);
            let known = self.state.step(step);
            if known.status == Status::Intended
                && !matches!(self.activities[at], Activity::Running { .. })
            {
                // Waits for nothing that is under way: it is settled as it stands.
                let may_have_run = known.may_have_run || self.inherited[at];
                let why = "the saga is undone".into();
                self.activities[at] = Activity::Idle;
                self.record(Event::Failed { step, may_have_run, why });
            }
        }
        // From the last: an undo without an action of its own lets those before it follow at once.
        for step in (0..self.state.graph.len() as StepId).rev() {
            self.undo_if_ready(step, now);
        }
        let settled = self.state.graph.ids().all(|step| !self.state.needs_undo(step));
        if settled {
            self.record(Event::Ended(1));
        }
    }

    fn undo_if_ready(&mut self, step: StepId, now: u64) {
        let known = self.state.step(step);
        let idle = self.activities[usize::from(step)] == Activity::Idle;
        let node = self.state.graph.node(step);
        match known.status {
            Status::Done | Status::Failed { may_have_run: true } => {
                let mut dependents = self.state.graph.dependents(step).iter();
                if dependents.any(|id| self.state.needs_undo(*id)) {
                    return;
                }
                let has_undo = node.kind == Kind::Compensatable { has_undo: true };
                self.record(Event::UndoIntended(step));
                if has_undo {
                    self.gate(step, Call::Undo);
                } else {
                    self.record(Event::Undone(step));
                }
            }
            // Recovered, or resolved by an operator.
            Status::Undoing if idle && known.stuck.is_none() => {
                if known.failures == 0 {
                    self.gate(step, Call::Undo);
                } else {
                    let backoff = delay(&node.undo_retry, known.failures, &mut self.random);
                    self.back_off(step, now.saturating_add(backoff), Call::Undo);
                }
            }
            _ => {}
        }
    }

    /// Holds a call back until what is recorded in this round is durable.
    fn gate(&mut self, step: StepId, call: Call) {
        // Without a new event, all that the call follows from is in the last record.
        let record = if self.batch.is_empty() { self.last_record() } else { self.next_record };
        self.activities[usize::from(step)] = Activity::Gated { record, call };
    }

    fn call_what_is_due(&mut self, now: u64) {
        if self.drains {
            return;
        }
        for step in self.state.graph.ids() {
            let at = usize::from(step);
            let call = match self.activities[at] {
                Activity::Gated { record, call } if record <= self.durable => call,
                Activity::BackingOff { until, call } if until <= now => call,
                _ => continue,
            };
            let attempt = self.next_attempt;
            self.next_attempt += 1;
            let until = now.saturating_add(nanos(self.state.graph.node(step).timeout));
            self.activities[at] = Activity::Running { attempt, until, call };
            self.outputs.push_back(Output::Call { step, attempt, call });
        }
    }
}
