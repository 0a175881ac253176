//! This node's own connection to a peer: dialled, run, and dialled again.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};

use super::node::{Node, ResolverPanicked};
use super::pipe::{Phase, Pipe};
use super::pump::{self, Side};
use super::socket::{OpenError, Opened, Purpose};
use crate::core::backoff::Backoff;
use crate::wire::hello::{self, Hello, Reply};
use crate::wire::{Incoming, Kind, VERSION, reason};
use crate::{CallError, Class, DownReason, Event, HandshakeError, Lost, Rejected, Violation};

pub(crate) struct Link {
    pub(crate) peer: u64,
    pub(crate) class: Class,
    pub(crate) pipe: Arc<Pipe>,
    /// Ends the pause before the next attempt to connect.
    pub(crate) poke: Notify,
}

impl Link {
    pub(crate) fn new(node: &Node, peer: u64, class: Class) -> Self {
        let pipe = Pipe::new(&node.config, class, Arc::clone(&node.counters));
        Self { peer, class, pipe: Arc::new(pipe), poke: Notify::new() }
    }

    /// The link that follows one whose peer has said goodbye. It takes nothing before it stands,
    /// as after any end of a connection.
    pub(crate) fn after(node: &Node, link: &Self) -> Self {
        let next = Self::new(node, link.peer, link.class);
        next.pipe.down(Phase::Down);
        next
    }
}

/// Keeps a link connected, until its peer is unknown or the transport stops.
pub(crate) async fn run(node: Arc<Node>, mut link: Arc<Link>) {
    let mut stop = node.stopped();
    tokio::select! {
        _ = stop.wait_for(|stopped| *stopped) => link.pipe.down(Phase::Closed),
        () = reconnect_loop(&node, &mut link) => {
            node.unlink(&link);
            link.pipe.down(Phase::Down);
        }
    }
}

async fn reconnect_loop(node: &Arc<Node>, link: &mut Arc<Link>) {
    let of_link = Rng::with_seed(node.local ^ link.peer.rotate_left(32)).u64(..);
    let seed = node.config.draw_seed() ^ of_link;
    let mut backoff = Backoff::new(node.config.min_backoff, node.config.max_backoff, seed);
    let mut nonces = Rng::with_seed(seed ^ u64::from(link.class == Class::Bulk));
    let mut last_error = None;
    let mut leaving: Option<AbortHandle> = None;
    // Ends when the peer is unknown, or when this node closes.
    loop {
        let address = match node.resolve(link.peer) {
            Ok(Some(address)) => Ok(address),
            Ok(None) => return,
            Err(ResolverPanicked) => Err(DialError::ResolverPanicked),
        };
        let hello = hello_for(node, link, nonces.u64(..));
        let attempt = async {
            let address = address?;
            let stream = TcpStream::connect(address);
            let stream = timeout(node.config.dial_timeout, stream).await??;
            let deadline = Instant::now() + node.config.handshake_timeout;
            let purpose = Purpose::Dial { peer: link.peer };
            let opened = node.security.open(stream, address, purpose, deadline).await?;
            timeout_at(deadline, handshake(opened, &hello)).await?
        };
        match attempt.await {
            Ok(connected) => {
                let began = Instant::now();
                last_error = None;
                // Of this connection alone: one may end in the moment of its goodbye.
                let left = Arc::new(Notify::new());
                let (of_node, of_link) = (Arc::clone(node), Arc::clone(link));
                let connection = run_connection(of_node, of_link, connected, Arc::clone(&left));
                if let Some(rest) = until_goodbye(node, link, connection, &left).await
                    && let Some(older) = leaving.replace(rest)
                {
                    // One at a time: a peer that says goodbye and does not go holds no more.
                    older.abort();
                }
                // A connection that breaks at once does not reset the backoff.
                if began.elapsed() >= node.config.max_backoff {
                    backoff.reset();
                }
            }
            Err(error) => {
                node.counters.dial_failed.add(1);
                link.pipe.down(Phase::Down);
                publish_rejection(node, link, &error, &mut last_error);
            }
        }
        pause(link, backoff.next(), node.config.min_backoff).await;
        if node.is_closing() {
            // Nothing new comes, and what there was is gone with the connection.
            return;
        }
    }
}

