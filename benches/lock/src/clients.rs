//! Clients as processes of their own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

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

/// The process of a client: `ours` or `etcd`, its number, addresses. Says that it is ready. For
/// each line of standard input, a number of ms, it locks and unlocks for so long, and says how
/// often it did. Ends with its input.
pub async fn client(args: &[String]) -> Result<(), Error> {
    let [kind, number, addresses @ ..] = args else { return Err("KIND NUMBER ADDRESS…".into()) };
    let addresses = ours::parsed(addresses)?;
    let client = if kind == "ours" {
        let locks = ours::client(1_000 + number.parse::<u64>()?, &addresses).await?;
        Client::Ours(ours::session(&locks).await?)
    } else {
        let client = etcd::Client::new(addresses[0])?;
        let lease = client.lease().await?;
        Client::Etcd(client, lease)
    };
    let name = format!("cycles-{number}");
    client.cycle(&name).await?;
    println!("ready");
    let (asks, mut asked) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let _ = asks.send(line);
        }
    });
    // Ends: the input does. The session is renewed meanwhile.
    while let Some(period) = asked.recv().await {
        let end = Instant::now() + Duration::from_millis(period?.parse()?);
        let mut cycles = 0_u64;
        while Instant::now() < end {
            client.cycle(&name).await?;
            cycles += 1;
        }
        println!("{cycles}");
    }
    Ok(())
}

struct Process {
    process: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// Processes with a client each.
pub struct Clients(Vec<Process>);

impl Clients {
    /// Starts them and waits until all have their sessions.
    pub fn start(kind: &str, count: usize, addresses: &[SocketAddr]) -> Result<Self, Error> {
        let mut clients = Self(Vec::new());
        for number in 0..count {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["client", kind, &number.to_string()]);
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
