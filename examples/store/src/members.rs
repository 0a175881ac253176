//! Who belongs to the cluster: nodes are added, replaced and removed while it runs.
//!
//! | request | what it does |
//! |---|---|
//! | `GET /members` | the members as this node knows them, as JSON |
//! | `POST /members` | `{"add": {"id", "peers", "http"}, "remove": ID}`, one of them or both: 200 once it is so |
//!
//! A change may be sent again, whatever came of it: what is done already is not done twice.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use bytes::Bytes;
use hyper::Method;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use voussoir_raft::net::NetTransport;
use voussoir_raft::{
    AttachError, Change, ChangeError, ChangeRejected, Inbox, Membership, Message, SendError,
    SnapshotAnswer, SnapshotPart, Transport,
};

use crate::args::http_address;
use crate::client::{Answered, Client};
use crate::http::{App, Failure};

/// How long a node waits for a change. The node that asked for it asks again.
const CHANGE_WAIT: Duration = Duration::from_secs(10);
/// How long `store add` and `store replace` wait for the new node to catch up.
const PATIENCE: Duration = Duration::from_secs(600);
/// Pause before a change is asked for again.
const PAUSE: Duration = Duration::from_millis(200);

/// Where every node is: from the options, and from the changes that added nodes.
#[derive(Debug, Default)]
pub struct AddressBook {
    /// What the transport connects to.
    pub peers: voussoir_net::Peers,
    http: RwLock<BTreeMap<u64, String>>,
}

impl AddressBook {
    /// A node serves HTTP at `http` and, if it is another one, listens at `peers`.
    pub fn insert(&self, id: u64, peers: Option<SocketAddr>, http: String) {
        if let Some(peers) = peers {
            self.peers.insert(id, peers);
        }
        self.http.write().insert(id, http);
    }

    /// Where a node serves HTTP.
    pub fn http(&self, id: u64) -> Option<String> {
        self.http.read().get(&id).cloned()
    }

    /// Every node whose address is known, ascending.
    pub fn ids(&self) -> Vec<u64> {
        self.http.read().keys().copied().collect()
    }

    /// Takes the addresses that came with changes of the membership. Those of nodes that have left
    /// stay: such a node has to be told.
    fn learn(&self, own: u64, members: &Membership) {
        for (id, address) in members.addresses().iter().filter(|(id, _)| **id != own) {
            match address.split_once(',').and_then(|(p, h)| Some((p.parse().ok()?, h.to_owned()))) {
                Some((peers, http)) => self.insert(*id, Some(peers), http),
                None => tracing::error!(node = id, address, "a member has no usable address"),
            }
        }
    }
}

/// Raft's transport, which finds members at the addresses that came with them.
#[derive(Debug)]
pub struct Connecting {
    /// What carries the messages.
    pub transport: NetTransport,
    /// Shared with the transport below and the HTTP handlers.
    pub book: Arc<AddressBook>,
}

#[async_trait]
impl Transport for Connecting {
    fn local(&self) -> u64 {
        self.transport.local()
    }

    fn max_message_bytes(&self) -> usize {
        self.transport.max_message_bytes()
    }

    fn members(&self, _group: u64, members: &Membership) {
        self.book.learn(self.transport.local(), members);
    }

    fn attach(&self, group: u64, inbox: Arc<dyn Inbox>) -> Result<(), AttachError> {
        self.transport.attach(group, inbox)
    }

    fn detach(&self, group: u64) {
        self.transport.detach(group);
    }

    fn send(&self, to: u64, group: u64, message: Message) -> Result<(), SendError> {
        self.transport.send(to, group, message)
    }

    fn send_all(&self, to: u64, messages: Vec<(u64, Message)>) -> Result<(), SendError> {
        self.transport.send_all(to, messages)
    }

    async fn snapshot(
        &self,
        to: u64,
        group: u64,
        part: SnapshotPart,
        timeout: Duration,
    ) -> Result<SnapshotAnswer, SendError> {
        self.transport.snapshot(to, group, part, timeout).await
    }
}

