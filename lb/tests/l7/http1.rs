//! HTTP/1.1 in and out: headers, bodies, retries, time-outs, upgrades, drain.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use voussoir_lb::l7::{HeaderChanges, HttpConfig, HttpProxy, PathMatch, Route, Router};
use voussoir_lb::l7::{Upstream, UpstreamConfig};
use voussoir_lb::strategy::PeakEwma;
use voussoir_lb::{Balancer, BudgetHold, Config, EndpointConfig, RetryBudget};

use crate::support::*;

#[tokio::test]
async fn a_request_is_forwarded_with_what_backends_learn_about_the_client() {
    let (address, proxy) = simple(&[echo().await]).await;
    let mut client = Conn::connect(address).await;
    let request = "GET /a?b=1 HTTP/1.1\r\nHost: h:1\r\nConnection: keep-alive, x-hop\r\n\
                   X-Hop: 1\r\nX-Forwarded-For: 6.6.6.6\r\nX-End: 2\r\n\r\n";
    let answer = client.ask(request).await;
    assert_eq!(answer.status(), 200);
    let seen = answer.text().to_lowercase();
    assert!(seen.starts_with("get /a?b=1 http/1.1\r\n"), "{seen}");
    for line in ["host: h:1", "x-end: 2", "x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http"] {
        assert!(seen.contains(&format!("\r\n{line}\r\n")), "{line} in {seen}");
    }
    for line in ["x-hop", "6.6.6.6", "connection"] {
        assert!(!seen.contains(line), "{line} in {seen}");
    }
    assert_eq!(proxy.stats().requests, 1);
}

#[tokio::test]
async fn a_route_rewrites_and_a_request_without_a_route_gets_404() {
    let mut route = Route::new("r", upstream(&[echo().await], UpstreamConfig::default()))
        .with_path(PathMatch::Prefix("/v1".into()));
    route.rewrite.path_prefix = Some(("/v1".into(), "/new".into()));
    route.rewrite.host = Some("inner".parse().unwrap());
    let mut changes = HeaderChanges::default();
    changes.remove = vec!["x-secret".parse().unwrap()];
    changes.set = vec![("x-set".parse().unwrap(), "2".parse().unwrap())];
    route.rewrite.request = changes.clone();
    route.rewrite.response = changes;
    let router = Router::new(vec![route]).unwrap();
    let (address, _proxy) = proxy_with(router, HttpConfig::default()).await;
    let mut client = Conn::connect(address).await;
    let answer =
        client.ask("GET /v1/x HTTP/1.1\r\nhost: a\r\nx-secret: 1\r\nx-set: 1\r\n\r\n").await;
    let seen = answer.text().to_lowercase();
    assert!(seen.starts_with("get /new/x ") && seen.contains("host: inner"), "{seen}");
    assert!(!seen.contains("x-secret") && seen.contains("x-set: 2"), "{seen}");
    assert_eq!(answer.header("x-set"), Some("2"));
    assert_eq!(client.ask(GET).await.status(), 404);
}

#[tokio::test]
async fn bodies_stream_with_back_pressure_both_ways() {
    const SIZE: usize = 32 << 20;
    let read = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&read);
    let to = backend(move |mut conn, _| {
        let read = Arc::clone(&counted);
        async move {
            conn.head().await.unwrap();
            // Reads only after the client has said so, through the side door of `read`.
            while read.load(SeqCst) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            conn.bytes(SIZE).await;
            conn.send(&ok("done")).await;
        }
    })
    .await;
    let (address, _proxy) = simple(&[to]).await;
    let mut client = Conn::connect(address).await;
    client.send(&format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {SIZE}\r\n\r\n")).await;
    let chunk = vec![b'x'; 64 << 10];
    let mut sent = 0;
    // The backend does not read: the client must be stopped long before the end.
    while let Ok(Ok(count)) =
        tokio::time::timeout(Duration::from_millis(500), client.tcp.write(&chunk)).await
    {
        sent += count;
    }
    assert!(sent < SIZE / 2, "{sent} of {SIZE} bytes are buffered somewhere");
    read.store(1, SeqCst);
    while sent < SIZE {
        sent += soon(client.tcp.write(&chunk[..chunk.len().min(SIZE - sent)])).await.unwrap();
    }
    assert_eq!(client.message().await.unwrap().text(), "done");
}

