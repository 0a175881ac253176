//! The HTTP interface.
//!
//! | request | what it does |
//! |---|---|
//! | `PUT /kv/{key}` | writes; compare-and-set by `If-Match: "VERSION"`, `If-Match: *` (the key exists) or `If-None-Match: *` (it does not) |
//! | `GET /kv/{key}` | reads, linearizable; `?consistency=stale` reads this node's state as it is: `Store-Applied-Index` and `Store-Age-Ms` say how far that is |
//! | `DELETE /kv/{key}` | deletes; takes `If-Match` too |
//! | `GET /kv?prefix=P` | keys in order; `&after=KEY&limit=N` go on from there |
//! | `GET /health` | 200 while this process does its work: restart it otherwise |
//! | `GET /ready` | 200 where a linearizable read succeeds and the disk works, else 503 and why |
//! | `GET /metrics` | Prometheus text |
//! | `GET /status` | this node's view of the cluster, as JSON |
//! | `GET /members`, `POST /members` | who belongs to the cluster, see [`members`] |
//!
//! A version is the `ETag` of a value, with its quotes: others are 400. 404 (no such key) and 412
//! (another version) are answers. A request that failed gets `{"error", "outcome"}`, where
//! `outcome` is `not_applied` (safe to send again) or `unknown` (it may have happened, or happen
//! later). A node that is not the leader answers a write with 307 and the leader's address (`curl
//! -L`), if it can reach the leader itself; else it waits up to a second for one that it can
//! reach, and then answers 503. 507 says that as much is stored as the journal has room for:
//! deletes are taken.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::header::{CONNECTION, ETAG, IF_MATCH, IF_NONE_MATCH, LOCATION, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use bytes::Bytes;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};
use voussoir_journal::Journal;
use voussoir_net::Tcp;
use voussoir_raft::{Outcome, ProposeError, Raft};

use crate::disk::DiskWatch;
use crate::kv::{Answer, Command, Condition, Kv, MAX_KEY_BYTES, MAX_VALUE_BYTES};
use crate::members::{self, AddressBook};
use crate::metrics::{self, Metrics};
use crate::observe::Peers;
use crate::room::{Full, Room, propose};
use crate::traffic::{Freshness, Traffic};

/// Header of a stale answer: the log index of the last command that the answer shows.
const APPLIED_INDEX: HeaderName = HeaderName::from_static("store-applied-index");
/// Header of a stale answer: the answer shows every write that was acknowledged anywhere up to this
/// many ms ago. `unknown` while this node has reached no majority since its start.
const AGE_MS: HeaderName = HeaderName::from_static("store-age-ms");
/// The value of [`AGE_MS`] while this node does not know the age.
const UNKNOWN_AGE: HeaderValue = HeaderValue::from_static("unknown");
/// The most keys that one listing returns.
const MAX_LISTED: usize = 1000;
/// Why a node rejects requests after SIGTERM.
const SHUTTING_DOWN: &str = "the node is shutting down";
/// The rule for what follows `/kv/` in a path.
const KEY_RULE: &str = "a key has 1 to 1024 bytes of UTF-8";
const _: () = assert!(MAX_KEY_BYTES == 1024, "KEY_RULE names the limit");

/// How long a write waits for a leader that this node can reach. An election takes less.
const LEADER_WAIT: Duration = Duration::from_secs(1);
/// How long `GET /ready` waits for a majority.
const READY_WAIT: Duration = Duration::from_secs(1);

/// The state that all handlers share.
pub struct App {
    pub raft: Raft,
    pub journal: Journal,
    pub tcp: Tcp,
    pub kv: Arc<RwLock<Kv>>,
    /// Where each node is.
    pub addresses: Arc<AddressBook>,
    pub peers: Arc<Peers>,
    pub disk: Arc<DiskWatch>,
    pub metrics: Metrics,
    /// How long a linearizable read may take.
    pub timeout: Duration,
    /// The disk counts as stalled when no write completes for this long.
    pub disk_stall: Duration,
    /// Last index that was known to be committed when this process started. Until it is applied,
    /// the node shows less than it did before the restart.
    pub commit_at_start: u64,
    /// For keys and values.
    pub room: Arc<Room>,
    pub traffic: Traffic,
    pub freshness: Freshness,
}

