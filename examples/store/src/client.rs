//! An HTTP client that finds the leader, and says for each failed request whether it may have been
//! applied.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{ETAG, HeaderMap, HeaderValue, IF_MATCH, LOCATION};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::{Instant, sleep, timeout_at};

/// Time limit of a request, retries included.
const DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of an answer, at most: of a long listing.
const MAX_REPLY_BYTES: usize = 256 << 20;
/// Pause before the next attempt when no node could serve the last one.
const PAUSE: Duration = Duration::from_millis(5);

/// The answer of a node.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub version: Option<u64>,
    pub body: Bytes,
}

/// The outcome of a request that got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// It was not applied and never will be.
    NotApplied,
    /// It may have been applied, or may be later.
    Unknown,
}

/// A client of the whole cluster. Clones share connections and the assumed leader.
#[derive(Debug, Clone)]
pub struct Client {
    http: HyperClient<HttpConnector, Full<Bytes>>,
    nodes: Arc<Vec<SocketAddr>>,
    /// Place of the assumed leader in `nodes`, modulo their number.
    leader: Arc<AtomicUsize>,
    /// Number of reads; each goes to the node after the last one's.
    reads: Arc<AtomicUsize>,
    max_reply_bytes: usize,
}

impl Client {
    pub fn new(nodes: Vec<SocketAddr>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_millis(500)));
        let http = HyperClient::builder(TokioExecutor::new()).build(connector);
        let (nodes, max_reply_bytes) = (Arc::new(nodes), MAX_REPLY_BYTES);
        Self { http, nodes, leader: Arc::default(), reads: Arc::default(), max_reply_bytes }
    }

    /// The same for answers of so many bytes at most. The outcome of a request with a longer one is
    /// unknown.
    #[must_use]
    pub fn with_reply_limit(self, max_reply_bytes: usize) -> Self {
        Self { max_reply_bytes, ..self }
    }

    /// The addresses that it was given.
    pub fn nodes(&self) -> &[SocketAddr] {
        &self.nodes
    }

    /// Sends a request until it is answered, for at most 5 s. Reads go to the nodes in turn: every
    /// node answers them. Other requests go to the leader, which the client looks for. A request
    /// whose outcome is unknown is not sent again, unless it is a GET.
    ///
    /// # Errors
    /// [`Lost`] says whether the request may have been applied.
    ///
    /// # Cancel safety
    /// After a dropped future the outcome of the request is unknown.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        if_match: Option<u64>,
        body: Bytes,
    ) -> Result<Reply, Lost> {
        let deadline = Instant::now() + DEADLINE;
        // A leader that joined after this client was made.
        let mut joined = None;
        loop {
            let is_read = method == Method::GET;
            let guess = match is_read {
                true => self.reads.fetch_add(1, Ordering::Relaxed),
                false => self.leader.load(Ordering::Relaxed),
            };
            let node = joined.take().unwrap_or(self.nodes[guess % self.nodes.len()]);
            let tried = self.send_to(node, &method, path, if_match, body.clone(), deadline).await;
            match tried {
                Ok(Answered::Reply(reply)) => return Ok(reply),
                Ok(Answered::Elsewhere(leader)) => {
                    match self.nodes.iter().position(|known| *known == leader) {
                        Some(known) => self.assume_leader(guess, known),
                        None => joined = Some(leader),
                    }
                    if Instant::now() >= deadline {
                        return Err(Lost::NotApplied);
                    }
                    continue;
                }
                Ok(Answered::Rejected | Answered::Away(_)) | Err(_) if is_read => {}
                Ok(Answered::Rejected | Answered::Away(_)) | Err(Lost::NotApplied) => {
                    self.assume_leader(guess, guess + 1)
                }
                Err(Lost::Unknown) => {
                    self.assume_leader(guess, guess + 1);
                    return Err(Lost::Unknown);
                }
            }
            if Instant::now() >= deadline {
                return Err(Lost::NotApplied);
            }
            sleep(PAUSE).await;
        }
    }

    /// Assumes the leader at `to`, unless another task has changed the assumption meanwhile.
    fn assume_leader(&self, from: usize, to: usize) {
        let to = to % self.nodes.len();
        let _ = self.leader.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Sends a request to one node, once.
    ///
    /// # Errors
    /// [`Lost`] says whether the request may have been applied.
    ///
    /// # Cancel safety
    /// After a dropped future the outcome of the request is unknown.
    pub async fn send_to(
        &self,
        node: SocketAddr,
        method: &Method,
        path: &str,
        if_match: Option<u64>,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Answered, Lost> {
        let mut headers = HeaderMap::new();
        if let Some(version) = if_match {
            let version = HeaderValue::try_from(format!("\"{version}\""));
            headers.insert(IF_MATCH, version.map_err(|_| Lost::NotApplied)?);
        }
        self.send_with(node, method, path, &headers, body, deadline).await
    }

    /// The same with any headers.
    ///
    /// # Errors
    /// [`Lost`] says whether the request may have been applied.
    ///
    /// # Cancel safety
    /// After a dropped future the outcome of the request is unknown.
    pub async fn send_with(
        &self,
        node: SocketAddr,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Answered, Lost> {
        let mut request = Request::builder().method(method).uri(format!("http://{node}{path}"));
        if let Some(all) = request.headers_mut() {
            all.extend(headers.clone());
        }
        let request = request.body(Full::new(body)).map_err(|_| Lost::NotApplied)?;
        let response = match timeout_at(deadline, self.http.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if error.is_connect() => return Err(Lost::NotApplied),
            Ok(Err(_)) | Err(_) => return Err(Lost::Unknown),
        };
        let (head, body) = response.into_parts();
        let Ok(Ok(body)) =
            timeout_at(deadline, Limited::new(body, self.max_reply_bytes).collect()).await
        else {
            return Err(Lost::Unknown);
        };
        let body = body.to_bytes();
        let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
        match head.status {
            StatusCode::TEMPORARY_REDIRECT => {
                let leader = header(LOCATION).and_then(|location| location.parse::<Uri>().ok());
                let leader = leader.as_ref().and_then(Uri::authority);
                let address = leader.and_then(|authority| authority.as_str().parse().ok());
                Ok(match (address, header(LOCATION)) {
                    (Some(address), _) => Answered::Elsewhere(address),
                    (None, Some(location)) => Answered::Away(location.to_owned()),
                    (None, None) => Answered::Rejected,
                })
            }
            StatusCode::SERVICE_UNAVAILABLE => Ok(Answered::Rejected),
            // An answer: as much is stored as there is room for.
            status if status.is_server_error() && status != StatusCode::INSUFFICIENT_STORAGE => {
                Err(Lost::Unknown)
            }
            status => {
                let version = header(ETAG).and_then(|tag| tag.trim_matches('"').parse().ok());
                Ok(Answered::Reply(Reply { status, version, body }))
            }
        }
    }
}

/// The result of one attempt.
#[derive(Debug)]
pub enum Answered {
    Reply(Reply),
    /// A redirect to the leader at this address; nothing was changed.
    Elsewhere(SocketAddr),
    /// A redirect to the leader at a URL that this client does not follow: of a proxy, for example;
    /// nothing was changed.
    Away(String),
    /// The node cannot serve the request now; nothing was changed.
    Rejected,
}
