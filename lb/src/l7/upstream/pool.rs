//! The connections to one endpoint.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use hyper::body::Incoming;
use hyper::{Request, Response};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::Counters;
use super::connection::{Http1, Http2, Made, SendError, establish};
use crate::error::is_local;
use crate::l7::body::RequestBody;
use crate::l7::config::{Protocol, UpstreamConfig};

/// A connection could not be established. Nothing of a request was written.
#[derive(Debug)]
pub(in crate::l7) enum ConnectError {
    Timeout,
    Failed,
    /// This machine has no descriptor, port or memory for it.
    Local,
}

/// The connections to one endpoint.
#[derive(Debug)]
pub(in crate::l7) struct Pool {
    address: String,
    config: UpstreamConfig,
    #[cfg(feature = "tls")]
    tls: Option<crate::l7::tls::ClientTls>,
    /// Connections without a request, the one used last at the end.
    idle: Mutex<Vec<Http1>>,
    /// Connections of HTTP/2, the oldest first.
    shared: Mutex<Vec<Http2>>,
    /// Held while a connection of HTTP/2 is established.
    connecting: tokio::sync::Mutex<()>,
    counters: Arc<Counters>,
}

impl Pool {
    pub(super) fn new(address: &str, config: UpstreamConfig, counters: Arc<Counters>) -> Self {
        Self {
            address: address.to_owned(),
            config,
            #[cfg(feature = "tls")]
            tls: None,
            idle: Mutex::default(),
            shared: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            counters,
        }
    }

    #[cfg(feature = "tls")]
    pub(super) fn with_tls(mut self, tls: Option<crate::l7::tls::ClientTls>) -> Self {
        self.tls = tls;
        self
    }

    /// An idle connection, or a new one. `fresh` asks for a new one.
    pub(in crate::l7) async fn lease(self: Arc<Self>, fresh: bool) -> Result<Lease, ConnectError> {
        if self.config.protocol == Protocol::Http1
            && !fresh
            && let Some(connection) = self.take_idle()
        {
            let connection = Leased::Http1(connection);
            return Ok(Lease { connection, pool: self, is_reused: true });
        }
        let within = self.config.connect_timeout;
        let lease = match self.config.protocol {
            Protocol::Http1 => timeout(within, self.lease_http1()).await,
            Protocol::Http2 => timeout(within, self.lease_http2()).await,
        };
        let lease = lease.unwrap_or(Err(ConnectError::Timeout));
        if lease.is_err() {
            self.counters.connect_failures.fetch_add(1, Relaxed);
        }
        lease
    }

    async fn lease_http1(self: &Arc<Self>) -> Result<Lease, ConnectError> {
        let connection = match self.connect().await? {
            Made::Http1(connection) => Leased::Http1(connection),
            Made::Http2(_) => unreachable!("the protocol of a pool is fixed"),
        };
        Ok(Lease { connection, pool: Arc::clone(self), is_reused: false })
    }

    fn take_idle(&self) -> Option<Http1> {
        // Ends: each round takes one out.
        loop {
            let connection = self.idle.lock().pop()?;
            if connection.is_usable() {
                self.counters.reuses.fetch_add(1, Relaxed);
                return Some(connection);
            }
            self.counters.stale.fetch_add(1, Relaxed);
        }
    }

    async fn lease_http2(self: &Arc<Self>) -> Result<Lease, ConnectError> {
        let lease = |connection, is_reused| {
            let pool = Arc::clone(self);
            Lease { connection: Leased::Http2(connection), pool, is_reused }
        };
        if let Some(connection) = self.open_http2() {
            return Ok(lease(connection, true));
        }
        let _connecting = self.connecting.lock().await;
        if let Some(connection) = self.open_http2() {
            return Ok(lease(connection, true));
        }
        match self.connect().await? {
            Made::Http2(connection) => {
                self.shared.lock().push(connection.clone());
                Ok(lease(connection, false))
            }
            Made::Http1(_) => unreachable!("the protocol of a pool is fixed"),
        }
    }

    /// The oldest connection that has room, so that those of a burst become idle.
    fn open_http2(&self) -> Option<Http2> {
        let max = self.config.max_streams as usize;
        let has_room = |found: &&mut Http2| found.is_open() && found.requests() < max;
        let mut shared = self.shared.lock();
        let connection = shared.iter_mut().find(has_room)?;
        connection.used_at = Instant::now();
        self.counters.reuses.fetch_add(1, Relaxed);
        Some(connection.clone())
    }

    async fn connect(&self) -> Result<Made, ConnectError> {
        let failed = |error: std::io::Error| {
            tracing::debug!(target: "voussoir::lb::l7", address = self.address, %error, "connect");
            if is_local(&error) { ConnectError::Local } else { ConnectError::Failed }
        };
        let tcp = TcpStream::connect(&*self.address).await.map_err(failed)?;
        let made = establish(
            tcp,
            &self.config,
            #[cfg(feature = "tls")]
            self.tls.as_ref(),
        );
        let made = made.await.map_err(failed)?;
        self.counters.connects.fetch_add(1, Relaxed);
        Ok(made)
    }

    /// Closes connections that were idle for too long, or that the backend has closed.
    pub(super) fn close_idle(&self) {
        let (now, limit) = (Instant::now(), self.config.idle_timeout);
        let mut closed = Vec::new();
        let mut idle = self.idle.lock();
        let (kept, old) =
            idle.drain(..).partition(|found| !found.is_closed() && now - found.idle_since < limit);
        *idle = kept;
        drop(idle);
        closed.extend::<Vec<Http1>>(old);
        drop(closed);
        let is_kept = |found: &mut Http2| {
            found.is_open() && (found.requests() > 0 || now - found.used_at < limit)
        };
        let old: Vec<Http2> = self.shared.lock().extract_if(.., |found| !is_kept(found)).collect();
        drop(old);
    }
}

#[derive(Debug)]
enum Leased {
    Http1(Http1),
    Http2(Http2),
}

/// A connection for one request. Dropped, a connection of HTTP/1 is closed, and a request of HTTP/2
/// is reset.
#[derive(Debug)]
pub(in crate::l7) struct Lease {
    connection: Leased,
    pool: Arc<Pool>,
    /// Whether the connection has carried a request before.
    pub(in crate::l7) is_reused: bool,
}

impl Lease {
    pub(in crate::l7) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, SendError> {
        match &mut self.connection {
            Leased::Http1(connection) => connection.send(request).await,
            Leased::Http2(connection) => connection.send(request).await,
        }
    }

    /// Gives the connection back. Both bodies must have ended.
    pub(in crate::l7) fn release(self) {
        let Leased::Http1(mut connection) = self.connection else { return };
        if connection.is_closed() {
            return;
        }
        connection.idle_since = Instant::now();
        let mut idle = self.pool.idle.lock();
        if idle.len() < self.pool.config.max_idle {
            idle.push(connection);
        }
    }

    /// Ends the use of a connection that has ended.
    pub(in crate::l7) fn discard(self) {
        let Leased::Http2(connection) = &self.connection else { return };
        self.pool.shared.lock().retain(|found| !found.is_same(connection));
    }

    /// Leaves the connection to the tunnel that it has become.
    pub(in crate::l7) fn detach(self) {
        if let Leased::Http1(connection) = self.connection {
            connection.detach();
        }
    }
}
