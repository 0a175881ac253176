//! One process of the service, from its start to its end.

use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::Error;
use crate::args::Serve;
use crate::counters::Table;
use crate::http::{App, router};
use crate::listen::{self, Limits};
use crate::service::{Config, Service, open_journal};

/// Serves until it is told to stop; then answers the requests in flight and flushes the backlog.
///
/// # Errors
/// The address, the journal or the connection string cannot be used, or the journal has failed:
/// nothing is acknowledged until the next process goes on.
pub(crate) async fn run(serve: Serve, url: &str) -> Result<(), Error> {
    let table = Table::new(url, &serve.table.name)?;
    let listener = TcpListener::bind(serve.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", serve.listen))?;
    let config = Config {
        max_backlog: serve.max_backlog as usize,
        flush_after: serve.flush_after,
        max_journal_bytes: serve.max_journal_mib << 20,
    };
    let journal = open_journal(&serve.data, &config)?;
    let service = Service::open(&journal, &config, table.clone(), table.clone())?;
    let backlog = service.stats().backlog;
    // Registered before the address is known: no signal after it kills the process.
    let stop = told_to_stop(serve.exit_with_parent)?;
    // One line for whoever started it, who may have asked for port 0.
    println!("listening on http://{}, {backlog} counters to flush", listener.local_addr()?);
    let app = router(App { service: service.clone(), table });
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
        error = journal.failed() => return Err(format!("the journal has failed: {error}").into()),
    }
    // Registered before the listener closes: a signal after it is the second one.
    let second = next_signal()?;
    stopped.send_replace(true);
    let drained = timeout(serve.drain, async {
        // Fails only with its listener, which takes no further connection anyway.
        let _ = serving.await;
        service.flush().await;
    });
    let why = tokio::select! {
        drained = drained => drained.err().map(|_| format!("{:?} are over", serve.drain)),
        () = second => Some("second signal".to_owned()),
    };
    if let Some(why) = why {
        eprintln!(
            "write-behind: {why}: not waiting any longer; {} counters are not in the table: they \
             are in {}, and the next start flushes them",
            service.stats().backlog,
            serve.data.display(),
        );
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
