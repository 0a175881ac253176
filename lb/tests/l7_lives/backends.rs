//! Backends over raw sockets whose faults are drawn at random, for each request anew.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;
use voussoir_sim::Situations;

use crate::support::{Conn, Message};

/// What all backends of a life have seen.
#[derive(Default)]
pub(crate) struct Seen {
    /// How often a backend got the head of a request, by its number.
    pub(crate) heads: HashMap<u64, u32>,
    /// Requests whose response was broken off after its head.
    pub(crate) cut: HashMap<u64, &'static str>,
}

pub(crate) struct World {
    pub(crate) situations: &'static Situations,
    pub(crate) seen: Mutex<Seen>,
    pub(crate) rng: Mutex<fastrand::Rng>,
}

impl World {
    pub(crate) fn draw(&self, below: u64) -> u64 {
        self.rng.lock().u64(..below)
    }
}

/// The body of the response to a request: its number, over and over.
pub(crate) fn body_of(number: u64, len: usize) -> Vec<u8> {
    format!("{number:08x}").bytes().cycle().take(len).collect()
}

/// Starts a backend; a faulty one breaks about half of its requests.
pub(crate) async fn start(world: Arc<World>, is_faulty: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((tcp, _)) = listener.accept().await {
            connections.spawn(serve(Arc::clone(&world), Conn::new(tcp), is_faulty));
        }
    });
    address
}

/// The number and the length that the path asks for: `/NUMBER/LENGTH`.
fn wanted(head: &str) -> (u64, usize) {
    let path = head.split(' ').nth(1).expect("a path");
    let mut parts = path.split('/').skip(1).map(|part| part.parse().expect("a number"));
    (parts.next().expect("a number"), parts.next().expect("a length") as usize)
}

async fn serve(world: Arc<World>, mut conn: Conn, is_faulty: bool) {
    loop {
        let Some(head) = conn.head().await else { return };
        let (number, len) = wanted(&head);
        *world.seen.lock().heads.entry(number).or_default() += 1;
        let fault = if is_faulty { world.draw(24) } else { u64::MAX };
        if !answer(&world, &mut conn, head, number, len, fault).await {
            return;
        }
    }
}

/// What a backend answers to one request.
struct Reply {
    number: u64,
    head: String,
    body: Vec<u8>,
}

/// Returns whether the connection goes on.
async fn answer(
    world: &World,
    conn: &mut Conn,
    head: String,
    number: u64,
    len: usize,
    fault: u64,
) -> bool {
    let response =
        format!("HTTP/1.1 200 OK\r\nx-number: {number}\r\ncontent-length: {len}\r\n\r\n");
    let reply = Reply { number, head: response, body: body_of(number, len) };
    if ends_early(world, conn, &head, &reply, fault).await {
        return false;
    }
    let Some(request) = rest_of(conn, head).await else { return false };
    if !request.body.is_empty() {
        assert!(request.body == body_of(number, request.body.len()), "the body of another request");
    }
    answer_whole(world, conn, &reply, fault).await
}

/// Faults before the body of the request is read. Returns whether the connection ended.
async fn ends_early(world: &World, conn: &mut Conn, head: &str, reply: &Reply, fault: u64) -> bool {
    let reached = |name| world.situations.reached(name);
    let (len, response, body) = (reply.body.len(), reply.head.as_bytes(), &reply.body);
    match fault {
        0 => {
            reached("a backend reset before its answer");
            conn.tcp.set_zero_linger().unwrap();
        }
        1 => reached("a backend closed before its answer"),
        2 if len > 1 => {
            world.seen.lock().cut.insert(reply.number, "closed");
            reached("a backend closed within its answer");
            let _ = sent(conn, response).await && sent(conn, &body[..len / 2]).await;
        }
        3 if len > 1 => {
            world.seen.lock().cut.insert(reply.number, "reset");
            reached("a backend reset within its answer");
            let _ = sent(conn, response).await && sent(conn, &body[..len / 2]).await;
            conn.tcp.set_zero_linger().unwrap();
        }
        4 => {
            // Up to the proxy's time-out, or until the client has left.
            reached("a backend stalled");
            conn.rest().await;
        }
        5 if head.starts_with("POST") => {
            reached("a backend answered before the request's body");
            let _ = sent(conn, response).await && sent(conn, body).await;
            // Bytes of the body are no request.
            conn.rest().await;
        }
        _ => return false,
    }
    true
}

/// Answers a request that was read whole. Returns whether the connection goes on.
async fn answer_whole(world: &World, conn: &mut Conn, reply: &Reply, fault: u64) -> bool {
    let reached = |name| world.situations.reached(name);
    let Reply { number, head, body } = reply;
    let (len, whole) = (body.len(), [head.as_bytes(), body].concat());
    match fault {
        6 => {
            reached("a backend answered 503");
            return sent(conn, b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await;
        }
        // In one segment: what comes after the next request is its answer, for any proxy.
        7 if len < 1_000 => {
            reached("a backend said more than its answer");
            let poison = "HTTP/1.1 200 OK\r\nx-number: 0\r\ncontent-length: 0\r\n\r\n";
            return sent(conn, &[&whole, poison.as_bytes()].concat()).await;
        }
        8 => {
            reached("a backend closed behind its answer");
            let _ = sent(conn, &whole).await;
            return false;
        }
        9 => {
            reached("a backend took the next request and closed");
            let _ = sent(conn, &whole).await;
            if let Some(head) = conn.head().await {
                *world.seen.lock().heads.entry(wanted(&head).0).or_default() += 1;
            }
            return false;
        }
        10 => {
            reached("a backend was slow");
            let head = format!(
                "HTTP/1.1 200 OK\r\nx-number: {number}\r\ntransfer-encoding: chunked\r\n\r\n"
            );
            let mut is_open = sent(conn, head.as_bytes()).await;
            for part in body.chunks(len.div_ceil(4).max(1)) {
                sleep(Duration::from_millis(3)).await;
                let size = format!("{:x}\r\n", part.len());
                is_open &= sent(conn, &[size.as_bytes(), part, b"\r\n"].concat()).await;
            }
            return is_open && sent(conn, b"0\r\n\r\n").await;
        }
        _ => {}
    }
    sent(conn, head.as_bytes()).await && sent(conn, body).await
}

async fn rest_of(conn: &mut Conn, head: String) -> Option<Message> {
    let message = Message { head, body: Vec::new() };
    if message.header("transfer-encoding").is_some() {
        let mut body = Vec::new();
        // Ends with the last chunk, or with the connection.
        loop {
            let size = usize::from_str_radix(&conn.try_line().await?, 16).expect("a chunk size");
            body.extend(conn.try_bytes(size).await?);
            conn.try_line().await?;
            if size == 0 {
                return Some(Message { body, ..message });
            }
        }
    }
    let len = message.header("content-length").map_or(0, |len| len.parse().unwrap());
    Some(Message { body: conn.try_bytes(len).await?, ..message })
}

/// False when the proxy has closed the connection.
async fn sent(conn: &mut Conn, bytes: &[u8]) -> bool {
    tokio::io::AsyncWriteExt::write_all(&mut conn.tcp, bytes).await.is_ok()
}
