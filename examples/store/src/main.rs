//! A replicated key-value store over HTTP.
//!
//! ```text
//! store                  the demo: three nodes, a load, a killed leader, a check
//! store --tls            the same with TLS between the nodes
//! store up [FOLDER]      the same cluster durable in ./data, until Ctrl-C
//! store create --id 1 --data FOLDER
//! store serve --id 1 --listen ADDR --http ADDR --data FOLDER --peer ID=ADDR,HTTP_ADDR …
//! store soak --minutes 10
//! ```

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use store::args::{self, Cli, Mode};
#[cfg(feature = "demo")]
use store::demo;
use store::node::{self, Stopped};
use store::{log, up};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.mode {
        #[cfg(feature = "demo")]
        None | Some(Mode::Demo) => on_runtime(demo::run(cli.tls)),
        #[cfg(feature = "demo")]
        Some(Mode::Soak(soak)) => on_runtime(demo::soak::run(&soak)),
        // Without the demo a command is required, so clap has ended the process.
        #[cfg(not(feature = "demo"))]
        None => Ok(()),
        Some(Mode::Up(up)) => on_runtime(up::run(&up)),
        Some(Mode::Create(create)) => node::create(create.id, &create.data),
        Some(Mode::Serve(serve)) => match args::check(&serve) {
            Ok(()) => log::start().and_then(|()| node::serve(*serve)),
            Err(error) => {
                eprintln!("store: {error}");
                return ExitCode::from(2);
            }
        },
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("store: {}", log::chain(&*error));
            let stopped = error.downcast_ref::<Stopped>();
            stopped.map_or(ExitCode::FAILURE, |stopped| ExitCode::from(stopped.status()))
        }
    }
}

fn on_runtime(
    work: impl Future<Output = Result<(), Box<dyn Error>>>,
) -> Result<(), Box<dyn Error>> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}
