//! Orders that are answered at once, and worked on by payment, stock, shipping and notification.
//!
//! ```text
//! order-pipeline [--seconds 16]    the demo: both forms side by side, a slow service, a dead one
//! order-pipeline run --data FOLDER < orders.jsonl
//! order-pipeline direct < orders.jsonl
//! order-pipeline dead-letters --data FOLDER
//! order-pipeline redrive --data FOLDER
//! ```

mod args;
#[cfg(feature = "demo")]
mod demo;
mod direct;
mod order;
mod pipeline;
mod run;
mod services;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::filter::LevelFilter;

use args::{Cli, Mode};

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(std::io::stderr).init();
    let result = match cli.mode {
        Some(Mode::Run(run)) => run::run(&run).await,
        Some(Mode::Direct) => run::direct().await,
        Some(Mode::DeadLetters(run)) => run::dead_letters(&run).await,
        Some(Mode::Redrive(run)) => run::redrive(&run).await,
        Some(Mode::Purge(run)) => run::purge(&run).await,
        #[cfg(feature = "demo")]
        None => demo::run(&cli.demo).await,
        // Without the demo a command is required, so clap has ended the process.
        #[cfg(not(feature = "demo"))]
        None => Ok(()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("order-pipeline: {error}");
            // Without waiting for the thread that reads the standard input.
            std::process::exit(1)
        }
    }
}
