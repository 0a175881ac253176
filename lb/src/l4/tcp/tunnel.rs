//! Moves bytes between a client and an endpoint, in both directions, until both are done.
//!
//! Each direction reads into a buffer of its thread and writes from there. Only what a slow
//! receiver does not take is kept by the connection, and nothing is read before that is written: an
//! idle connection holds no buffer, and a slow one at most `buffer_bytes` for each direction.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::Shared;
use super::connection::FirstBytes;
use crate::endpoint::{Outcome, Pick};

thread_local! {
    /// Bytes on their way from one socket to the other. Used within one poll only.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One of the two peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Upstream,
}

/// How a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides ended their direction.
    Closed,
    /// No byte was moved for the idle time-out.
    Idle,
    /// This side reset the connection.
    Reset(Side),
}

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    state: FlowState,
    /// What was read and not yet written: the bytes from `at`.
    pending: Vec<u8>,
    /// Invariant: at most `pending.len()`.
    at: usize,
    /// Bytes that were written.
    moved: u64,
    /// Whether the receiver does not take what is pending.
    is_blocked: bool,
    /// Whether the sender has reset: the receiver is told so, and not that it has ended.
    is_sender_reset: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum FlowState {
    #[default]
    Open,
    /// The sender has ended; what is pending is still to be written.
    Ending,
    /// All is written, and the end was passed on.
    Ended,
}

/// Why a flow cannot go on.
enum Broken {
    Sender,
    Receiver,
}

pub(super) struct Tunnel<'a> {
    shared: &'a Shared,
    to_upstream: Flow,
    to_client: Flow,
    /// Bytes written to the endpoint that are not the client's.
    header_len: u64,
    /// Whether the endpoint does not take bytes any more. What it sent before still goes to the
    /// client.
    is_upstream_reset: bool,
    /// Whether the endpoint's outcome is recorded.
    is_recorded: bool,
    last_activity: Instant,
    idle: Pin<Box<Sleep>>,
    /// Whether `idle` will wake the task.
    is_idle_armed: bool,
}

/// What a poll of the tunnel led to.
enum Step {
    End(End),
    /// A direction is blocked or has ended, so that reads do not tell a reset any more.
    Watch,
    /// Reads tell everything.
    Plain,
}

impl<'a> Tunnel<'a> {
    pub(super) fn new(shared: &'a Shared, first: FirstBytes) -> Self {
        let now = Instant::now();
        let idle = Box::pin(sleep_until(now + shared.config.idle_timeout));
        let to_upstream = Flow { pending: first.bytes, ..Flow::default() };
        Self {
            shared,
            to_upstream,
            to_client: Flow::default(),
            header_len: first.header_len as u64,
            is_upstream_reset: false,
            is_recorded: false,
            last_activity: now,
            idle,
            is_idle_armed: false,
        }
    }

    pub(super) fn bytes_to_upstream(&self) -> u64 {
        self.to_upstream.moved.saturating_sub(self.header_len)
    }

    pub(super) fn bytes_to_client(&self) -> u64 {
        self.to_client.moved
    }

    /// Moves bytes until the end, and records in `pick` what that says of the endpoint, which was
    /// connected to at `connected_at`.
    pub(super) async fn run(
        &mut self,
        client: &mut TcpStream,
        upstream: &mut TcpStream,
        pick: &mut Pick,
        connected_at: u64,
    ) -> End {
        // Ends: each round ends with the tunnel, or with a change between blocked and not.
        let end = loop {
            let step = poll_fn(|cx| {
                let step = self.poll(cx, &mut Owned(client), &mut Owned(upstream));
                self.record(pick, connected_at);
                match step {
                    Step::Plain => Poll::Pending,
                    step => Poll::Ready(step),
                }
            })
            .await;
            if let Step::End(end) = step {
                break end;
            }
            if let Some(end) = self.run_watched(client, upstream, pick, connected_at).await {
                break end;
            }
        };
        let is_silent = self.to_client.moved == 0;
        let is_failure = match end {
            End::Reset(Side::Upstream) => true,
            // The client waited for an answer.
            End::Idle => self.bytes_to_upstream() > 0,
            End::Closed | End::Reset(Side::Client) => false,
        };
        if is_silent && is_failure {
            pick.record(connected_at, Outcome::Failure);
        } else if end == End::Closed {
            pick.record(connected_at, Outcome::Success);
        }
        end
    }

