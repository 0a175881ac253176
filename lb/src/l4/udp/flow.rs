//! One flow: a client, its endpoint, and the socket between this process and the endpoint.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::time::sleep_until;

use super::{MAX_DATAGRAM, Shared};
use crate::endpoint::{Outcome, Pick};
use crate::l4::stats::add;

/// Answers that a flow forwards before others have their turn.
const ANSWERS_MAX: usize = 64;

/// The addresses that tell a flow from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    pub(super) client: SocketAddr,
    /// Of the socket that the client sends to: each may be the place of another service.
    pub(super) local: SocketAddr,
}

#[derive(Debug)]
pub(super) struct Flow {
    upstream: UdpSocket,
    ends: Ends,
    /// Time of the last datagram in either direction, in ns.
    last_activity: AtomicU64,
    /// Datagrams for the endpoint that its socket had no room for.
    queue: Mutex<VecDeque<Box<[u8]>>>,
    is_ended: AtomicBool,
    /// Whether sending met an error about the endpoint.
    is_broken: AtomicBool,
    /// Notified when one of the three has changed.
    changed: Notify,
}

impl Flow {
    pub(super) fn new(upstream: UdpSocket, ends: Ends, now: u64) -> Self {
        Self {
            upstream,
            ends,
            last_activity: AtomicU64::new(now),
            queue: Mutex::default(),
            is_ended: AtomicBool::new(false),
            is_broken: AtomicBool::new(false),
            changed: Notify::new(),
        }
    }

    pub(super) fn ends(&self) -> Ends {
        self.ends
    }

    pub(super) fn last_activity(&self) -> u64 {
        self.last_activity.load(Relaxed)
    }

    pub(super) fn touch(&self, now: u64) {
        self.last_activity.fetch_max(now, Relaxed);
    }

    /// Ends the flow's task.
    pub(super) fn end(&self) {
        self.is_ended.store(true, Relaxed);
        self.changed.notify_one();
    }

    /// Sends a datagram to the endpoint, after those that wait. False if it had to be dropped.
    pub(super) fn send(&self, datagram: &[u8], max_queued: usize) -> bool {
        let mut queue = self.queue.lock();
        if queue.is_empty() {
            match self.upstream.try_send(datagram) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return self.is_sent(result),
            }
        }
        if queue.len() >= max_queued {
            return false;
        }
        queue.push_back(datagram.into());
        drop(queue);
        self.changed.notify_one();
        true
    }

    /// Sends what waits, until the socket is full. Returns how many had to be dropped.
    fn send_queued(&self) -> u64 {
        let mut dropped = 0;
        let mut queue = self.queue.lock();
        // Ends: each round takes one from the queue.
        while let Some(datagram) = queue.front() {
            match self.upstream.try_send(datagram) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                result => dropped += u64::from(!self.is_sent(result)),
            }
            queue.pop_front();
        }
        dropped
    }

    /// Takes the error that an ICMP message left at the socket. It does not make the socket
    /// readable.
    fn has_failed(&self) -> bool {
        let error = self.upstream.take_error();
        // Forgets the readiness, which a send may have taken the error of.
        let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        let _ = self.upstream.try_io(Interest::ERROR, nothing);
        matches!(error, Ok(Some(error)) if is_about_endpoint(&error))
    }

    fn is_sent(&self, result: io::Result<usize>) -> bool {
        if result.as_ref().is_err_and(is_about_endpoint) {
            self.is_broken.store(true, Relaxed);
            self.changed.notify_one();
        }
        result.is_ok()
    }
}

/// Whether an ICMP message told the error. Others, such as "message too long", concern one
/// datagram.
fn is_about_endpoint(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable};
    matches!(
        error.kind(),
        ConnectionRefused | ConnectionReset | HostUnreachable | NetworkUnreachable
    )
}

/// How a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Idle,
    Broken,
    /// Evicted, replaced, or at the end of a drain.
    Ended,
}

thread_local! {
    /// An answer on its way to its client. Used within one call only.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Gives the flow's place back, also when its task is aborted.
struct Registration {
    shared: Arc<Shared>,
    flow: Arc<Flow>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.flows.lock().remove(&self.flow);
        self.shared.tasks.fetch_sub(1, Relaxed);
        self.shared.released.notify_waiters();
    }
}

