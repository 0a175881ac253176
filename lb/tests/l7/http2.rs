//! HTTP/2 in and out, gRPC, and floods of frames.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use voussoir_lb::l7::{HttpConfig, PathMatch, Protocol, Route, Router, UpstreamConfig};

use crate::support::*;

/// A body of the frames that are sent to it.
pub(crate) struct Frames(mpsc::Receiver<Frame<Bytes>>);

impl Frames {
    fn new(frames: Vec<Frame<Bytes>>) -> Self {
        let (sender, receiver) = mpsc::channel(frames.len().max(1));
        for frame in frames {
            sender.try_send(frame).unwrap();
        }
        Self(receiver)
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

pub(crate) struct Client2 {
    sender: SendRequest<Frames>,
}

impl Client2 {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
        let (sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        Self { sender }
    }

    async fn ask(&mut self, request: Request<Frames>) -> (u16, String, HeaderMap, HeaderMap) {
        let response = soon(self.sender.send_request(request)).await.unwrap();
        let (parts, mut body) = response.into_parts();
        let (mut data, mut trailers) = (Vec::new(), HeaderMap::new());
        while let Some(frame) =
            soon(std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx))).await
        {
            match frame.unwrap().into_data() {
                Ok(bytes) => data.extend_from_slice(&bytes),
                Err(frame) => trailers = frame.into_trailers().unwrap(),
            }
        }
        (parts.status.as_u16(), String::from_utf8(data).unwrap(), parts.headers, trailers)
    }

    pub(crate) async fn get(&mut self) -> (u16, String) {
        let request = Request::get("http://a/").body(Frames::new(Vec::new())).unwrap();
        let (status, body, ..) = self.ask(request).await;
        (status, body)
    }

    pub(crate) async fn post(&mut self, frames: &[&'static str]) -> (u16, String) {
        let frames = frames.iter().map(|data| Frame::data(Bytes::from_static(data.as_bytes())));
        let request = Request::post("http://a/").body(Frames::new(frames.collect())).unwrap();
        let (status, body, ..) = self.ask(request).await;
        (status, body)
    }
}

/// A backend of HTTP/2 that answers with `grpc-status` in its trailers, or in its head if the
/// request has a path of `/head`.
async fn grpc_backend(status: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let service = service_fn(move |request: Request<Incoming>| async move {
                assert_eq!(request.headers().get("te").unwrap(), "trailers");
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", status.parse().unwrap());
                let mut response = Response::new(Frames::new(Vec::new()));
                if request.uri().path() == "/head" {
                    *response.headers_mut() = trailers;
                } else {
                    let frames = vec![Frame::data(Bytes::from("x")), Frame::trailers(trailers)];
                    *response.body_mut() = Frames::new(frames);
                }
                response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
                Ok::<_, std::convert::Infallible>(response)
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(tcp), service));
        }
    });
    address
}

fn http2_config() -> UpstreamConfig {
    let mut config = UpstreamConfig::default();
    config.protocol = Protocol::Http2;
    config
}

