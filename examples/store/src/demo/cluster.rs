//! Three nodes, each a process of its own, which can be killed as hard as the system allows.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};

/// The nodes of a cluster on this machine.
#[derive(Debug)]
pub struct Cluster {
    program: PathBuf,
    folder: PathBuf,
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    id: u64,
    peers: SocketAddr,
    http: SocketAddr,
    process: Option<Child>,
}

impl Cluster {
    /// Chooses free loopback ports for `size` nodes that keep their data below `folder`. `program`
    /// is this package's own binary.
    ///
    /// Where no node has a folder yet, the cluster is new and the nodes' data is created. Where
    /// some have one, none is created: a node without data has lost it, and does not start.
    ///
    /// # Errors
    /// Where no port is free, or the data of a new cluster cannot be created.
    pub fn new(program: &Path, folder: &Path, size: u64) -> io::Result<Self> {
        // All are held until all are chosen, so that none is chosen twice.
        let mut held = Vec::new();
        let mut free = || -> io::Result<SocketAddr> {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let address = listener.local_addr()?;
            held.push(listener);
            Ok(address)
        };
        let mut nodes = Vec::new();
        for id in 1..=size {
            nodes.push(Node { id, peers: free()?, http: free()?, process: None });
        }
        let cluster = Self { program: program.to_owned(), folder: folder.to_owned(), nodes };
        let ids = cluster.ids();
        if !ids.iter().any(|id| cluster.folder(*id).exists()) {
            for id in ids {
                let created = crate::node::create(id, &cluster.folder(id));
                created.map_err(|error| io::Error::other(error.to_string()))?;
            }
        }
        Ok(cluster)
    }

    /// The ids of all nodes, running or not.
    pub fn ids(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    /// Where each node serves HTTP.
    pub fn addresses(&self) -> Vec<(u64, SocketAddr)> {
        self.nodes.iter().map(|node| (node.id, node.http)).collect()
    }

    /// Where node `id` keeps its data.
    pub fn folder(&self, id: u64) -> PathBuf {
        self.folder.join(format!("node-{id}"))
    }

    /// Starts every node that is not running.
    ///
    /// # Errors
    /// Where a process cannot be started.
    pub fn start_all(&mut self) -> io::Result<()> {
        for id in self.ids() {
            self.start(id)?;
        }
        Ok(())
    }

    /// Starts node `id` as an own process: `store serve …`. What it prints goes to `log.txt` in its
    /// folder.
    ///
    /// # Errors
    /// Where the process cannot be started.
    pub fn start(&mut self, id: u64) -> io::Result<()> {
        let folder = self.folder(id);
        std::fs::create_dir_all(&folder)?;
        let log = log_file(&folder)?;
        let mut command = Command::new(&self.program);
        command.args(["serve", "--exit-with-parent", "--id", &id.to_string()]);
        command.arg("--data").arg(&folder);
        for node in &self.nodes {
            if node.id == id {
                command.args(["--listen", &node.peers.to_string()]);
                command.args(["--http", &node.http.to_string()]);
            } else {
                let peer = format!("{}={},{}", node.id, node.peers, node.http);
                command.args(["--peer", &peer]);
            }
        }
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let Some(node) = self.nodes.iter_mut().find(|node| node.id == id) else {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("no node {id}")));
        };
        if node.process.is_none() {
            node.process = Some(command.spawn()?);
        }
        Ok(())
    }

    /// `kill -9`, and waits until the process is gone.
    ///
    /// # Errors
    /// Where the process was gone before: it crashed by itself.
    ///
    /// # Cancel safety
    /// Dropped, the process is killed all the same.
    pub async fn kill(&mut self, id: u64) -> io::Result<()> {
        let node = self.nodes.iter_mut().find(|node| node.id == id);
        let Some(mut process) = node.and_then(|node| node.process.take()) else {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("node {id} is down")));
        };
        if let Some(status) = process.try_wait()? {
            return Err(io::Error::other(format!("node {id} had ended by itself: {status}")));
        }
        process.kill().await
    }

    /// The nodes that have ended without having been killed, each with its status.
    pub fn crashed(&mut self) -> Vec<(u64, String)> {
        let mut crashed = Vec::new();
        for node in &mut self.nodes {
            if let Some(Ok(Some(status))) = node.process.as_mut().map(Child::try_wait) {
                crashed.push((node.id, status.to_string()));
            }
        }
        crashed
    }

    /// Whether node `id` has been started and not killed.
    pub fn is_up(&self, id: u64) -> bool {
        self.nodes.iter().any(|node| node.id == id && node.process.is_some())
    }
}

fn log_file(folder: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(folder.join("log.txt"))
}
