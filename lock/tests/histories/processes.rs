//! The processes: started, killed, paused, and their histories.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use voussoir_net::Peers;

use super::{CLIENTS, NODES};

pub(crate) const CLUSTER: u128 = 0x6c6f_636b;
/// What a process is: `node` or `client`.
pub(crate) const ROLE: &str = "VOUSSOIR_LOCK_ROLE";

/// What the environment tells a process.
pub(crate) struct Environment {
    pub(crate) id: u64,
    pub(crate) folder: PathBuf,
    /// Of the nodes.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Of the resource; clients only.
    pub(crate) resource: Option<SocketAddr>,
}

impl Environment {
    pub(crate) fn read() -> Self {
        let variable = |name: &str| std::env::var(name).expect("it is set");
        let addresses = variable("VOUSSOIR_LOCK_ADDRESSES");
        let addresses = addresses.split(',').map(|address| address.parse().expect("an address"));
        Self {
            id: variable("VOUSSOIR_LOCK_ID").parse().expect("a number"),
            folder: variable("VOUSSOIR_LOCK_FOLDER").into(),
            addresses: addresses.collect(),
            resource: std::env::var("VOUSSOIR_LOCK_RESOURCE")
                .ok()
                .map(|address| address.parse().expect("an address")),
        }
    }

    pub(crate) fn peers(&self) -> Peers {
        peers(&self.addresses)
    }
}

pub(crate) fn peers(addresses: &[SocketAddr]) -> Peers {
    let peers = Peers::new();
    for (id, address) in NODES.iter().zip(addresses) {
        peers.insert(*id, *address);
    }
    peers
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Node,
    Client,
}

/// Processes that are killed when the test ends, however it ends.
pub(crate) struct Processes {
    folder: PathBuf,
    pub(crate) addresses: Vec<SocketAddr>,
    nodes: Vec<Option<Child>>,
    clients: Vec<Option<Child>>,
    /// Number of each client.
    numbers: [u64; CLIENTS],
    /// Each client process that was ever started has a number of its own.
    started: u64,
}

impl Processes {
    pub(crate) fn new() -> Self {
        let folder = format!("voussoir-lock-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder).expect("a folder");
        let listeners = NODES.map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let addresses = listeners.iter().map(|one| one.local_addr().expect("bound")).collect();
        let nodes = NODES.iter().map(|_| None).collect();
        let clients = (0..CLIENTS).map(|_| None).collect();
        Self { folder, addresses, nodes, clients, numbers: [0; CLIENTS], started: 0 }
    }

    pub(crate) fn start_node(&mut self, id: u64) {
        let at = NODES.iter().position(|node| *node == id).expect("a node");
        self.nodes[at] = Some(self.spawn("node", id, None));
    }

    pub(crate) fn start_client(&mut self, at: usize, resource: SocketAddr) {
        self.started += 1;
        self.numbers[at] = 100 + self.started;
        self.clients[at] = Some(self.spawn("client", self.numbers[at], Some(resource)));
    }

    pub(crate) fn number(&self, client: usize) -> u64 {
        self.numbers[client]
    }

    fn spawn(&self, role: &str, id: u64, resource: Option<SocketAddr>) -> Child {
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command
            .args(["a_process_when_the_environment_says_so", "--exact", "--nocapture"])
            .env(ROLE, role)
            .env("VOUSSOIR_LOCK_ID", id.to_string())
            .env("VOUSSOIR_LOCK_FOLDER", &self.folder)
            .env("VOUSSOIR_LOCK_ADDRESSES", addresses.join(","));
        if let Some(resource) = resource {
            command.env("VOUSSOIR_LOCK_RESOURCE", resource.to_string());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it starts")
    }

    fn place(&mut self, kind: Kind, at: usize) -> &mut Option<Child> {
        match kind {
            Kind::Node => &mut self.nodes[at],
            Kind::Client => &mut self.clients[at],
        }
    }

    pub(crate) fn kill(&mut self, kind: Kind, at: usize) {
        let mut child = self.place(kind, at).take().expect("it runs");
        child.kill().expect("it is killed");
        child.wait().expect("it has ended");
    }

    /// Returns once it stands still: the signal stops one thread, which then stops the others.
    pub(crate) fn pause(&mut self, kind: Kind, at: usize) {
        let pid = self.signal(kind, at, Signal::STOP);
        let stopped = waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED).expect("it runs");
        assert!(stopped.is_some_and(|status| status.stopped()), "it has not stopped");
    }

    pub(crate) fn resume(&mut self, kind: Kind, at: usize) {
        self.signal(kind, at, Signal::CONT);
    }

    fn signal(&mut self, kind: Kind, at: usize, signal: Signal) -> Pid {
        let child = self.place(kind, at).as_ref().expect("it runs");
        let pid = Pid::from_raw(child.id().cast_signed()).expect("a process");
        kill_process(pid, signal).expect("it runs");
        pid
    }

    /// Panics when a process has ended by itself.
    pub(crate) fn no_crash(&mut self) {
        for child in self.nodes.iter_mut().chain(&mut self.clients).flatten() {
            let ended = child.try_wait().expect("it was started");
            assert!(ended.is_none(), "a process ended by itself: {ended:?}");
        }
    }

    /// Clients end their operations when their standard input closes.
    pub(crate) fn end_clients(&mut self) {
        for client in self.clients.iter_mut().flatten() {
            drop(client.stdin.take());
        }
        for client in &mut self.clients {
            let status = client.take().expect("it runs").wait().expect("it was started");
            assert!(status.success(), "a client ended with {status}");
        }
    }

    /// What all clients have written, each with its number.
    pub(crate) fn histories(&self) -> Vec<(u64, String)> {
        let ids = 101..=100 + self.started;
        let read = |id| std::fs::read_to_string(history(&self.folder, id)).unwrap_or_default();
        ids.map(|id| (id, read(id))).collect()
    }

    /// Operations so far, at least.
    pub(crate) fn operations(&self) -> u64 {
        let events = |id| std::fs::metadata(history(&self.folder, id)).map_or(0, |file| file.len());
        // An acquisition and a release take at most 240 bytes together.
        (101..=100 + self.started).map(events).sum::<u64>() / 120
    }
}

/// The file that a client writes what it sees to.
pub(crate) fn history(folder: &std::path::Path, id: u64) -> PathBuf {
    folder.join(format!("client-{id}.history"))
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().chain(&mut self.clients).flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