fn call(path: &str) -> Request<Frames> {
    Request::post(format!("http://a{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Frames::new(vec![Frame::data(Bytes::from("q"))]))
        .unwrap()
}

#[tokio::test]
async fn a_call_of_grpc_keeps_its_trailers_and_its_status_is_the_outcome() {
    for (status, failures) in [("0", 0), ("5", 0), ("14", 2), ("13", 2)] {
        let up = upstream(&[grpc_backend(status).await], http2_config());
        let (address, _proxy) = proxy(up.clone(), HttpConfig::default()).await;
        let mut client = Client2::connect(address).await;
        let (code, body, _, trailers) = client.ask(call("/trailers")).await;
        assert_eq!((code, body.as_str()), (200, "x"));
        assert_eq!(trailers.get("grpc-status").unwrap(), status);
        let (code, _, headers, _) = client.ask(call("/head")).await;
        assert_eq!((code, headers.get("grpc-status").unwrap().to_str().unwrap()), (200, status));
        let stats = up.balancer().stats(u64::MAX / 2);
        assert_eq!(stats.endpoints[0].failures, failures, "status {status}");
        assert_eq!(up.stats().connects, 1, "one connection for all calls");
    }
}

#[tokio::test]
async fn a_call_of_grpc_that_no_backend_takes_fails_with_a_status_of_grpc() {
    let up = upstream(&[nobody().await], http2_config());
    let (address, _proxy) = proxy(up, HttpConfig::default()).await;
    let mut client = Client2::connect(address).await;
    let (code, _, headers, _) = client.ask(call("/")).await;
    assert_eq!((code, headers.get("grpc-status").unwrap().to_str().unwrap()), (200, "14"));
}

/// What waits for a stream would be taken for a slow backend: 504, and an ejection.
#[tokio::test]
async fn more_requests_than_streams_open_another_connection() {
    const STREAMS: u32 = 3;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let (asked, mut seen) = mpsc::unbounded_channel();
    let (ended, mut ends) = mpsc::unbounded_channel();
    let (finish, may_finish) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (asked, may_finish) = (asked.clone(), may_finish.clone());
            let service = service_fn(move |_: Request<Incoming>| {
                let _ = asked.send(());
                let mut may_finish = may_finish.clone();
                async move {
                    let _ = may_finish.wait_for(|may| *may).await;
                    Ok::<_, std::convert::Infallible>(Response::new(Frames::new(vec![])))
                }
            });
            let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            server.max_concurrent_streams(STREAMS);
            let (serving, ended) =
                (server.serve_connection(TokioIo::new(tcp), service), ended.clone());
            tokio::spawn(async move {
                let _ = serving.await;
                let _ = ended.send(());
            });
        }
    });
    let mut config = http2_config();
    config.max_streams = STREAMS;
    config.idle_timeout = Duration::from_millis(100);
    let up = upstream(&[to], config);
    let (address, _proxy) = proxy(up.clone(), HttpConfig::default()).await;
    let clients: Vec<_> = (0..8)
        .map(|_| tokio::spawn(async move { Conn::connect(address).await.ask(GET).await.status() }))
        .collect();
    for _ in 0..8 {
        soon(seen.recv()).await.expect("every request is under way at a time");
    }
    assert_eq!((up.stats().connects, up.stats().active), (3, 8));
    finish.send_replace(true);
    for client in clients {
        assert_eq!(client.await.unwrap(), 200);
    }
    assert_eq!(Conn::connect(address).await.ask(GET).await.status(), 200);
    assert_eq!(up.stats().connects, 3, "they are used again");
    for _ in 0..3 {
        soon(ends.recv()).await.expect("all of them are closed for idleness");
    }
}

/// A connection of HTTP/2 has nearly always carried a request before: that its stream is reset says
/// nothing about the connection, and a retry is one of the configuration's.
#[tokio::test]
async fn a_stream_that_the_backend_resets_is_not_sent_again_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            let service = service_fn(move |_: Request<Incoming>| {
                let number = count.fetch_add(1, SeqCst);
                async move {
                    // hyper resets the stream with INTERNAL_ERROR.
                    if number > 0 { Err("crash") } else { Ok(Response::new(Frames::new(vec![]))) }
                }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(tcp), service));
        }
    });
    let mut config = http2_config();
    config.retry.max_attempts = 1;
    let up = upstream(&[to], config);
    let (address, _proxy) = proxy(up.clone(), HttpConfig::default()).await;
    let mut client = Client2::connect(address).await;
    assert_eq!(client.get().await.0, 200);
    assert_eq!(client.get().await.0, 502);
    assert_eq!((asked.load(SeqCst), up.stats().connects, up.stats().retries), (2, 1, 0));
}

#[tokio::test]
async fn http1_in_front_of_http2_and_http2_in_front_of_http1_work() {
    let up = upstream(&[echo().await], UpstreamConfig::default());
    let (inner, _inner_proxy) = proxy(up, HttpConfig::default()).await;
    let (outer, _outer_proxy) =
        proxy(upstream(&[inner], http2_config()), HttpConfig::default()).await;
    let mut client = Conn::connect(outer).await;
    for _ in 0..3 {
        let answer = client
            .ask(
                "POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\
                  2\r\nhi\r\n0\r\n\r\n",
            )
            .await;
        let seen = answer.text().to_lowercase();
        assert!(answer.status() == 200 && seen.ends_with("hi"), "{seen}");
        assert!(seen.starts_with("post /p ") && seen.contains("host: a\r\n"), "{seen}");
    }
}

