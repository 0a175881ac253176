//! The tasks of a session: renewals, and releases in the background.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Retries, Shared, by, retry};
use crate::clock::sleep_until;
use crate::service::GrantKind;

/// The longest pause between two attempts to renew, however long a session lives: a service that is
/// back may be away again soon, and an outage then costs no more than itself.
const MAX_PAUSE: Duration = Duration::from_millis(200);
/// Releases under way at a time.
const MAX_RELEASES: usize = 64;

/// Renews the session until it is lost, closed, or left by everybody.
pub(super) async fn keep_alive<K: GrantKind>(shared: Arc<Shared<K>>) {
    let mut left = shared.is_left.subscribe();
    let is_left = tokio::select! {
        biased;
        () = renew(&shared) => false,
        () = deadline(&shared) => false,
        () = shared.ended() => return,
        // The sender is part of `shared`.
        left = left.wait_for(|is_left| *is_left) => left.is_ok(),
    };
    if is_left {
        return leave(&shared).await;
    }
    shared.end();
    tracing::info!(target: "voussoir::lock", session = shared.id, "the session is lost");
}

/// Returns when the service has said that the session has ended, or a confirmation came too late.
async fn renew<K: GrantKind>(shared: &Shared<K>) {
    let third = shared.ttl / 3;
    let mut renewed_at = shared.opened_at;
    loop {
        let next = renewed_at.saturating_add(third.as_nanos() as u64);
        sleep_until(&*shared.clock, next, third).await;
        let mut retries = Retries::up_to(MAX_PAUSE.min(shared.ttl / 20));
        // Ends: a renewal is confirmed, or the session has ended.
        loop {
            let sent_at = shared.clock.now();
            // An attempt that hangs leaves time for others before the end.
            let until = Instant::now() + third;
            let error = match by(until, shared.service.renew_session(shared.id, until)).await {
                Ok(()) if shared.lease.renewed(sent_at, shared.clock.now()).is_err() => return,
                Ok(()) => {
                    renewed_at = sent_at;
                    break;
                }
                Err(error) if error.is_end_of_session() => return,
                Err(error) => error,
            };
            let session = shared.id;
            tracing::debug!(target: "voussoir::lock", session, %error, "a renewal failed");
            retries.wait().await;
        }
    }
}

/// Returns when the session has ended by its own deadline.
async fn deadline<K: GrantKind>(shared: &Shared<K>) {
    // Ends: renewals cease, or the session is closed.
    while let Some(at) = shared.lease.deadline() {
        sleep_until(&*shared.clock, at, shared.ttl / 10).await;
        if shared.check().is_err() {
            return;
        }
    }
}

/// Nobody uses the session any more: tells the service, so that others need not wait for its end.
async fn leave<K: GrantKind>(shared: &Shared<K>) {
    shared.end();
    let until = Instant::now() + shared.ttl;
    // Without an answer it has ended at the service by then.
    let _ = retry(until, || shared.service.close_session(shared.id, until)).await;
}

/// Releases what was dropped, until the session has ended: each until the service has confirmed it.
pub(super) async fn release_in_background<K: GrantKind>(shared: Arc<Shared<K>>) {
    let mut releases = JoinSet::new();
    let ended = shared.ended();
    tokio::pin!(ended);
    loop {
        while releases.len() < MAX_RELEASES
            && let Some(request) = shared.requests.next_release()
        {
            releases.spawn(release(Arc::clone(&shared), request));
        }
        tokio::select! {
            biased;
            () = &mut ended => return,
            () = shared.release.notified(), if releases.len() < MAX_RELEASES => {}
            Some(_) = releases.join_next() => {}
        }
    }
}

async fn release<K: GrantKind>(shared: Arc<Shared<K>>, request: u64) {
    let mut retries = Retries::new();
    // Ends: it is confirmed, or the session ends, and this task with it.
    loop {
        let until = Instant::now() + shared.ttl;
        let released = by(until, shared.service.release(shared.id, request, until)).await;
        match released {
            Ok(()) => break,
            Err(error) if !error.is_retryable() => break,
            Err(error) => {
                let session = shared.id;
                tracing::debug!(target: "voussoir::lock", session, request, %error, "not released");
            }
        }
        retries.wait().await;
    }
    shared.requests.arrived(request);
}
