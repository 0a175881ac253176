//! Clients as processes of their own.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use store::client::{Answered, Client as StoreClient};
use tokio::task::JoinSet;

use crate::process::{Process, lines, parsed};
use crate::{Error, etcd};

const VALUE_BYTES: usize = 128;
/// Time limit of a call.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone)]
enum Service {
    Ours(StoreClient, SocketAddr),
    Etcd(etcd::Client),
}

/// A client with a key of its own.
struct Client {
    service: Service,
    number: u64,
    puts: u64,
}

impl Client {
    /// 128 bytes that begin with the number of the put.
    async fn put(&mut self) -> Result<(), Error> {
        let mut value = vec![0x5a; VALUE_BYTES];
        value[..8].copy_from_slice(&(self.puts + 1).to_le_bytes());
        match &self.service {
            Service::Ours(client, leader) => {
                self.ask(client, *leader, Method::PUT, value.into()).await?;
            }
            Service::Etcd(client) => {
                client.put(self.key().as_bytes(), value).await?;
            }
        }
        self.puts += 1;
        Ok(())
    }

    fn key(&self) -> String {
        format!("p-{}", self.number)
    }

    async fn ask(
        &self,
        client: &StoreClient,
        leader: SocketAddr,
        method: Method,
        value: Bytes,
    ) -> Result<Bytes, Error> {
        let path = format!("/kv/{}", self.key());
        let by = tokio::time::Instant::now() + PATIENCE;
        match client.send_to(leader, &method, &path, None, value, by).await {
            Ok(Answered::Reply(reply)) if reply.status.is_success() => Ok(reply.body),
            other => Err(format!("{other:?}").into()),
        }
    }

    /// What the service holds is what this client was told.
    async fn check(&self) -> Result<(), Error> {
        let value = match &self.service {
            Service::Ours(client, leader) => {
                self.ask(client, *leader, Method::GET, Bytes::new()).await?.to_vec()
            }
            Service::Etcd(client) => {
                client.get(self.key().as_bytes()).await?.ok_or("no value")?.value
            }
        };
        let found = value.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if found == self.puts { Ok(()) } else { Err(format!("{found}, not {}", self.puts).into()) }
    }
}

/// A process of clients: `ours` or `etcd`, the first number and how many, the leader's address.
/// Says that it is ready. For each line of standard input, a time in ms, its clients put for so
/// long; it says how often, and the 50th and the 99th percentile of the latency in ns. Ends with
/// its input.
pub async fn process(args: &[String]) -> Result<(), Error> {
    let [kind, first, count, addresses @ ..] = args else {
        return Err("KIND FIRST COUNT ADDRESS".into());
    };
    let (first, count): (u64, u64) = (first.parse()?, count.parse()?);
    let addresses = parsed(addresses)?;
    let leader = *addresses.first().ok_or("no address")?;
    let service = match kind.as_str() {
        "etcd" => Service::Etcd(etcd::Client::new(leader)?),
        _ => Service::Ours(StoreClient::new(addresses), leader),
    };
    let mut clients = Vec::new();
    for number in first..first + count {
        let mut client = Client { service: service.clone(), number, puts: 0 };
        client.put().await?;
        clients.push(client);
    }
    println!("ready");
    let mut asked = lines();
    // Ends: the input does.
    while let Some(line) = asked.recv().await {
        let end = Instant::now() + Duration::from_millis(line?.parse()?);
        let mut tasks = JoinSet::new();
        for client in clients.drain(..) {
            tasks.spawn(work(client, end));
        }
        let mut latencies = Vec::new();
        while let Some(task) = tasks.join_next().await {
            let (client, own) = task??;
            clients.push(client);
            latencies.extend(own);
        }
        for client in &clients {
            client.check().await?;
        }
        latencies.sort_unstable();
        let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
        println!("{} {} {}", latencies.len(), at(0.5), at(0.99));
    }
    Ok(())
}

async fn work(mut client: Client, end: Instant) -> Result<(Client, Vec<u64>), Error> {
    let mut latencies = Vec::new();
    // Ends: the time is over.
    while Instant::now() < end {
        let begun = Instant::now();
        client.put().await?;
        latencies.push(begun.elapsed().as_nanos() as u64);
    }
    Ok((client, latencies))
}

/// Processes of clients.
pub struct Clients(Vec<Process>);

/// What the clients of a round have done.
#[derive(Clone, Copy, Default)]
pub struct Done {
    pub count: u64,
    /// In microseconds, the worst of the processes.
    pub p50: f64,
    pub p99: f64,
}

impl Clients {
    /// Starts processes of `each` clients from number `first` on, and waits until all are ready.
    pub fn start(
        kind: &str,
        first: usize,
        processes: usize,
        each: usize,
        leader: SocketAddr,
    ) -> Result<Self, Error> {
        Ok(Self(Process::start_clients(kind, first, processes, each, &[leader])?))
    }

    /// All put for this time.
    pub fn run(&mut self, period: Duration) -> Result<Done, Error> {
        for process in &mut self.0 {
            process.say(period.as_millis())?;
        }
        let mut done = Done::default();
        for process in &mut self.0 {
            let said = process.said()?;
            let numbers: Vec<u64> = said.split(' ').map(str::parse).collect::<Result<_, _>>()?;
            let [count, p50, p99] = numbers[..] else { return Err(said.into()) };
            done.count += count;
            done.p50 = done.p50.max(p50 as f64 / 1e3);
            done.p99 = done.p99.max(p99 as f64 / 1e3);
        }
        Ok(done)
    }
}
