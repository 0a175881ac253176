//! Clients as processes of their own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use voussoir_lock::Session;

use crate::process::{Process, lines, parsed};
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
    let clients = connect(kind, first, count, &parsed(addresses)?).await?;
    println!("ready");
    let mut asked = lines();
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
        Ok(Self(Process::start_clients(kind, 0, processes, each, addresses)?))
    }

    /// Cycles of all in this time.
    pub fn run(&mut self, period: Duration) -> Result<u64, Error> {
        for process in &mut self.0 {
            process.say(period.as_millis())?;
        }
        let mut cycles = 0;
        for process in &mut self.0 {
            cycles += process.said()?.parse::<u64>()?;
        }
        Ok(cycles)
    }
}
