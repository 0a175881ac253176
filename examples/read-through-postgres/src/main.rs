//! A product catalogue in PostgreSQL, read through a cache.
//!
//! ```text
//! read-through-postgres                    the demo: what each strategy is worth, counted
//! read-through-postgres create             creates the table and its triggers
//! read-through-postgres serve --listen ADDR
//! ```

mod args;
mod catalogue;
#[cfg(feature = "demo")]
mod demo;
mod http;
mod listen;
mod listener;
mod pool;
mod serve;
mod shared;
mod table;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Mode};
use table::Table;

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
    let variable = |name| std::env::var(name).ok().filter(|url| !url.is_empty());
    let (url, redis) = (variable("DATABASE_URL"), variable("REDIS_URL"));
    if cli.mode.is_some() && url.is_none() {
        eprintln!("read-through-postgres: {NO_DATABASE}");
        return ExitCode::from(2);
    }
    if let Some(error) = url.as_deref().and_then(bad_url) {
        eprintln!("read-through-postgres: DATABASE_URL: {error}");
        return ExitCode::from(2);
    }
    if let Some(error) = redis.as_deref().and_then(bad_redis) {
        eprintln!("read-through-postgres: REDIS_URL: {error}");
        return ExitCode::from(2);
    }
    match run(cli, url, redis).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("read-through-postgres: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli, url: Option<String>, redis: Option<String>) -> Result<(), Error> {
    let given = url.as_deref().unwrap_or_default();
    match cli.mode {
        Some(Mode::Create(table)) => Ok(Table::new(given, &table.name)?.create().await?),
        Some(Mode::Serve(serve)) => serve::run(serve, given, redis.as_deref()).await,
        #[cfg(feature = "demo")]
        None => demo::run(&cli.demo, url, redis).await,
        // Without the demo a command is required, so clap has ended the process.
        #[cfg(not(feature = "demo"))]
        None => Ok(()),
    }
}

fn bad_url(url: &str) -> Option<String> {
    url.parse::<tokio_postgres::Config>().err().map(|error| chain(&error))
}

fn bad_redis(url: &str) -> Option<String> {
    redis::Client::open(url).err().map(|error| chain(&error))
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