    /// Goes on while a direction is blocked or has ended. Returns `None` when none is.
    async fn run_watched(
        &mut self,
        client: &TcpStream,
        upstream: &TcpStream,
        pick: &mut Pick,
        connected_at: u64,
    ) -> Option<End> {
        let client_error = client.ready(Interest::ERROR);
        let upstream_error = upstream.ready(Interest::ERROR);
        let (mut client_error, mut upstream_error) =
            (std::pin::pin!(client_error), std::pin::pin!(upstream_error));
        let mut is_upstream_watched = true;
        poll_fn(|cx| {
            // A client that has reset wants nothing more.
            if client_error.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Some(End::Reset(Side::Client)));
            }
            if is_upstream_watched && upstream_error.as_mut().poll(cx).is_ready() {
                is_upstream_watched = false;
                self.stop_upstream();
            }
            let step = self.poll(cx, &mut Borrowed(client), &mut Borrowed(upstream));
            self.record(pick, connected_at);
            match step {
                Step::End(end) => Poll::Ready(Some(end)),
                Step::Watch => Poll::Pending,
                Step::Plain => Poll::Ready(None),
            }
        })
        .await
    }
}

impl Tunnel<'_> {
    /// Moves what can be moved now, and arms the wake-up for what cannot.
    fn poll(&mut self, cx: &mut Context<'_>, client: &mut impl Io, upstream: &mut impl Io) -> Step {
        let buffer_bytes = self.shared.config.buffer_bytes;
        let before = (self.to_upstream.moved, self.to_client.moved);
        let moved = SCRATCH.with_borrow_mut(|scratch| {
            if scratch.len() < buffer_bytes {
                scratch.resize(buffer_bytes, 0);
            }
            self.poll_flows(cx, client, upstream, &mut scratch[..buffer_bytes])
        });
        self.count(before);
        let is_active = match moved {
            Ok(is_active) => is_active,
            Err(end) => return Step::End(end),
        };
        if self.flows().iter().all(|flow| flow.state == FlowState::Ended) {
            let is_reset = self.is_upstream_reset;
            return Step::End(if is_reset { End::Reset(Side::Upstream) } else { End::Closed });
        }
        if is_active {
            self.last_activity = Instant::now();
        }
        // A timer that is armed wakes this task without being asked again for each byte.
        if (!is_active || !self.is_idle_armed) && self.poll_idle(cx).is_ready() {
            return Step::End(End::Idle);
        }
        self.is_idle_armed = true;
        let is_plain = |flow: &&Flow| flow.state == FlowState::Open && !flow.is_blocked;
        if self.flows().iter().all(is_plain) { Step::Plain } else { Step::Watch }
    }

    fn flows(&self) -> [&Flow; 2] {
        [&self.to_upstream, &self.to_client]
    }

    /// Returns whether a byte or an end was moved.
    fn poll_flows(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut impl Io,
        upstream: &mut impl Io,
        scratch: &mut [u8],
    ) -> Result<bool, End> {
        let mut is_active = match self.to_upstream.poll(cx, client, upstream, scratch) {
            Ok(is_active) => is_active,
            Err(Broken::Sender) => return Err(End::Reset(Side::Client)),
            Err(Broken::Receiver) => {
                self.stop_upstream();
                true
            }
        };
        is_active |= match self.to_client.poll(cx, upstream, client, scratch) {
            Ok(is_active) => is_active,
            Err(Broken::Sender) => return Err(End::Reset(Side::Upstream)),
            Err(Broken::Receiver) => return Err(End::Reset(Side::Client)),
        };
        Ok(is_active)
    }

    /// The endpoint takes no more bytes. Those it sent before are still read, up to its reset.
    fn stop_upstream(&mut self) {
        self.is_upstream_reset = true;
        // The error was taken by the write: the reads that follow only see an end.
        self.to_client.is_sender_reset = true;
        self.to_upstream =
            Flow { state: FlowState::Ended, moved: self.to_upstream.moved, ..Flow::default() };
    }

    /// Ready when nothing was moved for the idle time-out. The timer is set again only when it
    /// fires, not for each byte.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Ends: the second round finds a deadline in the future.
        loop {
            ready!(self.idle.as_mut().poll(cx));
            let deadline = self.last_activity + self.shared.config.idle_timeout;
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            self.idle.as_mut().reset(deadline);
        }
    }

    fn count(&self, before: (u64, u64)) {
        let header = self.header_len;
        let up = self.to_upstream.moved.max(header) - before.0.max(header);
        if up > 0 {
            self.shared.counters.bytes_to_upstream.fetch_add(up, Relaxed);
        }
        if self.to_client.moved > before.1 {
            self.shared
                .counters
                .bytes_to_client
                .fetch_add(self.to_client.moved - before.1, Relaxed);
        }
    }

    /// The first byte of the endpoint proves that it works. The latency is that of connecting: how
    /// long a connection lasts is the client's affair.
    fn record(&mut self, pick: &mut Pick, connected_at: u64) {
        if !self.is_recorded && self.to_client.moved > 0 {
            self.is_recorded = true;
            pick.record(connected_at, Outcome::Success);
        }
    }
}

