//! A tower layer for the header `Idempotency-Key`, as in the IETF draft
//! [draft-ietf-httpapi-idempotency-key-header].
//!
//! | the key | answer |
//! |---|---|
//! | is missing, and [`required`](IdempotencyConfig::required) | 400 |
//! | is not one string of 1 to 255 visible characters | 400 |
//! | comes for the first time | the service's, which is stored |
//! | is being worked on | 409 with `Retry-After` |
//! | was done | the stored one, with `Idempotency-Replayed: true` |
//! | was used for another method, path or body | 422 |
//! | belonged to a process that died, or took longer than the lease | 409, or the service is asked with [`IdempotencyKey::is_abandoned`]: see [`run_abandoned`](IdempotencyConfig::run_abandoned) |
//! | comes from a caller whose scope is none: see [`IdempotencyLayer::new`] | 500 |
//!
//! Answers of the layer are problems (RFC 9457). The service runs in a task: it goes on to the end,
//! and its answer is stored, also when the client has gone. What an answer that is replayed has:
//! its status, its body up to [`max_answer_bytes`](IdempotencyConfig::max_answer_bytes), and those
//! headers that [`headers`](IdempotencyConfig::headers) names.
//!
//! The client gets no byte of an answer to a request with a key before the answer's end, or its
//! first `max_answer_bytes`, is there and recorded. Leave the layer off routes that answer with a
//! stream, such as server-sent events: one without an end holds its key until the lease is over.
//!
//! [draft-ietf-httpapi-idempotency-key-header]:
//! https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::keys::{BeginKeyError, Claim, Keys};
use super::store::Found;
use crate::digest::digest;
use crate::error::ConfigError;

mod answer;
mod body;

use answer::{Problem, Stored};
pub use body::AnswerBody;
use body::{ReadBody, RequestError, read_answer, read_request};

/// The header, as the draft has it: a string of structured fields, `"8e03978e-40d5"`. One without
/// quotation marks is taken too.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What the layer does. Start from [`Default`] and change fields; checked by
/// [`IdempotencyLayer::new`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IdempotencyConfig {
    /// Methods that the layer looks at; requests of others go to the service. Default POST and
    /// PATCH.
    pub methods: Vec<Method>,
    /// Whether a request without a key is refused. Default no: it goes to the service.
    pub required: bool,
    /// The longest body of a request with a key; a longer one is answered with 413. 0 to 1 GiB.
    /// Default 1 MiB.
    pub max_request_bytes: usize,
    /// The longest body of an answer that is stored. The client gets a longer one, and later
    /// attempts are told that it was not stored. Up to 1 GiB, and with 16 KiB for headers no more
    /// than [`KeysConfig::max_result_bytes`](super::KeysConfig::max_result_bytes). Default 192 KiB.
    pub max_answer_bytes: usize,
    /// Headers that are stored with an answer; together up to 16 KiB, or none of them. A body with
    /// a `Content-Encoding` that is not stored is not stored either. Default `Content-Type`,
    /// `Content-Encoding`, `Content-Language`, `Content-Location`, `ETag`, `Last-Modified`,
    /// `Location`.
    pub headers: Vec<HeaderName>,
    /// `Retry-After` of a 409, unless the lease is over earlier. 1 s to 1 day; sent in whole
    /// seconds. Default 1 s.
    pub retry_after: Duration,
    /// Whether the service is asked when an earlier attempt may have had its effect. It then has to
    /// look before it acts: [`IdempotencyKey::is_abandoned`]. Default no: 409.
    pub run_abandoned: bool,
    /// Answers that say that nothing was done: the key is free again at once. Default 401, 403,
    /// 408, 413, 425, 429 and 503. All others are stored, 500 too: what it did is unknown. A key
    /// whose earlier attempt may have had its effect stays in doubt.
    pub release_on: Vec<StatusCode>,
}

