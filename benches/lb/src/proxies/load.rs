//! The load: requests in closed loop, at a fixed rate, and connections that are idle.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::Result;

const CONNECTIONS: usize = 32;
const BULK_CONNECTIONS: usize = 4;

/// What is repeated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// A request and an answer of 200 bytes on a connection that stays open.
    Request,
    /// The same on a connection of its own.
    Connection,
    /// An answer of 1 MiB on a connection that stays open.
    Bulk,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "request",
            Self::Connection => "connection",
            Self::Bulk => "1 MiB",
        })
    }
}

/// A connection, and the bytes of an answer.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 1 << 16] })
    }

    /// Asks once and reads the answer to its end.
    async fn ask(&mut self, load: Load) -> Result<()> {
        let path = if load == Load::Bulk { "/bulk" } else { "/" };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: backend\r\nUser-Agent: load\r\nAccept: */*\r\n\r\n"
        );
        self.stream.write_all(request.as_bytes()).await?;
        let mut filled = 0;
        let (head, length) = loop {
            let count = self.stream.read(&mut self.buffer[filled..]).await?;
            if count == 0 {
                return Err("the proxy closed a connection that was in use".into());
            }
            filled += count;
            if let Some(found) = answer(&self.buffer[..filled])? {
                break found;
            }
        };
        let mut missing = (head + length).checked_sub(filled).ok_or("more than was announced")?;
        while missing > 0 {
            let end = missing.min(self.buffer.len());
            let count = self.stream.read(&mut self.buffer[..end]).await?;
            if count == 0 {
                return Err("the proxy cut an answer".into());
            }
            missing -= count;
        }
        Ok(())
    }
}

/// The bytes of the head and of the body, once the head is complete. An answer that is not 200
/// fails.
fn answer(bytes: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end])?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(format!("not the answer of the backend: {head}").into());
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then_some(value)
    });
    Ok(Some((end + 4, length.ok_or("no length")?.parse()?)))
}

/// Repeats the load for this long. Returns how many requests were answered.
pub async fn closed_loop(address: SocketAddr, load: Load, round: Duration) -> Result<usize> {
    let until = Instant::now() + round;
    let mut clients = JoinSet::new();
    for _ in 0..if load == Load::Bulk { BULK_CONNECTIONS } else { CONNECTIONS } {
        clients.spawn(async move {
            let mut kept = None;
            let mut count = 0;
            while Instant::now() < until {
                let mut client = match kept.take() {
                    Some(client) => client,
                    None => Client::connect(address).await?,
                };
                client.ask(load).await?;
                count += 1;
                if load == Load::Connection {
                    // Without it the ports of loopback are used up by connections in TIME_WAIT.
                    client.stream.set_zero_linger()?;
                } else {
                    kept = Some(client);
                }
            }
            Result::Ok(count)
        });
    }
    sum(clients).await
}

async fn sum(mut clients: JoinSet<Result<usize>>) -> Result<usize> {
    let mut sum = 0;
    while let Some(count) = clients.join_next().await {
        sum += count??;
    }
    Ok(sum)
}

/// Requests at a fixed rate over all connections, each of which sends when its turn has come,
/// or late. Returns the latencies in ns, counted from when a request was due.
pub async fn open_loop(address: SocketAddr, rate: f64, round: Duration) -> Result<Vec<u64>> {
    let mut clients = JoinSet::new();
    let begin = Instant::now() + Duration::from_millis(50);
    for client in 0..CONNECTIONS {
        clients.spawn(async move {
            let mut connection = Client::connect(address).await?;
            let mut latencies = Vec::new();
            for turn in 0.. {
                let due = Duration::from_secs_f64((turn * CONNECTIONS + client) as f64 / rate);
                if due >= round {
                    break;
                }
                // Timers of the runtime are as coarse as 1 ms: the load waits without one.
                while Instant::now() < begin + due {
                    tokio::task::yield_now().await;
                }
                connection.ask(Load::Request).await?;
                latencies.push((Instant::now() - (begin + due)).as_nanos() as u64);
            }
            Result::Ok(latencies)
        });
    }
    let mut all = Vec::new();
    while let Some(latencies) = clients.join_next().await {
        all.extend(latencies??);
    }
    Ok(all)
}

/// Connections that have asked once and stay open until they are dropped.
pub async fn idle(address: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let mut open = Vec::new();
    for _ in 0..count {
        let mut client = Client::connect(address).await?;
        client.ask(Load::Request).await?;
        open.push(client.stream);
    }
    Ok(open)
}
