//! The demonstration: starts two databases and the service, transfers money, kills the service and
//! the databases with `kill -9` at each point of the protocol, and compares the banks with each
//! other after each kill and with the ledger at the end.

mod audit;
mod blocking;
mod group;
mod load;
pub(crate) mod points;
mod processes;
mod rounds;
#[allow(dead_code, reason = "the other templates have this file, too, and crash a server by it")]
mod servers;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::sync::watch;

use crate::Error;
use crate::bank::{Bank, create};
use group::Nodes;
use load::{ACCOUNTS, Clients, Ledger, OPENED_CENTS};
use processes::Service;
use rounds::Kills;
use servers::Server;

/// Time between two searches for prepared transactions, in the demonstration.
pub(crate) const RECOVER_EVERY: Duration = Duration::from_millis(200);

/// Folder of the single coordinator, in that of the demonstration.
const SINGLE: &str = "coordinator";

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Rounds: each kills the coordinator, a database, or several of them at one point of the
    /// protocol. 28 without it, 8 of a group
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) rounds: Option<u32>,
    /// Put the decisions into a group of three coordinators; each round kills or pauses the one
    /// that leads, between the phases. Beside it a single coordinator is killed there
    #[arg(long, conflicts_with = "first")]
    pub(crate) replicated: bool,
    /// The round to begin with; from 24 on databases are killed, too, and after 120 all was
    #[arg(long, default_value_t = 0, value_name = "ROUND",
          value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub(crate) first: u32,
    /// Seed of what the clients ask for, and of what chance decides
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    pub(crate) seed: u64,
}

impl Demo {
    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.replicated { 8 } else { 28 })
    }
}

/// Runs the demonstration.
///
/// # Errors
/// Something could not be started, money was made or lost, or a transaction stayed prepared.
pub(crate) async fn run(demo: &Demo, url: Option<String>) -> Result<(), Error> {
    let mut servers = vec![Server::postgresql(url.clone()).await?];
    if url.is_none() {
        servers.push(Server::postgresql(None).await?);
    }
    let outcome = play(demo, &mut servers).await;
    for server in servers {
        server.end().await?;
    }
    outcome
}

async fn play(demo: &Demo, servers: &mut [Server]) -> Result<(), Error> {
    let name = format!("transfer_demo_{}", std::process::id());
    let mut urls = [String::new(), String::new()];
    for bank in Bank::ALL {
        let server = &servers[(bank as usize).min(servers.len() - 1)];
        let database = format!("{name}_{bank}");
        println!("{bank}: the database {database} in {}", server.description());
        let admin = audit::connect(server.url()).await?;
        admin.batch_execute(&format!("CREATE DATABASE {database}")).await?;
        if server.is_own() {
            // After a crash it syncs the file system at once, and not file by file.
            let sync = "ALTER SYSTEM SET recovery_init_sync_method = 'syncfs'";
            admin.batch_execute(sync).await?;
        }
        urls[bank as usize] = in_database(server.url(), &database);
        create(&urls[bank as usize], ACCOUNTS, OPENED_CENTS).await?;
    }
    let folder = tempfile::Builder::new().prefix("transfer-").tempdir()?;
    let data = folder.path().join(SINGLE);
    let mut service = Service::start(&name, &data, &urls, None, &[])?;
    let (address, _) = service.listening().await?;
    println!("service: http://{address}, decisions in {}\n", data.display());
    let (sender, receiver) = watch::channel(vec![address]);
    let mut stage = Stage {
        servers,
        urls,
        name,
        folder: folder.path().to_owned(),
        service: Some(service),
        group: None,
        addresses: sender,
        clients: Clients::start(&receiver, demo.seed),
        random: fastrand::Rng::with_seed(demo.seed),
        began: Instant::now(),
        kills: Kills::default(),
    };
    let outcome = stage.show_all(demo).await;
    stage.finish(outcome).await
}

