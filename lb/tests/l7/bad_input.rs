//! Hostile clients and backends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use voussoir_lb::l7::{HttpConfig, UpstreamConfig};

use crate::support::*;

/// Requests that must be rejected, with the statuses that are right.
const SMUGGLING: &[(&str, &str, &[u16])] = &[
    (
        "two lengths",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nhi",
        &[400],
    ),
    (
        "the same length twice",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nhi",
        &[400],
    ),
    (
        "a coding beside a length",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n\
         0\r\n\r\n",
        &[400],
    ),
    (
        "a length beside a coding",
        "POST / HTTP/1.1\r\nhost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\t\r\n\r\n\
         0\r\n\r\n",
        &[400],
    ),
    ("a lone LF", "GET / HTTP/1.1\r\nhost: a\nx: 1\r\n\r\n", &[400]),
    ("a lone LF after the request line", "GET / HTTP/1.1\nhost: a\r\n\r\n", &[400]),
    ("a list of lengths", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2, 2\r\n\r\nhi", &[400]),
    ("a signed length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +2\r\n\r\nhi", &[400]),
    ("a negative length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\nhi", &[400]),
    (
        "a huge length",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\nhi",
        &[400],
    ),
    (
        "obs-fold",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        &[400],
    ),
    ("obs-fold by tab", "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n\tcontent-length: 5\r\n\r\n", &[400]),
    (
        "another coding",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        &[400, 501],
    ),
    (
        "a coding by vertical tab",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        &[400, 501],
    ),
    (
        "coding twice",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\
         transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        &[400, 501],
    ),
    (
        "coding, then identity",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\
         transfer-encoding: identity\r\n\r\n0\r\n\r\n",
        &[400, 501],
    ),
    (
        "gzip first",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        &[501],
    ),
    (
        "coding in HTTP/1.0",
        "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        &[400],
    ),
    (
        "a space before the colon",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length : 2\r\n\r\nhi",
        &[400],
    ),
    ("a space within a name", "GET / HTTP/1.1\r\nhost: a\r\nx y: 1\r\n\r\n", &[400]),
    ("NUL in a value", "GET / HTTP/1.1\r\nhost: a\r\nx: \0\r\n\r\n", &[400]),
    ("two hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", &[400]),
    ("no host", "GET / HTTP/1.1\r\nx: 1\r\n\r\n", &[400]),
    ("another host in the target", "GET http://b/ HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    ("a path upwards", "GET /static/../admin HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    ("an encoded path upwards", "GET /static/%2e%2e%2fadmin HTTP/1.1\r\nhost: a\r\n\r\n", &[400]),
    ("connection lists the host", "GET / HTTP/1.1\r\nhost: a\r\nconnection: host\r\n\r\n", &[400]),
    (
        "connection lists the length",
        "POST / HTTP/1.1\r\nhost: a\r\nconnection: content-length\r\ncontent-length: 2\r\n\r\nhi",
        &[400],
    ),
    ("CONNECT", "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", &[400, 501]),
    ("no HTTP", "\x16\x03\x01\x02\x00\r\n\r\n", &[400]),
];

#[tokio::test]
async fn what_two_servers_might_read_differently_is_rejected_and_never_forwarded() {
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&seen);
    let to = backend(move |mut conn, _| {
        let seen = Arc::clone(&counted);
        async move {
            while conn.head().await.is_some() {
                seen.fetch_add(1, SeqCst);
                conn.send(&ok("")).await;
            }
        }
    })
    .await;
    let (address, _proxy) = simple(&[to]).await;
    for (what, request, statuses) in SMUGGLING {
        let mut client = Conn::connect(address).await;
        client.send(request).await;
        // What follows must not be taken for a request of its own.
        client.send(GET).await;
        let answers = String::from_utf8_lossy(&client.rest().await).into_owned();
        let status = answers.get(9..12).and_then(|status| status.parse::<u16>().ok());
        let is_right = status.is_some_and(|status| statuses.contains(&status));
        assert!(is_right, "{what}: {answers:?}");
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{what}: {answers:?}");
        assert_eq!(seen.load(SeqCst), 0, "{what} reached the backend");
    }
}

#[tokio::test]
async fn a_chunk_size_that_is_none_breaks_the_request_off() {
    let sizes = ["g", "", "-1", "0x2", "ffffffffffffffffff", "2 2", "2\n", "+2"];
    for size in sizes {
        let (address, proxy) = simple(&[echo().await]).await;
        let mut client = Conn::connect(address).await;
        let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        client.send(&format!("{head}{size}\r\nhi\r\n0\r\n\r\n{GET}")).await;
        let answers = String::from_utf8_lossy(&client.rest().await).into_owned();
        assert!(!answers.contains("HTTP/1.1 200"), "{size:?}: {answers:?}");
        assert!(answers.is_empty() || answers.starts_with("HTTP/1.1 400"), "{size:?}: {answers:?}");
        assert_eq!(soon(proxy.drain(Duration::from_secs(10))).await, 0, "{size:?}");
    }
}

#[tokio::test]
async fn headers_above_the_limits_get_431() {
    let mut config = HttpConfig::default();
    config.max_header_bytes = 4 << 10;
    config.max_headers = 10;
    let up = upstream(&[echo().await], UpstreamConfig::default());
    let (address, _proxy) = proxy(up, config).await;
    let long = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(5 << 10));
    let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: 1\r\n".repeat(11));
    let target = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "y".repeat(5 << 10));
    for request in [long, many, target] {
        let mut client = Conn::connect(address).await;
        client.send(&request).await;
        let status = client.head().await.unwrap();
        assert!(status.starts_with("HTTP/1.1 431"), "{status}");
    }
}

