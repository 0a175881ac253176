//! Connections that come in: their handshakes, and which of them stand.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::node::Node;
use super::pipe::Pipe;
use super::pump;
use super::serve::{AcceptSide, Calls};
use super::socket::{Reader, Writer, split};
use crate::wire::VERSION;
use crate::wire::hello::{self, Hello, Reply};
use crate::{Class, Config, DownReason, Event, Refusal, Violation};

/// How long a connection may take for its handshake, at least, however many others come in; unless
/// a quarter of `Config::handshake_timeout` is shorter.
const GRACE_MAX: Duration = Duration::from_millis(500);

/// After a failed `accept` (no free descriptor, usually).
const PAUSE: Duration = Duration::from_millis(20);

/// The connections that came in.
#[derive(Default)]
pub(crate) struct Arrivals {
    shaking: Mutex<Shaking>,
    /// A connection has left its handshake.
    left: Notify,
    standing: Mutex<HashMap<(u64, Class), Arrival>>,
}

/// The connections in their handshake, oldest first.
#[derive(Default)]
struct Shaking {
    next: u64,
    tasks: VecDeque<Greeting>,
}

/// A connection in its handshake.
struct Greeting {
    id: u64,
    remote: SocketAddr,
    began: Instant,
    task: AbortHandle,
}

/// What is done with a connection that comes in.
enum Entry {
    /// There is a place, perhaps because a connection from this address was closed.
    Free(Option<SocketAddr>),
    /// All places are taken until then, or until one is left.
    Wait(Instant),
}

impl Shaking {
    /// Makes room for a connection from `remote`. The place of one that has had its time goes
    /// first to others. Before that only the address that has the most is made to give one up, to
    /// an address that has at least two fewer: a flood from one address takes nothing from others,
    /// and a handshake that is slow is not ended by many new ones.
    fn make_room(&mut self, remote: SocketAddr, config: &Config, now: Instant) -> Entry {
        if self.tasks.len() < config.handshakes_max {
            return Entry::Free(None);
        }
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for greeting in &self.tasks {
            *counts.entry(greeting.remote.ip()).or_default() += 1;
        }
        let own = counts.get(&remote.ip()).copied().unwrap_or(0);
        let grace = GRACE_MAX.min(config.handshake_timeout / 4);
        let busiest = counts.into_iter().max_by_key(|&(_, count)| count);
        let of_busiest = busiest
            .filter(|&(_, count)| count > own + 1)
            .and_then(|(ip, _)| self.tasks.iter().position(|greeting| greeting.remote.ip() == ip));
        let had_its_time =
            self.tasks.front().is_some_and(|oldest| now.duration_since(oldest.began) >= grace);
        let victim = if had_its_time { Some(0) } else { of_busiest };
        match victim.and_then(|at| self.tasks.remove(at)) {
            Some(greeting) => {
                greeting.task.abort();
                Entry::Free(Some(greeting.remote))
            }
            None => {
                let oldest = self.tasks.front().map_or(now, |oldest| oldest.began);
                Entry::Wait(oldest + grace)
            }
        }
    }
}

/// One that stands.
#[derive(Clone)]
struct Arrival {
    pipe: Arc<Pipe>,
    calls: Arc<Calls>,
    stop: Arc<Notify>,
    /// Closes when its last frame has been handed on.
    ended: watch::Receiver<()>,
}

impl Arrivals {
    /// Nothing is under way and nothing waits to be written.
    pub(crate) fn is_quiet(&self) -> bool {
        self.standing.lock().values().all(|one| one.calls.len() == 0 && one.pipe.is_quiet())
    }

    /// Tells every peer that this side ends.
    pub(crate) fn goodbye(&self) {
        for one in self.standing.lock().values() {
            one.pipe.goodbye();
        }
    }

    fn leave_handshake(&self, id: u64) -> bool {
        let mut shaking = self.shaking.lock();
        let before = shaking.tasks.iter().any(|other| other.id == id);
        shaking.tasks.retain(|other| other.id != id);
        drop(shaking);
        self.left.notify_one();
        before
    }
}