type Shared = State<Arc<App>>;

pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/kv", get(list))
        .route("/kv/", any(|| async { Failure::bad_request(KEY_RULE) }))
        .route("/kv/{*key}", get(read).put(write).delete(delete))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics::text))
        .route("/status", get(status))
        .route("/members", get(members::list).post(members::change))
        .layer(DefaultBodyLimit::max(MAX_VALUE_BYTES))
        .layer(middleware::from_fn_with_state(app.clone(), observe))
        .with_state(app)
}

/// Counts and measures each request, and rejects it while the node shuts down.
async fn observe(State(app): Shared, request: Request, next: Next) -> Response {
    let _in_flight = app.traffic.start_request();
    let (method, began) = (request.method().clone(), Instant::now());
    let mut response = if app.traffic.is_draining() && request.uri().path().starts_with("/kv") {
        Failure::unavailable(SHUTTING_DOWN).into_response()
    } else {
        next.run(request).await
    };
    if app.traffic.is_draining() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    app.metrics.request(&method, response.status(), began.elapsed());
    response
}

/// The key from the path, or why the path has none.
pub(crate) type Key = Result<Path<String>, PathRejection>;

async fn write(
    State(app): Shared,
    key: Key,
    uri: Uri,
    headers: HeaderMap,
    value: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let condition = condition(&headers)?;
    let command = Command::Put { key: valid_key(key)?, value: value?, condition };
    app.change(&uri, &command).await
}

async fn delete(
    State(app): Shared,
    key: Key,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let condition = condition(&headers)?;
    app.change(&uri, &Command::Delete { key: valid_key(key)?, condition }).await
}

#[derive(Deserialize)]
struct ReadQuery {
    #[serde(default)]
    consistency: Consistency,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Consistency {
    #[default]
    Linearizable,
    Stale,
}

async fn read(
    State(app): Shared,
    key: Key,
    query: Result<Query<ReadQuery>, QueryRejection>,
) -> Result<Response, Failure> {
    let (key, Query(query)) = (valid_key(key)?, query?);
    app.catch_up(&query.consistency).await?;
    let (found, applied) = {
        let kv = app.kv.read();
        (kv.get(&key).cloned(), kv.applied())
    };
    let response = match found {
        Some(held) => ([(ETAG, etag(held.version))], held.value).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    };
    Ok(app.with_age(response, applied, &query.consistency))
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    after: String,
    limit: Option<usize>,
    #[serde(default)]
    consistency: Consistency,
}

#[derive(Serialize)]
struct Listed {
    key: String,
    version: u64,
    bytes: usize,
}

async fn list(
    State(app): Shared,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(query) = query?;
    app.catch_up(&query.consistency).await?;
    let limit = query.limit.unwrap_or(100).min(MAX_LISTED);
    let (found, applied) = {
        let kv = app.kv.read();
        (kv.list(query.prefix.as_bytes(), query.after.as_bytes(), limit), kv.applied())
    };
    let listed = found.into_iter().map(|(key, held)| Listed {
        key: String::from_utf8_lossy(&key).into_owned(),
        version: held.version,
        bytes: held.value.len(),
    });
    let listed: Vec<Listed> = listed.collect();
    Ok(app.with_age(Json(listed).into_response(), applied, &query.consistency))
}

/// Liveness: 200 unless raft has stopped. A cluster without a quorum is no reason to restart nodes.
async fn health(State(app): Shared) -> Response {
    match app.raft.stopped() {
        None => (StatusCode::OK, Json(serde_json::json!({ "alive": true }))).into_response(),
        Some(reason) => {
            let said = serde_json::json!({ "alive": false, "reason": reason.to_string() });
            (StatusCode::SERVICE_UNAVAILABLE, Json(said)).into_response()
        }
    }
}

/// Readiness: whether this node can serve clients now.
async fn ready(State(app): Shared) -> Response {
    match app.not_ready().await {
        None => (StatusCode::OK, Json(serde_json::json!({ "ready": true }))).into_response(),
        Some(reason) => {
            let said = serde_json::json!({ "ready": false, "reason": reason });
            (StatusCode::SERVICE_UNAVAILABLE, Json(said)).into_response()
        }
    }
}

/// The answer to `GET /status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeStatus {
    pub id: u64,
    pub role: String,
    pub term: u64,
    pub leader: Option<u64>,
    /// Index of the first entry in the log.
    pub first: u64,
    /// Index of the last entry in the log.
    pub last: u64,
    pub commit: u64,
    pub applied: u64,
    /// The disk has lost entries of the log: up to which index the other nodes bring them back.
    /// Until then the node neither votes nor leads.
    #[serde(default)]
    pub recovering: Option<u64>,
    pub keys: usize,
}