/// Begins the task of a flow.
pub(super) fn start(shared: &Arc<Shared>, flow: Arc<Flow>, socket: Arc<UdpSocket>, mut pick: Pick) {
    shared.tasks.fetch_add(1, Relaxed);
    let registration = Registration { shared: Arc::clone(shared), flow };
    tokio::spawn(async move {
        let Registration { shared, flow } = &registration;
        let end = exchange(shared, flow, &socket, &mut pick).await;
        if end == End::Broken {
            pick.record(shared.now(), Outcome::Failure);
        }
        let (client, endpoint) = (flow.ends.client, pick.endpoint().name());
        tracing::debug!(target: "voussoir::lb", %client, endpoint, ?end, "flow ended");
        // Before the place is given back: who waits for that finds the endpoint released.
        drop(pick);
        let counter = match end {
            End::Idle => Some(&shared.counters.idle_timeouts),
            End::Broken => Some(&shared.counters.upstream_errors),
            End::Ended => None,
        };
        // Whoever takes a flow out counts how it ended: one that is evicted, or ended by a drain,
        // at the moment when it is idle is counted once.
        let mut flows = shared.flows.lock();
        if flows.remove(flow) {
            counter.into_iter().for_each(add);
        }
    });
}

/// Sends answers to the client, and what waits to the endpoint, until the flow ends.
async fn exchange(shared: &Shared, flow: &Flow, socket: &UdpSocket, pick: &mut Pick) -> End {
    let idle_nanos = shared.config.idle_timeout.as_nanos() as u64;
    let mut idle = std::pin::pin!(sleep_until(shared.epoch + deadline(flow, idle_nanos)));
    // Ends: when the flow is idle, broken or told to.
    loop {
        if flow.is_ended.load(Relaxed) {
            return End::Ended;
        }
        if flow.is_broken.load(Relaxed) {
            return End::Broken;
        }
        let is_waiting = !flow.queue.lock().is_empty();
        tokio::select! {
            () = flow.changed.notified() => {}
            ready = flow.upstream.ready(Interest::READABLE | Interest::ERROR) => {
                let Ok(ready) = ready else { return End::Broken };
                if ready.is_error() && flow.has_failed() {
                    return End::Broken;
                }
                if answer(shared, flow, socket, pick).await.is_err() {
                    return End::Broken;
                }
            }
            _ = flow.upstream.writable(), if is_waiting => {
                shared.counters.dropped.fetch_add(flow.send_queued(), Relaxed);
            }
            () = &mut idle => {
                let at = deadline(flow, idle_nanos);
                if at <= Duration::from_nanos(shared.elapsed()) {
                    return End::Idle;
                }
                idle.as_mut().reset(shared.epoch + at);
            }
        }
    }
}

/// When the flow will have been idle for so long, since the epoch.
fn deadline(flow: &Flow, idle_nanos: u64) -> Duration {
    Duration::from_nanos(flow.last_activity().saturating_add(idle_nanos))
}

/// What became of an answer.
enum Answer {
    /// None has arrived.
    None,
    Sent,
    /// The socket to the clients is full.
    Blocked(Vec<u8>),
}

/// Sends the answers that have arrived to the client.
async fn answer(
    shared: &Shared,
    flow: &Flow,
    socket: &UdpSocket,
    pick: &mut Pick,
) -> Result<(), io::Error> {
    // Ends: when the socket is empty, or after so many that others must have their turn.
    for _ in 0..ANSWERS_MAX {
        let answer = SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(MAX_DATAGRAM, 0);
            answer_one(shared, flow, socket, scratch)
        })?;
        if matches!(answer, Answer::None) {
            return Ok(());
        }
        // Recorded once; the latency is that of the first answer.
        pick.record(shared.now(), Outcome::Success);
        if let Answer::Blocked(datagram) = answer {
            // The answers behind it wait in the socket of the flow.
            let sent = socket.send_to(&datagram, flow.ends.client).await;
            count_answer(shared, sent.is_ok());
        }
    }
    Ok(())
}

fn answer_one(
    shared: &Shared,
    flow: &Flow,
    socket: &UdpSocket,
    scratch: &mut [u8],
) -> io::Result<Answer> {
    let len = match flow.upstream.try_recv(scratch) {
        Ok(len) => len,
        Err(error) if is_about_endpoint(&error) => return Err(error),
        Err(_) => return Ok(Answer::None),
    };
    flow.touch(shared.elapsed());
    match socket.try_send_to(&scratch[..len], flow.ends.client) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Ok(Answer::Blocked(scratch[..len].to_vec()))
        }
        sent => {
            count_answer(shared, sent.is_ok());
            Ok(Answer::Sent)
        }
    }
}

fn count_answer(shared: &Shared, is_sent: bool) {
    let counters = &shared.counters;
    add(if is_sent { &counters.sent_to_client } else { &counters.answers_dropped });
}
