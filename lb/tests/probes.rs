//! Probes over loopback, and the checker in virtual time.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Response};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use voussoir_lb::probe::*;
use voussoir_lb::strategy::RoundRobin;
use voussoir_lb::*;

fn checked(names: &[&str]) -> Balancer {
    let mut config = Config::default();
    config.checks = Some(CheckConfig::default());
    let balancer = Balancer::new(RoundRobin::default(), config).expect("valid");
    balancer.update(names.iter().map(|&name| EndpointConfig::new(name)), 0).expect("a set");
    balancer
}

fn endpoint(name: &str) -> Arc<Endpoint> {
    checked(&[name]).endpoints().remove(0)
}

/// A server that reads a request and answers each connection with the same bytes.
async fn server(answer: &'static [u8]) -> Arc<Endpoint> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let name = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap_or(0);
            assert!(request[..length].starts_with(b"GET /health HTTP/1.1\r\nHost: 127."));
            // The client may have closed before all was written.
            let _ = stream.write_all(answer).await;
        }
    });
    endpoint(&name)
}

#[tokio::test]
async fn a_tcp_probe_passes_while_something_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let listening = endpoint(&format!("127.0.0.1:{port}"));
    assert!(TcpProbe::default().probe(&listening).await.is_ok());
    let mut other = TcpProbe::default();
    other.port = Some(port);
    assert!(other.probe(&endpoint("127.0.0.1:1")).await.is_ok(), "the port of the probe counts");
    drop(listener);
    let error = TcpProbe::default().probe(&listening).await.expect_err("nothing listens");
    assert!(matches!(error, ProbeError::Io(_)), "{error}");
}

#[tokio::test]
async fn an_http_probe_passes_by_the_final_status() {
    let probe = |answer| async move {
        let result = HttpProbe::new("/health").probe(&*server(answer).await).await;
        result.map_err(|error| error.to_string())
    };
    assert_eq!(probe(b"HTTP/1.1 204 No Content\r\n\r\n").await, Ok(()));
    assert_eq!(probe(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n").await, Ok(()));
    let failed = probe(b"HTTP/1.1 503 Down\r\n\r\n").await;
    assert_eq!(failed, Err("answered with status 503".to_owned()));
    let cut = probe(b"HTTP/1.1 200 OK\r\nA: b\r\n").await;
    assert_eq!(cut, Err("closed before the head of the answer ended".to_owned()));
    assert_eq!(probe(b"SSH-2.0-x\r\n").await, Err("the answer is not HTTP/1".to_owned()));
    const LONG: &[u8] = &{
        let mut long = [b'a'; 40_000];
        let head = b"HTTP/1.1 200 OK\r\nA: ";
        let mut at = 0;
        while at < head.len() {
            long[at] = head[at];
            at += 1;
        }
        long
    };
    let long = probe(LONG).await;
    assert_eq!(long, Err("the head of the answer exceeds 16 KiB".to_owned()));
}

/// A gRPC server that answers with `message` and `status`.
async fn grpc(message: &'static [u8], status: &'static str) -> Arc<Endpoint> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let name = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a probe");
        let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
        while let Some(call) = connection.accept().await {
            let (request, mut respond) = call.expect("a call");
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            assert_eq!(request.headers()["content-type"], "application/grpc");
            let answer = Response::builder().header("content-type", "application/grpc");
            let answer = answer.body(()).expect("valid");
            let mut body = respond.send_response(answer, false).expect("open");
            body.send_data(Bytes::from_static(message), false).expect("open");
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", status.parse().expect("valid"));
            body.send_trailers(trailers).expect("open");
        }
    });
    endpoint(&name)
}