async fn status(State(app): Shared) -> Json<NodeStatus> {
    let status = app.raft.status().borrow().clone();
    Json(NodeStatus {
        id: status.id,
        role: status.role.to_string(),
        term: status.term,
        leader: status.leader,
        first: status.first,
        last: status.last,
        commit: status.commit,
        applied: status.applied,
        recovering: status.recovering,
        keys: app.kv.read().count(),
    })
}

impl App {
    /// Proposes a command and turns its result into an HTTP answer.
    async fn change(&self, uri: &Uri, command: &Command) -> Result<Response, Failure> {
        let until = Instant::now() + LEADER_WAIT;
        let answer = loop {
            match self.propose(command).await? {
                Ok(answer) => break answer,
                Err(ProposeError::NotLeader { leader }) => {
                    let reachable = leader.filter(|leader| self.peers.is_up(*leader));
                    match reachable.and_then(|leader| self.addresses.http(leader)) {
                        Some(address) => return Err(Failure::redirect(&address, uri)),
                        // An election is under way, or the leader has just died. The command is in
                        // no log, so it may be proposed again.
                        None if self.wait_for_leader(until).await => {}
                        None => return Err(Failure::unavailable("no leader can be reached")),
                    }
                }
                Err(error) => return Err(Failure::proposal(&error)),
            }
        };
        match Answer::decode(&answer) {
            Ok(Answer::Done { version }) => {
                Ok((StatusCode::NO_CONTENT, [(ETAG, etag(version))]).into_response())
            }
            Ok(Answer::Absent) => Ok(StatusCode::NOT_FOUND.into_response()),
            Ok(Answer::Conflict { version }) => {
                let etag = version.map(|version| [(ETAG, etag(version))]);
                let status = StatusCode::PRECONDITION_FAILED;
                Ok(etag.map_or_else(|| status.into_response(), |e| (status, e).into_response()))
            }
            Err(error) => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                Err(Failure { status, error: error.to_string(), outcome: "unknown", leader: None })
            }
        }
    }

    /// Proposes a command once there is room for what it adds to the data.
    async fn propose(&self, command: &Command) -> Result<Result<Bytes, ProposeError>, Failure> {
        let settled = self.room.settle(&self.raft, self.timeout).await;
        settled.map_err(|error| Failure::unavailable(error.to_string()))?;
        match self.room.reserve(command, || self.kv.read().stored_bytes()) {
            Ok(room) => Ok(propose(&self.raft, command.encode(), self.timeout, room).await),
            Err(full) if self.leads() => Err(full.into()),
            // Whether there is room is for the leader to say.
            Err(_) => {
                let leader = self.raft.status().borrow().leader;
                Ok(Err(ProposeError::NotLeader { leader }))
            }
        }
    }

    /// Whether this node leads, as far as it knows.
    pub fn leads(&self) -> bool {
        let status = self.raft.status();
        let status = status.borrow();
        status.leader == Some(status.id)
    }

    /// Waits until this node leads or can reach the leader. False when the deadline passes first.
    async fn wait_for_leader(&self, until: Instant) -> bool {
        let (mut status, mut peers) = (self.raft.status(), self.peers.changes());
        let found = async {
            loop {
                let (leader, id) = {
                    let status = status.borrow_and_update();
                    (status.leader, status.id)
                };
                peers.mark_unchanged();
                if leader.is_some_and(|leader| leader == id || self.peers.is_up(leader)) {
                    return true;
                }
                tokio::select! {
                    changed = status.changed() => if changed.is_err() { return false },
                    changed = peers.changed() => if changed.is_err() { return false },
                }
            }
        };
        timeout_at(until, found).await.unwrap_or(false)
    }

    /// Linearizable: waits until this node has applied every write that was acknowledged anywhere
    /// (a follower asks the leader for the index). Stale: fails until this node has applied what it
    /// knew to be committed when it started.
    async fn catch_up(&self, consistency: &Consistency) -> Result<(), Failure> {
        match consistency {
            Consistency::Linearizable => {
                let began = Instant::now();
                let read = self.raft.read(began + self.timeout).await;
                read.map_err(|error| Failure::unavailable(error.to_string()))?;
                self.freshness.confirmed_at(began);
            }
            Consistency::Stale => {
                let (applied, wanted) = (self.raft.freshness().applied, self.commit_at_start);
                if applied < wanted {
                    let progress = format!("starting: {applied} of {wanted} entries are applied");
                    return Err(Failure::unavailable(progress));
                }
            }
        }
        Ok(())
    }

    /// Adds the headers that say how old a stale answer may be.
    fn with_age(
        &self,
        mut response: Response,
        applied: u64,
        consistency: &Consistency,
    ) -> Response {
        if let Consistency::Stale = consistency {
            let headers = response.headers_mut();
            headers.insert(APPLIED_INDEX, applied.into());
            let age = self.freshness.age().map(|age| HeaderValue::from(age.as_millis() as u64));
            headers.insert(AGE_MS, age.unwrap_or(UNKNOWN_AGE));
        }
        response
    }

    /// Why this node should get no requests now; `None` when it is ready.
    async fn not_ready(&self) -> Option<String> {
        if self.traffic.is_draining() {
            return Some(SHUTTING_DOWN.to_owned());
        }
        let waiting = self.disk.waiting();
        if waiting >= self.disk_stall {
            return Some(format!("the disk stalls: no write for {} ms", waiting.as_millis()));
        }
        self.raft.read(Instant::now() + READY_WAIT).await.err().map(|error| error.to_string())
    }
}

