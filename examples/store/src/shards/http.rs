//! The HTTP interface of a node of a sharded store.
//!
//! | request | what it does |
//! |---|---|
//! | `PUT`, `GET`, `DELETE /kv/{key}` | as in the store without shards: versions as `ETag`, `If-Match`, `If-None-Match` |
//! | `GET /shards` | the shard map as this node knows it, as JSON |
//! | `POST /map` | a [`Change`] of the map by an operator; 409 and the reason where it is refused |
//! | `POST /map/report` | to the leader of group 0: a shard is open, or its split is taken back. It asks the shard itself |
//! | `GET /shards/{id}/state` | to another node: what a shard's log says of it |
//! | `POST /shards/{id}/parting` | to another node: what a shard has sealed for another one |
//! | `GET /status` | the shards of this node and their load, as JSON |
//! | `GET /health`, `GET /ready` | 200 while all of the node works; 200 once it has a map, with the map's age |
//!
//! A client that caches the map names the shard and the epoch under which it believes a key to be
//! there, in `Store-Shard` and `Store-Epoch`. Where that is no longer so, the answer is 421 with a
//! [`Moved`] as JSON, and nothing was changed. A request without these headers is answered with 307
//! and the address of the node that has the key (`curl -L`).
//!
//! With `Store-Client` and `Store-Request` (numbers, from 1) a write is applied once, however often
//! it is sent: see [`clients`](super::clients).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::header::ETAG;
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use voussoir_raft::ProposeError;

use super::clients::RequestId;
use super::command::{Command, Reply, Step};
use super::fill::{Piece, Wanted};
use super::host::{Host, Replica};
use super::load::Hot;
use super::map::{Change, Routes, ShardMap};
use super::map_group::{self, Changed};
use super::place::place;
use super::reconcile::step;
use super::shard::Found;
use super::state::{self, ShardState};
use crate::http::{Failure, Key, condition, etag, valid_key};
use crate::kv::{self, Answer, Condition, MAX_VALUE_BYTES};
use crate::room::propose;
use crate::traffic::Traffic;

pub const SHARD: HeaderName = HeaderName::from_static("store-shard");
pub const EPOCH: HeaderName = HeaderName::from_static("store-epoch");
pub const CLIENT: HeaderName = HeaderName::from_static("store-client");
pub const REQUEST: HeaderName = HeaderName::from_static("store-request");

/// How often a request that names no shard is tried here, in the shard and under the epoch that the
/// last attempt was told.
const ATTEMPTS: usize = 3;

/// What the handlers share.
pub struct App {
    pub host: Arc<Host>,
    pub traffic: Traffic,
}

type Shared = State<Arc<App>>;

pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/kv/{*key}", get(read).put(write).delete(delete))
        .route("/shards", get(shards))
        .route("/map", post(change))
        .route("/map/report", post(report))
        .route("/shards/{id}/state", get(state_of))
        .route("/shards/{id}/parting", post(parting))
        .route("/status", get(status))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .layer(DefaultBodyLimit::max(MAX_VALUE_BYTES))
        .layer(middleware::from_fn_with_state(app.clone(), observe))
        .with_state(app)
}

/// Counts requests in flight, and rejects new ones while the node shuts down.
async fn observe(State(app): Shared, request: Request, next: Next) -> Response {
    let _in_flight = app.traffic.start_request();
    if app.traffic.is_draining() && request.uri().path().starts_with("/kv") {
        return Failure::unavailable("the node is shutting down").into_response();
    }
    next.run(request).await
}

/// The answer to a request for a key that is not here, or not under the epoch that the request
/// names. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Always `moved`.
    pub error: String,
    /// Always `not_applied`.
    pub outcome: String,
    /// The shard that has the key.
    pub shard: u64,
    /// Its epoch.
    pub epoch: u64,
    /// Where to send the request: the shard's leader, or who is to lead it.
    pub node: u64,
    pub http: Option<std::net::SocketAddr>,
    /// Version of the map that this node knows: a client with an older one fetches it.
    pub version: u64,
}

/// A request for a key, before it is known where it belongs.
struct Asked {
    place: String,
    uri: Uri,
    /// The shard and the epoch that the client named.
    named: Option<(u64, u64)>,
    id: Option<RequestId>,
}

