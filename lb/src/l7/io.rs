//! Byte streams: the client's side with a bound on stalls, and upgraded connections.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, timeout_at};

use super::body::has_stalled;
use super::framing::RequestFraming;

/// What an HTTP/2 connection begins with (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads until it is clear whether the client speaks HTTP/2. Returns the bytes that were read.
/// `None`: the client said nothing, or too little by `deadline`.
pub(super) async fn detect_http2<T: AsyncRead + Unpin>(
    io: &mut T,
    deadline: Instant,
) -> Option<(bool, Bytes)> {
    let mut read = BytesMut::with_capacity(PREFACE.len());
    // Ends: each round reads a byte or more, and at most 24 are read.
    while read.len() < PREFACE.len() && PREFACE.starts_with(&read) {
        let count = timeout_at(deadline, io.read_buf(&mut read)).await.ok()?.ok()?;
        if count == 0 {
            return None;
        }
    }
    Some((read.starts_with(PREFACE), read.freeze()))
}

/// A client's connection. A write that makes no progress for `timeout` fails.
#[derive(Debug)]
pub(super) struct ClientIo<T> {
    io: T,
    /// Bytes that were read ahead.
    ahead: Bytes,
    timeout: Duration,
    stall: Option<Pin<Box<Sleep>>>,
    http1: Option<Followed>,
}

/// A connection of HTTP/1.
#[derive(Debug)]
struct Followed {
    framing: RequestFraming,
    /// Whether the connection has become a tunnel, whose bytes are not HTTP.
    is_tunnel: Arc<AtomicBool>,
}

impl<T> ClientIo<T> {
    pub(super) fn new(io: T, ahead: Bytes, timeout: Duration) -> Self {
        Self { io, ahead, timeout, stall: None, http1: None }
    }

    /// Follows the framing of requests until `is_tunnel`.
    pub(super) fn with_framing(
        mut self,
        framing: RequestFraming,
        is_tunnel: Arc<AtomicBool>,
    ) -> Self {
        self.http1 = Some(Followed { framing, is_tunnel });
        self
    }

    fn bounded<R>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if polled.is_ready() {
            self.stall = None;
        } else if has_stalled(&mut self.stall, self.timeout, cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ClientIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut followed = this.http1.as_mut().filter(|http1| !http1.is_tunnel.load(Relaxed));
        if let Some(end) = followed.as_mut().and_then(|http1| http1.framing.end(buf.remaining())) {
            // Nothing that follows is taken for a request.
            buf.put_slice(end);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        if this.ahead.is_empty() {
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        } else {
            let count = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..count]);
            this.ahead.advance(count);
        }
        if let Some(http1) = &mut followed {
            let kept = http1.framing.follow(&mut buf.filled_mut()[before..]);
            buf.set_filled(before + kept);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ClientIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.bounded(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.bounded(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.bounded(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.bounded(cx, polled)
    }
}

/// One side of a tunnel; counts reads and writes that moved bytes.
struct Counted<T> {
    io: T,
    moved: Arc<AtomicU64>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if polled.is_ready() {
            self.moved.fetch_add(1, Relaxed);
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        if polled.is_ready() {
            self.moved.fetch_add(1, Relaxed);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Moves bytes both ways until both sides have ended, one fails, or nothing moves for `idle`. The
/// end of one direction is passed on and leaves the other open.
pub(super) async fn tunnel<A, B>(client: A, backend: B, idle: Duration)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let moved = Arc::new(AtomicU64::new(0));
    let mut client = Counted { io: client, moved: Arc::clone(&moved) };
    let mut backend = Counted { io: backend, moved: Arc::clone(&moved) };
    let copy = tokio::io::copy_bidirectional(&mut client, &mut backend);
    tokio::pin!(copy);
    let mut before = 0;
    // Ends with `copy`, or after a round of `idle` in which nothing moved.
    loop {
        tokio::select! {
            _ = &mut copy => return,
            () = sleep(idle) => {
                let now = moved.load(Relaxed);
                if now == before {
                    return;
                }
                before = now;
            }
        }
    }
}
