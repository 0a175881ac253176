//! A cluster on this machine, each node a process of its own: for `store up`, the tests and the
//! demo. A node can be killed as hard as the system allows.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::client::{Answered, Client};
use crate::http::NodeStatus;

/// Written once the data of every node is on disk. From then on a node without data has lost it,
/// and must not get new data: it could vote twice.
const CREATED: &str = "cluster-created";
/// How long a node that was told to end may take.
const END_WAIT: Duration = Duration::from_secs(10);
/// How long the nodes may take to elect a leader, or to catch up with it.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a node may take to answer `GET /status`.
const STATUS_WAIT: Duration = Duration::from_millis(500);
/// Time between two rounds of `GET /status`.
const ASK_PAUSE: Duration = Duration::from_millis(20);

/// The nodes of a cluster on this machine.
#[derive(Debug)]
pub struct Cluster {
    program: PathBuf,
    folder: PathBuf,
    nodes: Vec<Node>,
    /// Further options of `store serve`.
    options: Vec<String>,
    /// By (from, to): where node `from` reaches node `to`, if not at its own address.
    links: BTreeMap<(u64, u64), SocketAddr>,
}

#[derive(Debug)]
struct Node {
    id: u64,
    peers: SocketAddr,
    http: SocketAddr,
    /// The folder with its data, if it is not `node-ID`.
    data: Option<PathBuf>,
    /// Further options of this node.
    options: Vec<String>,
    process: Option<Child>,
    /// It was added to the cluster later: the others know it by the membership.
    joins: bool,
}

