//! Mutated requests over raw sockets. An independent parser (httparse and a decoder of chunks) says
//! which requests the client's bytes hold; what backends get must be the first of these, each
//! exactly, or nothing.
//!
//! `VOUSSOIR_L7_HEADS` is the number of requests (default 400), `VOUSSOIR_L7_SEED` the seed.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;
use voussoir_lb::l7::{HttpConfig, UpstreamConfig};
use voussoir_sim::Situations;

use crate::support::*;

static NAMES: [&str; 5] = [
    "forwarded",
    "two requests forwarded",
    "a body forwarded",
    "rejected with 400",
    "rejected with another status",
];

const INNER: &str = "GET /inner HTTP/1.1\r\nhost: a\r\n\r\n";

/// A request as a backend must understand it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parsed {
    method: String,
    target: String,
    body: Vec<u8>,
}

/// The request at the beginning of `bytes`, and its length. `Err`: no server should take it.
/// `Ok(None)`: it is not complete.
fn parse(bytes: &[u8]) -> Result<Option<(Parsed, usize)>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(bytes).map_err(|error| error.to_string())? {
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete(len) => len,
    };
    let of = |name: &str| {
        let found = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| header.value.to_vec()).collect::<Vec<_>>()
    };
    let (codings, lengths) = (of("transfer-encoding"), of("content-length"));
    if codings.len() + lengths.len() > 1 || of("host").len() != 1 {
        return Err("two framings, or not one host".into());
    }
    let mut parsed = Parsed {
        method: request.method.unwrap().to_owned(),
        target: request.path.unwrap().to_owned(),
        body: Vec::new(),
    };
    if let Some(coding) = codings.first() {
        if !coding.trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Err("another coding".into());
        }
        let Some(len) = chunked(&bytes[head..], &mut parsed.body)? else { return Ok(None) };
        return Ok(Some((parsed, head + len)));
    }
    let length = lengths.first().map_or(Ok(0), |value| {
        let digits = value.iter().all(u8::is_ascii_digit) && !value.is_empty();
        let text = String::from_utf8_lossy(value);
        text.parse::<usize>().ok().filter(|_| digits).ok_or_else(|| format!("length {text:?}"))
    })?;
    let Some(body) = bytes[head..].get(..length) else { return Ok(None) };
    parsed.body = body.to_vec();
    Ok(Some((parsed, head + length)))
}

/// Decodes a chunked body; returns its length with the trailers.
fn chunked(bytes: &[u8], body: &mut Vec<u8>) -> Result<Option<usize>, String> {
    let mut at = 0;
    loop {
        let size = httparse::parse_chunk_size(&bytes[at..]).map_err(|_| "a chunk size")?;
        let httparse::Status::Complete((used, size)) = size else { return Ok(None) };
        at += used;
        if size == 0 {
            let mut trailers = [httparse::EMPTY_HEADER; 16];
            let parsed = httparse::parse_headers(&bytes[at..], &mut trailers);
            return match parsed.map_err(|error| error.to_string())? {
                httparse::Status::Partial => Ok(None),
                httparse::Status::Complete((used, _)) => Ok(Some(at + used)),
            };
        }
        let Some(data) = bytes[at..].get(..size as usize + 2) else { return Ok(None) };
        let (data, end) = data.split_at(size as usize);
        if end != b"\r\n" {
            return Err("no end of a chunk".into());
        }
        body.extend_from_slice(data);
        at += size as usize + 2;
    }
}

/// All requests of `bytes` up to the first that is none.
fn parse_all(mut bytes: &[u8]) -> Vec<Parsed> {
    let mut all = Vec::new();
    while let Ok(Some((mut parsed, len))) = parse(bytes) {
        // The absolute form, and a fragment, which no server gets to see.
        let target = parsed.target.strip_prefix("http://a").unwrap_or(&parsed.target);
        let target = target.split('#').next().unwrap().to_owned();
        parsed.target = target;
        all.push(parsed);
        bytes = &bytes[len..];
    }
    all
}

fn bases() -> [String; 4] {
    let end = "host: a\r\nx: 1, 2\r\nconnection: close\r\n";
    let len = INNER.len();
    [
        format!("POST /p HTTP/1.1\r\ncontent-length: {len}\r\n{end}\r\n{INNER}"),
        format!(
            "POST /p HTTP/1.1\r\ntransfer-encoding: chunked\r\n{end}\r\n\
             {len:x}\r\n{INNER}\r\n0\r\n\r\n"
        ),
        format!(
            "PUT /p?q=1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n{end}\r\n\
             1;e=1\r\nx\r\n0\r\nt: 1\r\n\r\n"
        ),
        format!("GET /first HTTP/1.1\r\nhost: a\r\n\r\nGET /p HTTP/1.1\r\n{end}\r\n"),
    ]
}

