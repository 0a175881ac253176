//! Three nodes, each a process of its own, which can be killed as hard as the system allows.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Says that the data of every node has been created. Written once, after all of it.
const CREATED: &str = "cluster-created";
/// A node that was told to end is given this long.
const END_WAIT: Duration = Duration::from_secs(10);

/// The nodes of a cluster on this machine.
#[derive(Debug)]
pub struct Cluster {
    program: PathBuf,
    folder: PathBuf,
    nodes: Vec<Node>,
    /// Further options of `store serve`.
    options: Vec<String>,
    /// Where the first node reaches the second, if not at its own address.
    links: BTreeMap<(u64, u64), SocketAddr>,
}

#[derive(Debug)]
struct Node {
    id: u64,
    peers: SocketAddr,
    http: SocketAddr,
    /// Instead of the folder `node-ID`.
    data: Option<PathBuf>,
    /// Further options of this node.
    options: Vec<String>,
    process: Option<Child>,
}

impl Cluster {
    /// Chooses free loopback ports for `size` nodes that keep their data below `folder`. `program`
    /// is this package's own binary.
    ///
    /// # Errors
    /// Where no port is free.
    pub fn new(program: &Path, folder: &Path, size: u64) -> io::Result<Self> {
        let http: Vec<SocketAddr> = vec![(Ipv4Addr::LOCALHOST, 0).into(); size as usize];
        Self::at(program, folder, &http)
    }

    /// The same with the HTTP address of each node given; port 0 takes a free one.
    ///
    /// # Errors
    /// Where no port is free.
    pub fn at(program: &Path, folder: &Path, http: &[SocketAddr]) -> io::Result<Self> {
        // All are held until all are chosen, so that none is chosen twice.
        let mut held = Vec::new();
        let mut bind = |address: SocketAddr| -> io::Result<SocketAddr> {
            let listener = TcpListener::bind(address)?;
            let address = listener.local_addr()?;
            held.push(listener);
            Ok(address)
        };
        let mut nodes = Vec::new();
        for (id, http) in (1..).zip(http) {
            let (peers, http) = (bind((Ipv4Addr::LOCALHOST, 0).into())?, bind(*http)?);
            nodes.push(Node { id, peers, http, data: None, options: Vec::new(), process: None });
        }
        let (program, folder) = (program.to_owned(), folder.to_owned());
        Ok(Self { program, folder, nodes, options: Vec::new(), links: BTreeMap::new() })
    }

    /// Options that every node gets when it is started next.
    pub fn set_options(&mut self, options: &[&str]) {
        self.options = options.iter().map(|&option| option.to_owned()).collect();
    }

    /// Options that node `id` gets besides, when it is started next.
    pub fn set_node_options(&mut self, id: u64, options: &[&str]) {
        if let Some(node) = self.nodes.iter_mut().find(|node| node.id == id) {
            node.options = options.iter().map(|&option| option.to_owned()).collect();
        }
    }

    /// Node `id` keeps its data in `folder`.
    pub fn set_folder(&mut self, id: u64, folder: &Path) {
        if let Some(node) = self.nodes.iter_mut().find(|node| node.id == id) {
            node.data = Some(folder.to_owned());
        }
    }

    /// Node `from` reaches node `to` at `address`, when it is started next: through a proxy.
    pub fn set_link(&mut self, from: u64, to: u64, address: SocketAddr) {
        self.links.insert((from, to), address);
    }

    /// The ids of all nodes, running or not.
    pub fn ids(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    /// Where each node serves HTTP.
    pub fn addresses(&self) -> Vec<(u64, SocketAddr)> {
        self.nodes.iter().map(|node| (node.id, node.http)).collect()
    }

    /// Where node `id` listens for its peers.
    pub fn peer_address(&self, id: u64) -> Option<SocketAddr> {
        self.nodes.iter().find(|node| node.id == id).map(|node| node.peers)
    }

    /// Where node `id` keeps its data.
    pub fn folder(&self, id: u64) -> PathBuf {
        let given = self.nodes.iter().find(|node| node.id == id).and_then(|n| n.data.clone());
        given.unwrap_or_else(|| self.folder.join(format!("node-{id}")))
    }

    /// What node `id` prints goes to this file.
    pub fn log_file(&self, id: u64) -> PathBuf {
        self.folder.join(format!("node-{id}.log"))
    }

    /// What node `id` has printed in all its lives.
    pub fn log(&self, id: u64) -> String {
        std::fs::read_to_string(self.log_file(id)).unwrap_or_default()
    }

    /// Creates the data of every node, where the cluster is new. A cluster that was created once is
    /// left as it is: a node of it without data has lost it, and will not start.
    ///
    /// # Errors
    /// Where a disk fails.
    pub fn create(&self) -> io::Result<()> {
        let created = self.folder.join(CREATED);
        if created.exists() {
            return Ok(());
        }
        std::fs::create_dir_all(&self.folder)?;
        let failed = |error: Box<dyn std::error::Error>| io::Error::other(error.to_string());
        for id in self.ids() {
            // No node has ever run: the file is written before the first one is started.
            if !crate::node::is_created(id, &self.folder(id)).map_err(failed)? {
                crate::node::create(id, &self.folder(id)).map_err(failed)?;
            }
        }
        File::create(created)?.sync_all()?;
        File::open(&self.folder)?.sync_all()
    }

    /// Starts every node that is not running, of a new cluster too.
    ///
    /// # Errors
    /// Where a process cannot be started.
    pub fn start_all(&mut self) -> io::Result<()> {
        self.create()?;
        for id in self.ids() {
            self.start(id)?;
        }
        Ok(())
    }

    /// Starts node `id` as an own process: `store serve …`.
    ///
    /// # Errors
    /// Where the process cannot be started.
    pub fn start(&mut self, id: u64) -> io::Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_file(id))?;
        let mut command = Command::new(&self.program);
        command.args(["serve", "--exit-with-parent", "--id", &id.to_string()]);
        command.arg("--data").arg(self.folder(id)).args(&self.options);
        for node in &self.nodes {
            if node.id == id {
                command.args(["--listen", &node.peers.to_string()]);
                command.args(["--http", &node.http.to_string()]).args(&node.options);
            } else {
                let address = self.links.get(&(id, node.id)).unwrap_or(&node.peers);
                command.args(["--peer", &format!("{}={address},{}", node.id, node.http)]);
            }
        }
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        // Ctrl-C in a terminal reaches the whole group: the parent decides when a node ends.
        command.process_group(0);
        let Some(node) = self.nodes.iter_mut().find(|node| node.id == id) else {
            return Err(no_node(id));
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
        self.take(id)?.kill().await
    }