impl Default for IdempotencyConfig {
    fn default() -> Self {
        Self {
            methods: vec![Method::POST, Method::PATCH],
            required: false,
            max_request_bytes: 1 << 20,
            max_answer_bytes: 192 << 10,
            headers: vec![
                header::CONTENT_TYPE,
                header::CONTENT_ENCODING,
                header::CONTENT_LANGUAGE,
                header::CONTENT_LOCATION,
                header::ETAG,
                header::LAST_MODIFIED,
                header::LOCATION,
            ],
            retry_after: Duration::from_secs(1),
            run_abandoned: false,
            release_on: vec![
                StatusCode::UNAUTHORIZED,
                StatusCode::FORBIDDEN,
                StatusCode::REQUEST_TIMEOUT,
                StatusCode::PAYLOAD_TOO_LARGE,
                StatusCode::TOO_EARLY,
                StatusCode::TOO_MANY_REQUESTS,
                StatusCode::SERVICE_UNAVAILABLE,
            ],
        }
    }
}

/// What is kept of a request: a digest.
const FINGERPRINT_BYTES: usize = 32;
/// Bytes of headers that are stored.
const MAX_HEADER_BYTES: usize = 16 << 10;

impl IdempotencyConfig {
    /// Checks every field against its range, and against the keys.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that breaks a rule.
    pub fn validate(&self, keys: &Keys) -> Result<(), ConfigError> {
        let retry =
            (Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&self.retry_after);
        if keys.config().max_fingerprint_bytes < FINGERPRINT_BYTES {
            let (field, rule) =
                ("max_fingerprint_bytes", "must be at least 32 bytes for the layer");
            return Err(ConfigError { field, rule });
        }
        let most = keys.config().max_result_bytes.saturating_sub(MAX_HEADER_BYTES).min(1 << 30);
        let rules = [
            ("max_request_bytes", self.max_request_bytes <= 1 << 30, "must be at most 1 GiB"),
            (
                "max_answer_bytes",
                self.max_answer_bytes <= most,
                "must be at most 1 GiB, and `max_result_bytes` of the keys less 16 KiB",
            ),
            ("retry_after", retry, "must be from 1 s to 1 day"),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, rule)) => Err(ConfigError { field, rule }),
            None => Ok(()),
        }
    }
}

/// An extension of requests with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IdempotencyKey {
    /// The key.
    pub key: String,
    /// Whether an earlier attempt may have had its effect: look before you act.
    pub is_abandoned: bool,
}

type Scope = dyn Fn(&Parts) -> String + Send + Sync;

/// The layer.
#[derive(Clone)]
pub struct IdempotencyLayer {
    shared: Arc<Shared>,
}

struct Shared {
    keys: Keys,
    config: IdempotencyConfig,
    scope: Box<Scope>,
}

impl IdempotencyLayer {
    /// A layer over `keys`. `scope` gives the name of who asks from what has been authenticated: a
    /// key belongs to it, so that nobody is given the answer of another. It has 1 to 255 bytes
    /// without control characters, and else the request is answered with 500: take the subject or
    /// the tenant, and no token, which is longer and changes. A single tenant has a fixed name.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(
        keys: Keys,
        config: IdempotencyConfig,
        scope: impl Fn(&Parts) -> String + Send + Sync + 'static,
    ) -> Result<Self, ConfigError> {
        config.validate(&keys)?;
        Ok(Self { shared: Arc::new(Shared { keys, config, scope: Box::new(scope) }) })
    }
}

impl fmt::Debug for IdempotencyLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.shared.config;
        f.debug_struct("IdempotencyLayer").field("config", config).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = IdempotencyService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        IdempotencyService { inner, shared: Arc::clone(&self.shared) }
    }
}

/// A service behind the layer. `Inner` is given requests whose bodies were read.
#[derive(Clone)]
pub struct IdempotencyService<Inner> {
    inner: Inner,
    shared: Arc<Shared>,
}

