//! A replicated key-value store over HTTP.
//!
//! ```text
//! store                  the demo: three nodes, a load, a killed leader, a check
//! store --tls            the same with TLS between the nodes
//! store up [FOLDER]      the same cluster durable in ./data, until Ctrl-C
//! store create --id 1 --data FOLDER
//! store serve --id 1 --listen ADDR --http ADDR --data FOLDER --peer ID=ADDR,HTTP_ADDR …
//! store replace --old 2 --to HTTP_ADDR --id 4 --peers ADDR --http ADDR
//! store move --to HTTP_ADDR --id 2 --peers ADDR --http ADDR
//! store soak --minutes 10
//! store --shards 16      the store in shards: a node is added, a hot shard is split, under load
//! ```

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use store::args::{self, Add, Cli, Mode, Move, Remove, Replace, Shards, To};
#[cfg(feature = "demo")]
use store::demo;
use store::members::{self, Placed, Wanted};
use store::node::{self, Stopped};
use store::{log, shards, up};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.mode {
        #[cfg(feature = "demo")]
        None | Some(Mode::Demo) => match cli.shards {
            Some(shards) => on_runtime(demo::shards::run(shards)),
            None => on_runtime(demo::run(cli.tls)),
        },
        #[cfg(feature = "demo")]
        Some(Mode::Soak(soak)) => on_runtime(demo::soak::run(&soak)),
        // Without the demo a command is required, so clap has ended the process.
        #[cfg(not(feature = "demo"))]
        None => Ok(()),
        Some(Mode::Up(up)) => on_runtime(up::run(&up)),
        Some(Mode::Add(Add { to, id, peers, http })) => {
            let add = Some(Placed { id, peers, http });
            on_runtime(ask(to, Wanted { add, ..Wanted::default() }))
        }
        Some(Mode::Replace(Replace { old, new: Add { to, id, peers, http } })) => {
            let (add, remove) = (Some(Placed { id, peers, http }), Some(old));
            on_runtime(ask(to, Wanted { add, remove, ..Wanted::default() }))
        }
        Some(Mode::Move(Move { to, id, peers, http })) => {
            let moved = Some(Placed { id, peers, http });
            on_runtime(ask(to, Wanted { moved, ..Wanted::default() }))
        }
        Some(Mode::Remove(Remove { to, id })) => {
            on_runtime(ask(to, Wanted { remove: Some(id), ..Wanted::default() }))
        }
        Some(Mode::Shards(Shards { to, wanted })) => on_runtime(shards::cli::run(to, wanted)),
        Some(Mode::Create(create)) => node::create(create.id, &create.data),
        Some(Mode::Serve(serve)) => match args::check(&serve) {
            Ok(()) => log::start().and_then(|()| match serve.shards {
                Some(_) => shards::node::serve(*serve),
                None => node::serve(*serve),
            }),
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

/// Asks a cluster for other members, and says who they are then.
async fn ask(to: To, wanted: Wanted) -> Result<(), Box<dyn Error>> {
    let members = members::ask(&to.nodes, &wanted).await?;
    println!("voters: {:?}, learners: {:?}", members.voters, members.learners);
    Ok(())
}

fn on_runtime(
    work: impl Future<Output = Result<(), Box<dyn Error>>>,
) -> Result<(), Box<dyn Error>> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}