/// Runs a connection to its end; or until its peer says goodbye: then a task of its own waits for
/// the answers that are under way, and `link` becomes the one that follows.
async fn until_goodbye(
    node: &Arc<Node>,
    link: &mut Arc<Link>,
    connection: impl Future<Output = ()> + Send + 'static,
    left: &Notify,
) -> Option<AbortHandle> {
    let mut connection = Box::pin(connection);
    tokio::select! {
        biased;
        () = &mut connection => return None,
        () = left.notified() => {}
    }
    if node.is_closing() {
        connection.await;
        return None;
    }
    let (next, leaving) = node.succeed(link);
    *link = next;
    let mut stop = node.stopped();
    Some(node.spawn(async move {
        let _leaving = leaving;
        tokio::select! {
            _ = stop.wait_for(|stopped| *stopped) => {}
            () = connection => {}
        }
    }))
}

/// Waits, at least for the shorter time; a poke ends it then.
async fn pause(link: &Link, longest: Duration, shortest: Duration) {
    let poked = link.poke.notified();
    tokio::pin!(poked);
    poked.as_mut().enable();
    let shortest = shortest.min(longest);
    tokio::time::sleep(shortest).await;
    let _ = timeout(longest.saturating_sub(shortest), poked).await;
}

/// Tells of a rejection, once for as long as it stays the same.
fn publish_rejection(
    node: &Node,
    link: &Link,
    error: &DialError,
    last: &mut Option<HandshakeError>,
) {
    tracing::debug!(target: "voussoir::net", peer = link.peer, class = ?link.class, %error, "dial");
    if let DialError::Rejected(error) = *error
        && last.replace(error) != Some(error)
    {
        let (peer, class) = (link.peer, link.class);
        node.publisher.publish(Event::ConnectRejected { peer, class, error });
    }
}

#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("{0}")]
    Io(io::Error),
    #[error("it took too long")]
    TimedOut,
    #[error("rejected: {0}")]
    Rejected(HandshakeError),
    #[error("the resolver panicked")]
    ResolverPanicked,
}

impl From<Elapsed> for DialError {
    fn from(_: Elapsed) -> Self {
        Self::TimedOut
    }
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        OpenError::from(error).into()
    }
}

impl From<OpenError> for DialError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Io(error) => Self::Io(error),
            OpenError::TimedOut => Self::TimedOut,
            OpenError::Rejected(error) => Self::Rejected(HandshakeError::Tls(error)),
        }
    }
}

fn hello_for(node: &Node, link: &Link, nonce: u64) -> Hello {
    Hello {
        min_version: VERSION,
        max_version: VERSION,
        class: link.class,
        cluster: node.config.cluster,
        from: node.local,
        to: link.peer,
        nonce,
        max_body_bytes: link.pipe.own_max_body_bytes() as u32,
    }
}

struct Connected {
    opened: Opened,
    max_body_bytes: usize,
    /// How long the peer bears silence; zero where it does not say.
    peer_dead_after: Duration,
}

/// How often to ping a peer: often enough for its own limit of silence, which may be another one.
fn ping_interval(keep_alive: Duration, peer_dead_after: Duration) -> Duration {
    if peer_dead_after.is_zero() {
        return keep_alive;
    }
    keep_alive.min((peer_dead_after / 3).max(Duration::from_millis(1)))
}

async fn handshake(mut opened: Opened, hello: &Hello) -> Result<Connected, DialError> {
    let Opened { reader, writer, .. } = &mut opened;
    writer.write_all(&hello.encode()).await?;
    let mut prefix = [0; hello::PREFIX_BYTES];
    reader.read_exact(&mut prefix).await?;
    let mut rest = vec![0; hello::length(&prefix).map_err(DialError::Rejected)?];
    reader.read_exact(&mut rest).await?;
    let reply = Reply::decode(&prefix, &rest).map_err(DialError::Rejected)?;
    let version = reply.result.map_err(DialError::Rejected)?;
    if version != VERSION || reply.nonce != hello.nonce {
        return Err(DialError::Rejected(HandshakeError::Malformed));
    }
    let max_body_bytes = reply.max_body_bytes.min(hello.max_body_bytes) as usize;
    let peer_dead_after = Duration::from_millis(reply.dead_after_ms.into());
    Ok(Connected { opened, max_body_bytes, peer_dead_after })
}