impl<Inner: fmt::Debug> fmt::Debug for IdempotencyService<Inner> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyService").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<Inner, B, R> Service<Request<B>> for IdempotencyService<Inner>
where
    Inner: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    Inner::Future: Send,
    Inner::Error: Send,
    B: Body + From<Bytes> + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Send,
{
    type Response = Response<AnswerBody<R>>;
    type Error = Inner::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The one that is ready serves this request; its clone has to become ready.
        let next = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, next);
        let shared = Arc::clone(&self.shared);
        if !shared.config.methods.contains(request.method()) {
            return pass(inner, request);
        }
        let key = match key_of(request.headers()) {
            Ok(Some(key)) => key,
            Ok(None) if !shared.config.required => return pass(inner, request),
            Ok(None) => return own(Problem::Missing.answer()),
            Err(()) => return own(Problem::Malformed.answer()),
        };
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = match read_request(body, shared.config.max_request_bytes).await {
                Ok(body) => body,
                Err(RequestError::TooLong) => return Ok(full(Problem::TooLong.answer())),
                Err(RequestError::Broken) => return Ok(full(Problem::Broken.answer())),
            };
            // In a task: it ends, and is recorded, also when the client has gone.
            match tokio::spawn(serve(inner, parts, key, body, shared)).await {
                Ok(answered) => answered,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime ends.
                    Err(_) => Ok(full(Problem::Abandoned.answer())),
                },
            }
        })
    }
}

type Answering<R, E> = Pin<Box<dyn Future<Output = Result<Response<AnswerBody<R>>, E>> + Send>>;

fn pass<Inner, B, R>(mut inner: Inner, request: Request<B>) -> Answering<R, Inner::Error>
where
    Inner: Service<Request<B>, Response = Response<R>>,
    Inner::Future: Send + 'static,
    R: Body<Data = Bytes>,
{
    let answer = inner.call(request);
    Box::pin(async move { Ok(answer.await?.map(AnswerBody::whole)) })
}

fn own<R: Body<Data = Bytes>, E>(answer: Response<Bytes>) -> Answering<R, E> {
    Box::pin(async move { Ok(full(answer)) })
}

fn full<R: Body<Data = Bytes>>(answer: Response<Bytes>) -> Response<AnswerBody<R>> {
    answer.map(AnswerBody::full)
}

/// Claims the key and asks the service, or answers by itself.
async fn serve<Inner, B, R>(
    inner: Inner,
    parts: Parts,
    key: String,
    body: Bytes,
    shared: Arc<Shared>,
) -> Result<Response<AnswerBody<R>>, Inner::Error>
where
    Inner: Service<Request<B>, Response = Response<R>>,
    B: From<Bytes>,
    R: Body<Data = Bytes>,
{
    let (claim, is_abandoned) = match shared.claim(&parts, &key, &body).await {
        Ok(claimed) => claimed,
        Err(answer) => return Ok(full(answer)),
    };
    let mut request = Request::from_parts(parts, B::from(body));
    request.extensions_mut().insert(IdempotencyKey { key, is_abandoned });
    run(inner, request, claim, shared).await
}

/// Asks the service, and records what it answers.
async fn run<Inner, B, R>(
    mut inner: Inner,
    request: Request<B>,
    claim: Claim,
    shared: Arc<Shared>,
) -> Result<Response<AnswerBody<R>>, Inner::Error>
where
    Inner: Service<Request<B>, Response = Response<R>>,
    R: Body<Data = Bytes>,
{
    // An error is the service's: what it did is unknown, and the key is abandoned.
    let answer = inner.call(request).await?;
    let (parts, body) = answer.into_parts();
    if shared.config.release_on.contains(&parts.status) {
        if let Err(error) = claim.release().await {
            tracing::debug!(target: "voussoir::txn", %error, "an idempotency key was not freed");
        }
        return Ok(Response::from_parts(parts, AnswerBody::whole(body)));
    }
    let (stored, body) = match read_answer(body, shared.config.max_answer_bytes).await {
        ReadBody::All(bytes, body) => (Some(bytes), body),
        ReadBody::Not(body) => (None, body),
    };
    let names = &shared.config.headers;
    let mut stored = Stored::new(parts.status, &parts.headers, names, stored);
    let bytes = stored.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 6);
    if bytes.sum::<usize>() + 8 > MAX_HEADER_BYTES {
        stored.headers.clear();
    }
    let is_encoding = |name: &HeaderName| *name == header::CONTENT_ENCODING;
    if parts.headers.keys().any(is_encoding)
        && !stored.headers.iter().any(|(name, _)| is_encoding(name))
    {
        // Nobody could read it.
        stored.body = None;
    }
    // The effect is there, so the client is answered in any case.
    if let Err(error) = claim.finish(stored.encode()).await {
        tracing::warn!(target: "voussoir::txn", %error, "an answer was not recorded");
    }
    Ok(Response::from_parts(parts, body))
}