/// RFC 9113 §8.2.3: browsers split cookies over several lines, and a server of HTTP/1 reads one.
#[tokio::test]
async fn cookies_that_http2_splits_are_one_line_before_http1() {
    let (address, _proxy) = simple(&[echo().await]).await;
    let mut client = Client2::connect(address).await;
    for (crumbs, expected) in [
        (&["a=1"][..], "cookie: a=1"),
        (&["a=1", "b=2"], "cookie: a=1; b=2"),
        (&["a=1", "b=2; c=3", "d=\"4\""], "cookie: a=1; b=2; c=3; d=\"4\""),
    ] {
        let mut request = Request::get("http://a/");
        for crumb in crumbs {
            request = request.header("cookie", *crumb);
        }
        let request = request.body(Frames::new(Vec::new())).unwrap();
        let (status, seen, ..) = client.ask(request).await;
        let lines: Vec<&str> = seen.lines().filter(|line| line.starts_with("cookie")).collect();
        assert_eq!((status, lines), (200, vec![expected]));
    }
}

#[tokio::test]
async fn a_drain_tells_http2_clients_to_go_and_finishes_their_requests() {
    let to = backend(|mut conn, _| async move {
        conn.message().await;
        conn.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        conn.send("hi").await;
    })
    .await;
    let (address, proxy) = simple(&[to]).await;
    let mut client = Client2::connect(address).await;
    let draining = proxy.clone();
    let drained = async {
        while draining.stats().requests == 0 {
            tokio::task::yield_now().await;
        }
        draining.drain(Duration::from_secs(10)).await
    };
    let (answer, cut) = tokio::join!(client.get(), drained);
    assert_eq!((answer, cut), ((200, "hi".to_owned()), 0));
}

#[tokio::test]
async fn an_idle_http2_connection_is_closed() {
    let mut config = HttpConfig::default();
    config.idle_timeout = Duration::from_millis(200);
    let up = upstream(&[echo().await], UpstreamConfig::default());
    let (address, proxy) = proxy(up, config).await;
    let mut client = Client2::connect(address).await;
    assert_eq!(client.get().await.0, 200);
    let closed = async {
        while proxy.stats().open > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(closed).await;
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Sends until the proxy ends the connection; false if it takes `rounds` without an end.
async fn is_cut(address: SocketAddr, rounds: u32, mut next: impl FnMut(u32) -> Vec<u8>) -> bool {
    use tokio::io::AsyncWriteExt;
    let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
    write.write_all(PREFACE).await.unwrap();
    let (ended, mut end) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while read.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
        let _ = ended.send(());
    });
    for round in 0..rounds {
        if write.write_all(&next(round)).await.is_err() || end.try_recv().is_ok() {
            return true;
        }
        tokio::task::yield_now().await;
    }
    tokio::time::timeout(Duration::from_secs(2), end).await.is_ok()
}

/// `:method GET, :scheme http, :path /` and `:authority a`.
const HEADERS: &[u8] = &[0x82, 0x86, 0x84, 0x41, 0x01, b'a'];

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let to = backend(|mut conn, _| async move {
        conn.rest().await;
    })
    .await;
    let (address, proxy) = simple(&[to]).await;
    let cut = is_cut(address, 20_000, |round| {
        let stream = round * 2 + 1;
        let mut both = frame(1, 0x5, stream, HEADERS);
        both.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
        both
    });
    assert!(soon(cut).await, "20,000 requests and resets were taken");
    let gone = async {
        while proxy.stats().open > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(gone).await;
    assert!(proxy.stats().requests < 10_000, "{:?}", proxy.stats());
}

#[tokio::test]
async fn a_flood_of_continuations_ends_the_connection() {
    let (address, proxy) = simple(&[echo().await]).await;
    let cut = is_cut(address, 20_000, |round| match round {
        0 => frame(1, 0x1, 1, HEADERS),
        _ => frame(9, 0, 1, &[0x40, 0x01, b'x', 0x7f, 0x00]),
    });
    assert!(soon(cut).await, "20,000 CONTINUATION frames were taken");
    assert_eq!(proxy.stats().requests, 0);
}

/// A backend whose response never ends, and a note when its connection was closed.
async fn endless() -> (SocketAddr, mpsc::Receiver<()>) {
    let (ended, seen) = mpsc::channel(1);
    let to = backend(move |mut conn, _| {
        let ended = ended.clone();
        async move {
            conn.message().await;
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n").await;
            let bytes = [b'x'; 1 << 14];
            while tokio::io::AsyncWriteExt::write_all(&mut conn.tcp, &bytes).await.is_ok() {}
            let _ = ended.send(()).await;
        }
    })
    .await;
    (to, seen)
}