impl Asked {
    fn new(key: Key, uri: Uri, headers: &HeaderMap) -> Result<(Self, Condition), Failure> {
        let key = valid_key(key)?;
        // It came out of a path, as UTF-8.
        let place = place(&String::from_utf8_lossy(&key));
        let number = |name: &HeaderName| match headers.get(name) {
            None => Ok(None),
            Some(value) => match value.to_str().ok().and_then(|text| text.parse::<u64>().ok()) {
                Some(number) if number > 0 => Ok(Some(number)),
                _ => Err(Failure::bad_request(format!("{name} is a number from 1"))),
            },
        };
        let named = number(&SHARD)?.zip(number(&EPOCH)?);
        let id = number(&CLIENT)?.zip(number(&REQUEST)?);
        let id = id.map(|(client, number)| RequestId { client, number });
        Ok((Self { place, uri, named, id }, condition(headers)?))
    }

    /// The answer where the request belongs to another shard or node: to this shard, under this
    /// epoch, at this node.
    fn moved(&self, host: &Host, shard: u64, epoch: u64, node: Option<u64>) -> Response {
        let routes = host.routes();
        let preferred = || {
            let nodes = routes.map.shards.get(&shard)?.nodes.iter().copied();
            // Not this node again, unless no other is left.
            let others = nodes.clone().filter(|node| *node != host.id());
            host.living_first(others).first().copied().or_else(|| nodes.last())
        };
        let Some(node) = node.or_else(preferred) else {
            return Failure::unavailable("the owner of the key is not known").into_response();
        };
        let http = routes.map.nodes.get(&node).map(|address| address.http);
        if self.named.is_none() {
            // A client that follows to a node that has just died has nowhere to go on from.
            return match http.filter(|_| node != host.id() && !host.is_dead(node)) {
                Some(http) => Failure::redirect(&http.to_string(), &self.uri).into_response(),
                None => Failure::unavailable("no leader can be reached").into_response(),
            };
        }
        let (error, outcome) = ("moved".to_owned(), "not_applied".to_owned());
        let version = routes.map.version;
        let moved = Moved { error, outcome, shard, epoch, node, http, version };
        (StatusCode::MISDIRECTED_REQUEST, Json(moved)).into_response()
    }

    /// Where the newest map of this node has the key.
    fn by_map(&self, host: &Host) -> Response {
        match host.routes().find(&self.place) {
            Some((shard, info)) => self.moved(host, shard, info.epoch, None),
            None => Failure::unavailable("this node has no shard map yet").into_response(),
        }
    }

    /// The answer to a refusal of the shard's state.
    async fn refused(&self, host: &Host, shard: u64, reply: Reply) -> Response {
        let routes = host.routes();
        match reply {
            // Its nodes would send the request back until it is open: the map does not say yet
            // whether it is, so they are asked.
            Reply::Moved { to } if self.named.is_none() => {
                let open = match routes.map.shards.get(&to) {
                    Some(right) => state::find(host, to, right, |state| state.is_open).await,
                    None => None,
                };
                match open {
                    Some(node) => self.moved(host, to, 0, Some(node)),
                    None => Failure::unavailable("the key is being moved").into_response(),
                }
            }
            Reply::Moved { to } => {
                let epoch = routes.map.shards.get(&to).map_or(0, |info| info.epoch);
                self.moved(host, to, epoch, None)
            }
            // The key may be in this shard, under the newer epoch, or in one that was split off.
            Reply::Stale { epoch } => match routes.find(&self.place) {
                Some((owner, _)) if owner == shard => {
                    self.moved(host, shard, epoch, Some(host.id()))
                }
                _ => self.by_map(host),
            },
            Reply::Old => {
                let error = "the client has had the answer to a later request".to_owned();
                Failure::rejected(StatusCode::CONFLICT, error).into_response()
            }
            Reply::Closed => Failure::unavailable("the shard is not open yet").into_response(),
            Reply::Written(_) | Reply::Done | Reply::Refused => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                (status, format!("a request was answered with {reply:?}")).into_response()
            }
        }
    }

    /// The shard and epoch under which the request is to be tried here. Without headers it is what
    /// a replica of this node says of itself: a split changes that before it changes the map.
    fn target(&self, host: &Host) -> Option<(u64, u64)> {
        if self.named.is_some() {
            return self.named;
        }
        let routes = host.routes();
        let (shard, info) = routes.find(&self.place)?;
        let right = info.split.as_ref().filter(|split| self.place >= split.at);
        let here = right.map(|split| split.to).into_iter().chain([shard]).find_map(|id| {
            let replica = host.replica(id)?;
            let state = replica.shard.read();
            state.owns(&self.place).then(|| (id, state.epoch()))
        });
        here.or(Some((shard, info.epoch)))
    }

    /// Where the request is to be tried here next, after the state of `from` has refused it.
    fn next(&self, host: &Host, from: (u64, u64), reply: Reply) -> Option<(u64, u64)> {
        if self.named.is_some() {
            return None;
        }
        match reply {
            Reply::Stale { epoch } if epoch != from.1 => Some((from.0, epoch)),
            Reply::Moved { to } => {
                let replica = host.replica(to)?;
                let state = replica.shard.read();
                state.owns(&self.place).then(|| (to, state.epoch()))
            }
            _ => None,
        }
    }
}