fn mutate(text: &mut Vec<u8>, rng: &mut fastrand::Rng) {
    const PIECES: [&str; 14] = [
        "\r",
        "\n",
        "\r\n",
        "\0",
        " ",
        "\t",
        ":",
        "0",
        "\x0b",
        "content-length: 5\r\n",
        "transfer-encoding: chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "host: b\r\n",
        ",",
    ];
    let at = rng.usize(..text.len());
    match rng.u8(..5) {
        0 => text[at] = rng.u8(..),
        1 => drop(text.remove(at)),
        2 => drop(text.splice(at..at, rng.choice(PIECES).unwrap().bytes())),
        // At the begin of a line.
        3 => {
            let lines = (1..text.len()).filter(|at| text[at - 1] == b'\n').collect::<Vec<_>>();
            let at = rng.choice(lines).unwrap_or(0);
            drop(text.splice(at..at, rng.choice(PIECES).unwrap().bytes()));
        }
        // A line twice.
        _ => {
            let lines = text.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec);
            let mut lines = lines.collect::<Vec<_>>();
            let line = rng.usize(..lines.len());
            lines.insert(line, lines[line].clone());
            *text = lines.concat();
        }
    }
}

/// A backend that notes the requests that it got, and what it could not take.
async fn noting(seen: Arc<Mutex<Vec<Result<Parsed, String>>>>) -> std::net::SocketAddr {
    backend(move |mut conn, _| {
        let seen = Arc::clone(&seen);
        async move {
            let mut read = Vec::new();
            // Ends with the connection.
            while conn.tcp.read_buf(&mut read).await.is_ok_and(|count| count > 0) {
                match parse(&read) {
                    Ok(None) => {}
                    Ok(Some((parsed, len))) => {
                        seen.lock().push(Ok(parsed));
                        drop(read.drain(..len));
                        conn.send(&ok("")).await;
                        if !read.is_empty() {
                            seen.lock().push(Err(format!("behind a request: {read:?}")));
                        }
                    }
                    Err(error) => seen.lock().push(Err(error)),
                }
            }
        }
    })
    .await
}

async fn check(text: Vec<u8>, situations: &'static Situations) {
    let shown = String::from_utf8_lossy(&text).into_owned();
    let seen = Arc::default();
    let mut config = HttpConfig::default();
    // What is not complete must end.
    config.header_timeout = Duration::from_secs(1);
    config.body_timeout = Duration::from_secs(1);
    let up = upstream(&[noting(Arc::clone(&seen)).await], UpstreamConfig::default());
    let (address, _proxy) = proxy(up, config).await;
    let mut client = Conn::connect(address).await;
    client.send_bytes(&text).await;
    let answers = String::from_utf8_lossy(&client.rest().await).into_owned();
    let expected = parse_all(&text);
    let seen = seen.lock();
    for (at, got) in seen.iter().enumerate() {
        let is_same = got.as_ref().is_ok_and(|got| expected.get(at) == Some(got));
        assert!(
            is_same,
            "{shown:?}: request {at} came as {got:?}, sent was {:?}",
            expected.get(at)
        );
    }
    let good = answers.matches("HTTP/1.1 200").count();
    assert!(good <= seen.len(), "{shown:?}: {answers}");
    situations.add("forwarded", (good > 0).into());
    situations.add("two requests forwarded", (good > 1).into());
    let has_body = seen.iter().flatten().any(|parsed| !parsed.body.is_empty());
    situations.add("a body forwarded", has_body.into());
    let rejected = answers.split("HTTP/1.1 ").last().and_then(|last| last.get(..3));
    match rejected {
        // Closed without an answer, or behind the last good one.
        None | Some("200") => {}
        Some("400") => situations.reached("rejected with 400"),
        Some(status) => {
            let is_right = ["408", "431", "501", "505", "414"].contains(&status);
            assert!(is_right, "{shown:?}: {answers}");
            situations.reached("rejected with another status");
        }
    }
}

#[tokio::test]
async fn a_mutated_request_is_rejected_or_forwarded_as_it_was_sent() {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
    };
    static SITUATIONS: std::sync::OnceLock<Situations> = std::sync::OnceLock::new();
    let situations = SITUATIONS.get_or_init(|| Situations::new(&NAMES));
    let seed = number("VOUSSOIR_L7_SEED", 1);
    println!("VOUSSOIR_L7_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut checks = JoinSet::new();
    for at in 0..number("VOUSSOIR_L7_HEADS", 400) {
        let mut text = bases()[at as usize % 4].clone().into_bytes();
        for _ in 0..rng.u8(0..3) {
            mutate(&mut text, &mut rng);
        }
        checks.spawn(check(text, situations));
        if checks.len() >= 100 {
            checks.join_next().await.unwrap().unwrap();
        }
    }
    while let Some(checked) = checks.join_next().await {
        checked.unwrap();
    }
    situations.assert_all_reached();
}
