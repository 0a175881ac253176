//! The processes of the demonstration: the service, and how it and a server are killed.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::config::Host;

use super::RECOVER_EVERY;
use crate::Error;

/// How long the service may take to say where it listens, once the databases are up.
const START_WAIT: Duration = Duration::from_secs(30);
/// How long the service may take to reach a point.
const POINT_WAIT: Duration = Duration::from_secs(30);
/// How long the service may take to end by itself.
const END_WAIT: Duration = Duration::from_secs(30);
/// How long killed processes may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(20);

/// A running service.
pub(super) struct Service {
    process: Child,
    orders: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Service {
    /// Starts it on a free port, with more options. It stops at `stop_at`.
    pub(super) fn start(
        name: &str,
        folder: &Path,
        urls: &[String; 2],
        stop_at: Option<&str>,
        more: &[String],
    ) -> Result<Self, Error> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["serve", "--exit-with-parent", "--listen", "127.0.0.1:0", "--name", name])
            .args(["--recover-every-ms", &RECOVER_EVERY.as_millis().to_string(), "--data"])
            .arg(folder)
            .args(more)
            .env("EAST_DATABASE_URL", &urls[0])
            .env("WEST_DATABASE_URL", &urls[1])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // It says that it waits for a database that was killed.
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .process_group(0);
        if let Some(point) = stop_at {
            command.args(["--stop-at", point]);
        }
        let mut process = command.spawn()?;
        let orders = process.stdin.take().ok_or("the service has no standard input")?;
        let stdout = process.stdout.take().ok_or("the service has no standard output")?;
        Ok(Self { process, orders, lines: BufReader::new(stdout).lines() })
    }

    /// Waits until it listens, and returns the address and the number of transfers that it found
    /// decided and not applied.
    pub(super) async fn listening(&mut self) -> Result<(SocketAddr, u64), Error> {
        // Ends: with a line of another kind, or after `START_WAIT`.
        loop {
            let line = timeout(START_WAIT, self.lines.next_line()).await??;
            let Some(line) = line else { return Err("the service ended at its start".into()) };
            if let Some((address, rest)) =
                line.strip_prefix("listening on http://").and_then(|rest| rest.split_once(", "))
            {
                let count = rest.split(' ').next().unwrap_or_default();
                return Ok((address.parse()?, count.parse()?));
            }
            if !line.starts_with("at ") {
                return Err(format!("the service did not start: {line}").into());
            }
        }
    }

    /// Has it stop at a point after so many calls have passed it, and waits until it does.
    pub(super) async fn stop_at(&mut self, point: &str, passes: u32) -> Result<(), Error> {
        self.order(&format!("stop {passes} {point}")).await?;
        self.stopped_at(point).await
    }

    pub(super) async fn stopped_at(&mut self, point: &str) -> Result<(), Error> {
        let line = timeout(POINT_WAIT, self.lines.next_line());
        let line = line.await.map_err(|_| format!("the point `{point}` was not reached"))??;
        if line.as_deref() == Some(&format!("at {point}")) {
            return Ok(());
        }
        Err(format!("the point `{point}` was not reached: {line:?}").into())
    }

    /// Waits until a call is stopped at the point, whatever else it says before. Dropped, it may
    /// have taken lines.
    pub(super) async fn passed(&mut self, point: &str) -> Result<(), Error> {
        let wanted = format!("at {point}");
        // Ends: with that line, or with the process.
        while let Some(line) = self.lines.next_line().await? {
            if line == wanted {
                return Ok(());
            }
        }
        Err("the node has ended".into())
    }

    /// Sends a signal, an argument of `kill`.
    pub(super) async fn signal(&self, signal: &str) -> Result<(), Error> {
        let pid = self.process.id().ok_or("the process has ended")?;
        let sent = Command::new("kill").args([signal, &pid.to_string()]).status().await?;
        if sent.success() { Ok(()) } else { Err(format!("kill {signal} {pid}: {sent}").into()) }
    }

    /// An order, as in `demo/points.rs`.
    pub(super) async fn order(&mut self, order: &str) -> Result<(), Error> {
        Ok(self.orders.write_all(format!("{order}\n").as_bytes()).await?)
    }

    /// By SIGKILL.
    pub(super) async fn kill(mut self) -> Result<(), Error> {
        Ok(self.process.kill().await?)
    }

    /// Closes its standard input, and waits for its end.
    pub(super) async fn end(mut self) -> Result<(), Error> {
        drop(self.orders);
        let status = timeout(END_WAIT, self.process.wait()).await??;
        if status.success() { Ok(()) } else { Err(format!("the service ended: {status}").into()) }
    }
}

/// Kills a server of our own by SIGKILL: the postmaster and all its processes.
pub(super) async fn kill_server(url: String) -> Result<(), Error> {
    let config: tokio_postgres::Config = url.parse()?;
    let Some(Host::Unix(folder)) = config.get_hosts().first() else {
        return Err("the server is not reached by a socket in its folder".into());
    };
    let lock = std::fs::read_to_string(folder.join("db/postmaster.pid"))?;
    let postmaster: u32 = lock.lines().next().unwrap_or_default().parse()?;
    let until = Instant::now() + KILL_WAIT;
    // Stopped first: one that it starts meanwhile would live on for a moment, and keep the shared
    // memory.
    Command::new("kill").args(["-STOP", &postmaster.to_string()]).status().await?;
    // Ends: when it is stopped or gone, or after `KILL_WAIT`.
    while status(postmaster).is_some_and(|(state, _)| state != 'T') && Instant::now() < until {
        sleep(Duration::from_millis(1)).await;
    }
    let is_of = |pid: &u32| *pid == postmaster || parent(*pid) == Some(postmaster);
    let killed: Vec<u32> = processes().filter(is_of).collect();
    let ids = killed.iter().map(u32::to_string);
    Command::new("kill").arg("-9").args(ids).stderr(Stdio::null()).status().await?;
    // Ends: when they are gone, or after `KILL_WAIT`. A zombie, which nobody has waited for, is not
    // gone: the next postmaster would take it for alive.
    while killed.iter().any(|pid| parent(*pid).is_some()) {
        if Instant::now() > until {
            return Err(format!("the processes {killed:?} do not end").into());
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

fn processes() -> impl Iterator<Item = u32> {
    let all = std::fs::read_dir("/proc").into_iter().flatten();
    all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn parent(pid: u32) -> Option<u32> {
    status(pid).map(|(_, parent)| parent)
}

/// The state and the parent of a process, if it is there.
fn status(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses, and may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut words = rest.split(' ');
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}