async fn write(
    State(app): Shared,
    key: Key,
    uri: Uri,
    headers: HeaderMap,
    value: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let (asked, condition) = Asked::new(key, uri, &headers)?;
    let (key, value) = (Bytes::from(asked.place.clone()), value?);
    Ok(app.write(&asked, kv::Command::Put { key, value, condition }).await)
}

async fn delete(
    State(app): Shared,
    key: Key,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let (asked, condition) = Asked::new(key, uri, &headers)?;
    let key = Bytes::from(asked.place.clone());
    Ok(app.write(&asked, kv::Command::Delete { key, condition }).await)
}

async fn read(
    State(app): Shared,
    key: Key,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let (asked, _) = Asked::new(key, uri, &headers)?;
    Ok(app.read(&asked).await)
}

impl App {
    async fn write(&self, asked: &Asked, write: kv::Command) -> Response {
        let host = &self.host;
        let mut next = asked.target(host);
        for _ in 0..ATTEMPTS {
            let Some((shard, epoch)) = next else { return asked.by_map(host) };
            let Some(replica) = host.replica(shard) else { return asked.by_map(host) };
            let command = Command::Write { epoch, id: asked.id, write: write.clone() };
            let within = host.serve.timing.request_timeout;
            let proposed = match host.room.reserve(&write, || host.stored_bytes()) {
                Ok(room) => propose(&replica.raft, command.encode(), within, room).await,
                Err(full) if replica.leads() => return Failure::from(full).into_response(),
                // Whether there is room is for the leader to say.
                Err(_) => {
                    let leader = replica.raft.status().borrow().leader;
                    Err(ProposeError::NotLeader { leader })
                }
            };
            let answer = match proposed {
                Ok(answer) => answer,
                Err(ProposeError::NotLeader { leader }) => {
                    return match leader {
                        Some(leader) => asked.moved(host, shard, epoch, Some(leader)),
                        None => Failure::unavailable("the shard has no leader").into_response(),
                    };
                }
                Err(error) => return Failure::proposal(&error).into_response(),
            };
            match Reply::decode(&answer) {
                Ok(Reply::Written(answer)) => {
                    self.counted(&replica, &asked.place, true);
                    return answered(answer);
                }
                Ok(reply) => {
                    next = asked.next(host, (shard, epoch), reply);
                    if next.is_none() {
                        return asked.refused(host, shard, reply).await;
                    }
                }
                Err(error) => {
                    let body = serde_json::json!({
                        "error": error.to_string(), "outcome": "unknown"
                    });
                    return (StatusCode::INTERNAL_SERVER_ERROR, Json(body)).into_response();
                }
            }
        }
        asked.by_map(host)
    }

