//! Likes that are counted on both sides of a partition and add up afterwards.
//!
//! ```text
//! likes [--seconds 16]    the demo: three processes, a partition, and its end
//! likes serve --id 1 --nodes 1=127.0.0.1:7101,2=127.0.0.1:7102,3=127.0.0.1:7103 --data FOLDER
//! ```

mod args;
mod cluster;
#[cfg(feature = "demo")]
mod demo;
mod likes;
mod own;
#[cfg(test)]
mod own_tests;
mod serve;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::filter::LevelFilter;

use args::{Cli, Mode};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Id of the cluster, the same at all its nodes. Nodes reject peers that state another id.
const CLUSTER: u128 = 0x6C69_6B65;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(std::io::stderr).init();
    let result = match cli.mode {
        Some(Mode::Serve(serve)) => serve::run(&serve).await,
        #[cfg(feature = "demo")]
        None => demo::run(&cli.demo).await,
        // Without the demo a command is required, so clap has ended the process.
        #[cfg(not(feature = "demo"))]
        None => Ok(()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("likes: {error}");
            // Without waiting for the thread that reads the standard input.
            std::process::exit(1)
        }
    }
}
