//! Receiving a snapshot, and the transport's side of a node.

use std::future::{Future, poll_fn};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use async_trait::async_trait;
use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore};

use super::shared::{Event, NEVER, Shared, count};
use crate::core::Gate;
use crate::message::Message;
use crate::store::{LogStore, SnapshotName, SnapshotWriter};
use crate::transport::{Inbox, SnapshotAnswer, SnapshotPart};

/// Parts of snapshots that may wait without their callers, each of up to a chunk's length.
const MAX_ORPHANS: usize = 64;

/// What a transport hands over to.
pub(crate) struct NodeInbox {
    shared: Arc<Shared>,
    log: Arc<dyn LogStore>,
    /// Asked before anything is kept or staged; the core asks it again, about all values.
    gate: Gate,
    parts: Staging,
}

/// The parts of snapshots that come in.
pub(crate) struct Parts {
    /// Locked in the order in which parts arrive, and held until a part is dealt with.
    incoming: Arc<Mutex<Option<Incoming>>>,
    /// A permit for each part that is dealt with whether its caller waits or not.
    orphans: Arc<Semaphore>,
}

impl Parts {
    fn new() -> Self {
        Self { incoming: Arc::default(), orphans: Arc::new(Semaphore::new(MAX_ORPHANS)) }
    }
}

/// What there is of a snapshot that is coming in, for those who give it up. Made with the first
/// part of one: most groups never receive any.
pub(crate) type Staging = Arc<OnceLock<Parts>>;

/// A snapshot that is coming in.
struct Incoming {
    from: u64,
    term: u64,
    name: SnapshotName,
    chunks: u64,
    /// The chunk that is missing first.
    next: u64,
    writer: Box<dyn SnapshotWriter>,
}

impl NodeInbox {
    pub(crate) fn new(gate: Gate, shared: Arc<Shared>, log: Arc<dyn LogStore>) -> Self {
        Self { shared, log, gate, parts: Arc::default() }
    }

    pub(crate) fn staging(&self) -> Staging {
        Arc::clone(&self.parts)
    }
}

/// Gives the snapshot up that is coming in, where the log has come as far without it: what has
/// arrived would stay on the disk until the next one. Where the room is short and `leader` leads,
/// one of somebody else is given up too: nobody sends the rest, and what has arrived takes the room
/// of the entries that come in its place. Does not wait for a part that is being stored: to be
/// called in each turn.
pub(crate) fn give_up(staging: &Staging, shared: &Shared, commit: u64, leader: Option<u64>) {
    let staged = shared.staged.load(Ordering::Acquire);
    if (staged <= commit || leader.is_some() && staged != NEVER)
        && let Some(Ok(mut incoming)) = staging.get().map(|parts| parts.incoming.try_lock())
    {
        // Of a later term: the driver has not heard of that leader yet.
        let term = shared.term.load(Ordering::Acquire);
        let goes_on = |it: &Incoming| Some(it.from) == leader || it.term > term;
        if staged <= commit || !incoming.as_ref().is_some_and(goes_on) {
            shared.staged.store(NEVER, Ordering::Release);
            *incoming = None;
        }
    }
}

#[async_trait]
impl Inbox for NodeInbox {
    fn message(&self, from: u64, message: Message) {
        // The room for waiting messages is for voters alone.
        if self.gate.sender(from).is_err() || matches!(message, Message::Node(_)) {
            return count(&self.shared.counters.messages_rejected, 1);
        }
        self.shared.deliver(from, message);
    }

    fn unreachable(&self, peer: u64) {
        if self.gate.sender(peer).is_ok() {
            self.shared.tell(Event::Unreachable { peer });
        }
    }

    async fn snapshot(&self, from: u64, part: SnapshotPart) -> SnapshotAnswer {
        let passed = match &part {
            SnapshotPart::Open { name, term, .. } => self.gate.snapshot(from, *term, &name.meta),
            SnapshotPart::Chunk { .. } | SnapshotPart::Close { .. } => self.gate.sender(from),
        };
        if passed.is_err() {
            count(&self.shared.counters.snapshots_rejected, 1);
            return SnapshotAnswer::Rejected;
        }
        let at_work = Receiving { shared: Arc::clone(&self.shared), log: Arc::clone(&self.log) };
        let parts = self.parts.get_or_init(Parts::new);
        let mut lock = Box::pin(Arc::clone(&parts.incoming).lock_owned());
        // On a task of its own: the transport drops this future when the sender gives up or the
        // connection breaks. A half-written chunk would cost all that came before it, and a chunk
        // that waits behind another one has arrived and need not be sent again.
        let task = match Arc::clone(&parts.orphans).try_acquire_owned() {
            Ok(permit) => {
                // The place in the queue is taken here, in the order of arrival.
                let first = poll_fn(|cx| Poll::Ready(lock.as_mut().poll(cx))).await;
                tokio::spawn(async move {
                    let _permit = permit;
                    let guard = match first {
                        Poll::Ready(guard) => guard,
                        Poll::Pending => lock.await,
                    };
                    at_work.part(guard, from, part).await
                })
            }
            Err(_) => tokio::spawn(at_work.part(lock.await, from, part)),
        };
        task.await.unwrap_or(SnapshotAnswer::Rejected)
    }
}

