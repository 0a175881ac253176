//! What an operator is told: peers that come and go, elections, disks that stall.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use voussoir_net::{Class, Event, Events, Refusal, Violation};
use voussoir_raft::Raft;

use crate::http::App;

/// A cluster without a leader is reported after this long. An election takes less.
const NO_LEADER: Duration = Duration::from_secs(1);
/// A write that the disk has not completed is reported after this long.
const STALLED: Duration = Duration::from_secs(1);
/// A peer that was never reached is reported after this long.
const NEVER_REACHED: Duration = Duration::from_secs(3);
/// Between two questions to the leader how far this node is, and the time limit of each.
const FRESHEN: Duration = Duration::from_millis(500);
/// Between two looks at the disk.
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

    /// Changes each time a peer comes or goes.
    pub fn changes(&self) -> watch::Receiver<BTreeSet<u64>> {
        self.up.subscribe()
    }

    fn set(&self, peer: u64, is_up: bool) -> bool {
        if let Some(gauge) = self.gauges.lock().get(&peer) {
            gauge.set(f64::from(u8::from(is_up)));
        }
        self.up.send_if_modified(|up| if is_up { up.insert(peer) } else { up.remove(&peer) })
    }

    fn address(&self, peer: u64) -> String {
        self.addresses.get(&peer).map_or_else(|| "?".to_owned(), ToString::to_string)
    }
}

/// Logs which peers come and go, and keeps [`Peers`] up to date. Of a peer's two connections the
/// one for small messages (heartbeats, votes) counts.
pub async fn peers(mut events: Events, peers: Arc<Peers>) {
    let first_look = tokio::time::sleep(NEVER_REACHED);
    tokio::pin!(first_look);
    let mut has_looked = false;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = &mut first_look, if !has_looked => {
                has_looked = true;
                for peer in peers.addresses.keys().filter(|peer| !peers.is_up(**peer)) {
                    let address = peers.address(*peer);
                    tracing::warn!(peer, address, "a peer has not been reached yet");
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
            Some(Event::Rejected { peer, refusal, .. }) => {
                let address = peers.address(peer);
                match refusal {
                    // These pass by themselves.
                    Refusal::Closing | Refusal::TimedOut | Refusal::TooMany => {
                        tracing::warn!(peer, address, %refusal, "a peer refused this node");
                    }
                    _ => tracing::error!(peer, address, %refusal, "a peer refused this node"),
                }
            }
            Some(Event::Refused { remote, refusal }) => {
                tracing::warn!(%remote, %refusal, "a connection was refused");
            }
            Some(Event::Violation { peer, remote, violation }) => {
                match violation {
                    // What a peer that was killed in the middle of a frame leaves behind.
                    Violation::Truncated | Violation::Silent => {
                        tracing::warn!(peer, %remote, %violation, "a connection broke");
                    }
                    _ => tracing::error!(peer, %remote, %violation, "a peer broke the protocol"),
                }
            }
            Some(Event::Missed { count }) => {
                // One `Up` for each connection that stands follows.
                tracing::debug!(count, "events of the network were missed");
                for peer in peers.addresses.keys() {
                    peers.set(*peer, false);
                }
            }
            Some(_) => {}
        }
    }
}

/// Counts elections, and logs when the cluster is without a leader for long. Raft itself logs each
/// change of role, term and leader.
pub async fn leadership(raft: Raft, elections: Counter) {
    let mut status = raft.status();
    let mut term = status.borrow().term;
    let mut is_reported = false;
    loop {
        let shown = status.borrow_and_update().clone();
        // Each election begins a term, so no election is missed between two looks.
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
                tracing::warn!(term, "no leader is known: writes and linearizable reads fail");
            }
        }
    }
}

/// Keeps the age of stale answers low where nobody else reads: asks the leader now and then.
pub async fn freshness(app: Arc<App>) {
    let mut ticks = interval(FRESHEN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let began = Instant::now();
        if app.raft.read(began + FRESHEN).await.is_ok() {
            app.freshness.holds_all_before(began);
        }
    }
}

/// Logs a disk that stalls while it does, and keeps the metrics small.
pub async fn disk(app: Arc<App>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_reported = false;
    loop {
        ticks.tick().await;
        app.metrics.tidy();
        let waiting = app.disk.waiting();
        if waiting >= STALLED && !is_reported {
            is_reported = true;
            let waiting_ms = waiting.as_millis() as u64;
            tracing::warn!(waiting_ms, "the disk stalls: a write is not completed");
        } else if waiting < STALLED && is_reported {
            is_reported = false;
            tracing::info!("the disk completes writes again");
        }
    }
}
