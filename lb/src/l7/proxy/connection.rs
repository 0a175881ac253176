//! One connection of a client.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until};

use super::forward::forward;
use super::response::ProxyBody;
use super::streams::StreamExecutor;
use super::{Inner, Phase};
use crate::l7::config::HttpConfig;
use crate::l7::framing::RequestFraming;
use crate::l7::io::{ClientIo, detect_http2};

/// What requests know of their connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) peer: SocketAddr,
    /// `peer` without the port, for the headers of each request.
    pub(super) peer_address: HeaderValue,
    pub(super) is_tls: bool,
    active: AtomicUsize,
    /// Whether a connection of HTTP/1 has become a tunnel. Set before 101 is sent.
    pub(super) is_tunnel: Arc<AtomicBool>,
}

/// Counts a request of a connection, until its response has been sent.
#[derive(Debug)]
pub(super) struct ActiveRequest(Arc<Client>);

impl ActiveRequest {
    pub(super) fn new(client: &Arc<Client>) -> Self {
        client.active.fetch_add(1, Relaxed);
        Self(Arc::clone(client))
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

/// Serves until the connection ends. `is_http2` is what ALPN chose; `None`: the first bytes decide.
pub(super) async fn serve<T>(
    inner: Arc<Inner>,
    mut io: T,
    peer: SocketAddr,
    is_tls: bool,
    is_http2: Option<bool>,
) where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let active = AtomicUsize::new(0);
    let peer_address = HeaderValue::try_from(peer.ip().to_string());
    let peer_address = peer_address.expect("an address is printed in ASCII");
    let is_tunnel = Arc::default();
    let client = Arc::new(Client { peer, peer_address, is_tls, active, is_tunnel });
    let mut phase = inner.phase.subscribe();
    let (is_http2, ahead) = match is_http2 {
        Some(is_http2) => (is_http2, Bytes::new()),
        None => {
            let deadline = Instant::now() + inner.config.header_timeout;
            tokio::select! {
                found = detect_http2(&mut io, deadline) => match found {
                    Some(found) => found,
                    None => return,
                },
                _ = phase.wait_for(|phase| *phase != Phase::Running) => return,
            }
        }
    };
    let io = ClientIo::new(io, ahead, inner.config.body_timeout);
    if is_http2 {
        serve_http2(inner, TokioIo::new(io), client).await;
    } else {
        let framing = RequestFraming::new(max_buffer_bytes(&inner.config));
        let io = io.with_framing(framing, Arc::clone(&client.is_tunnel));
        serve_http1(inner, TokioIo::new(io), client).await;
    }
}

/// Bytes that hyper reads ahead of a connection of HTTP/1. A head that does not fit is rejected.
fn max_buffer_bytes(config: &HttpConfig) -> usize {
    (config.max_header_bytes * 2).max(64 << 10)
}

async fn answer(
    inner: Arc<Inner>,
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Result<Response<ProxyBody>, Infallible> {
    Ok(forward(inner, client, request).await)
}

async fn serve_http1<T>(inner: Arc<Inner>, io: TokioIo<ClientIo<T>>, client: Arc<Client>)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let HttpConfig { header_timeout, max_header_bytes, max_headers, .. } = inner.config;
    let mut phase = inner.phase.subscribe();
    let serving = Arc::clone(&inner);
    let service =
        service_fn(move |request| answer(Arc::clone(&serving), Arc::clone(&client), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_header_size(max_header_bytes)
        .max_headers(max_headers)
        .max_buf_size(max_buffer_bytes(&inner.config))
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut is_draining = false;
    // Ends with the connection, or when the proxy closes what is open.
    loop {
        tokio::select! {
            biased;
            _ = connection.as_mut() => return,
            next = phase.wait_for(|phase| {
                if is_draining { *phase == Phase::Closed } else { *phase != Phase::Running }
            }) => {
                if is_draining || next.is_err() {
                    return;
                }
                is_draining = true;
                drop(next);
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn serve_http2<T>(inner: Arc<Inner>, io: TokioIo<ClientIo<T>>, client: Arc<Client>)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let config = &inner.config;
    let mut phase = inner.phase.subscribe();
    let (serving, of) = (Arc::clone(&inner), Arc::clone(&client));
    let service = service_fn(move |request| answer(Arc::clone(&serving), Arc::clone(&of), request));
    let connection = http2::Builder::new(StreamExecutor { timeout: config.body_timeout })
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.max_concurrent_streams)
        .max_header_list_size(config.max_header_bytes as u32)
        .max_pending_accept_reset_streams(config.max_pending_resets as usize)
        .max_local_error_reset_streams(config.max_pending_resets as usize)
        .keep_alive_interval(config.idle_timeout)
        .keep_alive_timeout(config.header_timeout)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut is_draining = false;
    let mut idle_at = Instant::now() + config.idle_timeout;
    // Ends with the connection, when the proxy closes what is open, or when the client ignores
    // for `idle_timeout` that it was told to go.
    loop {
        tokio::select! {
            biased;
            _ = connection.as_mut() => return,
            next = phase.wait_for(|phase| {
                if is_draining { *phase == Phase::Closed } else { *phase != Phase::Running }
            }) => {
                if is_draining || next.is_err() {
                    return;
                }
                is_draining = true;
                drop(next);
                connection.as_mut().graceful_shutdown();
            }
            () = sleep_until(idle_at) => {
                idle_at = Instant::now() + config.idle_timeout;
                let is_idle = client.active.load(Relaxed) == 0;
                match (is_idle, is_draining) {
                    (true, true) => return,
                    (true, false) => {
                        is_draining = true;
                        connection.as_mut().graceful_shutdown();
                    }
                    (false, _) => {}
                }
            }
        }
    }
}