/// An error answer.
#[derive(Clone)]
pub struct Failure {
    status: StatusCode,
    error: String,
    outcome: &'static str,
    /// The URI of the same request at the leader, for a redirect.
    leader: Option<String>,
}

impl Failure {
    pub fn bad_request(error: impl Into<String>) -> Self {
        Self::rejected(StatusCode::BAD_REQUEST, error.into())
    }

    pub(crate) fn rejected(status: StatusCode, error: String) -> Self {
        Self { status, error, outcome: "not_applied", leader: None }
    }

    pub fn unavailable(error: impl Into<String>) -> Self {
        Self::rejected(StatusCode::SERVICE_UNAVAILABLE, error.into())
    }

    /// `address` is a URL, or an address that stands for `http://ADDRESS`.
    pub fn redirect(address: &str, uri: &Uri) -> Self {
        let scheme = if address.contains("://") { "" } else { "http://" };
        // Of a request in absolute form the rest names this node.
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let leader = Some(format!("{scheme}{address}{target}"));
        let status = StatusCode::TEMPORARY_REDIRECT;
        Self { status, error: "not the leader".to_owned(), outcome: "not_applied", leader }
    }

    pub(crate) fn proposal(error: &ProposeError) -> Self {
        let (status, outcome) = match (error.outcome(), error) {
            (Outcome::Unknown, _) => (StatusCode::GATEWAY_TIMEOUT, "unknown"),
            (_, ProposeError::TooLarge { .. }) => (StatusCode::PAYLOAD_TOO_LARGE, "not_applied"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "not_applied"),
        };
        Self { status, error: error.to_string(), outcome, leader: None }
    }
}

impl From<Full> for Failure {
    fn from(error: Full) -> Self {
        Self::rejected(StatusCode::INSUFFICIENT_STORAGE, error.to_string())
    }
}

impl From<PathRejection> for Failure {
    fn from(error: PathRejection) -> Self {
        Self::rejected(error.status(), error.body_text())
    }
}

impl From<QueryRejection> for Failure {
    fn from(error: QueryRejection) -> Self {
        Self::rejected(error.status(), error.body_text())
    }
}

