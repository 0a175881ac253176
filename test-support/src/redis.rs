//! A Redis of a test's own, on a free loopback port, with its data in memory only.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The variable that names a `redis-server`; else it is looked for on `PATH`.
const VARIABLE: &str = "VOUSSOIR_REDIS_SERVER";

/// A running `redis-server`; it is killed when this value is dropped.
#[derive(Debug)]
pub struct RedisServer {
    program: PathBuf,
    options: Vec<String>,
    port: u16,
    child: Child,
}

impl RedisServer {
    /// Starts one with further options of the command line. `None`, and a line on standard error,
    /// if there is no `redis-server`.
    ///
    /// # Panics
    /// If it does not listen within 20 s.
    pub fn start(options: &[&str]) -> Option<Self> {
        let program = crate::program(VARIABLE, "redis-server")?;
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

    /// Where it listens on `127.0.0.1`.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How clients name it.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Stops the process where it is (`STOP`) or lets it go on (`CONT`): connections stay open and
    /// nobody answers.
    ///
    /// # Panics
    /// If `kill` does not know the signal.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(status.is_ok_and(|status| status.success()), "no signal {name}");
    }

    /// Kills it; [`restart`](Self::restart) starts it again.
    ///
    /// # Panics
    /// If the process cannot be waited for.
    pub fn kill(&mut self) {
        self.child.kill().expect("the server is a child of this process");
        self.child.wait().expect("the server is a child of this process");
    }

    /// Starts it again on its port, with none of the keys it had.
    ///
    /// # Panics
    /// If another process took the port.
    pub fn restart(&mut self) {
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

/// One with the port of a cluster's bus above it.
fn free_port() -> u16 {
    // Ends: some port below 55,536 is free and has a free one 10,000 above it.
    loop {
        let port = crate::free_port();
        if port.checked_add(10_000).is_some_and(|bus| TcpListener::bind(("127.0.0.1", bus)).is_ok())
        {
            return port;
        }
    }
}

/// Where a replica writes what it copies. A server reads what it finds there when it starts, so
/// each has a name of its own.
fn rdb(port: u16) -> PathBuf {
    std::env::temp_dir().join(format!("voussoir-redis-{}-{port}.rdb", std::process::id()))
}

/// `None` if the server that listens on the port is another one.
fn spawn(program: &Path, port: u16, options: &[String]) -> Option<Child> {
    let rdb = rdb(port);
    let mut child = Command::new(program)
        .arg("--dir")
        .arg(std::env::temp_dir())
        .arg("--dbfilename")
        .args(rdb.file_name())
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"])
        .arg(port.to_string())
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{} does not start: {error}", program.display()));
    let start = Instant::now();
    // Ends: when a server listens, or this one has ended, or after 20 s.
    loop {
        match process_of(port) {
            Some(id) if id == child.id() => return Some(child),
            Some(_) => break,
            None => {}
        }
        if !matches!(child.try_wait(), Ok(None)) {
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