#[tokio::test]
async fn a_request_goes_elsewhere_when_nobody_listens() {
    let up = upstream(&[nobody().await, echo().await], UpstreamConfig::default());
    let (address, proxy) = proxy(up.clone(), HttpConfig::default()).await;
    let mut client = Conn::connect(address).await;
    for _ in 0..6 {
        // POST too: nothing was written.
        let answer = client.ask("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi").await;
        assert_eq!((answer.status(), answer.text().ends_with("hi")), (200, true));
    }
    assert!(up.stats().connect_failures >= 3);
    assert_eq!((up.stats().retries, proxy.stats().failed), (0, 0));
}

#[tokio::test]
async fn a_status_of_failure_is_tried_elsewhere_within_the_budget() {
    let failing = |status: &'static str| {
        backend(move |mut conn, _| async move {
            while conn.message().await.is_some() {
                conn.send(&format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n")).await;
            }
        })
    };
    let both = [failing("503 Busy").await, echo().await];
    let up = upstream(&both, UpstreamConfig::default());
    let (address, _proxy) = proxy(up.clone(), HttpConfig::default()).await;
    let mut client = Conn::connect(address).await;
    for _ in 0..4 {
        assert_eq!(client.ask(GET).await.status(), 200);
    }
    let failures: u64 =
        up.balancer().stats(u64::MAX / 2).endpoints.iter().map(|found| found.failures).sum();
    assert!(failures >= 2);
    assert_eq!(up.stats().retries, failures);
    // Not idempotent: the answer of the backend is the client's.
    let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
    let mut statuses = [client.ask(post).await.status(), client.ask(post).await.status()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 503]);
    let mut config = UpstreamConfig::default();
    config.retry.budget_share = 0.0;
    config.retry.min_budget = 0;
    let up = upstream(&both, config);
    let (address, _proxy) = proxy(up.clone(), HttpConfig::default()).await;
    let mut client = Conn::connect(address).await;
    let mut statuses = [client.ask(GET).await.status(), client.ask(GET).await.status()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 503]);
    assert_eq!((up.stats().retries, up.stats().retries_rejected), (0, 1));
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_given_up_and_tried_elsewhere() {
    let silent = || {
        backend(|mut conn, _| async move {
            conn.head().await;
            conn.rest().await;
        })
    };
    let mut config = UpstreamConfig::default();
    config.try_timeout = Duration::from_millis(100);
    config.total_timeout = Duration::from_millis(250);
    let up = upstream(&[silent().await, echo().await], config.clone());
    let (address, _proxy) = proxy(up, HttpConfig::default()).await;
    let mut client = Conn::connect(address).await;
    for _ in 0..2 {
        assert_eq!(client.ask(GET).await.status(), 200);
    }
    let all_silent = [silent().await, silent().await, silent().await, silent().await];
    config.retry.max_attempts = 100;
    let (address, proxy) = proxy(upstream(&all_silent, config), HttpConfig::default()).await;
    let mut client = Conn::connect(address).await;
    let began = std::time::Instant::now();
    assert_eq!(client.ask(GET).await.status(), 504);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(250) && took < Duration::from_secs(2), "{took:?}");
    assert_eq!(proxy.stats().failed, 1);
}