#[tokio::test]
async fn a_head_that_trickles_is_cut_at_the_time_to_headers() {
    let mut config = HttpConfig::default();
    config.header_timeout = Duration::from_millis(300);
    let up = upstream(&[echo().await], UpstreamConfig::default());
    let (address, proxy) = proxy(up, config).await;
    let silent = Conn::connect(address).await;
    let mut begun = Conn::connect(address).await;
    begun.send("PR").await;
    let mut trickling = Conn::connect(address).await;
    let began = Instant::now();
    trickling.send("GET / HTTP/1.1\r\nhost: a\r\n").await;
    while proxy.stats().open > 0 && began.elapsed() < Duration::from_secs(10) {
        // Each byte comes in time, the head never does.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut trickling.tcp, b"x: 1\r\n").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(began.elapsed() >= Duration::from_millis(250), "not before the time-out");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    drop((silent, begun));
}

#[tokio::test]
async fn a_body_that_stalls_is_cut() {
    let mut config = HttpConfig::default();
    config.body_timeout = Duration::from_millis(200);
    let up = upstream(&[echo().await], UpstreamConfig::default());
    let (address, _proxy) = proxy(up.clone(), config).await;
    let mut client = Conn::connect(address).await;
    let answer = client.ask("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhi").await;
    assert_eq!(answer.status(), 408);
    let stats = up.balancer().stats(u64::MAX / 2);
    assert_eq!(stats.endpoints[0].failures, 0, "the backend is not at fault");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut() {
    let to = backend(|mut conn, _| async move {
        conn.message().await;
        let size = 64 << 20;
        conn.send(&format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n")).await;
        let chunk = vec![0; 1 << 20];
        for _ in 0..64 {
            if tokio::io::AsyncWriteExt::write_all(&mut conn.tcp, &chunk).await.is_err() {
                return;
            }
        }
    })
    .await;
    let mut config = HttpConfig::default();
    config.body_timeout = Duration::from_millis(300);
    let up = upstream(&[to], UpstreamConfig::default());
    let (address, proxy) = proxy(up.clone(), config).await;
    let mut client = Conn::connect(address).await;
    client.send(GET).await;
    client.head().await.unwrap();
    let gone = async {
        while proxy.stats().open > 0 || up.stats().active > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(gone).await;
}

#[tokio::test]
async fn a_backend_that_dies_within_a_response_ends_the_client_s_connection() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n";
    for start in ["HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi", chunked] {
        let to = backend(move |mut conn, _| async move {
            conn.message().await;
            conn.send(start).await;
        })
        .await;
        let up = upstream(&[to], UpstreamConfig::default());
        let (address, proxy) = proxy(up.clone(), HttpConfig::default()).await;
        let mut client = Conn::connect(address).await;
        client.send(GET).await;
        assert!(client.head().await.unwrap().starts_with("HTTP/1.1 200"));
        let rest = String::from_utf8(client.rest().await).unwrap();
        assert!(!rest.contains("0\r\n\r\n"), "the response must not look whole: {rest:?}");
        assert_eq!(proxy.stats().failed, 1);
        assert_eq!(up.balancer().stats(u64::MAX / 2).endpoints[0].failures, 1);
    }
}

#[tokio::test]
async fn a_backend_that_speaks_no_http_is_a_bad_gateway() {
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(100 << 10));
    let answers = [
        String::new(),
        "garbage\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nhi".to_owned(),
        "HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n".to_owned(),
        long,
    ];
    for answer in answers {
        let shown = answer.chars().take(60).collect::<String>();
        let to = backend(move |mut conn, _| {
            let answer = answer.clone();
            async move {
                conn.message().await;
                conn.send(&answer).await;
            }
        })
        .await;
        let (address, _proxy) = simple(&[to]).await;
        let mut client = Conn::connect(address).await;
        assert_eq!(client.ask(GET).await.status(), 502, "{shown:?}");
    }
}
