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
use super::socket::{self, OpenError, Opened, Proof, Purpose, Reader};
use crate::wire::VERSION;
use crate::wire::hello::{self, Hello, Reply};
use crate::{Class, Config, DownReason, Event, HandshakeError, Violation};

/// How long a connection may take for its handshake, at least, however many others come in; unless
/// a quarter of `Config::handshake_timeout` is shorter.
const MAX_GRACE: Duration = Duration::from_millis(500);

/// After a failed `accept` (no free descriptor, usually).
const PAUSE: Duration = Duration::from_millis(20);

/// The connections that came in.
#[derive(Default)]
pub(crate) struct Arrivals {
    handshakes: Mutex<Handshakes>,
    /// A connection has left its handshake.
    left: Notify,
    standing: Mutex<HashMap<(u64, Class), Arrival>>,
}

/// The connections in their handshake, oldest first.
#[derive(Default)]
struct Handshakes {
    /// Number of the latest connection, from 1 on.
    latest: u64,
    tasks: VecDeque<PendingHandshake>,
}

/// A connection in its handshake.
struct PendingHandshake {
    id: u64,
    remote: SocketAddr,
    began: Instant,
    task: AbortHandle,
}

/// Decision about an incoming connection.
enum Entry {
    /// The connection is admitted, if need be after closing the given connection of the same
    /// address.
    Free(Option<SocketAddr>),
    /// All places are taken until then, or until one is left.
    Wait(Instant),
}

