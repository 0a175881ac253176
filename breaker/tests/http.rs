//! The layers where people put them: in axum routes and around a reqwest client, over loopback.

#[path = "../examples/axum.rs"]
#[expect(dead_code, reason = "the example's own main")]
mod server;

#[path = "../examples/reqwest.rs"]
#[expect(dead_code, reason = "the example's own main")]
mod client;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use voussoir_breaker::testing::ManualClock;
use voussoir_breaker::tower::{CopyRequest, HttpAnswers, Rejection, SafeRequests};
use voussoir_breaker::*;

async fn serve() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let app = server::app().expect("valid");
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// What `curl -i` shows.
async fn curl(address: SocketAddr, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("listening");
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    answer
}

#[tokio::test]
async fn an_axum_route_behind_a_breaker_answers_503_with_retry_after() {
    let address = serve().await;
    assert!(curl(address, "GET", "/catalogue").await.starts_with("HTTP/1.1 200 OK"));
    curl(address, "GET", "/break").await;
    for _ in 0..5 {
        let answer = curl(address, "GET", "/catalogue").await;
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    }
    let answer = curl(address, "GET", "/catalogue").await.to_lowercase();
    assert!(answer.starts_with("http/1.1 503 service unavailable"), "{answer}");
    // 5 s, jittered by up to a fifth, whole seconds rounded up.
    let seconds: Vec<_> = (4..=6).map(|s| format!("retry-after: {s}\r\n")).collect();
    assert!(seconds.iter().any(|header| answer.contains(header)), "{answer}");
    assert!(answer.ends_with("rejected by a breaker that is open\n"), "{answer}");
    // The other route has a breaker of its own.
    curl(address, "GET", "/mend").await;
    assert!(curl(address, "GET", "/search").await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn an_axum_route_behind_a_policy_retries_what_is_safe_and_opens() {
    let address = serve().await;
    curl(address, "GET", "/break").await;
    // One attempt: a POST is not sent twice. Then three: two GETs open the breaker within them.
    assert!(curl(address, "POST", "/search").await.starts_with("HTTP/1.1 500 "));
    assert!(curl(address, "GET", "/search").await.starts_with("HTTP/1.1 500 "));
    let answer = curl(address, "GET", "/search").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "1 + 3 failures, and a fifth opens it: {answer}");
}

fn breaker() -> Arc<Breaker> {
    let mut config = BreakerConfig::default();
    config.consecutive_failures = Some(3);
    Arc::new(Breaker::new("b", &config).expect("valid"))
}

#[tokio::test]
async fn a_reqwest_client_behind_a_breaker_stops_calling() {
    let address = serve().await;
    curl(address, "GET", "/break").await;
    let (http, breaker) = (reqwest::Client::new(), breaker());
    let get = || http.get(format!("http://{address}/catalogue")).build().expect("a request");
    for _ in 0..3 {
        let answer = client::through_a_breaker(http.clone(), Arc::clone(&breaker), get()).await;
        assert_eq!(answer.expect("an answer").status().as_u16(), 500);
    }
    let answer = client::through_a_breaker(http.clone(), Arc::clone(&breaker), get()).await;
    assert!(matches!(answer, Err(BreakerError::Rejected(_))));
}

#[tokio::test]
async fn a_reqwest_client_behind_a_policy_retries_what_is_safe() {
    let address = serve().await;
    curl(address, "GET", "/break").await;
    let (http, breaker) = (reqwest::Client::new(), breaker());
    let policy = Arc::new(client::policy(Arc::clone(&breaker)).expect("valid"));
    let url = format!("http://{address}/catalogue");
    // 405, the caller's mistake, and sent once. The server works.
    let post = http.post(&url).build().expect("a request");
    let answer = client::through_a_policy(http.clone(), Arc::clone(&policy), post).await;
    assert_eq!(answer.expect("an answer").status().as_u16(), 405);
    let window = breaker.stats().window;
    assert_eq!((window.calls, window.failures), (1, 0));
    let get = http.get(&url).build().expect("a request");
    let answer = client::through_a_policy(http.clone(), Arc::clone(&policy), get).await;
    assert_eq!(answer.expect("the last of three").status().as_u16(), 500);
    assert_eq!((breaker.stats().openings, breaker.state()), (1, State::Open));
}

type Answer = Result<Response<()>, ()>;

fn status(code: u16) -> Answer {
    Response::builder().status(code).body(()).map_err(drop)
}

#[test]
fn http_answers_mean_what_their_status_says() {
    for (code, verdict) in [
        (200, Verdict::Success),
        (304, Verdict::Success),
        (400, Verdict::Success),
        (404, Verdict::Success),
        (407, Verdict::Ignored),
        (408, Verdict::Ignored),
        (429, Verdict::Failure),
        (500, Verdict::Failure),
        (501, Verdict::Success),
        (599, Verdict::Failure),
    ] {
        assert_eq!(HttpAnswers.verdict(&status(code)), verdict, "{code}");
    }
    assert_eq!(Classify::<Response<()>, ()>::verdict(&HttpAnswers, &Err(())), Verdict::Failure);
    let busy = Response::builder().status(503).header("retry-after", "7").body(());
    let busy: Result<_, ()> = Ok(busy.expect("an answer"));
    assert_eq!(HttpAnswers.advice(&busy), RetryAdvice::RetryAfter(Duration::from_secs(7)));
    assert!(HttpAnswers.is_overload(&busy) && !HttpAnswers.is_overload(&status(500)));
    for code in [404, 407, 408, 501] {
        assert_eq!(HttpAnswers.advice(&status(code)), RetryAdvice::Stop, "{code}");
    }
}

#[test]
fn a_date_to_retry_after_counts_from_the_date_of_the_answer() {
    let advice = |asked: &str, date: Option<&str>| {
        let mut busy = Response::builder().status(503).header("retry-after", asked);
        if let Some(date) = date {
            busy = busy.header("date", date);
        }
        let busy: Answer = busy.body(()).map_err(drop);
        HttpAnswers.advice(&busy)
    };
    let (date, later) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:50:07 GMT");
    let after = |secs| RetryAdvice::RetryAfter(Duration::from_secs(secs));
    assert_eq!(advice(later, Some(date)), after(30));
    assert_eq!(advice(date, Some(later)), after(0));
    assert_eq!(advice("Sunday, 06-Nov-94 08:50:07 GMT", Some(date)), after(30));
    assert_eq!(advice("7", Some(date)), after(7));
    assert_eq!(advice(later, None), RetryAdvice::Retry);
    assert_eq!(advice(later, Some("today")), RetryAdvice::Retry);
    assert_eq!(advice("tomorrow", Some(date)), RetryAdvice::Retry);
}

#[test]
fn a_lookup_service_is_well_whatever_it_finds() {
    let clock = Arc::new(ManualClock::new());
    let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    let breaker = Breaker::with_clock("b", &BreakerConfig::default(), shared).expect("valid");
    for call in 0..1_000 {
        clock.advance(Duration::from_millis(10));
        let code = match call % 100 {
            3 | 33 | 63 => 500,
            10 | 50 => 200,
            _ => 404,
        };
        let permit = breaker.try_acquire().expect("3 % of failures do not open it");
        permit.record(HttpAnswers.verdict(&status(code)));
    }
    // After an outage, answers of 404 close it.
    breaker.open_for(Duration::from_secs(5));
    clock.advance(Duration::from_secs(5));
    for _ in 0..BreakerConfig::default().probes {
        breaker.try_acquire().expect("a probe").record(HttpAnswers.verdict(&status(404)));
    }
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn only_safe_requests_without_a_body_are_copied() {
    let copy = |method: &str, header: Option<(&str, &str)>| {
        let mut request = Request::builder().method(method).uri("/a?b").header("x", "1");
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        SafeRequests.copy(&request.extension(7_u8).body(Body::empty()).expect("a request"))
    };
    // As HTTP/2 sends one: no length, no encoding.
    let unannounced = Request::builder().uri("/").body(Body::from("q")).expect("a request");
    assert!(SafeRequests.copy(&unannounced).is_none());
    let twin = copy("GET", Some(("content-length", "0"))).expect("safe");
    assert_eq!((twin.uri().to_string().as_str(), twin.headers().len()), ("/a?b", 2));
    assert_eq!(twin.extensions().get::<u8>(), Some(&7));
    assert!(copy("HEAD", None).is_some());
    for (method, header) in [
        ("POST", None),
        ("PUT", None),
        ("GET", Some(("content-length", "3"))),
        ("GET", Some(("transfer-encoding", "chunked"))),
    ] {
        assert!(copy(method, header).is_none(), "{method} {header:?}");
    }
}

#[test]
fn retry_after_is_in_whole_seconds_rounded_up() {
    let clock = Arc::new(ManualClock::new());
    let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    let breaker = Breaker::with_clock("b", &BreakerConfig::default(), shared).expect("valid");
    breaker.open_for(Duration::from_secs(3));
    for (millis, seconds) in [(0, 3), (1, 3), (1_998, 2), (1, 1), (999, 1)] {
        clock.advance(Duration::from_millis(millis));
        let rejected = breaker.try_acquire().expect_err("open");
        assert_eq!(rejected.retry_after_header(), Some(seconds), "after another {millis} ms");
    }
    breaker.force_open();
    let rejected = breaker.try_acquire().expect_err("open");
    let answer = BreakerError::<()>::Rejected(rejected).into_answer().expect("a rejection");
    assert_eq!((answer.status, answer.retry_after), (StatusCode::SERVICE_UNAVAILABLE, None));
}