/// Accepts connections until the transport stops.
pub(crate) async fn listen(node: Arc<Node>, listener: TcpListener) {
    let mut stop = node.stopped();
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stopped| *stopped) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, remote)) => {
                tokio::select! {
                    _ = stop.wait_for(|stopped| *stopped) => return,
                    () = arrive(&node, stream, remote) => {}
                }
            }
            Err(error) => {
                tracing::warn!(target: "voussoir::net", %error, "accept");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Starts the task of a connection, when there is a place for its handshake.
async fn arrive(node: &Arc<Node>, stream: TcpStream, remote: SocketAddr) {
    loop {
        // Registered before the look, so that no place is missed in between.
        let left = node.arrivals.left.notified();
        let until = {
            let mut shaking = node.arrivals.shaking.lock();
            match shaking.make_room(remote, &node.config, Instant::now()) {
                Entry::Free(closed) => {
                    let id = shaking.next;
                    shaking.next += 1;
                    // Under the lock, so that the task finds itself in the list.
                    let task = node.spawn(greet(Arc::clone(node), stream, remote, id));
                    let began = Instant::now();
                    shaking.tasks.push_back(Greeting { id, remote, began, task });
                    drop(shaking);
                    if let Some(closed) = closed {
                        refused(node, closed, Refusal::TimedOut);
                    }
                    return;
                }
                Entry::Wait(until) => until,
            }
        };
        // Ends: the oldest handshake has had its time then.
        let _ = timeout_at(until, left).await;
    }
}

fn refused(node: &Node, remote: SocketAddr, refusal: Refusal) {
    node.counters.refused.add(1);
    tracing::debug!(target: "voussoir::net", %remote, %refusal, "refused");
    node.publisher.publish(Event::Refused { remote, refusal });
}

/// The whole life of a connection that came in.
async fn greet(node: Arc<Node>, stream: TcpStream, remote: SocketAddr, id: u64) {
    let mut stop = node.stopped();
    let Ok((mut reader, mut writer)) = split(stream) else { return };
    let heard = tokio::select! {
        _ = stop.wait_for(|stopped| *stopped) => return,
        heard = timeout(node.config.handshake_timeout, hear(&mut reader)) => heard,
    };
    let hello = match heard {
        Ok(Ok(hello)) => check(&node, hello).map_err(|refusal| (refusal, hello.nonce)),
        Ok(Err(Unheard::Wrong(refusal))) => Err((refusal, 0)),
        Ok(Err(Unheard::Gone)) => Err((Refusal::Malformed, 0)),
        Err(_) => Err((Refusal::TimedOut, 0)),
    };
    if !node.arrivals.leave_handshake(id) {
        return;
    }
    let admitted = match hello {
        Ok((hello, version)) => admit(&node, &hello)
            .await
            .map_err(|refusal| (refusal, hello.nonce))
            .map(|arrival| (hello, version, arrival)),
        Err(refusal) => Err(refusal),
    };
    match admitted {
        Ok((hello, version, place)) => {
            let reply = reply(Ok(version), hello.nonce, place.arrival.pipe.own_body_bytes_max());
            let sent = timeout(node.config.handshake_timeout, writer.write_all(&reply)).await;
            if matches!(sent, Ok(Ok(()))) {
                stand(&node, &hello, place, reader, writer, remote).await;
            }
        }
        Err((refusal, nonce)) => {
            refused(&node, remote, refusal);
            if refusal != Refusal::Malformed {
                let reply = reply(Err(refusal), nonce, 0);
                let _ = timeout(node.config.handshake_timeout, writer.write_all(&reply)).await;
            }
        }
    }
}

fn reply(result: Result<u16, Refusal>, nonce: u64, body_bytes_max: usize) -> Vec<u8> {
    let body_bytes_max = body_bytes_max as u32;
    Reply { result, version_min: VERSION, version_max: VERSION, nonce, body_bytes_max }.encode()
}

enum Unheard {
    Wrong(Refusal),
    Gone,
}

impl From<io::Error> for Unheard {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

async fn hear(reader: &mut Reader) -> Result<Hello, Unheard> {
    let mut prefix = [0; hello::PREFIX_BYTES];
    reader.read_exact(&mut prefix).await?;
    let mut rest = vec![0; hello::length(&prefix).map_err(Unheard::Wrong)?];
    reader.read_exact(&mut rest).await?;
    Hello::decode(&prefix, &rest).map_err(Unheard::Wrong)
}

/// Whether this is a peer of ours, and the version to speak with it.
fn check(node: &Node, hello: Hello) -> Result<(Hello, u16), Refusal> {
    let version = hello.version()?;
    if hello.cluster != node.config.cluster {
        Err(Refusal::Cluster)
    } else if hello.to != node.local {
        Err(Refusal::Recipient)
    } else if hello.from == node.local {
        Err(Refusal::SameId)
    } else if node.is_closing() {
        Err(Refusal::Closing)
    } else {
        Ok((hello, version))
    }
}

/// A place among the connections that stand. Leaving it ends what the connection began.
struct Place {
    node: Arc<Node>,
    key: (u64, Class),
    arrival: Arrival,
    /// Dropped last: says that the connection has ended.
    _ended: watch::Sender<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.arrival.calls.abort(&self.node.counters);
        self.arrival.pipe.down(super::pipe::Phase::Closed);
        let mut standing = self.node.arrivals.standing.lock();
        if (standing.get(&self.key)).is_some_and(|one| Arc::ptr_eq(&one.stop, &self.arrival.stop)) {
            standing.remove(&self.key);
        }
    }
}

/// Makes room for a connection of a peer. An older one of the same class is ended first: its
/// peer has given it up, and none of its frames may come after one of the new connection.
async fn admit(node: &Arc<Node>, hello: &Hello) -> Result<Place, Refusal> {
    let key = (hello.from, hello.class);
    loop {
        let older = {
            let mut standing = node.arrivals.standing.lock();
            let Some(older) = standing.get(&key).cloned() else {
                if standing.len() >= node.config.connections_max {
                    return Err(Refusal::TooMany);
                }
                let (ended, receiver) = watch::channel(());
                let pipe = Pipe::new(&node.config, hello.class, Arc::clone(&node.counters));
                let arrival = Arrival {
                    pipe: Arc::new(pipe),
                    calls: Arc::default(),
                    stop: Arc::default(),
                    ended: receiver,
                };
                standing.insert(key, arrival.clone());
                return Ok(Place { node: Arc::clone(node), key, arrival, _ended: ended });
            };
            older
        };
        older.stop.notify_one();
        let mut ended = older.ended;
        // An error is what is waited for: the sender is gone.
        while ended.changed().await.is_ok() {}
    }
}

/// Runs a connection from its handshake to its end.
async fn stand(
    node: &Arc<Node>,
    hello: &Hello,
    place: Place,
    reader: Reader,
    writer: Writer,
    remote: SocketAddr,
) {
    let (peer, class) = (hello.from, hello.class);
    let Arrival { pipe, calls, stop, .. } = place.arrival.clone();
    let writer = Arc::new(writer);
    node.counters.accepted.add(1);
    pipe.up(Arc::clone(&writer), pipe.own_body_bytes_max().min(hello.body_bytes_max as usize));
    node.poke(peer);
    let mut side = AcceptSide {
        node: Arc::clone(node),
        peer,
        class,
        pipe: Arc::clone(&pipe),
        running: calls,
        has_told: false,
    };
    let mut stopped = node.stopped();
    let reason = tokio::select! {
        _ = stopped.wait_for(|stopped| *stopped) => DownReason::Local,
        () = stop.notified() => DownReason::Closed,
        reason = pump::run(reader, &writer, &pipe, &mut side, node.rules()) => reason,
    };
    drop(place);
    tracing::debug!(target: "voussoir::net", peer, ?class, %reason, "a peer's connection ended");
    let violation = match reason {
        DownReason::Violation(violation) => violation,
        DownReason::Silent => Violation::Silent,
        DownReason::Overloaded => {
            node.counters.overloaded.add(1);
            return node.publisher.publish(Event::Overloaded { peer, remote });
        }
        _ => return,
    };
    node.counters.violations.add(1);
    node.publisher.publish(Event::Violation { peer, remote, violation });
}
