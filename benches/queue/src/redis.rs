//! A client of Redis Streams: one connection, requests in a pipeline.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

/// A request as it goes over the wire, how many answers it has, and who waits for them.
type Request = (Vec<u8>, usize, oneshot::Sender<()>);

/// A connection. Clones share it.
#[derive(Clone)]
pub struct Redis {
    requests: mpsc::Sender<Request>,
}

fn command(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", parts.len()).into_bytes();
    for part in parts {
        out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
    out
}

impl Redis {
    /// Connects, and has the server sync before it answers.
    pub async fn connect(url: &str) -> Self {
        let address = url.trim_start_matches("redis://").trim_end_matches('/');
        let stream = TcpStream::connect(address).await.expect("Redis answers");
        stream.set_nodelay(true).expect("a socket");
        let (reader, mut writer) = stream.into_split();
        let (requests, mut queued) = mpsc::channel::<Request>(1_024);
        let (sent, mut waiting) = mpsc::channel::<(usize, oneshot::Sender<()>)>(1_024);
        tokio::spawn(async move {
            // Ends with the connection.
            while let Some((bytes, answers, done)) = queued.recv().await {
                writer.write_all(&bytes).await.expect("Redis reads");
                if sent.send((answers, done)).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            let mut reader = BufReader::with_capacity(64 << 10, reader);
            while let Some((answers, done)) = waiting.recv().await {
                for _ in 0..answers {
                    answer(&mut reader).await;
                }
                let _ = done.send(());
            }
        });
        let redis = Self { requests };
        for setting in [["appendonly", "yes"], ["appendfsync", "always"]] {
            let [name, value] = setting.map(str::as_bytes);
            redis.call(command(&[b"CONFIG", b"SET", name, value]), 1).await;
        }
        redis
    }

    async fn call(&self, bytes: Vec<u8>, answers: usize) {
        let (done, wait) = oneshot::channel();
        self.requests.send((bytes, answers, done)).await.expect("a connection");
        wait.await.expect("Redis answers");
    }

    /// Adds so many records of these bytes to a stream, in one pipeline.
    pub async fn add(&self, records: usize, value: &[u8]) {
        let parts: [&[u8]; 8] = [b"XADD", b"bench", b"MAXLEN", b"~", b"50000", b"*", b"v", value];
        self.call(command(&parts).repeat(records), records).await;
    }
}

/// Reads one answer, which is no error.
async fn answer(reader: &mut (impl AsyncBufReadExt + Unpin)) {
    let mut line = String::new();
    reader.read_line(&mut line).await.expect("Redis answers");
    assert!(!line.starts_with('-'), "Redis says {line}");
    if let Some(length) = line.strip_prefix('$') {
        let length: usize = length.trim_end().parse().expect("a length");
        let mut bytes = vec![0; length + 2];
        reader.read_exact(&mut bytes).await.expect("an answer");
    }
}