impl Handshakes {
    /// Makes room for a connection from `remote`. The place of one that has had its time goes
    /// first to others. Before that only the address that has the most is made to give one up, to
    /// an address that has at least two fewer: a flood from one address takes nothing from others,
    /// and a handshake that is slow is not ended by many new ones.
    fn make_room(&mut self, remote: SocketAddr, config: &Config, now: Instant) -> Entry {
        if self.tasks.len() < config.max_handshakes {
            return Entry::Free(None);
        }
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for greeting in &self.tasks {
            *counts.entry(greeting.remote.ip()).or_default() += 1;
        }
        let own = counts.get(&remote.ip()).copied().unwrap_or(0);
        let grace = MAX_GRACE.min(config.handshake_timeout / 4);
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

/// An accepted connection whose handshake is complete.
#[derive(Clone)]
struct Arrival {
    pipe: Arc<Pipe>,
    calls: Arc<Calls>,
    /// Number of the connection, in the order of `accept`.
    id: u64,
    /// Number of the latest connection of the same peer and class that waits for the end of this
    /// one; 0 while none does. Written under the lock of `standing`.
    successor: Arc<watch::Sender<u64>>,
    /// Closes when its last frame has been handed on.
    ended: watch::Receiver<()>,
}

impl Arrivals {
    /// Nothing is under way and nothing waits to be written.
    pub(crate) fn is_quiet(&self) -> bool {
        self.standing.lock().values().all(|one| one.calls.len() == 0 && one.pipe.is_quiet())
    }

    /// Whether no connection stands.
    pub(crate) fn is_empty(&self) -> bool {
        self.standing.lock().is_empty()
    }

    /// Tells every peer that this side takes no further requests and answers those under way.
    pub(crate) fn goodbye(&self) {
        for one in self.standing.lock().values() {
            one.pipe.goodbye();
        }
    }

    /// Gives the place among the handshakes back. False if it had been given to another one.
    fn leave_handshake(&self, id: u64) -> bool {
        let mut handshakes = self.handshakes.lock();
        let before = handshakes.tasks.iter().any(|other| other.id == id);
        handshakes.tasks.retain(|other| other.id != id);
        drop(handshakes);
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
                    () = start_handshake(&node, stream, remote) => {}
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
async fn start_handshake(node: &Arc<Node>, stream: TcpStream, remote: SocketAddr) {
    loop {
        // Registered before the look, so that no place is missed in between.
        let left = node.arrivals.left.notified();
        let until = {
            let mut handshakes = node.arrivals.handshakes.lock();
            match handshakes.make_room(remote, &node.config, Instant::now()) {
                Entry::Free(closed) => {
                    handshakes.latest += 1;
                    let id = handshakes.latest;
                    // Under the lock, so that the task finds itself in the list.
                    let task = node.spawn(accept_connection(Arc::clone(node), stream, remote, id));
                    let began = Instant::now();
                    handshakes.tasks.push_back(PendingHandshake { id, remote, began, task });
                    drop(handshakes);
                    if let Some(closed) = closed {
                        reject(node, closed, HandshakeError::TimedOut);
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

fn reject(node: &Node, remote: SocketAddr, error: HandshakeError) {
    node.counters.rejected.add(1);
    tracing::debug!(target: "voussoir::net", %remote, %error, "rejected");
    node.publisher.publish(Event::AcceptRejected { remote, error });
}

/// The whole life of a connection that came in; it ends at the latest when the transport stops.
async fn accept_connection(node: Arc<Node>, stream: TcpStream, remote: SocketAddr, id: u64) {
    let mut stop = node.stopped();
    tokio::select! {
        _ = stop.wait_for(|stopped| *stopped) => {}
        () = shake_hands_and_run(&node, stream, remote, id) => {}
    }
}

async fn shake_hands_and_run(node: &Arc<Node>, stream: TcpStream, remote: SocketAddr, id: u64) {
    let handshake = shake_hands(node, stream, remote, id).await;
    if !node.arrivals.leave_handshake(id) {
        return;
    }
    let (Opened { reader, mut writer, proof }, admitted) = match handshake {
        Ok(complete) => complete,
        Err(error) => return reject(node, remote, error),
    };
    match admitted {
        Ok((hello, version, admission)) => {
            let reply =
                reply(node, Ok(version), hello.nonce, admission.arrival.pipe.own_max_body_bytes());
            let sent = timeout(node.config.handshake_timeout, writer.write_all(&reply)).await;
            if matches!(sent, Ok(Ok(()))) {
                let opened = Opened { reader, writer, proof };
                run_connection(node, &hello, admission, opened, remote).await;
            }
        }
        Err((error, nonce)) => {
            reject(node, remote, error);
            if error != HandshakeError::Malformed {
                let reply = reply(node, Err(error), nonce, 0);
                let _ = timeout(node.config.handshake_timeout, writer.write_all(&reply)).await;
            }
        }
    }
}

/// A valid hello and the version to speak, or why it is rejected and its nonce.
type Greeting = Result<(Hello, u16), (HandshakeError, u64)>;

/// The same with a place among the connections that stand.
type Admitted = Result<(Hello, u16, Admission), (HandshakeError, u64)>;

/// The handshake of a connection up to the reply, with one deadline for all of it.
async fn shake_hands(
    node: &Arc<Node>,
    stream: TcpStream,
    remote: SocketAddr,
    id: u64,
) -> Result<(Opened, Admitted), HandshakeError> {
    let deadline = Instant::now() + node.config.handshake_timeout;
    let (opened, greeting) = greet(node, stream, remote, deadline).await?;
    let admitted = match greeting {
        Ok((hello, version)) => match timeout_at(deadline, admit(node, &hello, id)).await {
            Ok(Ok(admission)) => Ok((hello, version, admission)),
            Ok(Err(error)) => Err((error, hello.nonce)),
            Err(_) => Err((HandshakeError::TimedOut, hello.nonce)),
        },
        Err(rejection) => Err(rejection),
    };
    Ok((opened, admitted))
}

/// Makes a connection ready and reads its hello. An error has been told to the other side.
async fn greet(
    node: &Node,
    stream: TcpStream,
    remote: SocketAddr,
    deadline: Instant,
) -> Result<(Opened, Greeting), HandshakeError> {
    let tls_required = reply(node, Err(HandshakeError::TlsRequired), 0, 0);
    let purpose = Purpose::Accept(&tls_required);
    let opened = node.security.open(stream, remote, purpose, deadline).await;
    let mut opened = opened.map_err(|error| match error {
        OpenError::Io(_) => HandshakeError::Malformed,
        OpenError::TimedOut => HandshakeError::TimedOut,
        OpenError::Rejected(error) => HandshakeError::Tls(error),
    })?;
    let greeting = match timeout_at(deadline, read_hello(&mut opened.reader)).await {
        Ok(Ok(hello)) => check(node, hello, &opened.proof).map_err(|error| (error, hello.nonce)),
        Ok(Err(HelloError::Wrong(error))) => Err((error, 0)),
        Ok(Err(HelloError::Gone)) => Err((HandshakeError::Malformed, 0)),
        Err(_) => Err((HandshakeError::TimedOut, 0)),
    };
    Ok((opened, greeting))
}

fn reply(
    node: &Node,
    result: Result<u16, HandshakeError>,
    nonce: u64,
    max_body_bytes: usize,
) -> Vec<u8> {
    let reply = Reply {
        result,
        min_version: VERSION,
        max_version: VERSION,
        nonce,
        max_body_bytes: max_body_bytes as u32,
        // At most a day.
        dead_after_ms: node.config.dead_after.as_millis() as u32,
    };
    reply.encode()
}

enum HelloError {
    Wrong(HandshakeError),
    Gone,
}

impl From<io::Error> for HelloError {
    fn from(error: io::Error) -> Self {
        match socket::tls_error(&error) {
            Some(error) => Self::Wrong(HandshakeError::Tls(error)),
            None => Self::Gone,
        }
    }
}

async fn read_hello(reader: &mut Reader) -> Result<Hello, HelloError> {
    let mut prefix = [0; hello::PREFIX_BYTES];
    reader.read_exact(&mut prefix).await?;
    let length = match hello::length(&prefix) {
        Err(HandshakeError::TlsUnsupported) => {
            // What is closed with bytes unread is reset, and the peer would not learn the reason.
            let mut rest = vec![0; hello::rest_of_tls(&prefix)];
            reader.read_exact(&mut rest).await?;
            return Err(HelloError::Wrong(HandshakeError::TlsUnsupported));
        }
        length => length.map_err(HelloError::Wrong)?,
    };
    let mut rest = vec![0; length];
    reader.read_exact(&mut rest).await?;
    Hello::decode(&prefix, &rest).map_err(HelloError::Wrong)
}

/// Whether this is a peer of ours, and the version to speak with it.
fn check(node: &Node, hello: Hello, proof: &Proof) -> Result<(Hello, u16), HandshakeError> {
    proof.permits(hello.from).map_err(HandshakeError::Tls)?;
    let version = hello.version()?;
    if hello.cluster != node.config.cluster {
        Err(HandshakeError::Cluster)
    } else if hello.to != node.local {
        Err(HandshakeError::Recipient)
    } else if hello.from == node.local {
        Err(HandshakeError::SameId)
    } else if node.is_leaving() {
        Err(HandshakeError::Closing)
    } else {
        Ok((hello, version))
    }
}

/// A place among the connections that stand. Leaving it ends what the connection began.
struct Admission {
    node: Arc<Node>,
    key: (u64, Class),
    arrival: Arrival,
    /// Dropped last: says that the connection has ended.
    _ended: watch::Sender<()>,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.arrival.calls.abort(&self.node.counters);
        self.arrival.pipe.down(super::pipe::Phase::Closed);
        let mut standing = self.node.arrivals.standing.lock();
        if (standing.get(&self.key)).is_some_and(|one| one.id == self.arrival.id) {
            standing.remove(&self.key);
        }
    }
}

/// Makes room for connection `id`. An older one of the same peer and class is ended first: its
/// peer has given it up, and none of its frames may come after one of the new connection. While a
/// handler holds the older one up the new one waits, and gives up when a later one has come: the
/// peer that dialled it waits no more.
///
/// Dropping the future leaves the older connection ending.
async fn admit(node: &Arc<Node>, hello: &Hello, id: u64) -> Result<Admission, HandshakeError> {
    let key = (hello.from, hello.class);
    // Ends: no older connection is left, a later one has come, or the caller's deadline passes.
    loop {
        let older = {
            let mut standing = node.arrivals.standing.lock();
            let Some(older) = standing.get(&key).cloned() else {
                if standing.len() >= node.config.max_connections {
                    return Err(HandshakeError::TooMany);
                }
                let (ended, receiver) = watch::channel(());
                let pipe = Pipe::new(&node.config, hello.class, Arc::clone(&node.counters));
                let arrival = Arrival {
                    pipe: Arc::new(pipe),
                    calls: Arc::default(),
                    id,
                    successor: Arc::new(watch::Sender::new(0)),
                    ended: receiver,
                };
                standing.insert(key, arrival.clone());
                return Ok(Admission { node: Arc::clone(node), key, arrival, _ended: ended });
            };
            if older.id.max(*older.successor.borrow()) > id {
                return Err(HandshakeError::Superseded);
            }
            older.successor.send_replace(id);
            older
        };
        let mut later = older.successor.subscribe();
        let mut ended = older.ended;
        tokio::select! {
            biased;
            _ = later.wait_for(|latest| *latest > id) => return Err(HandshakeError::Superseded),
            // An error is what is waited for: the sender is gone.
            _ = ended.changed() => {}
        }
    }
}

/// Runs a connection from its handshake to its end.
async fn run_connection(
    node: &Arc<Node>,
    hello: &Hello,
    admission: Admission,
    opened: Opened,
    remote: SocketAddr,
) {
    let (peer, class) = (hello.from, hello.class);
    let Arrival { pipe, calls, successor, .. } = admission.arrival.clone();
    let Opened { reader, writer, mut proof } = opened;
    let writer = Arc::new(writer);
    node.counters.accepted.add(1);
    pipe.up(Arc::clone(&writer), pipe.own_max_body_bytes().min(hello.max_body_bytes as usize));
    if node.is_leaving() {
        // Its shutdown may have said goodbye to all others before this one stood.
        pipe.goodbye();
    }
    node.poke(peer);
    let mut side = AcceptSide {
        node: Arc::clone(node),
        peer,
        class,
        pipe: Arc::clone(&pipe),
        running: calls,
        has_told: false,
    };
    let mut later = successor.subscribe();
    let reason = tokio::select! {
        _ = later.wait_for(|latest| *latest > 0) => DownReason::Closed,
        error = proof.revoked() => DownReason::Revoked(error),
        reason = pump::run(reader, &writer, &pipe, &mut side, node.pump_context()) => reason,
    };
    drop(admission);
    tracing::debug!(target: "voussoir::net", peer, ?class, %reason, "a peer's connection ended");
    let violation = match reason {
        DownReason::Violation(violation) => violation,
        DownReason::Silent => Violation::Silent,
        DownReason::Revoked(error) => {
            node.counters.revoked.add(1);
            return node.publisher.publish(Event::Revoked { peer, remote, error });
        }
        DownReason::Overloaded => {
            node.counters.overloaded.add(1);
            return node.publisher.publish(Event::Overloaded { peer, remote });
        }
        _ => return,
    };
    node.counters.violations.add(1);
    node.publisher.publish(Event::Violation { peer, remote, violation });
}
