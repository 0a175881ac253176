//! A replicated key-value store over HTTP.
//!
//! ```text
//! store                  the demo: three nodes, a load, a killed leader, a check
//! store up [FOLDER]      the same cluster durable in ./data, until Ctrl-C
//! store create --id 1 --data FOLDER
//! store serve --id 1 --listen ADDR --http ADDR --data FOLDER --peer ID=ADDR,HTTP_ADDR …
//! store soak --minutes 10
//! ```

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use store::args::{self, Cli, Mode};
use store::node::{self, Stopped};
use store::{demo, log};

fn main() -> ExitCode {
    let mode = Cli::parse().mode.unwrap_or(Mode::Demo);
    let ended = match mode {
        Mode::Demo => on_runtime(demo::run()),
        Mode::Up(up) => on_runtime(demo::up::run(&up)),
        Mode::Soak(soak) => on_runtime(demo::soak::run(&soak)),
        Mode::Create(create) => node::create(create.id, &create.data),
        Mode::Serve(serve) => match args::check(&serve) {
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
