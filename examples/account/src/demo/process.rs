//! The three nodes, each a process of its own.

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
    async fn start(id: u64, nodes: &str, folder: &Path) -> Result<Self, Error> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", "--create", "--id", &id.to_string(), "--nodes", nodes, "--data"])
            .arg(folder.join(id.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or("the node has no output")?;
        let mut output = BufReader::new(output).lines();
        let ready = output.next_line().await?;
        ready.ok_or_else(|| format!("node {id} does not start"))?;
        Ok(Self { id, pipes: Mutex::new(Pipes { child, input, output }) })
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

pub(crate) async fn start(ids: &[u64], folder: &Path) -> Result<Vec<Arc<Process>>, Error> {
    let places: Vec<TcpSocket> = ids.iter().map(|_| place()).collect::<Result<_, _>>()?;
    let addresses: Vec<SocketAddr> =
        places.iter().map(TcpSocket::local_addr).collect::<Result<_, _>>()?;
    let nodes = ids.iter().zip(addresses).map(|(id, address)| format!("{id}={address}"));
    let nodes = nodes.collect::<Vec<_>>().join(",");
    let mut processes = Vec::new();
    for id in ids {
        processes.push(Arc::new(Process::start(*id, &nodes, folder).await?));
    }
    Ok(processes)
}

/// Cuts the last node off from the others, and the others from it.
pub(crate) async fn partition(processes: &[Arc<Process>]) -> Result<(), Error> {
    let Some((last, others)) = processes.split_last() else { return Ok(()) };
    let ids: Vec<String> = others.iter().map(|process| process.id.to_string()).collect();
    last.ask(&format!("cut {}", ids.join(" "))).await??;
    for process in others {
        process.ask(&format!("cut {}", last.id)).await??;
    }
    Ok(())
}

pub(crate) async fn heal(processes: &[Arc<Process>]) -> Result<(), Error> {
    for process in processes {
        process.ask("heal").await??;
    }
    Ok(())
}