/// The same server's database of this name: a later parameter replaces an earlier one.
fn in_database(url: &str, database: &str) -> String {
    let separator = match (url.contains("://"), url.contains('?')) {
        (false, _) => ' ',
        (true, false) => '?',
        (true, true) => '&',
    };
    format!("{url}{separator}dbname={database}")
}

/// The processes of the demonstration.
struct Stage<'a> {
    /// One for both banks, or one for each.
    servers: &'a mut [Server],
    urls: [String; 2],
    /// Of the coordinator.
    name: String,
    folder: PathBuf,
    /// `None` while it is dead.
    service: Option<Service>,
    /// The three processes, once they run instead of the one.
    group: Option<Nodes>,
    /// Where clients ask, one after the other until they are answered.
    addresses: watch::Sender<Vec<SocketAddr>>,
    clients: Clients,
    random: fastrand::Rng,
    began: Instant,
    kills: Kills,
}

impl Stage<'_> {
    fn service(&mut self) -> Result<&mut Service, Error> {
        self.service.as_mut().ok_or_else(|| "the service does not run".into())
    }

    async fn show_all(&mut self, demo: &Demo) -> Result<(), Error> {
        if !demo.replicated {
            self.run_rounds(demo.first, demo.rounds()).await?;
        }
        let blocked = self.show_blocking().await?;
        if demo.replicated {
            self.show_group(demo.rounds(), &blocked).await?;
        }
        Ok(())
    }

    /// Compares the banks with the ledger, and removes the databases from a server that is not its
    /// own.
    async fn finish(self, outcome: Result<(), Error>) -> Result<(), Error> {
        let Self { servers, urls, name, service, group, clients, kills, .. } = self;
        let outcome = match outcome {
            Ok(()) => balance(&urls, clients, &kills, group.is_some()).await,
            Err(error) => Err(error),
        };
        let ended = match (service, group) {
            (Some(service), _) => service.end().await,
            (None, Some(group)) => group.end().await,
            (None, None) => Ok(()),
        };
        if servers.iter().all(|server| !server.is_own()) {
            let admin = audit::connect(servers[0].url()).await?;
            for bank in Bank::ALL {
                admin.batch_execute(&format!("DROP DATABASE {name}_{bank} WITH (FORCE)")).await?;
            }
        }
        outcome.and(ended)
    }
}

/// Waits for the end of every transfer, and shows the ledger.
async fn balance(
    urls: &[String; 2],
    clients: Clients,
    kills: &Kills,
    has_group: bool,
) -> Result<(), Error> {
    let ledger = clients.finish().await?;
    let Ledger { done, refused, repeats, found, .. } = &ledger;
    let until = Instant::now() + kills.bound;
    // Ends: a transaction that stays prepared is found below.
    while audit::prepared(urls).await? > 0 && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (cents, left) = (audit::compare_banks(urls).await?, audit::prepared(urls).await?);
    audit::compare_ledger(urls, &ledger).await?;
    if left > 0 {
        return Err(format!("{left} transactions are prepared at the end").into());
    }
    println!("\nledger: {} transfers acknowledged, {} refused", done.len(), refused.len());
    println!("        {repeats} attempts repeated, {found} of them found the transfer done");
    println!("banks:  {cents} cents in {} accounts, as at first", 2 * ACCOUNTS);
    if !has_group {
        println!("{kills}");
    }
    println!("exact: both banks hold what was acknowledged, and nothing is prepared");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_named_in_every_kind_of_address() {
        let name = |url: &str| {
            let config: tokio_postgres::Config = in_database(url, "east").parse().unwrap();
            config.get_dbname().unwrap().to_owned()
        };
        assert_eq!(name("host=/tmp/a user=postgres dbname=postgres"), "east");
        assert_eq!(name("postgres://postgres@127.0.0.1:5432/postgres"), "east");
        assert_eq!(name("postgres://postgres@127.0.0.1/postgres?connect_timeout=2"), "east");
    }
}
