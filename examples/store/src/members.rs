//! Who belongs to the cluster: nodes are added, replaced, moved and removed while it runs.
//!
//! | request | what it does |
//! |---|---|
//! | `GET /members` | the members as this node knows them, as JSON |
//! | `POST /members` | `{"add": NODE, "move": NODE, "remove": ID}`, any of them: 200 once it is so |
//!
//! NODE is `{"id", "peers", "http"}`.
//!
//! A change may be sent again, whatever came of it: what is done already is not done twice. To add
//! a node that is a member at other addresses is refused with 409, since a slip of the number would
//! take a healthy node out: only `move` changes where a member is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use bytes::Bytes;
use hyper::Method;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use voussoir_net::Resolver as _;
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
/// How long the nodes that were asked, or that were named as the leader, may fail to answer at all.
const SILENCE: Duration = Duration::from_secs(10);
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

    fn max_small_message_bytes(&self) -> usize {
        self.transport.max_small_message_bytes()
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

/// A node, and where it is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Placed {
    pub id: u64,
    pub peers: SocketAddr,
    /// Where clients are sent: an address, or a URL.
    pub http: String,
}

impl Placed {
    /// The address as it stands in the membership.
    fn address(&self) -> String {
        format!("{},{}", self.peers, self.http)
    }
}

/// Who is to come, to move and to go.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Wanted {
    #[serde(default)]
    pub add: Option<Placed>,
    #[serde(default, rename = "move")]
    pub moved: Option<Placed>,
    #[serde(default)]
    pub remove: Option<u64>,
}

/// Why raft is not asked for a change. Nothing was changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error(
        "node {id} is a member at {at}: `store move` gives a member other addresses; a new node \
         has a number that no node of this cluster ever had"
    )]
    IsMember { id: u64, at: String },
    #[error("node {id} is no member: `store add` adds a node")]
    NoMember { id: u64 },
}

impl Wanted {
    fn change(&self) -> Change {
        let mut change = Change::new();
        if let Some(added) = &self.add {
            change = change.voter(added.id).address(added.id, added.address());
        }
        if let Some(moved) = &self.moved {
            change = change.address(moved.id, moved.address());
        }
        self.remove.into_iter().fold(change, Change::remove)
    }

