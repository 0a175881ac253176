//! The PostgreSQL servers.

use tokio_postgres::{Client, Config, NoTls};

/// The server of a variable, if one is named.
fn server(variable: &str) -> Option<Config> {
    let url = std::env::var(variable).ok()?;
    Some(url.parse().unwrap_or_else(|error| panic!("{variable} names no server: {error}")))
}

/// The first server, if one is named; otherwise says what is left out.
pub fn first(part: &str) -> Option<Config> {
    let found = server("DATABASE_URL");
    if found.is_none() {
        println!("{part}: left out, DATABASE_URL names no server");
    }
    found
}

/// Two databases of this run, in two servers if there are two.
pub struct Two {
    /// What they are reached by.
    pub at: [Config; 2],
    servers: [Config; 2],
    pub are_apart: bool,
}

const NAMES: [&str; 2] = ["voussoir_bench_a", "voussoir_bench_b"];

impl Two {
    /// Creates them anew.
    pub async fn create(first: Config) -> Self {
        let second = server("DATABASE_URL_2");
        let are_apart = second.is_some();
        let servers = [first.clone(), second.unwrap_or(first)];
        let mut at = servers.clone();
        for (one, name) in at.iter_mut().zip(NAMES) {
            one.dbname(name);
        }
        let two = Self { at, servers, are_apart };
        two.each(|name| format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
        two.each(|name| format!("CREATE DATABASE {name}")).await;
        two
    }

    pub async fn remove(self) {
        self.each(|name| format!("DROP DATABASE {name} WITH (FORCE)")).await;
    }

    async fn each(&self, statement: impl Fn(&str) -> String) {
        for (server, name) in self.servers.iter().zip(NAMES) {
            let client = connect(server).await;
            client.batch_execute(&statement(name)).await.expect("the server does it");
        }
    }
}

pub async fn connect(config: &Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.expect("a connection");
    // Ends with the client.
    tokio::spawn(connection);
    client
}
