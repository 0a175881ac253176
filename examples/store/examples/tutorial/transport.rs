//! Raft's messages over the HTTP server that the service has anyway: `POST /raft/FROM` carries a
//! batch of messages, `POST /raft/FROM/snapshot` a part of a snapshot.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Extension, Router};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::RwLock;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use voussoir_raft::{
    AttachError, Inbox, Message, SendError, SnapshotAnswer, SnapshotPart, Transport, codec,
};

/// Messages that wait for one peer; more are dropped. Raft limits their bytes.
const MAX_QUEUED: usize = 1024;
/// A batch is sent when it has this many bytes, or when no message waits.
const BATCH_BYTES: usize = 1 << 20;
/// The longest body: a batch, and a message of `max_append_bytes` and one entry behind it.
const MAX_BODY_BYTES: usize = 4 << 20;
/// How long a peer may take to answer a batch before its messages count as lost.
const BATCH_WAIT: Duration = Duration::from_secs(2);

/// Where what arrives for a group goes.
type Inboxes = Arc<RwLock<HashMap<u64, Arc<dyn Inbox>>>>;

/// The transport of one node.
pub struct HttpTransport {
    id: u64,
    peers: BTreeMap<u64, Peer>,
    inboxes: Inboxes,
    http: Client<HttpConnector, Full<Bytes>>,
    /// One task for each peer; they end when the transport is dropped.
    _senders: JoinSet<()>,
}

struct Peer {
    address: SocketAddr,
    queue: mpsc::Sender<Bytes>,
}

impl HttpTransport {
    /// The transport of node `id` in a cluster whose nodes serve HTTP at `addresses`.
    pub fn new(id: u64, addresses: &BTreeMap<u64, SocketAddr>) -> Self {
        let http = Client::builder(TokioExecutor::new()).build_http();
        let inboxes = Inboxes::default();
        let (mut peers, mut senders) = (BTreeMap::new(), JoinSet::new());
        for (&peer, &address) in addresses.iter().filter(|(peer, _)| **peer != id) {
            let (queue, messages) = mpsc::channel(MAX_QUEUED);
            let (http, inboxes) = (http.clone(), Arc::clone(&inboxes));
            senders.spawn(async move {
                let uri = format!("http://{address}/raft/{id}");
                send_loop(peer, &uri, messages, &http, &inboxes).await;
            });
            peers.insert(peer, Peer { address, queue });
        }
        Self { id, peers, inboxes, http, _senders: senders }
    }

    /// The routes that the node's HTTP server has to offer to its peers.
    pub fn router(&self) -> Router {
        let peers: Arc<Vec<u64>> = Arc::new(self.peers.keys().copied().collect());
        Router::new()
            .route("/raft/{from}", post(receive_batch))
            .route("/raft/{from}/snapshot", post(receive_part))
            .layer(Extension(peers))
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .with_state(Arc::clone(&self.inboxes))
    }
}

#[async_trait]
impl Transport for HttpTransport {
    fn local(&self) -> u64 {
        self.id
    }

    fn attach(&self, group: u64, inbox: Arc<dyn Inbox>) -> Result<(), AttachError> {
        let mut inboxes = self.inboxes.write();
        if inboxes.contains_key(&group) {
            return Err(AttachError::Attached { group });
        }
        inboxes.insert(group, inbox);
        Ok(())
    }

    fn detach(&self, group: u64) {
        self.inboxes.write().remove(&group);
    }

    /// Never waits: raft's loop calls it. What finds no room is dropped, and raft sends it again.
    fn send(&self, to: u64, group: u64, message: Message) -> Result<(), SendError> {
        let peer = self.peers.get(&to).ok_or(SendError::UnknownPeer)?;
        let bytes = codec::encode(group, &message).into_bytes();
        peer.queue.try_send(bytes).map_err(|_| SendError::Full)
    }

    fn send_all(&self, to: u64, messages: Vec<(u64, Message)>) -> Result<(), SendError> {
        let send = |(group, message)| self.send(to, group, message);
        messages.into_iter().map(send).fold(Ok(()), Result::and)
    }

