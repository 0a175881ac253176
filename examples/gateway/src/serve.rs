//! `gateway --config FILE`: serves until a signal.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::admin;
use crate::gateway::{ApplyError, Gateway};
use crate::reload::Watched;
use crate::view::View;

/// Why the gateway did not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The file cannot be used: exit status 2.
    #[error("{}: {error}", .file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        error: ApplyError,
    },
    /// The file cannot be read: exit status 2.
    #[error("{}: {error}", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
    /// The system refuses a socket or a signal handler.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: String,
        /// The system's error.
        error: std::io::Error,
    },
}

impl ServeError {
    /// The exit status of the process.
    pub fn status(&self) -> u8 {
        match self {
            Self::Config { error, .. } if error.is_config() => 2,
            Self::Read { .. } => 2,
            Self::Config { .. } | Self::System { .. } => 1,
        }
    }

    fn system(what: &str) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let what = what.to_owned();
        move |error| Self::System { what, error }
    }
}

/// Reads the file.
///
/// # Errors
/// The file cannot be read.
pub fn read(file: &Path) -> Result<String, ServeError> {
    std::fs::read_to_string(file).map_err(|error| ServeError::Read { file: file.to_owned(), error })
}

/// The folder below which the relative paths of a file are.
pub fn folder(file: &Path) -> PathBuf {
    file.parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Serves what `file` says. Reloads it on SIGHUP and when it changes. Ends after SIGTERM or SIGINT,
/// once the requests under way have ended; a second signal cuts them.
///
/// # Errors
/// The gateway cannot start.
///
/// # Cancel safety
/// Dropping the future closes listeners; connections end with the runtime.
pub async fn run(file: &Path, shows_view: bool) -> Result<(), ServeError> {
    let text = read(file)?;
    let at = folder(file);
    let failed = ServeError::system("cannot handle signals");
    let mut signals = Signals::new().map_err(failed)?;
    let started = tokio::select! {
        started = Gateway::start(&text, &at) => started,
        name = signals.recv() => {
            tracing::info!(signal = name, "stopped before the start was complete");
            return Ok(());
        }
    };
    let config = |error| ServeError::Config { file: file.to_owned(), error };
    let mut gateway = started.map_err(config)?;
    let mut watched = Watched::new(file, &text).map_err(ServeError::system("SIGHUP"))?;
    let admin = admin_address(&gateway).await?;
    for address in gateway.addresses() {
        tracing::info!(%address, "listening");
    }
    let mut view = shows_view.then(View::default);
    // Ends with a signal.
    loop {
        tokio::select! {
            text = watched.changed() => {
                // Pools whose backends are down make it wait.
                let applied = tokio::select! {
                    applied = gateway.apply(&text, &at) => applied,
                    name = signals.recv() => {
                        tracing::info!(signal = name, "draining in the middle of a reload");
                        break;
                    }
                };
                report(file, applied);
            }
            () = tokio::time::sleep(Duration::from_secs(1)), if view.is_some() => {
                if let Some(view) = &mut view {
                    view.draw(&gateway.overview().read(), "");
                }
            }
            name = signals.recv() => {
                tracing::info!(signal = name, "draining");
                break;
            }
        }
    }
    let within = Duration::from_millis(gateway.server().drain_timeout_ms);
    let cut = tokio::select! {
        cut = gateway.drain(within) => cut,
        name = signals.recv() => {
            tracing::warn!(signal = name, "second signal: not waiting any longer");
            gateway.drain(Duration::ZERO).await
        }
    };
    tracing::info!(connections_cut = cut, "stopped");
    if let Some(admin) = admin {
        admin.abort();
    }
    Ok(())
}

fn report(file: &Path, applied: Result<(), ApplyError>) {
    let file = file.display();
    match applied {
        Ok(()) => tracing::info!(%file, "the new configuration is in use"),
        Err(error) => {
            tracing::error!(%file, %error, "rejected; the old configuration stays in use");
        }
    }
}

async fn admin_address(
    gateway: &Gateway,
) -> Result<Option<tokio::task::JoinHandle<()>>, ServeError> {
    let Some(address) = gateway.server().admin else { return Ok(None) };
    let failed = ServeError::system(&format!("cannot listen on {address} (`admin`)"));
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "administrative address");
    }
    let overview = gateway.overview();
    Ok(Some(tokio::spawn(admin::serve(listener, overview))))
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