#[tokio::test]
async fn a_grpc_probe_passes_only_while_serving() {
    let probe = |message, status| async move {
        let result = GrpcProbe::new("store").probe(&*grpc(message, status).await).await;
        result.map_err(|error| error.to_string())
    };
    assert_eq!(probe(&[0, 0, 0, 0, 2, 8, 1], "0").await, Ok(()));
    let down = probe(&[0, 0, 0, 0, 2, 8, 2], "0").await;
    assert_eq!(down, Err("serving status 2".to_owned()));
    assert_eq!(probe(&[], "5").await, Err("grpc-status 5".to_owned()));
    let garbage = probe(b"<html>", "0").await;
    assert_eq!(garbage, Err("the answer is no HealthCheckResponse".to_owned()));
}

/// Answers as the test says, and remembers when each endpoint was probed.
#[derive(Default)]
struct Scripted {
    probes: Mutex<Vec<(String, Instant)>>,
    running: AtomicU32,
    most_running: AtomicU32,
    fails: AtomicBool,
}

struct Running<'a>(&'a AtomicU32);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[async_trait]
impl Probe for Scripted {
    async fn probe(&self, endpoint: &Endpoint) -> Result<(), ProbeError> {
        self.probes.lock().push((endpoint.name().to_owned(), Instant::now()));
        self.most_running.fetch_max(self.running.fetch_add(1, Relaxed) + 1, Relaxed);
        let _running = Running(&self.running);
        match endpoint.name() {
            "hangs" => pending().await,
            "panics" => panic!("as the test demands"),
            _ => sleep(Duration::from_millis(10)).await,
        }
        let fails = endpoint.name() == "fails" || self.fails.load(Relaxed);
        if fails { Err(ProbeError::unhealthy("as the test demands")) } else { Ok(()) }
    }
}

fn config() -> CheckerConfig {
    let mut config = CheckerConfig::default();
    (config.interval, config.seed) = (Duration::from_secs(1), Some(1));
    config.timeout = Duration::from_millis(500);
    config
}

fn healthy(balancer: &Balancer) -> Vec<String> {
    let endpoints = balancer.stats(0).endpoints.into_iter();
    endpoints.filter(|endpoint| endpoint.healthy).map(|endpoint| endpoint.name).collect()
}

