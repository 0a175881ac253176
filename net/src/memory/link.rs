//! One direction of one class between two nodes of a simulated network.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::network::{Faults, Host, Tally};
use crate::core::calls::{Answer, Calls, Waiting};
use crate::serving::{self, Begun, Failure, begin, message};
use crate::{CallError, Class, Config, Event, Limits, Lost, Parts, Rejected, SendError};

/// Faults of one path, from one node to another.
#[derive(Clone, Debug, Default)]
pub(super) struct Path {
    pub(super) faults: Faults,
    /// Since when.
    pub(super) cut: Option<Instant>,
    pub(super) is_held: bool,
}

struct Item {
    due: Instant,
    service: u16,
    body: Bytes,
    /// The id and deadline of a request.
    request: Option<(u64, Instant)>,
}

struct State {
    is_up: bool,
    path: Path,
    queue: VecDeque<Item>,
    bytes: usize,
    /// Somebody hands the queue on; whoever adds to it need not.
    is_draining: bool,
    /// Grows when a connection breaks, with which whoever drains its queue is done.
    generation: u64,
    last_due: Option<Instant>,
    calls: Calls,
    running: HashMap<u64, AbortHandle>,
    rng: Rng,
}

pub(super) struct Link {
    pub(super) from: Arc<Host>,
    pub(super) to: Arc<Host>,
    pub(super) class: Class,
    limits: Limits,
    max_calls_in: usize,
    ids: AtomicU64,
    state: Mutex<State>,
    tally: Arc<Tally>,
    runtime: Handle,
}

