//! The conformance suite: our own services pass it, and defective ones do not.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use voussoir_lock::net::{LockServer, NetLocks};
use voussoir_lock::raft::{LockMachine, RaftLocks};
use voussoir_lock::testing::{Capabilities, Report, conformance};
use voussoir_lock::*;
use voussoir_raft::Raft;
use voussoir_raft::memory::MemoryStore;

const LOCKS: u16 = 7;

fn capabilities() -> Capabilities {
    let mut capabilities = Capabilities::default();
    capabilities.clock = Arc::new(TokioClock::default());
    capabilities
}

fn memory() -> Arc<MemoryLocks> {
    MemoryLocks::start_with_clock(Arc::new(TokioClock::default()))
}

#[tokio::test(start_paused = true)]
async fn the_service_in_memory_conforms() {
    let service = memory();
    conformance(async || service.clone(), &capabilities()).await.assert_passed();
    assert_eq!(service.replica().session_count(), 0, "sessions are left over");
}

#[tokio::test(start_paused = true)]
async fn the_service_over_a_network_conforms() {
    let config = voussoir_net::Config::default();
    let net = voussoir_net::memory::Network::new(config).expect("a valid configuration");
    let node = net.join(1);
    LockServer::serve(&node, LOCKS, memory()).expect("it is not served");
    let clients = AtomicU64::new(100);
    let connect = async || {
        let transport = Arc::new(net.join(clients.fetch_add(1, Relaxed)));
        NetLocks::new(transport, LOCKS, [1])
    };
    conformance(connect, &capabilities()).await.assert_passed();
}

/// Three nodes; each client asks any of them, and is led to the leader.
#[tokio::test(start_paused = true)]
async fn the_service_on_raft_conforms() {
    let config = voussoir_net::Config::default();
    let net = voussoir_net::memory::Network::new(config).expect("a valid configuration");
    let rafts = voussoir_raft::memory::Network::new();
    let nodes = [1, 2, 3];
    let mut kept = Vec::new();
    for id in nodes {
        let mut config = voussoir_raft::Config::new(id, nodes);
        config.seed = Some(id);
        let replica = Replica::with_clock(Arc::new(TokioClock::default()));
        let machine = Box::new(LockMachine::new(replica.clone()));
        let store = Arc::new(MemoryStore::new());
        let raft = Raft::start(config, store, machine, rafts.node(id)).await.expect("it starts");
        let node = net.join(id);
        let service = RaftLocks::start(raft, replica);
        LockServer::serve(&node, LOCKS, service.clone()).expect("it is not served");
        kept.push((node, service));
    }
    let clients = AtomicU64::new(100);
    let connect = async || {
        let transport = Arc::new(net.join(clients.fetch_add(1, Relaxed)));
        NetLocks::new(transport, LOCKS, nodes)
    };
    conformance(connect, &capabilities()).await.assert_passed();
}

/// A defect of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    /// Two hold a lock: each client has a service of its own.
    Divided,
    /// Tokens begin again when a lock is deleted.
    TokensReset,
    /// Each token is smaller than the one before.
    TokensFall,
    /// A dead session lives on: any renewal succeeds.
    RenewsTheDead,
    /// What is released is told as released, and is not.
    ForgetsReleases,
    /// A renewal does nothing.
    IgnoresRenewals,
    /// The session lives for half as long as the holder believes.
    EndsSessionsEarly,
    /// A repeated acquisition is another one.
    CountsTwice,
    /// An exclusive lock is shared.
    Shares,
    /// The lock-delay is not kept.
    NoDelay,
    /// Names are cut at their first zero or slash after the place where they differ.
    MixesNames,
    /// A view never waits.
    Impatient,
    /// A wait below the floor of its session is refused.
    ForgetsWaits,
}

/// The service in memory, with a defect.
struct Broken {
    service: Arc<MemoryLocks>,
    defect: Defect,
    /// Added to the numbers of acquisitions that are made twice.
    repeats: AtomicU64,
    /// The highest floor of each session.
    floors: Mutex<HashMap<u64, u64>>,
}

#[async_trait]
impl LockService for Broken {
    type Grants = Fenced;

    async fn open_session(&self, ttl: Duration, by: Instant) -> Result<u64, ServiceError> {
        let ttl = if self.defect == Defect::EndsSessionsEarly { ttl / 2 } else { ttl };
        self.service.open_session(ttl, by).await
    }

