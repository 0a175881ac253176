//! An HTTP gateway.
//!
//! ```text
//! gateway                         the demo: backends, a load, faults, reloads, a verdict; 30 s
//! gateway --config FILE           serve, until SIGTERM or SIGINT
//! gateway --config FILE --view    the same with a live table
//! gateway --config FILE --check   check the file
//! gateway backend                 a test backend
//! ```
//!
//! `GATEWAY_LOG` chooses what is logged: `info` has one line for each request, of the target
//! `voussoir::lb::access`; `info,voussoir::lb::access=off` has none. Without it, it is `info`,
//! `warn` beside the live table, and `off` in the demo.

use std::process::ExitCode;

use clap::Parser;
use gateway::args::Cli;
#[cfg(feature = "demo")]
use gateway::args::Command;
use gateway::serve;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway: {error}");
            let status = error.downcast_ref::<serve::ServeError>();
            status.map_or(ExitCode::FAILURE, |error| ExitCode::from(error.status()))
        }
    }
}

fn run(cli: &Cli) -> Result<(), Error> {
    #[cfg(feature = "demo")]
    if let Some(Command::Backend(backend)) = &cli.command {
        return on_runtime(gateway::demo::backend::run(backend.listen));
    }
    match &cli.config {
        Some(file) if cli.check => {
            let (text, folder) = (serve::read(file)?, serve::folder(file));
            let named = |error| serve::ServeError::Config { file: file.clone(), error };
            on_runtime(async {
                let config = gateway::gateway::check(&text, &folder).await.map_err(named)?;
                let (routes, pools) = (config.routes.len(), config.pools.len());
                println!("{}: {routes} routes, {pools} pools", file.display());
                Ok(())
            })
        }
        Some(file) => {
            log(if cli.view { "warn" } else { "info" })?;
            on_runtime(async { Ok(serve::run(file, cli.view).await?) })
        }
        #[cfg(feature = "demo")]
        None => {
            log("off")?;
            on_runtime(gateway::demo::run())
        }
        #[cfg(not(feature = "demo"))]
        None => Err("usage: gateway --config FILE".into()),
    }
}

fn on_runtime(work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

fn log(default: &str) -> Result<(), Error> {
    let filter = std::env::var("GATEWAY_LOG").unwrap_or_else(|_| default.to_owned());
    let filter: Targets = filter.parse().map_err(|error| format!("GATEWAY_LOG: {error}"))?;
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    tracing_subscriber::registry().with(lines).with(filter).try_init()?;
    Ok(())
}