    async fn snapshot(
        &self,
        to: u64,
        group: u64,
        part: SnapshotPart,
        time: Duration,
    ) -> Result<SnapshotAnswer, SendError> {
        let peer = self.peers.get(&to).ok_or(SendError::UnknownPeer)?;
        let uri = format!("http://{}/raft/{}/snapshot", peer.address, self.id);
        let body = codec::encode_part(group, part).into_bytes();
        let answer = post_bytes(&self.http, &uri, body, time).await.ok_or(SendError::NoAnswer)?;
        codec::decode_answer(answer).map_err(|_| SendError::NoAnswer)
    }
}

/// Sends one batch after the other to one peer, so that messages stay in order.
async fn send_loop(
    peer: u64,
    uri: &str,
    mut messages: mpsc::Receiver<Bytes>,
    http: &Client<HttpConnector, Full<Bytes>>,
    inboxes: &Inboxes,
) {
    while let Some(first) = messages.recv().await {
        let mut batch = BytesMut::new();
        let mut next = Some(first);
        while let Some(message) = next {
            batch.put_u32_le(message.len() as u32);
            batch.put(message);
            next = if batch.len() < BATCH_BYTES { messages.try_recv().ok() } else { None };
        }
        if post_bytes(http, uri, batch.freeze(), BATCH_WAIT).await.is_none() {
            let attached: Vec<_> = inboxes.read().values().cloned().collect();
            attached.iter().for_each(|inbox| inbox.unreachable(peer));
        }
    }
}

/// The body of a successful answer.
async fn post_bytes(
    http: &Client<HttpConnector, Full<Bytes>>,
    uri: &str,
    body: Bytes,
    time: Duration,
) -> Option<Bytes> {
    let request = Request::builder().method(Method::POST).uri(uri).body(Full::new(body)).ok()?;
    let exchange = async {
        let response = http.request(request).await.ok()?;
        let is_success = response.status().is_success();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        is_success.then_some(body)
    };
    timeout(time, exchange).await.ok()?
}

/// Hands the messages of a batch to their groups. The path says who sends: put TLS with client
/// certificates in front where others can reach this port.
async fn receive_batch(
    State(inboxes): State<Inboxes>,
    Extension(peers): Extension<Arc<Vec<u64>>>,
    Path(from): Path<u64>,
    mut batch: Bytes,
) -> StatusCode {
    if !peers.contains(&from) {
        return StatusCode::FORBIDDEN;
    }
    while batch.has_remaining() {
        let len = batch.try_get_u32_le().map_or(usize::MAX, |len| len as usize);
        if len > batch.remaining() {
            return StatusCode::BAD_REQUEST;
        }
        let Ok((group, message)) = codec::decode(batch.split_to(len)) else {
            return StatusCode::BAD_REQUEST;
        };
        let inbox = inboxes.read().get(&group).cloned();
        if let Some(inbox) = inbox {
            inbox.message(from, message);
        }
    }
    StatusCode::OK
}

async fn receive_part(
    State(inboxes): State<Inboxes>,
    Extension(peers): Extension<Arc<Vec<u64>>>,
    Path(from): Path<u64>,
    body: Bytes,
) -> Result<Bytes, StatusCode> {
    if !peers.contains(&from) {
        return Err(StatusCode::FORBIDDEN);
    }
    let (group, part) = codec::decode_part(body).map_err(|_| StatusCode::BAD_REQUEST)?;
    let inbox = inboxes.read().get(&group).cloned().ok_or(StatusCode::NOT_FOUND)?;
    Ok(codec::encode_answer(inbox.snapshot(from, part).await))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use voussoir_raft::testing::conformance;

    use super::*;

    #[tokio::test]
    async fn the_transport_keeps_the_promises_of_its_trait() {
        let (mut addresses, mut listeners) = (BTreeMap::new(), Vec::new());
        for id in [1, 2] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.insert(id, listener.local_addr().unwrap());
            listeners.push(listener);
        }
        let mut nodes = Vec::new();
        for (id, listener) in (1..).zip(listeners) {
            let node = Arc::new(HttpTransport::new(id, &addresses));
            tokio::spawn(axum::serve(listener, node.router()).into_future());
            nodes.push(node);
        }
        conformance::transport(nodes[0].clone(), nodes[1].clone()).await;
    }
}