impl From<BytesRejection> for Failure {
    fn from(error: BytesRejection) -> Self {
        let status = error.status();
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            return Self::rejected(status, format!("a value has at most {MAX_VALUE_BYTES} bytes"));
        }
        Self::rejected(status, error.body_text())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = Json(serde_json::json!({ "error": self.error, "outcome": self.outcome }));
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        if let Some(Ok(leader)) = self.leader.map(|leader| leader.parse()) {
            headers.insert(LOCATION, leader);
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

pub(crate) fn valid_key(key: Key) -> Result<Bytes, Failure> {
    let Path(key) = key?;
    if !(1..=MAX_KEY_BYTES).contains(&key.len()) {
        return Err(Failure::bad_request(KEY_RULE));
    }
    Ok(key.into())
}

pub(crate) fn etag(version: u64) -> String {
    format!("\"{version}\"")
}

/// Parses `If-Match: "VERSION"`, `If-Match: *` or `If-None-Match: *`. An entity tag is quoted (RFC
/// 9110, section 8.8.3); of the others only those that this store gives out are taken.
pub(crate) fn condition(headers: &HeaderMap) -> Result<Condition, Failure> {
    let one_of_all =
        || Failure::bad_request("either If-Match: \"VERSION\" or * or If-None-Match: *");
    let only = |name| {
        let mut all = headers.get_all(name).iter();
        let first = all.next();
        // Several lines are a list.
        if all.next().is_some() { Err(one_of_all()) } else { Ok(first) }
    };
    match (only(IF_MATCH)?, only(IF_NONE_MATCH)?) {
        (None, None) => Ok(Condition::Always),
        (None, Some(star)) if star == "*" => Ok(Condition::Absent),
        (Some(star), None) if star == "*" => Ok(Condition::Present),
        (Some(tag), None) => {
            let wrong = "If-Match takes one version in quotes (an ETag of this key) or *";
            let version = tag.to_str().ok().and_then(version_of);
            version.map(Condition::Version).ok_or_else(|| Failure::bad_request(wrong))
        }
        _ => Err(one_of_all()),
    }
}

/// The version in an entity tag that [`etag`] has made.
fn version_of(tag: &str) -> Option<u64> {
    let version = tag.strip_prefix('"')?.strip_suffix('"')?.parse().ok()?;
    (etag(version) == tag).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_an_entity_tag_as_it_was_given_out() {
        let of = |lines: &[(HeaderName, &str)]| {
            let lines = lines.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(name, value);
            }
            condition(&headers).map_err(|failure| failure.status)
        };
        assert_eq!(of(&[(IF_MATCH, "\"12\"")]), Ok(Condition::Version(12)));
        assert_eq!(of(&[(IF_MATCH, "*")]), Ok(Condition::Present));
        assert_eq!(of(&[(IF_NONE_MATCH, "*")]), Ok(Condition::Absent));
        assert_eq!(of(&[]), Ok(Condition::Always));
        let wrong =
            ["12", "+5", "\"+5\"", "\"05\"", "\"5", "5\"", "\"\"5\"\"", "\"", "\"\"", "W/\"5\""];
        for tag in wrong.into_iter().chain(["\"1\", \"2\"", "\"18446744073709551616\"", ""]) {
            assert_eq!(of(&[(IF_MATCH, tag)]), Err(StatusCode::BAD_REQUEST), "{tag}");
        }
        for second in [(IF_MATCH, "\"2\""), (IF_NONE_MATCH, "*")] {
            let both = [(IF_MATCH, "\"1\""), second];
            assert_eq!(of(&both), Err(StatusCode::BAD_REQUEST), "{both:?}");
        }
    }

    #[test]
    fn a_redirect_goes_where_clients_reach_the_leader() {
        let location = |address: &str, target: &str| {
            Failure::redirect(address, &target.parse().unwrap()).leader.unwrap()
        };
        assert_eq!(location("10.0.0.2:8002", "/kv/a?b=c"), "http://10.0.0.2:8002/kv/a?b=c");
        assert_eq!(location("https://two.example", "/kv/a"), "https://two.example/kv/a");
        assert_eq!(location("10.0.0.2:8002", "http://one/kv/a"), "http://10.0.0.2:8002/kv/a");
    }
}
