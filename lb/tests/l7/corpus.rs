//! Bugs of other proxies, each as a test.

use std::time::Duration;

use voussoir_lb::l7::{HttpConfig, UpstreamConfig};

use crate::http2::Client2;
use crate::support::*;

const POST: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi";

/// Answers one request on its first connection, reads the head of the next and closes.
async fn closes_as_it_is_reused() -> std::net::SocketAddr {
    backend(|mut conn, number| async move {
        conn.message().await;
        conn.send(&ok(&number.to_string())).await;
        if number == 0 {
            conn.head().await;
            return;
        }
        while conn.message().await.is_some() {
            conn.send(&ok(&number.to_string())).await;
        }
    })
    .await
}

/// hyper #3553, #2136; haproxy #1423.
#[tokio::test]
async fn a_pooled_connection_that_closes_as_it_is_reused_is_retried_on_a_fresh_one() {
    let up = upstream(&[closes_as_it_is_reused().await], UpstreamConfig::default());
    let (address, _proxy) = proxy(up.clone(), HttpConfig::default()).await;
    let mut client = Conn::connect(address).await;
    assert_eq!(client.ask(GET).await.text(), "0");
    assert_eq!(client.ask(GET).await.text(), "1");
    let stats = up.stats();
    assert_eq!((stats.connects, stats.reuses, stats.retries), (2, 1, 1));
}

fn no_retries() -> UpstreamConfig {
    let mut config = UpstreamConfig::default();
    config.retry.max_attempts = 1;
    (config.retry.budget_share, config.retry.min_budget) = (0.0, 0);
    config
}

/// The backend may have acted on the request: the second time is paid for like any other.
#[tokio::test]
async fn a_request_on_a_connection_that_closes_is_repeated_within_the_budget() {
    let up = upstream(&[closes_as_it_is_reused().await], no_retries());
    let (address, _proxy) = proxy(up.clone(), HttpConfig::default()).await;
    let mut client = Conn::connect(address).await;
    assert_eq!(client.ask(GET).await.text(), "0");
    assert_eq!(client.ask(GET).await.status(), 502);
    let stats = up.stats();
    assert_eq!((stats.connects, stats.retries, stats.retries_rejected), (1, 0, 1));
    assert_eq!(client.ask(GET).await.text(), "1");
}

/// A query of death would double itself at the backend that it breaks.
#[tokio::test]
async fn a_request_whose_answer_is_no_http_is_not_repeated_at_once() {
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let count = std::sync::Arc::clone(&asked);
    let to = backend(move |mut conn, _| {
        let count = std::sync::Arc::clone(&count);
        async move {
            while conn.message().await.is_some() {
                let before = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let answer = if before == 0 { ok("fine") } else { "nonsense\r\n\r\n".into() };
                conn.send(&answer).await;
            }
        }
    })
    .await;
    let mut config = UpstreamConfig::default();
    config.retry.max_attempts = 1;
    let (address, _proxy) = proxy(upstream(&[to], config), HttpConfig::default()).await;
    let mut client = Conn::connect(address).await;
    assert_eq!(client.ask(GET).await.text(), "fine");
    assert_eq!(client.ask(GET).await.status(), 502);
    assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 2);
}

/// hyper #3553: the same with a request that may not take effect twice.
#[tokio::test]
async fn a_post_that_a_closing_connection_may_have_taken_is_not_sent_again() {
    let (address, proxy) = simple(&[closes_as_it_is_reused().await]).await;
    let mut client = Conn::connect(address).await;
    assert_eq!(client.ask(GET).await.text(), "0");
    assert_eq!(client.ask(POST).await.status(), 502);
    assert_eq!(proxy.stats().failed, 1);
    assert_eq!(client.ask(POST).await.text(), "1");
}

/// The same without a body: all of it is still there, and its method forbids a second time.
#[tokio::test]
async fn a_post_without_a_body_is_not_sent_again_either() {
    const EMPTY: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
    let (address, proxy) = simple(&[closes_as_it_is_reused().await]).await;
    let mut client = Conn::connect(address).await;
    assert_eq!(client.ask(GET).await.text(), "0");
    assert_eq!(client.ask(EMPTY).await.status(), 502);
    assert_eq!(proxy.stats().failed, 1);
}

/// hyper #2136: an idle connection that has closed is noticed before it is used.
#[tokio::test]
async fn a_post_after_the_backend_closed_an_idle_connection_uses_a_fresh_one() {
    let to = backend(|mut conn, number| async move {
        conn.message().await;
        conn.send(&ok(&number.to_string())).await;
    })
    .await;
    let up = upstream(&[to], UpstreamConfig::default());
    let (address, _proxy) = proxy(up.clone(), HttpConfig::default()).await;
    let mut client = Conn::connect(address).await;
    for number in 0..20 {
        assert_eq!(client.ask(POST).await.text(), number.to_string());
    }
    assert_eq!(up.stats().connects, 20);
}