    async fn read(&self, asked: &Asked) -> Response {
        let host = &self.host;
        let mut next = asked.target(host);
        for _ in 0..ATTEMPTS {
            let Some((shard, epoch)) = next else { return asked.by_map(host) };
            let Some(replica) = host.replica(shard) else { return asked.by_map(host) };
            let until = Instant::now() + host.serve.timing.request_timeout;
            if let Err(error) = replica.raft.read(until).await {
                return Failure::unavailable(error.to_string()).into_response();
            }
            let found = replica.shard.read().get(&asked.place, epoch);
            match found {
                Found::Value(held) => {
                    self.counted(&replica, &asked.place, false);
                    return match held {
                        Some(held) => ([(ETAG, etag(held.version))], held.value).into_response(),
                        None => StatusCode::NOT_FOUND.into_response(),
                    };
                }
                Found::Elsewhere(reply) => {
                    next = asked.next(host, (shard, epoch), reply);
                    if next.is_none() {
                        return asked.refused(host, shard, reply).await;
                    }
                }
            }
        }
        asked.by_map(host)
    }

    fn counted(&self, replica: &Replica, place: &str, is_write: bool) {
        replica.count(is_write);
        self.host.load.lock().record(&self.host.routes(), place);
    }
}

fn answered(answer: Answer) -> Response {
    match answer {
        Answer::Done { version } => {
            (StatusCode::NO_CONTENT, [(ETAG, etag(version))]).into_response()
        }
        Answer::Absent => StatusCode::NOT_FOUND.into_response(),
        Answer::Conflict { version } => {
            let status = StatusCode::PRECONDITION_FAILED;
            match version {
                Some(version) => (status, [(ETAG, etag(version))]).into_response(),
                None => status.into_response(),
            }
        }
    }
}

async fn shards(State(app): Shared) -> Json<ShardMap> {
    Json(app.host.routes().map.clone())
}

async fn change(State(app): Shared, uri: Uri, body: Bytes) -> Result<Response, Failure> {
    let change = parse(&body)?;
    if !change.is_for_operators() {
        return Err(Failure::rejected(StatusCode::FORBIDDEN, "no change for operators".to_owned()));
    }
    changed(&app.host, &uri, map_group::propose(&app.host, &change).await)
}

async fn report(State(app): Shared, uri: Uri, body: Bytes) -> Result<Response, Failure> {
    let change = parse(&body)?;
    if !change.is_report() {
        return Err(Failure::rejected(StatusCode::FORBIDDEN, "that is no report".to_owned()));
    }
    changed(&app.host, &uri, map_group::report(&app.host, &change).await)
}

fn parse(body: &[u8]) -> Result<Change, Failure> {
    let change = serde_json::from_slice(body);
    change.map_err(|error| Failure::bad_request(format!("the body is no change: {error}")))
}

fn changed(host: &Host, uri: &Uri, changed: Changed) -> Result<Response, Failure> {
    match changed {
        Changed::Version(version) => Ok(Json(version).into_response()),
        Changed::Refused(refused) => {
            Err(Failure::rejected(StatusCode::CONFLICT, refused.to_string()))
        }
        Changed::Elsewhere(leader) => match leader.and_then(|leader| host.book.http(leader)) {
            Some(http) => Err(Failure::redirect(&http, uri)),
            None => Err(Failure::unavailable("no leader of the map is known")),
        },
        Changed::Failed(error) => Err(Failure::unavailable(error)),
    }
}

async fn state_of(State(app): Shared, Path(id): Path<u64>) -> Result<Json<ShardState>, Failure> {
    let replica = app.host.replica(id);
    let replica = replica.ok_or_else(|| Failure::unavailable("the shard has no replica here"))?;
    Ok(Json(ShardState::of(&replica).await))
}

