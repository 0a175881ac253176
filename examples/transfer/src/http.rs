//! The HTTP interface.
//!
//! | request | what it does |
//! |---|---|
//! | `POST /transfers`, `Idempotency-Key: ID` | `{"from": "east/3", "to": "west/7", "cents": 250}` |
//! | `GET /accounts/{bank}/{number}` | what an account holds |
//! | `GET /heuristics`, `DELETE /heuristics/{gid}` | branches that a bank decided alone |
//! | `GET /health` | 200 while the process works |
//! | `GET /stats` | the numbers of [`Numbers`], as JSON |
//!
//! A transfer that was not done is answered by `{"error", "outcome"}`: `not_applied` when it is
//! done under this key neither now nor by an earlier request, `unknown` with 503. With 503, and
//! after a lost answer, ask again with the same key, in a group another node: it is done once.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;
use voussoir_txn::two_phase::Gid;

use crate::bank::{Account, PartError, Transfer, check_id};
use crate::pool::Pool;
use crate::transfers::{Done, Numbers, TransferError, Transfers};

pub(crate) const KEY: &str = "idempotency-key";
const MAX_BODY_BYTES: usize = 1_024;
/// How long a read waits for its bank.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// What the handlers share.
#[derive(Debug)]
pub(crate) struct App {
    /// `None` while another node of the group leads.
    pub(crate) current: watch::Receiver<Option<Transfers>>,
    /// For reads, one for each bank.
    pub(crate) pools: [Pool; 2],
}

impl App {
    fn transfers(&self) -> Result<Transfers, Failure> {
        let away = "this node does not lead its group: ask the others".to_owned();
        let none = || Failure::unknown(away);
        self.current.borrow().clone().ok_or_else(none)
    }
}

pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route("/transfers", post(transfer))
        .route("/accounts/{bank}/{number}", get(account))
        .route("/heuristics", get(heuristics))
        .route("/heuristics/{gid}", delete(forget))
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/stats", get(stats))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(Arc::new(app))
}

async fn transfer(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Result<Json<Transfer>, JsonRejection>,
) -> Result<Json<Value>, Failure> {
    let key = headers.get(KEY).and_then(|key| key.to_str().ok()).unwrap_or_default();
    check_id(key).map_err(|rule| Failure::not_applied(StatusCode::BAD_REQUEST, rule))?;
    let Json(transfer) = body?;
    let broken = |rule| Failure::not_applied(StatusCode::UNPROCESSABLE_ENTITY, rule);
    transfer.check().map_err(broken)?;
    let done = app.transfers()?.transfer(key, &transfer).await?;
    Ok(Json(json!({ "id": key, "repeated": done == Done::Before })))
}

async fn account(
    State(app): State<Arc<App>>,
    Path((bank, number)): Path<(String, String)>,
) -> Result<Json<Value>, Failure> {
    let account: Account = format!("{bank}/{number}")
        .parse()
        .map_err(|error| Failure::not_applied(StatusCode::BAD_REQUEST, error))?;
    let away = Failure::unknown;
    let read = async {
        let client = app.pools[account.bank as usize].get().await?;
        let cents = "SELECT cents FROM accounts WHERE number = $1";
        let row = client.query_opt(cents, &[&account.number]).await?;
        client.give_back();
        Ok::<_, tokio_postgres::Error>(row.map(|row| row.get::<_, i64>(0)))
    };
    let read = timeout(READ_TIMEOUT, read).await;
    let cents = read
        .map_err(|_| away(format!("no answer of {bank} within {} s", READ_TIMEOUT.as_secs())))?
        .map_err(|error| away(crate::chain(&error)))?;
    let missing = || PartError::NoAccount(account).to_string();
    let cents = cents.ok_or_else(|| Failure::not_applied(StatusCode::NOT_FOUND, missing()))?;
    Ok(Json(json!({ "account": account, "cents": cents })))
}

async fn heuristics(State(app): State<Arc<App>>) -> Result<Json<Value>, Failure> {
    let all = app.transfers()?.coordinator().heuristics().into_iter().map(|outcome| {
        json!({
            "gid": outcome.gid.to_string(),
            "bank": &*outcome.participant,
            "did": outcome.heuristic.to_string(),
        })
    });
    Ok(Json(all.collect()))
}

async fn forget(
    State(app): State<Arc<App>>,
    Path(gid): Path<String>,
) -> Result<StatusCode, Failure> {
    let gid: Gid = gid.parse().map_err(|error: voussoir_txn::two_phase::GidError| {
        Failure::not_applied(StatusCode::BAD_REQUEST, error.to_string())
    })?;
    let forgotten = app.transfers()?.coordinator().forget_heuristic(&gid).await;
    forgotten.map(|()| StatusCode::NO_CONTENT).map_err(|error| Failure::unknown(error.to_string()))
}

async fn stats(State(app): State<Arc<App>>) -> Result<Json<Numbers>, Failure> {
    Ok(Json(app.transfers()?.numbers()))
}

/// An error answer.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    error: String,
    outcome: &'static str,
}

impl Failure {
    fn not_applied(status: StatusCode, error: String) -> Self {
        Self { status, error, outcome: "not_applied" }
    }

    /// This process cannot say: an earlier request with the same key, perhaps to another node, may
    /// have done it.
    fn unknown(error: String) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, error, outcome: "unknown" }
    }
}

impl From<JsonRejection> for Failure {
    fn from(error: JsonRejection) -> Self {
        let status = error.status();
        let text = if status == StatusCode::PAYLOAD_TOO_LARGE {
            format!("the body has more than {MAX_BODY_BYTES} bytes")
        } else {
            error.body_text()
        };
        Self::not_applied(status, text)
    }
}

impl From<TransferError> for Failure {
    fn from(error: TransferError) -> Self {
        let status = match &error {
            TransferError::Refused(PartError::Mismatch) => StatusCode::UNPROCESSABLE_ENTITY,
            TransferError::Refused(_) => StatusCode::CONFLICT,
            TransferError::Unavailable(_) | TransferError::Unknown(_) => {
                return Self::unknown(error.to_string());
            }
        };
        Self::not_applied(status, error.to_string())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = json!({ "error": self.error, "outcome": self.outcome });
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The node that led before may have done it under this key, and its answer was lost.
    #[tokio::test]
    async fn who_cannot_do_a_transfer_does_not_say_that_it_was_not_done() {
        let pool = || Pool::new("postgres://postgres@127.0.0.1:1/none", 1, READ_TIMEOUT).unwrap();
        let (_leads, current) = watch::channel(None);
        let app = Arc::new(App { current, pools: [pool(), pool()] });
        let headers = HeaderMap::from_iter([(KEY.parse().unwrap(), HeaderValue::from_static("a"))]);
        let body = json!({ "from": "east/0", "to": "west/0", "cents": 1 });
        let body = serde_json::from_value(body).unwrap();
        let away = transfer(State(app), headers, Ok(Json(body))).await.unwrap_err();
        let locked = Failure::from(TransferError::Unavailable("it is locked".to_owned()));
        for failure in [away, locked] {
            let told = (failure.status, failure.outcome);
            assert_eq!(told, (StatusCode::SERVICE_UNAVAILABLE, "unknown"), "{failure:?}");
        }
    }
}
