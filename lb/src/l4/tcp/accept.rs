//! Accepts connections within the limit, and gives each a task.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;

use super::{Shared, connection};
use crate::l4::config::OnFull;
use crate::l4::stats::add;

/// Pause after an error that the next call would meet again, such as "too many open files".
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// A connection's share of the limits, and its place among those to be drained. Given back when
/// dropped, also by a task that is aborted or panics.
pub(super) struct Registration {
    shared: Arc<Shared>,
    id: u64,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.connections.lock().remove(&self.id);
        drop(self.permit.take());
        // One that waits for an endpoint, and, at the end of a drain, all that wait for that.
        if *self.shared.draining.borrow() {
            self.shared.released.notify_waiters();
        } else {
            self.shared.released.notify_one();
        }
    }
}

pub(super) async fn run(shared: &Arc<Shared>, listener: TcpListener) {
    let mut draining = shared.draining.subscribe();
    let local = listener.local_addr().ok();
    // Ends: when the proxy drains.
    loop {
        tokio::select! {
            biased;
            _ = draining.wait_for(|draining| *draining) => break,
            () = accept(shared, &listener, local) => {}
        }
    }
    // Those that the system has accepted already would be reset when the listener is closed.
    // Ends: when none is left, or all permits are taken.
    while let Some(permit) = permit_now(shared) {
        tokio::select! {
            biased;
            Ok((stream, peer)) = listener.accept() => start(shared, stream, peer, local, permit),
            () = std::future::ready(()) => break,
        }
    }
}

fn permit_now(shared: &Shared) -> Option<OwnedSemaphorePermit> {
    Arc::clone(&shared.permits).try_acquire_owned().ok()
}

/// Accepts one connection. Dropping the future loses none but one that waits for a permit, as those
/// in the system's queue do then.
async fn accept(shared: &Arc<Shared>, listener: &TcpListener, local: Option<SocketAddr>) {
    let waits = shared.config.on_full == OnFull::Wait;
    if waits {
        // Not kept while nobody connects: it may be the last one, which another listener needs.
        drop(shared.permits.acquire().await);
    }
    let (stream, peer) = match listener.accept().await {
        Ok(accepted) => accepted,
        Err(error) => return pause(shared, &error).await,
    };
    let permit = match permit_now(shared) {
        // Another listener has given away the last one meanwhile.
        None if waits => Arc::clone(&shared.permits).acquire_owned().await.ok(),
        permit => permit,
    };
    match permit {
        Some(permit) => start(shared, stream, peer, local, permit),
        None => {
            add(&shared.counters.accepted);
            add(&shared.counters.rejected_full);
            reset(&stream);
        }
    }
}

async fn pause(shared: &Shared, error: &io::Error) {
    // The client has gone before it was accepted.
    if error.kind() == io::ErrorKind::ConnectionAborted {
        return;
    }
    add(&shared.counters.accept_errors);
    tracing::warn!(target: "voussoir::lb", %error, "accepting failed");
    tokio::select! {
        () = shared.released.notified() => {}
        () = tokio::time::sleep(ERROR_PAUSE) => {}
    }
}

fn start(
    shared: &Arc<Shared>,
    stream: TcpStream,
    peer: SocketAddr,
    local: Option<SocketAddr>,
    permit: OwnedSemaphorePermit,
) {
    add(&shared.counters.accepted);
    let id = shared.next_id.fetch_add(1, Relaxed);
    let registration = Registration { shared: Arc::clone(shared), id, permit: Some(permit) };
    // A listener on a wildcard address does not know what the client connected to.
    let known = local.filter(|local| !local.ip().is_unspecified());
    let local = known.or_else(|| stream.local_addr().ok()).unwrap_or(peer);
    // Under the lock, so that a task that ends at once finds its entry.
    let mut connections = shared.connections.lock();
    let task = tokio::spawn(connection::run(registration, stream, peer, local));
    connections.insert(id, Some(task.abort_handle()));
}

/// Makes the stream end with a reset when it is dropped.
pub(super) fn reset(stream: &TcpStream) {
    // Fails only if the connection is already gone.
    let _ = stream.set_zero_linger();
}

impl Registration {
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Counts how the connection ended, unless it was counted, also as closed by a drain.
    pub(super) fn ended(&self, counter: &AtomicU64) {
        let mut connections = self.shared.connections.lock();
        if connections.get_mut(&self.id).and_then(Option::take).is_some() {
            add(counter);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;
    use crate::balancer::Balancer;
    use crate::config::Config;
    use crate::l4::config::TcpConfig;
    use crate::l4::tcp::TcpProxy;
    use crate::strategy::RoundRobin;

    fn registration(proxy: &TcpProxy) -> Registration {
        let shared = Arc::clone(&proxy.shared);
        let id = shared.next_id.fetch_add(1, Relaxed);
        let task = tokio::spawn(pending::<()>());
        shared.connections.lock().insert(id, Some(task.abort_handle()));
        Registration { shared, id, permit: None }
    }

    /// One ends before a drain closes it, the other one while it does.
    #[tokio::test]
    async fn a_connection_that_a_drain_meets_as_it_ends_is_counted_once() {
        let balancer = Balancer::new(RoundRobin::default(), Config::default()).expect("valid");
        let proxy = TcpProxy::new(balancer, TcpConfig::default()).expect("valid");
        let (first, second) = (registration(&proxy), registration(&proxy));
        first.ended(&proxy.shared.counters.completed);
        let (aborted, ()) = tokio::join!(proxy.abort_all(), async {
            second.ended(&proxy.shared.counters.completed);
            drop((first, second));
        });
        let stats = proxy.stats();
        assert_eq!((aborted, stats.aborted, stats.completed, stats.active), (1, 1, 1, 0));
    }
}
