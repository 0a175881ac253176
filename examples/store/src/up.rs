//! `store up`: three nodes on this machine that run until Ctrl-C or SIGTERM.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, interval};

use crate::args::Up;
use crate::cluster::Cluster;
use crate::log::print;

/// Time between two checks whether a node has ended by itself.
const TICK: Duration = Duration::from_millis(500);

/// Pause before a node that ended by itself is restarted. Doubled each time it ends soon again.
const MIN_PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// After running for this long, a node that ends is restarted after the shortest pause again.
const LONG_LIFE: Duration = Duration::from_secs(60);
/// Exit status of a node that must not be restarted without a decision of the operator.
const NEEDS_DECISION: i32 = 3;

/// Runs three nodes with their data in a folder until Ctrl-C or SIGTERM. A node that ends by itself
/// is restarted; the others go on.
///
/// # Errors
/// The folder is in use, a process cannot be started, or a node does not end when told to.
///
/// # Cancel safety
/// Dropping the future kills the nodes.
pub async fn run(up: &Up) -> Result<(), Box<dyn Error>> {
    let _lock = lock(&up.folder)?;
    let mut terminated = signal(SignalKind::terminate())?;
    let http = [1, 2, 3].map(|id| http_address(id, up.http_port.saturating_add(id - 1)));
    let mut cluster = Cluster::at(&std::env::current_exe()?, &up.folder, &http)?;
    cluster.start_all()?;
    let client = cluster.client();
    match cluster.leader(&client).await {
        Ok(leader) => {
            let folder = up.folder.display();
            print(&format!("three nodes, durable in {folder}; node {} leads", leader.id));
        }
        Err(error) => print(&format!("{error}; see the logs below {}", up.folder.display())),
    }
    print(&usage(&cluster));

    let mut supervisor = Supervisor::default();
    let mut ticks = interval(TICK);
    loop {
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => break interrupted?,
            _ = terminated.recv() => break,
            _ = ticks.tick() => supervisor.look(&mut cluster)?,
        }
    }
    print("stopping the nodes; the data stays");
    cluster.take_crashed();
    cluster.end_all().await?;
    Ok(())
}

fn usage(cluster: &Cluster) -> String {
    let mut text = String::new();
    for (id, http) in cluster.addresses() {
        let log = cluster.log_file(id);
        text.push_str(&format!("  node {id}  http://{http}  log {}\n", log.display()));
    }
    let (_, http) = cluster.addresses()[0];
    text.push_str(&format!(
        "
  curl -L -X PUT http://{http}/kv/greeting -d hello
  curl http://{http}/kv/greeting
  curl 'http://{http}/kv/greeting?consistency=stale'
  curl 'http://{http}/kv?prefix=gr'
  curl http://{http}/status         # also /ready, /health, /metrics

Ctrl-C stops the nodes; the data stays."
    ));
    text
}

/// The HTTP address with the given port, or a free one when another program uses it.
fn http_address(id: u16, port: u16) -> SocketAddr {
    let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match TcpListener::bind(wanted) {
        Ok(_) => wanted,
        Err(error) => {
            print(&format!(
                "ATTENTION: node {id} gets another port, {wanted} is not free: {error}"
            ));
            (Ipv4Addr::LOCALHOST, 0).into()
        }
    }
}

/// Locks the folder, so that one process at a time uses it.
fn lock(folder: &Path) -> Result<File, Box<dyn Error>> {
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let path = folder.join("lock");
    let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let file = file.as_mut().map_err(|error| format!("{}: {error}", path.display()))?;
    if file.try_lock().is_err() {
        let mut owner = String::new();
        file.read_to_string(&mut owner)?;
        let (folder, owner) = (folder.display(), owner.trim());
        return Err(format!(
            "{folder} is in use: process {owner} runs a cluster there. End it, or choose another \
             folder: store up FOLDER"
        )
        .into());
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file.try_clone()?)
}

/// Restarts nodes that ended by themselves.
#[derive(Default)]
struct Supervisor {
    nodes: BTreeMap<u64, Restart>,
}

struct Restart {
    pause: Duration,
    /// Time of the restart; `None` while the node runs.
    at: Option<Instant>,
    started: Instant,
}

impl Supervisor {
    fn look(&mut self, cluster: &mut Cluster) -> std::io::Result<()> {
        let now = Instant::now();
        for (id, status) in cluster.take_crashed() {
            let log = cluster.log_file(id);
            if status.code() == Some(NEEDS_DECISION) {
                let said = last_line(&cluster.log(id));
                print(&format!("node {id} is not restarted, an operator has to decide: {said}"));
                continue;
            }
            let known = self.nodes.get(&id).filter(|again| now - again.started < LONG_LIFE);
            let pause = known.map_or(MIN_PAUSE, |again| (again.pause * 2).min(MAX_PAUSE));
            print(&format!(
                "node {id} ended by itself ({status}); restarting it in {} s; log: {}",
                pause.as_secs(),
                log.display()
            ));
            self.nodes.insert(id, Restart { pause, at: Some(now + pause), started: now });
        }
        for (id, again) in &mut self.nodes {
            if again.at.is_some_and(|at| at <= now) {
                (again.at, again.started) = (None, now);
                cluster.start(*id)?;
                print(&format!("node {id} is restarted"));
            }
        }
        Ok(())
    }
}

fn last_line(log: &str) -> String {
    log.lines().last().unwrap_or("its log is empty").to_owned()
}
