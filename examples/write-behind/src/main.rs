//! Counters ingested over HTTP through a write-behind cache into PostgreSQL.
//!
//! ```text
//! write-behind [--seconds 20]     the demo: a load, two kills, an outage of the database, a check
//! write-behind create             creates the table
//! write-behind serve --listen ADDR --data FOLDER
//! ```

mod args;
mod counters;
#[cfg(feature = "demo")]
mod demo;
mod http;
mod listen;
mod pool;
mod serve;
mod service;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Mode};
use counters::Table;

type Error = Box<dyn std::error::Error + Send + Sync>;

const NO_DATABASE: &str =
    "DATABASE_URL is not set: expected one such as postgres://postgres@127.0.0.1:5432/postgres";

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .init();
    let url = std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty());
    if cli.mode.is_some() && url.is_none() {
        eprintln!("write-behind: {NO_DATABASE}");
        return ExitCode::from(2);
    }
    if let Some(error) = url.as_deref().and_then(bad_url) {
        eprintln!("write-behind: DATABASE_URL: {error}");
        return ExitCode::from(2);
    }
    match run(cli, url).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("write-behind: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli, url: Option<String>) -> Result<(), Error> {
    let given = url.as_deref().unwrap_or_default();
    match cli.mode {
        Some(Mode::Create(table)) => Ok(Table::new(given, &table.name)?.create().await?),
        Some(Mode::Serve(serve)) => serve::run(serve, given).await,
        #[cfg(feature = "demo")]
        None => demo::run(&cli.demo, url).await,
        // Without the demo a command is required, so clap has ended the process.
        #[cfg(not(feature = "demo"))]
        None => Ok(()),
    }
}

fn bad_url(url: &str) -> Option<String> {
    url.parse::<tokio_postgres::Config>().err().map(|error| chain(&error))
}

/// An error with its causes, each named once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    // Ends: with the last cause.
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}
