//! One process of the service, from its start to its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};
use voussoir_journal::Journal;
use voussoir_txn::store::JournalStore;
use voussoir_txn::two_phase::postgres::{PostgresConfig, PostgresError, PostgresParticipant};
use voussoir_txn::two_phase::{Participant, StoreLog};

use crate::Error;
use crate::args::Serve;
use crate::bank::Bank;
#[cfg(feature = "demo")]
use crate::demo::points::{Points, Stopping, StoppingLog};
use crate::http::{App, router};
use crate::pool::Pool;
use crate::transfers::Transfers;

/// Time between two attempts to reach a bank at the start.
const START_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of one file of the journal: decisions are short, and forgotten soon.
const SEGMENT_BYTES: u64 = 4 << 20;
/// Connections of each bank for reads.
const READERS: usize = 4;
/// Longest time of a read in a bank.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves until it is told to stop; then answers the requests in flight. Transactions that are
/// decided and not applied everywhere are for the next process.
///
/// # Errors
/// The address, the journal or a database cannot be used.
pub(crate) async fn run(serve: Serve, urls: [String; 2]) -> Result<(), Error> {
    let orders = Orders::new(&serve);
    // One for all the time: a reader of standard input that is dropped takes a line with it.
    let mut stop = std::pin::pin!(told_to_stop(serve.exit_with_parent, &orders));
    let opened = tokio::select! {
        opened = open(&serve, &urls, &orders) => opened?,
        stop = &mut stop => return stop,
    };
    let listener = TcpListener::bind(serve.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", serve.listen))?;
    let active = opened.transfers.coordinator().active();
    // One line for whoever started it, who may have asked for port 0.
    println!("listening on http://{}, {active} transfers to apply", listener.local_addr()?);
    let stopped = tokio::sync::watch::Sender::new(false);
    let mut told = stopped.subscribe();
    let serving = axum::serve(listener, router(opened)).with_graceful_shutdown(async move {
        // An error says that the sender is gone: as good as a stop.
        let _ = told.wait_for(|stopped| *stopped).await;
    });
    let mut serving = tokio::spawn(serving.into_future());
    tokio::select! {
        ended = &mut serving => return Ok(ended??),
        stop = stop => stop?,
    }
    stopped.send_replace(true);
    if timeout(serve.drain, serving).await.is_err() {
        eprintln!("transfer: requests were under way after {:?}", serve.drain);
    }
    Ok(())
}

async fn open(serve: &Serve, urls: &[String; 2], orders: &Orders) -> Result<App, Error> {
    let mut config = voussoir_journal::Config::default();
    config.segment_bytes = SEGMENT_BYTES;
    let journal = Journal::open(&serve.data, config)?;
    let log = StoreLog::new(JournalStore::new(&journal, "decisions")?);
    let [east, west] = urls;
    let (east, west) = tokio::try_join!(
        participant(Bank::East, east, serve.max_transfers),
        participant(Bank::West, west, serve.max_transfers),
    )?;
    let banks = [east, west];
    let participants = banks.clone().map(|bank| Arc::new(bank) as Arc<dyn Participant>);
    #[cfg(feature = "demo")]
    let log = StoppingLog::new(log, &orders.points);
    #[cfg(feature = "demo")]
    let participants = Stopping::both(participants, &orders.points);
    #[cfg(not(feature = "demo"))]
    let _ = orders;
    let (name, every) = (&serve.name, serve.recover_every);
    let transfers = Transfers::open(name, every, banks, participants, log).await?;
    let pool = |url: &String| Pool::new(url, READERS, READ_TIMEOUT);
    Ok(App { transfers, pools: [pool(&urls[0])?, pool(&urls[1])?] })
}

/// A bank as a participant. Waits for a database that cannot be reached: it may hold transactions
/// prepared that only this process can end.
///
/// # Errors
/// The server's configuration does not fit.
async fn participant(bank: Bank, url: &str, max: u32) -> Result<PostgresParticipant, Error> {
    let mut config = PostgresConfig::default();
    config.max_branches = max as usize;
    let mut is_said = false;
    // Ends: with the first answer. The caller stops waiting by dropping it.
    loop {
        let mut server: tokio_postgres::Config = url.parse()?;
        if server.get_connect_timeout().is_none() {
            server.connect_timeout(READ_TIMEOUT);
        }
        match PostgresParticipant::open(server, config.clone()).await {
            Ok(participant) => return Ok(participant),
            Err(PostgresError::Postgres(error)) => {
                if !is_said {
                    tracing::warn!(%bank, error = crate::chain(&error), "waiting for the database");
                }
                is_said = true;
                sleep(START_PAUSE).await;
            }
            Err(error) => return Err(format!("{bank}: {error}").into()),
        }
    }
}

/// What the parent process says on standard input.
struct Orders {
    #[cfg(feature = "demo")]
    points: Arc<Points>,
}

impl Orders {
    #[cfg(feature = "demo")]
    fn new(serve: &Serve) -> Self {
        Self { points: Points::new(serve.stop_at.as_deref()) }
    }

    #[cfg(not(feature = "demo"))]
    fn new(_: &Serve) -> Self {
        Self {}
    }

    #[cfg(feature = "demo")]
    fn take(&self, line: &str) {
        self.points.order(line);
    }

    #[cfg(not(feature = "demo"))]
    #[allow(clippy::unused_self, reason = "the demonstration has orders")]
    fn take(&self, _: &str) {}
}

/// SIGTERM, Ctrl-C, or the end of standard input.
async fn told_to_stop(by_parent: bool, orders: &Orders) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let parent = async {
        if !by_parent {
            return std::future::pending().await;
        }
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        // Ends: with standard input.
        while let Ok(Some(line)) = lines.next_line().await {
            orders.take(&line);
        }
    };
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        () = parent => {}
    }
    Ok(())
}
