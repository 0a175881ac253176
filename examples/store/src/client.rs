//! An HTTP client that finds the leader, and says of each failed request whether it may have
//! happened.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{ETAG, IF_MATCH, LOCATION};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::{Instant, sleep, timeout_at};

/// One request may take this long, retries included.
const DEADLINE: Duration = Duration::from_secs(5);
/// Between two tries where no node could serve.
const PAUSE: Duration = Duration::from_millis(5);

/// What a node answered.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub version: Option<u64>,
    pub body: Bytes,
}

/// A request that got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// It did not happen and never will.
    NotApplied,
    /// It may have happened, or happen later.
    Unknown,
}

/// A client of the whole cluster; clones share connections and what is known of the leader.
#[derive(Debug, Clone)]
pub struct Client {
    http: HyperClient<HttpConnector, Full<Bytes>>,
    nodes: Arc<Vec<SocketAddr>>,
    leader: Arc<AtomicUsize>,
    reads: Arc<AtomicUsize>,
}

impl Client {
    pub fn new(nodes: Vec<SocketAddr>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_millis(500)));
        let http = HyperClient::builder(TokioExecutor::new()).build(connector);
        Self { http, nodes: Arc::new(nodes), leader: Arc::default(), reads: Arc::default() }
    }

    /// The nodes that it knows.
    pub fn nodes(&self) -> &[SocketAddr] {
        &self.nodes
    }

    /// Sends a request until it is answered or the deadline is over: a GET to one node after the
    /// other, because every node answers it, anything else to the leader, wherever it is. A request
    /// whose outcome is unknown is not sent again, unless it is a GET.
    ///
    /// # Errors
    /// [`Lost`]: whether it may have happened.
    ///
    /// # Cancel safety
    /// Dropped, the outcome of the request is unknown.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        if_match: Option<u64>,
        body: Bytes,
    ) -> Result<Reply, Lost> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let is_read = method == Method::GET;
            let guess = match is_read {
                true => self.reads.fetch_add(1, Ordering::Relaxed),
                false => self.leader.load(Ordering::Relaxed),
            };
            let node = self.nodes[guess % self.nodes.len()];
            let tried = self.send_to(node, &method, path, if_match, body.clone(), deadline).await;
            match tried {
                Ok(Answered::Reply(reply)) => return Ok(reply),
                Ok(Answered::Elsewhere(leader)) => {
                    let found = self.nodes.iter().position(|known| *known == leader);
                    self.move_on(guess, found.unwrap_or(guess + 1));
                    continue;
                }
                Ok(Answered::Refused) | Err(_) if is_read => {}
                Ok(Answered::Refused) | Err(Lost::NotApplied) => self.move_on(guess, guess + 1),
                Err(Lost::Unknown) => {
                    self.move_on(guess, guess + 1);
                    return Err(Lost::Unknown);
                }
            }
            if Instant::now() >= deadline {
                return Err(Lost::NotApplied);
            }
            sleep(PAUSE).await;
        }
    }

    /// The next try goes to `to`, unless another task has found a better node in the meantime.
    fn move_on(&self, from: usize, to: usize) {
        let to = to % self.nodes.len();
        let _ = self.leader.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// One try at one node.
    ///
    /// # Errors
    /// [`Lost`]: whether it may have happened.
    ///
    /// # Cancel safety
    /// Dropped, the outcome of the request is unknown.
    pub async fn send_to(
        &self,
        node: SocketAddr,
        method: &Method,
        path: &str,
        if_match: Option<u64>,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Answered, Lost> {
        let mut request = Request::builder().method(method).uri(format!("http://{node}{path}"));
        if let Some(version) = if_match {
            request = request.header(IF_MATCH, format!("\"{version}\""));
        }
        let request = request.body(Full::new(body)).map_err(|_| Lost::NotApplied)?;
        let response = match timeout_at(deadline, self.http.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if error.is_connect() => return Err(Lost::NotApplied),
            Ok(Err(_)) | Err(_) => return Err(Lost::Unknown),
        };
        let (head, body) = response.into_parts();
        let Ok(Ok(body)) = timeout_at(deadline, body.collect()).await else {
            return Err(Lost::Unknown);
        };
        let body = body.to_bytes();
        let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
        match head.status {
            StatusCode::TEMPORARY_REDIRECT => {
                let leader = header(LOCATION).and_then(|location| location.parse::<Uri>().ok());
                let leader = leader.as_ref().and_then(Uri::authority);
                match leader.and_then(|authority| authority.as_str().parse().ok()) {
                    Some(address) => Ok(Answered::Elsewhere(address)),
                    None => Ok(Answered::Refused),
                }
            }
            StatusCode::SERVICE_UNAVAILABLE => Ok(Answered::Refused),
            status if status.is_server_error() => Err(Lost::Unknown),
            status => {
                let version = header(ETAG).and_then(|tag| tag.trim_matches('"').parse().ok());
                Ok(Answered::Reply(Reply { status, version, body }))
            }
        }
    }
}

/// What became of one try.
#[derive(Debug)]
pub enum Answered {
    Reply(Reply),
    /// Not here: the leader is there.
    Elsewhere(SocketAddr),
    /// Not here and not now; nothing was changed.
    Refused,
}
