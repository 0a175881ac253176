//! Background tasks that log what operators need to know: peers, elections, stalled disks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use voussoir_net::{Class, Event, Events, HandshakeError, Violation};
use voussoir_raft::Raft;

use crate::http::App;

/// Time without a known leader after which the node logs a warning. An election takes less.
const NO_LEADER: Duration = Duration::from_secs(1);
/// Age of an incomplete disk write at which the node logs a warning.
const STALLED: Duration = Duration::from_secs(1);
/// Time after the start at which the node logs the peers that it has not reached.
const NEVER_REACHED: Duration = Duration::from_secs(3);
/// Time between two linearizable reads that keep [`Freshness`](crate::traffic::Freshness) up to
/// date, and the time limit of each.
const FRESHEN: Duration = Duration::from_millis(500);
/// Time between two checks for a stalled disk.
const LOOK: Duration = Duration::from_millis(200);

/// Which peers this node can send to.
pub struct Peers {
    addresses: BTreeMap<u64, SocketAddr>,
    up: watch::Sender<BTreeSet<u64>>,
    gauges: Mutex<BTreeMap<u64, Gauge>>,
}

impl Peers {
    pub fn new(addresses: impl Iterator<Item = (u64, SocketAddr)>) -> Self {
        let addresses: BTreeMap<u64, SocketAddr> = addresses.collect();
        let gauge = |id: u64| metrics::gauge!("store_peer_up", "peer" => id.to_string());
        let gauges = addresses.keys().map(|id| (*id, gauge(*id))).collect();
        Self { addresses, up: watch::Sender::new(BTreeSet::new()), gauges: Mutex::new(gauges) }
    }

    pub fn is_up(&self, peer: u64) -> bool {
        self.up.borrow().contains(&peer)
    }

    /// Changes each time a peer is reached or lost.
    pub fn changes(&self) -> watch::Receiver<BTreeSet<u64>> {
        self.up.subscribe()
    }

    fn set(&self, peer: u64, is_up: bool) -> bool {
        // A node that joined later gets its gauge when it is first reached.
        let gauge = |id: u64| metrics::gauge!("store_peer_up", "peer" => id.to_string());
        let mut gauges = self.gauges.lock();
        gauges.entry(peer).or_insert_with(|| gauge(peer)).set(f64::from(u8::from(is_up)));
        drop(gauges);
        self.up.send_if_modified(|up| if is_up { up.insert(peer) } else { up.remove(&peer) })
    }

    fn address(&self, peer: u64) -> String {
        self.addresses.get(&peer).map_or_else(|| "?".to_owned(), ToString::to_string)
    }
}

/// Whether a node sends to all of its peers, so that each of them should be connected: connections
/// are made when something is sent. A leader sends to everybody, and so does a node that looks for
/// a leader; a follower sends to its leader only.
fn talks_to_all(id: u64, leader: Option<u64>) -> bool {
    leader.is_none_or(|leader| leader == id)
}

/// Logs peers that are reached and lost, and keeps [`Peers`] up to date. A peer counts as reached
/// while its connection for small messages (heartbeats, votes) is up.
pub async fn peers(mut events: Events, peers: Arc<Peers>, raft: Raft) {
    let first_look = tokio::time::sleep(NEVER_REACHED);
    tokio::pin!(first_look);
    let mut has_looked = false;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = &mut first_look, if !has_looked => {
                has_looked = true;
                let status = raft.status().borrow().clone();
                if !talks_to_all(status.id, status.leader) {
                    continue;
                }
                for peer in peers.addresses.keys().filter(|peer| !peers.is_up(**peer)) {
                    let address = peers.address(*peer);
                    tracing::warn!(peer, address, "a peer was not reached yet");
                }
                continue;
            }
        };
        match event {
            None => return,
            Some(Event::Up { peer, class: Class::Small }) => {
                if peers.set(peer, true) {
                    tracing::info!(peer, address = peers.address(peer), "a peer is reached");
                }
            }
            Some(Event::Down { peer, class: Class::Small, reason }) => {
                if peers.set(peer, false) {
                    let address = peers.address(peer);
                    tracing::warn!(peer, address, %reason, "a peer is lost");
                }
            }
            Some(Event::ConnectRejected { peer, error, .. }) => {
                let address = peers.address(peer);
                match error {
                    // Temporary: the peer accepts a later attempt.
                    HandshakeError::Closing
                    | HandshakeError::TimedOut
                    | HandshakeError::TooMany => {
                        tracing::warn!(peer, address, %error, "a peer rejected this node");
                    }
                    _ => tracing::error!(peer, address, %error, "a peer rejected this node"),
                }
            }
            Some(Event::AcceptRejected { remote, error }) => {
                tracing::warn!(%remote, %error, "a connection was rejected");
            }
            Some(Event::Violation { peer, remote, violation }) => {
                match violation {
                    // A peer that was killed in the middle of a frame.
                    Violation::Truncated | Violation::Silent => {
                        tracing::warn!(peer, %remote, %violation, "a connection broke");
                    }
                    _ => tracing::error!(peer, %remote, %violation, "a peer broke the protocol"),
                }
            }
            Some(Event::Missed { count }) => {
                // An `Up` event for each connection that is up follows.
                tracing::debug!(count, "events of the network were missed");
                let all: Vec<u64> = peers.gauges.lock().keys().copied().collect();
                for peer in all {
                    peers.set(peer, false);
                }
            }
            Some(_) => {}
        }
    }
}

/// Counts elections, and logs a warning when no leader is known for a second. Raft itself logs each
/// change of role, term and leader.
pub async fn leadership(raft: Raft, elections: Counter) {
    let mut status = raft.status();
    let mut term = status.borrow().term;
    let mut is_reported = false;
    loop {
        let shown = status.borrow_and_update().clone();
        // Each election begins a term, so the difference of terms also counts missed changes.
        elections.increment(shown.term.saturating_sub(term));
        term = term.max(shown.term);
        if let (Some(leader), true) = (shown.leader, is_reported) {
            tracing::info!(leader, term, "the cluster has a leader again");
            is_reported = false;
        }
        let changed = if shown.leader.is_none() && !is_reported {
            timeout(NO_LEADER, status.changed()).await
        } else {
            Ok(status.changed().await)
        };
        match changed {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => {
                is_reported = true;
                tracing::warn!(
                    term,
                    "no leader is known: writes fail until a majority is connected"
                );
            }
        }
    }
}

/// Reads linearizably twice a second, so that the age of stale answers stays low on a node without
/// other readers.
pub async fn freshness(app: Arc<App>) {
    let mut ticks = interval(FRESHEN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let began = Instant::now();
        if app.raft.read(began + FRESHEN).await.is_ok() {
            app.freshness.confirmed_at(began);
        }
    }
}

/// Logs when the disk stalls and when it goes on, and runs the upkeep of the metrics.
pub async fn disk(app: Arc<App>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_reported = false;
    loop {
        ticks.tick().await;
        app.metrics.run_upkeep();
        let waiting = app.disk.waiting();
        if waiting >= STALLED && !is_reported {
            is_reported = true;
            let waiting_ms = waiting.as_millis() as u64;
            tracing::warn!(waiting_ms, "the disk stalls: a write has not completed");
        } else if waiting < STALLED && is_reported {
            is_reported = false;
            tracing::info!("the disk completes writes again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_misses_nobody_but_its_leader() {
        assert!(talks_to_all(1, Some(1)), "the leader");
        assert!(talks_to_all(1, None), "a node without a leader");
        assert!(!talks_to_all(1, Some(2)), "a follower");
    }
}