/// The members as a node knows them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Members {
    /// Index of the entry that brought them.
    pub index: u64,
    pub voters: Vec<u64>,
    /// The voters before a change that is under way; else empty.
    pub outgoing: Vec<u64>,
    pub learners: Vec<u64>,
}

/// A node that is to come.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Added {
    pub id: u64,
    pub peers: SocketAddr,
    /// Where clients are sent: an address, or a URL.
    pub http: String,
}

/// Who is to come and to go.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Wanted {
    #[serde(default)]
    pub add: Option<Added>,
    #[serde(default)]
    pub remove: Option<u64>,
}

impl Wanted {
    fn change(&self) -> Change {
        let mut change = Change::new();
        if let Some(Added { id, peers, http }) = &self.add {
            change = change.voter(*id).address(*id, format!("{peers},{http}"));
        }
        self.remove.into_iter().fold(change, Change::remove)
    }
}

/// Answers `GET /members`.
pub async fn list(State(app): State<Arc<App>>) -> Json<Members> {
    Json(app.members())
}

/// Answers `POST /members`.
pub async fn change(
    State(app): State<Arc<App>>,
    uri: Uri,
    body: Bytes,
) -> Result<Json<Members>, Failure> {
    // Whatever its content type: `curl -d` names another one.
    let wanted: Wanted = serde_json::from_slice(&body)
        .map_err(|error| Failure::bad_request(format!("the body is no change: {error}")))?;
    if let Some(Added { http, .. }) = &wanted.add {
        http_address(http).map_err(Failure::bad_request)?;
    }
    match app.raft.change(wanted.change(), Instant::now() + CHANGE_WAIT).await {
        Ok(_) => Ok(Json(app.members())),
        Err(ChangeError::Rejected(ChangeRejected::NotLeader { leader })) => {
            match leader.and_then(|leader| app.addresses.http(leader)) {
                Some(address) => Err(Failure::redirect(&address, &uri)),
                None => Err(Failure::unavailable("no leader is known")),
            }
        }
        Err(error) if error.is_retryable() => Err(Failure::unavailable(error.to_string())),
        Err(error) => Err(Failure::bad_request(error.to_string())),
    }
}

impl App {
    fn members(&self) -> Members {
        let index = self.raft.status().borrow().members_index;
        let members = self.raft.members().borrow().clone();
        Members {
            index,
            voters: members.voters().to_vec(),
            outgoing: members.outgoing().to_vec(),
            learners: members.learners().to_vec(),
        }
    }
}

/// Asks the cluster, through the node at `to`, for other members, until it is so.
///
/// # Errors
/// The cluster rejects the change, or it is not done within 10 minutes.
///
/// # Cancel safety
/// After a dropped future the change may go on. It may be asked for again.
pub async fn ask(to: SocketAddr, wanted: &Wanted) -> Result<Members, String> {
    let body = serde_json::to_vec(wanted).map_err(|error| error.to_string())?;
    let (client, end) = (Client::new(vec![to]), Instant::now() + PATIENCE);
    let mut node = to;
    while Instant::now() < end {
        let until = Instant::now() + 2 * CHANGE_WAIT;
        let body = Bytes::from(body.clone());
        match client.send_to(node, &Method::POST, "/members", None, body, until).await {
            Ok(Answered::Reply(reply)) if reply.status.is_success() => {
                return serde_json::from_slice(&reply.body).map_err(|error| error.to_string());
            }
            Ok(Answered::Reply(reply)) => {
                let said = String::from_utf8_lossy(&reply.body);
                return Err(format!("{node}: {}: {said}", reply.status));
            }
            Ok(Answered::Elsewhere(leader)) if leader != node => {
                node = leader;
                continue;
            }
            Ok(Answered::Elsewhere(_) | Answered::Rejected) => {}
            // The leader has gone: any other node knows the next one.
            Err(_) => node = to,
        }
        sleep(PAUSE).await;
    }
    Err(format!("not done within {} s", PATIENCE.as_secs()))
}
