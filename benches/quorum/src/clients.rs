//! Clients as processes of their own.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use voussoir_quorum::paxos::Outcome;
use voussoir_quorum::version::VersionVector;
use voussoir_quorum::{Registers, Table, table};

use crate::process::{Process, lines, parsed};
use crate::{Error, etcd, ours};

const VALUE_BYTES: usize = 100;

/// What is done in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Cas,
    Read,
    Put,
}

impl Op {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Cas, "cas"), (Self::Read, "read"), (Self::Put, "put")];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(op, _)| *op == self).map_or("", |(_, name)| name)
    }
}

#[derive(Clone)]
enum Service {
    Ours(Registers, Table),
    Etcd(etcd::Client),
}

/// A client with two keys of its own: one for changes and reads, one for puts.
struct Client {
    service: Service,
    number: u64,
    /// Of the last change: the register's version, or the revision of the key.
    last: u64,
    /// Changes and puts so far.
    changes: u64,
    puts: u64,
    /// Puts of unknown outcome so far.
    unknown: u64,
    /// Of the last put.
    context: VersionVector,
}

impl Client {
    fn key(&self, kind: &str) -> String {
        format!("{kind}-{}", self.number)
    }

    /// 100 bytes that begin with the number of the write.
    fn value(&self, count: u64) -> Vec<u8> {
        let mut value = vec![0x5a; VALUE_BYTES];
        value[..8].copy_from_slice(&count.to_le_bytes());
        value
    }

    async fn run(&mut self, op: Op) -> Result<(), Error> {
        match op {
            Op::Cas => self.change().await,
            Op::Read => {
                let found = self.read().await?;
                if found != Some(self.changes) {
                    return Err(format!("read {found:?} after {} changes", self.changes).into());
                }
                Ok(())
            }
            Op::Put => self.put().await,
        }
    }

    async fn change(&mut self) -> Result<(), Error> {
        let (key, value) = (self.key("c"), self.value(self.changes + 1));
        self.last = match &self.service {
            Service::Ours(registers, _) => {
                match registers.compare_and_set(key, self.last, Some(value.into())).await? {
                    Outcome::Applied { version } => version,
                    outcome => return Err(format!("{outcome:?}").into()),
                }
            }
            Service::Etcd(client) => {
                client.cas(key.as_bytes(), self.last as i64, value).await? as u64
            }
        };
        self.changes += 1;
        Ok(())
    }

    /// Reads the number of the last change.
    async fn read(&self) -> Result<Option<u64>, Error> {
        let key = self.key("c");
        let value = match &self.service {
            Service::Ours(registers, _) => registers.get(key).await?.1.map(|value| value.to_vec()),
            Service::Etcd(client) => client.get(key.as_bytes()).await?.map(|found| found.value),
        };
        Ok(value.map(|value| number(&value)))
    }