/// hyper #4110, pingora #713.
#[tokio::test]
async fn a_connection_whose_backend_said_close_is_not_reused() {
    let to = backend(|mut conn, number| async move {
        conn.message().await;
        let body = number.to_string();
        conn.send(&format!(
            "HTTP/1.1 200 OK\r\nconnection: close, x-hop\r\nx-hop: 1\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await;
        // Stays open: only the header says that it may not be used.
        assert_eq!(conn.rest().await, b"");
    })
    .await;
    let (address, _proxy) = simple(&[to]).await;
    let mut client = Conn::connect(address).await;
    for number in 0..3 {
        let answer = client.ask(GET).await;
        assert_eq!(answer.text(), number.to_string());
        assert_eq!((answer.header("x-hop"), answer.header("connection")), (None, None));
    }
    let close = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    assert_eq!(client.ask(close).await.status(), 200);
    assert_eq!(client.rest().await, b"", "the client's word closes the client's connection");
}

/// pingora #935.
#[tokio::test]
async fn a_body_of_http2_that_ends_with_an_empty_frame_ends_once() {
    let to = backend(|mut conn, number| async move {
        while let Some(message) = conn.message().await {
            conn.send(&ok(&format!("{number}{}", message.text()))).await;
        }
    })
    .await;
    let (address, _proxy) = simple(&[to]).await;
    let mut client = Client2::connect(address).await;
    // Frames of each ending: data then empty with END_STREAM, empty ones between, nothing but one.
    for frames in [vec!["ab", ""], vec!["", "ab", "", "c", ""], vec![""], vec!["ab"], vec![]] {
        let expected = format!("0{}", frames.concat());
        let answer = client.post(&frames).await;
        assert_eq!(answer, (200, expected), "{frames:?}: the one connection stays usable");
    }
}

/// pingora #910.
#[tokio::test]
async fn a_reset_stream_lets_go_of_a_backend_that_does_not_read() {
    let (ended, mut seen) = tokio::sync::mpsc::channel(1);
    let (read, may_read) = tokio::sync::watch::channel(false);
    let to = backend(move |mut conn, _| {
        let (ended, mut may_read) = (ended.clone(), may_read.clone());
        async move {
            let head = conn.head().await.unwrap();
            if head.starts_with("GET") {
                conn.send(&ok("fine")).await;
                return;
            }
            // Reads the body only after the reset: up to then the proxy's write blocks.
            let _ = may_read.wait_for(|may| *may).await;
            let _ = ended.send(conn.rest().await.len()).await;
        }
    })
    .await;
    let (address, proxy) = simple(&[to]).await;
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    let post = hyper::Request::post("http://a/").body(()).unwrap();
    let (mut answer, mut body) = client.send_request(post, false).unwrap();
    body.send_data(bytes::Bytes::from(vec![b'x'; 16 << 20]), false).unwrap();
    let waited = tokio::time::timeout(Duration::from_millis(500), &mut answer).await;
    assert!(waited.is_err(), "nobody answers yet");
    body.send_reset(h2::Reason::CANCEL);
    let get = hyper::Request::get("http://a/").body(()).unwrap();
    let (answer, _) = client.send_request(get, true).unwrap();
    assert_eq!(soon(answer).await.unwrap().status(), 200, "the connection's window is free");
    read.send_replace(true);
    let got = soon(seen.recv()).await.expect("the backend's connection was closed");
    assert!(got < 16 << 20, "{got}: the proxy's write did not block");
    assert_eq!(proxy.stats().open, 1);
}

/// trafficserver #12926, nginx #929.
#[tokio::test]
async fn an_answer_before_the_request_ended_leaves_the_connection_unused() {
    let to = backend(|mut conn, number| async move {
        let head = conn.head().await.unwrap();
        conn.send(&ok(&number.to_string())).await;
        if head.starts_with("POST") {
            // Were the connection reused, the next request would be read as this body.
            conn.rest().await;
        }
    })
    .await;
    let (address, _proxy) = simple(&[to]).await;
    let mut first = Conn::connect(address).await;
    let answer = first.ask("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\npart").await;
    assert_eq!(answer.text(), "0");
    let mut second = Conn::connect(address).await;
    assert_eq!(second.ask(GET).await.text(), "1");
}

/// nginx #929, haproxy: bytes that nobody asked for are no response.
#[tokio::test]
async fn a_connection_with_bytes_to_read_is_not_reused() {
    let to = backend(|mut conn, number| async move {
        while conn.message().await.is_some() {
            let poison = if number == 0 { ok("poison") } else { String::new() };
            conn.send(&format!("{}{poison}", ok(&number.to_string()))).await;
        }
    })
    .await;
    let (address, _proxy) = simple(&[to]).await;
    for number in [0, 1, 1] {
        let mut client = Conn::connect(address).await;
        assert_eq!(client.ask(GET).await.text(), number.to_string());
    }
}

/// The same when the bytes arrive after the runtime has last looked at its sockets: hyper finds
/// them only once it has sent a request.
#[tokio::test]
async fn a_connection_with_bytes_that_arrive_as_it_is_picked_is_not_reused() {
    use std::io::{BufRead, BufReader, Write};
    use std::sync::mpsc;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let (poison, may_poison) = mpsc::channel::<()>();
    let (poisoned, is_poisoned) = mpsc::channel::<()>();
    // A thread of its own, since the runtime is blocked while the bytes are written.
    std::thread::spawn(move || {
        for name in ["first", "second"] {
            let (mut tcp, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(tcp.try_clone().unwrap()).lines();
            while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            tcp.write_all(ok(name).as_bytes()).unwrap();
            if name == "first" {
                may_poison.recv().unwrap();
                tcp.write_all(ok("poison").as_bytes()).unwrap();
                poisoned.send(()).unwrap();
                // Open until the proxy closes it.
                let _ = std::io::copy(&mut tcp, &mut std::io::sink());
            }
        }
    });
    let up = upstream(&[to], UpstreamConfig::default());
    let is_armed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let armed = std::sync::Arc::clone(&is_armed);
    let channels = std::sync::Mutex::new((poison, is_poisoned));
    // The proxy reads its clock before it picks an endpoint and takes a connection.
    let clock = move || {
        if armed.swap(false, std::sync::atomic::Ordering::SeqCst) {
            let channels = channels.lock().unwrap();
            channels.0.send(()).unwrap();
            channels.1.recv().unwrap();
        }
        1
    };
    let router =
        voussoir_lb::l7::Router::new(vec![voussoir_lb::l7::Route::new("all", up.clone())]).unwrap();
    let proxy =
        voussoir_lb::l7::HttpProxy::with_clock(router, HttpConfig::default(), clock).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { proxy.serve(listener).await });
    let mut client = Conn::connect(address).await;
    assert_eq!(client.ask(GET).await.text(), "first");
    is_armed.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(client.ask(GET).await.text(), "second");
    assert_eq!((up.stats().stale, up.stats().connects), (1, 2));
}

/// A client that leaves while the backend says nothing: hyper waits for the backend's next byte.
#[tokio::test]
async fn a_client_that_leaves_within_a_response_lets_go_of_a_silent_backend() {
    let (ended, mut seen) = tokio::sync::mpsc::channel(1);
    let to = backend(move |mut conn, _| {
        let ended = ended.clone();
        async move {
            conn.message().await;
            conn.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n").await;
            assert_eq!(conn.rest().await, b"");
            let _ = ended.send(()).await;
        }
    })
    .await;
    let up = upstream(&[to], UpstreamConfig::default());
    let (address, _proxy) = proxy(up.clone(), HttpConfig::default()).await;
    let mut client = Conn::connect(address).await;
    client.send(GET).await;
    client.head().await.unwrap();
    assert_eq!((client.line().await, client.line().await), ("2".into(), "hi".into()));
    drop(client);
    soon(seen.recv()).await.expect("the backend's connection was closed");
    assert_eq!(up.stats().active, 0);
}

/// trafficserver #12926 over HTTP/2, where the client may go on with its body after the answer.
#[tokio::test]
async fn an_answer_before_an_http2_request_ended_lets_go_of_the_backend() {
    let (ended, mut seen) = tokio::sync::mpsc::channel(1);
    let to = backend(move |mut conn, _| {
        let ended = ended.clone();
        async move {
            conn.head().await.unwrap();
            conn.send(&ok("early")).await;
            conn.rest().await;
            let _ = ended.send(()).await;
        }
    })
    .await;
    let (address, _proxy) = simple(&[to]).await;
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    let post = hyper::Request::post("http://a/").body(()).unwrap();
    let (answer, mut body) = client.send_request(post, false).unwrap();
    body.send_data(bytes::Bytes::from_static(b"begin"), false).unwrap();
    let answer = soon(answer).await.unwrap();
    assert_eq!(answer.status(), 200);
    soon(seen.recv()).await.expect("the backend's connection was closed");
    let reason = soon(std::future::poll_fn(|cx| body.poll_reset(cx))).await.unwrap();
    assert_eq!(reason, h2::Reason::NO_ERROR, "RFC 9113 §8.1: the rest is not wanted");
}

/// pingora #945, #674; sozu #726; kawa #16; openlitespeed #392. nginx and Envoy reject too.
#[tokio::test]
async fn a_coding_beside_a_length_is_rejected_also_behind_other_requests() {
    let (address, proxy) = simple(&[echo().await]).await;
    let coding = "transfer-encoding: chunked\t\r\n";
    let length = "content-length: 3\r\n";
    let chunked = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\
                   2\r\nhi\r\n0\r\n\r\n";
    for both in [format!("{coding}{length}"), format!("{length}{coding}")] {
        for (before, count) in [(String::new(), 0), (format!("{GET}{chunked}{POST}"), 3)] {
            let mut client = Conn::connect(address).await;
            let head = format!("POST / HTTP/1.1\r\nhost: a\r\n{both}\r\n");
            client.send(&format!("{before}{head}2\r\nhi\r\n0\r\n\r\n{GET}")).await;
            for _ in 0..count {
                assert_eq!(client.message().await.unwrap().status(), 200, "{both}");
            }
            let answer = String::from_utf8(client.rest().await).unwrap();
            assert!(answer.starts_with("HTTP/1.1 400"), "{both}: {answer}");
            // RFC 9112 §6.1: what follows may be meant as part of the body.
            assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{both}: {answer}");
        }
    }
    assert_eq!(proxy.stats().requests, 6, "only the good ones");
}

/// A backend that frames its response twice: the coding decides, and one framing goes on.
#[tokio::test]
async fn a_response_with_two_framings_is_framed_anew() {
    let to = backend(|mut conn, _| async move {
        conn.message().await;
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n";
        conn.send(&format!("{head}2\r\nhi\r\n0\r\n\r\n")).await;
        conn.rest().await;
    })
    .await;
    let (address, _proxy) = simple(&[to]).await;
    let answer = Conn::connect(address).await.ask(GET).await;
    assert_eq!((answer.text().as_str(), answer.header("content-length")), ("hi", None));
}

const UPGRADE: &str =
    "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

/// caddy #8026, golang/go #35892, cilium/proxy #2012.
#[tokio::test]
async fn the_end_of_one_direction_of_an_upgrade_leaves_the_other_open() {
    use tokio::io::AsyncWriteExt;
    let to = backend(|mut conn, _| async move {
        let head = conn.head().await.unwrap().to_lowercase();
        assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"));
        // Bytes right behind the head belong to the tunnel.
        conn.send(&format!("{SWITCHED}early")).await;
        assert_eq!(conn.rest().await, b"from the client");
        conn.send("after the client's end").await;
    })
    .await;
    let (address, proxy) = simple(&[to]).await;
    let mut client = Conn::connect(address).await;
    client.send(UPGRADE).await;
    assert!(client.head().await.unwrap().starts_with("HTTP/1.1 101"));
    assert_eq!(client.bytes(5).await, b"early");
    client.send("from the client").await;
    client.tcp.shutdown().await.unwrap();
    assert_eq!(client.rest().await, b"after the client's end");
    assert_eq!(soon(proxy.drain(Duration::from_secs(10))).await, 0);
    assert_eq!(proxy.stats().upgrades, 1);
}

/// golang/go #35892, the other way round.
#[tokio::test]
async fn a_backend_may_end_its_direction_first() {
    use tokio::io::AsyncWriteExt;
    let (got, received) = tokio::sync::oneshot::channel();
    let got = std::sync::Mutex::new(Some(got));
    let to = backend(move |mut conn, _| {
        let got = got.lock().unwrap().take().unwrap();
        async move {
            conn.head().await.unwrap();
            conn.send(SWITCHED).await;
            conn.tcp.shutdown().await.unwrap();
            let _ = got.send(conn.rest().await);
        }
    })
    .await;
    let (address, _proxy) = simple(&[to]).await;
    let mut client = Conn::connect(address).await;
    client.send(UPGRADE).await;
    client.head().await.unwrap();
    assert_eq!(client.rest().await, b"");
    client.send("still open").await;
    client.tcp.shutdown().await.unwrap();
    assert_eq!(soon(received).await.unwrap(), b"still open");
}

/// h2c smuggling (Bishop Fox, 2020): an upgrade that is not allowed is not forwarded.
#[tokio::test]
async fn an_upgrade_to_a_protocol_that_is_not_allowed_is_dropped() {
    let (address, _proxy) = simple(&[echo().await]).await;
    let mut client = Conn::connect(address).await;
    let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\n\
                   upgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n";
    let answer = client.ask(request).await;
    let seen = answer.text().to_lowercase();
    assert!(answer.status() == 200 && !seen.contains("upgrade") && !seen.contains("settings"));
}
