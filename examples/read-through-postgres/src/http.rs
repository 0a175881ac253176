//! The HTTP interface.
//!
//! | request | what it does |
//! |---|---|
//! | `GET /products/{id}` | the product as JSON, or 404 |
//! | `GET /products?ids=1,2,3` | several products, those that exist: up to 200 ids |
//! | `PUT /products/{id}/price` | `{"cents": 1999}`: 204, or 404 |
//! | `POST /categories/{name}/discount` | `{"percent": 10}`: lowers all prices of the category |
//! | `GET /health` | 200 while the process works |
//! | `GET /stats` | the cache's numbers, as JSON |

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::catalogue::Catalogue;
use crate::listener::Listener;
use crate::table::Product;

const MAX_BODY_BYTES: usize = 1_024;
/// Products of one request.
const MAX_IDS: usize = 200;

/// What the handlers share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) catalogue: Catalogue,
    pub(crate) listener: Option<Listener>,
}

type Shared = State<Arc<App>>;

pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route("/products", get(products))
        .route("/products/{id}", get(product))
        .route("/products/{id}/price", put(set_price))
        .route("/categories/{name}/discount", post(discount))
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/stats", get(stats))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(Arc::new(app))
}

async fn product(
    State(app): Shared,
    id: Result<Path<i64>, PathRejection>,
) -> Result<Json<Product>, Failure> {
    let Path(id) = id?;
    match app.catalogue.product(id).await {
        Ok(Some(product)) => Ok(Json(Product::clone(&product))),
        Ok(None) => Err(no_product(id)),
        Err(error) => Err(Failure(StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    /// Numbers, separated by commas.
    ids: String,
}

async fn products(
    State(app): Shared,
    query: Result<Query<Listed>, QueryRejection>,
) -> Result<Json<Vec<Product>>, Failure> {
    let Query(Listed { ids }) = query?;
    let ids: Result<Vec<i64>, _> = ids.split(',').map(str::parse).collect();
    let Some(ids) = ids.ok().filter(|ids| ids.len() <= MAX_IDS) else {
        let rule = format!("ids: must be 1 to {MAX_IDS} numbers, separated by commas");
        return Err(Failure(StatusCode::BAD_REQUEST, rule));
    };
    match app.catalogue.products(&ids).await {
        Ok(found) => {
            let found = found.iter().flatten();
            Ok(Json(found.map(|product| Product::clone(product)).collect()))
        }
        Err(error) => Err(Failure(StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Price {
    cents: i64,
}

async fn set_price(
    State(app): Shared,
    id: Result<Path<i64>, PathRejection>,
    body: Result<Json<Price>, JsonRejection>,
) -> Result<StatusCode, Failure> {
    let (Path(id), Json(Price { cents })) = (id?, body?);
    if cents < 0 {
        let rule = format!("cents {cents}: must be at least 0");
        return Err(Failure(StatusCode::UNPROCESSABLE_ENTITY, rule));
    }
    match app.catalogue.set_price(id, cents).await {
        Ok(true) => Ok(StatusCode::NO_CONTENT),
        Ok(false) => Err(no_product(id)),
        Err(error) => Err(Failure(StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Discount {
    percent: i64,
}

async fn discount(
    State(app): Shared,
    name: Result<Path<String>, PathRejection>,
    body: Result<Json<Discount>, JsonRejection>,
) -> Result<Json<Value>, Failure> {
    let (Path(name), Json(Discount { percent })) = (name?, body?);
    if !(1..=90).contains(&percent) {
        let rule = format!("percent {percent}: must be from 1 to 90");
        return Err(Failure(StatusCode::UNPROCESSABLE_ENTITY, rule));
    }
    match app.catalogue.discount(&name, percent).await {
        Ok(products) => Ok(Json(json!({ "products": products }))),
        // Asked for again, it would lower them twice.
        Err(error) => {
            let error = format!("{error}; the prices may be lower already: read one first");
            Err(Failure(StatusCode::SERVICE_UNAVAILABLE, error))
        }
    }
}

async fn stats(State(app): Shared) -> Json<Value> {
    let cache = app.catalogue.cache();
    let (stats, latency) = (cache.stats(), cache.load_latency());
    let millis = |q| latency.quantile(q).map(|latency| latency.as_secs_f64() * 1e3);
    Json(json!({
        "hits": stats.hits,
        "misses": stats.misses,
        "joins": stats.joins,
        "loads": stats.loads,
        "load_failures": stats.load_failures,
        "load_p50_ms": millis(0.5),
        "load_p99_ms": millis(0.99),
        "stale_served": stats.stale_served,
        "refreshes": stats.refreshes,
        "invalidated": stats.invalidated,
        "products": stats.entries,
        "redis_hits": stats.level_hits,
        "redis_misses": stats.level_misses,
        "redis_failures": stats.level_failures,
        "listening": app.listener.as_ref().is_some_and(Listener::is_listening),
    }))
}

fn no_product(id: i64) -> Failure {
    Failure(StatusCode::NOT_FOUND, format!("no product {id}"))
}

/// An error answer: `{"error"}`.
#[derive(Debug)]
struct Failure(StatusCode, String);

impl From<PathRejection> for Failure {
    fn from(error: PathRejection) -> Self {
        Self(error.status(), error.body_text())
    }
}

impl From<QueryRejection> for Failure {
    fn from(error: QueryRejection) -> Self {
        Self(error.status(), error.body_text())
    }
}

impl From<JsonRejection> for Failure {
    fn from(error: JsonRejection) -> Self {
        let status = error.status();
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            return Self(status, format!("the body has more than {MAX_BODY_BYTES} bytes"));
        }
        Self(status, error.body_text())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}
