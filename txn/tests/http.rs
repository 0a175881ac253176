//! The layer for `Idempotency-Key` around an axum service, over memory, a journal and PostgreSQL.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use http::{Request, Response};
use tokio::sync::Semaphore;
use tower_layer::Layer;
use tower_service::Service;
use voussoir_txn::idempotency::layer::*;
use voussoir_txn::idempotency::*;
use voussoir_txn::store::{MemoryStore, Opened, Record, SagaStore};
use voussoir_txn::{Bytes, StoreError, async_trait};

/// What the service answers with.
#[derive(Default)]
struct Peer {
    runs: AtomicU64,
    /// Runs that may go on.
    gate: Option<Semaphore>,
    /// A header of each answer.
    header: Option<(&'static str, String)>,
    status: AtomicU64,
    answer_bytes: AtomicU64,
    panics: AtomicBool,
    abandoned: AtomicU64,
}

/// Answers with what it was sent. It must have been ready: each clone has to become so by itself.
struct Echo {
    peer: Arc<Peer>,
    is_ready: bool,
}

impl Clone for Echo {
    fn clone(&self) -> Self {
        Self { peer: Arc::clone(&self.peer), is_ready: false }
    }
}

impl Service<Request<Body>> for Echo {
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = std::pin::Pin<
        Box<dyn Future<Output = Result<Response<Body>, std::convert::Infallible>> + Send>,
    >;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "called without having been ready");
        let peer = Arc::clone(&self.peer);
        Box::pin(async move {
            let key = request.extensions().get::<IdempotencyKey>().cloned();
            if key.is_some_and(|key| key.is_abandoned) {
                peer.abandoned.fetch_add(1, Ordering::SeqCst);
            }
            let body = to_bytes(request.into_body(), usize::MAX).await.unwrap();
            let run = peer.runs.fetch_add(1, Ordering::SeqCst) + 1;
            if let Some(gate) = &peer.gate {
                gate.acquire().await.unwrap().forget();
            }
            assert!(!peer.panics.load(Ordering::SeqCst), "by purpose");
            let padding = "x".repeat(peer.answer_bytes.load(Ordering::SeqCst) as usize);
            let text = format!("run {run} {}{padding}", String::from_utf8_lossy(&body));
            let status = match peer.status.load(Ordering::SeqCst) {
                0 => 201,
                status => status as u16,
            };
            let mut answer = Response::builder().status(status).header("location", "/charges/1");
            if let Some((name, value)) = &peer.header {
                answer = answer.header(*name, value);
            }
            Ok(answer.header("set-cookie", "a=b").body(Body::from(text)).unwrap())
        })
    }
}

struct Site {
    peer: Arc<Peer>,
    service: IdempotencyService<Echo>,
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    replayed: bool,
    retry_after: Option<String>,
    location: bool,
    cookie: bool,
    body: String,
}

impl Site {
    fn new(keys: Keys, config: IdempotencyConfig, peer: Peer) -> Self {
        let scope = |parts: &http::request::Parts| {
            parts.headers.get("tenant").map_or("-", |name| name.to_str().unwrap()).to_owned()
        };
        let layer = IdempotencyLayer::new(keys, config, scope).unwrap();
        let peer = Arc::new(peer);
        let echo = Echo { peer: Arc::clone(&peer), is_ready: false };
        Self { peer, service: layer.layer(echo) }
    }

    async fn memory() -> Self {
        Self::new(memory().await, IdempotencyConfig::default(), Peer::default())
    }