/// Sends one request on a connection with a window of `window` bytes for each stream.
async fn windowed(address: SocketAddr, window: u32) -> Response<h2::RecvStream> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    let builder = builder.initial_window_size(window);
    let (mut client, connection) = builder.handshake::<_, Bytes>(tcp).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://a/").body(()).unwrap();
    soon(client.send_request(request, true).unwrap().0).await.unwrap()
}

#[tokio::test]
async fn a_stream_whose_client_grants_no_window_lets_go_of_its_backend() {
    for window in [0, 1, 100_000] {
        let (to, mut seen) = endless().await;
        let mut config = HttpConfig::default();
        config.body_timeout = Duration::from_millis(300);
        let up = upstream(&[to], UpstreamConfig::default());
        let (address, proxy) = proxy(up.clone(), config).await;
        let began = std::time::Instant::now();
        let mut body = windowed(address, window).await.into_body();
        soon(seen.recv()).await.expect("the backend's connection was closed");
        assert!(began.elapsed() >= Duration::from_millis(300), "{window}: {:?}", began.elapsed());
        let error = soon(async {
            loop {
                match body.data().await.expect("an end is an error") {
                    Ok(_) => {}
                    Err(error) => return error,
                }
            }
        });
        assert_eq!(error.await.reason(), Some(h2::Reason::CANCEL), "{window}");
        assert_eq!((proxy.stats().open, proxy.stats().cancelled), (1, 1), "{window}");
        assert_eq!(up.stats().active, 0);
    }
}

/// Without a backend: what the proxy answers by itself is a body too.
#[tokio::test]
async fn an_answer_of_the_proxy_waits_no_longer_for_a_window_either() {
    for window in [0, 1] {
        let mut config = HttpConfig::default();
        config.body_timeout = Duration::from_millis(300);
        config.idle_timeout = Duration::from_millis(300);
        let route = Route::new("other", upstream(&[nobody().await], UpstreamConfig::default()))
            .with_path(PathMatch::Exact("/other".into()));
        let (address, proxy) = proxy_with(Router::new(vec![route]).unwrap(), config).await;
        let answer = windowed(address, window).await;
        assert_eq!(answer.status(), 404);
        let mut body = answer.into_body();
        let error = soon(async {
            loop {
                match body.data().await.expect("an end is an error") {
                    Ok(_) => {}
                    Err(error) => return error,
                }
            }
        });
        // What fits is handed to h2 whole: then the connection is idle, and is closed as such.
        let expected = (window == 0).then_some(h2::Reason::CANCEL);
        assert_eq!(error.await.reason(), expected, "{window}");
        let idle = async {
            while proxy.stats().open > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        soon(idle).await;
    }
}

#[tokio::test]
async fn a_stream_that_is_slow_on_either_side_is_not_reset() {
    // The backend is slower than the bound on the client, and the client takes longer than that in
    // all, but a fifth of it for what the backend sends at once.
    let to = backend(|mut conn, _| async move {
        conn.message().await;
        conn.send("HTTP/1.1 200 OK\r\ncontent-length: 120000\r\n\r\n").await;
        for pause in [1_300, 300, 300, 300, 300, 0] {
            conn.send(&"x".repeat(20_000)).await;
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        conn.rest().await;
    })
    .await;
    let mut config = HttpConfig::default();
    config.body_timeout = Duration::from_secs(1);
    let (address, _proxy) = proxy(upstream(&[to], UpstreamConfig::default()), config).await;
    let mut body = windowed(address, 1_000).await.into_body();
    let mut taken = 0;
    while let Some(data) = soon(body.data()).await {
        let count = data.unwrap().len();
        taken += count;
        tokio::time::sleep(Duration::from_millis(10)).await;
        body.flow_control().release_capacity(count).unwrap();
    }
    assert_eq!(taken, 120_000);
}

#[tokio::test]
async fn a_length_that_the_frames_of_http2_contradict_breaks_the_request_off() {
    let (address, _proxy) = simple(&[echo().await]).await;
    for (length, body) in [("1", "hi"), ("9", "hi")] {
        let mut client = Client2::connect(address).await;
        let request = Request::post("http://a/")
            .header("content-length", length)
            .body(Frames::new(vec![Frame::data(Bytes::from(body))]))
            .unwrap();
        let answer = soon(client.sender.send_request(request)).await;
        let is_ok = answer.is_ok_and(|response| response.status().is_success());
        assert!(!is_ok, "content-length {length} for {body:?}");
    }
}
