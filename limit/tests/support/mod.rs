//! A Redis of the tests' own, on a free loopback port, with its data in memory only.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) struct RedisServer {
    program: PathBuf,
    pub(crate) port: u16,
    child: Child,
}

/// The variable that names a `redis-server`; else it is looked for on `PATH`.
const VARIABLE: &str = "VOUSSOIR_REDIS_SERVER";

impl RedisServer {
    /// `None`, and a line on standard error, if there is no `redis-server`.
    pub(crate) fn start() -> Option<Self> {
        let Some(program) = program() else {
            eprintln!("left out: no redis-server on PATH or in {VARIABLE}");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = spawn(&program, port);
        Some(Self { program, port, child })
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again, with nothing of what it had.
    pub(crate) fn restart(&mut self) {
        self.child = spawn(&self.program, self.port);
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

fn spawn(program: &PathBuf, port: u16) -> Child {
    let child = Command::new(program)
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"])
        .arg(port.to_string())
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