/// Gives a piece of what a shard has sealed for another one. Its leader seals it when it is asked
/// for the first time, if the map says so.
async fn parting(
    State(app): Shared,
    Path(id): Path<u64>,
    body: Bytes,
) -> Result<Response, Failure> {
    let wanted: Wanted = serde_json::from_slice(&body)
        .map_err(|error| Failure::bad_request(format!("the body asks for nothing: {error}")))?;
    let none = || Failure::unavailable("nothing is sealed for that shard here");
    let replica = app.host.replica(id).ok_or_else(none)?;
    let piece = |replica: &Replica| Piece::of(&replica.shard.read(), &wanted);
    if piece(&replica).is_none() && replica.leads() {
        let routes = app.host.routes();
        let split = routes.map.shards.get(&id).and_then(|info| info.split.clone());
        let split = split.filter(|split| split.to == wanted.to).ok_or_else(none)?;
        let sealed = step(&replica, Step::Seal { at: split.at, to: split.to }).await;
        sealed.map_err(|error| Failure::unavailable(error.to_string()))?;
    }
    Ok(piece(&replica).ok_or_else(none)?.encode().into_response())
}

/// The answer to `GET /status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeStatus {
    pub id: u64,
    /// Version of the map.
    pub version: u64,
    pub shards: Vec<ShardStatus>,
    /// The shard that takes most of the requests of this node, if it should be split.
    pub hot: Option<Hot>,
}

/// A replica of a shard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShardStatus {
    pub id: u64,
    pub leads: bool,
    pub epoch: u64,
    pub is_open: bool,
    /// Something waits to be fetched by another shard, or to be forgotten.
    pub is_parting: bool,
    pub voters: Vec<u64>,
    /// Members without a vote: on their way to one, or left behind by a move that was withdrawn.
    pub learners: Vec<u64>,
    pub keys: usize,
    /// Requests that this node has answered.
    pub reads: u64,
    pub writes: u64,
    /// Its disk has lost entries up to this index, and the others bring them back: it has no vote.
    #[serde(default)]
    pub recovering: Option<u64>,
    /// Why it has stopped, if it has.
    pub stopped: Option<String>,
}

async fn status(State(app): Shared) -> Json<NodeStatus> {
    let routes: Arc<Routes> = app.host.routes();
    let shards = app.host.replicas().into_iter().map(|(id, replica)| {
        let shard = replica.shard.read();
        let members = replica.raft.members().borrow().clone();
        ShardStatus {
            id,
            leads: replica.leads(),
            epoch: shard.epoch(),
            is_open: shard.span().is_some(),
            is_parting: shard.parting().is_some(),
            voters: members.voters().to_vec(),
            learners: members.learners().to_vec(),
            keys: shard.pairs().count(),
            reads: replica.reads.load(Ordering::Relaxed),
            writes: replica.writes.load(Ordering::Relaxed),
            recovering: replica.raft.status().borrow().recovering,
            stopped: replica.raft.stopped().map(|reason| reason.to_string()),
        }
    });
    let shards = shards.collect();
    let hot = app.host.load.lock().hottest(&routes);
    Json(NodeStatus { id: app.host.id(), version: routes.map.version, shards, hot })
}

/// Liveness: 200 unless group 0 or a replica has stopped by itself, or was not started.
async fn health(State(app): Shared) -> Response {
    let map = app.host.map.stopped().map(|reason| format!("the shard map: {reason}"));
    let stopped = |(id, replica): (u64, Arc<Replica>)| {
        replica.raft.stopped().map(|reason| format!("shard {id}: {reason}"))
    };
    let failures = app.host.failures.lock().clone();
    let failed = || failures.iter().map(|(id, error)| format!("shard {id}: {error}")).next();
    let stopped = map.or_else(|| app.host.replicas().into_iter().find_map(stopped));
    match stopped.or_else(failed) {
        None => (StatusCode::OK, Json(serde_json::json!({ "alive": true }))).into_response(),
        Some(reason) => {
            let said = serde_json::json!({ "alive": false, "reason": reason });
            (StatusCode::SERVICE_UNAVAILABLE, Json(said)).into_response()
        }
    }
}

/// Readiness: whether this node has a map. Its shards have leaders of their own and serve without
/// group 0, so only the age of the map says whether that one works.
async fn ready(State(app): Shared) -> Result<Response, Failure> {
    let version = app.host.routes().map.version;
    if version == 0 {
        return Err(Failure::unavailable("there is no shard map yet"));
    }
    let age = app.host.map.freshness().age.map(|age| age.as_millis() as u64);
    let said = serde_json::json!({ "ready": true, "map": version, "map_age_ms": age });
    Ok((StatusCode::OK, Json(said)).into_response())
}
