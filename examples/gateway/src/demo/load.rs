//! Clients that ask as fast as they are answered: over HTTP/1.1, and over HTTP/2 with TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::Error;
use super::certificate::{Certificate, NAME};

/// Longest time that a client waits for an answer before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the clients have seen.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) done: AtomicU64,
    pub(super) done_http2: AtomicU64,
    pub(super) failed: AtomicU64,
    /// Why the first request failed.
    pub(super) first_failure: Mutex<Option<String>>,
    stops: AtomicBool,
    number: AtomicU64,
    recent: Mutex<Histogram<u64>>,
    total: Mutex<Histogram<u64>>,
}

/// A connection of a client to the gateway.
enum Connection {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl Connection {
    async fn http1(address: SocketAddr) -> Result<Self, Error> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(tcp)).await?;
        tokio::spawn(connection);
        Ok(Self::Http1(sender))
    }

    async fn http2(address: SocketAddr, tls: &TlsConnector) -> Result<Self, Error> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let stream = tls.connect(ServerName::try_from(NAME)?, tcp).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err("the gateway did not offer HTTP/2".into());
        }
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self::Http2(sender))
    }

    async fn send(&mut self, path: &str) -> Result<Response<Incoming>, Error> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                let request = Request::get(path).header("host", NAME).body(Empty::new())?;
                Ok(sender.send_request(request).await?)
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                let request = Request::get(format!("https://{NAME}{path}")).body(Empty::new())?;
                Ok(sender.send_request(request).await?)
            }
        }
    }

    /// Asks for `path`, and demands the answer of this request and of no other.
    async fn ask(&mut self, path: &str) -> Result<(), Error> {
        let response = self.send(path).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if status != 200 {
            let text = String::from_utf8_lossy(&body);
            return Err(format!("{path}: {status}: {}", text.trim_end()).into());
        }
        if body != path {
            return Err(
                format!("{path}: got the answer of {}", String::from_utf8_lossy(&body)).into()
            );
        }
        Ok(())
    }
}

/// A connector that trusts `certificate` alone and asks for HTTP/2.
pub(super) fn connector(certificate: &Certificate) -> Result<TlsConnector, Error> {
    let provider = tokio_rustls::rustls::crypto::ring::default_provider();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der.clone())?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Load {
    pub(super) fn new() -> Result<Arc<Self>, Error> {
        // 1 µs to 60 s, two digits.
        let empty = || Histogram::new_with_bounds(1, 60_000_000, 2);
        Ok(Arc::new(Self {
            done: AtomicU64::new(0),
            done_http2: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            first_failure: Mutex::new(None),
            stops: AtomicBool::new(false),
            number: AtomicU64::new(0),
            recent: Mutex::new(empty()?),
            total: Mutex::new(empty()?),
        }))
    }

    /// Asks clients to end after the request that they have under way.
    pub(super) fn stop(&self) {
        self.stops.store(true, Relaxed);
    }

    /// A client of HTTP/1.1 with one connection for the whole run.
    pub(super) async fn http1_client(self: Arc<Self>, address: SocketAddr) {
        match Connection::http1(address).await {
            Ok(connection) => self.ask_on(connection, false).await,
            Err(error) => self.fail(&*error),
        }
    }

    /// A client of HTTP/2 with one connection, on which `streams` requests are under way at a time.
    pub(super) async fn http2_client(
        self: Arc<Self>,
        address: SocketAddr,
        tls: TlsConnector,
        streams: usize,
    ) {
        let sender = match Connection::http2(address, &tls).await {
            Ok(Connection::Http2(sender)) => sender,
            Ok(Connection::Http1(_)) => return self.fail(&*Error::from("HTTP/1.1")),
            Err(error) => return self.fail(&*error),
        };
        let asking: Vec<_> = (0..streams)
            .map(|_| {
                let connection = Connection::Http2(sender.clone());
                let load = Arc::clone(&self);
                tokio::spawn(async move { load.ask_on(connection, true).await })
            })
            .collect();
        for client in asking {
            if let Err(error) = client.await {
                self.fail(&error);
            }
        }
    }

    /// Ends when the load stops, or when the connection cannot be used any more.
    async fn ask_on(&self, mut connection: Connection, is_http2: bool) {
        while !self.stops.load(Relaxed) {
            let number = self.number.fetch_add(1, Relaxed);
            let folder = if number.is_multiple_of(4) { "api" } else { "page" };
            let path = format!("/{folder}/{number}");
            let begin = Instant::now();
            let answered = timeout(PATIENCE, connection.ask(&path)).await;
            if let Err(error) = answered.map_err(Error::from).and_then(|answered| answered) {
                // No client connects again: whoever loses a connection has found a defect.
                return self.fail(&*error);
            }
            self.record(begin.elapsed());
            if is_http2 {
                self.done_http2.fetch_add(1, Relaxed);
            }
        }
    }

    /// One request that takes a second, on a connection of its own. It tells `asked` when it has
    /// been sent.
    pub(super) async fn slow_request(self: Arc<Self>, address: SocketAddr, number: usize) {
        let asked = async {
            let mut connection = Connection::http1(address).await?;
            connection.ask(&format!("/slow/{number}")).await
        };
        match timeout(PATIENCE, asked).await.map_err(Error::from).and_then(|asked| asked) {
            Ok(()) => {
                self.done.fetch_add(1, Relaxed);
            }
            Err(error) => self.fail(&*error),
        }
    }

    fn fail(&self, error: &(dyn std::error::Error + 'static)) {
        self.failed.fetch_add(1, Relaxed);
        let mut text = error.to_string();
        if let Some(cause) = error.source() {
            text = format!("{text}: {cause}");
        }
        self.first_failure.lock().get_or_insert(text);
    }

    fn record(&self, took: Duration) {
        self.done.fetch_add(1, Relaxed);
        let took = (took.as_micros() as u64).max(1);
        self.recent.lock().saturating_record(took);
        self.total.lock().saturating_record(took);
    }

    /// Latencies since the last call.
    pub(super) fn summary(&self) -> String {
        let mut recent = self.recent.lock();
        let text = shown(&recent);
        recent.reset();
        text
    }

    /// Latencies of the whole run.
    pub(super) fn total(&self) -> String {
        shown(&self.total.lock())
    }
}

fn shown(latencies: &Histogram<u64>) -> String {
    let ms = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
    format!("p50 {:.1} ms   p99 {:.1} ms   p99.9 {:.1} ms", ms(0.5), ms(0.99), ms(0.999))
}
