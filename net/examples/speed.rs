//! Round trips and streams over loopback, beside a bare tokio socket in the same process:
//! `cargo run --release --example net-speed [threads] [gather in µs]`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use voussoir_net::{
    Channel, Class, Config, Handler, Parts, Peers, Rejected, SendError, Tcp, Transport,
};

const ROUNDS: usize = 20_000;
const BYTES: usize = 100;
const ECHO: Channel = Channel::small(1);
const SINK: u16 = 2;

/// Answers by a message, as a consensus protocol does, and by the answer of a call.
struct Echo(Tcp);

#[async_trait]
impl Handler for Echo {
    fn message(&self, from: u64, _class: Class, body: Bytes) {
        let _ = self.0.send(from, ECHO, body.into());
    }

    async fn call(&self, _from: u64, body: Bytes) -> Result<Parts, Rejected> {
        Ok(body.into())
    }
}

/// Wakes whoever waits for the echo.
struct Back(Arc<Notify>);

impl Handler for Back {
    fn message(&self, _from: u64, _class: Class, _body: Bytes) {
        self.0.notify_one();
    }
}

#[derive(Default)]
struct Sink {
    bytes: AtomicU64,
}

impl Handler for Sink {
    fn message(&self, _from: u64, _class: Class, body: Bytes) {
        self.bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
    }
}

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[(times.len() as f64 * share) as usize].as_nanos() as f64 / 1e3;
    println!("{name:<28} p50 {:>7.1} us   p99 {:>7.1} us", at(0.5), at(0.99));
}

async fn bare() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut client = TcpStream::connect(listener.local_addr()?).await?;
    let (mut server, _) = listener.accept().await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    tokio::spawn(async move {
        let mut buffer = [0; BYTES];
        while server.read_exact(&mut buffer).await.is_ok() {
            if server.write_all(&buffer).await.is_err() {
                break;
            }
        }
    });
    let (mut buffer, mut times) = ([0; BYTES], Vec::with_capacity(ROUNDS));
    for _ in 0..ROUNDS {
        let began = Instant::now();
        client.write_all(&buffer).await?;
        client.read_exact(&mut buffer).await?;
        times.push(began.elapsed());
    }
    report("bare socket, round trip", times);
    Ok(())
}

async fn stream(one: &Tcp, sink: &Sink, name: &str, class: Class, bytes: usize, total: u64) {
    let body = Bytes::from(vec![1; bytes]);
    sink.bytes.store(0, Ordering::Relaxed);
    let (began, before) = (Instant::now(), one.stats());
    let mut sent = 0;
    while sent < total {
        match one.send(2, Channel { service: SINK, class }, body.clone().into()) {
            Ok(()) => sent += bytes as u64,
            Err(SendError::Full) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
    while sink.bytes.load(Ordering::Relaxed) < sent {
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
    let (took, after) = (began.elapsed().as_secs_f64(), one.stats());
    println!(
        "{name:<28} {:>9.0} messages/s {:>8.1} MB/s {:>7.1} messages per write",
        sent as f64 / bytes as f64 / took,
        sent as f64 / took / 1e6,
        (after.frames_out - before.frames_out) as f64 / (after.writes - before.writes) as f64,
    );
}

async fn run(gather: Option<u64>) -> Result<(), Box<dyn std::error::Error>> {
    bare().await?;
    let peers = Peers::new();
    let any = "127.0.0.1:0".parse()?;
    let mut config = Config::default();
    config.gather = gather.map_or(config.gather, Duration::from_micros);
    let one = Tcp::bind(1, any, Arc::new(peers.clone()), config.clone()).await?;
    let two = Tcp::bind(2, any, Arc::new(peers.clone()), config).await?;
    peers.insert(1, one.address());
    peers.insert(2, two.address());
    let (back, sink) = (Arc::new(Notify::new()), Arc::new(Sink::default()));
    one.serve(1, Arc::new(Back(Arc::clone(&back))))?;
    two.serve(1, Arc::new(Echo(two.clone())))?;
    two.serve(SINK, sink.clone())?;

    let body = Bytes::from(vec![1; BYTES]);
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        one.send(2, ECHO, body.clone().into())?;
        back.notified().await;
        times.push(began.elapsed());
    }
    report("send and back", times);
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        one.call(2, ECHO, body.clone().into(), deadline).await?;
        times.push(began.elapsed());
    }
    report("call", times);
    stream(&one, &sink, "stream of 100 B, small", Class::Small, BYTES, 50_000_000).await;
    stream(&one, &sink, "stream of 64 KiB, bulk", Class::Bulk, 64 << 10, 1_500_000_000).await;
    stream(&one, &sink, "stream of 1 MiB, bulk", Class::Bulk, 1 << 20, 1_500_000_000).await;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(1), |count| count.parse())?;
    let gather = std::env::args().nth(2).map(|text| text.parse()).transpose()?;
    let runtime = if threads > 1 {
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?
    } else {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?
    };
    println!("{threads} thread(s)");
    runtime.block_on(run(gather))
}
