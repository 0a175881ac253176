//! One process of the service, from its start to its end.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::Error;
use crate::args::Serve;
use crate::catalogue::Catalogue;
use crate::http::{App, router};
use crate::listen::{self, Limits};
use crate::listener::Listener;
use crate::shared::Shared;
use crate::table::Table;

/// How long the first request waits for the listener: what is read before it listens has to be
/// dropped.
const LISTEN_WAIT: Duration = Duration::from_secs(2);
/// How long requests in flight may take after the service was told to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// Serves until it is told to stop, and answers the requests in flight then.
///
/// # Errors
/// The address or the connection string cannot be used.
pub(crate) async fn run(serve: Serve, url: &str, redis: Option<&str>) -> Result<(), Error> {
    let name = &serve.table.name;
    let shared = redis.map(|url| Shared::new(url, name)).transpose()?;
    let table = Table::new(url, name)?;
    let catalogue = Catalogue::new(table, &serve.freshness(), shared.as_ref())?;
    let listener = if serve.no_listen {
        None
    } else {
        let listener = Listener::start(url, name, catalogue.cache().clone())?;
        // Late: the service works without it, and the listener drops what was read meanwhile.
        let _ = timeout(LISTEN_WAIT, listener.ready()).await;
        Some(listener)
    };
    let socket = TcpListener::bind(serve.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", serve.listen))?;
    // Registered before the address is known: no signal after it kills the process.
    let stop = told_to_stop(serve.exit_with_parent)?;
    // One line for whoever started it, who may have asked for port 0.
    println!("listening on http://{}", socket.local_addr()?);
    let stopped = tokio::sync::watch::Sender::new(false);
    let mut told = stopped.subscribe();
    let app = router(App { catalogue, listener });
    let serving = listen::serve(socket, app, Limits::default(), async move {
        // An error says that the sender is gone: as good as a stop.
        let _ = told.wait_for(|stopped| *stopped).await;
    });
    let mut serving = tokio::spawn(serving);
    tokio::select! {
        ended = &mut serving => return Ok(ended?),
        () = stop => {}
    }
    // Registered before the listener closes: a signal after it is the second one.
    let second = next_signal()?;
    stopped.send_replace(true);
    tokio::select! {
        drained = timeout(DRAIN, serving) => if drained.is_err() {
            eprintln!("read-through-postgres: requests were cut off after {DRAIN:?}");
        },
        () = second => eprintln!("read-through-postgres: second signal: not waiting any longer"),
    }
    Ok(())
}

/// Waits for the next SIGTERM or Ctrl-C. Registered by the call: none that follows it is lost.
fn next_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Waits for SIGTERM, Ctrl-C, or the end of standard input.
fn told_to_stop(by_parent: bool) -> std::io::Result<impl Future<Output = ()>> {
    let signalled = next_signal()?;
    let parent = async move {
        if !by_parent {
            return std::future::pending().await;
        }
        let mut ignored = [0; 64];
        let mut stdin = tokio::io::stdin();
        // Ends: with standard input.
        while stdin.read(&mut ignored).await.is_ok_and(|count| count > 0) {}
    };
    Ok(async move {
        tokio::select! {
            () = signalled => {}
            () = parent => {}
        }
    })
}
