//! What the leader does: here, a line in the ledger every 50 ms. **Put your own work here.**
//!
//! Each step reads, computes and writes. Between the check of the permit and the write the process
//! may be paused for any time, and then somebody else leads: the step carries its term, and the
//! ledger refuses it.

use std::net::SocketAddr;
use std::time::Duration;

use voussoir_lock::{FencingToken, Leadership, SessionLost};

use crate::guarded::{Client, LedgerError};

/// How long a step computes.
const COMPUTING: Duration = Duration::from_millis(50);
/// Pause after a step that failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Works until the leadership is lost, or a newer leader has entered the ledger.
pub(crate) async fn work(leadership: &Leadership, ledger: SocketAddr, node: u64) -> Ended {
    // Ends: the leadership is lost, or the ledger knows a newer leader.
    loop {
        let token = match leadership.permit() {
            Ok(permit) => permit.token(),
            Err(SessionLost) => return Ended::Lost,
        };
        // A step blocks its thread: it goes on when this future is dropped, as code of others
        // would. Only the ledger can stop it then.
        let stepped = tokio::task::spawn_blocking(move || step(ledger, token, node));
        match stepped.await {
            Ok(Ok(())) => {}
            Ok(Err(LedgerError::Stale { .. })) => return Ended::Superseded,
            Ok(Err(_)) | Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Why the work has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Others may lead.
    Lost,
    /// The ledger refused the term.
    Superseded,
}

fn step(ledger: SocketAddr, token: FencingToken, node: u64) -> Result<(), LedgerError> {
    let stepped = try_step(ledger, token, node);
    if let Err(error) = &stepped {
        tracing::warn!(term = token.get(), %error, "a step of the work failed");
    }
    stepped
}

fn try_step(ledger: SocketAddr, token: FencingToken, node: u64) -> Result<(), LedgerError> {
    let mut client = Client::connect(ledger, token, node)?;
    let last = client.enter()?;
    std::thread::sleep(COMPUTING);
    client.append(last + 1, &format!("by process {node}"))?;
    Ok(())
}