#[tokio::test]
async fn a_client_waits_for_100_until_the_backend_asks_for_the_body() {
    let post = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    let to = backend(|mut conn, _| async move {
        let head = conn.head().await.unwrap();
        assert!(head.to_lowercase().contains("expect: 100-continue"), "{head}");
        conn.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        let body = conn.bytes(2).await;
        conn.send(&ok(&String::from_utf8(body).unwrap())).await;
    })
    .await;
    let (address, _proxy) = simple(&[to]).await;
    let mut client = Conn::connect(address).await;
    client.send(post).await;
    assert!(client.head().await.unwrap().starts_with("HTTP/1.1 100"));
    client.send("hi").await;
    assert_eq!(client.message().await.unwrap().text(), "hi");
    // A backend that declines gets no body, and the client is not asked for it.
    let to = backend(|mut conn, _| async move {
        conn.head().await.unwrap();
        conn.send("HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(conn.rest().await, b"", "no byte of the body");
    })
    .await;
    let (address, _proxy) = simple(&[to]).await;
    let mut client = Conn::connect(address).await;
    assert_eq!(client.ask(post).await.status(), 413);
}

#[tokio::test]
async fn a_drain_finishes_requests_and_cuts_what_stays() {
    let to = backend(|mut conn, number| async move {
        conn.message().await;
        if number == 0 {
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab").await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            conn.send("cd").await;
        } else {
            conn.rest().await;
        }
    })
    .await;
    let (address, proxy) = simple(&[to]).await;
    let mut first = Conn::connect(address).await;
    first.send(GET).await;
    first.head().await.unwrap();
    let mut stuck = Conn::connect(address).await;
    stuck.send(GET).await;
    while proxy.stats().requests < 2 {
        tokio::task::yield_now().await;
    }
    let draining = proxy.clone();
    let drained = tokio::spawn(async move { draining.drain(Duration::from_secs(2)).await });
    assert_eq!(first.rest().await, b"abcd", "what was under way is finished, then closed");
    assert_eq!(soon(drained).await.unwrap(), 1, "the stuck one is cut");
    assert_eq!(stuck.rest().await, b"");
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nothing is accepted");
    assert_eq!((proxy.stats().open, proxy.stats().cancelled), (0, 0));
}

#[tokio::test]
async fn a_session_cookie_binds_a_client_to_its_endpoint() {
    let named = |name: &'static str| {
        backend(move |mut conn, _| async move {
            while conn.message().await.is_some() {
                conn.send(&ok(name)).await;
            }
        })
    };
    let mut config = UpstreamConfig::default();
    config.session_cookie = Some("lb".into());
    let up = upstream(&[named("a").await, named("b").await], config);
    let (address, _proxy) = proxy(up, HttpConfig::default()).await;
    let mut client = Conn::connect(address).await;
    let first = client.ask(GET).await;
    let cookie = first.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    for _ in 0..5 {
        let answer =
            client.ask(&format!("GET / HTTP/1.1\r\nhost: a\r\ncookie: {cookie}\r\n\r\n")).await;
        assert_eq!(answer.text(), first.text());
        assert_eq!(answer.header("set-cookie"), None, "the cookie is not set again");
    }
}

#[tokio::test]
async fn a_new_router_takes_effect_without_dropping_a_connection() {
    let (address, proxy) = simple(&[echo().await]).await;
    let mut client = Conn::connect(address).await;
    assert_eq!(client.ask(GET).await.status(), 200);
    proxy.set_router(Router::new(Vec::new()).unwrap());
    assert_eq!(client.ask(GET).await.status(), 404);
    assert_eq!(proxy.stats().accepted, 1);
}

#[tokio::test]
async fn what_a_client_gave_up_is_given_up_at_the_backend() {
    let (ended, seen) = tokio::sync::oneshot::channel();
    let ended = std::sync::Mutex::new(Some(ended));
    let to = backend(move |mut conn, _| {
        let ended = ended.lock().unwrap().take();
        async move {
            conn.head().await;
            conn.rest().await;
            let _ = ended.unwrap().send(());
        }
    })
    .await;
    let up = upstream(&[to], UpstreamConfig::default());
    let (address, _proxy) = proxy(up.clone(), HttpConfig::default()).await;
    let mut client = Conn::connect(address).await;
    client.send(GET).await;
    while up.stats().connects == 0 {
        tokio::task::yield_now().await;
    }
    drop(client);
    soon(seen).await.expect("the connection to the backend was closed");
    assert_eq!(up.stats().active, 0);
    let stats = up.balancer().stats(u64::MAX / 2);
    assert_eq!((stats.endpoints[0].in_flight, stats.endpoints[0].cancelled), (0, 1));
}

