//! One process of the service, from its start to its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;
use voussoir_journal::Journal;
use voussoir_txn::store::JournalStore;
use voussoir_txn::two_phase::{DecisionLog, OpenCoordinatorError, Participant, StoreLog};

use crate::Error;
use crate::args::Serve;
use crate::bank::Bank;
#[cfg(feature = "demo")]
use crate::demo::points::{Points, Stopping, StoppingLog};
use crate::group::Group;
use crate::http::{App, router};
use crate::listen::{self, Limits};
use crate::pool::Pool;
use crate::reach::Reach;
use crate::transfers::Transfers;

/// How long the first request waits for the banks: it would be rejected while one is away.
const START_WAIT: Duration = Duration::from_secs(2);
/// Bytes of one file of the journal: decisions are short, and forgotten soon.
const SEGMENT_BYTES: u64 = 4 << 20;
/// Connections of each bank for reads.
const READERS: usize = 4;
/// Longest time of a read in a bank.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves until it is told to stop; then answers the requests in flight. Transactions that are
/// decided and not applied everywhere are for the next process, or for the next node that leads.
///
/// # Errors
/// The address, the journal or a database cannot be used, or the node of the group has stopped. A
/// bank that is away is no error: it is waited for while the other one is served.
pub(crate) async fn run(serve: Serve, urls: [String; 2]) -> Result<(), Error> {
    let orders = Orders::new(&serve);
    // One for all the time: a reader of standard input that is dropped takes a line with it.
    let mut stop = std::pin::pin!(told_to_stop(serve.exit_with_parent, &orders));
    let (current, watched) = watch::channel(None);
    let (reached, mut both) = watch::channel(false);
    let opening = Opening::new(&serve, &orders);
    let opened = async {
        match serve.member.node {
            Some(_) => Ok::<_, Error>(Some(Group::join(&serve.member, &serve.data).await?)),
            None => {
                current.send_replace(Some(opening.open(classic_log(&serve)?).await?));
                Ok(None)
            }
        }
    };
    let group = tokio::select! {
        opened = opened => opened?,
        stop = &mut stop => return stop,
    };
    // Ends with an error alone: a bank that was reached once is asked again by its participant.
    let mut reaching = std::pin::pin!(async {
        opening.reach(&urls).await?;
        reached.send_replace(true);
        std::future::pending::<Result<(), Error>>().await
    });
    tokio::select! {
        failed = &mut reaching => return failed,
        _ = timeout(START_WAIT, both.wait_for(|reached| *reached)) => {}
        stop = &mut stop => return stop,
    }
    let listener = TcpListener::bind(serve.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", serve.listen))?;
    let active = watched.borrow().as_ref().map_or(0, |one: &Transfers| one.coordinator().active());
    // One line for whoever started it, who may have asked for port 0.
    println!("listening on http://{}, {active} transfers to apply", listener.local_addr()?);
    let pool = |url: &String| Pool::new(url, READERS, READ_TIMEOUT);
    let app = App { current: watched, pools: [pool(&urls[0])?, pool(&urls[1])?] };
    let stopped = watch::Sender::new(false);
    let mut told = stopped.subscribe();
    let serving = listen::serve(listener, router(app), Limits::default(), async move {
        // An error says that the sender is gone: as good as a stop.
        let _ = told.wait_for(|stopped| *stopped).await;
    });
    let mut serving = tokio::spawn(serving);
    let coordinating = async {
        match &group {
            Some(group) => group.coordinate(&current, |log| opening.open(log)).await,
            None => alone(current.borrow().clone()).await,
        }
    };
    let ended = tokio::select! {
        ended = &mut serving => return Ok(ended?),
        ended = coordinating => ended,
        failed = reaching => failed,
        stop = stop => stop,
    };
    // Registered before the listener closes: a signal after it is the second one.
    let second = next_signal()?;
    stopped.send_replace(true);
    tokio::select! {
        drained = timeout(serve.drain, serving) => if drained.is_err() {
            eprintln!("transfer: requests were under way after {:?}", serve.drain);
        },
        () = second => eprintln!("transfer: second signal: not waiting any longer"),
    }
    match group {
        Some(group) => ended.and(group.leave().await),
        None => ended,
    }
}

/// Waits until the coordinator of a process that is alone decides nothing more: its log has failed,
/// or another process has opened it. Only a start of the process opens the next one.
async fn alone(transfers: Option<Transfers>) -> Result<(), Error> {
    let Some(transfers) = transfers else { return std::future::pending().await };
    let why = transfers.coordinator().closed().await;
    Err(format!("the coordinator has ended: {why}").into())
}

/// The log of a coordinator that is alone: its decisions are on one disk.
fn classic_log(serve: &Serve) -> Result<StoreLog<JournalStore>, Error> {
    let mut config = voussoir_journal::Config::default();
    config.segment_bytes = SEGMENT_BYTES;
    let journal = Journal::open(&serve.data, config)?;
    Ok(StoreLog::new(JournalStore::new(&journal, "decisions")?))
}

/// What a coordinator is opened with: once, or on each node of a group whenever it leads.
struct Opening<'a> {
    serve: &'a Serve,
    orders: &'a Orders,
    banks: [Reach; 2],
}

impl<'a> Opening<'a> {
    fn new(serve: &'a Serve, orders: &'a Orders) -> Self {
        Self { serve, orders, banks: Bank::ALL.map(Reach::new) }
    }

    /// Returns when both banks were reached.
    ///
    /// # Errors
    /// As [`Reach::run`].
    async fn reach(&self, urls: &[String; 2]) -> Result<(), Error> {
        let reach = |bank: Bank| {
            self.banks[bank as usize].run(&urls[bank as usize], self.serve.max_transfers)
        };
        tokio::try_join!(reach(Bank::East), reach(Bank::West))?;
        Ok(())
    }

    async fn open(&self, log: impl DecisionLog) -> Result<Transfers, OpenCoordinatorError> {
        let banks = self.banks.clone();
        let participants = banks.clone().map(|bank| Arc::new(bank) as Arc<dyn Participant>);
        #[cfg(feature = "demo")]
        let log = StoppingLog::new(log, &self.orders.points);
        #[cfg(feature = "demo")]
        let participants = Stopping::both(participants, &self.orders.points);
        #[cfg(not(feature = "demo"))]
        let _ = self.orders;
        let (name, every) = (&self.serve.name, self.serve.recover_every);
        Transfers::open(name, every, banks, participants, log).await
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
async fn told_to_stop(by_parent: bool, orders: &Orders) -> Result<(), Error> {
    let signalled = next_signal()?;
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
        () = signalled => {}
        () = parent => {}
    }
    Ok(())
}
