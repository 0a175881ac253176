//! A Redis of the tests' own, on a free loopback port, with its data in memory only.
#![allow(dead_code, reason = "each test file uses some of this")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The variable that names a `redis-server`; else it is looked for on `PATH`.
const VARIABLE: &str = "VOUSSOIR_REDIS_SERVER";

pub(crate) struct RedisServer {
    program: PathBuf,
    port: u16,
    child: Child,
}

impl RedisServer {
    /// `None`, and a line on standard error, if there is no `redis-server`.
    pub(crate) fn start() -> Option<Self> {
        let Some(program) = program() else {
            eprintln!("left out: no redis-server on PATH or in {VARIABLE}");
            return None;
        };
        // Another test may take the free port first: then the server ends, and another is tried.
        for _ in 0..20 {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            drop(listener);
            if let Some(child) = spawn(&program, port) {
                return Some(Self { program, port, child });
            }
        }
        panic!("no free port in twenty attempts");
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Stops the process where it is (`STOP`) or lets it go on (`CONT`): connections stay open and
    /// nobody answers.
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
        self.child = spawn(&self.program, self.port).expect("nobody else takes the port");
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

/// `None` if the server that listens on the port is another one.
fn spawn(program: &Path, port: u16) -> Option<Child> {
    let mut child = Command::new(program)
        .arg("--dir")
        .arg(std::env::temp_dir())
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"])
        .arg(port.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    // Ends: when a server listens, or this one has ended, or after 20 s.
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