/// Runs a connection from its handshake to its end.
async fn run_connection(node: Arc<Node>, link: Arc<Link>, connected: Connected, left: Arc<Notify>) {
    let (peer, class) = (link.peer, link.class);
    let Connected { opened, max_body_bytes, peer_dead_after } = connected;
    let Opened { reader, writer, mut proof } = opened;
    let writer = Arc::new(writer);
    node.counters.connected.add(1);
    link.pipe.up(Arc::clone(&writer), max_body_bytes);
    if node.is_closing() {
        // Its shutdown may have said goodbye to all others before this one stood.
        link.pipe.goodbye();
    }
    node.publisher.publish(Event::Up { peer, class });
    let mut context = node.pump_context();
    context.keep_alive = ping_interval(context.keep_alive, peer_dead_after);
    let pipe = Arc::clone(&link.pipe);
    let reason = DownReason::Local;
    let mut standing = Standing { node, link, reason, left, has_left: false };
    standing.reason = tokio::select! {
        error = proof.revoked() => DownReason::Revoked(error),
        reason = pump::run(reader, &writer, &pipe, &mut standing, context) => reason,
    };
}

/// The side of a connection that dialled: answers come in. Sees to it that the end of the
/// connection is told, also when its task is dropped.
struct Standing {
    node: Arc<Node>,
    link: Arc<Link>,
    reason: DownReason,
    /// Told when the peer says goodbye.
    left: Arc<Notify>,
    /// The peer has said goodbye, which has been told.
    has_left: bool,
}

impl Standing {
    /// The peer takes no further requests.
    fn leave(&mut self) {
        if std::mem::replace(&mut self.has_left, true) {
            return;
        }
        // First the state, then the event: who hears of it finds `send` saying so too.
        self.link.pipe.leave();
        self.publish(DownReason::Goodbye);
        self.left.notify_one();
    }

    fn publish(&self, reason: DownReason) {
        let Link { peer, class, .. } = *self.link;
        tracing::info!(target: "voussoir::net", peer, ?class, %reason, "down");
        self.node.publisher.publish(Event::Down { peer, class, reason });
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        match self.reason {
            DownReason::Violation(_) => self.node.counters.violations.add(1),
            DownReason::Overloaded => self.node.counters.overloaded.add(1),
            DownReason::Revoked(_) => self.node.counters.revoked.add(1),
            _ => {}
        }
        self.link.pipe.down(Phase::Down);
        if !self.has_left {
            self.publish(self.reason);
        }
    }
}

impl Side for Standing {
    fn frame(&mut self, frame: Incoming) -> Result<(), Violation> {
        let Incoming { header, body } = frame;
        let answer = match header.kind {
            Kind::Pong => return Ok(()),
            Kind::Goodbye => {
                self.leave();
                return Ok(());
            }
            Kind::Response => Ok(body),
            Kind::Rejection => Err(match header.service {
                reason::UNKNOWN_SERVICE => CallError::Rejected(Rejected::UnknownService),
                reason::BUSY => CallError::Rejected(Rejected::Busy),
                reason::REJECTED => CallError::Rejected(Rejected::ByHandler(body)),
                reason::FAILED => CallError::Unknown(Lost::HandlerFailed),
                reason::ANSWER_TOO_LONG => CallError::Unknown(Lost::AnswerTooLong),
                reason::ANSWER_DROPPED => CallError::Unknown(Lost::AnswerDropped),
                _ => CallError::Unknown(Lost::UnknownReason),
            }),
            other => return Err(Violation::Kind(other as u8)),
        };
        self.node.counters.frames_in.add(1);
        self.link.pipe.answered(header.id, answer);
        Ok(())
    }

    fn may_end(&self) -> bool {
        // The peer closes when it has answered everything before this side's goodbye. Who closes
        // first resets what the other has not read.
        false
    }

    fn is_pinging(&self) -> bool {
        true
    }

    fn counts_written(&self) -> bool {
        // Where messages are short an answer to a ping is never far.
        self.link.class == Class::Bulk
    }

    fn is_paused(&self) -> bool {
        false
    }
}
