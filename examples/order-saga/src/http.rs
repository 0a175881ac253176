//! The HTTP interface.
//!
//! | request | what it does |
//! |---|---|
//! | `POST /orders`, `Idempotency-Key: ID` | orders, and waits up to 10 s for the end |
//! | `GET /orders/{id}` | where an order is |
//! | `GET /stuck` | orders that wait for an operator, and at which steps |
//! | `POST /orders/{id}/resolve` | `{"step": "stock", "how": "retry"}`; also `skip` and `not-run` |
//! | `GET /health` | 200 while the process works |
//!
//! An order's state is `{"id", "state"}`: `completed` (200), `undone` with `because` (409), and
//! with 202 `open`, `stuck` with `steps`, or `parked`. After a lost answer, and with 503, ask again
//! with the same key: nothing is done twice.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;
use voussoir_txn::{
    Direction, Outcome, Resolution, ResolveError, Saga, SagaState, Sagas, StartError,
};

use crate::order::{Order, check_id};

const KEY: &str = "idempotency-key";
const MAX_BODY_BYTES: usize = 4_096;
/// How long `POST /orders` waits for the end.
const WAIT: Duration = Duration::from_secs(10);

/// What the handlers share.
pub(crate) struct App {
    pub(crate) sagas: Sagas,
    pub(crate) saga: Saga<Order>,
    /// After it an order that is not shipped is undone.
    pub(crate) limit: Duration,
}

pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route("/orders", post(order))
        .route("/orders/{id}", get(show))
        .route("/orders/{id}/resolve", post(resolve))
        .route("/stuck", get(stuck))
        .route("/health", get(|| async { StatusCode::OK }))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(Arc::new(app))
}

async fn order(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Result<Json<Order>, JsonRejection>,
) -> Result<Response, Failure> {
    let id = headers.get(KEY).and_then(|key| key.to_str().ok()).unwrap_or_default();
    let rejected = |status: StatusCode| move |error: String| Failure { status, error };
    check_id(id).map_err(rejected(StatusCode::BAD_REQUEST))?;
    let Json(order) =
        body.map_err(|error| Failure { status: error.status(), error: error.body_text() })?;
    order.check().map_err(rejected(StatusCode::UNPROCESSABLE_ENTITY))?;
    let handle = app.sagas.start_within(&app.saga, id, &order, app.limit).await?;
    // Whatever it says: what is answered is the state. The saga goes on when nobody waits.
    let _ = timeout(WAIT, handle.end()).await;
    Ok(state(id, &handle.state()))
}

async fn show(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, Failure> {
    let handle = app.sagas.get(&id).ok_or_else(not_found)?;
    Ok(state(&id, &handle.state()))
}

async fn stuck(State(app): State<Arc<App>>) -> Json<Value> {
    let mut all: Vec<_> = app.sagas.list();
    all.retain(|saga| matches!(saga.state, SagaState::Stuck(_)));
    all.sort_by(|a, b| a.id.cmp(&b.id));
    Json(all.iter().map(|saga| body(&saga.id, &saga.state)).collect())
}

/// What an operator says of a stuck step.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resolve {
    step: String,
    how: How,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum How {
    /// Try it again, with all its attempts.
    Retry,
    /// Of an undo: take it for undone.
    Skip,
    /// Of the pivot: it has not run and will not.
    NotRun,
}

async fn resolve(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    body: Result<Json<Resolve>, JsonRejection>,
) -> Result<StatusCode, Failure> {
    let Json(Resolve { step, how }) =
        body.map_err(|error| Failure { status: error.status(), error: error.body_text() })?;
    let how = match how {
        How::Retry => Resolution::Retry,
        How::Skip => Resolution::Skip,
        How::NotRun => Resolution::NotRun,
    };
    match app.sagas.resolve(&id, &step, how).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(ResolveError::NotFound) => Err(not_found()),
        Err(error) => Err(Failure { status: StatusCode::CONFLICT, error: error.to_string() }),
    }
}

fn state(id: &str, state: &SagaState) -> Response {
    let status = match state {
        SagaState::Ended(Outcome::Completed) => StatusCode::OK,
        SagaState::Ended(_) => StatusCode::CONFLICT,
        SagaState::Halted | SagaState::Drained => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::ACCEPTED,
    };
    (status, Json(body(id, state))).into_response()
}

fn body(id: &str, state: &SagaState) -> Value {
    match state {
        SagaState::Open => json!({ "id": id, "state": "open" }),
        SagaState::Stuck(steps) => {
            let steps: Vec<Value> = steps
                .iter()
                .map(|at| {
                    let call = if at.direction == Direction::Undo { "undo" } else { "act" };
                    json!({ "step": at.step, "call": call, "why": at.why })
                })
                .collect();
            json!({ "id": id, "state": "stuck", "steps": steps })
        }
        SagaState::Ended(Outcome::Completed) => json!({ "id": id, "state": "completed" }),
        SagaState::Ended(Outcome::Undone { because }) => {
            json!({ "id": id, "state": "undone", "because": because })
        }
        SagaState::Ended(_) => json!({ "id": id, "state": "given up" }),
        SagaState::Parked(why) => json!({ "id": id, "state": "parked", "why": why }),
        // The next process goes on with it.
        _ => json!({ "id": id, "state": "waits for the next process" }),
    }
}

/// An error answer.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    error: String,
}

fn not_found() -> Failure {
    let error = "no order or step of this name".to_owned();
    Failure { status: StatusCode::NOT_FOUND, error }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let status = match error {
            StartError::Mismatch => StatusCode::UNPROCESSABLE_ENTITY,
            StartError::Id | StartError::Input(_) => StatusCode::BAD_REQUEST,
            StartError::Unregistered => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self { status, error: error.to_string() }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(json!({ "error": self.error }))).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
