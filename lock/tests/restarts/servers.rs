//! Servers of a test's own, which it kills and starts again.

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};
use voussoir_lock::async_trait;
use voussoir_lock::testing::Restart;

/// Numeric ids of `nobody` and `nogroup`, as whom a server runs that refuses root.
const NOBODY: u32 = 65534;
const MS: Duration = Duration::from_millis(1);

/// A server with a folder and a port of its own. It is killed with its test.
pub(crate) struct Server {
    program: PathBuf,
    args: Vec<String>,
    folder: PathBuf,
    as_nobody: bool,
    pub(crate) port: u16,
    /// Ends it with its test. PostgreSQL ends its processes first.
    last_signal: Signal,
    /// `None` while it is killed.
    child: Option<Child>,
}

impl Server {
    /// A PostgreSQL with the settings that come with it: what is committed is durable.
    pub(crate) async fn postgres() -> Self {
        let program = program("VOUSSOIR_POSTGRES", "postgres");
        let mut server = Self::new("postgres", program);
        let root = std::fs::metadata("/proc/self").expect("a process").uid() == 0;
        if root {
            chown(&server.folder, Some(NOBODY), Some(NOBODY)).expect("root may");
        }
        (server.as_nobody, server.last_signal) = (root, Signal::QUIT);
        // The program on the path may be a link to where its siblings are.
        let real = server.program.canonicalize().expect("it is there");
        let data = server.folder.join("data").display().to_string();
        let prepared = server
            .command(&real.with_file_name("initdb"))
            .args(["-D", &data, "--username=postgres", "--auth=trust", "--no-locale", "--no-sync"])
            .status();
        assert!(prepared.expect("initdb runs").success(), "initdb in {data}");
        let port = server.port.to_string();
        let args = ["-D", &data, "-p", &port, "-c", "listen_addresses=127.0.0.1"];
        server.args = args.map(str::to_owned).into();
        server.args.extend(["-c", "unix_socket_directories="].map(str::to_owned));
        server.start().await;
        server
    }

    /// An etcd of one node.
    pub(crate) async fn etcd() -> Self {
        let mut server = Self::new("etcd", program("VOUSSOIR_ETCD", "etcd"));
        let (client, peer) = (server.url(), format!("http://127.0.0.1:{}", free_port()));
        let data = server.folder.join("data").display().to_string();
        let args = [
            ["--name", "one"],
            ["--data-dir", &data],
            ["--listen-client-urls", &client],
            ["--advertise-client-urls", &client],
            ["--listen-peer-urls", &peer],
            ["--initial-advertise-peer-urls", &peer],
            ["--initial-cluster", &format!("one={peer}")],
        ];
        server.args = args.as_flattened().iter().map(ToString::to_string).collect();
        server.start().await;
        server
    }

    /// A Redis that syncs each change before it answers. `None`, and a line on standard error,
    /// where there is no program.
    pub(crate) async fn redis() -> Option<Self> {
        let Some(program) = find("VOUSSOIR_REDIS_SERVER", "redis-server") else {
            eprintln!("left out: no redis-server on PATH or in VOUSSOIR_REDIS_SERVER");
            return None;
        };
        let mut server = Self::new("redis", program);
        let (port, folder) = (server.port.to_string(), server.folder.display().to_string());
        let args = [
            ["--port", &port],
            ["--bind", "127.0.0.1"],
            ["--dir", &folder],
            ["--appendonly", "yes"],
            ["--appendfsync", "always"],
            ["--save", ""],
        ];
        server.args = args.as_flattened().iter().map(ToString::to_string).collect();
        server.start().await;
        Some(server)
    }

    fn new(name: &str, program: PathBuf) -> Self {
        let port = free_port();
        let folder = format!("voussoir-restarts-{name}-{}-{port}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir(&folder).expect("a folder of its own");
        let (args, last_signal) = (Vec::new(), Signal::KILL);
        Self { program, args, folder, as_nobody: false, port, last_signal, child: None }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends with the thread of the test, also when that is killed.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if self.as_nobody {
            command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]);
        }
        command.arg("--").arg(program).current_dir(&self.folder);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Kills it with the processes that it has started: nothing is done any more.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        let id = child.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        child.kill().expect("it is a child of this process");
        child.wait().expect("it is a child of this process");
        for id in children.expect("Linux lists them").split_whitespace() {
            let id = Pid::from_raw(id.parse().expect("a process")).expect("not 0");
            // It may have ended with its parent.
            let _ = kill_process(id, Signal::KILL);
        }
    }

    /// Starts it and waits until it listens. What is left of the process before, such as memory
    /// that it shared, may refuse it at first.
    pub(crate) async fn start(&mut self) {
        let by = Instant::now() + 60_000 * MS;
        // Ends: it listens, or a minute has passed.
        loop {
            assert!(Instant::now() < by, "{} does not start", self.program.display());
            let mut child = match self.child.take() {
                Some(child) => child,
                None => {
                    let mut command = self.command(&self.program);
                    command.args(&self.args).spawn().expect("setpriv is there")
                }
            };
            if child.try_wait().expect("it is a child of this process").is_none() {
                self.child = Some(child);
                if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                    return;
                }
            }
            sleep(20 * MS).await;
        }
    }
}

#[async_trait]
impl Restart for Server {
    async fn kill(&mut self) {
        Self::kill(self);
    }

    async fn start(&mut self) {
        Self::start(self).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill_process(Pid::from_child(&child), self.last_signal);
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn find(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|folder| folder.join(name));
    found.find(|file| file.is_file())
}

fn program(variable: &str, name: &str) -> PathBuf {
    let found = find(variable, name);
    found
        .unwrap_or_else(|| panic!("no {name} on PATH or in {variable}; `cargo xtask test` sets it"))
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("it is bound").port()
}
