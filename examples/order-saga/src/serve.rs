//! One process, from its start to its end: orders in one of the two forms, or the stand-ins of the
//! services.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use voussoir_journal::{Commit, Journal};
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
/// Time between two looks whether the journal has failed.
const LOOK: Duration = Duration::from_millis(500);

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
    let failed = failed(&journal);
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
        stop = told_to_stop(exit_with_parent) => stop?,
        error = failed => return Err(format!("the journal has failed: {error}").into()),
    }
    stopped.send_replace(true);
    let until = Instant::now() + DRAIN;
    // Before the requests end: they wait for sagas.
    end.await;
    // Both together: a supervisor kills what has not ended after 30 s.
    let _ = timeout_at(until, serving).await;
    Ok(())
}

/// SIGTERM, Ctrl-C, or the end of standard input.
async fn told_to_stop(by_parent: bool) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let parent = async {
        if !by_parent {
            return std::future::pending().await;
        }
        let mut ignored = [0; 64];
        let mut stdin = tokio::io::stdin();
        // Ends: with standard input.
        while stdin.read(&mut ignored).await.is_ok_and(|count| count > 0) {}
    };
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        () = parent => {}
    }
    Ok(())
}

/// Returns once the journal has failed for good: a write or a sync that failed is never repeated,
/// so nothing is taken until a next process opens it. A full disk is no failure.
async fn failed(journal: &Journal) -> voussoir_journal::Error {
    // Ends with the journal.
    loop {
        // Writes nothing, and waits for what is being written.
        match journal.commit(Commit::new()).await {
            Err(error) if !error.is_retryable() => return error,
            _ => sleep(LOOK).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use voussoir_journal::files::crash::CrashFiles;

    use super::*;

    #[tokio::test]
    async fn a_journal_that_has_failed_is_noticed_and_one_that_works_is_not() {
        let disk = CrashFiles::new(1);
        let mut config = voussoir_journal::Config::default();
        config.segment_bytes = SEGMENT_BYTES;
        let journal = Journal::open_with(disk.mount(), config).unwrap();
        let log = journal.log("orders", 0).unwrap();
        journal.commit(Commit::new().append(&log, ["one"])).await.unwrap();
        assert!(timeout(3 * LOOK, failed(&journal)).await.is_err());
        disk.kill();
        journal.commit(Commit::new().append(&log, ["two"])).await.unwrap_err();
        timeout(Duration::from_secs(20), failed(&journal)).await.unwrap();
    }
}
