//! Nodes and clients of a run beside rivals as processes of their own: this program, started again
//! with other arguments, which is asked by lines and answers by lines. Each workspace of rivals
//! whose subjects are processes includes this file as a module.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::Error;

/// A process of this program. It is killed when it is dropped.
pub struct Process {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Process {
    pub fn start(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Self, Error> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let asks = child.stdin.take().ok_or("no standard input")?;
        let answers = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        Ok(Self { child, asks, answers })
    }

    /// Starts processes of `each` clients of a kind, the first with the clients from number `first`
    /// on, and waits until all say that they are ready.
    pub fn start_clients(
        kind: &str,
        first: usize,
        processes: usize,
        each: usize,
        addresses: &[SocketAddr],
    ) -> Result<Vec<Self>, Error> {
        let mut started = Vec::new();
        for process in 0..processes {
            let numbers = [first + process * each, each].map(|number| number.to_string());
            let mut args = vec!["clients".to_owned(), kind.to_owned()];
            args.extend(numbers);
            args.extend(addresses.iter().map(ToString::to_string));
            started.push(Self::start(args)?);
        }
        for process in &mut started {
            let said = process.said()?;
            if said != "ready" {
                return Err(format!("a client says `{said}`").into());
            }
        }
        Ok(started)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a line.
    pub fn say(&mut self, line: impl Display) -> Result<(), Error> {
        Ok(writeln!(self.asks, "{line}")?)
    }

    /// Waits for a line. It is empty if the process has ended.
    pub fn said(&mut self) -> Result<String, Error> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Asks for numbers. There are none if the process has ended.
    pub fn ask(&mut self, line: impl Display) -> Result<Vec<u64>, Error> {
        self.say(line)?;
        Ok(self.said()?.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines that this process is asked by. They end with its input.
pub fn lines() -> mpsc::UnboundedReceiver<std::io::Result<String>> {
    let (asks, asked) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let _ = asks.send(line);
        }
    });
    asked
}

/// CPU that a process has used so far, in ticks of 10 ms.
pub fn cpu_of(process: u32) -> Result<Duration, Error> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields = stat.rsplit_once(") ").ok_or("no name in stat")?.1;
    // After the name and the state: user and system time are the 12th and 13th.
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
    Ok(Duration::from_millis(10 * ticks.sum::<Result<u64, _>>()?))
}

pub fn parsed(addresses: &[String]) -> Result<Vec<SocketAddr>, Error> {
    Ok(addresses.iter().map(|address| address.parse()).collect::<Result<_, _>>()?)
}

/// Free loopback addresses.
pub fn free(count: usize) -> Result<Vec<SocketAddr>, Error> {
    let held: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    Ok(held.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?)
}
