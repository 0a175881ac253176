//! Looks into a queue on disk, and writes to it, while no service has its journal open:
//!
//! ```text
//! cargo run --release -p voussoir-queue --all-features --example queue -- --dir DIR topics
//! cargo run --release -p voussoir-queue --all-features --example queue -- --dir DIR consume orders
//! cargo run --release -p voussoir-queue --all-features --example queue -- --dir DIR lag billing
//! ```
//!
//! `help` lists the commands. Status 1 when something is wrong with the queue, 2 when with the
//! command line.

mod args;
mod bench;
mod commands;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

type Error = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = runtime.map_err(Error::from).and_then(|runtime| {
        let mut input = std::io::stdin().lock();
        let mut out = std::io::stdout().lock();
        let done = runtime.block_on(commands::run(&cli, &mut input, &mut out));
        out.flush()?;
        done
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads may have seen enough, as `head` has.
        Err(error) if is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("queue: {error}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
