//! Orders over four services as a durable saga, orchestrated or choreographed.
//!
//! ```text
//! order-saga                      the demo: failures, a compensation that is stuck, kills, a check
//! order-saga services             stand-ins for the four services
//! order-saga serve --services ADDR --data FOLDER [--form choreographed]
//! ```

mod args;
mod choreographed;
#[cfg(feature = "demo")]
mod demo;
mod http;
mod listen;
mod orchestrated;
mod order;
mod orders;
mod peers;
mod saga;
mod serve;
mod services;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Mode};

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .init();
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("order-saga: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<(), Error> {
    match cli.mode {
        Some(Mode::Services(options)) => serve::run_services(options).await,
        Some(Mode::Serve(options)) => serve::run(options).await,
        #[cfg(feature = "demo")]
        None => demo::run(&cli.demo).await,
        // Without the demo a command is required, so clap has ended the process.
        #[cfg(not(feature = "demo"))]
        None => Ok(()),
    }
}
