//! A connection that came in: messages and requests to the handlers of this node.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::node::Node;
use super::pipe::Pipe;
use super::pump::Side;
use crate::serving::{Answer, Begun, Failure, begin, message};
use crate::stats::Counters;
use crate::wire::{Frame, Header, Incoming, Kind, reason};
use crate::{Class, Event, Parts, Rejected, Violation};

/// The side of a connection that accepted.
pub(crate) struct AcceptSide {
    pub(crate) node: Arc<Node>,
    pub(crate) peer: u64,
    pub(crate) class: Class,
    pub(crate) pipe: Arc<Pipe>,
    pub(crate) running: Arc<Calls>,
    /// Told of an unknown service already.
    pub(crate) has_told: bool,
}

/// The calls of the peer that are under way. Dropping each of them is up to the owner.
#[derive(Default)]
pub(crate) struct Calls {
    tasks: Mutex<HashMap<u64, AbortHandle>>,
    /// The peer has said goodbye: it sends no further message or request, and reads the answers.
    is_last: AtomicBool,
}

impl Calls {
    pub(crate) fn len(&self) -> usize {
        self.tasks.lock().len()
    }

    /// Ends all of them.
    pub(crate) fn abort(&self, counters: &Counters) {
        for (_, task) in self.tasks.lock().drain() {
            counters.cancelled.add(1);
            task.abort();
        }
    }
}

impl Side for AcceptSide {
    fn frame(&mut self, frame: Incoming) -> Result<(), Violation> {
        let Header { kind, service, id, left_ms } = frame.header;
        match kind {
            Kind::Message | Kind::Request if self.running.is_last.load(Ordering::Relaxed) => {
                return Err(Violation::Kind(kind as u8));
            }
            Kind::Message => {
                self.node.counters.frames_in.add(1);
                match self.node.services.get(service) {
                    Some(handler) => message(&*handler, self.peer, self.class, frame.body),
                    None => self.tell_unknown(service),
                }
            }
            Kind::Request => {
                self.node.counters.frames_in.add(1);
                self.request(service, id, left_ms, frame)?;
            }
            Kind::Cancel => {
                if let Some(task) = self.running.tasks.lock().remove(&id) {
                    self.node.counters.cancelled.add(1);
                    task.abort();
                }
            }
            Kind::Ping => self.pipe.pong(id),
            Kind::Goodbye => self.running.is_last.store(true, Ordering::Relaxed),
            Kind::Response | Kind::Rejection | Kind::Pong => {
                return Err(Violation::Kind(kind as u8));
            }
        }
        Ok(())
    }

    fn may_end(&self) -> bool {
        self.running.is_last.load(Ordering::Relaxed) && self.running.len() == 0
    }

    fn is_pinging(&self) -> bool {
        false
    }

    fn counts_written(&self) -> bool {
        true
    }

    fn is_paused(&self) -> bool {
        self.pipe.is_congested()
    }
}

impl AcceptSide {
    fn tell_unknown(&mut self, service: u16) {
        self.node.counters.unknown_service.add(1);
        if !std::mem::replace(&mut self.has_told, true) {
            self.node.publisher.publish(Event::UnknownService { peer: self.peer, service });
        }
    }

    fn request(
        &mut self,
        service: u16,
        id: u64,
        left_ms: u32,
        frame: Incoming,
    ) -> Result<(), Violation> {
        let under_way = {
            let tasks = self.running.tasks.lock();
            if tasks.contains_key(&id) {
                return Err(Violation::DuplicateCall);
            }
            tasks.len()
        };
        let Some(handler) = self.node.services.get(service) else {
            if self.node.is_leaving() {
                // The end of a transport withdraws its services before its connections end.
                self.reject_busy(id);
                return Ok(());
            }
            self.tell_unknown(service);
            self.pipe.reject(Frame::rejection(id, reason::UNKNOWN_SERVICE));
            return Ok(());
        };
        let is_busy = under_way >= self.node.config.max_calls_in
            || self.pipe.is_congested()
            || self.node.is_leaving();
        if is_busy {
            self.reject_busy(id);
            return Ok(());
        }
        match begin(handler, self.peer, frame.body) {
            Begun::Answered(answer) => {
                let frame = encode(id, answer, self.pipe.max_body_bytes());
                if let Some(late) = self.pipe.try_answer(id, frame) {
                    self.start(id, left_ms, late.send());
                }
            }
            Begun::Pending(running) => {
                let pipe = Arc::clone(&self.pipe);
                self.start(id, left_ms, async move {
                    let frame = encode(id, running.await, pipe.max_body_bytes());
                    if let Some(late) = pipe.answer(id, frame) {
                        late.send().await;
                    }
                });
            }
        }
        Ok(())
    }

    fn reject_busy(&self, id: u64) {
        self.node.counters.busy.add(1);
        self.pipe.reject(Frame::rejection(id, reason::BUSY));
    }

    /// Runs what is left of a call, to its deadline.
    fn start(&self, id: u64, left_ms: u32, call: impl Future<Output = ()> + Send + 'static) {
        let (running, counters) = (Arc::clone(&self.running), Arc::clone(&self.node.counters));
        let pipe = Arc::clone(&self.pipe);
        // Held until the task is in the map, which it leaves at its end.
        let mut tasks = self.running.tasks.lock();
        // A task of the node, for which a shutdown waits also when the call was cancelled: a poll
        // of the handler that has begun goes on.
        let task = self.node.spawn(async move {
            let ended = timeout(Duration::from_millis(left_ms.into()), call).await;
            if running.tasks.lock().remove(&id).is_some() && ended.is_err() {
                counters.cancelled.add(1);
            }
            // Set before the connection's task last looked into the map, or seen by it there.
            if running.is_last.load(Ordering::Relaxed) {
                pipe.wake();
            }
        });
        tasks.insert(id, task);
    }
}

/// The frame of an answer; one that the peer would not take becomes a rejection.
fn encode(id: u64, answer: Answer, max_bytes: usize) -> Frame {
    let (kind, service, parts) = match answer {
        Ok(parts) => (Kind::Response, 0, parts),
        Err(Failure::Rejected(Rejected::UnknownService)) => {
            (Kind::Rejection, reason::UNKNOWN_SERVICE, Parts::default())
        }
        Err(Failure::Rejected(Rejected::Busy)) => (Kind::Rejection, reason::BUSY, Parts::default()),
        Err(Failure::Rejected(Rejected::ByHandler(why))) => {
            (Kind::Rejection, reason::REJECTED, Parts::new(why))
        }
        Err(Failure::Panicked) => (Kind::Rejection, reason::FAILED, Parts::default()),
    };
    if parts.len() > max_bytes {
        tracing::error!(target: "voussoir::net", bytes = parts.len(), "an answer is too long");
        return Frame::rejection(id, reason::ANSWER_TOO_LONG);
    }
    Frame::new(Header { kind, service, id, left_ms: 0 }, parts)
}
