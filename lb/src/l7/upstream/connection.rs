//! One connection to a backend.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::l7::body::RequestBody;
use crate::l7::config::{Protocol, UpstreamConfig};

/// Headers of a response. Its bytes are bounded by the configuration.
const MAX_HEADERS: usize = 1_000;

pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A socket that the pool can look at while hyper owns it.
pub(super) struct Shared(pub(super) Arc<Mutex<TcpStream>>);

impl AsyncRead for Shared {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_read(cx, buf)
    }
}

impl AsyncWrite for Shared {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock()).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_shutdown(cx)
    }
}

/// A request could not be sent, or its response did not arrive.
#[derive(Debug)]
pub(in crate::l7) struct SendError {
    pub(in crate::l7) error: hyper::Error,
    /// The request, if not a byte of it was written.
    pub(in crate::l7) unsent: Option<Request<RequestBody>>,
}

impl SendError {
    /// Whether the backend said that it did nothing with the request (RFC 9113 §8.7).
    pub(in crate::l7) fn is_refused(&self) -> bool {
        self.http2_error().is_some_and(|error| {
            error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM)
        })
    }

    /// Whether the connection ended before the response, as an idle one may when it is used. A head
    /// that is no HTTP, and a stream that was reset, are what the backend made of the request.
    pub(in crate::l7) fn has_disconnected(&self) -> bool {
        self.http2_error().map_or(!self.error.is_parse(), |error| !error.is_reset())
    }

    fn http2_error(&self) -> Option<&h2::Error> {
        self.error.source().and_then(|source| source.downcast_ref::<h2::Error>())
    }
}

impl From<TrySendError<Request<RequestBody>>> for SendError {
    fn from(mut failed: TrySendError<Request<RequestBody>>) -> Self {
        let unsent = failed.take_message();
        Self { unsent, error: failed.into_error() }
    }
}

/// Ends the task of a connection, and with it the connection, when dropped.
#[derive(Debug)]
struct Task(Option<AbortHandle>);

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// A connection that carries one request at a time.
pub(in crate::l7) struct Http1 {
    sender: http1::SendRequest<RequestBody>,
    task: Task,
    /// `None`: TLS, where bytes may arrive that are no response.
    socket: Option<Weak<Mutex<TcpStream>>>,
    pub(super) idle_since: Instant,
}

impl fmt::Debug for Http1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http1").finish_non_exhaustive()
    }
}

impl Http1 {
    pub(super) async fn handshake(
        io: Box<dyn Io>,
        socket: Option<Weak<Mutex<TcpStream>>>,
        config: &UpstreamConfig,
    ) -> hyper::Result<Self> {
        let mut builder = http1::Builder::new();
        // A head that exceeds the buffer fails whatever its limit is.
        let max_buffer_bytes = config.max_header_bytes.max(64 << 10);
        builder
            .max_header_size(config.max_header_bytes)
            .max_headers(MAX_HEADERS)
            .max_buf_size(max_buffer_bytes);
        let (sender, connection) = builder.handshake(TokioIo::new(io)).await?;
        // An error of the connection is also the error of its request.
        let task = tokio::spawn(async move { drop(connection.with_upgrades().await) });
        let task = Task(Some(task.abort_handle()));
        Ok(Self { sender, task, socket, idle_since: Instant::now() })
    }

    /// Whether the connection is open, waits for a request, and has nothing to read: bytes that
    /// arrived before a request was sent are no response to it.
    pub(super) fn is_usable(&self) -> bool {
        if !self.sender.is_ready() || self.sender.is_closed() {
            return false;
        }
        let Some(socket) = &self.socket else { return true };
        let Some(socket) = socket.upgrade() else { return false };
        let socket = socket.lock();
        let mut byte = [MaybeUninit::uninit()];
        let peeked = socket2::SockRef::from(&*socket).peek(&mut byte);
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    pub(super) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, SendError> {
        Ok(self.sender.try_send_request(request).await?)
    }

    /// Leaves the connection to the tunnel that it has become.
    pub(super) fn detach(mut self) {
        self.task.0 = None;
    }
}

/// A connection that carries many requests at a time. Closes when all clones are dropped.
#[derive(Clone)]
pub(in crate::l7) struct Http2 {
    sender: http2::SendRequest<RequestBody>,
    /// Counts the clones.
    users: Arc<()>,
    pub(super) used_at: Instant,
}

impl fmt::Debug for Http2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2").finish_non_exhaustive()
    }
}

impl Http2 {
    pub(super) async fn handshake(io: Box<dyn Io>, config: &UpstreamConfig) -> hyper::Result<Self> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_header_list_size(config.max_header_bytes as u32)
            // Finds a backend that is gone while requests wait.
            .keep_alive_interval(config.idle_timeout)
            .keep_alive_timeout(config.connect_timeout);
        let (sender, connection) = builder.handshake(TokioIo::new(io)).await?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, users: Arc::new(()), used_at: Instant::now() })
    }

    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.users, &other.users)
    }

    /// Requests that use the connection, asked of the clone that the pool keeps.
    pub(super) fn requests(&self) -> usize {
        Arc::strong_count(&self.users) - 1
    }

    pub(super) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, SendError> {
        Ok(self.sender.try_send_request(request).await?)
    }
}

/// Which kind a new connection is of.
pub(super) enum Made {
    Http1(Http1),
    Http2(Http2),
}

pub(super) async fn establish(
    tcp: TcpStream,
    config: &UpstreamConfig,
    #[cfg(feature = "tls")] tls: Option<&crate::l7::tls::ClientTls>,
) -> io::Result<Made> {
    tcp.set_nodelay(true)?;
    #[cfg(feature = "tls")]
    if let Some(tls) = tls {
        let io: Box<dyn Io> = Box::new(tls.connect(tcp).await?);
        return made(io, None, config).await;
    }
    let shared = Arc::new(Mutex::new(tcp));
    let socket = Arc::downgrade(&shared);
    made(Box::new(Shared(shared)), Some(socket), config).await
}

async fn made(
    io: Box<dyn Io>,
    socket: Option<Weak<Mutex<TcpStream>>>,
    config: &UpstreamConfig,
) -> io::Result<Made> {
    let made = match config.protocol {
        Protocol::Http1 => Http1::handshake(io, socket, config).await.map(Made::Http1),
        Protocol::Http2 => Http2::handshake(io, config).await.map(Made::Http2),
    };
    made.map_err(io::Error::other)
}
