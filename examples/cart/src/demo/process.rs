//! The nodes of both regions, each a process of its own.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpSocket;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;

use crate::Error;

/// The nodes of the two regions.
pub(crate) const EAST: [u64; 3] = [1, 2, 3];
pub(crate) const WEST: [u64; 3] = [4, 5, 6];

/// A node's process. It is killed when it is dropped.
pub(crate) struct Process {
    pub(crate) id: u64,
    pipes: Mutex<Pipes>,
}

struct Pipes {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(id: u64, east: &str, west: &str, folder: &Path) -> Result<Self, Error> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", "--create", "--id", &id.to_string()])
            .args(["--east", east, "--west", west, "--data"])
            .arg(folder.join(id.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or("the node has no output")?;
        let output = BufReader::new(output).lines();
        Ok(Self { id, pipes: Mutex::new(Pipes { child, input, output }) })
    }

    async fn is_ready(&self) -> Result<(), Error> {
        let ready = self.pipes.lock().await.output.next_line().await?;
        ready.ok_or_else(|| format!("node {} does not start", self.id))?;
        Ok(())
    }

    /// Gives the node a command. The inner error is what the node says.
    pub(crate) async fn ask(&self, command: &str) -> Result<Result<String, String>, Error> {
        let mut pipes = self.pipes.lock().await;
        let input = pipes.input.as_mut().ok_or("the node was told to end")?;
        input.write_all(format!("{command}\n").as_bytes()).await?;
        let line = pipes.output.next_line().await?;
        let line = line.ok_or_else(|| format!("node {} has ended", self.id))?;
        let said = line.get(2..).unwrap_or_default().to_owned();
        Ok(if line.starts_with('=') { Ok(said) } else { Err(said) })
    }

    /// Ends the node, which must end well.
    pub(crate) async fn end(&self) -> Result<(), Error> {
        let mut pipes = self.pipes.lock().await;
        pipes.input = None;
        let status = pipes.child.wait().await?;
        if status.success() { Ok(()) } else { Err(format!("node {}: {status}", self.id).into()) }
    }
}

/// An address for a node. While the socket is held, which does not listen, nobody but who asks for
/// that address gets it.
fn place() -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    Ok(socket)
}

/// The processes of both regions, those of the east first.
pub(crate) async fn start(folder: &Path) -> Result<Vec<Arc<Process>>, Error> {
    let held: Vec<TcpSocket> =
        EAST.iter().chain(&WEST).map(|_| place()).collect::<Result<_, _>>()?;
    let addresses: Vec<SocketAddr> =
        held.iter().map(TcpSocket::local_addr).collect::<Result<_, _>>()?;
    let places = |ids: &[u64], addresses: &[SocketAddr]| {
        let places = ids.iter().zip(addresses).map(|(id, address)| format!("{id}={address}"));
        places.collect::<Vec<_>>().join(",")
    };
    let (east, west) = (places(&EAST, &addresses[..3]), places(&WEST, &addresses[3..]));
    let mut processes = Vec::new();
    for id in EAST.into_iter().chain(WEST) {
        processes.push(Arc::new(Process::start(id, &east, &west, folder)?));
    }
    for process in &processes {
        process.is_ready().await?;
    }
    Ok(processes)
}

/// Cuts the regions apart.
pub(crate) async fn partition(processes: &[Arc<Process>]) -> Result<(), Error> {
    for process in processes {
        let others = if EAST.contains(&process.id) { WEST } else { EAST };
        let others = others.map(|id| id.to_string()).join(" ");
        process.ask(&format!("cut {others}")).await??;
    }
    Ok(())
}

pub(crate) async fn heal(processes: &[Arc<Process>]) -> Result<(), Error> {
    for process in processes {
        process.ask("heal").await??;
    }
    Ok(())
}