    async fn renew_session(&self, session: u64, by: Instant) -> Result<(), ServiceError> {
        match self.defect {
            Defect::IgnoresRenewals => Ok(()),
            Defect::RenewsTheDead => {
                let _ = self.service.renew_session(session, by).await;
                Ok(())
            }
            _ => self.service.renew_session(session, by).await,
        }
    }

    async fn close_session(&self, session: u64, by: Instant) -> Result<(), ServiceError> {
        self.service.close_session(session, by).await
    }

    async fn acquire(&self, asked: &Acquisition, by: Instant) -> Result<Acquired, ServiceError> {
        let mut asked = asked.clone();
        match self.defect {
            Defect::Shares => asked.mode = Mode::Shared,
            Defect::NoDelay => asked.lock_delay = Duration::ZERO,
            Defect::CountsTwice => asked.request += self.repeats.fetch_add(1_000, Relaxed),
            Defect::MixesNames => {
                let cut = asked.name.iter().rposition(|byte| *byte == b'%');
                asked.name.truncate(cut.unwrap_or(asked.name.len()));
            }
            Defect::ForgetsWaits => {
                let mut floors = self.floors.lock().expect("nothing panics under it");
                let floor = floors.entry(asked.session).or_default();
                *floor = asked.floor.max(*floor);
                if asked.request < *floor {
                    return Err(Rejection::StaleRequest.into());
                }
            }
            _ => {}
        }
        let acquired = self.service.acquire(&asked, by).await?;
        Ok(match (self.defect, acquired) {
            (Defect::TokensReset, Acquired::Granted { token }) => {
                Acquired::Granted { token: 1 + token % 3 }
            }
            (Defect::TokensFall, Acquired::Granted { token }) => {
                Acquired::Granted { token: u64::MAX - token }
            }
            _ => acquired,
        })
    }

    async fn release(&self, session: u64, request: u64, by: Instant) -> Result<(), ServiceError> {
        if self.defect == Defect::ForgetsReleases {
            return Ok(());
        }
        self.service.release(session, request, by).await
    }

    async fn set_value(&self, value: &NewValue, by: Instant) -> Result<(), ServiceError> {
        self.service.set_value(value, by).await
    }

    async fn view(
        &self,
        name: &Bytes,
        known: Option<u64>,
        by: Instant,
    ) -> Result<LockView, ServiceError> {
        let known = known.filter(|_| self.defect != Defect::Impatient);
        self.service.view(name, known, by).await
    }
}

async fn judged(defect: Defect) -> Report {
    let one = memory();
    let connect = async || {
        let service = if defect == Defect::Divided { memory() } else { Arc::clone(&one) };
        let (repeats, floors) = (AtomicU64::new(0), Mutex::default());
        Arc::new(Broken { service, defect, repeats, floors })
    };
    conformance(connect, &capabilities()).await
}

#[tokio::test(start_paused = true)]
async fn defective_services_are_rejected() {
    let expected = [
        (Defect::Divided, "a_lock_has_one_holder_at_a_time"),
        (Defect::TokensReset, "tokens_grow_over_the_deletion_of_the_lock"),
        (Defect::TokensFall, "the_late_write_of_a_paused_holder_is_refused"),
        (Defect::RenewsTheDead, "a_dead_session_gets_nothing"),
        (Defect::ForgetsReleases, "a_dropped_acquisition_leaves_nothing"),
        (Defect::ForgetsReleases, "a_wait_that_is_over_leaves_nothing"),
        (Defect::IgnoresRenewals, "a_renewed_session_keeps_its_locks"),
        (Defect::EndsSessionsEarly, "a_dead_sessions_locks_come_free_and_not_before"),
        (Defect::EndsSessionsEarly, "a_holder_stops_before_the_service_gives_its_lock_away"),
        (Defect::CountsTwice, "calls_may_be_repeated"),
        (Defect::Shares, "a_lock_has_one_holder_at_a_time"),
        (Defect::NoDelay, "a_lock_delay_keeps_a_dead_sessions_lock"),
        (Defect::MixesNames, "names_do_not_mix"),
        (Defect::Impatient, "a_view_waits_for_a_change"),
        (Defect::ForgetsWaits, "a_wait_is_kept_however_far_the_floor_rises"),
        (Defect::ForgetsWaits, "a_long_wait_outlives_other_locks_of_its_session"),
    ];
    for (defect, check) in expected {
        let report = judged(defect).await;
        let failed: Vec<_> = report.failed.iter().map(|(name, _)| *name).collect();
        assert!(failed.contains(&check), "{defect:?} fails {failed:?} only");
    }
}