impl Link {
    pub(super) fn new(
        (from, to): (Arc<Host>, Arc<Host>),
        class: Class,
        path: Path,
        config: &Config,
        (tally, runtime): (Arc<Tally>, Handle),
    ) -> Self {
        let name = from.id.rotate_left(32) ^ to.id ^ ((class == Class::Bulk) as u64) << 63;
        let state = State {
            is_up: path.cut.is_none(),
            path,
            queue: VecDeque::new(),
            bytes: 0,
            is_draining: false,
            generation: 0,
            last_due: None,
            calls: Calls::new(config.max_calls_out),
            running: HashMap::new(),
            rng: Rng::with_seed(config.draw_seed() ^ Rng::with_seed(name).u64(..)),
        };
        Self {
            from,
            to,
            class,
            limits: *config.limits(class),
            max_calls_in: config.max_calls_in,
            ids: AtomicU64::new(1),
            state: Mutex::new(state),
            tally,
            runtime,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.state.lock().is_up
    }

    /// The path does something else from now on. `drain` hands on what it delivers again.
    pub(super) fn set_path(&self, path: Path) {
        let comes_up = {
            let mut state = self.state.lock();
            let comes_up = !state.is_up && path.cut.is_none();
            state.is_up |= comes_up;
            state.path = path;
            comes_up
        };
        if comes_up {
            self.tell(Event::Up { peer: self.to.id, class: self.class });
        }
    }

    /// The connection breaks: what is on its way is lost. It comes up again when `stays_down` is
    /// false.
    pub(super) fn disconnect(&self, reason: crate::DownReason, stays_down: bool) {
        let lost = match reason {
            crate::DownReason::Local => Lost::Closed,
            _ => Lost::Disconnected,
        };
        let (waiting, was_up) = {
            let mut state = self.state.lock();
            self.tally.dropped.fetch_add(state.queue.len() as u64, Ordering::Relaxed);
            state.queue.clear();
            (state.bytes, state.last_due, state.is_draining) = (0, None, false);
            state.generation += 1;
            for (_, task) in state.running.drain() {
                task.abort();
            }
            let was_up = std::mem::replace(&mut state.is_up, !stays_down);
            (state.calls.drain(), was_up)
        };
        if was_up {
            self.tally.disconnected.fetch_add(1, Ordering::Relaxed);
            self.tell(Event::Down { peer: self.to.id, class: self.class, reason });
        }
        for waiting in waiting {
            let _ = waiting.answer.send(Err(CallError::Unknown(lost)));
        }
        if was_up && !stays_down {
            self.tell(Event::Up { peer: self.to.id, class: self.class });
        }
    }

    pub(super) fn tell(&self, event: Event) {
        self.from.publisher.publish(event);
    }

    fn admit(&self, state: &State, bytes: usize) -> Result<(), SendError> {
        let max_bytes = self.limits.max_message_bytes;
        if !state.is_up {
            Err(SendError::Down)
        } else if bytes > max_bytes {
            Err(SendError::TooLarge { bytes, max_bytes })
        } else if state.queue.len() >= self.limits.max_queue_messages
            || (state.bytes > 0 && state.bytes + bytes > self.limits.max_queue_bytes)
        {
            self.tally.full.fetch_add(1, Ordering::Relaxed);
            Err(SendError::Full)
        } else {
            Ok(())
        }
    }

    fn push(&self, state: &mut State, service: u16, body: Bytes, request: Option<(u64, Instant)>) {
        let delay = draw(state, &self.tally);
        let Some(delay) = delay else { return };
        let now = Instant::now();
        let due = state.last_due.map_or(now + delay, |last| last.max(now + delay));
        state.last_due = Some(due);
        state.bytes += body.len();
        state.queue.push_back(Item { due, service, body, request });
    }

    pub(super) fn send(self: &Arc<Self>, service: u16, parts: Parts) -> Result<(), SendError> {
        {
            let mut state = self.state.lock();
            self.admit(&state, parts.len())?;
            self.push(&mut state, service, parts.to_bytes(), None);
        }
        self.drain();
        Ok(())
    }

    pub(super) fn call(
        self: &Arc<Self>,
        service: u16,
        parts: Parts,
        deadline: Instant,
    ) -> Result<(Ticket, oneshot::Receiver<Answer>), SendError> {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let (answer, receiver) = oneshot::channel();
        {
            let mut state = self.state.lock();
            self.admit(&state, parts.len())?;
            if state.calls.is_full() {
                self.tally.full.fetch_add(1, Ordering::Relaxed);
                return Err(SendError::Full);
            }
            state.calls.insert(id, Waiting { place: id, answer });
            self.push(&mut state, service, parts.to_bytes(), Some((id, deadline)));
        }
        self.drain();
        Ok((Ticket { link: Arc::clone(self), id, is_done: false }, receiver))
    }

    /// Hands on what is due, unless somebody does already: a handler that sends by this very link
    /// adds to the queue and returns, so nothing nests and nothing overtakes.
    pub(super) fn drain(self: &Arc<Self>) {
        let generation = {
            let mut state = self.state.lock();
            if state.is_draining || state.path.is_held || state.queue.is_empty() {
                return;
            }
            state.is_draining = true;
            state.generation
        };
        if let Some(due) = self.drain_due(generation) {
            let link = Arc::clone(self);
            self.runtime.spawn(async move {
                let mut next = Some(due);
                while let Some(due) = next {
                    sleep_until(due).await;
                    next = link.drain_due(generation);
                }
            });
        }
    }

    /// Hands on what is due and says when the next is, or that the draining is over.
    fn drain_due(self: &Arc<Self>, generation: u64) -> Option<Instant> {
        loop {
            let item = {
                let mut state = self.state.lock();
                if state.generation != generation {
                    return None;
                }
                let is_over = state.path.is_held || state.queue.is_empty();
                if is_over {
                    state.is_draining = false;
                    return None;
                }
                let due = state.queue.front().map(|item| item.due);
                if due.is_some_and(|due| due > Instant::now()) {
                    return due;
                }
                let item = state.queue.pop_front();
                state.bytes -= item.as_ref().map_or(0, |item| item.body.len());
                if state.path.cut.is_some() { None } else { item }
            };
            match item {
                Some(item) => self.deliver(item),
                None => {
                    self.tally.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn deliver(self: &Arc<Self>, item: Item) {
        self.tally.delivered.fetch_add(1, Ordering::Relaxed);
        let handler = self.to.services.get(item.service);
        let Some((id, deadline)) = item.request else {
            match handler {
                Some(handler) => message(&*handler, self.from.id, self.class, item.body),
                None => self.tell_unknown(item.service),
            }
            return;
        };
        // Given up on its way.
        if !self.state.lock().calls.contains(id) {
            return;
        }
        let Some(handler) = handler else {
            self.tell_unknown(item.service);
            return self.answer(id, Err(Failure::Rejected(Rejected::UnknownService)));
        };
        if self.state.lock().running.len() >= self.max_calls_in {
            return self.answer(id, Err(Failure::Rejected(Rejected::Busy)));
        }
        match begin(handler, self.from.id, item.body) {
            Begun::Answered(answer) => self.answer(id, answer),
            Begun::Pending(running) => {
                let link = Arc::clone(self);
                // Held until the task is in the map, which it leaves at its end.
                let mut state = self.state.lock();
                if !state.calls.contains(id) {
                    // Given up, or disconnected, while it was begun.
                    drop(state);
                    return drop(running);
                }
                let task = self.runtime.spawn(async move {
                    let answer = timeout_at(deadline, running).await;
                    link.state.lock().running.remove(&id);
                    if let Ok(answer) = answer {
                        link.answer(id, answer);
                    }
                });
                state.running.insert(id, task.abort_handle());
            }
        }
    }

    fn tell_unknown(&self, service: u16) {
        let event = Event::UnknownService { peer: self.from.id, service };
        self.to.publisher.publish(event);
    }

    /// Takes an answer back by the path that leads from the peer to the caller.
    fn answer(self: &Arc<Self>, id: u64, answer: serving::Answer) {
        let answer = match answer {
            Ok(parts) if parts.len() > self.limits.max_message_bytes => {
                Err(CallError::Unknown(Lost::AnswerTooLong))
            }
            Err(Failure::Rejected(Rejected::ByHandler(reason)))
                if reason.len() > self.limits.max_message_bytes =>
            {
                Err(CallError::Unknown(Lost::AnswerTooLong))
            }
            Ok(parts) => Ok(parts.to_bytes()),
            Err(Failure::Rejected(rejected)) => Err(CallError::Rejected(rejected)),
            Err(Failure::Panicked) => Err(CallError::Unknown(Lost::HandlerFailed)),
        };
        let back = self.to.path_to(self.from.id);
        let delay = {
            let mut state = self.state.lock();
            if back.cut.is_some() || back.is_held {
                self.tally.dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            let Some(delay) = back.faults.draw(&mut state.rng, &self.tally) else { return };
            delay
        };
        if delay.is_zero() {
            return self.answered(id, answer);
        }
        let link = Arc::clone(self);
        self.runtime.spawn(async move {
            tokio::time::sleep(delay).await;
            link.answered(id, answer);
        });
    }

    fn answered(&self, id: u64, answer: Answer) {
        let waiting = self.state.lock().calls.remove(id);
        if let Some(waiting) = waiting {
            let _ = waiting.answer.send(answer);
        }
    }

    fn give_up(&self, id: u64) {
        let mut state = self.state.lock();
        state.calls.remove(id);
        if state.path.cut.is_none()
            && let Some(task) = state.running.remove(&id)
        {
            task.abort();
        }
    }
}

/// Whether and when what is sent now arrives.
fn draw(state: &mut State, tally: &Tally) -> Option<Duration> {
    if state.path.cut.is_some() {
        tally.dropped.fetch_add(1, Ordering::Relaxed);
        return None;
    }
    state.path.faults.draw(&mut state.rng, tally)
}

/// A call under way; dropping it gives the call up.
pub(super) struct Ticket {
    link: Arc<Link>,
    id: u64,
    is_done: bool,
}

impl Ticket {
    pub(super) fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.is_done {
            self.link.give_up(self.id);
        }
    }
}
