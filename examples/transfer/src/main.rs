//! Transfers between accounts in two PostgreSQL databases, by two-phase commit.
//!
//! ```text
//! transfer [--rounds 30]          the demo: a load, kills at each point of the protocol, a check
//! transfer create                 creates tables and accounts in both databases
//! transfer serve --listen ADDR --data FOLDER
//!
//! transfer --replicated           the demo with a group of three coordinators, beside a single one
//! transfer create-node --node 1 --data FOLDER
//! transfer serve --listen ADDR --data FOLDER \
//!     --node 1 --node-listen ADDR --peer 2=ADDR --peer 3=ADDR
//! ```

mod args;
mod bank;
#[cfg(feature = "demo")]
mod demo;
mod group;
mod http;
mod listen;
mod pool;
mod reach;
mod serve;
mod transfers;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Mode};
use bank::{Bank, create};

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .init();
    if let Some(Mode::CreateNode(options)) = &cli.mode {
        return ended(group::create(options));
    }
    let urls = match cli.mode {
        Some(_) => Bank::ALL.map(|bank| variable(bank.variable())),
        None => [variable("DATABASE_URL"), variable("DATABASE_URL")],
    };
    if cli.mode.is_some()
        && let Some(bank) = Bank::ALL.into_iter().find(|bank| urls[*bank as usize].is_none())
    {
        let variable = bank.variable();
        eprintln!(
            "transfer: {variable} is not set: expected one such as \
             postgres://postgres@127.0.0.1:5432/{bank}"
        );
        return ExitCode::from(2);
    }
    if let Some(error) = urls.iter().flatten().find_map(|url| bad_url(url)) {
        eprintln!("transfer: the address of a database: {error}");
        return ExitCode::from(2);
    }
    ended(run(cli, urls).await)
}

fn ended(result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("transfer: {}", chain(&*error));
            // The next start would fail in the same way.
            ExitCode::from(if error.is::<reach::WrongAddress>() { 2 } else { 1 })
        }
    }
}

async fn run(cli: Cli, urls: [Option<String>; 2]) -> Result<(), Error> {
    let given = || urls.clone().map(Option::unwrap_or_default);
    match cli.mode {
        Some(Mode::Create(options)) => {
            for url in given() {
                create(&url, options.accounts, options.cents).await?;
            }
            Ok(())
        }
        Some(Mode::CreateNode(options)) => group::create(&options),
        Some(Mode::Serve(options)) => serve::run(options, given()).await,
        #[cfg(feature = "demo")]
        None => demo::run(&cli.demo, urls[0].clone()).await,
        // Without the demo a command is required, so clap has ended the process.
        #[cfg(not(feature = "demo"))]
        None => Ok(()),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|url| !url.is_empty())
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