    fn runs(&self) -> u64 {
        self.peer.runs.load(Ordering::SeqCst)
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let mut service = self.service.clone();
        std::future::poll_fn(|context| service.poll_ready(context)).await.unwrap();
        let answer = service.call(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        let body = to_bytes(Body::new(body), usize::MAX).await.unwrap();
        let retry_after = parts.headers.get("retry-after");
        Answer {
            status: parts.status.as_u16(),
            replayed: parts
                .headers
                .get("idempotency-replayed")
                .is_some_and(|value| value == "true"),
            retry_after: retry_after.map(|value| value.to_str().unwrap().to_owned()),
            location: parts.headers.contains_key("location"),
            cookie: parts.headers.contains_key("set-cookie"),
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    /// The status of a POST.
    async fn post(&self, key: &str, body: &str) -> (u16, String) {
        let answer = self.send(post(key, body)).await;
        (answer.status, answer.body)
    }
}

fn post(key: &str, body: &str) -> Request<Body> {
    let request = Request::post("/charges").header("Idempotency-Key", key);
    request.body(Body::from(body.to_owned())).unwrap()
}

async fn memory() -> Keys {
    let store = StoreKeys::open(MemoryStore::new(), 1000).await.unwrap();
    Keys::new(store, KeysConfig::default()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_again_gets_the_stored_answer() {
    let site = Site::memory().await;
    let first = site.send(post("\"k\"", "4200")).await;
    let expected = |replayed, cookie| Answer {
        status: 201,
        replayed,
        retry_after: None,
        location: true,
        cookie,
        body: "run 1 4200".into(),
    };
    assert_eq!(first, expected(false, true));
    // With and without quotation marks it is one key; headers that are not named are not stored.
    assert_eq!(site.send(post("k", "4200")).await, expected(true, false));
    assert_eq!(site.runs(), 1);
    assert_eq!(site.post("\"k2\"", "4200").await, (201, "run 2 4200".into()));
}

#[tokio::test(start_paused = true)]
async fn a_key_of_another_request_is_422_and_of_another_caller_new() {
    let site = Site::memory().await;
    site.post("k", "4200").await;
    assert_eq!(site.post("k", "4300").await.0, 422);
    let mut other = post("k", "4200");
    *other.uri_mut() = "/charges?currency=eur".parse().unwrap();
    let answer = site.send(other).await;
    assert_eq!(answer.status, 422);
    assert!(answer.body.contains("\"status\":422"), "{}", answer.body);
    let mut tenant = post("k", "4200");
    tenant.headers_mut().insert("tenant", "b".parse().unwrap());
    assert_eq!(site.send(tenant).await.body, "run 2 4200");
}

/// The service gives no name for who asks: no client can mend that, and its key is in order.
#[tokio::test(start_paused = true)]
async fn a_scope_that_is_no_name_is_no_fault_of_the_client() {
    let site = Site::memory().await;
    for scope in [String::new(), "x".repeat(256)] {
        let mut request = post("k", "4200");
        request.headers_mut().insert("tenant", scope.parse().unwrap());
        let answer = site.send(request).await;
        assert_eq!(answer.status, 500, "{answer:?}");
        assert!(!answer.body.contains("Idempotency-Key"), "{answer:?}");
    }
    assert_eq!(site.runs(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_under_way_is_409_and_goes_on_without_its_client() {
    let peer = Peer { gate: Some(Semaphore::new(0)), ..Peer::default() };
    let site = Site::new(memory().await, IdempotencyConfig::default(), peer);
    {
        let client = site.send(post("k", "4200"));
        let gone = tokio::time::timeout(Duration::from_millis(10), client).await;
        assert!(gone.is_err(), "it waits");
    }
    let answer = site.send(post("k", "4200")).await;
    assert_eq!((answer.status, answer.retry_after.as_deref()), (409, Some("1")));
    site.peer.gate.as_ref().unwrap().add_permits(1);
    tokio::time::sleep(Duration::from_millis(10)).await;
    let answer = site.send(post("k", "4200")).await;
    assert_eq!((answer.status, answer.replayed, &*answer.body), (201, true, "run 1 4200"));
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_none_are_400_and_requests_without_go_on() {
    let site = Site::memory().await;
    let long = "x".repeat(256);
    let bad = ["", "\"", "\"a", "a\"b", "\"a\"b", "\"a\\n\"", "a b", "a\tb", "\"\"", &long, "a, b"];
    for key in bad {
        assert_eq!(site.post(key, "").await.0, 400, "{key:?}");
    }
    let mut twice = post("a", "");
    twice.headers_mut().append("Idempotency-Key", "b".parse().unwrap());
    assert_eq!(site.send(twice).await.status, 400);
    assert_eq!(site.runs(), 0);
    assert_eq!(site.post("\"a \\\"b\\\\ \"", "").await.0, 201);
    let without = || Request::post("/charges").body(Body::empty()).unwrap();
    for _ in 0..2 {
        assert_eq!(site.send(without()).await.status, 201);
        let get = Request::get("/charges").header("Idempotency-Key", "g");
        assert!(!site.send(get.body(Body::empty()).unwrap()).await.replayed);
    }
    assert_eq!(site.runs(), 5);
    let mut config = IdempotencyConfig::default();
    config.required = true;
    let strict = Site::new(memory().await, config, Peer::default());
    assert_eq!(strict.send(without()).await.status, 400);
    assert_eq!(strict.runs(), 0);
}

#[tokio::test(start_paused = true)]
async fn bodies_are_bounded() {
    let mut config = IdempotencyConfig::default();
    (config.max_request_bytes, config.max_answer_bytes) = (10, 20);
    let site = Site::new(memory().await, config, Peer::default());
    assert_eq!(site.post("k", "12345678901").await.0, 413);
    let streamed = Body::new(Parts(vec!["123456", "78901"]));
    let request = Request::post("/charges").header("Idempotency-Key", "k").body(streamed);
    assert_eq!(site.send(request.unwrap()).await.status, 413, "also without a length");
    assert_eq!(site.runs(), 0);
    assert_eq!(site.post("k", "1234567890").await.0, 201);
    site.peer.answer_bytes.store(50, Ordering::SeqCst);
    let (status, body) = site.post("long", "").await;
    assert_eq!((status, body.len()), (201, 56), "the client gets all of it");
    assert_eq!(site.post("long", "").await.0, 409, "it was done, and is not done again");
    assert_eq!(site.runs(), 2);
}

/// A body of two parts, which does not say its length.
struct Parts(Vec<&'static str>);

impl http_body::Body for Parts {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.pop().map(|part| Ok(http_body::Frame::data(Bytes::from(part)))))
    }
}

#[tokio::test(start_paused = true)]
async fn answers_that_say_that_nothing_was_done_free_the_key() {
    let site = Site::memory().await;
    site.peer.status.store(503, Ordering::SeqCst);
    assert_eq!(site.post("k", "").await, (503, "run 1 ".into()));
    site.peer.status.store(500, Ordering::SeqCst);
    assert_eq!(site.post("k", "").await, (500, "run 2 ".into()));
    site.peer.status.store(201, Ordering::SeqCst);
    assert_eq!(site.post("k", "").await, (500, "run 2 ".into()), "what a 500 did is unknown");
}

#[tokio::test(start_paused = true)]
async fn what_a_process_that_died_did_is_not_done_again_blindly() {
    for run_abandoned in [false, true] {
        let mut config = IdempotencyConfig::default();
        config.run_abandoned = run_abandoned;
        let site = Arc::new(Site::new(memory().await, config, Peer::default()));
        site.peer.panics.store(true, Ordering::SeqCst);
        let dying = Arc::clone(&site);
        let died = tokio::spawn(async move { dying.post("k", "").await }).await;
        assert!(died.unwrap_err().is_panic(), "the panic is the caller's");
        site.peer.panics.store(false, Ordering::SeqCst);
        assert_eq!(site.post("k", "").await.0, 409, "its lease runs");
        tokio::time::sleep(KeysConfig::default().lease).await;
        let (status, _) = site.post("k", "").await;
        let abandoned = site.peer.abandoned.load(Ordering::SeqCst);
        let expected = if run_abandoned { (201, 1, 2) } else { (409, 0, 1) };
        assert_eq!((status, abandoned, site.runs()), expected);
    }
}

/// An answer that says that nothing was done says nothing of the attempt before it.
#[tokio::test(start_paused = true)]
async fn an_answer_that_nothing_was_done_leaves_an_abandoned_key_in_doubt() {
    let mut config = IdempotencyConfig::default();
    config.run_abandoned = true;
    let site = Arc::new(Site::new(memory().await, config, Peer::default()));
    site.peer.panics.store(true, Ordering::SeqCst);
    let dying = Arc::clone(&site);
    assert!(tokio::spawn(async move { dying.post("k", "").await }).await.is_err());
    site.peer.panics.store(false, Ordering::SeqCst);
    tokio::time::sleep(KeysConfig::default().lease).await;
    site.peer.status.store(503, Ordering::SeqCst);
    for attempt in 1..=2 {
        assert_eq!(site.post("k", "").await.0, 503);
        assert_eq!(site.peer.abandoned.load(Ordering::SeqCst), attempt, "it is told to look");
    }
    site.peer.status.store(201, Ordering::SeqCst);
    assert_eq!(site.post("k", "").await, (201, "run 4 ".into()));
    assert_eq!(site.peer.abandoned.load(Ordering::SeqCst), 3);
}

/// A store whose appends take a while.
struct Slow(MemoryStore);

#[async_trait]
impl SagaStore for Slow {
    async fn open(&self) -> Result<Opened, StoreError> {
        self.0.open().await
    }

    async fn append(&self, records: Vec<Record>) -> Result<(), StoreError> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.0.append(records).await
    }
}

/// A client that goes while its key is being claimed leaves no claim without a request.
#[tokio::test(start_paused = true)]
async fn a_client_that_goes_while_its_key_is_claimed_is_served_all_the_same() {
    let store = StoreKeys::open(Slow(MemoryStore::new()), 10).await.unwrap();
    let keys = Keys::new(store, KeysConfig::default()).unwrap();
    let site = Site::new(keys, IdempotencyConfig::default(), Peer::default());
    let client = site.send(post("k", "4200"));
    assert!(tokio::time::timeout(Duration::from_millis(10), client).await.is_err(), "it waits");
    assert_eq!(site.runs(), 0, "the key is being claimed");
    tokio::time::sleep(Duration::from_secs(10)).await;
    let answer = site.send(post("k", "4200")).await;
    assert_eq!((answer.status, answer.replayed, &*answer.body), (201, true, "run 1 4200"));
}

/// A retry that is refused does not take the key from an owner that is slow.
#[tokio::test(start_paused = true)]
async fn a_retry_that_is_refused_leaves_the_key_to_its_owner() {
    let peer = Peer { gate: Some(Semaphore::new(0)), ..Peer::default() };
    let site = Arc::new(Site::new(memory().await, IdempotencyConfig::default(), peer));
    let slow = Arc::clone(&site);
    let slow = tokio::spawn(async move { slow.post("k", "4200").await });
    tokio::time::sleep(KeysConfig::default().lease).await;
    for _ in 0..2 {
        let answer = site.send(post("k", "4200")).await;
        assert_eq!((answer.status, answer.retry_after), (409, None), "its outcome is unknown");
    }
    site.peer.gate.as_ref().unwrap().add_permits(1);
    assert_eq!(slow.await.unwrap(), (201, "run 1 4200".into()));
    let answer = site.send(post("k", "4200")).await;
    assert_eq!((answer.status, answer.replayed, site.runs()), (201, true, 1));
}

/// A body is replayed with its encoding, or not at all.
#[tokio::test(start_paused = true)]
async fn an_encoded_body_is_stored_only_with_its_encoding() {
    let encoded = || Peer { header: Some(("content-encoding", "gzip".into())), ..Peer::default() };
    let site = Site::new(memory().await, IdempotencyConfig::default(), encoded());
    site.post("k", "").await;
    let mut service = site.service.clone();
    std::future::poll_fn(|context| service.poll_ready(context)).await.unwrap();
    let answer = service.call(post("k", "")).await.unwrap();
    assert_eq!(answer.status(), 201);
    assert_eq!(answer.headers()["content-encoding"], "gzip");
    // Not stored: nobody could read the body.
    let mut config = IdempotencyConfig::default();
    config.headers.retain(|name| name != "content-encoding");
    let site = Site::new(memory().await, config, encoded());
    assert_eq!(site.post("k", "").await.0, 201);
    assert_eq!(site.post("k", "").await.0, 409);
    // Headers that are together too long are not stored.
    let long = Peer { header: Some(("content-encoding", "x".repeat(20_000))), ..Peer::default() };
    let site = Site::new(memory().await, IdempotencyConfig::default(), long);
    assert_eq!(site.post("k", "").await.0, 201);
    assert_eq!(site.post("k", "").await.0, 409);
    assert_eq!(site.runs(), 1);
}

struct Broken;

#[async_trait]
impl SagaStore for Broken {
    async fn open(&self) -> Result<Opened, StoreError> {
        Ok(Opened::new(1, Vec::new()))
    }

    async fn append(&self, _: Vec<Record>) -> Result<(), StoreError> {
        Err(StoreError::new("no disk"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_503_and_nothing_is_done() {
    let store = StoreKeys::open(Broken, 10).await.unwrap();
    let keys = Keys::new(store, KeysConfig::default()).unwrap();
    let site = Site::new(keys, IdempotencyConfig::default(), Peer::default());
    let answer = site.send(post("k", "")).await;
    assert_eq!((answer.status, answer.retry_after.as_deref()), (503, Some("1")));
    assert_eq!(site.runs(), 0);
}

#[tokio::test]
async fn configurations_out_of_range_are_refused() {
    let keys = memory().await;
    let refused = |change: fn(&mut IdempotencyConfig)| {
        let mut config = IdempotencyConfig::default();
        change(&mut config);
        config.validate(&keys).map_err(|error| error.field)
    };
    assert_eq!(refused(|_| {}), Ok(()));
    assert_eq!(refused(|one| one.max_request_bytes = (1 << 30) + 1), Err("max_request_bytes"));
    assert_eq!(refused(|one| one.max_answer_bytes = 256 << 10), Err("max_answer_bytes"));
    assert_eq!(refused(|one| one.retry_after = Duration::ZERO), Err("retry_after"));
    assert_eq!(refused(|one| one.max_answer_bytes = 240 << 10), Ok(()));
    let mut short = KeysConfig::default();
    short.max_fingerprint_bytes = 31;
    let store = StoreKeys::open(MemoryStore::new(), 10).await.unwrap();
    let keys = Keys::new(store, short).unwrap();
    let refused = IdempotencyConfig::default().validate(&keys).map_err(|error| error.field);
    assert_eq!(refused, Err("max_fingerprint_bytes"));
}

/// The same keys seen by two processes, over a real server.
#[cfg(feature = "postgres")]
#[tokio::test]
#[ignore = "needs postgresql"]
async fn keys_in_postgresql_serve_two_processes() {
    let url = std::env::var("DATABASE_URL").expect("DATABASE_URL is set by `cargo xtask test`");
    let config: tokio_postgres::Config = url.parse().unwrap();
    let schema = format!("voussoir_http_{}", std::process::id());
    let mut sites = Vec::new();
    for _ in 0..2 {
        let store = PostgresKeys::open(config.clone(), &schema).await.unwrap();
        let keys = Keys::new(store, KeysConfig::default()).unwrap();
        sites.push(Site::new(keys, IdempotencyConfig::default(), Peer::default()));
    }
    assert_eq!(sites[0].post("k", "4200").await, (201, "run 1 4200".into()));
    let again = sites[1].send(post("k", "4200")).await;
    assert_eq!((again.replayed, &*again.body, sites[1].runs()), (true, "run 1 4200", 0));
    assert_eq!(sites[1].post("k", "1").await.0, 422);
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute(&format!("DROP SCHEMA {schema} CASCADE")).await.unwrap();
}