/// Without other requests nothing but the proxy's clock tells how long a client has waited.
#[tokio::test]
async fn clients_that_hang_up_show_how_slow_a_backend_is() {
    const SECOND: u64 = 1_000_000_000;
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n";
    // What the client sends, what the backend answers, and the latency that is known then: the
    // clock advances by 2 s before the answer and by 7 s until the client has gone.
    let cases = [
        (GET, None, 7.0),
        // To the head.
        (GET, Some(answer), 2.0),
        // The backend waits for the client.
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n1234", None, 0.0),
    ];
    for (request, answer, latency) in cases {
        let (asked, mut is_asked) = tokio::sync::mpsc::channel(1);
        let go = Arc::new(tokio::sync::Notify::new());
        let answering = Arc::clone(&go);
        let to = backend(move |mut conn, _| {
            let (asked, go) = (asked.clone(), Arc::clone(&answering));
            async move {
                conn.head().await;
                asked.send(()).await.unwrap();
                go.notified().await;
                if let Some(answer) = answer {
                    conn.send(answer).await;
                }
                conn.rest().await;
            }
        })
        .await;
        let balancer = Balancer::new(PeakEwma::default(), Config::default()).unwrap();
        balancer.update([EndpointConfig::new(to.to_string())], SECOND).unwrap();
        let up = Upstream::new("test", balancer.clone(), UpstreamConfig::default()).unwrap();
        let router = Router::new(vec![Route::new("all", up)]).unwrap();
        let now = Arc::new(AtomicU64::new(SECOND));
        let read = Arc::clone(&now);
        let clock = move || read.load(SeqCst);
        let proxy = HttpProxy::with_clock(router, HttpConfig::default(), clock).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { proxy.serve(listener).await });
        let mut client = Conn::connect(address).await;
        client.send(request).await;
        soon(is_asked.recv()).await.unwrap();
        now.store(3 * SECOND, SeqCst);
        go.notify_one();
        if answer.is_some() {
            client.head().await.unwrap();
        }
        now.store(8 * SECOND, SeqCst);
        drop(client);
        soon(async {
            while balancer.endpoints()[0].in_flight() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        assert_eq!(balancer.stats(8 * SECOND).endpoints[0].cancelled, 1);
        // Recorded at the head, it has faded since.
        let at = if answer.is_some() { 3 * SECOND } else { 8 * SECOND };
        let seen = balancer.endpoints()[0].latency(at) / SECOND as f32;
        assert!((seen - latency).abs() < 0.01, "{request}: {seen} s, not {latency}");
    }
}

#[tokio::test]
async fn retries_ask_the_budget_that_the_upstream_was_given() {
    /// Allows one retry in all, and counts what is held.
    #[derive(Default)]
    struct Once {
        taken: AtomicUsize,
        held: Arc<AtomicUsize>,
    }
    struct Held(Arc<AtomicUsize>);
    impl Drop for Held {
        fn drop(&mut self) {
            self.0.fetch_sub(1, SeqCst);
        }
    }
    impl Once {
        fn hold(&self) -> BudgetHold {
            self.held.fetch_add(1, SeqCst);
            BudgetHold::new(Held(Arc::clone(&self.held)))
        }
    }
    impl RetryBudget for Once {
        fn begin(&self) -> BudgetHold {
            self.hold()
        }
        fn try_retry(&self) -> Option<BudgetHold> {
            (self.taken.fetch_add(1, SeqCst) == 0).then(|| self.hold())
        }
    }
    let busy = backend(|mut conn, _| async move {
        while conn.message().await.is_some() {
            conn.send("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    let up = upstream(&[busy.await, echo().await], UpstreamConfig::default());
    let budget = Arc::new(Once::default());
    up.set_retry_budget(Arc::clone(&budget) as Arc<dyn RetryBudget>);
    let (address, _proxy) = proxy(up.clone(), HttpConfig::default()).await;
    let mut client = Conn::connect(address).await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(client.ask(GET).await.status());
    }
    let failed = statuses.iter().filter(|status| **status == 503).count();
    assert!(failed > 0, "{statuses:?}: only the first failure was retried");
    assert_eq!((up.stats().retries, up.stats().retries_rejected), (1, failed as u64));
    assert_eq!(budget.held.load(SeqCst), 0, "all was given back");
}

/// A retry is over when its answer is there, however long that takes to send.
#[tokio::test]
async fn streams_without_an_end_keep_nothing_of_the_retry_budget() {
    let busy = backend(|mut conn, _| async move {
        while conn.message().await.is_some() {
            conn.send("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    let streaming = backend(|mut conn, _| async move {
        while let Some(message) = conn.message().await {
            if message.head.starts_with("GET /stream") {
                conn.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
                std::future::pending::<()>().await;
            }
            conn.send(&ok("short")).await;
        }
    });
    let up = upstream(&[busy.await, streaming.await], UpstreamConfig::default());
    let (address, _proxy) = proxy(up.clone(), HttpConfig::default()).await;
    let mut open = Vec::new();
    while up.stats().retries < 5 {
        let mut client = Conn::connect(address).await;
        client.send("GET /stream HTTP/1.1\r\nhost: a\r\n\r\n").await;
        client.head().await.expect("the head of the response");
        open.push(client);
    }
    let mut client = Conn::connect(address).await;
    for _ in 0..10 {
        assert_eq!(client.ask(GET).await.status(), 200);
    }
    assert_eq!(up.stats().retries_rejected, 0);
}

/// For CGI, WSGI and Rack both are the variable `HTTP_X_FORWARDED_FOR`.
#[tokio::test]
async fn no_client_names_itself_by_underscores() {
    let up = || async { upstream(&[echo().await], UpstreamConfig::default()) };
    let mut trusting = HttpConfig::default();
    trusting.forwarded.trusted = vec!["127.0.0.1".parse().unwrap()];
    for config in [HttpConfig::default(), trusting] {
        let (address, _proxy) = proxy(up().await, config).await;
        let request = "GET / HTTP/1.1\r\nhost: a\r\nX_Forwarded_For: 6.6.6.6\r\n\
                       x-forwarded_proto: 6.6.6.6\r\nx_custom: 1\r\nX_Forwarded_Fort: 2\r\n\r\n";
        let seen = Conn::connect(address).await.ask(request).await.text().to_lowercase();
        assert!(!seen.contains("6.6.6.6"), "{seen}");
        assert!(seen.contains("x-forwarded-for: 127.0.0.1\r\n"), "{seen}");
        assert!(seen.contains("x_custom: 1") && seen.contains("x_forwarded_fort: 2"), "{seen}");
    }
}

/// A listener to which nobody connects takes no place from the others.
#[tokio::test]
async fn listeners_share_the_last_place() {
    let mut config = HttpConfig::default();
    config.max_connections = 1;
    let (first, proxy) = proxy(upstream(&[echo().await], UpstreamConfig::default()), config).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let second = listener.local_addr().unwrap();
    let serving = proxy.clone();
    tokio::spawn(async move { serving.serve(listener).await });
    for (one, other) in [(first, second), (second, first)] {
        let mut client = Conn::connect(one).await;
        assert_eq!(client.ask(GET).await.status(), 200);
        let mut waiting = Conn::connect(other).await;
        waiting.send(GET).await;
        let answer = tokio::time::timeout(Duration::from_millis(100), waiting.message()).await;
        assert!(answer.is_err(), "served beyond the limit");
        drop(client);
        assert_eq!(waiting.message().await.unwrap().status(), 200);
        drop(waiting);
    }
    assert_eq!(proxy.stats().accepted, 4);
}
