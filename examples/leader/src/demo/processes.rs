//! The processes of the demonstration: each runs `leader serve`, and can be killed, paused, resumed
//! and told to resign.

use std::fs::OpenOptions;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::Error;
use crate::args::Create;
use crate::node;

/// How long a process that was told to end may take.
const END_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Processes {
    folder: PathBuf,
    ledger: SocketAddr,
    ttl: Duration,
    /// By id, less one.
    all: Vec<Process>,
}

#[derive(Debug)]
struct Process {
    address: SocketAddr,
    child: Option<Child>,
}

impl Processes {
    /// Creates the data of three processes on free ports.
    pub(crate) fn create(folder: &Path, ledger: SocketAddr, ttl: Duration) -> Result<Self, Error> {
        // All are held until all are chosen, so that none is chosen twice.
        let mut held = Vec::new();
        let mut processes = Vec::new();
        for _ in 0..3 {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            processes.push(Process { address: listener.local_addr()?, child: None });
            held.push(listener);
        }
        let processes = Self { folder: folder.to_owned(), ledger, ttl, all: processes };
        for id in processes.ids() {
            node::create(&Create { id, data: processes.data(id) })?;
        }
        Ok(processes)
    }

    pub(crate) fn ids(&self) -> Vec<u64> {
        (1..=self.all.len() as u64).collect()
    }

    fn data(&self, id: u64) -> PathBuf {
        self.folder.join(format!("process-{id}"))
    }

    fn log(&self, id: u64) -> PathBuf {
        self.folder.join(format!("process-{id}.log"))
    }

    /// What all processes have logged.
    pub(crate) fn logs(&self) -> String {
        let log = |id: &u64| std::fs::read_to_string(self.log(*id)).unwrap_or_default();
        let logs =
            self.ids().iter().map(|id| format!("process {id}:\n{}", log(id))).collect::<Vec<_>>();
        logs.join("\n")
    }

    pub(crate) fn start(&mut self, id: u64) -> Result<(), Error> {
        let log = OpenOptions::new().create(true).append(true).open(self.log(id))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "--exit-with-parent", "--id", &id.to_string()]);
        command.arg("--data").arg(self.data(id)).args(["--ledger", &self.ledger.to_string()]);
        command.args(["--ttl-ms", &self.ttl.as_millis().to_string()]);
        for (peer, process) in (1..).zip(&self.all) {
            if peer == id {
                command.args(["--listen", &process.address.to_string()]);
            } else {
                command.args(["--peer", &format!("{peer}={}", process.address)]);
            }
        }
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        // Ctrl-C reaches the group of the terminal; this program decides when the processes end.
        command.process_group(0);
        self.all[id as usize - 1].child = Some(command.spawn()?);
        Ok(())
    }

    /// Kills a process with SIGKILL, and waits until it is gone.
    pub(crate) async fn kill(&mut self, id: u64) -> Result<(), Error> {
        let child = self.all[id as usize - 1].child.take();
        Ok(child.ok_or("it is not running")?.kill().await?)
    }

    /// Pauses a process (SIGSTOP).
    pub(crate) fn pause(&self, id: u64) -> Result<(), Error> {
        self.signal(id, Signal::STOP)
    }

    /// Resumes a process (SIGCONT).
    pub(crate) fn resume(&self, id: u64) -> Result<(), Error> {
        self.signal(id, Signal::CONT)
    }

    /// Makes a process give the leadership away (SIGUSR1).
    pub(crate) fn resign(&self, id: u64) -> Result<(), Error> {
        self.signal(id, Signal::USR1)
    }

    /// Ends all processes (SIGTERM), each of which must end with status 0.
    pub(crate) async fn end_all(&mut self) -> Result<(), Error> {
        for id in self.ids() {
            self.signal(id, Signal::TERM)?;
        }
        for (id, process) in (1..).zip(&mut self.all) {
            let Some(mut child) = process.child.take() else { continue };
            let ended = timeout(END_WAIT, child.wait()).await;
            let status = ended.map_err(|_| format!("process {id} did not end after SIGTERM"))??;
            if !status.success() {
                return Err(format!("process {id} ended with {status}").into());
            }
        }
        Ok(())
    }

    /// Fails when a process has ended by itself.
    pub(crate) fn no_crash(&mut self) -> Result<(), Error> {
        for (id, process) in (1..).zip(&mut self.all) {
            if let Some(child) = &mut process.child
                && let Some(status) = child.try_wait()?
            {
                return Err(format!("process {id} ended by itself: {status}").into());
            }
        }
        Ok(())
    }

    fn signal(&self, id: u64, signal: Signal) -> Result<(), Error> {
        let child = self.all[id as usize - 1].child.as_ref();
        let pid = child.and_then(Child::id).and_then(|pid| Pid::from_raw(pid.cast_signed()));
        Ok(kill_process(pid.ok_or("it is not running")?, signal)?)
    }
}
