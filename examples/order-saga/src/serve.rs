//! One process, from its start to its end: orders in one of the two forms, or the stand-ins of the
//! services.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout, timeout_at};
use voussoir_journal::Journal;
use voussoir_txn::Retry;

use crate::Error;
use crate::args::{Form, Serve, Services};
use crate::choreographed::Choreographed;
use crate::http::router;
use crate::listen::{self, Limits};
use crate::orchestrated::Orchestrated;
use crate::orders::Orders;
use crate::peers::{HttpPeers, Peers};
use crate::services::{self, Tables};

/// The pause before the second attempt of a call.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Bytes of one file of the journal. The bus of the choreographed form needs at least as many.
const SEGMENT_BYTES: u64 = 32 << 20;
/// How long calls that are under way may take to end, after the process was told to stop.
const DRAIN: Duration = Duration::from_secs(20);

/// Takes orders until it is told to stop; then ends the calls that are under way. Orders that have
/// not ended are for the next process.
///
/// # Errors
/// The address or the journal cannot be used, or the journal has failed: every order stands still
/// until the next process goes on.
pub(crate) async fn run(serve: Serve) -> Result<(), Error> {
    let mut config = voussoir_journal::Config::default();
    config.segment_bytes = SEGMENT_BYTES;
    let journal = Journal::open(&serve.data, config)?;
    let peers: Arc<dyn Peers> = Arc::new(HttpPeers::new(serve.services));
    let retry = Retry::exponential(RETRY_PAUSE, serve.attempts);
    let limit = Duration::from_secs(serve.order_seconds);
    let orders: Arc<dyn Orders> = match serve.form {
        Form::Orchestrated => Arc::new(Orchestrated::open(&journal, &peers, &retry, limit).await?),
        Form::Choreographed => {
            Arc::new(Choreographed::open(&journal, &peers, &retry, limit).await?)
        }
    };
    let said = format!("{} orders to go on with", orders.open());
    let app = router(Arc::clone(&orders));
    let failed = journal.failed();
    listen(serve.listen, app, &said, serve.exit_with_parent, failed, async {
        if timeout(DRAIN, orders.drain()).await.is_err() {
            eprintln!("order-saga: calls were under way after {DRAIN:?}");
        }
    })
    .await
}

/// Stands in for the services until it is told to stop.
///
/// # Errors
/// The address cannot be used.
pub(crate) async fn run_services(serve: Services) -> Result<(), Error> {
    let app = services::router(Arc::new(Tables::default()));
    let failed = std::future::pending();
    listen(serve.listen, app, "in memory", serve.exit_with_parent, failed, async {}).await
}

async fn listen(
    address: std::net::SocketAddr,
    app: Router,
    said: &str,
    exit_with_parent: bool,
    failed: impl Future<Output = voussoir_journal::Error>,
    end: impl Future<Output = ()>,
) -> Result<(), Error> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| format!("cannot listen on {address}: {error}"))?;
    // Registered before the address is known: no signal after it kills the process.
    let stop = told_to_stop(exit_with_parent)?;
    // One line for whoever started it, who may have asked for port 0.
    println!("listening on http://{}, {said}", listener.local_addr()?);
    let stopped = tokio::sync::watch::Sender::new(false);
    let mut told = stopped.subscribe();
    let serving = listen::serve(listener, app, Limits::default(), async move {
        // An error says that the sender is gone: as good as a stop.
        let _ = told.wait_for(|stopped| *stopped).await;
    });
    let mut serving = tokio::spawn(serving);
    tokio::select! {
        ended = &mut serving => return Ok(ended?),
        () = stop => {}
        error = failed => return Err(format!("the journal has failed: {error}").into()),
    }
    // Registered before the listener closes: a signal after it is the second one.
    let second = next_signal()?;
    stopped.send_replace(true);
    let until = Instant::now() + DRAIN;
    let drained = async {
        // Before the requests end: they wait for sagas.
        end.await;
        // Both together: a supervisor kills what has not ended after 30 s.
        let _ = timeout_at(until, serving).await;
    };
    tokio::select! {
        () = drained => {}
        () = second => eprintln!("order-saga: second signal: not waiting any longer"),
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

#[cfg(test)]
mod tests {
    use voussoir_journal::files::crash::CrashFiles;
    use voussoir_journal::{Commit, Config};

    use super::*;

    #[tokio::test]
    async fn a_failed_journal_ends_the_process_with_an_error() {
        let disk = CrashFiles::new(1);
        let mut config = Config::default();
        config.segment_bytes = SEGMENT_BYTES;
        let journal = Journal::open_with(disk.mount(), config).unwrap();
        let log = journal.log("orders", 0).unwrap();
        let address = "127.0.0.1:0".parse().unwrap();
        let serving = listen(address, Router::new(), "none", false, journal.failed(), async {});
        let failing = async {
            journal.commit(Commit::new().append(&log, ["one"])).await.unwrap();
            disk.kill();
            journal.commit(Commit::new().append(&log, ["two"])).await.unwrap_err();
        };
        let both = async { tokio::join!(serving, failing) };
        let (ended, ()) = timeout(Duration::from_secs(20), both).await.unwrap();
        let error = ended.unwrap_err().to_string();
        assert!(error.starts_with("the journal has failed: "), "{error}");
    }
}
