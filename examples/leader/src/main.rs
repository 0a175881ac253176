//! Several processes of which one works: the leader, by a lock of a group that they form.
//!
//! ```text
//! leader [--rounds 2]            the demo: the leader is killed, paused and resigned in turn
//! leader create --id 1 --data FOLDER
//! leader serve --id 1 --listen ADDR --data FOLDER --peer ID=ADDR … --ledger ADDR
//! leader ledger --listen ADDR --file FILE
//! ```

mod args;
mod campaign;
#[cfg(feature = "demo")]
mod demo;
mod guarded;
mod ledger;
mod log;
mod node;
mod work;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Mode};

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.mode {
        Some(Mode::Create(create)) => node::create(&create),
        Some(Mode::Serve(serve)) => log::start().and_then(|()| on_one_thread(node::serve(&serve))),
        Some(Mode::Ledger(ledger)) => {
            log::start().and_then(|()| on_one_thread(guarded::run(ledger.listen, &ledger.file)))
        }
        #[cfg(feature = "demo")]
        None => on_one_thread(demo::run(&cli.demo)),
        // Without the demo a command is required, so clap has ended the process.
        #[cfg(not(feature = "demo"))]
        None => Ok(()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leader: {}", log::chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn on_one_thread(work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
