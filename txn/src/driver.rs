//! One saga's task: carries out what the core asks for.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Sleep;

use crate::core::{Call, End, Event, Failure, Input, Output, Resolution, Run, StepId};
use crate::definition::{Answer, Arguments, Definition, StepCx};
use crate::error::{ResolveError, StoreError};
use crate::sagas::{Entry, Inner, Status};
use crate::store::gather::len_bytes;
use crate::store::{Record, RecordKind};

/// Events of one record: it fits into a batch of any store, with its head.
const RECORD_BYTES: usize = (1 << 20) - (1 << 11);
/// All outputs of one saga.
const OUTPUTS_BYTES_MAX: usize = 8 << 20;

/// What an operator asks of an open saga.
pub(crate) enum Command {
    Abort {
        why: String,
        reply: Reply,
    },
    Resolve {
        step: StepId,
        resolution: Resolution,
        reply: Reply,
    },
    GiveUp {
        reply: Reply,
    },
    /// The store asks for the whole saga.
    Rewrite,
    /// Finish what is being called, and end.
    Drain,
}

type Append = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;
type Reply = oneshot::Sender<Result<(), ResolveError>>;

pub(crate) struct Driver {
    inner: Arc<Inner>,
    entry: Arc<Entry>,
    definition: Arc<Definition>,
    run: Run,
    commands: mpsc::Receiver<Command>,
    calls: JoinSet<(StepId, u64, Answer)>,
    running: HashMap<u64, AbortHandle>,
    /// What is to be appended, in order, and the number of each record for the core.
    records: VecDeque<(u64, Vec<Event>)>,
    /// The store asks for the whole saga, which is not appended yet.
    rewrites: bool,
    /// The append under way, and the last record in it.
    append: Option<(u64, Append)>,
    /// Who is answered once a record is durable, and which one. Bounded by the callers that wait.
    replies: VecDeque<(u64, Reply)>,
    outputs_bytes: usize,
    timer: Option<Timer>,
    /// A record is durable, and the entry says so.
    has_begun: bool,
    /// The entry lists stuck steps.
    shows_stuck: bool,
    drains: bool,
    end: Option<End>,
    /// Last: it goes after everything that holds the store.
    _running: watch::Receiver<()>,
}

/// Rings at the next deadline, or earlier: it stays set for a deadline that no longer counts,
/// because setting it again for each attempt would cost more than the attempt.
struct Timer {
    /// What it was set for, in ns of the clock.
    at: u64,
    sleep: Pin<Box<Sleep>>,
}

/// What a turn of the task waits for.
enum Woken {
    Appended(Result<(), StoreError>),
    Answered(StepId, u64, Answer),
    Asked(Option<Command>),
    /// The timer rang.
    Rang,
    /// A call was aborted.
    Aborted,
}

impl Driver {
    pub(crate) fn new(
        inner: Arc<Inner>,
        entry: Arc<Entry>,
        definition: Arc<Definition>,
        run: Run,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let running = inner.running.subscribe();
        let outputs = run.state().steps.iter().filter_map(|step| step.output.as_ref());
        let outputs_bytes = outputs.map(Bytes::len).sum();
        Self {
            inner,
            entry,
            definition,
            run,
            commands,
            calls: JoinSet::new(),
            running: HashMap::new(),
            records: VecDeque::new(),
            rewrites: false,
            append: None,
            replies: VecDeque::new(),
            outputs_bytes,
            timer: None,
            has_begun: false,
            shows_stuck: false,
            drains: false,
            end: None,
            _running: running,
        }
    }

    pub(crate) async fn drive(mut self) {
        // Ends with the saga, with the store, or when it is drained. Without any of these the saga
        // waits for its peers or for an operator, as long as it takes.
        loop {
            self.carry_out();
            self.begin_append();
            self.publish();
            let is_idle = self.append.is_none() && self.records.is_empty();
            if self.end.is_some() && is_idle {
                return self.finish().await;
            }
            if self.drains && is_idle && self.calls.is_empty() {
                return self.entry.set(Status::Drained);
            }
            match self.wait().await {
                Woken::Appended(Ok(())) => {
                    if let Some((record, _)) = self.append.take() {
                        let now = self.inner.clock.now();
                        self.run.step(now, Input::Persisted(record));
                        if !self.has_begun {
                            self.has_begun = true;
                            self.entry.begun();
                        }
                        self.reply();
                    }
                }
                Woken::Appended(Err(error)) => {
                    tracing::error!(
                        target: "voussoir::txn", saga = %self.entry.id, %error, "the store failed"
                    );
                    self.calls.abort_all();
                    for (_, reply) in self.replies {
                        let _ = reply.send(Err(error.clone().into()));
                    }
                    return self.entry.set(Status::Halted(error));
                }
                Woken::Answered(step, attempt, answer) => self.answered(step, attempt, answer),
                Woken::Asked(command) => self.asked(command),
                Woken::Rang | Woken::Aborted => {
                    self.run.step(self.inner.clock.now(), Input::Tick);
                }
            }
        }
    }

