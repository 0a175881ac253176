//! What the tests over real processes share.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// This package's own program.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_store"))
}

/// An answer as it came over the wire.
#[derive(Debug)]
pub struct Raw {
    pub status: u16,
    /// By lower-case name.
    pub headers: HashMap<String, String>,
    pub body: String,
}

/// One request on a connection of its own, with no redirect followed. `None` where the node does
/// not answer.
pub fn ask(node: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Option<Raw> {
    let mut stream = TcpStream::connect_timeout(&node, Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {node}\r\nconnection: close\r\n\
         content-length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    Some(Raw { status, headers, body: body.to_owned() })
}

/// A request under way whose client takes its time.
pub struct Slow(TcpStream);

impl Slow {
    /// Sends the first part of five bytes, once the node asks for them.
    pub fn put(node: SocketAddr, path: &str) -> Self {
        let mut stream = TcpStream::connect(node).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let head = "host: x\r\nexpect: 100-continue\r\ncontent-length: 5";
        write!(stream, "PUT {path} HTTP/1.1\r\n{head}\r\n\r\n").unwrap();
        let mut asked = [0; 25];
        stream.read_exact(&mut asked).unwrap();
        assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"12").unwrap();
        Self(stream)
    }

    /// Sends the rest. What the node says to it.
    pub fn finish(mut self) -> String {
        self.0.write_all(b"345").unwrap();
        let mut said = String::new();
        let _ = self.0.read_to_string(&mut said);
        said
    }
}

/// Asks until `found` likes the answer.
pub fn ask_until(node: SocketAddr, path: &str, found: impl Fn(&Raw) -> bool) -> Raw {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = ask(node, "GET", path, "", "");
        if let Some(answer) = answer.filter(|answer| found(answer)) {
            return answer;
        }
        assert!(Instant::now() < end, "{node}{path} never answered what the test waits for");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until `is_so` returns true. `what` says what the test waits for.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < end, "after 30 s still not: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The value of a metric, by its full name with labels.
pub fn metric(node: SocketAddr, name: &str) -> Option<f64> {
    let text = ask(node, "GET", "/metrics", "", "")?.body;
    let line = text
        .lines()
        .find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit(' ').next()?.parse().ok()
}
