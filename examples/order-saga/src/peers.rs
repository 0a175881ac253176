//! The seam to the services, and what stands behind it: HTTP.

use std::net::SocketAddr;

use async_trait::async_trait;
use axum::http::{Method, Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use voussoir_txn::StepError;

use crate::order::Order;
use crate::saga::{Answer, service};

const MAX_ANSWER_BYTES: usize = 16 << 10;

/// The services. A call has one key, its step and its saga, on every attempt in every process: a
/// service does it once, and answers again as it did.
#[async_trait]
pub(crate) trait Peers: Send + Sync + 'static {
    /// Does a step.
    ///
    /// # Errors
    /// [`StepError::Domain`] when it is refused, for good and without effect.
    ///
    /// # Cancel safety
    /// Dropped, it may have had its effect.
    async fn act(&self, step: &'static str, saga: &str, order: &Order) -> Answer<String>;

    /// Undoes a step that may have run, and keeps it from running later.
    ///
    /// # Errors
    /// It is not known to be undone.
    ///
    /// # Cancel safety
    /// Dropped, it may have had its effect.
    async fn undo(&self, step: &'static str, saga: &str) -> Answer<()>;
}

/// Services over HTTP: `PUT /{service}/{step}/{saga}` does, `DELETE` undoes.
pub(crate) struct HttpPeers {
    client: Client<HttpConnector, Full<Bytes>>,
    services: SocketAddr,
}

impl HttpPeers {
    pub(crate) fn new(services: SocketAddr) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), services }
    }

    /// The time limit is the step's.
    async fn call(
        &self,
        method: Method,
        step: &'static str,
        saga: &str,
        body: Vec<u8>,
    ) -> Answer<String> {
        let service = service(step).ok_or_else(|| StepError::domain("no service does it"))?;
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}/{service}/{step}/{saga}", self.services))
            .header("content-type", "application/json")
            .body(Full::from(body))
            .map_err(StepError::domain)?;
        // Whether it was sent is not asked: the key makes an attempt without answer repeatable.
        let answer = self.client.request(request).await.map_err(StepError::unknown)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(StepError::unknown)?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        match status {
            StatusCode::OK => Ok(text),
            StatusCode::CONFLICT => Err(StepError::domain(text)),
            _ => Err(StepError::unknown(format!("{service}: {status} {text}"))),
        }
    }
}

#[async_trait]
impl Peers for HttpPeers {
    async fn act(&self, step: &'static str, saga: &str, order: &Order) -> Answer<String> {
        let body = serde_json::to_vec(order).map_err(StepError::domain)?;
        self.call(Method::PUT, step, saga, body).await
    }

    async fn undo(&self, step: &'static str, saga: &str) -> Answer<()> {
        self.call(Method::DELETE, step, saga, Vec::new()).await.map(drop)
    }
}
