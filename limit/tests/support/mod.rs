//! A Redis of the tests' own, on a free loopback port, with its data in memory only, and a proxy
//! before it that misbehaves.

// Each test uses a part of it.
#![allow(dead_code, reason = "each of the test programs uses a part of it")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

pub(crate) struct RedisServer {
    program: PathBuf,
    options: Vec<String>,
    pub(crate) port: u16,
    child: Child,
}

/// The variable that names a `redis-server`; else it is looked for on `PATH`.
const VARIABLE: &str = "VOUSSOIR_REDIS_SERVER";

impl RedisServer {
    /// `None`, and a line on standard error, if there is no `redis-server`.
    pub(crate) fn start(options: &[&str]) -> Option<Self> {
        let Some(program) = program() else {
            eprintln!("left out: no redis-server on PATH or in {VARIABLE}");
            return None;
        };
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        // Another test may take the free port first: then the server ends, and another is tried.
        for _ in 0..20 {
            let port = free_port();
            if let Some(child) = spawn(&program, port, &options) {
                return Some(Self { program, options, port, child });
            }
        }
        panic!("no free port in twenty attempts");
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Stops the process where it is (`SIGSTOP`) or lets it go on (`SIGCONT`): connections stay
    /// open and nobody answers.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(status.success());
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again, with none of the keys it had.
    pub(crate) fn restart(&mut self) {
        let child = spawn(&self.program, self.port, &self.options);
        self.child = child.expect("nobody else takes the port");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(rdb(self.port));
    }
}

fn program() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(VARIABLE) {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join("redis-server")).find(|file| file.is_file())
}

/// One with the port of a cluster's bus above it.
fn free_port() -> u16 {
    loop {
        let one = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = one.local_addr().unwrap().port();
        if port.checked_add(10_000).is_some_and(|bus| TcpListener::bind(("127.0.0.1", bus)).is_ok())
        {
            return port;
        }
    }
}

/// Where a replica writes what it copies. A server reads what it finds there when it starts, so
/// each has a name of its own.
fn rdb(port: u16) -> PathBuf {
    std::env::temp_dir().join(format!("voussoir-limit-{}-{port}.rdb", std::process::id()))
}

/// `None` if the server that listens on the port is another one.
fn spawn(program: &PathBuf, port: u16, options: &[String]) -> Option<Child> {
    let mut child = Command::new(program)
        .arg("--dir")
        .arg(std::env::temp_dir())
        .arg("--dbfilename")
        .arg(rdb(port).file_name().unwrap())
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"])
        .arg(port.to_string())
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    loop {
        match process_of(port) {
            Some(id) if id == child.id() => return Some(child),
            Some(_) => break,
            None => {}
        }
        if child.try_wait().unwrap().is_some() {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "redis-server does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// The process id that the Redis on this port says it has.
fn process_of(port: u16) -> Option<u32> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"INFO server\r\nQUIT\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| line.strip_prefix("process_id:"))?.trim().parse().ok()
}

/// A TCP proxy on a free loopback port.
pub(crate) struct Proxy {
    port: u16,
    state: Arc<ProxyState>,
}

struct ProxyState {
    target: AtomicU16,
    delay_ms: AtomicU64,
    accepted: AtomicU32,
    /// Counts the silences: a connection from before the last one says nothing more.
    silences: watch::Sender<u32>,
}

impl Proxy {
    pub(crate) async fn start(target: u16) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(ProxyState {
            target: AtomicU16::new(target),
            delay_ms: AtomicU64::new(0),
            accepted: AtomicU32::new(0),
            silences: watch::Sender::new(0),
        });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((inner, _)) = listener.accept().await {
                shared.accepted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(Arc::clone(&shared).carry(inner));
            }
        });
        Self { port, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// New connections lead to this port; those that are open stay where they are.
    pub(crate) fn lead_to(&self, target: u16) {
        self.state.target.store(target, Ordering::Relaxed);
    }

    /// New connections are carried on only after a while.
    pub(crate) fn delay(&self, time: Duration) {
        self.state.delay_ms.store(time.as_millis() as u64, Ordering::Relaxed);
    }

    /// From now on nothing passes through the open connections, and they stay open.
    pub(crate) fn silence(&self) {
        self.state.silences.send_modify(|silences| *silences += 1);
    }

    pub(crate) fn accepted(&self) -> u32 {
        self.state.accepted.load(Ordering::Relaxed)
    }
}

impl ProxyState {
    async fn carry(self: Arc<Self>, mut client: tokio::net::TcpStream) {
        let mut silences = self.silences.subscribe();
        tokio::time::sleep(Duration::from_millis(self.delay_ms.load(Ordering::Relaxed))).await;
        let target = ("127.0.0.1", self.target.load(Ordering::Relaxed));
        let Ok(mut server) = tokio::net::TcpStream::connect(target).await else { return };
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
            _ = silences.changed() => std::future::pending().await,
        }
    }
}
