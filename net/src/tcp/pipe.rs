//! The sending half of a connection: a queue, and whoever writes to the socket.
//!
//! A frame that finds the queue empty is written by the caller of `send` itself, which saves
//! waking a task: about 5 µs across two workers. Those that follow it closely are queued, and
//! the task of the connection writes them together.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, oneshot};

use super::socket::Writer;
use super::waiting::{LateAnswer, Ticket};
use crate::core::calls::{Answer, Calls, Waiting};
use crate::core::outbox::{Batch, MAX_SLICES, Outbox};
use crate::stats::Counters;
use crate::wire::{Frame, HEADER_BYTES, Header, Kind, reason};
use crate::{CallError, Class, Config, Lost, Parts, SendError};

/// A longer frame is left to the task of the connection: the lock is held while the caller writes.
const MAX_DIRECT_BYTES: usize = 64 * 1024;
const MAX_DIRECT_SLICES: usize = 16;
/// How many writes the task does before it looks at what came in.
const WRITES_PER_TURN: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The first attempt to connect is under way: frames are queued.
    Opening,
    Up,
    /// The peer has said goodbye: nothing new is taken, and what was written is being answered.
    Leaving,
    Down,
    /// Nothing new is taken; what is queued is written.
    Closing,
    Closed,
}

/// Result of a turn of writing: whether bytes are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    Done,
    /// The socket takes nothing now.
    Blocked,
    /// There is more, and it is somebody else's turn.
    More,
}

struct State {
    phase: Phase,
    outbox: Outbox,
    batch: Batch,
    calls: Calls,
    writer: Option<Arc<Writer>>,
    max_body_bytes: usize,
    /// The task holds the batch.
    is_writing: bool,
    /// The task will look at the queue without being told again.
    is_woken: bool,
    wrote_at: Option<Instant>,
    /// Answers that wait for room.
    late_answers: usize,
    /// Of these. Invariant: at most the `max_queue_bytes` of the class or one answer, and a
    /// rejection for each other one.
    late_bytes: usize,
    /// This side's goodbye has been queued on the connection that stands.
    has_said_goodbye: bool,
}

impl State {
    fn is_connected(&self) -> bool {
        matches!(self.phase, Phase::Up | Phase::Leaving | Phase::Closing)
    }

    /// Lets every frame wait of which no byte has been given to the socket. While the task writes,
    /// its batch is not here: what is in that counts as given.
    fn put_back(&mut self) {
        self.outbox.put_back(&mut self.batch);
    }
}

pub(crate) struct Pipe {
    state: Mutex<State>,
    wake: Notify,
    room: Notify,
    ids: AtomicU64,
    max_body_bytes: usize,
    max_late_bytes: usize,
    gather: Duration,
    counters: Arc<Counters>,
}

impl Pipe {
    pub(crate) fn new(config: &Config, class: Class, counters: Arc<Counters>) -> Self {
        let limits = config.limits(class);
        let state = State {
            phase: Phase::Opening,
            outbox: Outbox::new(limits.max_queue_bytes, limits.max_queue_messages),
            batch: Batch::default(),
            calls: Calls::new(config.max_calls_out),
            writer: None,
            max_body_bytes: limits.max_message_bytes,
            is_writing: false,
            is_woken: false,
            wrote_at: None,
            late_answers: 0,
            late_bytes: 0,
            has_said_goodbye: false,
        };
        Self {
            state: Mutex::new(state),
            wake: Notify::new(),
            room: Notify::new(),
            ids: AtomicU64::new(1),
            max_body_bytes: limits.max_message_bytes,
            max_late_bytes: limits.max_queue_bytes,
            gather: config.gather,
            counters,
        }
    }

