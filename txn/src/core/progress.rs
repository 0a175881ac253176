//! What the record says: the state of a saga, changed by its events alone, live and at recovery.

use std::sync::Arc;

use bytes::Bytes;

use super::event::{Cause, Direction, Event};
use super::graph::{Graph, Kind, StepId};

/// Where a step is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Waiting,
    /// Its action may have been called.
    Intended,
    Done,
    /// It will not be tried again.
    Failed {
        may_have_run: bool,
    },
    /// Its undo may have been called.
    Undoing,
    Undone,
}

#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) status: Status,
    /// Invariant: `Some` if the action was recorded as `Done`, also when it has been undone since.
    pub(crate) output: Option<Bytes>,
    /// Failed attempts of the action, or of the undo once that has begun, since an operator last
    /// had it tried again.
    pub(crate) failures: u32,
    /// An attempt ended without saying whether it ran.
    pub(crate) may_have_run: bool,
    /// It waits for an operator, and why.
    pub(crate) stuck: Option<(Direction, Box<str>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Forward,
    Unwinding,
    /// See [`Event::Ended`].
    Ended(u64),
}

/// An event that cannot follow those before it: the record is not one of this definition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event {at} does not follow from those before it")]
pub(crate) struct Misplaced {
    pub(crate) at: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) graph: Arc<Graph>,
    pub(crate) input: Bytes,
    pub(crate) deadline: Option<u64>,
    pub(crate) phase: Phase,
    /// Why it is undone. Invariant: `Some` from `Unwinding` on.
    pub(crate) cause: Option<(Cause, Box<str>)>,
    pub(crate) steps: Box<[Progress]>,
}

impl State {
    pub(crate) fn new(graph: Arc<Graph>, input: Bytes) -> Self {
        let step = Progress {
            status: Status::Waiting,
            output: None,
            failures: 0,
            may_have_run: false,
            stuck: None,
        };
        let steps = vec![step; graph.len()].into();
        Self { graph, input, deadline: None, phase: Phase::Forward, cause: None, steps }
    }

    pub(crate) fn step(&self, id: StepId) -> &Progress {
        &self.steps[usize::from(id)]
    }

    /// Whether the pivot's action may have been called: the saga can no longer be aborted.
    pub(crate) fn is_past_return(&self) -> bool {
        let passed = |id| !matches!(self.step(id).status, Status::Waiting | Status::Failed { .. });
        self.graph.pivot().is_some_and(passed)
    }

    /// Whether the step must be undone before the saga can end undone.
    pub(crate) fn needs_undo(&self, id: StepId) -> bool {
        match &self.step(id).status {
            Status::Done | Status::Undoing | Status::Intended => true,
            Status::Failed { may_have_run } => *may_have_run,
            Status::Waiting | Status::Undone => false,
        }
    }

    /// Applies an event. An error leaves the state as it was.
    pub(crate) fn apply(&mut self, event: &Event) -> Result<(), ()> {
        if matches!(self.phase, Phase::Ended(_)) {
            return Err(());
        }
        match event {
            Event::Started { .. } | Event::Version(_) => return Err(()),
            Event::Deadline(at) => self.deadline = (*at != u64::MAX).then_some(*at),
            Event::Unwinding { cause, why } => {
                if self.phase != Phase::Forward || self.is_past_return() {
                    return Err(());
                }
                self.phase = Phase::Unwinding;
                self.cause = Some((*cause, why.clone()));
            }
            Event::Ended(how) => self.phase = Phase::Ended(*how),
            Event::Intended(id)
            | Event::Done(id, _)
            | Event::AttemptFailed { step: id, .. }
            | Event::Failed { step: id, .. }
            | Event::UndoIntended(id)
            | Event::Undone(id)
            | Event::Stuck { step: id, .. }
            | Event::Resolved(id) => return self.apply_to_step(*id, event),
        }
        Ok(())
    }