impl Shared {
    /// Claims the key, or answers.
    async fn claim(
        &self,
        parts: &Parts,
        key: &str,
        body: &[u8],
    ) -> Result<(Claim, bool), Response<Bytes>> {
        let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
        // Not cryptographic: who finds a collision deceives itself.
        let fingerprint = digest(&[parts.method.as_str().as_bytes(), target.as_bytes(), body]);
        let scope = (self.scope)(parts);
        let takes = self.config.run_abandoned;
        let claimed = self.keys.claim(&scope, key, fingerprint.as_bytes(), takes).await;
        let (found, claim) = match claimed {
            Ok(claimed) => claimed,
            Err(BeginKeyError::Store(error)) => {
                tracing::warn!(target: "voussoir::txn", %error, "idempotency keys failed");
                return Err(Problem::Store.answer());
            }
            // The key was looked at, and so it is the scope, which the client cannot mend.
            Err(error) => {
                let bytes = scope.len();
                tracing::warn!(target: "voussoir::txn", %error, bytes, "the scope is no name");
                return Err(Problem::Scope.answer());
            }
        };
        Err(match found {
            Found::Vacant => return Ok((claim, false)),
            Found::Abandoned if takes => return Ok((claim, true)),
            Found::Abandoned => Problem::Abandoned.answer(),
            Found::Done(result) => match Stored::decode(result) {
                Some(stored) => stored.replay(),
                None => Problem::NotStored.answer(),
            },
            Found::InProgress(left) => {
                let wait = left.min(self.config.retry_after);
                let retry_after_s = wait.as_nanos().div_ceil(1_000_000_000).max(1);
                let retry_after_s = u64::try_from(retry_after_s).unwrap_or(u64::MAX);
                Problem::InProgress { retry_after_s }.answer()
            }
            Found::Mismatch => Problem::Mismatch.answer(),
        })
    }
}

/// The key, if there is one; an error if it is none, or there are several.
fn key_of(headers: &HeaderMap) -> Result<Option<String>, ()> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(());
    }
    let text = value.to_str().map_err(|_| ())?.trim_matches(' ');
    let key = match text.strip_prefix('"') {
        Some(rest) => unquote(rest)?,
        None if text.contains(['"', '\\', ' ', '\t', ',', ';']) => return Err(()),
        None => text.to_owned(),
    };
    if (1..=255).contains(&key.len()) { Ok(Some(key)) } else { Err(()) }
}

/// A string of RFC 8941 behind its first quotation mark.
fn unquote(rest: &str) -> Result<String, ()> {
    let mut key = String::new();
    let mut letters = rest.chars();
    // Ends: each round takes a letter off.
    while let Some(letter) = letters.next() {
        match letter {
            '"' => return if letters.as_str().is_empty() { Ok(key) } else { Err(()) },
            '\\' => match letters.next() {
                Some(escaped @ ('"' | '\\')) => key.push(escaped),
                _ => return Err(()),
            },
            ' '..='~' => key.push(letter),
            _ => return Err(()),
        }
    }
    Err(())
}