struct Receiving {
    shared: Arc<Shared>,
    log: Arc<dyn LogStore>,
}

type Guard = OwnedMutexGuard<Option<Incoming>>;

impl Receiving {
    async fn part(self, mut incoming: Guard, from: u64, part: SnapshotPart) -> SnapshotAnswer {
        if self.shared.stopped().is_some() {
            *incoming = None;
            return SnapshotAnswer::Rejected;
        }
        match part {
            SnapshotPart::Open { term, name, chunks } => {
                self.open(incoming, Opened { from, term, name, chunks }).await
            }
            SnapshotPart::Chunk { identity, number, data } => {
                let is_of = |it: &mut Incoming| it.name.identity == identity && it.from == from;
                // Taken out while it is written to: a store that panics leaves nothing behind that
                // later chunks could be added to.
                let Some(mut current) = incoming.take_if(is_of) else {
                    return SnapshotAnswer::Rejected;
                };
                if number == current.next && number < current.chunks {
                    if let Err(error) = current.writer.append(data).await {
                        tracing::warn!(target: "voussoir::raft", %error, "no room for a chunk");
                        self.shared.doubt(&*self.log);
                        return SnapshotAnswer::Rejected;
                    }
                    current.next += 1;
                }
                let answer = SnapshotAnswer::Next { number: current.next };
                *incoming = Some(current);
                answer
            }
            SnapshotPart::Close { identity } => self.close(incoming, from, identity).await,
        }
    }

    async fn open(&self, mut incoming: Guard, opened: Opened) -> SnapshotAnswer {
        let Opened { from, term, name, chunks } = opened;
        if term < self.shared.term.load(Ordering::Acquire) {
            return SnapshotAnswer::Rejected;
        }
        // In this order: the driver commits what it takes from here before it takes it.
        if let Some(waiting) = &*self.shared.handed_over.lock() {
            // Durable here already, and the core is about to decide.
            let same = waiting.identity == name.identity;
            return if same { SnapshotAnswer::Done } else { SnapshotAnswer::Rejected };
        }
        if name.meta.index <= self.shared.commit.load(Ordering::Acquire) {
            return SnapshotAnswer::Done;
        }
        if let Some(current) = incoming.as_mut()
            && current.name == name
            && current.chunks == chunks
        {
            (current.from, current.term, current.name) = (from, term, name);
            return SnapshotAnswer::Next { number: current.next };
        }
        *incoming = None;
        self.shared.staged.store(NEVER, Ordering::Release);
        match self.log.stage(&name).await {
            Ok(writer) => {
                self.shared.staged.store(name.meta.index, Ordering::Release);
                *incoming = Some(Incoming { from, term, name, chunks, next: 0, writer });
                SnapshotAnswer::Next { number: 0 }
            }
            Err(error) => {
                tracing::warn!(target: "voussoir::raft", %error, "no room for a snapshot");
                self.shared.doubt(&*self.log);
                SnapshotAnswer::Rejected
            }
        }
    }

    async fn close(&self, mut incoming: Guard, sender: u64, identity: u64) -> SnapshotAnswer {
        let is_of = |it: &Incoming| it.name.identity == identity && it.from == sender;
        let complete = |it: &mut Incoming| is_of(it) && it.next == it.chunks;
        let Some(Incoming { from, term, name, writer, .. }) = incoming.take_if(complete) else {
            return match incoming.as_ref().filter(|it| is_of(it)) {
                Some(current) => SnapshotAnswer::Next { number: current.next },
                None => SnapshotAnswer::Rejected,
            };
        };
        if let Err(error) = writer.finish().await {
            tracing::warn!(target: "voussoir::raft", %error, "a snapshot could not be stored");
            self.shared.doubt(&*self.log);
            return SnapshotAnswer::Rejected;
        }
        count(&self.shared.counters.snapshots_received, 1);
        let meta = Box::new(name.meta.clone());
        *self.shared.handed_over.lock() = Some(Box::new(name));
        self.shared.tell(Event::SnapshotReceived { from, term, meta });
        SnapshotAnswer::Done
    }
}

/// What [`SnapshotPart::Open`] said.
struct Opened {
    from: u64,
    term: u64,
    name: SnapshotName,
    chunks: u64,
}