#[tokio::test(start_paused = true)]
async fn hanging_and_panicking_probes_hold_up_no_other() {
    let balancer = checked(&["hangs", "good", "panics", "fails"]);
    assert!(balancer.pick(&Context::new(), 0).is_none(), "nothing was checked yet");
    let probe = Arc::new(Scripted::default());
    let checker = Checker::start(balancer.clone(), Arc::clone(&probe), config()).expect("valid");
    sleep(Duration::from_millis(20)).await;
    assert_eq!(healthy(&balancer), ["good"]);
    sleep(Duration::from_millis(9_780)).await;
    assert_eq!(healthy(&balancer), ["good"]);
    let stats = checker.stats();
    assert!((9..=11).contains(&stats.timed_out), "{stats:?}");
    assert!((9..=11).contains(&stats.panicked), "{stats:?}");
    assert!((9..=11).contains(&stats.passed), "{stats:?}");
    assert!((27..=33).contains(&stats.failed), "{stats:?}");
    assert!(stats.last_failure.is_some());
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_joins_is_probed_at_once_and_one_that_leaves_no_more() {
    let balancer = checked(&["a", "hangs"]);
    let probe = Arc::new(Scripted::default());
    let _checker = Checker::start(balancer.clone(), Arc::clone(&probe), config()).expect("valid");
    sleep(Duration::from_millis(300)).await;
    assert_eq!(probe.running.load(Relaxed), 1, "one hangs");
    balancer.update(["a", "b"].map(EndpointConfig::new), 0).expect("a set");
    assert!(!healthy(&balancer).contains(&"b".to_owned()));
    sleep(Duration::from_millis(20)).await;
    assert_eq!(healthy(&balancer), ["a", "b"]);
    assert_eq!(probe.running.load(Relaxed), 0, "the probe of the one that left was dropped");
    let before = probe.probes.lock().len();
    sleep(Duration::from_secs(5)).await;
    let probes = probe.probes.lock();
    assert!(probes[before..].iter().all(|(name, _)| name != "hangs"));
    assert!((8..=12).contains(&(probes.len() - before)), "{}", probes.len() - before);
}

/// Fails as a connection does when the process has as many descriptors as it may.
struct NoDescriptor;

#[async_trait]
impl Probe for NoDescriptor {
    async fn probe(&self, _: &Endpoint) -> Result<(), ProbeError> {
        Err(ProbeError::Io(std::io::ErrorKind::AddrNotAvailable.into()))
    }
}

/// Or a flood of connections to the proxy would make all its endpoints unhealthy.
#[tokio::test(start_paused = true)]
async fn a_probe_that_this_machine_failed_changes_no_health() {
    let balancer = checked(&["a", "b"]);
    for endpoint in balancer.endpoints() {
        balancer.record_check(endpoint.id(), true, 1);
    }
    let checker = Checker::start(balancer.clone(), NoDescriptor, config()).expect("valid");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(healthy(&balancer), ["a", "b"]);
    let stats = checker.stats();
    assert!(stats.failed >= 20 && stats.last_failure.is_some(), "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn rise_and_fall_are_those_of_the_balancer() {
    let balancer = checked(&["a"]);
    let probe = Arc::new(Scripted::default());
    let _checker = Checker::start(balancer.clone(), Arc::clone(&probe), config()).expect("valid");
    let mut availability = balancer.availability();
    let mut changes = Vec::new();
    let probes = || probe.probes.lock().len();
    for step in 0..4 {
        availability.changed().await.expect("it lives");
        let healthy = availability.borrow_and_update().healthy;
        changes.push((healthy, probes()));
        probe.fails.store(step % 2 == 0, Relaxed);
    }
    // One probe decides first, then three failures, two passes, three failures.
    assert_eq!(changes, [(1, 1), (0, 4), (1, 6), (0, 9)]);
}

#[tokio::test(start_paused = true)]
async fn probes_are_bounded_jittered_and_end_with_the_checker() {
    let names: Vec<String> = (0..100).map(|at| format!("e{at}")).collect();
    let balancer = checked(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let probe = Arc::new(Scripted::default());
    let mut config = config();
    (config.max_probes, config.jitter) = (8, 0.5);
    let checker = Checker::start(balancer.clone(), Arc::clone(&probe), config).expect("valid");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(probe.most_running.load(Relaxed), 8);
    let gaps: Vec<f64> = {
        let probes = probe.probes.lock();
        let of = probes.iter().filter(|(name, _)| name == "e7").map(|(_, at)| *at);
        let of: Vec<Instant> = of.collect();
        of.windows(2).map(|two| (two[1] - two[0]).as_secs_f64()).collect()
    };
    assert!((50..=75).contains(&gaps.len()), "{}", gaps.len());
    assert!(gaps.iter().all(|gap| (0.49..=1.7).contains(gap)), "{gaps:?}");
    let (low, high) = gaps.iter().fold((f64::MAX, 0.0_f64), |(a, b), &g| (a.min(g), b.max(g)));
    assert!(low < 0.7 && high > 1.3, "{low} to {high}: the jitter spreads");
    drop(checker);
    // Time for the abort.
    sleep(Duration::from_millis(1)).await;
    assert_eq!(probe.running.load(Relaxed), 0, "a probe outlived its checker");
    let before = probe.probes.lock().len();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(probe.probes.lock().len(), before);
}

#[tokio::test]
async fn a_checker_needs_thresholds_and_a_valid_configuration() {
    let balancer = Balancer::new(RoundRobin::default(), Config::default()).expect("valid");
    let error = Checker::start(balancer, TcpProbe::default(), CheckerConfig::default());
    assert_eq!(error.expect_err("no checks").field, "checks");
    let mut config = CheckerConfig::default();
    config.max_probes = 0;
    let error = Checker::start(checked(&["a"]), TcpProbe::default(), config);
    assert_eq!(error.expect_err("no probes").field, "max_probes");
}
