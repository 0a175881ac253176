//! Clients as processes of their own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use voussoir_lock::Session;

use crate::{Error, etcd, ours};

/// Longer than any wait here.
const LONG: Duration = Duration::from_secs(60);

/// A client with a session, or a lease, that exists already.
enum Client {
    Ours(Session),
    Etcd(etcd::Client, i64),
}

impl Client {
    /// One lock and one unlock.
    async fn cycle(&self, name: &str) -> Result<(), Error> {
        match self {
            Self::Ours(session) => {
                let guard = session.lock(name.to_owned()).within(LONG).await?;
                guard.release(LONG).await;
                Ok(())
            }
            Self::Etcd(client, lease) => client.unlock(client.lock(name, *lease).await?).await,
        }
    }
}

/// A process of clients: `ours` or `etcd`, the first number and how many, addresses. Says that it
/// is ready. For each line of standard input, a number of ms, all lock and unlock for so long, and
/// it says how often they did. Ends with its input.
pub async fn process(args: &[String]) -> Result<(), Error> {
    let [kind, first, count, addresses @ ..] = args else {
        return Err("KIND FIRST COUNT ADDRESS…".into());
    };
    let (first, count): (u64, u64) = (first.parse()?, count.parse()?);
    let clients = connect(kind, first, count, &ours::parsed(addresses)?).await?;
    println!("ready");
    let (asks, mut asked) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let _ = asks.send(line);
        }
    });
    // Ends: the input does. The sessions are renewed meanwhile.
    while let Some(period) = asked.recv().await {
        let (end, mut tasks) =
            (Instant::now() + Duration::from_millis(period?.parse()?), JoinSet::new());
        for (client, name) in clients.iter().cloned() {
            tasks.spawn(async move {
                let mut cycles = 0_u64;
                while Instant::now() < end {
                    client.cycle(&name).await?;
                    cycles += 1;
                }
                Ok::<_, Error>(cycles)
            });
        }
        let mut cycles = 0;
        while let Some(task) = tasks.join_next().await {
            cycles += task??;
        }
        println!("{cycles}");
    }
    Ok(())
}

/// The clients of this process, each with a session and a lock of its own, over one connection.
async fn connect(
    kind: &str,
    first: u64,
    count: u64,
    addresses: &[SocketAddr],
) -> Result<Vec<(Arc<Client>, String)>, Error> {
    let mut clients = Vec::new();
    let name = |number: u64| format!("cycles-{number}");
    if kind == "ours" {
        let locks = ours::client(1_000 + first, addresses).await?;
        for number in first..first + count {
            clients.push((Arc::new(Client::Ours(ours::session(&locks).await?)), name(number)));
        }
    } else {
        let client = etcd::Client::new(addresses[0])?;
        for number in first..first + count {
            let lease = client.lease().await?;
            clients.push((Arc::new(Client::Etcd(client.clone(), lease)), name(number)));
        }
    }
    for (client, name) in &clients {
        client.cycle(name).await?;
    }
    Ok(clients)
}

struct Process {
    process: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// Processes of clients.
pub struct Clients(Vec<Process>);

impl Clients {
    /// Starts processes of `each` clients, and waits until all have their sessions.
    pub fn start(
        kind: &str,
        processes: usize,
        each: usize,
        addresses: &[SocketAddr],
    ) -> Result<Self, Error> {
        let mut clients = Self(Vec::new());
        for process in 0..processes {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["clients", kind]).args([process * each, each].map(|n| n.to_string()));
            command.args(addresses.iter().map(ToString::to_string));
            let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let asks = process.stdin.take().ok_or("no standard input")?;
            let answers = BufReader::new(process.stdout.take().ok_or("no standard output")?);
            clients.0.push(Process { process, asks, answers });
        }
        for process in &mut clients.0 {
            let said = process.said()?;
            if said != "ready" {
                return Err(format!("a client says `{said}`").into());
            }
        }
        Ok(clients)
    }

    /// Cycles of all in this time.
    pub fn run(&mut self, period: Duration) -> Result<u64, Error> {
        for process in &mut self.0 {
            writeln!(process.asks, "{}", period.as_millis())?;
        }
        let mut cycles = 0;
        for process in &mut self.0 {
            cycles += process.said()?.parse::<u64>()?;
        }
        Ok(cycles)
    }
}

impl Process {
    fn said(&mut self) -> Result<String, Error> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for process in &mut self.0 {
            let _ = process.process.kill();
            let _ = process.process.wait();
        }
    }
}
