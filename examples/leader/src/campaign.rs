//! Campaigns, works while it leads, and campaigns again.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use voussoir_lock::{Election, Fenced, LeaseConfig, LockError, LockService, Session};

use crate::work::{self, Ended};

/// The election, a lock of this name: **choose your own.**
const ELECTION: &str = "worker";
/// How long one call waits; it is repeated.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a resignation may take until it goes on in the background.
const RESIGN: Duration = Duration::from_secs(2);
/// Pause before another session, while the service is not reached.
const PAUSE: Duration = Duration::from_millis(200);

/// What a process needs to lead.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// Its number, which observers of the election see.
    pub(crate) node: u64,
    pub(crate) ledger: SocketAddr,
    pub(crate) lease: LeaseConfig,
}

/// Campaigns and works until `end` returns, and then closes the session, so that the next candidate
/// need not wait for the end of its time to live. A signal on `resign` gives the leadership to the
/// next candidate.
pub(crate) async fn run<S, T>(
    locks: Arc<S>,
    candidate: Candidate,
    mut resign: Signal,
    end: impl Future<Output = T>,
) -> T
where
    S: LockService<Grants = Fenced>,
{
    let mut end = pin!(end);
    // Ends: `end` returns.
    loop {
        let opened = tokio::select! {
            opened = Session::open(Arc::clone(&locks), candidate.lease.clone(), PATIENCE) => opened,
            ended = &mut end => return ended,
        };
        let session = match opened {
            Ok(session) => session,
            Err(error) => {
                tracing::warn!(%error, "no session");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        tokio::select! {
            () = live(&session, &candidate, &mut resign) => {}
            ended = &mut end => {
                if let Err(error) = session.close(RESIGN).await {
                    tracing::info!(%error, "the session is not closed: it ends by itself");
                }
                return ended;
            }
        }
    }
}

/// Campaigns and works until the session is lost: a lost session stays lost.
async fn live(session: &Session, candidate: &Candidate, resign: &mut Signal) {
    let election = Election::new(session, ELECTION);
    // Ends: the session is lost.
    while session.check().is_ok() {
        let mut campaign = pin!(election.campaign(candidate.node.to_string(), PATIENCE));
        // Ends: the campaign does. A resignation is for who leads: kept, it would end the term that
        // this process is elected for later.
        let elected = loop {
            tokio::select! {
                elected = &mut campaign => break elected,
                Some(()) = resign.recv() => tracing::info!("told to resign, and does not lead"),
            }
        };
        let leadership = match elected {
            Ok(leadership) => leadership,
            // Others lead for so long; or the service has to recover.
            Err(LockError::TimedOut) => continue,
            Err(error) => {
                tracing::debug!(%error, "not elected");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let term = leadership.term().get();
        tracing::info!(term, "this process leads");
        let work = async {
            tokio::select! {
                ended = work::work(&leadership, candidate.ledger, candidate.node) => Some(ended),
                _ = resign.recv() => None,
            }
        };
        let worked = leadership.run(work).await;
        match worked {
            Ok(None) => tracing::info!(term, "this process resigns"),
            Ok(Some(Ended::Superseded)) => tracing::info!(term, "a newer leader has entered"),
            Ok(Some(Ended::Lost)) | Err(_) => tracing::info!(term, "the leadership is lost"),
        }
        let released = leadership.resign(RESIGN).await;
        tracing::debug!(term, ?released);
    }
}