    async fn wait(&mut self) -> Woken {
        let has_deadline = self.set_timer();
        let Self { append, calls, commands, timer, .. } = self;
        let append = async {
            match append {
                Some((_, append)) => append.await,
                None => std::future::pending().await,
            }
        };
        let ring = async {
            match timer {
                Some(timer) => timer.sleep.as_mut().await,
                None => std::future::pending().await,
            }
        };
        let woken = tokio::select! {
            // What it nearly always is comes first. None of them is ready again and again: each
            // append and each call follows from a step, and a saga has few.
            biased;
            result = append => Woken::Appended(result),
            Some(joined) = calls.join_next() => match joined {
                Ok((step, attempt, answer)) => Woken::Answered(step, attempt, answer),
                // Aborted: its time was over, and the core knows.
                Err(_) => Woken::Aborted,
            },
            command = commands.recv() => Woken::Asked(command),
            () = ring, if has_deadline => Woken::Rang,
        };
        if matches!(woken, Woken::Rang) {
            self.timer = None;
        }
        woken
    }

    /// Has the timer ring no later than the next deadline. False if there is none.
    fn set_timer(&mut self) -> bool {
        let Some(deadline) = self.run.next_deadline() else { return false };
        if self.timer.as_ref().is_none_or(|timer| timer.at > deadline) {
            let left = deadline.saturating_sub(self.inner.clock.now());
            let sleep = Box::pin(tokio::time::sleep(Duration::from_nanos(left)));
            self.timer = Some(Timer { at: deadline, sleep });
        }
        true
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.run.poll_output() {
            match output {
                Output::Persist { id, events } => {
                    self.records.push_back((id, events));
                }
                Output::Call { step, attempt, call } => self.call(step, attempt, call),
                Output::Cancel { attempt } => {
                    if let Some(running) = self.running.remove(&attempt) {
                        running.abort();
                    }
                }
                Output::Ended(end) => self.end = Some(end),
            }
        }
    }

