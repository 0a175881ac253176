//! A shopping cart in two regions, changed on both sides of a partition and merged afterwards.
//!
//! ```text
//! cart [--seconds 16]    the demo: two regions of three processes, a partition, and its end
//! cart serve --id 1 --east 1=ADDRESS,2=ADDRESS,3=ADDRESS --west 4=ADDRESS,... --data FOLDER
//! ```

mod args;
mod cart;
mod cluster;
#[cfg(feature = "demo")]
mod demo;
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
const CLUSTER: u128 = 0x6361_7274;

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
            eprintln!("cart: {error}");
            // Without waiting for the thread that reads the standard input.
            std::process::exit(1)
        }
    }
}