    async fn put(&mut self) -> Result<(), Error> {
        let (key, value) = (self.key("p"), self.value(self.puts + 1));
        match &self.service {
            Service::Ours(_, table) => {
                // Ends: a put is acknowledged, or has certainly failed.
                loop {
                    match table.put(key.clone(), &self.context, value.clone()).await {
                        Ok(state) => break self.context = state.context().clone(),
                        Err(error) if error.outcome() == table::Outcome::Unknown => {
                            self.unknown += 1;
                            self.context = table.get(key.clone()).await?.context().clone();
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            Service::Etcd(client) => client.put(key.as_bytes(), value).await?,
        }
        self.puts += 1;
        Ok(())
    }

    /// What the service holds is what this client was told.
    async fn check(&self) -> Result<(), Error> {
        if self.changes > 0 && self.read().await? != Some(self.changes) {
            return Err("a change is missing".into());
        }
        if self.puts == 0 {
            return Ok(());
        }
        let key = self.key("p");
        let found: Vec<u64> = match &self.service {
            Service::Ours(_, table) => {
                table.get(key).await?.values().map(|value| number(value)).collect()
            }
            Service::Etcd(client) => {
                let found = client.get(key.as_bytes()).await?.ok_or("no value")?;
                if found.version as u64 != self.puts {
                    return Err("the key was put more or less often".into());
                }
                vec![number(&found.value)]
            }
        };
        // One of unknown outcome may be a sibling of those behind it.
        let is_there = found == [self.puts] || (self.unknown > 0 && found.contains(&self.puts));
        if is_there { Ok(()) } else { Err(format!("{found:?}").into()) }
    }
}

fn unknown_of(clients: &[Client]) -> u64 {
    clients.iter().map(|client| client.unknown).sum()
}

fn number(value: &[u8]) -> u64 {
    value.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// A process of clients: `ours`, `slow` or `etcd`, the first number and how many, addresses. Says
/// that it is ready. For each line of standard input, what to do, for how many ms, and for how many
/// microseconds a client waits from one beginning to the next (0: not at all), it does so, and says
/// how often, the 50th and the 99th percentile of the latency in ns, and how many puts had an
/// unknown outcome, which are tried again. Ends with its input.
pub async fn process(args: &[String]) -> Result<(), Error> {
    let [kind, first, count, addresses @ ..] = args else {
        return Err("KIND FIRST COUNT ADDRESS…".into());
    };
    let (first, count): (u64, u64) = (first.parse()?, count.parse()?);
    let mut clients = connect(kind, first, count, &parsed(addresses)?).await?;
    println!("ready");
    let mut asked = lines();
    // Ends: the input does.
    while let Some(line) = asked.recv().await {
        let line = line?;
        let [op, period_ms, every_us] = line.split(' ').collect::<Vec<_>>()[..] else {
            return Err("OP PERIOD_MS EVERY_US".into());
        };
        let op = Op::ALL.iter().find(|(_, name)| *name == op).ok_or("no such work")?.0;
        let period = Duration::from_millis(period_ms.parse()?);
        let every = Duration::from_micros(every_us.parse()?);
        let before = unknown_of(&clients);
        let (end, mut tasks) = (Instant::now() + period, JoinSet::new());
        for (at, client) in clients.drain(..).enumerate() {
            // Spread over the first interval.
            let offset = every.mul_f64(at as f64 / count as f64);
            tasks.spawn(work(client, op, end, every, offset));
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
        let unknown = unknown_of(&clients) - before;
        println!("{} {} {} {unknown}", latencies.len(), at(0.5), at(0.99));
    }
    Ok(())
}

/// Works until the end. With an interval the latency counts from when the operation was due.
async fn work(
    mut client: Client,
    op: Op,
    end: Instant,
    every: Duration,
    offset: Duration,
) -> Result<(Client, Vec<u64>), Error> {
    let (mut latencies, mut due) = (Vec::new(), Instant::now() + offset);
    // Ends: the time is over.
    while Instant::now() < end {
        if every.is_zero() {
            due = Instant::now();
        } else {
            tokio::time::sleep_until(due.into()).await;
        }
        client.run(op).await?;
        latencies.push(due.elapsed().as_nanos() as u64);
        due += every;
    }
    Ok((client, latencies))
}

/// The clients of this process, over one connection to each node that they call, warmed up.
async fn connect(
    kind: &str,
    first: u64,
    count: u64,
    addresses: &[SocketAddr],
) -> Result<Vec<Client>, Error> {
    let service = if kind == "etcd" {
        Service::Etcd(etcd::Client::new(addresses[0])?)
    } else {
        let link = ours::link(1_000 + first, addresses, kind == "slow").await?;
        let registers = ours::registers(1_000 + first, &link)?;
        Service::Ours(registers, ours::table(&link)?)
    };
    let mut clients = Vec::new();
    for number in first..first + count {
        let (service, context) = (service.clone(), VersionVector::new());
        let (last, changes, puts, unknown) = (0, 0, 0, 0);
        let mut client = Client { service, number, last, changes, puts, unknown, context };
        // Ends: the nodes were started. Nothing has changed before they answer.
        let by = Instant::now() + Duration::from_secs(30);
        while client.read().await.is_err() && Instant::now() < by {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        client.change().await?;
        client.put().await?;
        clients.push(client);
    }
    Ok(clients)
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
    /// Puts of unknown outcome.
    pub unknown: u64,
}

impl Clients {
    /// Starts processes of `each` clients from number `first` on, and waits until all are ready.
    pub fn start(
        kind: &str,
        first: usize,
        processes: usize,
        each: usize,
        addresses: &[SocketAddr],
    ) -> Result<Self, Error> {
        Ok(Self(Process::start_clients(kind, first, processes, each, addresses)?))
    }

    /// All do the same for this time, each of them at most once in `every`. Every outcome is known.
    pub fn run(&mut self, op: Op, period: Duration, every: Duration) -> Result<Done, Error> {
        let done = self.run_beside_faults(op, period, every)?;
        if done.unknown > 0 {
            return Err(format!("{} puts of unknown outcome", done.unknown).into());
        }
        Ok(done)
    }

    /// All do the same for this time, each of them at most once in `every`.
    pub fn run_beside_faults(
        &mut self,
        op: Op,
        period: Duration,
        every: Duration,
    ) -> Result<Done, Error> {
        for process in &mut self.0 {
            let (period, every) = (period.as_millis(), every.as_micros());
            process.say(format_args!("{} {period} {every}", op.name()))?;
        }
        let mut done = Done::default();
        for process in &mut self.0 {
            let said = process.said()?;
            let numbers: Vec<u64> = said.split(' ').map(str::parse).collect::<Result<_, _>>()?;
            let [count, p50, p99, unknown] = numbers[..] else { return Err(said.into()) };
            done.count += count;
            done.unknown += unknown;
            done.p50 = done.p50.max(p50 as f64 / 1e3);
            done.p99 = done.p99.max(p99 as f64 / 1e3);
        }
        Ok(done)
    }
}