    /// The connection stands. Frames that the peer does not take are dropped from the queue.
    pub(crate) fn up(&self, writer: Arc<Writer>, max_body_bytes: usize) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Opening | Phase::Down) {
            state.phase = Phase::Up;
        }
        state.writer = Some(writer);
        state.max_body_bytes = max_body_bytes;
        state.is_woken = true;
        let mut too_large = Vec::new();
        for (place, frame) in state.outbox.waiting() {
            let bytes = frame.len() - HEADER_BYTES;
            if bytes > max_body_bytes {
                too_large.push((place, SendError::TooLarge { bytes, max_bytes: max_body_bytes }));
            }
        }
        let mut failed = Vec::new();
        for (place, error) in too_large {
            state.outbox.withdraw(place);
            self.counters.dropped.add(1);
            failed.extend(state.calls.remove_at(place).map(|waiting| (waiting, error)));
        }
        drop(state);
        for (waiting, error) in failed {
            let _ = waiting.answer.send(Err(CallError::NotSent(error)));
        }
    }

    /// The connection, or the first attempt at one, is gone: drops what is queued and ends every
    /// call.
    pub(crate) fn down(&self, phase: Phase) {
        let mut state = self.state.lock();
        if !matches!(state.phase, Phase::Closing | Phase::Closed) || phase == Phase::Closed {
            state.phase = phase;
        }
        let closed = state.phase == Phase::Closed;
        let (not_sent, lost) = if closed {
            (SendError::Closed, Lost::Closed)
        } else {
            (SendError::Down, Lost::Disconnected)
        };
        state.put_back();
        let calls: Vec<(Waiting, CallError)> = (state.calls.drain().into_iter())
            .map(|waiting| {
                let waits = state.outbox.is_waiting(waiting.place);
                let error =
                    if waits { CallError::NotSent(not_sent) } else { CallError::Unknown(lost) };
                (waiting, error)
            })
            .collect();
        self.counters.dropped.add(state.outbox.len() + usize::from(state.batch.is_in_a_frame()));
        state.outbox.clear();
        state.batch.clear();
        state.writer = None;
        (state.is_writing, state.is_woken, state.wrote_at) = (false, false, None);
        state.has_said_goodbye = false;
        drop(state);
        self.room.notify_waiters();
        for (waiting, error) in calls {
            let _ = waiting.answer.send(Err(error));
        }
    }

    /// The peer takes no further requests and answers those that it has: withdraws what has not
    /// been written, and says goodbye in turn. Only for the task of the connection.
    pub(crate) fn leave(&self) {
        let mut state = self.state.lock();
        let error = match state.phase {
            Phase::Up => SendError::Down,
            _ => SendError::Closed,
        };
        if state.phase == Phase::Up {
            state.phase = Phase::Leaving;
        }
        state.put_back();
        let State { calls, outbox, .. } = &mut *state;
        let not_sent = calls.take_if(|place| outbox.is_waiting(place));
        self.counters.dropped.add(outbox.withdraw_all());
        self.say_goodbye(&mut state);
        drop(state);
        self.room.notify_waiters();
        for waiting in not_sent {
            let _ = waiting.answer.send(Err(CallError::NotSent(error)));
        }
    }

    /// Takes nothing new from now on.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        if state.phase != Phase::Closed {
            state.phase = Phase::Closing;
        }
    }

    /// Nothing waits to be written or answered.
    pub(crate) fn is_quiet(&self) -> bool {
        let state = self.state.lock();
        let has_unflushed = state.writer.as_ref().is_some_and(|writer| writer.has_unflushed());
        state.outbox.bytes() == 0 && !has_unflushed && state.calls.len() == 0
    }

    /// Whether a connection stands.
    pub(crate) fn is_up(&self) -> bool {
        self.state.lock().writer.is_some()
    }

    /// Whether answers pile up because the peer does not read them.
    pub(crate) fn is_congested(&self) -> bool {
        let state = self.state.lock();
        state.late_answers > 0 || !state.outbox.has_room(HEADER_BYTES)
    }

    pub(crate) fn queued(&self) -> (usize, usize, usize) {
        let mut state = self.state.lock();
        state.put_back();
        (state.outbox.len(), state.outbox.bytes(), state.calls.len())
    }

    /// Whether a message of this length can be taken now.
    fn admit(state: &State, bytes: usize) -> Result<(), SendError> {
        match state.phase {
            Phase::Opening | Phase::Up => {}
            Phase::Leaving | Phase::Down => return Err(SendError::Down),
            Phase::Closing | Phase::Closed => return Err(SendError::Closed),
        }
        if bytes > state.max_body_bytes {
            return Err(SendError::TooLarge { bytes, max_bytes: state.max_body_bytes });
        }
        if state.outbox.has_room(HEADER_BYTES + bytes) { Ok(()) } else { Err(SendError::Full) }
    }

    fn admitted<T>(&self, result: Result<T, SendError>) -> Result<T, SendError> {
        if matches!(result, Err(SendError::Full)) {
            self.counters.full.add(1);
        }
        result
    }

    pub(crate) fn send(&self, service: u16, parts: Parts) -> Result<(), SendError> {
        let bytes = parts.len();
        // Asked twice, so that no checksum is computed for a message that is not taken.
        self.admitted(Self::admit(&self.state.lock(), bytes))?;
        let header = Header { kind: Kind::Message, service, id: 0, left_ms: 0 };
        let frame = Frame::new(header, parts);
        let mut state = self.state.lock();
        self.admitted(Self::admit(&state, bytes))?;
        self.give(&mut state, frame);
        Ok(())
    }

    /// Submits a request; the answer comes by the receiver, unless the ticket is dropped.
    pub(crate) fn call(
        self: &Arc<Self>,
        service: u16,
        left_ms: u32,
        parts: Parts,
    ) -> Result<(Ticket, oneshot::Receiver<Answer>), SendError> {
        let bytes = parts.len();
        self.admitted(Self::admit(&self.state.lock(), bytes))?;
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let frame = Frame::new(Header { kind: Kind::Request, service, id, left_ms }, parts);
        let (answer, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        self.admitted(Self::admit(&state, bytes))?;
        if state.calls.is_full() {
            return self.admitted(Err(SendError::Full));
        }
        let place = self.give(&mut state, frame);
        state.calls.insert(id, Waiting { place, answer });
        Ok((Ticket::new(Arc::clone(self), id), receiver))
    }

    /// The peer answered a call. One that has been given up is not known any more.
    pub(crate) fn answered(&self, id: u64, answer: Answer) {
        let waiting = self.state.lock().calls.remove(id);
        if let Some(waiting) = waiting {
            let _ = waiting.answer.send(answer);
        }
    }

    /// Ends a call from this side, and says whether it never left.
    pub(super) fn give_up(&self, id: u64) -> bool {
        let mut state = self.state.lock();
        let Some(waiting) = state.calls.remove(id) else { return false };
        if !state.outbox.is_waiting(waiting.place) {
            state.put_back();
        }
        let never_left = state.outbox.withdraw(waiting.place);
        if !never_left && matches!(state.phase, Phase::Up | Phase::Leaving) {
            // Without room the peer goes by the deadline alone.
            let frame = Frame::bare(Kind::Cancel, id);
            if state.outbox.has_room(frame.len()) {
                self.give(&mut state, frame);
            }
        }
        never_left
    }

    /// Queues an answer if there is room; else it has to wait for its turn. Only for the task of
    /// the connection, which will write it at the end of its turn.
    pub(crate) fn try_answer(self: &Arc<Self>, id: u64, frame: Frame) -> Option<LateAnswer> {
        let mut state = self.state.lock();
        if !state.outbox.has_room(frame.len()) {
            return Some(self.hold(&mut state, id, frame));
        }
        self.counters.frames_out.add(1);
        state.outbox.push(frame);
        None
    }

    /// Sends an answer at once, or says that it has to wait. It is dropped when the connection is
    /// gone.
    pub(crate) fn answer(self: &Arc<Self>, id: u64, frame: Frame) -> Option<LateAnswer> {
        let mut state = self.state.lock();
        if !state.is_connected() {
            return None;
        }
        if !state.outbox.has_room(frame.len()) {
            return Some(self.hold(&mut state, id, frame));
        }
        self.give(&mut state, frame);
        None
    }

    /// Lets an answer wait for room; or, when too many bytes wait, the news that it was dropped.
    fn hold(self: &Arc<Self>, state: &mut State, id: u64, mut frame: Frame) -> LateAnswer {
        if state.late_bytes > 0 && state.late_bytes + frame.len() > self.max_late_bytes {
            frame = Frame::rejection(id, reason::ANSWER_DROPPED);
            self.counters.dropped.add(1);
        }
        state.late_answers += 1;
        state.late_bytes += frame.len();
        LateAnswer::new(Arc::clone(self), frame)
    }

    /// Takes an answer that waits if there is room now, and drops it if the connection is gone.
    /// Returns whether its waiting is over.
    pub(super) fn offer(&self, answer: &mut Option<Frame>) -> bool {
        let mut state = self.state.lock();
        let waits = |frame: &Frame| state.is_connected() && !state.outbox.has_room(frame.len());
        if answer.as_ref().is_some_and(waits) {
            return false;
        }
        if let Some(frame) = answer.take()
            && state.is_connected()
        {
            self.give(&mut state, frame);
        }
        true
    }

    /// Ends when there may be more room than before. One waiter at a time is told, which tells the
    /// next one once it has taken its part; after the end of the connection all are told.
    pub(super) fn room(&self) -> Notified<'_> {
        self.room.notified()
    }

    pub(super) fn pass_room_on(&self) {
        self.room.notify_one();
    }

    pub(super) fn late_answer_ended(&self, bytes: usize) {
        let mut state = self.state.lock();
        state.late_answers -= 1;
        state.late_bytes -= bytes;
        if state.late_answers == 0 {
            // The task of the connection may read again.
            self.wake.notify_one();
        }
    }

    /// Queues a frame without a body, room or not: the task of the connection, which alone calls
    /// this, stops reading while there is none.
    pub(crate) fn reject(&self, frame: Frame) {
        self.counters.frames_out.add(1);
        self.state.lock().outbox.push(frame);
    }

    /// The longest body that the peer takes.
    pub(crate) fn max_body_bytes(&self) -> usize {
        self.state.lock().max_body_bytes
    }

    /// The longest body that is taken from the peer.
    pub(crate) fn own_max_body_bytes(&self) -> usize {
        self.max_body_bytes
    }

    pub(crate) fn ping(&self, id: u64) {
        self.state.lock().outbox.ping(id);
    }

    pub(crate) fn pong(&self, id: u64) {
        self.state.lock().outbox.pong(id);
    }

    /// Tells the peer, once, that this side begins nothing new.
    pub(crate) fn goodbye(&self) {
        self.say_goodbye(&mut self.state.lock());
    }

    fn say_goodbye(&self, state: &mut State) {
        if state.writer.is_some() && !std::mem::replace(&mut state.has_said_goodbye, true) {
            self.give(state, Frame::bare(Kind::Goodbye, 0));
        }
    }

    /// Writes a frame, or queues it and sees to it that the task knows. Returns its place.
    fn give(&self, state: &mut State, frame: Frame) -> u64 {
        self.counters.frames_out.add(1);
        if let Some(place) = self.write_directly(state, &frame) {
            return place;
        }
        let place = state.outbox.push(frame);
        self.wake_task(state);
        place
    }

    fn wake_task(&self, state: &mut State) {
        if !state.is_woken && state.writer.is_some() {
            state.is_woken = true;
            self.wake.notify_one();
        }
    }

    /// Writes a frame if nothing is before it and the last write is not too close.
    fn write_directly(&self, state: &mut State, frame: &Frame) -> Option<u64> {
        let is_free = !state.is_writing && state.batch.is_empty() && state.outbox.is_empty();
        let is_short = frame.len() <= MAX_DIRECT_BYTES && frame.parts.count() < MAX_DIRECT_SLICES;
        if !is_free || !is_short {
            return None;
        }
        let writer = Arc::clone(state.writer.as_ref()?);
        if state.wrote_at.is_some_and(|at| at.elapsed() < self.gather) {
            return None;
        }
        let mut slices = [IoSlice::new(&[]); MAX_DIRECT_SLICES];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(frame.pieces()) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        // After an error nothing has left: the frame is queued, and the task meets the error too.
        let written = writer.try_write(&slices[..count]).ok()?;
        state.wrote_at = Some(Instant::now());
        self.counters.writes.add(1);
        self.counters.bytes_out.add(written);
        let place = state.outbox.pass();
        if written < frame.len() {
            state.outbox.begun(frame.len() - written);
            state.batch.add_rest(frame, written);
            state.batch.seal();
        }
        if written < frame.len() || writer.has_unflushed() {
            self.wake_task(state);
        }
        Some(place)
    }

    /// Writes what is queued, for a turn. Only for the task of the connection.
    pub(crate) fn flush(&self) -> io::Result<(Flush, usize)> {
        let mut total = 0;
        let mut state = self.state.lock();
        let Some(writer) = state.writer.clone() else { return Ok((Flush::Done, 0)) };
        let mut batch = std::mem::take(&mut state.batch);
        for _ in 0..WRITES_PER_TURN {
            if batch.is_empty() {
                state.outbox.fill(&mut batch);
            }
            if batch.is_empty() {
                state.batch = batch;
                if total > 0 {
                    state.wrote_at = Some(Instant::now());
                }
                let flushed = writer.try_flush();
                (state.is_writing, state.is_woken) = (false, flushed.is_err());
                return blocked(flushed).map(|flush| (flush, total));
            }
            state.is_writing = true;
            drop(state);
            let written = write(&writer, &mut batch);
            state = self.state.lock();
            match written {
                Ok(bytes) => {
                    total += bytes;
                    state.outbox.written(bytes);
                    self.counters.writes.add(1);
                    self.counters.bytes_out.add(bytes);
                    if state.late_answers > 0 {
                        self.room.notify_one();
                    }
                }
                Err(error) => {
                    state.batch = batch;
                    (state.is_writing, state.is_woken) = (false, true);
                    return blocked(Err(error)).map(|flush| (flush, total));
                }
            }
        }
        state.batch = batch;
        (state.is_writing, state.is_woken) = (false, true);
        Ok((Flush::More, total))
    }

    /// Lets the task of the connection look whether it may end.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Returns when there is something to flush. Cancel safe.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }
}

/// A socket that takes nothing now is no error.
fn blocked(written: io::Result<()>) -> io::Result<Flush> {
    match written {
        Ok(()) => Ok(Flush::Done),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Flush::Blocked),
        Err(error) => Err(error),
    }
}

fn write(writer: &Writer, batch: &mut Batch) -> io::Result<usize> {
    let written = {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let count = batch.slices(&mut slices);
        writer.try_write(&slices[..count])?
    };
    if written == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    batch.advance(written);
    Ok(written)
}

impl std::fmt::Debug for Pipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipe").field("phase", &self.state.lock().phase).finish_non_exhaustive()
    }
}