impl Flow {
    /// Moves bytes from `from` to `to` until one of them is not ready. Returns whether anything
    /// was moved.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Io,
        to: &mut impl Io,
        scratch: &mut [u8],
    ) -> Result<bool, Broken> {
        let mut is_active = false;
        self.is_blocked = false;
        // Ends: sockets run dry or fill up, and the runtime's budget stops what does neither.
        loop {
            if self.at < self.pending.len() {
                match to.poll_write(cx, &self.pending[self.at..]) {
                    Poll::Ready(Ok(written)) if written > 0 => {
                        is_active = true;
                        self.at += written;
                        self.moved += written as u64;
                        continue;
                    }
                    Poll::Ready(_) => return Err(Broken::Receiver),
                    Poll::Pending => {
                        self.is_blocked = true;
                        return Ok(is_active);
                    }
                }
            }
            // Frees the memory of a burst.
            (self.pending, self.at) = (Vec::new(), 0);
            match self.state {
                FlowState::Open => {}
                FlowState::Ending => {
                    if !self.is_sender_reset {
                        to.end_writing();
                    }
                    self.state = FlowState::Ended;
                    return Ok(true);
                }
                FlowState::Ended => return Ok(is_active),
            }
            match from.poll_read(cx, scratch) {
                Poll::Ready(Ok(0)) => self.state = FlowState::Ending,
                Poll::Ready(Ok(read)) => {
                    is_active = true;
                    self.write_first(cx, to, &scratch[..read])?;
                }
                Poll::Ready(Err(_)) => return Err(Broken::Sender),
                Poll::Pending => return Ok(is_active),
            }
        }
    }

    /// Writes what was read, and keeps what does not fit.
    fn write_first(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut impl Io,
        bytes: &[u8],
    ) -> Result<(), Broken> {
        let written = match to.poll_write(cx, bytes) {
            Poll::Ready(Ok(written)) if written > 0 => written,
            Poll::Ready(_) => return Err(Broken::Receiver),
            Poll::Pending => 0,
        };
        self.moved += written as u64;
        self.pending.extend_from_slice(&bytes[written..]);
        Ok(())
    }
}

/// A socket, as a flow uses it.
trait Io {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;
    /// Sends a FIN.
    fn end_writing(&self);
}

/// A socket of one's own. tokio then takes a short read as proof that the socket is empty, which
/// saves a system call for each message.
struct Owned<'a>(&'a mut TcpStream);

impl Io for Owned<'_> {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(&mut *self.0).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, bytes)
    }

    fn end_writing(&self) {
        end_writing(self.0);
    }
}

/// A socket whose errors are watched at the same time.
struct Borrowed<'a>(&'a TcpStream);

impl Io for Borrowed<'_> {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        // Ends: a read that would block clears the readiness.
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // Ends: a write that would block clears the readiness.
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn end_writing(&self) {
        end_writing(self.0);
    }
}

fn end_writing(stream: &TcpStream) {
    // Fails only if the peer has reset the connection, which the other direction tells.
    let _ = socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write);
}