    fn apply_to_step(&mut self, id: StepId, event: &Event) -> Result<(), ()> {
        let unwinds = self.phase == Phase::Unwinding;
        let kind = self.graph.nodes.get(usize::from(id)).ok_or(())?.kind;
        let is_compensatable = matches!(kind, Kind::Compensatable { .. });
        let step = &mut self.steps[usize::from(id)];
        match (event, &step.status) {
            (Event::Intended(_), Status::Waiting) if !unwinds => step.status = Status::Intended,
            (Event::Done(_, output), Status::Intended) => {
                step.status = Status::Done;
                step.output = Some(output.clone());
                step.failures = 0;
            }
            (Event::AttemptFailed { may_have_run, .. }, Status::Intended) => {
                step.failures = step.failures.saturating_add(1);
                step.may_have_run |= may_have_run;
            }
            (Event::AttemptFailed { .. }, Status::Undoing) => {
                step.failures = step.failures.saturating_add(1);
            }
            (Event::Failed { may_have_run, .. }, Status::Intended)
                if kind != Kind::Retriable && (is_compensatable || !may_have_run) =>
            {
                step.status = Status::Failed { may_have_run: *may_have_run };
                step.failures = 0;
            }
            (Event::UndoIntended(_), Status::Done | Status::Failed { may_have_run: true })
                if unwinds && is_compensatable =>
            {
                step.status = Status::Undoing;
            }
            (Event::Undone(_), Status::Undoing) if unwinds => step.status = Status::Undone,
            (Event::Stuck { direction, why, .. }, status) => {
                let fits = match direction {
                    Direction::Act => *status == Status::Intended && !is_compensatable,
                    Direction::Undo => *status == Status::Undoing,
                };
                if !fits || step.stuck.is_some() {
                    return Err(());
                }
                step.stuck = Some((*direction, why.clone()));
            }
            (Event::Resolved(_), _) if step.stuck.is_some() => {
                step.stuck = None;
                step.failures = 0;
            }
            _ => return Err(()),
        }
        Ok(())
    }

    /// Events that make this state again, without its detours. They leave out `may_have_run` of a
    /// step that is `Intended` and has no counted failure: recovery takes each such step for one
    /// that may have run.
    pub(crate) fn events(&self) -> Vec<Event> {
        let Graph { name, version, .. } = &*self.graph;
        let mut events = vec![
            Event::Started {
                definition: name.clone(),
                shape: self.graph.shape(),
                input: self.input.clone(),
            },
            Event::Version(u64::from(*version)),
        ];
        events.extend(self.deadline.map(Event::Deadline));
        for id in self.graph.ids() {
            self.step_events(id, &mut events);
        }
        if let Some((cause, why)) = &self.cause {
            events.push(Event::Unwinding { cause: *cause, why: why.clone() });
        }
        for id in self.graph.ids() {
            let step = self.step(id);
            if matches!(step.status, Status::Undoing | Status::Undone) {
                events.push(Event::UndoIntended(id));
            }
            match step.status {
                Status::Undone => events.push(Event::Undone(id)),
                Status::Undoing => events.extend(failed_attempts(id, step)),
                _ => {}
            }
            if let Some((direction, why)) = &step.stuck {
                let (direction, why) = (*direction, why.clone());
                events.push(Event::Stuck { step: id, direction, why });
            }
        }
        if let Phase::Ended(how) = self.phase {
            events.push(Event::Ended(how));
        }
        events
    }

    fn step_events(&self, id: StepId, events: &mut Vec<Event>) {
        let step = self.step(id);
        if step.status == Status::Waiting {
            return;
        }
        events.push(Event::Intended(id));
        match (&step.status, &step.output) {
            (Status::Intended, _) => events.extend(failed_attempts(id, step)),
            (_, Some(output)) => events.push(Event::Done(id, output.clone())),
            (status, None) => {
                let may_have_run = *status != Status::Failed { may_have_run: false };
                events.push(Event::Failed { step: id, may_have_run, why: "".into() });
            }
        }
    }
}

/// One event for each failed attempt that counts: at most 1,000.
fn failed_attempts(id: StepId, step: &Progress) -> impl Iterator<Item = Event> + use<> {
    let may_have_run = step.may_have_run;
    (0..step.failures.min(1000)).map(move |_| Event::AttemptFailed {
        step: id,
        may_have_run,
        why: "".into(),
    })
}