impl Node {
    fn new(id: u64, peers: SocketAddr, http: SocketAddr) -> Self {
        let options = Vec::new();
        Self { id, peers, http, data: None, options, process: None, joins: false }
    }
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
            nodes.push(Node::new(id, peers, http));
        }
        let (program, folder) = (program.to_owned(), folder.to_owned());
        Ok(Self { program, folder, nodes, options: Vec::new(), links: BTreeMap::new() })
    }

    /// Makes a further node with new data, and returns its id. Once it is [started](Self::start) it
    /// waits to be added.
    ///
    /// # Errors
    /// Where no port is free, or the data cannot be written.
    pub fn join(&mut self) -> io::Result<u64> {
        let id = self.ids().into_iter().max().unwrap_or(0) + 1;
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let node = Node::new(id, free.local_addr()?, other.local_addr()?);
        drop((free, other));
        self.nodes.push(Node { joins: true, ..node });
        let failed = |error: Box<dyn std::error::Error>| io::Error::other(error.to_string());
        crate::node::create(id, &self.folder(id)).map_err(failed)?;
        Ok(id)
    }

    /// Chooses other addresses for node `id`, which it has when it is started next.
    ///
    /// # Errors
    /// Where no port is free.
    pub fn relocate(&mut self, id: u64) -> io::Result<()> {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        if let Some(node) = self.nodes.iter_mut().find(|node| node.id == id) {
            (node.peers, node.http) = (free.local_addr()?, other.local_addr()?);
        }
        Ok(())
    }

    /// Ends node `id`, which the cluster has removed, and forgets it.
    ///
    /// # Errors
    /// As [`end`](Self::end), for a node that runs.
    ///
    /// # Cancel safety
    /// Dropping the future kills the process.
    pub async fn retire(&mut self, id: u64) -> io::Result<()> {
        let ended = if self.is_up(id) { self.end(id).await } else { Ok(()) };
        self.nodes.retain(|node| node.id != id);
        ended
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

    /// Creates the data of every node of a new cluster. In a cluster that was created before, a
    /// node without data has lost it: nothing is created, and the node will refuse to start.
    ///
    /// # Errors
    /// A disk failed.
    pub fn create(&self) -> io::Result<()> {
        let created = self.folder.join(CREATED);
        if created.exists() {
            return Ok(());
        }
        std::fs::create_dir_all(&self.folder)?;
        let failed = |error: Box<dyn std::error::Error>| io::Error::other(error.to_string());
        for id in self.ids() {
            // No node has run yet: CREATED is written before the first one is started.
            if !crate::node::is_created(id, &self.folder(id)).map_err(failed)? {
                crate::node::create(id, &self.folder(id)).map_err(failed)?;
            }
        }
        File::create(created)?.sync_all()?;
        File::open(&self.folder)?.sync_all()
    }

    /// Starts every node that is not running, after [`create`](Self::create).
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

    /// Starts node `id` in a process of its own: `store serve …`.
    ///
    /// # Errors
    /// Where the process cannot be started.
    pub fn start(&mut self, id: u64) -> io::Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_file(id))?;
        let mut command = Command::new(&self.program);
        command.args(["serve", "--exit-with-parent", "--id", &id.to_string()]);
        command.arg("--data").arg(self.folder(id)).args(&self.options);
        let joins = self.nodes.iter().any(|node| node.id == id && node.joins);
        for node in &self.nodes {
            if node.id == id {
                command.args(["--listen", &node.peers.to_string()]);
                command.args(["--http", &node.http.to_string()]).args(&node.options);
                if node.joins {
                    command.arg("--join");
                }
            } else if joins || !node.joins {
                // Who joins is added by whoever leads then, perhaps a node that was added itself.
                let address = self.links.get(&(id, node.id)).unwrap_or(&node.peers);
                command.args(["--peer", &format!("{}={address},{}", node.id, node.http)]);
            }
        }
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        // Ctrl-C in a terminal reaches a whole process group. Nodes have their own, because the
        // parent decides when they end.
        command.process_group(0);
        let Some(node) = self.nodes.iter_mut().find(|node| node.id == id) else {
            return Err(no_node(id));
        };
        if node.process.is_none() {
            node.process = Some(command.spawn()?);
        }
        Ok(())
    }

    /// Kills node `id` with SIGKILL, and waits until the process is gone.
    ///
    /// # Errors
    /// The process had ended by itself before.
    ///
    /// # Cancel safety
    /// Dropping the future kills the process as well.
    pub async fn kill(&mut self, id: u64) -> io::Result<()> {
        self.take(id)?.kill().await
    }

    /// Sends SIGTERM to node `id`.
    ///
    /// # Errors
    /// The node is not running.
    pub fn terminate(&self, id: u64) -> io::Result<()> {
        signal(self.process(id)?, Signal::TERM)
    }

    /// Sends SIGTERM to node `id`, and waits until the process has ended.
    ///
    /// # Errors
    /// The process had ended before, did not end within 10 s, or ended with another status than 0.
    ///
    /// # Cancel safety
    /// Dropping the future kills the process.
    pub async fn end(&mut self, id: u64) -> io::Result<()> {
        self.terminate(id)?;
        has_ended(id, self.take(id)?).await
    }

    /// Sends SIGTERM to every node, and waits until all have ended.
    ///
    /// # Errors
    /// The first node that did not end within 10 s, or ended with another status than 0.
    ///
    /// # Cancel safety
    /// Dropping the future kills the nodes.
    pub async fn end_all(&mut self) -> io::Result<()> {
        let running =
            self.nodes.iter_mut().filter_map(|node| Some((node.id, node.process.take()?)));
        let running: Vec<(u64, Child)> = running.collect();
        for (_, process) in &running {
            // A process that has ended already shows its status below.
            let _ = signal(process, Signal::TERM);
        }
        let mut result = Ok(());
        for (id, process) in running {
            let ended = has_ended(id, process).await;
            result = result.and(ended);
        }
        result
    }

    /// Suspends node `id` (SIGSTOP) until [`resume`](Self::resume).
    ///
    /// # Errors
    /// The node is not running.
    pub fn pause(&self, id: u64) -> io::Result<()> {
        signal(self.process(id)?, Signal::STOP)
    }

    /// Resumes node `id` (SIGCONT).
    ///
    /// # Errors
    /// The node is not running.
    pub fn resume(&self, id: u64) -> io::Result<()> {
        signal(self.process(id)?, Signal::CONT)
    }

    /// Makes node `id` read its certificates again (SIGHUP).
    ///
    /// # Errors
    /// The node is not running.
    pub fn hang_up(&self, id: u64) -> io::Result<()> {
        signal(self.process(id)?, Signal::HUP)
    }

    /// The nodes that have ended by themselves, each with its exit status.
    pub fn crashed(&mut self) -> Vec<(u64, ExitStatus)> {
        let mut crashed = Vec::new();
        for node in &mut self.nodes {
            if let Some(Ok(Some(status))) = node.process.as_mut().map(Child::try_wait) {
                crashed.push((node.id, status));
            }
        }
        crashed
    }

    /// The nodes that have ended by themselves, each with its exit status. After this call they can
    /// be started again.
    pub fn take_crashed(&mut self) -> Vec<(u64, ExitStatus)> {
        let crashed = self.crashed();
        for node in &mut self.nodes {
            if crashed.iter().any(|(id, _)| *id == node.id) {
                node.process = None;
            }
        }
        crashed
    }

    /// Whether node `id` was started and neither killed nor told to end.
    pub fn is_up(&self, id: u64) -> bool {
        self.nodes.iter().any(|node| node.id == id && node.process.is_some())
    }

    /// A client of all nodes.
    pub fn client(&self) -> Client {
        Client::new(self.addresses().into_iter().map(|(_, http)| http).collect())
    }

    /// Fails when a node has ended by itself, with what that node has printed.
    ///
    /// # Errors
    /// The first such node, its exit status and its log.
    pub fn no_crash(&mut self) -> io::Result<()> {
        match self.crashed().first() {
            Some((id, status)) => {
                let log = self.log(*id);
                Err(io::Error::other(format!("node {id} ended by itself, {status}:\n{log}")))
            }
            None => Ok(()),
        }
    }

    /// The answer of every node to `GET /status`; `None` for a node that is down or does not
    /// answer.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is changed.
    pub async fn statuses(&self, client: &Client) -> Statuses {
        let mut statuses = Vec::new();
        for (id, http) in self.addresses() {
            let status = if self.is_up(id) { status_of(client, http).await } else { None };
            statuses.push((id, status));
        }
        statuses
    }

    /// Waits until a node says that it leads. Of several, returns the one with the highest term.
    ///
    /// # Errors
    /// No node leads within 20 s.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is changed.
    pub async fn leader(&self, client: &Client) -> Result<NodeStatus, String> {
        self.wait_for(client, "no node leads", |nodes| {
            let known = nodes.into_iter().filter_map(|(_, status)| status);
            let leaders = known.filter(|status| status.leader == Some(status.id));
            leaders.max_by_key(|status| status.term)
        })
        .await
    }

    /// Waits until every node has applied what the leader has committed at the time of the call.
    ///
    /// # Errors
    /// A node has not applied it within 20 s.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is changed.
    pub async fn caught_up(&self, client: &Client) -> Result<(), String> {
        let goal = self.leader(client).await?.commit;
        self.wait_for(client, &format!("a node has not applied entry {goal}"), |nodes| {
            let applied = |n: &Option<NodeStatus>| n.as_ref().is_some_and(|n| n.applied >= goal);
            nodes.iter().all(|(_, node)| applied(node)).then_some(())
        })
        .await
    }

    /// Asks all nodes for their status until `found` returns a value.
    async fn wait_for<T>(
        &self,
        client: &Client,
        otherwise: &str,
        found: impl Fn(Statuses) -> Option<T>,
    ) -> Result<T, String> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(found) = found(self.statuses(client).await) {
                return Ok(found);
            }
            sleep(ASK_PAUSE).await;
        }
        Err(format!("{otherwise} within {} s", PATIENCE.as_secs()))
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

/// The status of each node by id; `None` for a node that is down or does not answer.
pub type Statuses = Vec<(u64, Option<NodeStatus>)>;

async fn status_of(client: &Client, node: SocketAddr) -> Option<NodeStatus> {
    let deadline = Instant::now() + STATUS_WAIT;
    let sent = client.send_to(node, &Method::GET, "/status", None, Bytes::new(), deadline).await;
    match sent {
        Ok(Answered::Reply(reply)) => serde_json::from_slice(&reply.body).ok(),
        _ => None,
    }
}

/// Waits until a process has ended after SIGTERM.
async fn has_ended(id: u64, mut process: Child) -> io::Result<()> {
    match timeout(END_WAIT, process.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(io::Error::other(format!("node {id} ended with {status}"))),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other(format!("node {id} did not end within 10 s after SIGTERM"))),
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