    /// Whether it adds only nodes that are no members, or that are at these addresses already, and
    /// moves only members. `address_of` knows where the members are that have no address in
    /// `members`: those that the cluster began with.
    fn check(
        &self,
        members: &Membership,
        address_of: impl Fn(u64) -> Option<String>,
    ) -> Result<(), Refused> {
        if let Some(added) = self.add.as_ref().filter(|added| members.contains(added.id)) {
            let id = added.id;
            let at = members.address(id).map(str::to_owned).or_else(|| address_of(id));
            if at.as_ref() != Some(&added.address()) {
                let at = at.unwrap_or_else(|| "an unknown address".to_owned());
                return Err(Refused::IsMember { id, at });
            }
        }
        match &self.moved {
            Some(Placed { id, .. }) if !members.contains(*id) => Err(Refused::NoMember { id: *id }),
            _ => Ok(()),
        }
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
    let mut wanted: Wanted = serde_json::from_slice(&body)
        .map_err(|error| Failure::bad_request(format!("the body is no change: {error}")))?;
    for Placed { http, .. } in wanted.add.iter_mut().chain(&mut wanted.moved) {
        *http = http_address(http).map_err(Failure::bad_request)?;
    }
    // The leader decides: the members that another node knows may be old.
    if app.leads() {
        let members = app.raft.members().borrow().clone();
        let checked = wanted.check(&members, |id| app.address_of(id));
        checked.map_err(|error| Failure::rejected(StatusCode::CONFLICT, error.to_string()))?;
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

    /// Where this node and those of its options are, in the form of a membership.
    fn address_of(&self, id: u64) -> Option<String> {
        let own = (id == self.raft.status().borrow().id).then(|| self.tcp.address());
        let peers = own.or_else(|| self.addresses.peers.resolve(id))?;
        Some(format!("{peers},{}", self.addresses.http(id)?))
    }
}

/// Asks the cluster, through any of the nodes at `to`, for other members, until it is so.
///
/// # Errors
/// The cluster rejects the change, neither the nodes at `to` nor the leader that they name answer
/// for 10 s, or the change is not done within 10 minutes.
///
/// # Panics
/// `to` is empty.
///
/// # Cancel safety
/// After a dropped future the change may go on. It may be asked for again.
pub async fn ask(to: &[SocketAddr], wanted: &Wanted) -> Result<Members, String> {
    let body = serde_json::to_vec(wanted).map_err(|error| error.to_string())?;
    let (client, end) = (Client::new(to.to_vec()), Instant::now() + PATIENCE);
    let mut turns = to.iter().cycle().skip(1).copied();
    let (mut node, mut silent_since) = (to[0], None);
    while Instant::now() < end {
        let until = Instant::now() + 2 * CHANGE_WAIT;
        let body = Bytes::from(body.clone());
        let silent = match client.send_to(node, &Method::POST, "/members", None, body, until).await
        {
            Ok(Answered::Reply(reply)) if reply.status.is_success() => {
                return serde_json::from_slice(&reply.body).map_err(|error| error.to_string());
            }
            Ok(Answered::Reply(reply)) => {
                let said = String::from_utf8_lossy(&reply.body);
                return Err(format!("{node}: {}: {said}", reply.status));
            }
            // Whether anybody answers there is not known yet.
            Ok(Answered::Elsewhere(leader)) => {
                node = leader;
                None
            }
            Ok(Answered::Rejected) => {
                silent_since = None;
                None
            }
            Ok(Answered::Away(url)) => Some(url),
            Err(_) => Some(node.to_string()),
        };
        // The leader has gone, or is not where it is said to be. Any other node knows the next one,
        // and the leader itself may be among those that were named.
        if let Some(silent) = silent {
            if silent_since.get_or_insert_with(Instant::now).elapsed() >= SILENCE {
                return Err(unanswered(&silent, to));
            }
            node = turns.next().unwrap_or(node);
        }
        sleep(PAUSE).await;
    }
    Err(format!("not done within {} s", PATIENCE.as_secs()))
}

fn unanswered(silent: &str, to: &[SocketAddr]) -> String {
    let seconds = SILENCE.as_secs();
    if to.iter().any(|node| node.to_string() == silent) {
        return format!("{silent} has not answered for {seconds} s");
    }
    format!(
        "the leader is said to be at {silent}, where it was not reached for {seconds} s: name it \
         with --to, at the address where it is"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_a_member_is_moved_by_no_add() {
        let placed = |id, port: u16, http: &str| {
            Some(Placed { id, peers: ([10, 0, 0, 1], port).into(), http: http.to_owned() })
        };
        let add = |add| Wanted { add, ..Wanted::default() };
        let moved = |moved| Wanted { moved, ..Wanted::default() };
        let members = Membership::from(vec![1, 2]);
        let check = |wanted: &Wanted| {
            wanted.check(&members, |id| (id == 2).then(|| "10.0.0.1:7,two".to_owned()))
        };
        assert_eq!(check(&add(placed(3, 7, "two"))), Ok(()));
        assert_eq!(check(&add(placed(2, 7, "two"))), Ok(()), "it was added before");
        for other in [placed(2, 8, "two"), placed(2, 7, "one")] {
            let at = "10.0.0.1:7,two".to_owned();
            assert_eq!(check(&add(other.clone())), Err(Refused::IsMember { id: 2, at }));
            assert_eq!(check(&moved(other)), Ok(()));
        }
        let at = "an unknown address".to_owned();
        assert_eq!(check(&add(placed(1, 7, "one"))), Err(Refused::IsMember { id: 1, at }));
        assert_eq!(check(&moved(placed(3, 7, "two"))), Err(Refused::NoMember { id: 3 }));
    }
}
