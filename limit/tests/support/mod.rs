//! A Redis of the tests' own, on a free loopback port, with its data in memory only.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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
        let port = free_port();
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let child = spawn(&program, port, &options);
        Some(Self { program, options, port, child })
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again, with none of the keys it had.
    pub(crate) fn restart(&mut self) {
        self.child = spawn(&self.program, self.port, &self.options);
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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

fn spawn(program: &PathBuf, port: u16, options: &[String]) -> Child {
    let child = Command::new(program)
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"])
        .arg(port.to_string())
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(start.elapsed() < Duration::from_secs(10), "redis-server does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}