    /// SIGTERM, and waits until the process has ended.
    ///
    /// # Errors
    /// Where the process was gone before, did not end in time, or did not end with status 0.
    ///
    /// # Cancel safety
    /// Dropped, the process is killed.
    pub async fn end(&mut self, id: u64) -> io::Result<()> {
        let process = self.take(id)?;
        signal(&process, Signal::TERM)?;
        has_ended(id, process).await
    }

    /// SIGTERM to every node, and waits until all have ended.
    ///
    /// # Errors
    /// The first node that did not end in time, or not with status 0. The others are told to end
    /// too.
    ///
    /// # Cancel safety
    /// Dropped, the nodes are killed.
    pub async fn end_all(&mut self) -> io::Result<()> {
        let running =
            self.nodes.iter_mut().filter_map(|node| Some((node.id, node.process.take()?)));
        let running: Vec<(u64, Child)> = running.collect();
        for (_, process) in &running {
            // One that is gone already shows its status below.
            let _ = signal(process, Signal::TERM);
        }
        let mut result = Ok(());
        for (id, process) in running {
            let ended = has_ended(id, process).await;
            result = result.and(ended);
        }
        result
    }

    /// Stops the process where it stands (SIGSTOP), until [`Cluster::resume`].
    ///
    /// # Errors
    /// Where it is not running.
    pub fn pause(&self, id: u64) -> io::Result<()> {
        signal(self.process(id)?, Signal::STOP)
    }

    /// Lets the process go on.
    ///
    /// # Errors
    /// Where it is not running.
    pub fn resume(&self, id: u64) -> io::Result<()> {
        signal(self.process(id)?, Signal::CONT)
    }

    /// The nodes that have ended without having been killed, each with its status.
    pub fn crashed(&mut self) -> Vec<(u64, ExitStatus)> {
        let mut crashed = Vec::new();
        for node in &mut self.nodes {
            if let Some(Ok(Some(status))) = node.process.as_mut().map(Child::try_wait) {
                crashed.push((node.id, status));
            }
        }
        crashed
    }

    /// The same, and forgets their processes, so that they can be started again.
    pub fn take_crashed(&mut self) -> Vec<(u64, ExitStatus)> {
        let crashed = self.crashed();
        for node in &mut self.nodes {
            if crashed.iter().any(|(id, _)| *id == node.id) {
                node.process = None;
            }
        }
        crashed
    }

    /// Whether node `id` has been started and not killed.
    pub fn is_up(&self, id: u64) -> bool {
        self.nodes.iter().any(|node| node.id == id && node.process.is_some())
    }

    fn process(&self, id: u64) -> io::Result<&Child> {
        let node = self.nodes.iter().find(|node| node.id == id);
        node.and_then(|node| node.process.as_ref()).ok_or_else(|| no_node(id))
    }

    fn take(&mut self, id: u64) -> io::Result<Child> {
        let node = self.nodes.iter_mut().find(|node| node.id == id);
        let process = node.and_then(|node| node.process.take());
        let mut process = process.ok_or_else(|| no_node(id))?;
        match process.try_wait()? {
            Some(status) => {
                Err(io::Error::other(format!("node {id} had ended by itself: {status}")))
            }
            None => Ok(process),
        }
    }
}

/// Waits until a process that was told to end has done so.
async fn has_ended(id: u64, mut process: Child) -> io::Result<()> {
    match timeout(END_WAIT, process.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(io::Error::other(format!("node {id} ended with {status}"))),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other(format!("node {id} did not end after SIGTERM"))),
    }
}

fn no_node(id: u64) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("node {id} is not running"))
}

fn signal(process: &Child, signal: Signal) -> io::Result<()> {
    let pid = process.id().and_then(|pid| Pid::from_raw(pid as i32));
    let gone = || io::Error::new(io::ErrorKind::NotFound, "the process has ended");
    Ok(kill_process(pid.ok_or_else(gone)?, signal)?)
}
