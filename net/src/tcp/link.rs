//! This node's own connection to a peer: dialled, run, and dialled again.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::node::{Node, ResolverPanicked};
use super::pipe::{Phase, Pipe};
use super::pump::{self, Next, Side};
use super::socket::{Reader, Writer, split};
use crate::core::backoff::{Backoff, Rng};
use crate::wire::hello::{self, Hello, Reply};
use crate::wire::{Incoming, Kind, VERSION, reason};
use crate::{CallError, Class, DownReason, Event, Lost, Refusal, Refused, Violation};

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
}

/// Keeps a link connected, until its peer is unknown or the transport stops.
pub(crate) async fn run(node: Arc<Node>, link: Arc<Link>) {
    let mut stop = node.stopped();
    tokio::select! {
        _ = stop.wait_for(|stopped| *stopped) => link.pipe.down(Phase::Closed),
        () = reconnect_loop(&node, &link) => {
            node.unlink(&link);
            link.pipe.down(Phase::Down);
        }
    }
}

async fn reconnect_loop(node: &Arc<Node>, link: &Link) {
    let seed = node.config.seed ^ Rng::new(node.local ^ link.peer.rotate_left(32)).next();
    let mut backoff = Backoff::new(node.config.backoff_min, node.config.backoff_max, seed);
    let mut nonces = Rng::new(seed ^ u64::from(link.class == Class::Bulk));
    let mut last_refusal = None;
    // Ends when the peer is unknown, or when this node closes.
    loop {
        let address = match node.resolve(link.peer) {
            Ok(Some(address)) => Ok(address),
            Ok(None) => return,
            Err(ResolverPanicked) => Err(DialError::ResolverPanicked),
        };
        let hello = greeting(node, link, nonces.next());
        let attempt = async {
            let stream = TcpStream::connect(address?);
            let stream = timeout(node.config.dial_timeout, stream).await??;
            timeout(node.config.handshake_timeout, shake(stream, &hello)).await?
        };
        match attempt.await {
            Ok(connected) => {
                let began = Instant::now();
                last_refusal = None;
                stand(node, link, connected).await;
                // One that breaks at once is as good as none.
                if began.elapsed() >= node.config.backoff_max {
                    backoff.reset();
                }
            }
            Err(error) => {
                node.counters.dial_failed.add(1);
                link.pipe.down(Phase::Down);
                tell(node, link, &error, &mut last_refusal);
            }
        }
        if node.is_closing() {
            // Nothing new comes, and what there was is gone with the connection.
            return;
        }
        pause(link, backoff.next(), node.config.backoff_min).await;
    }
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

/// Tells of a refusal, once for as long as it stays the same.
fn tell(node: &Node, link: &Link, error: &DialError, last: &mut Option<Refusal>) {
    tracing::debug!(target: "voussoir::net", peer = link.peer, class = ?link.class, %error, "dial");
    if let DialError::Refused(refusal) = *error
        && last.replace(refusal) != Some(refusal)
    {
        let (peer, class) = (link.peer, link.class);
        node.publisher.publish(Event::Rejected { peer, class, refusal });
    }
}

#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it took too long")]
    TimedOut(#[from] tokio::time::error::Elapsed),
    #[error("refused: {0}")]
    Refused(Refusal),
    #[error("the resolver panicked")]
    ResolverPanicked,
}

fn greeting(node: &Node, link: &Link, nonce: u64) -> Hello {
    Hello {
        version_min: VERSION,
        version_max: VERSION,
        class: link.class,
        cluster: node.config.cluster,
        from: node.local,
        to: link.peer,
        nonce,
        body_bytes_max: link.pipe.own_body_bytes_max() as u32,
    }
}

struct Connected {
    reader: Reader,
    writer: Writer,
    body_bytes_max: usize,
}

async fn shake(stream: TcpStream, hello: &Hello) -> Result<Connected, DialError> {
    let (mut reader, mut writer) = split(stream)?;
    writer.write_all(&hello.encode()).await?;
    let mut prefix = [0; hello::PREFIX_BYTES];
    reader.read_exact(&mut prefix).await?;
    let mut rest = vec![0; hello::length(&prefix).map_err(DialError::Refused)?];
    reader.read_exact(&mut rest).await?;
    let reply = Reply::decode(&prefix, &rest).map_err(DialError::Refused)?;
    let version = reply.result.map_err(DialError::Refused)?;
    if version != VERSION || reply.nonce != hello.nonce {
        return Err(DialError::Refused(Refusal::Malformed));
    }
    let body_bytes_max = reply.body_bytes_max.min(hello.body_bytes_max) as usize;
    Ok(Connected { reader, writer, body_bytes_max })
}

/// Runs a connection from its handshake to its end.
async fn stand(node: &Node, link: &Link, connected: Connected) {
    let (peer, class) = (link.peer, link.class);
    let Connected { reader, writer, body_bytes_max } = connected;
    let writer = Arc::new(writer);
    node.counters.connected.add(1);
    link.pipe.up(Arc::clone(&writer), body_bytes_max);
    node.publisher.publish(Event::Up { peer, class });
    let standing = Standing { node, link, reason: DownReason::Local };
    let mut side = DialSide { link, counters: &node.counters };
    let reason = pump::run(reader, &writer, &link.pipe, &mut side, node.rules()).await;
    standing.end(reason);
}

/// Sees to it that the end of a connection is told, also when its task is dropped.
struct Standing<'a> {
    node: &'a Node,
    link: &'a Link,
    reason: DownReason,
}

impl Standing<'_> {
    fn end(mut self, reason: DownReason) {
        self.reason = reason;
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        let Link { peer, class, .. } = *self.link;
        match self.reason {
            DownReason::Violation(_) => self.node.counters.violations.add(1),
            DownReason::Overloaded => self.node.counters.overloaded.add(1),
            _ => {}
        }
        tracing::info!(target: "voussoir::net", peer, ?class, reason = %self.reason, "down");
        // First the state, then the event: who hears of it finds `send` saying so too.
        self.link.pipe.down(Phase::Down);
        self.node.publisher.publish(Event::Down { peer, class, reason: self.reason });
    }
}

/// The side of a connection that dialled: answers come in.
struct DialSide<'a> {
    link: &'a Link,
    counters: &'a crate::stats::Counters,
}

impl Side for DialSide<'_> {
    fn frame(&mut self, frame: Incoming) -> Result<Next, Violation> {
        let Incoming { header, body } = frame;
        let answer = match header.kind {
            Kind::Pong => return Ok(Next::Go),
            Kind::Goodbye => return Ok(Next::End),
            Kind::Response => Ok(body),
            Kind::Refusal => Err(match header.service {
                reason::UNKNOWN_SERVICE => CallError::Refused(Refused::UnknownService),
                reason::BUSY => CallError::Refused(Refused::Busy),
                reason::REJECTED => CallError::Refused(Refused::Rejected(body)),
                _ => CallError::Unknown(Lost::HandlerFailed),
            }),
            other => return Err(Violation::Kind(other as u8)),
        };
        self.counters.frames_in.add(1);
        self.link.pipe.answered(header.id, answer);
        Ok(Next::Go)
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