    fn call(&mut self, step: StepId, attempt: u64, call: Call) {
        let node = self.definition.graph.node(step);
        let direction = if call == Call::Undo { "undo" } else { "act" };
        let cx = StepCx {
            saga: Arc::clone(&self.entry.id),
            key: format!("{}/{}/{direction}", self.entry.id, node.name).into(),
            epoch: self.inner.epoch,
        };
        let state = self.run.state();
        let output = |id: &StepId| state.step(*id).output.clone().unwrap_or_default();
        let needs: Vec<Bytes> =
            self.definition.code[usize::from(step)].needs.iter().map(output).collect();
        let own = state.step(step).output.as_ref();
        let with = Arguments { cx, input: &state.input, needs: &needs, own };
        let mut answer = self.definition.call(step, call, with);
        // Many calls answer at once, and need no task of their own. One that waits is polled again
        // by its task, so nobody has to be woken for this poll.
        match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => self.take_answer(step, attempt, answer),
            Poll::Pending => {
                let task = self.calls.spawn(async move { (step, attempt, answer.await) });
                self.running.insert(attempt, task);
            }
        }
    }

    fn answered(&mut self, step: StepId, attempt: u64, answer: Answer) {
        if self.running.remove(&attempt).is_some() {
            self.take_answer(step, attempt, answer);
        }
    }

    fn take_answer(&mut self, step: StepId, attempt: u64, answer: Answer) {
        let input = match answer {
            Answer::Acted(result) => {
                let result = result.and_then(|output| self.take_output(output));
                Input::Acted { step, attempt, result }
            }
            Answer::Probed(result) => {
                let result = result
                    .and_then(|output| output.map(|output| self.take_output(output)).transpose());
                Input::Probed { step, attempt, result }
            }
            Answer::Undone(result) => Input::Undone { step, attempt, result },
        };
        self.run.step(self.inner.clock.now(), input);
    }

    /// Bounds what a saga keeps. The step has had its effect, whatever its output.
    fn take_output(&mut self, output: Bytes) -> Result<Bytes, Failure> {
        if !self.has_room_for(&output) {
            return Err(Failure::Unknown(format!("an output of {} bytes", output.len())));
        }
        self.outputs_bytes += output.len();
        Ok(output)
    }

    fn has_room_for(&self, output: &Bytes) -> bool {
        let input = self.run.state().input.len();
        let most = OUTPUTS_BYTES_MAX.min(self.inner.max_values_bytes().saturating_sub(input));
        output.len() <= self.inner.config.max_value_bytes
            && self.outputs_bytes + output.len() <= most
    }

    fn asked(&mut self, command: Option<Command>) {
        let now = self.inner.clock.now();
        match command {
            Some(Command::Abort { why, reply }) => {
                let may = self.run.may_abort();
                self.run.step(now, Input::Abort(why));
                let result = if may { Ok(()) } else { Err(ResolveError::PastPivot) };
                self.reply_when_durable(reply, result);
            }
            Some(Command::Resolve { step, resolution, reply }) => {
                let result = self.resolve(step, resolution, now);
                self.reply_when_durable(reply, result);
            }
            Some(Command::GiveUp { reply }) => {
                self.run.give_up(now);
                self.reply_when_durable(reply, Ok(()));
            }
            Some(Command::Rewrite) => self.rewrites = true,
            Some(Command::Drain) | None => {
                self.drains = true;
                self.run.drain();
            }
        }
    }

    /// Answers a refusal at once, and all else when a crash would not take it back.
    fn reply_when_durable(&mut self, reply: Reply, result: Result<(), ResolveError>) {
        if result.is_err() {
            let _ = reply.send(result);
            return;
        }
        // Callers that have gone would pile up while the store has no room.
        self.replies.retain(|(_, reply)| !reply.is_closed());
        self.replies.push_back((self.run.last_record(), reply));
        self.reply();
    }

    fn reply(&mut self) {
        let count = self.replies.partition_point(|(record, _)| *record <= self.run.durable());
        for (_, reply) in self.replies.drain(..count) {
            let _ = reply.send(Ok(()));
        }
    }

    fn resolve(
        &mut self,
        step: StepId,
        resolution: Resolution,
        now: u64,
    ) -> Result<(), ResolveError> {
        let bytes = match &resolution {
            Resolution::Replace(output) if !self.has_room_for(output) => {
                return Err(ResolveError::TooLong { bytes: output.len() });
            }
            Resolution::Replace(output) => output.len(),
            _ => 0,
        };
        self.run.resolve(step, resolution, now).map_err(|_| ResolveError::NotStuck)?;
        self.outputs_bytes += bytes;
        Ok(())
    }

    /// Appends what waits, in one call, as far as the store takes it.
    fn begin_append(&mut self) {
        if self.append.is_some() {
            return;
        }
        let (mut last, mut records) = (0, Vec::new());
        if std::mem::take(&mut self.rewrites) {
            records = self.whole();
        }
        if !records.is_empty() {
            // It stands for all that waits.
            last = self.records.drain(..).map(|(record, _)| record).max().unwrap_or(0);
        }
        while let Some((record, events)) = self.records.front() {
            let fitted = records.len();
            split(&self.entry.id, RecordKind::More, events, &mut records);
            if fitted > 0 && len_bytes(&records) > self.inner.max_append_bytes {
                records.truncate(fitted);
                break;
            }
            last = *record;
            self.records.pop_front();
        }
        if !records.is_empty() {
            self.append = Some((last, Box::pin(self.inner.appends.append(records))));
        }
    }

    fn whole(&self) -> Vec<Record> {
        rewritten(&self.entry.id, &self.run.state().events(), self.inner.max_append_bytes)
    }

    fn publish(&mut self) {
        let waits = self.run.is_stuck();
        if !waits && !self.shows_stuck {
            return;
        }
        self.shows_stuck = waits;
        let state = self.run.state();
        let stuck = state.graph.ids().filter(|_| waits).filter_map(|id| {
            let (direction, why) = state.step(id).stuck.as_ref()?;
            Some((state.graph.node(id).name.to_string(), *direction, why.to_string()))
        });
        self.entry.set_stuck(stuck.collect());
    }

    async fn finish(self) {
        let kept = self.whole();
        let state = self.run.state();
        let outputs = state.steps.iter().map(|step| step.output.clone()).collect();
        let end = self.end.expect("finish is called at the end");
        self.entry.ended(&end, &state.graph, outputs, kept);
        self.inner.forget_the_oldest(&self.entry).await;
    }
}

/// A whole saga as records; none if they are more than the store takes at once.
pub(crate) fn rewritten(id: &Arc<str>, events: &[Event], max_append_bytes: usize) -> Vec<Record> {
    let mut records = Vec::new();
    split(id, RecordKind::Whole, events, &mut records);
    if len_bytes(&records) > max_append_bytes {
        tracing::debug!(
            target: "voussoir::txn", saga = %id,
            "a saga is too long to be written again: its old records stay"
        );
        records.clear();
    }
    records
}

/// Cuts events into records that fit a store's batch.
fn split(id: &Arc<str>, kind: RecordKind, events: &[Event], records: &mut Vec<Record>) {
    let whole = Event::encode(events);
    if whole.len() <= RECORD_BYTES && !events.is_empty() {
        return records.push(Record::new(Arc::clone(id), kind, whole));
    }
    let mut kind = kind;
    let mut rest = events;
    // Ends: each turn takes at least one event.
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|event| {
            bytes += Event::encode(std::slice::from_ref(event)).len();
            bytes <= RECORD_BYTES
        });
        let (now, later) = rest.split_at(fits.count().max(1));
        records.push(Record::new(Arc::clone(id), kind, Event::encode(now)));
        (kind, rest) = (RecordKind::More, later);
    }
}
