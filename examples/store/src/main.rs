//! A replicated key-value store over HTTP.
//!
//! ```text
//! store                  the demo: three nodes, a load, a killed leader, a check
//! store up [FOLDER]      the same cluster durable in ./data, until Ctrl-C
//! store create --id 1 --data FOLDER
//! store serve --id 1 --listen ADDR --http ADDR --data FOLDER --peer ID=ADDR,HTTP_ADDR …
//! ```

use std::process::ExitCode;

use store::args::{self, Mode};
use store::{demo, node};

fn main() -> ExitCode {
    let mode = match args::parse(std::env::args().skip(1)) {
        Ok(mode) => mode,
        Err(error) => {
            eprintln!("store: {error}\n\n{}", args::USAGE);
            return ExitCode::from(2);
        }
    };
    let ended = match mode {
        Mode::Demo => runtime().and_then(|runtime| runtime.block_on(demo::run())),
        Mode::Up { folder } => runtime().and_then(|runtime| runtime.block_on(demo::up(&folder))),
        Mode::Create { id, data } => node::create(id, &data),
        Mode::Serve(node) => node::serve(node),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("store: {error}");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Box<dyn std::error::Error>> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}
